"""Small models and habits that a user may bring, and the plain loop that their training must equal.

Each entry is a workload in float64. `ZOO` has them by name; `make(entry)` is the factory of a
study file.
"""

import copy
import itertools
import math
import random
from dataclasses import dataclass, field

import numpy as np
import plain
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import learning_rates

STEPS, EVERY = 30, 6  # updates of a trial, and those between two evaluations
FEATURES, EXAMPLES, TRAINED = 6, 64, 48
D = torch.float64
ALL = ("adam", "momentum", "sgd", "adamw", "muon")
SKIPS = ("momentum", "sgd")  # rules of which a parameter without a gradient feels nothing


@dataclass(frozen=True)
class Entry:
    """A workload, and what may come of it.

    refusal     a pattern of the sentence that may refuse it; empty: it must train
    optimizers  update rules of its points
    seeded      its evaluation draws random numbers: its metrics are the trial's own
    """

    workload: type
    refusal: str = ""
    optimizers: tuple[str, ...] = ALL
    seeded: bool = False


ZOO: dict[str, Entry] = {}


def entry(**fields):
    def add(workload):
        ZOO[workload.__name__] = Entry(workload, **fields)
        return workload

    return add


def make(entry):
    return ZOO[entry].workload()


# The plain loop.


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@dataclass
class Plain:
    """What a plain loop measured, and the model's state_dict at each evaluation."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)


@torch.no_grad()
def evaluated(work, model, found):
    """An evaluation draws its own random numbers, and leaves each module in its mode."""
    drawn = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for name, value in work.evaluate(model).items():
        found.metrics.setdefault(name, []).append(float(value))
    for module, mode in modes.items():
        module.training = mode
    torch.set_rng_state(drawn[0])
    np.random.set_state(drawn[1])  # noqa: NPY002
    random.setstate(drawn[2])
    state = model.state_dict()
    found.states.append({name: tensor.detach().clone() for name, tensor in state.items()})


@torch.no_grad()
def averaged(work, model, found, states):
    """The same; of a rule that evaluates an average, with that in place of the parameters."""
    own = dict(model.named_parameters())
    lent = {name: own[name].clone() for name, state in states.items() if "evaluated" in state}
    for name in lent:
        own[name].copy_(states[name]["evaluated"])
    evaluated(work, model, found)
    for name, values in lent.items():
        own[name].copy_(values)


def gradient_of(parameter):
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.to_dense() if gradient.is_sparse else gradient


def train(name, point):
    """A parameter without a gradient is skipped, as torch's optimizers do after zero_grad()."""
    work, found, states, entered = make(name), Plain(), {}, []
    seed_all(point.seed)
    model = work.build_model(point.seed)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad():
            work.loss(model, next(iter(work.train_batches(point.batch_size, point.seed))))
    seed_all(point.seed)
    batches = iter(work.train_batches(point.batch_size, point.seed))
    own = {**RULES[point.optimizer].defaults, **point.settings}
    of_muon = plain.matrices(model, getattr(work, "not_matrices", ()))
    averaged(work, model, found, states)
    for t, eta in enumerate(learning_rates(point, STEPS)):
        for parameter in model.parameters():
            parameter.grad = None
        loss = work.loss(model, next(batches))
        loss.backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = {name: gradient_of(p) for name, p in trained.items()}
        norm = math.sqrt(sum(float(g.abs().square().sum()) for g in gradients.values()))
        factor = min(1.0, plain.threshold(point, entered) / norm)
        entered.append(factor * norm)
        with torch.no_grad():
            for name, p in trained.items():
                if p.grad is None:
                    continue
                state = states.setdefault(name, {})
                g = gradients[name] * factor
                is_matrix, rule = id(p) in of_muon, point.optimizer
                p.copy_(plain.rule_step(rule, own, p, g, state, float(eta), t, is_matrix))
        found.losses.append(float(loss.detach()))
        found.norms.append(norm)
        if (t + 1) % EVERY == 0:
            averaged(work, model, found, states)
    return found


# The models.


def mlp(width=8):
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, 1)).to(D)


