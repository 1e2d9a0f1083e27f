"""What a plan spends and what it finds: whole studies, replayed from tables instead of trained.

    python tests/benchmarks/replay.py [--quick] [--only PART]

Sampler, seeds and cut of a study decide which configurations are trained, and for how long. Here
a study is planned and judged as `tunewright run` does it; only the training is looked up, in the
tables of lookup.py. A point between the values of a table is the nearest one, by the logarithm; a
configuration that is proposed twice costs twice. What a configuration is truly worth is the mean
over the table's seeds, of which a study sees some, drawn anew in each replay. All plans have the
same sequence of seeds, so they are compared pair by pair.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import scipy
from lookup import HPOLIB, Table, algoperf, hpolib, residual_mlp
from measure import print_footer, print_header, print_table

from tunewright.search.judge.analysis import rank_configurations
from tunewright.search.judge.seeds import mark_provisional
from tunewright.search.study.cut import decide, stop
from tunewright.search.study.sampling import next_points
from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import Point, Trial, as_told

OF_HPOLIB = 40  # configurations of a study at each of its four batch sizes
OF_RESIDUAL = (20, 40)
ONE, FINALISTS, ALL, TWO = "1 for all", "3 for 4 finalists", "3 for all", "2 for all"
SEEDS: dict[str, Any] = {
    ONE: 1,
    FINALISTS: {"all": 1, "finalists": 3, "of": 4},
    ALL: 3,
    "2 for 2 finalists": {"all": 1, "finalists": 2, "of": 2},
    TWO: 2,
}
OF_TWO = (ONE, "2 for 2 finalists", TWO)
CUTS: dict[str, Any] = {
    "": None,
    "at 25 %": {"at": 0.25, "keep": 0.5},
    "at 50 %": {"at": 0.5, "keep": 0.5},
}
SURELY = 2  # standard errors

Trials = dict[tuple[int, int], Trial]  # by batch size and number


@dataclass(frozen=True)
class Plan:
    """How a study spends its updates: some keys of its file, by their names here."""

    sampler: str
    seeds: str
    cut: str = ""

    def study(self, table: Table, trials: int | None, seed: int) -> Study:
        keys = {
            "sampler": self.sampler,
            "seeds": SEEDS[self.seeds],
            "cut": CUTS[self.cut],
            "trials": trials,
            "seed": seed,
        }
        document = {key: value for key, value in keys.items() if value is not None}
        return parse_study({**table.study, **document}, name="replayed", place=table.name)


SAMPLERS = ("halton", "tpe", "halton+tpe")
PLANS = [Plan(sampler, seeds) for sampler in SAMPLERS for seeds in (ONE, FINALISTS, ALL)]
CUTTING = [Plan(plan.sampler, plan.seeds, "at 25 %") for plan in PLANS]


@dataclass(frozen=True)
class Choice:
    """What a replayed study spends at one batch size, and the configuration that it chooses.

    spent   updates
    place   of the configuration in the table; None if nothing trains
    truth   what it is worth; inf if it does not train with every seed
    error   standard error of a mean of three seeds of it
    better  share of the batch size's feasible configurations that are better, in percent
    """

    spent: int
    place: tuple[int, ...] | None
    truth: float
    error: float
    better: float


def replay(plan: Plan, table: Table, trials: int | None, seed: int) -> list[Choice]:
    """A study from its first point to its choices, one for each batch size."""
    study = plan.study(table, trials, seed)
    columns = np.random.default_rng(seed).permutation(table.seeds).tolist()

    def look_up(point: Point, until: int | None = None) -> Trial:
        return table.trial(point, columns[point.seed - study.seed], study.objective, until)

    done: Trials = {}
    while new := train(study, done, look_up):
        done |= {key(trial.point): trial for trial in new}
    found = list(done.values())
    if study.finalists:
        found = mark_provisional(found, study.most_seeds, study.scientific_names)
    return [chosen(table, found, size) for size in study.batch_sizes]


def train(study: Study, done: Trials, look_up: Callable[..., Trial]) -> list[Trial]:
    """What is planned now and not trained, as the driver asks for it, to its end or its cut."""
    points = next_points(study, [as_told(trial) for trial in done.values()])
    if study.cut is None:
        return [look_up(point) for point in points if key(point) not in done]

    def at_cut(point: Point) -> Trial:
        return look_up(point, study.cut_step(point))

    found = decide(study, points, done.keys(), at_cut)
    stopped = [stop(study, at_cut(point), bar) for point, bar in found.stopped]
    return [*stopped, *map(look_up, found.to_end)]


def key(point: Point) -> tuple[int, int]:
    return point.batch_size, point.number


def chosen(table: Table, trials: Sequence[Trial], batch_size: int) -> Choice:
    """What the trials at a batch size cost, and the configuration of the best mean."""
    own = [trial for trial in trials if trial.point.batch_size == batch_size]
    spent = sum(len(trial.curve.loss) for trial in own)
    ranking = rank_configurations(own)
    if not ranking:
        return Choice(spent, None, math.inf, math.nan, 100.0)
    place = table.place(ranking[0].point)
    truth, error = float(table.truth[place]), float(table.noise[place]) / math.sqrt(3)
    return Choice(spent, place, truth, error, 100 * table.better(truth, batch_size))


def replays(plan: Plan, table: Table, trials: int | None, count: int) -> list[Choice]:
    """Of `count` studies, each with seeds of its own."""
    return [one for i in range(count) for one in replay(plan, table, trials, seed=10 * i)]


def against(plan: Plan, found: Sequence[Choice], reference: Sequence[Choice]) -> dict[str, object]:
    """A row: what a plan spends and finds, pair by pair with another."""
    pairs = list(zip(found, reference, strict=True))
    shares = [one.better for one in found]
    worse = [one.truth - other.truth > SURELY * other.error for one, other in pairs]
    better = [other.truth - one.truth > SURELY * other.error for one, other in pairs]
    spent = fmean(one.spent for one in found) / fmean(one.spent for one in reference)
    return {
        **{name: value or "no" for name, value in vars(plan).items()},
        "updates": f"{spent:.2f}",
        "better ones, %": with_error(shares),
        "median": with_interval(shares),
        "more than reference": with_error([one.better - other.better for one, other in pairs]),
        "same choice": percent([one.place == other.place for one, other in pairs]),
        "surely worse": percent(worse),
        "surely better": percent(better),
    }


def with_error(values: Sequence[float]) -> str:
    """Their mean and its standard error."""
    return f"{fmean(values):.2f} ± {stdev(values) / math.sqrt(len(values)):.2f}"


def with_interval(values: Sequence[float]) -> str:
    """Their median, and its 95 % interval by the signs of what lies above and below."""
    low, high = scipy.stats.binom.interval(0.95, len(values), 0.5)
    ordered = sorted(values)
    return f"{median(values):.2f} ({ordered[int(low)]:.2f}–{ordered[int(high) - 1]:.2f})"


def percent(cases: Sequence[bool]) -> str:
    return f"{fmean(cases):.0%}"


Found = Mapping[tuple[Plan, str], Sequence[Choice]]  # by plan and table


def rows(found: Found, names: Sequence[str], seeds: str = ALL) -> list[dict[str, object]]:
    """A row for each plan on some tables together.

    The reference is the plan of the same sampler that cuts nothing and has these seeds.
    """

    def on_all(plan: Plan) -> list[Choice]:
        return [choice for name in names for choice in found[plan, name]]

    plans = dict.fromkeys(plan for plan, _ in found)
    return [against(plan, on_all(plan), on_all(Plan(plan.sampler, seeds))) for plan in plans]


def of_residual_mlp(quick: bool) -> None:
    table, count = residual_mlp(), 2 if quick else 200
    for trials in OF_RESIDUAL:
        print(f"Residual MLP, {trials} configurations, {count} studies")
        plans = [*PLANS, *CUTTING]
        found = {(plan, table.name): replays(plan, table, trials, count) for plan in plans}
        print_table(rows(found, [table.name]))


def of_hpolib(quick: bool) -> None:
    names, count = (HPOLIB[:1], 1) if quick else (HPOLIB, 25)
    found: dict[tuple[Plan, str], list[Choice]] = {}
    for name in names:
        table = hpolib(name)
        for plan in PLANS:
            found[plan, name] = replays(plan, table, OF_HPOLIB, count)
    print(f"HPOLib, {OF_HPOLIB} configurations at each of 4 batch sizes, {count} studies a table")
    for name in names:
        print(f"\n{name}")
        print_table(rows(found, [name]))
    print(f"\nall {len(names)} together")
    print_table(rows(found, names))


def of_algoperf(quick: bool) -> None:
    """Which tuning is chosen of the few that were run, in other people's studies."""
    if not (name := os.environ.get("TUNEWRIGHT_ALGOPERF")):
        print("TUNEWRIGHT_ALGOPERF is not set: no runs of AlgoPerf")
        return
    folder = Path(name)
    print("AlgoPerf: studies of four or five tunings, whatever their schedules")
    plans = [Plan("grid", ONE, cut) for cut in CUTS]
    print_few(algoperf(folder, repeated=False), plans, ONE, 1)
    print("AlgoPerf: studies whose three to five tunings were run twice")
    print_few(
        algoperf(folder, repeated=True),
        [Plan("grid", seeds) for seeds in OF_TWO],
        TWO,
        2 if quick else 10,
    )


