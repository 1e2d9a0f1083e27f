"""Workloads that learn targets from inputs: data and architecture, joined by a loss.

  B  batch size     N  examples     C  classes     T  positions
  x  inputs: floats, bytes (cast to the dtype of the model) or int64 tokens (left as they are)
  y  targets: classes y_B, classes at every position y_BT, or real numbers y_B

A workload holds functions, not data: it is pickled in a few bytes, and each process loads the data
once. Nothing here branches on a tensor's value, so that loss and evaluate run under torch.func.vmap
as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import Examples, Part, Split, endless_batches

# forwarded at once in an evaluation: bounds the memory, changes no result
EVALUATION_EXAMPLES = 512


@dataclass(frozen=True)
class Supervised(ABC):
    """A data set and an architecture.

    load          → the data; a module-level function that keeps its result, or a partial of one
    architecture  → a new model with torch's default initialization; picklable likewise
    architectures   other arguments of the factory, by name, that may mend an unstable training
                    (R18)
    not_matrices    names of parameters with two dimensions that Muon leaves to AdamW, as the weight
                    of the output layer
    largest         names of what `measure` reports that are not means: the largest of the batch
    """

    largest: ClassVar[frozenset[str]] = frozenset()

    load: Callable[[], Split]
    architecture: Callable[[], nn.Module]
    architectures: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)
    not_matrices: tuple[str, ...] = ()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        """Mean training loss of the batch; a scalar."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Examples) -> dict[str, Tensor]:
        """What is reported about a part of the data, by name; scalars.

        A mean over the batch, unless `largest` names it.
        """

    def build_model(self, seed: int) -> nn.Module:
        """A new model on the CPU, a function of the seed alone; the caller's random state stays as
        it is.
        """
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would seed the accelerators too, which fork_rng then
            # leaves changed.
            torch.default_generator.manual_seed(seed)
            return self.architecture()

    def train_batches(self, batch_size: int, seed: int) -> Iterator[Examples]:
        """Endless batches of the training part; raises ValueError if it is smaller than
        `batch_size`.
        """
        return endless_batches(self.load().train, batch_size, seed)

    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """Validation metrics of the model in evaluation mode: val_loss and what else `measure`
        names.
        """
        return {f"val_{name}": value for name, value in self._measure(model, "validation").items()}

    def test(self, model: nn.Module) -> dict[str, Tensor]:
        """The same metrics on the test part: for the final model only, never while tuning."""
        return {f"test_{name}": value for name, value in self._measure(model, "test").items()}

    @torch.no_grad()
    def _measure(self, model: nn.Module, part: Part) -> dict[str, Tensor]:
        examples = self.load().part(part, next(model.parameters()).device)
        found: dict[str, Tensor] = {}
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            for chunk in zip(
                *(torch.split(tensor, EVALUATION_EXAMPLES) for tensor in examples), strict=True
            ):
                share = len(chunk[0]) / len(examples[0])
                for name, value in self.measure(model, chunk).items():
                    if name in self.largest:
                        found[name] = torch.maximum(found.get(name, value), value)
                    else:
                        found[name] = found.get(name, 0.0) + share * value
        finally:
            # each its own: a frozen normalization stays in evaluation mode
            for module, mode in modes:
                module.training = mode
        return found


class Classification(Supervised):
    """Cross-entropy on classes: loss = −mean log softmax(logits)[y]; error = share of wrong argmax.

    Targets may have any shape: y_B for images, y_BT for the next token at every position.
    """

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        logits_MC, y_M = predict(model, batch)
        return functional.cross_entropy(logits_MC.flatten(0, -2), y_M.flatten())

    def measure(self, model: nn.Module, batch: Examples) -> dict[str, Tensor]:
        return quality(*predict(model, batch))

    @property
    def chance_loss(self) -> float:
        """Training loss of the best constant predictor: the entropy of the class frequencies, in
        nats.
        """
        frequency_C = torch.bincount(self.load().train[1].flatten()).double()
        return float(torch.special.entr(frequency_C / frequency_C.sum()).sum())


class Regression(Supervised):
    """Squared error on one real number: loss = mean (prediction − y)²."""

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        prediction_B1, y_B = predict(model, batch)
        return functional.mse_loss(prediction_B1.squeeze(-1), y_B.to(prediction_B1.dtype))

    def measure(self, model: nn.Module, batch: Examples) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch)}

    @property
    def chance_loss(self) -> float:
        """Training loss of the best constant predictor: the variance of the targets."""
        return float(self.load().train[1].double().var(correction=0))


def predict(model: nn.Module, batch: Examples) -> tuple[Tensor, Tensor]:
    """The model's output, and the targets beside it on its device."""
    x, y = batch
    weight = next(model.parameters())
    x = x.to(weight.device, x.dtype if x.dtype == torch.int64 else weight.dtype)
    return model(x), y.to(weight.device)


def quality(logits_MC: Tensor, y_M: Tensor) -> dict[str, Tensor]:
    """Cross-entropy, and the share of wrong argmax."""
    wrong_M = (logits_MC.argmax(-1) != y_M).to(logits_MC.dtype)
    loss = functional.cross_entropy(logits_MC.flatten(0, -2), y_M.flatten())
    return {"loss": loss, "error": wrong_M.mean()}
