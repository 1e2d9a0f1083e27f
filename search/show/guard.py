"""Which requests the dashboard's server answers, checked before Optuna Dashboard sees them.

A page of another site can make the browser ask a server on this machine, under its own name (DNS
rebinding) or another's (a form, a script). So a request must name the server as this machine does,
and come from no other origin. To a request that it does not expect, Optuna Dashboard answers 500
and a traceback; here the answer is 400, or 404 for something that is not there.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
HTTP_PORT = "80"  # which a browser leaves out
LONGEST_NOTE = 2**20  # bytes of a request with a note; verdicts take some thousands
LARGEST_ID = 2**31 - 1  # of a study or trial, in the databases that Optuna writes
MOST_DIGITS = 10  # of an id, and of a number of trials
# of a study with one objective
PLOTS = ("contour", "slice", "parallel_coordinate", "rank", "edf", "timeline")
READ_ONLY = (
    "Only notes can be edited here: studies and trials are written by `tunewright run` alone."
)

STUDY = re.compile(r"/(?:api/studies|csv|artifacts)/(?P<study>-?\d+)(?P<rest>/.*)?")
NOTE = re.compile(r"(?:/-?\d+)?/note")
TRIAL = re.compile(r"/(?P<trial>-?\d+)/")
PLOT = re.compile(r"/plot/(?P<plot>.*)")

# Plotly's parallel coordinates compile functions; MUI writes styles into the page; Plotly makes
# pictures of blobs.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
ARTIFACT_POLICY = "default-src 'none'; sandbox"  # somebody's file, which may be HTML
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class RefusedError(Exception):
    """A request that is not passed on: its status line, and a sentence for whoever sent it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


Known = Callable[[int], bool]  # whether there is a study, or a trial, of that id


def guard_app(app: WSGIApplication, has_study: Known, has_trial: Known) -> WSGIApplication:
    """The application, asked only what it can answer and only by this machine's own pages.

    Answers have a Content-Security-Policy, and no header that lets other origins read them.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        artifact = str(environ.get("PATH_INFO", "")).startswith("/artifacts/")

        def start(status: str, headers: list[tuple[str, str]], *exc_info: object) -> object:
            own = [(name, value) for name, value in headers if not _is_replaced(name)]
            policy = ARTIFACT_POLICY if artifact else PAGE_POLICY
            own += [*HEADERS, ("Content-Security-Policy", policy)]
            return start_response(status, own, *exc_info)  # type: ignore[arg-type]

        try:
            _check_sender(environ)
            _check_request(environ, has_study, has_trial)
        except RefusedError as refused:
            body = json.dumps({"reason": str(refused)}).encode()
            start(
                refused.status,
                [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
            )
            return [body]
        return app(environ, start)  # type: ignore[arg-type]

    return answer


def _is_replaced(name: str) -> bool:
    name = name.lower()
    return name == "content-security-policy" or name.startswith("access-control-")


def _check_sender(environ: WSGIEnvironment) -> None:
    """Raise RefusedError unless Host is this server, and so is Origin, if there is one."""
    port = environ.get("SERVER_PORT", "")
    names = {f"{name}:{port}" for name in OWN_NAMES}
    if port == HTTP_PORT:
        names |= set(OWN_NAMES)
    host = environ.get("HTTP_HOST")
    if host is None:
        raise RefusedError("400 Bad Request", "A request needs a Host header.")
    if host.lower() not in names:
        raise RefusedError(
            "403 Forbidden", f"This server is {OWN_NAMES[0]}:{port}, and answers to no other name."
        )
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.lower() not in {f"http://{name}" for name in names}:
        raise RefusedError("403 Forbidden", "Pages of other sites may not ask here.")


def _check_request(environ: WSGIEnvironment, has_study: Known, has_trial: Known) -> None:
    """Raise RefusedError for a request that is not allowed, or on which Optuna Dashboard fails."""
    environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # Optuna Dashboard expects it to be there
    path, method = str(environ.get("PATH_INFO", "")).rstrip("/"), environ["REQUEST_METHOD"]
    found = STUDY.fullmatch(path)
    rest = (found["rest"] or "") if found else ""
    note = found is not None and path.startswith("/api/") and NOTE.fullmatch(rest) is not None
    if method not in ("GET", "HEAD") and not (method == "PUT" and note):
        raise RefusedError("403 Forbidden", READ_ONLY)
    if found is not None:
        _check_there(found["study"], rest, has_study, has_trial)
    query = parse_qs(str(environ.get("QUERY_STRING", "")), keep_blank_values=True)
    for after in query.get("after", []):
        if not _is_id(after):
            raise RefusedError("400 Bad Request", "`after` must be a number of trials.")
    if method == "PUT":
        _check_note(environ)


def _check_there(study: str, rest: str, has_study: Known, has_trial: Known) -> None:
    if not _is_id(study) or not has_study(int(study)):
        raise RefusedError("404 Not Found", "There is no such study.")
    trial = TRIAL.match(rest)
    if trial and not (_is_id(trial["trial"]) and has_trial(int(trial["trial"]))):
        raise RefusedError("404 Not Found", "There is no such trial.")
    plot = PLOT.fullmatch(rest)
    if plot and plot["plot"] not in PLOTS:
        raise RefusedError("404 Not Found", f"There is no such plot; there are {', '.join(PLOTS)}.")


def _is_id(text: str) -> bool:
    return (
        text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) <= LARGEST_ID
    )


def _check_note(environ: WSGIEnvironment) -> None:
    """Raise RefusedError unless the body is a note as the page sends it: a version and a text."""
    length = str(environ.get("CONTENT_LENGTH") or "")
    if not _is_id(length):
        raise RefusedError("400 Bad Request", "A note needs a Content-Length.")
    if int(length) > LONGEST_NOTE:
        raise RefusedError("413 Content Too Large", f"A note may have {LONGEST_NOTE} bytes.")
    body = environ["wsgi.input"].read(int(length))
    try:
        note = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError("400 Bad Request", "A note must be JSON.") from error
    fields = note if isinstance(note, dict) else {}
    version, text = fields.get("version"), fields.get("body")
    if isinstance(version, bool) or not isinstance(version, int) or not isinstance(text, str):
        raise RefusedError(
            "400 Bad Request", "A note must have a version, a number, and a body, a text."
        )
    environ["CONTENT_TYPE"] = "application/json"
    environ["wsgi.input"] = io.BytesIO(body)
