"""Study files: one TOML file per question, validated as a whole.

A hyperparameter's role (S1) follows from how it is written: a single value is *fixed*; a list or a range is
a *nuisance* hyperparameter, optimized over; batch size, optimizer, lists in [workload_args] and whatever
`scientific` names are *scientific*, and every combination of their values is a group of its own.
"""

from __future__ import annotations

import difflib
import itertools
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from .errors import UserError
from .optimizers import RULES
from .schedule import DECAYS, longest_warmup, orders_of_magnitude, total_steps
from .trial import Group, Point

Scalar = bool | int | float | str
Sampler = Literal["halton", "sobol", "grid", "random", "tpe", "gp"]
ADAPTIVE = (
    "tpe",
    "gp",
)  # these learn from finished trials; the others draw every point before the first training

# What a value must satisfy: the rule in words, and its test.
VALUE_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "base_lr": ("a number > 0", lambda v: _number(v) and 0 < v < math.inf),
    "warmup_steps": ("an integer ≥ 0", lambda v: _number(v) and v == int(v) and v >= 0),
    "clip_norm": ("a number > 0 (inf = never clip)", lambda v: _number(v) and v > 0),
    "clip_z": ("a number > 0 (inf = no threshold that follows the norms)", lambda v: _number(v) and v > 0),
    "decay": (f"one of {', '.join(DECAYS)}", lambda v: v in DECAYS),
    "weight_decay": ("a number ≥ 0", lambda v: _number(v) and 0 <= v < math.inf),
    "epsilon": ("a number > 0", lambda v: _number(v) and 0 < v < math.inf),
    "momentum": ("a number in [0, 1)", lambda v: _number(v) and 0 <= v < 1),
}
VALUE_RULES |= dict.fromkeys(("rho", "beta1", "beta2"), VALUE_RULES["momentum"])
COMMON = ("base_lr", "warmup_steps", "clip_norm", "clip_z", "decay")  # axes that every optimizer has
DEFAULTS: dict[str, Scalar] = {"warmup_steps": 0, "clip_norm": math.inf, "clip_z": math.inf, "decay": "constant"}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """Every number from low to high; `log` spreads points evenly over orders of magnitude."""

    low: float
    high: float
    log: bool = False
    points: Annotated[int, Field(ge=2)] | None = Field(None, description="How many, for the grid sampler")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold on a log axis, got low={self.low}")
        if not self.low < self.high < math.inf:
            raise ValueError(f"low < high < inf must hold, got low={self.low}, high={self.high}")
        return self


class OrdersOfMagnitude(_Strict):
    """0, 10, 100, ...: every power of ten up to a tenth of max_train_steps (R10)."""

    orders_of_magnitude: Literal[True]


def _form(value: object) -> str:
    if isinstance(value, OrdersOfMagnitude) or (isinstance(value, dict) and "orders_of_magnitude" in value):
        return "orders"
    if isinstance(value, Range | dict):
        return "range"
    return "list" if isinstance(value, list | tuple) else "value"


FORMS = ("orders", "range", "list", "value")
AxisSpec = Annotated[
    Annotated[OrdersOfMagnitude, Tag("orders")]
    | Annotated[Range, Tag("range")]
    | Annotated[tuple[Scalar, ...], Field(min_length=1), Tag("list")]
    | Annotated[Scalar, Tag("value")],
    Discriminator(_form),
]
Axis = Range | tuple[Scalar, ...]  # as used: a range, or the values to choose from (one value: fixed)


def ends(axis: Axis) -> tuple[float, float]:
    """The smallest and the largest value of an axis of numbers."""
    values = (axis.low, axis.high) if isinstance(axis, Range) else tuple(map(float, axis))
    return min(values), max(values)


class _Axes(_Strict):
    """Axes whose values are checked against VALUE_RULES."""

    @field_validator("*", mode="after")
    @classmethod
    def _values(cls, spec: Any, info: ValidationInfo) -> Any:
        if info.field_name not in VALUE_RULES or spec is None:
            return spec
        rule, holds = VALUE_RULES[info.field_name]
        if isinstance(spec, OrdersOfMagnitude):
            if info.field_name != "warmup_steps":
                raise ValueError("orders_of_magnitude is for warmup_steps")
            return spec
        values = (spec.low, spec.high) if isinstance(spec, Range) else spec
        for value in values if isinstance(values, tuple) else (values,):
            if not holds(value):
                raise ValueError(f"must be {rule}, got {value!r}")
        if isinstance(spec, tuple) and len(set(spec)) < len(spec):
            raise ValueError(f"values must differ from one another, got {list(spec)}")
        return spec


def _optimizer_model(name: str) -> type[_Axes]:
    fields: dict[str, Any] = dict.fromkeys((*COMMON, *RULES[name].defaults), (AxisSpec | None, None))
    return create_model(name, __base__=_Axes, __doc__=f"Ranges of the {name} optimizer's own.", **fields)


_Optimizers = create_model(
    "Optimizers",
    __base__=_Strict,
    **{name: (_optimizer_model(name) | None, None) for name in RULES},  # type: ignore[call-overload]
)


