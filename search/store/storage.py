"""Optuna studies and the results folder: the one place that writes both.

`results/<study>/` holds `study.db`, with one Optuna study per batch size, and next to it what does
not belong in a database: curves, checkpoints, tables. A trial is written when it is finished,
whole, in one transaction, so no interruption leaves a half-written or a forever-running trial
behind.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from ..errors import LOG, UserError, printable, warn_once
from ..judge.analysis import is_rankable
from ..judge.neighbours import judge_beside_neighbours
from ..judge.seeds import mark_provisional
from ..rules.schedule import applies
from ..signals import stop_if_asked
from ..study.adaptive import distribution, quiet_optuna
from ..study.earlier import completed, why_outside
from ..study.sampling import next_number, plan
from ..study.study import Range, Study, load_study
from ..trial import EMPTY_CURVE, LARGE, Curve, Point, Trial, as_told
from .changes import as_begun, document_of, text_of
from .database import StudyLock, engine_of, open_storage
from .files import atomic, checkpoint_path, curve_path, find_curve, parse_trial
from .growth import GROWN, STUDY, documents_of, grow, refusal
from .places import STEPS, STUDY_FILE, TABLE, database_of, has_results
from .rows import NUMBER, RECORD, add_trials, describe_again, number_trials, stored_trials
from .table import read_table

# between the name of a study and the batch size in that of its Optuna study
BATCH_SIZE = "/batch_size="
PARTS = ("curves", "checkpoints", "plots")  # folders in a study's results
DIVERGED = "diverged"  # the constraint's name; > 0 is infeasible


@dataclass(frozen=True)
class Store:
    """A study's results folder, its Optuna studies by batch size, and the lock of its writer.

    `grown`: what is to be written before a study goes on that has changed (`growth.grow`).
    """

    study: Study
    folder: Path
    optuna_studies: Mapping[int, optuna.Study]
    lock: StudyLock | None = None
    grown: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def planned(self) -> dict[int, int]:
        """How many numbers the trials of each batch size may have, as far as the study says it."""
        study = self.study
        if study.imported:
            return dict.fromkeys(study.batch_sizes, study.trials or 0)
        return {size: next_number(study, size) * study.most_seeds for size in study.batch_sizes}


def create_store(study: Study, results: Path, url: str | None = None) -> Store:
    """Make or reopen a study's results folder and its Optuna studies.

    Raises UserError if the folder cannot be written, or if it holds results of a different study
    file; the message then shows what changed. `trials` may grow, `seeds` if `trials` is 1,
    `question`, `keep_checkpoints` and [figure] may change: the points stay the same. Ranges, lists,
    batch sizes and optimizers may change, too: what was trained stays, and counts where it lies in
    the space as it is now. It is written that they did once the store is `exclusive`.
    """
    folder = results / study.name
    where = open_storage(url) if url else _own_url(folder)
    _make(folder)
    storage = open_storage(where) if isinstance(where, URL) else where
    stored = set(optuna.get_all_study_names(storage))
    is_own = url is not None or database_of(folder).parent != folder
    if stored and not is_own and not any(name.startswith(f"{study.name}/") for name in stored):
        raise UserError(
            f"{folder / 'study.db'}: belongs to another study: {', '.join(sorted(stored))}"
        )
    store = _store(study, folder, storage)
    if store.study.decay_vectors and not study.decay_vectors:
        LOG.info(
            "%s: began with weight decay of all parameters (decay_vectors = true), and goes on so. "
            "To leave out biases and norms, give the study another name.",
            folder,
        )
    if not store.grown:
        _write_study(store)
    return store


def _write_study(store: Store) -> None:
    with atomic(store.folder / STUDY_FILE) as temporary:
        temporary.write_text(text_of(store.study), encoding="utf-8")


def _make(folder: Path) -> None:
    """The folders of a study's results.

    Raises UserError if one of them cannot be made or written.
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
    with quiet_optuna():
        optuna_studies = {
            batch_size: optuna.create_study(
                study_name=name, storage=storage, direction=study.direction, load_if_exists=True
            )
            for batch_size, name in names.items()
        }
        of_batch_sizes = [
            name
            for name in optuna.get_all_study_names(storage)
            if name.rpartition(BATCH_SIZE)[0] == study.name
        ]
        named_no_more = [
            optuna.load_study(study_name=name, storage=storage)
            for name in set(of_batch_sizes) - set(names.values())
        ]
    of_results = [*optuna_studies.values(), *named_no_more]
    documents = [document for one in of_results for document in documents_of(one)]
    engine = engine_of(storage)
    lock = StudyLock(engine, study.name) if engine else None
    try:
        grown_study, grown = grow(as_begun(study, documents), optuna_studies)
    except ValueError as error:
        raise refusal(folder, str(error)) from error
    store = Store(grown_study, folder, optuna_studies, lock, grown)
    if not grown:
        _claim(store)
    return store


