"""Training losses that are drawn, not trained: healthy ones, some that learn nothing, and scripted
blow-ups.

Each has the verdict that a practitioner gives. Shared by tests/judge/test_scripted.py and
benchmarks/verdicts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tunewright.search.trial import Array, Curve, Instability, Outcome

# generator, updates, batch size → factors of mean 1
Noise = Callable[[np.random.Generator, int, int], Array]

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 128)


def _squared_errors(rng: np.random.Generator, steps: int, batch: int) -> Array:
    return rng.chisquare(batch, steps) / batch


def _likelihoods(rng: np.random.Generator, steps: int, batch: int) -> Array:
    return rng.gamma(batch, 1 / batch, steps)


def _log_normal(rng: np.random.Generator, steps: int, batch: int) -> Array:
    # the mean of as many examples that scatter as much as they are large
    sigma = math.sqrt(math.log1p(1 / batch))
    return np.exp(sigma * rng.standard_normal(steps) - sigma**2 / 2)


def _heavy_tailed(rng: np.random.Generator, steps: int, batch: int) -> Array:
    return 1 + 0.3 * rng.standard_t(2.5, steps) / math.sqrt(batch)


def _multiplied(rng: np.random.Generator, steps: int, batch: int) -> Array:
    return 1 + 0.5 * rng.standard_normal(steps) / math.sqrt(batch)


NOTHING_LEARNED: dict[str, Noise] = {
    "squared errors": _squared_errors,
    "likelihoods": _likelihoods,
    "log-normal": _log_normal,
    "heavy-tailed": _heavy_tailed,
    "multiplied normal": _multiplied,
}


def nothing_learned(kind: str, batch: int, seed: int, known: bool) -> Curve:
    """A constant level times minibatch noise; `known`: the workload states its chance_loss."""
    rng = np.random.default_rng([seed, batch, len(kind)])
    steps = int(rng.choice([60, 200, 1000, 3000]))
    level = float(rng.choice([1e-3, 0.7, 2.3, 11.0, 300.0]))
    factors = NOTHING_LEARNED[kind](rng, steps, batch)
    # A gradient norm scatters as its loss does.
    norms = np.sqrt(np.abs(factors) + 1e-3)
    return curve_of(level * factors, chance=level if known else math.nan, grad_norm=norms)


# --- healthy --------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[float, float]] = {  # loss at the start, and where it falls to
    "cross-entropy": (2.3, 0.1),
    "language model": (10.8, 2.9),
    "mean squared error": (1.0, 0.01),
    "small": (1e-4, 1e-6),
    "large": (1e4, 2e3),
    "starts near 0": (0.02, -3.0),
    "changes sign": (1.5, -4.0),
    "below 0": (-5.0, -8.0),
    "offset": (100.0, 60.0),
}
HEALTHY = ("normal", "heavy-tailed", "log-normal", "squared errors", "skewed")


def healthy(shape: str, kind: str, seed: int, known: bool) -> Curve:
    """A steady decline with noise of one of five kinds."""
    rng = np.random.default_rng([seed, len(shape), HEALTHY.index(kind), 1])
    steps = int(rng.choice([150, 400, 1000, 3000]))
    high, low = SHAPES[shape]
    falls = _decline(rng, steps)
    level = low + (high - low) * falls
    strength = float(rng.choice([0.01, 0.03, 0.1]))
    match kind:
        case "normal":
            loss = level + strength * (high - low) * rng.standard_normal(steps)
        case "heavy-tailed":
            loss = level + strength / 2 * (high - low) * rng.standard_t(2.5, steps)
        case "skewed":
            loss = level + strength * (high - low) * (rng.exponential(1, steps) - 1)
        case "log-normal":
            loss = _multiply(level, low, np.exp(4 * strength * rng.standard_normal(steps)))
        case _:
            batch = int(rng.choice(BATCH_SIZES))
            loss = _multiply(level, low, rng.chisquare(batch, steps) / batch)
    return curve_of(loss, chance=high if known else math.nan)


def _decline(rng: np.random.Generator, steps: int) -> Array:
    """From 1 to about 0: exponential, a power law, or after a plateau."""
    t = np.arange(steps)
    match int(rng.integers(3)):
        case 0:
            return np.exp(-t / (steps * rng.uniform(0.03, 0.2)))
        case 1:
            return (1 + t / (steps * 0.01)) ** -rng.uniform(0.4, 0.8)
        case _:
            return 1 / (1 + np.exp((t - steps * rng.uniform(0.1, 0.3)) / (steps * 0.03)))


def _multiply(level: Array, low: float, factors: Array) -> Array:
    """Noise that multiplies a positive loss; of one with a sign, what lies above its lower
    bound.
    """
    bound = low - 0.05 * abs(low) if low < 0 else 0.0
    return bound + (level - bound) * factors


# --- ill ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scripted:
    """A curve and its verdict; the onset within `tolerance` updates."""

    name: str
    curve: Curve
    outcome: Outcome
    instability: Instability
    onset_step: float = math.inf
    tolerance: int = 5


def curve_of(
    loss: Array,
    chance: float = math.nan,
    total_steps: int = 0,
    grad_norm: Array | None = None,
    values: Array | None = None,
) -> Curve:
    """A curve of which only the loss tells, unless evaluations are given: as many at regular
    intervals.
    """
    loss = np.asarray(loss, float)
    values = np.ones(2) if values is None else values
    eval_step = np.linspace(0, len(loss), len(values)).astype(np.int64)
    norms = np.ones_like(loss) if grad_norm is None else grad_norm
    return Curve(loss, norms, eval_step, {"value": values}, total_steps or len(loss), chance)


def scripted(seed: int = 0) -> Iterator[Scripted]:
    """Every script once, with the noise of a seed; with chance_loss, and where that is no part of
    it without.
    """
    for known in (True, False):
        for name, script in SCRIPTS.items():
            loss, chance, outcome, instability, onset, tolerance = script(
                np.random.default_rng([seed, 2])
            )
            curve = curve_of(loss, chance if known else math.nan)
            label = f"{name}, {'with' if known else 'without'} chance_loss"
            if known or name not in NEEDS_CHANCE:
                yield Scripted(label, curve, outcome, instability, onset, tolerance)


Script = tuple[Array, float, Outcome, Instability, float, int]


def _steady(
    rng: np.random.Generator, steps: int = 1000, high: float = 2.3, low: float = 0.1
) -> Array:
    level = low + (high - low) * np.exp(-np.arange(steps) / 60)
    return level * np.exp(0.05 * rng.standard_normal(steps))


def _language(rng: np.random.Generator, steps: int = 2000) -> Array:
    """A transformer: 10.8 to 2.9, with minibatches that scatter by 0.03."""
    level = 2.9 + 7.9 * np.exp(-np.arange(steps) / 150)
    return level + 0.03 * rng.standard_normal(steps)


def _flat(rng: np.random.Generator, level: float, steps: int, scatter: float = 0.02) -> Array:
    return level * np.exp(scatter * rng.standard_normal(steps))


def _put(loss: Array, at: int, values: Array) -> Array:
    loss = loss.copy()
    loss[at : at + len(values)] = values[: len(loss) - at]
    return loss


def _early_recovers(rng: np.random.Generator) -> Script:
    burst = np.geomspace(40, 2.3, 60)
    return _put(_steady(rng), 3, burst), 2.3, "feasible", "early", 3, 2


def _early_factor_three(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 4, _flat(rng, 7.5, 15)), 2.3, "feasible", "early", 4, 2


def _early_diverges(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 3, _flat(rng, 40, 1000, 0.2)), 2.3, "diverged", "early", 3, 2


def _collapse_with_rise(rng: np.random.Generator) -> Script:
    loss = np.concatenate([_steady(rng, 6), np.geomspace(20, 1000, 8), _flat(rng, 2.35, 600)])
    return loss, 2.3, "collapsed", "early", 6, 2


def _collapse_without_rise(rng: np.random.Generator) -> Script:
    loss = np.concatenate([_steady(rng, 300), np.linspace(0.1, 2.3, 200), _flat(rng, 2.3, 500)])
    return loss, 2.3, "collapsed", "mid_training", 300, 60


def _jump_that_stays(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 500, _flat(rng, 9.0, 500)), 2.3, "diverged", "mid_training", 500, 2


def _jump_to_chance(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 500, _flat(rng, 2.3, 500)), 2.3, "collapsed", "mid_training", 500, 2


def _jump_recovers(rng: np.random.Generator) -> Script:
    return (
        _put(_steady(rng), 500, np.geomspace(2.0, 0.1, 40)),
        2.3,
        "feasible",
        "mid_training",
        500,
        2,
    )


def _short_burst(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 500, _flat(rng, 1.5, 6)), 2.3, "feasible", "mid_training", 500, 2


def _unbounded(rng: np.random.Generator) -> Script:
    loss = np.concatenate([_steady(rng, 500), 0.1 * np.exp(np.arange(500) / 40)])
    return loss, 2.3, "diverged", "mid_training", 500, 80


def _language_jump(rng: np.random.Generator) -> Script:
    loss = _language(rng)
    loss[1600:] += 1.9  # 60 deviations; a quarter of what was learned
    return loss, 10.8, "feasible", "mid_training", 1600, 2


def _language_loses_half(rng: np.random.Generator) -> Script:
    return (
        _put(_language(rng), 1000, 7.4 + 0.05 * rng.standard_normal(1000)),
        10.8,
        "collapsed",
        "mid_training",
        1000,
        2,
    )


def _language_spikes(rng: np.random.Generator) -> Script:
    loss = _language(rng)
    for at in range(900, 2000, 150):
        loss = _put(loss, at, 2.9 + 1.2 * np.exp(-np.arange(30) / 10))
    return loss, 10.8, "feasible", "mid_training", 900, 2


def _single_spikes(rng: np.random.Generator) -> Script:
    loss = _language(rng)
    loss[900::100] += 0.9  # 30 deviations
    return loss, 10.8, "feasible", "mid_training", 900, 2


def _language_drift(rng: np.random.Generator) -> Script:
    loss = _language(rng)
    loss[1300:] += np.linspace(0, 2.6, 700)  # a third of what was learned
    return loss, 10.8, "feasible", "mid_training", 1300, 120


def _drift(rng: np.random.Generator) -> Script:
    level = np.concatenate(
        [0.27 + 2.03 * np.exp(-np.arange(660) / 80), np.linspace(0.27, 0.95, 340)]
    )
    return level * np.exp(0.1 * rng.standard_normal(1000)), 2.3, "feasible", "mid_training", 660, 80


def _drift_then_chance(rng: np.random.Generator) -> Script:
    loss = np.concatenate([_steady(rng, 400), np.geomspace(0.1, 2.3, 600), _flat(rng, 2.3, 500)])
    return loss, 2.3, "collapsed", "mid_training", 500, 200


def _excursion(rng: np.random.Generator) -> Script:
    return _put(_steady(rng), 600, np.array([1e27])), 2.3, "feasible", "mid_training", 600, 0


def _excursions(rng: np.random.Generator) -> Script:
    loss = _steady(rng)
    for at in (500, 560, 700):
        loss = _put(loss, at, np.geomspace(1e27, 1.0, 12))
    return loss, 2.3, "feasible", "mid_training", 500, 0


def _never_below(rng: np.random.Generator) -> Script:
    """The loss stays at 5, where a constant predictor has 2.3."""
    return (
        np.concatenate([_flat(rng, 2.3, 3), _flat(rng, 5.0, 597)]),
        2.3,
        "diverged",
        "early",
        3,
        2,
    )


def _bad_start(rng: np.random.Generator) -> Script:
    """The first loss is 117, and training goes on at 30."""
    return (
        np.concatenate([[117.0, 80.0], _flat(rng, 30.0, 600, 0.05)]),
        2.3,
        "diverged",
        "early",
        2,
        30,
    )


def _near_zero_blows_up(rng: np.random.Generator) -> Script:
    level = 0.02 - 3.0 * (1 - np.exp(-np.arange(1000) / 80))
    loss = level + 0.1 * rng.standard_normal(1000)
    return (
        _put(loss, 600, 8 + 0.5 * rng.standard_normal(400)),
        0.02,
        "diverged",
        "mid_training",
        600,
        2,
    )


def _below_zero_spike(rng: np.random.Generator) -> Script:
    loss = -5 - 3 * (1 - np.exp(-np.arange(1000) / 80)) + 0.05 * rng.standard_normal(1000)
    return _put(loss, 600, np.linspace(-4, -8, 30)), -5.0, "feasible", "mid_training", 600, 2


def _noisy_blow_up(rng: np.random.Generator) -> Script:
    """Mean squared errors of a batch of 8, that become twenty times as large."""
    level = np.where(np.arange(1000) < 600, 0.05 + 0.95 * np.exp(-np.arange(1000) / 60), 20.0)
    return level * rng.chisquare(8, 1000) / 8, 1.0, "diverged", "mid_training", 600, 3


def _grokking(rng: np.random.Generator) -> Script:
    loss = np.concatenate([_flat(rng, 2.3, 700), _steady(rng, 500)])
    return loss, 2.3, "feasible", "none", math.inf, 0


def _cliff(rng: np.random.Generator) -> Script:
    """The learning rate is cut twice."""
    level = np.concatenate(
        [1.0 + 1.3 * np.exp(-np.arange(400) / 50), np.full(300, 0.6), np.full(300, 0.4)]
    )
    return level * np.exp(0.05 * rng.standard_normal(1000)), 2.3, "feasible", "none", math.inf, 0


def _oscillation(rng: np.random.Generator) -> Script:
    """At the edge of stability every other update undoes the one before."""
    return _steady(rng) * (1 + 0.2 * (-1) ** np.arange(1000)), 2.3, "feasible", "none", math.inf, 0


def _late_collapse_is_short(rng: np.random.Generator) -> Script:
    """The last tenth is at chance: not long enough to give up, but no stable run."""
    return _put(_steady(rng), 900, _flat(rng, 2.3, 100)), 2.3, "feasible", "mid_training", 900, 2


SCRIPTS: dict[str, Callable[[np.random.Generator], Script]] = {
    "early blow-up that recovers": _early_recovers,
    "early rise by a factor of three": _early_factor_three,
    "early divergence": _early_diverges,
    "collapse with a rise": _collapse_with_rise,
    "collapse without a rise": _collapse_without_rise,
    "jump that stays": _jump_that_stays,
    "jump to chance": _jump_to_chance,
    "jump that recovers": _jump_recovers,
    "burst of six updates": _short_burst,
    "growth without bound": _unbounded,
    "language model that jumps by 1.9": _language_jump,
    "language model that loses half": _language_loses_half,
    "spikes of 1.2 nats": _language_spikes,
    "spikes of one update": _single_spikes,
    "language model that drifts by a third": _language_drift,
    "drift from 0.27 to 0.95": _drift,
    "drift to chance": _drift_then_chance,
    "excursion to 1e27": _excursion,
    "excursions to 1e27": _excursions,
    "stays at twice chance": _never_below,
    "starts at 117, goes on at 30": _bad_start,
    "starts near 0, blows up": _near_zero_blows_up,
    "spike below 0": _below_zero_spike,
    "noisy blow-up": _noisy_blow_up,
    "plateau before learning": _grokking,
    "learning rate cut": _cliff,
    "oscillation": _oscillation,
    "collapse at the very end": _late_collapse_is_short,
}
NEEDS_CHANCE = ("starts at 117, goes on at 30",)  # nothing else tells that 30 is high
