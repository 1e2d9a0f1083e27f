"""What is measured of one training, whoever runs it: the study's loop, or a plain one of torch."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from doubled import Double
from examples import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from tunewright.search.rules.schedule import learning_rates
from tunewright.search.train import recorder as recorder_module
from tunewright.search.train.loop import train
from tunewright.search.train.recorder import CHECK_EVERY, Recorder
from tunewright.search.trial import Point, Trial
from tunewright.search.workload.workload import chance_loss

STEPS, EVERY = 400, 50
HEALTHY = Point(0, 16, "momentum", 0.05, warmup_steps=9, clip_norm=0.5, decay="cosine", seed=1)
UNCLIPPED = dataclasses.replace(HEALTHY, clip_norm=math.inf, warmup_steps=0)
POINTS = {
    "healthy": HEALTHY,
    "too high": dataclasses.replace(UNCLIPPED, base_lr=100.0),
    "infinite": dataclasses.replace(UNCLIPPED, base_lr=1e200),
    "overfitting": dataclasses.replace(UNCLIPPED, base_lr=0.3),
}


WORKLOAD = Double()


def study(**changes):
    return parse(
        objective="val_loss",
        max_train_steps=STEPS,
        evaluations=STEPS // EVERY,
        space__warmup_steps=0,
        **changes,
    )


@functools.cache
def by_the_study(name, **changes):
    (trained,) = train(study(**changes), WORKLOAD, [POINTS[name]])
    return trained


def recorder_of(steps=STEPS, **settings):
    return Recorder(steps, "val_loss", chance_loss=chance_loss(WORKLOAD), **settings)


def metrics_of(model):
    model.eval()
    with torch.no_grad():
        found = {name: float(value) for name, value in WORKLOAD.evaluate(model).items()}
    model.train()
    return found


def clipped(parameters, clip_norm):
    """Clip, and the norm before. As R14 says: torch's clip_grad_norm_ adds 1e-6 to the norm."""
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (clip_norm / norm).clamp(max=1.0))
    return norm


def plainly(point, recorder, resume_at=None):
    """A user's own loop; the best checkpoint. `resume_at`: there, a second recorder takes over."""
    torch.manual_seed(point.seed)
    model = WORKLOAD.build_model(point.seed).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=point.base_lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rates(point, STEPS)[min(step, STEPS - 1)] / point.base_lr
    )
    batches = iter(WORKLOAD.train_batches(point.batch_size, point.seed))
    recorder.report(metrics_of(model))
    best = {}
    while recorder.step < recorder.total_steps and not recorder.is_hopeless():
        if recorder.step == resume_at:
            resumed = recorder_of()
            resumed.restore(recorder.state())
            recorder = resumed
        optimizer.zero_grad()
        loss = WORKLOAD.loss(model, next(batches))
        loss.backward()
        norm = clipped(parameters, point.clip_norm)
        optimizer.step()
        scheduler.step()
        recorder.record(loss, norm)
        if recorder.step % EVERY == 0 or recorder.step == recorder.total_steps:
            recorder.report(metrics_of(model))
            if recorder.is_best:
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return recorder, best


def best_step(curve):
    return int(curve.eval_step[np.nanargmin(curve.metrics["val_loss"])])


@pytest.mark.parametrize("resume_at", [None, 63])
@pytest.mark.parametrize("name", POINTS)
def test_a_plain_loop_ends_with_the_curve_verdict_and_checkpoint_of_the_studys(name, resume_at):
    want = by_the_study(name)
    recorder, best = plainly(POINTS[name], recorder_of(), resume_at)
    curve, verdict, expected = recorder.curve(), recorder.verdict(), want.trial.curve
    assert len(curve.loss) == len(expected.loss)
    healthy = slice(0, None if want.trial.feasible else 30)  # beyond, rounding is amplified
    np.testing.assert_allclose(curve.loss[healthy], expected.loss[healthy], rtol=1e-9)
    np.testing.assert_allclose(curve.grad_norm[healthy], expected.grad_norm[healthy], rtol=1e-9)
    np.testing.assert_array_equal(curve.eval_step, expected.eval_step)
    assert curve.metrics.keys() == expected.metrics.keys()
    assert (curve.total_steps, curve.chance_loss) == (STEPS, expected.chance_loss)
    assert dataclasses.replace(verdict, evidence="") == dataclasses.replace(
        want.trial.verdict, evidence=""
    )
    assert best_step(curve) == want.trial.best_step
    if best:
        assert best.keys() == want.checkpoint.keys()
        for name, tensor in want.checkpoint.items():
            torch.testing.assert_close(best[name], tensor, rtol=1e-8, atol=1e-10)


