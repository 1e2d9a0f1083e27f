"""All that a results folder holds, read once and passed down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import warn_once
from ..judge.analysis import (
    BoundaryNote,
    GroupSummary,
    boundary_checks,
    group_trials,
    is_rankable,
    summarize,
)
from ..judge.answer import Answer, answers, with_diagnosis
from ..judge.comparison import ALPHA, Comparison
from ..judge.diagnosis import Diagnosis
from ..judge.scaled import ScalingReport
from ..markup import html_table
from ..study.study import Study
from ..study.tied import on_axes
from ..trial import Trial
from ..words import readable
from .files import write_json
from .places import STEPS
from .provenance import read_environment
from .storage import Store, open_store, read_trials

COMPARISON_FILE = "comparison.json"
DIAGNOSIS_FILE = "diagnosis.json"
SCALING_FILE = "scaling.json"

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Results:
    """A study's results in memory: tables, plots and comparisons take these, and read no files.

    All curves are among them, once: 16 bytes per update of each trial. A run of several studies
    therefore holds one study's results at a time.

    trials       finished, by batch size and number, as seen beside one another (`read_trials`)
    comparison   the latest with a baseline; diagnosis, scaling: the latest; None if there was none
    environment  what the results depend on besides the study file
    steps        trials of the diagnosis' steps, by the names of their studies, as far as read
    """

    store: Store
    trials: Sequence[Trial]
    comparison: Comparison | None = None
    diagnosis: Diagnosis | None = None
    scaling: ScalingReport | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    steps: dict[str, Sequence[Trial]] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Store, records: Iterable[Trial] | None = None) -> Results:
        """The results in a store now. `records` as in `read_trials`."""
        return cls(
            store,
            trials=read_trials(store, records),
            comparison=read_comparison(store.folder),
            diagnosis=read_diagnosis(store.folder),
            scaling=read_scaling(store.folder),
            environment=read_environment(store.folder),
        )

    def __repr__(self) -> str:
        best = min(
            self.trials, key=lambda trial: (not is_rankable(trial), trial.cost), default=None
        )
        count = len(self.trials)
        infeasible = sum(trial.verdict.infeasible for trial in self.trials)
        head = f"Results of {self.study.name!r}: {count} trials, {infeasible} infeasible"
        return f"{head}\nbest: {best!r}" if best and is_rankable(best) else head

    def _repr_html_(self) -> str:
        columns = ("batch size", "optimizer", "trials", "infeasible", "best value", "lr_star")
        rows = [
            (
                one.group.batch_size,
                one.group.label.partition(", ")[2],
                one.trials,
                one.infeasible,
                readable(one.best_value),
                readable(one.lr_star),
                one.verdict,
            )
            for one in self.summaries
        ]
        return html_table(repr(self).partition("\n")[0], rows, (*columns, "verdict"))

    @property
    def study(self) -> Study:
        return self.store.study

    @property
    def folder(self) -> Path:
        return self.store.folder

    @cached_property
    def summaries(self) -> list[GroupSummary]:
        """A summary per group; where there is a diagnosis of it, with what that found."""
        names = self.study.scientific_names
        own = group_trials(self.trials, names)
        rows = summarize(self.trials, names)
        return [with_diagnosis(row, self.diagnosis, own[row.group]) for row in rows]

    @cached_property
    def answers(self) -> list[Answer]:
        """An answer per batch size, the best first."""
        names = self.study.scientific_names
        return answers(self.trials, self.summaries, names, self.notes, self.diagnosis)

    @cached_property
    def on_axes(self) -> list[Trial]:
        """Its trials with quantities in place of what is tied: `study.tied.on_axes`."""
        return on_axes(self.study, self.trials)

    @cached_property
    def notes(self) -> list[BoundaryNote]:
        """What the best trials say of the borders of the search space (S4)."""
        return boundary_checks(self.on_axes, self.study.ranges, self.study.scientific_names)

    def trials_of(self, name: str) -> Sequence[Trial]:
        """The trials of the study, or of a step of its diagnosis.

        A step is read when first asked for. Raises UserError if the step has no results.
        """
        if name == self.study.name:
            return self.trials
        if name not in self.steps:
            self.steps[name] = read_trials(open_store(self.folder / STEPS / name))
        return self.steps[name]


def read_results(folder: str | Path, storage: str | None = None) -> Results:
    """The results in a folder: its study, trials, summaries, comparison and diagnosis.

        results = tunewright.read_results("results/mine")
        best = min(results.trials, key=lambda trial: trial.cost)

    Args:
        folder: a study's results folder, which has its study.toml
        storage: the URL of the database in which they are, where it is not the folder's own

    Raises UserError if the folder has no results.
    """
    return Results.read(open_store(Path(folder), storage))


def write_comparison(folder: Path, result: Comparison) -> None:
    """comparison.json, with the decision first."""
    record = {"decision": result.decision, "error_rate": ALPHA, **asdict(result)}
    write_json(folder / COMPARISON_FILE, record)


def read_comparison(folder: Path) -> Comparison | None:
    """The latest comparison of a study with a baseline.

    None if there is none, or (with a warning) if it is damaged.
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
    """The latest diagnosis of a study.

    None if there is none, or (with a warning) if it is damaged.
    """
    return _read(folder / DIAGNOSIS_FILE, Diagnosis, "diagnose")


def write_scaling(folder: Path, result: ScalingReport) -> None:
    """scaling.json, of which `read_scaling` is the inverse."""
    write_json(folder / SCALING_FILE, asdict(result))


def read_scaling(folder: Path) -> ScalingReport | None:
    """The latest report of a study on its batch sizes.

    None if there is none, or (with a warning) if it is damaged.
    """
    return _read(folder / SCALING_FILE, ScalingReport, "scaling")