class Space(_Axes):
    """The axes of every optimizer, and each optimizer's own."""

    base_lr: AxisSpec | None = None
    warmup_steps: AxisSpec | None = None
    clip_norm: AxisSpec | None = None
    clip_z: AxisSpec | None = None
    decay: AxisSpec | None = None
    optimizer: _Optimizers  # type: ignore[valid-type]


class Figure(_Strict):
    """How the curves of a study are drawn."""

    log_steps: Annotated[bool, Field(description="A logarithmic step axis, on which the first steps have room")] = False
    sparse_every: Annotated[
        int | None, Field(ge=2, description="Draw the losses once more, at every n-th step: what rare evaluation shows")
    ] = None


class Study(_Strict):
    """A validated study file. `name` is the file's stem."""

    name: str
    question: str = ""
    workload: str = Field(description="Import path of a factory, package.module:factory")
    workload_args: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Arguments of the factory; a list is a scientific hyperparameter"
    )
    objective: str = Field(description="A metric that evaluate() returns; minimized")
    max_train_steps: PositiveInt = Field(description="Optimizer updates of the baseline schedule")
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    trials: PositiveInt | None = Field(
        None, description="Configurations per batch size, each trained with every seed; the grid sampler counts its own"
    )
    sampler: Sampler = "halton"
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: PositiveInt = Field(1, description="Trials of each configuration, with seed, seed + 1, ... (S9)")
    evaluations: PositiveInt = Field(50, description="Evaluations per trial, at regular step intervals")
    accumulation: PositiveInt = Field(
        1, description="Passes whose gradients are averaged for one update; batch sizes count examples per update"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: torch.autocast of loss and evaluation; parameters stay as they are"
    )
    prepend_warmup: bool = Field(False, description="Warmup adds to max_train_steps instead of being part of it")
    divergence: bool = Field(
        True,
        description="false: a training loss that starts near 0 or grows by design (annealed KL, curriculum, policy "
        "gradient, GAN) is no sign of divergence; only values that are not finite and evaluations are",
    )
    stop_after: PositiveInt | None = Field(
        None, description="Updates after which every trial ends, short of its schedule: a screening run (R9)"
    )
    keep_checkpoints: PositiveInt | None = Field(
        None, description="Checkpoints kept at each batch size, those of the best trials; default: all"
    )
    scientific: tuple[str, ...] = Field((), description="Axes whose effect is the question, besides the optimizer")
    space: Space
    figure: Figure = Figure()
    source: str = Field("", exclude=True, repr=False, description="The file's text, comments and all")

    @field_validator("max_train_steps", "seed", "seeds", mode="before")
    @classmethod
    def _never_an_axis(cls, value: object) -> object:
        if isinstance(value, list | dict):
            raise ValueError(f"is never an axis (S8): give one number, got {value!r}")
        return value

    @property
    def evaluate_every(self) -> int:
        """Updates between two evaluations (S10)."""
        return math.ceil(self.max_train_steps / self.evaluations)

    def updates(self, point: Point) -> int:
        """Updates of a trial: its whole schedule, or as many as `stop_after` allows."""
        whole = total_steps(point, self.max_train_steps, self.prepend_warmup)
        return min(whole, self.stop_after or whole)

    @property
    def optimizers(self) -> list[str]:
        return [name for name in RULES if getattr(self.space.optimizer, name) is not None]

    def axes(self, optimizer: str) -> dict[str, Axis]:
        """Every axis of an optimizer by name, fixed ones included; its own table wins over the common one."""
        own = getattr(self.space.optimizer, optimizer)
        specs: dict[str, Axis] = {}
        for name in (*COMMON, *RULES[optimizer].defaults):
            candidates = (getattr(own, name), getattr(self.space, name, None), DEFAULTS.get(name))
            spec = next((candidate for candidate in candidates if candidate is not None), None)
            if spec is not None:
                specs[name] = self._resolve(spec)
        return specs

    def is_common(self, optimizer: str, name: str) -> bool:
        """Whether an optimizer takes an axis from [space], having none of its own."""
        own = getattr(self.space.optimizer, optimizer)
        return getattr(self.space, name, None) is not None and getattr(own, name) is None

    def _resolve(self, spec: Any) -> Axis:
        if isinstance(spec, OrdersOfMagnitude):
            return tuple(orders_of_magnitude(self.max_train_steps))
        return spec if isinstance(spec, Range | tuple) else (spec,)

    @property
    def ranges(self) -> dict[str, dict[str, tuple[float, float, bool]]]:
        """The bounds of every range, as (low, high, log), by optimizer and axis."""
        return {
            optimizer: {
                name: (axis.low, axis.high, axis.log)
                for name, axis in self.axes(optimizer).items()
                if isinstance(axis, Range)
            }
            for optimizer in self.optimizers
        }

    @property
    def scientific_workload_args(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.workload_args.items() if isinstance(value, tuple))

    @property
    def scientific_names(self) -> tuple[str, ...]:
        """The scientific hyperparameters besides batch size and optimizer."""
        return self.scientific + self.scientific_workload_args

    def groups(self, batch_size: int) -> list[Group]:
        """One group per optimizer and combination of scientific values, in a fixed order."""
        return [
            Group(batch_size, optimizer, tuple(zip(self.scientific_names, values, strict=True)))
            for optimizer in self.optimizers
            for values in itertools.product(
                *(self.axes(optimizer)[name] for name in self.scientific),
                *(self.workload_args[name] for name in self.scientific_workload_args),
            )
        ]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Mistakes that concern several keys at once, as (key, what is wrong)."""
        if not self.optimizers:
            yield "space.optimizer", f"needs at least one of {', '.join(RULES)}"
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            yield "batch_sizes", f"must differ from one another, got {list(self.batch_sizes)}"
        if (self.trials is None) != (self.sampler == "grid"):
            yield (
                "trials",
                ("is required" if self.trials is None else "the grid sampler counts its own points: remove trials"),
            )
        own = {"optimizer", "seed", *(name for o in self.optimizers for name in self.axes(o))}  # batch_size: advice.py
        for name in sorted(own & self.workload_args.keys()):
            yield f"workload_args.{name}", "is also a hyperparameter of this study; rename the factory's argument"
        uneven = [size for size in self.batch_sizes if size % self.accumulation]
        if uneven:
            yield "accumulation", f"must divide every batch size, got {self.accumulation} for {uneven}"
        longest = longest_warmup(self.max_train_steps)
        for optimizer in self.optimizers:
            axes, place = self.axes(optimizer), f"space.optimizer.{optimizer}"
            if "base_lr" not in axes:
                yield f"{place}.base_lr", "is required (here, or in [space] for every optimizer)"
            warmup = axes["warmup_steps"]
            largest = ends(warmup)[1]
            if largest > longest:
                yield (
                    f"{place}.warmup_steps",
                    f"must not exceed 10 % of max_train_steps = {longest} (R10), got {largest:g}",
                )
            for name in self.scientific:
                if not isinstance(axes.get(name), tuple):
                    yield "scientific", f"{name!r} must be a list of values for {optimizer}"
            for name, axis in axes.items():
                if self.sampler == "grid" and isinstance(axis, Range) and axis.points is None:
                    yield f"{place}.{name}", "the grid sampler needs the number of points of a range"
        known = all(isinstance(self.axes(o).get(name), tuple) for o in self.optimizers for name in self.scientific)
        if self.trials is not None and known:
            groups = len(self.groups(self.batch_sizes[0]))
            if self.trials < groups:
                yield (
                    "trials",
                    f"must be at least the number of groups per batch size, {groups}, got {self.trials}",
                )


def load_study(path: str | Path, name: str = "") -> Study:
    """Read and validate a study file; its stem names the study, unless `name` does.

    Raises UserError with one line per mistake: file: key: rule, value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from error
    return parse_study(document, name or path.stem, place=str(path), source=text)