def print_few(tables: Sequence[Table], plans: Sequence[Plan], seeds: str, count: int) -> None:
    """Studies of few configurations, whose noise is hardly known: each plan against one."""

    def on_all(plan: Plan) -> list[Choice]:
        return [choice for table in tables for choice in replays(plan, table, None, count)]

    reference = on_all(Plan("grid", seeds))
    cells = []
    for plan in plans:
        pairs = list(zip(on_all(plan), reference, strict=True))
        row = against(plan, *zip(*pairs, strict=True))
        lost = fmean(one.truth / other.truth - 1 for one, other in pairs)
        columns = ("seeds", "cut", "updates", "same choice")
        cells.append({name: row[name] for name in columns} | {"objective lost": f"{lost:.2%}"})
    print_table(cells)
    print(f"of {len(tables)} studies\n")


PARTS = {"residual_mlp": of_residual_mlp, "hpolib": of_hpolib, "algoperf": of_algoperf}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few replays: some seconds")
    parser.add_argument("--only", choices=PARTS, help="of all that is measured, this alone")
    arguments = parser.parse_args()
    print_header("Replayed studies")
    for part in [arguments.only] if arguments.only else PARTS:
        PARTS[part](arguments.quick)
    print_footer()


if __name__ == "__main__":
    main()
