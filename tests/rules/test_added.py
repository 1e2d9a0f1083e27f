"""What tunewright does not ship is added in one file; a real study trains it, alone and stacked."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo

TESTS = Path(__file__).parents[1]
# The rows must be there before study files are read, so it is a process of its own.
PROGRAM = """
import {module}
from tunewright.search.cli import main

for slots in ("1", "3"):
    main(["run", "study.toml", "--workers", "1", "--slots", slots, "--results", "slots-" + slots])
"""
STUDY = f"""
workload = "{{module}}:make"
objective = "val_loss"
max_train_steps = {zoo.STEPS}
evaluations = {zoo.STEPS // zoo.EVERY}
batch_sizes = [24]
sampler = "grid"
"""


def run(folder, module, space):
    """Train a study in a process that has imported a module; its folder, by slots."""
    text = STUDY.format(module=module) + space
    (folder / "study.toml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {slots: folder / f"slots-{slots}" / "study" for slots in (1, 3)}


def losses(results):
    """The training losses of each trial, by its number."""
    curves = sorted((results / "curves").glob("*.npz"))
    return [np.load(path)["loss"] for path in curves]


def by_torch(optimizer_of, factor=lambda step: 1.0):
    """Losses of zoo's Mlp under an optimizer of torch's; `optimizer_of` makes it of parameters, and
    `factor` scales its learning rate.
    """
    work, found = zoo.make("Mlp"), []
    zoo.seed_all(0)
    model = work.build_model(0)
    zoo.seed_all(0)
    batches = iter(work.train_batches(24, 0))
    optimizer = optimizer_of(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(zoo.STEPS):
        optimizer.zero_grad()
        loss = work.loss(model, next(batches))
        loss.backward()
        optimizer.step()
        schedule.step()
        found.append(loss.item())
    return found


@pytest.fixture(scope="module")
def amsgrad(tmp_path_factory):
    # An ε so small that it does not matter that the playbook's rules leave it uncorrected.
    space = """
    [space.optimizer.amsgrad]
    base_lr = [0.01, 0.05]
    beta2 = 0.9
    epsilon = 1e-20
    [space.optimizer.sgd]
    base_lr = [0.1]
    """
    return run(tmp_path_factory.mktemp("amsgrad"), "amsgrad", space)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_rule_with_a_third_state_equals_torchs(amsgrad, slots):
    found = losses(amsgrad[slots])
    adam = {"betas": (0.9, 0.9), "eps": 1e-20}
    plain = [
        by_torch(lambda ps: torch.optim.SGD(ps, lr=0.1)),
        by_torch(lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True, **adam)),
        by_torch(lambda ps: torch.optim.Adam(ps, lr=0.05, amsgrad=True, **adam)),
    ]
    np.testing.assert_allclose(found, plain, rtol=1e-9)
    without = by_torch(lambda ps: torch.optim.Adam(ps, lr=0.05, **adam))
    assert not np.allclose(found[2], without, rtol=1e-3)


@pytest.fixture(scope="module")
def stairs(tmp_path_factory):
    space = """
    scientific = ["decay"]
    [space]
    decay = ["constant", "stairs", "wsd"]
    stairs = [2, 5]
    decay_fraction = 0.5
    [space.optimizer.sgd]
    base_lr = 0.1
    """
    return run(tmp_path_factory.mktemp("stairs"), "stairs", space)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_shape_with_a_setting_of_its_own_schedules_a_real_study(stairs, slots):
    factors = [
        lambda step: 1.0,
        lambda step: 1 - 2 * step // zoo.STEPS / 2,
        lambda step: 1 - 5 * step // zoo.STEPS / 5,
        lambda step: min(1.0, (1 - step / zoo.STEPS) / 0.5),
    ]
    plain = [by_torch(lambda ps: torch.optim.SGD(ps, lr=0.1), factor) for factor in factors]
    np.testing.assert_allclose(losses(stairs[slots]), plain, rtol=1e-9)


def test_its_setting_is_a_column_and_an_axis_as_others_are(stairs):
    with (stairs[1] / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [(row["decay"], row["stairs"], row["decay_fraction"]) for row in rows]
    assert found == [
        ("constant", "", ""),
        ("stairs", "2", ""),
        ("stairs", "5", ""),
        ("wsd", "", "0.5"),
    ]
    report = (stairs[1] / "report.html").read_text(encoding="utf-8")
    assert '<figure id="axis_stairs"' in report
