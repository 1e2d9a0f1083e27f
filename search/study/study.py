"""Study files: one TOML file per question, validated as a whole.

A hyperparameter's role (S1) follows from how it is written: a single value is *fixed*; a list or a
range is a *nuisance* hyperparameter, optimized over; batch size, optimizer, lists in
[workload_args] and whatever `scientific` names are *scientific*, and every combination of their
values is a group of its own.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    StrictBool,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from ..errors import UserError
from ..markup import html_table
from ..rules.constructors import (
    NO_SETTINGS,
    Constructor,
    module_and_class,
    read_constructor,
)
from ..rules.hyperparameters import HYPERPARAMETERS, is_number, of_kind
from ..rules.optimizers import RULES, decays_by_itself, is_of_torch
from ..rules.schedule import SHAPES, applies, longest_warmup, orders_of_magnitude, total_steps
from ..rules.tied import READ_BACK, TIES, Tie, Training
from ..trial import COMMON, Group, Point
from ..words import better_side, readable
from .cluster import Cluster
from .command import problems_of_command
from .given import Given, code_in_text
from .samplers import SAMPLERS, Sampler

# What a study may ask for at most. More is a slip of the pen, or would fill memory before a word is
# said.
MOST_BYTES = 2**20  # of a file; the longest that ship have 2,000
MOST_STEPS = 10**7  # of a training: a curve keeps two float64 of each update, 160 MB
MOST_TRIALS = 10**6  # over all batch sizes and seeds: a plan of these takes seconds
# of a batch size: each is a row and a panel of the report, and tries its workload
MOST_GROUPS = 1_000
MOST_BATCH_SIZES = 100  # each is a study of Optuna's and a facet of every plot
MOST_EXAMPLES = 10**8  # of a batch: of one number each, 400 MB
MOST_SEEN = MOST_STEPS * MOST_EXAMPLES  # examples of a training, or of a training set
MOST_EVALUATIONS = 10**5  # of a training: each is a row in the database
MOST_VALUES = 10_000  # of one list
MOST_CHARACTERS = 100  # of a study's name: names of reruns add to it, and file systems end at 255
# NumPy takes 32 bits; the seeds of repetitions and reruns count on from it
LARGEST_SEED = 2**31 - 1
LARGEST_INTEGER = 2**63 - 1  # what TOML promises to keep
# of a float: float32 ends at 1e-38 and 3e38, and sweeps are extended by decades
SMALLEST, LARGEST = 1e-30, 1e30
# A key of so many parts, which no study has: what Python's parser needs for it grows with their
# square.
DEEP_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){64}""")
MOST_SECONDS = 1e9  # of a timeout: thirty years
MOST_WORDS = 1_000  # of a command
MOST_LINES = 20  # of a message, a mistake each
SHOWN_NAMES = 10  # of the hyperparameters that a message lists
SHOWN = 80  # characters of a value in a message

# A key that earlier versions had not: they decayed all parameters.
DECAY_VECTORS = "decay_vectors"

# Keys of what trains a study, or of where its trials come from: a file has one of them.
SOURCES = ("workload", "train", "command", "imported")
# keys that say how a workload is trained, which a user's own training decides by itself
OF_WORKLOADS = ("accumulation", "precision")
OF_COMMANDS = ("log", "timeout")
# keys that say how long a training is: a file has one of them
LENGTHS = ("max_train_steps", "max_train_examples")

RESULT_COLUMNS = (
    *("number", "verdict", "instability", "onset_step", "best_value", "gain", "best_step"),
    *("initial_value", "last_loss", "clip_fraction", "spike_score", "near_epsilon"),
    *("seconds", "reason"),
)  # of trials.csv, besides the hyperparameters


def quote(value: object) -> str:
    """A value for a message: as Python writes it, cut to SHOWN characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or tables in tables
        return f"a very long {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        allowed = "a number, a text, true or false, or a list of these"
        raise ValueError(f"must be {allowed}, got {quote(value)}")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"must be an integer of 64 bits, got {quote(value)}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("must not be nan")
    return value


def _not_text(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number, got {quote(value)}")
    return value


def _of_length(least: int, most: int) -> Any:
    """What a list must be before its items are looked at: pydantic counts only the valid ones."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list, got {quote(value)}")
        if not least <= len(value) <= most:
            raise ValueError(f"must have {least} to {most} values, got {len(value)}")
        return value

    return BeforeValidator(check)


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of equal values, as 1, 1.0 and true are, each would be a group or a grid point of its own."""
    if len(set(values)) < len(values):
        raise ValueError(f"values must differ from one another, got {quote(list(values))}")
    return values


Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]
NUMBER = BeforeValidator(_not_text)  # pydantic alone takes "8" and true for numbers
Float = Annotated[float, NUMBER]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS), NUMBER]
Trials = Annotated[int, Field(gt=0, le=MOST_TRIALS), NUMBER]
BatchSize = Annotated[int, Field(gt=0, le=MOST_EXAMPLES), NUMBER]
Examples = Annotated[int, Field(gt=0, le=MOST_SEEN), NUMBER]
Values = Annotated[
    tuple[Scalar, ...],
    _of_length(1, MOST_VALUES),
    AfterValidator(_different),
    Field(json_schema_extra={"minItems": 1, "maxItems": MOST_VALUES}),
]
if TYPE_CHECKING:
    from .earlier import Earlier

    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]


def _in_reach(value: Any) -> bool:
    """Whether float32 arithmetic has room for a value; 0 and inf are switches."""
    return not is_number(value) or value in (0, math.inf) or SMALLEST <= value <= LARGEST


# settings of a decay's shape; like common axes, they may stand in [space] or with an optimizer
DECAY_SETTINGS = of_kind("schedule")
_COMMON_DEFAULTS = {name: HYPERPARAMETERS[name].default for name in COMMON}
_COMMON_DEFAULTS |= {
    name: default for shape in SHAPES.values() for name, default in shape.defaults.items()
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """Every number from low to high; `log` spreads points evenly over orders of magnitude."""

    low: Float = Field(description="The smallest value", examples=[1e-3])
    high: Float = Field(description="The largest value", examples=[10.0])
    log: StrictBool = Field(
        False, description="Spread points evenly over orders of magnitude; needs low > 0"
    )
    points: Annotated[int, Field(ge=2, le=MOST_TRIALS), NUMBER] | None = Field(
        None, description="How many values the grid sampler takes; others need none", examples=[9]
    )

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold on a log axis, got low={self.low}")
        if not self.low < self.high < math.inf:
            raise ValueError(f"low < high < inf must hold, got low={self.low}, high={self.high}")
        return self


class OrdersOfMagnitude(_Strict):
    """0, 10, 100, ...: every power of ten up to a tenth of max_train_steps (R10)."""

    orders_of_magnitude: Literal[True] = Field(
        description="For warmup_steps alone: 0, 10, 100, … up to 10 % of max_train_steps"
    )


# Which form of a value was read, or that an optimizer is of torch: no part of the place of a
# mistake, and no name that a key can have.
ORDERS, RANGE, LIST, VALUE, TABLE = "<orders>", "<range>", "<list>", "<value>", "<table>"
TIED, OF_TORCH = "<tied>", "<of torch>"
FORMS = (ORDERS, RANGE, LIST, VALUE, TABLE, TIED, OF_TORCH)
BARE_KEY = re.compile(r"[\w-]+", re.ASCII)  # of TOML: any other stands in quotes


def _form(value: object) -> str:
    if isinstance(value, OrdersOfMagnitude) or (
        isinstance(value, dict) and "orders_of_magnitude" in value
    ):
        return ORDERS
    if isinstance(value, Tied) or (isinstance(value, dict) and _is_meant_as_tie(value)):
        return TIED
    return _form_of_values(value)


def _form_of_values(value: object) -> str:
    if isinstance(value, Range | dict):
        return RANGE
    return LIST if isinstance(value, list | tuple) else VALUE


def _is_meant_as_tie(table: Mapping[Any, Any]) -> bool:
    """Whether a table has the name of a tie, or nearly so."""
    keys = [str(key) for key in table]
    return any(difflib.get_close_matches(key[:SHOWN], TIES, n=1) for key in keys)


ValuesSpec = Annotated[
    Annotated[Range, Tag(RANGE)] | Annotated[Values, Tag(LIST)] | Annotated[Scalar, Tag(VALUE)],
    Discriminator(_form_of_values),
]


class _Ties(_Strict):
    """A hyperparameter by a quantity that means the same at every batch size: one of these keys."""

    @field_validator("*", mode="after")
    @classmethod
    def _quantities(cls, spec: Any, info: ValidationInfo) -> Any:
        tie = TIES[info.field_name or ""]
        for value in _named_in(spec):
            if not tie.holds(value) or not _in_reach(value):
                raise ValueError(f"must be {tie.rule}, got {quote(value)}")
        return spec

    @model_validator(mode="after")
    def _one(self) -> _Ties:
        if len(self.model_fields_set) != 1:
            given = ", ".join(sorted(self.model_fields_set)) or "none"
            raise ValueError(f"must have one of {', '.join(TIES)}, got {given}")
        return self

    @property
    def tie(self) -> Tie:
        """The tie that was given."""
        return TIES[next(iter(self.model_fields_set))]

    @property
    def spec(self) -> Any:
        """The values of its quantity."""
        return getattr(self, self.tie.name)


Tied = create_model(
    "Tied",
    __base__=_Ties,
    __doc__=_Ties.__doc__,
    **{
        tie.name: (
            ValuesSpec,
            Field(None, description=f"{tie.description}; {tie.rule}", examples=[tie.example]),
        )
        for tie in TIES.values()
    },  # type: ignore[call-overload]
)


AxisSpec = Annotated[
    Annotated[OrdersOfMagnitude, Tag(ORDERS)]
    | Annotated[Tied, Tag(TIED)]  # type: ignore[valid-type]
    | Annotated[Range, Tag(RANGE)]
    | Annotated[Values, Tag(LIST)]
    | Annotated[Scalar, Tag(VALUE)],
    Discriminator(_form),
]
# as used: a range, or the values to choose from (one value: fixed)
Axis = Range | tuple[Scalar, ...]


def _named_in(spec: Any) -> tuple[Any, ...]:
    """The values that an axis is written with: of a range its ends."""
    return (spec.low, spec.high) if isinstance(spec, Range) else values_of(spec)


def fault_of_tie(name: str, tie: Tie) -> str:
    """Why a hyperparameter cannot be given by a tie; empty if it can."""
    row = HYPERPARAMETERS.get(name)
    if row and tie.name in row.ties:
        return ""
    tied = [one.name for one in HYPERPARAMETERS.values() if tie.name in one.ties]
    return f"{tie.name} is for {' or '.join(tied)}"


def ends(axis: Axis) -> tuple[float, float]:
    """The smallest and the largest value of an axis of numbers."""
    values = (axis.low, axis.high) if isinstance(axis, Range) else tuple(map(float, axis))
    return min(values), max(values)


class _Axes(_Strict):
    """Axes whose values are checked by the rows of HYPERPARAMETERS."""

    @field_validator("*", mode="after")
    @classmethod
    def _values(cls, spec: Any, info: ValidationInfo) -> Any:
        row = HYPERPARAMETERS.get(info.field_name or "")
        if row is None or spec is None:
            return spec
        if isinstance(spec, OrdersOfMagnitude):
            if info.field_name != "warmup_steps":
                raise ValueError("orders_of_magnitude is for warmup_steps")
            return spec
        if isinstance(spec, _Ties):
            if fault := fault_of_tie(row.name, spec.tie):
                raise ValueError(fault)
            return spec
        for value in _named_in(spec):
            if not row.accepts(value):
                raise ValueError(f"must be {row.requirement}, got {quote(value)}")
            if not _in_reach(value):
                raise ValueError(
                    f"must lie between {SMALLEST:g} and {LARGEST:g}, got {quote(value)}"
                )
        return spec


def _axis_fields(names: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A field for each hyperparameter, described by its row; some have a default."""
    return {name: (AxisSpec | None, _axis_field(name, defaults.get(name))) for name in names}


