"""Optuna studies that somebody else made: read, and left as they are.

A file is copied, and the copy is opened, for Optuna writes into what it opens: tables that it
misses, a version, a log. A server is opened in sessions that can only read.
"""

from __future__ import annotations

import logging
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from ..errors import UserError, first_line, mask_password
from ..judge.imported import State
from ..sources.runs import Run, Sweep
from ..study.study import Axis, Range
from .database import CONNECT, OPTUNA_TABLES, scrub, sqlite_file, with_driver
from .storage import BATCH_SIZE

SQLITE_MAGIC = b"SQLite format 3\x00"
WRITE_AHEAD = 2  # at byte 18 of an SQLite file: it has a write-ahead log
JOURNAL_MAGIC = b'{"op_code"'
METRIC_NAMES = "study:metric_names"  # the attribute in which Optuna keeps names of objectives
FAIL_REASON = "fail_reason"  # in which Optuna 2 kept why a trial failed, as for a value of nan
READ_ONLY: dict[str, dict[str, Any]] = {
    "postgresql": {"options": "-c default_transaction_read_only=on"}
}
STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "stopped",
    TrialState.RUNNING: "running",
}


def is_optuna_file(path: Path) -> bool:
    """Whether a file is an SQLite database or a journal of Optuna's, by how it begins."""
    with path.open("rb") as file:
        start = file.read(len(SQLITE_MAGIC))
    return start == SQLITE_MAGIC or start.startswith(JOURNAL_MAGIC)


def read_optuna(source: str, study: str | None = None, objective: str | None = None) -> Sweep:
    """The trials of an Optuna study: of a storage's URL, or a file; of several objectives, the one
    that is named.

    Raises UserError for a storage that cannot be opened or has no such study, and for a study that
    is of tunewright's making, or has several objectives of which none is named.
    """
    with _opened(source) as (storage, shown):
        try:
            chosen = _choose(storage.get_all_studies(), study, shown)
            trials = storage.get_all_trials(chosen._study_id, deepcopy=False)
        except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise UserError(f"{shown}: cannot be read: {reason}; is it damaged?") from error
    if BATCH_SIZE in chosen.study_name and "plan" in chosen.user_attrs:
        raise UserError(
            f"{shown}: study {chosen.study_name!r} was made by tunewright: its results folder has "
            "its report"
        )
    place, name = _objective(chosen, objective)
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    return Sweep(
        origin=f"study {chosen.study_name!r} of {shown}",
        runs=[_run(trial, place, name, len(chosen.directions)) for trial in begun],
        objective=name,
        maximize=chosen.directions[place] == StudyDirection.MAXIMIZE,
        axes=_axes(begun),
        remarks=[*_of_waiting(len(trials) - len(begun)), *_of_constraints(begun)],
    )


def _of_waiting(count: int) -> Iterator[str]:
    if count:
        yield f"{count} trials wait to be run, and are left out"


def _of_constraints(trials: Sequence[FrozenTrial]) -> Iterator[str]:
    """Optuna takes no trial for the best that violates a constraint of the study."""
    violating = [t.number for t in trials if any(value > 0 for value in t.constraints.values())]
    if violating:
        yield (
            f"{len(violating)} of {len(trials)} trials violate the study's constraints, as trial "
            f"{violating[0]}: here they are ranked with the others, by the objective alone"
        )


# --- opening --------------------------------------------------------------------------------------


@contextmanager
def _opened(source: str) -> Iterator[tuple[BaseStorage, str]]:
    """A storage to read from, and its name in messages."""
    path = Path(source)
    url = None
    if "://" in source:
        try:
            url = with_driver(sqlalchemy.make_url(source))
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise UserError(
                f"{mask_password(source)}: must be a URL as sqlite:///studies.db or "
                "postgresql://user@host/database"
            ) from error
        if url.get_backend_name() != "sqlite":
            shown = mask_password(url.render_as_string(hide_password=False))
            with _connected(_server(url, shown)) as storage:
                yield storage, shown
            return
        found = sqlite_file(url)
        if found is None:
            raise UserError(f"{source}: is in no file, and so has no trials")
        path = found
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    with tempfile.TemporaryDirectory(prefix="tunewright-") as folder:
        copy = Path(folder) / "copy"
        if url is None and not _is_sqlite(path):
            shutil.copyfile(path, copy)
            yield _journal(copy, path), str(path.resolve())
        else:
            _snapshot(path, copy)
            with _connected(_copy_of(copy, path)) as storage:
                yield storage, f"sqlite:///{path.resolve()}"


@contextmanager
def _connected(storage: RDBStorage) -> Iterator[RDBStorage]:
    """A storage whose connections are closed at the end."""
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def _journal(copy: Path, path: Path) -> BaseStorage:
    try:
        return JournalStorage(JournalFileBackend(str(copy)))
    except Exception as error:  # of a damaged journal Optuna raises whatever it stumbles over
        raise UserError(
            f"{path}: is neither a journal of Optuna's nor another source that can be read: "
            f"{first_line(error)}"
        ) from error


