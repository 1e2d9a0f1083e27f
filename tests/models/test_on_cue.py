"""The model that goes wrong on cue: at the stated step, in the stated way, with any optimizer."""

import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from tunewright.models import on_cue

CUE = 30
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


def losses(kind: str, optimizer: str, steps: int = 100) -> np.ndarray:
    workload = on_cue.linear(CUE, kind)
    model = workload.build_model(0)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    recorded = []
    for batch in islice(workload.train_batches(32, seed=0), steps):
        stepper.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        stepper.step()
        workload.evaluate(model)  # must not count as a step
        recorded.append(loss.item())
    return np.array(recorded)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
class TestLoss:
    @pytest.mark.parametrize("kind", on_cue.KINDS)
    def test_it_falls_until_the_cue(self, kind: str, optimizer: str) -> None:
        before = losses(kind, optimizer, CUE)
        assert before[-1] < before[0] < 1.5

    def test_nan_is_non_finite_from_the_cue_on(self, optimizer: str) -> None:
        assert np.isfinite(losses("nan", optimizer)).tolist() == [t < CUE for t in range(100)]

    def test_blow_up_is_finite_and_stays_far_above_the_start(self, optimizer: str) -> None:
        curve = losses("blow_up", optimizer)
        assert np.isfinite(curve).all()
        assert curve[CUE + 10 :].min() > 100 * curve[0]

    def test_spike_is_finite_and_recovers(self, optimizer: str) -> None:
        curve = losses("spike", optimizer)
        assert curve[CUE : CUE + 4].min() > 10
        assert curve[CUE + 4 :].max() < curve[0]
        assert curve[-20:].mean() <= curve[CUE - 5 : CUE].mean()


@pytest.mark.parametrize("steps_done", [CUE - 1, CUE, CUE + 4])
def test_an_evaluation_meets_the_push_of_the_next_step(steps_done: int) -> None:
    workload = on_cue.linear(CUE, "spike")
    model = workload.build_model(0)
    model.step.fill_(steps_done)
    assert (workload.evaluate(model)["val_loss"] > 5) == (steps_done == CUE)
    assert model.step == steps_done


def test_the_cue_travels_with_the_state_of_the_model() -> None:
    workload = on_cue.linear(CUE, "nan")
    model, copy = workload.build_model(0), workload.build_model(0)
    model.step.fill_(CUE)
    copy.load_state_dict(model.state_dict())
    assert math.isnan(workload.loss(copy, next(workload.train_batches(4, seed=0))).item())


@pytest.mark.parametrize("arguments", [{"kind": "explode"}, {"cue_step": -1}])
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        on_cue.linear(**arguments)  # type: ignore[arg-type]
