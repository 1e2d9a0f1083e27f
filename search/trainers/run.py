"""One training of a user's own function: the point to train, and what is told of it.

def main(run):
    model = build(run.seed)
    optimizer = run.optimizer(model)                    # or run.watch(an optimizer of your own)
    run.report(val_error=evaluate(model), model=model)  # of the untrained model
    for batch in run.steps(loader(run.batch_size, run.seed)):
        loss = criterion(model, batch)
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(val_error=evaluate(model), model=model)
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError
from ..judge.readout import note_clipped_before
from ..rules.optimizers import average_of
from ..rules.schedule import learning_rates
from ..rules.torch_optimizers import RuleOptimizer, groups_of, make, why_another
from ..signals import stop_if_asked
from ..study.study import Study
from ..train.checkpoints import packed, unpacked
from ..train.loop import OTHER_BATCHES, SAVE_SECONDS, Keeper, Trained
from ..train.python_state import packed_hash
from ..train.recorder import CHECK_EVERY, Recorder
from ..trial import Point, Trial
from ..workload.batches import endless
from ..workload.randomness import RandomState
from ..workload.workload import number
from .watched import MAKE_IT, Clipping, MisuseError, Updates, WatchedOptimizer, never_reported

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # whose checkpoint is within
# Batches without an update: more than gradients of anybody are accumulated over.
MOST_BATCHES = 10_000
DATA_ENDED = (
    "steps: the data ended after {count} batches and cannot be iterated again: give the loader "
    "itself, which starts again after each epoch"
)
BEST, OWN = "best/", "own"  # in a saved state: tensors of the best checkpoint; the user's objects
USUAL_NORMS = "usual_norms/"  # and of clip_tensor, for each watched optimizer


class Stateful(Protocol):
    """A model, an optimizer, a scheduler, a scaler: what says its state and takes it back."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> object: ...


class StartAgainError(Exception):
    """A saved state is of no use: training must begin anew."""


class OptimizerName(str):
    """The name of a trial's optimizer, which also makes it: `run.optimizer(model)`."""

    run: Run

    def __call__(self, parameters: nn.Module | Iterable[Any]) -> Optimizer:
        """The trial's optimizer of a model, of parameters or of parameter groups, watched."""
        point = self.run.point
        if isinstance(parameters, nn.Module):
            parameters = groups_of(point.optimizer, parameters)
        optimizer = make(point.optimizer, parameters, point.settings, point.base_lr)
        return self.run.watch(optimizer)


