"""Watch a training by the Trainer of Transformers, by itself or as a trial of a study.

    trainer = Trainer(model, args, ...)
    trainer.add_callback(Watch(trainer, out="runs/a"))
    trainer.train()

def main(run):                                       # train = "module:main" in a study file
    args = TrainingArguments(folder, per_device_train_batch_size=run.batch_size, **arguments(run))
    trainer = Trainer(model, args, ..., optimizers=(run.optimizer(model), None))
    trainer.add_callback(Watch(trainer, run))
    trainer.train()

Measured on Transformers 5.24: callbacks see no loss, and gradients only once they are clipped; what
the Trainer logs is a mean, from which it leaves out what is not finite (logging_nan_inf_filter). So
two methods of this one Trainer are listened to while it trains: `training_step`, which returns each
loss, and `accelerator.clip_grad_norm_`, which returns the norm before it clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

from ..errors import UserError
from ..signals import stop_if_asked
from ..trainers.run import Run
from ..trainers.watched import MisuseError
from .follower import Follower
from .watch import Options, say

try:
    from transformers import PrinterCallback, TrainerCallback
except ImportError as error:
    raise UserError(
        "integrations.transformers: needs transformers: pip install 'tunewright[transformers]'"
    ) from error

NO_METRICS = ("_runtime", "_per_second", "_time")  # ends of names in what `evaluate` returns


class Watch(TrainerCallback):
    """A callback that watches the training of one Trainer: every loss, every unclipped gradient
    norm, and the metrics of each evaluation (`eval_loss`).

    By itself (options as `tunewright.watch`) it changes nothing, and prints the verdict at the end;
    with `stop=True` it ends hopeless training. With a study's `run` it also sets learning rates,
    clips, evaluates when that is due, keeps the best checkpoint, and ends training after the last
    update. An evaluation before training counts: eval_on_start=True.

    A loss is what the Trainer minimizes, so that of an update over several batches is the mean over
    all of their tokens or batches, as the model has it. In several processes (DDP) rank 0 is told.
    """

    def __init__(self, trainer: Any, run: Run | None = None, **options: Unpack[Options]) -> None:
        self._trainer, self._follower = trainer, Follower(run, options)
        self._train, self._training_step = trainer.train, trainer.training_step
        self._clip: Any = None
        trainer.train = self._train_to_the_end
        if run:
            trainer.remove_callback(PrinterCallback)  # a line for each trial

    def _train_to_the_end(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, which tells no callback of an exception."""
        run = self._follower.run
        if run:
            run.restore(self._trainer.model)  # a checkpoint, if one is to be measured
            if run.is_over:
                self._trainer.evaluate()
                return None
        try:
            return self._train(*args, **kwargs)
        except BaseException as error:
            self._end(error)
            raise

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        trainer = self._trainer
        if not state.is_world_process_zero:
            return
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise MisuseError(
                "Watch: DeepSpeed and FSDP hold only part of each gradient: use one device or DDP"
            )
        clips = args.max_grad_norm > 0
        self._follower.begin(
            getattr(optimizer, "optimizer", optimizer),  # within that of accelerate
            hooked=not clips,
            processes=args.world_size,
            clipped_at=args.max_grad_norm if clips else math.inf,
            max_steps=state.max_steps,
        )
        trainer.training_step = self._listen_to_step
        if clips:
            self._clip = trainer.accelerator.clip_grad_norm_
            trainer.accelerator.clip_grad_norm_ = self._listen_to_clip

    def _listen_to_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._training_step(*args, **kwargs)
        # divided, by it or by the model, so that the losses of an update have its loss as their sum
        parts = self._trainer.current_gradient_accumulation_steps
        self._follower.loss(loss * parts if parts > 1 else loss)
        return loss

    def _listen_to_clip(self, *args: Any, **kwargs: Any) -> Any:
        norm = self._clip(*args, **kwargs)
        self._follower.measured(norm)
        return norm

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop_if_asked()
        self._follower.forget_losses()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if run := self._follower.run:
            control.should_evaluate = run.evaluation_due
        if self._follower.is_over:
            control.should_training_stop = True

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        found = {
            name: value
            for name, value in (metrics or {}).items()
            if name.startswith("eval_") and not name.endswith(NO_METRICS)
        }
        self._follower.report(found, self._trainer.model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        """Leave the Trainer as it was."""
        self._trainer.training_step = self._training_step
        if self._clip is not None:
            self._trainer.accelerator.clip_grad_norm_, self._clip = self._clip, None
        found = self._follower.end(error)
        is_hidden = self._trainer.args.logging_nan_inf_filter
        if found and found.verdict.outcome == "non_finite" and is_hidden:
            say(
                "the Trainer logs none of it: logging_nan_inf_filter=False shows losses as they are"
            )


def arguments(run: Run) -> dict[str, Any]:
    """TrainingArguments for a trial of a study: it trains on the trial's device, with the study's
    learning rates and clipping, and writes nothing.
    """
    return {
        "max_steps": 2 * run.total_steps,  # the callback ends it: a skipped update is none
        "max_grad_norm": 0.0,
        "learning_rate": run.base_lr,
        "lr_scheduler_type": "constant",
        "eval_strategy": "no",  # the callback says when
        "eval_on_start": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": run.device == "cpu",
        "seed": run.seed,
    }
