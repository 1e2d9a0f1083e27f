"""Optuna's TPE and GP, which learn from finished trials where to go next (S2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ..rules.hyperparameters import HYPERPARAMETERS
from ..signals import stop_if_asked
from ..trial import Told
from .samplers import SAMPLERS, Sampler
from .study import Axis, Range, Study


def check_learners(samplers: Iterable[Sampler]) -> None:
    """Raise TypeError for a sampler whose learner Optuna does not have."""
    for sampler in samplers:
        if sampler.is_adaptive and not hasattr(optuna.samplers, sampler.learner):
            raise TypeError(
                f"sampler {sampler.name!r}: its learner {sampler.learner!r} is none of Optuna's"
            )


check_learners(SAMPLERS.values())


def distribution(axis: Axis, name: str) -> BaseDistribution:
    """An axis as Optuna describes it."""
    if not isinstance(axis, Range):
        return CategoricalDistribution(axis)
    # none of an argument of a workload, or of a setting that only an optimizer of torch has
    row = HYPERPARAMETERS.get(name)
    if row and row.is_integer:
        return IntDistribution(round(axis.low), round(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from reporting the studies that are made here; what it says of others stays."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def propose(
    study: Study, axes: Mapping[str, Axis], told: Sequence[Told], count: int, seed: int
) -> list[dict[str, Any]]:
    """The next points of a group from TPE or GP, which learn from the group's finished trials.

    They see one study in memory with this group's free axes only: no conditional parameters, which
    GP cannot take, and no trials of other groups, which would mislead TPE. Raises ValueError if the
    study's sampler learns nothing.
    """
    if not study.sampling.is_adaptive:
        raise ValueError(f"sampler {study.sampler!r} learns nothing")
    # imports torch, which who only describes an axis need not wait for
    from ..threads import torch_threads

    sampler = getattr(optuna.samplers, study.sampling.learner)(seed=seed, n_startup_trials=0)
    distributions = {name: distribution(axis, name) for name, axis in axes.items()}
    with quiet_optuna():
        memory = optuna.create_study(sampler=sampler, direction=study.direction)
    for one in told:
        memory.add_trial(
            optuna.trial.create_trial(
                params={name: study.quantity(one.point, name) for name in axes},
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
