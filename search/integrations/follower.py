"""What a callback of a framework tells of a training: a study's run, or one that is watched by
itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ..judge.readout import Readout
from ..trainers.run import Run
from ..trainers.watched import MisuseError
from .watch import Options, Training


class Follower:
    """One training after the other, each from `begin` to `end`; between them, what is told is
    passed over, but for an evaluation of the untrained model.
    """

    def __init__(self, run: Run | None, options: Options) -> None:
        """Raises MisuseError for options beside a study's run."""
        if run and options:
            raise MisuseError(
                f"Watch: {', '.join(options)}: with a study's run, the study file says it"
            )
        self.run = run
        self._options, self._stops = Options(**options), options.get("stop", False)
        self._options["stop"] = False  # the framework ends training, no exception
        self._training: Training | None = None
        self._optimizer: Optimizer | None = None
        self._untrained: dict[str, float] = {}
        self._told: tuple[int, set[str]] = (0, set())  # metrics of an update

    def begin(
        self,
        optimizer: Optimizer,
        *,
        hooked: bool,
        processes: int = 1,
        clipped_at: float = math.inf,
        max_steps: int | None = None,
    ) -> None:
        """Watch an optimizer. `clipped_at`: where the framework clips, `max_steps`: how many
        updates it plans. Raises MisuseError for what cannot be watched.
        """
        if isinstance(optimizer, LBFGS):
            raise MisuseError("Watch: LBFGS has many gradients in a step, and no norm of the step")
        if processes > 1 and (self.run or self._stops):
            what = "a study's function trains" if self.run else "stop=True ends training"
            raise MisuseError(f"Watch: {what} in one process, got {processes}")
        self._optimizer = optimizer
        if self.run:
            if clipped_at < math.inf:
                raise MisuseError(
                    f"Watch: the framework clips at {clipped_at:g}, beside the study's clip_norm: "
                    "turn that off (`arguments(run)` does)"
                )
            self.run.watch(optimizer, hooked=hooked)
            return
        options = Options(**self._options)
        if max_steps is not None:
            options.setdefault("max_steps", max_steps)
        self._training = Training(optimizer, clipped_at=clipped_at, hooked=hooked, **options)
        self._training.begin()
        self.report(self._untrained)

    @property
    def _told_to(self) -> Run | Training | None:
        return self._training or (self.run if self._optimizer else None)

    def watches(self, optimizer: object) -> bool:
        return optimizer is self._optimizer

    def prepare(self) -> None:
        """Gradients of the next step are whole."""
        if self.run and self._optimizer:
            self.run.prepare(self._optimizer)
        elif self._training:
            self._training.prepare()

    def measured(self, norm: Tensor) -> None:
        """The framework has measured the norm of the next step, and clipped."""
        if self._training:
            self._training.measured(norm)

    def loss(self, loss: Tensor | float) -> None:
        """The loss of a batch, undivided."""
        if told_to := self._told_to:
            told_to.loss(loss)

    def forget_losses(self) -> None:
        """A new update begins: losses that wait are of one that was skipped."""
        if told_to := self._told_to:
            told_to.forget_losses()

    def report(self, metrics: Mapping[str, float], model: nn.Module | None = None) -> None:
        """An evaluation; what it says twice of one update counts once."""
        told_to = self.run or self._training
        if told_to is None:
            self._untrained = dict(metrics)
            return
        step = told_to.recorder.step
        if self._told[0] != step:
            self._told = step, set()
        new = {name: value for name, value in metrics.items() if name not in self._told[1]}
        self._told[1].update(new)
        if new and self.run:
            self.run.report(model=model, **new)
        elif new and self._training:
            self._training.report(**new)

    def lend_average(self) -> None:
        """An evaluation begins: of the average, where a trial's rule evaluates one."""
        if self.run and self.run.averaging:
            self.run.averaging.eval()

    def take_back(self) -> None:
        """An evaluation has ended, and was reported."""
        if self.run and self.run.averaging:
            self.run.averaging.train()

    @property
    def is_over(self) -> bool:
        """Whether the framework is to end training now."""
        if self._training:
            return self._training.is_hopeless and self._stops
        return self.run is not None and self.run.is_over

    def end(self, error: BaseException | None = None) -> Readout | None:
        """Training has ended; by an error, if there is one. What is told of one that was watched by
        itself.
        """
        training = self._training
        self._training = self._optimizer = None
        self._untrained, self._told = {}, (0, set())
        if training is None:
            return None
        training.end(error)
        return training.readout
