"""The training loop: slots that refill as trials finish or diverge, one loop for every study.

A trial's numbers depend on its point alone: its model, batches and schedule start when it is loaded into a
slot, whoever its neighbours are. Nothing here knows of Optuna or of files; finished trials are yielded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .clipping import Gate, clip_z_of, share_of
from .optimizers import coefficients
from .schedule import learning_rates, total_steps
from .stack import Stack, Traces
from .study import Study
from .trial import Curve, Point, Trial, measured
from .verdict import hopeless, judge
from .workload import Workload, chance_loss

# Updates between two looks at the losses. Each look waits for the device and costs the host some tens of
# microseconds; a divergent trial costs at most this many updates too many.
CHECK_EVERY = 20
SAVE_SECONDS = 60.0  # between two savings of what is in training: the most that an interruption costs a long trial


@dataclass(frozen=True)
class Engine:
    """How points are trained: one after the other, or `slots` of them stacked, each process with `threads` threads.

    `compiled`: by torch's compiler, which rounds differently. `reason` says why; `measured`, whether it was
    measured, and so holds for any number of such points.
    """

    stacked: bool
    slots: int
    reason: str = ""
    threads: int = 1
    measured: bool = False
    compiled: bool = False


ALONE = Engine(stacked=False, slots=1)


@dataclass(frozen=True)
class Trained:
    """A finished trial, and its best checkpoint by parameter name."""

    trial: Trial
    checkpoint: dict[str, Tensor]


class Keeper(Protocol):
    """Keeps the state of trials in training, so that one that was interrupted goes on where it was."""

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        """Called when a point's training begins. Returns the state that was saved of it, if there is one."""

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        """Keep a state, in place of an earlier one."""


