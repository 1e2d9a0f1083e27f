"""How learning rate, stability and time to a target change with the batch size.

Pure functions of trials. Of each optimizer and scientific value the trials of several batch sizes
say:

- the edge of stability against the batch size, with its exponent (`laws.evidence_of_edges`);
- the optimal base LR against it, by four laws (`optimum`, `laws`);
- updates to a target against it, and the critical batch size (`targets`);
- whether usable decades, best value and headroom change with it (`trends`).

Source: Tuning Playbook, "Choosing the batch size" (R20): every batch size is tuned on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..trial import Trial, choice_label
from ..words import readable
from .analysis import GroupSummary, group_trials, summarize, varied_names
from .comparison import Interval
from .laws import (
    CLAIMED,
    CONSTANT,
    EXPONENTS,
    FEWEST_SIZES,
    POWER,
    Compared,
    Evidence,
    Fit,
    Form,
    LeftOut,
    Prediction,
    compare,
    evidence_of,
    evidence_of_edges,
    fit,
    leave_one_out,
    power_of_ten,
)
from .optimum import FEWEST, Optimum, configurations, find_optima
from .stability_edge import bracket, tries
from .targets import StepsToTarget, critical_in_words, steps_to_target
from .trends import Trend, trend

FEWEST_POINTS = 2  # batch sizes whose optimum is known: a ratio, if no law
BAND_POINTS = 25  # batch sizes at which figures draw a law
DETECTED = 1.96 + 0.84  # standard errors: a difference that is shown in 80 of 100 repetitions
NAMES = {0.0: "a constant base LR", 0.5: "√B", 1.0: "linear"}


@dataclass(frozen=True)
class AtBatchSize:
    """What the trials of one batch size say.

    summary          lr_star, as_good, best value, headroom, ... as everywhere
    edge             (largest base LR that trains, lowest that does not), with seeds by halves
                     (`stability_edge.bracket`); an end is 0 or inf where nothing bounds it
    optimum          of the smooth curve: what laws are fitted to
    max_train_steps  updates that its trainings were planned for, ascending
    """

    batch_size: int
    summary: GroupSummary
    edge: Interval
    optimum: Optimum
    max_train_steps: tuple[int, ...]


@dataclass(frozen=True)
class Law:
    """One law, fitted to the optimal base LRs.

    name        constant, power, saturating or surge
    shape       p, B_noise or B_n; nan for the constant
    interval    of the shape, 95 %; a batch size is 0 or inf, and an exponent −inf or inf, where the
                data do not bound it
    misfit      sum over batch sizes of the squared distance, in standard errors
    freedom     batch sizes less parameters
    scatter     standard deviation of optima around it beyond their noise, in decades
    weight      AICc weight; nan where laws cannot be compared
    fails       whether it misses by more than the noise explains (p < 0.05)
    """

    name: str
    equation: str
    shape: float
    interval: Interval
    misfit: float
    freedom: int
    scatter: float
    weight: float
    fails: bool


@dataclass(frozen=True)
class Exponent:
    """The exponent p of base LR ~ B^p by the power law.

    interval   95 %; an end is −inf or inf where the data do not bound it
    excluded   those of 0, ½ and 1 outside of it
    fails      whether the power law misses by more than the noise explains (p < 0.05)
    """

    value: float
    interval: Interval
    excluded: tuple[float, ...]
    fails: bool

    @property
    def possible(self) -> tuple[float, ...]:
        """Those of 0, ½ and 1 that it may be."""
        return tuple(one for one in EXPONENTS if one not in self.excluded)

    @property
    def words(self) -> str:
        """ "0.55 (0.42 to 0.68): √B; a constant base LR and linear are excluded"."""
        low, high = (f"{end:.2f}" for end in self.interval)
        known = f"{self.value:.2f} ({low} to {high})"
        out = " and ".join(NAMES[one] for one in self.excluded)
        verb = "are" if len(self.excluded) > 1 else "is"
        return f"{known}, {out} {verb} excluded" if out else f"{known}, which excludes none"


@dataclass(frozen=True)
class Scaling:
    """All that the trials of one optimizer and scientific value say across batch sizes.

    sizes           ascending
    edge_evidence, optimum_evidence   what laws are fitted to
    compared        laws of the optimal base LR; None if fewer than two batch sizes have one
    edge_fit        power law of the edge; None likewise
    left_out        each batch size predicted from the others, ascending
    targets         steps to target; None if no target could be chosen
    trends          usable decades, best value, log10 of the headroom
    predictions     base LRs for the batch sizes that were asked for
    notes           what could not be said, and why; each a sentence without its full stop
    """

    optimizer: str
    scientific: tuple[tuple[str, Any], ...]
    sizes: tuple[AtBatchSize, ...]
    compared: Compared | None
    edge_fit: Fit | None
    left_out: tuple[LeftOut, ...]
    targets: StepsToTarget | None
    trends: tuple[Trend, ...]
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The optimizer and its scientific values, as in a group's label."""
        return choice_label(self.optimizer, self.scientific)

    @property
    def edge(self) -> Exponent | None:
        """Of unstable_base_lr."""
        return _exponent(self.edge_fit)

    @property
    def exponent(self) -> Exponent | None:
        """Of the optimal base LR."""
        return _exponent(self.compared.power if self.compared else None)

    @property
    def laws(self) -> tuple[Law, ...]:
        """Of the optimal base LR."""
        if self.compared is None:
            return ()
        pairs = zip(self.compared.fits, self.compared.weights, strict=True)
        return tuple(_law(fit, weight) for fit, weight in pairs)

    @cached_property
    def optimum_band(self) -> tuple[Prediction, ...]:
        """Averaged laws and their 95 % interval from the smallest to the largest batch size."""
        if self.compared is None:
            return ()
        sizes = _spread_out(self.compared.evidence)
        return tuple(self.compared.predict(size) for size in sizes)

    @cached_property
    def edge_band(self) -> tuple[Prediction, ...]:
        """The power law of the edge and its 95 % interval, likewise."""
        if self.edge_fit is None:
            return ()
        alone = Compared((self.edge_fit,), (1.0,))
        return tuple(alone.predict(size) for size in _spread_out(self.edge_fit.evidence))

    @property
    def settles(self) -> str:
        """What would tell 0, ½ and 1 apart; empty where they are, or nothing is known."""
        return _settles(self)

    @property
    def sentence(self) -> str:
        """The answer: by what to multiply base_lr where the batch size doubles, and up to where."""
        return _sentence(self)


