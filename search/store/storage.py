"""Optuna studies and the results folder: the one place that writes both.

`results/<study>/` holds `study.db`, one Optuna study per batch size, and next to it what a database
is no place for: curves, checkpoints, tables. A trial is written when it is finished, whole, in one
transaction, so no interruption leaves a half-written or a forever-running trial behind.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import URL

from ..errors import UserError, masked, printable, warn_once
from ..judge.analysis import hyperparameters, trained
from ..judge.comparison import ALPHA, Comparison
from ..judge.diagnosis import Diagnosis
from ..judge.neighbours import beside
from ..signals import stop_if_asked
from ..study.adaptive import distribution
from ..study.sampling import plan
from ..study.study import ADAPTIVE, Range, Study, load_study
from ..trial import EMPTY_CURVE, Curve, Point, Trial, as_told
from .database import StudyLock, engine_of, open_storage
from .files import atomic, checkpoint_path, curve_path, find_curve, parse_trial, write_json

STUDY_FILE = "study.toml"
COMPARISON_FILE = "comparison.json"
DIAGNOSIS_FILE = "diagnosis.json"
# between the name of a study and the batch size in that of its Optuna study
BATCH_SIZE = "/batch_size="
PARTS = ("curves", "checkpoints", "plots")  # folders in a study's results
STEPS = "steps"  # the folder in a study's results that holds those of the steps of its diagnosis
RECORD = "record"  # the user attribute that holds a whole trial, but for its curve
DIVERGED = "diverged"  # the constraint's name; > 0 is infeasible
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


_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Store:
    """A study's results folder, its Optuna studies by batch size, and the lock of who writes
    them.
    """

    study: Study
    folder: Path
    optuna_studies: Mapping[int, optuna.Study]
    lock: StudyLock | None = None


def create_store(study: Study, results: Path, url: str | None = None) -> Store:
    """Make or reopen a study's results folder and its Optuna studies.

    Raises UserError if the folder cannot be written, or if it holds results of a different study
    file; the message then shows what changed. `trials` may grow, `seeds` if `trials` is 1,
    `question`, `keep_checkpoints` and [figure] may change: the points stay the same.
    """
    folder = results / study.name
    where = open_storage(url) if url else _own_url(folder)
    _make(folder)
    storage = open_storage(where) if isinstance(where, URL) else where
    stored = set(optuna.get_all_study_names(storage))
    is_own = url is not None or _database(folder).parent != folder
    if stored and not is_own and not any(name.startswith(f"{study.name}/") for name in stored):
        raise UserError(
            f"{folder / 'study.db'}: belongs to another study: {', '.join(sorted(stored))}"
        )
    store = _store(study, folder, storage)
    if study.source:
        with atomic(folder / STUDY_FILE) as temporary:
            temporary.write_text(study.source, encoding="utf-8")
    return store


def _make(folder: Path) -> None:
    """The folders of a study's results. Raises UserError if one of them cannot be made or
    written.
    """
    place = folder
    try:
        for part in PARTS:
            place = folder / part
            place.mkdir(parents=True, exist_ok=True)
        place = folder
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        place = place if folder.is_dir() else folder
        raise UserError(f"{place}: cannot be written: {error.strerror}") from error


def _store(study: Study, folder: Path, storage: optuna.storages.BaseStorage) -> Store:
    names = {
        batch_size: f"{study.name}{BATCH_SIZE}{batch_size}" for batch_size in study.batch_sizes
    }
    optuna_studies = {
        batch_size: optuna.create_study(
            study_name=name, storage=storage, direction=study.direction, load_if_exists=True
        )
        for batch_size, name in names.items()
    }
    engine = engine_of(storage)
    store = Store(study, folder, optuna_studies, StudyLock(engine, study.name) if engine else None)
    _claim(store)
    return store


def _own_url(folder: Path) -> URL:
    """Raises UserError for a path that no URL can hold."""
    if printable(str(folder)) != str(folder):
        raise UserError(
            f"{folder}: the path of a results folder must be UTF-8: SQLite takes no other"
        )
    return URL.create("sqlite", database=str(_database(folder)))


def _database(folder: Path) -> Path:
    """A study's own database; the steps of a diagnosis share that of the study, so that one
    dashboard shows all.
    """
    diagnosed = folder.parent.parent
    is_step = folder.parent.name == STEPS and (diagnosed / STUDY_FILE).is_file()
    return (diagnosed if is_step else folder) / "study.db"


def open_store(folder: Path, url: str | None = None) -> Store:
    """A results folder as it stands, by its own copy of the study file. Raises UserError if it has
    none.
    """
    if not (folder / STUDY_FILE).is_file():
        raise UserError(f"{folder}: is not a results folder: it has no {STUDY_FILE}")
    if not has_results(folder, url):
        raise UserError(
            f"{folder}: has no study.db, or an empty one (git does not keep it); run the study, "
            "or name its --storage"
        )
    study = load_study(folder / STUDY_FILE, name=folder.resolve().name)
    folder_itself = folder.resolve()
    storage = open_storage(url or _own_url(folder_itself))
    name = _stored_name(folder, optuna.get_all_study_names(storage), shared=url is not None)
    _make(folder_itself)
    return _store(study.model_copy(update={"name": name}), folder_itself, storage)


def _stored_name(folder: Path, optuna_names: Sequence[str], shared: bool) -> str:
    """The name of the study of a results folder, which may have been renamed since, or be a link to
    another name.

    Raises UserError if the database has it under neither of the folder's names, and others too, or
    is `shared`.
    """
    stored = {name.rpartition(BATCH_SIZE)[0] for name in optuna_names}
    for name in (folder.name, folder.resolve().name):
        if name in stored:
            return name
    steps = (
        {path.name for path in (folder / STEPS).iterdir()} if (folder / STEPS).is_dir() else set()
    )
    others = sorted(stored - steps)
    if shared or len(others) > 1:
        known = ", ".join(others) or "none"
        raise UserError(
            f"{folder}: its database has no study {folder.name!r}: was the folder renamed? It has "
            f"{known}"
        )
    return others[0] if others else folder.resolve().name


def _claim(store: Store) -> None:
    """Write the study file's content into its Optuna studies, or refuse if they hold another."""
    document = _document(store.study)
    for optuna_study in store.optuna_studies.values():
        known = optuna_study.user_attrs.get("study", document)
        if changes := _changes(known, document):
            raise UserError(
                f"{store.folder}: holds results of a different study file. Changed since:\n"
                + "\n".join(f"  {line}" for line in changes)
                + "\nUndo the change, or give the study a new name, or remove the folder."
            )
    for optuna_study in store.optuna_studies.values():
        optuna_study.set_user_attr("study", document)
        optuna_study.set_user_attr("plan", _fingerprint(store.study))


