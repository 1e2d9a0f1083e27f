"""The training loop: slots that refill as trials finish or diverge, one loop for every study.

A trial's numbers depend on its point alone: its model, batches and schedule start when it is loaded
into a slot, whoever its neighbours are. Nothing here knows of Optuna or of files; finished trials
are yielded.
"""

from __future__ import annotations

import math
import pickle
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError
from ..rules.clipping import Gate, TensorGate
from ..rules.optimizers import (
    acting,
    average_of,
    coefficients,
    is_of_torch,
    second_moment_of,
    state_of,
)
from ..rules.schedule import learning_rates
from ..rules.thresholds import TENSOR_FIRST, TENSOR_GATHERS, clip_z_of, share_of
from ..signals import stop_if_asked
from ..study.study import Study
from ..trial import Point, Trial
from ..workload.batches import Parts, move_batch
from ..workload.randomness import RandomState, seed_all
from ..workload.workload import Workload, build_model, chance_loss, draw_batches
from .audit import Audit, StackingError
from .execution import ALONE, Engine, Traces
from .python_state import PythonState, packed_hash, python_state
from .recorder import CHECK_EVERY, Recorder
from .rows import Stack

# between two savings of what is in training: the most that an interruption costs a long trial
SAVE_SECONDS = 60.0
OTHER_BATCHES = "its batches come in another order when they are drawn again"
BEYOND_CUT = "its saved state is beyond its cut"


@dataclass(frozen=True)
class Trained:
    """A finished trial, and its best checkpoint by parameter name.

    Where asked for, also its state after the last update.
    """

    trial: Trial
    checkpoint: dict[str, Tensor]
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Keeper(Protocol):
    """Keeps the state of trials in training, so that an interrupted one goes on where it was."""

    @property
    def is_leaving(self) -> bool:
        """Whether training is to end as soon as its state is saved."""

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        """Called when a point's training begins.

        Returns the state that was saved of it, if there is one.
        """

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        """Keep a state, in place of an earlier one."""

    def all_saved(self) -> None:
        """Called when the states of all trials in training were saved; may end training."""

    def start_again(self, point: Point, reason: str) -> None:
        """Called when a saved state is of no use, with the reason: training begins anew."""


class Observer(Protocol):
    """Looks at trials after some of their updates.

    steps   the numbers of updates after which it does; training ends after the last
    """

    @property
    def steps(self) -> Collection[int]: ...

    def look(self, step: int, values: Mapping[str, Tensor], divisor: Tensor | None) -> None:
        """Called with a copy of parameters and buffers by name.

        `divisor` is what a step is divided by (`SecondMoment.divisor`), [P]; None: nothing.
        """


class Supply(Protocol):
    """Points that a loop takes as its slots become free; others may take of them, too.

    optimizers      of all that may come
    follows_norms   whether a clip threshold of any that may come depends on earlier norms
    is_empty        whether there are no more to take
    """

    @property
    def optimizers(self) -> Collection[str]: ...

    @property
    def follows_norms(self) -> bool: ...

    @property
    def is_empty(self) -> bool: ...

    def take(self, most: int) -> list[Point]:
        """So many points or fewer: none when there are none."""


class Listed:
    """The points of a list, one after the other."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._points = deque(points)
        self.optimizers = {point.optimizer for point in self._points}
        self.follows_norms = any(point.follows_norms for point in self._points)

    @property
    def is_empty(self) -> bool:
        return not self._points

    def take(self, most: int) -> list[Point]:
        return [self._points.popleft() for _ in range(min(most, len(self._points)))]


@dataclass(eq=False)
class _Slot:
    """A trial in training: its point, its schedule as coefficients, and its measurements.

    until   updates after which it leaves its slot: all of them, or those before its cut
    """

    point: Point
    batches: _Batches
    columns: dict[str, NDArray[np.float64]]
    recorder: Recorder
    until: int
    python: PythonState | None = None  # of workload and model at the start, where it can be seen

    @property
    def step(self) -> int:
        """Updates done."""
        return self.recorder.step

    @property
    def total(self) -> int:
        """Updates planned."""
        return self.recorder.total_steps

    @property
    def is_over(self) -> bool:
        """Whether its training has ended, and not only come to its cut."""
        return self.step == self.total or self.recorder.is_hopeless()

    def is_learning(self) -> bool:
        """Whether its last loss is not above its first."""
        losses = self.recorder.losses
        return self.step == 0 or bool(losses[-1] <= losses[0])

    def state(self) -> dict[str, Tensor]:
        """All that was measured, the random numbers and the last batch, for `restore`."""
        return {
            **self.recorder.state(),
            "batch": self.batches.last(),
            **RandomState.now().tensors(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises ValueError, with nothing changed, if its batches were others, or if it has more
        updates than this training is to take.
        """
        if len(state["loss"]) > self.until:
            raise ValueError(BEYOND_CUT)
        if not torch.equal(state["batch"], self.batches.last()):
            raise ValueError(OTHER_BATCHES)
        random = RandomState.from_tensors(state)
        self.recorder.restore(state)
        random.restore()


