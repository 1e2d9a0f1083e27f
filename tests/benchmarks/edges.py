"""How many trainings it takes to find where training becomes unstable, and how often what is found
is true.

For networks whose illness is known (illnesses.py), with real trainings:

    --golden   writes tests/golden/edges.json: the base LR at which half of many trainings diverge,
               on a fine grid
    else       follows the procedure of `tunewright diagnose` from the sweep to the edge, on seeds
               of its own, and counts what it trains beside a grid as narrow as its interval over
               the range of the sweep, with as many seeds at each base LR. Of the grid only what is
               near the golden edge is trained; beyond, it is known.

To reach: an interval of at most 0.15 decades for at most a quarter of the grid's trainings, which
in nine of ten cases, widened by a factor of 1.5, holds the golden edge.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import joblib
import numpy as np
from illnesses import SEEDS, STUDIES, case_at, follow, trials_of
from measure import print_footer, print_header, print_table

from tunewright.search.judge.stability_edge import Tried, bracket, tries
from tunewright.search.procedure.group import EDGE_DECADES
from tunewright.search.trial import Trial
from tunewright.search.words import readable

GOLDEN = Path(__file__).parents[1] / "golden" / "edges.json"
MODELS = ("healthy", "no_norm", "post_norm", "branch_out")
FINE_DECADES = 0.05  # from one base LR of the fine grid to the next
FINE_REACH = 6  # base LRs of it to either side of where the procedure finds the edge
FINE_SEEDS, FINE_CHUNK = 16, 4  # trainings of each base LR, and how many of them are one job
FIRST_FINE_SEED = 50_000  # and on; the procedure's are below, none is used twice
TO_THE_EDGE = ("sweep", "close", "above", "below", "edge")
GRID_REACH = 0.5  # decades to either side of the golden edge in which a grid is trained
REPETITIONS, QUICK_REPETITIONS = 6, 1
FACTOR = 1.5  # by which an interval is widened
RESAMPLINGS = 1000


@dataclass(frozen=True)
class Golden:
    """What the golden file says of a network.

    lr_star, learned   where its plain training is best, and the training loss that it ends at there
    unstable_base_lr   the middle of `interval`, between two base LRs of the fine grid
    confidence         95 % of resamplings of the seeds place unstable_base_lr within
    outcomes           of all trainings on the fine grid, as seen from lr_star
    tried              [base_lr, infeasible, trials] of the fine grid
    """

    lr_star: float
    learned: float
    unstable_base_lr: float
    interval: tuple[float, float]
    confidence: tuple[float, float]
    outcomes: dict[str, int]
    tried: list[tuple[float, int, int]]


def read_golden() -> dict[str, Golden]:
    return {name: Golden(**own) for name, own in json.loads(GOLDEN.read_text())["networks"].items()}


# --- the golden edges -----------------------------------------------------------------------------


def write_golden(workers: int, seeds: int) -> None:
    found = joblib.Parallel(workers)(joblib.delayed(_near)(name) for name in MODELS)
    chunks = [
        range(FIRST_FINE_SEED + i, FIRST_FINE_SEED + i + FINE_CHUNK)
        for i in range(0, seeds, FINE_CHUNK)
    ]
    jobs = [
        (name, *own, chunk) for name, own in zip(MODELS, found, strict=True) for chunk in chunks
    ]
    # the slowest first
    trained = joblib.Parallel(workers)(joblib.delayed(_fine)(*job) for job in reversed(jobs))
    networks = {}
    for name, (lr_star, learned, _) in zip(MODELS, found, strict=True):
        trials = [
            t
            for job, own in zip(reversed(jobs), trained, strict=True)
            if job[0] == name
            for t in own
        ]
        networks[name] = asdict(_golden(lr_star, learned, trials))
    document = {
        "command": f"python tests/benchmarks/edges.py --golden --seeds {seeds}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy")},
        "networks": networks,
    }
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _near(name: str) -> tuple[float, float, float]:
    """lr_star, the training loss there, and about where the edge is."""
    followed = follow(STUDIES[name], TO_THE_EDGE, seed=FIRST_FINE_SEED - 1000)
    trials = [trial for own in followed.trials.values() for trial in own]
    case = case_at(STUDIES[name], followed.found.lr_star, trials)
    return case.point.base_lr, case.learned, followed.found.edge.unstable_base_lr


def _fine(name: str, lr_star: float, learned: float, near: float, seeds: range) -> list[Trial]:
    middle = round(math.log10(near) / FINE_DECADES)
    base_lrs = [
        10 ** (k * FINE_DECADES) for k in range(middle - FINE_REACH, middle + FINE_REACH + 1)
    ]
    case = case_at(STUDIES[name], lr_star, learned=learned)
    return case.judged(trials_of(case.ask("fine", base_lrs, len(seeds), first_seed=seeds[0])))


def _golden(lr_star: float, learned: float, trials: Sequence[Trial]) -> Golden:
    tried = tries(trials)
    low, high = bracket(tried)
    if not low > 0 or math.isinf(high):
        raise ValueError(f"the edge is not within the fine grid: {tried}")
    return Golden(
        lr_star=lr_star,
        learned=learned,
        unstable_base_lr=math.sqrt(low * high),
        interval=(low, high),
        confidence=_confidence(trials),
        outcomes=dict(Counter(trial.verdict.outcome for trial in trials).most_common()),
        tried=[(one.base_lr, one.infeasible, one.trials) for one in tried],
    )


def _confidence(trials: Sequence[Trial]) -> tuple[float, float]:
    rates, seeds = (
        sorted({getattr(t.point, name) for t in trials}) for name in ("base_lr", "seed")
    )
    infeasible = np.zeros((len(rates), len(seeds)), bool)
    for trial in trials:
        infeasible[rates.index(trial.point.base_lr), seeds.index(trial.point.seed)] = (
            trial.verdict.infeasible
        )
    rng = np.random.default_rng(0)
    edges = []
    for _ in range(RESAMPLINGS):
        counts = infeasible[:, rng.integers(len(seeds), size=len(seeds))].sum(axis=1)
        low, high = bracket(
            [Tried(rate, int(k), len(seeds)) for rate, k in zip(rates, counts, strict=True)]
        )
        edges.append(np.sqrt(max(low, rates[0]) * min(high, rates[-1])))
    low, high = np.quantile(edges, (0.025, 0.975))
    return float(low), float(high)


# --- the benchmark --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repetition:
    """What one repetition spent, and found: the kind of instability, the procedure's interval and
    the grid's.
    """

    kind: str
    at_the_edge: int
    in_all: int
    interval: tuple[float, float]
    of_grid: tuple[float, float]

    @property
    def decades(self) -> float:
        return math.log10(self.interval[1] / self.interval[0]) if self.interval[0] > 0 else math.inf


def repetition(name: str, golden: Golden, number: int) -> Repetition:
    study, seed = STUDIES[name], 100 * number
    followed = follow(study, seed=seed)
    case = case_at(study, golden.lr_star, learned=golden.learned)
    near = [
        rate for rate in grid(name) if abs(math.log10(rate / golden.unstable_base_lr)) <= GRID_REACH
    ]
    tried = tries(
        case.judged(trials_of(case.ask("grid", near, SEEDS, first_seed=seed + study.seeds)))
    )
    spent = followed.spent("edge"), followed.spent(*TO_THE_EDGE)
    return Repetition(followed.found.kind, *spent, followed.found.edge.interval, bracket(tried))


def grid(name: str) -> list[float]:
    """Base LRs over the sweep's range, EDGE_DECADES apart."""
    study = STUDIES[name]
    axis = study.axes(study.optimizers[0])["base_lr"]
    count = round(math.log10(axis.high / axis.low) / EDGE_DECADES) + 1
    return [float(rate) for rate in np.geomspace(axis.low, axis.high, count)]


