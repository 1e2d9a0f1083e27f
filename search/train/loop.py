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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import UserError
from ..judge.verdict import hopeless, judge
from ..rules.clipping import Gate
from ..rules.optimizers import coefficients
from ..rules.schedule import learning_rates, total_steps
from ..rules.thresholds import clip_z_of, share_of
from ..signals import stop_if_asked
from ..study.study import Study
from ..trial import Curve, Point, Trial, measured
from ..workload.batches import Parts, moved, only_tensors
from ..workload.randomness import RandomState, seed_all
from ..workload.workload import Workload, built, chance_loss, drawn
from .audit import Audit, StackingError
from .python_state import PythonState, content_hash, python_state
from .rows import Stack, Traces

# Updates between two looks at the losses. Each look waits for the device and costs the host some
# tens of microseconds; a divergent trial costs at most this many updates too many.
CHECK_EVERY = 20
# between two savings of what is in training: the most that an interruption costs a long trial
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Engine:
    """How points are trained: one after the other, or `slots` of them stacked, each process with
    `threads` threads.

    `compiled`: by torch's compiler, which rounds differently. `reason` says why; `measured`,
    whether it was measured, and so holds for any number of such points.
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
    """A finished trial, its best checkpoint by parameter name, and where asked for, its state after
    the last update.
    """

    trial: Trial
    checkpoint: dict[str, Tensor]
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Keeper(Protocol):
    """Keeps the state of trials in training, so that one that was interrupted goes on where it
    was.
    """

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        """Called when a point's training begins. Returns the state that was saved of it, if there
        is one.
        """

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        """Keep a state, in place of an earlier one."""

    def start_again(self, point: Point, reason: str) -> None:
        """Called when a saved state is of no use: training begins anew, because of the reason
        given.
        """


@dataclass(eq=False)
class _Slot:
    """A trial in training: its point, its schedule as coefficients, and what was measured so
    far.
    """

    point: Point
    batches: _Batches
    total: int
    columns: dict[str, NDArray[np.float64]]
    loss: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    step: int = 0
    eval_step: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    python: PythonState | None = None  # of workload and model at the start, where it can be seen
    missing: int = 0  # evaluations without the objective
    seconds: float = 0.0

    def curve(self, chance: float) -> Curve:
        return Curve(
            loss=self.loss[: self.step],
            grad_norm=self.grad_norm[: self.step],
            eval_step=np.array(self.eval_step, np.int64),
            metrics={name: np.array(values) for name, values in self.metrics.items()},
            total_steps=self.total,
            chance_loss=chance,
        )

    def measured(self, metrics: Mapping[str, float], objective: str) -> None:
        """Add an evaluation; a metric that it lacks, or that is there for the first time, is nan
        elsewhere.
        """
        for name in {*self.metrics, *metrics, objective}:
            earlier = self.metrics.setdefault(name, [math.nan] * len(self.eval_step))
            earlier.append(metrics.get(name, math.nan))
        self.missing += objective not in metrics
        self.eval_step.append(self.step)

    def state(self) -> dict[str, Tensor]:
        """All that was measured, where the process's random numbers stand, and the last batch, for
        `restore`.
        """
        return {
            "loss": torch.from_numpy(self.loss[: self.step]),
            "grad_norm": torch.from_numpy(self.grad_norm[: self.step]),
            "eval_step": torch.tensor(self.eval_step),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "missing": torch.tensor(self.missing),
            "batch": torch.tensor(list(bytes.fromhex(self.batches.last())), dtype=torch.uint8),
            **RandomState.now().tensors(),
            **{
                f"metric/{name}": torch.tensor(v, dtype=torch.float64)
                for name, v in self.metrics.items()
            },
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises ValueError, with nothing changed, if its batches
        were others.
        """
        if bytes(state["batch"].tolist()).hex() != self.batches.last():
            raise ValueError("its batches come in another order when they are drawn again")
        random = RandomState.from_tensors(state)
        self.step = len(state["loss"])
        self.loss[: self.step] = state["loss"].numpy()
        self.grad_norm[: self.step] = state["grad_norm"].numpy()
        self.eval_step = state["eval_step"].tolist()
        self.seconds = float(state["seconds"])
        self.missing = int(state.get("missing", 0))
        self.metrics = {
            name.removeprefix("metric/"): values.tolist()
            for name, values in state.items()
            if name.startswith("metric/")
        }
        random.restore()


class _Batches:
    """The batches of the slots that were loaded together with the same seed: drawn once for all of
    them.
    """

    def __init__(
        self, workload: Workload, point: Point, device: torch.device, skip: int, parts: Parts
    ) -> None:
        self._iterator = drawn(workload, point.batch_size, point.seed)
        self._device, self._parts = device, parts
        self._last: Any = None
        for _ in range(skip):  # those that an interrupted trial has seen
            self._next()

    def last(self) -> str:
        """A hash of the batch that was drawn last."""
        return content_hash(self._last)

    def draw(self) -> Any:
        return moved(self._next(), self._device)

    def _next(self) -> Any:
        batch = self._last = next(self._iterator)
        if self._parts.count > 1:
            self._parts.learn(batch)
        return batch


