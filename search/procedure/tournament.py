"""Remedies against plain training on fresh seeds, and the one to adopt (S9).

The best few are rerun on fresh seeds, paired, and `comparison.decide` says which are shown to be
better. They are compared with plain training at the better of two base LRs on these seeds: the best
of its ten, and lr_star.

A few seeds that all train say little of how often training fails. So a remedy that stands on the
edge is adopted only if no more than MOST_FAILING of its runs may fail, or if it fails less often
than plain training. Both are rerun on so many seeds that no failure among them would show this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..judge.analysis import EDGE_HEADROOM
from ..judge.comparison import (
    ALPHA,
    Evidence,
    decide,
    evidence,
    failure_bound,
    failures_in_words,
    fewest_seeds,
    runs_without_failure,
)
from ..judge.diagnosis import PLAIN, Edge, Remedy, Step, adopt, join_names
from ..study.study import Study
from ..trial import Point, Trial, as_told, cost
from ..words import readable
from .arms import TUNED
from .steps import SAME_SCALE, SCREENING_SEEDS, Asking, Case, train_all

PLAINS = (PLAIN, f"{PLAIN}-lr_star")  # the names of their reruns
BEST_FEW = 4  # remedies that are rerun, besides plain training
# of the runs of a remedy adopted on the edge: a user would notice one lost run in ten
MOST_FAILING = 0.10
SAFE_SEEDS = runs_without_failure(MOST_FAILING)  # 29
# added to the study's seed for the reruns: such seeds have chosen nothing
FRESH_SEEDS = 1000


@dataclass(frozen=True)
class Found:
    """What was found about remedies; the fields of a GroupDiagnosis."""

    remedies: list[Remedy]
    adopted: str
    steps: list[Step]
    left_out: list[str]


def hold_tournament(
    case: Case, edge: Edge, remedies: Sequence[Remedy], at_star: Remedy | None
) -> Asking[Found]:
    """Rerun plain training and the best few remedies on fresh seeds, and decide."""
    maximize = case.study.maximize
    others = sorted(remedies[1:], key=lambda one: cost(one.tuned_value, maximize))[:BEST_FEW]
    chosen = [remedy for remedy in remedies[1:] if remedy in others]
    seeds = max(case.seeds, fewest_seeds(paired=True, candidates=max(1, len(chosen))))
    plains = [remedies[0]]
    if at_star and at_star.point.base_lr != remedies[0].point.base_lr:
        plains.append(at_star)
    asked = [
        rerun_study(case, name, one.point, seeds) for one, name in zip(plains, PLAINS, strict=False)
    ]
    asked += [rerun_study(case, one.name, one.point, seeds) for one in chosen]
    found = yield from train_all(*asked)
    rerun = [with_runs(*runs) for runs in zip([*plains, *chosen], asked, found, strict=True)]
    names = [study.name for study, runs in zip(asked, found, strict=True) if runs]
    left_out = [f"the rerun of {one.name}" for one in rerun if not one.values]
    control = min(rerun[: len(plains)], key=lambda one: cost(one.mean, maximize))
    candidates = [one for one in rerun[len(plains) :] if one.values]
    if not candidates or not control.values:
        why = "The budget left out the reruns." if chosen else "No remedy trains."
        final = _in_place([control], remedies)
        return Found(final, PLAIN, [Step("tournament", ("S9",), (why,), tuple(names))], left_out)
    longer, more = yield from _longer(case, control, candidates, seeds)
    names += more
    control, judged, adopted, told = yield from _decide(case, edge, control, candidates, seeds)
    judged = [replace(one, equal_steps=_at_equal_steps(case, one, longer)) for one in judged]
    final = _in_place([control, *judged], remedies)
    sentences = list(_sentences(final, adopted, seeds, left_out + told.left_out))
    if len(plains) > 1:
        sentences.insert(1, _plains_in_words(rerun[: len(plains)]))
    sentences[1:1] = told.sentences
    step = Step("tournament", ("S9", "R11"), tuple(sentences), (*names, *told.studies))
    return Found(final, adopted, [step], left_out + told.left_out)


def rerun_study(
    case: Case,
    name: str,
    point: Point,
    seeds: int,
    max_train_steps: int | None = None,
    after: int = 0,
) -> Study:
    """Trainings of a point on `seeds` fresh seeds, beginning after the first `after` of these."""
    step = f"rerun-{name}" + (f"-{max_train_steps}" if max_train_steps else "")
    first_seed = case.study.seed + FRESH_SEEDS + after
    return case.ask(
        step,
        [point.base_lr],
        seeds,
        point=point,
        first_seed=first_seed,
        max_train_steps=max_train_steps,
    )


def with_runs(remedy: Remedy, asked: Study, trials: Sequence[Trial]) -> Remedy:
    """A remedy with the trainings of its rerun, or without them if the budget left them out."""
    if not trials:
        return replace(remedy, rerun_in="", values=(), infeasible=0, failure_bound=math.nan)
    failed = sum(not trial.feasible for trial in trials)
    return replace(
        remedy,
        rerun_in=asked.name,
        values=tuple(as_told(trial).value for trial in trials),
        infeasible=failed,
        failure_bound=failure_bound(failed, len(trials)),
    )


def _in_place(rerun: Sequence[Remedy], remedies: Sequence[Remedy]) -> list[Remedy]:
    """All remedies in their order, those that were rerun as they are now."""
    by_name = {one.name: one for one in rerun}
    return [by_name.get(one.name, one) for one in remedies]


def _longer(
    case: Case, control: Remedy, candidates: Sequence[Remedy], seeds: int
) -> Asking[tuple[dict[int, list[Trial]], list[str]]]:
    """Plain training for as many updates as candidates that have more of them (R11).

    Returns the trials by the number of updates, and the names of the studies.
    """
    updates = sorted({one.updates for one in candidates if one.updates > control.updates})
    asked = [
        rerun_study(case, PLAIN, control.point, seeds, max_train_steps=count) for count in updates
    ]
    if not asked:
        return {}, []
    found = yield from train_all(*asked)
    names = [study.name for study, runs in zip(asked, found, strict=True) if runs]
    return dict(zip(updates, found, strict=True)), names


@dataclass
class _Safety:
    """What was done to know that a remedy on the edge does not fail."""

    sentences: list[str]
    studies: list[str]
    left_out: list[str]


def _decide(
    case: Case, edge: Edge, control: Remedy, candidates: Sequence[Remedy], seeds: int
) -> Asking[tuple[Remedy, list[Remedy], str, _Safety]]:
    """Decide on each candidate, and which to adopt: on the edge only after SAFE_SEEDS runs of it.

    If the winner does not pass them, the next best is looked at. Seeds are added only to a remedy
    that was already shown to be better, and it must still be so with them: this makes no error of
    the test more frequent.
    """
    told = _Safety([], [], [])
    own = {one.name: one for one in candidates}
    unsafe: set[str] = set()
    while True:
        own = _with_decisions(case, own, control, unsafe)
        better = _better(case, list(own.values()))
        adopted = adopt([control, *own.values()], better, case.study.maximize)
        winner = own.get(adopted)
        if winner is None or not _on_edge(case, edge, winner):
            return control, list(own.values()), adopted, told
        if len(winner.values) >= SAFE_SEEDS:
            told.sentences.append(_safety_in_words(winner, control))
            if _safe(winner, control):
                return control, list(own.values()), adopted, told
            unsafe.add(adopted)
            continue
        more = _more_seeds(case, control, winner, seeds)
        found = yield from train_all(*more)
        told.studies += [study.name for study, runs in zip(more, found, strict=True) if runs]
        if not all(found):
            unsafe.add(adopted)
            told.left_out.append(
                f"the {SAFE_SEEDS - seeds} more seeds that the edge asks of {adopted}"
            )
            continue
        *plain_runs, runs = found
        control = _with_more(control, plain_runs[0]) if plain_runs else control
        own[adopted] = _with_more(winner, runs)


def _more_seeds(case: Case, control: Remedy, winner: Remedy, seeds: int) -> list[Study]:
    """The studies that bring a winner, and plain training beside it, to SAFE_SEEDS runs.

    Plain training is left out if it is there already.
    """
    missing = [one for one in (control, winner) if len(one.values) < SAFE_SEEDS]
    count = SAFE_SEEDS - seeds
    return [rerun_study(case, f"{one.name}-more", one.point, count, after=seeds) for one in missing]


def _evidence(case: Case, values: Sequence[float], others: Sequence[float]) -> Evidence:
    """The evidence on as many seeds as the first values have, and others at least."""
    return evidence(values, others[: len(values)], case.study.maximize)


def _with_decisions(
    case: Case, own: Mapping[str, Remedy], control: Remedy, unsafe: set[str]
) -> dict[str, Remedy]:
    """Each candidate with its evidence and the decision.

    An unsafe one is not adopted, whatever its values.
    """
    evidences = [_evidence(case, one.values, control.values) for one in own.values()]
    decided = {}
    for one, its, decision in zip(own.values(), evidences, decide(evidences), strict=True):
        if one.name in unsafe and decision == "adopt":
            decision = "not enough evidence"
        decided[one.name] = replace(one, evidence=its, decision=decision)
    return decided


def _better(case: Case, own: Sequence[Remedy]) -> dict[tuple[str, str], float]:
    """p of "a is better than b" on the seeds that both have."""
    better = {}
    for a in own:
        for b in own:
            if a is not b:
                its = _evidence(case, a.values[: len(b.values)], b.values)
                better[a.name, b.name] = its.p_better
    return better


def _on_edge(case: Case, edge: Edge, one: Remedy) -> bool:
    """Whether a remedy's base LR is close to one at which it failed (R6).

    Also true if it lies beyond the edge of plain training.
    """
    if one.fails_from <= EDGE_HEADROOM * one.point.base_lr:
        return True
    alike = all(getattr(one.point, name) == getattr(case.point, name) for name in SAME_SCALE)
    return alike and edge.found and one.point.base_lr >= edge.interval[0]


def _safe(one: Remedy, control: Remedy) -> bool:
    return one.failure_bound <= MOST_FAILING or one.infeasible < control.infeasible


def _with_more(remedy: Remedy, trials: Sequence[Trial]) -> Remedy:
    """A remedy with the runs of further seeds."""
    values = (*remedy.values, *(as_told(trial).value for trial in trials))
    failed = remedy.infeasible + sum(not trial.feasible for trial in trials)
    bound = failure_bound(failed, len(values))
    return replace(remedy, values=values, infeasible=failed, failure_bound=bound)


def _safety_in_words(one: Remedy, control: Remedy) -> str:
    runs = len(one.values)
    words = (
        f"{one.name} stands on the edge and was rerun on more seeds, {runs} in all: "
        f"{_failures(one)}"
    )
    if one.failure_bound <= MOST_FAILING:
        return f"{words}."
    if _safe(one, control):
        return f"{words}, and {control.infeasible} of {runs} fail without it."
    return f"{words}, more than {MOST_FAILING:.0%}: not adopted."


def _failures(one: Remedy) -> str:
    return failures_in_words(one.infeasible, len(one.values))


def _plains_in_words(plains: Sequence[Remedy]) -> str:
    told = [
        f"{readable(one.mean)} at base_lr {readable(one.point.base_lr)}"
        if one.values
        else "left out for budget"
        for one in plains
    ]
    return (
        f"Plain training at its best base LR of these: {told[0]}; at lr_star: {told[1]}. The "
        "better one counts."
    )


def _at_equal_steps(
    case: Case, remedy: Remedy, trials: Mapping[int, Sequence[Trial]]
) -> Evidence | None:
    longer = [as_told(trial).value for trial in trials.get(remedy.updates, ())]
    return _evidence(case, remedy.values[: len(longer)], longer) if longer else None


def _sentences(
    remedies: Sequence[Remedy], adopted: str, seeds: int, left_out: Sequence[str]
) -> Iterator[str]:
    rerun = [one for one in remedies if one.values]
    yield (
        f"Each of {len(remedies)} ways to train was tuned at {TUNED} base LRs on "
        f"{SCREENING_SEEDS} seeds; plain training and the best {len(rerun) - 1} others were rerun "
        f"on {seeds} fresh seeds."
    )
    if left_out:
        yield f"The budget left out {join_names(left_out)}."
    for one in rerun:
        yield from in_words(one)
    winner = next(one for one in remedies if one.name == adopted)
    if winner.name == PLAIN:
        yield (
            "Not enough evidence that any remedy is better than plain training at its best base "
            "LR: keep it (S9)."
        )
        yield from _wider(winner, rerun[1:])
        return
    yield (
        f"Adopt {adopted}: the simplest remedy that the best one is not shown to beat (p ≤ "
        f"{ALPHA} would show it)."
    )
    if winner.equal_steps and winner.equal_steps.p_better > ALPHA:
        yield (
            f"Against plain training for as many updates ({winner.updates}) the gain is not shown "
            f"(p = {readable(winner.equal_steps.p_better)}): it may be that of training longer "
            "(R11)."
        )


def _wider(control: Remedy, others: Sequence[Remedy]) -> Iterator[str]:
    """A sentence on the remedy with the most usable base LRs, if plain training has fewer.

    Only remedies that are not shown to be worse than plain training count.
    """
    wider = [
        one
        for one in others
        if one.decision != "keep baseline" and one.usable_decades > control.usable_decades
    ]
    for one in sorted(wider, key=lambda one: -one.usable_decades)[:1]:
        yield (
            f"{one.name} is not shown to be worse, and makes {readable(one.usable_decades)} "
            f"decades of base LRs usable instead of {readable(control.usable_decades)}: worth it "
            "where the base LR cannot be tuned."
        )


def in_words(one: Remedy) -> Iterator[str]:
    if not one.values:
        yield f"{one.name}: the budget left out its rerun."
        return
    low, high = one.next_run
    words = f"{one.name}: {readable(one.mean)} at base_lr {readable(one.point.base_lr)}"
    if not math.isnan(low):
        words += f", one more run between {readable(low)} and {readable(high)}"
    if one.evidence:
        words += f"; gain {readable(one.evidence.gain)}, p = {readable(one.evidence.p_better)}"
    yield f"{words}; {_failures(one)}."
