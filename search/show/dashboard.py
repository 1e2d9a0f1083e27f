"""Optuna Dashboard on a study, whose trials are shown as it expects them (`store.shown`).

Only notes can be edited in the browser: trials are written by the driver of a run alone.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from ..errors import UserError
from ..signals import defer_signals, stop_if_asked
from ..store.baseline import artifact_store
from ..store.places import STEPS
from ..store.results import Results
from ..store.shown import ShownStorage
from ..store.storage import Store
from .guard import guard_app
from .notes import annotate

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

HOST = "127.0.0.1"  # loopback: whoever can open the page can edit the notes
SECONDS_OF_SILENCE = 60  # after which a connection is closed that sends nothing


def serve(store: Store, port: int) -> None:
    """Write the verdicts into the study's notes, then serve Optuna Dashboard until Ctrl-C.

    Works while a run is going on. Port 0 is any free one. Raises UserError as `listen`.
    """
    any_study = next(iter(store.optuna_studies.values()))
    steps = {path.name for path in (store.folder / STEPS).glob("*")}
    shown = ShownStorage(any_study._storage, store.study.name, steps)
    app = application(shown, store.folder)
    with suppress(KeyboardInterrupt), defer_signals(), listen(app, port) as server:
        annotate(Results.read(store), importance=True)
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


def application(shown: ShownStorage, folder: Path) -> WSGIApplication:
    """Optuna Dashboard over a storage and a folder's artifacts, as a WSGI application."""
    artifacts = artifact_store(folder)
    dashboard = optuna_dashboard.wsgi(shown, artifacts)
    return guard_app(dashboard, shown.has_study, shown.has_trial)


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open browser must not keep Ctrl-C waiting

    def service_actions(self) -> None:
        """Called about twice a second, between two requests."""
        super().service_actions()
        stop_if_asked()

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over a browser that left before its answer came; print any other error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _QuietHandler(WSGIRequestHandler):
    timeout = SECONDS_OF_SILENCE
    # for a line that is no request, so that its answer has a status
    default_request_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:
        """The page asks for news every few seconds: not worth a line each."""
