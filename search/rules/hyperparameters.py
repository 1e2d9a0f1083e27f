"""Hyperparameters, one row each: what a value must be, and all that follows from it elsewhere.

Study files, samplers, tables, plots and advice read these rows; none of them names a hyperparameter
for what a row says. A row that contradicts itself is refused at import.

    common     of every training; a field of `Point`
    optimizer  of the update rules that name it, each with a default of its own (optimizers.py)
    schedule   of the shapes of decay that name it, each with a default of its own (schedule.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

from .tied import TIES

Kind = Literal["common", "optimizer", "schedule"]
Value = float | str


def is_number(value: Any) -> bool:
    """Whether a value is a number, inf among them; true and false are none, nor is nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def is_finite(value: Any) -> bool:
    """Whether a value is a number other than inf."""
    return is_number(value) and math.isfinite(value)


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter. Raises TypeError if the row is not complete.

    description     what it is, in a few words
    example         a value as a study file gives it: one, a list or a range
    rule, holds     what a value must be, in words and as a test; of `choices` both follow
    choices         the texts to choose from, a table whose later rows count, too; none: a number
    default         of a common one, where a study gives no value; None: every study must give one
    is_integer      whether a Point holds it as an integer
    off             the value of a common one that is as if it were not there
    control         the playbook's rule by which a list of values should contain `off`
    hidden_at       at this value it is omitted from records and tables, so that results older than
                    the hyperparameter stay the same
    longer_steps    1 or -1: steps are longer the larger, or the smaller, it is; 0: neither
    per_batch_size  whether each batch size has a best value of its own (R20)
    fewest_trials   with fewer configurations per group, fix it (S11); "far more than 25" is taken
                    as 50
    ties            what a study may give in its place, names of TIES
    asks_tie        whether to advise the first of them where batch sizes are far apart
    """

    name: str
    kind: Kind
    rule: str = ""
    holds: Callable[[Any], bool] | None = None
    choices: Collection[str] | None = None
    default: Value | None = None
    is_integer: bool = False
    off: float | None = None
    control: str = ""
    hidden_at: Value | None = None
    longer_steps: Literal[-1, 0, 1] = 0
    per_batch_size: bool = False
    fewest_trials: int = 0
    ties: tuple[str, ...] = ()
    asks_tie: bool = False
    description: str = ""
    example: Any = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            self._refuse(f"its kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.choices is None and not (self.rule and self.holds):
            self._refuse("nothing says what a value must be: give rule and holds, or choices")
        if self.kind != "common" and self.default is not None:
            self._refuse(f"the default of one of kind {self.kind} stands where it is named")
        for field in ("default", "off", "hidden_at"):
            value = getattr(self, field)
            if value is not None and not self.accepts(value):
                self._refuse(f"{field} must be {self.requirement}, got {value!r}")
        if self.control and self.off is None:
            self._refuse("a control needs a value that is off")
        if self.asks_tie and not self.ties:
            self._refuse("nothing ties it that could be asked for")
        if unknown := [name for name in self.ties if name not in TIES]:
            self._refuse(f"it is tied by {unknown[0]!r}, which is no row of TIES")

    def _refuse(self, reason: str) -> None:
        raise TypeError(f"hyperparameter {self.name!r}: {reason}")

    @property
    def requirement(self) -> str:
        """What a value must be, in words."""
        return self.rule if self.choices is None else f"one of {', '.join(self.choices)}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is what the row asks for."""
        if self.choices is not None:
            return value in self.choices
        assert self.holds is not None  # __post_init__
        return self.holds(value)

    def convert(self, value: Any) -> Any:
        """A value of a study file as a Point holds it: an integer, a float or a text."""
        if self.choices is not None:
            return value
        return round(value) if self.is_integer else float(value)