def scalings(
    trials: Iterable[Trial],
    objective: str,
    scientific: Sequence[str] = (),
    target: float | None = None,
    predict: Sequence[int] = (),
) -> list[Scaling]:
    """One per optimizer and values of the scientific hyperparameters, in the groups' order.

    objective   its name, as a curve's metric
    target      of the objective, for steps to target; by default the best value that every batch
                size reaches at five base LRs
    predict     batch sizes to recommend a base LR for
    """
    own: dict[tuple[str, Any], dict[int, list[Trial]]] = {}
    for group, members in group_trials(trials, scientific).items():
        own.setdefault((group.optimizer, group.scientific), {})[group.batch_size] = members
    return [
        _scaling(optimizer, values, sizes, objective, scientific, target, predict)
        for (optimizer, values), sizes in own.items()
    ]


def _scaling(
    optimizer: str,
    values: tuple[tuple[str, Any], ...],
    trials: Mapping[int, list[Trial]],
    objective: str,
    scientific: Sequence[str],
    target: float | None,
    predict: Sequence[int],
) -> Scaling:
    optima = find_optima(
        {size: configurations(own) for size, own in trials.items()},
        {size: [one.base_lr for one in tries(own)] for size, own in trials.items()},
    )
    sizes = tuple(
        _at_batch_size(size, own, optima[size], scientific) for size, own in trials.items()
    )
    evidence = evidence_of([(one.batch_size, one.optimum) for one in sizes])
    compared = compare(evidence) if evidence.points >= FEWEST_POINTS else None
    edges = evidence_of_edges([(one.batch_size, one.edge) for one in sizes])
    return Scaling(
        optimizer=optimizer,
        scientific=values,
        sizes=sizes,
        compared=compared,
        edge_fit=fit(POWER, edges) if edges.points >= FEWEST_POINTS else None,
        left_out=tuple(leave_one_out(evidence)),
        targets=steps_to_target(trials, objective, target),
        trends=_trends(sizes),
        predictions=tuple(compared.predict(size) for size in predict) if compared else (),
        notes=tuple(_notes(sizes, trials, compared)),
    )


