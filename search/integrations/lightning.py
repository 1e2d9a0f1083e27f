"""Watch a training by Lightning, by itself or as a trial of a study.

    trainer = lightning.Trainer(callbacks=[Watch(out="runs/a")])

def main(run):                                       # train = "module:main" in a study file
    trainer = lightning.Trainer(**arguments(run))    # ends by itself; evaluates when it is due
    trainer.fit(MyModule(run), train_loader, val_loader)

Measured on Lightning 2.6: `on_before_optimizer_step` sees gradients that are whole, divided by the
scale of a GradScaler and not yet clipped; hooks of the optimizer come before its closure, which
computes them. `on_before_backward` sees the loss divided by accumulate_grad_batches, and times the
scale.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Unpack

from torch import Tensor

from ..errors import UserError
from ..signals import stop_if_asked
from ..trainers.run import Run
from ..trainers.watched import MisuseError
from .follower import Follower
from .watch import Options

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as error:
    raise UserError(
        "integrations.lightning: needs lightning: pip install 'tunewright[lightning]'"
    ) from error


class Watch(Callback):
    """A callback that watches the training of `fit`: every loss, every unclipped gradient norm, and
    the metrics of each validation.

    By itself (options as `tunewright.watch`) it changes nothing, and prints the verdict at the end;
    with `stop=True` it ends hopeless training. With a study's `run` it also sets learning rates,
    clips, keeps the best checkpoint, and ends training after the last update;
    `configure_optimizers` may return `run.optimizer(self)`. The validation before training counts
    if it is whole: num_sanity_val_steps=-1. It validates the average of a rule that has one.

    One optimizer, stepped by Lightning or by `optimizer.step()` in manual optimization; in several
    processes (DDP), that of rank 0 is told.
    """

    def __init__(self, run: Run | None = None, **options: Unpack[Options]) -> None:
        self._follower = Follower(run, options)
        self._metrics: set[str] = set()  # of validation
        self._before: set[str] = set()  # metrics that were there before a validation

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if run := self._follower.run:
            run.restore(pl_module)  # a checkpoint, if one is to be measured

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._check(trainer)
        planned = trainer.estimated_stepping_batches
        clips_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value"
        self._follower.begin(
            trainer.optimizers[0],
            hooked=False,
            processes=trainer.world_size,
            clipped_at=float(trainer.gradient_clip_val) if clips_norm else math.inf,
            max_steps=int(planned) if 0 < planned < math.inf else None,
        )
        if self._follower.is_over:
            trainer.should_stop = True  # nothing is to be trained

    def _check(self, trainer: Any) -> None:
        """Raise MisuseError for what cannot be watched."""
        if len(trainer.optimizers) != 1:
            raise MisuseError(
                f"Watch: must see one optimizer, got {len(trainer.optimizers)}: "
                "use tunewright.watch in training_step for the main one"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise MisuseError(
                f"Watch: {type(trainer.strategy).__name__} may hold only part of each gradient: "
                "use one device or DDP"
            )
        scaler, run = _scaler(trainer), self._follower.run
        if scaler and getattr(trainer.optimizers[0], "_step_supports_amp_scaling", False):
            raise MisuseError(
                "Watch: a fused optimizer unscales gradients in its kernel, unseen: make it "
                "without fused=True"
            )
        if run and trainer.gradient_clip_val:
            raise MisuseError(
                f"Watch: gradient_clip_val={trainer.gradient_clip_val} clips beside the study's "
                "clip_norm: leave it out"
            )
        if run and scaler and run.point.follows_norms:
            name = "clip_z" if run.point.clip_z < math.inf else "clip_tensor"
            raise MisuseError(
                f"Watch: {name} would count the gradients of updates that a GradScaler skips: use "
                "precision bf16-mixed"
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        stop_if_asked()

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self._follower.watches(optimizer):  # of the first batch that is accumulated over
            self._follower.forget_losses()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if scaler := _scaler(trainer):  # its step waits for the device anyway
            loss = loss.detach() / scaler.get_scale()
        parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        self._follower.loss(loss.detach() * parts if parts > 1 else loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self._follower.watches(optimizer):
            self._follower.prepare()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._follower.is_over:
            trainer.should_stop = True  # Lightning validates once more

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._before = set(trainer.callback_metrics)
        self._follower.lend_average()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        is_partial = trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf
        if trainer.state.fn == "fit" and not is_partial and trainer.is_global_zero:
            found = trainer.callback_metrics  # those of training are among them
            self._metrics |= found.keys() - self._before
            self._follower.report({name: float(found[name]) for name in self._metrics}, pl_module)
        self._follower.take_back()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._follower.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._follower.end(exception)


def arguments(run: Run) -> dict[str, Any]:
    """Arguments of a Trainer for a trial of a study: it is watched, trains on the trial's device up
    to the last update, validates whenever that is due, and writes nothing.
    """
    # a word about each Trainer's devices, and an advertisement: a study has a hundred
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    kind, _, index = run.device.partition(":")
    return {
        "callbacks": [Watch(run)],
        "accelerator": "gpu" if kind == "cuda" else kind,
        "devices": [int(index or 0)] if kind == "cuda" else 1,
        "max_epochs": -1,  # the callback ends training
        "num_sanity_val_steps": -1,  # validate the untrained model
        "val_check_interval": run.evaluate_every,
        "check_val_every_n_epoch": None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _scaler(trainer: Any) -> Any:
    """The GradScaler of 16-mixed precision; None if there is none."""
    return getattr(trainer.precision_plugin, "scaler", None)
