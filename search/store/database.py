"""Databases of Optuna studies by URL: drivers, locks, and errors that show no password."""

from __future__ import annotations

import hashlib
import sqlite3
import weakref
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages._rdb import models
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.engine import ExceptionContext

from ..errors import UnfinishedError, UserError, first_line, mask_password

SECONDS_TO_WAIT_FOR_A_LOCK = 60
# psycopg returns bytes where text is in no stated encoding, as in a cluster of the C locale.
CONNECT: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": SECONDS_TO_WAIT_FOR_A_LOCK},
    "postgresql": {"client_encoding": "utf8"},
}
DRIVERS = ("psycopg", "psycopg2")  # of PostgreSQL, in the order in which they are taken
OPTUNA_TABLES = {"studies", "trials", "version_info"}
SHORTEST_SECRET = 4  # characters: anything shorter is no secret, and occurs in many messages


class UnansweredError(UnfinishedError):
    """A database does not answer, or cannot write: it may do so again."""


def open_storage(url: str | URL) -> optuna.storages.BaseStorage:
    """An Optuna storage by URL.

    SQLite gets a write-ahead log, so that readers never block the writer. Raises UserError if the
    database cannot be reached or is not an Optuna database of this version; later use raises
    UnansweredError, or UserError for a damaged file. No message shows a password.
    """
    try:
        url = with_driver(sqlalchemy.make_url(url))
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise UserError(
            "storage: must be a URL as postgresql://user:password@host:port/database"
        ) from error
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        _refuse_foreign(sqlite_file(url))
    options: dict[str, Any] = {} if sqlite else {"pool_pre_ping": True}
    options["connect_args"] = CONNECT.get(url.get_backend_name(), {})
    # Optuna formats the URL it is given, to fill in a schema version: braces stand for themselves
    # when doubled.
    text = url.render_as_string(hide_password=False)
    shown = mask_password(text)
    try:
        storage = optuna.storages.RDBStorage(
            text.replace("{", "{{").replace("}", "}}"), engine_kwargs=options
        )
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, RuntimeError, ImportError) as error:
        raise UserError(f"storage: cannot open {shown}: {scrub(url, first_line(error))}") from error
    if sqlite:
        sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
        storage.engine.dispose()
    # otherwise its connections to the server stay open
    weakref.finalize(storage, storage.engine.dispose)
    sqlalchemy.event.listen(
        storage.engine, "handle_error", lambda context: _in_a_sentence(context, shown)
    )
    return optuna.storages.get_storage(storage)


def with_driver(url: URL) -> URL:
    """A plain postgresql:// with the driver that is installed.

    SQLAlchemy 2.0 by itself takes psycopg2 only, 2.1 psycopg.
    """
    if url.drivername == "postgresql":
        for driver in DRIVERS:
            if find_spec(driver):
                return url.set(drivername=f"postgresql+{driver}")
    return url


def scrub(url: URL, text: str) -> str:
    """A driver's message without the password and the options of the URL, should it quote them."""
    options = [
        value
        for value in url.query.values()
        if isinstance(value, str) and len(value) >= SHORTEST_SECRET
    ]
    for secret in (url.password, *options):
        text = text.replace(str(secret), "***") if secret else text
    return text


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database, symbolic links resolved.

    None for one in memory or of another kind.
    """
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database)).resolve()


def _refuse_foreign(path: Path | None) -> None:
    """Raise UserError for another program's database, before Optuna adds its tables to it."""
    if path is None or not path.is_file() or not path.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            found = {
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
            if found <= set(models.BaseModel.metadata.tables) and not _has_rows(connection, found):
                # its creation was interrupted, by a full disk, say: Optuna adds the tables that are
                # missing
                return
    except sqlite3.Error:
        return  # the error is reported where the file is opened
    if found and not found >= OPTUNA_TABLES:
        some = ", ".join(sorted(found)[:3])
        raise UserError(
            f"{path}: is another program's database, with tables {some}: move it away, or name "
            "another"
        )


def _has_rows(connection: sqlite3.Connection, tables: set[str]) -> bool:
    return any(connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in tables)


def _in_a_sentence(context: ExceptionContext, shown: str) -> Exception | None:
    """What is raised in place of an error of the database, wherever it is asked."""
    error = context.sqlalchemy_exception
    if error is None or context.is_pre_ping or isinstance(error, sqlalchemy.exc.IntegrityError):
        return None  # not the database's, tried again by the pool, or expected by Optuna
    reason = f"storage: {shown}: {first_line(context.original_exception)}"
    if isinstance(error, sqlalchemy.exc.OperationalError):
        return UnansweredError(reason)
    return UserError(f"{reason}. Is it damaged? Move it away, and the same command begins anew")


def _write_ahead(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def engine_of(storage: optuna.storages.BaseStorage) -> Engine | None:
    """The connections of a storage in a database."""
    engine: Engine | None = getattr(getattr(storage, "_backend", storage), "engine", None)
    return engine


class StudyLock:
    """Held by the one driver that writes a study into a database, wherever its results folder is.

    For SQLite a locked file beside the database. For PostgreSQL an advisory lock, which ends with
    the connection that holds it: neither outlives a driver that is killed.
    """

    def __init__(self, engine: Engine, study: str) -> None:
        digest = hashlib.sha256(study.encode("utf-8", "surrogatepass")).digest()
        self._engine, self._key = engine, int.from_bytes(digest[:8], "big", signed=True)
        self._database = file = sqlite_file(engine.url)
        self._file = (
            FileLock(file.with_name(f"{file.name}.{study}.lock"), timeout=0) if file else None
        )
        self._connection: Connection | None = None

    def take(self) -> bool:
        """Take the lock unless somebody else has it; returns whether it was taken."""
        if self._file:
            try:
                self._file.acquire()
            except Timeout:
                return False
        elif self._engine.dialect.name == "postgresql":
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # from the pool: it is closed with the lock
            if not connection.scalar(
                sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}
            ):
                connection.close()
                return False
            self._connection = connection
        return True

    def keep(self) -> None:
        """Take it again if the connection was lost.

        Raises UserError if somebody else has it by now.
        """
        if self._connection is None:
            return
        try:
            if self._connection.closed:  # by an earlier call that the database did not answer
                raise UnansweredError
            self._connection.scalar(sqlalchemy.text("SELECT 1"))
        except UnansweredError:
            if not self._connection.closed:
                self._connection.invalidate()
                self._connection.close()
            if not self.take():
                raise UserError(
                    "storage: the connection was lost, and another run writes this study now"
                ) from None

    def missing(self) -> Path | None:
        """The database's file if it was removed, else None.

        SQLite goes on writing into a file that was removed.
        """
        return self._database if self._database and not self._database.exists() else None

    def release(self) -> None:
        if self._file:
            self._file.release()
        if self._connection:
            self._connection.close()
            self._connection = None