@entry()
class Mlp:
    """The workload that the others change."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(EXAMPLES, FEATURES, generator=generator, dtype=D)
        self.y = (self.x @ torch.randn(FEATURES, 1, generator=generator, dtype=D)).tanh()
        self.tokens = torch.randint(0, 10, (EXAMPLES, 5), generator=generator)

    def build_model(self, seed):
        return mlp()

    def train_batches(self, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            i = torch.randint(0, TRAINED, (batch_size,), generator=generator)
            yield self.batch(i)

    def batch(self, i):
        return self.x[i], self.y[i]

    def loss(self, model, batch):
        return functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model):
        x, y = self.batch(torch.arange(TRAINED, EXAMPLES))
        out = model(x)
        wrong = (out > 0) != (y > 0)
        return {"val_loss": functional.mse_loss(out, y), "val_error": wrong.double().mean()}


# Gradients and parameters that are rebound.


@entry()
class ZeroGradInLoss(Mlp):
    def loss(self, model, batch):
        model.zero_grad()
        return super().loss(model, batch)


@entry()
class GradIsNoneInLoss(Mlp):
    def loss(self, model, batch):
        for parameter in model.parameters():
            parameter.grad = None
        return super().loss(model, batch)


@entry()
class ZeroGradInEvaluate(Mlp):
    def evaluate(self, model):
        model.zero_grad(set_to_none=True)
        return super().evaluate(model)


@entry(refusal="0.weight")
class ClampedDataInLoss(Mlp):
    def loss(self, model, batch):
        for parameter in model.parameters():
            parameter.data = parameter.data.clamp(-0.2, 0.2)
        return super().loss(model, batch)


@entry()
class ClampedInPlaceInLoss(Mlp):
    def loss(self, model, batch):
        for parameter in model.parameters():
            parameter.data.clamp_(-0.2, 0.2)
        return super().loss(model, batch)


@entry(refusal="0.weight")
class MaxNormInEvaluate(Mlp):
    def evaluate(self, model):
        for parameter in model.parameters():
            parameter.data = parameter.data * (0.9 / parameter.data.norm().clamp(min=0.9))
        return super().evaluate(model)


@entry()
class MaxNormInPlaceInEvaluate(Mlp):
    def evaluate(self, model):
        for layer in (model[0], model[2]):
            layer.weight.data.renorm_(2, 0, 0.5)
        return super().evaluate(model)


@entry(refusal="0.weight")
class HalfInEvaluate(Mlp):
    def evaluate(self, model):
        model.half()
        model.double()
        return super().evaluate(model)


@entry(refusal="0.weight")
class ToFloatInLoss(Mlp):
    def loss(self, model, batch):
        model.to(torch.float32)
        model.to(D)
        return super().loss(model, batch)


@entry(refusal="0.weight")
class LeftInFloatByEvaluate(Mlp):
    """In float32 after the first evaluation, for good; what the optimizer holds is in float64."""

    def loss(self, model, batch):
        dtype = next(model.parameters()).dtype
        return functional.mse_loss(model(batch[0].to(dtype)), batch[1].to(dtype))

    def evaluate(self, model):
        model.double()
        found = super().evaluate(model)
        model.float()
        return found


@entry(refusal="0.weight")
class AssignedStateInLoss(Mlp):
    def loss(self, model, batch):
        state = copy.deepcopy(model.state_dict())
        model.load_state_dict(state, assign=True)
        return super().loss(model, batch)


@entry(refusal="0.weight")
class AssignedStateInEvaluate(Mlp):
    def evaluate(self, model):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return super().evaluate(model)


@entry(refusal="0.weight")
class ReplacedParameterInEvaluate(Mlp):
    def evaluate(self, model):
        model[0].weight = nn.Parameter(model[0].weight.detach() * 0.9)
        return super().evaluate(model)


@entry(refusal="0.weight", optimizers=SKIPS)
class UnfreezesInLoss(Mlp):
    """Ten updates of the last layer, then of all."""

    calls = 0

    def build_model(self, seed):
        model = mlp()
        model[0].requires_grad_(False)
        return model

    def loss(self, model, batch):
        self.calls += 1
        if self.calls > 10:
            model.requires_grad_(True)
        return super().loss(model, batch)


@entry(refusal="0.weight", optimizers=SKIPS)
class UnfreezesInEvaluate(Mlp):
    def build_model(self, seed):
        model = mlp()
        model[0].requires_grad_(False)
        return model

    def evaluate(self, model):
        found = super().evaluate(model)
        model.requires_grad_(True)
        return found


@entry(refusal="2.weight")
class LayerPutInByEvaluate(Mlp):
    def evaluate(self, model):
        if model[2].weight.shape[1] == 8:
            layer = nn.Linear(8, 1).to(D)
            layer.load_state_dict(model[2].state_dict())
            model[2] = layer
        return super().evaluate(model)


@entry(refusal="late.weight")
class LayerMadeInForward(Mlp):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(FEATURES, 8).to(D)

        def forward(self, x):
            if not hasattr(self, "late"):
                self.late = nn.Linear(8, 1).to(D)
            return self.late(self.first(x).tanh())

    def build_model(self, seed):
        return self.Model()


@entry(refusal="the gradient is exactly 0 at each of the first 20 updates")
class LossOfACopy(Mlp):
    def loss(self, model, batch):
        return super().loss(copy.deepcopy(model), batch)


@entry()
class ValuesByVector(Mlp):
    """`vector_to_parameters` binds `.data` of every parameter to parts of one vector."""

    def evaluate(self, model):
        own = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(own * 0.5, model.parameters())
        found = super().evaluate(model)
        nn.utils.vector_to_parameters(own, model.parameters())
        return found


@entry(refusal="0.weight", optimizers=("sgd",))
class FreezesInLoss(Mlp):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        if self.calls > 10:
            model[0].requires_grad_(False)
        return super().loss(model, batch)


@entry(optimizers=("schedule_free_adamw", *ALL))
class FrozenFromTheStart(Mlp):
    def build_model(self, seed):
        model = mlp()
        model[0].weight.requires_grad_(False)
        return model


# Averages of weights.


class Average(Mlp):
    """An exponential moving average, kept by the workload, that evaluation swaps in."""

    def __init__(self):
        super().__init__()
        self.average = {}

    def loss(self, model, batch):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                kept = self.average.setdefault(name, parameter.detach().clone())
                kept.lerp_(parameter, 0.1)
        return super().loss(model, batch)


@entry()
class AverageByStateDict(Average):
    def evaluate(self, model):
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict({**kept, **self.average})
        found = super().evaluate(model)
        model.load_state_dict(kept)
        return found


@entry(refusal="0.weight")
class AverageByData(Average):
    def swap(self, model):
        for name, parameter in model.named_parameters():
            if name in self.average:
                parameter.data, self.average[name] = self.average[name], parameter.data

    def evaluate(self, model):
        self.swap(model)
        found = super().evaluate(model)
        self.swap(model)
        return found


@entry(refusal="0.weight")
class AverageByDataClone(Average):
    """What is put back is a copy."""

    def evaluate(self, model):
        kept = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.data = self.average.get(name, kept[name])
        found = super().evaluate(model)
        for name, parameter in model.named_parameters():
            parameter.data = kept[name]
        return found


@entry()
class AverageByCopy(Average):
    def evaluate(self, model):
        kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.copy_(self.average.get(name, kept[name]))
        found = super().evaluate(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
        return found


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.online, self.teacher = mlp(), mlp()
        self.teacher.load_state_dict(self.online.state_dict())
        self.teacher.requires_grad_(False)

    def pairs(self):
        return zip(self.teacher.parameters(), self.online.parameters(), strict=True)

    def forward(self, x):
        return self.online(x)


@entry()
class TeacherInTheModel(Mlp):
    """A teacher that follows the student, updated in loss, as in BYOL."""

    def build_model(self, seed):
        return Student()

    def loss(self, model, batch):
        with torch.no_grad():
            for slow, fast in model.pairs():
                slow.mul_(0.9).add_(fast, alpha=0.1)
            target = model.teacher(batch[0])
        return super().loss(model, batch) + functional.mse_loss(model(batch[0] + 0.1), target)


@entry(refusal="teacher.0.weight")
class TeacherByData(Mlp):
    def build_model(self, seed):
        return Student()

    def loss(self, model, batch):
        for slow, fast in model.pairs():
            slow.data = 0.9 * slow.data + 0.1 * fast.data
        target = model.teacher(batch[0])
        return super().loss(model, batch) + functional.mse_loss(model(batch[0] + 0.1), target)

    def evaluate(self, model):
        x, y = self.batch(torch.arange(TRAINED, EXAMPLES))
        return {"val_loss": functional.mse_loss(model.teacher(x), y)}


# Kinds of parameters.


class Recurrent(nn.Module):
    def __init__(self, kind, flatten):
        super().__init__()
        self.cell = kind(FEATURES, 5, batch_first=True).to(D)
        self.head, self.flatten = nn.Linear(5, 1).to(D), flatten

    def forward(self, x):
        if self.flatten:
            self.cell.flatten_parameters()
        out, _ = self.cell(x[:, None].expand(-1, 3, -1))
        return self.head(out[:, -1])


class Recurs(Mlp):
    kind, flatten = nn.RNN, True

    def build_model(self, seed):
        return Recurrent(self.kind, self.flatten)


@entry(refusal="cell")
class Rnn(Recurs):
    pass


@entry(refusal="cell")
class Lstm(Recurs):
    kind = nn.LSTM


@entry(refusal="cell")
class Gru(Recurs):
    kind, flatten = nn.GRU, False


class Flattens(nn.Module):
    """What flatten_parameters() does on a GPU: all weights become parts of one new tensor."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        parameters = list(self.body.parameters())
        flat = torch.cat([parameter.data.flatten() for parameter in parameters])
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, flat.split(sizes), strict=True):
            parameter.data = part.view_as(parameter)
        return self.body(x)


