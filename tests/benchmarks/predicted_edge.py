"""How well the curvature of one stable training predicts where training becomes unstable.

For each workload of models/ that needs no download, with momentum and with adam: a sweep finds the
base LR at which half of the trainings diverge; its best training is followed, as `tunewright
diagnose` does, and so is one at a tenth of that base LR. Each predicts an edge: the base LR at
which λ₁ · η over the threshold would be 1, if the curvature did not change with it. A factor says
how far the prediction is from the middle of the edge found, 2 and ½ both counting as 2.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import plotly.graph_objects as go
from measure import print_footer, print_header, print_table

from tunewright.search.diagnose import CURVATURE_EXAMPLES
from tunewright.search.judge.edge_ratio import EdgeRun
from tunewright.search.judge.stability_edge import bracket, tries
from tunewright.search.show.plots.arrange import settled
from tunewright.search.show.plots.style import (
    BLUE,
    INK,
    ORANGE,
    log_axis,
    panel_figure,
    panel_title,
    right_legend,
)
from tunewright.search.study.sampling import next_points
from tunewright.search.study.study import Study, parse_study
from tunewright.search.threads import torch_threads
from tunewright.search.train.curvature import follow_edge
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.words import readable
from tunewright.search.workload.workload import load_workload

LOWEST = {"momentum": 1e-3, "adam": 1e-4}  # base LR of the sweep
PER_SWEEP, FACTOR = 16, 2.0  # base LRs, each FACTOR times the one before
SEEDS = 2
FAR_BELOW = 10.0  # times below the best: the second run that is followed
FIGURE = (760, 620)  # pixels


@dataclass(frozen=True)
class Task:
    """A workload, its batch size and length, and whether its trainings are stacked."""

    workload: str
    arguments: Mapping[str, Any]
    batch_size: int = 32
    steps: int = 200
    stacked: bool = True


TEXT = {"d_model": 32, "layers": 2, "context": 16}
TASKS = {
    "diabetes": Task("diabetes:mlp", {}),
    "digits MLP": Task("digits:mlp", {}, 64),
    "digits conv": Task("digits:conv", {}, steps=100),
    "linear": Task("on_cue:linear", {"cue_step": 1_000}),  # its cue comes after the end
    "residual MLP, pre-norm": Task("residual_mlp:digits", {"normalization": "pre", "depth": 4}),
    "residual MLP, post-norm": Task("residual_mlp:digits", {"normalization": "post", "depth": 4}),
    "residual MLP, no norm": Task("residual_mlp:digits", {"normalization": "none", "depth": 4}),
    "Transformer, pre-norm": Task("transformer:characters", TEXT, 16),
    "Transformer, post-norm": Task("transformer:characters", {**TEXT, "normalization": "post"}, 16),
    "Wide-ResNet": Task("wide_resnet:digits", {}, steps=100, stacked=False),
}


@dataclass(frozen=True)
class Found:
    """The edge that a sweep found, and what the two runs say."""

    task: str
    optimizer: str
    edge: tuple[float, float]
    best: EdgeRun
    far_below: EdgeRun
    seconds: float

    @property
    def middle(self) -> float:
        return math.sqrt(self.edge[0] * self.edge[1])

    def factor(self, run: EdgeRun) -> float:
        """Predicted over found; nan where either is not known."""
        known = math.isfinite(self.middle) and math.isfinite(run.predicted_edge)
        return run.predicted_edge / self.middle if known else math.nan


def study_of(task: Task, optimizer: str) -> Study:
    low = LOWEST[optimizer]
    high = low * FACTOR ** (PER_SWEEP - 1)
    document = {
        "workload": f"tunewright.models.{task.workload}",
        "workload_args": task.arguments,
        "objective": "val_loss",
        "max_train_steps": task.steps,
        "evaluations": 10,
        "batch_sizes": [task.batch_size],
        "sampler": "grid",
        "seeds": SEEDS,
        "space": {
            "optimizer": {
                optimizer: {"base_lr": {"low": low, "high": high, "log": True, "points": PER_SWEEP}}
            }
        },
    }
    return parse_study(document, "predicted_edge", place=__file__)


def look(name: str, optimizer: str) -> Found:
    task, began = TASKS[name], time.perf_counter()
    study = study_of(task, optimizer)
    workload = load_workload(study.workload, task.arguments)
    points = next_points(study, [])
    engine = Engine(stacked=True, slots=len(points)) if task.stacked else ALONE
    with torch_threads(1):
        trials = [one.trial for one in train(study, workload, points, engine)]
        best = min((trial for trial in trials if trial.feasible), key=lambda trial: trial.cost)
        point = best.point
        edge = bracket(tries(trials), above=point.base_lr)
        lower = replace(point, base_lr=point.base_lr / FAR_BELOW)
        runs = [follow_edge(study, workload, own, CURVATURE_EXAMPLES) for own in (point, lower)]
    seconds = time.perf_counter() - began
    return Found(name, optimizer, edge, runs[0], runs[1], seconds)


def row(found: Found) -> dict[str, object]:
    low, high = found.edge
    edge = f"{readable(low)} – {readable(high)}" if math.isfinite(high) else f"> {readable(low)}"
    cells: dict[str, object] = {
        "workload": found.task,
        "optimizer": found.optimizer,
        "edge found": edge,
    }
    for name, run in (("best", found.best), ("a tenth of it", found.far_below)):
        highest = run.highest
        cells[f"{name}: base_lr"] = readable(run.base_lr)
        cells[f"{name}: highest ratio"] = readable(highest.ratio) if highest else "–"
        cells[f"{name}: at step"] = highest.step if highest else "–"
        cells[f"{name}: predicted"] = readable(run.predicted_edge)
        cells[f"{name}: predicted / found"] = readable(found.factor(run))
    cells["seconds"] = round(found.seconds)
    return cells


def summary(found: Sequence[Found]) -> list[dict[str, object]]:
    rows = []
    for optimizer in LOWEST:
        own = [one for one in found if one.optimizer == optimizer]
        for name in ("best", "far_below"):
            factors = [one.factor(getattr(one, name)) for one in own]
            known = [factor for factor in factors if math.isfinite(factor)]
            misses = [max(factor, 1 / factor) for factor in known]
            rows.append(
                {
                    "optimizer": optimizer,
                    "run": "best" if name == "best" else "a tenth of it",
                    "edges": f"{len(known)} of {len(own)}",
                    "median predicted / found": readable(median(known)),
                    "median factor": readable(median(misses)),
                    "worst factor": readable(max(misses)),
                    "within 2 ×": f"{sum(miss <= 2 for miss in misses)} of {len(known)}",
                }
            )
    return rows


def figure(found: Sequence[Found]) -> go.Figure:
    """Predicted against found, by the best run of each."""
    known = [one for one in found if math.isfinite(one.factor(one.best))]
    values = [value for one in known for value in (one.middle, one.best.predicted_edge)]
    low, high = min(values) / 2, max(values) * 2
    drawn = panel_figure(
        "The edge of stability: predicted and found",
        "from the curvature of one stable training, against a sweep",
        {(1, 1): panel_title("", "on the line they agree; dotted: a factor of 2")},
    )
    for factor, dash in ((1.0, "solid"), (2.0, "dot"), (0.5, "dot")):
        drawn.add_trace(
            go.Scatter(
                x=[low, high],
                y=[factor * low, factor * high],
                mode="lines",
                line={"color": INK, "width": 1, "dash": dash},
                showlegend=False,
            )
        )
    for optimizer, colour, symbol in (("momentum", BLUE, "circle"), ("adam", ORANGE, "square")):
        own = [one for one in known if one.optimizer == optimizer]
        drawn.add_trace(
            go.Scatter(
                x=[one.middle for one in own],
                y=[one.best.predicted_edge for one in own],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 11},
                name=optimizer,
                hovertext=[one.task for one in own],
            )
        )
    drawn.update_xaxes(title_text="edge found", **log_axis(low, high))
    drawn.update_yaxes(title_text="edge predicted", **log_axis(low, high))
    right_legend(drawn, "")
    return settled(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the two smallest workloads alone")
    parser.add_argument("--workers", type=int, default=joblib.cpu_count())
    parser.add_argument("--figure", type=Path, help="a PNG file to draw (needs tunewright[png])")
    options = parser.parse_args()
    print_header("The edge of stability, predicted from one stable training")
    tasks = list(TASKS)[:2] if options.quick else list(TASKS)
    # the slowest first
    jobs = [(name, optimizer) for name in reversed(tasks) for optimizer in LOWEST]
    found = joblib.Parallel(options.workers)(joblib.delayed(look)(*job) for job in jobs)
    order = [(name, optimizer) for name in tasks for optimizer in LOWEST]
    found = sorted(found, key=lambda one: order.index((one.task, one.optimizer)))
    print_table([row(one) for one in found])
    print()
    print_table(summary(found))
    if options.figure:
        width, height = FIGURE
        figure(found).write_image(options.figure, width=width, height=height)
    print_footer()


if __name__ == "__main__":
    main()