class Named(Protocol):
    """A row of a table that is looked up by name."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    """A table of rows. Raises TypeError if two of them have the same name."""
    table: dict[str, Row] = {}
    for row in rows:
        if row.name in table:
            raise TypeError(f"{type(row).__name__.lower()} {row.name!r}: two rows have this name")
        table[row.name] = row
    return table


def is_positive(value: Any) -> bool:
    """Whether a value is a number > 0 other than inf."""
    return is_finite(value) and value > 0


def is_positive_or_inf(value: Any) -> bool:
    """Whether a value is a number > 0, inf among them."""
    return is_number(value) and value > 0


def is_share(value: Any) -> bool:
    """Whether a value is a number in [0, 1)."""
    return is_number(value) and 0 <= value < 1


def is_count(value: Any) -> bool:
    """Whether a value is an integer ≥ 0, as 10 and 10.0 are."""
    return is_finite(value) and value >= 0 and value == int(value)


HYPERPARAMETERS: dict[str, Hyperparameter] = {}


def declare(row: Hyperparameter) -> Hyperparameter:
    """Add a row to HYPERPARAMETERS and return it. Raises TypeError if its name is taken."""
    HYPERPARAMETERS.update(by_name([*HYPERPARAMETERS.values(), row]))
    return row


def fault_of(defaults: Mapping[str, Any], kind: Kind) -> str:
    """What is wrong with hyperparameters of one kind and their defaults; empty if nothing is."""
    for name, default in defaults.items():
        row = HYPERPARAMETERS.get(name)
        if row is None or row.kind != kind:
            return f"no row of HYPERPARAMETERS for {name}, of kind {kind}"
        if not row.accepts(default):
            return f"its default {name} must be {row.requirement}, got {default!r}"
    return ""


def of_kind(kind: Kind) -> tuple[str, ...]:
    """The names of the hyperparameters of one kind, in the order of their rows."""
    return tuple(row.name for row in HYPERPARAMETERS.values() if row.kind == kind)


# --- of every training; `decay` stands with its shapes in schedule.py -----------------------------

declare(
    Hyperparameter(
        "base_lr",
        "common",
        "a number > 0",
        is_positive,
        longer_steps=1,
        per_batch_size=True,
        description="Learning rate at the end of warmup; the decay lowers it from there",
        example={"low": 1e-3, "high": 10.0, "log": True},
    )
)
declare(
    Hyperparameter(
        "warmup_steps",
        "common",
        "an integer ≥ 0",
        is_count,
        default=0,
        is_integer=True,
        off=0,
        control="R9",
        longer_steps=-1,
        description="Updates in which the learning rate rises from 0 to base_lr; at most 10 % of "
        "max_train_steps (R10)",
        example={"orders_of_magnitude": True},
    )
)
declare(
    Hyperparameter(
        "clip_norm",
        "common",
        "a number > 0 (inf = never clip)",
        is_positive_or_inf,
        default=math.inf,
        off=math.inf,
        control="S9",
        longer_steps=1,
        description="Gradients of a larger global L2 norm are scaled down to this one (R14)",
        example=[0.5, 1.0, 2.0],
    )
)
declare(
    Hyperparameter(
        "clip_z",
        "common",
        "a number > 0 (inf = no threshold that follows the norms)",
        is_positive_or_inf,
        default=math.inf,
        off=math.inf,
        hidden_at=math.inf,
        longer_steps=1,
        description="Gradients are scaled down to the running mean of the norms plus so many "
        "standard deviations (R19)",
        example=[2.5, 4.0],
    )
)
declare(
    Hyperparameter(
        "clip_tensor",
        "common",
        "a number > 0 (inf = no threshold for each tensor)",
        is_positive_or_inf,
        default=math.inf,
        off=math.inf,
        hidden_at=math.inf,
        longer_steps=1,
        description="The gradient of each tensor is scaled down to so many times what its norm "
        "usually is, and in the first 25 updates the whole to a norm of 1 (R19)",
        example=[1.05, 2.0],
    )
)

# --- of optimizers --------------------------------------------------------------------------------

OF_SHARES = ("half_life_examples", "one_minus")  # of averages, of which each update keeps a share

declare(
    Hyperparameter(
        "momentum",
        "optimizer",
        "a number in [0, 1)",
        is_share,
        longer_steps=1,
        per_batch_size=True,
        ties=OF_SHARES,
        description="Share of the last step, or of the sum of gradients, that is kept",
        example=[0.9, 0.99],
    )
)
declare(
    Hyperparameter(
        "rho",
        "optimizer",
        "a number in [0, 1)",
        is_share,
        ties=OF_SHARES,
        asks_tie=True,
        description="Share of the running mean of squared gradients that is kept",
        example=0.9,
    )
)
declare(
    Hyperparameter(
        "beta1",
        "optimizer",
        "a number in [0, 1)",
        is_share,
        fewest_trials=10,
        ties=OF_SHARES,
        description="Share of the running mean of gradients that is kept; of schedule_free_adamw, "
        "share of the average in the parameters",
        example=[0.9, 0.95],
    )
)
declare(
    Hyperparameter(
        "beta2",
        "optimizer",
        "a number in [0, 1)",
        is_share,
        fewest_trials=50,
        ties=OF_SHARES,
        asks_tie=True,
        description="Share of the running mean of squared gradients that is kept; of Lion, of the "
        "mean of gradients",
        example=[0.99, 0.999],
    )
)
declare(
    Hyperparameter(
        "epsilon",
        "optimizer",
        "a number > 0",
        is_positive,
        longer_steps=-1,
        fewest_trials=26,
        description="Added to the denominator of a step: the larger, the smaller the steps",
        example={"low": 1e-10, "high": 1e-3, "log": True},
    )
)
# what torch's optimizers call epsilon
declare(
    Hyperparameter(
        "eps",
        "optimizer",
        "a number ≥ 0",
        lambda value: is_finite(value) and value >= 0,
        longer_steps=-1,
        fewest_trials=26,
        description="What torch's optimizers call epsilon",
        example=1e-8,
    )
)
declare(
    Hyperparameter(
        "weight_decay",
        "optimizer",
        "a number ≥ 0",
        lambda value: is_finite(value) and value >= 0,
        per_batch_size=True,
        ties=("timescale_epochs",),
        asks_tie=True,
        description="Every update subtracts learning rate × weight_decay × the parameters, without "
        "decay_vectors of those with two dimensions or more alone",
        example={"low": 1e-3, "high": 1.0, "log": True},
    )
)