@dataclass
class _Slot:
    """A trial in training: its point, its schedule as coefficients, and what was measured so far."""

    point: Point
    batches: _Batches
    total: int
    columns: dict[str, NDArray[np.float64]]
    loss: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    step: int = 0
    eval_step: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def curve(self, chance: float) -> Curve:
        return Curve(
            loss=self.loss[: self.step].copy(),
            grad_norm=self.grad_norm[: self.step].copy(),
            eval_step=np.array(self.eval_step, np.int64),
            metrics={name: np.array(values) for name, values in self.metrics.items()},
            total_steps=self.total,
            chance_loss=chance,
        )

    def state(self) -> dict[str, Tensor]:
        """All that was measured, and torch's random numbers, for `restore`."""
        return {
            "loss": torch.from_numpy(self.loss[: self.step]),
            "grad_norm": torch.from_numpy(self.grad_norm[: self.step]),
            "eval_step": torch.tensor(self.eval_step),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "random": torch.get_rng_state(),
            **{f"metric/{name}": torch.tensor(v, dtype=torch.float64) for name, v in self.metrics.items()},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.step = len(state["loss"])
        self.loss[: self.step] = state["loss"].numpy()
        self.grad_norm[: self.step] = state["grad_norm"].numpy()
        self.eval_step = state["eval_step"].tolist()
        self.seconds = float(state["seconds"])
        self.metrics = {
            name.removeprefix("metric/"): values.tolist()
            for name, values in state.items()
            if name.startswith("metric/")
        }
        torch.set_rng_state(state["random"])


class _Batches:
    """The batches of the slots that were loaded together with the same seed: drawn once for all of them."""

    def __init__(self, workload: Workload, point: Point, device: torch.device, skip: int) -> None:
        self._iterator = iter(workload.train_batches(point.batch_size, point.seed))
        self._device = device
        for _ in range(skip):  # those that an interrupted trial has seen
            next(self._iterator)

    def draw(self) -> Any:
        return tree_map(lambda part: part.to(self._device, non_blocking=True), next(self._iterator))


def train(
    study: Study,
    workload: Workload,
    points: Iterable[Point],
    engine: Engine = ALONE,
    device: str = "cpu",
    keeper: Keeper | None = None,
    traces: Traces | None = None,
) -> Iterator[Trained]:
    """Train points of one batch size and one workload; yield each as it finishes.

    At most `engine.slots` points are in training at once. A trial ends after its last update, or as soon as
    `verdict.hopeless` says that it can only be infeasible; its slot then takes the next point, and the stack
    shrinks when there is none. `keeper` is told what is in training and keeps its state now and then; `traces`
    keeps the graphs of a stacked workload from one call to the next. Exceptions of the workload are not caught.
    """
    with torch.random.fork_rng(devices=[]):
        yield from _Loop(study, workload, points, engine, torch.device(device), keeper, traces).run()


class _Loop:
    def __init__(
        self,
        study: Study,
        workload: Workload,
        points: Iterable[Point],
        engine: Engine,
        device: torch.device,
        keeper: Keeper | None,
        traces: Traces | None,
    ) -> None:
        self.keeper, self.traces = keeper, traces
        self.study, self.workload, self.device = study, workload, device
        self.queue = deque(points)
        self.slots: list[_Slot] = []
        self.engine = engine
        # What is compiled is so for one K, however few its points: see `Stack.arrange`.
        self.capacity = engine.slots if engine.compiled else min(engine.slots, len(self.queue))
        self.chance = chance_loss(workload)
        self.initial: dict[int, dict[str, Tensor]] = {}

    def run(self) -> Iterator[Trained]:
        if not self.queue:
            return
        model = self._build(self.queue[0].seed)
        self.stack = Stack(
            self.workload,
            model,
            self.capacity,
            self.engine.stacked,
            self.traces,
            self.study.accumulation,
            self.study.precision == "bfloat16",
            follows_norms=any(point.clip_z < np.inf for point in self.queue),
            compiled=self.engine.compiled,
        )
        self.saved = time.monotonic()
        while self.slots or self.queue:
            if self.queue and len(self.slots) < self.capacity and self._aligned():
                self._refill()
            began = time.perf_counter()
            self._advance(self._steps_ahead())
            self._evaluate([k for k, slot in enumerate(self.slots) if self._evaluation_due(slot)])
            share = (time.perf_counter() - began) / len(self.slots)
            for slot in self.slots:
                slot.seconds += share
            finished = [k for k, slot in enumerate(self.slots) if slot.step == slot.total or self._hopeless(slot)]
            for k in finished:
                yield self._finish(k)
            if finished:
                self._keep([k for k in range(len(self.slots)) if k not in finished])
            if self.keeper and self._aligned() and time.monotonic() - self.saved >= SAVE_SECONDS:
                for k, slot in enumerate(self.slots):
                    self.keeper.save(slot.point, self.stack.state(k) | slot.state())
                self.saved = time.monotonic()

    def _build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.workload.build_model(seed).to(self.device).train()

    def _initial(self, seed: int) -> dict[str, Tensor]:
        """Parameters and buffers of the untrained model of a seed; each seed is built once."""
        if seed not in self.initial:
            model = self._build(seed)
            self.initial[seed] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return self.initial[seed]

    def _aligned(self) -> bool:
        """Whether a trial that starts now will be evaluated together with the others."""
        return all(slot.step % self.study.evaluate_every == 0 for slot in self.slots)

    def _refill(self) -> None:
        """Load the next points into the free slots, those that were interrupted as they were."""
        batches: dict[tuple[int, int], _Batches] = {}
        first = len(self.slots)
        while self.queue and len(self.slots) < self.capacity:
            point, k = self.queue.popleft(), len(self.slots)
            state = self.keeper.begin(point) if self.keeper else None
            self.stack.load(k, self._initial(point.seed), point.optimizer)
            torch.manual_seed(point.seed)  # a model that draws random numbers trains alone (stack.py)
            step = len(state["loss"]) if state else 0
            if (point.seed, step) not in batches:
                batches[point.seed, step] = _Batches(self.workload, point, self.device, skip=step)
            self.slots.append(self._start(point, batches[point.seed, step]))
            if state:
                self.stack.restore(k, state)
                self.slots[k].restore(state)
        self._evaluate([k for k in range(first, len(self.slots)) if self.slots[k].step == 0])
        self._keep(range(len(self.slots)))

    def _keep(self, kept: Iterable[int]) -> None:
        """Drop all other slots, and order rows by optimizer."""
        order = sorted(kept, key=lambda k: (self.slots[k].point.optimizer, k))
        self.slots = [self.slots[k] for k in order]
        if order:
            self.stack.arrange(order, shrink=not self.queue)

    def _start(self, point: Point, batches: _Batches) -> _Slot:
        total = self.study.updates(point)
        schedule = total_steps(point, self.study.max_train_steps, self.study.prepend_warmup)
        return _Slot(
            point=point,
            batches=batches,
            total=total,
            columns=coefficients(point.optimizer, point.settings, learning_rates(point, schedule)),
            loss=np.empty(total),
            grad_norm=np.empty(total),
        )

    def _steps_ahead(self) -> int:
        """Updates until the first slot must be looked at: an evaluation, its end, or the next check."""
        every = self.study.evaluate_every
        return min(CHECK_EVERY, *(min(every - slot.step % every, slot.total - slot.step) for slot in self.slots))

    def _evaluation_due(self, slot: _Slot) -> bool:
        return slot.step % self.study.evaluate_every == 0 or slot.step == slot.total

    def _advance(self, steps: int) -> None:
        """Take updates without looking at their results; then read losses and norms of all of them."""
        tensor = self._tensor
        blocks = [
            (
                self.slots[rows[0]].point.optimizer,
                slice(rows[0], rows[-1] + 1),
                {
                    name: tensor([self._ahead(self.slots[k], name, steps) for k in rows]).T[:, :, None].unbind()
                    for name in self.slots[rows[0]].columns
                },
            )
            for rows in self._blocks()
        ]
        clip_norms, clip_zs = self._each("clip_norm"), self._each("clip_z")
        clip_norm_K1 = tensor(clip_norms)[:, None] if min(clip_norms) < np.inf else None
        gates = self._gates(steps) if min(clip_zs) < np.inf else None
        shape = (steps, self.stack.slots)
        losses, norms = (torch.empty(shape, device=self.device, dtype=self.stack.dtype) for _ in range(2))
        for i in range(steps):
            loss_K, norm_K1 = self.stack.gradients(self._batch())
            losses[i], norms[i] = loss_K, norm_K1[:, 0]
            self.stack.update(
                norm_K1,
                self.stack.limit(norm_K1, gates[i]) if gates else clip_norm_K1,
                [(name, rows, {c: table[i] for c, table in columns.items()}) for name, rows, columns in blocks],
            )
        for slot, loss, norm in zip(self.slots, losses.T.tolist(), norms.T.tolist(), strict=False):
            slot.loss[slot.step : slot.step + steps] = loss
            slot.grad_norm[slot.step : slot.step + steps] = norm
            slot.step += steps

    def _each(self, name: str) -> list[float]:
        """A clip threshold of every slot; those of idle ones never clip."""
        return [getattr(slot.point, name) for slot in self.slots] + [np.inf] * (self.stack.slots - len(self.slots))

    def _gates(self, steps: int) -> list[Gate]:
        """What the thresholds of the next updates depend on besides the norms, prepared on the host."""
        first_K = [slot.step for slot in self.slots] + [0] * (self.stack.slots - len(self.slots))
        update_SK = np.arange(steps)[:, None] + np.array(first_K)
        clip_norm_K1 = self._tensor(self._each("clip_norm"), torch.float64)[:, None]
        tables = (clip_z_of(update_SK, self._each("clip_z")), share_of(update_SK))
        each = zip(*(self._tensor(table, torch.float64)[:, :, None] for table in tables), strict=True)
        return [Gate(clip_norm_K1, clip_z_K1, share_K1) for clip_z_K1, share_K1 in each]

    @staticmethod
    def _ahead(slot: _Slot, name: str, steps: int) -> NDArray[np.float64]:
        return slot.columns[name][slot.step : slot.step + steps]

    def _tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(self.device, dtype or self.stack.dtype)

    def _blocks(self) -> list[list[int]]:
        """Rows of the same optimizer."""
        rows = groupby(range(len(self.slots)), key=lambda k: self.slots[k].point.optimizer)
        return [list(block) for _, block in rows]

    def _batch(self) -> Any:
        """The next batch of every slot; stacked, with a leading slot dimension. Idle slots get some batch."""
        sources = list({id(slot.batches): slot.batches for slot in self.slots}.values())
        drawn = [source.draw() for source in sources]
        if not self.engine.stacked:
            return drawn[0]
        place = {id(source): i for i, source in enumerate(sources)}
        each = [place[id(slot.batches)] for slot in self.slots]
        each += [0] * (self.stack.slots - len(each))
        # Copies also where one batch serves all: some kernels round differently if a tensor has no strides.
        return tree_map(lambda *parts: torch.stack([parts[i] for i in each]), *drawn)

    def _evaluate(self, due: Sequence[int]) -> None:
        if not due:
            return
        metrics = self.stack.evaluate()
        for k in due:
            slot = self.slots[k]
            slot.eval_step.append(slot.step)
            for name, values in metrics.items():
                slot.metrics.setdefault(name, []).append(values[k])
            history = np.array(slot.metrics[self.study.objective])
            if self.study.maximize:
                history = -history
            if np.isfinite(history[-1]) and not (history[:-1] <= history[-1]).any():
                self.stack.keep_best(k)

    def _hopeless(self, slot: _Slot) -> bool:
        return hopeless(slot.loss[: slot.step], slot.grad_norm[: slot.step], slot.total, self.chance)

    def _finish(self, k: int) -> Trained:
        slot = self.slots[k]
        broken = ~(np.isfinite(slot.loss[: slot.step]) & np.isfinite(slot.grad_norm[: slot.step]))
        if broken.any():
            slot.step = int(broken.argmax()) + 1
        curve = slot.curve(self.chance)
        verdict, objective = judge(curve), self.study.objective
        trial = measured(slot.point, verdict, curve, objective, slot.seconds, self.study.maximize)
        return Trained(trial, self.stack.best(k))
