"""The playbook's remedies (R8–R19): each found by its own procedure, tuned alike, then rerun
against plain training.

Every remedy is tuned at TUNED base LRs on the same seeds, the same base LRs wherever the optimizer
is plain training's; the best few are rerun on fresh seeds, paired, and `comparison.decide` says
which are shown to be better. They are compared with plain training at the better of two base LRs on
these seeds: the best of its ten, and lr_star.

A few seeds that all train say little of how often training fails. So a remedy that stands on the
edge is adopted only if no more than MOST_FAILING of its runs may fail, or if it fails less often
than plain training: it is rerun, and plain training beside it, until so many seeds are there that
none of them failing would show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from ..judge.analysis import CLIP_TOO_MUCH, EDGE_HEADROOM, mean_value, ranked, repetitions
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
from ..judge.diagnosis import PLAIN, Edge, Remedy, Step, adopt, listed
from ..judge.sensitivity import lr_sensitivity, usable_decades
from ..rules.optimizers import RULES
from ..rules.schedule import LONG_WARMUP, longest_warmup, orders_of_magnitude
from ..study.study import Study, ends
from ..trial import Array, Point, Trial, as_told
from ..words import readable
from .steps import SAME_SCALE, SCREENING_SEEDS, Asking, Case, both, together, trained

# multiples of unstable_base_lr for a warmup to reach, the first that works (R8)
LADDER = (10.0, 5.0, 3.0, 1.0)
HIGHER = (100.0, 30.0)  # tried where 10 × worked (R8)
# times warmup_steps: how long a screening run is, post_warmup_steps = 2 × warmup_steps (R9)
SCREENED = 3
# updates of a screening run: below about 100, its verdict and the whole run's disagree
FEWEST_SCREENED = 200
# of the norms: where a clip threshold starts, and goes on while unstable (R16)
PERCENTILES = (90, 75, 50, 25)
# running standard deviations above the running mean; Kumar et al. 2025, arXiv 2504.02507
ADAPTIVE_Z = 2.5
TUNED = 10  # base LRs of each remedy
OWN_WAYS = 5  # plain, warmup, clipping, adaptive clipping, warmup and clipping
BELOW_STAR = 3.0  # the lowest of them is lr_star divided by this, the highest 10 × unstable_base_lr
PLAINS = (PLAIN, f"{PLAIN}-lr_star")  # the names of their reruns
BEST_FEW = 4  # remedies that are rerun, besides plain training
# of the runs of what is adopted on the edge: a run of ten lost is what a user would notice
MOST_FAILING = 0.10
SAFE_SEEDS = runs_without_failure(MOST_FAILING)  # 29
# the first seed of the reruns, after the study's own: none that has chosen anything
FRESH_SEEDS = 1000


@dataclass(frozen=True)
class Found:
    """What was found about remedies; the fields of a GroupDiagnosis."""

    remedies: list[Remedy]
    adopted: str
    steps: list[Step]
    left_out: list[str]


@dataclass(frozen=True)
class _Way:
    """A remedy before it is tuned: its name, a point that has its settings, and the base LRs to
    tune it at.

    Of these only what is not above `highest` can be its best: plain training that was lucky on the
    edge is no baseline.
    """

    name: str
    point: Point
    base_lrs: tuple[float, ...]
    highest: float = math.inf


def rerun_plain(case: Case, sweep: Sequence[Trial], swept_in: str) -> Asking[Found]:
    """Plain training on fresh seeds: what its value is worth where nothing needs a remedy."""
    asked = _rerun(case, PLAIN, case.point, case.seeds)
    (trials,) = yield from trained(asked)
    remedy = _with_runs(as_swept(case, sweep, swept_in), asked, trials)
    step = Step("outcome", ("S9",), tuple(_in_words(remedy)), (asked.name,) if trials else ())
    return Found([remedy], PLAIN, [step], [] if trials else [f"the rerun of {PLAIN}"])


def as_swept(case: Case, sweep: Sequence[Trial], swept_in: str) -> Remedy:
    """Plain training at lr_star, by the trials of the sweep."""
    return _remedy(PLAIN, case.study, sweep, swept_in, case.point)


def remedied(case: Case, edge: Edge, sweep: Sequence[Trial]) -> Asking[Found]:
    """All remedies for an unstable group, and the one to adopt."""
    foot = _foot(case, edge)
    base_lrs = _grid(case, foot)
    searches = both(_warmup(case, foot), _clipping(case, foot, sweep))
    (
        (warmup, warmup_step, whole_warmup),
        (clip_norm, clip_step, whole_clipping),
    ) = yield from searches
    left_out = [] if whole_warmup else ["the search of warmup lengths"]
    left_out += [] if whole_clipping else ["the search of clip thresholds"]
    ways = [_Way(PLAIN, case.point, base_lrs, edge.interval[0] if edge.found else math.inf)]
    if warmup:
        ways.append(_Way("warmup", replace(case.point, warmup_steps=warmup), base_lrs))
    if clip_norm < math.inf:
        ways.append(_Way("clipping", replace(case.point, clip_norm=clip_norm), base_lrs))
    ways.append(_Way("adaptive clipping", replace(case.point, clip_z=ADAPTIVE_Z), base_lrs))
    if warmup and clip_norm < math.inf:  # R19
        joint = replace(case.point, warmup_steps=warmup, clip_norm=clip_norm)
        ways.append(_Way("warmup and clipping", joint, base_lrs))
    arms = [*_other_optimizers(case), *_architectures(case, base_lrs)]
    tuned = yield from together(*(_tuned(case, way) for way in [*ways, *arms]))
    remedies = [one.remedy for one in tuned if one.remedy]
    for way, one in zip([*ways, *arms], tuned, strict=True):
        left_out += [] if one.study else [f"the tuning of {way.name}"]
    steps = [warmup_step, clip_step, _arms_step(case, arms, tuned[len(ways) :])]
    if not remedies or remedies[0].name != PLAIN:
        left_out += [] if tuned[0].study else [f"the rerun of {one.name}" for one in remedies]
        return Found(remedies, "", steps, left_out)
    told = yield from _tournament(case, edge, remedies, tuned[0].at_star)
    return Found(told.remedies, told.adopted, steps + told.steps, left_out + told.left_out)


@dataclass(frozen=True)
class _Foot:
    """The base LR that rungs of LADDER are multiples of, and its name."""

    name: str
    base_lr: float


def _foot(case: Case, edge: Edge) -> _Foot:
    """The upper end of unstable_base_lr, where half of the trainings or more diverge: lower, a
    useless remedy would seem to work. lr_star where training recovers at every base LR, so that
    there is no edge.
    """
    return (
        _Foot("unstable_base_lr", edge.interval[1])
        if edge.found
        else _Foot("lr_star", case.point.base_lr)
    )


def _grid(case: Case, foot: _Foot) -> tuple[float, ...]:
    """The base LRs of each remedy, lr_star among them in the place of the nearest.

    Where the edge is far they are coarse, and plain training would be tuned worse than it is by the
    sweep.
    """
    star = case.point.base_lr
    rates = np.geomspace(star / BELOW_STAR, LADDER[0] * foot.base_lr, TUNED)
    rates[np.argmin(np.abs(np.log(rates / star)))] = star
    return tuple(float(rate) for rate in rates)


def _all_train(case: Case, trials: Sequence[Trial]) -> bool:
    return bool(trials) and all(trial.feasible for trial in case.judged(trials))


# --- warmup (R8–R13) ------------------------------------------------------------------------------


def warmup_lengths(max_train_steps: int) -> list[int]:
    """10, 100, … and a tenth of max_train_steps (R10); empty where that is less than a step."""
    return sorted({*orders_of_magnitude(max_train_steps), longest_warmup(max_train_steps)} - {0})


def screened_updates(warmup_steps: int, max_train_steps: int) -> int:
    """How long a screening run of a warmup is (R9)."""
    return min(max(SCREENED * warmup_steps, FEWEST_SCREENED), max_train_steps + warmup_steps)


def _warmup(case: Case, foot: _Foot) -> Asking[tuple[int, Step, bool]]:
    """The shortest warmup that reaches the highest multiple of the foot; 0 if none does. Whether
    all of it was tried.

    Screening runs of SCREENED × warmup_steps choose what is confirmed by whole ones, with the
    warmup prepended.
    """
    steps = case.study.max_train_steps
    lengths = warmup_lengths(steps)
    sentences: list[str] = []
    studies: list[str] = []
    found: tuple[float, int] | None = None
    exhausted = False
    for ladder in (LADDER, HIGHER):
        screens = {
            length: case.ask(
                f"warmup-{length}-screen-{ladder[0]:g}x",
                [multiple * foot.base_lr for multiple in ladder],
                SCREENING_SEEDS,
                warmup_steps=[length],
                stop_after=screened_updates(length, steps),
            )
            for length in lengths
        }
        screened = yield from trained(*screens.values())
        studies += [
            asked.name for asked, trials in zip(screens.values(), screened, strict=True) if trials
        ]
        exhausted = exhausted or not all(screened)
        by_length = list(zip(screens, screened, strict=True))
        works = []
        for multiple in ladder:
            for length, trials in by_length:
                own = [t for t in trials if t.point.base_lr == multiple * foot.base_lr]
                if _all_train(case, own):
                    works.append((multiple, length))
        confirmed = None
        for multiple, length in works:
            asked = case.ask(
                f"warmup-{length}-at-{multiple:g}x",
                [multiple * foot.base_lr],
                case.seeds,
                warmup_steps=[length],
            )
            (trials,) = yield from trained(asked)
            exhausted = exhausted or not trials
            if trials:
                studies.append(asked.name)
            if _all_train(case, trials):
                confirmed = multiple, length
                break
        found = confirmed or found
        if confirmed is None or confirmed[0] < LADDER[0]:
            break
    sentences += _warmup_sentences(case, foot, found, lengths, exhausted)
    step = Step("warmup", ("R8", "R9", "R10", "R11", "R12"), tuple(sentences), tuple(studies))
    return (found[1] if found else 0), step, not exhausted


def _warmup_sentences(
    case: Case,
    foot: _Foot,
    found: tuple[float, int] | None,
    lengths: Sequence[int],
    exhausted: bool,
) -> Iterator[str]:
    if exhausted:
        yield "The budget left out a part of it."
    tried = ", ".join(map(str, lengths))
    if found is None:
        which = "that was tried" if exhausted else f"of {tried} steps"
        yield (
            f"No warmup {which} reaches even 1 × {foot.name} = {readable(foot.base_lr)} on every "
            "seed."
        )
        return
    multiple, length = found
    yield (
        f"{length} steps are the shortest of {tried} that reach {multiple:g} × {foot.name}, "
        f"base_lr {readable(multiple * foot.base_lr)}, on {case.seeds} of {case.seeds} seeds."
    )
    share = length / case.study.max_train_steps
    if share > LONG_WARMUP:
        yield f"That is {share:.0%} of max_train_steps: it may have to grow (R12)."


# --- clipping (R14–R17) ---------------------------------------------------------------------------


def _clipping(case: Case, foot: _Foot, sweep: Sequence[Trial]) -> Asking[tuple[float, Step, bool]]:
    """The threshold that lets training reach the highest multiple of the foot, the largest if
    several do.

    inf if none does better than plain training. Whether thresholds were tried, or could not be.
    """
    norms = _norms(case, sweep)
    if not len(norms):
        words = "The norms of the runs at lr_star are not stored."
        return math.inf, Step("clipping", ("R15", "R16"), (words,)), True
    thresholds = [float(np.percentile(norms, percentile)) for percentile in PERCENTILES]
    asked = case.ask(
        "clipping",
        [multiple * foot.base_lr for multiple in LADDER],
        SCREENING_SEEDS,
        clip_norm=thresholds,
    )
    (trials,) = yield from trained(asked)
    sentences = [
        f"Norms at lr_star: 90th percentile {readable(thresholds[0])} over the whole run, "
        f"{readable(float(np.percentile(_norms(case, sweep, last_half=True), 90)))} over its last "
        "half."
    ]
    step = Step(
        "clipping", ("R14", "R15", "R16", "R17"), tuple(sentences), (asked.name,) if trials else ()
    )
    if not trials:
        words = "The budget left out the clipped runs."
        return math.inf, replace(step, sentences=(*sentences, words)), False
    clipped = [_clipped(case, trials, foot, threshold) for threshold in thresholds]
    works = [one for one in clipped if one.reached]
    if not works:
        words = ", ".join(readable(threshold) for threshold in thresholds)
        sentences.append(f"None of the thresholds {words} trains at 1 × {foot.name} on every seed.")
        return math.inf, replace(step, sentences=tuple(sentences)), True
    # The largest threshold first, and of those that clip no more than half of the updates, if there
    # are any (R17).
    chosen = max(
        [one for one in works if one.fraction <= CLIP_TOO_MUCH] or works,
        key=lambda one: one.reached,
    )
    percentile = PERCENTILES[thresholds.index(chosen.threshold)]
    sentences.append(
        f"Clipped at {readable(chosen.threshold)}, their {percentile}th percentile, training "
        f"reaches {chosen.reached:g} × {foot.name} on every seed; there {chosen.fraction:.0%} of "
        "the updates are clipped, measured again."
    )
    furthest = max(works, key=lambda one: one.reached)
    if furthest.reached > chosen.reached:
        sentences.append(
            f"At {readable(furthest.threshold)} it would reach {furthest.reached:g} ×, by clipping "
            f"{furthest.fraction:.0%}."
        )
    studies = [asked.name]
    if chosen.fraction > CLIP_TOO_MUCH:
        base_lr = _cut(chosen.trials, chosen.threshold)
        control = case.ask("clipping-control", [base_lr], SCREENING_SEEDS)
        (cut,) = yield from trained(control)
        sentences.append("More than half: a strange way of cutting the learning rate (R17).")
        if cut:
            studies.append(control.name)
            sentences.append(
                f"With the base LR cut to {readable(base_lr)} instead, by the mean factor that "
                f"clipping leaves of an update, {case.study.objective} is {_mean_words(cut)}; "
                f"clipped it is {_mean_words(chosen.trials)}."
            )
    return chosen.threshold, replace(step, sentences=tuple(sentences), studies=tuple(studies)), True


@dataclass(frozen=True)
class _Clipped:
    """A threshold: the highest multiple of the foot up to which every seed trains with it (0: none
    does).

    There, the mean share of clipped updates, and the trials.
    """

    threshold: float
    reached: float
    fraction: float
    trials: tuple[Trial, ...]


def _clipped(case: Case, trials: Sequence[Trial], foot: _Foot, threshold: float) -> _Clipped:
    found = _Clipped(threshold, 0.0, 0.0, ())
    for multiple in sorted(LADDER):
        base_lr = multiple * foot.base_lr
        own = tuple(
            t for t in trials if (t.point.clip_norm, t.point.base_lr) == (threshold, base_lr)
        )
        if not _all_train(case, own):
            break
        found = _Clipped(threshold, multiple, fmean(trial.clip_fraction for trial in own), own)
    return found


def _norms(case: Case, sweep: Sequence[Trial], last_half: bool = False) -> Array:
    """Unclipped norms of the runs at lr_star, all seeds together."""
    own = [t.curve.grad_norm for t in sweep if t.feasible and t.point.base_lr == case.point.base_lr]
    parts = [norms[len(norms) // 2 :] if last_half else norms for norms in own]
    norms = np.concatenate(parts) if parts else np.empty(0)
    return np.asarray(norms[np.isfinite(norms) & (norms > 0)])


def _cut(clipped: Sequence[Trial], threshold: float) -> float:
    """The base LR times the mean factor that clipping leaves of the updates."""
    norms = np.concatenate([trial.curve.grad_norm for trial in clipped])
    return float(clipped[0].point.base_lr * np.minimum(1.0, threshold / norms[norms > 0]).mean())


def _mean_words(trials: Sequence[Trial]) -> str:
    return readable(fmean(as_told(trial).value for trial in trials))


# --- other optimizers and architectures (R18) -----------------------------------------------------


def _other_optimizers(case: Case) -> list[_Way]:
    """The study's other optimizers, in their own ranges; another one where it has none."""
    study, own = case.study, case.point.optimizer
    ranges = {name: ends(study.axes(name)["base_lr"]) for name in study.optimizers if name != own}
    if not ranges:
        alternative = RULES[own].alternative
        ranges[alternative.optimizer] = alternative.base_lrs
    ways = []
    for name, (low, high) in ranges.items():
        point = replace(case.point, optimizer=name, settings=_settings(study, name))
        rates = tuple(float(rate) for rate in np.geomspace(low, high, TUNED))
        ways.append(_Way(name, point, rates))
    return ways


