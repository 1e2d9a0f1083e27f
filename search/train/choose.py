"""How a workload trains: one trial after the other, or K of them stacked; compiled, or not.

Whatever changes a number is decided by a rule that looks at no clock, and at nothing else that two
runs of a study need not share: not at load, cores, workers, free memory, or how many points are
left. An idle machine and a busy one, or two of one kind, so train to the same digits.

    stacked     where the fixed cost of an update, which a stack pays once for all of its slots, is
                a good part of the whole: by the work of one update, counted (work.py) and weighed
                with nominal costs; and only where the first updates prove that stacking changes
                nothing (`why_not_stacked`)
    compiled    only where a user asks for it: it takes a compiler and half a minute per process,
                rounds differently, and depends on K, which is then fixed
    threads     1 per process, unless a user says otherwise

More threads change the numbers of a lone trial in the last digits, after some updates: of all kinds
of network in tests/benchmarks but the transformer. What one thread loses is a core that is idle,
where there are fewer points than cores; processes with several threads each lose many times more
where others want the cores, too (tests/benchmarks/README.md, "Threads").

K may depend on memory and on the number of points: as long as K >= 2, it changes no number
(execution.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UnfinishedError, UserError, first_line
from ..rules.optimizers import is_of_torch, state_of
from ..study.study import Study
from ..trial import Point
from ..workload.workload import Workload
from .audit import relative_difference
from .execution import ALONE, Engine, Traces, alone_with
from .loop import Trained, train
from .python_state import PythonState, python_state
from .tracing import compiler_trouble
from .work import Work, count_work

WORTH_STACKING = 1.1  # predicted: less would be within its error
FEWEST_SLOTS, MOST_SLOTS = 4, 64
NEGLIGIBLE = 0.1  # a slot's share of the fixed cost, over its own: a wider stack gains no more
COMPILED_SLOTS = 16  # compiled, a wider stack gains nothing, and more of it is idle at the end
COMPILED_BYTES = 2**31  # of its rows: K must not depend on the memory that is free
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


@dataclass(frozen=True)
class Costs:
    """Nominal seconds of one thread: per update, call, floating-point operation, byte written.

    passes    over the parameters, of gradient, norm, optimizer's state and update
    stacked   what a slot's own part takes in a stack, over alone: batched kernels are slower
    """

    update: float
    call: float
    flop: float
    byte: float
    passes: float = 6.0
    stacked: float = 1.25

    def fixed(self, work: Work) -> float:
        """What an update takes whatever the sizes of its tensors: a stack pays it once."""
        return self.update + self.call * work.calls

    def own(self, work: Work) -> float:
        """What grows with the sizes of its tensors."""
        return self.flop * work.flops + self.byte * (work.bytes + self.passes * work.parameters)

    def slots(self, work: Work) -> int:
        """How many gain nearly all that there is to gain."""
        wanted = math.ceil(self.fixed(work) / self.own(work) / NEGLIGIBLE)
        return min(max(wanted, FEWEST_SLOTS), MOST_SLOTS)

    def gain(self, work: Work, slots: int) -> float:
        """How many times as fast as alone a stack should be."""
        fixed, own = self.fixed(work), self.own(work)
        return (fixed + own) / (fixed / slots + self.stacked * own)


# Fitted to the processor time of 21 networks (tests/benchmarks/README.md, "Stacked or alone").
CPU = Costs(update=150e-6, call=25e-6, flop=1 / 57e9, byte=1 / 5.4e9)
# The order of what makers of accelerators state, and nothing that was measured.
ACCELERATOR = replace(CPU, flop=1 / 10e12, byte=1 / 1e12)


def devices(names: str | None = None) -> list[str]:
    """The torch devices named, as "cpu" or "cuda:0,cuda:1"; by default every GPU, or the CPU.

    Raises UserError for one that is not there, or that cannot keep a number, as "meta".
    """
    if names is not None:
        found, instead = [name.strip() for name in names.split(",")], ""
    elif torch.cuda.is_available():
        found = [f"cuda:{place}" for place in range(torch.cuda.device_count())]
        instead = "; with --device cpu the processor trains"
    else:
        return ["cpu"]
    for name in found:
        try:
            torch.ones(1, device=name).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = first_line(error).split(". ")[0]
            raise UserError(f"device: {name!r} is not there: {reason}{instead}") from error
    return found


def choose(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    workers: int,
    device: str = "cpu",
    traces: Traces | None = None,
    compiled: bool | None = None,
    slots: int | None = None,
) -> Engine:
    """The engine for points of one batch size and workload, which `workers` processes share.

    `traces` keeps the recordings of the stacks that were checked. `compiled`: whether the user
    wants torch's compiler. `slots` forces how many trials are stacked, if the workload can be
    stacked. Raises UnfinishedError if the machine cannot compile what a user wants compiled.
    """
    if slots is not None:
        return _forced_engine(study, workload, points, device, slots)
    engine = _by_rule(study, workload, points, workers, device)
    return _compile(study, workload, points, engine, device, traces) if compiled else engine


def _forced_engine(
    study: Study, workload: Workload, points: Sequence[Point], device: str, slots: int
) -> Engine:
    """A stack of as many slots as a user wants, or alone where that would change numbers."""
    if slots == 1:
        return replace(ALONE, reason="forced")
    if trouble := why_not_stacked(study, workload, points, device):
        return replace(ALONE, reason=f"{slots} slots were wanted, {trouble}")
    return Engine(stacked=True, slots=slots, reason="forced")


def _by_rule(
    study: Study, workload: Workload, points: Sequence[Point], workers: int, device: str
) -> Engine:
    """What the work of one update says, and the proof that stacking changes nothing."""
    if trouble := _never_stacked(study):
        return replace(ALONE, reason=trouble)
    work = _work(study, workload, points, device)
    costs = CPU if torch.device(device).type == "cpu" else ACCELERATOR
    width = costs.slots(work)
    gain = costs.gain(work, width)
    reason = (
        f"by rule: an update is {work.flops / 1e6:.3g} MFLOP and {work.bytes / 1e6:.3g} MB in "
        f"{work.calls} operations, which a stack should train {gain:.2g} times as fast"
    )
    if gain < WORTH_STACKING:
        return replace(ALONE, reason=reason)
    if trouble := why_not_stacked(study, workload, points, device):
        return replace(ALONE, reason=trouble)
    most = min(_slots_in_memory(study, work, workers, device), len(points) // workers)
    return Engine(stacked=True, slots=max(2, min(width, most)), reason=reason)


def _never_stacked(study: Study) -> str:
    """Why nothing of a study is stacked, as the study alone says; empty if something may be.

    Asked of all its optimizers, because a round of its points may not have each of them.
    """
    if of_torch := next(filter(is_of_torch, study.optimizers), ""):
        return alone_with(of_torch)
    return ACCUMULATED if study.accumulation > 1 else ""


def _compile(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    engine: Engine,
    device: str,
    traces: Traces | None,
) -> Engine:
    """The same engine compiled, if that computes the same numbers."""
    # what is stacked was proven; what cannot be stacked cannot be recorded, either
    if not engine.stacked and (trouble := why_not_stacked(study, workload, points, device)):
        return replace(engine, reason=trouble)
    check_compiler(study, points, device)
    candidate = replace(engine, compiled=True)
    if engine.stacked:
        row = _row(study, _work(study, workload, points, device))
        candidate = replace(candidate, slots=max(2, min(COMPILED_SLOTS, COMPILED_BYTES // row)))
    some = [replace(point, base_lr=point.base_lr * 1e-3) for point in points[: candidate.slots]]
    try:
        alone = _first_steps(study, workload, some, ALONE, device)
        first = _first_steps(study, workload, some, candidate, device, traces)
        if differs := _differs(alone, first, TOLERANCE[torch.float32]):
            raise RuntimeError(f"{differs} from the model as it is")
    except Exception as error:
        return replace(engine, reason=f"{engine.reason}; cannot be compiled: {first_line(error)}")
    return replace(candidate, reason=f"{engine.reason}; compiled, as was wanted")


def check_compiler(study: Study, points: Sequence[Point], device: str) -> None:
    """Raise UnfinishedError if this machine cannot compile what is to be trained compiled."""
    if trouble := compiler_trouble(device):
        raise UnfinishedError(
            f"{study.name}, batch size {points[0].batch_size}: is to be trained compiled, which "
            f"this machine cannot: {trouble}; --no-compile trains what is left as it is, with "
            "other rounding"
        )


def why_not_stacked(study: Study, workload: Workload, points: Sequence[Point], device: str) -> str:
    """One sentence on why a workload must train one after the other; empty if it can be stacked.

    The first updates of some points are taken alone and stacked. Everything that is measured or
    kept must be equal: losses, gradient norms, metrics, parameters, optimizer states and buffers;
    and neither workload nor model may keep state in Python (`python_state`).
    """
    if trouble := _never_stacked(study):
        return trouble
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


def _first_steps(
    study: Study,
    workload: Workload,
    points: Sequence[Point],
    engine: Engine,
    device: str,
    traces: Traces | None = None,
) -> list[Trained]:
    """The first updates of each point, in the order of the points."""
    exact = study.of_steps(CHECKED_STEPS, 1).model_copy(update={"precision": "float32"})
    trained = train(exact, workload, points, engine, device, traces=traces, with_state=True)
    return sorted(trained, key=lambda one: one.trial.point.number)


def _work(study: Study, workload: Workload, points: Sequence[Point], device: str) -> Work:
    """Of an update of the first point."""
    first, bfloat16 = points[0], study.precision == "bfloat16"
    return count_work(workload, first.batch_size, first.seed, device, bfloat16)


def _row(study: Study, work: Work) -> int:
    """Bytes that a slot takes in a stack, whichever of the study's optimizers it has."""
    states = {name for optimizer in study.optimizers for name in state_of(optimizer)}
    return (ROWS + len(states)) * work.parameters


def _slots_in_memory(study: Study, work: Work, workers: int, device: str) -> int:
    """How many slots fit into a worker's share of the free memory, by the size of their rows."""
    if device == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = torch.cuda.mem_get_info(device)[0]
    return int(MEMORY_SHARE * free / workers / _row(study, work))
