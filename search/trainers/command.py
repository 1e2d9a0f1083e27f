"""Trials of a command: `command = ["python", "train.py", "--lr", "{base_lr}"]`, run once per trial.

Each trial has a folder of its own, which is empty when its command starts, and is kept:

    stdout.log, stderr.log    what the command printed; of much, the first and the last megabyte
    status.json               the command as it was run, its exit status, why it was ended, seconds
    whatever the command writes there, its log above all

The command runs in the working directory of `tunewright run`, with TUNEWRIGHT_RUN_DIR in its
environment, and OMP_NUM_THREADS unless that is set already. Its log is followed, and it is ended
where that shows that training is hopeless, as `guard` does it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UnfinishedError, first_line, printable, warn_once
from ..judge.readout import note_clipped_before
from ..signals import stop_if_asked
from ..store.files import write_json
from ..study.command import OWN_LOG, fill, values_of_run
from ..study.study import Study
from ..train.loop import Keeper, Trained
from ..trial import Point, Trial, Verdict
from . import guard
from .current import BEST_FILE, EARLIER_LOG, RUN_DIR, RUN_FILE
from .follow import LogError, LogFollower
from .watched import MisuseError

RUNS = "runs"  # the folder in a study's results that holds those of its trials
LOCK = ".lock"  # held while a process of the command lives
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
SECONDS_BETWEEN_LOOKS = 0.1  # into the log
LINES_KEPT = 80  # of the standard error of a command that failed
TAIL_BYTES = 32_768  # in which they are looked for
OUTPUTS = ("stderr.log", "stdout.log")
OUTPUT_BYTES = 1_000_000  # kept at either end of what a command prints
# The line of an exception, as Python and processes of torch end with. After it torchrun tells of
# itself, at length.
EXCEPTION = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception)\b(?<!ChildFailedError)")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    exit_status  as subprocess counts: −N where signal N ended it
    ended_by     "itself", or why it was ended: "verdict", "stop_after", "timeout", "log"
    fault        what its log does wrong, if that is why
    """

    command: list[str]
    exit_status: int
    ended_by: str
    seconds: float
    fault: str = ""


def train_by_command(
    study: Study,
    point: Point,
    run_dir: Path,
    state: Path,
    device: str = "cpu",
    keeper: Keeper | None = None,
    threads: int = 1,
) -> Trained:
    """Train a point by the command of its study, in `run_dir`.

    `state`: where a command that saves its state by `current_run` keeps it; one that is there is
    gone on with. A command that fails, or whose log cannot be understood, is a crashed trial. One
    that fails after an evaluation at its end, as while its processes end, has trained; its evidence
    says how it failed.
    Raises MisuseError for what every trial would repeat, and UnfinishedError if what runs commands
    was ended.
    """
    is_resumed = bool(keeper and keeper.begin(point))
    run_dir = run_dir.resolve()
    values = values_of_run(study, point, str(run_dir), device)
    words = [fill(word, values) for word in study.command]
    log = Path(fill(study.log.path, values)) if study.log else run_dir / OWN_LOG
    _prepare(study, point, run_dir, log, state, device, is_resumed)
    follower = LogFollower(log, study, point)
    request = {
        "argv": words,
        "cwd": os.getcwd(),
        "environ": {"OMP_NUM_THREADS": str(threads), **os.environ, RUN_DIR: str(run_dir)},
        "stdout": str(run_dir / "stdout.log"),
        "stderr": str(run_dir / "stderr.log"),
        "lock": str(run_dir / LOCK),
        "grace": GRACE,
    }
    try:
        ended = _run(request, follower, study.timeout)
        for name in OUTPUTS:
            if run_dir / name != log:
                _shorten(run_dir / name)
        write_json(run_dir / "status.json", asdict(ended))
        trained = _trained(study, point, run_dir, follower, ended)
    except MisuseError as error:
        raise MisuseError(f"{study.name}: {error}") from error
    if is_resumed and trained.trial.verdict.crashed:
        assert keeper is not None
        reason = f"going on from its saved state failed: {trained.trial.verdict.evidence}"
        keeper.start_again(point, reason)
        return train_by_command(study, point, run_dir, state, device, keeper, threads)
    return trained


