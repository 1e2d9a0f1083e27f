"""What a driver can do for workers of other machines: simulated ones, that sleep and train nothing.

They are threads of another process, and speak the wire's language over loopback: they take points
one by one, and hand in trials that were made before. The driver is the real one, with its store
(SQLite in a temporary folder), its inbox and its threads.

    per trial   how long the driver works for a trial, at most 10,000 of them; bytes on the wire
    workers     how many workers with trials of 30 s one driver keeps at work
    shares      four workers of speeds 1, 1, 2 and 4, against equal shares given out beforehand

Targets: under 20 ms a trial, flat; 500 workers; 0.6 of the time of equal shares.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from framework import invented, large_study
from measure import print_footer, print_header, print_table
from safetensors.torch import save

from tunewright.search.pool.driver import Driver
from tunewright.search.pool.hub import Sign
from tunewright.search.pool.process import about_this_process
from tunewright.search.pool.progress import Progress
from tunewright.search.pool.remote import Remote
from tunewright.search.pool.wire import connect
from tunewright.search.pool.worker import Job
from tunewright.search.store.storage import create_store
from tunewright.search.study.study import Study
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

HOST, KEY = "127.0.0.1", b"a key of a benchmark"
SECONDS_OF_A_TRIAL = 30.0
SPEEDS = (1, 1, 2, 4)
SECONDS_BETWEEN_SIGNS = 10.0


# --- a process of simulated workers ---------------------------------------------------------------


class Counted:
    """A connection that counts the bytes of both directions."""

    def __init__(self, connection: Any) -> None:
        self._connection, self.said, self.heard = connection, 0, 0

    def send_bytes(self, content: bytes) -> None:
        self.said += len(content) + 4
        self._connection.send_bytes(content)

    def recv_bytes(self) -> bytes:
        content: bytes = self._connection.recv_bytes()
        self.heard += len(content) + 4
        return content


@dataclass
class Simulated:
    """A worker that sleeps `seconds` for a trial."""

    port: int
    seconds: float
    trials: int = 0
    asleep: float = 0.0
    began: float = 0.0  # when it asked for its first point, once there were some
    ended: float = 0.0  # when it had handed in its last trial
    bytes: list[int] = field(default_factory=list)  # said and heard

    def connect(self, name: str) -> Counted:
        """As a worker does, which tries again."""
        while True:
            try:
                self.wire = connect(HOST, self.port, KEY)
                counted = Counted(self.wire._connection)
                self.wire._connection = counted  # type: ignore[assignment]
                self.ask("hello", **asdict(replace(ABOUT, worker=name)))
                return counted
            except (OSError, EOFError):
                time.sleep(1.0)

    def ask(self, kind: str, *parts: bytes, **values: object) -> Any:
        self.wire.say(kind, *parts, **values)
        while isinstance(heard := self.wire.hear(), Sign):
            pass
        return heard

    def run(self, name: str, first_after: float) -> None:
        counted = self.connect(name)
        rng = np.random.default_rng(0)
        curve, checkpoint = made_before()
        while not isinstance(self.ask("ask"), Job):
            pass
        time.sleep(first_after)
        self.began, before = time.time(), (counted.said, counted.heard)
        while points := self.ask("take", most=1)[0]:
            self.ask("begin", number=points[0].number)
            self.sleep()
            record = invented(points[0], rng).record()
            self.ask("post", curve, checkpoint, number=points[0].number, record=record, updates=1)
            self.trials += 1
            self.ended = time.time()
        self.bytes = [counted.said - before[0], counted.heard - before[1]]

    def sleep(self) -> None:
        """As a worker in training, which says now and then that it is there."""
        left = self.seconds
        while left > 0:
            time.sleep(min(left, SECONDS_BETWEEN_SIGNS))
            left -= SECONDS_BETWEEN_SIGNS
            self.wire.say_unless_busy("alive")
        self.asleep += self.seconds


ABOUT = about_this_process("", "")


@cache
def made_before() -> tuple[bytes, bytes]:
    """Curve and checkpoint of a trial, as a worker hands them in."""
    trial = invented(Point(0, 32, "momentum", 0.1), np.random.default_rng(0))
    curve = BytesIO()
    np.savez_compressed(curve, **trial.curve.arrays())
    model = load_workload("tunewright.models.digits:mlp", {}).build_model(0)
    return curve.getvalue(), save(model.state_dict())


def fleet(port: int, seconds: Sequence[float], spread: float) -> None:
    """Simulated workers, whose first trials begin over so many seconds; prints what they did."""
    made_before()
    workers = [Simulated(port, one) for one in seconds]
    threads = [
        threading.Thread(target=one.run, args=(f"w{i}", spread * i / len(workers)))
        for i, one in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [one for one in workers if one.trials]
    trials = sum(one.trials for one in done)
    began, ended = min(one.began for one in done), max(one.ended for one in done)
    said, heard = (sum(one.bytes[way] for one in done) for way in (0, 1))
    summary = {
        "trials": trials,
        "seconds": ended - began,
        "asleep": sum(one.asleep for one in done),
        "there": sum(one.ended - one.began for one in done),
        "said": said / trials,
        "heard": heard / trials,
    }
    print(json.dumps(summary))


# --- the driver -----------------------------------------------------------------------------------


class Timed(Progress):
    """When trials were told to the store: seconds by the clock, and of this process."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver.finished_trials(), shown=False)
        self.clock, self.processor = [time.perf_counter()], [time.process_time()]

    def finished(self, study: Study, trial: Any) -> None:
        super().finished(study, trial)
        self.clock.append(time.perf_counter())
        self.processor.append(time.process_time())