def test_the_points_end_in_different_ways():
    """Of which one is stopped early, and one has its best checkpoint before its end."""
    found = {name: by_the_study(name).trial for name in POINTS}
    assert found["healthy"].feasible
    assert found["infinite"].verdict.outcome == "non_finite"
    assert found["too high"].verdict.infeasible
    assert len(found["too high"].curve.loss) < STEPS
    assert 0 < found["overfitting"].best_step < STEPS


def replayed(curve, steps, **settings):
    """A recorder that is told of a curve again, number for number, as tensors, up to where it says
    that training may stop.
    """
    recorder = Recorder(steps, "val_loss", chance_loss=curve.chance_loss, **settings)
    evaluations = {
        int(step): {name: float(values[i]) for name, values in curve.metrics.items()}
        for i, step in enumerate(curve.eval_step)
    }
    recorder.report(evaluations[0])
    best = 0
    for loss, norm in zip(curve.loss, curve.grad_norm, strict=True):
        recorder.record(torch.tensor(loss), torch.tensor(norm))
        if recorder.step in evaluations:
            recorder.report(evaluations[recorder.step])
            best = recorder.step if recorder.is_best else best
        if recorder.is_hopeless():
            break
    return recorder, best


@pytest.mark.parametrize("name", POINTS)
def test_the_same_numbers_one_by_one_give_the_same_to_the_last_bit(name):
    trial = by_the_study(name).trial
    recorder, best = replayed(trial.curve, STEPS)
    assert recorder.curve() == trial.curve
    assert recorder.verdict() == trial.verdict
    assert best == trial.best_step or not trial.feasible
    # what is stopped is stopped no earlier, either
    assert recorder.is_hopeless() == (trial.verdict.infeasible and recorder.step < STEPS)


def test_the_largest_value_is_best_where_the_objective_is_maximized():
    recorder = Recorder(9, "accuracy", maximize=True)
    found = []
    for value in (0.1, 0.3, 0.3, math.nan, 0.2, 0.4):
        recorder.report({"accuracy": value})
        found.append(recorder.is_best)
        recorder.record(1.0, 1.0)
    assert found == [True, True, False, False, False, True]


@pytest.mark.parametrize("maximize", [False, True])
def test_an_infinite_value_is_no_best_one_that_later_ones_must_beat(maximize):
    recorder = Recorder(9, "v", maximize=maximize)
    found = []
    for value in (math.inf, -math.inf, 1.0, math.inf, -math.inf, 2.0 if maximize else 0.5):
        recorder.report({"v": value})
        found.append(recorder.is_best)
        recorder.record(1.0, 1.0)
    assert found == [False, False, True, False, False, True]


def test_what_is_reported_after_one_update_is_one_evaluation():
    recorder = Recorder(9, "v")
    recorder.report({"other": 1.0})
    recorder.report({"v": 2.0})
    with pytest.raises(ValueError, match="v: reported twice after update 0"):
        recorder.report({"v": 1.0, "third": 3.0})
    assert recorder.metrics == {"other": [1.0], "v": [2.0]}
    assert recorder.curve().eval_step.tolist() == [0]
    assert "missing" not in recorder.verdict().evidence


