"""Networks whose illness is known, as studies, and the procedure followed in this process with real
trainings.

Shared by edges.py, which measures where they become unstable, and by
tests/judge/test_ground_truth.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunewright.search.judge.diagnosis import GroupDiagnosis, Step
from tunewright.search.procedure.group import diagnosis_of
from tunewright.search.procedure.steps import Case, label, sweep_of
from tunewright.search.study.sampling import next_points
from tunewright.search.study.study import Study, parse_study
from tunewright.search.threads import torch_threads
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Trial
from tunewright.search.workload.workload import load_workload

# trials in one stack: for networks as small as these, several times as fast as one after the other
SLOTS = 32
# all before the remedies
FIRST_PART = ("sweep", "close", "above", "below", "edge", "probe", "confirm")
SEEDS = 5  # trainings that a finding rests on: the default of `tunewright diagnose`


def _study(
    name: str, workload: str, optimizer: str, low: float, steps: int = 200, **workload_args: Any
) -> Study:
    """A study of three decades of base LR from `low` on, two of them in each."""
    base_lr = {"low": low, "high": 1000 * low, "log": True, "points": 7}
    document = {
        "workload": f"tunewright.models.{workload}",
        "workload_args": workload_args,
        "objective": "val_loss",
        "max_train_steps": steps,
        "evaluations": 10,
        "batch_sizes": [32],
        "sampler": "grid",
        "space": {"optimizer": {optimizer: {"base_lr": base_lr}}},
    }
    return parse_study(document, name, place=__file__)


RESIDUAL_MLP, ON_CUE = "residual_mlp:digits", "on_cue:linear"
STUDIES = {
    study.name: study
    for study in (
        _study("healthy", RESIDUAL_MLP, "momentum", 1e-3, normalization="pre", depth=4),
        # Nothing bounds the residual stream.
        _study("no_norm", RESIDUAL_MLP, "momentum", 1e-3, normalization="none", depth=12),
        # Normalized block by block, the stream forgets its input; most trainings end at chance
        # without having learned.
        _study("post_norm", RESIDUAL_MLP, "adam", 1e-4, normalization="post", depth=32, width=16),
        # Each block adds to the stream what is as large as its input: a blow-up at once, from which
        # training recovers.
        _study(
            "branch_out",
            RESIDUAL_MLP,
            "momentum",
            1e-4,
            100,
            normalization="branch_out",
            depth=24,
            width=32,
        ),
        # At step 80, whatever the base LR.
        *(
            _study(kind, ON_CUE, "momentum", 1e-3, kind=kind, cue_step=80)
            for kind in ("spike", "blow_up", "nan")
        ),
    )
}


@dataclass(frozen=True)
class Followed:
    """A diagnosis, and the trials of every study that it asked for, by the step's name; none of
    those left out.
    """

    found: GroupDiagnosis
    trials: Mapping[str, Sequence[Trial]]

    def step(self, name: str) -> Step:
        return next(step for step in self.found.steps if step.name == name)

    def at(self, name: str) -> list[Trial]:
        """The trials of a step, of all its rounds."""
        return [
            trial for own, trials in self.trials.items() if own.startswith(name) for trial in trials
        ]

    def spent(self, *steps: str) -> int:
        """Trainings of these steps."""
        return sum(len(self.at(name)) for name in steps)


def follow(study: Study, steps: Collection[str] = FIRST_PART, seed: int = 0) -> Followed:
    """The procedure for the study's only group, on seeds from `seed` on. Only these steps are
    trained.

    The others are answered as `tunewright diagnose` does where the budget has come to its end.
    """
    study = study.model_copy(update={"seed": seed})
    (group,) = sweep_of(study).groups(study.batch_sizes[0])
    procedure = diagnosis_of(study, group, SEEDS, {})
    asked = next(procedure)
    trials: dict[str, list[Trial]] = {}
    while True:
        answers: dict[str, list[Trial]] = {}
        for one in asked:
            step = "sweep" if one.name == study.name else one.name.removeprefix(f"{label(group)}-")
            trials[step] = answers[one.name] = (
                trials_of(one) if step.startswith(tuple(steps)) else []
            )
        try:
            asked = procedure.send(answers)
        except StopIteration as done:
            return Followed(done.value, trials)


def case_at(
    study: Study, lr_star: float, trials: Sequence[Trial] = (), learned: float = math.nan
) -> Case:
    """The study's only group under diagnosis, at this lr_star; what is learned there is given or
    taken from trials.
    """
    (group,) = study.groups(study.batch_sizes[0])
    point = replace(next_points(study, [])[0], base_lr=lr_star)
    case = Case(study, group, SEEDS, point)
    return case.at(point, trials) if trials else replace(case, learned=learned)


def trials_of(study: Study) -> list[Trial]:
    """The trials of a study of one batch size and one network, in the order of its plan."""
    points = next_points(study, [])
    workload = load_workload(study.workload, points[0].workload_args)
    engine = Engine(stacked=True, slots=min(SLOTS, len(points)))
    with torch_threads():
        found = [one.trial for one in train(study, workload, points, engine)]
    return sorted(found, key=lambda trial: trial.point.number)
