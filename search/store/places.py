"""Where a results folder keeps what makes it one: asked without opening anything.

This module imports no Optuna, which `tunewright check` needs only where there are results.
"""

from __future__ import annotations

from pathlib import Path

# where a run's results go by default: `results/` of this project holds those that are shipped
RUNS = Path("runs")
STUDY_FILE = "study.toml"
TABLE = "trials.csv"
STEPS = "steps"  # the folder in a study's results that holds those of the steps of its diagnosis


def database_of(folder: Path) -> Path:
    """The database of a study's results folder.

    The steps of a diagnosis share that of the study, so that one dashboard shows all.
    """
    diagnosed = folder.parent.parent
    is_step = folder.parent.name == STEPS and (diagnosed / STUDY_FILE).is_file()
    return (diagnosed if is_step else folder) / "study.db"


def has_results(folder: Path, url: str | None = None) -> bool:
    """Whether `storage.open_store` finds a study there."""
    database = database_of(folder.resolve())
    stored = url is not None or (database.is_file() and database.stat().st_size > 0)
    return (folder / STUDY_FILE).is_file() and stored