def test_no_tensor_is_read_before_a_block_is_full():
    """A tensor on the meta device has no value that could be read: a look raises."""
    recorder = Recorder(2 * CHECK_EVERY, "val_loss")
    number = torch.zeros((), device="meta")
    for _ in range(CHECK_EVERY - 1):
        recorder.record(number, number)
        assert not recorder.is_hopeless()
    with pytest.raises(NotImplementedError):
        recorder.record(number, number)


@pytest.mark.parametrize("ask", [Recorder.curve, Recorder.state, Recorder.verdict])
def test_what_waits_is_looked_at_when_it_is_asked_for(ask):
    recorder = Recorder(9, "val_loss")
    recorder.report({"val_loss": 1.0})
    recorder.record(torch.tensor(2.0), 3.0)
    ask(recorder)
    assert recorder.losses.tolist() == [2.0]
    assert recorder.grad_norms.tolist() == [3.0]


def test_a_loss_that_is_overwritten_later_is_kept_as_it_was():
    recorder, loss = Recorder(9, "val_loss"), nn.Parameter(torch.tensor(0.0))
    for value in range(4):
        with torch.no_grad():
            loss.fill_(value)
        recorder.record(loss, loss)
    assert recorder.losses.tolist() == [0, 1, 2, 3]


def test_one_by_one_and_in_blocks_is_the_same():
    rng = np.random.default_rng(0)
    losses, norms = rng.random((2, 50))
    one, other = Recorder(50, "val_loss"), Recorder(50, "val_loss")
    for recorder in (one, other):
        recorder.report({"val_loss": 1.0})
    for loss, norm in zip(losses[:7], norms[:7], strict=True):
        other.record(loss, norm)
    other.record_block(losses[7:], norms[7:])
    for loss, norm in zip(losses, norms, strict=True):
        one.record(loss, norm)
    assert one.curve() == other.curve()


@pytest.mark.parametrize("at", [0, 3, 30, 59])
@pytest.mark.parametrize("what", ["loss", "norm"])
def test_a_curve_ends_with_the_first_number_that_is_not_finite(at, what):
    recorder = Recorder(100, "val_loss")
    for step in range(60):
        bad = math.nan if step >= at else 1.0
        recorder.record(bad if what == "loss" else 1.0, bad if what == "norm" else 1.0)
    assert len(recorder.curve().loss) == at + 1
    assert recorder.is_hopeless()
    assert recorder.verdict().onset_step == at
    assert recorder.step == 60


def test_an_interrupted_recorder_goes_on_with_all_that_it_had():
    whole = by_the_study("healthy").trial.curve
    recorder, other = recorder_of(), recorder_of()
    recorder.report({"val_loss": 2.0})
    recorder.record_block(whole.loss[:33], whole.grad_norm[:33])
    recorder.report({"val_error": 0.5})
    recorder.record(1.0, 2.0)
    recorder.seconds = 1.5
    other.record_block([9.0] * 40, [math.nan] * 40)
    other.restore(recorder.state() | {"theta": torch.zeros(2)})
    assert (other.step, other.seconds) == (34, 1.5)
    assert other.curve() == recorder.curve()
    assert other.verdict() == recorder.verdict()
    assert "val_loss was missing in 1 of 2 evaluations" in other.verdict().evidence
    assert other.state().keys() == recorder.state().keys()


def test_a_state_is_not_changed_by_what_is_recorded_later():
    recorder = Recorder(9, "val_loss")
    recorder.record(1.0, 1.0)
    state = recorder.state()
    recorder.restore({**state, "loss": torch.tensor([5.0]).double()})
    assert state["loss"].tolist() == [1.0]


def of_length(length):
    return {"loss": torch.ones(length), "grad_norm": torch.ones(length)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (of_length(10), ValueError, "of 10 updates is of another training: 9 are planned"),
        ({"grad_norm": torch.ones(3)}, ValueError, "differ in length"),
        ({"metric/val_loss": torch.ones(3)}, ValueError, "differ in length"),
    ],
)
def test_a_state_of_another_training_is_refused_and_nothing_is_changed(changes, error, message):
    recorder = Recorder(9, "val_loss")
    recorder.report({"val_loss": 2.0})
    recorder.record(1.0, 1.0)
    before = recorder.curve()
    with pytest.raises(error, match=message):
        recorder.restore(recorder.state() | changes)
    assert recorder.curve() == before


