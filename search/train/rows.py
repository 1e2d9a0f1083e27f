"""K models of one shape as rows of one buffer: forward, backward, norm, clip and update for all at
once.

Shapes: K slots, P trainable parameters of one model. `theta` [K, P] holds the parameters, a row a
slot, and `gradient` [K, P] their gradients; the model's tensors are views of them. So norm,
clipping and update are a few operations on whole rows, however many tensors a model has.

Stacked, the model's forward and backward pass run under torch.func.vmap, every slot with its own
buffers (BatchNorm's running statistics). They are recorded once per K and replayed (tracing.py):
the same numbers without what vmap, autograd and the modules cost in Python. A slot's numbers depend
neither on K nor on its neighbours, to the last bit, as long as K ≥ 2: below that, kernels differ.
Not stacked (K = 1), the model runs as it is.
Compiled, the recording of a stack's loss and gradients, or of the lone model's, is made machine
code: other rounding, and again the same for every neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_map

from ..errors import UserError
from ..rules.clipping import Gate, clip_, global_norm, limit
from ..rules.optimizers import RULES
from ..rules.thresholds import entered
from ..workload.batches import Parts
from ..workload.randomness import RandomState, seed_all
from ..workload.workload import Workload, autocast, evaluated, numbers
from .ties import Ties, checkpoint_names, fixed_tensors
from .tracing import record

# Recordings of one workload, by what they depend on, each with the parameters that get no gradient.
Traces: TypeAlias = dict[tuple[object, ...], tuple[Callable[..., Any], tuple[str, ...]]]

# Parameters that an update touches at once: its intermediate results stay small, and in the cache.
UPDATED_AT_ONCE = 65_536
FEWEST_STACKED = 2  # rows of a stacked model; a lone trial gets an idle neighbour
# kinds of batches, each for half a minute: whole ones and a last one; others are replayed
MOST_COMPILED = 2


class Call(nn.Module):
    """A workload's method as a module around the model, so that functional_call can swap what it
    contains.
    """

    def __init__(self, workload: Workload, model: nn.Module, bfloat16: bool) -> None:
        super().__init__()
        self.model, self.workload, self.in_bfloat16 = model, workload, bfloat16

    def forward(self, method: str, *arguments: Any) -> Any:
        with autocast(self.model, self.in_bfloat16):
            return getattr(self.workload, method)(self.model, *arguments)


class Stack:
    """K slots, the used ones first and ordered by optimizer, so that each update rule has one block
    of rows.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        slots: int,
        stacked: bool,
        traces: Traces | None = None,
        parts: Parts | None = None,
        bfloat16: bool = False,
        follows_norms: bool = False,
        compiled: bool = False,
        *,
        optimizers: Iterable[str],
    ) -> None:
        """A stack with the shape of a model; `load` fills its slots. `traces` are those of earlier
        stacks.

        Not stacked and not compiled, an update's gradient is the mean over the `parts` of its
        batch, weighted by their numbers of examples: that of the whole batch, if the loss is a mean
        over examples. With `follows_norms` a slot may have a threshold that follows its gradient
        norms (`limit`). It has rows for the states of the rules of `optimizers`, and trains with
        no other.

        Raises UserError if the model's trainable parameters differ in device or dtype.
        """
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {(p.device, p.dtype) for p in trainable.values()}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise UserError(
                f"workload: the model's parameters must share one device and dtype; found {found}"
            )
        if not next(iter(kinds))[1].is_floating_point:
            raise UserError(
                f"workload: the model's parameters are {next(iter(kinds))[1]}, for which there "
                "are no update rules: keep real and imaginary parts as two real parameters "
                "(torch.view_as_complex)"
            )
        self.model, self.stacked, self._parts = model, stacked, parts or Parts(1, 0)
        self.device, self.dtype = next(iter(kinds))
        # of norms, coefficients and optimizer states
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self._call = Call(workload, model, bfloat16)
        self._shapes = {name: p.shape for name, p in trainable.items()}
        self._offsets: dict[str, tuple[int, int]] = {}
        width = 0
        for name, p in trainable.items():
            self._offsets[name] = (width, width + p.numel())
            width += p.numel()
        self.slots = max(slots, FEWEST_STACKED) if stacked else 1
        self._compiled = compiled
        self._compiled_kinds: set[object] = set()
        shape = (self.slots, width)
        self._rows = {
            name: torch.zeros(shape, device=self.device, dtype=dtype)
            for name, dtype in (
                ("theta", self.dtype),
                ("best", self.dtype),
            )
        }
        names = dict.fromkeys(name for rule in optimizers for name in RULES[rule].state)
        self._state = {
            name: torch.zeros(shape, device=self.device, dtype=self.wide) for name in names
        }
        # Not written before the first backward pass, which holds all gradients at once while it is
        # recorded.
        self._rows["gradient"] = torch.empty(shape, device=self.device, dtype=self.dtype)
        # Parameters that are not trained belong to a slot, too: another seed may have drawn others.
        fixed = fixed_tensors(model)
        self._buffers = {name: torch.stack([tensor] * self.slots) for name, tensor in fixed.items()}
        self._best_buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._names = checkpoint_names(model)
        # float64: the host repeats their recurrence (clipping.limits), and must find the same
        # updates clipped.
        norms = ("norm_mean", "norm_variance") if follows_norms else ()
        self._norms = {
            name: torch.zeros((self.slots, 1), device=self.device, dtype=torch.float64)
            for name in norms
        }
        self._traces: Traces = {} if traces is None else traces
        self._evaluates_stacked = True
        self._without_gradient: list[str] = []  # parameters, in the last update
        self._bind(tied=not self.builds_anew)  # a lone model keeps its values until it is adopted

    def _views(self, rows_KP: Tensor) -> dict[str, Tensor]:
        """The model's tensors, as parts of rows."""
        return {
            name: rows_KP[:, start:stop].view(len(rows_KP), *self._shapes[name])
            for name, (start, stop) in self._offsets.items()
        }

    def _bind(self, tied: bool = True) -> None:
        """Tie the views, and the model itself if it is alone, to the current rows."""
        self._values, self._gradients = (
            self._views(self._rows["theta"]),
            self._views(self._rows["gradient"]),
        )
        if self.stacked or not tied:
            return
        if self._compiled:  # its recording reads and writes the rows, its evaluation the model
            own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            for name, buffer in self._buffers.items():
                own[name].data = buffer[0]
        values = {name: rows[0] for name, rows in self._values.items()}
        gradients = {name: rows[0] for name, rows in self._gradients.items()}
        self._ties = Ties(self.model, values, gradients)

    def values(self, slot: int) -> dict[str, Tensor]:
        """A slot's parameters and buffers, as views."""
        return {name: rows[slot] for name, rows in self._values.items()} | self.buffers(slot)

    def buffers(self, slot: int) -> dict[str, Tensor]:
        """A slot's buffers and parameters that are not trained, as views."""
        return {name: rows[slot] for name, rows in self._buffers.items()}

    @property
    def builds_anew(self) -> bool:
        """Whether each trial needs a model of its own, because it runs as it is and may keep state
        in Python.
        """
        return not self.stacked and not self._compiled

    def adopt(self, model: nn.Module, optimizer: str) -> None:
        """Train a new model, alone, with a fresh optimizer state."""
        self.model = self._call.model = model
        initial = {name: p.detach() for name, p in model.named_parameters()}
        self._fill(0, {**initial, **dict(model.named_buffers())}, optimizer)
        self._bind()
        self.keep_best(0)

    @torch.no_grad()
    def load(self, slot: int, initial: Mapping[str, Tensor], optimizer: str) -> None:
        """Put a model's parameters and buffers, and a fresh optimizer state, into a slot."""
        self._fill(slot, initial, optimizer)
        self.keep_best(slot)

    @torch.no_grad()
    def _fill(self, slot: int, initial: Mapping[str, Tensor], optimizer: str) -> None:
        for name, values in self._values.items():
            values[slot].copy_(initial[name])
        for name, rows in self._buffers.items():
            rows[slot].copy_(initial[name])
        for name, rows in self._state.items():
            rows[slot] = RULES[optimizer].state.get(name, 0.0)
        for rows in self._norms.values():
            rows[slot] = 0.0

    def arrange(self, order: Sequence[int], shrink: bool) -> None:
        """Move the slots named to the front, in this order; to shrink, drop half of the rows while
        they are idle.

        Halving, not fitting: every K that is used costs a trace. A stack that is compiled keeps its
        K: what another rounds, a trial's numbers would depend on.
        """
        slots = self.slots
        while (
            shrink
            and self.stacked
            and not self._compiled
            and slots // 2 >= max(len(order), FEWEST_STACKED)
        ):
            slots //= 2
        if slots == self.slots and list(order) == list(range(len(order))):
            return
        idle = [k for k in range(self.slots) if k not in order]
        index = torch.tensor([*order, *idle][:slots], device=self.device)
        self._values, self._gradients = {}, {}  # views that would keep the old rows alive
        for held in (self._rows, self._state, self._norms, self._buffers, self._best_buffers):
            for name in held:
                if slots < self.slots:
                    held[name] = held[name][index]
                else:  # in blocks, never two copies of all
                    for block in torch.split(
                        held[name].view(self.slots, -1), UPDATED_AT_ONCE, dim=1
                    ):
                        block.copy_(block[index])
        self.slots = slots
        self._bind()

    def gradients(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss [K] and unclipped gradient norm [K, 1] at the current parameters; fills the gradient
        buffer.

        Stacked, the batch's tensors have a leading slot dimension.
        """
        if not self.stacked and not self._compiled:
            return self._lone_gradients(batch)
        with torch.no_grad():
            held = (self._values, self._buffers, list(self._gradients.values()))
            values, buffers, into = held if self.stacked else tree_map(lambda rows: rows[0], held)
            loss = self._traced("loss", values, buffers, batch, into=into)
            return loss.view(self.slots), global_norm(self._rows["gradient"])

    def _lone_gradients(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss [1] and norm [1, 1] of the model as it is, over the parts of a batch."""
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
        self._without_gradient = sorted(set.intersection(*missing))
        return cast(Tensor, total)[None], global_norm(self._rows["gradient"])

    def _traced(self, method: str, *arguments: Any, into: Sequence[Tensor] = ()) -> Any:
        """The result of a stacked call, from its recording for the current K."""
        leaves, nesting = tree_flatten(arguments[-1])
        # Nesting, too: of a dictionary the names, by which a loss may choose among heads.
        kinds = (*((leaf.shape, leaf.dtype) for leaf in leaves), str(nesting))
        if self._compiled and method == "loss" and len(self._compiled_kinds) < MOST_COMPILED:
            self._compiled_kinds.add(kinds)
        compiled = method == "loss" and kinds in self._compiled_kinds
        key = (method, self.slots, self.dtype, self.device, self._call.in_bfloat16, kinds, compiled)
        if key not in self._traces:
            call = self._loss_and_gradients if method == "loss" else self._metrics
            # Recording runs the call: on copies of the buffers, because training writes into them
            # (running statistics).
            values, buffers, *batch = arguments
            before = RandomState.now()
            with torch.enable_grad():
                replay = record(
                    call, values, tree_map(torch.clone, buffers), *batch, compiled=compiled
                )
            if RandomState.now() != before:  # recorded, the numbers would be the same at every step
                raise RuntimeError(f"{method} draws from the process's random numbers")
            self._traces[key] = replay, tuple(self._without_gradient)
        replay, missing = self._traces[key]
        if method == "loss":
            self._without_gradient = list(missing)
        return replay(*arguments, into=into)

    def _loss_and_gradients(
        self, values: Any, buffers: Any, batch: Any
    ) -> tuple[Tensor, list[Tensor]]:
        def loss(own: Any, buffers: Any, batch: Any) -> Any:
            return functional_call(self._call, _inside(own, buffers), ("loss", batch))

        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        loss_K = (vmap(loss, randomness="error") if self.stacked else loss)(leaves, buffers, batch)
        found = torch.autograd.grad(loss_K.sum(), list(leaves.values()), allow_unused=True)
        gradients = dict(zip(leaves, found, strict=True))
        self._without_gradient = [name for name, gradient in gradients.items() if gradient is None]
        return loss_K.detach(), [
            torch.zeros_like(leaves[name]) if gradient is None else gradient
            for name, gradient in gradients.items()
        ]

    def _metrics(self, values: Any, buffers: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
        result: dict[str, Tensor] = vmap(
            lambda own, buffers: functional_call(self._call, _inside(own, buffers), ("evaluate",)),
            randomness="error",
        )(values, buffers)
        return result, []

    @torch.no_grad()
    def limit(self, norm_K1: Tensor, gate: Gate) -> Tensor:
        """The clip thresholds of this update, [K, 1]; its norms enter those of the next."""
        mean_K1, variance_K1 = self._norms["norm_mean"], self._norms["norm_variance"]
        limit_K1 = limit(mean_K1, variance_K1, gate)
        clipped_K1 = torch.minimum(norm_K1.to(torch.float64), limit_K1)
        mean_K1, variance_K1 = entered(mean_K1, variance_K1, clipped_K1, gate.share)
        self._norms = {"norm_mean": mean_K1, "norm_variance": variance_K1}
        return limit_K1.to(self.wide)

    @torch.no_grad()
    def update(
        self,
        norm_K1: Tensor,
        clip_norm_K1: Tensor | None,
        blocks: Iterable[tuple[str, slice, Mapping[str, Tensor]]],
    ) -> None:
        """Clip the gradient buffer and apply one update: per optimizer, its rows and their
        coefficients.
        """
        rows = self._rows
        if clip_norm_K1 is not None:
            clip_(rows["gradient"], norm_K1, clip_norm_K1)
        width = rows["theta"].shape[1]
        skipped = self._held_back()
        for optimizer, block, columns in blocks:
            for start in range(0, width, UPDATED_AT_ONCE):
                part = {
                    name: held[block, start : start + UPDATED_AT_ONCE]
                    for name, held in rows.items()
                }
                state = {
                    name: self._state[name][block, start : start + UPDATED_AT_ONCE]
                    for name in RULES[optimizer].state
                }
                theta, gradient = part["theta"], part["gradient"]
                if self.wide is not self.dtype:
                    theta, gradient = theta.to(self.wide), gradient.to(self.wide)
                RULES[optimizer].update(theta, gradient, state, columns)
                if theta is not part["theta"]:
                    part["theta"].copy_(theta)
        for held, values in skipped:
            held.copy_(values)

    def _held_back(self) -> list[tuple[Tensor, Tensor]]:
        """Parts of rows that an update must not change, and their values: of parameters without a
        gradient.

        As torch's optimizers skip a parameter whose gradient is None: its momentum and weight decay
        rest, too.
        """
        parts = [
            rows[:, slice(*self._offsets[parameter])]
            for parameter in self._without_gradient
            for rows in (self._rows["theta"], *self._state.values())
        ]
        return [(part, part.clone()) for part in parts]

    @torch.no_grad()
    def evaluate(self, seeds: Sequence[int]) -> dict[str, list[float]]:
        """What `evaluate` returns for every slot, by metric, with the process's generators seeded
        for each.

        Stacked if the workload's evaluate() can be; one after the other if it uses .item(), Python
        numbers or random ones.
        """
        with evaluated(self.model):
            if not self.stacked:
                seed_all(seeds[0])
                found = numbers(self._call("evaluate"))
                self._ties.mend()
                self._ties.look_for_new_ones()
                return {name: [value] for name, value in found.items()}
            if self._evaluates_stacked:
                try:
                    metrics = self._traced("evaluate", self._values, self._buffers)
                    if any(values.ndim != 1 for values in metrics.values()):
                        raise TypeError("a metric is not one number")  # which one, is said below
                    return {name: values.tolist() for name, values in metrics.items()}
                except (RuntimeError, ValueError, TypeError, AttributeError):
                    self._evaluates_stacked = False
            return self._evaluate_each(seeds)

    def _evaluate_each(self, seeds: Sequence[int]) -> dict[str, list[float]]:
        rows: dict[str, list[float]] = {}
        for slot in range(self.slots):
            seed_all(seeds[slot])
            own = tree_map(lambda part, slot=slot: part[slot], _inside(self._values, self._buffers))
            for name, value in numbers(functional_call(self._call, own, ("evaluate",))).items():
                rows.setdefault(name, [math.nan] * self.slots)[slot] = value
        return rows

    @torch.no_grad()
    def keep_best(self, slot: int) -> None:
        """Remember a slot's parameters and buffers as its best checkpoint."""
        self._rows["best"][slot].copy_(self._rows["theta"][slot])
        if self.stacked:
            for name, rows in self._buffers.items():
                self._best_buffers[name][slot].copy_(rows[slot])
            return
        # A lone model may have replaced its buffers instead of writing into them, and have new
        # ones.
        own = fixed_tensors(self.model)
        self._best_buffers = {name: tensor.detach().clone()[None] for name, tensor in own.items()}
        self._names = checkpoint_names(self.model)

    def state(self, slot: int) -> dict[str, Tensor]:
        """All that a slot holds, on the host, for `restore`."""
        buffers = self._buffers
        if not self.stacked:
            buffers = {name: tensor[None] for name, tensor in fixed_tensors(self.model).items()}
        held = {name: rows[slot] for name, rows in self._rows.items() if name != "gradient"}
        held |= {f"state/{name}": rows[slot] for name, rows in self._state.items()}
        held |= {name: rows[slot] for name, rows in self._norms.items()}
        held |= {f"buffer/{name}": rows[slot] for name, rows in buffers.items()}
        held |= {f"best_buffer/{name}": rows[slot] for name, rows in self._best_buffers.items()}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}

    @torch.no_grad()
    def restore(self, slot: int, state: Mapping[str, Tensor], optimizer: str) -> None:
        """Put back what `state` returned of a slot that this optimizer trains. Raises ValueError,
        with nothing changed, if it is of another model.
        """
        own = {name: rows[slot] for name, rows in self._buffers.items()}
        if self.builds_anew:
            self._ties.mend()  # batches that were drawn again may have bound parameters elsewhere
        if not self.stacked:
            own = fixed_tensors(self.model)
        into = {name: self._rows[name][slot] for name in ("theta", "best")}
        for name in RULES[optimizer].state:  # of which 0.1.0 saved the name alone
            saved = f"state/{name}"
            into[saved if saved in state else name] = self._state[name][slot]
        # Not there if no neighbour's threshold followed its norms then.
        into |= {name: rows[slot] for name, rows in self._norms.items() if name in state}
        into |= {f"buffer/{name}": tensor for name, tensor in own.items()}
        into |= {f"best_buffer/{name}": self._best_buffers[name][slot] for name in own}
        named = {name for name in state if name.startswith(("buffer/", "best_buffer/"))}
        strangers = named - into.keys()
        other = [name for name, tensor in into.items() if _shape(state.get(name)) != tensor.shape]
        if strangers or other:
            raise ValueError(
                f"saved state of another model: {', '.join(sorted({*strangers, *other}))}"
            )
        for name, tensor in into.items():
            tensor.copy_(state[name])

    def best(self, slot: int) -> dict[str, Tensor]:
        """A slot's best checkpoint on the host, under all names of the model's state_dict, tied
        ones, too.
        """
        tensors = {name: view[slot] for name, view in self._views(self._rows["best"]).items()}
        tensors |= {name: rows[slot] for name, rows in self._best_buffers.items()}
        return {
            name: tensors[first].to("cpu", copy=True).contiguous()
            for name, first in self._names.items()
            if first in tensors
        }


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _inside(leaves: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in {**leaves, **buffers}.items()}