def _settings(study: Study, optimizer: str) -> Mapping[str, float]:
    """An optimizer's own hyperparameters: what the study fixes of them, and the rule's defaults."""
    axes = study.axes(optimizer) if optimizer in study.optimizers else {}
    fixed = {
        name: axis[0] for name, axis in axes.items() if isinstance(axis, tuple) and len(axis) == 1
    }
    return {
        name: float(fixed.get(name, default)) for name, default in RULES[optimizer].defaults.items()
    }


def _architectures(case: Case, base_lrs: tuple[float, ...]) -> list[_Way]:
    """What the workload declares as other architectures."""
    ways = []
    for name, changed in case.architectures.items():
        arguments = {**case.point.workload_args, **changed}
        if arguments != dict(case.point.workload_args):
            ways.append(_Way(name, replace(case.point, workload_args=arguments), base_lrs))
    return ways


def _arms_step(case: Case, arms: Sequence[_Way], tuned: Sequence[_Tuned]) -> Step:
    sentences = []
    for way, one in zip(arms, tuned, strict=True):
        if one.remedy:
            value, base_lr = readable(one.remedy.tuned_value), readable(one.remedy.point.base_lr)
            sentences.append(f"{way.name}: {case.study.objective} {value} at base_lr {base_lr}.")
        elif one.study:
            low, high = readable(way.base_lrs[0]), readable(way.base_lrs[-1])
            sentences.append(f"{way.name}: no base LR from {low} to {high} trains.")
        else:
            sentences.append(f"{way.name}: left out for budget.")
    return Step("arms", ("R18",), tuple(sentences), tuple(one.study for one in tuned if one.study))