@entry(refusal="body.0.weight")
class FlattenedParameters(Mlp):
    def build_model(self, seed):
        return Flattens()


class Words(nn.Module):
    def __init__(self, tied=False, **options):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, dtype=D, **options)
        self.head = nn.Linear(4, 10, bias=False, dtype=D)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


class Language(Mlp):
    options = {}

    def build_model(self, seed):
        return Words(**self.options)

    def batch(self, i):
        return self.tokens[i], self.tokens[i, 0]

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model):
        x, y = self.batch(torch.arange(TRAINED, EXAMPLES))
        return {"val_loss": functional.cross_entropy(model(x), y)}


@entry(optimizers=("schedule_free_adamw", *ALL))
class TiedWeights(Language):
    options = {"tied": True}


@entry()
class PaddedEmbedding(Language):
    options = {"padding_idx": 3}


@entry(refusal="embedding.weight|sparse")
class SparseGradients(Language):
    options = {"sparse": True}


@entry(refusal="embedding.weight")
class RenormalizedEmbedding(Language):
    """Writes into its weight in forward."""

    options = {"max_norm": 0.5}


@entry()
class ScalarParameter(Mlp):
    def build_model(self, seed):
        model = mlp()
        model.scale = nn.Parameter(torch.tensor(0.7, dtype=D))
        return model

    def loss(self, model, batch):
        return functional.mse_loss(model(batch[0]) * model.scale, batch[1])