def _own_url(folder: Path) -> URL:
    """Raises UserError for a path that no URL can hold."""
    if printable(str(folder)) != str(folder):
        raise UserError(
            f"{folder}: the path of a results folder must be UTF-8: SQLite takes no other"
        )
    return URL.create("sqlite", database=str(database_of(folder)))


def open_store(folder: Path, url: str | None = None) -> Store:
    """A results folder as it stands, by its own copy of the study file.

    Where there is no database, as in a folder from git, it is made of trials.csv. Raises UserError
    if there is neither, or no study file.
    """
    if not (folder / STUDY_FILE).is_file():
        raise UserError(f"{folder}: is not a results folder: it has no {STUDY_FILE}")
    if not has_results(folder, url):
        _refuse_empty(folder)
        _rebuild(database_of(folder.resolve()).parent)
    study = load_study(folder / STUDY_FILE, name=folder.resolve().name)
    folder_itself = folder.resolve()
    storage = open_storage(url or _own_url(folder_itself))
    name = _stored_name(folder, optuna.get_all_study_names(storage), shared=url is not None)
    _make(folder_itself)
    return _store(study.model_copy(update={"name": name}), folder_itself, storage)


def _refuse_empty(folder: Path) -> None:
    """Raise UserError for a database that is there, but holds nothing."""
    if os.path.lexists(folder / "study.db"):
        raise UserError(
            f"{folder}: has an empty study.db: remove it to have one made of {TABLE}, run the "
            "study, or name its --storage"
        )


def _rebuild(folder: Path) -> None:
    """Make the database of a results folder of its trials.csv, and of those of its steps.

    It appears whole or not at all. Raises UserError as `read_table`, or if there is no table.
    """
    tables = [folder / TABLE, *sorted((folder / STEPS).glob(f"*/{TABLE}"))]
    if not tables[0].is_file():
        raise UserError(
            f"{folder}: has no study.db (git does not keep it), and no {TABLE} to make one of; run "
            "the study, or name its --storage"
        )
    studies = [load_study(table.parent / STUDY_FILE, name=table.parent.name) for table in tables]
    studies = [as_begun(study, [study.document]) for study in studies]
    found = [read_table(table, study) for table, study in zip(tables, studies, strict=True)]
    with atomic(folder / "study.db") as temporary:
        storage = open_storage(URL.create("sqlite", database=str(temporary)))
        for table, study, trials in zip(tables, studies, found, strict=True):
            tell_all(_store(study, table.parent, storage), trials)
        if engine := engine_of(storage):
            engine.dispose()
    LOG.info(
        "%s: study.db was made of %s. Curves and checkpoints are not among its files: plots of "
        "curves and gradient norms are left out.",
        folder,
        TABLE,
    )


def _stored_name(folder: Path, optuna_names: Sequence[str], shared: bool) -> str:
    """The name that the database has for the study of a results folder.

    The folder may have been renamed since, or be a link to another name. Raises UserError if the
    database has it under neither of the folder's names, and others too, or is `shared`.
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
    """Write the study file's content into its Optuna studies."""
    document, fingerprint = document_of(store.study), _fingerprint(store.study)
    for optuna_study in store.optuna_studies.values():
        optuna_study.set_user_attr(STUDY, document)
        optuna_study.set_user_attr("plan", fingerprint)


def _write_growth(store: Store) -> Store:
    """Write that a study has grown, and describe what was trained as trials of its new space.

    Killed in between, a batch size has grown and another has not: each says so by itself.
    """
    for batch_size, grown in store.grown.items():
        optuna_study = store.optuna_studies[batch_size]
        optuna_study.set_user_attr(GROWN, grown)
        optuna_study.set_user_attr(STUDY, document_of(store.study))
    _claim(store)
    _write_study(store)
    for optuna_study in store.optuna_studies.values():
        kept = {}
        for frozen in stored_trials(optuna_study):
            trial = _record(store, frozen)
            if trial is None or not frozen.params:
                continue
            point = completed(store.study, trial.point)
            if not why_outside(store.study, point):
                kept[frozen._trial_id] = _parameters(store.study, point)
        describe_again(optuna_study, kept)
    return replace(store, grown={})


