"""A trial equals the same point trained by a plain torch loop, alone or in a stack, whatever its
neighbours do.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from examples import parse

from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import learning_rates
from tunewright.search.train import loop
from tunewright.search.train.execution import Engine
from tunewright.search.train.loop import train
from tunewright.search.train.recorder import CHECK_EVERY
from tunewright.search.train.rows import Stack
from tunewright.search.trial import Point
from tunewright.search.workload.workload import load_workload

MODELS = "tunewright.models."
WORKLOADS = {
    "mlp": ("digits:mlp", {"width": 16}),
    "conv": ("digits:conv", {"width": 4}),
    "residual_mlp": ("residual_mlp:digits", {"width": 16, "depth": 2, "normalization": "post"}),
    "rezero": ("residual_mlp:digits", {"width": 16, "depth": 2, "rezero": True}),
    "wide_resnet": ("wide_resnet:digits", {}),
    "transformer": (
        "transformer:characters",
        {"d_model": 16, "layers": 1, "heads": 2, "context": 8},
    ),
    "diabetes": ("diabetes:mlp", {"width": 8}),
    "on_cue": ("on_cue:linear", {"cue_step": 10_000}),
}
LARGE = ("wide_resnet", "transformer")  # many seconds a test
# six rounds of CHECK_EVERY for the slowest
STEPS = {name: 120 if name == "wide_resnet" else 200 for name in WORKLOADS}
SIZES = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in WORKLOADS]
# A learning rate at which every rule trains without chaos, so that rounding is not amplified.
CALM = {"sgd": 0.05, "momentum": 0.005, "nesterov": 0.005, "lion": 1e-4}


@dataclasses.dataclass
class Double:
    """A workload in float64."""

    workload: object

    def __getattr__(self, name):
        return getattr(self.workload, name)

    def build_model(self, seed):
        return self.workload.build_model(seed).double()


@dataclasses.dataclass
class Smooth:
    """A workload with SiLU in the place of ReLU.

    At a kink rounding is not rounding: an input next to 0 takes the other side, and norms jump by
    1e-3 or more, as they do between a plain loop in float32 and the same loop in float64.
    """

    workload: object

    def __getattr__(self, name):
        return getattr(self.workload, name)

    def build_model(self, seed):
        model = self.workload.build_model(seed)
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.ReLU):
                    setattr(parent, name, torch.nn.SiLU())
        return model


def workload(name):
    path, arguments = WORKLOADS[name]
    return load_workload(MODELS + path, arguments)


def study(steps, **changes):
    return parse(
        max_train_steps=steps, objective="val_loss", space__warmup_steps=0, evaluations=2, **changes
    )


def points(optimizers=tuple(RULES), clip_norm=0.3, batch_size=16):
    return [
        Point(
            i,
            batch_size,
            name,
            CALM.get(name, 1e-3),
            warmup_steps=3,
            clip_norm=clip_norm,
            decay="cosine",
        )
        for i, name in enumerate(optimizers)
    ]


def engine(slots, compiled=False):
    return Engine(stacked=slots > 1, slots=slots, compiled=compiled)


def trained(a_study, a_workload, some_points, slots, compiled=False):
    result = {
        t.trial.point.number: t
        for t in train(a_study, a_workload, some_points, engine(slots, compiled))
    }
    assert len(result) == len(some_points)
    return [result[point.number] for point in some_points]


def plainly(work, optimizer, steps, dtype):
    """Losses, norms and the model of a plain loop at `points`."""
    (point,) = [point for point in points() if point.optimizer == optimizer]
    losses, norms, model = plain.train(
        work, point, RULES[optimizer].defaults, learning_rates(point, steps), dtype
    )
    return np.array(losses), np.array(norms), model


@functools.cache
def plainly_in_float64(name, optimizer, steps):
    """Losses, norms and last metrics."""
    work = Double(workload(name))
    losses, norms, model = plainly(work, optimizer, steps, torch.float64)
    with torch.no_grad():
        return (
            losses,
            norms,
            {metric: float(value) for metric, value in work.evaluate(model.eval()).items()},
        )


@functools.cache
def one_after_the_other(name, steps):
    return trained(study(steps), Double(workload(name)), points(), 1)


@pytest.mark.parametrize("slots", [1, 4, 7])
@pytest.mark.parametrize("name", SIZES)
def test_every_rule_equals_a_plain_float64_loop(name, slots):
    steps = STEPS[name]
    alone = one_after_the_other(name, steps)
    stack = trained(study(steps), Double(workload(name)), points(), slots) if slots > 1 else alone
    equals_a_plain_loop(name, steps, stack, alone)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("name", ["mlp", "wide_resnet", "transformer"])
def test_a_study_may_have_biases_and_norms_decay(name, slots):
    steps, work = 20, Double(workload(name))
    names = ("adamw", "lion", "muon", "gi_adamw")
    strong = [dataclasses.replace(p, settings={"weight_decay": 5.0}) for p in points(names)]
    found = [
        trained(study(steps, decay_vectors=vectors), work, strong, slots)
        for vectors in (False, True)
    ]
    for without, got in zip(*found, strict=True):
        point = got.trial.point
        own = {**RULES[point.optimizer].defaults, **point.settings}
        rates = learning_rates(point, steps)
        losses, norms, _ = plain.train(work, point, own, rates, torch.float64, decay_vectors=True)
        np.testing.assert_allclose(got.trial.curve.loss, losses, rtol=1e-9)
        np.testing.assert_allclose(got.trial.curve.grad_norm, norms, rtol=1e-9)
        assert not np.allclose(without.trial.curve.grad_norm, norms, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slots"), [("mlp", 4), ("wide_resnet", 3), ("transformer", 1)])
def test_compiled_every_rule_equals_a_plain_float64_loop(name, slots):
    steps = STEPS[name]
    compiled = trained(study(steps), Double(workload(name)), points(), slots, compiled=True)
    equals_a_plain_loop(name, steps, compiled, one_after_the_other(name, steps))


def equals_a_plain_loop(name, steps, some, alone):
    for got, lone in zip(some, alone, strict=True):
        losses, norms, metrics = plainly_in_float64(name, got.trial.point.optimizer, steps)
        np.testing.assert_allclose(got.trial.curve.loss, losses, rtol=1e-9)
        np.testing.assert_allclose(got.trial.curve.grad_norm, norms, rtol=1e-9)
        assert (got.trial.curve.grad_norm > got.trial.point.clip_norm).any()
        for metric, values in got.trial.curve.metrics.items():
            assert values[-1] == pytest.approx(metrics[metric], rel=1e-9)
        assert got.trial.verdict == lone.trial.verdict
        assert got.trial.best_step == lone.trial.best_step


@pytest.mark.parametrize("name", SIZES)
def test_float32_agrees_with_a_plain_loop_over_the_first_fifty_steps(name):
    steps, work = 50, Smooth(workload(name))
    # Lion's sign of what is next to 0 is rounding, and a parameter moves by it as by any other.
    rules = [rule for rule in RULES if rule != "lion"]
    for got in trained(study(steps), work, points(rules), 4):
        losses, norms, _ = plainly(work, got.trial.point.optimizer, steps, torch.float32)
        np.testing.assert_allclose(got.trial.curve.loss, losses, rtol=1e-5)
        np.testing.assert_allclose(got.trial.curve.grad_norm, norms, rtol=1e-5)


def followers():
    """Thresholds that follow the norms: alone, with a fixed one far above, with one that is the
    smaller at first; those of each tensor, alone and after all others.
    """
    momentum, adam, rmsprop, sgd = points(
        ("momentum", "adam", "rmsprop", "sgd"), clip_norm=math.inf
    )
    return [
        dataclasses.replace(momentum, clip_z=1.5),
        dataclasses.replace(adam, clip_z=2.0, clip_norm=100.0),
        dataclasses.replace(rmsprop, clip_z=1.0, clip_norm=1.0),
        sgd,
        dataclasses.replace(adam, number=6, clip_tensor=1.05),
        dataclasses.replace(momentum, number=7, clip_tensor=1.2, clip_z=2.5, clip_norm=1.0),
        *(
            dataclasses.replace(point, number=4 + i)
            for i, point in enumerate(points(("adam", "momentum")))
        ),
    ]


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("name", ["mlp", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_threshold_that_follows_the_norms_equals_a_plain_float64_loop(name, slots):
    """More points than slots: what refills a slot does not meet the norms of the one before."""
    steps, work = 200, Double(workload(name))
    for got in trained(study(steps), work, followers(), slots):
        point = got.trial.point
        own, etas = RULES[point.optimizer].defaults, learning_rates(point, steps)
        losses, norms, _ = plain.train(work, point, own, etas, torch.float64)
        np.testing.assert_allclose(got.trial.curve.loss, losses, rtol=1e-9)
        np.testing.assert_allclose(got.trial.curve.grad_norm, norms, rtol=1e-9)
        assert (got.trial.curve.tensors_clipped is None) == (point.clip_tensor == math.inf)
        if point.follows_norms:
            without = np.mean(got.trial.curve.grad_norm > point.clip_norm)
            assert without < got.trial.clip_fraction < 1


@pytest.mark.parametrize("slots", [1, 4])
def test_the_updates_counted_as_clipped_are_those_that_were(slots, monkeypatch):
    clipped = []

    def clip(stack, norm_K1, limit_K1):
        clipped.append((norm_K1 > limit_K1)[:, 0].tolist())
        original(stack, norm_K1, limit_K1)

    original = Stack.clip
    monkeypatch.setattr(Stack, "clip", clip)
    some = sorted(followers()[:4], key=lambda point: point.optimizer)  # the order of rows
    if slots == 1:
        some = [next(point for point in some if point.clip_z == 1.5)]
    for k, got in enumerate(trained(study(120), workload("mlp"), some, slots)):
        assert got.trial.clip_fraction == np.mean([row[k] for row in clipped])


@pytest.mark.parametrize("slots", [1, 2])
def test_the_share_of_clipped_tensors_is_that_of_the_gradients_which_became_smaller(
    slots, monkeypatch
):
    shares = []

    def clip_tensors(stack, gate):
        before = {name: rows.clone() for name, rows in stack._gradients.items()}
        found = original(stack, gate)
        changed = [
            (stack._gradients[name] != rows).flatten(1).any(dim=1) for name, rows in before.items()
        ]
        shares.append(torch.stack(changed).double().mean(dim=0).tolist())
        return found

    original = Stack.clip_tensors
    monkeypatch.setattr(Stack, "clip_tensors", clip_tensors)
    some = [
        dataclasses.replace(point, clip_tensor=1.05, clip_norm=math.inf)
        for point in points(("adam", "momentum"))
    ][:slots]
    for k, got in enumerate(trained(study(60), workload("mlp"), some, slots)):
        found = got.trial.curve.tensors_clipped
        np.testing.assert_allclose(found, [row[k] for row in shares], rtol=1e-6)
        globally = got.trial.curve.grad_norm[:25] > 1.0  # of all tensors, in the first updates
        np.testing.assert_array_equal(found[:25], globally)
        assert 0 < found[25:].mean() < 1
        assert got.trial.clip_fraction == np.mean(found)


def test_off_is_bit_identical_to_a_stack_in_which_no_threshold_follows_the_norms():
    some, a_study = followers(), study(60)
    off = [dataclasses.replace(point, clip_z=math.inf, clip_tensor=math.inf) for point in some]
    mixed, plainer = (trained(a_study, workload("mlp"), stack, 4) for stack in (some, off))
    for one, other in zip(mixed, plainer, strict=True):
        if not one.trial.point.follows_norms:
            assert one.trial == dataclasses.replace(other.trial, seconds=one.trial.seconds)
            assert all(
                torch.equal(one.checkpoint[name], other.checkpoint[name])
                for name in other.checkpoint
            )
        else:
            assert one.trial.curve != other.trial.curve


@pytest.mark.parametrize("clipping", [{}, {"clip_z": 1.5}, {"clip_tensor": 1.05}])
def test_neighbours_that_die_and_slots_that_refill_change_nothing(clipping):
    work, a_study = Double(workload("residual_mlp")), study(60)
    healthy = points(("momentum", "adam", "sgd", "rmsprop"))
    doomed = [
        dataclasses.replace(p, number=10 + i, base_lr=1e12, clip_norm=math.inf, warmup_steps=0)
        for i, p in enumerate(points(("sgd", "momentum", "nesterov")))
    ]
    other_seed = [dataclasses.replace(p, number=20 + i, seed=5) for i, p in enumerate(healthy[:2])]
    mixed = [
        doomed[0],
        healthy[0],
        doomed[1],
        healthy[1],
        other_seed[0],
        healthy[2],
        doomed[2],
        *healthy[3:],
    ]
    mixed += other_seed[1:]
    mixed = [dataclasses.replace(point, **clipping) for point in mixed]
    alone = {p.number: trained(a_study, work, [p], 1)[0] for p in mixed}
    for slots in (2, 3, len(mixed)):
        for got in trained(a_study, work, mixed, slots):
            want = alone[got.trial.point.number]
            assert got.trial.verdict.outcome == want.trial.verdict.outcome
            if got.trial.feasible:
                np.testing.assert_allclose(got.trial.curve.loss, want.trial.curve.loss, rtol=1e-9)
                np.testing.assert_array_equal(got.trial.curve.eval_step, want.trial.curve.eval_step)
                assert got.trial.best_step == want.trial.best_step
                for tensor, other in zip(
                    got.checkpoint.values(), want.checkpoint.values(), strict=True
                ):
                    torch.testing.assert_close(tensor, other, rtol=1e-8, atol=1e-10)
            else:
                assert got.trial.point.number in {point.number for point in doomed}
                assert len(got.trial.curve.loss) == len(want.trial.curve.loss)


@pytest.mark.parametrize("slots", [1, 3])
def test_the_same_points_give_the_same_numbers_to_the_last_bit(slots):
    work, a_study = workload("mlp"), study(40)
    first = trained(a_study, work, points(("adam", "momentum", "sgd")), slots)
    again = trained(a_study, work, points(("adam", "momentum", "sgd")), slots)
    for one, other in zip(first, again, strict=True):
        assert one.trial.curve == other.trial.curve


def test_evaluation_at_regular_steps_starts_with_the_untrained_model_and_ends_with_the_last():
    a_study = study(50, space__optimizer__adam__warmup_steps=5).model_copy(
        update={"evaluations": 4, "prepend_warmup": True}
    )
    (got,) = trained(a_study, workload("mlp"), [Point(0, 16, "adam", 1e-3, warmup_steps=5)], 1)
    curve = got.trial.curve
    assert curve.total_steps == len(curve.loss) == 55
    np.testing.assert_array_equal(curve.eval_step, [0, 13, 26, 39, 52, 55])
    assert set(curve.metrics) == {"val_error", "val_loss"}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "wide_resnet"])
def test_the_checkpoint_is_the_model_that_had_the_best_value(name, slots):
    work, a_study = workload(name), study(20)
    for got in trained(a_study, work, points(("momentum", "adam")), slots):
        model = work.build_model(0)
        model.load_state_dict(got.checkpoint)
        with torch.no_grad():
            again = float(work.evaluate(model.eval())["val_loss"])
        assert again == pytest.approx(got.trial.best_value, rel=1e-5)


def test_a_divergent_trial_stops_within_a_check_and_keeps_its_step():
    cue = load_workload(MODELS + "on_cue:linear", {"cue_step": 33, "kind": "nan"})
    (got,) = trained(study(400), cue, [Point(0, 16, "momentum", 0.05)], 1)
    assert got.trial.verdict.outcome == "non_finite"
    assert got.trial.verdict.onset_step == 33
    assert len(got.trial.curve.loss) == 34
    assert got.trial.curve.eval_step[-1] <= 33 + CHECK_EVERY


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trained(study(5), workload("mlp"), points(("adam",)), 1)
    assert torch.equal(torch.rand(4), expected)


def test_ten_steps_are_pinned():
    """Golden numbers: a change of the batches, the initialization, a rule or the schedule shows
    here.
    """
    (got,) = trained(study(100), workload("mlp"), points(("adam",), clip_norm=0.5)[:1], 1)
    curve = got.trial.curve
    pinned = json.loads((Path(__file__).parents[1] / "golden" / "ten_steps.json").read_text())
    np.testing.assert_allclose(curve.loss[:10], pinned["loss"], rtol=2e-5)
    np.testing.assert_allclose(curve.grad_norm[:10], pinned["grad_norm"], rtol=2e-5)


class Memory:
    """Keeps states in memory; interrupts training after some savings."""

    def __init__(self, savings):
        self.savings, self.states, self.restored = savings, {}, 0

    def begin(self, point):
        state = self.states.get(point.number)
        self.restored += state is not None
        return state

    def save(self, point, state):
        self.states[point.number] = state
        self.savings -= 1
        if self.savings == 0:
            raise KeyboardInterrupt

    is_leaving = False

    def all_saved(self):
        """Nothing: it stays."""

    def start_again(self, point, reason):
        raise AssertionError(reason)


class Dropout:
    def __init__(self, workload):
        self.workload = workload

    def __getattr__(self, name):
        return getattr(self.workload, name)

    def build_model(self, seed):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.2), self.workload.build_model(seed)
        )


@pytest.mark.parametrize("clipping", [{}, {"clip_z": 1.0}, {"clip_tensor": 1.05, "clip_z": 2.5}])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("wide_resnet", marks=pytest.mark.slow), "dropout"]
)
def test_an_interrupted_trial_goes_on_where_it_was_and_ends_bit_equal(
    name, slots, clipping, monkeypatch
):
    if name == "dropout" and slots > 1:
        pytest.skip("a model that draws random numbers trains alone")
    work = Dropout(workload("mlp")) if name == "dropout" else workload(name)
    a_study = study(40).model_copy(update={"evaluations": 8})
    some = [
        dataclasses.replace(point, **clipping) for point in points(("adam", "momentum", "rmsprop"))
    ]
    whole = trained(a_study, work, some, slots)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    memory = Memory(savings=5)
    finished = {}

    def go_on():
        for t in train(
            a_study,
            work,
            [p for p in some if p.number not in finished],
            engine(slots),
            keeper=memory,
        ):
            finished[t.trial.point.number] = t

    with pytest.raises(KeyboardInterrupt):
        go_on()
    go_on()
    assert memory.restored >= 1
    for want in whole:
        got = finished[want.trial.point.number]
        assert got.trial.curve == want.trial.curve
        assert all(
            torch.equal(got.checkpoint[key], tensor) for key, tensor in want.checkpoint.items()
        )


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    work, some = Double(workload("mlp")), points(("momentum", "adam"))
    for point in some:
        (whole,) = train(study(30), work, [point])
        (parts,) = train(study(30).model_copy(update={"accumulation": 4}), work, [point])
        np.testing.assert_allclose(parts.trial.curve.loss, whole.trial.curve.loss, rtol=1e-9)
        np.testing.assert_allclose(
            parts.trial.curve.grad_norm, whole.trial.curve.grad_norm, rtol=1e-9
        )


@pytest.mark.parametrize("slots", [1, 2])
def test_bfloat16_is_close_to_float32_and_not_equal(slots):
    some = points(("momentum", "adam"))
    exact = trained(study(20), workload("mlp"), some, slots)
    rounded = trained(
        study(20).model_copy(update={"precision": "bfloat16"}), workload("mlp"), some, slots
    )
    for one, other in zip(exact, rounded, strict=True):
        np.testing.assert_allclose(other.trial.curve.loss, one.trial.curve.loss, rtol=0.05)
        assert (other.trial.curve.loss != one.trial.curve.loss).all()
        assert all(tensor.dtype == torch.float32 for tensor in other.checkpoint.values())


@pytest.mark.parametrize(
    "name", ["mlp", "conv", pytest.param("wide_resnet", marks=pytest.mark.slow)]
)
def test_float32_numbers_do_not_depend_on_the_width_of_the_stack_to_the_last_bit(name):
    some, a_study = points(("adam", "momentum", "rmsprop", "sgd", "adam")), study(40)
    some = [
        dataclasses.replace(
            point, number=i, clip_z=(math.inf, 1.0)[i % 2], clip_tensor=(math.inf, 1.05)[i // 2 % 2]
        )
        for i, point in enumerate(some)
    ]
    wide = trained(a_study, workload(name), some, 5)
    for slots in (2, 3):
        for one, other in zip(
            wide, trained(a_study, workload(name), some[::-1], slots)[::-1], strict=True
        ):
            assert one.trial.curve == other.trial.curve


@pytest.mark.slow
def test_compiled_numbers_do_not_depend_on_the_neighbours_to_the_last_bit():
    """Whether they die, are others, or are not there at all."""
    some, a_study = points(("adam", "momentum", "rmsprop")), study(40)
    doomed = dataclasses.replace(
        some[1], number=9, base_lr=1e12, clip_norm=math.inf, warmup_steps=0
    )
    among = {
        t.trial.point.number: t.trial
        for t in trained(a_study, workload("mlp"), some, 3, compiled=True)
    }
    others = [doomed, dataclasses.replace(some[0], number=8, seed=5), some[1], some[2]]
    with_others = train(a_study, workload("mlp"), others, engine(3, compiled=True))
    (alone,) = train(a_study, workload("mlp"), some[:1], engine(3, compiled=True))
    found = [t.trial for t in (*with_others, alone) if t.trial.point.number in among]
    assert sorted(trial.point.number for trial in found) == [0, 1, 2]
    for trial in found:
        assert trial.curve == among[trial.point.number].curve


def test_a_run_stopped_after_n_updates_is_the_first_n_of_the_whole_schedule():
    whole = study(60).model_copy(update={"evaluations": 6})
    point = [Point(0, 16, "adam", 1e-3, warmup_steps=6, decay="cosine")]
    (full,), (short,) = (
        trained(one, workload("mlp"), point, 1)
        for one in (whole, whole.model_copy(update={"stop_after": 25}))
    )
    np.testing.assert_array_equal(short.trial.curve.loss, full.trial.curve.loss[:25])
    assert short.trial.curve.total_steps == 25
    np.testing.assert_array_equal(short.trial.curve.eval_step, [0, 10, 20, 25])