@entry()
class UnusedParameter(Mlp):
    def build_model(self, seed):
        model = mlp()
        model.unused = nn.Parameter(torch.ones(3, dtype=D))
        return model


@entry()
class ParameterUsedSometimes(Mlp):
    calls = 0

    def build_model(self, seed):
        model = mlp()
        model.shift = nn.Parameter(torch.ones(1, dtype=D))
        return model

    def loss(self, model, batch):
        self.calls += 1
        out = model(batch[0])
        return functional.mse_loss(out + model.shift if self.calls % 3 else out, batch[1])


@entry(refusal=r"torch\.complex128")
class ComplexParameter(Mlp):
    def build_model(self, seed):
        model = mlp()
        model.phase = nn.Parameter(torch.randn(1, dtype=torch.complex128))
        return model

    def loss(self, model, batch):
        return (model(batch[0]) * model.phase - batch[1]).abs().square().mean()


@entry(refusal=r"torch\.complex128", optimizers=SKIPS)
class OnlyComplexParameters(Mlp):
    def build_model(self, seed):
        model = nn.Module()
        model.weight = nn.Parameter(torch.randn(FEATURES, 1, dtype=torch.complex128))
        return model

    def loss(self, model, batch):
        return (batch[0].to(torch.complex128) @ model.weight - batch[1]).abs().square().mean()

    def evaluate(self, model):
        return {"val_loss": self.loss(model, self.batch(torch.arange(TRAINED, EXAMPLES)))}


@entry(refusal=r"torch\.float32.*torch\.float64")
class MixedDtypes(Mlp):
    def build_model(self, seed):
        model = mlp()
        model.shift = nn.Parameter(torch.ones(1, dtype=torch.float32))
        return model

    def loss(self, model, batch):
        return functional.mse_loss(model(batch[0]) + model.shift, batch[1])


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        squares = torch.randn(2, FEATURES, FEATURES, dtype=D) / 3
        self.layers = nn.ParameterList(nn.Parameter(square.clone()) for square in squares)
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(FEATURES, 1, dtype=D))})

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(x @ layer)
        return x @ self.named["out"]


