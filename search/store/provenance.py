"""environment.json: what a result depends on besides the study file."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import mask_password, printable
from .files import read_object, write_json

ENVIRONMENT_FILE = "environment.json"
PACKAGES = (
    "tunewright",
    "torch",
    "optuna",
    "optuna-dashboard",
    "numpy",
    "scipy",
    "scikit-learn",
    "joblib",
)


def environment(command: Sequence[str]) -> dict[str, Any]:
    """What a result depends on besides the study file: versions, machine, git revision, command.

    Call it before a run: the results of a run change the working tree, and the revision would then
    be one "with changes".
    """
    return {
        "started": now(),
        "command": printable(" ".join([Path(command[0]).name, *map(mask_password, command[1:])])),
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git_revision": _git_revision(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_environment(folder: Path, provenance: Mapping[str, object]) -> None:
    """environment.json of a results folder."""
    write_json(folder / ENVIRONMENT_FILE, provenance)


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json without passwords, which earlier versions wrote; empty if unreadable."""
    found = read_object(folder / ENVIRONMENT_FILE) or {}
    return (
        found | {"command": mask_password(str(found["command"]))} if "command" in found else found
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_revision() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    found = subprocess.run(
        [git, "describe", "--always", "--dirty"], capture_output=True, check=False
    )
    return found.stdout.decode("utf-8", "replace").strip() or "unknown"
