"""What all tests share: where files are, who runs in one process, a real PostgreSQL server."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import optuna.storages._rdb.storage as optuna_storage
import psycopg2
import pytest
import torch
from alembic.script import ScriptDirectory

from tunewright.search.workload.workload import is_own

torch.set_num_threads(1)  # the tensors are small; more threads only get in each other's way

ROOT = Path(__file__).parents[1]
IN_MEMORY = Path("/dev/shm")
BYTES_OF_FILES = 4 * 2**30  # several times what all tests write


def pytest_configure() -> None:
    """Temporary folders are in memory where there is room: databases often wait for a disk."""
    with suppress(OSError):
        if shutil.disk_usage(IN_MEMORY).free > BYTES_OF_FILES:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a file run in one process, for they share what it makes once.

    But those that are marked `apart`, which go to the process that is free first.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if not item.get_closest_marker("apart"):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(config.rootpath))))


@pytest.fixture(scope="module", autouse=True)
def _modules_of_temporary_folders_are_forgotten() -> Iterator[None]:
    """Files of tests name their workloads alike: none may find that of another, or its ruins."""
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and is_own(sys.modules[name]) and not Path(file).is_relative_to(ROOT):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def _migrations_are_read_once() -> Iterator[None]:
    """Optuna reads all migrations of its tables three times for each new database."""
    manager, found = optuna_storage._VersionManager, []
    read = manager._create_alembic_script

    def script(self: optuna_storage._VersionManager) -> ScriptDirectory:
        if not found:
            found.append(read(self))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "_create_alembic_script", script)
        yield


# set: a missing PostgreSQL fails the tests instead of skipping them
REQUIRED = "TUNEWRIGHT_REQUIRE_POSTGRESQL"
USER, PASSWORD, DATABASE = "tunewright", "opensesame", "postgres"
SECONDS_TO_START = 60
HOST = "127.0.0.1"


@pytest.fixture
def postgresql(postgresql_port: int) -> str:
    """The URL of an empty database of this test alone, password included."""
    name = f"test_{secrets.token_hex(8)}"
    with closing(_connect(postgresql_port)) as connection, connection.cursor() as cursor:
        connection.autocommit = True  # no database is made within a transaction
        cursor.execute(f"CREATE DATABASE {name}")
    return f"postgresql://{USER}:{PASSWORD}@{HOST}:{postgresql_port}/{name}"


@pytest.fixture(scope="session")
def postgresql_port() -> Iterator[int]:
    """The port of a server on loopback. Skipped if PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no initdb on the PATH or in /usr/lib/postgresql"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    # Not in pytest's own folder, which no other user may enter.
    with (
        tempfile.TemporaryDirectory(prefix="tunewright-postgresql-") as folder,
        _server(programs, Path(folder)) as port,
    ):
        yield port


def _programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version installed."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # where Debian puts them
    return max(
        (path.parent for path in installed), key=lambda path: float(path.parent.name), default=None
    )


@contextmanager
def _server(programs: Path, folder: Path) -> Iterator[int]:
    """A server on loopback with its files in `folder`, stopped by its own process at the end."""
    account = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    if account:
        shutil.chown(folder, account)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def start(program: str, *arguments: str | Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [programs / program, "-D", folder / "cluster", *arguments],
            user=account, cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip

    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)  # of use for this folder's server alone
    with (folder / "log").open("wb") as log:
        initdb = start(
            "initdb",
            "-E",
            "UTF8",
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            f"--pwfile={folder / 'password'}",
            log=log,
        )
        assert initdb.wait() == 0, (folder / "log").read_text()
        server = start("postgres", "-h", HOST, "-p", str(port), "-k", folder, "-F", log=log)
    try:
        _wait_for(server, port, folder / "log")
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # "fast shutdown": who is still connected is disconnected
        server.wait(30)


def _connect(port: int) -> psycopg2.extensions.connection:
    return psycopg2.connect(host=HOST, port=port, user=USER, password=PASSWORD, dbname=DATABASE)


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            with closing(_connect(port)):
                return
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL does not start:\n{log.read_text()}")
            time.sleep(0.1)
