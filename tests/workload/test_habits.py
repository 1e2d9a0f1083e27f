# ruff: noqa: NPY002  # the global generator is what many users draw from
"""What users do in workloads: modes, random numbers, batches, loaders, lazy modules; each equals a
plain loop.
"""

import collections
import copy
import dataclasses
import math
import random
import re
import sys

import numpy as np
import pytest
import torch
from examples import parse
from posted import work
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tunewright.search.errors import UserError
from tunewright.search.pool.inbox import read_inbox
from tunewright.search.pool.worker import Task
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.batches import Parts, examples, move_batch
from tunewright.search.workload.workload import check_workload

GENERATOR = torch.Generator().manual_seed(1)
X_N8 = torch.randn(70, 8, generator=GENERATOR, dtype=torch.float64)
Y_N1 = X_N8.sum(1, keepdim=True)
POINT = Point(0, 8, "sgd", 0.01, seed=3)
STEPS = 20


class Line:
    """A small regression in float64; cases change a part."""

    def build_model(self, seed):
        return nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(0, len(X_N8), (batch_size,), generator=generator)
            yield X_N8[rows], Y_N1[rows]

    def loss(self, model, batch):
        return functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model):
        return {"val_loss": functional.mse_loss(model(X_N8), Y_N1)}


def study(steps=STEPS, **changes):
    evaluated = {"objective": "val_loss", "evaluations": 4, "space__warmup_steps": 0}
    return parse(max_train_steps=steps, **evaluated, **changes)


def losses(workload, point=POINT, a_study=None, engine=ALONE):
    (got,) = train(a_study or study(), workload, [point], engine)
    return got.trial.curve.loss


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def plainly(workload, point=POINT, steps=STEPS):
    """A plain loop: the losses and the model."""
    seed_all(point.seed)
    model = workload.build_model(point.seed)
    batches = iter(workload.train_batches(point.batch_size, point.seed))
    found = []
    for step in range(steps):
        if step == 0 and not any(map(nn.parameter.is_lazy, model.parameters())):
            seed_all(point.seed)
        loss = workload.loss(model, next(batches))
        found.append(loss.item())
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= point.base_lr * parameter.grad
    return np.array(found), model


class Epochs(Line):
    """70 = 8 × 8 + 6: the last batch of an epoch has six examples."""

    count = 70

    def train_batches(self, batch_size, seed):
        data = TensorDataset(X_N8[: self.count], Y_N1[: self.count])
        loader = DataLoader(
            data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
        )
        while True:
            yield from loader


class One(Epochs):
    """The last batch has one example: three of four parts are empty."""

    count = 65


class TimeMajor(Line):
    """(T, B, F), and a short batch whose size is the number of features of none."""

    def train_batches(self, batch_size, seed):
        for x, y in Epochs().train_batches(batch_size, seed):
            yield (
                x.expand(5, *x.shape),
                y,
                [f"name {i}" for i in range(len(x))],
                None,
                x.numpy(),
                torch.tensor(2.0),
            )

    def loss(self, model, batch):
        x_TBF, y, names, nothing, x_BF, two = batch
        assert len(names) == len(x_BF) == len(y)
        assert nothing is None
        assert two.ndim == 0
        return functional.mse_loss(model(x_TBF.mean(0)), y)


@pytest.mark.parametrize("workload", [Epochs(), One(), TimeMajor()])
def test_accumulated_gradients_equal_those_of_the_whole_batch(workload):
    (got,) = train(study().model_copy(update={"accumulation": 4}), workload, [POINT])
    want, _ = plainly(workload)
    np.testing.assert_allclose(got.trial.curve.loss, want, rtol=1e-9)


def test_a_batch_that_cannot_be_cut_is_an_error():
    with pytest.raises(
        UserError, match=re.escape("no size 8 that its tensors share; found [7, 3]")
    ):
        list(Parts(2, 8)((torch.ones(7, 3),)))
    with pytest.raises(UserError, match="it holds Pair"):
        list(Parts(2, 8)((Pair(torch.ones(8), "a"), torch.ones(8))))