def holds(interval: tuple[float, float], edge: float, factor: float = 1.0) -> bool:
    return interval[0] / factor <= edge <= interval[1] * factor


def row(name: str, golden: Golden, found: Sequence[Repetition]) -> dict[str, object]:
    edge, whole_grid = golden.unstable_base_lr, SEEDS * len(grid(name))

    def share(intervals: Sequence[tuple[float, float]], factor: float = 1.0) -> str:
        return f"{sum(holds(interval, edge, factor) for interval in intervals)} of {len(found)}"

    own, of_grid = [one.interval for one in found], [one.of_grid for one in found]
    kinds = Counter(one.kind for one in found).most_common()
    at_the_edge = [one.at_the_edge for one in found]
    in_all = [one.in_all for one in found]
    decades = [round(one.decades, 3) for one in found]
    return {
        "network": name,
        "kind": ", ".join(f"{kind} {count}" for kind, count in kinds),
        "golden edge": (
            f"{readable(edge)} ({readable(golden.confidence[0])}–{readable(golden.confidence[1])})"
        ),
        "trainings at the edge": _spread(at_the_edge),
        "with the sweep and lr_star": _spread(in_all),
        "grid": whole_grid,
        "edge / grid": f"{median(at_the_edge) / whole_grid:.2f}",
        "decades": _spread(decades),
        "holds it": share(own),
        f"widened {FACTOR} ×": share(own, FACTOR),
        "the grid's": share(of_grid),
        f"the grid's, widened {FACTOR} ×": share(of_grid, FACTOR),
    }


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):g} ({min(values):g}–{max(values):g})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_REPETITIONS} repetition of one network"
    )
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--golden", action="store_true", help="write the golden file instead")
    parser.add_argument(
        "--seeds", type=int, default=FINE_SEEDS, help="of each base LR of the golden file"
    )
    parser.add_argument("--workers", type=int, default=joblib.cpu_count())
    options = parser.parse_args()
    print_header("Where training becomes unstable")
    if options.golden:
        write_golden(options.workers, options.seeds)
    else:
        repetitions = QUICK_REPETITIONS if options.quick else options.repetitions
        golden = read_golden()
        models = MODELS[:1] if options.quick else MODELS
        jobs = [(name, golden[name], number) for name in models for number in range(repetitions)]
        found = joblib.Parallel(options.workers)(joblib.delayed(repetition)(*job) for job in jobs)
        own = {
            name: [one for job, one in zip(jobs, found, strict=True) if job[0] == name]
            for name in models
        }
        print_table([row(name, golden[name], own[name]) for name in models])
    print_footer()


if __name__ == "__main__":
    main()