def serve(
    trials: int, seconds: Sequence[float], spread: float = 0.0
) -> tuple[Timed, dict[str, float]]:
    """Drive a study that simulated workers train; when its trials came, and what these say."""
    with tempfile.TemporaryDirectory() as folder, closing(Remote(HOST, 0, KEY)) as remote:
        workers = remote.count(0, ["cpu"])
        store = create_store(large_study(trials), Path(folder))
        driver = Driver([store], remote, workers, "cpu", slots=1, threads=1, compiled=None)
        words = [remote.address.rpartition(":")[2], json.dumps(list(seconds)), str(spread)]
        others = subprocess.Popen(
            [sys.executable, __file__, "--fleet", *words], stdout=subprocess.PIPE, text=True
        )
        with Timed(driver) as driver.show:
            driver.run()
        assert len(driver.finished_trials()[store.study.name]) == trials
        summary: dict[str, float] = json.loads(others.communicate()[0])
        assert summary["trials"] == trials
        return driver.show, summary


def per_trial(trials: int) -> None:
    shown, summary = serve(trials, [0.0] * 4)
    rows = []
    window = trials // 5
    for end in range(window, trials + 1, window):
        clock, processor = (
            1e3 * (of[end] - of[end - window]) / window for of in (shown.clock, shown.processor)
        )
        rows.append(
            {
                "trials": end,
                "driver's processor, ms a trial": f"{processor:.1f}",
                "by the clock, ms a trial": f"{clock:.1f}",
            }
        )
    print_table(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"bytes a trial: {summary['said']:.0f} to the driver, {summary['heard']:.0f} from it; the "
        f"driver's peak memory {peak:.0f} MB\n"
    )


def workers(counts: Sequence[int], seconds: float, rounds: int) -> None:
    rows = []
    for count in counts:
        before = time.process_time()
        shown, summary = serve(count * rounds, [seconds] * count, spread=seconds)
        processor = time.process_time() - before
        first = shown.clock[1]
        rows.append(
            {
                "workers": count,
                "trials a second": f"{(count * rounds - 1) / (shown.clock[-1] - first):.1f}",
                "at work": f"{100 * summary['asleep'] / summary['there']:.0f} %",
                "driver's processor, ms a trial": f"{1e3 * processor / (count * rounds):.1f}",
                "of a core": f"{100 * processor / summary['seconds']:.0f} %",
            }
        )
    print_table(rows)


def shares(trials: int, seconds: float) -> None:
    _, summary = serve(trials, [seconds / speed for speed in SPEEDS])
    fixed = trials / len(SPEEDS) * seconds / min(SPEEDS)
    best = trials * seconds / sum(SPEEDS)
    row = {
        "speeds": ", ".join(map(str, SPEEDS)),
        "trials": trials,
        "pulled, s": f"{summary['seconds']:.1f}",
        "equal shares, s": f"{fixed:.1f}",
        "ratio": f"{summary['seconds'] / fixed:.2f}",
        "the least that is possible": f"{best / fixed:.2f}",
    }
    print_table([row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials and workers")
    parser.add_argument("--trials", type=int, default=10_000, help="of the first table")
    parser.add_argument("--counts", default="250,500,1000", help="workers of the second table")
    parser.add_argument("--only", choices=["per-trial", "workers", "shares"])
    parser.add_argument("--fleet", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fleet:
        port, seconds, spread = options.fleet
        fleet(int(port), json.loads(seconds), float(spread))
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    quick = options.quick
    counts = [20] if quick else [int(one) for one in options.counts.split(",")]
    print_header("A driver and simulated workers over loopback")
    if options.only in (None, "per-trial"):
        per_trial(100 if quick else options.trials)
    if options.only in (None, "workers"):
        workers(counts, 1.0 if quick else SECONDS_OF_A_TRIAL, rounds=3)
    if options.only in (None, "shares"):
        shares(*((16, 0.5) if quick else (64, 2.0)))
    print_footer()


if __name__ == "__main__":
    main()