# --- tuning and tournament (S9) -------------------------------------------------------------------


@dataclass(frozen=True)
class _Tuned:
    """A way at its best base LR, None if it trains at none; at lr_star, None if it does not train
    there; its study.

    The study is "" if the budget left it out.
    """

    remedy: Remedy | None
    at_star: Remedy | None
    study: str


def _tuned(case: Case, way: _Way) -> Asking[_Tuned]:
    asked = case.ask(f"tune-{way.name}", way.base_lrs, SCREENING_SEEDS, point=way.point)
    (found,) = yield from trained(asked)
    trials = case.judged(found)
    ranking = [trial for trial in ranked(trials) if trial.point.base_lr <= way.highest]
    if not ranking:
        return _Tuned(None, None, asked.name if trials else "")
    best, star = ranking[0].point, case.point.base_lr
    at_star = [trial.point for trial in ranking if trial.point.base_lr == star]
    first, second = (
        _remedy(way.name, asked, trials, asked.name, point) if point else None
        for point in (best, at_star[0] if at_star else None)
    )
    return _Tuned(first, second, asked.name)


def _remedy(name: str, study: Study, trials: Sequence[Trial], tuned_in: str, best: Point) -> Remedy:
    """A remedy at the configuration that its sweep chose."""
    seeds = next(
        own for own in repetitions(trials) if own[0].point.configuration == best.configuration
    )
    return Remedy(
        name=name,
        point=best,
        updates=study.updates(best),
        highest_base_lr=_highest(trials, best.base_lr),
        fails_from=_fails_from(trials, best.base_lr),
        usable_decades=usable_decades(trials),
        lr_sensitivity=lr_sensitivity(trials),
        clip_fraction=fmean(trial.clip_fraction for trial in seeds),
        tuned_value=mean_value(seeds),
        tuned_in=tuned_in,
    )


