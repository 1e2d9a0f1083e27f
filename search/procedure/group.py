"""The playbook's procedure for one group, from sweep to tournament (R1–R19, S4, S9).

The steps are sweep, boundary, edge, kind, remedies and tournament. A generator (see `steps`): it
yields studies, is sent their trials, and returns a GroupDiagnosis. What it concludes depends on
trials alone, so a procedure that was interrupted comes to the same end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from ..judge.analysis import rank_configurations, unstable_interval
from ..judge.comparison import ALPHA, Interval, failures_in_words
from ..judge.curve_shape import EARLY_STEPS
from ..judge.diagnosis import MOST_HEADROOM, Edge, GroupDiagnosis, Kind, Step
from ..judge.neighbours import NEXT_TO_NOTHING, is_collapsed_by_neighbours
from ..judge.objective import fault_of, has_fallen
from ..judge.plateau import NOWHERE, Runs, find_plateau, headroom_base, is_basin
from ..judge.sensitivity import TOLERANCE
from ..judge.stability_edge import (
    CONTRADICTED,
    ROUNDING,
    Tried,
    bracket,
    confidence_interval,
    contradiction,
    tries,
)
from ..judge.verdict import has_risen
from ..study.study import Study
from ..trial import Group, Point, Trial, as_told, group_of, told_cost
from ..words import readable
from .asking import Asking, both, train_all
from .purse import Budget, Purse
from .remedies import find_remedies, least_of, rerun_plain
from .steps import SCREENING_SEEDS, Case, plain, sweep_of

MOST_EXTENSIONS = 3  # decades that a sweep is extended by on either side
PER_DECADE = 4  # base LRs of an extension
EDGE_DECADES = 0.15  # width to which unstable_base_lr is bracketed: a factor of 1.4
# three halve a decade to 0.15; the others are for an edge that is not where one seed put it
EDGE_ROUNDS = 8
PROBE_MULTIPLE, PROBE_STEPS = 2.0, 500  # R5
CONFIRM_MULTIPLES = (5.0, 10.0)  # R7
FEWEST_CLOSE, MOST_CLOSE = 3, 8  # base LRs of the sweep that lr_star is chosen from
# times the earliest onset: onsets within it, over a decade of base LRs or more, count as the same
SAME_STEP = 1.25
# of base LRs: early onsets that are the same over so many come from the data
SAME_DECADES = 2.0


def diagnosis_of(
    study: Study,
    group: Group,
    seeds: int,
    architectures: Mapping[str, Mapping[str, Any]],
    purse: Purse | None = None,
) -> Asking[GroupDiagnosis | None]:
    """Diagnose one group of `sweep_of(study)` with what is in its purse, besides the sweep.

    None if the sweep was not trained.
    """
    (swept,) = yield from train_all(sweep := sweep_of(study))
    own = [trial for trial in swept if group_of(trial.point, sweep.scientific_names) == group]
    if not own:
        return None
    if fault := fault_of(own, study.objective, said="maximize" in study.model_fields_set):
        return _faulty(group, own, sweep, fault)
    first = rank_configurations(own)[0].point if rank_configurations(own) else own[0].point
    purse = purse or Budget().purse()
    case = Case(study, group, seeds, plain(first), architectures, purse=purse)
    found = yield from purse.within(_diagnosis_of(case, own, sweep))
    return found


def _diagnosis_of(case: Case, own: list[Trial], sweep: Study) -> Asking[GroupDiagnosis]:
    """The steps after the sweep.

    If it looks unstable, what the first look at the remedies and the smallest tournament take is
    kept back.
    """
    own, boundary = yield from _extend(case, own)
    if not rank_configurations(own):
        return _nothing_trains(case, own, sweep, boundary)
    case = case.at(rank_configurations(own)[0].point, own)
    case = replace(case, reserve=sum(least_of(case)) if _looks_unstable(case, own) else 0)
    own, star, best, as_good, close = yield from _star_of(case, own)
    case = case.at(star, own)
    own = case.judged(own)
    (probes, probed), (edge, edge_step) = yield from both(
        _probes(case, best), _edge(case, best, own)
    )
    edge = judge_edge(edge, star.base_lr, best, probes)
    edge_step = replace(
        edge_step,
        sentences=(*_edge_sentences(best, as_good, edge), *edge_step.sentences),
    )
    kind, onsets, kind_step = _kind(best, edge, [*own, *probes], probed)
    case = replace(case, reserve=0)
    if kind in ("none", "unknown"):
        told = yield from rerun_plain(case, own, sweep.name)
    else:
        told = yield from find_remedies(case, edge, own, sweep.name, best)
    # plain training may turn out to be better at a base LR between those of the sweep
    at_star = told.remedies[0].point.base_lr if told.remedies else star.base_lr
    has_moved = at_star != star.base_lr
    sweep_step = _sweep_step(case, best, as_good, own, (sweep.name, *close), has_moved)
    found = GroupDiagnosis(
        group=case.group,
        kind=kind,
        lr_star=at_star,
        edge=edge,
        onset_steps=tuple(onsets),
        steps=(sweep_step, boundary, edge_step, kind_step, *told.steps),
        remedies=tuple(told.remedies),
        adopted=told.adopted,
        summary="",
        best_base_lr=at_star if has_moved else best,
        as_good=NOWHERE if has_moved else as_good,
        left_out=tuple(case.purse.left_out),
        would_do=case.purse.would_do or 0,
    )
    return replace(found, summary=summary_of(found))


def _looks_unstable(case: Case, trials: Sequence[Trial]) -> bool:
    """Whether a trial fails above the best base LR, within what the playbook looks at."""
    best = case.point.base_lr
    reach = CONFIRM_MULTIPLES[-1] * best * (1 + ROUNDING)
    return any(t.verdict.infeasible and best < t.point.base_lr <= reach for t in trials)


def summary_of(found: GroupDiagnosis) -> str:
    """The verdict in a sentence or two."""
    words = {
        "none": "Stable: ",
        "early": "Unstable from the first steps: ",
        "mid_training": "Unstable in mid-training: ",
        "edge": "Unstable at high base LR, without a blow-up: ",
        "unknown": "",
    }
    edge = f"{words[found.kind]}{_edge_in_words(found)}"
    winner = found.winner
    if winner is None or winner.evidence is None:
        return f"{edge}; {_nothing_adopted(found)}. {found.budget_in_words}".rstrip()
    gain, interval = winner.evidence.gain, winner.evidence.gain_interval
    runs = len(winner.values)
    summary = (
        f"{edge}. Adopt {winner.name}: {readable(winner.mean)} instead of "
        f"{readable(found.remedies[0].mean)}, gain {readable(gain)} ({readable(interval[0])} to "
        f"{readable(interval[1])}, {runs} seeds); {failures_in_words(winner.infeasible, runs)}."
    )
    return f"{summary} {found.budget_in_words}".rstrip()


def _edge_in_words(found: GroupDiagnosis) -> str:
    star = f"lr_star = {readable(found.lr_star)}"
    if found.edge.refused == "contradicted":
        return (
            f"{star}, and trainings diverge at lower base LRs more often than at higher ones: no "
            "edge can be given"
        )
    if found.edge.refused == "too far":
        return (
            f"{star}, and nothing that matters diverges up to {MOST_HEADROOM:.0f} × the best base "
            "LR"
        )
    if not found.edge.found:
        return f"{star}, and no base LR tried above it diverges"
    (low, high), (above, below) = found.headroom, map(readable, found.edge.interval)
    relative = f"{readable(low)} to {readable(high)} ×"
    if is_basin(found.as_good):
        relative += f" the upper end of a basin, {readable(found.as_good[1])};"
    elif found.best_base_lr != found.lr_star:
        relative += f" the best base LR, {readable(found.best_base_lr)};"
    return f"half of the trainings diverge between base_lr {above} and {below}, {relative} {star}"


def _nothing_adopted(found: GroupDiagnosis) -> str:
    """Why no remedy is adopted. One that the budget left out might be better."""
    if found.kind == "none":
        return "no remedy is needed"
    if found.kind == "unknown":
        return "the kind is not known"
    if found.left_out:
        return "whether a remedy is better is not known"
    return "no remedy is shown to be better" if found.winner else "no remedy could be compared"


# --- the sweep and its boundaries (R3, R6, S4) ----------------------------------------------------


def _star_of(
    case: Case, trials: Sequence[Trial]
) -> Asking[tuple[list[Trial], Point, float, Interval, tuple[str, ...]]]:
    """Choose lr_star with more seeds at the best base LRs of the sweep.

    Returns the trials with those seeds, the point of lr_star, the base LR of the best mean, the
    base LRs that are as good, and the study of those seeds, if any.

    Where the curve is flat, luck decides which single run is best, and it may stand at the edge. So
    the best FEWEST_CLOSE base LRs, and every other within TOLERANCE of the best, are trained on the
    same seeds. Of those that are as good (`plateau`) the one farthest from the edge is best.
    """
    ranking = rank_configurations(trials)
    best = ranking[0]
    limit = best.cost + TOLERANCE * best.improvement
    close = [t for i, t in enumerate(ranking) if i < FEWEST_CLOSE or t.cost <= limit][:MOST_CLOSE]
    base_lrs = sorted({trial.point.base_lr for trial in close})
    if len(base_lrs) == 1:
        return list(trials), case.point, case.point.base_lr, NOWHERE, ()
    what = f"the further seeds of {len(base_lrs)} base LRs near the best"
    if not case.pays(what, asked := case.ask("close", base_lrs, case.seeds)):
        return list(trials), case.point, case.point.base_lr, NOWHERE, ()
    (more,) = yield from train_all(asked)
    measured = [
        Runs(rate, {t.point.seed: told_cost(t) for t in more if t.point.base_lr == rate})
        for rate in base_lrs
    ]
    found = find_plateau(measured)
    star, lowest = base_lrs[found.star], base_lrs[found.best]
    return [*trials, *more], replace(case.point, base_lr=star), lowest, found.as_good, (asked.name,)


def _sweep_step(
    case: Case,
    best: float,
    as_good: Interval,
    trials: Sequence[Trial],
    studies: tuple[str, ...],
    has_moved: bool = False,
) -> Step:
    infeasible = sum(trial.verdict.infeasible for trial in trials)
    name = "the lr_star of the sweep" if has_moved else "lr_star"
    tried, star = [trial.point.base_lr for trial in trials], case.point.base_lr
    at_star = [as_told(trial).value for trial in trials if trial.point.base_lr == star]
    value = f"{case.study.objective} {readable(fmean(at_star))}"
    sentence = (
        f"{len(trials)} trainings at base LRs from {readable(min(tried))} to "
        f"{readable(max(tried))}, {infeasible} infeasible: {name} = {readable(star)} with "
        f"{value}, the lowest base LR that is not shown to be worse than the best."
    )
    sentences = [sentence]
    if is_basin(as_good):
        low, high = map(readable, as_good)
        sentences.append(f"A basin: {low} to {high} are as good; headroom is relative to {high}.")
    elif best != star:
        sentences.append(f"The best mean is at {readable(best)}: headroom is relative to that.")
    if beside := sum(map(is_collapsed_by_neighbours, trials)):
        sentences.append(
            f"{beside} of these look no worse than too slow by themselves, but end with "
            f"{NEXT_TO_NOTHING}: they count as collapsed (R6)."
        )
    return Step("sweep", ("R3", "S2", "S3"), tuple(sentences), studies)


def _extend(case: Case, trials: list[Trial]) -> Asking[tuple[list[Trial], Step]]:
    """Extend the sweep beyond its border where the best trial lies there, or nothing trains.

    Returns all trials, and the step.
    """
    trials = _as_seen_from_best(case, trials)
    sentences: list[str] = []
    studies: list[str] = []
    for _ in range(MOST_EXTENSIONS):
        side = _beyond(trials)
        if side is None:
            break
        tried = [trial.point.base_lr for trial in trials]
        border, sign = (max(tried), 1) if side == "above" else (min(tried), -1)
        base_lrs = [border * 10 ** (sign * i / PER_DECADE) for i in range(1, PER_DECADE + 1)]
        asked = case.ask(
            f"{side}-{len(studies) + 1}",
            base_lrs,
            case.study.most_seeds,
            first_seed=case.study.seed,
        )
        if not case.pays(f"the extension of the range {side} {readable(border)}", asked):
            sentences.append(
                f"The budget ended before the range could be extended {side} {readable(border)}."
            )
            break
        (more,) = yield from train_all(asked)
        why = {
            "above": (
                f"Nothing above {_star(trials)}, the best, is infeasible: the range ends before "
                "stability does"
            ),
            "below": "Nothing trains"
            if not rank_configurations(trials)
            else f"The best, {_star(trials)}, is the lowest tried",
        }[side]
        sentences.append(f"{why}; extended to {readable(base_lrs[-1])} (S4).")
        studies.append(asked.name)
        trials = _as_seen_from_best(case, [*trials, *more])
    if rank_configurations(trials):
        last, first = unstable_interval(trials)
        above = [trial for trial in trials if trial.point.base_lr >= first]
        bad = sum(trial.verdict.infeasible for trial in above)
        sentences.append(
            f"Feasible up to {readable(last)}; {bad} of {len(above)} trainings at "
            f"{readable(first)} and above are infeasible: the edge of stability, not a border of "
            "the range (S4)."
            if above
            else f"Feasible up to {readable(last)}, the highest base LR tried."
        )
    return trials, Step("boundary", ("S4", "R6"), tuple(sentences), tuple(studies))


def _as_seen_from_best(case: Case, trials: Sequence[Trial]) -> list[Trial]:
    ranking = rank_configurations(trials)
    return case.at(ranking[0].point, trials).judged(trials) if ranking else list(trials)


def _star(trials: Sequence[Trial]) -> str:
    return (
        readable(rank_configurations(trials)[0].point.base_lr)
        if rank_configurations(trials)
        else "?"
    )


def _beyond(trials: Sequence[Trial]) -> str | None:
    """On which side of the range the answer lies; None if it lies within.

    "below" if nothing trains or the lowest base LR is best; "above" until something diverges.
    """
    ranking = rank_configurations(trials)
    if not ranking or ranking[0].point.base_lr == min(trial.point.base_lr for trial in trials):
        return "below"
    return "above" if math.isinf(unstable_interval(trials)[1]) else None


def _faulty(group: Group, trials: Sequence[Trial], sweep: Study, fault: str) -> GroupDiagnosis:
    """What is wrong with the objective, where nothing can be concluded from it."""
    return GroupDiagnosis(
        group=group,
        kind="unknown",
        lr_star=math.nan,
        edge=Edge((0.0, math.inf), tuple(tries(trials)), 0),
        onset_steps=(),
        steps=(Step("sweep", ("S3",), (fault,), (sweep.name,)),),
        remedies=(),
        adopted="",
        summary=fault,
        fault=fault,
    )


def _nothing_trains(
    case: Case, trials: Sequence[Trial], sweep: Study, boundary: Step
) -> GroupDiagnosis:
    """What was seen where no trial is feasible, and where to look next."""
    seen = Counter(trial.verdict.outcome for trial in trials)
    tried = [trial.point.base_lr for trial in trials]
    words = ", ".join(f"{count} {outcome}" for outcome, count in seen.most_common())
    if all(len(trial.curve.loss) and not math.isfinite(trial.curve.loss[0]) for trial in trials):
        advice = (
            "the loss is not finite before the first update: look at the data and the "
            "initialization, not the LR"
        )
    elif at := _same_step(trials):
        step = f"{at[0]:.0f}" if at[0] == at[1] else f"{at[0]:.0f} to {at[1]:.0f}"
        advice = (
            f"training goes wrong at step {step} whatever the base LR: look at what happens there, "
            "in the data, the loss or the model, not at the LR"
        )
    elif learned := [trial.point.base_lr for trial in trials if has_fallen(trial)]:
        low, high = readable(min(learned) / 100), readable(min(learned))
        advice = f"the loss first moved at {high}: try base LRs from {low} to {high}"
    else:
        advice = (
            "the loss moved at no base LR: look at the loss and the data before the learning rate"
        )
    sentence = (
        f"No feasible trial from base_lr {readable(min(tried))} to {readable(max(tried))} "
        f"({words}); {advice} (R1)."
    )
    return GroupDiagnosis(
        group=case.group,
        kind="unknown",
        lr_star=math.nan,
        edge=Edge((0.0, min(tried)), tuple(tries(trials)), 0),
        onset_steps=(),
        steps=(Step("sweep", ("R1", "R3"), (sentence,), (sweep.name,)), boundary),
        remedies=(),
        adopted="",
        summary=sentence,
    )


def _same_step(trials: Sequence[Trial]) -> tuple[float, float] | None:
    """The first and the last onset, if all trainings go wrong at one step at any base LR."""
    onsets = [trial.verdict.onset_step for trial in trials]
    if math.isinf(max(onsets)):
        return None
    together = _of_data(trials)
    return (min(onsets), max(onsets)) if len(together) == len(trials) else None


def _of_data(trials: Sequence[Trial], best: float = math.inf) -> list[Trial]:
    """Trials whose loss first rises at the same step over so many base LRs that the data cause it.

    Onsets within a factor of SAME_STEP, or within a step, count as the same; the one that most
    trials share is taken. Their base LRs must span a decade. If the onset is early they must span
    SAME_DECADES, because any base LR that is too high shows within a few steps. At least half of
    the trials between the lowest and the highest of these base LRs must have this onset, and so
    must one at or below the best base LR.
    """
    risen = [trial for trial in trials if math.isfinite(trial.verdict.onset_step) and _rose(trial)]
    risen.sort(key=lambda trial: trial.verdict.onset_step)
    shared: list[Trial] = []
    for first in {trial.verdict.onset_step for trial in risen}:
        last = max(SAME_STEP * first, first + 1)
        own = [trial for trial in risen if first <= trial.verdict.onset_step <= last]
        low = min(trial.point.base_lr for trial in own)
        if len(own) > len(shared) and low <= best and _at_any_base_lr(own, trials, first):
            shared = own
    return shared


def _at_any_base_lr(own: Sequence[Trial], trials: Sequence[Trial], first: float) -> bool:
    rates = [trial.point.base_lr for trial in own]
    low, high = min(rates), max(rates)
    decades = 1.0 if first > EARLY_STEPS else SAME_DECADES
    between = [trial for trial in trials if low <= trial.point.base_lr <= high]
    wide = math.log10(high / low) >= decades - ROUNDING
    return wide and 2 * len(own) >= len(between)


# --- the edge (R6) --------------------------------------------------------------------------------


def _edge(case: Case, best: float, trials: Sequence[Trial]) -> Asking[tuple[Edge, Step]]:
    """Bracket the base LR at which half of the trainings diverge, by halving on the log axis.

    The two ends get as many seeds as the base LRs between them, so that one unlucky seed of the
    sweep cannot place the edge. If an end turns out to be on the other side, the bracket moves.
    """
    lr_star = case.point.base_lr
    own = [trial for trial in trials if _alike(trial, case)]
    low, high = (
        unstable_interval(own)
        if any(trial.verdict.infeasible for trial in own)
        else unstable_interval(trials)
    )
    spent, exhausted = 0, False
    studies: list[str] = []
    while len(studies) < EDGE_ROUNDS and math.isfinite(high) and low <= MOST_HEADROOM * best:
        seen = {one.base_lr: one.trials for one in tries(own)}
        ends = [low, high] if low > 0 else [high]
        wanted = [rate for rate in ends if seen.get(rate, 0) < case.seeds]
        if low == 0:
            wanted.append(high * 10 ** (-1 / PER_DECADE))
        elif math.log10(high / low) > EDGE_DECADES:
            wanted.append(math.sqrt(low * high))
        if not wanted:
            break
        asked = case.ask(f"edge-{len(studies) + 1}", wanted, case.seeds)
        if not case.pays("the bracketing of the edge", asked):
            case.purse.missing += _later_halvings(case, low, high)
            exhausted = True
            break
        (more,) = yield from train_all(asked)
        own, spent = own + case.judged(more), spent + len(more)
        studies.append(asked.name)
        low, high = bracket(tries(own), above=min(lr_star, *wanted))
        if (
            math.isinf(high)
            and (top := max(one.base_lr for one in tries(own)))
            and len(studies) < EDGE_ROUNDS
        ):
            # the infeasible seed of the sweep was an unlucky one
            high = top * 10 ** (1 / PER_DECADE)
    edge = Edge((low, high), tuple(tries(own)), spent)
    why = "the budget ended" if exhausted else f"{EDGE_ROUNDS} rounds did not suffice"
    wide = edge.found and edge.decades > EDGE_DECADES and low <= MOST_HEADROOM * best
    sentences = (f"Wider than {EDGE_DECADES} decades: {why}.",) if wide else ()
    return edge, Step("edge", ("R6",), sentences, tuple(studies))


def _later_halvings(case: Case, low: float, high: float) -> float:
    """Updates that bracket an edge between two base LRs after one more halving."""
    halvings = math.log2(math.log10(high / low) / EDGE_DECADES) if low > 0 else EDGE_ROUNDS
    return max(0, math.ceil(halvings) - 1) * case.seeds * case.steps


def judge_edge(edge: Edge, lr_star: float, best: float, probes: Iterable[Trial] = ()) -> Edge:
    """The edge with its confidence interval; refused if contradicted, or if too far to matter.

    `probes` are trials besides those that bracketed the edge; those that were not ended early
    count, too.
    """
    low, high = edge.interval
    above = min(lr_star, low or high)
    whole = [
        trial for trial in probes if trial.point.base_lr > PROBE_MULTIPLE * best * (1 + ROUNDING)
    ]
    tried = _add_counts(edge.tried, tries(whole))
    widest_low, widest_high = confidence_interval(tried, above)
    edge = replace(edge, confidence_interval=(min(low, widest_low), max(high, widest_high)))
    if math.isfinite(high) and contradiction(tried, above) <= CONTRADICTED:
        return replace(edge, refused="contradicted")
    if math.isfinite(high) and low > MOST_HEADROOM * best:
        return replace(edge, refused="too far")
    return edge


def _alike(trial: Trial, case: Case) -> bool:
    """Whether a trial differs from the case's point in base LR and seed alone."""
    same = replace(
        trial.point, base_lr=case.point.base_lr, seed=case.point.seed, number=case.point.number
    )
    return same.configuration == case.point.configuration


