"""Optuna Dashboard on a study: infeasible trials drawn infeasible, the best trial the best feasible one.

Optuna Dashboard 0.21 does not read Optuna 5's constraints: left alone it draws every trial as feasible and
may call a diverged one the best. Here it is served through a storage that shows trials as it expects them.
Only notes can be edited in the browser: trials are written by the driver of a run alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .baseline import artifact_store
from .dashboard_notes import annotate
from .errors import UserError
from .files import parse_trial
from .storage import RECORD, Store, read_trials

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"  # loopback: whoever can open the page can edit the notes
READ_ONLY = "Only notes can be edited here: studies and trials are written by `tunewright run` alone."


def serve(store: Store, port: int) -> None:
    """Write the verdicts into the study's notes, then serve Optuna Dashboard until Ctrl-C.

    Works while a run is going on. Port 0 is any free one. Raises UserError as `listen`.
    """
    any_study = next(iter(store.optuna_studies.values()))
    app = application(any_study._storage, store.folder)
    with suppress(KeyboardInterrupt), listen(app, port) as server:
        annotate(store, read_trials(store))
        print(f"Optuna Dashboard: http://{HOST}:{server.server_port}/dashboard (Ctrl-C stops it)", flush=True)
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
        raise UserError(f"--port: cannot listen on port {port}: {error.strerror}; 0 = any free port") from error


def application(storage: optuna.storages.BaseStorage, folder: Path) -> WSGIApplication:
    """Optuna Dashboard over a storage of `storage.open_storage` and a folder's artifacts, as a WSGI application."""
    dashboard = optuna_dashboard.wsgi(_DashboardStorage(_backend(storage)), artifact_store(folder))

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        note = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("/note")
        if note or environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer: Iterable[bytes] = dashboard(environ, start_response)
            return answer
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": READ_ONLY}).encode()]

    return guarded


def _backend(storage: optuna.storages.BaseStorage) -> optuna.storages.RDBStorage:
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, optuna.storages.RDBStorage):
        raise TypeError(f"a storage in a database is needed, got {type(backend).__name__}")
    return backend


class _DashboardStorage(_CachedStorage):
    """A storage that shows trials as Optuna Dashboard 0.21 expects them, and ranks infeasible trials last."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _shown(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [_shown(trial) for trial in super().get_all_trials(study_id, deepcopy, states)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial; where all are infeasible, the one nearest to feasible.

        The dashboard has no page for a study without a best trial. Raises ValueError if none is complete.
        """
        trials = super().get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE else 1
        keys = {trial.number: (_violation(trial), sign * (trial.value or 0.0)) for trial in trials}
        best = min(keys.values())
        return _shown(min((trial for trial in trials if keys[trial.number] == best), key=_base_lr))


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
    """What breaks a tie, as in `analysis.ranked`: the smaller base_lr, which is farther from the edge."""
    try:
        return parse_trial(trial.user_attrs[RECORD]).point.base_lr, trial.number
    except (KeyError, ValueError):  # somebody else's trial, or a damaged one
        return 0.0, trial.number


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open browser must not keep Ctrl-C waiting


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """The page asks for news every few seconds: not worth a line each."""