def _prepare(
    study: Study,
    point: Point,
    run_dir: Path,
    log: Path,
    state: Path,
    device: str,
    is_resumed: bool,
) -> None:
    """Make the folder of a trial, empty it unless the trial is resumed, and leave there what
    `current_run` needs. An earlier command of this trial that is still ending is waited for.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with guard.locked(str(run_dir / LOCK)):
        if is_resumed and log.exists():
            log.replace(run_dir / EARLIER_LOG)  # it is written anew, as far as its state goes
        for path in [] if is_resumed else list(run_dir.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    if study.log is None:
        record = {
            "study": study.model_dump(mode="python", exclude_defaults=True),
            "point": point.record(),
            "device": device,
            "state": str(state.resolve()),
        }
        (run_dir / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")


# --- its processes --------------------------------------------------------------------------------


class Guard:
    """The process that runs commands for this one, one after the other (`guard`)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._process.wait()  # it goes on in a child
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._reports = self._process.stdin, self._process.stdout
        atexit.register(self.close)
        # a process that is forked off here would keep the pipe open
        os.register_at_fork(after_in_child=self.close)

    def start(self, request: Mapping[str, Any]) -> None:
        """Run a command. Raises MisuseError if it cannot be started."""
        self._ask(request)
        while (said := self.wait(SECONDS_BETWEEN_LOOKS)) is None:
            stop_if_asked()
        if error := said.get("error"):
            program, *_ = request["argv"]
            raise MisuseError(f"command: {program!r} cannot be started: {error}")

    def end(self) -> None:
        """End the command that runs."""
        self._ask(None)

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """What it says next; None if it says nothing for so long."""
        if not select.select([self._reports], [], [], seconds)[0]:
            return None
        line = self._reports.readline()
        if not line:
            raise UnfinishedError("the process that runs commands was ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        """Let it end, and before that the command that runs; this is not waited for."""
        self._requests.close()
        self._reports.close()

    def _ask(self, what: object) -> None:
        try:
            self._requests.write(f"{json.dumps(what)}\n".encode())
        except BrokenPipeError as error:
            raise UnfinishedError("the process that runs commands was ended") from error


@cache
def _guard() -> Guard:
    return Guard()


def _run(request: Mapping[str, Any], follower: LogFollower, timeout: float | None) -> Ended:
    """Run a command until it has ended, and follow its log."""
    running, began = _guard(), time.monotonic()
    ended_by, fault = "itself", ""
    status: int | None = None
    try:
        running.start(request)
        while status is None:
            stop_if_asked()
            said = running.wait(SECONDS_BETWEEN_LOOKS)
            status = None if said is None else int(said["exit_status"])
            if ended_by != "itself":
                continue
            try:
                follower.read(status)
            except LogError as error:
                ended_by, fault = "log", str(error)
            if follower.measured.is_over:
                ended_by = "verdict" if follower.measured.is_infeasible else "stop_after"
            elif timeout is not None and time.monotonic() - began > timeout and status is None:
                ended_by = "timeout"
            if status is None and ended_by != "itself":
                running.end()
    finally:
        if status is None:  # whatever happened: this process does not wait for the command's end
            running.close()
            _guard.cache_clear()
    return Ended(request["argv"], status, ended_by, time.monotonic() - began, fault)


# --- what came of it ------------------------------------------------------------------------------


def _trained(
    study: Study, point: Point, run_dir: Path, follower: LogFollower, ended: Ended
) -> Trained:
    """The trial of a command that has ended. Raises MisuseError if a training that ended well
    cannot be judged.
    """
    measured = follower.measured
    reason = _failure(study, run_dir, follower, ended)
    is_late = bool(reason) and _trained_before_it_failed(follower, ended)
    if not (reason or measured.is_infeasible):
        follower.check_log()
        if not measured.is_complete:
            reason = f"its log ends after {measured.done} of {measured.total_steps} updates"
    if reason and not is_late:
        said = "\n".join([f"{run_dir}: the last lines that it printed:", *_last_lines(run_dir)])
        return Trained(Trial.from_crash(point, reason, said, ended.seconds), {})
    seconds = measured.seconds_before + ended.seconds
    curve = measured.curve()
    verdict = note_clipped_before(measured.verdict(), curve, point.clip_norm)
    if is_late:
        verdict = _with_late_failure(study, verdict, reason)
    trial = Trial.from_curve(point, verdict, curve, study.objective, seconds, study.maximize)
    return Trained(trial, _checkpoint(run_dir))


def _trained_before_it_failed(follower: LogFollower, ended: Ended) -> bool:
    """Whether the log of a command that failed is one of a whole training."""
    if ended.ended_by == "log" or not follower.measured.is_evaluated_at_end:
        return False
    try:
        follower.check_log()
    except MisuseError:
        return False  # what it lacks may have been to come
    return True


def _with_late_failure(study: Study, verdict: Verdict, reason: str) -> Verdict:
    """The verdict of a training that was measured to its end, but whose command failed then."""
    warn_once(
        f"{study.name}: a command failed after its last evaluation. Its training counts; its "
        "reason in trials.csv says how it failed"
    )
    return replace(verdict, evidence=f"{verdict.evidence}; after its last evaluation: {reason}")


def _failure(study: Study, run_dir: Path, follower: LogFollower, ended: Ended) -> str:
    """Why a command failed, in a sentence; empty if it did not, or if its log shows an infeasible
    training, at which many scripts raise.
    """
    if follower.measured.is_infeasible:
        return ""
    if ended.ended_by == "timeout":
        return f"did not end within {study.timeout:g} s"
    if ended.ended_by == "log":
        return f"{follower.path}: {ended.fault}"
    if ended.ended_by != "itself" or ended.exit_status == 0:
        return ""
    if ended.exit_status < 0:
        killed = " (out of memory?)" if ended.exit_status == -signal.SIGKILL else ""
        return f"was ended by signal {-ended.exit_status}{killed}"
    said = [line.strip() for line in _last_lines(run_dir)]
    told = [line for line in said if EXCEPTION.match(line)] or said
    return f"exit status {ended.exit_status}" + (f": {told[-1]}" if told else "")


def _last_lines(run_dir: Path) -> list[str]:
    """The last lines of what a command printed to its standard error, or, if that is empty, to its
    output.
    """
    for name in OUTPUTS:
        with (run_dir / name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
        if kept := deque((line for line in lines if line.strip()), LINES_KEPT):
            return [printable(line) for line in kept]
    return []


def _shorten(path: Path) -> None:
    """Keep both ends of a long output, and say between them how much is left out."""
    left_out = (path.stat().st_size if path.exists() else 0) - 2 * OUTPUT_BYTES
    if left_out <= 0:
        return
    with path.open("r+b") as file:
        file.seek(-OUTPUT_BYTES, os.SEEK_END)
        last = file.read()
        file.seek(OUTPUT_BYTES)
        file.write(b"\n[tunewright: %d bytes are left out here]\n" % left_out + last)
        file.truncate()


def _checkpoint(run_dir: Path) -> dict[str, Tensor]:
    """The best checkpoint, if the command kept one by `current_run`."""
    path = run_dir / BEST_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        return {}
    except (OSError, SafetensorError) as error:
        warn_once(f"{path}: is damaged, and left out: {first_line(error)}")
        return {}