@pytest.mark.parametrize("lost", ["loss", "grad_norm", "eval_step", "seconds"])
def test_a_state_that_lacks_something_is_refused(lost):
    recorder = Recorder(9, "val_loss")
    state = recorder.state()
    del state[lost]
    with pytest.raises(KeyError, match=lost):
        recorder.restore(state)


def test_more_updates_than_planned_are_refused():
    recorder = Recorder(2, "val_loss")
    recorder.record(1.0, 1.0)
    with pytest.raises(ValueError, match="more updates are recorded than the 2 planned"):
        recorder.record_block([1.0, 1.0], [1.0, 1.0])
    recorder.record(1.0, 1.0)
    with pytest.raises(ValueError, match="the 2 planned"):
        recorder.record(1.0, 1.0)
    assert recorder.step == 2


def test_a_metric_that_is_no_number_is_refused_and_nothing_is_added():
    recorder = Recorder(9, "val_loss")
    with pytest.raises(ValueError, match="could not convert"):
        recorder.report({"val_loss": 1.0, "note": "good"})
    assert len(recorder.curve().eval_step) == 0


@pytest.mark.parametrize(("steps", "first"), [(100, CHECK_EVERY), (5, 5)])
def test_a_gradient_that_is_exactly_0_from_the_start_is_seen_when_it_is_sure(steps, first):
    recorder = Recorder(steps, "val_loss")
    for step in range(first):
        assert not recorder.is_without_gradient(), step
        recorder.record(1.0, 0.0)
    assert recorder.is_without_gradient()


def test_a_training_without_evaluations_has_a_verdict_and_makes_a_trial():
    recorder = Recorder(40, "val_loss")
    assert recorder.verdict().evidence == "no training step was taken"
    recorder.record_block([1.0 / (1 + step) for step in range(40)], [1.0] * 40)
    assert not recorder.is_hopeless()
    verdict, curve = recorder.verdict(), recorder.curve()
    trial = Trial.from_curve(POINTS["healthy"], verdict, curve, "val_loss", 1.0)
    assert verdict.outcome == "feasible"
    assert math.isnan(trial.initial_value)
    assert trial.best_value == math.inf
    assert trial.last_loss == 1 / 40


def test_training_is_judged_as_often_whoever_reads_the_losses(monkeypatch):
    judged = []
    monkeypatch.setattr(
        recorder_module, "hopeless", lambda curve, *_, **__: bool(judged.append(len(curve.loss)))
    )
    recorder = Recorder(3 * CHECK_EVERY + 5, "val_loss")
    recorder.report({"val_loss": 1.0})
    while recorder.step < recorder.total_steps and not recorder.is_hopeless():
        recorder.record(1.0, 1.0)
        assert recorder.losses[-1] == 1.0
        if recorder.step == CHECK_EVERY + 7:
            recorder.report({"val_loss": 1.0})
    recorder.is_hopeless()
    late = CHECK_EVERY + 7
    assert judged == [0, CHECK_EVERY, late, late + CHECK_EVERY, recorder.total_steps]


def test_an_interrupted_recorder_is_judged_where_it_goes_on():
    recorder, other = Recorder(100, "val_loss"), Recorder(100, "val_loss")
    recorder.record_block([1.0, math.nan], [1.0, 1.0])
    other.restore(recorder.state())
    assert other.is_hopeless()


@pytest.mark.parametrize("order", ["zav", "avz", "vza"])
def test_metrics_keep_their_order_when_their_state_was_in_a_file(order):
    recorder, other = Recorder(9, "v"), Recorder(9, "v")
    recorder.report({name: float(place) for place, name in enumerate(order)})
    other.restore(load(save(recorder.state())))
    assert list(other.metrics) == list(order)
    assert other.metrics == recorder.metrics


