"""A stack holds what the rules of its slots need, and nothing else."""

import pytest
import torch
import zoo

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
