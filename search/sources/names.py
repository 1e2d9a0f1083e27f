"""What usual names of columns mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..judge.objective import WORSE_WHEN_HIGHER, sounds_better_when_higher
from .runs import says_nothing

# of W&B, MLflow and Optuna; a tracker that has its own may also use "/"
CONFIG_PREFIXES = ("config.", "config/", "params.", "params_", "hparams.", "hparams/")
METRIC_PREFIXES = ("metrics.", "metrics_", "summary.", "summary/", "user_attrs_", "values_")

# Our names, each with those that others use, best first.
USUAL: dict[str, tuple[str, ...]] = {
    "base_lr": (
        *("base_lr", "lr", "learning_rate", "learningrate", "init_lr", "initial_lr", "lr0"),
        *("lr_init", "learning_rate_init", "peak_lr", "max_lr", "eta", "step_size"),
    ),
    "batch_size": (
        *("batch_size", "global_batch_size", "total_batch_size", "train_batch_size", "batchsize"),
        *("bs", "bsz", "batch", "per_device_train_batch_size"),
    ),
    "optimizer": (
        *("optimizer", "optim", "opt", "optimizer_name", "optim_name", "optimizer_type"),
        *("optimizer_class", "opt_name"),
    ),
    "warmup_steps": ("warmup_steps", "num_warmup_steps", "n_warmup_steps", "warmup_iters"),
    "clip_norm": (
        *("clip_norm", "grad_clip", "grad_clip_norm", "gradient_clip_val", "max_grad_norm"),
        *("clip_grad_norm", "gradient_clip", "gradient_clipping", "clip"),
    ),
    "seed": ("seed", "random_seed", "random_state", "rng_seed", "manual_seed"),
    "weight_decay": ("weight_decay", "wd", "weightdecay", "l2"),
    "momentum": ("momentum", "mom", "sgd_momentum"),
    "beta1": ("beta1", "beta_1", "b1", "adam_beta1"),
    "beta2": ("beta2", "beta_2", "b2", "adam_beta2"),
    "epsilon": ("epsilon", "eps", "adam_epsilon", "adam_eps"),
    "rho": ("rho",),
    "max_train_steps": (
        *("max_train_steps", "max_steps", "total_steps", "num_training_steps", "train_steps"),
        *("num_train_steps", "num_steps", "n_steps"),
    ),
}
OBJECTIVES = ("value", "objective")  # columns that can be nothing else, as of trials_dataframe()

STATE_NAMES = ("state", "status")
SECONDS_NAMES = ("runtime", "_runtime", "seconds", "duration_seconds")
# what trackers keep of their own
BOOKKEEPING = re.compile(
    r"(name|run_name|run|id|run_id|trial_id|number|notes?|user|tags?|created|updated|"
    r"end_time|start_time|source(_.*)?|host(name)?|sweep|group|job_?type|commit|git.*|entity|project|url|"
    r"path|timestamp|date(time)?.*|duration|experiment_id|artifact_uri|lifecycle_stage|"
    r"unnamed:.*|_.*|tags\..*|system_attrs_.*|state|status)"
)

# words of results that are no objective by themselves, or of errors
RESULTS = frozenset(
    [
        *("mae", "mse", "rmse", "ppl", "wer", "cer", "bpc", "bpb", "fid", "kl", "epoch", "step"),
        *("steps", "iteration", "iterations", "runtime", "time", "flops", "gpu", "memory", "grad"),
        *("params", "parameters", "throughput", "samples", "norm"),
        *WORSE_WHEN_HIGHER,
    ]
)
# words that turn a column with one of those into a hyperparameter
SETTINGS = frozenset(
    [
        *("max", "num", "n", "clip", "warmup", "weight", "every", "per", "decay", "batch", "size"),
        *("function", "type", "fn", "name", "layer", "coef", "lambda", "scale", "total", "alpha"),
    ]
)
# words that turn a learning rate into another number: its logarithm, or one that is reached later
NO_BASE_LR = frozenset(["log", "log2", "log10", "ln", "min", "end", "final", "last", "warmup"])
WORDS = re.compile(r"[A-Za-z]+[0-9]*")


def normal(name: str) -> str:
    """A column's name as names are compared: the last of its parts, in lower case with `_`."""
    last = re.split(r"[./]", name)[-1]
    return re.sub(r"[\s-]+", "_", last.strip()).lower()


def role_of(name: str) -> str:
    """What a column is that is neither hyperparameter nor result: state or seconds; empty if it is
    not.
    """
    if normal(name) in STATE_NAMES:
        return "state"
    return "seconds" if normal(name) in SECONDS_NAMES else ""


def is_of_bookkeeping(name: str) -> bool:
    """Whether a tracker keeps such a column of its own: names, dates, tags."""
    lower = re.sub(r"\s+", "_", name.strip()).lower()
    return BOOKKEEPING.fullmatch(lower) is not None


def sounds_like_result(name: str, values: Sequence[Any]) -> bool:
    """Whether a column of numbers, but for a text here and there, has the name of something that is
    measured.
    """
    known = [value for value in values if not says_nothing(value)]
    if 2 * sum(isinstance(value, int | float) for value in known) <= len(known):
        return False
    if any(normal(name) in usual for usual in USUAL.values()):
        return False
    words = {word.lower() for word in WORDS.findall(name.replace("_", " "))}
    if normal(name) in OBJECTIVES:
        return True
    if words & SETTINGS:
        return False
    return bool(words & RESULTS or sounds_better_when_higher(name.replace("_", " ")))


def usual_column(ours: str, columns: Iterable[str]) -> list[str]:
    """Of some columns, those whose names usually mean a hyperparameter of ours, the best first.

    For base_lr, where no name is usual by itself, all that end in one, as adam_lr and sgd_lr, but
    for those of another number, as log_lr and min_lr.
    """
    columns = list(columns)
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(normal(column), column)
    found = [by_name[name] for name in USUAL.get(ours, ()) if name in by_name]
    if found or ours != "base_lr":
        return found[:1]
    ends = tuple(f"_{name}" for name in ("lr", "learning_rate"))
    return [
        column
        for column in columns
        if normal(column).endswith(ends) and not NO_BASE_LR & set(normal(column).split("_"))
    ]
