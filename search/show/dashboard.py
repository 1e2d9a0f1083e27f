"""Optuna Dashboard on a study: infeasible trials drawn infeasible, the best trial the best feasible
one.

Optuna Dashboard 0.21 does not read Optuna 5's constraints: left alone it draws every trial as
feasible and may call a diverged one the best. Here it is served through a storage that shows trials
as it expects them. Only notes can be edited in the browser: trials are written by the driver of a
run alone.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from ..errors import UserError
from ..signals import defer_signals, stop_if_asked
from ..store.baseline import artifact_store
from ..store.files import parse_trial
from ..store.storage import RECORD, Store, read_trials
from .guard import guarded
from .notes import annotate

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

HOST = "127.0.0.1"  # loopback: whoever can open the page can edit the notes
# prefix of the attributes in which Optuna Dashboard keeps parts of figures
PLOT_DATA = "dashboard:plot_data:"
SECONDS_OF_SILENCE = 60  # after which a connection is closed that sends nothing


def serve(store: Store, port: int) -> None:
    """Write the verdicts into the study's notes, then serve Optuna Dashboard until Ctrl-C.

    Works while a run is going on. Port 0 is any free one. Raises UserError as `listen`.
    """
    any_study = next(iter(store.optuna_studies.values()))
    app = application(any_study._storage, store.folder)
    with suppress(KeyboardInterrupt), defer_signals(), listen(app, port) as server:
        annotate(store, read_trials(store))
        print(
            f"Optuna Dashboard: http://{HOST}:{server.server_port}/dashboard (Ctrl-C stops it)",
            flush=True,
        )
        server.serve_forever()


def listen(app: WSGIApplication, port: int) -> WSGIServer:
    """A server on loopback that answers each request in a thread of its own.

    Raises UserError if the port is in use, reserved or no port at all.
    """
    try:
        return make_server(HOST, port, app, _ThreadedServer, _QuietHandler)
    except OverflowError as error:
        raise UserError(f"--port: must be between 0 and 65535, got {port}") from error
    except OSError as error:
        raise UserError(
            f"--port: cannot listen on port {port}: {error.strerror}; 0 = any free port"
        ) from error


def application(storage: optuna.storages.BaseStorage, folder: Path) -> WSGIApplication:
    """Optuna Dashboard over a storage of `storage.open_storage` and a folder's artifacts, as a WSGI
    application.
    """
    shown = _DashboardStorage(_backend(storage))
    artifacts = artifact_store(folder)
    dashboard = optuna_dashboard.wsgi(shown, artifacts)
    return guarded(dashboard, shown.has_study, shown.has_trial)


def _backend(storage: optuna.storages.BaseStorage) -> optuna.storages.RDBStorage:
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, optuna.storages.RDBStorage):
        raise TypeError(f"a storage in a database is needed, got {type(backend).__name__}")
    return backend


class _DashboardStorage(_CachedStorage):
    """A storage that shows trials as Optuna Dashboard 0.21 expects them, and ranks infeasible
    trials last.
    """

    def __init__(self, backend: optuna.storages.RDBStorage) -> None:
        super().__init__(backend)
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
        """All studies, a figure as one attribute.

        Optuna Dashboard looks through all attributes of a study for the artifacts of each trial; of
        a figure of n trials, stored in parts of 2,045 characters, there are as many as n/8, and a
        page then takes n² steps.
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
            return _shown(trial)
        if trial._trial_id not in self._finished:
            self._finished[trial._trial_id] = _shown(trial)
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
        return _shown(min((trial for trial in trials if keys[trial.number] == best), key=_base_lr))


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


def _shown(trial: FrozenTrial) -> FrozenTrial:
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
    """What breaks a tie, as in `analysis.ranked`: the smaller base_lr, which is farther from the
    edge.
    """
    try:
        return parse_trial(trial.user_attrs[RECORD]).point.base_lr, trial.number
    except (KeyError, ValueError):  # somebody else's trial, or a damaged one
        return 0.0, trial.number


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open browser must not keep Ctrl-C waiting

    def service_actions(self) -> None:
        """Called between two looks for requests, twice a second."""
        super().service_actions()
        stop_if_asked()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that left before its answer came: not worth a traceback. What the program did
        wrong is.
        """
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _QuietHandler(WSGIRequestHandler):
    timeout = SECONDS_OF_SILENCE
    # of a line that is no request: its answer then has a status
    default_request_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:
        """The page asks for news every few seconds: not worth a line each."""
