"""A stack holds what the rules of its slots need, and nothing else."""

import math

import plain
import pytest
import torch
import zoo

from tunewright.search.rules.clipping import TensorGate
from tunewright.search.rules.optimizers import RULES
from tunewright.search.train.execution import Recorded
from tunewright.search.train.rows import Stack


def stack(*optimizers):
    work = zoo.make("Mlp")
    return Stack(Recorded(work, work.build_model(0)), 3, optimizers)


def filled(*optimizers):
    """A stack whose first slot holds the first optimizer's fresh state."""
    made = stack(*optimizers)
    made.load(0, dict(zoo.make("Mlp").build_model(0).named_parameters()), optimizers[0])
    return made


def states(made):
    return {name for name in made.state(0) if name.startswith("state/")}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_alone_has_rows_for_its_own_state(name):
    assert states(stack(name)) == {f"state/{own}" for own in RULES[name].state}


def test_rules_together_have_rows_for_the_states_of_all_of_them():
    assert states(stack("sgd", "momentum")) == {"state/v"}
    assert states(stack("sgd", "adam", "rmsprop")) == {"state/m", "state/v"}


def test_a_stack_of_sgd_alone_is_smaller_by_the_states_of_adam():
    size = {
        name: sum(tensor.numel() for tensor in filled(name).state(0).values())
        for name in ("sgd", "adam")
    }
    parameters = sum(p.numel() for p in zoo.make("Mlp").build_model(0).parameters())
    assert size["adam"] - size["sgd"] == 2 * parameters


def test_what_was_saved_beside_other_rules_is_put_back_without_them():
    saved = filled("momentum", "adam").state(0)
    saved["state/v"] = torch.full_like(saved["theta"], 0.5)
    for optimizers in (("momentum",), ("momentum", "sgd", "adam")):
        made = filled(*optimizers)
        made.restore(0, saved, "momentum")
        assert torch.equal(made.state(0)["state/v"], saved["state/v"])


def test_a_state_without_what_its_rule_needs_is_refused_before_anything_changes():
    saved, made = filled("sgd").state(0), filled("adam", "sgd")
    before = made.state(0)
    saved["theta"] = saved["theta"] + 1
    with pytest.raises(ValueError, match="saved state of another model: m, v"):
        made.restore(0, saved, "adam")
    assert all(torch.equal(made.state(0)[name], tensor) for name, tensor in before.items())


def test_usual_norms_are_there_where_a_threshold_follows_them_alone():
    work = zoo.make("Mlp")
    made = Stack(Recorded(work, work.build_model(0)), 3, ["sgd"], follows_norms=True)
    tensors = len(list(work.build_model(0).parameters()))
    assert made.state(0)["tensor_norm"].shape == (tensors,)
    assert "tensor_norm" not in stack("sgd").state(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_tensor_of_each_slot_is_clipped_by_its_own_factor_in_any_precision(dtype):
    """At three slots of different gradients, the last without a threshold."""
    work = zoo.make("Mlp")
    model = work.build_model(0).to(dtype)
    made = Stack(Recorded(work, model), 3, ["sgd"], follows_norms=True)
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([[1.05], [2.0], [math.inf]], dtype=made.wide)
    usual = [[None] * len(made._gradients) for _ in range(3)]
    for t in range(40):
        before = {}
        for name, rows in made._gradients.items():
            drawn = torch.randn(rows.shape, generator=generator) * 10.0 ** (t % 3 - 2)
            rows.copy_(drawn)
            before[name] = rows.double()
        gathers = torch.full((3, 1), t < 25)
        first = torch.where(gathers & limits.isfinite(), 1.0, math.inf).to(made.wide)
        gate = TensorGate(torch.where(gathers, math.inf, limits), first, gathers)
        made.clip_tensors(gate)
        for k, multiple in enumerate(limits[:, 0].tolist()):
            norms = [float(rows[k].norm()) for rows in before.values()]
            factors = plain.clip_tensors(multiple, norms, usual[k], t)
            for factor, (name, rows) in zip(factors, before.items(), strict=True):
                found = made._gradients[name][k].double()
                rtol = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
                torch.testing.assert_close(found, rows[k] * factor, rtol=rtol, atol=1e-7)
    assert torch.isfinite(made.state(0)["tensor_norm"]).all()
