"""A row of a hyperparameter is complete, or refused by name; what it says is what a study asks."""

import math

import pytest
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.rules.hyperparameters import (
    HYPERPARAMETERS,
    Hyperparameter,
    by_name,
    declare,
    is_positive,
    is_positive_or_inf,
    is_share,
    of_kind,
)
from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import SHAPES
from tunewright.search.trial import Point, check_point_fields

SHARE = ("a number in [0, 1)", is_share)
REFUSED = [
    (lambda: Hyperparameter("x", "optimizer"), "nothing says what a value must be"),
    (lambda: Hyperparameter("x", "optimizer", "a number"), "nothing says what a value must be"),
    (
        lambda: Hyperparameter("x", "own", *SHARE),
        "its kind must be one of common, optimizer, schedule",
    ),
    (lambda: Hyperparameter("x", "schedule", *SHARE, default=0.5), "the default of one of kind"),
    (
        lambda: Hyperparameter("x", "common", *SHARE, default=1.0),
        r"default must be a number in \[0, 1\), got 1.0",
    ),
    (lambda: Hyperparameter("x", "common", *SHARE, off=-1.0), "off must be a number"),
    (lambda: Hyperparameter("x", "common", *SHARE, hidden_at=2.0), "hidden_at must be a number"),
    (lambda: Hyperparameter("x", "common", *SHARE, control="R9"), "a control needs a value"),
    (
        lambda: Hyperparameter("x", "common", choices=("a", "b"), default="c"),
        "default must be one of a, b, got 'c'",
    ),
    (lambda: declare(Hyperparameter("rho", "optimizer", *SHARE)), "two rows have this name"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_an_incomplete_row_is_refused_by_name(make, reason):
    before = dict(HYPERPARAMETERS)
    with pytest.raises(TypeError, match=rf"hyperparameter '(x|rho)': .*{reason}"):
        make()
    assert before == HYPERPARAMETERS


def test_a_common_row_that_a_point_does_not_hold_is_refused(monkeypatch):
    check_point_fields(of_kind("common"))
    rows = [*HYPERPARAMETERS.values(), Hyperparameter("noise", "common", *SHARE, default=0.0)]
    monkeypatch.setattr("tunewright.search.trial.HYPERPARAMETERS", by_name(rows))
    with pytest.raises(TypeError, match=r"hyperparameter 'noise': .* Point needs a field"):
        check_point_fields(["noise"])


def test_every_default_is_what_its_row_asks_for():
    for rule in RULES.values():
        for name, default in rule.defaults.items():
            assert HYPERPARAMETERS[name].accepts(default)
            assert HYPERPARAMETERS[name].kind == "optimizer"
    assert of_kind("common") == (
        "base_lr",
        "warmup_steps",
        "clip_norm",
        "clip_z",
        "clip_tensor",
        "decay",
    )


@pytest.mark.parametrize("value", [True, "1", math.nan, -1, 1])
def test_what_a_row_refuses_a_study_file_refuses(value):
    row = HYPERPARAMETERS["momentum"]
    assert not row.accepts(value)
    with pytest.raises(UserError, match="momentum"):
        parse(space__optimizer__momentum__momentum=value)


def test_a_number_above_0_is_finite_unless_its_row_takes_inf():
    assert [is_positive(value) for value in (1, 1e-9, 0, -1, math.inf, True)] == [1, 1, 0, 0, 0, 0]
    assert is_positive_or_inf(math.inf)
    assert not is_positive_or_inf(0)
    limitless = [name for name, row in HYPERPARAMETERS.items() if row.accepts(math.inf)]
    assert limitless == ["clip_norm", "clip_z", "clip_tensor"]
    above_0 = {"base_lr", *limitless, "epsilon", "decay_fraction"}
    for name in above_0 | {"weight_decay", "rho", "warmup_steps"}:
        row = HYPERPARAMETERS[name]
        assert row.accepts(0) == (name not in above_0), name
        assert not row.accepts(-1.0), name
        assert not row.accepts(math.nan), name


def test_values_are_held_as_their_row_says():
    assert isinstance(HYPERPARAMETERS["warmup_steps"].convert(10.0), int)
    assert isinstance(HYPERPARAMETERS["clip_norm"].convert(1), float)
    assert HYPERPARAMETERS["decay"].convert("linear") == "linear"
    assert HYPERPARAMETERS["decay"].requirement == f"one of {', '.join(SHAPES)}"


def test_what_is_hidden_at_its_value_is_in_the_record_at_another():
    assert "clip_z" not in Point(0, 8, "sgd", 0.1).record()
    assert Point(0, 8, "sgd", 0.1, clip_z=2.5).record()["clip_z"] == 2.5
    assert "clip_tensor" not in Point(0, 8, "sgd", 0.1, clip_z=2.5).record()
    assert Point(0, 8, "sgd", 0.1, clip_tensor=1.05).record()["clip_tensor"] == 1.05
