"""Processes and modules of users: a DataLoader's workers inside worker processes, code that is
edited between runs.
"""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.pool.local import this_machine
from tunewright.search.run import run_study
from tunewright.search.train.loop import train
from tunewright.search.workload.workload import load_workload

LOADING = """
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class Noted(Dataset):
    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if self.folder:
            Path(self.folder, str(os.getpid())).touch()  # who loads
        x = torch.randn(3, generator=torch.Generator().manual_seed(i))
        return x, x.sum(0, keepdim=True)


class Loading:
    def __init__(self, folder, method):
        self.folder, self.method = folder, method

    def loader(self, batch_size, seed, apart=True):
        generator = torch.Generator().manual_seed(seed)
        examples, more = Noted(self.folder if apart else None), {}
        if apart and self.method != "none":
            more = {"num_workers": 1, "multiprocessing_context": self.method}
        return DataLoader(examples, batch_size, shuffle=True, generator=generator, **more)

    def build_model(self, seed):
        return nn.Linear(3, 1)

    def train_batches(self, batch_size, seed):
        return self.loader(batch_size, seed)

    def loss(self, model, batch):
        return functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model):
        apart = self.method not in ("forkserver", "spawn")  # which take seconds to import torch
        losses = [self.loss(model, batch) for batch in self.loader(40, 0, apart)]
        return {"val_loss": sum(losses) / len(losses)}
"""


@pytest.fixture(name="place")
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    this_machine().stop()
    for name in ("loading_here", "edited_here", "base_here"):
        sys.modules.pop(name, None)


def study(workload, trials=1, **changes):
    return parse(
        workload=workload,
        objective="val_loss",
        batch_sizes=[8],
        trials=trials,
        evaluations=1,
        space={"optimizer": {"sgd": {"base_lr": {"low": 1e-3, "high": 1e-2, "log": True}}}},
        **changes,
    )


def alive(folder):
    """Processes that have loaded examples and still run."""
    return [pid for pid in map(int, os.listdir(folder)) if Path(f"/proc/{pid}").exists()]


def parent(pid):
    """The process that started another; None of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(status.partition("PPid:")[2].split()[0])


@pytest.mark.parametrize(
    "method",
    [
        "default",
        "fork",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("forkserver", "spawn")),
    ],
)
def test_a_loader_has_processes_of_its_own_inside_a_worker_process(place, method):
    (place / "loading_here.py").write_text(LOADING)
    who = place / "who"
    who.mkdir()
    asked = {"folder": str(who), "method": None if method == "default" else method}
    (place / "loading_here.py").write_text(
        LOADING + f"\n\ndef make():\n    return Loading(**{asked!r})\n"
    )
    trials = run_study(study("loading_here:make", max_train_steps=5), workers=1, progress=False)
    assert [trial.verdict.evidence for trial in trials if trial.verdict.crashed] == []
    pids = {int(name) for name in os.listdir(who)}
    assert os.getpid() not in pids
    alone = load_workload("loading_here:Loading", {"folder": str(who), "method": "none"})
    for trial in trials:
        (want,) = train(study("loading_here:make", max_train_steps=5), alone, [trial.point])
        np.testing.assert_array_equal(trial.curve.loss, want.trial.curve.loss)
        np.testing.assert_array_equal(
            trial.curve.metrics["val_loss"], want.trial.curve.metrics["val_loss"]
        )
    (who / str(os.getpid())).unlink()
    wait_until(lambda: alive(who) == [], 20)  # the last trial is handed in before its loader ends


DRIVER = """
from test_loaders import study
from tunewright.search.run import run_study

run_study(study("loading_here:make", max_train_steps=10**6), workers=1, slots=1, progress=False)
"""


@pytest.mark.slow
@pytest.mark.apart
def test_a_loader_ends_with_its_worker_when_the_driver_is_killed(place):
    (place / "loading_here.py").write_text(
        LOADING + "\n\ndef make():\n    return Loading('who', 'fork')\n"
    )
    (place / "who").mkdir()
    paths = [str(place), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.DEVNULL,
    )
    try:
        # the driver tries the workload itself before
        wait_until(lambda: any(parent(pid) not in (None, driver.pid) for pid in alive("who")), 60)
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not alive("who"), 20)


def wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


BASE = "SCALE = {}\n"
EDITED = """
import itertools
import os
import torch
from torch import nn
from base_here import *


class Edited:
    def build_model(self, seed):
        return nn.Linear(1, 1)

    def train_batches(self, batch_size, seed):
        return itertools.repeat(torch.ones(batch_size, 1))

    def loss(self, model, batch):
        return model(batch).mean() * 1e-9 + SCALE

    def evaluate(self, model):
        return {{"val_loss": {}, "pid": os.getpid()}}


def make():
    return Edited()
"""


@pytest.mark.slow
@pytest.mark.apart
def test_the_next_run_in_a_process_trains_code_that_was_edited_or_reloaded(place):
    pids = []

    def run(name):
        one = study("edited_here:make", max_train_steps=2).model_copy(update={"name": name})
        trials = run_study(one, workers=1, progress=False)
        (trial,) = trials
        pids.append(trial.curve.metrics["pid"][0])
        return trial.curve.loss[0], trial.best_value

    (place / "base_here.py").write_text(BASE.format(1))
    (place / "edited_here.py").write_text(EDITED.format(1))
    assert run("first") == (1.0, 1.0)
    assert run("same") == (1.0, 1.0)
    assert pids[0] == pids[1]  # nothing to wait for where nothing was edited
    (place / "base_here.py").write_text(BASE.format(22))
    assert run("edited") == (22.0, 1.0)
    assert sys.modules["edited_here"].SCALE == 22
    (place / "edited_here.py").write_text(EDITED.format(333))
    importlib.reload(sys.modules["edited_here"])
    assert run("reloaded") == (22.0, 333.0)


def test_a_workload_of_the_main_module_is_refused_in_a_sentence():
    with pytest.raises(
        UserError, match="put the factory into a file of its own, and name it file:factory"
    ):
        load_workload("__main__:make", {})


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "1 / 0", "def broken("])
def test_a_module_that_cannot_be_imported_is_an_error_of_its_own(place, text):
    (place / "edited_here.py").write_text(text)
    with pytest.raises(
        UserError, match=r"importing 'edited_here' raised (SystemExit|ZeroDivision|Syntax)"
    ):
        load_workload("edited_here:make", {})