@entry()
class ParameterContainers(Mlp):
    def build_model(self, seed):
        return Listed()


class LazySine(nn.LazyLinear):
    """Its weights are no random numbers: when they are made must not matter."""

    def reset_parameters(self):
        if not self.has_uninitialized_params() and self.in_features:
            with torch.no_grad():
                self.weight.copy_(torch.arange(self.weight.numel()).sin().view_as(self.weight))
                self.bias.zero_()


@entry()
class Lazy(Mlp):
    def build_model(self, seed):
        return nn.Sequential(LazySine(8, dtype=D), nn.Tanh(), LazySine(1, dtype=D))


# Parametrizations and buffers.


@entry()
class SpectralNorm(Mlp):
    def build_model(self, seed):
        model = mlp()
        parametrizations.spectral_norm(model[0])
        return model


@entry()
class OldSpectralNorm(Mlp):
    def build_model(self, seed):
        model = mlp()
        nn.utils.spectral_norm(model[0])
        return model


@entry(optimizers=("lion", *ALL))
class WeightNorm(Mlp):
    def build_model(self, seed):
        model = mlp()
        parametrizations.weight_norm(model[0])
        return model


@entry()
class Orthogonal(Mlp):
    def build_model(self, seed):
        model = mlp(FEATURES)
        parametrizations.orthogonal(model[0])
        return model


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


@entry()
class OwnParametrization(Mlp):
    def build_model(self, seed):
        model = mlp(FEATURES)
        parametrize.register_parametrization(model[0], "weight", Symmetric())
        return model


def normalized(normalization):
    """Without a bias that the normalization takes away: Adam would make its rounding updates."""
    first = nn.Linear(FEATURES, 8, bias=False)
    return nn.Sequential(first, normalization, nn.Tanh(), nn.Linear(8, 1)).to(D)


@entry(optimizers=("schedule_free_adamw", *ALL))
class BatchNorm(Mlp):
    def build_model(self, seed):
        return normalized(nn.BatchNorm1d(8))


class Running(nn.Module):
    """A normalization whose statistics are assigned, not written in place."""

    def __init__(self, width, persistent=True):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width), persistent)
        self.register_buffer("variance", torch.ones(width), persistent)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.variance = 0.9 * self.variance + 0.1 * x.detach().var(0)
        return (x - self.mean) / (self.variance + 1e-5).sqrt()


@entry(optimizers=("schedule_free_adamw", *ALL))
class AssignedBuffers(Mlp):
    def build_model(self, seed):
        return normalized(Running(8))


@entry()
class AssignedHiddenBuffers(Mlp):
    def build_model(self, seed):
        return normalized(Running(8, persistent=False))


@entry()
class FrozenBatchNorm(Mlp):
    def build_model(self, seed):
        model = normalized(nn.BatchNorm1d(8))
        model[1].running_mean.fill_(0.3)
        model[1].eval()
        return model


