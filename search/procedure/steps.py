"""Steps of a diagnosis: the case that is diagnosed, and the studies that are asked for it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import tomli_w

from ..judge.neighbours import ends_at, learns_nothing, mark_collapsed
from ..rules.hyperparameters import HYPERPARAMETERS
from ..study.pinned import pin
from ..study.study import Study, parse_study
from ..trial import COMMON, Group, Point, Trial
from .purse import Purse

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
    purse          what the group may spend
    reserve        updates that what comes later decides with: no earlier step may take them
    """

    study: Study
    group: Group
    seeds: int
    point: Point
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learned: float = math.nan
    reached: float = math.nan
    purse: Purse = field(default_factory=Purse)
    reserve: float = 0

    @property
    def steps(self) -> int:
        """Updates of a training of the study at the group's batch size, its warmup left out."""
        return self.study.train_steps(self.group.batch_size)

    @property
    def first_seed(self) -> int:
        """Of the steps: those of the sweep come before."""
        return self.study.seed + self.study.most_seeds

    def pays(self, what: str, *studies: Study) -> bool:
        """Whether the budget has room for studies, which are paid for then; `what` names them."""
        return self.purse.pays(what, studies, self.reserve)

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
        whole = len(trial.curve.loss) >= self.steps
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
        those of the sweep, so that nothing is trained twice. A study that the budget shaped has it
        in its name: with another budget it may be another one.
        """
        origin = self.study
        steps = max_train_steps or self.steps
        every = 1 if every_step else origin.evaluate_every(self.group.batch_size)
        return pin(
            origin,
            point or self.point,
            f"{label(self.group)}-{as_file(step)}{self.purse.suffix}",
            axes={name: list(dict.fromkeys(values)) for name, values in axes.items()}
            | {"base_lr": list(dict.fromkeys(base_lrs))},
            question=f"{self.group.label}: {step}",
            max_train_steps=steps,
            stop_after=stop_after,
            sampler="grid",
            seed=self.first_seed if first_seed is None else first_seed,
            seeds=seeds,
            evaluations=math.ceil(steps / every),
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


def plain(point: Point) -> Point:
    """A point without warmup and clipping."""
    return replace(point, **OFF)