class Half(Line):
    def build_model(self, seed):
        return super().build_model(seed).half()

    def loss(self, model, batch):
        x, y = batch
        return functional.mse_loss(model(x.half()).float(), y.float()) + 1e5

    def evaluate(self, model):
        return {"val_loss": functional.mse_loss(model(X_N8.half()).float(), Y_N1.float())}


@pytest.mark.parametrize("slots", [1, 2])
def test_a_loss_above_the_largest_float16_is_finite(slots):
    (got,) = train(study(), Half(), [POINT], Engine(stacked=slots > 1, slots=slots))
    want, _ = plainly(Half())
    assert got.trial.verdict.outcome != "non_finite"
    np.testing.assert_allclose(got.trial.curve.loss, want, rtol=1e-6)
    assert {tensor.dtype for tensor in got.checkpoint.values()} == {torch.float16}


class Steep(Half):
    def loss(self, model, batch):
        return 7e3 * model(batch[0].half() * 8).float().sum()


def test_the_norm_of_float16_gradients_is_taken_in_float32():
    """Every element is below the largest float16, 65,504; the norm is not."""
    (got,) = train(study(1), Steep(), [POINT])
    assert math.isfinite(got.trial.curve.grad_norm[0])
    assert got.trial.curve.grad_norm[0] > 65_504


def test_adam_on_bfloat16_parameters_keeps_its_moments_in_float32():
    """β₂ = 0.999 would be 1 in bfloat16."""

    class Bfloat16(Line):
        def build_model(self, seed):
            return super().build_model(seed).bfloat16()

        def loss(self, model, batch):
            return functional.mse_loss(model(batch[0].bfloat16()).float(), batch[1].float())

        def evaluate(self, model):
            return {"val_loss": 1.0}

    point = dataclasses.replace(POINT, optimizer="adam", base_lr=0.05)
    rounded = losses(Bfloat16(), point, study(60))
    exact = losses(Line(), point, study(60))
    np.testing.assert_allclose(rounded[-10:].mean(), exact[-10:].mean(), rtol=0.2)


class Frozen(Line):
    """A BatchNorm that is kept in evaluation mode, one that is not, and dropout that is off."""

    def build_model(self, seed):
        layers = [
            nn.Linear(8, 4),
            nn.BatchNorm1d(4),
            nn.BatchNorm1d(4),
            nn.Dropout(0.5),
            nn.Linear(4, 1),
        ]
        model = nn.Sequential(*layers).double()
        model[1].eval()
        model[3].eval()
        return model

    def loss(self, model, batch):
        assert [module.training for module in model] == [True, False, True, False, True]
        return super().loss(model, batch)

    def evaluate(self, model):
        assert not any(module.training for module in model.modules())
        return {**super().evaluate(model), "mean": model[1].running_mean.abs().sum()}


@pytest.mark.parametrize("slots", [1, 2])
def test_each_submodule_keeps_its_mode(slots):
    (got,) = train(study(), Frozen(), [POINT], Engine(stacked=slots > 1, slots=slots))
    np.testing.assert_allclose(got.trial.curve.loss, plainly(Frozen())[0], rtol=1e-9)
    assert not got.trial.curve.metrics["mean"].any()


class Switching(Line):
    """Puts its dropout into evaluation mode after a while."""

    calls = 0

    def build_model(self, seed):
        self.calls = 0
        return nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == STEPS // 2:
            model[1].eval()
        return super().loss(model, batch)


def test_a_mode_that_the_loss_changes_holds_for_the_rest_of_its_trial():
    workload = Switching()
    np.testing.assert_allclose(losses(workload), plainly(Switching())[0], rtol=1e-9)
    second = []
    for got in train(study(), workload, [POINT, dataclasses.replace(POINT, number=1)]):
        workload.calls = 0
        second.append(got.trial.curve.loss)
    np.testing.assert_array_equal(*second)


class Noisy(Line):
    """Draws from Python's, NumPy's and torch's own generators in batches and loss."""

    def train_batches(self, batch_size, seed):
        while True:
            rows = np.random.randint(0, len(X_N8), batch_size)
            yield X_N8[rows] + random.random() / 10, Y_N1[rows]

    def loss(self, model, batch):
        return super().loss(model, batch) * (1 + 0.1 * torch.rand(()) + 0.1 * random.random())