class _Batches:
    """The batches of slots that were loaded together with the same seed, drawn once for all."""

    def __init__(
        self, workload: Workload, point: Point, device: torch.device, skip: int, parts: Parts
    ) -> None:
        self._iterator = draw_batches(workload, point.batch_size, point.seed)
        self._device, self._parts = device, parts
        self._last: Any = None
        for _ in range(skip):  # those that an interrupted trial has seen
            self._next()

    def last(self) -> Tensor:
        """A hash of the batch that was drawn last."""
        return packed_hash(self._last)

    def draw(self) -> Any:
        return move_batch(self._next(), self._device)

    def _next(self) -> Any:
        batch = self._last = next(self._iterator)
        if self._parts.count > 1:
            self._parts.learn(batch)
        return batch


def train(
    study: Study,
    workload: Workload,
    points: Iterable[Point] | Supply,
    engine: Engine = ALONE,
    device: str = "cpu",
    keeper: Keeper | None = None,
    traces: Traces | None = None,
    with_state: bool = False,
    to_cut: bool = False,
    observer: Observer | None = None,
) -> Iterator[Trained]:
    """Train points of one batch size and one workload; yield each as it finishes.

    At most `engine.slots` points are in training at once, fewer if fewer are to be had at first. A
    trial ends after its last update, or as soon as `verdict.hopeless` says that it can only be
    infeasible; its slot then takes the next point, and the stack shrinks when there is none.
    `keeper` is told what is in training and keeps its state now and then; `traces` keeps the graphs
    of a stacked workload from one call to the next. With `to_cut` a trial leaves its slot at its
    cut (`Study.cut_step`), with a verdict that is unfinished; its state is saved, so that its
    training may go on later. An `observer` looks at every trial, and ends it after its last look,
    unfinished. Exceptions of the workload are not caught.
    Raises StackingError if what a stack or a recording computes is not what the model alone does
    (audit.py). Each trial has its own random numbers, of Python, NumPy and torch; the caller's are
    as they were at each yield.
    """
    supply = Listed(points) if isinstance(points, Iterable) else points
    loop = _Loop(study, workload, supply, engine, torch.device(device), keeper, traces, with_state)
    loop.to_cut, loop.observer = to_cut, observer
    finished = loop.run()
    inside: RandomState | None = None
    while True:
        outside = RandomState.now()
        try:
            if inside:
                inside.restore()
            one = next(finished, None)
            inside = RandomState.now()
        finally:
            outside.restore()
        if one is None:
            return
        yield one


