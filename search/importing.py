"""`tunewright import`: a sweep that was run without us, as a results folder.

The source is only read. Trials are added to what is there already: killed in the middle, the same
command completes it, and run again later it adds what is new.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from .errors import UserError
from .judge.imported import imported_trial
from .judge.objective import sounds_better_when_higher
from .signals import defer_signals, stop_if_asked
from .sources.columns import Columns, name_columns
from .sources.folders import read_folder
from .sources.points import Placed, document_of_sweep, place_runs
from .sources.runs import Run, Sweep
from .sources.tables import read_table
from .store.files import curve_path, read_object, write_curve, write_json
from .store.foreign import is_optuna_file, read_optuna
from .store.places import RUNS, STUDY_FILE, has_results
from .store.provenance import environment, write_environment
from .store.storage import Store, create_store, exclusive, open_store, read_records, tell_all
from .study.study import Study, fault_of_name, load_study, parse_study, quote
from .trial import Curve, Trial

LEDGER_FILE = "import.json"  # which run has which number, where the source has none
AT_ONCE = 1_000  # trials of one transaction: what a kill may lose
SHOWN = 5  # of a list in a sentence

Say = Callable[[str], None]


@dataclass(frozen=True)
class Imported:
    """What came of an import: the results folder, how many trials were added, and all of them."""

    store: Store
    added: int
    trials: Sequence[Trial]


def import_sweep(
    source: str,
    name: str,
    results: Path = RUNS,
    *,
    study: str | None = None,
    given: Mapping[str, Sequence[str]] | None = None,
    constants: Mapping[str, Any] | None = None,
    ignored: Sequence[str] = (),
    maximize: bool | None = None,
    failed_is_infeasible: bool = False,
    storage: str | None = None,
    say: Say = lambda text: None,
) -> Imported:
    """Make `results/name` of a sweep, or add to it what its source has by now.

    `source` is the URL of an Optuna storage, with the name of a `study` if it has several; a file
    of one; a table; or a folder of runs. `given` says which column is which hyperparameter,
    `constants` what all runs have, `maximize` whether a higher objective is better (None: by its
    name, where the source does not say), and `failed_is_infeasible` that runs which failed had
    diverged. `say` is told what was guessed.
    Raises UserError for a source that cannot be read or understood, and for a results folder of
    another one.
    """
    given, constants = given or {}, constants or {}
    if rule := fault_of_name(name) or ("" if name and "/" not in name else "must not have a /"):
        raise UserError(f"--as {quote(name)}: names the results folder: it {rule}")
    sweep = read_source(source, study, given.get("objective", [None])[0])
    if sweep.maximize is not None:
        if maximize not in (None, sweep.maximize):
            does = "maximizes" if sweep.maximize else "minimizes"
            raise UserError(f"--maximize: {sweep.origin} {does} {sweep.objective}")
        maximize = sweep.maximize
    columns = name_columns(sweep, given, constants, ignored)
    if maximize is None:
        maximize = bool(sounds_better_when_higher(columns.objective))
        better = "higher" if maximize else "lower"
        say(f"guessed: {columns.objective} is better when {better} (--maximize, --no-maximize)")
    folder = results / name
    numbers = _numbers(folder, sweep)
    placed, without = place_runs(sweep, columns, numbers)
    planned = _study_of(sweep, columns, placed, maximize, name)
    trials = [_trial(one, columns, planned, failed_is_infeasible) for one in placed]
    _explain(say, sweep, columns, without, trials)
    _refuse_other(folder, planned, storage)
    provenance = environment(sys.argv)
    with defer_signals(), ExitStack() as held:
        # What is there is compared before anything is written, the study file included.
        is_there = has_results(folder, storage)
        store = open_store(folder, storage) if is_there else create_store(planned, results, storage)
        held.enter_context(exclusive(store))
        new = _new_trials(store, trials)
        if new:
            store = create_store(planned, results, storage)
            write_json(folder / LEDGER_FILE, {"source": sweep.origin, "numbers": numbers})
            _add(store, new)
            told = {"left_out": _left_out(without, sweep)} if without else {}
            write_environment(folder, {**provenance, "imported": sweep.origin, **told})
    return Imported(store, len(new), trials)


def _add(store: Store, trials: Sequence[Trial]) -> None:
    """Write trials, each with its curve before it is told."""
    for start in range(0, len(trials), AT_ONCE):
        stop_if_asked()
        some = trials[start : start + AT_ONCE]
        for trial in some:
            if len(trial.curve.loss):
                write_curve(curve_path(store.folder, trial.point), trial.curve)
        tell_all(store, some)


def read_source(source: str, study: str | None = None, objective: str | None = None) -> Sweep:
    """The runs of a source, whatever it is. Raises UserError if it is nothing that can be read."""
    path = Path(source)
    if "://" in source:
        return read_optuna(source, study, objective)
    if path.is_dir():
        return read_folder(path, objective)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if is_optuna_file(path):
        return read_optuna(source, study, objective)
    if study is not None:
        raise UserError(f"--study: {source} is no storage of Optuna's")
    return read_table(path)


def _numbers(folder: Path, sweep: Sweep) -> dict[str, int]:
    """The numbers of runs by their names: their own, those of an earlier import, or the next free
    ones.
    """
    if all(run.number is not None for run in sweep.runs):
        return {run.name: run.number for run in sweep.runs if run.number is not None}
    ledger = read_object(folder / LEDGER_FILE) or {}
    numbers = {str(name): int(number) for name, number in ledger.get("numbers", {}).items()}
    free = max(numbers.values(), default=-1) + 1
    for run in sweep.runs:
        if run.name not in numbers:
            numbers[run.name] = free
            free += 1
    return numbers


def _study_of(
    sweep: Sweep, columns: Columns, placed: Sequence[Placed], maximize: bool, name: str
) -> Study:
    document = document_of_sweep(sweep, columns, placed, maximize)
    said = ["Trials that were imported, and are reported as they are: none can be trained.", ""]
    said += [f"{ours} = {' or '.join(theirs)}" for ours, theirs in columns.of.items()]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in said)
    text = comment + "\n" + tomli_w.dumps(document)
    return parse_study(document, name, place=sweep.origin, source=text)


def _trial(placed: Placed, columns: Columns, study: Study, failed_is_infeasible: bool) -> Trial:
    run, objective = placed.run, study.objective
    return imported_trial(
        placed.point,
        _curve_of(run, objective),
        objective,
        name=run.name,
        value=columns.objective_of(run),
        ended=run.state,
        seconds=run.seconds,
        maximize=study.maximize,
        failed_is_infeasible=failed_is_infeasible,
    )


def _curve_of(run: Run, objective: str) -> Curve:
    """The curve of a run's log; without one, the values that it reported on the way.

    Of these the planned updates are not known: they may be counted in epochs, or in folds.
    """
    if len(run.curve.loss) or not run.reported:
        return run.curve
    steps = np.array(list(run.reported), np.int64)
    values = np.array(list(run.reported.values()), np.float64)
    return replace(run.curve, eval_step=steps, metrics={objective: values})


def _refuse_other(folder: Path, study: Study, storage: str | None) -> None:
    """Raise UserError for a results folder that holds something else."""
    if not (folder / STUDY_FILE).is_file():
        return
    known = load_study(folder / STUDY_FILE, name=study.name)
    if known.imported == study.imported:
        return
    what = f"trials imported from {known.imported}" if known.imported else "a study of its own"
    there = "holds" if has_results(folder, storage) else "is for"
    raise UserError(f"{folder}: {there} {what}: give these another name, --as NAME")


def _new_trials(store: Store, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are not there yet, and those that were no evidence and have gone on.

    Raises UserError if one that is there has another point or another result: it is not the same
    source, or it was read in another way.
    """
    known = {trial.point.number: trial for trial in read_records(store)}
    new = []
    for trial in trials:
        before = known.get(trial.point.number)
        if before is None:
            new.append(trial)
            continue
        what = _difference(before, trial)
        if what and (before.verdict.judged or "result" not in what):
            raise UserError(
                f"{store.folder}: trial {trial.point.number} has another {what} than when it was "
                "imported: the source is another one, or is read in another way; give it another "
                "name, --as NAME"
            )
        if what:
            new.append(trial)
    return new


