"""Trials as Optuna Dashboard expects them: infeasible ones are marked, the best is feasible.

And every trial has the number of its point, whenever it was stored.

Optuna Dashboard 0.21 does not read Optuna 5's constraints: left alone it draws every trial as
feasible and may call a diverged one the best.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from itertools import count
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from .files import parse_trial
from .rows import RECORD, Numbered, backend_of, numbers_of
from .storage import BATCH_SIZE

# prefix of the attributes in which Optuna Dashboard keeps parts of figures
PLOT_DATA = "dashboard:plot_data:"


class ShownStorage(_CachedStorage):
    """A storage that shows trials as Optuna Dashboard 0.21 expects them.

    It ranks infeasible trials last.
    """

    def __init__(
        self, storage: BaseStorage, diagnosed: str = "", steps: Container[str] = ()
    ) -> None:
        """Over a storage of `database.open_storage`.

        `steps`: names of the studies that are steps of the diagnosis of the study `diagnosed`.
        """
        self._diagnosed, self._steps = diagnosed, steps
        super().__init__(backend_of(storage))
        self._finished: dict[int, FrozenTrial] = {}  # as shown, by id
        self._imported: dict[int, bool] = {}  # by the id of a study

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
        """All studies as they were begun, steps by names in words, each figure as one attribute.

        Optuna Dashboard looks through all attributes of a study for the artifacts of each trial. A
        figure of n trials is stored in up to n/8 attributes of 2,045 characters, so a page would
        take n² steps.
        """
        studies = sorted(super().get_all_studies(), key=lambda study: study._study_id)
        shown = [_with_whole_figures(study) for study in studies]
        number = count(1)
        for study in shown:
            if study.study_name.rpartition(BATCH_SIZE)[0] in self._steps:
                study.study_name = self._step_in_words(study, next(number))
        return shown

    def _step_in_words(self, study: FrozenStudy, number: int) -> str:
        """The question of a step says its group and its name."""
        document = study.user_attrs.get("study", {})
        question = document.get("question") or study.study_name
        group, colon, step = question.rpartition(": ")
        return f"{self._diagnosed} · {number:02d} {group}{colon}{step.replace('-', ' ')}"

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = super().get_trial(trial_id)
        point = Numbered.of(trial).point
        return self._as_shown(trial, trial.number if point is None else point)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """By number. A number below others that no trial has yet is that of one that waits.

        While a run is going on, an open page asks only for what stands after the first trial that
        it has not seen finished, and so must see the gaps.
        """
        shown = self._by_number(study_id)
        if shown and not self._is_imported(study_id):
            gaps = set(range(max(shown))).difference(shown)
            shown |= {number: _waiting(number) for number in gaps}
        trials = [shown[number] for number in sorted(shown)]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _by_number(self, study_id: int) -> dict[int, FrozenTrial]:
        stored = super().get_all_trials(study_id, deepcopy=False)
        numbers = numbers_of([Numbered.of(trial) for trial in stored])
        return {
            numbers[trial._trial_id]: self._as_shown(trial, numbers[trial._trial_id])
            for trial in stored
        }

    def _is_imported(self, study_id: int) -> bool:
        """Whether its trials come from elsewhere: then some numbers are those of none for ever."""
        if study_id not in self._imported:
            document = self.get_study_user_attrs(study_id).get("study", {})
            self._imported[study_id] = "imported" in document
        return self._imported[study_id]

    def _as_shown(self, trial: FrozenTrial, number: int) -> FrozenTrial:
        known = self._finished.get(trial._trial_id)
        if known and known.number == number:
            return known
        shown = _with_constraints_list(trial, number)
        if trial.state.is_finished():
            self._finished[trial._trial_id] = shown
        return shown

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; where all are infeasible, the one nearest to feasible.

        The dashboard has no page for a study without a best trial. Raises ValueError if none is
        complete.
        """
        trials = super().get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE else 1
        keys = {
            trial._trial_id: (_violation(trial), sign * (trial.value or 0.0)) for trial in trials
        }
        best = min(keys.values())
        chosen = min((trial for trial in trials if keys[trial._trial_id] == best), key=_base_lr)
        return self.get_trial(chosen._trial_id)


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


def _waiting(number: int) -> FrozenTrial:
    """A trial that has not been trained yet. No row has its id."""
    trial = create_trial(state=TrialState.WAITING)
    trial.number, trial._trial_id = number, -1 - number
    return trial


def _with_constraints_list(trial: FrozenTrial, number: int) -> FrozenTrial:
    """A copy with the constraints in the list of Optuna 4, and without our machine-readable record.

    The list is never stored: Optuna would count every violation twice.
    """
    shown = copy.copy(trial)
    shown.number = number
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