def evaluation_seed(seed: int, step: int) -> int:
    """Seed for the random numbers of an evaluation; depends on trial and step only."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class _Loop:
    def __init__(
        self,
        study: Study,
        workload: Workload,
        supply: Supply,
        engine: Engine,
        device: torch.device,
        keeper: Keeper | None,
        traces: Traces | None,
        with_state: bool,
    ) -> None:
        self.keeper, self.traces, self.with_state = keeper, traces, with_state
        self.study, self.workload, self.device = study, workload, device
        self.supply = supply
        self.slots: list[_Slot] = []
        self.engine = engine.fit_for(supply.optimizers)
        self.queue = deque(supply.take(self.engine.slots))  # taken, and not yet in a slot
        self.capacity = self.engine.capacity(len(self.queue))
        self.chance = chance_loss(workload)
        self.initial: dict[int, dict[str, Tensor]] = {}
        self.to_cut = False
        self.observer: Observer | None = None
        self.python: PythonState | None = None  # of a stack or a recording, after its first loss

    def run(self) -> Iterator[Trained]:
        if not self.queue:
            return
        batch_size = self.queue[0].batch_size  # that of every slot
        self.parts = Parts(self.study.accumulation, batch_size)
        self.every = self.study.evaluate_every(batch_size)
        model = self._build(self.queue[0])
        self.unused: nn.Module | None = model  # the first point's own, if it is trained alone
        bfloat16 = self.study.precision == "bfloat16"
        self.execution = self.engine.execution(
            self.workload, model, bfloat16, self.traces, self.parts
        )
        optimizers, follows_norms = self.supply.optimizers, self.supply.follows_norms
        self.stack = Stack(self.execution, self.capacity, optimizers, follows_norms)
        self.audit: Audit | None = None
        if not self.execution.builds_anew:
            self.audit = Audit(self.stack, self.workload, self._build(self.queue[0]), bfloat16)
        self.saved = time.monotonic()
        while self.slots or self.queue:
            if self.queue and len(self.slots) < self.capacity and self._aligned():
                self._refill()
            stop_if_asked()
            if steps := self._steps_ahead():
                self._train(steps)
            finished = [
                k
                for k, slot in enumerate(self.slots)
                if slot.step == slot.until or slot.recorder.is_hopeless()
            ]
            if finished and steps:
                self._recheck_update()
                self._prove_stateless()
            for k in finished:
                yield self._finish(k)
            if finished:
                kept = [k for k in range(len(self.slots)) if k not in finished]
                free = self.capacity - len(kept) - len(self.queue)
                self.queue.extend(self.supply.take(free))
                self._keep(kept)
            if self.keeper and self._is_saving_due(self.keeper) and self._aligned():
                self._save(self.keeper)
                self.saved = time.monotonic()
                self.keeper.all_saved()

    def _train(self, steps: int) -> None:
        began = time.perf_counter()
        self._advance(steps)
        self._evaluate([k for k, slot in enumerate(self.slots) if self._evaluation_due(slot)])
        share = (time.perf_counter() - began) / len(self.slots)
        self._observe()
        for slot in self.slots:
            slot.recorder.seconds += share

    def _observe(self) -> None:
        """Let the observer look at the slots that have come to one of its steps."""
        if self.observer is None:
            return
        for k, slot in enumerate(self.slots):
            if slot.step not in self.observer.steps:
                continue
            point, divisor = slot.point, None
            if moment := second_moment_of(point.optimizer):
                unit = coefficients(point.optimizer, point.settings, np.ones(slot.step))
                last = {name: float(table[-1]) for name, table in unit.items()}
                divisor = moment.divisor(self.stack.optimizer_state(k, point.optimizer), last)
            self.observer.look(slot.step, self.stack.snapshot(k), divisor)

    def _near_epsilon(self, k: int) -> float:
        """`SecondMoment.share_near_epsilon` after the last update; nan for other rules."""
        slot, optimizer = self.slots[k], self.slots[k].point.optimizer
        moment = second_moment_of(optimizer)
        if moment is None or not slot.step or state_of(optimizer)[moment.state] != 0.0:
            return math.nan  # from elsewhere than 0 v does not show what never had a gradient
        last = {name: float(table[slot.step - 1]) for name, table in slot.columns.items()}
        return moment.share_near_epsilon(self.stack.optimizer_state(k, optimizer), last)

    def _is_saving_due(self, keeper: Keeper) -> bool:
        return keeper.is_leaving or time.monotonic() - self.saved >= SAVE_SECONDS

    def _save(self, keeper: Keeper) -> None:
        """Save what is in training, if all that it depends on can be saved.

        Otherwise an interrupted training begins anew.
        """
        for k in range(len(self.slots)):
            self._save_slot(keeper, k)

    def _save_slot(self, keeper: Keeper, k: int) -> None:
        slot = self.slots[k]
        if self.execution.builds_anew and (
            slot.python is None or self._python_state() != slot.python
        ):
            return  # it keeps state in Python
        if not self.stack.is_saved_whole():
            return
        try:
            state = self.stack.state(k) | slot.state()
        except (TypeError, pickle.PicklingError):  # of a batch that cannot be hashed
            return
        keeper.save(slot.point, state)

    def _python_state(self) -> PythonState | None:
        """What Python remembers of workload and model; None where that cannot be seen."""
        try:
            return python_state(self.workload, self.execution.model, quick=True)
        except Exception:
            return None

    def _build(self, point: Point) -> nn.Module:
        return build_model(self.workload, point.seed, point.batch_size, self.device)

    def _initial(self, point: Point) -> dict[str, Tensor]:
        """Parameters and buffers of the untrained model of a point's seed, built once per seed."""
        if point.seed not in self.initial:
            model = self._build(point)
            self.initial[point.seed] = {
                **dict(model.named_parameters()),
                **dict(model.named_buffers()),
            }
        return self.initial[point.seed]

    def _aligned(self) -> bool:
        """Whether a trial that starts now will be evaluated together with the others."""
        return all(slot.step % self.every == 0 for slot in self.slots)

    def _refill(self) -> None:
        """Load the next points into the free slots, those that were interrupted as they were."""
        batches: dict[tuple[int, int], _Batches] = {}
        first = len(self.slots)
        while self.queue and len(self.slots) < self.capacity:
            point = self.queue.popleft()
            state = self.keeper.begin(point) if self.keeper else None
            if state is None or not self._resume(point, state, batches):
                self._append(point, 0, batches)
        self._evaluate([k for k in range(first, len(self.slots)) if self.slots[k].step == 0])
        self._keep(range(len(self.slots)))

    def _append(self, point: Point, step: int, batches: dict[tuple[int, int], _Batches]) -> int:
        """Load a point into the next slot, and return that slot's number.

        The first `step` of its batches were drawn before.
        """
        k = len(self.slots)
        if self.execution.builds_anew:
            self.stack.adopt(self.unused or self._build(point), point)
            self.unused = None
        else:
            self.stack.load(k, self._initial(point), point.optimizer)
        seed_all(point.seed)  # what draws random numbers in training trains alone
        python = self._python_state() if self.execution.builds_anew and self.keeper else None
        if (point.seed, step) not in batches:
            batches[point.seed, step] = _Batches(
                self.workload, point, self.device, step, self.parts
            )
        self.slots.append(replace(self._start(point, batches[point.seed, step]), python=python))
        return k

    def _resume(
        self, point: Point, state: Mapping[str, Tensor], batches: dict[tuple[int, int], _Batches]
    ) -> bool:
        """Load a point as it was saved, if all that its training depends on can be put back."""
        before = len(self.slots)
        try:
            k = self._append(point, len(state["loss"]), batches)
            self.stack.restore(k, state, point.optimizer)
            self.slots[k].restore(state)
        except (KeyError, ValueError, UserError) as error:  # UserError: its batches end
            del self.slots[before:]
            if self.keeper:
                self.keeper.start_again(point, str(error))
            return False
        return True

    def _keep(self, kept: Iterable[int]) -> None:
        """Drop all other slots, and order rows by optimizer."""
        order = sorted(kept, key=lambda k: (self.slots[k].point.optimizer, k))
        self.slots = [self.slots[k] for k in order]
        if order:
            self.stack.arrange(order, shrink=not self.queue and self.supply.is_empty)

    def _start(self, point: Point, batches: _Batches) -> _Slot:
        study = self.study
        schedule = study.schedule(point)
        updates, rates = study.updates(point), learning_rates(point, schedule)
        return _Slot(
            point=point,
            batches=batches,
            columns=coefficients(point.optimizer, point.settings, rates, study.decay_vectors),
            until=self._until(point, updates),
            recorder=Recorder(
                updates,
                study.objective,
                chance_loss=self.chance,
                maximize=study.maximize,
                divergence=study.divergence,
                averaged=average_of(point.optimizer) is not None,
            ),
        )

    def _until(self, point: Point, updates: int) -> int:
        """Updates after which a trial leaves its slot."""
        if self.observer:
            return min(updates, max(self.observer.steps))
        return min(updates, self.study.cut_step(point)) if self.to_cut else updates

    def _steps_ahead(self) -> int:
        """Updates until a slot must be looked at: an evaluation, its end, or the next check."""
        every = self.every
        looks = self.observer.steps if self.observer else ()
        ahead = [look - slot.step for slot in self.slots for look in looks if look > slot.step]
        return min(
            CHECK_EVERY,
            *ahead,
            *(min(every - slot.step % every, slot.until - slot.step) for slot in self.slots),
        )

    def _evaluation_due(self, slot: _Slot) -> bool:
        return slot.step % self.every == 0 or slot.step == slot.total

    def _advance(self, steps: int) -> None:
        """Take updates without looking at their results, then read all losses and norms."""
        tensor = self._tensor
        blocks = [
            (
                self.slots[rows[0]].point.optimizer,
                slice(rows[0], rows[-1] + 1),
                self._columns(rows, steps),
            )
            for rows in self._blocks()
        ]
        clip_norms, clip_zs = self._each("clip_norm"), self._each("clip_z")
        clip_norm_K1 = tensor(clip_norms)[:, None] if min(clip_norms) < np.inf else None
        gates = self._gates(steps) if min(clip_zs) < np.inf else None
        of_tensors = any(slot.point.clip_tensor < np.inf for slot in self.slots)
        tensor_gates = self._tensor_gates(steps) if of_tensors else None
        shape = (steps, self.stack.slots)
        # Wider than parameters in float16, and than a loss in float64 beside parameters in float32.
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        losses, norms, shares = (
            torch.zeros(shape, device=self.device, dtype=wide) for _ in range(3)
        )
        before = RandomState.now() if self.execution.is_stacked else None
        sources, each = self._sources()
        self.audited = self._healthiest()
        for i in range(steps):
            batch = self.execution.batch([source.draw() for source in sources], each)
            last = i == steps - 1
            if last and self.audit and self.audited:
                place = self.slots.index(self.audited)
                self.audit.before(place, self.execution.batch_of(batch, place))
            loss_K, norm_K1 = self.stack.gradients(batch)
            if self.audit and self.python is None:
                self.python = self._python_state()
            if last and self.audit:
                self.audit.after(loss_K, norm_K1)
            losses[i], norms[i] = loss_K, norm_K1[:, 0]
            limit_K1 = self.stack.clip_threshold(norm_K1, gates[i]) if gates else clip_norm_K1
            if limit_K1 is not None:
                self.stack.clip(norm_K1, limit_K1)
            if tensor_gates:
                shares[i] = self.stack.clip_tensors(tensor_gates[i])
            self.stack.update(
                [
                    (name, rows, {c: table[i] for c, table in columns.items()})
                    for name, rows, columns in blocks
                ]
            )
        if before is not None and before != RandomState.now():
            raise RuntimeError(
                "batches or loss draw from the process's random numbers, which each trial needs "
                "alone"
            )
        columns_T = (losses.T.tolist(), norms.T.tolist(), shares.T.tolist())
        for slot, loss, norm, share in zip(self.slots, *columns_T, strict=False):
            is_on = slot.point.clip_tensor < np.inf
            slot.recorder.record_block(loss, norm, share if is_on else None)
            if slot.recorder.is_without_gradient():
                looked = min(CHECK_EVERY, slot.total)
                raise UserError(
                    f"workload: the gradient is exactly 0 at each of the first {looked} updates, "
                    "so that nothing is trained: does the loss depend on the parameters of the "
                    "model that build_model returned?"
                )

    def _healthiest(self) -> _Slot | None:
        """The slot that has come farthest of those that learn.

        In others, rounding grows to any size.
        """
        learning = [slot for slot in self.slots if slot.is_learning()]
        return max(learning, key=lambda slot: slot.step, default=None)

    def _recheck_update(self) -> None:
        """Compute an update of one slot again, alone, before trials are handed out.

        Raises StackingError.
        """
        slot = self.audited
        if self.audit is None or slot is None or not slot.is_learning():
            return
        seed = evaluation_seed(slot.point.seed, slot.step)
        recorder = slot.recorder
        before = RandomState.now()
        first = float(recorder.losses[0]), float(recorder.grad_norms[0])
        self.audit.check(first, recorder.metrics if recorder.is_just_evaluated else None, seed)
        before.restore()

    def _prove_stateless(self) -> None:
        """Raise StackingError if Python's state changed since the first update: epochs, say."""
        if self.audit and self._python_state() != self.python:
            raise StackingError(
                "later in training the workload or model changes what it keeps in Python"
            )

    def _each(self, name: str) -> list[float]:
        """A clip threshold of every slot; those of idle ones never clip."""
        return [getattr(slot.point, name) for slot in self.slots] + [np.inf] * (
            self.stack.slots - len(self.slots)
        )

    def _gates(self, steps: int) -> list[Gate]:
        """What the next thresholds depend on besides the norms, prepared on the host."""
        first_K = [slot.step for slot in self.slots] + [0] * (self.stack.slots - len(self.slots))
        update_SK = np.arange(steps)[:, None] + np.array(first_K)
        clip_norm_K1 = self._tensor(self._each("clip_norm"), torch.float64)[:, None]
        tables = (clip_z_of(update_SK, self._each("clip_z")), share_of(update_SK))
        each = zip(
            *(self._tensor(table, torch.float64)[:, :, None] for table in tables), strict=True
        )
        return [Gate(clip_norm_K1, clip_z_K1, share_K1) for clip_z_K1, share_K1 in each]

    def _tensor_gates(self, steps: int) -> list[TensorGate]:
        """What clipping by tensor depends on besides the norms."""
        first_K = [slot.step for slot in self.slots] + [0] * (self.stack.slots - len(self.slots))
        gathers_SK = (np.arange(steps)[:, None] + np.array(first_K)) < TENSOR_GATHERS
        own_K = np.array(self._each("clip_tensor"))
        limits = (
            np.where(gathers_SK, np.inf, own_K),
            np.where(gathers_SK & (own_K < np.inf), TENSOR_FIRST, np.inf),
        )
        tables = [self._tensor(limit)[:, :, None] for limit in limits]
        gathers_SK1 = torch.from_numpy(gathers_SK).to(self.device)[:, :, None]
        return [TensorGate(*each) for each in zip(*tables, gathers_SK1, strict=True)]

    def _columns(self, rows: Sequence[int], steps: int) -> dict[str, Sequence[Tensor]]:
        """The coefficients of the next updates of rows of one optimizer, by name, [K, 1] each.

        Those of an optimizer of torch stay on the host in float64, as Python's numbers are.
        """
        first = self.slots[rows[0]]
        tables = {
            name: np.array([self._ahead(self.slots[k], name, steps) for k in rows]).T[:, :, None]
            for name in first.columns
        }
        if is_of_torch(first.point.optimizer):
            return {name: torch.from_numpy(table).unbind() for name, table in tables.items()}
        return {name: self._tensor(table).unbind() for name, table in acting(tables).items()}

    @staticmethod
    def _ahead(slot: _Slot, name: str, steps: int) -> NDArray[np.float64]:
        return slot.columns[name][slot.step : slot.step + steps]

    def _tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(
            self.device, dtype or self.stack.wide
        )

    def _blocks(self) -> list[list[int]]:
        """Rows of the same optimizer."""
        rows = groupby(range(len(self.slots)), key=lambda k: self.slots[k].point.optimizer)
        return [list(block) for _, block in rows]

    def _sources(self) -> tuple[list[_Batches], list[int]]:
        """What the slots' batches are drawn from, and the place of each row's among these.

        An idle row gets some batch.
        """
        sources = list({id(slot.batches): slot.batches for slot in self.slots}.values())
        place = {id(source): i for i, source in enumerate(sources)}
        each = [place[id(slot.batches)] for slot in self.slots]
        return sources, each + [0] * (self.stack.slots - len(each))

    def _evaluate(self, due: Sequence[int]) -> None:
        if not due:
            return
        seeds = [evaluation_seed(slot.point.seed, slot.step) for slot in self.slots]
        before = RandomState.now()
        metrics = self.stack.evaluate([*seeds, *[0] * (self.stack.slots - len(seeds))])
        before.restore()  # training draws as if there were no evaluations
        for k in due:
            recorder = self.slots[k].recorder
            recorder.report({name: values[k] for name, values in metrics.items()})
            if recorder.is_best:
                self.stack.keep_best(k)

    def _finish(self, k: int) -> Trained:
        point, recorder, study = self.slots[k].point, self.slots[k].recorder, self.study
        verdict, curve, seconds = recorder.verdict(), recorder.curve(), recorder.seconds
        if not self.slots[k].is_over:
            verdict = replace(verdict, outcome="unfinished")
            if self.keeper:
                self._save_slot(self.keeper, k)
        trial = Trial.from_curve(point, verdict, curve, study.objective, seconds, study.maximize)
        trial = replace(trial, near_epsilon=self._near_epsilon(k))
        return Trained(trial, self.stack.best(k), self.stack.state(k) if self.with_state else {})