def train(
    study: Study,
    workload: Workload,
    points: Iterable[Point],
    engine: Engine = ALONE,
    device: str = "cpu",
    keeper: Keeper | None = None,
    traces: Traces | None = None,
    with_state: bool = False,
) -> Iterator[Trained]:
    """Train points of one batch size and one workload; yield each as it finishes.

    At most `engine.slots` points are in training at once. A trial ends after its last update, or as
    soon as `verdict.hopeless` says that it can only be infeasible; its slot then takes the next
    point, and the stack shrinks when there is none. `keeper` is told what is in training and keeps
    its state now and then; `traces` keeps the graphs of a stacked workload from one call to the
    next. Exceptions of the workload are not caught. Raises StackingError if what a stack or a
    recording computes is not what the model alone does (audit.py). Each trial has its own random
    numbers, of Python, NumPy and torch; the caller's are as they were at each yield.
    """
    loop = _Loop(study, workload, points, engine, torch.device(device), keeper, traces, with_state)
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
    """Of the random numbers that an evaluation draws: by trial and step, whoever else is
    evaluated.
    """
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


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
        with_state: bool,
    ) -> None:
        self.keeper, self.traces, self.with_state = keeper, traces, with_state
        self.study, self.workload, self.device = study, workload, device
        self.queue = deque(points)
        self.slots: list[_Slot] = []
        self.engine = engine
        # What is compiled is so for one K, however few its points: see `Stack.arrange`.
        self.capacity = engine.slots if engine.compiled else min(engine.slots, len(self.queue))
        self.chance = chance_loss(workload)
        self.initial: dict[int, dict[str, Tensor]] = {}
        self.python: PythonState | None = None  # of a stack or a recording, after its first loss

    def run(self) -> Iterator[Trained]:
        if not self.queue:
            return
        self.parts = Parts(self.study.accumulation, self.queue[0].batch_size)
        model = self._build(self.queue[0])
        self.unused: nn.Module | None = model  # the first point's own, if it is trained alone
        self.stack = Stack(
            self.workload,
            model,
            self.capacity,
            self.engine.stacked,
            self.traces,
            self.parts,
            self.study.precision == "bfloat16",
            follows_norms=any(point.clip_z < np.inf for point in self.queue),
            compiled=self.engine.compiled,
        )
        self.audit: Audit | None = None
        if not self.stack.builds_anew:
            bfloat16 = self.study.precision == "bfloat16"
            self.audit = Audit(self.stack, self.workload, self._build(self.queue[0]), bfloat16)
        self.saved = time.monotonic()
        while self.slots or self.queue:
            if self.queue and len(self.slots) < self.capacity and self._aligned():
                self._refill()
            began = time.perf_counter()
            stop_if_asked()
            self._advance(self._steps_ahead())
            self._evaluate([k for k, slot in enumerate(self.slots) if self._evaluation_due(slot)])
            share = (time.perf_counter() - began) / len(self.slots)
            for slot in self.slots:
                slot.seconds += share
            finished = [
                k
                for k, slot in enumerate(self.slots)
                if slot.step == slot.total or self._hopeless(slot)
            ]
            if finished:
                self._prove()
                self._prove_stateless()
            for k in finished:
                yield self._finish(k)
            if finished:
                self._keep([k for k in range(len(self.slots)) if k not in finished])
            if self.keeper and self._aligned() and time.monotonic() - self.saved >= SAVE_SECONDS:
                self._save(self.keeper)
                self.saved = time.monotonic()

    def _save(self, keeper: Keeper) -> None:
        """Save what is in training, if all that it depends on can be saved: otherwise it would
        begin anew.
        """
        for k, slot in enumerate(self.slots):
            if self.stack.builds_anew and (
                slot.python is None or self._python_state() != slot.python
            ):
                continue  # it keeps state in Python
            try:
                state = self.stack.state(k) | slot.state()
            except (TypeError, pickle.PicklingError):  # of a batch that cannot be hashed
                continue
            keeper.save(slot.point, state)

    def _python_state(self) -> PythonState | None:
        """What Python remembers of workload and model; None where that cannot be seen."""
        try:
            return python_state(self.workload, self.stack.model, quick=True)
        except Exception:
            return None

    def _build(self, point: Point) -> nn.Module:
        return built(self.workload, point.seed, point.batch_size, self.device)

    def _initial(self, point: Point) -> dict[str, Tensor]:
        """Parameters and buffers of the untrained model of a point's seed; each seed is built
        once.
        """
        if point.seed not in self.initial:
            model = self._build(point)
            self.initial[point.seed] = {
                **dict(model.named_parameters()),
                **dict(model.named_buffers()),
            }
        return self.initial[point.seed]

    def _aligned(self) -> bool:
        """Whether a trial that starts now will be evaluated together with the others."""
        return all(slot.step % self.study.evaluate_every == 0 for slot in self.slots)

    def _refill(self) -> None:
        """Load the next points into the free slots, those that were interrupted as they were."""
        batches: dict[tuple[int, int], _Batches] = {}
        first = len(self.slots)
        while self.queue and len(self.slots) < self.capacity:
            point = self.queue.popleft()
            state = self.keeper.begin(point) if self.keeper else None
            if state is None or not self._resumed(point, state, batches):
                self._append(point, 0, batches)
        self._evaluate([k for k in range(first, len(self.slots)) if self.slots[k].step == 0])
        self._keep(range(len(self.slots)))

    def _append(self, point: Point, step: int, batches: dict[tuple[int, int], _Batches]) -> int:
        """Load a point into the next slot, with batches of which the first `step` were drawn; the
        slot.
        """
        k = len(self.slots)
        if self.stack.builds_anew:
            self.stack.adopt(self.unused or self._build(point), point.optimizer)
            self.unused = None
        else:
            self.stack.load(k, self._initial(point), point.optimizer)
        seed_all(point.seed)  # what draws random numbers in training trains alone
        python = self._python_state() if self.stack.builds_anew and self.keeper else None
        if (point.seed, step) not in batches:
            batches[point.seed, step] = _Batches(
                self.workload, point, self.device, step, self.parts
            )
        self.slots.append(replace(self._start(point, batches[point.seed, step]), python=python))
        return k

    def _resumed(
        self, point: Point, state: Mapping[str, Tensor], batches: dict[tuple[int, int], _Batches]
    ) -> bool:
        """Load a point as it was saved, if what can be put back is all that its training depends
        on.
        """
        before = len(self.slots)
        try:
            k = self._append(point, len(state["loss"]), batches)
            self.stack.restore(k, state)
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
        """Updates until the first slot must be looked at: an evaluation, its end, or the next
        check.
        """
        every = self.study.evaluate_every
        return min(
            CHECK_EVERY,
            *(min(every - slot.step % every, slot.total - slot.step) for slot in self.slots),
        )

    def _evaluation_due(self, slot: _Slot) -> bool:
        return slot.step % self.study.evaluate_every == 0 or slot.step == slot.total

    def _advance(self, steps: int) -> None:
        """Take updates without looking at their results; then read losses and norms of all of
        them.
        """
        tensor = self._tensor
        blocks = [
            (
                self.slots[rows[0]].point.optimizer,
                slice(rows[0], rows[-1] + 1),
                {
                    name: tensor([self._ahead(self.slots[k], name, steps) for k in rows])
                    .T[:, :, None]
                    .unbind()
                    for name in self.slots[rows[0]].columns
                },
            )
            for rows in self._blocks()
        ]
        clip_norms, clip_zs = self._each("clip_norm"), self._each("clip_z")
        clip_norm_K1 = tensor(clip_norms)[:, None] if min(clip_norms) < np.inf else None
        gates = self._gates(steps) if min(clip_zs) < np.inf else None
        shape = (steps, self.stack.slots)
        # Wider than parameters in float16, and than a loss in float64 beside parameters in float32.
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        losses, norms = (torch.empty(shape, device=self.device, dtype=wide) for _ in range(2))
        before = RandomState.now() if self.engine.stacked else None
        self.audited = self._healthiest()
        for i in range(steps):
            batch = self._batch()
            last = i == steps - 1
            if last and self.audit and self.audited:
                self.audit.before(self.slots.index(self.audited), batch)
            loss_K, norm_K1 = self.stack.gradients(batch)
            if self.audit and self.python is None:
                self.python = self._python_state()
            if last and self.audit:
                self.audit.after(loss_K, norm_K1)
            losses[i], norms[i] = loss_K, norm_K1[:, 0]
            self.stack.update(
                norm_K1,
                self.stack.limit(norm_K1, gates[i]) if gates else clip_norm_K1,
                [
                    (name, rows, {c: table[i] for c, table in columns.items()})
                    for name, rows, columns in blocks
                ],
            )
        if before is not None and before != RandomState.now():
            raise RuntimeError(
                "batches or loss draw from the process's random numbers, which each trial needs "
                "alone"
            )
        for slot, loss, norm in zip(self.slots, losses.T.tolist(), norms.T.tolist(), strict=False):
            slot.loss[slot.step : slot.step + steps] = loss
            slot.grad_norm[slot.step : slot.step + steps] = norm
            slot.step += steps
            looked = min(CHECK_EVERY, slot.total)
            if slot.step - steps < looked <= slot.step and not slot.grad_norm[:looked].any():
                raise UserError(
                    f"workload: the gradient is exactly 0 at each of the first {looked} updates, "
                    "so that nothing is trained: does the loss depend on the parameters of the "
                    "model that build_model returned?"
                )

    def _healthiest(self) -> _Slot | None:
        """The slot that has come farthest of those that learn: in others, rounding grows to any
        size.
        """
        learning = [
            slot
            for slot in self.slots
            if slot.step == 0 or slot.loss[slot.step - 1] <= slot.loss[0]
        ]
        return max(learning, key=lambda slot: slot.step, default=None)

    def _prove(self) -> None:
        """Compute an update of one slot again, alone, before trials are handed out. Raises
        StackingError.
        """
        slot = self.audited
        if self.audit is None or slot is None or not slot.loss[slot.step - 1] <= slot.loss[0]:
            return
        just_evaluated = bool(slot.eval_step) and slot.eval_step[-1] == slot.step
        seed = evaluation_seed(slot.point.seed, slot.step)
        before = RandomState.now()
        first = float(slot.loss[0]), float(slot.grad_norm[0])
        self.audit.check(first, slot.metrics if just_evaluated else None, seed)
        before.restore()

    def _prove_stateless(self) -> None:
        """Raise StackingError if Python remembers something else than after the first update:
        epochs, say.
        """
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
        """What the thresholds of the next updates depend on besides the norms, prepared on the
        host.
        """
        first_K = [slot.step for slot in self.slots] + [0] * (self.stack.slots - len(self.slots))
        update_SK = np.arange(steps)[:, None] + np.array(first_K)
        clip_norm_K1 = self._tensor(self._each("clip_norm"), torch.float64)[:, None]
        tables = (clip_z_of(update_SK, self._each("clip_z")), share_of(update_SK))
        each = zip(
            *(self._tensor(table, torch.float64)[:, :, None] for table in tables), strict=True
        )
        return [Gate(clip_norm_K1, clip_z_K1, share_K1) for clip_z_K1, share_K1 in each]

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

    def _batch(self) -> Any:
        """The next batch of every slot; stacked, with a leading slot dimension. Idle slots get some
        batch.
        """
        sources = list({id(slot.batches): slot.batches for slot in self.slots}.values())
        each_source = [source.draw() for source in sources]
        if not self.engine.stacked:
            return each_source[0]
        only_tensors(each_source)
        place = {id(source): i for i, source in enumerate(sources)}
        each = [place[id(slot.batches)] for slot in self.slots]
        each += [0] * (self.stack.slots - len(each))
        # Copies also where one batch serves all: some kernels round differently if a tensor has no
        # strides.
        return tree_map(lambda *parts: torch.stack([parts[i] for i in each]), *each_source)

    def _evaluate(self, due: Sequence[int]) -> None:
        if not due:
            return
        seeds = [evaluation_seed(slot.point.seed, slot.step) for slot in self.slots]
        before = RandomState.now()
        metrics = self.stack.evaluate([*seeds, *[0] * (self.stack.slots - len(seeds))])
        before.restore()  # training draws as if there were no evaluations
        for k in due:
            slot = self.slots[k]
            slot.measured(
                {name: values[k] for name, values in metrics.items()}, self.study.objective
            )
            history = np.array(slot.metrics[self.study.objective])
            if self.study.maximize:
                history = -history
            if np.isfinite(history[-1]) and not (history[:-1] <= history[-1]).any():
                self.stack.keep_best(k)

    def _hopeless(self, slot: _Slot) -> bool:
        study = self.study
        return hopeless(
            slot.curve(self.chance),
            study.objective,
            maximize=study.maximize,
            divergence=study.divergence,
        )

    def _finish(self, k: int) -> Trained:
        slot = self.slots[k]
        broken = ~(np.isfinite(slot.loss[: slot.step]) & np.isfinite(slot.grad_norm[: slot.step]))
        if broken.any():
            slot.step = int(broken.argmax()) + 1
        curve = slot.curve(self.chance)
        verdict = judge(
            curve,
            self.study.objective,
            maximize=self.study.maximize,
            divergence=self.study.divergence,
        )
        if slot.missing:
            lacking = (
                f"{self.study.objective} was missing in {slot.missing} of {len(slot.eval_step)} "
                "evaluations"
            )
            verdict = replace(
                verdict, evidence="; ".join(filter(None, [verdict.evidence, lacking]))
            )
        trial = measured(
            slot.point, verdict, curve, self.study.objective, slot.seconds, self.study.maximize
        )
        return Trained(trial, self.stack.best(k), self.stack.state(k) if self.with_state else {})
