import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.trial import TrialState
from stored import diverged, feasible, small_study

from tunewright.search.errors import UserError
from tunewright.search.judge.comparison import Checkpoint
from tunewright.search.show.dashboard import application, listen
from tunewright.search.show.guard import READ_ONLY
from tunewright.search.show.publish import write_results
from tunewright.search.store.baseline import tell_baseline
from tunewright.search.store.results import Results
from tunewright.search.store.shown import ShownStorage
from tunewright.search.store.storage import Store, create_store, open_storage, tell
from tunewright.search.train.checkpoints import sha256

BEST, WORSE = feasible(0, 0.1, 0.05), feasible(1, 0.01, 0.2)
EARLY, LATE = diverged(2, 5.0, onset_step=3), diverged(3, 1.0, onset_step=90)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(small_study(), tmp_path)


def url_of(store: Store) -> str:
    return f"sqlite:///{store.folder / 'study.db'}"


def ask(store: Store, path: str, method: str = "GET") -> tuple[str, Any]:
    """Status and JSON of one request to a fresh dashboard: an old one may answer from its cache."""
    return request(
        application(ShownStorage(open_storage(url_of(store))), store.folder), path, method
    )


def request(app: Any, path: str, method: str = "GET") -> tuple[str, Any]:
    status, body = answer(app, path, method)
    return status, json.loads(body) if body else None


def answer(app: Any, path: str, method: str = "GET") -> tuple[str, bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    chunks = app(environ, lambda status, headers, *_: statuses.append(status))
    body = b"".join(chunks)
    getattr(chunks, "close", lambda: None)()  # as a server does
    return statuses[0], body


def page(store: Store) -> Any:
    """The study page's JSON."""
    status, listing = ask(store, "/api/studies")
    assert status == "200 OK"
    (summary,) = listing["study_summaries"]
    status, document = ask(store, f"/api/studies/{summary['study_id']}")
    assert status == "200 OK"
    return document


def test_infeasible_trials_are_drawn_infeasible_and_feasible_ones_feasible(store: Store) -> None:
    for trial in (BEST, WORSE, EARLY, LATE):
        tell(store, trial)
    constraints = [trial["constraints"] for trial in page(store)["trials"]]
    assert constraints == [[-1.0], [-1.0], [0.97], [pytest.approx(0.1)]]


def test_the_best_trial_is_the_best_feasible_one(store: Store) -> None:
    for trial in (EARLY, WORSE, BEST, LATE):
        tell(store, trial)
    assert [trial["number"] for trial in page(store)["best_trials"]] == [0]


def test_the_best_trial_is_feasible_even_if_worse_than_an_untrained_model(store: Store) -> None:
    """Whose value is what an infeasible trial is stored with."""
    for trial in (EARLY, feasible(0, 0.1, best_value=0.95)):
        tell(store, trial)
    assert [trial["number"] for trial in page(store)["best_trials"]] == [0]


def test_a_tie_goes_to_the_smaller_learning_rate_as_lr_star_does(store: Store) -> None:
    for trial in (feasible(0, 0.4, 0.05), feasible(1, 0.1, 0.05), feasible(2, 0.2, 0.05)):
        tell(store, trial)
    assert [trial["number"] for trial in page(store)["best_trials"]] == [1]


def test_a_study_without_a_feasible_trial_has_a_page_and_shows_the_trial_nearest_to_feasible(
    store: Store,
) -> None:
    for trial in (EARLY, LATE):
        tell(store, trial)
    (best,) = page(store)["best_trials"]
    assert (best["number"], best["constraints"]) == (3, [pytest.approx(0.1)])


def test_an_empty_study_has_a_page(store: Store) -> None:
    assert page(store)["best_trials"] == []


def test_the_page_shows_verdicts_and_not_the_record_for_machines(store: Store) -> None:
    tell(store, EARLY)
    attributes = {item["key"]: item["value"] for item in page(store)["trials"][2]["user_attrs"]}
    assert attributes["verdict"] == "non_finite"
    assert "record" not in attributes


def test_what_the_dashboard_is_shown_is_not_what_is_stored(store: Store) -> None:
    tell(store, EARLY)
    page(store)
    (plain,) = optuna.load_study(study_name="small/batch_size=32", storage=url_of(store)).trials
    assert plain.system_attrs == {"constraints:diverged": 0.97}
    assert "record" in plain.user_attrs


def test_optunas_own_plots_answer(store: Store) -> None:
    for trial in (BEST, WORSE, EARLY, LATE):
        tell(store, trial)
    for plot in ("slice", "contour", "timeline", "edf", "rank", "parallel_coordinate"):
        assert ask(store, f"/api/studies/1/plot/{plot}")[0] == "200 OK"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/studies"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/trials/1/user-attrs"),
    ],
)
def test_studies_and_trials_cannot_be_changed_in_the_browser(
    store: Store, method: str, path: str
) -> None:
    tell(store, BEST)
    assert ask(store, path, method) == ("403 Forbidden", {"reason": READ_ONLY})
    assert len(page(store)["trials"]) == 1


def test_the_page_answers_at_once_while_a_run_writes(store: Store) -> None:
    """SQLite's write-ahead log: whoever reads never waits for who writes, and sees what was
    committed.
    """
    tell(store, BEST)
    writer = sqlite3.connect(store.folder / "study.db")
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("DELETE FROM trials")
    began = time.monotonic()
    assert len(page(store)["trials"]) == 1
    assert time.monotonic() - began < 5
    writer.rollback()
    writer.close()
    tell(store, WORSE)
    assert len(page(store)["trials"]) == 2


