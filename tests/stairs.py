"""Stairs, which tunewright does not ship: all that one more shape of decay takes, in one file.

    f = 1 − ⌊n s/S⌋ / n                                                          n = stairs, 4

Its workload is here, too, so that worker processes, which import that, know the shape.
"""

import zoo

from tunewright.search.rules.hyperparameters import Hyperparameter, declare
from tunewright.search.rules.schedule import Shape, add


def factor(step, steps, own):
    return 1.0 - own["stairs"] * step // max(steps, 1) / own["stairs"]


declare(
    Hyperparameter(
        "stairs",
        "schedule",
        "one of 2, 3, 4, …",
        lambda value: value in range(2, 1000),
        is_integer=True,
    )
)
add(Shape("stairs", factor, {"stairs": 4}))


def make():
    return zoo.make("Mlp")
