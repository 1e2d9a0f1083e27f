"""The dashboard's server answers this machine's own pages alone, and 400 to what is no request."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from stored import feasible, small_study

from tunewright.search.judge.comparison import Checkpoint
from tunewright.search.show.dashboard import application, listen
from tunewright.search.show.publish import write_results
from tunewright.search.store.baseline import tell_baseline
from tunewright.search.store.results import Results
from tunewright.search.store.shown import ShownStorage
from tunewright.search.store.storage import create_store, open_storage, tell
from tunewright.search.train.checkpoints import sha256

NOTE = "/api/studies/1/note"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a dashboard of a study of three trials and a baseline."""
    folder = tmp_path_factory.mktemp("served")
    store = create_store(small_study(), folder)
    for number in range(3):
        tell(store, feasible(number, 0.1, 0.05))
    (folder / "b.html").write_text("<script>alert(1)</script>")
    tell_baseline(store, Checkpoint(str(folder / "b.html"), sha256(folder / "b.html"), 0.001))
    write_results(Results.read(store))
    storage = open_storage(f"sqlite:///{store.folder / 'study.db'}")
    app = application(ShownStorage(storage), store.folder)
    with listen(app, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def send(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to bytes as they are."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(2**16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").splitlines()
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    return int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body


def ask(
    port: int, path: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    sent = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body))}
    sent |= {name.replace("_", "-"): value.format(port=port) for name, value in headers.items()}
    lines = [
        f"{method} {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in sent.items()),
        "",
        "",
    ]
    return send(port, "\r\n".join(lines).encode("latin-1") + body)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST:{port}"]
)
def test_it_answers_to_its_own_names(port: int, host: str) -> None:
    assert ask(port, "/api/studies", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example:{port}",
        "127.0.0.1.nip.io:{port}",
        "127.0.0.1:1",
        "localhost",
        "0.0.0.0:{port}",
        "user@localhost:{port}",
        "localhost:{port}@evil.example",
        "",
    ],
)
def test_it_answers_to_no_other_name(port: int, host: str) -> None:
    status, headers, body = ask(port, "/api/studies", Host=host)
    assert status == 403
    assert b"small" not in body
    assert "content-security-policy" in headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("http://localhost:{port}", 200),
        ("http://evil.example", 403),
        ("http://localhost:1", 403),
        ("https://localhost:{port}", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(port: int, origin: str, status: int) -> None:
    assert ask(port, "/api/studies", Origin=origin)[0] == status


def test_a_note_of_another_site_is_not_kept(port: int) -> None:
    version = json.loads(ask(port, "/api/studies/1")[2])["note"]["version"] + 1
    note = json.dumps({"version": version, "body": "theirs"}).encode()
    assert ask(port, NOTE, "PUT", note, Origin="http://evil.example")[0] == 403
    assert json.loads(ask(port, "/api/studies/1")[2])["note"]["version"] == version - 1
    assert (
        ask(port, NOTE, "PUT", note, Origin="http://localhost:{port}", Content_Type="text/plain")[0]
        == 204
    )
    assert json.loads(ask(port, "/api/studies/1")[2])["note"]["body"] == "theirs"


@pytest.mark.parametrize(
    "path", ["/dashboard", "/api/studies", "/static/bundle.js", "/favicon.ico", "/nowhere", "/"]
)
def test_every_answer_has_a_policy_and_none_lets_others_read_it(port: int, path: str) -> None:
    _, headers, _ = ask(port, path)
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src 'self' 'unsafe-eval'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not [name for name in headers if name.startswith("access-control-")]
    assert headers["x-content-type-options"] == "nosniff"


def test_an_artifact_is_a_file_and_never_a_page_of_the_dashboard(port: int) -> None:
    baseline = json.loads(ask(port, "/api/studies/1")[2])["trials"][-1]
    (artifact,) = baseline["artifacts"]
    path = f"/artifacts/1/{baseline['trial_id']}/{artifact['artifact_id']}"
    status, headers, body = ask(port, path)
    assert (status, body) == (200, b"<script>alert(1)</script>")
    assert "access-control-allow-origin" not in headers
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"


HOST = b"Host: 127.0.0.1:%d\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GARBAGE\r\n\r\n", {400}),
        (b"GET\r\n\r\n", {400}),
        (b"GET / HTTP/x\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + HOST, {403}),
        (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST, {404}),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST, {414}),
        (b"GET /api/studies/1?after=" + b"9" * 9_000 + b" HTTP/1.1\r\n" + HOST, {400}),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 70_000 + b"\r\n" + HOST, {431}),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + HOST, {431}),
        (b"PUT " + NOTE.encode() + b" HTTP/1.1\r\nContent-Length: abc\r\n" + HOST, {400}),
        (b"PUT " + NOTE.encode() + b" HTTP/1.1\r\nContent-Length: -1\r\n" + HOST, {400}),
        (b"PUT " + NOTE.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST, {400}),
        (b"PUT " + NOTE.encode() + b" HTTP/1.1\r\nContent-Length: 99\r\n" + HOST + b"{}", {400}),
        (b"PUT " + NOTE.encode() + b" HTTP/1.1\r\nContent-Length: 9999999\r\n" + HOST, {413}),
    ],
)
def test_what_is_no_request_is_answered_with_400(
    port: int, request_: bytes, statuses: set[int], capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, body = send(port, request_.replace(b"%d", str(port).encode()))
    assert status in statuses
    assert b"Traceback" not in body
    assert "Traceback" not in capfd.readouterr().err
    assert ask(port, "/api/studies")[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/studies/1?after=abc", 400),
        ("/api/studies/1?after=-1", 400),
        ("/api/studies/1?after=", 400),
        ("/api/studies/1?after=1e9", 400),
        ("/api/studies/1?after=%31", 200),
        ("/csv/1?trial_ids=a", 400),
        ("/csv/7", 404),
        ("/api/studies/7", 404),
        ("/api/studies/-1", 404),
        ("/api/studies/99999999999999999999", 404),
        ("/api/studies/" + "9" * 5_000, 404),
        ("/api/studies/7/plot/slice", 404),
        ("/api/studies/1/plot/pareto_front", 404),
        ("/api/studies/1/plot/%00", 404),
        ("/api/studies/7/param_importances", 404),
        ("/artifacts/1/7000/abc", 404),
        ("/artifacts/7/abc", 404),
        ("/artifacts/1/6f0d2c5a", 404),
        ("/static/%00", 404),
        ("/static/../study.db", 403),
        ("/static/bundle.js", 200),
        ("/favicon.ico", 200),
    ],
)
def test_a_wrong_path_or_query_is_never_an_error_of_the_program(
    port: int, path: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without an Accept-Encoding, too, which Optuna Dashboard takes for given."""
    assert ask(port, path)[0] == status
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"version": 1}',
        b'{"version": "1", "body": "x"}',
        b'{"version": true, "body": "x"}',
        b'{"version": 1e400, "body": "x"}',
        b'{"version": 1, "body": ["x"]}',
        b'{"version": 1, "body": "x"',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"version": ' + b"9" * 5_000 + b', "body": "x"}',
    ],
)
def test_what_is_no_note_is_answered_with_400(port: int, body: bytes) -> None:
    before = json.loads(ask(port, "/api/studies/1")[2])["note"]
    status, _, answer = ask(port, NOTE, "PUT", body, Content_Type="application/json")
    assert status == 400
    assert json.loads(answer)["reason"].startswith("A note must ")
    assert json.loads(ask(port, "/api/studies/1")[2])["note"] == before


@pytest.mark.parametrize("path", ["/api/studies/7/note", "/api/studies/1/7000/note"])
def test_a_note_on_what_is_not_there_is_not_kept(port: int, path: str) -> None:
    note = b'{"version": 1, "body": "x"}'
    assert ask(port, path, "PUT", note, Content_Type="application/json")[0] == 404
