"""How much each hyperparameter matters, within one optimizer.

Over all optimizers the question has no answer: each has base LRs of its own, so the optimizer takes
the credit for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from ..study.adaptive import quiet_optuna

FEWEST = 10  # feasible trials of an optimizer: fewer say nothing of several hyperparameters
MOST = 500  # more take seconds, and change little
SEED = 0  # the same trials, the same words


def importances(
    trials: Sequence[FrozenTrial], direction: Literal["minimize", "maximize"]
) -> dict[str, float]:
    """The share of the objective's variance that each hyperparameter explains (fANOVA).

    `trials` are those of one optimizer; parameters that not all of them have are left out. Only
    feasible ones count; evenly spaced ones if they are many. Empty if they are too few, if all have
    the same value, or if fewer than two hyperparameters vary. Source: Hutter et al. 2014.
    """
    feasible = [trial for trial in trials if is_feasible(trial)]
    own = feasible[:: len(feasible) // MOST + 1]
    if len(own) < FEWEST or len({trial.value for trial in own}) == 1:
        return {}
    shared = [name for name in own[0].params if all(name in one.params for one in own)]
    varied = [name for name in shared if len({str(one.params[name]) for one in own}) > 1]
    if len(varied) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=SEED)
    with quiet_optuna():
        study = optuna.create_study(direction=direction)
        study.add_trials(own)
        return get_param_importances(study, evaluator=evaluator, params=varied)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial of ours trained."""
    return trial.state == TrialState.COMPLETE and trial.user_attrs.get("verdict") == "feasible"
