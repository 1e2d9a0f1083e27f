"""`tunewright.current_run()`: the run of a program that a study's command has started.

    run = tunewright.current_run()
    model = build(run.seed)
    optimizer = run.optimizer(model)
    for batch in run.steps(loader(run.batch_size, run.seed)):
        ...

It is used as the `run` of a function. What it is told goes to a log in the trial's folder, which
whoever started the command follows. Of several processes of one training, as torchrun starts them,
the one with RANK 0 reports; the others step as it does, and only that. They are ended together.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..store.files import write_checkpoint
from ..study.command import OWN_LOG
from ..study.study import Study, parse_study
from ..train.recorder import CHECK_EVERY
from ..trial import Point
from ..workload.randomness import seed_all
from .follow import METRIC, TENSORS_CLIPPED
from .run import Run, StartAgainError, Stateful
from .watched import MisuseError

RUN_DIR = "TUNEWRIGHT_RUN_DIR"  # the environment variable that names the trial's folder
RUN_FILE, BEST_FILE = "run.json", "best.safetensors"  # in that folder
EARLIER_LOG = "log-before.jsonl"  # that of the interrupted training which is gone on with


@cache
def current_run() -> Run:
    """The run of this process, the same at each call.

    The first call seeds the random numbers of Python, NumPy and torch by the trial's seed.
    Raises UserError in a process that no study has started, and where its study reads a log of the
    command's own.
    """
    folder = os.environ.get(RUN_DIR)
    if not folder:
        raise UserError(
            "tunewright.current_run: no study has started this program: let the `command` of a "
            "study file start it, by tunewright run"
        )
    try:
        record = json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            "tunewright.current_run: the study file names the `log` that its command writes: "
            "remove `log` from it, or do without this call"
        ) from error
    point, document = Point(**record["point"]), dict(record["study"])
    seed_all(point.seed)
    return CommandRun(
        parse_study(document, document.pop("name"), place=str(Path(folder) / RUN_FILE)),
        point,
        record["device"],
        Path(folder),
        Path(record["state"]),
    )


class CommandRun(Run):
    """A run that writes what it is told into the files of a trial's folder."""

    def __init__(
        self, study: Study, point: Point, device: str, folder: Path, state_path: Path
    ) -> None:
        self._is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self._is_reporting = os.environ.get("RANK", "0") == "0"
        self._log, self._best_file = folder / OWN_LOG, folder / BEST_FILE
        self._written = 0  # updates in the log
        # random numbers and batches of several processes differ: none could go on for the others
        keeper = _StateKeeper(state_path, self._write_updates) if self._is_alone else None
        super().__init__(study, point, device, keeper)
        if self._is_reporting:
            atexit.register(self._write_updates)
            self._write_misuse()

    @property
    def is_over(self) -> bool:
        """Whether training ends here. Several processes wait for one another: all end with the last
        update, or are ended together.
        """
        return super().is_over if self._is_alone else self.step == self.total_steps

    @property
    def chance_loss(self) -> float:
        return self.recorder.chance_loss

    @chance_loss.setter
    def chance_loss(self, loss: float) -> None:
        self.recorder.chance_loss = float(loss)
        self._write([{"chance_loss": float(loss)}])

    def report(self, *, model: nn.Module | None = None, **metrics: Tensor | float) -> None:
        is_first = not self.recorder.is_just_evaluated
        super().report(model=model, **metrics)
        self._write_updates()
        # which this evaluation may lack
        told: dict[str, float | None] = {self.study.objective: None} if is_first else {}
        told |= {name: self.recorder.metrics[name][-1] for name in metrics}
        row = {f"{METRIC}{name}": value for name, value in told.items()}
        self._write([{"step": self.step, **row}])
        if model is not None and self.recorder.is_best:
            self._write_best()

    def steps(self, data: Iterable[Any]) -> Iterator[Any]:
        for batch in super().steps(data):
            yield batch
            if self.step >= self._written + CHECK_EVERY:
                self._write_updates()
        self._write_updates()

    def restore(self, *objects: Stateful) -> bool:
        is_restored = super().restore(*objects)
        if is_restored:
            self._write_best()
            self._write_earlier()
        return is_restored

    def _next_learning_rate(self) -> float:
        is_evaluated = self.recorder.is_just_evaluated
        learning_rate = super()._next_learning_rate()
        if self.step == 0 and not is_evaluated:
            self._write([{"step": 0, f"{METRIC}{self.study.objective}": None}])
        return learning_rate

    # --- files ------------------------------------------------------------------------------------

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to the log, if this process reports."""
        text = "".join(f"{json.dumps(row)}\n" for row in rows) if self._is_reporting else ""
        if text:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text)

    def _write_updates(self) -> None:
        """Add the updates that are not in the log yet.

        This waits for the device, as the recorder does every CHECK_EVERY updates.
        """
        recorder = self.recorder
        columns = {"loss": recorder.losses.tolist(), "grad_norm": recorder.grad_norms.tolist()}
        if recorder.tensors_clipped is not None:
            columns[TENSORS_CLIPPED] = recorder.tensors_clipped.tolist()
        self._write(
            {"step": step, **{name: values[step] for name, values in columns.items()}}
            for step in range(self._written, recorder.step)
        )
        self._written = recorder.step

    def _write_best(self) -> None:
        if self._is_reporting and self._best:
            write_checkpoint(self._best_file, self._best)

    def _write_earlier(self) -> None:
        """Begin the log with that of the interrupted training, as far as its saved state goes.

        Raises StartAgainError if that log does not go as far.
        """
        evaluated = set(self.recorder.curve().eval_step.tolist())
        earlier = self._log.with_name(EARLIER_LOG).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in earlier]

        def is_earlier(row: Mapping[str, Any]) -> bool:
            if "loss" in row:
                return bool(row["step"] < self.step)
            return row.get("step", 0) in {0, *evaluated}

        kept = [row for row in rows if is_earlier(row)]
        if sum("loss" in row for row in kept) != self.step:
            raise StartAgainError("its log does not go as far as its saved state")
        self._write([{"seconds": self.recorder.seconds}, *kept])
        self._written = self.step

    def _write_misuse(self) -> None:
        """From here on, tell of a mistake that every trial would repeat, if it ends the program."""
        before = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, where: Any) -> None:
            if isinstance(error, MisuseError):
                self._write([{"misuse": str(error)}])
            before(kind, error, where)

        sys.excepthook = hook


class _StateKeeper:
    """Keeps the state of a training in a file, for `Run.state` and `Run.restore`."""

    def __init__(self, path: Path, before: Callable[[], None]) -> None:
        self._path, self._before = path, before

    def begin(self, point: Point) -> Mapping[str, Tensor] | None:
        return load_file(self._path) if self._path.exists() else None

    @property
    def is_leaving(self) -> bool:
        return False

    def all_saved(self) -> None:
        """Nothing: whoever started this program ends it."""

    def save(self, point: Point, state: Mapping[str, Tensor]) -> None:
        self._before()  # the log is never behind the state
        write_checkpoint(self._path, state)

    def start_again(self, point: Point, reason: str) -> None:
        """Whoever started this program does that."""
