"""The start of a user's own project: a study, and the code it trains, in a new folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import UserError

TEMPLATE = Path(__file__).with_name("template")
STUDIES = Path(__file__).parents[1] / "studies"  # beside this package, installed or not
SCHEMA = STUDIES / "study.schema.json"  # for editors: the first line of each study names it


def shipped_studies() -> list[str]:
    """The names of the studies that come with tunewright."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def loops() -> list[str]:
    """The kinds of training loops that a project of one's own can start from."""
    return sorted(path.parent.name for path in TEMPLATE.glob("*/study.toml"))


def start(folder: Path, kind: str | None = None) -> Path:
    """Fill a new or empty folder, and return its study file.

    It gets a study of a small workload, and that workload's module; or one of a training loop, and
    its module (`loops`); or the shipped study of a name, whose workload is one of
    `tunewright.models`. Raises UserError if the folder holds anything, which stays as it is, or
    cannot be written.
    """
    home = TEMPLATE / kind if kind in loops() else TEMPLATE
    study, module = home / "study.toml", home / ("workload.py" if home == TEMPLATE else "train.py")
    sources = [study, module, SCHEMA]
    if kind in shipped_studies():
        study = STUDIES / f"{kind}.toml"
        sources = [study, SCHEMA]
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty, and is left as it is: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copyfile(source, folder / source.name)
    except FileExistsError as error:
        raise UserError(f"{folder}: is a file: name a new folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder / study.name
