"""The driver of a run: it plans, assigns and collects; a backend's workers train.

All groups of all studies share the workers. A worker that vanishes or a killed driver costs the
trials that were in training, nothing else; the same command goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import UnfinishedError, warn_once
from ..signals import STOPS, stop_if_asked
from ..store.database import UnansweredError
from ..store.files import checkpoint_path, curve_path, name_of
from ..store.provenance import now
from ..store.storage import Store, drop_checkpoints, read_records, tell, without_curve
from ..study.sampling import next_points
from ..train.execution import ALONE, Engine
from ..trial import Point, Trial, as_told
from ..workload.workload import code_of, reload_edited_modules
from .backend import Backend, TaskResult, WorkerBack, WorkerInfo, WorkerLost, machines
from .cuts import Cuts
from .engines import EngineRecords
from .inbox import Inbox, read_inbox, saved_state, take_interrupted
from .progress import Progress
from .worker import Choice, Task

# of a worker while the same point was in training; then the point is crashed, not retried
MOST_DEATHS = 3
POLL_SECONDS = 0.2  # between two looks into the inboxes
# with a database that does not answer: a server that is restarted is back sooner
PATIENCE_SECONDS = 60.0
NOT_CHOSEN = replace(
    ALONE, reason=f"worker processes were killed {MOST_DEATHS} times before a choice"
)


class Driver:
    """Plans, assigns tasks to workers, and tells the store what comes back.

    Only `collect` writes trials.
    """

    show: Progress

    def __init__(
        self,
        stores: Sequence[Store],
        backend: Backend,
        workers: int,
        devices: Sequence[str],
        slots: int | None,
        threads: int | None,
        compiled: bool | None,
    ) -> None:
        self.backend, self.workers = backend, workers
        self.stores, self.slots, self.threads, self.compiled = stores, slots, threads, compiled
        self.devices, self.device = devices, devices[0]
        self.sources = reload_edited_modules(
            path for store in stores for path in store.study.code_paths
        )
        self.code = {store.study.name: code_of(store.study.code_paths) for store in stores}
        self.trials = [
            {_key(trial.point): trial for trial in read_records(store)} for store in stores
        ]
        self.engine_records = {store.study.name: EngineRecords(store) for store in stores}
        # by group (`_group_key`): a run chooses once, however its rounds differ in size
        self.chosen: dict[tuple[str, int, str], Engine] = {}
        # (study, point) that crashed in this run: not tried again
        self.tried: set[tuple[str, str]] = set()
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.deaths_before_training = 0  # one after the other
        self.cuts = {
            store.study.name: Cuts(store, Inbox(_inbox(store)))
            for store in stores
            if store.study.cut
        }
        self.to_cut: set[str] = set()  # studies whose trials train up to their cut now
        self.seen: dict[str, WorkerInfo] = {}  # workers, by name
        # by the database, in seconds of `time.monotonic`
        self.unanswered_since: float | None = None
        for store in stores:
            _inbox(store).mkdir(exist_ok=True)
            for left in _inbox(store).glob(".*.tmp"):  # by a worker that was killed while it wrote
                left.unlink()

    def finished_trials(self) -> dict[str, list[Trial]]:
        """The finished trials of each study, by its name."""
        return {
            store.study.name: list(trials.values())
            for store, trials in zip(self.stores, self.trials, strict=True)
        }

    def run(self) -> None:
        try:
            self.collect()
            for store in self.stores:
                for stem in sorted(take_interrupted(_inbox(store))):
                    if not saved_state(_inbox(store), stem).exists():
                        warn_once(f"{stem} was interrupted, and is trained again from its start")
            while planned := self.plan():
                stop_if_asked()
                tasks = self.assign(planned)
                for threads in sorted({task.engine.threads for task in tasks}):
                    self.train([task for task in tasks if task.engine.threads == threads])
                for store, points in planned:
                    if engine := self.alone_if_stacking_failed(store, points):
                        self.engine_records[store.study.name].keep(points[0], engine)
                self.collect_until_answered()
        except STOPS:
            self.collect()
            raise

    def environment_record(self, store: Store) -> dict[str, object]:
        """How a study was trained, for environment.json."""
        return {
            "finished": now(),
            "workers": self.workers,
            "trained_by": machines(self.seen.values()),
            "device": ",".join(self.devices),
            "engines": self.engine_records[store.study.name].by_batch_size(),
        }

    def plan(self) -> list[tuple[Store, list[Point]]]:
        """The points to train now, over all studies, by batch size and workload arguments."""
        planned: dict[tuple[str, int, str], tuple[Store, list[Point]]] = {}
        for store, trials in zip(self.stores, self.trials, strict=True):
            for point in self.points_of(store, trials):
                planned.setdefault(_group_key(store, point), (store, []))[1].append(point)
        return list(planned.values())

    def points_of(self, store: Store, trials: Mapping[tuple[int, int], Trial]) -> list[Point]:
        """The points of one study to train now: to their end, or to its cut if `to_cut` has it."""
        study = store.study
        self.to_cut.discard(study.name)
        while True:
            told = {key: trial for key, trial in trials.items() if not trial.verdict.crashed}
            points = next_points(study, [as_told(trial) for trial in told.values()])
            self.show.plan(study, points)
            tried = {_key(point) for point in points if (study.name, name_of(point)) in self.tried}
            if not study.cut:
                return [point for point in points if _key(point) not in told.keys() | tried]
            decision = self.cuts[study.name].decide(points, told, tried)
            if decision.to_cut:
                self.to_cut.add(study.name)
                return decision.to_cut
            self.show.at_cut(study.name, 0)
            if not decision.stopped:
                return decision.to_end
            self.collect_until_answered()  # those that were stopped; what is told decides the rest

    def assign(self, planned: Sequence[tuple[Store, list[Point]]]) -> list[Task]:
        """What is planned as a task for each batch size and workload.

        Points that were in training when a worker died come last, one by one, so that a
        point that kills its worker costs no other point a try.
        """
        tasks: list[Task] = []
        suspects: list[Task] = []
        for (store, points), engine in zip(planned, self.choose_engines(planned), strict=True):
            study = store.study
            task = partial(
                Task,
                study,
                _inbox(store),
                engine=engine,
                code=self.code[study.name],
                to_cut=study.name in self.to_cut,
            )
            free: list[Point] = []
            for point in points:
                if self.deaths[study.name, name_of(point)]:
                    suspects.append(task(points=[point]))
                else:
                    free.append(point)
            tasks += [task(points=free)] if free else []
        return tasks or suspects

    def choose_engines(self, planned: Sequence[tuple[Store, list[Point]]]) -> list[Engine]:
        """How points of one batch size and workload train.

        As chosen in this run, as forced, as in an earlier run, or as a worker finds by rule.
        """
        known = [
            self.alone_if_stacking_failed(store, points)
            or self.chosen.get(_group_key(store, points[0]))
            or self.alone_if_forced()
            or self.engine_of_earlier_run(store, points[0])
            for store, points in planned
        ]
        unknown = [pair for pair, engine in zip(planned, known, strict=True) if engine is None]
        chosen = iter(self.ask_for_engines(unknown))
        engines: list[Engine] = []
        for (store, points), engine in zip(planned, known, strict=True):
            found = (engine or next(chosen)).fit_for(point.optimizer for point in points)
            engines.append(replace(found, threads=self.threads or found.threads))
            self.chosen[_group_key(store, points[0])] = engines[-1]
            self.engine_records[store.study.name].keep(points[0], engines[-1])
            if self.slots is not None and found.slots != self.slots:
                place = f"{store.study.name}, batch size {points[0].batch_size}"
                warn_once(f"{place}: trained one after the other: {found.reason}")
        return engines

    def ask_for_engines(self, unknown: Sequence[tuple[Store, list[Point]]]) -> list[Engine]:
        """The engines that workers find.

        A worker that is killed meanwhile must change no number, so another is asked; at last it is
        the least that can be done at once.
        """
        tasks = [
            Choice(
                store.study,
                points,
                self.workers,
                self.device,
                self.compiled,
                self.slots,
                self.code[store.study.name],
            )
            for store, points in unknown
        ]
        found: dict[int, Engine] = {}
        asked: Counter[int] = Counter()
        while waiting := [task for task in tasks if id(task) not in found]:
            for over in self.outcomes(waiting, self.workers):
                asked[id(over.task)] += 1
                if over.engine:
                    found[id(over.task)] = over.engine
                elif asked[id(over.task)] == MOST_DEATHS:
                    found[id(over.task)] = NOT_CHOSEN
                    place = f"{over.task.study.name}, batch size {over.task.points[0].batch_size}"
                    warn_once(f"{place}: trained one after the other: {NOT_CHOSEN.reason}")
        return [found[id(task)] for task in tasks]

    @staticmethod
    def alone_if_stacking_failed(store: Store, points: Sequence[Point]) -> Engine | None:
        """One after the other, if a worker found that a stack computes other numbers."""
        reason = Inbox(_inbox(store)).why_alone(points[0])
        return replace(ALONE, reason=reason) if reason else None

    def alone_if_forced(self) -> Engine | None:
        """One after the other, if that is wanted: it needs no check.

        Other slots do (`choose.choose`).
        """
        return replace(ALONE, reason="forced") if self.slots == 1 else None

    def engine_of_earlier_run(self, store: Store, point: Point) -> Engine | None:
        """How this batch size and workload trained, which is how it stays, so that numbers do.

        Whatever decided it holds only where it has trained something.
        """
        if self.slots is not None:
            return None
        group = _group_key(store, point)
        trials = self.trials[self.stores.index(store)].values()
        finished = (one.point for one in trials if not one.verdict.crashed)
        if not any(_group_key(store, one) == group for one in finished):
            return None
        engine = self.engine_records[store.study.name].engine_of(point)
        return engine if engine and self.compiled in (None, engine.compiled) else None

    def train(self, tasks: Sequence[Task]) -> None:
        """Have tasks of equally many threads trained; suspects one after the other."""
        suspected = any(
            self.deaths[task.study.name, name_of(point)] for task in tasks for point in task.points
        )
        side_by_side = (
            max(1, self.workers // tasks[0].engine.threads)
            if self.threads is None
            else self.workers
        )
        points = sum(len(task.points) for task in tasks)
        turns = [[task] for task in tasks] if suspected else [tasks]
        for turn in turns:
            for _ in self.outcomes(turn, 1 if suspected else min(side_by_side, points)):
                pass
        self.collect_until_answered()

    def outcomes(self, tasks: Sequence[Task | Choice], workers: int) -> Iterator[TaskResult]:
        """Hand tasks to so many workers, yield them as they are over, and collect meanwhile.

        Whatever is raised here ends the workers.
        """
        left = len(tasks)
        try:
            if tasks:
                self.backend.start(workers, self.sources, self.devices)
            for task in tasks:
                self.backend.submit(task)
            while left:
                events = self.backend.wait(POLL_SECONDS)
                stop_if_asked()
                self.collect_patiently()
                for name in self.to_cut:
                    self.show.at_cut(name, self.cuts[name].waiting())
                there = self.backend.workers()
                self.seen |= {worker.worker: worker for worker in there}
                self.show.tick(there)
                for event in events:
                    if isinstance(event, TaskResult):
                        left -= 1
                        yield event
                    else:
                        self.count_deaths(event)
        except BaseException as error:
            self.backend.stop(saves=isinstance(error, STOPS))
            raise

    def count_deaths(self, event: WorkerLost | WorkerBack) -> None:
        """Suspect what a lost worker had begun; what was so MOST_DEATHS times is crashed."""
        if isinstance(event, WorkerLost) and event.is_unprompted:
            self.deaths_before_training += 1
            if self.deaths_before_training == MOST_DEATHS:
                raise UnfinishedError(
                    f"worker processes were killed {MOST_DEATHS} times before they began to train "
                    f"(out of memory? fewer --workers take less){self.last_words()}"
                )
        if not isinstance(event.task, Task):
            return
        self.deaths_before_training = 0
        study = event.task.study
        store = next(store for store in self.stores if store.study.name == study.name)
        for point in event.in_training:
            key = (study.name, name_of(point))
            self.deaths[key] += 1 if isinstance(event, WorkerLost) else -1
            if self.deaths[key] >= MOST_DEATHS:
                reason = (
                    f"its worker process was killed {MOST_DEATHS} times (out of memory?)"
                    f"{self.last_words()}"
                )
                self.record(store, Trial.from_crash(point, reason))

    def last_words(self) -> str:
        """Where what dead workers printed is found; empty if they printed nothing."""
        log = self.backend.log
        return f"; what workers printed: {log.path}" if log and log.has_more else ""

    def collect_patiently(self) -> bool:
        """Collect, or leave it for later while the database does not answer.

        Finished trials are safe in the inboxes until then.

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

    def collect_until_answered(self) -> None:
        while not self.collect_patiently():
            time.sleep(POLL_SECONDS)
            stop_if_asked()

    def collect(self) -> None:
        """Tell the store of engines and finished trials, then move their files into the results.

        The record goes last: killed anywhere in between, the next run finds it and completes the
        move.
        """
        for store, trials in zip(self.stores, self.trials, strict=True):
            if gone := store.lock and store.lock.missing():
                raise UnfinishedError(f"{gone}: is gone; finished trials that were in it are lost")
            found = [
                (trial, path)
                for trial, path in read_inbox(_inbox(store))
                if self.is_whole(store, trial, path)
            ]
            engines = self.engine_records[store.study.name]
            if store.lock and (found or engines.has_unsaved()):
                store.lock.keep()
            engines.save()
            for trial, path in found:
                stop_if_asked()
                self.record(store, trial)
                for source, target in ((".npz", curve_path), (".safetensors", checkpoint_path)):
                    if path.with_suffix(source).exists():
                        path.with_suffix(source).replace(target(store.folder, trial.point))
                path.unlink()
            if found:
                drop_checkpoints(store, trials.values())

    def is_whole(self, store: Store, trial: Trial, path: Path) -> bool:
        """Whether a record is of this study, and its curve with it, or in the results already."""
        known = self.trials[self.stores.index(store)].get(_key(trial.point))
        own = trial.point.batch_size in store.study.batch_sizes and path.stem == name_of(
            trial.point
        )
        told = known is not None and not known.verdict.crashed
        whole = bool(trial.curve.metrics) or trial.verdict.crashed or told
        if not (own and whole):
            warn_once(
                f"{path}: is ignored: "
                + ("its curve is missing" if own else "it belongs to another study")
            )
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


def _group_key(store: Store, point: Point) -> tuple[str, int, str]:
    return store.study.name, point.batch_size, point.workload_key


def _key(point: Point) -> tuple[int, int]:
    return point.batch_size, point.number


def _inbox(store: Store) -> Path:
    return store.folder / "inbox"
