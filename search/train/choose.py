"""Which way of training is faster for a workload: one trial after the other, or K of them stacked.

Measured, not guessed, on a few updates of the study's own points, in the process that will train
them. A model that cannot be stacked, or whose numbers change when it is, trains one after the
other, and the engine's `reason` says why. A long study tries torch's compiler, too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..rules.optimizers import is_of_torch, state_of
from ..study.study import Study
from ..threads import torch_threads
from ..trial import Point
from ..workload.randomness import own_random_numbers
from ..workload.workload import Workload, build_model
from .audit import relative_difference
from .execution import ALONE, Engine, Traces, alone_with
from .loop import Trained, train
from .python_state import PythonState, python_state

WORTH_UPDATES = 500  # in all: a choice costs up to 50, whatever their length
# of training one after the other: below, a study is over before a choice has paid
WORTH_SECONDS = 15.0
# times the rate of one after the other: less is within the noise of a measurement
WORTH_STACKING = 1.1
# times the rate so far; a stack of 4 that gains less than this gains nothing by being wider
WORTH_WIDENING = 1.05
WORTH_THREADS = 1.1  # times the rate of one thread per process
WORTH_COMPILING = 1.1  # times the rate that is not compiled
# of training per worker, or more: compiling takes 20 to 40, and saves a quarter to a half
COMPILED_SECONDS = 400.0
# at the most: compiled, a wider stack gains nothing, and more of it is idle at the end
COMPILED_SLOTS = 16
WIDTHS = (4, 16, 64)  # K: gains level off at a few dozen even for the smallest models
SECONDS = 0.2  # of one run that is measured
REPEATS = 3  # the fastest counts: what else the machine does can only slow a measurement down
NOT_REPEATED = 1.0  # seconds: a run that is longer is measured once
MOST_STEPS, FEWEST_STEPS = 400, 3  # of one run
MEMORY_SHARE = 0.5  # of what is free, over all workers
# copies of the parameters a slot holds besides its optimizer's state: θ, best, and the gradient,
# twice while it is copied
ROWS = 4
MEASURED = ("loss", "gradient norm")
# parameters and states below this are compared with it: some move by rounding alone
SMALL_KEPT = 1e-3
ACCUMULATED = "gradients are accumulated, for models too large to stack"
# enough for an optimizer's state to count, and few enough that rounding stays rounding
CHECKED_STEPS = 3
# relative; float32 only where float64 cannot run
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def devices(names: str) -> list[str]:
    """The torch devices named, as "cpu" or "cuda:0,cuda:1".

    Raises UserError for one that is not there, or that cannot keep a number, as "meta".
    """
    found = [name.strip() for name in names.split(",")]
    for name in found:
        try:
            torch.ones(1, device=name).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = first_line(error).split(". ")[0]
            raise UserError(f"device: {name!r} is not there: {reason}") from error
    return found


def choose(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    workers: int,
    cores: int = 1,
    device: str = "cpu",
    traces: Traces | None = None,
    compiled: bool | None = None,
    slots: int | None = None,
) -> Engine:
    """The faster engine for points of one batch size and workload, measured on the first ones.

    The points are shared by `workers` processes with one torch thread each, or by fewer with more
    threads, which together fill the `cores`. `traces` keeps the recordings of the stacks that were
    tried. `compiled`: whether to try torch's compiler also where training is short, or never; by
    default, where it may pay. `slots` forces how many trials are stacked, if the workload can be
    stacked.
    """
    if slots is not None:
        return _forced_engine(study, workload, points, device, slots)
    traces = {} if traces is None else traces
    engine, rate = _fastest_uncompiled(study, workload, points, workers, cores, device, traces)
    if of_torch := [point.optimizer for point in points if is_of_torch(point.optimizer)]:
        return replace(engine, reason=alone_with(of_torch[0]))  # however short training is
    if rate == 0:
        return engine
    if compiled is None:
        busy = min(workers, len(points))
        compiled = sum(map(study.updates, points)) / rate / busy > COMPILED_SECONDS
    return _try_compiling(study, workload, points, engine, device, traces) if compiled else engine


def _forced_engine(
    study: Study, workload: Workload, points: Sequence[Point], device: str, slots: int
) -> Engine:
    """A stack of as many slots as a user wants, or alone where that would change numbers."""
    if slots == 1:
        return replace(ALONE, reason="forced")
    if trouble := why_not_stacked(study, workload, points, device):
        return replace(ALONE, reason=f"{slots} slots were wanted, {trouble}")
    return Engine(stacked=True, slots=slots, reason="forced")


def _try_compiling(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    engine: Engine,
    device: str,
    traces: Traces,
) -> Engine:
    """The same engine compiled, if that is faster and computes the same numbers."""
    candidate = replace(engine, slots=min(engine.slots, COMPILED_SLOTS), compiled=True)
    some = [replace(point, base_lr=point.base_lr * 1e-3) for point in points[: candidate.slots]]
    try:
        with torch_threads(engine.threads):
            alone = _first_steps(study, workload, some, ALONE, device)
            first = _first_steps(study, workload, some, candidate, device, traces)
            if differs := _differs(alone, first, TOLERANCE[torch.float32]):
                raise RuntimeError(f"{differs} from the model as it is")
            both = (engine, candidate)
            turns = [
                [_rate(study, workload, points, one, device, traces) for one in both]
                for _ in range(REPEATS)
            ]
            rate, found = map(max, zip(*turns, strict=True))
    except Exception as error:  # there is no C++ compiler, say
        return replace(engine, reason=f"{engine.reason}; cannot be compiled: {first_line(error)}")
    if found < WORTH_COMPILING * rate:
        return replace(
            engine, reason=f"{engine.reason}; compiled only {found / rate:.2f} times as fast"
        )
    return replace(candidate, reason=f"{engine.reason}; {found:.0f} compiled")


def _fastest_uncompiled(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    workers: int,
    cores: int,
    device: str,
    traces: Traces,
) -> tuple[Engine, float]:
    """The faster engine without a compiler, and its updates per second.

    These are 0 where nothing could be compiled, either.
    """
    updates = sum(map(study.updates, points))
    if updates < WORTH_UPDATES:
        return replace(ALONE, reason=f"only {updates} updates in all: a choice would not pay"), 0.0
    began = time.perf_counter()
    list(train(_short(study, 1), workload, points[:1], ALONE, device))
    if updates * (time.perf_counter() - began) < WORTH_SECONDS:
        return replace(
            ALONE, reason=f"{updates} short updates in all: over before a choice has paid"
        ), 0.0
    one_thread = rate = _rate(study, workload, points, ALONE, device)
    if updates / rate < WORTH_SECONDS:
        return replace(
            ALONE, reason=f"{updates} updates at {rate:.0f}/s: over before a choice has paid"
        ), 0.0
    alone = ALONE
    if device == "cpu":
        alone, rate = _with_threads(study, workload, points, workers, cores, rate)
    if trouble := why_not_stacked(study, workload, points, device):
        return replace(alone, measured=True, reason=trouble), 0.0
    most = min(_slots_in_memory(workload, points, workers, device), max(2, len(points) // workers))
    best, found = alone, rate
    for slots in sorted({min(width, most) for width in WIDTHS}):
        engine = Engine(stacked=True, slots=slots)
        measured = _rate(study, workload, points, engine, device, traces)
        worth_widening = measured > WORTH_WIDENING * found
        if measured > found:
            best, found = engine, measured
        if not worth_widening:
            break
    if found < WORTH_STACKING * rate:
        reason = f"{rate:.0f} updates/s; the best stack is only {found / rate:.2f} times as fast"
        return replace(alone, measured=True, reason=reason), rate
    reason = f"{found:.0f} updates/s stacked, {one_thread:.0f} one after the other"
    return replace(best, measured=True, reason=reason), found


def _with_threads(
    study: Study, workload: Workload, points: Sequence[Point], workers: int, cores: int, rate: float
) -> tuple[Engine, float]:
    """One after the other, with the number of threads that is fastest over all processes.

    Returns also its rate per worker.

    Where there is a point for every worker, processes win: on none of the networks of
    tests/benchmarks did one process with two threads reach what two with one thread do.
    """
    busy = min(workers, len(points))
    best, found = ALONE, rate
    if busy == workers:
        return best, found
    for threads in sorted({cores // busy, cores} - {0, 1}):
        processes = min(max(1, cores // threads), len(points))
        with torch_threads(threads):
            share = _rate(study, workload, points, ALONE, "cpu") * processes / busy
        if share > found * WORTH_THREADS:
            best, found = replace(ALONE, threads=threads), share
    return best, found


def why_not_stacked(study: Study, workload: Workload, points: Sequence[Point], device: str) -> str:
    """One sentence on why a workload must train one after the other; empty if it can be stacked.

    The first updates of some points are taken alone and stacked. Everything that is measured or
    kept must be equal: losses, gradient norms, metrics, parameters, optimizer states and buffers;
    and neither workload nor model may keep state in Python (`python_state`).
    """
    if of_torch := [point.optimizer for point in points if is_of_torch(point.optimizer)]:
        return alone_with(of_torch[0])
    if study.accumulation > 1:
        return ACCUMULATED
    some = [replace(point, base_lr=point.base_lr * 1e-3) for point in points[:2]]
    work, tolerance = _Observed(workload, double=True), TOLERANCE[torch.float64]
    try:
        alone = _first_steps(study, work, some, ALONE, device)
    except (RuntimeError, TypeError):  # a loss that cannot take float64
        work, tolerance = _Observed(workload, double=False), TOLERANCE[torch.float32]
        alone = _first_steps(study, work, some, ALONE, device)
    if kept := work.kept_state():
        return f"cannot be stacked: {kept}"
    try:
        stacked = _first_steps(study, work, some, Engine(stacked=True, slots=2), device)
    except Exception as error:
        return f"cannot be stacked: {first_line(error)}"
    if differs := _differs(alone, stacked, tolerance):
        return f"cannot be stacked: {differs} from the model alone"
    return ""


class _Observed:
    """A workload, and what Python remembers of it and its models at the first loss of each.

    With `double`, models are in double precision, where rounding cannot hide a difference.
    """

    def __init__(self, workload: Workload, double: bool) -> None:
        self.workload, self._double = workload, double
        self._models: dict[int, tuple[nn.Module, PythonState]] = {}
        self._trouble = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workload, name)

    def __getstate__(self) -> dict[str, Any]:
        """What counts as state: the workload, and nothing that is remembered of it here."""
        return {"workload": self.workload}

    def build_model(self, seed: int) -> nn.Module:
        model = self.workload.build_model(seed)
        return model.double() if self._double else model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if id(model) not in self._models and torch.is_grad_enabled() and not self._trouble:
            self._remember(model)
        return self.workload.loss(model, batch)

    def _remember(self, model: nn.Module) -> None:
        try:
            self._models[id(model)] = model, python_state(self.workload, model)
        except Exception as error:
            self._trouble = (
                f"workload or model may keep state, which cannot be seen: {first_line(error)}"
            )

    def kept_state(self) -> str:
        """In words, whether workload or models are not as they were; empty if they are."""
        if self._trouble:
            return self._trouble
        for model, before in self._models.values():
            if python_state(self.workload, model) != before:
                return "workload or model keeps state in Python between calls"
        self._models.clear()
        return ""


@dataclass
class _Unevaluated:
    """A workload whose evaluation takes next to no time.

    On a large validation set it would take most of the time that is measured.
    """

    workload: Workload
    objective: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workload, name)

    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        return {self.objective: next(model.parameters()).new_zeros(())}


def _differs(alone: Sequence[Trained], others: Sequence[Trained], tolerance: float) -> str:
    """What of the same trials is not equal, in words; empty if all is."""
    for one, other in zip(alone, others, strict=True):
        ours, theirs = _all_of(one), _all_of(other)
        if ours.keys() != theirs.keys():
            return f"{', '.join(sorted(ours.keys() ^ theirs.keys()))}: not what there is"
        for name, values in ours.items():
            measured = name in MEASURED or name.startswith("metric ")
            difference = relative_difference(
                values, theirs[name], 1e-12 if measured else SMALL_KEPT
            )
            if not difference <= tolerance:
                return f"{name} differs by {difference:.1e}"
    return ""


def _all_of(one: Trained) -> dict[str, NDArray[np.float64]]:
    """All that a trial measured and kept, by a name to show."""
    curve = one.trial.curve
    found = dict(zip(MEASURED, (curve.loss, curve.grad_norm), strict=True))
    found |= {f"metric {name}": values for name, values in curve.metrics.items()}
    kept = {
        **one.state,
        **{f"checkpoint {name}": tensor for name, tensor in one.checkpoint.items()},
    }
    for name, tensor in kept.items():
        found[name.replace("/", " ")] = tensor.to(torch.float64).numpy()
    return found


def _short(study: Study, steps: int) -> Study:
    return study.model_copy(
        update={
            "max_train_steps": steps,
            "evaluations": 1,
            "prepend_warmup": False,
            "stop_after": None,
        }
    )


def _first_steps(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    engine: Engine,
    device: str,
    traces: Traces | None = None,
) -> list[Trained]:
    """The first updates of each point, in the order of the points."""
    exact = _short(study, CHECKED_STEPS).model_copy(update={"precision": "float32"})
    trained = train(exact, workload, points, engine, device, traces=traces, with_state=True)
    return sorted(trained, key=lambda one: one.trial.point.number)


def _rate(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    engine: Engine,
    device: str,
    traces: Traces | None = None,
) -> float:
    """Updates of single trials per second, from the seconds that trials spent in training.

    Starts do not count.
    """
    some = [replace(point, base_lr=point.base_lr * 1e-6) for point in points[: engine.slots]]
    own: Traces = (
        {}
        if traces is None
        else {key: recorded for key, recorded in traces.items() if key[0] == "loss"}
    )
    unevaluated = _Unevaluated(workload, study.objective)

    def run(steps: int) -> float:
        trained = train(_short(study, steps), unevaluated, some, engine, device, traces=own)
        return sum(one.trial.seconds for one in trained)

    run(1)
    steps = FEWEST_STEPS
    seconds = run(steps)
    if seconds < SECONDS:
        steps = min(math.ceil(steps * SECONDS / seconds), MOST_STEPS)
        seconds = run(steps)
    if seconds < NOT_REPEATED:
        seconds = min(seconds, *(run(steps) for _ in range(REPEATS - 1)))
    if traces is not None:
        traces |= {key: recorded for key, recorded in own.items() if key[0] == "loss"}
    return len(some) * steps / seconds


def _slots_in_memory(workload: Workload, points: Sequence[Point], workers: int, device: str) -> int:
    """How many slots fit into a worker's share of the free memory, by the size of their rows."""
    point = points[0]
    states = {name for one in points for name in state_of(one.optimizer)}
    with own_random_numbers():
        model = build_model(workload, point.seed, point.batch_size, torch.device("cpu"))
    row = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if device == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = torch.cuda.mem_get_info(device)[0]
    return max(2, int(MEMORY_SHARE * free / workers / ((ROWS + len(states)) * row)))