def _difference(before: Trial, now: Trial) -> str:
    """What differs between a trial as it was imported and as it is now; empty if nothing does."""
    old, new = before.point.values, now.point.values
    changed = [name for name in old.keys() & new.keys() if repr(old[name]) != repr(new[name])]
    if changed:
        name = sorted(changed)[0]
        return f"{name}, {new[name]} instead of {old[name]},"
    same = before.verdict.outcome == now.verdict.outcome and before.best_value == now.best_value
    return "" if same else "result"


def _explain(
    say: Say, sweep: Sweep, columns: Columns, without: Sequence[str], trials: Sequence[Trial]
) -> None:
    """Say what was guessed and left out."""
    say(f"source: {sweep.origin}")
    if columns.guessed:
        say(f"guessed: {', '.join(columns.guessed)} (--map says otherwise)")
    if columns.arguments:
        say(f"other hyperparameters: {', '.join(columns.arguments)} (--ignore leaves one out)")
    if columns.left_out:
        reasons = [f"{name} {why}" for name, why in columns.left_out.items()]
        say(f"left out: {_some(reasons)}")
    if without:
        say(f"left out: {_left_out(without, sweep)}")
    for remark in sweep.remarks:
        say(remark)
    failed = sum(trial.verdict.crashed for trial in trials)
    if failed:
        say(
            f"{_runs(failed)} failed, and nothing that was kept says why: shown as crashed, which "
            "says nothing of a point. If they failed because the objective was nan, as Optuna's "
            "trials then do, say --failed infeasible"
        )


def _left_out(without: Sequence[str], sweep: Sweep) -> str:
    """How many runs have no point, and why."""
    have = "has" if len(without) == 1 else "have"
    count = f"{_runs(len(without))} of {len(sweep.runs)}"
    return f"{count} {have} no place on the axes: {_some(without)}"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _some(sentences: Sequence[str]) -> str:
    more = len(sentences) - SHOWN
    return "; ".join(sentences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