def parse_study(document: Mapping[str, Any], name: str, place: str, source: str = "") -> Study:
    """Validate a study file's content; `place` names it in messages. Raises UserError as load_study."""
    own = sorted(document.keys() & {"name", "source"})
    lines = [f"{key}: unknown key; the file's name is the study's name" for key in own]
    try:
        study = Study.model_validate({**document, "name": name, "source": source})
    except ValidationError as error:
        lines += [_explain(detail) for detail in error.errors()]
    else:
        lines += [f"{key}: {message}" for key, message in study.problems()]
    if lines:
        raise UserError("\n".join(f"{place}: {line}" for line in lines))
    return study


def schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    result = Study.model_json_schema()
    del result["properties"]["name"], result["properties"]["source"]
    result["required"].remove("name")
    return result


def _explain(detail: Any) -> str:
    """One pydantic error as `key: rule, value`."""
    keys = [str(part) for part in detail["loc"] if part not in FORMS]
    place, kind = ".".join(keys), detail["type"]
    if kind == "extra_forbidden":
        return f"{place}: {_unknown_key(keys)}"
    if kind == "missing":
        return f"{place}: is required"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place}: {message}" if kind == "value_error" else f"{place}: {message}, got {detail['input']!r}"


def _unknown_key(keys: list[str]) -> str:
    *parents, key = keys
    if key in ("max_train_steps", "seed", "seeds"):
        return "is never an axis (S8): it stands at the top of the file, with one value"
    if key in ("batch_size", "batch_sizes"):
        return "every batch size is tuned on its own (R20): list them in batch_sizes at the top of the file"
    match parents:
        case []:
            known = [name for name in Study.model_fields if name not in ("name", "source")]
        case ["space"]:
            known = list(Space.model_fields)
        case ["space", "optimizer"]:
            known = list(RULES)
        case ["space", "optimizer", optimizer]:
            known = [*COMMON, *RULES[optimizer].defaults]
        case ["figure"]:
            known = list(Figure.model_fields)
        case _:
            known = [*Range.model_fields, *OrdersOfMagnitude.model_fields]
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {nearest[0]!r}?" if nearest else f"unknown key; known are {', '.join(known)}"