def _fingerprint(study: Study) -> str:
    """A hash of every point of a non-adaptive plan, so that two machines can tell they trained the
    same.
    """
    digest = hashlib.sha256(b"[")
    for i, point in enumerate([] if study.sampler in ADAPTIVE else plan(study)):
        stop_if_asked()  # a long plan takes seconds
        record = json.dumps(point.record(), sort_keys=True)
        digest.update(f", {record}".encode() if i else record.encode())
    digest.update(b"]")
    return digest.hexdigest()


def _document(study: Study) -> dict[str, Any]:
    return study.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)


@contextmanager
def exclusive(store: Store) -> Iterator[Store]:
    """One writer per results folder, and per study in a database. Raises UserError if another run
    is at work there.
    """
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(store.folder / ".lock", timeout=0))
        except Timeout as error:
            raise UserError(
                f"{store.folder}: another run is writing here; wait for it or stop it"
            ) from error
        if store.lock:
            if not store.lock.take():
                raise UserError(
                    f"{store.folder}: another run is writing here, from another folder into the "
                    "same database; wait for it or stop it"
                )
            held.callback(store.lock.release)
        yield store


def is_continued(store: Store, study: Study) -> bool:
    """Whether a study file as it is now goes on with the results of a store: only what may change
    did.
    """
    return not _changes(_document(store.study), _document(study))