def _add_counts(some: Iterable[Tried], more: Iterable[Tried]) -> list[Tried]:
    """The counts of both, ascending by base LR."""
    counts: dict[float, tuple[int, int]] = {}
    for one in (*some, *more):
        infeasible, trials = counts.get(one.base_lr, (0, 0))
        counts[one.base_lr] = infeasible + one.infeasible, trials + one.trials
    return [Tried(base_lr, *counts[base_lr]) for base_lr in sorted(counts)]


def _edge_sentences(best: float, as_good: Interval, edge: Edge) -> Iterable[str]:
    low, high = edge.interval
    base = headroom_base(best, as_good)
    if edge.refused == "contradicted":
        yield (
            "Trainings diverge at lower base LRs more often than at higher ones, more than chance "
            "explains: no base LR is given as the edge. Is the loss a measure of success here?"
        )
        return
    if edge.refused == "too far":
        yield (
            f"Up to {readable(low)}, more than {MOST_HEADROOM:.0f} × the best base LR, fewer than "
            "half diverge: "
        )
        yield "no edge that matters."
        return
    if not edge.found:
        yield (
            f"No base LR up to {readable(low)} diverges in half of its trainings: there is no "
            "edge to bracket."
        )
        return
    yield (
        f"unstable_base_lr lies between {readable(low)} and {readable(high)} ({edge.decades:.2f} "
        f"decades): headroom {readable(low / base)} to {readable(high / base)}. {edge.trainings} "
        "trainings besides the sweep."
    )
    yield _confidence_in_words(edge)


