"""Progression of diabetes from ten measurements: a small real regression, bundled with
scikit-learn.

442 patients, cut 60/20/20; measurements and target are standardized with the training part's mean
and standard deviation, so that a constant predictor has loss 1.

  N  patients    F  measurements

Source: Efron, Hastie, Johnstone & Tibshirani 2004, "Least Angle Regression", Annals of Statistics
32(2).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.datasets import load_diabetes

from .arguments import at_least
from .batches import Split, three_parts
from .feedforward import MLP, output_weight
from .supervised import Regression

FEATURES = 10


@functools.cache
def load() -> Split:
    """The patients as (x_NF, y_N), both float32."""
    x_NF, y_N = load_diabetes(return_X_y=True)
    table_NF = np.column_stack([x_NF, y_N])
    parts = three_parts(len(table_NF))
    mean_F, deviation_F = table_NF[parts[0]].mean(0), table_NF[parts[0]].std(0)
    table = torch.tensor((table_NF - mean_F) / deviation_F, dtype=torch.float32)
    return Split(*((table[rows, :FEATURES], table[rows, FEATURES]) for rows in parts))


def mlp(width: int = 32, depth: int = 2) -> Regression:
    """Diabetes with a plain MLP of `depth` hidden layers. Raises ValueError unless width ≥ 1, depth
    ≥ 0.

    Its only metric is val_loss, the mean squared error: 1 is a constant predictor.
    """
    at_least(1, width=width)
    at_least(0, depth=depth)
    network = functools.partial(MLP, FEATURES, 1, width, depth)
    return Regression(load, network, not_matrices=(output_weight(depth),))
