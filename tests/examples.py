"""A study file that several tests vary."""

import copy
import tomllib

from tunewright.search.study import Study, parse_study

GOOD = tomllib.loads(
    """
    workload = "a.b:c"
    objective = "val_error"
    max_train_steps = 1000
    batch_sizes = [32, 256]
    trials = 8
    [space]
    warmup_steps = { orders_of_magnitude = true }
    clip_norm = [inf, 1.0]
    [space.optimizer.momentum]
    base_lr = { low = 1e-3, high = 10.0, log = true }
    [space.optimizer.adam]
    base_lr = { low = 1e-5, high = 0.1, log = true }
    warmup_steps = 0
    """
)


def parse(**changes) -> Study:
    """GOOD with keys changed; a dotted key reaches into tables, ... removes a key."""
    document = copy.deepcopy(GOOD)
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        table = document
        for parent in parents:
            table = table.setdefault(parent, {})
        if value is ...:
            del table[key]
        else:
            table[key] = value
    return parse_study(document, name="s", place="s.toml")