def _confidence_in_words(edge: Edge) -> str:
    low, high = edge.confidence_interval
    if low > 0 and math.isfinite(high):
        where = f"lies between {readable(low)} and {readable(high)}"
    elif low > 0:
        where = f"is at least {readable(low)}"
    elif math.isfinite(high):
        where = f"is at most {readable(high)}"
    else:
        where = "may be anywhere: these trainings do not say"
    return f"That is how finely base LRs were tried. With 95 % confidence it {where}."


def _rose(trial: Trial) -> bool:
    """Whether the loss of an unstable trial rose (R3), rather than collapsed without a rise."""
    return (
        trial.verdict.outcome != "collapsed" or not len(trial.curve.loss) or has_risen(trial.curve)
    )


# --- which kind (R2, R5, R7) ----------------------------------------------------------------------


def _probes(case: Case, best: float) -> Asking[tuple[list[Trial], tuple[str, ...]]]:
    """Runs at 2 × the best base LR, evaluated at every step, and at 5 and 10 ×.

    Also the names of the studies that were trained.
    """
    rate = PROBE_MULTIPLE * best
    probe = case.ask("probe", [rate], SCREENING_SEEDS, stop_after=PROBE_STEPS, every_step=True)
    confirm = case.ask("confirm", [multiple * best for multiple in CONFIRM_MULTIPLES], case.seeds)
    if not case.pays("the trainings of 2, 5 and 10 × the best base LR", probe, confirm):
        return [], ()
    found = yield from train_all(probe, confirm)
    return case.judged(trial for trials in found for trial in trials), (probe.name, confirm.name)