def _highest(trials: Sequence[Trial], best: float) -> float:
    """The highest base LR up to which every seed trains, from the best one on."""
    by_rate: dict[float, bool] = {}
    for trial in trials:
        by_rate[trial.point.base_lr] = by_rate.get(trial.point.base_lr, True) and trial.feasible
    highest = best
    for rate in sorted(rate for rate in by_rate if rate > best):
        if not by_rate[rate]:
            break
        highest = rate
    return highest


def _fails_from(trials: Sequence[Trial], best: float) -> float:
    """The lowest base LR from the best one on at which a seed is infeasible; inf if none is."""
    failed = [t.point.base_lr for t in trials if t.verdict.infeasible and t.point.base_lr >= best]
    return min(failed, default=math.inf)


def _rerun(
    case: Case,
    name: str,
    point: Point,
    seeds: int,
    max_train_steps: int | None = None,
    after: int = 0,
) -> Study:
    """Trainings of a point on `seeds` fresh seeds, the first of which come `after` so many."""
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


def _tournament(
    case: Case, edge: Edge, remedies: Sequence[Remedy], at_star: Remedy | None
) -> Asking[Found]:
    """Rerun plain training and the best few remedies on fresh seeds, and decide."""
    others = sorted(remedies[1:], key=lambda one: one.tuned_value)[:BEST_FEW]
    chosen = [remedy for remedy in remedies[1:] if remedy in others]
    seeds = max(case.seeds, fewest_seeds(paired=True, candidates=max(1, len(chosen))))
    plains = [remedies[0]]
    if at_star and at_star.point.base_lr != remedies[0].point.base_lr:
        plains.append(at_star)
    asked = [
        _rerun(case, name, one.point, seeds) for one, name in zip(plains, PLAINS, strict=False)
    ]
    asked += [_rerun(case, one.name, one.point, seeds) for one in chosen]
    found = yield from trained(*asked)
    rerun = [_with_runs(*runs) for runs in zip([*plains, *chosen], asked, found, strict=True)]
    names = [study.name for study, runs in zip(asked, found, strict=True) if runs]
    left_out = [f"the rerun of {one.name}" for one in rerun if not one.values]
    control = min(rerun[: len(plains)], key=lambda one: one.mean if one.values else math.inf)
    candidates = [one for one in rerun[len(plains) :] if one.values]
    if not candidates or not control.values:
        why = "The budget left out the reruns." if chosen else "No remedy trains."
        final = _in_place([control], remedies)
        return Found(final, PLAIN, [Step("tournament", ("S9",), (why,), tuple(names))], left_out)
    longer, more = yield from _longer(case, control, candidates, seeds)
    names += more
    control, judged, adopted, told = yield from _decided(case, edge, control, candidates, seeds)
    judged = [replace(one, equal_steps=_at_equal_steps(one, longer)) for one in judged]
    final = _in_place([control, *judged], remedies)
    sentences = list(_tournament_sentences(final, adopted, seeds, left_out + told.left_out))
    if len(plains) > 1:
        sentences.insert(1, _plains_in_words(rerun[: len(plains)]))
    sentences[1:1] = told.sentences
    step = Step("tournament", ("S9", "R11"), tuple(sentences), (*names, *told.studies))
    return Found(final, adopted, [step], left_out + told.left_out)


