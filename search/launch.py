"""Run studies: one driver that plans, hands out, collects and writes; worker processes that train.

All groups of all studies share one pool of workers. A killed worker or a killed driver costs the trials that
were in training, nothing else; the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from .analysis import summarize, trained
from .dashboard_notes import annotate
from .engine import devices
from .errors import UserError
from .files import atomic, checkpoint_path, curve_path, name_of, write_json
from .progress import Progress
from .sampling import next_points, some_points
from .storage import (
    Store,
    as_told,
    create_store,
    environment,
    now,
    read_comparison,
    read_trials,
    tell,
    without_curve,
    write_table,
)
from .study import Study
from .threads import torch_threads
from .training import ALONE, Engine, train
from .trial import Point, Trial, crashed
from .worker import Task, follow_driver, interrupted, measure, posted, work
from .workload import check_workload, load_workload

MOST_DEATHS = 3  # of a worker while the same point was in training; then the point is crashed, not retried
TASKS_AHEAD = 2  # per worker: one in training, one waiting at its door
POLL_SECONDS = 0.2  # between two looks into the inboxes
RESULTS = Path("results")


def run_studies(
    studies: Sequence[Study],
    results: Path = RESULTS,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    slots: int | None = None,
    compiled: bool | None = None,
    storage: str | None = None,
    progress: bool = True,
) -> list[Store]:
    """Train every point of every study that is not in its results yet, in one pool of workers.

    `workers` defaults to one per processor core, or per device if `device` names others. `slots` forces how many
    trials a worker trains at once (1: one after the other), `threads` how many torch threads it has; by default
    both are measured (`engine.choose`), and fewer workers train where each has more threads. `compiled`: whether to
    try torch.compile, also where training is short, or never; by default, where it may pay. Tables and summaries
    are written at the end, also after an interruption. Raises UserError for a mistake in a study or its workload,
    before anything is trained; KeyboardInterrupt passes through, with all finished trials stored.
    """
    devices(device)
    check_studies(studies)
    provenance = environment(sys.argv)
    with ExitStack() as stack:
        stores = [stack.enter_context(exclusive(create_store(study, results, storage))) for study in studies]
        driver = _Driver(stores, workers, device, slots, threads, compiled)
        try:
            with Progress(stores, shown=progress) as driver.show:
                driver.run()
        finally:
            for store in stores:
                engines = {size: own.user_attrs.get("engines", {}) for size, own in store.optuna_studies.items()}
                how = {"finished": now(), "workers": driver.workers, "device": device, "engines": engines}
                write_results(store, provenance | how)
    return stores


def check_studies(studies: Sequence[Study]) -> None:
    """Try every workload of the studies once. Raises UserError naming the study and what is wrong."""
    for study in studies:
        for workload_args in _workload_args(study):
            try:
                workload = load_workload(study.workload, workload_args)
                check_workload(workload, study.objective, study.batch_sizes)
            except UserError as error:
                raise UserError(f"{study.name}: {error}") from error


def seconds_per_step(study: Study, steps: int = 100) -> dict[int, float]:
    """Measured seconds of one update of one trial, evaluation included, by batch size."""
    every = {"max_train_steps": steps, "evaluations": max(1, steps // study.evaluate_every)}
    short = study.model_copy(update=every | {"prepend_warmup": False, "stop_after": None})
    result = {}
    points = some_points(study, most=1)
    for batch_size in study.batch_sizes:
        point = next(p for p in points if p.batch_size == batch_size)
        point = replace(point, base_lr=0.0, warmup_steps=0)  # no divergence while it is timed
        workload = load_workload(study.workload, point.workload_args)
        with torch_threads():
            list(train(short.model_copy(update={"max_train_steps": 5}), workload, [point]))  # allocations, caches
            began = time.perf_counter()
            list(train(short, workload, [point]))
        result[batch_size] = (time.perf_counter() - began) / steps
    return result


def run_study(study: Study, **options: object) -> list[Trial]:
    """Run one study, and return its trials. Options as `run_studies`."""
    (store,) = run_studies([study], **options)  # type: ignore[arg-type]
    return read_trials(store)


def write_results(store: Store, provenance: Mapping[str, object] | None = None) -> None:
    """trials.csv, summary.json and the dashboard's notes; environment.json if there is something to put in it."""
    trials = read_trials(store, curves=False)
    _drop_checkpoints(store, trials)
    write_table(store.folder / "trials.csv", trials, read_comparison(store.folder))
    summaries = summarize(trials, store.study.scientific_names, store.study.ranges)
    write_json(store.folder / "summary.json", [row.record() for row in summaries])
    if provenance:
        write_json(store.folder / "environment.json", provenance)
    annotate(store, trials)
    crashes = [trial for trial in trials if trial.verdict.crashed]
    log = store.folder / "crashed.log"
    with atomic(log) as temporary:
        temporary.write_text(
            "".join(f"{name_of(t.point)}: {t.verdict.evidence}\n{t.traceback}\n" for t in crashes),
            encoding="utf-8",
        )
    if not crashes:
        log.unlink()