def _kind(
    best: float, edge: Edge, trials: Sequence[Trial], studies: tuple[str, ...]
) -> tuple[Kind, list[float], Step]:
    """What happens above the best base LR, up to the highest multiple that the playbook looks at.

    Trainings that go wrong at the same step at any base LR, and recover, are left out: the data
    cause that.
    """
    of_data = _of_data(trials, best)
    recovering = {id(trial) for trial in of_data if trial.feasible}
    seen = [trial for trial in trials if not trial.verdict.crashed and id(trial) not in recovering]
    reach = CONFIRM_MULTIPLES[-1] * best * (1 + 1e-9)
    above = [trial for trial in seen if best < trial.point.base_lr <= reach]
    below = [trial for trial in seen if trial.point.base_lr <= best]
    ill = [trial for trial in above if _is_ill(trial)]
    risen = [trial for trial in ill if _rose(trial)]
    counts = Counter(trial.verdict.instability for trial in risen)
    onsets = sorted(float(trial.verdict.onset_step) for trial in risen)
    within = edge.found and edge.interval[1] <= reach
    often = 2 * len(ill) >= len(above) and _more_often(above, below)
    kind: Kind
    if edge.refused == "contradicted" or not (above or recovering):
        kind = "unknown"
    elif not (within or often):
        kind = "none"
    elif not risen:
        kind = "edge"
    else:
        kind = "early" if counts["early"] >= counts["mid_training"] else "mid_training"
    infeasible = sum(trial.verdict.infeasible for trial in above)
    sentences = [
        f"Of {len(above)} trainings between the best base LR and "
        f"{readable(CONFIRM_MULTIPLES[-1])} × that, {infeasible} are infeasible; "
        f"{counts['early']} blew up in the first steps, {counts['mid_training']} in mid-training."
    ]
    sentences += _kind_sentences(ill, risen, onsets)
    if kind == "none" and 2 * len(ill) >= len(above) > 0:
        sentences.append(
            f"So do {sum(map(_is_ill, below))} of {len(below)} at and below the best base LR: the "
            "loss rises by itself, whatever the learning rate."
        )
    if recovering:
        sentences.append(_of_data_in_words(of_data))
    return kind, onsets, Step("kind", ("R2", "R3", "R5", "R7"), tuple(sentences), studies)