def _in_place(rerun: Sequence[Remedy], remedies: Sequence[Remedy]) -> list[Remedy]:
    """All remedies in their order, those that were rerun as they are now."""
    by_name = {one.name: one for one in rerun}
    return [by_name.get(one.name, one) for one in remedies]


def _longer(
    case: Case, control: Remedy, candidates: Sequence[Remedy], seeds: int
) -> Asking[tuple[dict[int, list[Trial]], list[str]]]:
    """Plain training for as many updates as those that have more, by the number of updates; and the
    studies.
    """
    updates = sorted({one.updates for one in candidates if one.updates > control.updates})
    asked = [_rerun(case, PLAIN, control.point, seeds, max_train_steps=count) for count in updates]
    if not asked:
        return {}, []
    found = yield from trained(*asked)
    names = [study.name for study, runs in zip(asked, found, strict=True) if runs]
    return dict(zip(updates, found, strict=True)), names


@dataclass
class _Safety:
    """What was done to know that a remedy on the edge does not fail."""

    sentences: list[str]
    studies: list[str]
    left_out: list[str]


def _decided(
    case: Case, edge: Edge, control: Remedy, candidates: Sequence[Remedy], seeds: int
) -> Asking[tuple[Remedy, list[Remedy], str, _Safety]]:
    """The decision on each candidate, and the one to adopt: on the edge only after SAFE_SEEDS runs
    of it.

    Where the winner does not stand them, the next best is looked at. Seeds are added only to what
    was already shown to be better, and it must be so with them: that makes no error of the test
    more frequent.
    """
    told = _Safety([], [], [])
    own = {one.name: one for one in candidates}
    unsafe: set[str] = set()
    while True:
        own = _with_decisions(own, control, unsafe)
        adopted = adopt([control, *own.values()], _better(list(own.values())))
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
        found = yield from trained(*more)
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
    """The studies that bring a winner, and plain training unless it is there already, to SAFE_SEEDS
    runs.
    """
    missing = [one for one in (control, winner) if len(one.values) < SAFE_SEEDS]
    count = SAFE_SEEDS - seeds
    return [_rerun(case, f"{one.name}-more", one.point, count, after=seeds) for one in missing]