def _axis_field(name: str, default: object) -> Any:
    row = HYPERPARAMETERS[name]
    said = [row.description, row.requirement]
    if default is not None:
        said.append(f"default: {default}")
    return Field(
        None,
        description="; ".join(said),
        examples=None if row.example is None else [row.example],
        json_schema_extra=_one_or_several_of(row.choices) if row.choices is not None else None,
    )


def _one_or_several_of(choices: Collection[str]) -> Callable[[dict[str, Any]], None]:
    """What the JSON schema says of an axis whose values are texts to choose from."""

    def say(schema: dict[str, Any]) -> None:
        one = {"enum": list(choices)}
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": MOST_VALUES}
        schema["anyOf"] = [one, several, {"type": "null"}]

    return say


def _optimizer_model(name: str) -> type[_Axes]:
    defaults = RULES[name].defaults
    names = (*COMMON, *defaults, *DECAY_SETTINGS)
    fields = _axis_fields(names, {**_COMMON_DEFAULTS, **defaults})
    return create_model(
        name, __base__=_Axes, __doc__=f"Ranges of the {name} optimizer's own.", **fields
    )


class _AnyAxes(_Axes):
    """Axes, and settings of any name, which `Study.problems` looks at."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, AxisSpec]


_AxesOfTorch = create_model(
    "AxesOfTorch",
    __base__=_AnyAxes,
    __doc__="Ranges of an optimizer of torch, whose settings are its constructor's arguments.",
    **_axis_fields((*COMMON, *DECAY_SETTINGS), _COMMON_DEFAULTS),
)


def _let_import_paths_be_keys(schema: dict[str, Any]) -> None:
    """What the JSON schema of `_ByName` says of optimizers of torch."""
    tables = schema["properties"].pop(OF_TORCH)["additionalProperties"]
    schema["patternProperties"] = {"[.:]": tables}


class _ByName(_Strict):
    """Tables of optimizers by name; those of torch, whose names are import paths, apart."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra=_let_import_paths_be_keys
    )
    of_torch: Annotated[
        dict[str, _AxesOfTorch],  # type: ignore[valid-type]
        Field(default_factory=dict, alias=OF_TORCH),
    ]

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, tables: Any) -> Any:
        if not isinstance(tables, dict):
            return tables
        paths = {name: table for name, table in tables.items() if is_of_torch(str(name))}
        others = {name: table for name, table in tables.items() if name not in paths}
        return {**others, OF_TORCH: paths} if paths else others

    @model_serializer(mode="wrap")
    def _together(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tables: dict[str, Any] = serialize(self)
        of_torch: dict[str, Any] = tables.pop("of_torch", {})
        return {**tables, **of_torch}


def _table_field(name: str) -> Any:
    return Field(None, description=f"Tune {name}, at ranges of its own")


_optimizer_tables: dict[str, Any] = {
    name: (_optimizer_model(name) | None, _table_field(name)) for name in RULES
}
_Optimizers = create_model("Optimizers", __base__=_ByName, **_optimizer_tables)


_Shared = create_model(
    "Shared", __base__=_Axes, **_axis_fields((*COMMON, *DECAY_SETTINGS), _COMMON_DEFAULTS)
)


class Space(_Shared):  # type: ignore[valid-type, misc]
    """The axes of every optimizer, and each optimizer's own."""

    optimizer: _Optimizers = Field(  # type: ignore[valid-type]
        description="A table for each optimizer to tune; one of torch stands in quotes, by its "
        'import path, as [space.optimizer."torch.optim.RAdam"] (S1)'
    )


class Seeds(_Strict):
    """Seeds where they matter: a few for every configuration, more for those that may win (S9)."""

    all: Trials = Field(1, description="Seeds of every configuration", examples=[1])
    finalists: Trials = Field(
        description="Seeds of the best configurations of each group, and of those next to the "
        "first infeasible base_lr; more than `all`",
        examples=[3],
    )
    of: Trials = Field(
        4, description="How many of the best configurations of each group get them", examples=[4]
    )

    @model_validator(mode="after")
    def _more(self) -> Seeds:
        if self.finalists <= self.all:
            raise ValueError(
                f"finalists must be more than all, got finalists = {self.finalists}, all = "
                f"{self.all}; seeds = {self.finalists} gives every configuration the same"
            )
        return self


class WarmStart(_Strict):
    """Results of earlier studies of the same workload, whose trials count in this one."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True
    )
    folders: Annotated[tuple[str, ...], _of_length(1, MOST_GROUPS), AfterValidator(_different)] = (
        Field(
            alias="from",
            description="Results folders: their trials whose points lie in the space count, and "
            "are not trained again",
            examples=[["results/old"]],
            json_schema_extra={"minItems": 1, "maxItems": MOST_GROUPS},
        )
    )


Share = Annotated[float, Field(gt=0, lt=1), NUMBER]


class Cut(_Strict):
    """Trainings that end early by their value: a shy form of successive halving."""

    at: Share = Field(
        description="Share of a training after which values are compared: at the first evaluation "
        "from there on, and never before warmup has ended",
        examples=[0.25],
    )
    keep: Share = Field(
        description="Share of a group's trials that train to their end, at least three of them; "
        "infeasible ones do not count",
        examples=[0.5],
    )


class Figure(_Strict):
    """How the curves of a study are drawn."""

    log_steps: StrictBool = Field(
        default=False, description="A logarithmic step axis, which gives the first steps room"
    )
    sparse_every: Annotated[int, Field(ge=2, le=MOST_STEPS), NUMBER] | None = Field(
        default=None,
        description="Draw the losses once more, at every n-th step: what rare evaluation shows "
        "(R5)",
        examples=[20],
    )


def _form_of_argument(value: object) -> str:
    if isinstance(value, Range) or (isinstance(value, dict) and "low" in value):
        return RANGE
    return LIST if isinstance(value, list | tuple) else VALUE


Argument = Annotated[
    Annotated[Range, Tag(RANGE)] | Annotated[Values, Tag(LIST)] | Annotated[Scalar, Tag(VALUE)],
    Discriminator(_form_of_argument),
]


def _form_of_seeds(value: object) -> str:
    return TABLE if isinstance(value, Seeds | dict) else VALUE


def _word(word: str) -> str:
    if "\0" in word:
        raise ValueError("must not hold a null character")
    return word


class CommandLog(_Strict):
    """The log that a command writes, a CSV file or one of JSON lines: its place and its columns."""

    path: Annotated[str, AfterValidator(_word)] = Field(
        description="The file; begins with {run_dir}/, and may hold placeholders as `command` does",
        examples=["{run_dir}/metrics.csv"],
    )
    step: str = Field("step", description="Column of the update's number", examples=["global_step"])
    loss: str = Field(description="Column of the training loss", examples=["train_loss"])
    grad_norm: str | None = Field(
        None,
        description="Column of the gradient's global L2 norm before clipping, if there is one (R4)",
        examples=["grad_norm"],
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="Columns of further metrics; the objective has the column of its own name",
        examples=[["val_loss"]],
    )

    @field_validator("path", mode="after")
    @classmethod
    def _in_run_dir(cls, path: str) -> str:
        if not path.startswith("{run_dir}/"):
            raise ValueError(
                f"must begin with {{run_dir}}/: each trial needs a log of its own, got "
                f"{quote(path)}"
            )
        return path


class Study(_Strict):
    """A question and its answer's ground rules: what is trained, for how long, in which space.

    A study file holds its keys (`load_study`), or they are given here, by the same names:

        study = Study(
            name="mine",
            workload=MyWorkload,  # or "module:factory", or an object
            objective="val_error",
            max_train_steps=1000,
            batch_sizes=[64],
            trials=20,
            space={"optimizer": {"sgd": {"base_lr": Range(low=1e-3, high=10.0, log=True)}}},
        )

    `name` is the file's stem, and names the results folder. `workload`, and `train`, may be an
    object of this process: a class or function that workers cannot import, as one of a notebook,
    is sent to them by cloudpickle. Its results belong to it as it is now: changed, it is another
    study, which needs another name.

    Raises UserError with a line per mistake: name: key: rule, value.
    """

    name: str
    question: str = Field(
        "",
        description="What the study is to answer; it stands at the head of the report",
        examples=["Does depth 8 need another learning rate?"],
    )
    workload: str = Field(
        "",
        description="What is trained: the import path of a factory, package.module:factory",
        examples=["my_project.workload:mine"],
    )
    train: str = Field(
        "",
        description="Instead of `workload`: the import path of a function that trains by itself",
        examples=["train:main"],
    )
    command: Annotated[
        tuple[Annotated[str, AfterValidator(_word)], ...],
        _of_length(1, MOST_WORDS),
        Field(json_schema_extra={"minItems": 1, "maxItems": MOST_WORDS}),
    ] = Field(
        (),
        description="Instead of `workload`: a program that trains, and its arguments; placeholders "
        "in braces stand for hyperparameters",
        examples=[["python", "train.py", "--lr", "{base_lr}", "--out", "{run_dir}"]],
    )
    log: CommandLog | None = Field(
        None,
        description="Of a `command`: the log that it writes. Without one its program calls "
        "tunewright.current_run()",
        examples=[{"path": "{run_dir}/metrics.csv", "loss": "train_loss"}],
    )
    timeout: Annotated[float, Field(gt=0, le=MOST_SECONDS), NUMBER] | None = Field(
        None,
        description="Of a `command`: seconds after which it is ended, and its trial is a crash",
        examples=[3600],
    )
    imported: str = Field(
        "",
        description="Where the trials come from, if they were trained elsewhere; `tunewright "
        "import` writes it",
        examples=["sqlite:///mine.db"],
    )
    workload_args: dict[str, Argument] = Field(
        default_factory=dict,
        description="Arguments of the factory or the function. A list is scientific: each of its "
        "values is tuned on its own (S1), unless the trials are imported",
        examples=[{"depth": [4, 8], "width": 64}],
    )
    objective: str = Field(
        description="The metric that decides: a name that `evaluate` returns or `run.report` gets",
        examples=["val_error"],
    )
    maximize: StrictBool = Field(
        False, description="A higher objective is better, as of an accuracy; else it is minimized"
    )
    max_train_steps: Steps | None = Field(
        None,
        description="Optimizer updates of one training; never an axis (S8). Required, or "
        "`max_train_examples`",
        examples=[2000],
    )
    max_train_examples: Examples | None = Field(
        None,
        description="Instead of `max_train_steps`: examples of one training, the same at every "
        "batch size, which makes max_train_examples / batch_size updates, rounded",
        examples=[200_000],
    )
    train_examples: Examples | None = Field(
        None,
        description="Examples of an epoch, the training set; required where an axis counts in "
        "epochs, as weight_decay = { timescale_epochs = 5 }",
        examples=[50_000],
    )
    batch_sizes: Annotated[
        tuple[BatchSize, ...],
        _of_length(1, MOST_BATCH_SIZES),
        Field(json_schema_extra={"minItems": 1, "maxItems": MOST_BATCH_SIZES}),
    ] = Field(
        description="Examples per update; each batch size is tuned on its own (R20)",
        examples=[[64, 512]],
    )
    trials: Trials | None = Field(
        None,
        description="Configurations per batch size, over all optimizers, each trained `seeds` "
        "times. Required, but for the grid sampler, which counts its own",
        examples=[40],
    )
    sampler: SamplerName = Field(
        "halton",
        description="How points are chosen: halton and sobol spread them evenly (S2), grid takes "
        "every combination, random draws them, tpe and gp learn from earlier trials, halton+tpe "
        "explores by halton and then lets tpe exploit what was seen",
    )
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED), NUMBER] = Field(
        0, description="Seed of the first training of each configuration, and of the sampler"
    )
    seeds: Annotated[
        Annotated[Trials, Tag(VALUE)] | Annotated[Seeds, Tag(TABLE)], Discriminator(_form_of_seeds)
    ] = Field(
        1,
        description="Trainings of each configuration, with seed, seed + 1, … (S9); or a table that "
        "gives more of them to those that may win",
        examples=[3, {"all": 1, "finalists": 3, "of": 4}],
    )
    evaluations: Annotated[int, Field(gt=0, le=MOST_EVALUATIONS), NUMBER] = Field(
        50, description="Evaluations of one training, at regular intervals of updates (S10)"
    )
    accumulation: BatchSize = Field(
        1,
        description="Passes whose gradients are averaged for one update. Batch sizes count "
        "examples per update, so that it must divide them",
        examples=[4],
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: torch.autocast of loss and evaluation; parameters stay float32",
    )
    decay_vectors: StrictBool = Field(
        False,
        description="Weight decay of adamw, lion, muon and the like is of biases, gains of norms "
        "and all else with fewer than two dimensions, too; torch's optimizers know it themselves",
    )
    prepend_warmup: StrictBool = Field(
        False,
        description="Warmup comes on top of max_train_steps instead of being part of it (R11)",
    )
    divergence: StrictBool = Field(
        True,
        description="false: a rising training loss is no sign of divergence, because it grows by "
        "design or starts near 0 (GAN, policy gradient, curriculum); only evaluations and values "
        "that are not finite count",
    )
    stop_after: Steps | None = Field(
        None,
        description="Updates after which every training ends, short of its schedule: a screening "
        "run (R9)",
        examples=[500],
    )
    cut: Cut | None = Field(
        None,
        description="End the worse trials of each group early, by their best value so far; off by "
        "default. Only for a `workload` without decay",
        examples=[{"at": 0.25, "keep": 0.5}],
    )
    keep_checkpoints: Trials | None = Field(
        None,
        description="Checkpoints to keep at each batch size, those of the best trials; without it "
        "all are kept",
        examples=[3],
    )
    scientific: Annotated[
        tuple[str, ...],
        _of_length(0, MOST_VALUES),
        AfterValidator(_different),
    ] = Field(
        (),
        description="Hyperparameters of [space] that are the question: each of their values is "
        "tuned on its own, as each optimizer is (S1)",
        examples=[["warmup_steps"]],
    )
    space: Space = Field(
        description="The hyperparameters: one value fixes one, a list or a range lets it vary. "
        "What stands here holds for every optimizer"
    )
    warm_start: WarmStart | None = Field(
        None,
        description="Earlier results whose trials count: those in the space, of the same workload, "
        "objective and number of updates",
        examples=[{"from": ["results/old"]}],
    )
    figure: Figure = Field(Figure(), description="How curves are drawn")
    cluster: Cluster = Field(
        Cluster(), description="What each worker asks of the cluster that --backend names"
    )
    source: str = Field("", exclude=True, description="The file's text, comments and all")
    _earlier: Mapping[int, Earlier] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _as_user_error(
        cls, document: Any, validate: ModelWrapValidatorHandler[Study], info: ValidationInfo
    ) -> Study:
        """Raise UserError with all mistakes. The context, as `parse_study` has it, is of a file."""
        if isinstance(document, Study):
            return validate(document)
        context = info.context or {"lines": _mistakes_of_name(document.get("name"))}
        of_length = list(_mistakes_of_length(document))
        lines = [*context["lines"], *_mistakes_of_sources(document), *of_length]
        try:
            study = validate(document)
        except ValidationError as error:
            told: set[str] = set()
            lines += [_explain(detail, told) for detail in error.errors()]
        else:
            found = [] if of_length else study.problems()
            lines += [f"{key}: {message}" for key, message in found]
        if lines:
            place = context.get("place") or str(document.get("name") or "Study")
            rest = len(lines) - MOST_LINES
            more = [f"and {rest} mistakes more"] if rest > 0 else []
            shown = [f"{place}: {line}" for line in [*lines[:MOST_LINES], *more]]
            raise UserError("\n".join(shown))
        if not study.source:
            study.__dict__["source"] = tomli_w.dumps(study.document)
        return study

    @field_validator(*LENGTHS, "seed", "seeds", mode="before")
    @classmethod
    def _never_an_axis(cls, value: object, info: ValidationInfo) -> object:
        is_table = info.field_name == "seeds" and isinstance(value, dict) and "finalists" in value
        if isinstance(value, list | dict) and not is_table:
            raise ValueError(f"is never an axis (S8): give one number, got {quote(value)}")
        return value

    @field_validator("workload", "train", mode="wrap")
    @classmethod
    def _code(
        cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> str:
        found = code_in_text(value)
        if isinstance(found, Given):
            return found
        path: str = validate(found)
        module, _, name = path.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), name)):
            kind = "factory" if info.field_name == "workload" else "function"
            raise ValueError(f"must be package.module:{kind}, got {quote(path)}")
        return path

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes[:SHOWN_NAMES]))
        names = ", ".join(self.optimizers[:SHOWN_NAMES])
        return (
            f"Study {self.name!r}: {names} at batch sizes {sizes}\n"
            f"{self.planned_trials()} trials of {self.length_in_words}, {self.objective} "
            f"({better_side(self.maximize)})"
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        trained = getattr(self, self.source_key)
        rows: list[tuple[str, object]] = [
            (self.source_key, trained if isinstance(trained, str) else " ".join(trained)),
            ("objective", f"{self.objective} ({better_side(self.maximize)})"),
            ("batch_sizes", ", ".join(map(str, self.batch_sizes))),
            ("trials", self.planned_trials()),
            (self.length_key, getattr(self, self.length_key)),
        ]
        for optimizer in self.optimizers:
            axes = [
                f"{self.axis_name(optimizer, name)} {_shown(axis)}"
                for name, axis in self.axes(optimizer).items()
            ]
            rows.append((optimizer, ", ".join(axes)))
        return html_table(f"Study {self.name}", rows)

    @property
    def earlier(self) -> Mapping[int, Earlier]:
        """What the study was before it grew, by batch size; empty if it did not."""
        return self._earlier

    def grown_from(self, earlier: Mapping[int, Earlier]) -> Study:
        """The study as one that goes on from what it was."""
        grown = self.model_copy()
        grown._earlier = earlier
        return grown

    @property
    def source_key(self) -> str:
        """Which of SOURCES the file has: what trains, or where the trials come from."""
        return next(name for name in SOURCES if getattr(self, name))

    @property
    def makes_optimizers(self) -> bool:
        """Whether its optimizers are made here: else a log is followed, or trials are imported."""
        return not (self.log or self.imported)

    @property
    def decays_in_scripts(self) -> bool:
        """Whether code for a script of one's own lets all parameters decay.

        So it does where the script decides it, as plain optimizers of torch do.
        """
        return self.decay_vectors or not self.makes_optimizers

    @property
    def import_path(self) -> str:
        """The user's code, module:name; empty if the study names none."""
        return self.workload or self.train

    @property
    def lacks_code(self) -> bool:
        """Whether it was given its code as an object, elsewhere: results can be read, no more."""
        return isinstance(self.import_path, Given) and not self.import_path.payload

    @property
    def code_paths(self) -> tuple[str, ...]:
        """Every import path of a study, module:name each: the user's code, optimizers of torch.

        Of code that is sent by value, module: of each that it imports.
        """
        code = self.import_path
        own = [f"{name}:" for name in code.modules] if isinstance(code, Given) else [code]
        return (*own, *(":".join(module_and_class(name)) for name in self._of_torch))

    @property
    def document(self) -> dict[str, Any]:
        """The keys that were given, as a study file has them."""
        found = self.model_dump(exclude={"name"}, exclude_unset=True, exclude_none=True)
        return found | {
            name: getattr(self, name) for name in ("workload", "train") if name in found
        }

    def with_(self, **changes: Any) -> Study:
        """A copy of the study with other keys, checked as a whole: the study itself stays.

            study.with_(batch_sizes=[64, 256], trials=40)

        A key that is given replaces all that it had, as `space` or `workload_args`; None takes it
        away. `workload`, `train` or `command` takes the place of what trained before. The name
        stays unless `name` is given; results of a study that has changed need another one, but for
        more trials. Raises UserError as Study itself.
        """
        replaced = SOURCES if changes.keys() & set(SOURCES) else ()
        kept = {key: value for key, value in self.document.items() if key not in replaced}
        document = {"name": self.name, **kept, **changes}
        if changes.keys() <= {"name"}:
            document["source"] = self.source  # with its comments
        return Study(**{key: value for key, value in document.items() if value is not None})

    @property
    def sampling(self) -> Sampler:
        """The row of its sampler. Raises ValueError if there is none."""
        if self.sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ValueError(f"sampler must be one of {known}; got {self.sampler!r}")
        return SAMPLERS[self.sampler]

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which values of the objective are better, in Optuna's words."""
        return "maximize" if self.maximize else "minimize"

    @property
    def first_seeds(self) -> int:
        """Seeds that every configuration is trained with."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds.all

    @property
    def most_seeds(self) -> int:
        """Seeds of a configuration that has all its seeds: a finalist, where there are any."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds.finalists

    @property
    def finalists(self) -> int:
        """How many of the best configurations of each group get more seeds than the others."""
        return 0 if isinstance(self.seeds, int) else self.seeds.of

    @property
    def length_key(self) -> str:
        """Which of LENGTHS the file has."""
        return LENGTHS[0] if self.max_train_steps else LENGTHS[1]

    @property
    def length_in_words(self) -> str:
        """How long a training is, as "500 updates"."""
        if self.max_train_steps:
            return f"{self.max_train_steps} updates"
        return f"{self.max_train_examples} examples"

    def train_steps(self, batch_size: int) -> int:
        """Optimizer updates of one training at a batch size, without a prepended warmup."""
        if self.max_train_steps:
            return self.max_train_steps
        assert self.max_train_examples is not None  # one of LENGTHS (_mistakes_of_length)
        return max(1, round(self.max_train_examples / batch_size))

    def of_steps(self, steps: int, evaluations: int) -> Study:
        """The study with so many updates and evaluations of every training: a trial run."""
        return self.model_copy(
            update={
                "max_train_steps": steps,
                "evaluations": evaluations,
                "prepend_warmup": False,
                "stop_after": None,
            }
        )

    @property
    def lengths(self) -> dict[int, int]:
        """Each number of updates that trainings have, with the first batch size that has it."""
        found: dict[int, int] = {}
        for batch_size in self.batch_sizes:
            found.setdefault(self.train_steps(batch_size), batch_size)
        return found

    def evaluate_every(self, batch_size: int) -> int:
        """Updates between two evaluations (S10)."""
        return math.ceil(self.train_steps(batch_size) / self.evaluations)

    def schedule(self, point: Point) -> int:
        """Updates of a trial's whole schedule, a prepended warmup included."""
        return total_steps(point, self.train_steps(point.batch_size), self.prepend_warmup)

    def updates(self, point: Point) -> int:
        """Updates of a trial: its whole schedule, or as many as `stop_after` allows."""
        return self.until_stop(self.schedule(point))

    def cut_step(self, point: Point) -> int:
        """The updates after which a trial of a study with a cut is compared with its group.

        That is the first evaluation at `cut.at` of its training, once warmup has ended for all
        trials of its optimizer; with `prepend_warmup`, at that share of what follows its own.
        """
        warmup = point.warmup_steps
        if not self.prepend_warmup:
            axes = self.axes(point.optimizer, point.batch_size)
            warmup = int(ends(axes["warmup_steps"])[1])
        return self._cut_after(warmup, point.batch_size)

    def earliest_cut(self, optimizer: str, batch_size: int) -> tuple[int, int]:
        """The updates of the shortest training of an optimizer, and those before its cut."""
        shortest, longest = map(int, ends(self.axes(optimizer, batch_size)["warmup_steps"]))
        steps = self.train_steps(batch_size)
        if not self.prepend_warmup:
            return self.until_stop(steps), self._cut_after(longest, batch_size)
        return self.until_stop(steps + shortest), self._cut_after(shortest, batch_size)

    def _cut_after(self, warmup: int, batch_size: int) -> int:
        assert self.cut is not None
        every = self.evaluate_every(batch_size)
        share = self.cut.at * self.until_stop(self.train_steps(batch_size))
        least = warmup + share if self.prepend_warmup else max(warmup, share)
        return math.ceil(least / every) * every

    def until_stop(self, whole: int) -> int:
        """How many of the updates of a whole schedule `stop_after` allows."""
        return min(whole, self.stop_after or whole)

    @property
    def optimizers(self) -> list[str]:
        """Rules in the order of their table, then optimizers of torch in that of the file."""
        tables = self.space.optimizer
        rules = [name for name in RULES if getattr(tables, name, None) is not None]
        return rules + list(self._of_torch)

    @cached_property
    def constructors(self) -> dict[str, Constructor | None]:
        """Of its optimizers of torch, as far as their source shows."""
        return {name: read_constructor(name) for name in self._of_torch}

    @property
    def _of_torch(self) -> Mapping[str, Any]:
        """The tables of optimizers of torch by their import paths."""
        tables: Any = self.space.optimizer
        return cast(Mapping[str, Any], tables.of_torch)

    def _table_of(self, optimizer: str) -> Any:
        """The axes in an optimizer's own table."""
        if is_of_torch(optimizer):
            return self._of_torch[optimizer]
        return getattr(self.space.optimizer, optimizer)

    def _settings_of(self, optimizer: str) -> Iterable[str]:
        """Names of an optimizer's own hyperparameters; of one of torch those that are given."""
        if is_of_torch(optimizer):
            return tuple(self._table_of(optimizer).model_extra)
        return tuple(RULES[optimizer].defaults)

    def convert(self, optimizer: str, name: str, value: Any) -> Any:
        """A value of an axis as a Point holds it."""
        if not is_of_torch(optimizer) or name in (*COMMON, *DECAY_SETTINGS):
            return HYPERPARAMETERS[name].convert(value)
        constructor = self.constructors[optimizer]
        setting = constructor.settings.get(name) if constructor else None
        return setting.convert(value) if setting else value

    def axes(self, optimizer: str, batch_size: int | None = None) -> dict[str, Axis]:
        """Every axis of an optimizer by name, fixed ones included; a tied one is of its quantity.

        Without a batch size an axis has all values that it has at any. Settings of a decay that the
        optimizer does not try are left out. Its own table wins over the common one.
        """
        specs = {
            name: self._resolve(spec, batch_size) for name, spec in self._specs(optimizer).items()
        }
        decays = values_of(specs["decay"])
        for name in specs.keys() & set(DECAY_SETTINGS):
            if not any(applies(name, decay) for decay in decays):
                del specs[name]
        return specs

    def _specs(self, optimizer: str) -> dict[str, Any]:
        """What the file says of every hyperparameter of an optimizer, or its default."""
        own, settings = self._table_of(optimizer), self._settings_of(optimizer)
        specs: dict[str, Any] = {}
        for name in (*COMMON, *settings, *DECAY_SETTINGS):
            shared = None if name in settings else getattr(self.space, name)
            default = None if name in settings else HYPERPARAMETERS[name].default
            candidates = (getattr(own, name), shared, default)
            spec = next((candidate for candidate in candidates if candidate is not None), None)
            if spec is not None:
                specs[name] = spec
        return specs

    @cached_property
    def ties(self) -> Mapping[str, Mapping[str, Tie]]:
        """What hyperparameters are tied by, by optimizer and name; empty of most optimizers."""
        return {
            optimizer: {
                name: spec.tie
                for name, spec in self._specs(optimizer).items()
                if isinstance(spec, _Ties)
            }
            for optimizer in self.optimizers
        }

    def decays_by_itself(self, optimizer: str) -> bool:
        """Whether an optimizer's weight decay has a time scale: `optimizers.decays_by_itself`."""
        return decays_by_itself(optimizer, self._table_of(optimizer).model_extra or {})

    def axis_name(self, optimizer: str, name: str) -> str:
        """What an axis is called, as in the file: beta2, or beta2.half_life_examples."""
        tie = self.ties[optimizer].get(name)
        return f"{name}.{tie.name}" if tie else name

    def hyperparameters(
        self, optimizer: str, batch_size: int, chosen: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Values of axes as a Point holds them: of a tied one, the hyperparameter that follows.

        `chosen` holds base_lr, if a tie needs it.
        """
        ties = self.ties[optimizer]
        found = {
            name: self.convert(optimizer, name, value) if name not in ties else value
            for name, value in chosen.items()
        }
        for name in ties.keys() & found.keys():
            training = self._training(batch_size, found.get("base_lr", math.nan))
            found[name] = ties[name].value(found[name], training)
        return found

    def quantity(self, point: Point, name: str) -> Any:
        """A point's value on an axis: of a tied hyperparameter, the quantity that it follows from.

        It is a value that the axis is written with, or an end of its range, if it is one but for
        rounding.
        """
        tie = self.ties[point.optimizer].get(name)
        value = point.values[name]
        if tie is None:
            return value
        found = tie.quantity(value, self._training(point.batch_size, point.base_lr))
        written = _named_in(self.axes(point.optimizer, point.batch_size)[name])
        return next((one for one in written if math.isclose(one, found, rel_tol=READ_BACK)), found)

    def _training(self, batch_size: int, base_lr: float) -> Training:
        return Training(batch_size, base_lr, self.train_examples or math.nan)

    def is_common(self, optimizer: str, name: str) -> bool:
        """Whether an optimizer takes an axis from [space], having none of its own."""
        own = self._table_of(optimizer)
        return getattr(self.space, name, None) is not None and getattr(own, name, None) is None

    def key_of(self, optimizer: str, name: str) -> str:
        """The key of the file at which an optimizer's axis is given, or would be."""
        if self.is_common(optimizer, name):
            return f"space.{name}"
        return f"{table_key(optimizer)}.{name}"

    def _resolve(self, spec: Any, batch_size: int | None) -> Axis:
        if isinstance(spec, OrdersOfMagnitude):
            steps = max(self.lengths) if batch_size is None else self.train_steps(batch_size)
            return tuple(orders_of_magnitude(steps))
        if isinstance(spec, _Ties):
            spec = spec.spec
        return spec if isinstance(spec, Range | tuple) else (spec,)

    @property
    def ranges(self) -> dict[str, dict[str, tuple[float, float, bool]]]:
        """The bounds of every range, as (low, high, log), by optimizer and `axis_name`."""
        arguments = self.nuisance_workload_args
        return {
            optimizer: {
                self.axis_name(optimizer, name): (axis.low, axis.high, axis.log)
                for name, axis in (arguments | self.axes(optimizer)).items()
                if isinstance(axis, Range)
            }
            for optimizer in self.optimizers
        }

    @property
    def nuisance_workload_args(self) -> dict[str, Axis]:
        """The arguments that vary where trials are imported: whoever trained them tuned these,
        too.
        """
        args = self.workload_args if self.imported else {}
        return {name: axis for name, axis in args.items() if isinstance(axis, Range | tuple)}

    @property
    def scientific_workload_args(self) -> tuple[str, ...]:
        args = {} if self.imported else self.workload_args
        return tuple(name for name, value in args.items() if isinstance(value, tuple))

    @property
    def scientific_names(self) -> tuple[str, ...]:
        """The scientific hyperparameters besides batch size and optimizer."""
        return self.scientific + self.scientific_workload_args

    def group_count(self) -> int:
        """How many groups each batch size has at most, without making them."""
        arguments = math.prod(
            len(values_of(self.workload_args[name])) for name in self.scientific_workload_args
        )
        return (
            sum(self._combinations(self.axes(optimizer)) for optimizer in self.optimizers)
            * arguments
        )

    def _combinations(self, axes: Mapping[str, Axis]) -> int:
        return math.prod(grid_size(axes[name]) for name in self.scientific)

    @staticmethod
    def _grid_points(axes: Mapping[str, Axis]) -> int:
        """How many points a grid has over an optimizer's axes.

        Those of each decay have only that decay's settings.
        """
        sizes = {name: grid_size(axis) for name, axis in axes.items() if name != "decay"}
        return sum(
            math.prod(size for name, size in sizes.items() if applies(name, decay))
            for decay in values_of(axes["decay"])
        )

    def planned_trials(self) -> int:
        """How many trials the study plans in all, without making a plan.

        Those of finalists are not among them: how many there are is seen when others are trained.
        """
        if self.trials is None:
            arguments = math.prod(len(values_of(value)) for value in self.workload_args.values())
            grids = sum(
                self._grid_points(self.axes(optimizer, batch_size))
                for batch_size in self.batch_sizes
                for optimizer in self.optimizers
            )
            configurations = grids * arguments
        else:
            configurations = self.trials * len(self.batch_sizes)
        return configurations * self.first_seeds

    def groups(self, batch_size: int) -> list[Group]:
        """One group per optimizer and combination of scientific values, in a fixed order."""
        arguments = [self.workload_args[name] for name in self.scientific_workload_args]
        groups = []
        for optimizer in self.optimizers:
            axes = self.axes(optimizer, batch_size)
            for values in itertools.product(*(axes[name] for name in self.scientific), *arguments):
                scientific = tuple(zip(self.scientific_names, values, strict=True))
                groups.append(Group(batch_size, optimizer, scientific))
        return groups

    def problems(self) -> Iterator[tuple[str, str]]:
        """Mistakes that concern several keys at once, as (key, what is wrong)."""
        yield from self._idle_keys()
        if not self.optimizers:
            known = ", ".join(RULES)
            yield (
                "space.optimizer",
                f"needs at least one of {known}, or an optimizer of torch by its import path",
            )
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            yield "batch_sizes", f"must differ from one another, got {list(self.batch_sizes)}"
        if self.imported:  # what somebody else trained is reported as it is
            return
        if (self.trials is None) != self.sampling.is_grid:
            yield (
                "trials",
                (
                    "is required"
                    if self.trials is None
                    else "the grid sampler counts its own points: remove trials"
                ),
            )
        yield from self._shadowing()
        yield from self._idle_settings()
        uneven = [size for size in self.batch_sizes if size % self.accumulation]
        if uneven:
            yield (
                "accumulation",
                f"must divide every batch size, got {self.accumulation} for {uneven}",
            )
        # of a key that optimizers share, once
        mistakes = dict.fromkeys(
            mistake for optimizer in self.optimizers for mistake in self._problems_of(optimizer)
        )
        yield from mistakes
        if self.optimizers and not mistakes:
            yield from self._too_many()
            yield from problems_of_command(self)

    def _idle_keys(self) -> Iterator[tuple[str, str]]:
        """Keys that say nothing of what trains here."""
        for name, value in self.workload_args.items():
            if isinstance(value, Range) and not self.imported:
                yield f"workload_args.{name}", "must be one value or a list of values, got a range"
        for name in OF_WORKLOADS:
            if not self.workload and getattr(self, name) != Study.model_fields[name].default:
                yield name, "is for a `workload`: here your own training decides it"
        if self.cut and not self.workload:
            yield (
                "cut",
                f"is for a `workload`: trials of `{self.source_key}` cannot be stopped and go on",
            )
        if self.decay_vectors and not self.makes_optimizers:
            yield (
                DECAY_VECTORS,
                "is for optimizers that are made here: here your own training decides what decays",
            )
        for name in OF_COMMANDS:
            if not self.command and getattr(self, name) is not None:
                yield name, "is for a `command`"

    def _shadowing(self) -> Iterator[tuple[str, str]]:
        """Arguments of the workload named like something else in the same tables."""
        own = {"optimizer", "seed"}  # batch_size: advice.py
        own |= {name for optimizer in self.optimizers for name in self.axes(optimizer)}
        for name in sorted(self.workload_args):
            if name in own:
                yield (
                    f"workload_args.{name}",
                    "is also a hyperparameter of this study; rename the factory's argument",
                )
            if name in RESULT_COLUMNS:
                yield (
                    f"workload_args.{name}",
                    "is also a column of trials.csv; rename the factory's argument",
                )

    def _idle_settings(self) -> Iterator[tuple[str, str]]:
        """Settings of decays that no optimizer of theirs tries."""
        for name in DECAY_SETTINGS:
            having = [shape for shape in SHAPES if applies(name, shape)]
            reason = f"applies only to decay = {' or '.join(map(repr, having))}, which"
            idle = [one for one in self.optimizers if name not in self.axes(one)]
            for optimizer in idle:
                if getattr(self._table_of(optimizer), name) is not None:
                    yield (
                        f"{table_key(optimizer)}.{name}",
                        f"{reason} {optimizer} does not use",
                    )
            if getattr(self.space, name) is not None and len(idle) == len(self.optimizers):
                yield f"space.{name}", f"{reason} this study does not use"

    def _settings_of_some(
        self, axes: Mapping[str, Axis], optimizer: str
    ) -> Iterator[tuple[str, str]]:
        """Settings that vary, though only some of the decays that are tried have them.

        Where `decay` is scientific each group has a decay, and varies what that has. Elsewhere
        trials of one group would have axes that others lack, which no sampler can take.
        """
        for name in DECAY_SETTINGS:
            lacking = [one for one in values_of(axes["decay"]) if not applies(name, one)]
            if name not in axes or not lacking:
                continue
            reason = f"which decay = {quote(lacking[0])} does not have"
            if name in self.scientific:
                yield (
                    "scientific",
                    f"{name!r} is a setting {reason}: ask that in a study of its own",
                )
            elif "decay" not in self.scientific and grid_size(axes[name]) != 1:
                yield (
                    self.key_of(optimizer, name),
                    f"varies, {reason}: give one value, or add 'decay' to scientific",
                )

    def _settings_out_of_bounds(self, optimizer: str) -> Iterator[tuple[str, str]]:
        """Settings of a decay that the updates after the longest warmup cannot show."""
        for length, batch_size in self.lengths.items():
            axes = self.axes(optimizer, batch_size)
            warmup = 0 if self.prepend_warmup else int(ends(axes["warmup_steps"])[1])
            steps = length - warmup
            for decay in values_of(axes["decay"]):
                shape = SHAPES[str(decay)]
                for name, (lowest, highest) in shape.bounds(steps).items():
                    axis = axes.get(name, (shape.defaults[name],))
                    wrong = [one for one in ends(axis) if not lowest <= one <= highest]
                    if wrong:
                        yield (
                            self.key_of(optimizer, name),
                            f"must be from {lowest:g} to {highest:g} for the {steps} updates after "
                            f"warmup; got {wrong[0]:g}",
                        )

    def _problems_of_torch(self, optimizer: str) -> Iterator[tuple[str, str]]:
        """Mistakes in the name or settings of an optimizer of torch, as far as its source shows."""
        key = table_key(optimizer)
        if not module_and_class(optimizer)[1]:
            yield key, "must be an import path, package.module.Class or package.module:Class"
            return
        specs = self._table_of(optimizer).model_extra
        # what a tied one is follows from the rest; it is a number
        given = {
            name: 1.0 if isinstance(spec, _Ties) else _named_in(spec)
            for name, spec in specs.items()
        }
        if constructor := self.constructors[optimizer]:
            if constructor.refusal:
                yield key, constructor.refusal
                return
            faults = list(constructor.faults(given))
            faults += [(name, "is required") for name in constructor.missing(given)]
        else:
            faults = [(name, f"is no setting: {why}") for name, why in NO_SETTINGS.items()]
            faults = [(name, fault) for name, fault in faults if name in given]
        for name, fault in faults or self._faults_of_values(given):
            yield f"{key}.{name}", fault

    @staticmethod
    def _faults_of_values(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Settings of an optimizer of torch out of reach, or no numbers where rules have numbers.

        A text for momentum could not be compared with another optimizer's.
        """
        for name, values in given.items():
            for value in values_of(values):
                if not _in_reach(value):
                    reach = f"{SMALLEST:g} and {LARGEST:g}"
                    yield name, f"must lie between {reach}, got {quote(value)}"
                elif name in HYPERPARAMETERS and not isinstance(value, bool | int | float):
                    yield name, f"must be a number, got {quote(value)}"

    def _problems_of(self, optimizer: str) -> Iterator[tuple[str, str]]:
        if is_of_torch(optimizer):
            yield from self._problems_of_torch(optimizer)
        axes = self.axes(optimizer)
        for name in COMMON:
            if name not in axes:
                yield (
                    self.key_of(optimizer, name),
                    "is required (here, or in [space] for every optimizer)",
                )
        yield from self._long_warmup(optimizer)
        yield from self._problems_of_cut(axes, optimizer)
        yield from self._settings_of_some(axes, optimizer)
        yield from self._settings_out_of_bounds(optimizer)
        yield from self._problems_of_ties(axes, optimizer)
        for name in self.scientific:
            if not isinstance(axes.get(name), tuple):
                yield "scientific", f"{quote(name)} must be a list of values for {optimizer}"
        for name, axis in axes.items():
            if self.sampling.is_grid and isinstance(axis, Range) and axis.points is None:
                key = self.key_of(optimizer, name)
                yield key, "the grid sampler needs the number of points of a range"

    def _long_warmup(self, optimizer: str) -> Iterator[tuple[str, str]]:
        """A warmup of more than a tenth of the updates, at the shortest training that has one."""
        for steps, batch_size in sorted(self.lengths.items()):
            largest = ends(self.axes(optimizer, batch_size)["warmup_steps"])[1]
            longest = longest_warmup(steps)
            if largest > longest:
                length = f"max_train_steps = {steps}"
                if not self.max_train_steps:
                    length = f"the {steps} updates at batch size {batch_size}"
                yield (
                    self.key_of(optimizer, "warmup_steps"),
                    f"must be at most {longest}, 10 % of {length} (R10); got {largest:g}",
                )
                return

    def _problems_of_ties(
        self, axes: Mapping[str, Axis], optimizer: str
    ) -> Iterator[tuple[str, str]]:
        """Hyperparameters of an optimizer that a tie does not give a value, or not everywhere."""
        for name, tie in self.ties[optimizer].items():
            key = self.key_of(optimizer, self.axis_name(optimizer, name))
            fault = fault_of_tie(name, tie)
            if name in self.scientific:
                yield (
                    "scientific",
                    f"{quote(name)} is tied by {tie.name}: to compare values of it, give these",
                )
            if not fault and tie.by_epochs:
                fault = self._fault_of_epochs(optimizer)
            if not fault:
                fault = next(self._faults_of_quantities(name, tie, axes), "")
            if fault:
                yield key, fault

    def _fault_of_epochs(self, optimizer: str) -> str:
        """Why nothing of an optimizer can be counted in epochs; empty if it can."""
        if not self.decays_by_itself(optimizer):
            return (
                f"is for weight decay that multiplies parameters by 1 − learning rate × "
                f"weight_decay, which {optimizer} is not known to have: give weight_decay itself"
            )
        if self.train_examples is None:
            return "needs train_examples at the top of the file: the number of training examples"
        return ""

    def _faults_of_quantities(self, name: str, tie: Tie, axes: Mapping[str, Axis]) -> Iterator[str]:
        """Quantities of a tie that no hyperparameter can follow from at some batch size."""
        for batch_size, value in itertools.product(self.batch_sizes, ends(axes[name])):
            training = self._training(batch_size, 1.0)
            found = tie.value(value, training)
            if tie.by_epochs and value * training.updates_per_epoch < 1:
                yield (
                    f"must be at least one update, {1 / training.updates_per_epoch:g} epochs at "
                    f"batch size {batch_size}; got {value:g}"
                )
            elif not HYPERPARAMETERS[name].accepts(found) or not tie.is_read_back(value, training):
                yield (
                    f"{value:g} makes {name} {found:g} at batch size {batch_size}, too close to "
                    "0 or 1 to be told from it"
                )

    def _problems_of_cut(
        self, axes: Mapping[str, Axis], optimizer: str
    ) -> Iterator[tuple[str, str]]:
        """Why an optimizer's trials cannot be compared before their end."""
        if not self.cut:
            return
        decaying = [one for one in values_of(axes["decay"]) if one != "constant"]
        if decaying:
            yield (
                "cut",
                f"cannot stand beside decay = {quote(decaying[0])}: a high learning rate shows its "
                "worth only once it has decayed, so values on the way do not tell who ends best",
            )
        for batch_size in self.lengths.values():
            whole, after = self.earliest_cut(optimizer, batch_size)
            if after >= whole:
                yield (
                    "cut.at",
                    f"there is no evaluation between {self.cut.at:g} of a training, its warmup "
                    f"left out, and its end at {whole} updates: they come every "
                    f"{self.evaluate_every(batch_size)}",
                )

    def _too_many(self) -> Iterator[tuple[str, str]]:
        """Counted before anything of that many is made."""
        groups, planned = self.group_count(), self.planned_trials()
        if groups > MOST_GROUPS:
            names = ", ".join(("optimizer", *self.scientific_names[:SHOWN_NAMES]))
            yield (
                "scientific",
                f"the values of {names} make {quote(groups)} groups per batch size, of at most "
                f"{MOST_GROUPS}: give shorter lists",
            )
        elif self.trials is not None and self.trials < groups:
            yield (
                "trials",
                (
                    f"must be at least the number of groups per batch size, {groups}, got "
                    f"{self.trials}"
                ),
            )
        if planned > MOST_TRIALS:
            key = "sampler" if self.trials is None else "trials"
            yield (
                key,
                (
                    f"batch sizes × configurations × seeds must be at most {MOST_TRIALS} trials, "
                    f"got {quote(planned)}"
                ),
            )
        if self.seed + self.most_seeds > LARGEST_SEED:
            yield (
                "seed",
                f"seed + seeds must be at most {LARGEST_SEED}, got {self.seed} + {self.most_seeds}",
            )


def table_key(optimizer: str) -> str:
    """The key of an optimizer's own table, as TOML writes it."""
    return f"space.optimizer.{_as_key(optimizer)}"


def _as_key(text: str) -> str:
    return text if BARE_KEY.fullmatch(text) else f'"{text}"'


def _shown(axis: Axis) -> str:
    if isinstance(axis, Range):
        return f"{readable(axis.low)} to {readable(axis.high)}"
    return " or ".join(map(readable, axis[:SHOWN_NAMES]))


def values_of(value: Any) -> tuple[Any, ...]:
    """The values of an axis or an argument that has no range; one alone is one of them."""
    return value if isinstance(value, tuple) else (value,)


def grid_size(axis: Axis) -> int:
    """How many values a grid takes of an axis."""
    return (axis.points or 1) if isinstance(axis, Range) else len(axis)


def load_study(path: str | Path, name: str = "") -> Study:
    """Read and validate a study file; its stem names the study, unless `name` does.

    Raises UserError with one line per mistake: file: key: rule, value.
    """
    path = Path(path)
    text = _read(path)
    if not name:
        _check_name(path)
    return parse_study(_tables(text, path), name or path.stem, place=str(path), source=text)


class _ClusterFile(BaseModel):
    cluster: Cluster


def load_cluster(path: Path) -> Cluster:
    """The [cluster] table of a file, whatever else is in it. Raises UserError as load_study."""
    document = _tables(_read(path), path)
    try:
        return _ClusterFile.model_validate(document).cluster
    except ValidationError as error:
        told: set[str] = set()
        lines = [f"{path}: {_explain(detail, told)}" for detail in error.errors()]
        raise UserError("\n".join(lines[:MOST_LINES])) from error


def _tables(text: str, path: Path) -> dict[str, Any]:
    """What TOML says. Raises UserError."""
    try:
        document = tomllib.loads(text) if not DEEP_KEY.search(text) else None
    except RecursionError:
        document = None
    # TOMLDecodeError, or what Python says of an integer too long for it
    except ValueError as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from error
    if document is None:
        raise UserError(f"{path}: is no study file: tables or lists are nested too deeply")
    return document


def fault_of_name(name: str) -> str:
    """Why a name cannot be that of a results folder and of studies in a database; empty if it
    can.
    """
    if not name.isprintable() or any(sign in name for sign in "\\?#"):
        return "must not have control characters, \\, ? or #, nor what is not UTF-8"
    if name.startswith("."):
        return "must not begin with a dot"
    if len(name) > MOST_CHARACTERS:
        return f"must have at most {MOST_CHARACTERS} characters"
    return ""


def _check_name(path: Path) -> None:
    """Raise UserError unless a file's stem can name a results folder."""
    name = path.stem
    if rule := fault_of_name(name):
        raise UserError(
            f"{quote(str(path))}: the file's name without .toml names the results folder: it "
            f"{rule}, got {quote(name)}"
        )


def _read(path: Path) -> str:
    """The text of a study file.

    Raises UserError unless it is a file, of UTF-8 and of at most MOST_BYTES.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: cannot be read: it is a device or a pipe; give a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: is no study file: it has more than {MOST_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not valid TOML: it must be UTF-8, and byte {error.start} is not"
        ) from error
    return text.replace("\r\n", "\n")


def parse_study(document: Mapping[str, Any], name: str, place: str, source: str = "") -> Study:
    """Validate a study file's content; `place` names it in messages.

    Raises UserError as load_study.
    """
    own = sorted(document.keys() & {"name", "source"})
    lines = [f"{key}: unknown key; the file's name is the study's name" for key in own]
    return Study.model_validate(
        {**document, "name": name, "source": source}, context={"place": place, "lines": lines}
    )


def _mistakes_of_name(name: object) -> list[str]:
    """What is wrong with a study's name that was given in Python."""
    if not isinstance(name, str):
        return []  # pydantic says so
    rule = "must not be empty" if not name else fault_of_name(name)
    rule = rule or ("must not have a /" if "/" in name else "")
    return [f"name: {rule}, got {quote(name)}: it names the results folder"] if rule else []


def _mistakes_of_sources(document: Mapping[str, Any]) -> Iterator[str]:
    """Whether a study says once what trains, or where its trials come from."""
    named = [name for name in SOURCES if name in document]
    if not named:
        yield (
            "workload: is required, or `train`, a function that trains by itself, or `command`, a "
            "program that does"
        )
    if len(named) > 1:
        yield f"{named[1]}: cannot stand beside {named[0]}: a study has one of them"


def _mistakes_of_length(document: Mapping[str, Any]) -> Iterator[str]:
    """Whether a study says once how long a training is."""
    named = [name for name in LENGTHS if document.get(name) is not None]
    if not named:
        yield f"{LENGTHS[0]}: is required, or {LENGTHS[1]}"
    if len(named) > 1:
        yield f"{named[1]}: cannot stand beside {named[0]}: a study has one of them"


def schema() -> dict[str, Any]:
    """The JSON schema of a study file, for editors."""
    result = Study.model_json_schema()
    result["description"] = "A study file of tunewright."
    del result["properties"]["name"], result["properties"]["source"]
    result["required"].remove("name")
    result["oneOf"] = [{"required": [length]} for length in LENGTHS]
    return result


def _explain(detail: Any, told: set[str]) -> str:
    """One pydantic error as `key: rule, value`. `told`: the lists of keys that others gave."""
    keys = [
        quote(part) if len(str(part)) > SHOWN else _as_key(str(part))
        for part in detail["loc"]
        if part not in FORMS
    ]
    place, kind = ".".join(keys), detail["type"]
    if kind == "extra_forbidden":
        return f"{place}: {_unknown_key(keys, told)}"
    if kind == "missing":
        return f"{place}: is required"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return (
        f"{place}: {message}"
        if kind == "value_error"
        else f"{place}: {message}, got {quote(detail['input'])}"
    )


def _unknown_key(keys: list[str], told: set[str]) -> str:
    *parents, key = keys
    if key in (*LENGTHS, "seed", "seeds"):
        return "is never an axis (S8): it stands at the top of the file, with one value"
    if key in ("batch_size", "batch_sizes"):
        return (
            "every batch size is tuned on its own (R20): list them in batch_sizes at the top of "
            "the file"
        )
    known = _known_keys(parents)
    nearest = difflib.get_close_matches(key, known, n=1)
    listed = f"known are {', '.join(known)}"
    if parents == ["space", "optimizer"]:
        listed += (
            "; one of your own must be imported before study files are read, and one of torch "
            'stands in quotes, as "torch.optim.AdamW"'
        )
    if not nearest:
        if listed in told:
            return "unknown key"
        told.add(listed)
        return f"unknown key; {listed}"
    guess = f"unknown key; did you mean {nearest[0]!r}?"
    return f"{guess} ({listed})" if parents == ["space", "optimizer"] else guess


def _known_keys(parents: list[str]) -> list[str]:
    """The keys of a table, by its own place; of a hyperparameter's, those of all its forms."""
    match parents:
        case []:
            return [name for name in Study.model_fields if name not in ("name", "source")]
        case ["space"]:
            return list(Space.model_fields)
        case ["space", "optimizer"]:
            return list(RULES)
        case ["space", "optimizer", optimizer]:
            return [*COMMON, *RULES[optimizer].defaults, *DECAY_SETTINGS]
        case ["figure" | "log" | "cluster" | "seeds" | "warm_start" | "cut" as table]:
            models: dict[str, type[BaseModel]] = {
                "figure": Figure,
                "seeds": Seeds,
                "warm_start": WarmStart,
                "cut": Cut,
                "log": CommandLog,
                "cluster": Cluster,
            }
            fields = models[table].model_fields
            return [field.alias or name for name, field in fields.items()]
        case _:
            return [*Range.model_fields, *OrdersOfMagnitude.model_fields, *TIES]


def refuse_imported(study: Study, command: str) -> None:
    """Raise UserError for a command that trains or evaluates, if a study's trials are imported."""
    if study.imported:
        raise UserError(
            f"{study.name}: its trials are imported from {study.imported}: `tunewright {command}` "
            "trains and evaluates models, and needs a study with a workload or a function"
        )
