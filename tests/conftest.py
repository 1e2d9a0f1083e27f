"""A real PostgreSQL server for the tests that need one."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import psycopg2
import pytest
import torch

torch.set_num_threads(1)  # the tensors are small; more threads only get in each other's way

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
