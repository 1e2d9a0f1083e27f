"""Files of a results folder, each written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic_core import to_json
from safetensors.torch import save_file
from torch import Tensor

from .trial import Curve, Point


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def name_of(point: Point) -> str:
    """The stem of every file about a point."""
    return f"batch_size={point.batch_size}-{point.number:05d}"


def curve_path(folder: Path, point: Point) -> Path:
    return folder / "curves" / f"{name_of(point)}.npz"


def checkpoint_path(folder: Path, point: Point) -> Path:
    return folder / "checkpoints" / f"{name_of(point)}.safetensors"


def write_curve(path: Path, curve: Curve) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **curve.arrays())  # type: ignore[arg-type]


def read_curve(path: Path) -> Curve:
    with np.load(path, allow_pickle=False) as arrays:
        return Curve.from_arrays(arrays)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary)


def write_json(path: Path, value: object) -> None:
    """Strict JSON of records and plain values; nan and inf become the strings "NaN" and "Infinity"."""
    with atomic(path) as temporary:
        temporary.write_bytes(to_json(value, indent=2, inf_nan_mode="strings") + b"\n")