def _fingerprint(study: Study) -> str:
    """A hash of all points of a plan, to tell whether two machines trained alike.

    Of none, where the study is adaptive or its trials are imported.
    """
    digest = hashlib.sha256(b"[")
    is_unplanned = study.sampling.is_adaptive or study.imported
    for i, point in enumerate([] if is_unplanned else plan(study)):
        stop_if_asked()  # a long plan takes seconds
        record = json.dumps(point.record(), sort_keys=True)
        digest.update(f", {record}".encode() if i else record.encode())
    digest.update(b"]")
    return digest.hexdigest()


@contextmanager
def exclusive(store: Store) -> Iterator[Store]:
    """One writer per results folder, and per study in a database.

    Trials have the numbers of their points from here on, also those of earlier versions. Raises
    UserError if another run is at work there.
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
        if store.grown:
            store = _write_growth(store)
        for batch_size, optuna_study in store.optuna_studies.items():
            number_trials(optuna_study, store.planned[batch_size])
        yield store


def continued_by(store: Store, study: Study) -> Store | None:
    """A store as one of its study file as it is now, read only; None if that is of another study.

    It is the same study if only keys that may change did.
    """
    sizes = {size: one for size, one in store.optuna_studies.items() if size in study.batch_sizes}
    try:
        study = as_begun(study, [document_of(store.study)])
        grown_study, grown = grow(study.model_copy(update={"name": store.study.name}), sizes)
    except ValueError:
        return None
    return replace(store, study=grown_study, optuna_studies=sizes, grown=grown)


def tell(store: Store, trial: Trial) -> None:
    """Write a finished trial to its Optuna study, in one transaction.

    Only this function decides how a trial is stored.

    Feasible and infeasible trials are COMPLETE (an infeasible one is a result), a crashed one is
    FAIL: it says nothing about its point, which is trained again by the next run. An unfinished one
    is PRUNED.
    """
    tell_all(store, [trial])


def tell_all(store: Store, trials: Sequence[Trial]) -> None:
    """`tell` of many trials: those of a batch size in one transaction."""
    for batch_size, optuna_study in store.optuna_studies.items():
        own = [trial for trial in trials if trial.point.batch_size == batch_size]
        if own:
            frozen = [_as_frozen(store.study, trial) for trial in own]
            add_trials(optuna_study, frozen, store.planned[batch_size])


def _as_frozen(study: Study, trial: Trial) -> FrozenTrial:
    """A trial as Optuna keeps it."""
    attributes = {
        NUMBER: trial.point.number,
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
        told, state = as_told(trial), TrialState.COMPLETE
        if trial.verdict.unfinished:
            state = TrialState.PRUNED
        elif study.imported and abs(told.value) == LARGE:
            state = TrialState.FAIL  # no value is known that its place could be drawn at
        parameters, distributions = _parameters(study, trial.point)
        values = trial.curve.metrics.get(study.objective, np.empty(0))
        frozen = create_trial(
            state=state,
            value=told.value if state == TrialState.COMPLETE else None,
            params=parameters,
            distributions=distributions,
            user_attrs=attributes,
            intermediate_values=dict(
                zip(trial.curve.eval_step.tolist(), values.tolist(), strict=True)
            ),
            constraints={DIVERGED: told.diverged} if trial.verdict.judged else None,
        )
    frozen.number = trial.point.number
    assert frozen.datetime_complete is not None  # it is finished
    if math.isfinite(trial.seconds):
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=trial.seconds)
    return frozen


def _parameters(study: Study, point: Point) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """A point as Optuna parameters.

    An axis that only this optimizer has is named after it: adam.base_lr. A tied one has its
    quantity: beta2.half_life_examples.
    """
    parameters: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    if len(study.optimizers) > 1:
        parameters["optimizer"] = point.optimizer
        distributions["optimizer"] = CategoricalDistribution(study.optimizers)
    for name, axis in study.axes(point.optimizer, point.batch_size).items():
        is_fixed = not isinstance(axis, Range) and len(axis) == 1
        if is_fixed or not applies(name, point.decay):
            continue
        shared = len(study.optimizers) == 1 or study.is_common(point.optimizer, name)
        called = study.axis_name(point.optimizer, name)
        label = called if shared else f"{point.optimizer}.{called}"
        parameters[label] = study.quantity(point, name)
        distributions[label] = distribution(axis, name)
    for name in study.scientific_workload_args:
        parameters[name] = point.workload_args[name]
        choices: Any = study.workload_args[name]
        distributions[name] = CategoricalDistribution(choices)
    for name, axis in study.nuisance_workload_args.items():
        if name in point.workload_args:
            parameters[name] = point.workload_args[name]
            distributions[name] = distribution(axis, name)
    return parameters, distributions


def read_trials(store: Store, records: Iterable[Trial] | None = None) -> list[Trial]:
    """Every finished trial, judged beside the others of its group (`neighbours`).

    They come by batch size and number. Each curve is opened once. `records` are those of
    `read_records`, where they are in memory already.
    """
    records = read_records(store) if records is None else records
    study = store.study
    trials = _with_curves(store, sorted(records, key=_place))
    if study.divergence:
        trials = judge_beside_neighbours(trials, study.scientific_names)
    if study.finalists:
        trials = mark_provisional(trials, study.most_seeds, study.scientific_names)
    return trials


def read_records(store: Store) -> list[Trial]:
    """Every finished trial with its own verdict, its curve left on the disk.

    Those that lie outside of a space that was narrowed stay where they are, and are left out. One
    that is no evidence gives way to a later try of its point.

    Of the curve only the number of planned updates is known, which suffices for ranking and
    samplers.
    """
    trials: dict[tuple[int, int], Trial] = {}
    has_grown = bool(store.study.earlier)
    for batch_size, optuna_study in store.optuna_studies.items():
        for frozen in stored_trials(optuna_study):
            trial = _record(store, frozen)
            if trial is None:
                continue
            if has_grown:
                trial = replace(trial, point=completed(store.study, trial.point))
                if why_outside(store.study, trial.point):
                    continue
            key = (batch_size, trial.point.number)
            if key not in trials or not trials[key].verdict.judged:
                trials[key] = trial
    return sorted(trials.values(), key=_place)


def _place(trial: Trial) -> tuple[int, int]:
    return trial.point.batch_size, trial.point.number


def _record(store: Store, frozen: FrozenTrial) -> Trial | None:
    """A trial as recorded; None if somebody else added it, or (with a warning) if it is damaged."""
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
    return without_curve(trial, store.study.updates(trial.point))


def _with_curves(store: Store, records: Iterable[Trial]) -> list[Trial]:
    """Trials with their curves; of a curve that is lost, what Optuna was told of it."""
    trials: list[Trial] = []
    told: dict[tuple[int, int], Curve] | None = None
    for trial in records:
        curve = find_curve(curve_path(store.folder, trial.point))
        if curve is None and not trial.verdict.crashed:
            told = _evaluations(store) if told is None else told
            curve = told.get(_place(trial))
        trials.append(replace(trial, curve=curve or EMPTY_CURVE))
    return trials


def _evaluations(store: Store) -> dict[tuple[int, int], Curve]:
    """The objective at each evaluation, as Optuna was told, by batch size and number."""
    found: dict[tuple[int, int], Curve] = {}
    for batch_size, optuna_study in store.optuna_studies.items():
        for frozen in stored_trials(optuna_study):
            if RECORD in frozen.user_attrs and frozen.state != TrialState.FAIL:
                told = frozen.intermediate_values
                steps, values = np.array(list(told), np.int64), np.array(list(told.values()))
                curve = Curve(np.empty(0), np.empty(0), steps, {store.study.objective: values}, 0)
                found.setdefault((batch_size, frozen.user_attrs.get(NUMBER, -1)), curve)
    return found


def without_curve(trial: Trial, total_steps: int) -> Trial:
    """A trial as it is kept in memory by the thousands.

    Of its curve it has only the number of planned updates.
    """
    return replace(trial, curve=replace(EMPTY_CURVE, total_steps=total_steps))


def drop_checkpoints(store: Store, trials: Iterable[Trial]) -> None:
    """Keep the checkpoints of the best `keep_checkpoints` trials at each batch size (S10).

    Infeasible ones go first.
    """
    if store.study.keep_checkpoints is None:
        return
    ranking = sorted(
        trials, key=lambda trial: (not is_rankable(trial), trial.cost, trial.point.number)
    )
    for batch_size in store.study.batch_sizes:
        own = [trial for trial in ranking if trial.point.batch_size == batch_size]
        for trial in own[store.study.keep_checkpoints :]:
            checkpoint_path(store.folder, trial.point).unlink(missing_ok=True)
