"""The arithmetic of one update: update rules, learning-rate schedules, clip thresholds."""

# Whoever imports any of it sees the whole table of hyperparameters.
from . import optimizers as optimizers
from . import schedule as schedule