def _is_ill(trial: Trial) -> bool:
    return trial.verdict.infeasible or trial.verdict.instability != "none"


def _more_often(above: Sequence[Trial], below: Sequence[Trial]) -> bool:
    """Whether trainings go wrong more often above the best base LR than below.

    By Fisher's exact test.
    """
    table = [
        [sum(map(_is_ill, own)), sum(not _is_ill(trial) for trial in own)] for own in (above, below)
    ]
    return bool(fisher_exact(table, alternative="greater").pvalue <= ALPHA)


def _kind_sentences(
    ill: Sequence[Trial], risen: Sequence[Trial], onsets: Sequence[float]
) -> Iterable[str]:
    if len(ill) > len(risen):
        yield f"{len(ill) - len(risen)} collapsed to chance without a rise of the loss."
    if onsets:
        yield (
            f"Onset at step {onsets[0]:.0f} to {onsets[-1]:.0f}, half of them by step "
            f"{np.median(onsets):.0f}."
        )
    recovered = sum(trial.feasible for trial in risen)
    if recovered:
        yield f"{recovered} of those recovered (R5): rare evaluation would not have shown them."


def _of_data_in_words(trials: Sequence[Trial]) -> str:
    onsets = [trial.verdict.onset_step for trial in trials]
    rates = [trial.point.base_lr for trial in trials]
    first, last = min(onsets), max(onsets)
    steps = f"step {first:.0f}" if first == last else f"step {first:.0f} to {last:.0f}"
    return (
        f"At {steps} the loss of {len(trials)} trainings rises at base LRs from "
        f"{readable(min(rates))} to {readable(max(rates))} alike: that is the data, not the "
        "learning rate; look at what happens there."
    )
