"""TensorBoard's event files, as torch's SummaryWriter writes them."""

import builtins
import math

import numpy as np
import pytest
from logged import LOSS, NORM

from tunewright.search.errors import UserError
from tunewright.search.judge.verdict import judge
from tunewright.search.logs.log import read_log

pytest.importorskip("tensorboard")


def write(folder, losses, first=0, suffix=""):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for step, loss in enumerate(losses, start=first):
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("grad/norm", NORM[step], step)
            if step % 50 == 0:
                writer.add_scalar("val/loss", loss, step)
        writer.add_histogram("weights", np.arange(10.0), first)
        writer.add_text("note", "hello", first)
    return folder


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run", LOSS)


def event_file(folder):
    (path,) = folder.iterdir()
    return path


def test_a_folder_and_its_file_are_the_same_log(run):
    log = read_log(run)
    assert log.format == "TensorBoard event files"
    assert log.guessed == {
        "step": "step", "loss": "train/loss", "grad_norm": "grad/norm", "objective": "val/loss"
    }  # fmt: skip
    np.testing.assert_array_equal(log.loss, LOSS.astype(np.float32))
    np.testing.assert_array_equal(log.grad_norm, NORM.astype(np.float32))
    assert log.metrics["val/loss"][0].tolist() == [0, 50, 100, 150]
    assert log.notes == ()
    assert read_log(event_file(run)).curve() == log.curve()


def test_a_resumed_run_writes_another_file(tmp_path):
    write(tmp_path / "run", np.ones(80), suffix=".a")
    write(tmp_path / "run", 2 * np.ones(50), first=50, suffix=".b")
    log = read_log(tmp_path / "run")
    assert log.loss.tolist() == [1.0] * 50 + [2.0] * 50
    assert log.notes[0].startswith("Training went back once, to step 50: ")


def test_a_loss_that_is_nan(tmp_path):
    loss = LOSS.copy()
    loss[130:] = math.nan
    verdict = judge(read_log(write(tmp_path / "run", loss)).curve())
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 130)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_of_a_damaged_file_what_stands_before_counts(run, damage):
    path = event_file(run)
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + (b"" if damage == "cut" else b"\0\xff\1" + data[half + 3 :]))
    log = read_log(run)
    assert 0 < len(log.loss) < len(LOSS)
    np.testing.assert_array_equal(log.loss, LOSS[: len(log.loss)].astype(np.float32))
    assert f"of {path.stat().st_size} bytes: what stands before counts." in log.notes[0]


@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 40, b"\0" * 100])
def test_a_file_without_scalars_is_refused(tmp_path, content):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is empty|has no scalars"):
        read_log(path)


def test_without_the_package_a_sentence_says_which_extra_to_install(run, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"install tunewright\[tensorboard\]"):
        read_log(run)
