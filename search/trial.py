"""Records of one training, a Trial: asked (Point), measured (Curve), judged (Verdict)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .rules.hyperparameters import HYPERPARAMETERS, of_kind
from .rules.thresholds import clip_thresholds
from .words import readable

Array: TypeAlias = NDArray[np.float64]
# for a trial whose objective was never finite, not even untrained
LARGE = float(np.finfo(np.float32).max)
COMMON = of_kind("common")  # hyperparameters of every training: fields of a Point
CLIPPING = ("clip_norm", "clip_z", "clip_tensor")  # those of them that clip; each is off at inf
Outcome = Literal["feasible", "non_finite", "diverged", "collapsed", "crashed", "unfinished"]
# an evaluation after as many updates is of the untrained model: some count updates from 1
UNTRAINED_STEPS = 1
SPIKE_WINDOW = 128  # losses before one that say whether it is a spike
SPIKE_DEVIATIONS = 6.0  # standard deviations above their mean that a spike is, at least
SPIKE_ROUNDING = 1e-6  # of the mean: losses that scatter less are equal, but for rounding
SPIKE_BLOCK = 4096  # windows that are looked at together: memory
# scalars of a trial that older records do not have, and many trainings do not
OFTEN_UNKNOWN = ("spike_score", "near_epsilon")
CUT = "cut at step"  # how the evidence of a trial begins that its study stopped by its value
Instability = Literal["none", "early", "mid_training"]
OPTIONAL = ("loss_step", "tensors_clipped")  # arrays of a curve that few have


@dataclass(frozen=True)
class Point:
    """One value of every hyperparameter: all that a worker needs to train it, nothing measured.

    `settings` holds the optimizer's own hyperparameters (momentum, beta1, ...), `decay_settings`
    those of the decay's shape, and `workload_args` the keyword arguments of the workload's factory.
    `unstated` names what nobody says of an imported run: it is at its default, and is not shown.
    `number` is the position in the plan of its batch
    size, so that (batch_size, number) names the point. Points that differ in number and seed alone
    are one configuration, repeated.
    """

    number: int
    batch_size: int
    optimizer: str
    base_lr: float
    warmup_steps: int = 0
    clip_norm: float = math.inf
    clip_z: float = math.inf
    clip_tensor: float = math.inf
    decay: str = "constant"
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    workload_args: Mapping[str, Any] = field(default_factory=dict)
    decay_settings: Mapping[str, float] = field(default_factory=dict)
    unstated: Sequence[str] = field(default_factory=list)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every hyperparameter by its name, flat."""
        own = ("batch_size", "optimizer", *COMMON, "seed")
        values = {name: getattr(self, name) for name in own}
        for more in (self.settings, self.decay_settings, self.workload_args):
            values |= more
        return values

    @cached_property
    def shown(self) -> dict[str, Any]:
        """`values` without those that hardly any study uses and this point leaves off.

        The others are worth a column.
        """
        return {name: value for name, value in self.values.items() if name not in self._left_off}

    def record(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; `Point(**record)` is the inverse.

        A point without clip_z, clip_tensor or settings of its decay has the record, and so the
        hashes, that it had before there were any.
        """
        left_off = self._left_off
        own = {name: value for name, value in vars(self).items() if name not in left_off}
        names = [field.name for field in fields(self) if field.name in own]
        return {name: _plain(own[name]) for name in names}

    @property
    def _left_off(self) -> tuple[str, ...]:
        hidden = [name for name in COMMON if getattr(self, name) == HYPERPARAMETERS[name].hidden_at]
        empty = [name for name in ("decay_settings", "unstated") if not getattr(self, name)]
        return (*hidden, *empty, *self.unstated)

    @property
    def follows_norms(self) -> bool:
        """Whether a clip threshold depends on earlier norms."""
        return min(self.clip_z, self.clip_tensor) < math.inf

    def with_number(self, number: int, seed: int) -> Point:
        """The same configuration at another number, with another seed."""
        return replace(self, number=number, seed=seed)

    @cached_property
    def workload_key(self) -> str:
        """The workload's arguments as one text: equal for equal arguments, also after JSON."""
        return json.dumps(self.workload_args, sort_keys=True)

    @cached_property
    def configuration(self) -> tuple[tuple[str, str], ...]:
        """Every hyperparameter but the seed, hashable: the same for repetitions of a point."""
        return tuple((name, repr(value)) for name, value in self.values.items() if name != "seed")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def check_point_fields(common: Iterable[str]) -> None:
    """Raise TypeError for a common hyperparameter that a Point does not hold at its default."""
    held = {field.name: field.default for field in fields(Point)}
    for name in common:
        default = HYPERPARAMETERS[name].default
        if name not in held or (default is not None and held[name] != default):
            raise TypeError(
                f"hyperparameter {name!r}: is common, so Point needs a field of that name with the "
                f"same default, {default!r}"
            )


check_point_fields(COMMON)


def count_before(step: int, steps: NDArray[np.int64] | None) -> int:
    """How many of numbers, one at each of `steps` (None: at every update), precede an update."""
    return step if steps is None else int(np.searchsorted(steps, step))


@dataclass(frozen=True, eq=False)
class Curve:
    """Measurements of one training, step by step.

    loss, grad_norm   [T]  training loss on the batch of update t, and the unclipped global L2 norm
                           of its gradient, both before update t is applied (R4, R15). T <
                           total_steps if training was stopped.
    metrics           name → [E]  what `evaluate` returned after `eval_step[e]` updates; entry 0 is
                           the untrained model.
    total_steps            the updates that were planned
    chance_loss            loss of a constant predictor; nan where the workload does not state it
    loss_step         [T]  of a foreign log, which may hold fewer losses than there were updates:
                           the update of each, rising; None where there is one at every update. Of
                           such a log grad_norm may be empty, and evaluation 0 a later one.
    tensors_clipped   [T]  share of the model's tensors that clip_tensor clipped at each update;
                           None where it is off
    """

    loss: Array
    grad_norm: Array
    eval_step: NDArray[np.int64]
    metrics: Mapping[str, Array]
    total_steps: int
    chance_loss: float = math.nan
    loss_step: NDArray[np.int64] | None = None
    tensors_clipped: Array | None = None

    def clipped(self, clip_norm: float, clip_z: float) -> Array:
        """The share of each update's tensors that were clipped, [T].

        Thresholds of the global norm clip all tensors or none.
        """
        limits = clip_thresholds(self.grad_norm, clip_norm, clip_z)
        clipped = np.asarray(self.grad_norm > limits, np.float64)
        if self.tensors_clipped is None:
            return clipped
        return np.maximum(clipped, self.tensors_clipped)

    @property
    def planned_losses(self) -> int:
        """How many losses the planned updates have.

        One each; in a log, as many as it would hold at its spacing.
        """
        if self.loss_step is None:
            return self.total_steps
        if len(self.loss_step) < 2:
            return len(self.loss)
        span = int(self.loss_step[-1] - self.loss_step[0])
        spacing = span / (len(self.loss_step) - 1)
        return max(round(self.total_steps / spacing), len(self.loss))

    def losses_before(self, step: int) -> int:
        """How many losses are of updates before an evaluation that `step` of them precede."""
        return count_before(step, self.loss_step)

    def step_of(self, place: float) -> int:
        """The update of the loss at a place; of the last loss beyond it."""
        if self.loss_step is None:
            return int(place)
        return int(self.loss_step[min(int(place), len(self.loss_step) - 1)])

    @cached_property
    def spikes(self) -> NDArray[np.int64]:
        """Places of the losses that lie more than SPIKE_DEVIATIONS standard deviations above the
        mean of the SPIKE_WINDOW losses before them.

        The first SPIKE_WINDOW losses have no such window, and are none; nor is one after losses
        that are all equal, but for rounding. Source: OLMo 2 (arXiv 2501.00656), whose window is
        1,000 and bound 7; these are those of OLMo-core's stability monitor, for shorter trainings.
        """
        found = []
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(SPIKE_WINDOW, len(self.loss), SPIKE_BLOCK):
                block = self.loss[start : start + SPIKE_BLOCK]
                before = self.loss[start - SPIKE_WINDOW : start + len(block) - 1]
                windows = np.lib.stride_tricks.sliding_window_view(before, SPIKE_WINDOW)
                mean, deviation = windows.mean(axis=1), windows.std(axis=1)
                scatters = deviation > SPIKE_ROUNDING * np.abs(mean)
                high = block > mean + SPIKE_DEVIATIONS * deviation
                found.append(start + np.flatnonzero(high & scatters))
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @property
    def spike_score(self) -> float:
        """Share of spikes among the losses that have a whole window before them; nan: none has."""
        windows = len(self.loss) - SPIKE_WINDOW
        return len(self.spikes) / windows if windows > 0 else math.nan

    def __repr__(self) -> str:
        metrics = ", ".join(self.metrics) or "nothing"
        return (
            f"Curve: {len(self.loss)} of {self.total_steps} updates, {len(self.eval_step)} "
            f"evaluations of {metrics}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curve):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return mine.keys() == theirs.keys() and all(
            np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine
        )

    __hash__ = None  # type: ignore[assignment]  # arrays are compared, never hashed

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The curve as named arrays, ready for `numpy.savez`; `from_arrays` is the inverse."""
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "eval_step": self.eval_step,
            "total_steps": np.array(self.total_steps),
            "chance_loss": np.array(self.chance_loss),
            **{name: one for name in OPTIONAL if (one := getattr(self, name)) is not None},
            **{f"metric/{name}": values for name, values in self.metrics.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Curve:
        return cls(
            loss=arrays["loss"],
            grad_norm=arrays["grad_norm"],
            eval_step=arrays["eval_step"],
            metrics={
                name.removeprefix("metric/"): arrays[name]
                for name in arrays
                if name.startswith("metric/")
            },
            total_steps=int(arrays["total_steps"]),
            chance_loss=float(arrays["chance_loss"]),
            **{name: arrays.get(name) for name in OPTIONAL},
        )


@dataclass(frozen=True)
class Verdict:
    """What a curve says about its point.

    outcome      feasible | non_finite, diverged, collapsed (infeasible: a result about the point)
                 | crashed (the program failed), unfinished (it was pruned or stopped, or goes on):
                 no evidence about the point
    instability  none | early | mid_training: when the loss first blew up, also if it recovered (R2,
                 R5)
    onset_step   the update at which it did; inf = never
    evidence     one sentence with the numbers behind it
    """

    outcome: Outcome
    instability: Instability
    onset_step: float
    evidence: str

    @property
    def feasible(self) -> bool:
        return self.outcome == "feasible"

    @property
    def infeasible(self) -> bool:
        return self.outcome in ("non_finite", "diverged", "collapsed")

    @property
    def judged(self) -> bool:
        """Whether it says anything about its point: that is feasible, or infeasible."""
        return self.feasible or self.infeasible

    @property
    def crashed(self) -> bool:
        return self.outcome == "crashed"

    @property
    def unfinished(self) -> bool:
        return self.outcome == "unfinished"


def crash(reason: str) -> Verdict:
    """The verdict of a point whose training the program could not finish."""
    return Verdict("crashed", "none", math.inf, reason)


@dataclass(frozen=True)
class Trial:
    """One finished training.

    The scalars stand beside the curve, so that a table needs no curve files.

    best_value     best finite value of the objective over the whole run (S3); inf if there is none
    best_step      updates done when it was measured; nan if nobody says when
    initial_value  the objective of the untrained model; nan if it was not evaluated
    last_loss      last finite training loss; nan if there is none
    clip_fraction  share of updates whose gradient was clipped (R17); where clip_tensor clips part
                   of the tensors, that part of the update
    seconds        wall time of training, evaluation included
    traceback      of a crashed trial; empty otherwise
    maximize       whether a higher value of the objective is better
    spike_score    share of spikes in the training loss (`Curve.spikes`); nan if it is too short
    near_epsilon   share of parameters whose √v was below 10 ε at the end (`SecondMoment`); nan for
                   a rule without v, or whose v nobody saw
    provisional    whether its configuration has not all its seeds, so that it is not ranked yet:
                   known beside the others alone, and no part of the record
    """

    point: Point
    verdict: Verdict
    curve: Curve
    best_value: float
    best_step: float
    initial_value: float
    last_loss: float
    clip_fraction: float
    seconds: float
    traceback: str = ""
    maximize: bool = False
    provisional: bool = False
    spike_score: float = math.nan
    near_epsilon: float = math.nan

    def __repr__(self) -> str:
        point, verdict = self.point, self.verdict
        told = f"{verdict.outcome}: {verdict.evidence}"
        if not verdict.crashed:
            told = (
                f"{verdict.outcome}, instability {verdict.instability}; best value "
                f"{readable(self.best_value)} after {readable(self.best_step)} of "
                f"{self.curve.total_steps} updates"
            )
        return (
            f"Trial {point.number}: batch size {point.batch_size}, {point.optimizer}, base_lr "
            f"{readable(point.base_lr)}, seed {point.seed}\n{told}"
        )

    @property
    def feasible(self) -> bool:
        return self.verdict.feasible

    @property
    def is_cut(self) -> bool:
        """Whether its study stopped it by its value before its end (`study.cut`)."""
        return self.verdict.unfinished and self.verdict.evidence.startswith(CUT)

    @property
    def cost(self) -> float:
        """What trials are ranked by: lower is better.

        best_value, or its negative if the objective is maximized; inf where there is no best value.
        """
        return cost(self.best_value, self.maximize)

    @property
    def improvement(self) -> float:
        """By how much best_value is better than initial_value, at least 0; nan where one is."""
        fallen = self.initial_value - self.best_value
        return -fallen if self.maximize else fallen

    def record(self) -> dict[str, Any]:
        """Everything but the curve, as plain values for `json.dumps`, which writes nan and inf too.

        That of a minimized objective is as it was before there were others, and one without what is
        OFTEN_UNKNOWN as it was before that was measured.
        """
        left_off = ["curve", "provisional", *([] if self.maximize else ["maximize"])]
        left_off += [name for name in OFTEN_UNKNOWN if math.isnan(getattr(self, name))]
        return {
            **{name: value for name, value in vars(self).items() if name not in left_off},
            "point": self.point.record(),
            "verdict": asdict(self.verdict),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], curve: Curve) -> Trial:
        """The inverse of `record`."""
        point, verdict = Point(**record["point"]), Verdict(**record["verdict"])
        return cls(**{**record, "point": point, "verdict": verdict, "curve": curve})

    @classmethod
    def from_curve(
        cls,
        point: Point,
        verdict: Verdict,
        curve: Curve,
        objective: str,
        seconds: float,
        maximize: bool = False,
    ) -> Trial:
        """The trial of a training that ran: scalars derived from its curve."""
        clipped = curve.clipped(point.clip_norm, point.clip_z)
        values = curve.metrics.get(objective, np.empty(0))  # empty: never evaluated
        finite = np.flatnonzero(np.isfinite(values))
        finite_loss = curve.loss[np.isfinite(curve.loss)]
        best_value, best_step = math.inf, 0
        if len(finite):
            pick = np.argmax if maximize else np.argmin
            best = finite[pick(values[finite])]
            best_value, best_step = float(values[best]), int(curve.eval_step[best])
        initial_value = math.nan
        if len(values) and curve.eval_step[0] == 0:  # a log may begin with a later one
            initial_value = float(values[0])
        return cls(
            point=point,
            verdict=verdict,
            curve=curve,
            best_value=best_value,
            best_step=best_step,
            initial_value=initial_value,
            last_loss=float(finite_loss[-1]) if len(finite_loss) else math.nan,
            clip_fraction=float(np.mean(clipped)) if len(clipped) else 0.0,
            seconds=seconds,
            maximize=maximize,
            spike_score=curve.spike_score,
        )

    @classmethod
    def from_crash(
        cls, point: Point, reason: str, traceback: str = "", seconds: float = 0.0
    ) -> Trial:
        """The trial of a training that the program could not finish."""
        return cls(
            point=point,
            verdict=crash(reason),
            curve=EMPTY_CURVE,
            best_value=math.inf,
            best_step=0,
            initial_value=math.inf,
            last_loss=math.nan,
            clip_fraction=0.0,
            seconds=seconds,
            traceback=traceback,
        )


EMPTY_CURVE = Curve(
    loss=np.empty(0),
    grad_norm=np.empty(0),
    eval_step=np.empty(0, np.int64),
    metrics={},
    total_steps=0,
)


def cost(value: float, maximize: bool) -> float:
    """A value of the objective as something to minimize; inf for one that is not finite."""
    if not math.isfinite(value):
        return math.inf
    return -value if maximize else value


@dataclass(frozen=True)
class Told:
    """What a plan learns from a finished trial.

    Its point, how Optuna was told of it, and whether it was cut before its end.
    """

    point: Point
    value: float
    diverged: float
    cut: bool = False


def as_told(trial: Trial) -> Told:
    """How Optuna is told of a trial: its value, and the constraint `diverged`.

    A feasible trial: its best value, and −1. So is one that was cut: its value then is worse than
    those that went on had, and their last ones. An infeasible one: the value of the untrained
    model, and 1 − onset/total > 0, so that samplers learn that later is nearer to feasible. Never
    nan and never a huge penalty: both mislead TPE and GP, and ruin every axis they are drawn on.
    """
    cut = trial.verdict.unfinished
    if (trial.feasible or cut) and math.isfinite(trial.best_value):
        return Told(trial.point, trial.best_value, -1.0, cut)
    steps = max(trial.curve.total_steps, 1)
    reached = min(trial.verdict.onset_step, steps - 1) / steps
    worst = -LARGE if trial.maximize else LARGE
    value = next(filter(math.isfinite, (trial.initial_value, trial.best_value)), worst)
    return Told(trial.point, value, 1.0 - reached, cut)


def told_cost(trial: Trial) -> float:
    """The value that Optuna is told of a trial as something to minimize, always finite."""
    return cost(as_told(trial).value, trial.maximize)


@dataclass(frozen=True, order=True)
class Group:
    """Trials to be compared with one another: all that differs within a group is nuisance (S1).

    `scientific` holds the values of the study's scientific hyperparameters, in the study's order.
    """

    batch_size: int
    optimizer: str
    scientific: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        return f"batch size {self.batch_size}, {choice_label(self.optimizer, self.scientific)}"


def choice_label(optimizer: str, scientific: Iterable[tuple[str, Any]]) -> str:
    """An optimizer and scientific values: "momentum, momentum=0.5"."""
    return optimizer + "".join(f", {name}={value}" for name, value in scientific)


def group_of(point: Point, scientific: Sequence[str] = ()) -> Group:
    """The group that a point belongs to, given the names of the scientific hyperparameters."""
    return Group(
        point.batch_size, point.optimizer, tuple((name, point.values[name]) for name in scientific)
    )