def test_every_generator_is_seeded_with_the_trial_and_given_back():
    seed_all(7)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_all(7)
    some = [dataclasses.replace(POINT, number=i, seed=3 + i // 2) for i in range(4)]
    found = []
    for got in train(study(), Noisy(), some):
        found.append(got.trial.curve.loss)
        if len(found) == 2:
            # between two trials, too
            assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
            seed_all(11)
    np.testing.assert_allclose(found[0], plainly(Noisy())[0], rtol=1e-9)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    assert (found[0] != found[2]).all()


def test_random_numbers_of_the_process_forbid_stacking_and_a_worker_trains_alone(tmp_path):
    class GlobalOrder(Line):
        def train_batches(self, batch_size, seed):
            while True:
                rows = torch.randint(0, len(X_N8), (batch_size,))
                yield X_N8[rows], Y_N1[rows]

    some = [dataclasses.replace(POINT, number=i, seed=i) for i in range(3)]
    engine = Engine(stacked=True, slots=3)
    with pytest.raises(RuntimeError, match="each trial needs alone"):
        list(train(study(), GlobalOrder(), some, engine))
    sys.modules["habits_global"] = module = type(sys)("habits_global")
    module.make = GlobalOrder
    work(Task(study(workload="habits_global:make"), tmp_path, some, engine))
    found = {trial.point.number: trial.curve.loss for trial, _ in read_inbox(tmp_path)}
    for point in some:
        np.testing.assert_allclose(found[point.number], plainly(GlobalOrder(), point)[0], rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class Pair:
    x: torch.Tensor
    name: str


Named = collections.namedtuple("Named", "x y")


def test_only_tensors_are_moved():
    batch = {
        "pair": Pair(torch.ones(2), "a"),
        "named": Named(torch.ones(2), None),
        "rest": ["text", 3, 2.5, np.ones(2), torch.tensor(1)],
    }
    got = move_batch(batch, torch.device("meta"))
    assert got["pair"].x.is_meta
    assert got["pair"].name == "a"
    assert isinstance(got["named"], Named)
    assert got["named"].x.is_meta
    assert got["rest"][:3] == ["text", 3, 2.5]
    assert isinstance(got["rest"][3], np.ndarray)
    assert got["rest"][4].is_meta
    assert not batch["pair"].x.is_meta


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((None, torch.ones(8, 2), torch.ones(8)), 8),
        ((torch.ones(5, 8, 3), torch.ones(8, 1)), 8),
        ((torch.ones(5, 8), torch.ones(5, 8)), 8),
        ((torch.ones(7, 8), torch.ones(7)), 7),
        ((torch.tensor(1.0), torch.ones(8)), 8),
        ({"text": list("abcdefgh"), "y": np.ones(8)}, 8),
        ((torch.ones(6, 3), ["a"] * 6), 6),
        (Pair(torch.ones(8, 3), "a"), 8),
        ((torch.ones(8, 3), torch.ones(40, 4)), 8),
    ],
)
def test_examples_are_counted_by_any_leaf(batch, count):
    assert examples(batch, 8) == count


def test_a_workload_may_state_how_many_examples_a_batch_holds():
    class Packed(Line):
        def train_batches(self, batch_size, seed):
            while True:
                yield X_N8[: 3 * batch_size], Y_N1[: 3 * batch_size]

    with pytest.raises(
        UserError, match=r"a batch of 24 examples. If it is full, .* method examples\(batch\)"
    ):
        check_workload(Packed(), "val_loss", [8])
    stating = Packed()
    stating.examples = lambda batch: len(batch[0]) // 3
    check_workload(stating, "val_loss", [8])


class Texts(Line):
    def train_batches(self, batch_size, seed):
        for x, y in super().train_batches(batch_size, seed):
            yield ["name"] * batch_size, None, x, y

    def loss(self, model, batch):
        assert batch[0] == ["name"] * 8
        return super().loss(model, batch[2:])


def test_text_beside_tensors_trains_and_is_not_stacked():
    check_workload(Texts(), "val_loss", [8])
    np.testing.assert_allclose(losses(Texts()), plainly(Texts())[0], rtol=1e-9)
    with pytest.raises(TypeError, match="more than tensors: NoneType, str"):
        losses(Texts(), engine=Engine(stacked=True, slots=2))


class Returned(Line):
    """Returns what it is made of for each seed."""

    def __init__(self, make):
        self.make = make

    def train_batches(self, batch_size, seed):
        return self.make(batch_size, seed)


def loader(batch_size, seed, count=70, **options):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        TensorDataset(X_N8[:count], Y_N1[:count]), batch_size, generator=generator, **options
    )


