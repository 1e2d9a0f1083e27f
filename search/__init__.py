"""Hyperparameter-search studies for PyTorch, after the Deep Learning Tuning Playbook.

from pathlib import Path
from tunewright.search import axis_figure, axis_info, load_study, run_study

study = load_study("studies/digits_mlp.toml")
trials = run_study(study)                      # or
                                               read_trials(open_store(Path("results/digits_mlp")))
axis_figure(axis_info(trials, "base_lr", study.objective)).show()
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "diagnose": ("diagnose",),
    "errors": ("UserError",),
    "judge.analysis": ("boundary_checks", "group_trials", "summarize"),
    "judge.readout": ("read_out",),
    "judge.verdict": ("judge",),
    "judge_logs": ("judge_log",),
    "logs.log": ("read_log",),
    "pool.hired": ("Hired",),
    "pool.in_process": ("InProcess",),
    "run": ("run_studies", "run_study"),
    "show.plots": (
        "axis_figure",
        "axis_info",
        "curves_figure",
        "curves_info",
        "norms_figure",
        "norms_info",
    ),
    "store.storage": ("open_store", "read_trials"),
    "study.sampling": ("plan",),
    "study.study": ("Study", "load_study"),
    "train.loop": ("train",),
    "trial": ("Curve", "Group", "Point", "Trial", "Verdict"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import on first use, so that `tunewright --help` need not wait for torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
