"""What a worker leaves in the inbox is complete, or is gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from examples import parse
from posted import Keeper, work

from tunewright.search.pool import worker
from tunewright.search.pool.inbox import read_inbox, take_interrupted
from tunewright.search.pool.worker import Task, measure
from tunewright.search.train import loop
from tunewright.search.train.execution import ALONE, Engine
from tunewright.search.trial import Point

POINTS = [Point(i, 32, "adam", 10.0 ** (i - 4)) for i in range(3)]


def task(inbox, engine, steps=30):
    study = parse(
        workload="tunewright.models.digits:mlp",
        objective="val_loss",
        max_train_steps=steps,
        space__warmup_steps=0,
        evaluations=3,
    )
    return Task(study, inbox, POINTS, engine)


def test_every_point_is_posted_once_with_its_curve_and_nothing_else_is_left(tmp_path):
    for engine in (ALONE, Engine(stacked=True, slots=2)):
        inbox = tmp_path / str(engine.slots)
        inbox.mkdir()
        work(task(inbox, engine))
        trials = {trial.point.number: trial for trial, _ in read_inbox(inbox)}
        assert sorted(trials) == [0, 1, 2]
        assert all(len(trial.curve.loss) == 30 for trial in trials.values())
        assert {path.suffix for path in inbox.iterdir()} == {".json", ".npz", ".safetensors"}
        assert take_interrupted(inbox) == set()


def test_what_fails_compiled_is_trained_as_it_is(tmp_path, monkeypatch):
    asked = []

    def compiler(module, **options):
        asked.append(module)
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", compiler)
    work(task(tmp_path, Engine(stacked=True, slots=2, compiled=True)))
    assert asked
    assert all(trial.feasible for trial, _ in read_inbox(tmp_path))
    assert len(list(read_inbox(tmp_path))) == 3


def test_a_point_whose_training_began_is_known_and_its_state_survives(tmp_path, monkeypatch):
    keeper = Keeper(tmp_path)
    assert keeper.begin(POINTS[1]) is None
    keeper.save(POINTS[1], {"theta": torch.arange(3.0)})
    assert take_interrupted(tmp_path) == {"batch_size=32-00001"}
    assert take_interrupted(tmp_path) == set()
    state = keeper.begin(POINTS[1])
    assert torch.equal(state["theta"], torch.arange(3.0))


def test_states_are_written_now_and_then_and_removed_with_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    saved = []
    monkeypatch.setattr(
        Keeper,
        "save",
        lambda self, point, state: saved.append((point.number, len(state["loss"]))),
    )
    work(task(tmp_path, ALONE))
    assert saved == [(number, step) for number in range(3) for step in (10, 20)]
    assert not list(tmp_path.glob("*.state"))


PRINTING = """
from tunewright.models.digits import DigitsMLP


class Printing(DigitsMLP):
    def build_model(self, seed):
        print("said")
        return super().build_model(seed)
"""


def test_what_a_workload_prints_in_a_worker_is_not_lost(tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING)
    program = (
        "from test_worker import task\n"
        "from tunewright.search.run import run_study\n"
        "study = task('.', None).study.model_copy(update={'workload': 'printing:Printing'})\n"
        "run_study(study, workers=1, slots=1, progress=False)\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    tried = 2  # times, before the run, in the driver's own process
    assert ended.stdout.count("said") > tried
    assert not ended.stderr


def test_records_are_plain_json(tmp_path):
    work(task(tmp_path, ALONE, steps=5))
    record = json.loads((tmp_path / "batch_size=32-00000.json").read_text())
    assert record["point"]["base_lr"] == 1e-4


def test_a_workload_that_fails_while_it_is_measured_trains_one_after_the_other(
    tmp_path, monkeypatch
):
    def fail(*arguments):
        raise RuntimeError("no")

    monkeypatch.setattr(worker, "choose", fail)
    engine = measure(task(tmp_path, ALONE).study, POINTS, workers=1, cores=1, device="cpu")
    assert engine == Engine(stacked=False, slots=1, reason="not measured: RuntimeError: no")
