"""Advice on a workload's chance_loss, by which verdicts on the training loss are measured (R6).

Unlike all of `advice`, it draws batches, so it needs the workload itself and torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..study.study import Study
from ..words import readable
from ..workload.workload import Workload, chance_loss
from .advice import Advice, advice_by

NOISY_BATCH = 64  # examples: with fewer, a mean of squared errors scatters by a fifth or more
LABEL_BATCHES = 200  # drawn to estimate how frequent labels are
ENOUGH_LABELS = 10  # of each kind on average: fewer give an entropy that is too low
# a chance_loss higher than the entropy by this factor is no error of estimation
ENTROPY_FACTOR = 1.1


def advise_on_chance(study: Study, workload: Workload) -> Iterator[Advice]:
    """A chance_loss that is missing or too high; nothing where a study looks for no divergence."""
    if not study.divergence:
        return
    stated, smallest = chance_loss(workload), min(study.batch_sizes)
    if math.isnan(stated) and smallest < NOISY_BATCH:
        yield advice_by(
            "R6",
            "workload",
            "states no chance_loss, so the loss at a trial's start is read from its first "
            f"minibatches, which differ most at batch size {smallest}: give it the loss of a "
            "constant predictor as attribute chance_loss",
        )
    labels = _labels(workload, smallest)
    counts = np.bincount(labels)[np.unique(labels)] if len(labels) else np.ones(1)
    shares = counts / counts.sum()
    entropy = -float(shares @ np.log(shares)) + (len(counts) - 1) / (2 * counts.sum())
    uniform = len(labels) >= ENOUGH_LABELS * len(counts) and stated >= ENTROPY_FACTOR * entropy
    if uniform and math.isclose(stated, math.log(labels.max() + 1), rel_tol=ENTROPY_FACTOR - 1):
        yield advice_by(
            "R6",
            "workload",
            f"chance_loss = {readable(stated)} is that of {labels.max() + 1} labels which are "
            f"equally frequent, but their entropy is {readable(entropy)}, which a constant "
            "predictor reaches: state that",
        )


def _labels(workload: Workload, batch_size: int) -> NDArray[np.int64]:
    """The labels of the first batches: the last part of a batch, if it holds counting numbers.

    Empty if it does not.
    """
    found: list[NDArray[np.int64]] = []
    for batch in islice(iter(workload.train_batches(batch_size, 0)), LABEL_BATCHES):
        last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if (
            not isinstance(last, Tensor)
            or last.dtype not in (torch.int64, torch.int32)
            or bool((last < 0).any())
        ):
            return np.empty(0, np.int64)
        found.append(last.reshape(-1).to(torch.int64).cpu().numpy())
    return np.concatenate(found) if found else np.empty(0, np.int64)
