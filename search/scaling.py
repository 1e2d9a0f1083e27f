"""How base LR, stability and time to a target change with the batch size (`tunewright scaling`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import UserError
from .judge.scaled import ScalingReport, ScalingTold, told
from .judge.scaling import scalings
from .store.results import Results
from .study.study import Study
from .trial import Trial

FEWEST_BATCH_SIZES = 2  # of which a ratio is told; laws need three, which a note says


def scaling(
    results: Results, target: float | None = None, predict: Sequence[int] = ()
) -> ScalingReport:
    """What the trials of several batch sizes say, per optimizer and scientific value.

        results = tunewright.read_results("results/scaling_digits")
        print(tunewright.scaling(results, predict=[1024]).groups[0].sentence)

    Args:
        results: of a study with several batch sizes; three or more show a law
        target: of the objective, for the updates until it is reached; by default the best value
            that every batch size reaches
        predict: batch sizes to recommend a base LR for

    Updates to a target are counted on curves. Where the results came without their curves, they are
    those that scaling.json has, if it was asked for the same target.

    Raises UserError if there are fewer than two batch sizes, or the target is not finite.
    """
    study = results.study
    if target is not None and not math.isfinite(target):
        raise UserError(f"target: must be a finite value of {study.objective}, got {target}")
    sizes = sorted({trial.point.batch_size for trial in results.trials})
    if len(sizes) < FEWEST_BATCH_SIZES:
        there = f"batch size {sizes[0]} alone has results" if sizes else "there are no results"
        raise UserError(
            f"{study.name}: {there}: a law of the batch size needs three; give the study more "
            "`batch_sizes`, and run it again"
        )
    trials = [_with_plan(study, trial) for trial in results.trials]
    found = scalings(trials, study.objective, study.scientific_names, target, sorted(set(predict)))
    maximize = any(trial.maximize for trial in results.trials)
    report = ScalingReport(study.objective, maximize, target, tuple(map(told, found)))
    return report if _have_curves(results) else _with_targets(report, results.scaling)


def _with_plan(study: Study, trial: Trial) -> Trial:
    """A trial whose curve, also a lost one, has the number of updates that were planned."""
    planned = trial.curve.total_steps or study.updates(trial.point)
    return replace(trial, curve=replace(trial.curve, total_steps=planned))


def _have_curves(results: Results) -> bool:
    """Whether there are evaluations: results from git have the best one of each trial alone."""
    return any(len(trial.curve.eval_step) > 1 for trial in results.trials)


def _with_targets(report: ScalingReport, before: ScalingReport | None) -> ScalingReport:
    """The same with updates to a target as an earlier report has them, which saw the curves."""
    if before is None or before.target != report.target:
        return report
    earlier = {one.key: one for one in before.groups}
    return replace(report, groups=tuple(_with_target(one, earlier) for one in report.groups))


def _with_target(one: ScalingTold, earlier: Mapping[Any, ScalingTold]) -> ScalingTold:
    known = earlier.get(one.key)
    return replace(one, targets=known.targets, sentence=known.sentence) if known else one
