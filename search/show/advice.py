"""Advice: where a study breaks a rule of the playbook, though it can be run.

A study that cannot be run is refused (`Study.problems`). `tunewright check` prints the advice.
There is none where file and results leave room for doubt. Each piece names the key of the study
file, the value found, what to do, and the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..judge.analysis import (
    BEST_FEW,
    CLIP_TOO_MUCH,
    boundary_checks,
    group_trials,
    rank_configurations,
)
from ..judge.flags import ENOUGH, checkpoint_note
from ..judge.objective import sounds_better_when_higher
from ..judge.readout import clipped_before
from ..rules.hyperparameters import HYPERPARAMETERS
from ..rules.optimizers import average_of, optimizer_of
from ..rules.schedule import LONG_WARMUP, longest_warmup
from ..rules.tied import TIES
from ..study.sampling import free_axes, shares
from ..study.study import Axis, Range, Study, ends
from ..study.tied import on_axes
from ..trial import CLIPPING, COMMON, Trial
from ..words import readable
from .tables import axis_in_words

# R10: an order of magnitude; R3, R6: the least that a sweep of base_lr spans (its width is ours)
ORDER = 10.0
GRID_AXES = 2  # S2: grids are for one or two dimensions
FAR_APART = 4.0  # batch sizes at which the same value means something else (the factor is ours)
LESS_TUNED = 0.5  # S9: half as many values or configurations as another side (the share is ours)


@dataclass(frozen=True)
class Advice:
    """A broken rule: its id, the key of the study file, and a sentence.

    The sentence has the value found, and what to do.
    """

    rule: str
    place: str
    sentence: str


def advise(study: Study, trials: Iterable[Trial] = ()) -> list[Advice]:
    """What the file breaks, then what the finished trials show.

    Nothing is said twice, and nothing is trained.
    """
    trials = list(trials)
    found = [one for check in OF_THE_FILE for one in check(study)]
    found += [one for judge in OF_THE_RESULTS for one in judge(study, trials)]
    return list(dict.fromkeys(found))


def advice_by(rule: str, place: str, text: str) -> Advice:
    return Advice(rule, place, f"{text} ({rule})")


def _places(study: Study, name: str) -> dict[str, Axis]:
    """The axis of a name by the place that gives it: one for all optimizers that share it."""
    return {
        study.key_of(optimizer, name): study.axes(optimizer)[name] for optimizer in study.optimizers
    }


def _is_fixed(axis: Axis) -> bool:
    return isinstance(axis, tuple) and len(axis) == 1


def _wide(low: float, high: float) -> bool:
    """Whether an order of magnitude lies between two numbers, or more."""
    return high / low > ORDER or math.isclose(high / low, ORDER)


def _explores(study: Study) -> bool:
    """Whether a study explores; an adaptive sampler exploits, so its ranges may be narrow (S2)."""
    return not study.sampling.is_adaptive


def _all_of(names: Iterable[object]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


# --- the objective --------------------------------------------------------------------------------


def direction_of(study: Study) -> Iterator[Advice]:
    """Advice on a minimized objective whose name says that higher is better.

    Silent where the file says `maximize`, true or false.
    """
    higher = sounds_better_when_higher(study.objective)
    if "maximize" in study.model_fields_set or not higher:
        return
    yield advice_by(
        "S3",
        "objective",
        f"{study.objective!r} is minimized, and {higher!r} sounds like a metric that is better "
        "when higher: set maximize = true, or maximize = false to say that lower is better",
    )


# --- learning rates -------------------------------------------------------------------------------


def _shared_base_lr(study: Study) -> Iterator[Advice]:
    sharing = [optimizer for optimizer in study.optimizers if study.is_common(optimizer, "base_lr")]
    if len({optimizer_of(optimizer).family for optimizer in sharing}) > 1:
        yield advice_by(
            "S1",
            "space.base_lr",
            f"{axis_in_words(study.axes(sharing[0])['base_lr'])} is shared by {_all_of(sharing)}, "
            "whose steps differ in size at the same base_lr: give each its own in "
            "[space.optimizer.NAME]",
        )


def _base_lr_range(study: Study) -> Iterator[Advice]:
    if "base_lr" in study.scientific:
        return
    for place, axis in _places(study, "base_lr").items():
        low, high = ends(axis)
        if isinstance(axis, Range) and not axis.log and _wide(low, high):
            yield advice_by(
                "R6",
                place,
                f"{axis_in_words(axis)} is a linear axis, with a tenth of its points at most below "
                f"{readable(high / ORDER)}: set log = true",
            )
        elif not _is_fixed(axis) and not _wide(low, high) and _explores(study):
            yield advice_by(
                "R3",
                place,
                f"{axis_in_words(axis)} spans a factor of {readable(high / low)}, too little to "
                "see where training becomes unstable: sweep an order of magnitude at least, "
                "better three",
            )


# --- batch sizes ----------------------------------------------------------------------------------


def _batch_size_as_argument(study: Study) -> Iterator[Advice]:
    for name, value in study.workload_args.items():
        if name in ("batch_size", "batch_sizes"):
            given = axis_in_words(value if isinstance(value, Range | tuple) else (value,))
            yield advice_by(
                "R20",
                f"workload_args.{name}",
                f"{given}, but train_batches is given the values of batch_sizes, each of which is "
                "tuned on its own: list batch sizes there, and give an argument that means "
                "something else another name",
            )


def _fixed_for_all_batch_sizes(study: Study) -> Iterator[Advice]:
    """Advice on a fixed value that each batch size should tune.

    0 is off, and nothing to tune; a quantity gives each batch size a value of its own.
    """
    for optimizer in study.optimizers:
        for name, axis in _all_axes(study, optimizer).items():
            if _is_same_for_all(study, optimizer, name, axis):
                yield advice_by(
                    "R20",
                    study.key_of(optimizer, study.axis_name(optimizer, name)),
                    f"fixed at {axis_in_words(axis)} for batch sizes "
                    f"{_all_of(study.batch_sizes)}, each of which has its own best value: tune "
                    "it, or do not compare the batch sizes with one another",
                )


def _is_same_for_all(study: Study, optimizer: str, name: str, axis: Axis) -> bool:
    """Whether several batch sizes have one value of what each should tune."""
    row, tie = HYPERPARAMETERS.get(name), study.ties[optimizer].get(name)
    if not row or not row.per_batch_size or (tie and tie.by_batch_size):
        return False
    return len(study.batch_sizes) > 1 and _is_fixed(axis) and any(ends(axis))


def _all_axes(study: Study, optimizer: str) -> dict[str, Axis]:
    """The axes of an optimizer, and its defaults where it has none."""
    defaults = optimizer_of(optimizer).defaults
    fixed: dict[str, Axis] = {name: (value,) for name, value in defaults.items()}
    return fixed | study.axes(optimizer)


def _are_far_apart(study: Study) -> bool:
    return max(study.batch_sizes) >= FAR_APART * min(study.batch_sizes) and not study.imported


def _other_at_each_batch_size(study: Study) -> Iterator[Advice]:
    """Advice on hyperparameters whose values mean something else at batch sizes far apart.

    Once for each; of a default where an order of magnitude lies between batch sizes.
    """
    if not _are_far_apart(study):
        return
    smallest, largest = min(study.batch_sizes), max(study.batch_sizes)
    axes_of = _all_axes if _wide(smallest, largest) else Study.axes
    for name in [name for name, row in HYPERPARAMETERS.items() if row.asks_tie]:
        axes = {optimizer: axes_of(study, optimizer) for optimizer in study.optimizers}
        asked = [one for one, own in axes.items() if _may_be_tied(study, one, name, own)]
        if asked:
            tie = HYPERPARAMETERS[name].ties[0]
            yield advice_by(
                "R20",
                study.key_of(asked[0], name),
                f"{axis_in_words(axes[asked[0]][name])} for {_all_of(asked)} means something else "
                f"at batch size {largest} than at {smallest}: give {name} = {{ {tie} = … }}, which "
                "means the same",
            )


def _may_be_tied(study: Study, optimizer: str, name: str, axes: Mapping[str, Axis]) -> bool:
    """Whether a hyperparameter is used, and could be given by its first tie, but is not.

    Not where it is already asked to be tuned.
    """
    if name not in axes or name in study.ties[optimizer] or not any(ends(axes[name])):
        return False
    if TIES[HYPERPARAMETERS[name].ties[0]].by_epochs and not study.decays_by_itself(optimizer):
        return False
    return not _is_same_for_all(study, optimizer, name, axes[name])


def _other_number_of_examples(study: Study) -> Iterator[Advice]:
    """Advice on an equal number of updates at batch sizes far apart."""
    if _are_far_apart(study) and study.max_train_steps:
        smallest, largest = min(study.batch_sizes), max(study.batch_sizes)
        yield advice_by(
            "R20",
            "max_train_steps",
            f"{study.max_train_steps} updates are {largest / smallest:g} times as many examples at "
            f"batch size {largest} as at {smallest}: to compare them by what they have seen, give "
            f"max_train_examples instead, as {study.max_train_steps * smallest}",
        )


# --- warmup and clipping --------------------------------------------------------------------------


def _no_control(study: Study) -> Iterator[Advice]:
    if not _explores(study):
        return
    for row in [row for row in HYPERPARAMETERS.values() if row.control]:
        for place, axis in _places(study, row.name).items():
            if isinstance(axis, tuple) and not _is_fixed(axis) and row.off not in axis:
                yield advice_by(
                    row.control,
                    place,
                    (
                        f"{axis_in_words(axis)} has no control: add {row.off}, to see whether any "
                        "is needed"
                    ),
                )


def _warmup_spread(study: Study) -> Iterator[Advice]:
    if not _explores(study) or longest_warmup(max(study.lengths)) < ORDER:
        return
    for place, axis in _places(study, "warmup_steps").items():
        if isinstance(axis, Range):
            spread = axis.log and _wide(axis.low, axis.high)
        else:
            lengths = [float(value) for value in axis if value]
            spread = len(lengths) < 2 or _wide(min(lengths), max(lengths))
        if not spread:
            yield advice_by(
                "R10",
                place,
                f"{axis_in_words(axis)} is not spread over orders of magnitude: "
                "give { orders_of_magnitude = true }, or values a factor of ten apart",
            )


def _long_warmup(study: Study) -> Iterator[Advice]:
    steps, length = min(study.lengths), study.length_key
    for place, axis in _places(study, "warmup_steps").items():
        if ends(axis)[0] > LONG_WARMUP * steps and not study.prepend_warmup:
            of = f"max_train_steps = {steps}"
            if not study.max_train_steps:
                of = f"the {steps} updates at batch size {study.lengths[steps]}"
            yield advice_by(
                "R12",
                place,
                f"{axis_in_words(axis)} is more than {LONG_WARMUP:.0%} of {of}: if no shorter "
                f"warmup works, raise {length} or set prepend_warmup = true",
            )


def _thresholds_that_only_fall(study: Study) -> Iterator[Advice]:
    """Advice on a clip_tensor at which the usual norm of a tensor never grows (clipping.py)."""
    for place, axis in _places(study, "clip_tensor").items():
        if ends(axis)[0] <= 1.0:
            yield advice_by(
                "R17",
                place,
                f"{axis_in_words(axis)}: at 1 or less the threshold of a tensor never rises; where "
                "its norms do, every update is clipped, a strange way of lowering the learning "
                "rate: give values above 1, as 1.05",
            )


def _decay_of_an_average(study: Study) -> Iterator[Advice]:
    for optimizer in filter(average_of, study.optimizers):
        axis = study.axes(optimizer)["decay"]
        if axis != ("constant",):
            yield advice_by(
                "S1",
                study.key_of(optimizer, "decay"),
                f"{axis_in_words(axis)} for {optimizer}, which evaluates an average that does the "
                f'work of a decay: give [space.optimizer.{optimizer}] decay = "constant"; a warmup '
                "may stay",
            )


# --- sampler and budget ---------------------------------------------------------------------------


def _grid_of_many_axes(study: Study) -> Iterator[Advice]:
    for group, count in shares(study, study.batch_sizes[0]).items():
        axes = free_axes(study, group)
        if study.sampling.is_grid and len(axes) > GRID_AXES:
            yield advice_by(
                "S2",
                "sampler",
                f"the grid of {group.optimizer} over {_all_of(axes)} takes {count} configurations "
                f"and tries few values of each: grids are for {GRID_AXES} axes at most; take "
                "halton",
            )


def _nothing_to_learn_from(study: Study) -> Iterator[Advice]:
    fewest = min(shares(study, study.batch_sizes[0]).values())
    if study.sampling.is_adaptive and fewest <= study.sampling.first:
        yield advice_by(
            "S2",
            "sampler",
            f"{study.sampler} learns nothing from {fewest} configurations of a group, as the "
            f"first {study.sampling.first} are Halton points: explore with halton, and exploit "
            "with more trials what that finds",
        )


def _too_small_for_adam(study: Study) -> Iterator[Advice]:
    for group, count in shares(study, study.batch_sizes[0]).items():
        for name, axis in free_axes(study, group).items():
            row = HYPERPARAMETERS.get(name)
            fewest = row.fewest_trials if row else 0
            if count < fewest:
                yield advice_by(
                    "S11",
                    study.key_of(group.optimizer, study.axis_name(group.optimizer, name)),
                    f"{axis_in_words(axis)} is tuned with only {count} configurations of a group: "
                    f"fix it, or give a group {fewest} or more",
                )


def _few_evaluations(study: Study) -> Iterator[Advice]:
    """Advice on few evaluations, unless nothing is tuned: then no best checkpoint decides."""
    tuned = any(free_axes(study, group) for group in study.groups(study.batch_sizes[0]))
    if tuned and study.evaluations + 1 < ENOUGH:  # the untrained model is evaluated, too
        yield advice_by(
            "S10",
            "evaluations",
            f"{study.evaluations} are too few: luck decides which is a trial's best, and the "
            f"shape of its curve cannot be judged; give {ENOUGH} or more",
        )


# --- fair comparisons -----------------------------------------------------------------------------


def _one_seed(study: Study) -> Iterator[Advice]:
    if study.scientific_names and study.most_seeds == 1:
        yield advice_by(
            "S9",
            "seeds",
            f"1, so a difference between values of {_all_of(study.scientific_names)} may be luck: "
            "give 3 or more, or train the best of each again with other seeds before anything is "
            "adopted",
        )


def _fixed_on_one_side(study: Study) -> Iterator[Advice]:
    for name in [name for name in COMMON if name not in study.scientific]:
        axes = {optimizer: study.axes(optimizer)[name] for optimizer in study.optimizers}
        tuned = [optimizer for optimizer, axis in axes.items() if not _is_fixed(axis)]
        needless = [one for one in axes if name == "decay" and average_of(one)]
        fixed = [optimizer for optimizer in axes if optimizer not in [*tuned, *needless]]
        for optimizer in fixed if tuned else ():
            yield advice_by(
                "S9",
                study.key_of(optimizer, name),
                f"{axis_in_words(axes[optimizer])} is fixed for {optimizer}, but tuned for "
                f"{_all_of(tuned)}: the side that is less tuned loses by that alone; tune it for "
                "all",
            )


def _coarse_on_one_side(study: Study) -> Iterator[Advice]:
    """Advice on a grid of base_lr that is much coarser for one optimizer than for another.

    An optimizer may well have more configurations for axes that are its own (S1).
    """
    if not study.sampling.is_grid or "base_lr" in study.scientific:
        return
    axes = _places(study, "base_lr")
    counts = {
        place: (axis.points or 0) if isinstance(axis, Range) else len(axis)
        for place, axis in axes.items()
    }
    most = max(counts.values())
    for place, count in counts.items():
        if 1 < count <= LESS_TUNED * most:
            yield advice_by(
                "S9",
                place,
                f"{count} values, but {most} for another optimizer: "
                "the side that is less tuned loses by that alone; give both equally many",
            )


def _fewer_on_one_side(study: Study) -> Iterator[Advice]:
    if study.trials is None:
        return
    counts = [*shares(study, study.batch_sizes[0]).values()]
    if min(counts) <= LESS_TUNED * max(counts):
        yield advice_by(
            "S9",
            "trials",
            f"{study.trials} gives some groups {min(counts)} configurations and others "
            f"{max(counts)}: give a multiple of {len(counts)}",
        )


# --- what needs results ---------------------------------------------------------------------------


def _borders(study: Study, trials: list[Trial]) -> Iterator[Advice]:
    drawn = on_axes(study, trials)
    for note in boundary_checks(drawn, study.ranges, study.scientific_names):
        rule = "S4" if note.kind == "expand" else "R6"
        yield Advice(
            rule, study.key_of(note.group.optimizer, note.axis), note.sentence.removesuffix(".")
        )


def _length_of_training(study: Study, trials: list[Trial]) -> Iterator[Advice]:
    for group, own in group_trials(trials, study.scientific_names).items():
        if note := checkpoint_note(own, study.objective):
            yield Advice("S8", study.length_key, f"{group.label}: {note}")


def _too_much_clipping(study: Study, trials: list[Trial]) -> Iterator[Advice]:
    for group, own in group_trials(trials, study.scientific_names).items():
        for best in rank_configurations(own)[:1]:
            counts_tensors = best.point.clip_tensor < math.inf  # it cuts most of them a little
            if best.clip_fraction > CLIP_TOO_MUCH and not counts_tensors:
                values = {name: best.point.values[name] for name in CLIPPING}
                used = {name: value for name, value in values.items() if value < math.inf}
                at = " and ".join(f"{name} {readable(value)}" for name, value in used.items())
                yield advice_by(
                    "R17",
                    study.key_of(group.optimizer, next(iter(used), "clip_norm")),
                    f"{group.label}: the best trial, {best.point.number}, clips "
                    f"{best.clip_fraction:.0%} of its updates at {at}, a strange way of lowering "
                    f"the learning rate: lower base_lr, and raise {' and '.join(used)}",
                )


def _clipped_before(study: Study, trials: list[Trial]) -> Iterator[Advice]:
    """Advice where somebody else clips first, so that neither norms nor clip_norm mean anything."""
    for group, own in group_trials(trials, study.scientific_names).items():
        for best in rank_configurations(own)[:1]:
            if said := clipped_before(best):
                yield advice_by(
                    "R15",
                    study.key_of(group.optimizer, "clip_norm"),
                    f"{group.label}: of the best trial, {best.point.number}, {said}; leave "
                    "clipping to the study",
                )


def _warmup_that_is_needed(study: Study, trials: list[Trial]) -> Iterator[Advice]:
    """Advice where a long warmup won, and no shorter one trained at its base_lr or above."""
    names = [name for name in study.scientific_names if name != "warmup_steps"]
    for group, own in group_trials(trials, names).items():
        steps = study.train_steps(group.batch_size)
        short = LONG_WARMUP * steps
        for best in rank_configurations(own)[:1]:
            shorter = [
                trial
                for trial in own
                if trial.point.warmup_steps <= short
                and trial.point.base_lr >= best.point.base_lr
                and trial.verdict.judged
            ]
            needed = len(shorter) >= BEST_FEW and all(trial.verdict.infeasible for trial in shorter)
            if best.point.warmup_steps > short and needed and not study.prepend_warmup:
                yield advice_by(
                    "R12",
                    study.length_key,
                    f"{group.label}: {steps} updates may be too few: the best trial needs "
                    f"a warmup of {best.point.warmup_steps} steps; with {short:g} or less, none "
                    f"of {len(shorter)} trials at its base_lr or above trained. Raise it, or set "
                    "prepend_warmup = true",
                )


OF_THE_FILE: tuple[Callable[[Study], Iterator[Advice]], ...] = (
    direction_of,
    _shared_base_lr,
    _base_lr_range,
    _batch_size_as_argument,
    _fixed_for_all_batch_sizes,
    _other_at_each_batch_size,
    _other_number_of_examples,
    _no_control,
    _warmup_spread,
    _long_warmup,
    _thresholds_that_only_fall,
    _decay_of_an_average,
    _grid_of_many_axes,
    _nothing_to_learn_from,
    _too_small_for_adam,
    _few_evaluations,
    _one_seed,
    _fixed_on_one_side,
    _coarse_on_one_side,
    _fewer_on_one_side,
)
OF_THE_RESULTS: tuple[Callable[[Study, list[Trial]], Iterator[Advice]], ...] = (
    _borders,
    _length_of_training,
    _too_much_clipping,
    _clipped_before,
    _warmup_that_is_needed,
)
