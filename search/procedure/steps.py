"""Steps of a diagnosis as generators: they yield studies, and go on when these are trained.

So a procedure reads like the playbook, and knows nothing of workers, files or budgets. Studies that
do not depend on one another are asked for `together`, and trained side by side. The answer to a
study that the budget left out is no trials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

import tomli_w

from ..judge.neighbours import ends_at, learns_nothing, mark_collapsed
from ..rules.hyperparameters import HYPERPARAMETERS
from ..study.pinned import pin
from ..study.study import Study, parse_study
from ..trial import COMMON, Group, Point, Trial

T = TypeVar("T")
U = TypeVar("U")
Answers: TypeAlias = Mapping[str, list[Trial]]  # trials by the name of the study that was asked for
Asking: TypeAlias = Generator[list[Study], Answers, T]

# what is off in a sweep
OFF: Mapping[str, Any] = {
    name: HYPERPARAMETERS[name].off for name in COMMON if HYPERPARAMETERS[name].off is not None
}
# equal in points whose base LRs can be compared with one another
SAME_SCALE = ("optimizer", "settings", "workload_args")
SCREENING_SEEDS = 3  # of runs that only choose what is looked at more closely


@dataclass(frozen=True)
class Case:
    """A group under diagnosis.

    point          the best of its sweep: its hyperparameters are those of every step that does not
                   change them
    seeds          trainings of each point that a finding rests on
    architectures  other arguments of the workload by name, each a possible remedy
    learned        the training loss that `point` ends at; nan: not known
    reached        the cost that it reaches (`Trial.cost`); nan: not known
    """

    study: Study
    group: Group
    seeds: int
    point: Point
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learned: float = math.nan
    reached: float = math.nan

    def at(self, point: Point, trials: Iterable[Trial]) -> Case:
        """The case at another point of these trials, without its warmup and clipping."""
        point = plain(point)
        own = [
            t for t in trials if t.feasible and plain(t.point).configuration == point.configuration
        ]
        ends = [ends_at(trial.curve) for trial in own if len(trial.curve.loss)]
        costs = [trial.cost for trial in own if math.isfinite(trial.cost)]
        learned, reached = (fmean(each) if each else math.nan for each in (ends, costs))
        return replace(self, point=point, learned=learned, reached=reached)

    def judged(self, trials: Iterable[Trial]) -> list[Trial]:
        """Trials judged beside lr_star: above it, learning next to nothing counts as a collapse.

        The rule is that of `neighbours`, with lr_star for the lower base LR. Screening runs end too
        early for it, and another optimizer has base LRs of its own.
        """
        return [mark_collapsed(trial) if self._learns_nothing(trial) else trial for trial in trials]

    def _learns_nothing(self, trial: Trial) -> bool:
        point, study = trial.point, self.study
        alike = all(getattr(point, name) == getattr(self.point, name) for name in SAME_SCALE)
        whole = len(trial.curve.loss) >= study.max_train_steps
        if not (study.divergence and alike and whole and point.base_lr > self.point.base_lr):
            return False
        return learns_nothing(trial, self.learned, self.reached)

    def ask(
        self,
        step: str,
        base_lrs: Iterable[float],
        seeds: int,
        *,
        point: Point | None = None,
        first_seed: int | None = None,
        max_train_steps: int | None = None,
        stop_after: int | None = None,
        every_step: bool = False,
        **axes: Sequence[float],
    ) -> Study:
        """A study of these base LRs, on `seeds` seeds each.

        It has every combination with the values of other `axes`. All else is `point`'s, by default
        the case's own. Warmup is prepended (R11); `every_step` evaluates at each. Seeds begin after
        those of the sweep, so that nothing is trained twice.
        """
        origin = self.study
        steps = max_train_steps or origin.max_train_steps
        return pin(
            origin,
            point or self.point,
            f"{label(self.group)}-{as_file(step)}",
            axes={name: list(dict.fromkeys(values)) for name, values in axes.items()}
            | {"base_lr": list(dict.fromkeys(base_lrs))},
            question=f"{self.group.label}: {step}",
            max_train_steps=steps,
            stop_after=stop_after,
            sampler="grid",
            seed=origin.seed + origin.most_seeds if first_seed is None else first_seed,
            seeds=seeds,
            evaluations=steps if every_step else math.ceil(steps / origin.evaluate_every),
            prepend_warmup=True,
            keep_checkpoints=1,
        )


def label(group: Group) -> str:
    """A group's name as part of a file's."""
    values = [
        group.optimizer,
        str(group.batch_size),
        *(f"{name}={value}" for name, value in group.scientific),
    ]
    return as_file("-".join(values))


def as_file(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.=+-]", "_", text)


def sweep_of(study: Study) -> Study:
    """The study without warmup and clipping; the study itself if it has neither."""
    axes = [study.axes(optimizer) for optimizer in study.optimizers]
    if all(own[axis] == (off,) for own in axes for axis, off in OFF.items()):
        return study
    document = study.model_dump(
        exclude={"name", "source"}, exclude_defaults=True, exclude_none=True
    )
    for table in (document["space"], *document["space"]["optimizer"].values()):
        for axis in OFF:
            table.pop(axis, None)
    document["scientific"] = [name for name in study.scientific if name not in OFF]
    if study.sampling.is_adaptive:
        document["sampler"] = "halton"
    name = "sweep" if study.name != "sweep" else "plain-sweep"
    return parse_study(
        document, name, place=f"{study.name}: {name}", source=tomli_w.dumps(document)
    )


def train_all(*studies: Study) -> Asking[list[list[Trial]]]:
    """The trials of each study."""
    answers = yield list(studies)
    return [answers[study.name] for study in studies]


def together(*parts: Asking[T]) -> Asking[list[T]]:
    """Run several procedures side by side, and return what each returns.

    Studies that they ask for at the same time are trained together.
    """
    results: dict[int, T] = {}
    asked: dict[int, list[Study]] = {}

    def go_on(i: int, answers: Answers | None) -> None:
        try:
            asked[i] = next(parts[i]) if answers is None else parts[i].send(answers)
        except StopIteration as done:
            results[i] = done.value
            asked.pop(i, None)

    for i in range(len(parts)):
        go_on(i, None)
    while asked:
        answers = yield list(
            {study.name: study for own in asked.values() for study in own}.values()
        )
        for i in list(asked):
            go_on(i, {study.name: answers[study.name] for study in asked[i]})
    return [results[i] for i in range(len(parts))]


def both(first: Asking[T], second: Asking[U]) -> Asking[tuple[T, U]]:
    """`together` of two procedures that return different things."""
    parts: list[Asking[Any]] = [first, second]
    found = yield from together(*parts)
    return found[0], found[1]


def plain(point: Point) -> Point:
    """A point without warmup and clipping."""
    return replace(point, **OFF)