def _with_decisions(
    own: Mapping[str, Remedy], control: Remedy, unsafe: set[str]
) -> dict[str, Remedy]:
    """Each candidate with its evidence and the decision; what is unsafe is not adopted, whatever
    its values.
    """
    evidences = [evidence(one.values, control.values[: len(one.values)]) for one in own.values()]
    decided = {}
    for one, its, decision in zip(own.values(), evidences, decide(evidences), strict=True):
        if one.name in unsafe and decision == "adopt":
            decision = "not enough evidence"
        decided[one.name] = replace(one, evidence=its, decision=decision)
    return decided


def _better(own: Sequence[Remedy]) -> dict[tuple[str, str], float]:
    """p of "a is better than b" on the seeds that both have."""
    better = {}
    for a in own:
        for b in own:
            if a is not b:
                both_have = min(len(a.values), len(b.values))
                its = evidence(a.values[:both_have], b.values[:both_have])
                better[a.name, b.name] = its.p_better
    return better


def _on_edge(case: Case, edge: Edge, one: Remedy) -> bool:
    """Whether a remedy's base LR is close to one at which it failed (R6), or beyond the edge of
    plain training.
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


def _with_runs(remedy: Remedy, asked: Study, trials: Sequence[Trial]) -> Remedy:
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


def _at_equal_steps(remedy: Remedy, trials: Mapping[int, Sequence[Trial]]) -> Evidence | None:
    longer = [as_told(trial).value for trial in trials.get(remedy.updates, ())]
    return evidence(remedy.values[: len(longer)], longer) if longer else None


def _tournament_sentences(
    remedies: Sequence[Remedy], adopted: str, seeds: int, left_out: Sequence[str]
) -> Iterator[str]:
    rerun = [one for one in remedies if one.values]
    yield (
        f"Each of {len(remedies)} ways to train was tuned at {TUNED} base LRs on "
        f"{SCREENING_SEEDS} seeds; plain training and the best {len(rerun) - 1} others were rerun "
        f"on {seeds} fresh seeds."
    )
    if left_out:
        yield f"The budget left out {listed(left_out)}."
    for one in rerun:
        yield from _in_words(one)
    winner = next(one for one in remedies if one.name == adopted)
    if winner.name == PLAIN:
        yield (
            "Not enough evidence that any remedy is better than plain training at its best base "
            "LR: keep it (S9)."
        )
        yield from _wider(winner, rerun[1:])
        return
    yield (
        f"Adopt {adopted}: the simplest that the best is not shown to beat (p ≤ {ALPHA} would "
        "show it)."
    )
    if winner.equal_steps and winner.equal_steps.p_better > ALPHA:
        yield (
            f"Against plain training for as many updates ({winner.updates}) the gain is not shown "
            f"(p = {readable(winner.equal_steps.p_better)}): it may be that of training longer "
            "(R11)."
        )


def _wider(control: Remedy, others: Sequence[Remedy]) -> Iterator[str]:
    """The remedy that makes most base LRs usable, of those not shown to be worse than plain
    training.
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


def _in_words(one: Remedy) -> Iterator[str]:
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
