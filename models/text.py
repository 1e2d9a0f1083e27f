"""Text for a small language model: the characters of Python's own standard library.

The first 20,000 characters of each of 20 modules, laid end to end and cut 80/10/10 into contiguous
parts, each cut into windows of `context` characters with the characters that follow. The text comes
with the interpreter, so it is real and needs no download; it changes a little from one version of
Python to the next, so results are comparable only within one version.

  N  windows    T  context    V  vocabulary
"""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Examples, Split

# Plain modules that have long been single files of some length, on different subjects.
MODULES = (
    "argparse.py",
    "calendar.py",
    "configparser.py",
    "contextlib.py",
    "difflib.py",
    "email/message.py",
    "fractions.py",
    "gettext.py",
    "heapq.py",
    "inspect.py",
    "ipaddress.py",
    "optparse.py",
    "pickle.py",
    "plistlib.py",
    "random.py",
    "shutil.py",
    "smtplib.py",
    "socket.py",
    "statistics.py",
    "threading.py",
)
MODULE_CHARACTERS = 20_000  # of each module, its first: 400,000 in all
UNKNOWN = 0
VOCABULARY = 1 + len("\n") + (127 - 32)  # unknown, newline, printable ASCII
# Validation reads this many windows, spread evenly over its part: all of them, 1,250 at context 32,
# would cost as much as twenty training steps at every evaluation.
VALIDATION_WINDOWS = 128


@functools.cache
def load(context: int) -> Split:
    """Windows as (x_NT, y_NT) int64, y the character after each of x.

    Raises FileNotFoundError if this Python comes without the source of its library.
    """
    tokens = encode(library_text())
    train, validation, test = torch.split(tokens, _lengths(len(tokens)))
    windows = _windows(validation, context)
    thinned = torch.linspace(
        0, len(windows[0]) - 1, min(VALIDATION_WINDOWS, len(windows[0]))
    ).long()
    return Split(
        train=_windows(train, context),
        validation=tuple(tensor[thinned] for tensor in windows),
        test=_windows(test, context),
    )


def library_text() -> str:
    """The beginnings of the modules, one after the other."""
    library = Path(sysconfig.get_path("stdlib"))
    missing = [name for name in MODULES if not (library / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{library}: this Python has no source of {', '.join(missing)}; the character "
            "language model reads it as its text, so run it with a Python that has the library's "
            ".py files"
        )
    return "".join((library / name).read_text("utf-8")[:MODULE_CHARACTERS] for name in MODULES)


def encode(text: str) -> Tensor:
    """Characters → int64 tokens: 0 unknown, 1 newline, 2 … 96 printable ASCII."""
    code_N: NDArray[np.uint32] = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    token_N = np.where((code_N >= 32) & (code_N < 127), code_N.astype(np.int64) - 30, UNKNOWN)
    return torch.from_numpy(np.where(code_N == ord("\n"), 1, token_N))


def _lengths(characters: int) -> list[int]:
    tenth = characters // 10
    return [characters - 2 * tenth, tenth, tenth]


def _windows(tokens: Tensor, context: int) -> Examples:
    windows_NT1 = tokens.unfold(0, context + 1, context)
    return windows_NT1[:, :-1].contiguous(), windows_NT1[:, 1:].contiguous()
