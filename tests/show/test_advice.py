"""Advice names the rule that a study breaks, and is silent about a study that just does not break
it.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import parse

from tunewright.search.show.advice import Advice, advise
from tunewright.search.show.chance import advise_on_chance
from tunewright.search.study.study import Study, load_study
from tunewright.search.trial import Curve, Outcome, Point, Trial, Verdict

STUDIES = Path(__file__).parents[2] / "studies"
STEPS = 1000
MOMENTUM, ADAM = "space__optimizer__momentum", "space__optimizer__adam"
WIDE = {"low": 1e-5, "high": 10.0, "log": True}
ONE_AXIS = {"space__warmup_steps": 0, "space__clip_norm": math.inf}
GRID = {
    "sampler": "grid",
    "trials": ...,
    f"{MOMENTUM}__base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 10},
    f"{ADAM}__base_lr": {"low": 1e-5, "high": 0.1, "log": True, "points": 10},
}
ADAMW = {
    MOMENTUM: ...,
    ADAM: ...,
    "space__optimizer__adamw__base_lr": WIDE,
    "batch_sizes": [32, 64],
}
ONLY_ADAM = {MOMENTUM: ...}
FAR = {"max_train_steps": ..., "max_train_examples": 64_000, "batch_sizes": [32, 128]}
LONG = {"max_train_steps": ..., "max_train_examples": 64_000}
SCHEDULE_FREE = {
    "space__optimizer__schedule_free_adamw__base_lr": {"low": 1e-4, "high": 1.0, "log": True}
}
ITS_DECAY = "space__optimizer__schedule_free_adamw__decay"
ADAMW_FAR = {
    "train_examples": 1400,
    MOMENTUM: ...,
    ADAM: ...,
    "space__optimizer__adamw__base_lr": WIDE,
}


def clean(**changes: object) -> Study:
    """Two optimizers, tuned alike over every axis that they share, at one batch size."""
    return parse(**{"batch_sizes": [32], "trials": 40, f"{ADAM}__warmup_steps": ...} | changes)


def broken(study: Study, *trials: Trial) -> set[tuple[str, str]]:
    return {(one.rule, one.place) for one in advise(study, trials)}


def test_a_clean_study_gets_no_advice():
    assert advise(clean()) == []


CASES = {
    "one range for two kinds of steps": (
        ("S1", "space.base_lr"),
        {"space__base_lr": WIDE, f"{MOMENTUM}__base_lr": ..., f"{ADAM}__base_lr": ...},
        {"space__base_lr": WIDE, f"{ADAM}__base_lr": ...},
    ),
    "and for one kind of steps": (
        ("S1", "space.base_lr"),
        {"space__base_lr": WIDE, f"{MOMENTUM}__base_lr": ..., "space__optimizer__sgd": {}},
        {"space__base_lr": WIDE, f"{MOMENTUM}__base_lr": ..., "space__optimizer__nesterov": {}},
    ),
    "a threshold that only falls": (
        ("R17", "space.clip_tensor"),
        {"space__clip_tensor": [1.0, math.inf]},
        {"space__clip_tensor": [1.05, math.inf]},
    ),
    "a decay of what evaluates an average": (
        ("S1", "space.decay"),
        {**SCHEDULE_FREE, "space__decay": ["constant", "cosine"]},
        {**SCHEDULE_FREE},
        {**SCHEDULE_FREE, "space__decay": ["constant", "cosine"], ITS_DECAY: "constant"},
        {"space__decay": ["constant", "cosine"]},
    ),
    "of its own": (
        ("S1", "space.optimizer.schedule_free_adamw.decay"),
        {**SCHEDULE_FREE, ITS_DECAY: "linear"},
    ),
    "base_lr on a linear axis": (
        ("R6", "space.optimizer.adam.base_lr"),
        {f"{ADAM}__base_lr": {"low": 0.01, "high": 0.1}},
        {f"{ADAM}__base_lr": {"low": 0.02, "high": 0.1}, "sampler": "tpe"},
    ),
    "a narrow base_lr": (
        ("R3", "space.optimizer.adam.base_lr"),
        {f"{ADAM}__base_lr": {"low": 0.02, "high": 0.1, "log": True}},
        {f"{ADAM}__base_lr": {"low": 0.00001, "high": 0.0001, "log": True}},
    ),
    "a narrow list of base_lr": (
        ("R3", "space.optimizer.adam.base_lr"),
        {f"{ADAM}__base_lr": [0.1, 0.2, 0.5]},
        {
            f"{ADAM}__base_lr": [0.1, 0.2, 0.5],
            f"{MOMENTUM}__base_lr": [1, 2, 5],
            "scientific": ["base_lr"],
            "seeds": 3,
        },
    ),
    "batch size as an argument": (
        ("R20", "workload_args.batch_size"),
        {"workload_args": {"batch_size": 64}},
        {"workload_args": {"eval_batch_size": 64}},
    ),
    "one momentum for two batch sizes": (
        ("R20", "space.optimizer.momentum.momentum"),
        {"batch_sizes": [32, 64]},
        {"batch_sizes": [32, 64], f"{MOMENTUM}__momentum": {"low": 0.8, "high": 0.99}},
    ),
    "one weight decay for two batch sizes": (
        ("R20", "space.optimizer.adamw.weight_decay"),
        ADAMW,
        ADAMW | {"space__optimizer__adamw__weight_decay": 0.0},
    ),
    "one base_lr for two batch sizes": (
        ("R20", "space.optimizer.adam.base_lr"),
        {"batch_sizes": [32, 64], MOMENTUM: ..., f"{ADAM}__base_lr": 0.001},
        {MOMENTUM: ..., f"{ADAM}__base_lr": 0.001},
    ),
    "as many updates at batch sizes four times apart": (
        ("R20", "max_train_steps"),
        {"batch_sizes": [32, 128], **ONLY_ADAM},
        {"batch_sizes": [32, 127], **ONLY_ADAM},
        LONG | {"batch_sizes": [32, 128], **ONLY_ADAM},
    ),
    "beta2 at batch sizes four times apart": (
        ("R20", "space.optimizer.adam.beta2"),
        FAR | ONLY_ADAM | {f"{ADAM}__beta2": 0.99},
        FAR | ONLY_ADAM | {f"{ADAM}__beta2": {"half_life_examples": 1e4}},
        FAR | ONLY_ADAM,
        FAR | ONLY_ADAM | {"batch_sizes": [32, 127], f"{ADAM}__beta2": 0.99},
    ),
    "the default of beta2 at batch sizes ten times apart": (
        ("R20", "space.optimizer.adam.beta2"),
        FAR | ONLY_ADAM | {"batch_sizes": [32, 320]},
        FAR | ONLY_ADAM | {"batch_sizes": [32, 319]},
    ),
    "a range of weight decays at batch sizes four times apart": (
        ("R20", "space.optimizer.adamw.weight_decay"),
        FAR | ADAMW_FAR | {"space__optimizer__adamw__weight_decay": {"low": 0.1, "high": 1.0}},
        FAR | ADAMW_FAR | {"space__optimizer__adamw__weight_decay": {"timescale_epochs": [1, 5]}},
        FAR
        | {MOMENTUM: ..., ADAM: ...}
        | {
            "space__optimizer": {
                "torch.optim.SGD": {"base_lr": WIDE, "weight_decay": {"low": 0.1, "high": 1.0}}
            }
        },
    ),
    "a longer warmup than a twentieth at the largest batch size": (
        ("R12", "space.warmup_steps"),
        FAR | {"batch_sizes": [32, 64], "space__warmup_steps": 51} | ONLY_ADAM,
        FAR | {"batch_sizes": [32, 64], "space__warmup_steps": 50} | ONLY_ADAM,
    ),
    "warmup without none": (
        ("R9", "space.warmup_steps"),
        {"space__warmup_steps": [10, 100]},
        {"space__warmup_steps": [0, 10, 100]},
    ),
    "clipping without none": (
        ("S9", "space.clip_norm"),
        {"space__clip_norm": [10.0, 1.0]},
        {"space__clip_norm": 1.0},
    ),
    "warmup of one order of magnitude": (
        ("R10", "space.warmup_steps"),
        {"space__warmup_steps": [0, 50, 100]},
        {"space__warmup_steps": [0, 100]},
    ),
    "warmup on a linear axis": (
        ("R10", "space.warmup_steps"),
        {"space__warmup_steps": {"low": 0, "high": 100}},
        {"space__warmup_steps": {"low": 10, "high": 100, "log": True}},
    ),
    "training too short for orders of magnitude": (
        ("R10", "space.warmup_steps"),
        {"space__warmup_steps": [0, 2, 9], "max_train_steps": 100},
        {"space__warmup_steps": [0, 2, 9], "max_train_steps": 90},
    ),
    "a long warmup": (
        ("R12", "space.warmup_steps"),
        {"space__warmup_steps": 51},
        {"space__warmup_steps": 50},
    ),
    "a long warmup that adds to training": (
        ("R12", "space.warmup_steps"),
        {"space__warmup_steps": 51},
        {"space__warmup_steps": 51, "prepend_warmup": True},
    ),
    "a grid over three axes": (
        ("S2", "sampler"),
        GRID,
        GRID | {"space__warmup_steps": 0},
    ),
    "an adaptive sampler that never learns": (
        ("S2", "sampler"),
        {"sampler": "tpe", "trials": 16},
        {"sampler": "tpe", "trials": 18},
    ),
    "beta1 with nine configurations": (
        ("S11", "space.optimizer.adam.beta1"),
        {f"{ADAM}__beta1": {"low": 0.8, "high": 0.99}, "trials": 18},
        {f"{ADAM}__beta1": {"low": 0.8, "high": 0.99}, "trials": 20},
    ),
    "epsilon with 25": (
        ("S11", "space.optimizer.adam.epsilon"),
        {f"{ADAM}__epsilon": [1e-8, 1e-4], "trials": 50},
        {f"{ADAM}__epsilon": [1e-8, 1e-4], "trials": 52},
    ),
    "beta2 with 49": (
        ("S11", "space.optimizer.adam.beta2"),
        {f"{ADAM}__beta2": [0.99, 0.999], "trials": 98},
        {f"{ADAM}__beta2": [0.99, 0.999], "trials": 100},
    ),
    "eight evaluations": (
        ("S10", "evaluations"),
        {"evaluations": 8},
        {"evaluations": 9},
    ),
    "eight evaluations where nothing is tuned": (
        ("S10", "evaluations"),
        {"evaluations": 8},
        {"evaluations": 8, f"{MOMENTUM}__base_lr": 0.1, f"{ADAM}__base_lr": 0.001} | ONE_AXIS,
    ),
    "a comparison with one seed": (
        ("S9", "seeds"),
        {"workload_args": {"depth": [2, 4]}},
        {"workload_args": {"depth": [2, 4]}, "seeds": 2},
    ),
    "an axis tuned on one side": (
        ("S9", "space.optimizer.adam.warmup_steps"),
        {f"{ADAM}__warmup_steps": 0},
        {"space__warmup_steps": 0},
    ),
    "a coarser grid on one side": (
        ("S9", "space.optimizer.adam.base_lr"),
        GRID | ONE_AXIS | {f"{ADAM}__base_lr": {**WIDE, "points": 5}},
        GRID | ONE_AXIS | {f"{ADAM}__base_lr": {**WIDE, "points": 6}},
    ),
    "half as many trials on one side": (
        ("S9", "trials"),
        {"trials": 3},
        {"trials": 5},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_that_breaks_a_rule_is_named_with_it_alone_and_one_that_just_does_not_is_not(case):
    expected, breaks, *near_misses = case
    assert broken(clean(**breaks)) == {expected}
    for near_miss in near_misses:
        assert broken(clean(**near_miss)) == set()


def test_a_sentence_has_the_value_found_what_to_do_and_the_rule():
    assert advise(clean(batch_sizes=[32, 64, 96])) == [
        Advice(
            "R20",
            "space.optimizer.momentum.momentum",
            "fixed at 0.9 for batch sizes 32, 64 and 96, each of which has its own best value: "
            "tune it, or do not compare the batch sizes with one another (R20)",
        )
    ]


@pytest.mark.parametrize("breaks", [case[1] for case in CASES.values()], ids=CASES)
def test_every_sentence_ends_with_its_rule(breaks):
    assert all(one.sentence.endswith(f"({one.rule})") for one in advise(clean(**breaks)))


def test_what_several_optimizers_share_is_said_once():
    assert len(advise(clean(space__clip_norm=[10.0, 1.0]))) == 1


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_files_of_shipped_studies_break_no_rule_but_what_they_mean_to(path):
    momentum, steps = "space.optimizer.momentum.momentum", "max_train_steps"
    decay, beta2 = "space.optimizer.adamw.weight_decay", "space.optimizer.adamw.beta2"
    scaled = {("R20", name) for name in (momentum, steps, decay, beta2)}
    known = {
        "digits_mlp": {("R20", momentum), ("R20", steps)},
        "scaling_digits": scaled,
        "scaling_transformer": scaled,
        # a tenth of its 400 updates is no power of ten
        "optimizers_transformer": {
            ("R20", "space.optimizer.muon.momentum"),
            ("R20", steps),
            ("R20", decay),
            ("R10", "space.warmup_steps"),
        },
    }
    assert broken(load_study(path)) == known.get(path.stem, set())


# --- results --------------------------------------------------------------------------------------


def trial(
    base_lr: float,
    value: float,
    outcome: Outcome = "feasible",
    *,
    at: float = 0.5,
    clip_fraction: float = 0.0,
    **point: float,
) -> Trial:
    """A finished trial whose best checkpoint lies at a share of training; its objective never stops
    falling.
    """
    steps = np.linspace(0, STEPS, 51).astype(np.int64)
    falling = {"val_error": np.linspace(1.0, value, 51)}
    return Trial(
        point=Point(number=0, batch_size=32, optimizer="momentum", base_lr=base_lr, **point),
        verdict=Verdict(outcome, "none" if outcome == "feasible" else "early", math.inf, ""),
        curve=Curve(np.empty(0), np.empty(0), steps, falling, STEPS),
        best_value=value,
        best_step=round(at * STEPS),
        initial_value=1.0,
        last_loss=1.0,
        clip_fraction=clip_fraction,
        seconds=1.0,
    )


def four(*base_lrs: float, **measured: float) -> list[Trial]:
    """Four trials, the last but one the best."""
    values = (0.3, 0.2, 0.1, 0.2)
    return [
        trial(base_lr, value, **measured) for base_lr, value in zip(base_lrs, values, strict=True)
    ]


def with_norms(curve: Curve, clipped_at: float) -> Curve:
    """A curve whose norms, from 0.2 to 0.4, somebody clipped before they were recorded."""
    norms = np.linspace(0.2, 0.4, STEPS).clip(max=clipped_at)
    return replace(curve, loss=np.ones(STEPS), grad_norm=norms)


INSIDE = four(0.01, 0.03, 0.1, 0.3)
LONG = trial(0.5, 0.05, warmup_steps=51)
SHORT = [
    trial(0.5, 0.9, "diverged", warmup_steps=steps, clip_norm=clip)
    for steps, clip in ((0, 1), (50, 1), (50, 9))
]
RESULTS = {
    "the best at the border": (
        ("S4", "space.optimizer.momentum.base_lr"),
        four(0.01, 0.1, 9.0, 1.0),
        INSIDE,
    ),
    "the best at the edge of instability": (
        ("R6", "space.optimizer.momentum.base_lr"),
        [*INSIDE, trial(0.4, 0.9, "diverged")],
        [*INSIDE, trial(0.41, 0.9, "diverged")],
    ),
    "far too long": (
        ("S8", "max_train_steps"),
        four(0.01, 0.03, 0.1, 0.3, at=0.1),
        four(0.01, 0.03, 0.1, 0.3, at=0.12),
    ),
    "too short": (
        ("S8", "max_train_steps"),
        four(0.01, 0.03, 0.1, 0.3, at=0.75),
        four(0.01, 0.03, 0.1, 0.3, at=0.74),
    ),
    "clips most updates": (
        ("R17", "space.clip_norm"),
        four(0.01, 0.03, 0.1, 0.3, clip_norm=1.0, clip_fraction=0.51),
        four(0.01, 0.03, 0.1, 0.3, clip_norm=1.0, clip_fraction=0.5),
    ),
    "clips most updates at a threshold that follows the norms": (
        ("R17", "space.optimizer.momentum.clip_z"),
        four(0.01, 0.03, 0.1, 0.3, clip_z=1.0, clip_fraction=0.51),
        # tensors are counted where clip_tensor acts, most of which it cuts a little
        four(0.01, 0.03, 0.1, 0.3, clip_z=1.0, clip_tensor=1.05, clip_fraction=0.9),
    ),
    "clipped before the norms were seen": (
        ("R15", "space.clip_norm"),
        [replace(one, curve=with_norms(one.curve, 0.125)) for one in INSIDE],
        [replace(one, curve=with_norms(one.curve, 0.5)) for one in INSIDE],
    ),
    "needs a long warmup": (
        ("R12", "max_train_steps"),
        [*INSIDE, LONG, *SHORT],
        [*INSIDE, LONG, *SHORT, trial(0.5, 0.2, warmup_steps=50)],
    ),
    "needs a long warmup, by three trials": (
        ("R12", "max_train_steps"),
        [*INSIDE, LONG, *SHORT],
        [*INSIDE, LONG, *SHORT[1:]],
    ),
}


@pytest.mark.parametrize(("expected", "breaks", "near_miss"), RESULTS.values(), ids=RESULTS)
def test_results_that_show_a_rule_broken_are_named_with_it_alone(expected, breaks, near_miss):
    [one] = advise(clean(), breaks)
    assert (one.rule, one.place) == expected
    assert expected[0] in one.sentence.rsplit("(", 1)[1]
    assert one.sentence.startswith("batch size 32, momentum: ")
    assert advise(clean(), near_miss) == []


def test_a_prepended_warmup_may_be_long():
    assert broken(clean(prepend_warmup=True), *INSIDE, LONG, *SHORT) == set()


def test_crashed_trials_show_nothing():
    assert advise(clean(), [Trial.from_crash(INSIDE[0].point, "killed")]) == []


# --- the workload's chance_loss


class _Labelled:
    """Labels of ten kinds, of which the first has a share of its own."""

    def __init__(self, first, chance=None):
        self.first = first
        if chance is not None:
            self.chance_loss = chance

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            kinds = torch.randint(0, 10, (batch_size,), generator=generator)
            often = torch.rand(batch_size, generator=generator) < self.first
            yield torch.zeros(batch_size, 3), torch.where(often, 0, kinds)


def of_workload(workload, **changes):
    return [one.sentence for one in advise_on_chance(clean(**changes), workload)]


def test_without_chance_loss_small_batches_make_verdicts_uncertain():
    [sentence] = of_workload(_Labelled(0.0), batch_sizes=[8])
    assert "states no chance_loss" in sentence
    assert "batch size 8" in sentence
    assert of_workload(_Labelled(0.0), batch_sizes=[64]) == []
    assert of_workload(_Labelled(0.0), batch_sizes=[8], divergence=False) == []


def test_a_chance_loss_of_equally_frequent_labels_is_too_high_where_they_are_not():
    assert of_workload(_Labelled(0.0, math.log(10))) == []
    [sentence] = of_workload(_Labelled(0.7, math.log(10)))
    assert "chance_loss = 2.3 is that of 10 labels" in sentence
    assert "their entropy is 1.17" in sentence
    assert of_workload(_Labelled(0.7, 1.18)) == []
