"""What finished trials say: groups, lr_star and headroom, crowded boundaries, flags of a curve.

Pure functions of `list[Trial]`. Trials are ranked by their cost (`Trial.cost`). Crashed and
unfinished trials are no evidence, and are only counted; infeasible trials are evidence and never
lr_star. That is the lowest base LR that is not shown to be worse than the best (`plateau`).

Where a study repeats its configurations with several seeds, a configuration is as good as the mean
of its seeds, and it is infeasible as soon as one of them is: the edge of stability is random, and a
learning rate that trains only with some luck is beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, TypeAlias

from ..rules.hyperparameters import HYPERPARAMETERS
from ..rules.tied import TIES
from ..trial import Group, Point, Trial, cost, group_of
from ..words import FAR, in_order, readable
from .comparison import Interval
from .plateau import GOOD_REGION, NOWHERE, Noise, Runs, find_plateau, headroom_base, is_basin
from .sensitivity import lr_sensitivity, usable_decades, usable_range

EDGE_HEADROOM = 4.0  # R6; playbook section E: near 1-4, the best base LR sits on the edge
# trials above what is as good: one alone shows no edge, which is random
FEWEST_ABOVE = 2
# S4: "the best points" are the top 3 or the top 10 %, whichever is more
BEST_FEW, BEST_SHARE = 3, 0.10
BORDER = 0.10  # S4: the outermost 10 % of an axis (the width is ours)
BEYOND = 1e-6  # of a border: next to it, where a hyperparameter may have no values
JUST_ABOVE = 3  # R3: this many learning rates above those that are as good are looked at
# R17: clipping more of the updates is a strange way of cutting the learning rate
CLIP_TOO_MUCH = 0.50
# a facet of every plot; a repetition, not a hyperparameter (R20)
NOT_TUNED = ("batch_size", "seed")

Bound: TypeAlias = tuple[float, float, bool]  # low, high, log
# optimizer → axis → bound: ranges are conditional (S1)
Space: TypeAlias = Mapping[str, Mapping[str, Bound]]
# stable: training breaks, but farther than EDGE_HEADROOM × above the best base LR, or above a
# basin, at whose lower end training is safe; on the edge: nearer; edge not reached: nothing that
# was tried above what is as good breaks, or only one trial was; unstable: nothing trains, or a
# diagnosis says so; no evidence: every trial crashed or is unfinished
GroupVerdict = Literal["stable", "on the edge", "edge not reached", "unstable", "no evidence"]


@dataclass(frozen=True)
class Star:
    """Which base LR of one group to use.

    seeds     of the configuration at lr_star, in their order
    best      of that with the best mean
    as_good   the base LRs that are as good as the best, lr_star the lowest of them; (nan, nan) if
              that is not known, and then lr_star is the best
    """

    seeds: Sequence[Trial]
    best: Sequence[Trial]
    as_good: Interval
    noise: Noise

    @property
    def lr_star(self) -> float:
        return self.seeds[0].point.base_lr

    @property
    def best_base_lr(self) -> float:
        return self.best[0].point.base_lr

    @property
    def highest(self) -> float:
        """The highest base LR that is as good."""
        return self.best_base_lr if math.isnan(self.as_good[1]) else self.as_good[1]

    @property
    def trial(self) -> Trial:
        """The best seed at lr_star."""
        return _best_seed(self.seeds)


@dataclass(frozen=True)
class GroupSummary:
    """One row of the results: what to use, which is the configuration of the best mean.

    By that value groups compete, and a comparison reruns it: where seeds are few, the lowest base
    LR that is as good gives more away than the luck of the best.

    lr_star            the lowest base_lr that is not shown to be worse than the best (`plateau`);
                       nan if nothing is feasible
    as_good            (lr_star, the highest base_lr that is not); (nan, nan) if that is not known
    best_base_lr       base_lr of the best mean
    unstable_base_lr   (largest base_lr known feasible, smallest infeasible one above lr_star): the
                       edge lies between. The second is inf if nothing above lr_star is infeasible;
                       the first is 0 if nothing is feasible. None is infeasible from lr_star to
                       best_base_lr
    tried_above        judged trials above what is as good
    unstable_trials    (infeasible, judged) trials at that smallest infeasible base_lr; (0, 0) if
                       there is none
    good_region        feasible trials whose base_lr is within half a decade of lr_star (S5)
    best_values        best value of each seed of the best configuration, in their order
    best_value         their mean; inf if nothing is feasible
    best_step, point   of its best seed
    seeds              the most that any configuration has
    noise              between runs
    usable             the lowest and the highest base LR around the best that lose less than 5 % of
                       what it learned (`sensitivity`); (nan, nan) if that is not known
    usable_decades, lr_sensitivity   of its base LRs (`sensitivity`); nan if they are not known
    diagnosed_with     seeds of the diagnosis that lr_star, the edge and the verdict are of; 0: none
    """

    group: Group
    lr_star: float
    as_good: Interval
    best_base_lr: float
    unstable_base_lr: tuple[float, float]
    tried_above: int
    unstable_trials: tuple[int, int]
    trials: int
    feasible: int
    infeasible: int
    crashed: int
    good_region: int
    best_values: tuple[float, ...]
    best_value: float
    best_step: float
    point: Point | None
    seeds: int
    maximize: bool
    verdict: GroupVerdict
    noise: Noise
    usable: Interval
    usable_decades: float = math.nan
    lr_sensitivity: float = math.nan
    diagnosed_with: int = 0

    def __repr__(self) -> str:
        return (
            f"{self.group.label}: {self.trials} trials, {self.infeasible} infeasible: "
            f"{self.verdict}\nbest value {readable(self.best_value)} at base_lr "
            f"{readable(self.best_base_lr)}, lr_star {readable(self.lr_star)}, unstable from "
            f"{readable(self.unstable_base_lr[1])}"
        )

    @property
    def headroom(self) -> float:
        """unstable_base_lr / best_base_lr, or / the upper end of a basin (`headroom_base`).

        inf without instability, nan if nothing is feasible.
        """
        return self.unstable_base_lr[1] / headroom_base(self.best_base_lr, self.as_good)

    @property
    def is_basin(self) -> bool:
        """Whether base LRs that are as good span more than a decade."""
        return is_basin(self.as_good)

    @property
    def is_flat(self) -> bool:
        """Whether the best lies so far below the edge that headroom says less than the range that
        is usable, of more than a decade.
        """
        return FAR < self.headroom < math.inf and is_basin(self.usable)

    @property
    def cost(self) -> float:
        """best_value as something to minimize; inf if nothing is feasible."""
        return cost(self.best_value, self.maximize)

    @property
    def unfinished(self) -> int:
        """Trials that were pruned or stopped, or go on: no evidence, as crashed ones."""
        return self.trials - self.feasible - self.infeasible - self.crashed

    @property
    def infeasible_fraction(self) -> float:
        """infeasible / (feasible + infeasible); nan if no trial was judged (S5)."""
        judged = self.feasible + self.infeasible
        return self.infeasible / judged if judged else math.nan

    @property
    def good_region_fraction(self) -> float:
        """Share of the feasible trials that lie in the good region; nan if there are none (S5)."""
        return self.good_region / self.feasible if self.feasible else math.nan

    def record(self) -> dict[str, Any]:
        """Plain values for summary.json, derived ones included.

        Values about seeds are left out if there is only one seed.
        """
        values = asdict(self)
        group = values.pop("group")
        for name in ("noise", "usable", "usable_decades", "lr_sensitivity"):
            del values[name]
        values["point"] = self.point.record() if self.point else None
        if self.seeds == 1:
            del values["seeds"], values["best_values"], values["unstable_trials"]
        if not self.diagnosed_with:
            del values["diagnosed_with"]
        if not self.maximize:
            del values["maximize"]
        derived = ("headroom", "infeasible_fraction", "good_region_fraction")
        return (
            {**group, "scientific": dict(self.group.scientific)}
            | values
            | {name: getattr(self, name) for name in derived}
        )


@dataclass(frozen=True)
class BoundaryNote:
    """The best trials of a group crowd a border of the search space, or the edge of stability."""

    group: Group
    axis: str
    side: Literal["low", "high"]
    kind: Literal["expand", "instability"]
    border: float
    sentence: str


def varied_names(trials: Iterable[Trial]) -> list[str]:
    """Names of the hyperparameters that take more than one value, batch size and seed apart (S3).

    What differs between optimizers only, such as a fixed momentum that one of them has, is not
    varied.
    """
    seen: dict[str, set[tuple[str, str]]] = {}
    for trial in trials:
        for name, value in trial.point.values.items():
            owner = "" if name == "optimizer" else trial.point.optimizer
            seen.setdefault(name, set()).add((owner, repr(value)))
    return [
        name
        for name, values in seen.items()
        if name not in NOT_TUNED and len(values) > len({owner for owner, _ in values})
    ]


def hyperparameters(trials: Sequence[Trial]) -> list[str]:
    """Names of the trials' hyperparameters that are worth a column, in order of appearance."""
    shown = {name for trial in trials for name in trial.point.shown}
    in_order_of_appearance = dict.fromkeys(name for trial in trials for name in trial.point.values)
    return [name for name in in_order_of_appearance if name in shown]