class StaysInEval(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


@entry()
class BatchNormThatStaysInEval(Mlp):
    def build_model(self, seed):
        model = normalized(StaysInEval(8))
        model[1].running_mean.fill_(0.3)
        return model.train()


class Late(nn.Module):
    """Registers its buffer when it is first called."""

    def forward(self, x):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", x.detach().mean(0))
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


@entry(refusal="mean")
class LateBuffer(Mlp):
    def build_model(self, seed):
        return normalized(Late())


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.count += 1
        return x / (1 + 0.1 * self.count)


@entry()
class IntegerBuffer(Mlp):
    def build_model(self, seed):
        return normalized(Counts())


class Shared(nn.Module):
    """Two modules with one buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Counts(), Counts(), mlp()
        self.second.count = self.first.count

    def forward(self, x):
        return self.head(self.second(self.first(x)))


@entry()
class SharedBuffer(Mlp):
    def build_model(self, seed):
        return Shared()


# Random numbers.


@entry(optimizers=("lion", *ALL))
class Dropout(Mlp):
    def build_model(self, seed):
        return nn.Sequential(nn.Dropout(0.3), mlp())


@entry()
class NoiseInLoss(Mlp):
    def loss(self, model, batch):
        return super().loss(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))


@entry(seeded=True)
class NoiseInEvaluate(Mlp):
    def evaluate(self, model):
        x = self.x + torch.randn_like(self.x)
        return {"val_loss": functional.mse_loss(model(x), self.y)}


@entry(seeded=True)
class NumpyNoiseInEvaluate(Mlp):
    def evaluate(self, model):
        x = self.x + torch.from_numpy(np.random.randn(*self.x.shape))  # noqa: NPY002
        return {"val_loss": functional.mse_loss(model(x), self.y)}


@entry(seeded=True)
class NoiseInBoth(NoiseInLoss):
    def evaluate(self, model):
        return {"val_loss": functional.mse_loss(model(self.x + torch.rand(())), self.y)}


@entry()
class NumpyInLoss(Mlp):
    def loss(self, model, batch):
        return super().loss(model, batch) * np.random.uniform(0.5, 1.5)  # noqa: NPY002


@entry()
class RandomInLoss(Mlp):
    def loss(self, model, batch):
        return super().loss(model, batch) * random.uniform(0.5, 1.5)


@entry()
class OwnGeneratorInLoss(Mlp):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def loss(self, model, batch):
        noise = torch.randn(batch[0].shape, generator=self.generator, dtype=D)
        return super().loss(model, (batch[0] + 0.1 * noise, batch[1]))


@entry()
class OwnNumpyGeneratorInLoss(Mlp):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(3)

    def loss(self, model, batch):
        return super().loss(model, batch) * self.generator.uniform(0.5, 1.5)


@entry()
class OwnGeneratorInBatches(Mlp):
    """Goes on where the last trial of the same workload left it."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def train_batches(self, batch_size, seed):
        while True:
            yield self.batch(torch.randint(0, TRAINED, (batch_size,), generator=self.generator))


@entry()
class ShufflingLoader(Mlp):
    def train_batches(self, batch_size, seed):
        data = TensorDataset(self.x[:TRAINED], self.y[:TRAINED])
        loader = DataLoader(data, batch_size, shuffle=True)
        while True:
            yield from loader


@entry()
class ShufflingLoaderAndDropout(ShufflingLoader):
    build_model = Dropout.build_model


# State in Python.


class Anneals(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.body, self.calls, self.after = mlp(), 0, after

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.body(x) * (0.5 if self.calls > self.after else 1.0)


@entry()
class AnnealsEarly(Mlp):
    def build_model(self, seed):
        return Anneals(1)


@entry()
class AnnealsLate(Mlp):
    def build_model(self, seed):
        return Anneals(22)


@entry()
class CountsInTheWorkload(Mlp):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        return super().loss(model, batch) * (0.5 if self.calls > 20 else 1.0)


@entry()
class CountsInAClosure(Mlp):
    """State that pickle does not see: nothing of it is in the workload."""

    def __init__(self):
        super().__init__()
        calls = itertools.count(1)
        self.factor = lambda: 0.5 if next(calls) > 20 else 1.0

    def loss(self, model, batch):
        return super().loss(model, batch) * self.factor()


CALLS = []


@entry()
class CountsInAGlobal(Mlp):
    def __init__(self):
        super().__init__()
        CALLS.clear()

    def loss(self, model, batch):
        CALLS.append(1)
        return super().loss(model, batch) * (0.5 if len(CALLS) > 20 else 1.0)


@entry()
class CountsInTheClass(Mlp):
    calls = 0

    def __init__(self):
        super().__init__()
        type(self).calls = 0

    def loss(self, model, batch):
        type(self).calls += 1
        return super().loss(model, batch) * (0.5 if self.calls > 20 else 1.0)


class Remembers(nn.Module):
    """The last output, a temperature and a list: attributes that forward changes, and reads."""

    def __init__(self):
        super().__init__()
        self.body, self.temperature, self.seen, self.last = mlp(), 1.0, [], None

    def forward(self, x):
        out = self.body(x) / self.temperature
        if self.training:
            self.temperature *= 1.01
            self.seen.append(len(x))
            self.last = out.detach().mean()
        return out


@entry()
class ChangedAttributes(Mlp):
    def build_model(self, seed):
        return Remembers()


@entry()
class AppendedList(Mlp):
    def build_model(self, seed):
        return Remembers()

    def loss(self, model, batch):
        return super().loss(model, batch) / (1 + 0.01 * len(model.seen))


@entry()
class LastTensorIsRead(Mlp):
    """A tensor that is neither parameter nor buffer, carried from call to call."""

    def build_model(self, seed):
        return Remembers()

    def loss(self, model, batch):
        last = torch.zeros((), dtype=D) if model.last is None else model.last
        return super().loss(model, batch) + (model(batch[0]).mean() - last).square()


@entry()
class LastLossIsKept(Mlp):
    """Written in loss and read in evaluate."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        model.last_loss = loss.detach()
        return loss

    def evaluate(self, model):
        last = getattr(model, "last_loss", torch.zeros((), dtype=D))
        return {**super().evaluate(model), "last": last}


@entry()
class CountsEvaluations(Mlp):
    evaluations = 0

    def evaluate(self, model):
        self.evaluations += 1
        found = super().evaluate(model)
        return {**found, "val_loss": found["val_loss"] / self.evaluations}


@entry()
class BestSoFar(Mlp):
    """Early stopping by hand: the learning stops after the third evaluation."""

    evaluations = 0

    def evaluate(self, model):
        self.evaluations += 1
        return super().evaluate(model)

    def loss(self, model, batch):
        return super().loss(model, batch) * (0.01 if self.evaluations > 3 else 1.0)


class NoCopy(nn.Sequential):
    def __deepcopy__(self, memo):
        raise RuntimeError("this model must not be copied")


@entry()
class CannotBeCopied(Mlp):
    def build_model(self, seed):
        return NoCopy(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1)).to(D)


class Lambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.activation = mlp(), lambda x: torch.tanh(x)

    def forward(self, x):
        return self.activation(self.body(x))


@entry()
class CannotBePickled(Mlp):
    def build_model(self, seed):
        return Lambda()


@entry()
class WorkloadWithALambda(Mlp):
    def __init__(self):
        super().__init__()
        self.scale = lambda loss: 2 * loss

    def loss(self, model, batch):
        return self.scale(super().loss(model, batch))


@entry()
class WorkloadWithAnOpenGenerator(Mlp):
    def __init__(self):
        super().__init__()
        self.factors = (1 / (1 + i // 20) for i in itertools.count())

    def loss(self, model, batch):
        return super().loss(model, batch) * next(self.factors)


# Control flow, autograd, batches.


@entry()
class ReadsItsLoss(Mlp):
    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return 2 * loss if loss.item() > 0.3 else loss


@entry()
class BranchesOnATensor(Mlp):
    def loss(self, model, batch):
        out = model(batch[0])
        if out.mean() > 0:
            out = out * 0.9
        return functional.mse_loss(out, batch[1])


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(FEATURES, FEATURES).to(D), mlp()

    def forward(self, x):
        return checkpoint(self.rest, self.first(x).tanh(), use_reentrant=False)


@entry()
class Checkpointing(Mlp):
    def build_model(self, seed):
        return Checkpointed()


class Straight(torch.autograd.Function):
    """Rounds; its gradient is that of a straight line."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Rounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return Straight.apply(self.body(x))


@entry()
class OwnFunction(Mlp):
    def build_model(self, seed):
        return Rounds()


@entry()
class BatchWrittenInPlace(Mlp):
    def loss(self, model, batch):
        batch[0].mul_(1.1)
        return super().loss(model, batch)


@entry()
class DataWrittenInPlace(Mlp):
    """Batches that are views of the data: what is written stays."""

    def train_batches(self, batch_size, seed):
        while True:
            for i in range(0, TRAINED, batch_size):
                yield self.x[i : i + batch_size], self.y[i : i + batch_size]

    def loss(self, model, batch):
        batch[0].mul_(0.99)
        return super().loss(model, batch)


@entry(refusal="scalar")
class LossOfOneElement(Mlp):
    def loss(self, model, batch):
        return super().loss(model, batch).reshape(1)


@entry()
class LossInFloat32(Mlp):
    def loss(self, model, batch):
        return super().loss(model, batch).float()


@entry()
class PartsWithoutGradient(Mlp):
    def loss(self, model, batch):
        with torch.no_grad():
            weight = (model(batch[0]) - batch[1]).abs()
        return ((model(batch[0]) - batch[1]).square() * weight).mean()


@entry()
class GradientPenalty(Mlp):
    def loss(self, model, batch):
        x = batch[0].detach().requires_grad_()
        out = model(x)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.mse_loss(out, batch[1]) + 0.1 * (gradient.norm(dim=1) - 1).square().mean()


@entry()
class PenaltyOnParameters(Mlp):
    def loss(self, model, batch):
        loss = super().loss(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return loss + 0.05 * sum(g.square().sum() for g in gradients)


@entry()
class FunctionalInLoss(Mlp):
    def loss(self, model, batch):
        parameters = dict(model.named_parameters())

        def one(x):
            return torch.func.functional_call(model, parameters, (x,))[0]

        slopes = torch.func.vmap(torch.func.grad(one))(batch[0])
        return super().loss(model, batch) + 0.1 * slopes.square().mean()


@entry()
class BackwardInEvaluate(Mlp):
    """Trains a probe on the model's features, through the model."""

    def evaluate(self, model):
        found = super().evaluate(model)
        with torch.enable_grad():
            probe = nn.Parameter(torch.ones(1, dtype=D))
            for _ in range(3):
                loss = functional.mse_loss(model(self.x) * probe, self.y)
                probe.grad = None
                loss.backward()
                with torch.no_grad():
                    probe -= 0.1 * probe.grad
        return {**found, "probe": loss.detach()}


@entry()
class ReturnsPythonNumbers(Mlp):
    def evaluate(self, model):
        return {name: float(value) for name, value in super().evaluate(model).items()}


class Modes(Mlp):
    def build_model(self, seed):
        return nn.Sequential(nn.Dropout(0.1), normalized(nn.BatchNorm1d(8)))


@entry()
class LeftInTrainMode(Modes):
    def evaluate(self, model):
        model.eval()
        found = super().evaluate(model)
        model.train()
        return found


@entry()
class LeftInEvalMode(Modes):
    def loss(self, model, batch):
        model.train()
        return super().loss(model, batch)


@entry()
class EvalModeInLoss(Modes):
    def loss(self, model, batch):
        model.eval()
        with torch.no_grad():
            target = model(batch[0])
        model.train()
        return super().loss(model, batch) + 0.1 * functional.mse_loss(model(batch[0]), target)


@entry()
class HookOnAModule(Mlp):
    def build_model(self, seed):
        model = mlp()
        model[0].register_forward_hook(lambda module, inputs, out: out * 0.5)

        def doubled(module, inputs, outputs):
            return tuple(2 * gradient for gradient in inputs)

        model[2].register_full_backward_hook(doubled)
        return model


@entry()
class HookOnAParameter(Mlp):
    def build_model(self, seed):
        model = mlp()
        model[0].weight.register_hook(lambda gradient: gradient * 0.1)
        return model


@entry(refusal="0.weight|hook")
class HookAfterAccumulation(Mlp):
    def build_model(self, seed):
        model = mlp()

        def shrink(parameter):
            parameter.grad.mul_(0.1)

        model[0].weight.register_post_accumulate_grad_hook(shrink)
        return model


@entry()
class DictOfInputs(Mlp):
    def batch(self, i):
        return {"inputs": {"left": self.x[i, :3], "right": self.x[i, 3:]}, "target": self.y[i]}

    def loss(self, model, batch):
        x = torch.cat([batch["inputs"]["left"], batch["inputs"]["right"]], 1)
        return functional.mse_loss(model(x), batch["target"])

    def evaluate(self, model):
        return {"val_loss": self.loss(model, self.batch(torch.arange(TRAINED, EXAMPLES)))}


@entry()
class CompiledModel(Mlp):
    def build_model(self, seed):
        return torch.compile(mlp(), backend="eager")


class Wrapper(nn.Module):
    """As DataParallel: the model one level down, its attributes reached through the wrapper."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


@entry()
class Wrapped(Mlp):
    def build_model(self, seed):
        return Wrapper(mlp())


@entry()
class DataParallel(Mlp):
    def build_model(self, seed):
        return nn.DataParallel(mlp())


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4, dtype=D), nn.Linear(4, 10, dtype=D)
        self.projection = nn.Linear(4, 12, dtype=D)

    def forward(self, tokens):
        q, k, v = self.projection(self.embedding(tokens)).chunk(3, -1)
        return self.head(functional.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


@entry()
class Attention(Language):
    def build_model(self, seed):
        return Attends()


@entry(optimizers=SKIPS)  # the gradient of the keys' bias is rounding
class EncoderLayer(Mlp):
    """Its fast path in eval mode computes otherwise than in train mode."""

    def build_model(self, seed):
        layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, dropout=0.0, batch_first=True)
        sequence = nn.Unflatten(1, (1, FEATURES))
        return nn.Sequential(sequence, layer, nn.Flatten(), nn.Linear(FEATURES, 1)).to(D)
