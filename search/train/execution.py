"""How a stack gets its losses, gradients and metrics: from the model as it is, recorded, compiled.

    Eager           one model, trained as it is, by backward()
    Recorded        K models at once: the forward and backward pass run under torch.func.vmap, every
                    slot with its own buffers (BatchNorm's running statistics). They are recorded
                    once per K and replayed (tracing.py): the same numbers without what vmap,
                    autograd and the modules cost in Python. A slot's numbers depend neither on K
                    nor on its neighbours, to the last bit, as long as K ≥ 2: below that, kernels
                    differ.
    Compiled        the recording of K models' losses and gradients, as machine code: other
                    rounding, and again the same for every neighbour
    CompiledAlone   the recording of one model's loss and gradients, as machine code

`Engine` is the choice among them, as it is stored with a study; `Engine.execution` is where it
becomes one of these classes. Everybody else asks the class, or the object of one training.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_map

from ..rules.optimizers import is_of_torch
from ..workload.batches import Parts, only_tensors
from ..workload.randomness import RandomState, seed_all
from ..workload.workload import (
    Workload,
    autocast,
    evaluation_mode,
    matrices_of_workload,
    numbers,
)
from .ties import Ties, checkpoint_names, fixed_tensors
from .tracing import record

# Recordings of one workload, by what they depend on, each with the parameters that get no gradient.
Traces: TypeAlias = dict[tuple[object, ...], tuple[Callable[..., Any], tuple[str, ...]]]
Tensors: TypeAlias = Mapping[str, Tensor]  # by the name of a parameter or buffer

FEWEST_STACKED = 2  # rows of a stacked model; a lone trial gets an idle neighbour
# kinds of batches, each for half a minute: whole ones and a last one; others are replayed
MOST_COMPILED = 2


@dataclass(frozen=True)
class Engine:
    """How points are trained, as it is stored with a study.

    One after the other, or `slots` of them stacked; each process has `threads` threads.

    `compiled`: by torch's compiler, which rounds differently. `reason` says what decided.
    """

    stacked: bool
    slots: int
    reason: str = ""
    threads: int = 1
    compiled: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Engine:
        """What was stored, also by a version that knew other fields."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})

    @property
    def execution(self) -> type[Execution]:
        """What trains so."""
        if self.compiled:
            return Compiled if self.stacked else CompiledAlone
        return Recorded if self.stacked else Eager

    @property
    def simpler(self) -> Engine | None:
        """How to train again what failed; None if it was alone.

        First without a compiler, then in stacks of half the size. The last one has a single slot
        and an idle neighbour: so those that failed with another point keep their numbers, and that
        one is known.
        """
        if self.compiled:
            return replace(self, compiled=False)
        if self.slots > 1:
            return replace(self, slots=self.slots // 2)
        return replace(self, stacked=False) if self.stacked else None

    def fit_for(self, optimizers: Iterable[str]) -> Engine:
        """The same, unless one of the optimizers is of torch, which updates one model as it is."""
        name = next(filter(is_of_torch, optimizers), "")
        if not name or self.execution.builds_anew:
            return self
        return replace(ALONE, threads=self.threads, reason=alone_with(name))

    def capacity(self, points: int) -> int:
        """The most of so many points that are in training at once.

        What may not shrink keeps its K, however few its points (`Execution.may_shrink`).
        """
        return min(self.slots, points) if self.execution.may_shrink else self.slots


ALONE = Engine(stacked=False, slots=1)


def alone_with(optimizer: str) -> str:
    """Why points with an optimizer of torch are not stacked."""
    return f"{optimizer} is an optimizer of torch, which updates one model at a time"


class Call(nn.Module):
    """A workload's method as a module around the model.

    So functional_call can swap what it contains.
    """

    def __init__(self, workload: Workload, model: nn.Module, bfloat16: bool) -> None:
        super().__init__()
        self.model, self.workload, self.in_bfloat16 = model, workload, bfloat16

    def forward(self, method: str, *arguments: Any) -> Any:
        with autocast(self.model, self.in_bfloat16):
            return getattr(self.workload, method)(self.model, *arguments)


class Rows(NamedTuple):
    """The tensors of all slots by name, [K, *shape] each, as views of what a stack holds.

    values      of trained parameters
    gradients   of the same parameters, in the same order
    buffers     what belongs to a slot beside them: buffers, and parameters that are not trained
    """

    values: Tensors
    gradients: Tensors
    buffers: Tensors


class Execution(ABC):
    """How the rows of one stack get their losses, gradients and metrics.

    is_stacked    every call is of all slots at once, with batches that have a leading slot
                  dimension; otherwise there is one slot, whose batches are as they are drawn
    builds_anew   each trial needs a model of its own (`adopt`), because it runs as it is and may
                  keep state in Python
    may_shrink    rows that are idle may be dropped: K is free to change from one update to the next
    model         the one that is trained; of K at once, the one whose methods are called
    names         the names in its state_dict, each with the first name of its tensor (`ties`)
    """

    is_stacked: ClassVar[bool]
    builds_anew: ClassVar[bool] = False
    may_shrink: ClassVar[bool] = False
    _most_compiled: ClassVar[int] = 0  # kinds of batches

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        bfloat16: bool = False,
        traces: Traces | None = None,
        parts: Parts | None = None,
    ) -> None:
        """Prepare to train `workload` on `model`, with bfloat16 autocast if so wanted.

        `traces` are recordings of earlier stacks, and take those of this one. `parts` are those of
        a batch whose gradients are accumulated, where the model runs as it is (`Eager`).
        """
        self.model = model
        self.names = checkpoint_names(model)
        self._call = Call(workload, model, bfloat16)
        known: Traces = {} if traces is None else traces
        self._recordings = _Recordings(self._call, known, self._most_compiled)
        self._parts = parts or Parts(1, 0)

    @classmethod
    @abstractmethod
    def rows_for(cls, slots: int) -> int:
        """K: the rows that hold so many slots."""

    @abstractmethod
    def bind(self, rows: Rows) -> None:
        """Take notice of rows that are new, or have moved."""

    def adopt(self, model: nn.Module) -> None:
        """Go on with another model of the same shape, to be bound."""
        self.model = self._call.model = model

    def matrices(self) -> set[str]:
        """The names of the parameters that are matrices (`rules.matrices`)."""
        return matrices_of_workload(self._call.workload, self.model)

    @abstractmethod
    def mend(self) -> None:
        """Put back on the rows what a workload's methods have bound elsewhere."""

    @abstractmethod
    def batch(self, batches: Sequence[Any], each: Sequence[int]) -> Any:
        """What `gradients` takes, from the drawn batches.

        `each[k]` is the index of slot k's batch.
        """

    @abstractmethod
    def batch_of(self, batch: Any, slot: int) -> Any:
        """The part of a slot in what `gradients` takes."""

    @abstractmethod
    def gradients(self, rows: Rows, batch: Any) -> tuple[Tensor, Sequence[str]]:
        """The loss of every slot at its values, K numbers; fills the gradients.

        And the names of the parameters that have no gradient, which count as 0.
        """

    @abstractmethod
    def evaluate(self, rows: Rows, seeds: Sequence[int]) -> dict[str, list[float]]:
        """What `evaluate` returns for every slot, by metric.

        The process's generators are seeded for each slot.
        """

    @abstractmethod
    def buffers(self, rows: Rows, slot: int) -> Tensors:
        """What belongs to a slot now beside its trained parameters."""

    @abstractmethod
    def keep_buffers(self, rows: Rows, slot: int, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The buffers of the best checkpoints, [K, *shape] each, with a slot's as they are now.

        And `names` become those of the model as it is now.
        """


class _Alone(Execution):
    """One slot, whose model's own tensors are tied to its row. It evaluates itself."""

    is_stacked = False
    _ties: Ties

    @classmethod
    def rows_for(cls, slots: int) -> int:
        return 1

    def bind(self, rows: Rows) -> None:
        self._ties = Ties(self.model, _first(rows.values), _first(rows.gradients))

    def mend(self) -> None:
        self._ties.mend()

    def batch(self, batches: Sequence[Any], each: Sequence[int]) -> Any:
        return batches[0]

    def batch_of(self, batch: Any, slot: int) -> Any:
        return batch

    @torch.no_grad()
    def evaluate(self, rows: Rows, seeds: Sequence[int]) -> dict[str, list[float]]:
        with evaluation_mode(self.model):
            seed_all(seeds[0])
            found = numbers(self._call("evaluate"))
            self._ties.mend()
            self._ties.look_for_new_ones()
            return {name: [value] for name, value in found.items()}

    def buffers(self, rows: Rows, slot: int) -> Tensors:
        return fixed_tensors(self.model)

    def keep_buffers(self, rows: Rows, slot: int, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        # A lone model may have replaced its buffers instead of writing into them, and have new
        # ones.
        self.names = checkpoint_names(self.model)
        own = fixed_tensors(self.model)
        return {name: tensor.detach().clone()[None] for name, tensor in own.items()}


class Eager(_Alone):
    """The model as it is.

    Its gradient is the mean over the parts of a batch, weighted by their numbers of examples: that
    of the whole batch, if the loss is a mean over examples.
    """

    builds_anew = True

    def gradients(self, rows: Rows, batch: Any) -> tuple[Tensor, Sequence[str]]:
        total: Tensor | None = None
        missing: list[set[str]] = []
        for i, (part, share) in enumerate(self._parts(batch)):
            self._ties.forget_gradients()
            loss = self._call("loss", part)
            if share < 1.0:
                loss = loss.to(torch.promote_types(loss.dtype, torch.float32)) * share
            loss.backward()
            missing.append(set(self._ties.gather(add=i > 0)))
            total = loss.detach() if total is None else total + loss.detach()
        return cast(Tensor, total), sorted(set.intersection(*missing))


class CompiledAlone(_Alone):
    """One model whose loss and gradients are recorded and compiled."""

    _most_compiled = MOST_COMPILED

    def bind(self, rows: Rows) -> None:
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, buffer in rows.buffers.items():
            own[name].data = buffer[0]  # the recording reads and writes rows, evaluate the model
        super().bind(rows)
        self._recordings.bind(rows)

    @torch.no_grad()
    def gradients(self, rows: Rows, batch: Any) -> tuple[Tensor, Sequence[str]]:
        values, gradients, buffers = map(_first, rows)
        return self._recordings.gradients(_identity, Rows(values, gradients, buffers), batch)


class Recorded(Execution):
    """K models at once, under vmap, recorded and replayed."""

    is_stacked = True
    may_shrink = True
    _evaluates_stacked = True

    @classmethod
    def rows_for(cls, slots: int) -> int:
        return max(slots, FEWEST_STACKED)

    def bind(self, rows: Rows) -> None:
        self._recordings.bind(rows)

    def mend(self) -> None:
        """Nothing: the model is called with the tensors of the rows."""

    def batch(self, batches: Sequence[Any], each: Sequence[int]) -> Any:
        only_tensors(batches)
        # Copies also where one batch serves all: some kernels round differently if a tensor has no
        # strides.
        return tree_map(lambda *parts: torch.stack([parts[i] for i in each]), *batches)

    def batch_of(self, batch: Any, slot: int) -> Any:
        return tree_map(lambda leaf: leaf[slot], batch)

    @torch.no_grad()
    def gradients(self, rows: Rows, batch: Any) -> tuple[Tensor, Sequence[str]]:
        return self._recordings.gradients(_stacked, rows, batch)

    @torch.no_grad()
    def evaluate(self, rows: Rows, seeds: Sequence[int]) -> dict[str, list[float]]:
        """Stacked if the workload's evaluate() can be, else one after the other.

        It cannot be if it uses .item(), Python numbers or random ones.
        """
        with evaluation_mode(self.model):
            if self._evaluates_stacked:
                try:
                    metrics = self._recordings.metrics(rows)
                    if any(values.ndim != 1 for values in metrics.values()):
                        raise TypeError("a metric is not one number")  # which one, is said below
                    return {name: values.tolist() for name, values in metrics.items()}
                except (RuntimeError, ValueError, TypeError, AttributeError):
                    self._evaluates_stacked = False
            return self._evaluate_each(rows, seeds)

    def _evaluate_each(self, rows: Rows, seeds: Sequence[int]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for slot, seed in enumerate(seeds):
            seed_all(seed)
            own = tree_map(lambda part, slot=slot: part[slot], _inside(rows.values, rows.buffers))
            for name, value in numbers(functional_call(self._call, own, ("evaluate",))).items():
                found.setdefault(name, [math.nan] * len(seeds))[slot] = value
        return found

    def buffers(self, rows: Rows, slot: int) -> Tensors:
        return {name: tensors[slot] for name, tensors in rows.buffers.items()}

    def keep_buffers(self, rows: Rows, slot: int, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensors in rows.buffers.items():
            kept[name][slot].copy_(tensors[slot])
        return kept


class Compiled(Recorded):
    """K models at once, whose losses and gradients are recorded and compiled.

    K never changes: another K rounds differently, and a trial's numbers would depend on its
    neighbours.
    """

    may_shrink = False
    _most_compiled = MOST_COMPILED


class _Recordings:
    """The calls of a workload on rows, each recorded once per K and kind of batch, and replayed.

    Of the first `most_compiled` kinds of batches, the loss and its gradients are compiled.
    """

    def __init__(self, call: Call, traces: Traces, most_compiled: int) -> None:
        self._call, self._traces, self._most_compiled = call, traces, most_compiled
        self._compiled_kinds: set[object] = set()
        self._where: tuple[object, ...] = ()

    def bind(self, rows: Rows) -> None:
        """The rows that are called from now on."""
        some = next(iter(rows.values.values()))
        self._where = (len(some), some.dtype, some.device, self._call.in_bfloat16)

    def gradients(
        self, over: Callable[..., Any], rows: Rows, batch: Any
    ) -> tuple[Tensor, Sequence[str]]:
        """The loss, `over` one slot or all of them; fills the gradients.

        Returns also the names of the parameters that have no gradient.
        """
        kind = _kind(batch)
        if len(self._compiled_kinds) < self._most_compiled:
            self._compiled_kinds.add(kind)
        compiled = kind in self._compiled_kinds
        key = ("loss", *self._where, kind, compiled)
        if key not in self._traces:
            function, missing = self._loss_and_gradients(over)
            replay = _recording_of("loss", function, rows, batch, compiled=compiled)
            self._traces[key] = replay, tuple(missing)
        replay, without = self._traces[key]
        into = list(rows.gradients.values())
        return replay(rows.values, rows.buffers, batch, into=into), without

    def _loss_and_gradients(
        self, over: Callable[..., Any]
    ) -> tuple[Callable[..., tuple[Tensor, list[Tensor]]], list[str]]:
        """A function of values, buffers and batch, and a list.

        The function fills the list with the names of parameters that have no gradient.
        """
        missing: list[str] = []

        def loss_of(own: Tensors, buffers: Tensors, batch: Any) -> Any:
            return functional_call(self._call, _inside(own, buffers), ("loss", batch))

        def loss_and_gradients(
            values: Tensors, buffers: Tensors, batch: Any
        ) -> tuple[Tensor, list[Tensor]]:
            leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
            loss = over(loss_of)(leaves, buffers, batch)
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
            gradients = dict(zip(leaves, found, strict=True))
            missing.extend(name for name, gradient in gradients.items() if gradient is None)
            return loss.detach(), [
                torch.zeros_like(leaves[name]) if gradient is None else gradient
                for name, gradient in gradients.items()
            ]

        return loss_and_gradients, missing

    def metrics(self, rows: Rows) -> dict[str, Tensor]:
        """What `evaluate` returns under vmap, by metric."""

        def metrics_of(own: Tensors, buffers: Tensors) -> Any:
            return functional_call(self._call, _inside(own, buffers), ("evaluate",))

        key = ("evaluate", *self._where, _kind(rows.buffers), False)
        if key not in self._traces:
            stacked = _stacked(metrics_of)
            replay = _recording_of("evaluate", lambda *both: (stacked(*both), []), rows)
            self._traces[key] = replay, ()
        replay, _ = self._traces[key]
        found: dict[str, Tensor] = replay(rows.values, rows.buffers)
        return found


def _recording_of(
    method: str, function: Callable[..., Any], rows: Rows, *batch: Any, compiled: bool = False
) -> Callable[..., Any]:
    """The recording of a function of values, buffers and perhaps a batch.

    It runs the function: on copies of the buffers, because training writes into them (running
    statistics). Raises RuntimeError if a workload's method draws random numbers.
    """
    before = RandomState.now()
    copies = tree_map(torch.clone, rows.buffers)
    with torch.enable_grad():
        replay = record(function, rows.values, copies, *batch, compiled=compiled)
    if RandomState.now() != before:  # recorded, the numbers would be the same at every step
        raise RuntimeError(f"{method} draws from the process's random numbers")
    return replay


def _first(tensors: Tensors) -> dict[str, Tensor]:
    """Those of the first slot, which of a lone model is the only one."""
    return {name: tensor[0] for name, tensor in tensors.items()}


def _identity(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _stacked(function: Callable[..., Any]) -> Callable[..., Any]:
    return vmap(function, randomness="error")


def _kind(batch: Any) -> tuple[object, ...]:
    """Shapes, dtypes and nesting of a batch.

    The nesting of a dictionary is its names, by which a loss may choose among heads.
    """
    leaves, nesting = tree_flatten(batch)
    return (*((leaf.shape, leaf.dtype) for leaf in leaves), str(nesting))


def _inside(leaves: Tensors, buffers: Tensors) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in {**leaves, **buffers}.items()}
