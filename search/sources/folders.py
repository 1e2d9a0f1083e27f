"""A folder of runs: each a folder with a file of hyperparameters, and beside or below it a log.

So write Lightning (hparams.yaml, metrics.csv), Hydra (.hydra/config.yaml), Ray (params.json,
progress.csv), W&B (config.yaml, wandb-summary.json), and many scripts (config.json, log.csv).
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, first_line
from ..logs.formats import logs_in
from ..logs.log import Log, read_log
from .runs import Run, Sweep, is_number
from .tables import plain

STEMS = ("hparams", "params", "hyperparameters", "hyperparams", "config", "args")
SUFFIXES = (".yaml", ".yml", ".json", ".toml")
SUMMARIES = ("wandb-summary.json", "summary.json", "results.json", "metrics.json")
LOG_NAMES = ("metrics.csv", "progress.csv", "log.csv", "history.csv", "metrics.jsonl", "log.jsonl")
DEEPEST = 6  # folders below the one that is given
OF_WANDB = ("_wandb", "wandb_version")  # keys of config.yaml that are none of the user's


def read_folder(path: Path, objective: str | None = None) -> Sweep:
    """The runs below a folder, their logs judged by `objective`, or by what most of them evaluate.

    Raises UserError if there are none, or if none of their files of hyperparameters can be read.
    """
    found = list(_runs_below(path, DEEPEST))
    if not found:
        names = ", ".join(f"{stem}.yaml" for stem in STEMS[:2])
        raise UserError(
            f"{path}: has no runs: a run is a folder with a file of hyperparameters, as {names} or "
            "config.json"
        )
    logs: dict[Path, Log] = {}
    remarks = []
    for folder, _ in found:
        try:
            if log := _log(folder):
                logs[folder] = log
        except UserError as error:
            remarks.append(f"a log is left out: {error}")
    wanted = objective or _evaluated_by_most(logs.values())
    if wanted and not objective:
        remarks.append(f"guessed: objective = {wanted} (--map objective=… says otherwise)")
    runs, faults = [], []
    for folder, config in sorted(found, key=lambda one: str(one[0])):
        try:
            runs.append(_run(path, folder, config, logs.get(folder), wanted))
        except UserError as error:
            faults.append(error)
    if not runs:
        raise faults[0]
    remarks += [f"a run is left out: {error}" for error in faults]
    return Sweep(str(path.resolve()), runs, objective=wanted, remarks=remarks)


def _runs_below(folder: Path, depth: int) -> Iterator[tuple[Path, Path]]:
    """Folders of runs, each with its file of hyperparameters; a run has no runs below it."""
    for place in (folder, folder / ".hydra", folder / "files"):
        own = [place / f"{stem}{suffix}" for stem in STEMS for suffix in SUFFIXES]
        for file in own:
            if file.is_file():
                yield folder, file
                return
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink():
                yield from _runs_below(child, depth - 1)


def _log(folder: Path) -> Log | None:
    """The log of a run: of a usual name, else the only one that is known below it."""
    for name in LOG_NAMES:
        if (folder / name).is_file():
            return read_log(folder / name)
    try:
        (path, *others) = logs_in(folder)
    except UserError:
        return None
    if others:
        names = ", ".join(str(one.relative_to(folder)) for one in (path, *others)[:3])
        raise UserError(f"{folder}: has several, {names}")
    return read_log(path)


def _evaluated_by_most(logs: Iterable[Log]) -> str:
    names = Counter(log.objective for log in logs if log.objective)
    return names.most_common(1)[0][0] if names else ""


def _run(path: Path, folder: Path, config: Path, log: Log | None, objective: str) -> Run:
    values = dict(_flat(_document(config)))
    metrics = dict(_summary(folder))
    run = Run(name=str(folder.relative_to(path)), config=values, metrics=metrics)
    if log is None:
        return run
    # What the log says of a metric that is not the objective is only its name.
    last = {name: float(own[-1]) for name, (_, own) in log.metrics.items() if len(own)}
    curve = replace(log, objective=objective if objective in log.metrics else "").curve()
    evaluated = objective in log.metrics
    metrics = {name: value for name, value in {**last, **metrics}.items() if name != objective}
    return replace(run, metrics=metrics, curve=curve, state="finished" if evaluated else "")


def _document(path: Path) -> Mapping[str, Any]:
    """What a file of hyperparameters holds. Raises UserError if it is not a table of names."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found = json.loads(text)
        elif path.suffix == ".toml":
            found = tomllib.loads(text)
        else:
            found = yaml.load(text, Loader=_Plain)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold hyperparameters by name, got {type(found).__name__}")
    return found


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Objects of Python, as Lightning writes them, are left out."""


_Plain.add_multi_constructor("", lambda loader, suffix, node: None)


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted names. W&B writes each as a table with a `value`."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in OF_WANDB or value is None:
            continue
        if isinstance(value, dict) and "value" in value and set(value) <= {"value", "desc"}:
            value = value["value"]
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, plain(value)


def _summary(folder: Path) -> Iterator[tuple[str, float]]:
    """Results that a run wrote at its end."""
    for place in (folder, folder / "files"):
        for name in SUMMARIES:
            if not (place / name).is_file():
                continue
            for key, value in _flat(_document(place / name)):
                if is_number(value):
                    yield key, float(value)