def group_trials(
    trials: Iterable[Trial], scientific: Sequence[str] = ()
) -> dict[Group, list[Trial]]:
    """Trials by batch size, optimizer and scientific values, with the groups in order.

    Trials keep their order within a group.
    """
    groups: dict[Group, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(group_of(trial.point, scientific), []).append(trial)

    def place(group: Group) -> tuple[Any, ...]:
        return group.batch_size, group.optimizer, [in_order(value) for _, value in group.scientific]

    return {group: groups[group] for group in sorted(groups, key=place)}


def has_value(trial: Trial) -> bool:
    """Whether a trial is feasible and its objective was finite at least once."""
    return trial.feasible and math.isfinite(trial.best_value)


def is_rankable(trial: Trial) -> bool:
    """Whether a trial counts where the best are chosen: it has a value, and no seeds to come."""
    return has_value(trial) and not trial.provisional


def repetitions(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials by configuration, in the order of their seeds, without those that are no evidence."""
    found: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        if trial.verdict.judged:
            found.setdefault(trial.point.configuration, []).append(trial)

    def place(trial: Trial) -> tuple[float, ...]:
        return trial.point.seed, trial.point.number, trial.cost

    return [sorted(seeds, key=place) for seeds in found.values()]


def mean_value(seeds: Sequence[Trial]) -> float:
    """The mean best value over the seeds of one configuration."""
    return fmean(trial.best_value for trial in seeds)


def mean_cost(seeds: Sequence[Trial]) -> float:
    """The mean best value as something to minimize, by which configurations are ranked."""
    return fmean(trial.cost for trial in seeds)


def rank_configurations(trials: Iterable[Trial]) -> list[Trial]:
    """The best seed of every feasible configuration, those of the best mean value first.

    On a tie the smaller base_lr comes first, which is farther from the edge.
    """
    return [_best_seed(seeds) for seeds in _ranking(trials)]


def _ranking(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The feasible configurations, best mean first."""
    usable = [seeds for seeds in repetitions(trials) if all(map(is_rankable, seeds))]
    return sorted(
        usable, key=lambda seeds: (mean_cost(seeds), seeds[0].point.base_lr, seeds[0].point.number)
    )


def star_of(trials: Iterable[Trial]) -> Star | None:
    """Which base LR of one group to use; None if no configuration is feasible."""
    trials = list(trials)
    ranking = _ranking(trials)
    if not ranking:
        return None
    found = find_plateau(
        [_runs(seeds) for seeds in ranking],
        [trial.point.base_lr for trial in trials if trial.verdict.infeasible],
    )
    return Star(ranking[found.star], ranking[found.best], found.as_good, found.noise)


def _runs(seeds: Sequence[Trial]) -> Runs:
    """The costs of a configuration by seed. A seed that was trained twice counts twice."""
    costs: dict[tuple[int, int], float] = {}
    for trial in seeds:
        again = sum(seed == trial.point.seed for seed, _ in costs)
        costs[trial.point.seed, again] = trial.cost
    return Runs(seeds[0].point.base_lr, costs)


def configuration_at(trials: Iterable[Trial], base_lr: float) -> list[Trial]:
    """The seeds of the best feasible configuration at a base LR; empty if there is none."""
    ranking = _ranking(trials)
    return next((seeds for seeds in ranking if seeds[0].point.base_lr == base_lr), [])


def _best_seed(seeds: Sequence[Trial]) -> Trial:
    return min(seeds, key=lambda trial: (trial.cost, trial.point.number))


def best_few(trials: Iterable[Trial]) -> list[Trial]:
    """The best 3 feasible configurations, or the best 10 % if that is more (S4).

    Each is represented by its best seed.
    """
    ranking = rank_configurations(trials)
    return ranking[: max(BEST_FEW, math.ceil(BEST_SHARE * len(ranking)))]


def just_above(trials: Iterable[Trial], count: int = JUST_ABOVE) -> list[Trial]:
    """Trials of one group at the next `count` learning rates above those that are as good (R3).

    Those that are no evidence are left out.
    """
    trials = list(trials)
    star = star_of(trials)
    if star is None:
        return []
    above = _judged_above(trials, star.highest)
    next_ones = sorted({trial.point.base_lr for trial in above})[:count]
    above = [trial for trial in above if trial.point.base_lr in next_ones]
    return sorted(above, key=lambda trial: (trial.point.base_lr, trial.point.number))


def _judged_above(trials: Iterable[Trial], base_lr: float) -> list[Trial]:
    return [trial for trial in trials if trial.verdict.judged and trial.point.base_lr > base_lr]


def unstable_interval(trials: Iterable[Trial]) -> tuple[float, float]:
    """The interval in which unstable_base_lr of one group lies, as (low, high).

    high is the smallest infeasible base_lr above the best, low the largest feasible one below high.
    (largest feasible, inf) if nothing above the best is infeasible, (0, smallest infeasible) if
    nothing is feasible. Other hyperparameters are pooled: make warmup_steps or clip_norm scientific
    to keep apart the edges that they move.
    """
    trials = list(trials)
    ranking = rank_configurations(trials)
    best = ranking[0].point.base_lr if ranking else 0.0
    infeasible = [trial.point.base_lr for trial in trials if trial.verdict.infeasible]
    first = min((base_lr for base_lr in infeasible if base_lr > best), default=math.inf)
    feasible = [own[0].point.base_lr for own in repetitions(trials) if all(map(has_value, own))]
    return max((base_lr for base_lr in feasible if base_lr < first), default=0.0), first


def summarize(trials: Iterable[Trial], scientific: Sequence[str] = ()) -> list[GroupSummary]:
    """One summary per group."""
    return [_summary(group, members) for group, members in group_trials(trials, scientific).items()]


def _summary(group: Group, trials: list[Trial]) -> GroupSummary:
    star = star_of(trials)
    used = _used(star)
    low, high = used["lr_star"] / GOOD_REGION, used["lr_star"] * GOOD_REGION
    edge = unstable_interval(trials)
    at_edge = [trial for trial in trials if trial.point.base_lr == edge[1] and trial.verdict.judged]
    broken = [trial for trial in at_edge if trial.verdict.infeasible]
    feasible = [trial for trial in trials if trial.feasible]
    infeasible = [trial for trial in trials if trial.verdict.infeasible]
    crashed = [trial for trial in trials if trial.verdict.crashed]
    good_region = [trial for trial in feasible if low <= trial.point.base_lr <= high]
    seeds = [len({trial.point.seed for trial in own}) for own in repetitions(trials)]
    most_seeds = max(seeds, default=1)
    maximize = any(trial.maximize for trial in trials)
    return GroupSummary(
        group=group,
        **used,
        unstable_base_lr=edge,
        tried_above=len(_judged_above(trials, star.highest if star else 0.0)),
        unstable_trials=(len(broken), len(at_edge)),
        trials=len(trials),
        feasible=len(feasible),
        infeasible=len(infeasible),
        crashed=len(crashed),
        good_region=len(good_region),
        seeds=most_seeds,
        maximize=maximize,
        usable=usable_range(trials),
        usable_decades=usable_decades(trials),
        lr_sensitivity=lr_sensitivity(trials),
        verdict=_group_verdict(star, edge[1], trials),
    )


def _used(star: Star | None) -> dict[str, Any]:
    """The part of a summary that says what to use; nothing if nothing is feasible."""
    if star is None:
        nothing = {"best_values": (), "best_value": math.inf, "best_step": 0, "point": None}
        known = {"lr_star": math.nan, "best_base_lr": math.nan}
        return {**known, **nothing, "as_good": NOWHERE, "noise": Noise()}
    values, best = tuple(trial.best_value for trial in star.best), _best_seed(star.best)
    return {
        "lr_star": star.lr_star,
        "as_good": star.as_good,
        "noise": star.noise,
        "best_base_lr": star.best_base_lr,
        "best_values": values,
        "best_value": fmean(values),
        "best_step": best.best_step,
        "point": best.point,
    }


def _group_verdict(star: Star | None, unstable: float, trials: Sequence[Trial]) -> GroupVerdict:
    """Of the smallest infeasible base LR above lr_star. Without lr_star, of any; inf: none is."""
    if star is None:
        return "unstable" if math.isfinite(unstable) else "no evidence"
    if math.isinf(unstable) or not _is_edge_reached(trials, star):
        return "edge not reached"
    return "on the edge" if _is_on_edge(star, unstable) else "stable"


def _is_edge_reached(trials: Sequence[Trial], star: Star) -> bool:
    """Whether enough was tried above what is as good to say where training breaks."""
    return len(_judged_above(trials, star.highest)) >= FEWEST_ABOVE


def _is_on_edge(star: Star, unstable: float) -> bool:
    """Whether the best base LR is near where training breaks; on a basin a lower one will do."""
    return unstable / star.best_base_lr <= EDGE_HEADROOM and not is_basin(star.as_good)


# --- boundaries of the search space (S4) ----------------------------------------------------------


def boundary_checks(
    trials: Iterable[Trial], space: Space | None = None, scientific: Sequence[str] = ()
) -> list[BoundaryNote]:
    """A note for each numeric axis and group whose best trials crowd a border (S4).

    `space` maps optimizer → axis → (low, high, log). Axes that it does not bound are not checked,
    except base_lr: the range that was tried stands for its bounds. The best trials crowd a border
    if the best one lies in the outermost 10 % of the axis, together with most of the best few.
    Where fewer configurations were sampled there, as many as were sampled suffice. A border beyond
    which the hyperparameter has no values, as a momentum of 0, or may have none, as a dropout of 0,
    gets no note. If unstable_base_lr is within 4 × of the best base LR, and that is not on a basin,
    or the best is at the upper border and everything from unstable_base_lr upwards is infeasible,
    that is instability, not a boundary, unless only one trial says so. Raises ValueError if low > 0
    does not hold on a log axis.
    """
    return [
        note
        for group, members in group_trials(trials, scientific).items()
        for note in _group_notes(group, members, space or {})
    ]


def _group_notes(group: Group, trials: list[Trial], space: Space) -> list[BoundaryNote]:
    """The notes of one group: instability first, then the borders to expand, axis by axis."""
    judged = [trial for trial in trials if trial.verdict.judged]
    if not judged:
        return []
    tried = [trial.point.base_lr for trial in judged]
    bounds = {"base_lr": (min(tried), max(tried), True), **space.get(group.optimizer, {})}
    sides = {axis: _crowded_side(judged, axis, bound) for axis, bound in bounds.items()}
    unstable = _instability_note(group, judged, sides["base_lr"] == "high")
    notes = [unstable] if unstable else []
    for axis, side in sides.items():
        if side and not (unstable and (axis, side) == ("base_lr", "high")):
            notes.append(_expand_note(group, judged, axis, bounds[axis], side))
    return notes


def _instability_note(group: Group, trials: list[Trial], at_border: bool) -> BoundaryNote | None:
    """A note if instability limits the best base LR, and not the border of the space (R6, S4).

    Then the best is close to unstable_base_lr, or at the border with only infeasible trials above
    it.
    """
    last_feasible, unstable = unstable_interval(trials)
    above = [trial for trial in trials if trial.point.base_lr >= unstable]
    star = star_of(trials)
    if star is None or not above or not _is_edge_reached(trials, star):
        return None
    infeasible = sum(trial.verdict.infeasible for trial in above)
    if not _is_on_edge(star, unstable) and not (at_border and infeasible == len(above)):
        return None
    base = headroom_base(star.best_base_lr, star.as_good)
    whose = "the upper end of a basin" if is_basin(star.as_good) else "the best base LR"
    sentence = (
        f"{group.label}: instability, not a boundary: {infeasible} of the {len(above)} trials at "
        f"base_lr ≥ {readable(unstable)} are infeasible, which is {readable(unstable / base)} × "
        f"{whose}, {readable(base)} (feasible up to {readable(last_feasible)}); fix the "
        "instability before widening base_lr (R6, S4)."
    )
    return BoundaryNote(group, "base_lr", "high", "instability", unstable, sentence)


def _place(value: float, bound: Bound) -> float:
    """Where a value lies on its axis: 0 at low, 1 at high.

    On a log axis log(value / low) / log(high / low).
    """
    low, high, log = bound
    if log and low <= 0:
        raise ValueError(f"low > 0 must hold on a log axis, got low={low}")
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _places(trials: Iterable[Trial], axis: str, bound: Bound) -> list[float]:
    return [
        _place(trial.point.values[axis], bound) for trial in trials if axis in trial.point.values
    ]


def _crowded_side(trials: list[Trial], axis: str, bound: Bound) -> Literal["low", "high"] | None:
    """The border that the best few trials crowd, if any."""
    low, high, _ = bound
    best = _places(best_few(trials), axis, bound) if low < high else []
    if not best or not math.isfinite(high):
        return None
    sides: tuple[Literal["low", "high"], ...] = ("low", "high")
    for side in sides:
        if _is_limit(axis, bound, side):
            continue
        in_border = [_near(place, side) for place in best]
        sampled = sum(
            _near(place, side) for place in _places(rank_configurations(trials), axis, bound)
        )
        if in_border[0] and sum(in_border) >= min(len(best) // 2 + 1, sampled):
            return side
    return None


def _is_limit(axis: str, bound: Bound, side: Literal["low", "high"]) -> bool:
    """Whether a hyperparameter has no values beyond a border of its axis."""
    row, border = HYPERPARAMETERS.get(axis), bound[0] if side == "low" else bound[1]
    tie = TIES.get(axis.rpartition(".")[2])
    accepts = row.accepts if row else tie.holds if tie else None
    if not accepts:  # an argument of a workload: numbers and shares begin at 0 or 1, and end at 1
        return border in ((0, 1) if side == "low" else (1,))
    step = 1.0 if row and row.is_integer else BEYOND * (abs(border) or 1.0)
    beyond = border - step if side == "low" else border + step
    return accepts(border) and not accepts(beyond)


def _near(place: float, side: Literal["low", "high"]) -> bool:
    return place <= BORDER if side == "low" else place >= 1 - BORDER


def _expand_note(
    group: Group, trials: list[Trial], axis: str, bound: Bound, side: Literal["low", "high"]
) -> BoundaryNote:
    few = [trial for trial in best_few(trials) if axis in trial.point.values]
    best = few[0].point.values[axis]
    count = sum(_near(place, side) for place in _places(few, axis, bound))
    border, beyond = (bound[0], "below") if side == "low" else (bound[1], "above")
    sentence = (
        f"{group.label}: expand {axis} {beyond} {readable(border)}: {count} of the {len(few)} "
        f"best trials lie in the outermost {BORDER:.0%} of its range, the best at "
        f"{readable(best)} (S4)."
    )
    if (axis, side) == ("warmup_steps", "high"):
        sentence += " More than 10 % of max_train_steps needs a larger max_train_steps (R10, R12)."
    return BoundaryNote(group, axis, side, "expand", border, sentence)
