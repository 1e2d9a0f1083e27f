"""Files of a results folder, each written whole or not at all.

A damaged file is named in a warning, and counts as missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from pydantic_core import to_json

from ..errors import first_line, printable, warn_once
from ..trial import EMPTY_CURVE, Curve, Point, Trial, Verdict

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an exception.

    A folder that stands in the file's place is set aside.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if path.is_dir():
            _set_aside(path)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a full disk, found by a write
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _set_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.aside{i or ''}") for i in count())
    free = next(name for name in names if not name.exists())
    path.rename(free)
    warn_once(f"{path}: a folder stands in the place of a file: set aside as {free.name}")


def name_of(point: Point) -> str:
    """The stem of every file about a point."""
    return f"batch_size={point.batch_size}-{point.number:05d}"


def curve_path(folder: Path, point: Point) -> Path:
    return folder / "curves" / f"{name_of(point)}.npz"


def checkpoint_path(folder: Path, point: Point) -> Path:
    return folder / "checkpoints" / f"{name_of(point)}.safetensors"


def pack_curve(curve: Curve) -> bytes:
    """What a file of a curve holds (`read_curve`)."""
    content = BytesIO()
    np.savez_compressed(content, **curve.arrays())  # type: ignore[arg-type]
    return content.getvalue()


def write_curve(path: Path, curve: Curve) -> None:
    write_bytes(path, pack_curve(curve))


def write_bytes(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_curve(path: Path) -> Curve:
    """Raises FileNotFoundError if there is none; ValueError if the file is not a whole curve."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            curve = Curve.from_arrays(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # for a damaged file numpy raises errors of many kinds
        raise ValueError(first_line(error)) from error
    evaluated = [curve.eval_step, *curve.metrics.values()]
    shapes = {values.shape for values in evaluated}
    numbers = all(
        np.issubdtype(values.dtype, np.number)
        for values in (curve.loss, curve.grad_norm, *evaluated)
    )
    each: list[NDArray[Any]] = [curve.grad_norm]
    if curve.loss_step is not None:
        each = [curve.loss_step]
    if curve.tensors_clipped is not None:
        each.append(curve.tensors_clipped)
    one_each = curve.loss.ndim == 1 and {one.shape for one in each} == {curve.loss.shape}
    if not (numbers and one_each and len(shapes) == 1 and curve.eval_step.ndim == 1):
        raise ValueError("its arrays are not those of a curve")
    return curve


def find_curve(path: Path) -> Curve | None:
    """A curve; None if there is none, or (with a warning) if the file is damaged."""
    try:
        return read_curve(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warn_once(f"{path}: is damaged, and left out: {error}")
        return None


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # imported late: it imports torch, for which readers of results need not wait
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file(dict(tensors), temporary)


def write_json(path: Path, value: object) -> None:
    """Strict JSON of records and plain values; nan and inf become "NaN" and "Infinity"."""
    write_bytes(path, json_text(value).encode() + b"\n")


def json_text(value: object) -> str:
    """Strict JSON, as `write_json` writes it."""
    return to_json(_printable(value), indent=2, inf_nan_mode="strings").decode()


def _printable(value: Any) -> Any:
    """The same value with texts that UTF-8 can encode: a path may hold stray bytes."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(own) for own in value]
    return value


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file, or (with a warning) if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"must hold an object, got {type(found).__name__}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        warn_once(f"{path}: is damaged, and left out: {first_line(error)}")
        return None
    return found


_POINT, _VERDICT = TypeAdapter(Point), TypeAdapter(Verdict)
_NUMBERS = [own.name for own in fields(Trial) if own.type in ("int", "float")]


def parse_trial(text: str) -> Trial:
    """A trial without its curve, from the JSON of `Trial.record`.

    Raises ValueError if that is damaged or foreign.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no record of a trial: {first_line(error)}") from error
    return trial_of(record)


def trial_of(record: Any) -> Trial:
    """A trial without its curve, from what JSON made of its record.

    Raises ValueError as `parse_trial`.
    """
    try:
        _POINT.validate_python(record["point"])
        _VERDICT.validate_python(record["verdict"])
        trial = Trial.from_record(record, EMPTY_CURVE)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"is no record of a trial: {first_line(error)}") from error
    strangers = [name for name in _NUMBERS if not isinstance(getattr(trial, name), int | float)]
    if strangers or not isinstance(trial.traceback, str):
        raise ValueError("is no record of a trial: a value of the wrong kind")
    return trial
