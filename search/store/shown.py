"""Trials as Optuna Dashboard expects them: infeasible ones are marked, the best is feasible.

Optuna Dashboard 0.21 does not read Optuna 5's constraints: left alone it draws every trial as
feasible and may call a diverged one the best.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from .files import parse_trial
from .storage import RECORD

# prefix of the attributes in which Optuna Dashboard keeps parts of figures
PLOT_DATA = "dashboard:plot_data:"


class ShownStorage(_CachedStorage):
    """A storage that shows trials as Optuna Dashboard 0.21 expects them.

    It ranks infeasible trials last.
    """

    def __init__(self, storage: BaseStorage) -> None:
        """Over a storage of `database.open_storage`."""
        super().__init__(_backend(storage))
        self._finished: dict[int, FrozenTrial] = {}  # as shown, by id: they never change

    def has_study(self, study_id: int) -> bool:
        try:
            self.get_study_name_from_id(study_id)
        except KeyError:
            return False
        return True

    def has_trial(self, trial_id: int) -> bool:
        try:
            self.get_trial(trial_id)
        except KeyError:
            return False
        return True

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies, with each figure as one attribute.

        Optuna Dashboard looks through all attributes of a study for the artifacts of each trial. A
        figure of n trials is stored in up to n/8 attributes of 2,045 characters, so a page would
        take n² steps.
        """
        return [_with_whole_figures(study) for study in super().get_all_studies()]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._as_shown(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [
            self._as_shown(trial) for trial in super().get_all_trials(study_id, False, states)
        ]
        return copy.deepcopy(trials) if deepcopy else trials

    def _as_shown(self, trial: FrozenTrial) -> FrozenTrial:
        if not trial.state.is_finished():
            return _with_constraints_list(trial)
        if trial._trial_id not in self._finished:
            self._finished[trial._trial_id] = _with_constraints_list(trial)
        return self._finished[trial._trial_id]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; where all are infeasible, the one nearest to feasible.

        The dashboard has no page for a study without a best trial. Raises ValueError if none is
        complete.
        """
        trials = super().get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE else 1
        keys = {trial.number: (_violation(trial), sign * (trial.value or 0.0)) for trial in trials}
        best = min(keys.values())
        return _with_constraints_list(
            min((trial for trial in trials if keys[trial.number] == best), key=_base_lr)
        )


def _with_whole_figures(study: FrozenStudy) -> FrozenStudy:
    """A copy with the parts of each figure put together in its first attribute."""
    whole: dict[str, Any] = {}
    parts: dict[str, dict[int, str]] = {}
    for name, value in study.system_attrs.items():
        figure, _, number = name.rpartition(":")
        if name.startswith(PLOT_DATA) and number.isdigit():
            parts.setdefault(figure, {})[int(number)] = value
        else:
            whole[name] = value
    for figure, own in parts.items():
        whole[f"{figure}:0"] = "".join(own[number] for number in sorted(own))
    shown = copy.copy(study)
    shown.system_attrs = whole
    return shown


def _with_constraints_list(trial: FrozenTrial) -> FrozenTrial:
    """A copy with the constraints in the list of Optuna 4, and without our machine-readable record.

    The list is never stored: Optuna would count every violation twice.
    """
    shown = copy.copy(trial)
    shown.system_attrs = {**trial.system_attrs, "constraints": list(trial.constraints.values())}
    shown.user_attrs = {name: value for name, value in trial.user_attrs.items() if name != RECORD}
    return shown


def _violation(trial: FrozenTrial) -> float:
    return sum(max(0.0, value) for value in trial.constraints.values())


def _base_lr(trial: FrozenTrial) -> tuple[float, int]:
    """A key that breaks ties by the smaller base_lr, which is farther from the edge.

    As in `analysis.rank_configurations`.
    """
    try:
        return parse_trial(trial.user_attrs[RECORD]).point.base_lr, trial.number
    except (KeyError, ValueError):  # somebody else's trial, or a damaged one
        return 0.0, trial.number


def _backend(storage: BaseStorage) -> RDBStorage:
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, RDBStorage):
        raise TypeError(f"a storage in a database is needed, got {type(backend).__name__}")
    return backend
