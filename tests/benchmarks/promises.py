"""Whether the statistics keep what they promise, by simulation: no model is trained here.

Coverage of the interval of the mean gain; how often what is no better is adopted; the failure rate
that is not excluded; the power with as many seeds as `settles` recommends; what the intervals of
unstable_base_lr hold.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable

import numpy as np
from measure import print_footer, print_header, print_table
from numpy.typing import NDArray

from tunewright.search.judge.comparison import decide, evidence, failure_bound, settles
from tunewright.search.procedure.asking import Asking
from tunewright.search.procedure.group import _edge, judge_edge
from tunewright.search.procedure.steps import Case
from tunewright.search.procedure.tournament import SAFE_SEEDS
from tunewright.search.study.sampling import plan
from tunewright.search.study.study import Study, parse_study
from tunewright.search.trial import EMPTY_CURVE, Group, Point, Trial, Verdict

SEEDS = (5, 6, 7, 10, 20)
# a run of ten costs as much as the other nine gain: equal means
FAILING, COST, EASE = 0.1, 1.0, 0.1
EFFECTS = (0.3, 0.5, 0.8, 1.0)  # true gains in standard deviations
PILOTS = (5, 7, 10)  # seeds of the comparison that was undecided
MOST_PAIRS = 2000  # of a simulated comparison; a recommendation of more is taken as that
# of an edge: standard deviation of log10 of the base LR at which a training diverges
WIDTHS = (0.02, 0.1, 0.3)
STAR = 0.1  # the best base LR of the simulated sweeps

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def failing(rng: np.random.Generator, seeds: int) -> NDArray[np.float64]:
    """Values of a recipe of which one run in ten fails."""
    return 0.05 * rng.standard_normal(seeds) + COST * (rng.random(seeds) < FAILING)


NULLS: dict[str, Draw] = {
    "normal": lambda rng, seeds: rng.standard_normal(seeds) - rng.standard_normal(seeds),
    "lognormal": lambda rng, seeds: rng.lognormal(size=seeds) - rng.lognormal(size=seeds),
    "t2": lambda rng, seeds: rng.standard_t(2, seeds) - rng.standard_t(2, seeds),
    "10 % failing": lambda rng, seeds: failing(rng, seeds) - failing(rng, seeds),
}
LOPSIDED: dict[str, Draw] = {
    "one-sided lognormal": lambda rng, seeds: math.exp(0.5) - rng.lognormal(size=seeds),
    "0.1 better, 10 % fail": lambda rng, seeds: EASE - failing(rng, seeds),
}  # means of 0, too, but not symmetric: what no test of so few can see


def gains(repetitions: int) -> Iterable[dict[str, object]]:
    """Coverage of the 95 % interval, and how often a gain of 0 is adopted."""
    for name, draw in {**NULLS, **LOPSIDED}.items():
        for seeds in SEEDS:
            rng = np.random.default_rng([seeds, len(name)])
            held = adopted = 0
            for _ in range(repetitions):
                one = evidence(-draw(rng, seeds), np.zeros(seeds))
                held += one.gain_interval[0] <= 0 <= one.gain_interval[1]
                adopted += decide([one]) == ["adopt"]
            yield {
                "gains": name,
                "seeds": seeds,
                "interval holds the mean": f"{held / repetitions:.1%}",
                "adopted": f"{adopted / repetitions:.1%}",
            }


def failures(repetitions: int) -> Iterable[dict[str, object]]:
    """The candidate that fails in a run of ten, at equal means: adopted by the rule alone, and on
    the edge.

    On the edge it must also show no failure in SAFE_SEEDS runs, and be better on all of them
    (`remedies`).
    """
    for seeds in (5, 7, 10, 20):
        rng = np.random.default_rng(seeds)
        alone = on_edge = excluded = 0
        for _ in range(repetitions):
            count = max(seeds, SAFE_SEEDS)
            failed = rng.random(count) < FAILING
            gain = EASE - 0.05 * rng.standard_normal(count) - COST * failed
            first = decide([evidence(-gain[:seeds], np.zeros(seeds))]) == ["adopt"]
            alone += first
            excluded += failure_bound(int(failed[:seeds].sum()), seeds) < FAILING
            if first and not failed.any():
                on_edge += decide([evidence(-gain, np.zeros(count))]) == ["adopt"]
        yield {
            "seeds": seeds,
            "bound without a failure": f"{failure_bound(0, seeds):.0%}",
            "bound is too low": f"{excluded / repetitions:.1%}",
            "adopted by the test": f"{alone / repetitions:.1%}",
            f"adopted on the edge, {SAFE_SEEDS} seeds": f"{on_edge / repetitions:.1%}",
        }


def power(repetitions: int) -> Iterable[dict[str, object]]:
    """How often fresh seeds, as many as `settles` recommends after an undecided pilot, decide;
    normal gains.
    """
    for pilot in PILOTS:
        for effect in EFFECTS:
            rng = np.random.default_rng([pilot, round(10 * effect)])
            recommended, decided = [], 0
            while len(recommended) < repetitions:
                one = evidence(-rng.normal(effect, 1.0, pilot), np.zeros(pilot))
                if decide([one]) != ["not enough evidence"]:
                    continue
                pairs = int(min(settles(one, 1), MOST_PAIRS))
                recommended.append(pairs)
                again = evidence(-rng.normal(effect, 1.0, pairs), np.zeros(pairs))
                decided += decide([again]) == ["adopt"]
            yield {
                "pilot": pilot,
                "true gain / spread": effect,
                "recommended, median": f"{np.median(recommended):.0f}",
                "adopted": f"{decided / repetitions:.2f}",
            }


# --- the edge -------------------------------------------------------------------------------------


def sweep_study() -> Study:
    document = {
        "workload": "nowhere:to_be_found",
        "objective": "val_error",
        "max_train_steps": 400,
        "batch_sizes": [32],
        "sampler": "grid",
        "space": {
            "optimizer": {
                "momentum": {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
            }
        },
    }
    return parse_study(document, name="edge", place="benchmark")


def trial(point: Point, diverged: bool) -> Trial:
    verdict = Verdict("diverged" if diverged else "feasible", "none", math.inf, "")
    value = 0.1 + 0.01 * abs(math.log10(point.base_lr / STAR))
    return Trial(point, verdict, EMPTY_CURVE, value, 10, 0.9, 1.0, 0.0, 1.0)


def answered(asking: Asking, trials_of: Callable[[Study], list[Trial]]) -> object:
    """What a procedure returns when it is answered by these trials."""
    answers = None
    while True:
        try:
            asked = next(asking) if answers is None else asking.send(answers)
            answers = {study.name: trials_of(study) for study in asked}
        except StopIteration as done:
            return done.value


def edges(repetitions: int) -> Iterable[dict[str, object]]:
    """The edge as `diagnose` finds it, 5 seeds: what its bracket and its confidence interval
    hold.
    """
    study = sweep_study()
    for shared in (False, True):
        for width in WIDTHS:
            rng = np.random.default_rng([shared, round(100 * width)])
            bracket = interval = refused = trainings = 0
            decades = []
            for _ in range(repetitions):
                true = STAR * 10 ** rng.uniform(0.2, 1.3)
                edge = _found(study, true, width, shared, rng)
                low, high = edge.confidence_interval
                bracket += edge.interval[0] <= true <= edge.interval[1]
                interval += low <= true <= high
                refused += edge.refused == "contradicted"
                trainings += edge.trainings
                decades.append(math.log10(high / low) if low > 0 else math.inf)
            yield {
                "seeds diverge": "alike at every base LR" if shared else "each time anew",
                "width": width,
                "0.15 decades hold the half": f"{bracket / repetitions:.1%}",
                "95 % interval holds it": f"{interval / repetitions:.1%}",
                "its decades, median": f"{np.median(decades):.2f}",
                "open": f"{np.mean(np.isinf(decades)):.0%}",
                "called contradictory": f"{refused / repetitions:.1%}",
                "trainings": f"{trainings / repetitions:.0f}",
            }


def _found(study: Study, true: float, width: float, shared: bool, rng: np.random.Generator):
    luck: dict[int, float] = {}

    def trials_of(asked: Study) -> list[Trial]:
        found = []
        for point in plan(asked):
            own = (
                luck.setdefault(point.seed, rng.standard_normal())
                if shared
                else rng.standard_normal()
            )
            found.append(trial(point, math.log10(point.base_lr / true) > width * own))
        return found

    sweep = trials_of(study)
    star = min((one.point for one in sweep), key=lambda point: abs(math.log(point.base_lr / STAR)))
    case = Case(study, Group(32, "momentum"), 5, star)
    close = trials_of(case.ask("close", [STAR / 10**0.5, STAR], 5))
    edge, _ = answered(_edge(case, star.base_lr, [*sweep, *close]), trials_of)
    return judge_edge(
        edge, star.base_lr, star.base_lr, trials_of(case.ask("confirm", [5 * STAR, 10 * STAR], 5))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 repetitions of each row")
    parser.add_argument("--repetitions", type=int, default=1000, help="of each row (default: 1000)")
    options = parser.parse_args()
    repetitions = 4 if options.quick else options.repetitions
    print_header("What the statistics promise")
    print(
        f"{repetitions} repetitions of each row; a third as many of those of power and of the edge"
    )
    fewer = max(repetitions // 3, 4)
    for title, rows in {
        "Gains whose mean is 0": gains(repetitions),
        "One run of ten fails, at equal means": failures(repetitions),
        "Seeds that settle": power(fewer),
        "The edge of stability": edges(fewer),
    }.items():
        print(f"\n{title}")
        print_table(list(rows))
    print_footer()


if __name__ == "__main__":
    main()
