"""Run studies: one driver that plans, hands out, collects and writes; worker processes that train.

All groups of all studies share one pool of workers. A killed worker or a killed driver costs the trials that
were in training, nothing else; the same command goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager, suppress
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
from .database import UnansweredError
from .engine import devices
from .errors import UnfinishedError, UserError, said, warn_once
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
    stored_trials,
    tell,
    without_curve,
    write_table,
)
from .study import Study
from .threads import torch_threads
from .training import ALONE, Engine, train
from .trial import Point, Trial, crashed
from .worker import Task, follow_driver, interrupted, measure, posted, saved_state, why_alone, work
from .workload import check_workload, edited_modules_reloaded, load_workload

MOST_DEATHS = 3  # of a worker while the same point was in training; then the point is crashed, not retried
TASKS_AHEAD = 2  # per worker: one in training, one waiting at its door
POLL_SECONDS = 0.2  # between two looks into the inboxes
PATIENCE_SECONDS = 60.0  # with a database that does not answer: a server that is restarted is back sooner
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
    with disk_answers(), ExitStack() as stack:
        stores = [stack.enter_context(exclusive(create_store(study, results, storage))) for study in studies]
        driver = _Driver(stores, workers, device, slots, threads, compiled)
        try:
            with Progress(stores, shown=progress) as driver.show:
                driver.run()
        except (OSError, UnfinishedError):  # of what ended the run, not of what cannot be written for the same reason
            with suppress(OSError, UnfinishedError, UserError):
                driver.write(provenance)
            raise
        except BaseException:
            driver.write(provenance)
            raise
        driver.write(provenance)
    return stores


@contextmanager
def disk_answers() -> Iterator[None]:
    """Raise what goes wrong with a file as an UnfinishedError that names it: a full disk, a folder that is gone."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise UnfinishedError(f"{place}{error.strerror or said(error)}") from error


def check_studies(studies: Sequence[Study]) -> None:
    """Try every workload of the studies once. Raises UserError naming the study and what is wrong."""
    edited_modules_reloaded(study.workload for study in studies)
    for study in studies:
        for workload_args in _workload_args(study):
            with _tried(study):
                workload = load_workload(study.workload, workload_args)
                check_workload(workload, study.objective, study.batch_sizes, study.max_train_steps, study.accumulation)


