"""Optuna's TPE and GP, which learn from finished trials where to go next (S2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ..signals import stop_if_asked
from ..threads import torch_threads
from ..trial import Told
from .study import Axis, Range, Study

# those of `study.ADAPTIVE`; any other is a KeyError, never another sampler
SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
}


def distribution(axis: Axis, name: str) -> BaseDistribution:
    """An axis as Optuna describes it."""
    if not isinstance(axis, Range):
        return CategoricalDistribution(axis)
    if name == "warmup_steps":
        return IntDistribution(round(axis.low), round(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def propose(
    study: Study, axes: Mapping[str, Axis], told: Sequence[Told], count: int, seed: int
) -> list[dict[str, Any]]:
    """The next points of a group from TPE or GP, which learn from the group's finished trials.

    They see one study in memory with this group's free axes only: no conditional parameters, which
    GP cannot take, and no trials of other groups, which would mislead TPE.
    """
    sampler = SAMPLERS[study.sampler](seed=seed, n_startup_trials=0)
    distributions = {name: distribution(axis, name) for name, axis in axes.items()}
    memory = optuna.create_study(sampler=sampler, direction=study.direction)
    for one in told:
        memory.add_trial(
            optuna.trial.create_trial(
                params={name: one.point.values[name] for name in axes},
                distributions=distributions,
                value=one.value,
                constraints={"diverged": one.diverged},
            )
        )
    proposed = []
    with torch_threads():
        for _ in range(count):
            stop_if_asked()  # GP takes a second for each
            proposed.append(dict(memory.ask(distributions).params))
    return proposed