def test_a_loader_starts_again_after_each_epoch():
    check_workload(
        Returned(lambda b, seed: loader(b, seed, shuffle=True)),
        "val_loss",
        [8],
        steps=lambda size: STEPS,
    )
    returned = losses(Returned(lambda b, seed: loader(b, seed, shuffle=True)))
    np.testing.assert_allclose(returned, plainly(Epochs())[0], rtol=1e-9)


def spinning(batch_size, seed):
    while True:
        order = torch.randperm(5)
        for start in range(0, 5 - batch_size + 1, batch_size):
            yield X_N8[order[start : start + batch_size]]


def around_nothing(batch_size, seed):
    while True:
        yield from loader(batch_size, seed, count=5, drop_last=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b, seed: iter(loader(b, seed)), "ended after 9 batches, and must be endless"),
        (
            lambda b, seed: (batch for batch in loader(b, seed)),
            "ended after 9 batches, and must be endless",
        ),
        (lambda b, seed: [], "has no batch: are there fewer than 8 training examples"),
        (lambda b, seed: loader(b, seed, count=5, drop_last=True), "has no batch"),
        (spinning, "has no batch"),
        (around_nothing, "has no batch"),
    ],
)
def test_batches_that_end_or_are_not_there_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        check_workload(Returned(make), "val_loss", [8], steps=lambda size: STEPS)


def test_a_generator_that_skips_most_examples_is_not_stopped():
    def filtering(batch_size, seed):
        kept = []
        for number in range(10**9):
            if number % 40:
                continue
            kept.append(number % len(X_N8))
            if len(kept) == batch_size:
                yield X_N8[kept], Y_N1[kept]
                kept = []

    check_workload(Returned(filtering), "val_loss", [8])


class Lazy(Line):
    """Dropout before a lazy module draws random numbers before it; a normalization must not see the
    first batch.
    """

    def build_model(self, seed):
        layers = [
            nn.LazyLinear(8),
            nn.Dropout(0.2),
            nn.LazyBatchNorm1d(),
            nn.BatchNorm1d(8),
            nn.LazyLinear(1),
        ]
        return nn.Sequential(*layers).double()


def test_lazy_modules_get_the_numbers_of_a_plain_loop():
    check_workload(Lazy(), "val_loss", [8])
    (got,) = train(study(), Lazy(), [POINT])
    seed_all(POINT.seed)
    first = Lazy().build_model(POINT.seed)
    batches = Lazy().train_batches(8, POINT.seed)
    Line().loss(first, next(batches))
    seed_all(POINT.seed)

    class Shaped(Line):
        def build_model(self, seed):
            model = copy.deepcopy(first)
            for module in model:
                if isinstance(module, nn.BatchNorm1d):
                    module.reset_running_stats()
            return model

    np.testing.assert_allclose(got.trial.curve.loss, plainly(Shaped())[0], rtol=1e-9)
    for name, tensor in got.checkpoint.items():
        assert tensor.shape == first.state_dict()[name].shape


def test_a_lazy_module_that_the_loss_does_not_use_is_named():
    class Unused(Line):
        def build_model(self, seed):
            model = super().build_model(seed)
            model.add_module("other", nn.LazyLinear(3))
            return model

        def loss(self, model, batch):
            return functional.mse_loss(model[:3](batch[0]), batch[1])

    with pytest.raises(UserError, match=r"does not give .* a shape: other\.weight, other\.bias"):
        check_workload(Unused(), "val_loss", [8])