def test_a_state_without_the_order_of_metrics_is_read():
    recorder, other = Recorder(9, "v"), Recorder(9, "v")
    recorder.report({"z": 1.0, "v": 2.0})
    state = recorder.state()
    del state["metric_order"]
    other.restore(state)
    assert dict(other.metrics) == {"v": [2.0], "z": [1.0]}


def test_a_state_whose_order_is_of_other_metrics_is_refused():
    recorder = Recorder(9, "v")
    recorder.report({"z": 1.0, "v": 2.0})
    with pytest.raises(ValueError, match="argument"):
        recorder.restore(recorder.state() | {"metric_order": torch.tensor([0])})


@pytest.mark.parametrize("objective", ["v", ""])
@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"v": 2.0}, ""),
        ({}, "the untrained model was not evaluated"),
        ({"v": math.nan}, "v of the untrained model is nan"),
    ],
)
def test_what_is_not_known_of_the_untrained_model_is_told(objective, first, said):
    recorder = Recorder(4, objective)
    recorder.report(first)
    recorder.record_block([1.0, 0.9, 0.8, 0.7], [1.0] * 4)
    recorder.report({"v": 1.0})
    evidence = recorder.verdict().evidence
    assert evidence.endswith(said)
    assert ("untrained" in evidence) == bool(said)
    assert "nan or infinite" not in evidence


# --- a training of which nobody knows how long it is ----------------------------------------------


def test_without_a_number_of_updates_it_takes_as_many_as_come():
    rng = np.random.default_rng(0)
    losses, norms = rng.random((2, 1000))
    one, other = Recorder(None), Recorder(1000)
    for loss, norm in zip(losses, norms, strict=True):
        one.record(loss, norm)
    other.record_block(losses, norms)
    assert one.curve() == other.curve()
    assert one.total_steps == 1000


levels = st.sampled_from([0.1, 1.0, 2.0, 2.3, 2.6, 5.0, 40.0, 1e4])
spans = st.lists(st.tuples(levels, st.integers(5, 400)), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(spans, st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([2.3, math.nan]))
def test_what_is_stopped_by_its_loss_alone_is_judged_infeasible(spans, noise, chance):
    level = np.concatenate([np.full(count, value) for value, count in spans])
    losses = level * np.exp(noise * np.random.default_rng(0).standard_normal(len(level)))
    recorder = Recorder(None, chance_loss=chance)
    recorder.report({})
    for loss in losses:
        recorder.record(loss, 1.0)
        if recorder.is_hopeless():
            assert recorder.verdict().infeasible
            break


@pytest.mark.parametrize("expected", [400, 4000])
def test_a_loss_that_blew_up_has_a_quarter_of_the_expected_updates_to_recover(expected):
    falls = 2.3 * np.exp(-np.arange(100) / 30) + 0.1
    recorder = Recorder(None, expected_steps=expected)
    for loss in [*falls, *np.full(2 * expected, 50.0)]:
        recorder.record(loss, 1.0)
        if recorder.is_hopeless():
            break
    assert expected / 4 <= recorder.step - 100 <= expected / 4 + 120
    assert recorder.verdict().outcome == "diverged"
    recovers = Recorder(None, expected_steps=expected)
    for loss in [*falls, *np.full(60, 50.0), *np.full(expected, 0.1)]:
        recovers.record(loss, 1.0)
        assert not recovers.is_hopeless()


def test_one_that_is_to_be_evaluated_is_not_stopped_before():
    recorder = Recorder(None, "val_loss")
    recorder.report({"val_loss": 2.3})
    for loss in [*np.full(100, 1.0), *np.full(500, 50.0)]:
        recorder.record(loss, 1.0)
        assert not recorder.is_hopeless()
    recorder.report({"val_loss": 2.4})
    assert recorder.is_hopeless()