@contextmanager
def _tried(study: Study) -> Iterator[None]:
    """Whatever a workload raises here is a UserError of its study, SystemExit included; Ctrl-C stays what it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{study.name}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"{study.name}: workload: {said(error)} ({where.filename}, line {where.lineno})") from error


def seconds_per_step(study: Study, steps: int = 100) -> dict[int, float]:
    """Measured seconds of one update of one trial, evaluation included, by batch size."""
    every = {"max_train_steps": steps, "evaluations": max(1, steps // study.evaluate_every)}
    short = study.model_copy(update=every | {"prepend_warmup": False, "stop_after": None})
    result = {}
    points = some_points(study, most=1)
    for batch_size in study.batch_sizes:
        point = next(p for p in points if p.batch_size == batch_size)
        point = replace(point, base_lr=0.0, warmup_steps=0)  # no divergence while it is timed
        with _tried(study), torch_threads():
            workload = load_workload(study.workload, point.workload_args)
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
    trials = read_trials(store)
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
            errors="backslashreplace",
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
    """One writer per results folder, and per study in a database. Raises UserError if another run is at work there."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(store.folder / ".lock", timeout=0))
        except Timeout as error:
            raise UserError(f"{store.folder}: another run is writing here; wait for it or stop it") from error
        if store.lock:
            if not store.lock.take():
                raise UserError(
                    f"{store.folder}: another run is writing here, from another folder into the same database; wait "
                    "for it or stop it"
                )
            held.callback(store.lock.release)
        yield store


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
        self.device_names, self.devices = names, devices(names)
        self.device = self.devices[0]
        self.sources = edited_modules_reloaded(store.study.workload for store in stores)
        self.workers = workers or (joblib.cpu_count() if self.device == "cpu" else len(self.devices))
        self.trials = [{_key(t.point): t for t in stored_trials(store, curves=False)} for store in stores]
        self.tried: set[tuple[str, str]] = set()  # (study, point) that crashed in this run: not tried again
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.deaths_before_training = 0  # one after the other
        self.unanswered_since: float | None = None  # by the database, in seconds of `time.monotonic`
        for store in stores:
            _inbox(store).mkdir(exist_ok=True)
            for left in _inbox(store).glob(".*.tmp"):  # by a worker that was killed while it wrote
                left.unlink()

    def run(self) -> None:
        try:
            self.collect()
            for store in self.stores:
                for stem in sorted(interrupted(_inbox(store))):
                    if not saved_state(_inbox(store), stem).exists():
                        warn_once(f"{stem} was interrupted, and is trained again from its start")
            while missing := self.missing():
                tasks = self.tasks(missing)
                for threads in sorted({task.engine.threads for task in tasks}):
                    self.train([task for task in tasks if task.engine.threads == threads])
                for store, points in missing:
                    if engine := self.ended(store, points):
                        _remember_engine(store, points, engine)
        except KeyboardInterrupt:
            self.collect()
            raise

    def write(self, provenance: Mapping[str, object]) -> None:
        """Tables, summaries and notes of every study, with how it was trained."""
        for store in self.stores:
            engines = {size: own.user_attrs.get("engines", {}) for size, own in store.optuna_studies.items()}
            how = {"finished": now(), "workers": self.workers, "device": self.device_names, "engines": engines}
            write_results(store, {**provenance, **how})

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
        found = [self.ended(store, points) or self.forced() or self.before(store, points) for store, points in missing]
        try:
            measured = {
                i: self.pool(self.workers).submit(
                    measure,
                    store.study,
                    points,
                    self.workers,
                    joblib.cpu_count(),
                    self.device,
                    self.compiled,
                    self.slots,
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
            if self.slots is not None and engine.slots != self.slots:
                place = f"{store.study.name}, batch size {points[0].batch_size}"
                warn_once(f"{place}: trained one after the other: {engine.reason}")
        return engines

    @staticmethod
    def ended(store: Store, points: Sequence[Point]) -> Engine | None:
        """One after the other, if a worker found that a stack computes other numbers."""
        reason = why_alone(_inbox(store), points[0])
        return replace(ALONE, measured=True, reason=f"trained alone: {reason}") if reason else None

    def forced(self) -> Engine | None:
        """One after the other, if that is wanted: it needs no check. Other slots do (`engine.choose`)."""
        return replace(ALONE, reason="forced") if self.slots == 1 else None

    def before(self, store: Store, points: Sequence[Point]) -> Engine | None:
        """How the points of this batch size and workload were trained in an earlier run, if it may stay so."""
        if self.slots is not None:
            return None
        found = store.optuna_studies[points[0].batch_size].user_attrs.get("engines", {}).get(points[0].workload_key)
        engine = Engine(**found) if found else None
        return engine if engine and self.compiled in (None, engine.compiled) else None

    def pool(self, workers: int) -> Any:
        """Worker processes, those of an earlier run where the workloads' code is the same."""
        how = (os.getpid(), multiprocessing.get_start_method(allow_none=True), self.sources)
        return get_reusable_executor(workers, initializer=follow_driver, initargs=how)

    def train(self, tasks: Sequence[Task]) -> None:
        """Hand out tasks of equally many threads. A worker that dies ends the pool; what it trained is suspect."""
        suspected = any(self.deaths[task.study.name, name_of(point)] for task in tasks for point in task.points)
        side_by_side = max(1, self.workers // tasks[0].engine.threads) if self.threads is None else self.workers
        workers = 1 if suspected else min(side_by_side, len(tasks))
        pool = self.pool(workers)
        try:
            waiting, pending = deque(tasks), set[Future[None]]()
            while waiting or pending:
                while waiting and len(pending) < TASKS_AHEAD * workers:
                    pending.add(pool.submit(work, waiting.popleft()))
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                self.collect_patiently()
            while not self.collect_patiently():
                time.sleep(POLL_SECONDS)
        except BrokenProcessPool:
            self.collect_patiently()
            self.count_deaths(tasks)
        except BaseException:
            pool.shutdown(kill_workers=True)
            raise

    def count_deaths(self, tasks: Sequence[Task]) -> None:
        suspects = {(task.study.name, stem) for task in tasks for stem in interrupted(task.inbox)}
        self.deaths_before_training = 0 if suspects else self.deaths_before_training + 1
        if self.deaths_before_training == MOST_DEATHS:
            raise UnfinishedError(
                f"worker processes were killed {MOST_DEATHS} times before they began to train (out of memory? fewer "
                "--workers take less); see the messages above"
            )
        self.deaths.update(suspects)
        for store in self.stores:
            for point in next_points(store.study, []):
                key = (store.study.name, name_of(point))
                if key in suspects and self.deaths[key] >= MOST_DEATHS:
                    reason = f"its worker process was killed {MOST_DEATHS} times (out of memory?)"
                    self.record(store, crashed(point, reason))

    def collect_patiently(self) -> bool:
        """Collect, or leave it for later while the database does not answer: what is in the inboxes is safe there.

        Returns whether it did. Raises UnansweredError when it has not answered for long.
        """
        try:
            self.collect()
        except UnansweredError as error:
            since = self.unanswered_since = self.unanswered_since or time.monotonic()
            warn_once(f"{error}: trials wait in the inbox for up to {PATIENCE_SECONDS:.0f} s")
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise
            return False
        self.unanswered_since = None
        return True

    def collect(self) -> None:
        """Tell the store of finished trials, then move their files into the results.

        The record goes last: killed anywhere in between, the next run finds it and completes the move.
        """
        for store, trials in zip(self.stores, self.trials, strict=True):
            if gone := store.lock and store.lock.missing():
                raise UnfinishedError(f"{gone}: is gone; finished trials that were in it are lost")
            found = [(trial, path) for trial, path in posted(_inbox(store)) if self.is_whole(store, trial, path)]
            if found and store.lock:
                store.lock.keep()
            for trial, path in found:
                self.record(store, trial)
                for source, target in ((".npz", curve_path), (".safetensors", checkpoint_path)):
                    if path.with_suffix(source).exists():
                        path.with_suffix(source).replace(target(store.folder, trial.point))
                path.unlink()
            if found:
                _drop_checkpoints(store, trials.values())

    def is_whole(self, store: Store, trial: Trial, path: Path) -> bool:
        """Whether a record is of this study, and its curve with it, or in the results already."""
        known = self.trials[self.stores.index(store)].get(_key(trial.point))
        own = trial.point.batch_size in store.study.batch_sizes and path.stem == name_of(trial.point)
        told = known is not None and not known.verdict.crashed
        whole = bool(trial.curve.metrics) or trial.verdict.crashed or told
        if not (own and whole):
            warn_once(f"{path}: is left out: " + ("its curve is missing" if own else "it is of another study"))
        return own and whole

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


def _remember_engine(store: Store, points: Sequence[Point], engine: Engine) -> None:
    optuna_study = store.optuna_studies[points[0].batch_size]
    engines = optuna_study.user_attrs.get("engines", {}) | {points[0].workload_key: asdict(engine)}
    optuna_study.set_user_attr("engines", engines)


def _key(point: Point) -> tuple[int, int]:
    return point.batch_size, point.number


def _inbox(store: Store) -> Path:
    return store.folder / "inbox"