def _workload_args(study: Study) -> Iterator[dict[str, object]]:
    """Every combination of the workload's arguments in the study."""
    groups = study.groups(study.batch_sizes[0])
    seen = []
    for group in groups:
        held = dict(group.scientific)
        args = {name: held.get(name, value) for name, value in study.workload_args.items()}
        if args not in seen:
            seen.append(args)
            yield args


@contextmanager
def exclusive(store: Store) -> Iterator[Store]:
    """One writer per results folder. Raises UserError if another run or comparison holds it."""
    try:
        with FileLock(store.folder / ".lock", timeout=0):
            yield store
    except Timeout as error:
        raise UserError(f"{store.folder}: another run is writing here; wait for it or stop it") from error


class _Driver:
    """Plans, hands out tasks, and tells the store what comes back. Only `collect` writes to the store."""

    show: Progress

    def __init__(
        self,
        stores: Sequence[Store],
        workers: int | None,
        names: str,
        slots: int | None,
        threads: int | None,
        compiled: bool | None,
    ) -> None:
        self.stores, self.slots, self.threads, self.compiled = stores, slots, threads, compiled
        self.devices = devices(names)
        self.device = self.devices[0]
        self.workers = workers or (joblib.cpu_count() if self.device == "cpu" else len(self.devices))
        self.trials = [{_key(t.point): t for t in read_trials(store, curves=False)} for store in stores]
        self.tried: set[tuple[str, str]] = set()  # (study, point) that crashed in this run: not tried again
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.collecting = threading.Lock()
        for store in stores:
            _inbox(store).mkdir(exist_ok=True)
            for left in _inbox(store).glob(".*.tmp"):  # by a worker that was killed while it wrote
                left.unlink()

    def run(self) -> None:
        self.collect()
        for store in self.stores:
            interrupted(_inbox(store))
        while missing := self.missing():
            tasks = self.tasks(missing)
            for threads in sorted({task.engine.threads for task in tasks}):
                with _every(POLL_SECONDS, self.collect):
                    self.train([task for task in tasks if task.engine.threads == threads])

    def missing(self) -> list[tuple[Store, list[Point]]]:
        """The points that can be trained now, over all studies, by batch size and workload arguments."""
        missing: dict[tuple[str, int, str], tuple[Store, list[Point]]] = {}
        for store, trials in zip(self.stores, self.trials, strict=True):
            done = [trial for trial in trials.values() if not trial.verdict.crashed]
            finished = {_key(trial.point) for trial in done}
            points = next_points(store.study, [as_told(trial) for trial in done])
            self.show.plan(store.study, len(points))
            for point in points:
                if _key(point) not in finished and (store.study.name, name_of(point)) not in self.tried:
                    key = (store.study.name, point.batch_size, point.workload_key)
                    missing.setdefault(key, (store, []))[1].append(point)
        return list(missing.values())

    def tasks(self, missing: Sequence[tuple[Store, list[Point]]]) -> list[Task]:
        """What is missing as tasks of similar size, one or more for each worker.

        Points that were in training when a worker died come last, one by one: the guilty must not take others along.
        """
        tasks: list[Task] = []
        suspects: list[Task] = []
        for (store, points), engine in zip(missing, self.engines(missing), strict=True):
            task = partial(Task, store.study, _inbox(store), engine=engine)
            free = [point for point in points if not self.deaths[store.study.name, name_of(point)]]
            shares = self.workers if engine.stacked else len(free)
            tasks += [task(share, device=self.device) for i in range(shares) if (share := free[i::shares])]
            suspects += [task([point], device=self.device) for point in points if point not in free]
        return [replace(task, device=self.devices[i % len(self.devices)]) for i, task in enumerate(tasks or suspects)]

    def engines(self, missing: Sequence[tuple[Store, list[Point]]]) -> list[Engine]:
        """How points of one batch size and workload train: as forced, as before, or as a worker measures now."""
        found = [self.forced(store) or self.before(store, points) for store, points in missing]
        try:
            measured = {
                i: self.pool(self.workers).submit(
                    measure, store.study, points, self.workers, joblib.cpu_count(), self.device, self.compiled
                )
                for i, (store, points) in enumerate(missing)
                if found[i] is None
            }
            for i, future in measured.items():
                found[i] = future.result()
        except BrokenProcessPool:  # out of memory, say: then the least that can be done at once
            lost = replace(ALONE, reason="a worker process died while it measured")
            found = [engine or lost for engine in found]
        except BaseException:
            self.pool(self.workers).shutdown(kill_workers=True)
            raise
        engines = [replace(engine, threads=self.threads or engine.threads) for engine in found if engine]
        for (store, points), engine in zip(missing, engines, strict=True):
            _remember_engine(store, points, engine)
        return engines

    def forced(self, store: Store) -> Engine | None:
        if self.slots is None or store.study.accumulation > 1:
            return None
        return Engine(stacked=self.slots > 1, slots=self.slots, reason="forced")

    def before(self, store: Store, points: Sequence[Point]) -> Engine | None:
        """How the points of this batch size and workload were trained in an earlier run, if it may stay so."""
        found = store.optuna_studies[points[0].batch_size].user_attrs.get("engines", {}).get(points[0].workload_key)
        engine = Engine(**found) if found else None
        return engine if engine and self.compiled in (None, engine.compiled) else None

    @staticmethod
    def pool(workers: int) -> Any:
        return get_reusable_executor(workers, initializer=follow_driver, initargs=(os.getpid(),))

    def train(self, tasks: Sequence[Task]) -> None:
        """Hand out tasks of equally many threads. A worker that dies ends the pool; what it trained is suspect."""
        suspected = any(self.deaths[task.study.name, name_of(point)] for task in tasks for point in task.points)
        side_by_side = max(1, self.workers // tasks[0].engine.threads) if self.threads is None else self.workers
        workers = 1 if suspected else min(side_by_side, len(tasks))
        pool = self.pool(workers)
        try:
            pending: set[Future[None]] = set()
            for task in tasks:
                if len(pending) >= TASKS_AHEAD * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    _raise_errors(done)
                pending.add(pool.submit(work, task))
            _raise_errors(as_completed(pending))
        except BrokenProcessPool:
            self.collect()
            self.count_deaths(tasks)
        except BaseException:
            pool.shutdown(kill_workers=True)
            raise

    def count_deaths(self, tasks: Sequence[Task]) -> None:
        suspects = {(task.study.name, stem) for task in tasks for stem in interrupted(task.inbox)}
        if not suspects:
            raise RuntimeError("worker processes die before they begin to train; see the messages above")
        self.deaths.update(suspects)
        for store in self.stores:
            for point in next_points(store.study, []):
                key = (store.study.name, name_of(point))
                if key in suspects and self.deaths[key] >= MOST_DEATHS:
                    reason = f"its worker process was killed {MOST_DEATHS} times (out of memory?)"
                    self.record(store, crashed(point, reason))

    def collect(self) -> None:
        """Tell the store of finished trials, then move their files into the results.

        The record goes last: killed anywhere in between, the next run finds it and completes the move.
        """
        with self.collecting:
            for store, trials in zip(self.stores, self.trials, strict=True):
                moved = False
                for trial, path in posted(_inbox(store)):
                    self.record(store, trial)
                    for source, target in ((".npz", curve_path), (".safetensors", checkpoint_path)):
                        if path.with_suffix(source).exists():
                            path.with_suffix(source).replace(target(store.folder, trial.point))
                    path.unlink()
                    moved = True
                if moved:
                    _drop_checkpoints(store, trials.values())

    def record(self, store: Store, trial: Trial) -> None:
        trials = self.trials[self.stores.index(store)]
        known = trials.get(_key(trial.point))
        if trial.verdict.crashed:
            self.tried.add((store.study.name, name_of(trial.point)))
        if known is None or known.verdict.crashed:
            tell(store, trial)
            trials[_key(trial.point)] = without_curve(trial, trial.curve.total_steps)
            self.show.finished(store.study, trial)


def _drop_checkpoints(store: Store, trials: Iterable[Trial]) -> None:
    """Keep the checkpoints of the best `keep_checkpoints` trials at each batch size (S10); infeasible ones go first."""
    if store.study.keep_checkpoints is None:
        return
    ranking = sorted(trials, key=lambda trial: (not trained(trial), trial.cost, trial.point.number))
    for batch_size in store.study.batch_sizes:
        own = [trial for trial in ranking if trial.point.batch_size == batch_size]
        for trial in own[store.study.keep_checkpoints :]:
            checkpoint_path(store.folder, trial.point).unlink(missing_ok=True)


def _raise_errors(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        future.result()


def _remember_engine(store: Store, points: Sequence[Point], engine: Engine) -> None:
    optuna_study = store.optuna_studies[points[0].batch_size]
    engines = optuna_study.user_attrs.get("engines", {}) | {points[0].workload_key: asdict(engine)}
    optuna_study.set_user_attr("engines", engines)


def _key(point: Point) -> tuple[int, int]:
    return point.batch_size, point.number


def _inbox(store: Store) -> Path:
    return store.folder / "inbox"


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function again and again in the background while the block runs, and once more at its end.

    An exception of the function ends the block: it is raised in the main thread.
    """
    ended, trouble = threading.Event(), []

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                call()
            except BaseException as error:
                trouble.append(error)
                return

    thread = threading.Thread(target=repeat, name="collector", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if trouble:
            raise trouble[0]
        call()
