"""What workers print is in a log, whole and bounded; progress is shown early, and fits."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from stored import feasible, small_study

from tunewright.search.pool import output, progress
from tunewright.search.pool.backend import WorkerInfo
from tunewright.search.pool.output import WorkersLog
from tunewright.search.pool.progress import Progress, Whole
from tunewright.search.run import run_studies

LONG = "a_study_whose_name_has_seventy_characters_so_that_it_fills_a_line_abcd"
SECONDS_TO_FIRST_OUTPUT = 2.0
NOISY = """
import ctypes, os, sys, warnings
import torch


def main(run):
    print("by print")
    print("to stderr", file=sys.stderr)
    os.write(1, b"by native code, to 1\\n")
    os.write(2, b"by native code, to 2\\n")
    warnings.warn("a warning of a library")
    if os.environ.get("CRASHES"):
        print("last words")
        ctypes.string_at(0)  # a segmentation fault
    model = torch.nn.Linear(2, 1)
    optimizer = run.optimizer(model)
    for _ in run.steps([0] * 4):
        loss = model(torch.ones(3, 2)).square().mean()
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(val=loss.item())
"""
STUDY = """
train = "noisy:main"
objective = "val"
max_train_steps = 4
batch_sizes = [3]
trials = 2
[space.optimizer.sgd]
base_lr = { low = 1e-3, high = 0.1, log = true }
"""
PRINTED = (
    "by print\n",
    "to stderr\n",
    "by native code, to 1\n",
    "by native code, to 2\n",
    "UserWarning: a warning of a library\n",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "noisy.py").write_text(NOISY)
    (tmp_path / f"{LONG}.toml").write_text(STUDY)
    return tmp_path


def shown(project: Path, tty: bool, *options: str, **environment: str) -> tuple[float, str]:
    """Seconds to the first output of a run, and all that it printed: at a terminal of 80 columns,
    or into a pipe.
    """
    ours, theirs = pty.openpty() if tty else os.pipe()
    if tty:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "run", f"{LONG}.toml", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "TERM": "xterm", **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    first, said = 0.0, b""
    while part := _read(ours):
        first = first or time.monotonic() - began
        said += part
    os.close(ours)
    child.wait()
    return first, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # a terminal that nobody holds open any more
        return b""


def log_of(project: Path) -> str:
    (path,) = project.glob("*/*/workers.log")
    return path.read_text()


@pytest.mark.parametrize("tty", [True, False])
def test_a_run_shows_something_at_once_and_what_workers_print_is_in_their_log(project, tty):
    first, said = shown(project, tty, "--workers", "2")
    assert first < SECONDS_TO_FIRST_OUTPUT
    log = log_of(project)
    for text in PRINTED:
        assert text in log
        assert text.strip() not in said
    assert log.count("by print\n") == 2
    assert re.search(r"--- worker \d+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ---\nby print\n", log)
    assert re.search(r"what workers printed:\s+\S+/workers\.log", said)
    drawn = [line for line in re.split(r"[\r\n]+", said) if "feasible, 0 infeasible" in line]
    assert drawn
    if tty:
        assert max(map(len, drawn)) <= 80
        assert all("━" in line and re.search(r"\d/[\d?]", line) for line in drawn)


def test_in_process_what_is_printed_stays_at_the_terminal(project):
    _, said = shown(project, False, "--in-process")
    for text in PRINTED:
        assert text in said
    assert not list(project.glob("*/*/workers.log"))
    assert "workers.log" not in said


def test_the_last_words_of_a_worker_that_crashed_are_found(project):
    _, said = shown(project, False, "--workers", "1", CRASHES="1")
    log = log_of(project)
    assert "last words\nFatal Python error: Segmentation fault\n" in log
    assert 'noisy.py", line ' in log  # where it happened
    assert re.search(r"was killed 3 times .*; what workers printed:\s+\S+/workers\.log", said)


def test_a_log_is_made_when_something_is_printed_and_names_who_did(tmp_path):
    log = WorkersLog(tmp_path)
    assert not log.has_more
    assert not log.path.exists()
    for worker, text in (("worker 1", b"a\n"), ("worker 1", b"b\n"), ("worker 2", b"c\n")):
        log.write(worker, text)
    lines = [line.split(",")[0] for line in log.path.read_text().splitlines() if line]
    assert lines == ["--- worker 1", "a", "b", "--- worker 2", "c"]
    again = WorkersLog(tmp_path)
    assert not again.has_more
    again.write("worker 3", b"d\n")
    assert again.path.read_text().startswith(log.path.read_text()[:20])
    assert "\nd\n" in again.path.read_text()


def test_a_log_is_bounded_says_so_once_and_the_next_run_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "MOST_BYTES", 100)
    log = WorkersLog(tmp_path)
    for _ in range(50):
        log.write("worker 1", b"x" * 30)
    content = log.path.read_text()
    assert len(content) == 100 + len(output.FULL)
    assert content.count("is full") == 1
    again = WorkersLog(tmp_path)
    again.write("worker 2", b"y")
    assert "x" not in again.path.read_text()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    log = WorkersLog(tmp_path / "gone")
    log.write("worker 1", b"a")
    assert not log.path.exists()


# --- totals ---------------------------------------------------------------------------------------


def worker(study: str) -> WorkerInfo:
    return WorkerInfo("1", "here", "cpu", {}, "", 10.0, study, 32, 1)


def test_several_studies_have_one_total(capsys):
    studies = {name: small_study().model_copy(update={"name": name}) for name in ("a", "b")}
    with Progress({"a": [], "b": []}) as show:
        assert show.line() == "0 trials; workers are starting"
        for study in studies.values():
            show.plan(study, [])
        show.finished(studies["a"], feasible(0, 0.1, 0.05))
        show.tick([worker("a")])
        assert re.fullmatch(r"1 of 8 trials; about \d+ s left; workers on here: 1.*", show.line())
    assert "a: 1/4: 1 feasible, 0 infeasible; b: 0/4" in capsys.readouterr().err


def test_one_study_has_its_total_in_its_bar_alone():
    with Progress({"small": []}) as show:
        assert show.line() == "workers are starting"


def test_steps_have_a_total_and_a_time_left_over_all_of_them(monkeypatch):
    """Each of the four trials of a step takes 1.25 s for 100 updates."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    whole = Whole(trainings=20, updates={32: 2000})
    for step in (1, 2):
        study = small_study().model_copy(update={"name": f"step-{step}"})
        whole.begin(f"step {step}: warmup", [study])
        assert whole.updates == {32: 2000 - 400 * step}
        with Progress({study.name: []}, shown=False, whole=whole) as show:
            show.plan(study, [feasible(n, 0.1, 0.05).point for n in range(4)])
            for number in range(4):
                show.tick([worker(study.name)])
                now[0] += 1.25
                show.finished(study, feasible(number, 0.1, 0.05))
            show.tick([])
            count = 4 * step
            left = round(1.25 * (20 - count))
            assert show.line() == (
                f"step {step}: warmup; {count} of at most 20 trainings; at most {left} s left; "
                "workers are starting"
            )
        assert whole.done == count


def test_without_a_terminal_the_first_line_comes_at_once_and_then_one_a_minute(capsys, monkeypatch):
    study = small_study()
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress({study.name: []}) as show:
        show.plan(study, [])
        for _ in range(130):
            show.tick([])
            now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["small: 0/4: 0 feasible, 0 infeasible; workers are starting"] * 3


def test_a_run_of_python_keeps_its_output_too(project, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(project))
    from tunewright.search.study.study import load_study

    study = load_study(project / f"{LONG}.toml")
    run_studies([study], project / "results", workers=1, progress=False)
    said = capfd.readouterr()
    assert "by native code" not in said.out + said.err
    assert "by native code, to 2" in log_of(project)
