"""What commands wrote into a results folder: the comparison with a baseline, the diagnosis."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import warn_once
from ..judge.comparison import ALPHA, Comparison
from ..judge.diagnosis import Diagnosis
from .files import write_json

COMPARISON_FILE = "comparison.json"
DIAGNOSIS_FILE = "diagnosis.json"

_Record = TypeVar("_Record")


def write_comparison(folder: Path, result: Comparison) -> None:
    """comparison.json, with the decision first."""
    record = {"decision": result.decision, "error_rate": ALPHA, **asdict(result)}
    write_json(folder / COMPARISON_FILE, record)


def read_comparison(folder: Path) -> Comparison | None:
    """The latest comparison of a study with a baseline; None if there was none, or, which is said,
    it is damaged.
    """
    return _read(folder / COMPARISON_FILE, Comparison, "compare")


def _read(path: Path, kind: type[_Record], command: str) -> _Record | None:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        warn_once(
            f"{path}: is damaged, or of another version, and left out: `tunewright {command}` "
            "writes it anew"
        )
        return None


def write_diagnosis(folder: Path, result: Diagnosis) -> None:
    """diagnosis.json, of which `read_diagnosis` is the inverse."""
    write_json(folder / DIAGNOSIS_FILE, asdict(result))


def read_diagnosis(folder: Path) -> Diagnosis | None:
    """The latest diagnosis of a study; None if there was none, or, which is said, it is damaged."""
    return _read(folder / DIAGNOSIS_FILE, Diagnosis, "diagnose")
