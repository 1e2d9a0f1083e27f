"""What is measured while one training runs, and what follows from it, whoever runs the training.

A training loop tells its `Recorder` the loss and gradient norm of every update and the metrics of
every evaluation. The recorder says whether the last evaluation is the best so far, whether training
is hopeless, and at the end what the curve is and what it says. It knows one training alone: neither
how it is run, nor where anything is kept.

    recorder = Recorder(total_steps, "val_loss")
    recorder.report(evaluate(model))                        # of the untrained model
    while recorder.step < total_steps and not recorder.is_hopeless():
        loss = ...                                          # and loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        recorder.record(loss, norm)
        if recorder.step % evaluate_every == 0:
            recorder.report(evaluate(model))
            if recorder.is_best:
                ...                                         # keep the model
    curve, verdict = recorder.curve(), recorder.verdict()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..judge.verdict import MIN_PATIENCE, PATIENCE_FRACTION, hopeless, judge
from ..trial import Array, Curve, Verdict

# Updates between two looks at the losses. Each look waits for the device and costs the host some
# tens of microseconds; a divergent trial costs at most this many updates too many.
CHECK_EVERY = 20
# Where no metric is reported, the loss alone is asked, which takes longer: every MIN_PATIENCE
# updates, and in a long training whenever it has grown by this share.
LOOK_SHARE = 0.02
# Updates of a training of which nobody knows how many: the fewest of which MIN_PATIENCE is the
# share that a run is given to recover.
UNKNOWN_STEPS = math.ceil(MIN_PATIENCE / PATIENCE_FRACTION)

METRIC = "metric/"  # before the names of metrics in a state


class Recorder:
    """The measurements of one training. The first report must be of the untrained model.

    chance_loss   loss of a constant predictor; nan if it is not known
    step          updates recorded so far
    total_steps   updates that are planned; where nobody knows, those so far
    seconds       wall time of training so far, evaluation included; the caller adds to it, and
                  `state` keeps it
    """

    def __init__(
        self,
        total_steps: int | None,
        objective: str = "",
        *,
        chance_loss: float = math.nan,
        maximize: bool = False,
        divergence: bool = True,
        averaged: bool = False,
        expected_steps: int = UNKNOWN_STEPS,
    ) -> None:
        """Start a training of `total_steps` updates, ranked by the metric named `objective`; by
        default by the only one that is reported, and by its loss alone until then.

        Where `total_steps` is None, a training that ends was as long as it was to be; while it goes
        on, it is taken for one of `expected_steps`, or of the updates so far if those are more.
        `chance_loss` is the loss of a constant predictor; nan if it is not known. `maximize`: a
        higher value of the objective is better. Without `divergence` the loss counts only where it
        is not finite, and `averaged` says that an average is evaluated (`verdict`).
        """
        self.objective, self._known_steps = objective, total_steps
        self.step, self.seconds = 0, 0.0
        self.chance_loss, self._maximize, self._divergence = chance_loss, maximize, divergence
        self._averaged, self._expected = averaged, expected_steps
        self._most = math.inf if total_steps is None else total_steps
        room = CHECK_EVERY if total_steps is None else total_steps
        self._loss, self._grad_norm = np.empty(room), np.empty(room)
        self._clipped: Array | None = None  # as long as these, once a share is recorded
        self._broken = math.inf  # the first update whose loss or norm is not finite
        self._eval_step: list[int] = []
        self._metrics: dict[str, list[float]] = {}
        self._missing = 0  # evaluations without the objective
        self._evaluated: set[str] = set()  # metrics of the last evaluation
        self._untrained: set[str] = set()  # and of the first
        # Losses, norms and shares that nobody has looked at, [CHECK_EVERY] each, on their devices.
        self._ahead: list[Tensor] = []
        self._waiting = 0
        self._was_hopeless = False
        # the step from which on it is asked anew
        self._judge_next: float = min(CHECK_EVERY, self._most)

    def record(
        self, loss: Tensor | float, norm: Tensor | float, clipped: Tensor | float | None = None
    ) -> None:
        """Add an update: its loss, and its unclipped gradient norm.

        Both are those at the parameters before the update. May be called before or after
        `optimizer.step()`. `clipped`: the share of the tensors that clip_tensor clips; a training
        has one at every update or at none. Each is one number. Tensors are copied on their device,
        and not waited for; they are looked at CHECK_EVERY together, or when the curve is asked for.
        Raises ValueError if all planned updates are recorded.
        """
        self._check_room(1)
        numbers = [one for one in (loss, norm, clipped) if one is not None]
        if not self._ahead:
            self._ahead = [_block_for(number) for number in numbers]
        for block, number in zip(self._ahead, numbers, strict=True):
            block[self._waiting] = number.detach() if isinstance(number, Tensor) else number
        self._waiting += 1
        self.step += 1
        if self._waiting == CHECK_EVERY:
            self._look()

    def record_block(
        self,
        losses: Sequence[float],
        norms: Sequence[float],
        clipped: Sequence[float] | None = None,
    ) -> None:
        """Add some updates at once: their losses and unclipped gradient norms, in order.

        `clipped` as that of `record`. Raises ValueError if there are more of them than planned.
        """
        self._look()
        self._check_room(len(losses))
        self._add(self.step, losses, norms, clipped)
        self.step += len(losses)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Add an evaluation of the model after `step` updates: its metrics by name.

        A metric that it lacks, or that is there for the first time, is nan elsewhere. What is
        reported after the same update is one evaluation. Raises TypeError or ValueError, with
        nothing added, for a value that is no number, or a metric that this evaluation has.
        """
        numbers = {name: float(value) for name, value in metrics.items()}
        if self.is_just_evaluated:
            self._complete(numbers)
            return
        named = [self.objective] if self.objective else []
        for name in dict.fromkeys((*self._metrics, *numbers, *named)):
            earlier = self._metrics.setdefault(name, [math.nan] * len(self._eval_step))
            earlier.append(numbers.get(name, math.nan))
        self._missing += not numbers.keys() >= set(named)
        self._evaluated = set(numbers)
        if not self._eval_step:
            self._untrained = set(numbers)
        self._eval_step.append(self.step)
        self._judge_next = self.step

    def _complete(self, numbers: Mapping[str, float]) -> None:
        """Add metrics to the last evaluation."""
        if twice := self._evaluated & numbers.keys():
            raise ValueError(f"{', '.join(sorted(twice))}: reported twice after update {self.step}")
        for name, value in numbers.items():
            earlier = [math.nan] * len(self._eval_step)
            self._metrics.setdefault(name, earlier)[-1] = value
        self._missing -= self.objective in numbers  # "" is no name of a metric
        self._evaluated |= numbers.keys()
        if len(self._eval_step) == 1:
            self._untrained |= numbers.keys()
        self._judge_next = self.step

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation has the best value of the objective so far.

        That is the moment to keep a checkpoint, which is the caller's to do. Of equal values the
        first is the best; one that is nan or infinite never is.
        """
        history = np.array(self._metrics.get(self.objective, [math.nan]))
        if self._maximize:
            history = -history
        last, earlier = history[-1], history[:-1]
        return bool(np.isfinite(last)) and not (earlier[np.isfinite(earlier)] <= last).any()

    def is_hopeless(self) -> bool:
        """Whether training may stop here, because it can only be judged infeasible.

        To be asked after every update as recorded, and after its evaluation where there is one.
        The answer is renewed every CHECK_EVERY updates, after each evaluation and after the last
        update (`verdict.hopeless`), and once a number that is not finite has been looked at. Where
        no metric is reported, it is renewed more seldom (LOOK_SHARE).
        """
        if self.step < self._judge_next and self._broken == math.inf:
            return self._was_hopeless
        pause = CHECK_EVERY if self._metrics else max(MIN_PATIENCE, int(LOOK_SHARE * self.step))
        self._judge_next = min(self.step + pause, self._most)
        curve = self.curve()
        if self._known_steps is None:
            curve = replace(curve, total_steps=max(self.step, self._expected))
        self._was_hopeless = hopeless(
            curve, self.objective, maximize=self._maximize, divergence=self._divergence
        )
        return self._was_hopeless

    def is_without_gradient(self) -> bool:
        """Whether the gradient was exactly 0 at each of the first CHECK_EVERY updates.

        Of all updates, if fewer are planned.
        """
        first = min(CHECK_EVERY, self._most)
        return self.step >= first and not self.grad_norms[: int(first)].any()

    @property
    def losses(self) -> Array:
        """The loss of every update so far, [T]."""
        self._look()
        return self._loss[: self.step]

    @property
    def grad_norms(self) -> Array:
        """The unclipped gradient norm of every update so far, [T]."""
        self._look()
        return self._grad_norm[: self.step]

    @property
    def tensors_clipped(self) -> Array | None:
        """The share of the tensors that clip_tensor clipped at every update so far, [T]."""
        self._look()
        return None if self._clipped is None else self._clipped[: self.step]

    @property
    def metrics(self) -> Mapping[str, Sequence[float]]:
        """Every evaluation so far by name of the metric, that of the untrained model first."""
        return self._metrics

    @property
    def is_just_evaluated(self) -> bool:
        """Whether there was an evaluation after the last update."""
        return bool(self._eval_step) and self._eval_step[-1] == self.step

    def curve(self) -> Curve:
        """All that was measured so far; it ends with the first update that is not finite."""
        self._look()
        steps = int(min(self.step, self._broken + 1))
        return Curve(
            loss=self._loss[:steps],
            grad_norm=self._grad_norm[:steps],
            eval_step=np.array(self._eval_step, np.int64),
            metrics={name: np.array(values) for name, values in self._metrics.items()},
            total_steps=self.total_steps,
            chance_loss=self.chance_loss,
            tensors_clipped=None if self._clipped is None else self._clipped[:steps],
        )

    @property
    def total_steps(self) -> int:
        if self._known_steps is not None:
            return self._known_steps
        # what was hopeless is judged as it was looked at
        return max(self.step, self._expected) if self._was_hopeless else self.step

    def verdict(self) -> Verdict:
        """What the curve says of a training that ended here.

        Its evidence names evaluations without the objective.
        """
        found = judge(
            self.curve(),
            self.objective,
            maximize=self._maximize,
            divergence=self._divergence,
            averaged=self._averaged,
        )
        lacking = self._lacking()
        if not lacking:
            return found
        return replace(found, evidence="; ".join([found.evidence, *lacking]))

    def _lacking(self) -> list[str]:
        """What is to be told of evaluations without the objective."""
        names = [self.objective] if self.objective else list(self._metrics)
        values = self._metrics.get(names[0], []) if len(names) == 1 else []
        if not values:
            return []
        said, missing = [], self._missing
        if not self._untrained:
            said.append("the untrained model was not evaluated")
            missing -= bool(self.objective)
        elif names[0] in self._untrained and math.isnan(values[0]):
            said.append(f"{names[0]} of the untrained model is nan")
        if missing:
            said.append(
                f"{names[0]} was missing in {missing} of {len(self._eval_step)} evaluations"
            )
        return said

    def state(self) -> dict[str, Tensor]:
        """All that was measured, as tensors by name on the host, for `restore`.

        loss, grad_norm   [T]  float64, of every update
        tensors_clipped   [T]  float64, if it was recorded
        eval_step         [E]  updates done at every evaluation
        metric/NAME       [E]  float64
        metric_order      the place of every metric, in the order of their names: files sort those
        seconds, missing       numbers: of training so far; evaluations without the objective
        """
        clipped = self.tensors_clipped
        return {
            **({} if clipped is None else {"tensors_clipped": torch.from_numpy(clipped.copy())}),
            "loss": torch.from_numpy(self.losses.copy()),
            "grad_norm": torch.from_numpy(self.grad_norms.copy()),
            "eval_step": torch.tensor(self._eval_step),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "missing": torch.tensor(self._missing),
            "metric_order": torch.tensor(
                [list(self._metrics).index(name) for name in sorted(self._metrics)],
                dtype=torch.int64,
            ),
            **{
                f"{METRIC}{name}": torch.tensor(values, dtype=torch.float64)
                for name, values in self._metrics.items()
            },
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned, in place of what was recorded so far.

        Other names are passed over. Raises KeyError for a state that lacks something, and
        ValueError for one with more updates than planned, or whose parts differ in length; nothing
        is changed then.
        """
        loss, grad_norm = state["loss"].numpy(), state["grad_norm"].numpy()
        clipped = state["tensors_clipped"].numpy() if "tensors_clipped" in state else None
        eval_step, seconds = state["eval_step"].tolist(), float(state["seconds"])
        metrics = {
            name.removeprefix(METRIC): values.tolist()
            for name, values in state.items()
            if name.startswith(METRIC)
        }
        names = sorted(metrics)
        if "metric_order" in state:  # which 0.1.0 did not save
            places = dict(zip(names, state["metric_order"].tolist(), strict=True))
            names.sort(key=places.__getitem__)
        lengths = {len(values) for values in metrics.values()}
        each = {len(one) for one in (grad_norm, clipped) if one is not None}
        if each != {len(loss)} or lengths - {len(eval_step)}:
            raise ValueError("the parts of a saved state differ in length")
        if len(loss) > self._most:
            raise ValueError(
                f"a saved state of {len(loss)} updates is of another training: "
                f"{self.total_steps} are planned"
            )
        self._ahead, self._waiting, self._broken = [], 0, math.inf
        self._clipped = None
        self._add(0, loss, grad_norm, clipped)
        self.step, self.seconds = len(loss), seconds
        self._eval_step, self._metrics = eval_step, {name: metrics[name] for name in names}
        self._missing = int(state.get("missing", 0))
        self._evaluated = set(metrics)
        self._untrained = {
            name for name, values in metrics.items() if values and not math.isnan(values[0])
        }
        self._was_hopeless, self._judge_next = False, self.step

    def _check_room(self, more: int) -> None:
        if self.step + more > self._most:
            raise ValueError(f"more updates are recorded than the {self.total_steps} planned")

    def _look(self) -> None:
        """Read what waits on the device."""
        if not self._ahead:
            return
        losses, norms, *shares = (waiting[: self._waiting].tolist() for waiting in self._ahead)
        start = self.step - self._waiting
        self._ahead, self._waiting = [], 0
        self._add(start, losses, norms, shares[0] if shares else None)

    def _add(
        self,
        start: int,
        losses: Sequence[float] | Array,
        norms: Sequence[float] | Array,
        clipped: Sequence[float] | Array | None,
    ) -> None:
        """Write losses and norms, and shares if there are any, of the updates from `start` on."""
        block = slice(start, start + len(losses))
        if block.stop > len(self._loss):  # nobody knew how many there would be
            more = np.empty(max(block.stop, 2 * len(self._loss)) - len(self._loss))
            self._loss = np.concatenate([self._loss, more])
            self._grad_norm = np.concatenate([self._grad_norm, more])
        self._loss[block], self._grad_norm[block] = losses, norms
        if clipped is not None:
            self._clipped = _as_long(self._clipped, len(self._loss))
            self._clipped[block] = clipped
        if self._broken == math.inf:
            finite = np.isfinite(self._loss[block]) & np.isfinite(self._grad_norm[block])
            if not finite.all():
                self._broken = start + int(np.argmin(finite))


def _as_long(values: Array | None, length: int) -> Array:
    """Values with room for so many of them."""
    if values is None:
        return np.empty(length)
    if len(values) < length:
        return np.concatenate([values, np.empty(length - len(values))])
    return values


def _block_for(number: Tensor | float) -> Tensor:
    """Room for a block of numbers on the device of the first one, in the widest dtype there.

    A loss may be float64.
    """
    if not isinstance(number, Tensor):
        return torch.empty(CHECK_EVERY, dtype=torch.float64)
    wide = torch.float32 if number.device.type == "mps" else torch.float64
    return torch.empty(CHECK_EVERY, device=number.device, dtype=wide)
