"""The formats of logs: how each is recognized, and what reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from . import delimited, event_files, json_lines, trainer_state
from .table import Table

HEAD = 65_536  # bytes at the beginning of a file by which its format is known
TRAINER_STATE, METRICS, MEASUREMENTS = "trainer_state.json", "metrics.csv", "measurements.csv"
CHECKPOINT = re.compile(r"checkpoint-[0-9]+")  # a folder of a Trainer's
OF_RUNS = (TRAINER_STATE, METRICS, MEASUREMENTS)  # names by which a folder's logs are found


@dataclass(frozen=True)
class Format:
    """One format of logs.

    recognizes   whether a file is of this format, given its path and its first bytes
    read         its columns
    note         what is to be known of every such log, in a sentence
    """

    name: str
    recognizes: Callable[[Path, bytes], bool]
    read: Callable[[Path], Table]
    note: str = ""


def _holds(*names: str) -> Callable[[Path, bytes], bool]:
    return lambda _path, head: set(names) <= set(delimited.header(head))


def _is_table(path: Path, head: bytes) -> bool:
    return len(delimited.header(head)) > (0 if path.suffix == ".csv" else 1)


# The first that recognizes a file reads it.
FORMATS = (
    Format(
        "TensorBoard event files",
        lambda path, _head: bool(event_files.files(path)),
        event_files.read,
    ),
    Format(
        "Transformers' trainer_state.json",
        lambda path, head: path.suffix == ".json" and trainer_state.recognizes(head),
        trainer_state.read,
    ),
    Format("JSON lines", lambda _path, head: json_lines.recognizes(head), json_lines.read),
    Format("JSON list", lambda _path, head: json_lines.recognizes_list(head), json_lines.read_list),
    Format(
        "AlgoPerf's measurements.csv",
        _holds("global_step", "accumulated_submission_time"),
        delimited.read,
        "It leaves a loss that is nan out, as pandas does.",
    ),
    Format("Lightning's metrics.csv", _holds("epoch", "step"), delimited.read),
    Format(
        "W&B history",
        _holds("_step"),
        delimited.read,
        "It leaves a loss that is nan out if it was written by pandas.",
    ),
    Format("CSV", _is_table, delimited.read),
)


def find_format(path: Path) -> Format:
    """The format of a log. Raises UserError for a file that is empty, binary or of none."""
    head = b""
    if not path.is_dir():
        with path.open("rb") as file:
            head = file.read(HEAD)
        if not head.strip():
            raise UserError(f"{path}: is empty")
    found = [one for one in FORMATS if one.recognizes(path, head)]
    if not found:
        names = ", ".join(one.name for one in FORMATS)
        raise UserError(f"{path}: is of no format that is known: {names}")
    return found[0]


def logs_in(path: Path) -> list[Path]:
    """The logs that a path names.

    A file, or a folder of event files, is one itself. Of a folder of runs it is every log that is
    known by its name. Of the checkpoints of one run the last one's trainer_state.json holds what
    the others do. Raises UserError for a path that is not there, and for a folder without logs.
    """
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: is no file and no folder")
        if path.is_fifo():
            raise UserError(f"{path}: is a pipe, which is read once: write it to a file first")
        return [path]
    found = list(_logs_below(path))
    if not found:
        names = ", ".join(OF_RUNS)
        raise UserError(f"{path}: a folder without logs: it holds no event files, {names}")
    return found


def _logs_below(folder: Path) -> Iterator[Path]:
    if event_files.files(folder):
        yield folder
        return  # folders in it, as SummaryWriter.add_scalars makes them, are no runs of their own
    names = [name for name in OF_RUNS if (folder / name).is_file()]
    yield from (folder / name for name in names)
    below = sorted(child for child in folder.iterdir() if child.is_dir())
    checkpoints = [child for child in below if CHECKPOINT.fullmatch(child.name)]
    states = [child / TRAINER_STATE for child in sorted(checkpoints, key=_number)]
    states = [state for state in states if state.is_file()]
    if TRAINER_STATE not in names:
        yield from states[-1:]
    for child in below:
        if child not in checkpoints:
            yield from _logs_below(child)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
