"""Verdicts of trainings that somebody else ran, from their logs (`tunewright judge`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import UserError, describe_error
from .judge.objective import sounds_better_when_higher
from .judge.readout import Readout, read_out
from .judge.verdict import judge
from .logs.formats import logs_in
from .logs.log import Log, read_log
from .logs.roles import GivenColumns


@dataclass(frozen=True)
class LogOptions:
    """What the user says of logs. Of several, it holds for each.

    maximize     whether a higher value of the objective is better; None: by its name
    clip_norm    the threshold that training used; inf: none is known
    chance_loss  the training loss of a constant predictor; nan: the first loss stands for it
    divergence   whether a training loss that rises tells against a run
    """

    columns: GivenColumns = field(default_factory=GivenColumns)
    maximize: bool | None = None
    clip_norm: float = math.inf
    chance_loss: float = math.nan
    divergence: bool = True


@dataclass(frozen=True)
class JudgedLog:
    """A log, and what it says."""

    log: Log
    readout: Readout
    maximize: bool

    @property
    def columns(self) -> str:
        """The columns that were guessed, in words; empty if none was."""
        named = [f"{role} = {name}" for role, name in self.log.guessed.items()]
        return ", ".join(named)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is to be told, the verdict first and the notes on reading last."""
        return *self.readout.sentences, *self.log.notes

    def record(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        log = self.log
        return {
            "source": log.source,
            "format": log.format,
            **self.readout.record(),
            "objective": log.objective or None,
            "maximize": self.maximize,
            "losses": len(log.loss),
            "total_steps": log.total_steps,
            "hyperparameters": {name: _strict(own) for name, own in log.hyperparameters.items()},
            "guessed": dict(log.guessed),
            "notes": list(log.notes),
        }


def _strict(value: Any) -> Any:
    """A value as strict JSON can hold it: nan and inf as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def judge_log(log: Log, options: LogOptions | None = None) -> JudgedLog:
    """The verdict of one log."""
    options = options or LogOptions()
    maximize = options.maximize
    if maximize is None:
        maximize = bool(sounds_better_when_higher(log.objective))
    curve = log.curve(options.chance_loss)
    verdict = judge(curve, log.objective, maximize=maximize, divergence=options.divergence)
    curve = replace(curve, grad_norm=log.grad_norm)
    norm_step = log.grad_norm_step
    readout = read_out(curve, verdict, options.clip_norm, norm_step=norm_step)
    return JudgedLog(log, readout, maximize)


def judge_logs(
    paths: Iterable[Path], options: LogOptions | None = None
) -> tuple[list[JudgedLog], dict[str, str]]:
    """The verdicts of all logs that paths name, and why others cannot be read: path → sentence."""
    options = options or LogOptions()
    judged, errors = [], {}
    for path in paths:
        try:
            found = logs_in(path)
        except (UserError, OSError) as error:
            errors[str(path)] = _sentence(path, error)
            continue
        for one in found:
            try:
                judged.append(judge_log(read_log(one, options.columns), options))
            except (UserError, OSError) as error:
                errors[str(one)] = _sentence(one, error)
    return judged, errors


def _sentence(path: Path, error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{path}: {error.strerror or describe_error(error)}"