def _at_batch_size(
    size: int, trials: list[Trial], optimum: Optimum, scientific: Sequence[str]
) -> AtBatchSize:
    (summary,) = summarize(trials, scientific)
    best = 0.0 if math.isnan(summary.best_base_lr) else summary.best_base_lr
    planned = {trial.curve.total_steps for trial in trials if trial.verdict.judged}
    edge = bracket(tries(trials), above=best)
    return AtBatchSize(size, summary, edge, optimum, tuple(sorted(planned)))


def _trends(sizes: Sequence[AtBatchSize]) -> tuple[Trend, ...]:
    summaries = {one.batch_size: one.summary for one in sizes}
    headroom = {size: math.log10(one.headroom) for size, one in summaries.items() if one.headroom}
    return (
        trend("usable decades", {one.batch_size: one.summary.usable_decades for one in sizes}),
        trend("LR sensitivity", {one.batch_size: one.summary.lr_sensitivity for one in sizes}),
        trend("best value", {size: one.best_value for size, one in summaries.items()}),
        trend("log10 of the headroom", headroom),
    )


def _exponent(fit: Fit | None) -> Exponent | None:
    if fit is None:
        return None
    low, high = fit.interval
    excluded = tuple(one for one in EXPONENTS if not low <= one <= high)
    return Exponent(fit.shape, fit.interval, excluded, fit.fails)


def _law(fit: Fit, weight: float) -> Law:
    form, shape, interval = fit.form, fit.shape, fit.interval
    if not form.shape:
        shape, interval = math.nan, (math.nan, math.nan)
    if form.is_size:
        shape, interval = (
            power_of_ten(shape),
            (power_of_ten(interval[0]), power_of_ten(interval[1])),
        )
    return Law(
        name=form.name,
        equation=form.equation,
        shape=shape,
        interval=interval,
        misfit=fit.missed,
        freedom=fit.left,
        scatter=fit.scatter,
        weight=weight,
        fails=fit.fails,
    )


def _spread_out(evidence: Evidence) -> list[float]:
    low, high = evidence.batch_sizes[0], evidence.batch_sizes[-1]
    return [float(size) for size in np.geomspace(low, high, BAND_POINTS)]


# --- in words -------------------------------------------------------------------------------------


def _sentence(scaling: Scaling) -> str:
    compared = scaling.compared
    if compared is None:
        return "no law of the batch size: fewer than two batch sizes have an optimum"
    held = compared.claimed
    if held is CONSTANT:
        first = "doubling the batch size: keep base_lr"
    elif compared.power.fails or held not in (None, POWER) or _is_unlikely(compared, POWER):
        first = _by_doubling(compared)
    else:
        factor, (low, high) = compared.power.shape, compared.power.interval
        factors = [ratio_of_doubling(p) for p in (factor, low, high)]
        first = "doubling the batch size: multiply base_lr by {} ({} to {})".format(*factors)
    return first + _halved(scaling.targets)


def _is_unlikely(compared: Compared, form: Form) -> bool:
    weight = dict(zip((fit.form for fit in compared.fits), compared.weights, strict=True))[form]
    return weight < 1 - CLAIMED  # nan: not known


def ratio_of_doubling(exponent: float) -> str:
    """2^p in words."""
    return readable(float(f"{2**exponent:.3g}"))