def has_results(folder: Path, url: str | None = None) -> bool:
    """Whether `open_store` finds a study there."""
    database = _database(folder.resolve())
    stored = url is not None or (database.is_file() and database.stat().st_size > 0)
    return (folder / STUDY_FILE).is_file() and stored


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two study files, a line per key, apart from what may differ."""
    old, new = dict(_flat(before)), dict(_flat(now))
    # A point's number counts configurations first, then seeds: with one configuration, more seeds
    # keep all numbers.
    may_grow = ("trials", "seeds") if old.get("trials") == new.get("trials") == 1 else ("trials",)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = old.get(key, "(absent)"), new.get(key, "(absent)")
        free = key in ("question", "keep_checkpoints") or key.startswith("figure.")
        grown = (
            key in may_grow and isinstance(was, int) and isinstance(is_now, int) and is_now > was
        )
        if was == is_now or free or grown:
            continue
        lines.append(f"{key}: was {was}, is {is_now}")
    return lines


def _flat(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, document


def tell(store: Store, trial: Trial) -> None:
    """Write a finished trial to its Optuna study, in one transaction. The only function that
    decides how.

    Feasible and infeasible trials are COMPLETE (an infeasible one is a result), a crashed one is
    FAIL: it says nothing about its point, which is trained again by the next run.
    """
    optuna_study = store.optuna_studies[trial.point.batch_size]
    attributes = {
        "number": trial.point.number,
        "verdict": trial.verdict.outcome,
        "instability": trial.verdict.instability,
        "onset_step": trial.verdict.onset_step,
        "reason": trial.verdict.evidence,
        "best_step": trial.best_step,
        "last_loss": trial.last_loss,
        "clip_fraction": trial.clip_fraction,
        "seconds": round(trial.seconds, 3),
        "seed": trial.point.seed,
        RECORD: json.dumps(trial.record()),
    }
    if trial.verdict.crashed:
        frozen = create_trial(state=TrialState.FAIL, user_attrs=attributes)
    else:
        told = as_told(trial)
        parameters, distributions = _parameters(store.study, trial.point)
        values = trial.curve.metrics[store.study.objective]
        frozen = create_trial(
            value=told.value,
            params=parameters,
            distributions=distributions,
            user_attrs=attributes,
            intermediate_values=dict(
                zip(trial.curve.eval_step.tolist(), values.tolist(), strict=True)
            ),
            constraints={DIVERGED: told.diverged},
        )
    assert frozen.datetime_complete is not None  # it is finished
    frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=trial.seconds)
    optuna_study.add_trial(frozen)


def _parameters(study: Study, point: Point) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """A point as Optuna parameters. An axis that only this optimizer has is named after it:
    adam.base_lr.
    """
    parameters: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    if len(study.optimizers) > 1:
        parameters["optimizer"] = point.optimizer
        distributions["optimizer"] = CategoricalDistribution(study.optimizers)
    for name, axis in study.axes(point.optimizer).items():
        if not isinstance(axis, Range) and len(axis) == 1:
            continue
        shared = len(study.optimizers) == 1 or study.is_common(point.optimizer, name)
        label = name if shared else f"{point.optimizer}.{name}"
        parameters[label], distributions[label] = point.values[name], distribution(axis, name)
    for name in study.scientific_workload_args:
        parameters[name] = point.workload_args[name]
        distributions[name] = CategoricalDistribution(study.workload_args[name])  # type: ignore[arg-type]
    return parameters, distributions


def read_trials(store: Store) -> list[Trial]:
    """Every finished trial, by batch size and number, as seen beside the others of its group
    (`neighbours`).
    """
    trials, study = stored_trials(store), store.study
    return beside(trials, study.scientific_names) if study.divergence else trials


def stored_trials(store: Store, curves: bool = True) -> list[Trial]:
    """Every finished trial with its own verdict. A crashed one gives way to a later try of its
    point.

    Without `curves` only the updates that were planned are known of each: all that ranking and
    samplers look at.
    """
    trials: dict[tuple[int, int], Trial] = {}
    for batch_size in store.study.batch_sizes:
        for frozen in store.optuna_studies[batch_size].get_trials(deepcopy=False):
            trial = _trial(store, frozen, curves)
            if trial is None:
                continue
            key = (batch_size, trial.point.number)
            if key not in trials or trials[key].verdict.crashed:
                trials[key] = trial
    return [trials[key] for key in sorted(trials)]


def _trial(store: Store, frozen: FrozenTrial, curves: bool) -> Trial | None:
    """A trial as recorded; None for one that somebody else added to the study, or, which is said, a
    damaged one.
    """
    if RECORD not in frozen.user_attrs:
        return None
    try:
        trial = parse_trial(frozen.user_attrs[RECORD])
    except ValueError as error:
        warn_once(
            f"{store.folder}: trial {frozen.number} of its database is damaged, and left out: "
            f"{error}"
        )
        return None
    if not curves:
        return without_curve(trial, store.study.updates(trial.point))
    curve = find_curve(curve_path(store.folder, trial.point))
    if curve is None and not trial.verdict.crashed:
        steps = np.array(list(frozen.intermediate_values), np.int64)
        values = np.array(list(frozen.intermediate_values.values()))
        curve = Curve(np.empty(0), np.empty(0), steps, {store.study.objective: values}, 0)
    return replace(trial, curve=curve or EMPTY_CURVE)


def without_curve(trial: Trial, total_steps: int) -> Trial:
    """A trial as it is kept in memory by the thousands: of its curve only the updates that were
    planned.
    """
    return replace(trial, curve=replace(EMPTY_CURVE, total_steps=total_steps))


def drop_checkpoints(store: Store, trials: Iterable[Trial]) -> None:
    """Keep the checkpoints of the best `keep_checkpoints` trials at each batch size (S10);
    infeasible ones go first.
    """
    if store.study.keep_checkpoints is None:
        return
    ranking = sorted(trials, key=lambda trial: (not trained(trial), trial.cost, trial.point.number))
    for batch_size in store.study.batch_sizes:
        own = [trial for trial in ranking if trial.point.batch_size == batch_size]
        for trial in own[store.study.keep_checkpoints :]:
            checkpoint_path(store.folder, trial.point).unlink(missing_ok=True)


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


def write_table(path: Path, trials: Sequence[Trial], comparison: Comparison | None = None) -> None:
    """trials.csv: a row per finished trial, a column per hyperparameter and per result.

    A table with more trials is left as it is, for its database may have been lost. With a
    comparison the first row is the baseline, `baseline` in the place of its number, with the
    hyperparameters that are known of it; and a column `delta` (`comparison.DELTA`), empty for a
    trial that did not train.
    """
    rows = ([_baseline_row(comparison)] if comparison else []) + [
        _table_row(trial, comparison) for trial in trials
    ]
    results = [
        *("verdict", "instability", "onset_step", "best_value", *(["delta"] if comparison else [])),
        *("best_step", "initial_value", "last_loss", "clip_fraction", "seconds", "reason"),
    ]
    before = _rows(path)
    if before > len(trials):
        warn_once(
            f"{path}: is kept: it has {before} trials, and the database only {len(trials)}. If "
            "you do not want it, remove it"
        )
        return
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        # A baseline of another study may have hyperparameters that no trial here has.
        writer = csv.DictWriter(
            file, ["number", *hyperparameters(trials), *results], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)


def _rows(path: Path) -> int:
    """How many trials a table has; 0 if there is none that can be read."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return sum((row.get("number") or "").isdigit() for row in csv.DictReader(file))
    except (OSError, csv.Error):
        return 0


