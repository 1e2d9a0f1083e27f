"""Checkpoints from elsewhere: read, fitted to a model, and measured the way trials are measured.

A checkpoint is a safetensors file, or a torch file that holds tensors by name (a state_dict, alone
or under one of the names in NESTED). Nothing in a file is ever executed: torch files are loaded
with weights only. What is no tensor, as an optimizer's state, is saved as a tensor of bytes
(`packed`).
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..workload.workload import autocast

# where training scripts put the model beside other things
NESTED = ("state_dict", "model_state_dict", "model")
SHOWN = 5  # names of each kind in a message; the rest are counted


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the host.

    Raises UserError if the file cannot be read, is truncated or damaged, or holds anything but
    tensors.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch raises whatever its parser stumbles over
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: is damaged, or not a checkpoint: safetensors (named *.safetensors), or "
            f"torch.save of tensors by name. {reason[0]}"
        ) from error
    return _tensors(content, path)


def _check_sums(path: Path) -> None:
    """Raise BadZipFile if a part of a torch file is damaged, which torch.load does not check."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise zipfile.BadZipFile(f"The checksum of {damaged} does not match.")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict of a torch file."""
    if isinstance(content, Mapping):
        content = next(
            (content[name] for name in NESTED if isinstance(content.get(name), Mapping)), content
        )
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: must hold tensors by name (a state_dict), got {type(content).__name__}"
        )
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise UserError(
            f"{path}: must hold tensors by name (a state_dict); {_join('not tensors', strangers)}"
        )
    return {str(name): value for name, value in content.items()}


def fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint into a model, all of it or nothing; values are cast to the model's dtypes.

    A tensor that the model has under several names (tied weights) may be there under one of them.
    Raises UserError listing the names that are missing, that the model does not have, and whose
    shapes differ.
    """
    own = model.state_dict()
    present = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for name in own if name not in tensors and own[name].data_ptr() not in present]
    unexpected = [name for name in tensors if name not in own]
    misshapen = [
        f"{name} (is {list(tensors[name].shape)}, must be {list(own[name].shape)})"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        lines = [f"  {_join(kind, names)}" for kind, names in problems.items() if names]
        raise UserError("\n".join([f"{path}: does not fit the model. Its tensors are", *lines]))
    model.load_state_dict(dict(tensors), strict=False)


def _join(kind: str, names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind}: {', '.join(names[:SHOWN]) or 'none at all'}{rest}"


def packed(value: Any) -> Tensor:
    """What torch.save writes of a value, as bytes [N], for `unpacked`."""
    content = io.BytesIO()
    torch.save(value, content)
    return torch.frombuffer(content.getbuffer(), dtype=torch.uint8)


def unpacked(content: Tensor, device: str = "cpu") -> Any:
    """The value of `packed`, its tensors on a device.

    Raises pickle.UnpicklingError for more than tensors and plain values, and RuntimeError for bytes
    that torch.save has not written.
    """
    file = io.BytesIO(content.numpy().tobytes())
    return torch.load(file, map_location=device, weights_only=True)


@torch.no_grad()
def metrics_of(
    method: Callable[[nn.Module], Mapping[str, Tensor | float]],
    model: nn.Module,
    bfloat16: bool = False,
) -> dict[str, float]:
    """What a workload's `evaluate` or `test` says about a model in evaluation mode.

    It is measured as in training.
    """
    model.eval()
    with autocast(model, bfloat16):
        return {name: float(value) for name, value in method(model).items()}


def finite(path: Path, metrics: Mapping[str, float], objective: str) -> float:
    """The objective of a checkpoint.

    Raises UserError if it was not measured, or is nan or inf: nothing to compare.
    """
    if objective not in metrics:
        raise UserError(
            f"objective: evaluate() returns {', '.join(sorted(metrics)) or 'nothing'}; got "
            f"{objective!r}"
        )
    value = metrics[objective]
    if not math.isfinite(value):
        raise UserError(f"{path}: its {objective} must be finite, got {value}")
    return value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