def _by_doubling(compared: Compared) -> str:
    """The first and the last doubling, where no power law holds."""
    smallest, largest = compared.evidence.batch_sizes[0], compared.evidence.batch_sizes[-1]
    rates = {
        at: compared.predict(at).base_lr for at in (smallest, 2 * smallest, largest / 2, largest)
    }
    first = readable(rates[2 * smallest] / rates[smallest])
    last = readable(rates[largest] / rates[largest / 2])
    return (
        f"doubling the batch size: multiply base_lr by {first} at B = {smallest}, by {last} at "
        f"B = {readable(largest / 2)}"
    )


def _halved(targets: StepsToTarget | None) -> str:
    """Up to which batch size updates halve where it doubles."""
    if targets is None or math.isnan(targets.critical):
        return ""
    smallest, largest = targets.reached[0].batch_size, targets.reached[-1].batch_size
    known = critical_in_words(targets.critical, targets.interval, smallest, largest)
    if targets.interval == (0.0, math.inf):
        return "; these batch sizes do not show where updates stop halving"
    if targets.critical == 0:
        return f"; already beyond B = {smallest}, updates no longer halve"
    if math.isinf(targets.critical):
        return f"; updates about halve up to B = {largest}: the critical batch size is {known}"
    return f"; updates halve up to about B = {known}, no longer beyond"


def _settles(scaling: Scaling) -> str:
    """SE(p) = σ / (√n sd(log10 B)), with trainings at the smallest and largest batch size alone."""
    exponent, compared = scaling.exponent, scaling.compared
    if exponent is None or compared is None or len(exponent.possible) < 2:
        return ""
    names = " from ".join(NAMES[one] for one in exponent.possible[-2:])
    cannot = f"these data cannot tell {names} (exponent {exponent.words})"
    evidence = compared.evidence
    if compared.power.fails:
        return f"{cannot}: no power law holds, and more trainings would not tell"
    points = [one for one in scaling.sizes if one.optimum.where in ("inside", "cliff")]
    # of one training, if what is known of an optimum grows with their number
    sigma = math.sqrt(
        float(np.median([one.optimum.base_lrs * one.optimum.spread**2 for one in points]))
    )
    smallest, largest = evidence.batch_sizes[0], evidence.batch_sizes[-1]
    decades = math.log10(largest / smallest)
    least = min(b - a for a, b in zip(exponent.possible, exponent.possible[1:], strict=False))
    needed = math.ceil(2 * (sigma * DETECTED / (least * decades)) ** 2)
    now = min(one.optimum.base_lrs for one in points)
    if needed <= now:
        return f"{cannot}: more batch sizes would"
    return (
        f"{cannot}: about {max(needed, FEWEST)} base LRs around the optimum at each of B = "
        f"{smallest} and {largest} would"
    )


def _notes(
    sizes: Sequence[AtBatchSize], trials: Mapping[int, Sequence[Trial]], compared: Compared | None
) -> list[str]:
    notes = []
    if len(sizes) < FEWEST_SIZES:
        notes.append(f"{len(sizes)} batch sizes show a ratio at most: a law needs {FEWEST_SIZES}")
    elif compared is not None and not compared.are_comparable:
        notes.append(
            f"laws are not compared: AICc needs the optima of {FEWEST_SIZES} batch sizes, with "
            "degrees of freedom left; predictions rest on the power law"
        )
    notes += [f"B = {one.batch_size}: {one.optimum.note}" for one in sizes if one.optimum.note]
    if any(one.summary.seeds == 1 for one in sizes):
        notes.append("one seed: noise is what values scatter around a smooth curve")
    planned = {one.max_train_steps for one in sizes if one.max_train_steps}
    if len(planned) > 1:
        updates = ", ".join(
            f"{one.max_train_steps[-1]} at B = {one.batch_size}"
            for one in sizes
            if one.max_train_steps
        )
        notes.append(
            f"trainings differ in their updates ({updates}): optimum and best value are those of "
            "each length"
        )
    others = sorted(
        set(varied_names(trial for own in trials.values() for trial in own)) - {"base_lr"}
    )
    if others:
        notes.append(f"the optimum is that of the average over {', '.join(others)}")
    return notes