def _table_row(trial: Trial, comparison: Comparison | None) -> dict[str, Any]:
    verdict = trial.verdict
    return {
        "number": trial.point.number,
        **trial.point.values,
        "verdict": verdict.outcome,
        "instability": verdict.instability,
        "onset_step": verdict.onset_step,
        "best_value": trial.best_value,
        "delta": comparison.delta(trial.best_value) if comparison and trained(trial) else "",
        "best_step": trial.best_step,
        "initial_value": trial.initial_value,
        "last_loss": trial.last_loss,
        "clip_fraction": trial.clip_fraction,
        "seconds": round(trial.seconds, 3),
        "reason": verdict.evidence,
    }


def _baseline_row(comparison: Comparison) -> dict[str, Any]:
    checkpoint = comparison.checkpoint
    return {
        "number": "baseline",
        **comparison.known_settings,
        "best_value": checkpoint.value,
        "delta": comparison.delta(checkpoint.value),
        "reason": f"checkpoint {checkpoint.path}, sha256 {checkpoint.sha256}",
    }


def environment(command: Sequence[str]) -> dict[str, Any]:
    """What a result depends on besides the study file: versions, machine, git revision, command.

    To be asked before a run: its results change the working tree, and then the revision is one
    "with changes".
    """
    return {
        "started": now(),
        "command": printable(" ".join([Path(command[0]).name, *map(masked, command[1:])])),
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git_revision": _git_revision(),
        "versions": {name: version(name) for name in PACKAGES},
    }


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
