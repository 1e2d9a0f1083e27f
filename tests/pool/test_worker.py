"""What a worker leaves in the inbox is complete, or is gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples import parse
from posted import Keeper, work

from tunewright.search.errors import UnfinishedError
from tunewright.search.pool import worker
from tunewright.search.pool.inbox import read_inbox, take_interrupted
from tunewright.search.pool.worker import Choice, Task, choose_engine
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


def compiler(monkeypatch, works_for):
    """torch's compiler, which raises for programs that it does not work for; what it was asked."""
    asked = []

    def compile_or_not(program, **options):
        asked.append(program)
        if not works_for(program):
            raise RuntimeError("No working C++ compiler found")
        return program

    monkeypatch.setattr(torch, "compile", compile_or_not)
    return asked


def test_what_fails_compiled_is_trained_as_it_is_and_told(tmp_path, monkeypatch, caplog):
    compiler(monkeypatch, works_for=lambda program: not isinstance(program, torch.nn.Module))
    work(task(tmp_path, Engine(stacked=True, slots=2, compiled=True)))
    assert all(trial.feasible for trial, _ in read_inbox(tmp_path))
    assert len(list(read_inbox(tmp_path))) == 3
    told = "batch size 32: some trials are not compiled, and round differently, after RuntimeError"
    assert told in caplog.text


def test_without_a_compiler_nothing_is_trained_that_is_to_be_compiled(tmp_path, monkeypatch):
    asked = compiler(monkeypatch, works_for=lambda program: False)
    with pytest.raises(UnfinishedError, match=r"this machine cannot: No working C.*--no-compile"):
        work(task(tmp_path, Engine(stacked=True, slots=2, compiled=True)))
    assert isinstance(asked[0], torch.nn.Module)
    assert not list(tmp_path.iterdir())  # and none of it is called interrupted


def test_the_crash_of_one_point_changes_no_number_of_those_that_were_stacked_with_it(
    tmp_path, monkeypatch
):
    def curves(folder):
        (tmp_path / folder).mkdir()
        work(task(tmp_path / folder, Engine(stacked=True, slots=3)))
        return {trial.point.number: trial.curve for trial, _ in read_inbox(tmp_path / folder)}

    def train_or_fail(study, workload, points, engine, *more, **named):
        for one in loop.train(study, workload, points, engine, *more, **named):
            if 1 in list(points.unfinished)[: engine.slots]:
                raise RuntimeError("no")
            yield one

    untroubled = curves("untroubled")
    monkeypatch.setattr(worker, "train", train_or_fail)
    troubled = curves("troubled")
    assert not troubled[1].loss.size
    assert (troubled[0], troubled[2]) == (untroubled[0], untroubled[2])


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
        worker._Keeper,
        "save",
        lambda self, point, state: saved.append((point.number, len(state["loss"]))),
    )
    work(task(tmp_path, ALONE))
    assert saved == [(number, step) for number in range(3) for step in (10, 20)]
    assert not list(tmp_path.glob("*.state"))


PRINTING = """
from tunewright.models.digits import mlp


def printing():
    workload = mlp()
    build_model = workload.build_model

    def build_and_print(seed):
        print("said")
        return build_model(seed)

    object.__setattr__(workload, "build_model", build_and_print)
    return workload
"""


def test_what_a_workload_prints_in_a_worker_is_not_lost(tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING)
    program = (
        "from test_worker import task\n"
        "from tunewright.search.run import run_study\n"
        "study = task('.', None).study.model_copy(update={'workload': 'printing:printing'})\n"
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
    (log,) = tmp_path.glob("runs/*/workers.log")
    assert "said" in log.read_text(encoding="utf-8")
    assert "Traceback" not in ended.stderr


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
    engine = choose_engine(Choice(task(tmp_path, ALONE).study, POINTS, 1, "cpu", None, None))
    assert engine == Engine(stacked=False, slots=1, reason="could not be chosen: RuntimeError: no")
