"""Run studies: the driver trains what is missing, then tables, summaries and notes are written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from .errors import LOG, UnfinishedError, UserError, describe_error
from .pool.backend import Backend
from .pool.driver import Driver
from .pool.hired import Executor, Hired
from .pool.local import this_machine
from .pool.output import WorkersLog
from .pool.progress import Progress, Whole
from .signals import defer_signals, interrupt_on_signal, stop_if_asked
from .store.places import RUNS, has_results
from .store.provenance import environment, write_environment
from .store.results import Results
from .store.storage import Store, create_store, exclusive
from .store.warm import gather, warm_start
from .study.study import Study
from .train.choose import devices
from .trainers.tryout import check_studies
from .trial import Trial

Then = Callable[[Results], object]


def run_studies(
    studies: Sequence[Study],
    results: str | Path = RUNS,
    workers: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    slots: int | None = None,
    compiled: bool | None = None,
    storage: str | None = None,
    progress: bool = True,
    then: Then | None = None,
    backend: Backend | None = None,
    executor: Executor | None = None,
    whole: Whole | None = None,
) -> list[Store]:
    """Train every point of every study that is not in its results yet, in one pool of workers.

    `device` names torch devices, as "cuda:0,cuda:1": every GPU of this machine by default, or its
    processor where there is none. `workers` defaults to one per GPU, or per processor core. `slots`
    forces how many trials a worker trains at once (1: one after the other); by default a rule says
    (`choose.choose`). `threads` is how many torch threads each worker has, 1 by default. What
    workers of this machine print is in workers.log of the first study. `compiled`: whether to train
    by torch.compile; by default as the study began, and at first without. `backend` says who
    trains: worker processes of this machine (the default), or this process (`InProcess`), for
    debuggers; or give an `executor`, any of `concurrent.futures`, Dask's, or submitit's, which
    starts so many `workers` on whatever machines, on `device` there; `Hired` says more, and is a
    `backend`. Tables and summaries are written at the end, also after an interruption. `then` is
    called with the results of each study once these are written, one study after the other.
    `whole`: what this run is a step of, for its progress.

    Raises UserError for a mistake in a study or its workload, or if two studies have one name,
    before anything is trained; KeyboardInterrupt at the next safe point after Ctrl-C (`signals`),
    with all finished trials stored.
    """
    results = Path(results)
    if len({study.name for study in studies}) < len(studies):
        raise UserError(
            "the studies must differ in name: the results folder is named after the file"
        )
    if executor is not None and backend is not None:
        raise UserError("executor: cannot stand beside backend: each says who trains")
    with ExitStack() as stack:
        if executor is not None:
            hired = Hired(executor, device=device or "cpu", folder=results)
            backend, device = stack.enter_context(closing(hired)), "cpu"
        backend = backend or this_machine()
        own = devices(device)
        if device is None and own != ["cpu"]:
            LOG.info("training on %s (--device cpu: on the processor)", ", ".join(own))
        workers = backend.count(workers, own)
        check_studies(studies)
        _check_warm_starts(studies, results, storage)
        provenance = environment(sys.argv)
        stack.enter_context(disk_answers())
        stack.enter_context(defer_signals())
        stores = []
        for study in studies:
            store = stack.enter_context(exclusive(create_store(study, results, storage)))
            stores.append(_warm(store))
            stop_if_asked()
        backend.log = log = WorkersLog(stores[0].folder)
        driver = Driver(stores, backend, workers, own, slots, threads, compiled)
        try:
            live = not backend.owns_terminal
            shown = Progress(driver.finished_trials(), progress, live, whole)
            with shown as driver.show:
                driver.run()
        # raise the first error; writing may fail for the same reason, and that is not reported
        except (OSError, UnfinishedError):
            with suppress(OSError, UnfinishedError, UserError):
                _write(driver, provenance)
            raise
        except BaseException:
            _write(driver, provenance)
            raise
        finally:
            if log.has_more:
                LOG.info("what workers printed: %s", log.path)
        _write(driver, provenance, then)
    return stores


def _check_warm_starts(studies: Sequence[Study], results: Path, storage: str | None) -> None:
    """Say what is wrong with a warm start before anything is written. Raises UserError."""
    for study in studies:
        if study.warm_start and not has_results(results / study.name, storage):
            gather(study)


def _warm(store: Store) -> Store:
    """The store after its study's warm start, which is told."""
    warmed, said = warm_start(store)
    for sentence in said:
        LOG.info("warm start: %s", sentence)
    return warmed


@contextmanager
def disk_answers() -> Iterator[None]:
    """Raise an error of a file as an UnfinishedError that names it: a full disk, a lost folder."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise UnfinishedError(f"{place}{error.strerror or describe_error(error)}") from error


def run_study(study: Study, **options: object) -> list[Trial]:
    """Run one study, and return its trials. Options as `run_studies`."""
    kept: list[Results] = []
    run_studies([study], then=kept.append, **options)  # type: ignore[arg-type]
    return list(kept[0].trials)


def _write(driver: Driver, provenance: Mapping[str, object], then: Then | None = None) -> None:
    """Tables, summaries and notes of every study, with how it was trained."""
    for store, records in zip(driver.stores, driver.trials, strict=True):
        write_environment(store.folder, {**provenance, **driver.environment_record(store)})
        _publish(Results.read(store, records.values()), then)


def _publish(results: Results, then: Then | None) -> None:
    """A call of its own, after which these are out of memory before the next study's are read."""
    # Its dashboard and figures take seconds to import, and no trial needs them.
    from .show.publish import write_results

    write_results(results)
    if then:
        with interrupt_on_signal():
            then(results)