class Run:
    """What a function that trains is called with.

    Every hyperparameter of the point is an attribute: base_lr, warmup_steps, clip_norm, batch_size,
    seed, the optimizer's settings and the arguments in [workload_args].

    point         all of them
    settings      those of the optimizer
    optimizer     its name; called with a model, the optimizer itself
    device        on which to train
    total_steps   updates that are planned
    evaluate_every  updates between two evaluations
    chance_loss   loss of a constant predictor; yours to set, if it is known
    """

    study: Study
    point: Point
    settings: Mapping[str, float]
    optimizer: OptimizerName
    device: str
    total_steps: int
    evaluate_every: int
    recorder: Recorder

    def __init__(
        self,
        study: Study,
        point: Point,
        device: str = "cpu",
        keeper: Keeper | None = None,
        updates: int | None = None,
    ) -> None:
        """A training of so many updates, by default of all that the study plans."""
        self.optimizer = OptimizerName(point.optimizer)
        self.optimizer.run = self
        self.study, self.point, self.device = study, point, device
        self.settings = point.settings
        self.total_steps = study.updates(point) if updates is None else updates
        self.evaluate_every = study.evaluate_every(point.batch_size)
        self.recorder = Recorder(
            self.total_steps,
            study.objective,
            maximize=study.maximize,
            divergence=study.divergence,
            averaged=average_of(point.optimizer) is not None,
        )
        self._keeper = keeper
        self._saved_state = keeper.begin(point) if keeper else None
        self._learning_rates = learning_rates(point, study.schedule(point)).tolist()
        self._updates = Updates(self.recorder)
        self._main: WatchedOptimizer | None = None
        self._watched: list[WatchedOptimizer] = []
        self._update = 0  # the number of the update that comes next, or is under way
        self._reported: set[str] = set()  # metrics
        self._refused: MisuseError | None = None  # the last report that was, maybe caught since
        self._batches = 0  # drawn so far
        self._last_batch: Any = None
        self._best: dict[str, Tensor] = {}
        self._skip: tuple[int, Mapping[str, Tensor]] | None = None  # until steps() goes on
        self._began = self._saved = time.monotonic()
        self._seconds_before = 0.0

    def __getattr__(self, name: str) -> Any:
        """The hyperparameter of that name."""
        values = vars(self)["point"].values if "point" in vars(self) else {}
        if name not in values:
            known = ", ".join(values)
            raise AttributeError(f"run has no {name!r}; hyperparameters are {known}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises MisuseError for what the study has chosen: it would be recorded as another."""
        own = vars(self)
        is_chosen = name in own["point"].values if "point" in own else False
        if is_chosen or (name in Run.__annotations__ and name in own):
            raise MisuseError(
                f"run.{name}: cannot be set: it is {getattr(self, name)} in this trial, as the "
                "study file has it"
            )
        super().__setattr__(name, value)

    @property
    def chance_loss(self) -> float:
        return self.recorder.chance_loss

    @chance_loss.setter
    def chance_loss(self, loss: float) -> None:
        self.recorder.chance_loss = float(loss)

    @property
    def step(self) -> int:
        """Updates done."""
        return self.recorder.step

    @property
    def is_over(self) -> bool:
        """Whether training ends here: after the last update, or because it is hopeless."""
        return self.step == self.total_steps or self.recorder.is_hopeless()

    @property
    def evaluation_due(self) -> bool:
        """Whether to evaluate now and call `report`.

        It is due before training, every `evaluate_every` updates, and after the last one.
        """
        is_due = self.step % self.evaluate_every == 0 or self.step == self.total_steps
        return is_due and not self.recorder.is_just_evaluated

    def watch(self, optimizer: Optimizer, *, main: bool = True, hooked: bool = True) -> Optimizer:
        """Set the learning rates of your own optimizer, record its norms, and clip; returns it.

        This happens just before each of its steps; the norms are of unclipped gradients. The first
        parameter group gets the trial's learning rate; others keep their ratio to it. Of several
        optimizers the main one counts updates and is recorded; the others keep their ratio to its
        first group, too, and are clipped by norms of their own. Watch the main one first. Without
        `hooked`, call `prepare(optimizer)` before each step once its gradients are whole; this may
        also be asked for an optimizer that is watched already. Raises MisuseError for a second main
        one, and for one whose gradients cannot be seen.
        """
        if main and (reason := why_another(optimizer, self.point.optimizer)):
            raise MisuseError(f"watch: {reason}")
        known = next((one for one in self._watched if one.optimizer is optimizer), None)
        if known:
            if not hooked:
                known.leave_to_caller()
            return optimizer
        if main and self._main:
            raise MisuseError("watch: one optimizer is the main one: watch others with main=False")
        if not main and not self._main:
            raise MisuseError("watch: the main optimizer must be watched before others")
        watched = WatchedOptimizer(
            optimizer,
            self._updates.record if main else lambda norm, clipped: None,
            Clipping(self.point.clip_norm, self.point.clip_z, self.point.clip_tensor),
            self._next_learning_rate if main else self._learning_rate,
            self._main.reference_lr if self._main else None,
            hooked,
        )
        self._main = self._main or watched
        self._watched.append(watched)
        return optimizer

    def prepare(self, optimizer: Optimizer) -> None:
        """What is done before each step of an optimizer that is watched with hooked=False."""
        next(one for one in self._watched if one.optimizer is optimizer).prepare()

    def loss(self, loss: Tensor | float) -> None:
        """Tell the training loss of a batch, before the optimizer steps; nothing is waited for.

        Of several losses before one update, as in gradient accumulation, the mean counts: tell each
        before you divide it.
        """
        if self._main and self._updates.is_waiting and self._main.has_skipped():
            self.forget_losses()
        self._updates.add_loss(loss)

    def forget_losses(self) -> None:
        """Drop the losses since the last update: theirs was skipped."""
        self._updates.forget_losses()

    def report(self, *, model: nn.Module | None = None, **metrics: Tensor | float) -> None:
        """Tell the metrics of an evaluation; `model`: keep its parameters if it is the best.

        Metrics reported after the same update belong together. Raises MisuseError for one that is
        reported twice after one update, or is no number, and where the watched optimizer evaluates
        an average which the parameters do not hold.
        """
        try:
            if self.averaging and not self.averaging.holds_average:
                raise UserError(
                    f"report: {self.point.optimizer} evaluates an average of the parameters: call "
                    "optimizer.eval() before the evaluation, and optimizer.train() after run.report"
                )
            numbers = {name: _number(name, value) for name, value in metrics.items()}
        except UserError as error:
            self._refused = MisuseError(str(error))
            raise self._refused from error
        try:
            self.recorder.report(numbers)
        except ValueError as error:
            self._refused = MisuseError(f"report: {error}: call it where run.evaluation_due")
            raise self._refused from error
        self._reported.update(metrics)
        if model is not None and self.recorder.is_best:
            own = model.module if isinstance(model, WRAPPERS) else model
            own = getattr(own, "_orig_mod", own)  # of torch.compile
            self._best = {
                name: tensor.detach().to("cpu", copy=True).contiguous()
                for name, tensor in own.state_dict().items()
                if isinstance(tensor, Tensor)
            }

    @property
    def averaging(self) -> RuleOptimizer | None:
        """The main optimizer, if what it evaluates is an average of the parameters."""
        optimizer = self._main.optimizer if self._main else None
        if not isinstance(optimizer, RuleOptimizer) or optimizer.holds_average is None:
            return None
        return optimizer

    def steps(self, data: Iterable[Any]) -> Iterator[Any]:
        """The batches to train on: those of `data`, again for each epoch.

        They end with the last update, or when training is hopeless. Raises UserError if `data` has
        no batch, or ends and cannot be iterated again; MisuseError if batches go by and no watched
        optimizer steps.
        """
        if self._main is None:
            raise MisuseError(f"watch: no optimizer is watched: {MAKE_IT}")
        batches = endless(lambda: data, "steps: the data has no batch", DATA_ENDED)
        if self._skip:
            self._go_on(batches)
        fruitless = 0
        while not self.is_over:
            stop_if_asked()
            before = self._update = self.step
            self._last_batch = next(batches)
            self._batches += 1
            yield self._last_batch
            fruitless = 0 if self.step > before else fruitless + 1
            self._check_progress(fruitless)

    def _check_progress(self, fruitless: int) -> None:
        """After a batch: whether an update may still come of it."""
        assert self._main is not None
        if fruitless == MOST_BATCHES:
            raise MisuseError(
                f"steps: {fruitless} batches went by without a step of the watched optimizer"
            )
        if fruitless and self._updates.is_waiting and self._main.is_cleared:
            self.forget_losses()  # a GradScaler skipped the update
        if fruitless == 0 and self.step <= CHECK_EVERY and self.recorder.is_without_gradient():
            raise UserError(
                f"the gradient is exactly 0 at each of the first {self.step} updates, so that "
                "nothing is trained: does the loss depend on the optimizer's parameters?"
            )

    # --- to go on after an interruption -----------------------------------------------------------

    def state(self, *objects: Stateful) -> None:
        """Save what is in training, about once a minute, if called after each update.

        `objects` are all that training depends on, as model and optimizer, in the order of
        `restore`.
        """
        if any(one.optimizer not in objects for one in self._watched):
            raise MisuseError(
                "state: must be given every optimizer that is watched, beside the model: without "
                "its state a training would go on as another"
            )
        keeper = self._keeper
        if keeper is None:
            return
        if not keeper.is_leaving and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        try:
            batch = packed_hash(self._last_batch)
        except (TypeError, pickle.PicklingError):
            return  # nobody could say later whether the batches are the same
        self.recorder.seconds = self._seconds()
        usual = {
            f"{USUAL_NORMS}{place}": watched.clipping.usual_norms.cpu()
            for place, watched in enumerate(self._watched)
            if self.point.clip_tensor < math.inf
        }
        state = {
            **self.recorder.state(),
            **RandomState.now().tensors(),
            **{f"{BEST}{name}": tensor for name, tensor in self._best.items()},
            OWN: packed([one.state_dict() for one in objects]),
            **usual,
            "batches": torch.tensor(self._batches),
            "batch": batch,
        }
        keeper.save(self.point, state)
        self._saved = time.monotonic()
        keeper.all_saved()

    def restore(self, *objects: Stateful) -> bool:
        """Put back what `state` saved when this trial was interrupted, if it was; whether it was.

        To be called before `steps` with the same objects in the same order. Batches that were seen
        are drawn again and passed over. Without this call the trial begins anew.
        """
        state = self._saved_state
        if state is None:
            return False
        try:
            for one, own in zip(objects, unpacked(state[OWN], self.device), strict=True):
                one.load_state_dict(own)
            self.recorder.restore(state)
            for place, watched in enumerate(self._watched):
                watched.clipping.resume(
                    self.recorder.grad_norms,
                    torch.device(self.device),
                    state.get(f"{USUAL_NORMS}{place}"),
                )
        except Exception as error:
            raise StartAgainError(f"its saved state cannot be put back: {error}") from error
        self._best = {
            name.removeprefix(BEST): tensor
            for name, tensor in state.items()
            if name.startswith(BEST)
        }
        self._reported.update(self.recorder.metrics)
        self._seconds_before, self._skip = self.recorder.seconds, (int(state["batches"]), state)
        return True

    def _go_on(self, batches: Iterator[Any]) -> None:
        """Pass over the batches that were seen before the interruption."""
        assert self._skip is not None
        (count, state), self._skip = self._skip, None
        for _ in range(count):
            self._last_batch = next(batches)
        if not torch.equal(state["batch"], packed_hash(self._last_batch)):
            raise StartAgainError(OTHER_BATCHES)
        self._batches = count
        RandomState.from_tensors(state).restore()

    # --- at the end -------------------------------------------------------------------------------

    def finish(self) -> Trained:
        """The trial of a training that its function has ended.

        Raises MisuseError if too little was told to judge it, and UserError if it ended before its
        last update though it was not hopeless.
        """
        if self._main is None:
            raise MisuseError(f"watch: no optimizer was watched: {MAKE_IT}")
        objective = self.study.objective
        if not self.is_over:
            raise UserError(
                f"ended after {self.step} of {self.total_steps} updates: let run.steps(data) end "
                "the loop"
            )
        if objective not in self._reported:
            if self._refused:
                raise self._refused
            others = [name for name in self.recorder.metrics if name != objective]
            raise never_reported(objective, others)
        curve = self.recorder.curve()
        verdict = note_clipped_before(self.recorder.verdict(), curve, self.point.clip_norm)
        trial = Trial.from_curve(
            self.point, verdict, curve, objective, self._seconds(), self.study.maximize
        )
        return Trained(trial, self._best)

    def release(self) -> None:
        """Leave the optimizers alone."""
        for watched in self._watched:
            watched.release()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _learning_rate(self) -> float:
        return float(self._learning_rates[self._update])

    def _next_learning_rate(self) -> float:
        """That of the update that the main optimizer is about to make."""
        if self.step == self.total_steps:
            raise MisuseError(
                f"steps: an update after the last one of {self.total_steps}: let run.steps(data) "
                "end the loop"
            )
        if self.step == 0 and not self.recorder.is_just_evaluated:
            self.recorder.report({})  # the untrained model was not evaluated
        if self.averaging and self.averaging.holds_average:
            raise MisuseError(
                f"steps: an update of {self.point.optimizer} while the parameters hold the average "
                "that is evaluated: call optimizer.train() after run.report"
            )
        self._update = self.step
        return self._learning_rate()


def _number(name: str, value: Tensor | float) -> float:
    """A metric. Raises UserError if it is no number."""
    return number(name, value.detach() if isinstance(value, Tensor) else value, "report: got")
