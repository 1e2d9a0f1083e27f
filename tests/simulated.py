"""Trainings without a model: curves drawn from a few parameters, judged like real ones, and answers
to procedures.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from tunewright.search.diagnose import updates_of
from tunewright.search.judge.diagnosis import GroupDiagnosis
from tunewright.search.judge.verdict import judge
from tunewright.search.procedure.asking import Answers, Asking
from tunewright.search.procedure.group import diagnosis_of
from tunewright.search.procedure.purse import Budget
from tunewright.search.procedure.steps import label, sweep_of
from tunewright.search.study.sampling import plan
from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import Array, Curve, Group, Point, Trial

T = TypeVar("T")

CHANCE = math.log(10)
UNTRAINED = 0.9  # the objective before training
STEPS = 400  # warmups of 10 and 40 steps are within a tenth of it
BEST = 0.1  # the objective at best_base_lr
SCATTER = 0.3  # of the logarithm of gradient norms
ONSET = 5  # updates of an early blow-up after the end of warmup


@dataclass(frozen=True)
class Simulated:
    """A model that trains below unstable_base_lr, and above it ends as `blow_up` says.

    Where a study is maximized, its objective is the negative of what it is otherwise.

    curved    what a decade above or below best_base_lr costs; n decades cost n² of it
    spread    standard deviation between seeds of log10 unstable_base_lr
    raised    factor by which a point's warmup, clipping, optimizer or architecture raise
              unstable_base_lr
    noise     standard deviation of values between seeds
    better    how much lower a point's value is, given how many updates it is trained
    norm      typical gradient norm of a point
    unlucky   points that blow up below the edge
    broken    the loss is nan before the first update
    """

    unstable_base_lr: float = math.inf
    best_base_lr: float = 0.1
    blow_up: Literal["early", "mid_training", "collapse", "recovers"] = "early"
    curved: float = 0.2
    spread: float = 0.02
    noise: float = 0.003
    raised: Callable[[Point], float] = lambda point: 1.0
    better: Callable[[Point, int], float] = lambda point, updates: 0.0
    norm: Callable[[Point], float] = lambda point: 1.0
    unlucky: Callable[[Point], bool] = lambda point: False
    broken: bool = False
    learns: bool = True

    def trials_of(self, study: Study) -> list[Trial]:
        return [self._trial(study, point) for point in plan(study)]

    def _trial(self, study: Study, point: Point) -> Trial:
        total = study.updates(point)
        # a hyperparameter that came later changes no draw where it is off
        named = tuple(one for one in point.configuration if one != ("clip_tensor", "inf"))
        of_point = zlib.crc32(repr(named).encode())
        rng = np.random.default_rng([point.seed, of_point])
        loss, norms = self._curve(point, total, study.max_train_steps, rng)
        done = len(loss)
        eval_step = np.unique([*range(0, done + 1, study.evaluate_every(point.batch_size)), done])
        value = self._value(point, total) + self.noise * rng.standard_normal()
        values = np.geomspace(UNTRAINED, value, len(eval_step))
        # as the loss, so the objective
        values[np.append(loss, loss[-1])[eval_step] >= 0.9 * CHANCE] = UNTRAINED
        if not np.isfinite(loss[-1]):
            values[1:] = math.nan
        values = -values if study.maximize else values
        curve = Curve(loss, norms, eval_step, {study.objective: values}, total, CHANCE)
        verdict = judge(curve, maximize=study.maximize)
        return Trial.from_curve(point, verdict, curve, study.objective, 0.01, study.maximize)

    def _value(self, point: Point, updates: int) -> float:
        if not self.learns:
            return UNTRAINED
        away = math.log10(point.base_lr / self.best_base_lr)
        return min(BEST + self.curved * away**2, 0.85) - self.better(point, updates)

    def _edge(self, point: Point) -> float:
        """Every seed has an edge of its own."""
        luck = np.random.default_rng([point.seed, 7]).standard_normal()
        return float(self.unstable_base_lr * 10 ** (self.spread * luck) * self.raised(point))

    def _curve(
        self, point: Point, total: int, planned: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        norms = self.norm(point) * np.exp(SCATTER * rng.standard_normal(total))
        if self.broken:
            return np.array([math.nan]), np.array([math.nan])
        flat = CHANCE * (1 + 0.01 * rng.standard_normal(total))
        falls = np.exp(-np.arange(total) / 40)
        loss = flat * (0.05 + 0.95 * falls) if self.learns else flat
        if point.base_lr <= self._edge(point) and not self.unlucky(point):
            return loss, norms
        match self.blow_up:
            case "early":
                end = point.warmup_steps + ONSET
                loss = np.concatenate(
                    [flat[: end - 3], CHANCE * np.array([2.0, 5.0, 25.0, math.nan])]
                )[:total]
                return loss, norms[: len(loss)]
            case "mid_training":  # a screening run is over before
                onset = point.warmup_steps + 3 * planned // 4
                loss[onset:] = 20 * CHANCE
            case "collapse":
                loss = flat
                norms[ONSET:] = 1e-3
            case "recovers":
                loss[ONSET - 2 : ONSET + 20] = 5 * CHANCE
        return loss, norms


def study_of(optimizer: dict[str, Any] | None = None, **changes: Any) -> Study:
    """Nine base LRs from 0.001 to 10 for momentum, or what is given."""
    sweep = {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
    document = {
        "workload": "nowhere:to_be_found",
        "objective": "val_error",
        "max_train_steps": STEPS,
        "batch_sizes": [32],
        "sampler": "grid",
        "evaluations": 20,
        "space": {"optimizer": optimizer or {"momentum": sweep}},
    }
    return parse_study(document | changes, name="simulated", place="simulated.toml")


def follow(
    procedure: Asking[T], trials_of: Callable[[Study], list[Trial]]
) -> tuple[T, list[Study]]:
    """What a procedure returns, and every study that it asked for, in order."""
    asked: dict[str, Study] = {}
    known: dict[str, list[Trial]] = {}
    answers: Answers | None = None
    while True:
        try:
            studies = next(procedure) if answers is None else procedure.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result, list(asked.values())
        for study in studies:
            asked.setdefault(study.name, study)
            if study.name not in known:
                known[study.name] = trials_of(study)
        answers = {study.name: known[study.name] for study in studies}


def diagnosed(
    model: Simulated,
    study: Study | None = None,
    seeds: int = 5,
    budget: float = math.inf,
    architectures: dict[str, dict[str, Any]] | None = None,
    trials_of: Callable[[Study], list[Trial]] | None = None,
) -> tuple[GroupDiagnosis, list[Study]]:
    """The diagnosis of a study's first group, and what was asked for.

    `budget` is in trainings; `trials_of` answers in place of the model's.
    """
    study = study or study_of()
    sweep = sweep_of(study)
    group = sweep.groups(study.batch_sizes[0])[0]
    purse = Budget(budget, study.max_train_steps, updates_of(sweep), updates_of).purse()
    found, asked = follow(
        diagnosis_of(study, group, seeds, architectures or {}, purse), trials_of or model.trials_of
    )
    assert found is not None  # the sweep is trained whatever the budget
    return found, asked


def steps_asked(asked: Sequence[Study], group: Group | None = None) -> list[str]:
    """The names of what was asked for, without the group's."""
    prefix = f"{label(group or Group(32, 'momentum'))}-"
    return [study.name.removeprefix(prefix) for study in asked]


def sentences(found: GroupDiagnosis, step: str) -> str:
    """The sentences of a step, as one text."""
    return " ".join(
        sentence for one in found.steps if one.name == step for sentence in one.sentences
    )