def _snapshot(path: Path, copy: Path) -> None:
    """Copy an SQLite database, as it is between two transactions, without a trace beside it.

    Even to read one that has a write-ahead log, SQLite makes files beside it, unless it is told
    that nobody writes: as is so where there is no such file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
        has_log = path.with_name(f"{path.name}-wal").exists()
        alone = header[18:19] == bytes([WRITE_AHEAD]) and not has_log
        mode = "immutable=1" if alone else "mode=ro"
        with (
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except (sqlite3.Error, OSError) as error:
        raise UserError(f"{path}: is no SQLite database that can be read: {error}") from error


def _copy_of(copy: Path, path: Path) -> RDBStorage:
    """Optuna's storage on a copy, which is brought to this version's tables."""
    with closing(sqlite3.connect(copy)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows}
    _check_tables(tables, path)
    try:
        storage = RDBStorage(f"sqlite:///{copy}", skip_compatibility_check=True)
        if storage.get_current_version() != storage.get_head_version():
            with _logging_kept():
                storage.upgrade()
    except Exception as error:  # of foreign tables: whatever alembic stumbles over
        raise UserError(
            f"{path}: its tables are of another version of Optuna: {first_line(error)}"
        ) from error
    return storage


def _check_tables(tables: Collection[str], place: str | Path) -> None:
    if not set(tables) >= OPTUNA_TABLES:
        some = ", ".join(sorted(tables)[:3]) or "none"
        raise UserError(f"{place}: is no database of Optuna's: its tables are {some}")


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Without the words of alembic, which turns off every logger that is there for its own."""
    root, own = logging.getLogger(), logging.Logger.manager.loggerDict.values()
    before = [(one, one.disabled) for one in own if isinstance(one, logging.Logger)]
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger, disabled in before:
            logger.disabled = disabled


def _server(url: URL, shown: str) -> RDBStorage:
    """A storage on a server that is only read."""
    backend = url.get_backend_name()
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {**CONNECT.get(backend, {}), **READ_ONLY.get(backend, {})}
    try:
        engine = sqlalchemy.create_engine(url, connect_args=options)
        try:
            tables = set(sqlalchemy.inspect(engine).get_table_names())
        finally:
            engine.dispose()
        _check_tables(tables, shown)
        return RDBStorage(text, engine_kwargs={"connect_args": options}, skip_table_creation=True)
    except ImportError as error:
        raise UserError(
            f"{shown}: its driver is not installed: {scrub(url, first_line(error))}"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        reason = scrub(url, first_line(getattr(error, "orig", None) or error))
        raise UserError(f"{shown}: cannot be opened: {reason}") from error


# --- reading --------------------------------------------------------------------------------------


def _choose(studies: Sequence[FrozenStudy], name: str | None, shown: str) -> FrozenStudy:
    """The study of a name; the only one where none is given."""
    known = ", ".join(repr(one.study_name) for one in studies) or "none"
    if name is None:
        if len(studies) != 1:
            raise UserError(f"{shown}: name one of its studies with --study: there are {known}")
        return studies[0]
    for one in studies:
        if one.study_name == name:
            return one
    raise UserError(f"--study: {shown} has no study {name!r}: there are {known}")


def _objective(study: FrozenStudy, wanted: str | None) -> tuple[int, str]:
    """Which of a study's objectives runs are ranked by, and its name."""
    count = len(study.directions)
    names = list(study.system_attrs.get(METRIC_NAMES) or [])
    if len(names) != count:
        names = ["value"] if count == 1 else [f"values_{place}" for place in range(count)]
    if wanted is not None and wanted in names:
        return names.index(wanted), wanted
    if wanted is not None:
        raise UserError(f"--map objective={wanted}: the objectives are {', '.join(names)}")
    if count > 1:
        raise UserError(
            f"study {study.study_name!r} has {count} objectives, and runs are ranked by one: say "
            f"which with --map objective=…: {', '.join(names)}"
        )
    return 0, names[0]


def _run(trial: FrozenTrial, place: int, objective: str, count: int) -> Run:
    values = trial.values or []
    # A pruned trial has its last report for a value, which ranks it with no finished one.
    is_final = trial.state == TrialState.COMPLETE and len(values) == count
    metrics = {objective: float(values[place])} if is_final else {}
    if trial.state == TrialState.FAIL and "nan" in str(trial.system_attrs.get(FAIL_REASON, "")):
        metrics = {objective: math.nan}
    took = trial.duration.total_seconds() if trial.duration else math.nan
    return Run(
        name=f"trial {trial.number}",
        number=trial.number,
        config={name: _plain(value) for name, value in trial.params.items()},
        metrics=metrics,
        state=STATES[trial.state],
        reported=dict(sorted(trial.intermediate_values.items())) if count == 1 else {},
        seconds=took,
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _axes(trials: Sequence[FrozenTrial]) -> dict[str, Axis]:
    """What was searched, by parameter: the union of what trials were drawn from."""
    found: dict[str, dict[BaseDistribution, None]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            found.setdefault(name, {})[distribution] = None
    return {name: _axis(list(distributions)) for name, distributions in found.items()}


def _axis(distributions: Sequence[BaseDistribution]) -> Axis:
    choices = [one for one in distributions if isinstance(one, CategoricalDistribution)]
    if choices:
        values = [_plain(value) for one in choices for value in one.choices]
        return tuple(dict.fromkeys(values))
    numbers = [one for one in distributions if isinstance(one, FloatDistribution | IntDistribution)]
    low, high = min(one.low for one in numbers), max(one.high for one in numbers)
    if low == high:
        return (low,)
    return Range(low=float(low), high=float(high), log=all(one.log for one in numbers), points=None)