def test_the_baseline_is_shown_with_its_checkpoint_and_is_never_the_best_trial(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "b.pt").write_bytes(b"weights")
    tell(store, BEST)
    tell_baseline(store, Checkpoint(str(tmp_path / "b.pt"), sha256(tmp_path / "b.pt"), 0.001))
    document = page(store)
    trial = document["trials"][-1]
    assert {"key": "verdict", "value": "baseline"} in trial["user_attrs"]
    assert trial["values"] == [0.001]
    assert [best["number"] for best in document["best_trials"]] == [0]
    (artifact,) = trial["artifacts"]
    assert artifact["filename"] == "b.pt"
    path = f"/artifacts/{trial['study_id']}/{trial['trial_id']}/{artifact['artifact_id']}"
    assert answer(application(ShownStorage(open_storage(url_of(store))), store.folder), path) == (
        "200 OK",
        b"weights",
    )


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def no_application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b""]


def test_a_port_in_use_is_named(busy_port: int) -> None:
    with pytest.raises(
        UserError, match=f"^--port: cannot listen on port {busy_port}: Address already in use"
    ):
        listen(no_application, busy_port)


def test_a_port_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match=r"^--port: must be between 0 and 65535, got 65536$"):
        listen(no_application, 65536)


def test_the_server_is_on_loopback_only() -> None:
    with listen(no_application, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.server_port > 0


def test_a_slow_request_does_not_hold_up_another() -> None:
    released = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            released.wait(30)
        return no_application(environ, start_response)

    with listen(app, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(("127.0.0.1", server.server_port)) as slow:
            slow.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            with urllib.request.urlopen(
                f"http://127.0.0.1:{server.server_port}/", timeout=10
            ) as answer:
                assert answer.status == 200
            released.set()
            assert slow.recv(100).startswith(b"HTTP/1.0 200 OK")
        server.shutdown()
        thread.join()


def test_serve_prints_its_address_answers_and_ends_with_ctrl_c(store: Store) -> None:
    tell(store, BEST)
    program = (
        "import pathlib, signal, sys\n"
        # ignored where tests run in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stored import small_study\n"
        "from tunewright.search.show.dashboard import serve\n"
        "from tunewright.search.store.storage import create_store\n"
        "serve(create_store(small_study(), pathlib.Path(sys.argv[1])), port=0)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder.parent)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("Optuna Dashboard: http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[2], timeout=10) as answer:
            assert b"Optuna Dashboard" in answer.read()
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert "Traceback" not in errors
    assert server.returncode == 0


def test_a_page_does_not_look_through_more_attributes_the_more_trials_there_are(
    store: Store,
) -> None:
    """Optuna Dashboard looks through them for every trial: a figure that is stored in parts made
    that n² steps.
    """
    for number in range(60):
        tell(store, feasible(number, 0.01 * (number + 1), 0.05))
    write_results(Results.read(store))
    (own,) = store.optuna_studies.values()
    attributes = own._storage.get_study_system_attrs(own._study_id)
    stored = {
        name: value for name, value in attributes.items() if name.startswith("dashboard:plot_data:")
    }
    assert len(stored) > 5
    (shown,) = ShownStorage(own._storage).get_all_studies()
    figures = [name for name in shown.system_attrs if name.startswith("dashboard:plot_data:")]
    assert figures == ["dashboard:plot_data:axis-base_lr:0"]
    (drawn,) = page(store)["plotly_graph_objects"]
    assert json.loads(drawn["graph_object"])["data"]
    assert drawn["graph_object"] == "".join(
        stored[f"dashboard:plot_data:axis-base_lr:{i}"] for i in range(len(stored))
    )


def test_a_finished_trial_is_converted_once(store: Store) -> None:
    for trial in (BEST, EARLY):
        tell(store, trial)
    (own,) = store.optuna_studies.values()
    shown = ShownStorage(own._storage)
    finished = (TrialState.COMPLETE,)
    first, again = (shown.get_all_trials(own._study_id, False, finished) for _ in range(2))
    assert len(first) == 2
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert shown.get_all_trials(own._study_id)[0] is not first[0]
    tell(store, WORSE)
    assert len(shown.get_all_trials(own._study_id, states=finished)) == 3


def test_steps_of_a_diagnosis_are_in_order_and_have_names_in_words(tmp_path: Path) -> None:
    names = ("momentum-32-warmup-10-at-1x", "momentum-32-clipping", "momentum-32-edge-1")
    store = create_store(small_study(), tmp_path)
    (store.folder / "study.toml").touch()  # its steps are in its own database
    for name in names:
        step = name.removeprefix("momentum-32-")
        question = f"batch size 32, momentum: {step}"
        study = small_study(question=question).model_copy(update={"name": name})
        tell(create_store(study, store.folder / "steps"), BEST)
    shown = ShownStorage(store.optuna_studies[32]._storage, "small", names)
    studies = shown.get_all_studies()
    assert [study.study_name for study in studies] == [
        "small/batch_size=32",
        "small · 01 batch size 32, momentum: warmup 10 at 1x",
        "small · 02 batch size 32, momentum: clipping",
        "small · 03 batch size 32, momentum: edge 1",
    ]
    app = application(shown, store.folder)
    for study in studies[1:]:  # its page, its table and its plots are found by their ids
        assert request(app, f"/api/studies/{study._study_id}")[1]["name"] == study.study_name
        assert answer(app, f"/csv/{study._study_id}")[0] == "200 OK"
        assert answer(app, f"/api/studies/{study._study_id}/plot/slice")[0] == "200 OK"