class Measured(Line):
    """Returns other metrics at its third evaluation."""

    def __init__(self, **third):
        self.third, self.calls = third, 0

    def evaluate(self, model):
        self.calls += 1
        metrics = super().evaluate(model)
        return self.third if self.calls == 3 else metrics


def test_an_objective_that_is_missing_once_is_nan_there_and_said():
    (got,) = train(study(), Measured(other=1.0), [POINT])
    values = got.trial.curve.metrics["val_loss"]
    assert np.isnan(values).tolist() == [False, False, True, False, False]
    assert np.isfinite(got.trial.curve.metrics["other"]).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert got.trial.best_value == np.nanmin(values)
    assert "val_loss was missing in 1 of 5 evaluations" in got.trial.verdict.evidence


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.zeros(3, 3), "an array of shape (3, 3)"),
        (np.zeros(2), "an array of shape (2,)"),
        ("ok", "'ok'"),
        ({"a": 1.0}, "{'a': 1.0}"),
        (None, "None"),
    ],
)
def test_a_metric_that_is_no_number_is_refused(value, shown):
    class Wrong(Line):
        def evaluate(self, model):
            return {**super().evaluate(model), "odd": value}

    message = re.escape(f"evaluate() returns {shown} as 'odd'; every metric must be one number")
    with pytest.raises(UserError, match=message):
        check_workload(Wrong(), "val_loss", [8])
    with pytest.raises(UserError, match=message):
        list(train(study(), Measured(val_loss=1.0, odd=value), [POINT]))


def test_every_kind_of_number_is_a_metric():
    class Right(Line):
        def evaluate(self, model):
            others = {"a": True, "b": np.float32(2), "c": torch.ones(1), "d": np.ones(()), "e": 3}
            return {**super().evaluate(model), **others}

    (got,) = train(study(), Right(), [POINT])
    assert [got.trial.curve.metrics[name][0] for name in "abcde"] == [1, 2, 1, 1, 3]


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(), SystemExit("enough"), Stop("now")])
def test_an_exception_of_any_kind_is_the_crash_of_its_trial(error, tmp_path):
    class Leaving(Line):
        def loss(self, model, batch):
            if torch.initial_seed() == 1:
                raise error
            return super().loss(model, batch)

    sys.modules["habits_leaving"] = module = type(sys)("habits_leaving")
    module.make = Leaving
    some = [dataclasses.replace(POINT, number=i, seed=i) for i in range(3)]
    work(Task(study(workload="habits_leaving:make"), tmp_path, some, ALONE))
    found = {trial.point.number: trial.verdict for trial, _ in read_inbox(tmp_path)}
    assert [found[i].crashed for i in range(3)] == [False, True, False]
    assert found[1].evidence == ": ".join(filter(None, [type(error).__name__, str(error)]))
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        work(Task(study(workload="habits_leaving:make"), tmp_path, some[1:2], ALONE))


@pytest.mark.parametrize("items", [list, tuple])
@pytest.mark.parametrize("each", [lambda x: x, lambda x: {"box": x}])
def test_a_list_of_each_examples_tensors_is_not_cut(items, each):
    """A part of one target beside the whole list would be broadcast, without a word."""
    batch = items(each(torch.ones(5)) for _ in range(4)), torch.ones(4, 1)
    with pytest.raises(UserError, match="a list with the tensors of each example"):
        list(Parts(4, 4)(batch))


class Scripted(Line):
    def build_model(self, seed):
        return nn.Sequential(torch.jit.script(nn.Linear(8, 4)), nn.Tanh(), nn.Linear(4, 1)).double()


class WhollyScripted(Line):
    def build_model(self, seed):
        return torch.jit.script(super().build_model(seed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workload", [Scripted(), WhollyScripted()])
def test_torchscript_is_trained(workload):
    want, _ = plainly(workload)
    np.testing.assert_allclose(losses(workload), want, rtol=1e-9)
