"""Watch one training, without any study: every loss and gradient norm, the verdict, how to clip.

with tunewright.watch(optimizer, out="runs/a") as run:
    for batch in loader:
        loss = criterion(model, batch)
        run.loss(loss)                  # before backward
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

Training is what it would be without: nothing is changed, drawn or waited for, unless `clip_norm` or
`stop` asks for it. Losses and norms are looked at CHECK_EVERY together.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypedDict, Unpack

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError, describe_error
from ..judge.readout import Readout, read_out
from ..judge.verdict import judge
from ..train.recorder import UNKNOWN_STEPS, Recorder
from ..trainers.watched import Clipping, MisuseError, Updates, WatchedOptimizer
from ..trial import Curve, Point, Trial, Verdict
from ..workload.workload import number


class Options(TypedDict, total=False):
    """What may be asked of a training that is watched.

    chance_loss   loss of a constant predictor, by which one that learns nothing is told
    objective     metric that decides how training ended, if it is reported; default: the only one
    maximize      whether a higher value of it is better
    max_steps     updates that are planned, if known: a loss that has blown up is given a quarter of
                  them to recover; default: a quarter of those so far
    stop          end training that can only be judged infeasible
    out           a folder for curve.npz and report.html; those of an earlier training are replaced
    """

    chance_loss: float
    objective: str
    maximize: bool
    max_steps: int
    stop: bool
    out: str | Path


class HopelessError(Exception):
    """Training can only be judged infeasible, and `stop` asks to end it."""


class Training:
    """One training that is watched: `with` begins and ends it.

    When it ends, however it does, the verdict is printed and, with `out`, kept.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        clip_norm: float = math.inf,
        clipped_at: float = math.inf,
        hooked: bool = True,
        chance_loss: float = math.nan,
        objective: str = "",
        maximize: bool = False,
        max_steps: int = UNKNOWN_STEPS,
        stop: bool = False,
        out: str | Path | None = None,
    ) -> None:
        """Options as `watch`. `clipped_at`: somebody else clips there, once the norm is measured.
        Without `hooked`, `prepare` is to be called once gradients are whole.

        Raises UserError for a value that cannot be, or a folder that cannot be made.
        """
        if not clip_norm > 0:
            raise UserError(f"watch: clip_norm must be > 0, inf to never clip, got {clip_norm}")
        if max_steps < 1:
            raise UserError(f"watch: max_steps must be at least 1, got {max_steps}")
        self.optimizer, self._clip_norm = optimizer, min(clip_norm, clipped_at)
        self._clipping, self._hooked = Clipping(clip_norm), hooked
        self._maximize, self.stop = maximize, stop
        self.recorder = Recorder(
            None, objective, chance_loss=chance_loss, maximize=maximize, expected_steps=max_steps
        )
        self._updates = Updates(self.recorder)
        self._watched: WatchedOptimizer | None = None
        self._is_hopeless = False
        self._reported: set[str] = set()  # metrics
        self._began = time.monotonic()
        self._out = _folder(out) if out is not None else None
        self.readout: Readout | None = None  # once it has ended

    def begin(self) -> None:
        """Watch the optimizer from here on."""
        self._watched = WatchedOptimizer(
            self.optimizer, self._updates.record, self._clipping, hooked=self._hooked
        )

    def prepare(self) -> None:
        """Measure the gradients of the next step, if the optimizer is watched with hooked=False."""
        if self._watched:
            self._watched.prepare()

    def measured(self, norm: Tensor) -> None:
        """Take the norm of the next step from who measured it, and clips it."""
        if self._watched:
            self._watched.measured(norm)

    def loss(self, loss: Tensor | float) -> None:
        """Tell the training loss of a batch, before its backward pass; nothing is waited for.

        Of several losses before one update, as in gradient accumulation, the mean counts: tell each
        before you divide it. Raises HopelessError if training is, and `stop` is asked for: it ends
        the with block, and is not seen outside.
        """
        if self.is_hopeless and self.stop:
            raise HopelessError
        if self._updates.is_waiting and self._watched and self._watched.has_skipped():
            self.forget_losses()
        self._updates.add_loss(loss)

    def forget_losses(self) -> None:
        """Drop the losses since the last update: theirs was skipped."""
        self._updates.forget_losses()

    def report(self, **metrics: Tensor | float) -> None:
        """Tell the metrics of an evaluation. They say most if the first is of the untrained model.

        Raises MisuseError for a metric that is reported twice after one update, or is no number.
        """
        found = {name: number(name, value, "report: got") for name, value in metrics.items()}
        try:
            self.recorder.report(found)
        except ValueError as error:
            raise MisuseError(f"report: {error}") from error
        self._reported.update(found)

    @property
    def is_hopeless(self) -> bool:
        """Whether training can only be judged infeasible; this is printed when it is found."""
        if not self._is_hopeless and self.recorder.is_hopeless():
            self._is_hopeless = True
            found = self.recorder.verdict()
            say(f"hopeless after {self.recorder.step} updates: {found.outcome}: {found.evidence}.")
        return self._is_hopeless

    @property
    def curve(self) -> Curve:
        """All that was measured so far."""
        return self.recorder.curve()

    @property
    def verdict(self) -> Verdict:
        """What that says of a training that ended here; the loss alone, if the objective was never
        reported.
        """
        if self._lacks_objective:
            unevaluated = replace(self.curve, eval_step=np.empty(0, np.int64), metrics={})
            return judge(unevaluated)
        return self.recorder.verdict()

    @property
    def _lacks_objective(self) -> bool:
        return bool(self.recorder.objective) and self.recorder.objective not in self._reported

    def end(self, error: BaseException | None = None) -> None:
        """Leave the optimizer alone, print what was found, and write it if `out` is given.

        `error`: what ended training. Raises UserError if the files cannot be written; if an error
        ended training, that is printed.
        """
        if self._watched is None:
            return
        self._watched.release()
        self._watched = None
        if not self.recorder.step:
            unseen = "was the optimizer stepped inside of the with block?"
            say(
                f"no update was seen{f' until {describe_error(error)}' if error else f': {unseen}'}"
            )
            return
        found = read_out(self.curve, self.verdict, self._clip_norm)
        self.readout = found
        sentences = [self._length(error), *found.sentences]
        if self._lacks_objective:
            what = ", ".join(sorted(self._reported)) or "nothing"
            sentences.append(
                f"The objective {self.recorder.objective!r} was never reported ({what} was): the "
                "loss alone is judged."
            )
        print("\n".join(["tunewright:", *(f"  {sentence}" for sentence in sentences)]), flush=True)
        if self._out is not None:
            self._write(self._out, found, sentences, error)

    def _length(self, error: BaseException | None) -> str:
        steps = self.recorder.step
        length = "1 update was watched" if steps == 1 else f"{steps} updates were watched"
        if isinstance(error, HopelessError):
            return f"{length}; training was ended there, because it is hopeless."
        return f"{length}, until {describe_error(error)}." if error else f"{length}."

    def _write(
        self, out: Path, found: Readout, sentences: list[str], error: BaseException | None
    ) -> None:
        from ..show.page import write_page  # plotly takes half a second, which who prints need not

        name, base_lr = type(self.optimizer).__name__, float(self.optimizer.param_groups[0]["lr"])
        trial = Trial.from_curve(
            Point(0, 0, name, base_lr, clip_norm=self._clip_norm),
            found.verdict,
            self.curve,
            self.recorder.objective,
            time.monotonic() - self._began,
            self._maximize,
        )
        try:
            say(str(write_page(out, trial, found, sentences)))
        except OSError as failed:
            reason = f"{failed.filename or out}: cannot be written: {failed.strerror}"
            if error is None:
                raise UserError(reason) from failed
            say(reason)

    def __enter__(self) -> Training:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.end(error)
        return isinstance(error, HopelessError)


def watch(
    optimizer: Optimizer, *, clip_norm: float = math.inf, **options: Unpack[Options]
) -> Training:
    """Watch a training in your own loop; to be used by `with` (`Training`).

    Tell `run.loss(loss)` of each batch, and `run.report(val_loss=...)` of each evaluation if there
    are any. `clip_norm`: clip there, just before each step of the optimizer; by default gradients
    are left as they are. With `stop=True` the with block ends where training is hopeless, and the
    script goes on after it; otherwise that is printed, and `run.is_hopeless` says it.

    Gradient accumulation, parameter groups and GradScaler work as they are; of several optimizers
    watch each, or the main one. Among processes (DDP) watch in one of them, without `stop`.
    """
    return Training(optimizer, clip_norm=clip_norm, **options)


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"watch: out: {folder}: cannot be made: {error.strerror}") from error
    return folder


def say(sentence: str) -> None:
    """Print what a watcher has to say."""
    print(f"tunewright: {sentence}", flush=True)
