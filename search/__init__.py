"""Hyperparameter-search studies for PyTorch, after the Deep Learning Tuning Playbook.

import tunewright as tw

study = tw.load_study("studies/digits_mlp.toml")   # or tw.Study(name="mine", workload=Mine, ...)
trials = tw.run_study(study)                       # or tw.read_results("results/digits_mlp").trials
tw.axis_figure(tw.axis_info(trials, "base_lr", study.objective)).show()

`tunewright` and `tunewright.search` have the same public names: those of _HOMES.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "compare": ("compare",),
    "diagnose": ("diagnose",),
    "errors": ("UserError",),
    "judge.analysis": ("boundary_checks", "group_trials", "summarize"),
    "judge.readout": ("read_out",),
    "judge.verdict": ("judge",),
    "integrations.watch": ("watch",),
    "judge_logs": ("judge_log",),
    "logs.log": ("read_log",),
    "pool.hired": ("Hired",),
    "pool.in_process": ("InProcess",),
    "run": ("run_studies", "run_study"),
    "scaling": ("scaling",),
    "show.build": ("build_report",),
    "show.plots": (
        "axis_figure",
        "axis_info",
        "curves_figure",
        "curves_info",
        "norms_figure",
        "norms_info",
    ),
    "store.frame": ("trials_frame",),
    "store.results": ("Results", "read_results"),
    "store.storage": ("open_store", "read_trials"),
    "study.sampling": ("plan",),
    "study.study": ("Range", "Study", "load_study"),
    "train.loop": ("train",),
    "trainers.current": ("current_run",),
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


class _Package(ModuleType):
    """A package whose modules do not hide the functions that have their names, as `compare`."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _MODULE_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
