"""Remedies against plain training on fresh seeds, and the one to adopt (S9).

The best few are rerun on fresh seeds, paired, and `comparison.decide` says which are shown to be
better than plain training at lr_star. Where the rounds found a better base LR for plain training,
it is rerun there, too: a remedy must be shown to be better than both, or its gain may be that of a
base LR. If that base LR is shown to be better than lr_star, it takes its place.

What the budget has no room for is not begun: the best remedies go first, and one that stands on the
edge only with the seeds that this takes.

A few seeds that all train say little of how often training fails. So a remedy that stands on the
edge is adopted only if no more than MOST_FAILING of its runs may fail, or if it fails less often
than plain training. Both are rerun on so many seeds that no failure among them would show this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from ..judge.diagnosis import PLAIN, Edge, Remedy, Step, adopt
from ..study.study import Study
from ..trial import Point, Trial, as_told
from ..words import readable
from .asking import Asking, train_all
from .steps import SAME_SCALE, Case

TUNED_PLAIN = f"{PLAIN} as tuned"  # the name of its rerun at another base LR than lr_star
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


def seeds_for(case: Case, candidates: int) -> int:
    """Fresh seeds with which the tournament of so many remedies can decide."""
    return max(case.seeds, fewest_seeds(paired=True, candidates=max(1, candidates)))


def cost_of_reruns(case: Case, points: Sequence[Point]) -> float:
    """Updates of a tournament of these remedies and plain training at two base LRs."""
    steps = case.steps
    each = 2 * steps + sum(steps + point.warmup_steps for point in points)
    return seeds_for(case, len(points)) * each


def cost_of_safety(case: Case, point: Point, candidates: int) -> float:
    """Updates of the further seeds of a remedy on the edge, and of plain training beside it."""
    more = max(0, SAFE_SEEDS - seeds_for(case, candidates))
    return more * (2 * case.steps + point.warmup_steps)


def hold_tournament(
    case: Case,
    edge: Edge,
    plains: Sequence[Remedy],
    remedies: Sequence[Remedy],
    running: Sequence[str],
) -> Asking[Found]:
    """Rerun plain training and the best few remedies on fresh seeds, and decide.

    `plains` is plain training at lr_star, and as the rounds tuned it; `remedies` are in order of
    what they cost to keep, `running` names those that may be rerun, the best first.
    """
    control, *tuned = plains
    everyone = [control, *remedies]
    named = {one.name: one for one in remedies}
    entered = _within_budget(case, edge, [named[name] for name in running[:BEST_FEW]])
    chosen = [one for one in remedies if one.name in entered]  # in their order
    seeds = seeds_for(case, len(chosen))
    rivals = [one for one in tuned if one.point.base_lr != control.point.base_lr]
    rivals = [replace(one, name=TUNED_PLAIN) for one in rivals]
    asked = [rerun_study(case, one.name, one.point, seeds) for one in (control, *rivals, *chosen)]
    why = [] if chosen else ["No remedy could be rerun."]
    if not case.pays(f"the rerun of {PLAIN}", *asked):
        return Found(everyone, PLAIN, [_step(why, [])])
    found = yield from train_all(*asked)
    if not all(found):
        return Found(everyone, PLAIN, [_step([*why, "The reruns were left out."], [])])
    pairs = zip((control, *rivals, *chosen), asked, found, strict=True)
    first, *rest = (with_runs(*runs) for runs in pairs)
    plains, candidates = [first, *rest[: len(rivals)]], rest[len(rivals) :]
    control, beside, words = _which_plain(case, plains)
    longer, more = yield from _longer(case, control, candidates, seeds)
    held = _Tournament(case, edge, seeds, beside)
    control, judged, adopted = yield from held.decide(control, candidates)
    judged = [replace(one, equal_steps=_at_equal_steps(case, one, longer)) for one in judged]
    final = _in_place([control, *judged], everyone)
    sentences = [*why, *words, *held.sentences, *_sentences(final, adopted)]
    studies = [*(study.name for study in asked), *more, *held.studies]
    return Found(final, adopted, [_step(sentences, studies)])


def _which_plain(
    case: Case, plains: Sequence[Remedy]
) -> tuple[Remedy, tuple[float, ...], list[str]]:
    """Plain training that counts, the values of the other one, if there is one, and why.

    It is that at lr_star, the first, unless the other one is shown to be better.
    """
    at_star, *rivals = plains
    if not rivals:
        return at_star, (), []
    rival = replace(rivals[0], name=PLAIN)
    words = (
        f"Plain training at {readable(at_star.point.base_lr)}, the lr_star of the sweep: "
        f"{readable(at_star.mean)}; "
        f"at {readable(rival.point.base_lr)}, its best base LR of the rounds: "
        f"{readable(rival.mean)}."
    )
    if _evidence(case, rival.values, at_star.values).p_better <= ALPHA:
        moved = f"That is shown to be better: lr_star = {readable(rival.point.base_lr)}."
        return rival, at_star.values, [f"{words} {moved}"]
    kept = "That is not shown to be better. A remedy must be shown to be better than both."
    return at_star, rival.values, [f"{words} {kept}"]


def _step(sentences: Sequence[str], studies: Sequence[str]) -> Step:
    return Step("tournament", ("S9", "R11"), tuple(sentences), tuple(filter(None, studies)))


def rerun_control(case: Case, control: Remedy) -> Asking[Remedy]:
    """Plain training with fresh seeds, if the budget has room for them."""
    asked = rerun_study(case, PLAIN, control.point, case.seeds)
    if not case.pays(f"the rerun of {PLAIN}", asked):
        return control
    (trials,) = yield from train_all(asked)
    return with_runs(control, asked, trials)


def _within_budget(case: Case, edge: Edge, ranked: Sequence[Remedy]) -> list[str]:
    """Names of the remedies that are rerun: as many of the best as the budget has room for.

    If the best of them stands on the edge, with the seeds that this takes: without, it could not be
    adopted. Where there is no room for them, those that do not stand there are rerun.
    """
    safe = [one for one in ranked if not is_on_edge(case, edge, one)]
    options = [ranked[:count] for count in range(len(ranked), 0, -1)]
    options += [safe[:count] for count in range(len(safe), 0, -1)]

    def cost_of(own: Sequence[Remedy]) -> float:
        reruns = cost_of_reruns(case, [one.point for one in own])
        on_edge = is_on_edge(case, edge, own[0])
        return reruns + (cost_of_safety(case, own[0].point, len(own)) if on_edge else 0)

    fits = (list(own) for own in options if cost_of(own) <= case.purse.left)
    fitting = next(fits, [])
    names = [one.name for one in fitting]
    left_out = [f"the rerun of {one.name}" for one in ranked if one.name not in names]
    if left_out:
        spent = cost_of(fitting) if fitting else 0
        whole = cost_of_reruns(case, [one.point for one in ranked])
        whole += max(cost_of_safety(case, one.point, len(ranked)) for one in ranked)
        case.purse.leave_out(left_out, whole - spent, spent)
    return names


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
    what = f"{PLAIN} training of {', '.join(map(str, updates))} updates"
    if not asked or not case.pays(what, *asked):
        return {}, []
    found = yield from train_all(*asked)
    return dict(zip(updates, found, strict=True)), [study.name for study in asked]


@dataclass
class _Tournament:
    """Decisions on remedies that were rerun.

    seeds      on which all were rerun
    beside     the values of plain training at another base LR, if it was rerun at two
    sentences, studies   what was done to know that a remedy on the edge does not fail
    """

    case: Case
    edge: Edge
    seeds: int
    beside: Sequence[float]
    sentences: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)

    def decide(
        self, control: Remedy, candidates: Sequence[Remedy]
    ) -> Asking[tuple[Remedy, list[Remedy], str]]:
        """Decide on each candidate, and which to adopt: on the edge only after SAFE_SEEDS runs.

        If the winner does not pass them, the next best is looked at. Seeds are added only to a
        remedy that was already shown to be better, and it must still be so with them: this makes no
        error of the test more frequent.
        """
        own = {one.name: one for one in candidates}
        unsafe: set[str] = set()
        while True:
            own = self._with_decisions(own, control, unsafe)
            better = _better(self.case, list(own.values()))
            adopted = adopt([control, *own.values()], better, self.case.study.maximize)
            winner = own.get(adopted)
            if winner is None or not is_on_edge(self.case, self.edge, winner):
                return control, list(own.values()), adopted
            if len(winner.values) >= SAFE_SEEDS:
                self.sentences.append(_safety_in_words(winner, control))
                if _safe(winner, control):
                    return control, list(own.values()), adopted
                unsafe.add(adopted)
                continue
            more = self._more_seeds(control, winner)
            what = f"the {SAFE_SEEDS - self.seeds} more seeds that the edge asks of {adopted}"
            if not self.case.pays(what, *more):
                unsafe.add(adopted)
                continue
            *plain_runs, runs = yield from train_all(*more)
            self.studies += [study.name for study in more]
            control = _with_more(control, plain_runs[0]) if plain_runs else control
            own[adopted] = _with_more(winner, runs)

    def _more_seeds(self, control: Remedy, winner: Remedy) -> list[Study]:
        """The studies that bring a winner, and plain training beside it, to SAFE_SEEDS runs.

        Plain training is left out if it is there already.
        """
        missing = [one for one in (control, winner) if len(one.values) < SAFE_SEEDS]
        count = SAFE_SEEDS - self.seeds
        return [
            rerun_study(self.case, f"{one.name}-more", one.point, count, after=self.seeds)
            for one in missing
        ]

    def _with_decisions(
        self, own: Mapping[str, Remedy], control: Remedy, unsafe: set[str]
    ) -> dict[str, Remedy]:
        """Each candidate with its evidence against plain training at lr_star, and the decision.

        An unsafe one is not adopted, whatever its values.
        """
        evidences = [_evidence(self.case, one.values, control.values) for one in own.values()]
        decided = {}
        tested = map(self._tested, own.values(), evidences)
        for one, its, decision in zip(own.values(), evidences, decide(list(tested)), strict=True):
            if one.name in unsafe and decision == "adopt":
                decision = "not enough evidence"
            decided[one.name] = replace(one, evidence=its, decision=decision)
        return decided

    def _tested(self, one: Remedy, its: Evidence) -> Evidence:
        """The evidence that it is better than plain training at both base LRs: the larger p."""
        if not self.beside:
            return its
        other = _evidence(self.case, one.values[: len(self.beside)], self.beside)
        return replace(its, p_better=max(its.p_better, other.p_better))


def _evidence(case: Case, values: Sequence[float], others: Sequence[float]) -> Evidence:
    """The evidence on as many seeds as the first values have, and others at least."""
    return evidence(values, others[: len(values)], case.study.maximize)


def _better(case: Case, own: Sequence[Remedy]) -> dict[tuple[str, str], float]:
    """p of "a is better than b" on the seeds that both have."""
    better = {}
    for a in own:
        for b in own:
            if a is not b:
                its = _evidence(case, a.values[: len(b.values)], b.values)
                better[a.name, b.name] = its.p_better
    return better


def is_on_edge(case: Case, edge: Edge, one: Remedy) -> bool:
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


def _at_equal_steps(
    case: Case, remedy: Remedy, trials: Mapping[int, Sequence[Trial]]
) -> Evidence | None:
    longer = [as_told(trial).value for trial in trials.get(remedy.updates, ())]
    return _evidence(case, remedy.values[: len(longer)], longer) if longer else None


def _sentences(remedies: Sequence[Remedy], adopted: str) -> Iterator[str]:
    rerun = [one for one in remedies if one.values]
    for one in rerun:
        yield from in_words(one)
    winner = next(one for one in remedies if one.name == adopted)
    if winner.name == PLAIN and len(rerun) == 1:
        return
    if winner.name == PLAIN:
        yield ("Not enough evidence that any remedy is better than plain training: keep it (S9).")
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
    """A sentence on the remedy that trains up to the highest base LR, if plain training does not.

    Only remedies of the same optimizer that are not shown to be worse than plain training count.
    """
    wider = [
        one
        for one in others
        if one.decision != "keep baseline"
        and one.point.optimizer == control.point.optimizer
        and one.highest_base_lr > control.highest_base_lr
    ]
    for one in sorted(wider, key=lambda one: -one.highest_base_lr)[:1]:
        yield (
            f"{one.name} is not shown to be worse, and trains up to base_lr "
            f"{readable(one.highest_base_lr)}, where plain training ends at "
            f"{readable(control.highest_base_lr)}: worth it where the base LR cannot be tuned."
        )


def in_words(one: Remedy) -> Iterator[str]:
    if not one.values:
        yield f"{one.name}: the budget left out its rerun."
        return
    low, high = one.next_run
    words = f"{one.name}: {readable(one.mean)} at base_lr {readable(one.point.base_lr)} on "
    words += f"{len(one.values)} fresh seeds"
    if not math.isnan(low):
        words += f", one more run between {readable(low)} and {readable(high)}"
    if one.evidence:
        words += f"; gain {readable(one.evidence.gain)}, p = {readable(one.evidence.p_better)}"
    yield f"{words}; {_failures(one)}."
