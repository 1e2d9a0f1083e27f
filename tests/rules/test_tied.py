"""Quantities that a study gives in place of hyperparameters, against their definitions."""

import math

import pytest

from tunewright.search.rules.hyperparameters import HYPERPARAMETERS, Hyperparameter, is_positive
from tunewright.search.rules.tied import TIES, Training

TRAINING = Training(batch_size=32, base_lr=0.02, train_examples=1400)


@pytest.mark.parametrize("batch_size", [1, 8, 512])
def test_after_the_half_life_an_average_has_forgotten_half(batch_size):
    share = TIES["half_life_examples"].value(1024, Training(batch_size, 0.1))
    average = 1.0
    for _ in range(1024 // batch_size):
        average = share * average + (1 - share) * 0.0
    assert average == pytest.approx(0.5, rel=1e-12)


def test_one_minus_is_what_is_not_kept():
    assert TIES["one_minus"].value(0.25, TRAINING) == 0.75
    assert TIES["one_minus"].value(1, TRAINING) == 0.0


def test_within_its_timescale_weight_decay_shrinks_a_parameter_by_about_e():
    epochs, training = 10, Training(batch_size=14, base_lr=0.02, train_examples=1400)
    decay = TIES["timescale_epochs"].value(epochs, training)
    parameter = 1.0
    for _ in range(epochs * 100):  # 1400 / 14 updates an epoch
        parameter *= 1 - training.base_lr * decay
    assert decay == pytest.approx(1 / (10 * 100 * 0.02), rel=1e-12)
    assert parameter == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize("tie", TIES.values(), ids=TIES)
@pytest.mark.parametrize("quantity", [0.03, 0.3, 1.0])
def test_a_quantity_is_read_back_from_the_hyperparameter(tie, quantity):
    quantity *= 1000 if tie.name == "half_life_examples" else 1
    value = tie.value(quantity, TRAINING)
    assert tie.quantity(value, TRAINING) == pytest.approx(quantity, rel=1e-9)
    assert tie.is_read_back(quantity, TRAINING)


@pytest.mark.parametrize("half_life", [1e-2, 1e13])
def test_what_rounds_to_0_or_almost_to_1_is_not_read_back(half_life):
    assert not TIES["half_life_examples"].is_read_back(half_life, TRAINING)


def test_which_hyperparameters_are_tied_by_what_is_a_column_of_their_table():
    tied = {name: row.ties for name, row in HYPERPARAMETERS.items() if row.ties}
    shares = ("half_life_examples", "one_minus")
    assert tied == {
        **dict.fromkeys(("momentum", "rho", "beta1", "beta2"), shares),
        "weight_decay": ("timescale_epochs",),
    }


@pytest.mark.parametrize("columns", [{"ties": ("half_live",)}, {"asks_tie": True}])
def test_a_row_that_is_tied_by_nothing_known_is_refused(columns):
    with pytest.raises(TypeError, match="tie"):
        Hyperparameter("gamma", "optimizer", "a number > 0", is_positive, **columns)
