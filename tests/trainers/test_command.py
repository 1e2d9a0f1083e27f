"""Commands as real processes: what becomes of their trials, and that none is left behind."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from commanded import start, wait_until

import tunewright
from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.store.storage import open_store, read_trials
from tunewright.search.study.pinned import pin
from tunewright.search.study.sampling import plan
from tunewright.search.study.study import load_study
from tunewright.search.trainers import command
from tunewright.search.trainers.command import train_by_command
from tunewright.search.trainers.current import current_run

# A loss that falls as exp(−rate · step), by pure Python: it starts in a moment. What a test is
# about is put in place of FAULT, which is run before each update.
SCRIPT = """
import argparse, csv, json, math, os, signal, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--every", type=int, default=10)
parser.add_argument("--out", required=True)
options = parser.parse_args()
log = open(f"{options.out}/log.csv", "w", newline="")
rows = csv.writer(log)
rows.writerow(["step", "train_loss", "grad_norm", "val_loss"])
rows.writerow([0, "", "", 1.0])
for step in range(1, options.steps + 1):
    loss = math.exp(-options.lr * step)
FAULT
    rows.writerow([step, loss, loss / 2, loss if step % options.every == 0 else ""])
    log.flush()
print("trained")
"""
WORDS = ["--lr", "{base_lr}", "--steps", "{total_steps}", "--every", "{evaluate_every}"]
LOG = {"path": "{run_dir}/log.csv", "loss": "train_loss", "grad_norm": "grad_norm"}
STEPS = 100


def write_study(folder, fault="", log=LOG, words=None, script=SCRIPT, **keys):
    """A study of a script, which lies beside it."""
    source = script.replace("FAULT", textwrap.indent(textwrap.dedent(fault), "    "))
    (folder / "train.py").write_text(source)
    document = {
        "command": words or [sys.executable, "train.py", *WORDS, "--out", "{run_dir}"],
        "log": log,
        "objective": "val_loss",
        "max_train_steps": STEPS,
        "evaluations": 10,
        "batch_sizes": [8],
        "trials": 1,
        "space": {
            "warmup_steps": 0,
            "clip_norm": math.inf,
            "optimizer": {"sgd": {"base_lr": 0.02}},
        },
    } | keys
    document = {key: value for key, value in document.items() if value is not None}
    (folder / "tuned.toml").write_text(tomli_w.dumps(document))
    return folder / "tuned.toml"


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "GRACE", 1.0)


def run(folder, *args, **keys):
    """The trials of a study that is trained in this process."""
    study = load_study(write_study(folder, *args, **keys))
    return run_study(study, results=folder / "results", backend=InProcess(), progress=False)


def run_dir(folder, number=0):
    return folder / "results" / "tuned" / "runs" / f"batch_size=8-{number:05d}"


def status_of(folder):
    return json.loads((run_dir(folder) / "status.json").read_text())


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_of_a_long_output_both_ends_are_kept(tmp_path, monkeypatch, name):
    monkeypatch.setattr(command, "OUTPUT_BYTES", 1000)
    (trial,) = run(tmp_path, f"print(f'<{{step}}>' + 'x' * 500, file=sys.{name})")
    assert trial.feasible
    said = (run_dir(tmp_path) / f"{name}.log").read_text()
    assert said.startswith("<1>x")
    assert said.removesuffix("trained\n").endswith("x\n")
    assert "<100>x" in said
    assert "<50>x" not in said
    printed = sum(len(f"<{step}>") + 501 for step in range(1, STEPS + 1))
    printed += len("trained\n") * (name == "stdout")
    assert f"[tunewright: {printed - 2000} bytes are left out here]" in said
    assert len(said) < 2100


def test_an_output_that_is_the_log_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "OUTPUT_BYTES", 1000)
    log = {"path": "{run_dir}/stdout.log", "loss": "loss"}
    prints = "print(json.dumps({'step': step, 'loss': loss, 'val_loss': loss}))"
    script = SCRIPT.replace('print("trained")', "")
    (trial,) = run(tmp_path, prints, log=log, script=script)
    assert trial.feasible
    assert len((run_dir(tmp_path) / "stdout.log").read_text().splitlines()) == STEPS


SPACE = {
    "warmup_steps": 0,
    "clip_norm": math.inf,
    "optimizer": {"sgd": {"base_lr": {"low": 0.01, "high": 0.1, "log": True}}},
}


def test_a_command_is_trained_at_each_point_and_its_log_is_the_curve(tmp_path):
    trials = run(tmp_path, trials=3, space=SPACE)
    assert [trial.verdict.outcome for trial in trials] == ["feasible"] * 3
    for trial in trials:
        steps = range(1, STEPS + 1)
        assert trial.curve.loss.tolist() == [math.exp(-trial.point.base_lr * s) for s in steps]
        assert trial.curve.grad_norm.tolist() == [loss / 2 for loss in trial.curve.loss]
        assert trial.curve.loss_step is None
        assert trial.curve.eval_step.tolist() == list(range(0, STEPS + 1, 10))
        assert trial.best_value == math.exp(-trial.point.base_lr * STEPS)
        assert trial.initial_value == 1.0
    assert (run_dir(tmp_path) / "stdout.log").read_text() == "trained\n"
    assert (run_dir(tmp_path) / "stderr.log").read_text() == ""
    status = status_of(tmp_path)
    assert (status["exit_status"], status["ended_by"]) == (0, "itself")
    assert status["command"][2:4] == ["--lr", str(trials[0].point.base_lr)]


def test_it_runs_where_tunewright_runs_with_its_own_folder_and_one_thread(tmp_path, monkeypatch):
    told = """
    if step == 1:
        names = "OMP_NUM_THREADS", "TUNEWRIGHT_RUN_DIR"
        print(json.dumps([os.getcwd(), {name: os.environ.get(name) for name in names}]))
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run(tmp_path, told)
    said = (run_dir(tmp_path) / "stdout.log").read_text().splitlines()[0]
    variables = {"OMP_NUM_THREADS": "1", "TUNEWRIGHT_RUN_DIR": str(run_dir(tmp_path))}
    assert json.loads(said) == [str(tmp_path), variables]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    study = load_study(tmp_path / "tuned.toml")
    train_by_command(study, trial_point(study), tmp_path / "there", tmp_path / "state")
    assert '"OMP_NUM_THREADS": "3"' in (tmp_path / "there" / "stdout.log").read_text()


def trial_point(study):
    return plan(study)[0]


def test_every_placeholder_stands_for_what_it_says(tmp_path):
    names = [
        *("base_lr", "clip_norm", "warmup_steps", "decay", "momentum", "batch_size", "optimizer"),
        *("seed", "run_dir", "device", "total_steps", "max_train_steps", "evaluate_every"),
        *("width", "bias", "kind"),
    ]
    script = SCRIPT.replace("options = parser.parse_args", "options, _ = parser.parse_known_args")
    script += "print(sys.argv[-1])\n"
    json_word = "{{" + ", ".join(f'"{name}": "{{{name}}}"' for name in names) + "}}"
    words = [sys.executable, "train.py", *WORDS, "--out", "{run_dir}", json_word]
    optimizer = {"momentum": {"base_lr": 1e-05, "momentum": 0.9}}
    trials = run(
        tmp_path,
        script=script,
        words=words,
        prepend_warmup=True,
        seed=7,
        workload_args={"width": 64, "bias": True, "kind": "a b"},
        space={"warmup_steps": 5, "clip_norm": math.inf, "optimizer": optimizer},
    )
    assert trials[0].feasible, trials[0].verdict
    said = json.loads((run_dir(tmp_path) / "stdout.log").read_text().splitlines()[1])
    assert said == {
        "base_lr": "1e-05",
        "clip_norm": "inf",
        "warmup_steps": "5",
        "decay": "constant",
        "momentum": "0.9",
        "batch_size": "8",
        "optimizer": "momentum",
        "seed": "7",
        "run_dir": str(run_dir(tmp_path)),
        "device": "cpu",
        "total_steps": "105",
        "max_train_steps": "100",
        "evaluate_every": "10",
        "width": "64",
        "bias": "true",
        "kind": "a b",
    }


def test_settings_of_an_optimizer_of_torch_are_placeholders(tmp_path):
    adamw = {"base_lr": 0.02, "weight_decay": [0.0, 0.1], "amsgrad": True}
    space = {"warmup_steps": 0, "clip_norm": math.inf, "optimizer": {"torch.optim.AdamW": adamw}}
    script = SCRIPT.replace("options = parser.parse_args", "options, _ = parser.parse_known_args")
    script += "print(sys.argv[-3:])\n"
    words = [sys.executable, "train.py", *WORDS, "--out", "{run_dir}"]
    keys = {"script": script, "space": space, "trials": 2}
    with pytest.raises(UserError, match="no placeholder uses weight_decay, which varies"):
        run(tmp_path, words=words, **keys)
    words += ["{optimizer}", "{weight_decay}", "{amsgrad}"]
    trials = run(tmp_path, words=words, **keys)
    assert [trial.point.settings["weight_decay"] for trial in trials] == [0.0, 0.1]
    said = (run_dir(tmp_path, 1) / "stdout.log").read_text().splitlines()[1]
    assert said == "['torch.optim.AdamW', '0.1', 'true']"


JSON_LINES = """
    if step == 1:
        lines = open(f"{options.out}/log.jsonl", "w")
    row = {"step": step, "train_loss": loss, "val_loss": loss if step % 10 == 0 else None}
    print(json.dumps(row), file=lines, flush=True)
"""


def test_json_lines_without_norms(tmp_path):
    log = {"path": "{run_dir}/log.jsonl", "loss": "train_loss"}
    (trial,) = run(tmp_path, JSON_LINES, log=log)
    assert trial.feasible
    assert len(trial.curve.loss) == STEPS
    assert len(trial.curve.grad_norm) == 0
    assert trial.clip_fraction == 0.0


BASH = """#!/bin/bash
echo step,loss,val > "$2/log.csv"
for ((i = 0; i < $1; i++)); do
    echo "$i,$((1000 - i)),$((i % 10 ? 0 : 1000 - i))" | sed 's/,0$/,/' >> "$2/log.csv"
done
"""


def test_a_bash_script_that_counts_from_0(tmp_path):
    (tmp_path / "train.sh").write_text(BASH)
    (tmp_path / "train.sh").chmod(0o755)
    words = ["./train.sh", "{total_steps}", "{run_dir}"]
    log = {"path": "{run_dir}/log.csv", "loss": "loss"}
    (trial,) = run(tmp_path, words=words, log=log, objective="val", max_train_steps=30)
    assert trial.feasible, trial.verdict
    assert trial.curve.loss.tolist() == [1000 - i for i in range(30)]


# --- how it ends ----------------------------------------------------------------------------------

HOPELESS = """
    if step > 20:
        loss = 1000.0
        time.sleep(0.002)
"""


def test_a_hopeless_training_is_ended_and_infeasible_not_crashed(tmp_path):
    (trial,) = run(tmp_path, HOPELESS, max_train_steps=2000, evaluations=200)
    assert trial.verdict.outcome == "diverged"
    assert len(trial.curve.loss) < 1000
    status = status_of(tmp_path)
    assert (status["exit_status"], status["ended_by"]) == (-signal.SIGTERM, "verdict")


@pytest.mark.slow
@pytest.mark.apart
def test_a_hopeless_training_ends_at_the_same_update_in_each_run(tmp_path):
    keys = {"max_train_steps": 2000, "evaluations": 200}
    (first,) = run(tmp_path, HOPELESS, **keys)
    shutil.rmtree(tmp_path / "results")
    (second,) = run(tmp_path, HOPELESS.replace("0.002", "0.003"), **keys)
    assert first.curve == second.curve
    assert first.verdict == second.verdict


DEAF = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if step > 900:
        time.sleep(0.5)
"""


@pytest.mark.slow
@pytest.mark.apart
def test_a_command_that_does_not_hear_sigterm_is_killed_after_a_while(tmp_path):
    (trial,) = run(tmp_path, DEAF + HOPELESS, max_train_steps=2000, evaluations=200)
    assert trial.verdict.outcome == "diverged"
    assert status_of(tmp_path)["exit_status"] == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.apart
def test_a_command_that_hangs_is_a_crash_once_its_time_is_over(tmp_path):
    began = time.monotonic()
    (trial,) = run(tmp_path, "if step == 50: time.sleep(600)", timeout=2)
    assert trial.verdict.crashed
    assert trial.verdict.evidence == "did not end within 2 s"
    assert time.monotonic() - began < 30
    assert status_of(tmp_path)["ended_by"] == "timeout"


def test_nan_is_infeasible_whether_the_script_goes_on_or_raises(tmp_path):
    goes_on = 'if step >= 30: loss = float("nan")'
    raises = """
    if step == 31:
        raise FloatingPointError("nan")
    if step == 30:
        loss = float("nan")
    """
    for fault in (goes_on, raises):
        (trial,) = run(tmp_path, fault)
        assert trial.verdict.outcome == "non_finite"
        assert trial.verdict.onset_step == 29
        assert trial.curve.total_steps == STEPS
        shutil.rmtree(tmp_path / "results")


def test_a_script_that_raises_is_a_crash_with_the_last_lines_of_its_errors(tmp_path):
    (trial,) = run(tmp_path, 'if step == 30: raise RuntimeError("no café today")')
    assert trial.verdict.crashed
    assert trial.verdict.evidence == "exit status 1: RuntimeError: no café today"
    assert "Traceback (most recent call last)" in trial.traceback
    assert trial.traceback.startswith(f"{run_dir(tmp_path)}: ")
    assert "train.py" in trial.traceback
    log = (tmp_path / "results" / "tuned" / "crashed.log").read_text()
    assert "no café today" in log


def test_a_script_that_fails_without_a_word_and_one_that_is_killed(tmp_path):
    (trial,) = run(tmp_path, "if step == 30: os._exit(7)")
    assert trial.verdict.evidence == "exit status 7"
    (trial,) = run(tmp_path, "if step == 30: os.kill(os.getpid(), signal.SIGKILL)")
    assert trial.verdict.evidence == "was ended by signal 9 (out of memory?)"


LATE = {
    "an exception": ('raise OSError("no space left")', "exit status 1: OSError: no space left"),
    "an abort": ("os.abort()", "was ended by signal 6"),
    "a hang": ("log.close(); time.sleep(100)", "did not end within 1 s"),
}


@pytest.mark.parametrize(("fault", "reason"), LATE.values(), ids=LATE)
def test_a_command_that_fails_after_its_last_evaluation_has_trained(fault, reason, tmp_path):
    later = f'print("trained")\n{fault}\n'
    script = SCRIPT.replace('print("trained")\n', later)
    (trial,) = run(tmp_path, script=script, timeout=1 if "sleep" in fault else None)
    assert trial.feasible, trial
    assert trial.verdict.evidence.endswith(f"; after its last evaluation: {reason}")
    shutil.rmtree(tmp_path / "results")
    (whole,) = run(tmp_path)
    assert trial.best_value == whole.best_value
    assert trial.curve.loss.tolist() == whole.curve.loss.tolist()


@pytest.mark.parametrize("fault", ["os._exit(7)", "time.sleep(100)"])
def test_a_command_that_fails_at_its_last_evaluation_has_not(fault, tmp_path):
    fault = f"""
    if step == options.steps:
        rows.writerow([step, loss, loss / 2, ""])
        log.flush()
        {fault}
    """
    (trial,) = run(tmp_path, fault, timeout=1 if "sleep" in fault else None)
    assert trial.verdict.crashed


def test_a_command_that_fails_before_its_last_column_is_there_is_a_crash(tmp_path):
    log = LOG | {"metrics": ["test_loss"]}  # which it would write at last
    script = SCRIPT.replace('print("trained")', 'raise OSError("no space left")')
    (trial,) = run(tmp_path, script=script, log=log)
    assert trial.verdict.evidence == "exit status 1: OSError: no space left"


def test_one_trial_that_fails_does_not_stop_the_others(tmp_path):
    fault = 'if options.lr > 0.03 and step == 30: raise RuntimeError("too high")'
    trials = run(tmp_path, fault, trials=4, space=SPACE)
    crashed = [trial for trial in trials if trial.verdict.crashed]
    assert len(trials) == 4
    assert 0 < len(crashed) < 4
    assert all(trial.point.base_lr > 0.03 for trial in crashed)


def test_a_log_that_ends_early_is_a_crash(tmp_path):
    (trial,) = run(tmp_path, "if step == 61: sys.exit()")
    assert trial.verdict.evidence == "its log ends after 60 of 100 updates"


def test_half_a_last_line_is_no_row(tmp_path):
    fault = """
    if step == 100:
        log.write("100,0.")
        log.flush()
        os._exit(0)
    """
    (trial,) = run(tmp_path, fault)
    assert trial.verdict.evidence == "its log ends after 99 of 100 updates"


def test_text_in_a_column_of_numbers_ends_the_command_and_is_a_crash(tmp_path):
    fault = """
    if step == 30:
        loss = "low"
        rows.writerow([step, loss, 1, ""])
        log.flush()
        time.sleep(600)
    """
    (trial,) = run(tmp_path, fault)
    path = run_dir(tmp_path) / "log.csv"
    assert trial.verdict.evidence == f"{path}: line 32: train_loss: must be a number, got 'low'"
    assert status_of(tmp_path)["ended_by"] == "log"


def test_stop_after_ends_a_command_that_trains_its_whole_schedule(tmp_path):
    (trial,) = run(tmp_path, "time.sleep(0.005)", stop_after=40, max_train_steps=2000)
    assert trial.feasible
    assert len(trial.curve.loss) == trial.curve.total_steps == 40
    assert status_of(tmp_path)["ended_by"] == "stop_after"


def test_an_accuracy_is_maximized(tmp_path):
    fault = 'rows.writerow([step - 1, "", "", 1 - math.exp(-options.lr * step)])'
    script = SCRIPT.replace('loss if step % options.every == 0 else ""', '""').replace(
        'rows.writerow([0, "", "", 1.0])', ""
    )
    (trial,) = run(tmp_path, fault, script=script, maximize=True)
    assert trial.feasible
    assert trial.best_value == 1 - math.exp(-0.02 * STEPS)


# --- what every trial would repeat ----------------------------------------------------------------

MISTAKES = [
    ("sys.exit()", SCRIPT.replace("log.csv", "other.csv"), {}, "log: the command did not write "),
    ("", SCRIPT, {"log": LOG | {"loss": "loss"}}, "has no column 'loss'; it has step, train_loss"),
    ("", SCRIPT, {"objective": "error"}, "has no column 'error'; it has step, train_loss"),
    (
        "",
        SCRIPT.replace("options.steps + 1", "2 * options.steps + 1"),
        {},
        "log: it goes on to step 102, beyond the 100 updates that are planned",
    ),
]


@pytest.mark.parametrize(("fault", "script", "keys", "said"), MISTAKES)
def test_a_mistake_that_every_trial_would_repeat_stops_the_study_at_the_first(
    fault, script, keys, said, tmp_path
):
    with pytest.raises(UserError, match=r"^tuned: ") as error:
        run(tmp_path, fault, script=script, trials=3, space=SPACE, **keys)
    assert said in str(error.value)
    assert not run_dir(tmp_path, 1).exists()


def test_a_command_that_cannot_be_started(tmp_path):
    with pytest.raises(UserError, match=r"command: 'no-such-program' is no program that can be"):
        run(tmp_path, words=["no-such-program", "{base_lr}"])
    assert not (tmp_path / "results").exists()
    (tmp_path / "garbage").write_text("no program")
    (tmp_path / "garbage").chmod(0o755)
    with pytest.raises(UserError, match=r"'\./garbage' cannot be started: Exec format error"):
        run(tmp_path, words=["./garbage", "{base_lr}"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"words": ["t", "{lr}"]}, "command: {lr} is unknown: placeholders are batch_size, optim"),
        ({"words": ["t", "{momentum}"]}, "command: {momentum} is unknown: placeholders are"),
        ({"words": ["t", "{"]}, "command: Single '{' encountered in format string, got '{'"),
        ({"words": ["t", "{}"]}, "command: braces must hold a name and nothing else; write {{"),
        ({"words": ["t", "{seed:03d}"]}, "command: braces must hold a name and nothing else"),
        ({"words": ["t", "{seed!r}"]}, "command: braces must hold a name and nothing else"),
        ({"words": ["t", "{seed.real}"]}, "command: braces must hold a name and nothing else"),
        ({"words": ["t\0"]}, "command.0: must not hold a null character"),
        ({"words": ["t", 3]}, "command.1: should be a valid string"),
        ({"log": LOG | {"path": "log.csv"}}, "log.path: must begin with {run_dir}/: each trial"),
        ({"log": LOG | {"path": "{run_dir}/{x}"}}, "log.path: {x} is unknown: placeholders are"),
        ({"log": LOG | {"colour": "red"}}, "log.colour: unknown key; known are path, step, loss"),
        ({"log": {"path": "{run_dir}/log"}}, "log.loss: is required"),
        ({"timeout": 0}, "timeout: "),
        ({"timeout": "1h"}, "timeout: must be a number, got '1h'"),
        ({"precision": "bfloat16"}, "precision: is for a `workload`"),
        ({"workload_args": {"device": "cuda"}}, "workload_args.device: is also a placeholder"),
        ({"space": SPACE, "words": ["t"]}, "command: no placeholder uses base_lr, which varies"),
        ({"batch_sizes": [8, 16]}, "command: no placeholder uses batch_size, which varies"),
        ({"seeds": 2}, "command: no placeholder uses seed, which varies: add {seed}, or give it"),
        ({"workload_args": {"w": [1, 2]}, "trials": 2}, "command: no placeholder uses w, which"),
        ({"space": SPACE | {"clip_tensor": 1.05}}, "space.clip_tensor: must be inf, its default, "
         "where the command writes a log of its own"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_study_file_is_said_when_it_is_read(keys, said, tmp_path):
    with pytest.raises(UserError) as error:
        load_study(write_study(tmp_path, **keys))
    assert str(error.value).removeprefix(f"{tmp_path / 'tuned.toml'}: ").startswith(said)


def test_a_placeholder_that_some_trials_have_no_value_for(tmp_path):
    optimizers = {"sgd": {"base_lr": 0.02}, "momentum": {"base_lr": 0.02, "momentum": 0.9}}
    space = {"warmup_steps": 0, "clip_norm": math.inf, "optimizer": optimizers}
    words = ["t", "{optimizer}", "{momentum}"]
    with pytest.raises(UserError, match=r"\{momentum\} has no value in some trials of sgd"):
        load_study(write_study(tmp_path, words=words, space=space))
    space["decay"] = ["constant", "wsd"]
    space["decay_fraction"] = 0.2
    space["optimizer"] = {"sgd": {"base_lr": 0.02}}
    words = ["t", "{decay}", "{decay_fraction}"]
    with pytest.raises(UserError, match=r"\{decay_fraction\} has no value in some trials of sgd"):
        load_study(write_study(tmp_path, words=words, space=space))


def test_log_and_timeout_are_for_commands(tmp_path):
    path = write_study(tmp_path, timeout=5)
    path.write_text(path.read_text().replace("command = ", 'workload = "a:b"\nquestion = "'))
    text = path.read_text().split('question = "')
    path.write_text(text[0] + text[1][text[1].index("]") + 1 :])
    with pytest.raises(UserError) as error:
        load_study(path)
    assert "log: is for a `command`" in str(error.value)
    assert "timeout: is for a `command`" in str(error.value)


def test_a_study_of_one_point_has_the_command_its_log_and_its_timeout(tmp_path):
    study = load_study(write_study(tmp_path, timeout=5, log=LOG | {"metrics": ["acc"]}))
    pinned = pin(study, trial_point(study), "step", {"base_lr": [0.1, 0.2]}, trials=2)
    assert (pinned.command, pinned.log, pinned.timeout) == (study.command, study.log, 5)


def test_a_command_is_diagnosed_only_if_it_takes_what_the_steps_change(tmp_path, capsys):
    words = [sys.executable, "train.py", *WORDS, "--out", "{run_dir}", "{seed}", "{clip_norm}"]
    assert main(["diagnose", str(write_study(tmp_path, words=words))]) == 2
    said = "tuned: command: must use {warmup_steps} to be diagnosed: the steps of a diagnosis"
    assert said in capsys.readouterr().err
    words = [*words, "{warmup_steps}"]
    log = {"path": "{run_dir}/log.csv", "loss": "train_loss"}
    assert main(["diagnose", str(write_study(tmp_path, words=words, log=log))]) == 2
    assert "tuned: log: must name the column of grad_norm to be" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_command_is_not_compared_with_a_checkpoint(tmp_path, capsys):
    from safetensors.torch import save_file

    run(tmp_path)
    save_file({}, tmp_path / "baseline.safetensors")
    arguments = ["compare", "results/tuned", "--baseline", "baseline.safetensors"]
    assert main(arguments) == 2
    assert "tuned: command: a checkpoint can be measured by" in capsys.readouterr().err


def test_check_of_a_command_is_fast_and_trains_nothing(tmp_path, capsys):
    path = write_study(tmp_path, 'raise RuntimeError("trained")')
    began = time.perf_counter()
    assert main(["check", str(path)]) == 0
    assert main(["check", "--time", str(path)]) == 0
    assert time.perf_counter() - began < 5
    assert "A command is not timed" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    path = write_study(tmp_path, words=["no-such-program"])
    assert main(["check", str(path)]) == 2
    assert "tuned: command: 'no-such-program' is no program" in capsys.readouterr().err


# A quadratic with curvatures 1 and 4, whose edge of stability is at 0.5: gradient descent by hand.
QUADRATIC = """
import argparse, csv, math, random

parser = argparse.ArgumentParser()
for name in ("lr", "clip"):
    parser.add_argument(f"--{name}", type=float)
for name in ("warmup", "seed", "steps", "every"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--out")
options = parser.parse_args()
noise = random.Random(options.seed)
weights = [3.0, -2.0]
with open(f"{options.out}/log.csv", "w", newline="") as log:
    rows = csv.writer(log)
    rows.writerow(["step", "train_loss", "grad_norm", "val_loss"])
    for step in range(options.steps + 1):
        loss = 1.0 + (weights[0] ** 2 + 4 * weights[1] ** 2) / 2
        if step % options.every == 0:
            rows.writerow([step, "", "", loss])
        if step == options.steps:
            break
        gradient = [weights[0] + noise.gauss(0, 0.1), 4 * weights[1] + noise.gauss(0, 0.1)]
        norm = math.hypot(*gradient)
        rows.writerow([step, loss, norm, ""])
        warm = min(1.0, (step + 1) / (options.warmup or 1))
        scale = options.lr * warm * min(1.0, options.clip / norm)
        weights = [w - scale * g for w, g in zip(weights, gradient)]
        log.flush()
"""


@pytest.mark.slow
@pytest.mark.apart
def test_a_command_is_diagnosed(tmp_path, capsys):
    words = [sys.executable, "train.py", "--lr", "{base_lr}", "--clip", "{clip_norm}"]
    words += ["--warmup", "{warmup_steps}", "--seed", "{seed}", "--steps", "{total_steps}"]
    words += ["--every", "{evaluate_every}", "--out", "{run_dir}"]
    space = SPACE | {"optimizer": {"sgd": {"base_lr": {"low": 0.02, "high": 1.0, "log": True}}}}
    path = write_study(tmp_path, script=QUADRATIC, words=words, space=space, trials=6)
    options = ["--in-process", "--seeds", "2", "--budget", "40", "--results", "results"]
    assert main(["diagnose", str(path), *options]) == 0
    said = capsys.readouterr().out
    assert "recipe: tunewright run results/tuned/recipe" in said
    found = json.loads((tmp_path / "results" / "tuned" / "diagnosis.json").read_text())
    trains, diverges = found["groups"][0]["edge"]["interval"]
    assert trains < 0.6
    assert 0.4 < diverges < 1.0


# --- no process is left behind --------------------------------------------------------------------

FAMILY = """
    if step == 10:
        script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        for own_session in (False, True):
            child = subprocess.Popen(
                [sys.executable, "-c", script],
                stdout=subprocess.PIPE,
                start_new_session=own_session,
            )
            with open(f"{options.out}/pids", "ab") as pids:
                pids.write(child.stdout.readline())
        with open(f"{options.out}/pids", "a") as pids:
            print(os.getpid(), file=pids)
"""
STAYS = FAMILY + "        time.sleep(600)\n"


def family(folder):
    """The processes of a command: its own, a child, a child with a session of its own."""
    path = run_dir(folder) / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pids):
    """Those of some processes that are there, and no zombies."""
    found = []
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found += [pid] if state != "Z" else []
    return found


def gone(pids, seconds=20):
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pids)


def test_processes_that_a_command_leaves_behind_end_with_it(tmp_path):
    (trial,) = run(tmp_path, FAMILY)
    assert trial.feasible
    pids = family(tmp_path)
    assert len(pids) == 3
    assert not alive(pids)


@pytest.mark.slow
@pytest.mark.apart
def test_all_processes_of_a_command_end_when_it_is_ended(tmp_path):
    (trial,) = run(tmp_path, STAYS, timeout=2)
    assert trial.verdict.evidence == "did not end within 2 s"
    pids = family(tmp_path)
    assert len(pids) == 3
    assert not alive(pids)


def workers_of(pid):
    """The processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize("how", ["int", "term", "kill", "kill worker", "in process"])
def test_no_process_survives_a_driver_or_a_worker_that_ends(how, tmp_path):
    path = write_study(tmp_path, STAYS)
    options = ["--in-process"] if how == "in process" else ["--workers", "1"]
    process = start("run", path, "--results", "results", *options, cwd=tmp_path)
    wait_until(lambda: len(family(tmp_path)) == 3, process)
    pids = family(tmp_path)
    assert alive(pids) == pids
    numbers = {"int": signal.SIGINT, "term": signal.SIGTERM, "kill": signal.SIGKILL}
    if how == "kill worker":
        for pid in workers_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(numbers.get(how, signal.SIGINT))
    assert gone(pids)
    if how == "kill worker":  # its trial is begun again, in an emptied folder
        wait_until(lambda: len(family(tmp_path)) == 3 and family(tmp_path) != pids, process)
        pids = family(tmp_path)
        process.send_signal(signal.SIGINT)
        assert gone(pids)
    process.communicate(timeout=60)
    assert process.returncode == {"kill": -signal.SIGKILL, "term": 75}.get(how, 1)


def run_until_killed(path):
    """Kill a run once its script has made the file `first`; from then on there is `second`."""
    folder = path.parent
    process = start("run", path, "--results", "results", "--workers", "1", cwd=folder)
    wait_until((folder / "first").exists, process)
    process.kill()
    process.communicate(timeout=60)
    (folder / "second").touch()


@pytest.mark.slow
@pytest.mark.apart
def test_a_run_that_was_killed_goes_on_once_its_old_command_has_ended(tmp_path, monkeypatch):
    """The old one does not hear SIGTERM, and writes until it is killed: never into a new log."""
    fault = """
    if not os.path.exists("second"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        loss = 7.0
        time.sleep(0.05)
        if step == 10:
            open("first", "w").close()
    """
    path = write_study(tmp_path, fault)
    run_until_killed(path)
    assert main(["run", str(path), "--in-process", "--results", "results"]) == 0
    (trial,) = read_trials(open_store(tmp_path / "results" / "tuned"))
    assert trial.curve.loss.tolist() == [math.exp(-0.02 * step) for step in range(1, STEPS + 1)]


@pytest.mark.slow
@pytest.mark.apart
def test_worker_processes_train_commands_and_a_mistake_stops_them(tmp_path, capfd):
    path = write_study(tmp_path, trials=4, space=SPACE)
    process = start("run", path, "--results", "results", "--workers", "2", cwd=tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(read_trials(open_store(tmp_path / "results" / "tuned"))) == 4
    shutil.rmtree(tmp_path / "results")
    path = write_study(tmp_path, trials=4, space=SPACE, log=LOG | {"loss": "loss"})
    process = start("run", path, "--results", "results", "--workers", "2", cwd=tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "tuned: log: " in said
    assert "has no column 'loss'" in said
    assert "Traceback" not in said


# --- tunewright.current_run() ---------------------------------------------------------------------


def test_current_run_without_a_study_is_one_clear_sentence(monkeypatch):
    monkeypatch.delenv("TUNEWRIGHT_RUN_DIR", raising=False)
    with pytest.raises(UserError, match="no study has started this program"):
        tunewright.current_run()


def test_a_script_gets_the_study_and_the_point_as_they_are(tmp_path, monkeypatch):
    space = {
        "warmup_steps": {"orders_of_magnitude": True},
        "clip_norm": [math.inf, 1.0],
        "optimizer": {
            "sgd": {"base_lr": {"low": 0.01, "high": 0.1, "log": True}},
            "torch.optim.AdamW": {"base_lr": 0.01, "weight_decay": [0.0, 0.1], "amsgrad": True},
        },
    }
    arguments = {"bias": True, "kind": "café", "width": [1, 2]}
    keys = {"log": None, "space": space, "workload_args": arguments, "trials": 8}
    study = load_study(write_study(tmp_path, **keys))
    folder, state = tmp_path / "run", tmp_path / "state"
    monkeypatch.setenv("TUNEWRIGHT_RUN_DIR", str(folder))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for point in plan(study):
        command._prepare(study, point, folder, folder / "log.jsonl", state, "cpu", False)
        run = current_run.__wrapped__()
        assert run.study.document == study.document
        assert run.point == point
        assert (run.base_lr, run.clip_norm) == (point.base_lr, point.clip_norm)
        assert (run.bias, run.width) == (True, point.workload_args["width"])


def test_current_run_beside_a_log_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWRIGHT_RUN_DIR", str(tmp_path))
    with pytest.raises(UserError, match="remove `log` from it"):
        tunewright.current_run()


def test_an_argument_that_run_would_hide_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tuned: workload_args\.steps: is also an attribute of"):
        run(tmp_path, log=None, workload_args={"steps": 3})


def test_a_command_without_a_log_that_never_calls_it(tmp_path):
    with pytest.raises(UserError, match=r"it never called tunewright.current_run\(\)"):
        run(tmp_path, log=None)


# The same training as a function and as a script.
TRAINING = """
import os, time, torch

def main(run):
    torch.manual_seed(run.seed)
    model = torch.nn.Linear(4, 1)
    inputs = torch.randn(64, 4)
    targets = inputs.sum(dim=1, keepdim=True)
    run.chance_loss = float(targets.square().mean())
    optimizer = run.optimizer(model)

    def loss_of(batch):
        return (model(inputs[batch]) - targets[batch]).square().mean()

    def evaluate():
        with torch.no_grad():
            run.report(val_loss=loss_of(slice(None)), twice=2.0, model=model)

    loader = torch.utils.data.DataLoader(torch.arange(64), run.batch_size, shuffle=True)
    if not (hasattr(run, "resumes") and run.resumes and run.restore(model, optimizer)):
        evaluate()
    for batch in run.steps(loader):
        loss = loss_of(batch)
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            evaluate()
        FAULT
"""
AS_SCRIPT = """
if __name__ == "__main__":
    import tunewright
    run = tunewright.current_run()
    assert run is tunewright.current_run()
    main(run)
"""


def write_training(folder, fault="pass", extra="", **keys):
    (folder / "trained_module.py").write_text(TRAINING.replace("FAULT", fault))
    script = TRAINING.replace("FAULT", fault) + AS_SCRIPT.replace("main(run)", f"{extra}main(run)")
    keys = {"words": [sys.executable, "train.py"], "log": None} | keys
    return write_study(folder, script=script, **keys)


def run_training(folder, *args, **keys):
    study = load_study(write_training(folder, *args, **keys))
    return run_study(study, results=folder / "results", backend=InProcess(), progress=False)


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize(
    ("base_lr", "clipping", "outcome", "evaluates_untrained"),
    [
        (0.05, {"clip_norm": math.inf}, "feasible", True),
        (0.05, {"clip_norm": math.inf, "clip_tensor": 1.05}, "feasible", True),
        (1.5, {"clip_norm": math.inf}, "non_finite", True),
        (5.0, {"clip_norm": 5.0}, "diverged", True),
        (5.0, {"clip_norm": 5.0}, "diverged", False),
    ],
)
def test_a_script_trains_as_the_same_function_does(
    base_lr, clipping, outcome, evaluates_untrained, tmp_path, monkeypatch
):
    optimizer = {"sgd": {"base_lr": base_lr}}
    space = {"warmup_steps": 10, **clipping, "optimizer": optimizer}
    keys = {"space": space, "max_train_steps": 400, "seed": 3}
    path = write_training(tmp_path, **keys)
    if not evaluates_untrained:
        for name in ("train.py", "trained_module.py"):
            text = (tmp_path / name).read_text()
            changed = text.replace("optimizer)):\n        evaluate()", "optimizer)):\n        pass")
            assert changed != text
            (tmp_path / name).write_text(changed)
    (script,) = run_study(
        load_study(path), results=tmp_path / "results", backend=InProcess(), progress=False
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trained_module", raising=False)
    text = (tmp_path / "tuned.toml").read_text()
    command = text[: text.index("objective")]
    (tmp_path / "plain.toml").write_text(text.replace(command, 'train = "trained_module:main"\n'))
    study = load_study(tmp_path / "plain.toml")
    (function,) = run_study(study, results=tmp_path, backend=InProcess(), progress=False)
    lacking = "; the untrained model was not evaluated"  # which no log can tell
    assert script.verdict.evidence == function.verdict.evidence.removesuffix(lacking)
    assert script.verdict.outcome == function.verdict.outcome == outcome
    assert script.verdict.onset_step == function.verdict.onset_step
    assert script.curve == function.curve
    assert script.clip_fraction == function.clip_fraction
    assert (script.curve.tensors_clipped is None) == ("clip_tensor" not in clipping)
    stem = "checkpoints/batch_size=8-00000.safetensors"
    checkpoints = [tmp_path / place / stem for place in ("results/tuned", "plain")]
    assert checkpoints[0].read_bytes() == checkpoints[1].read_bytes()


SAVING = {
    "extra": "import tunewright.search.trainers.run as own; own.SAVE_SECONDS = 0.0; ",
    "workload_args": {"resumes": True},
}
SAVED_UNTIL_KILLED = """run.state(model, optimizer)
        if run.step == 60 and not os.path.exists("second"):
            open("first", "w").close()
            time.sleep(600)"""


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize("clip_tensor", [math.inf, 1.05])
def test_a_script_that_saves_its_state_goes_on_where_it_was(clip_tensor, tmp_path):
    space = {"warmup_steps": 0, "clip_norm": math.inf, "clip_tensor": clip_tensor}
    keys = SAVING | {"space": space | {"optimizer": {"sgd": {"base_lr": 0.05}}}}
    fault = f"""{SAVED_UNTIL_KILLED}
        if run.step == 30:
            print("from the start", flush=True)"""
    path = write_training(tmp_path, fault, **keys)
    run_until_killed(path)
    assert main(["run", str(path), "--in-process", "--results", "results"]) == 0
    assert (run_dir(tmp_path) / "stdout.log").read_text() == ""  # of its second half
    (resumed,) = read_trials(open_store(tmp_path / "results" / "tuned"))
    shutil.rmtree(tmp_path / "results")
    (whole,) = run_training(tmp_path, fault, **keys)
    assert resumed.curve == whole.curve
    assert resumed.seconds > 0


@pytest.mark.slow
@pytest.mark.apart
def test_a_saved_state_that_fails_is_left_and_the_trial_begins_anew(tmp_path):
    path = write_training(tmp_path, SAVED_UNTIL_KILLED, **SAVING)
    run_until_killed(path)
    train = tmp_path / "train.py"  # another shape: nothing fits
    train.write_text(train.read_text().replace("(64, 4)", "(64, 5)").replace("(4, 1)", "(5, 1)"))
    assert main(["run", str(path), "--in-process", "--results", "results"]) == 0
    (trial,) = read_trials(open_store(tmp_path / "results" / "tuned"))
    assert trial.feasible
    assert len(trial.curve.loss) == STEPS


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("        run.loss(loss)\n", "", "tuned: loss: none was told before optimizer.step()"),
        ("run.report(val_loss", "run.report(error", "tuned: objective: 'val_loss' was never repo"),
        ("run.optimizer(model)", "torch.optim.SGD(model.parameters(), 0.1)", "tuned: watch: no op"),
    ],
)
def test_misuse_in_a_script_stops_the_study(old, new, said, tmp_path):
    path = write_training(tmp_path, trials=2)
    (tmp_path / "train.py").write_text((tmp_path / "train.py").read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        run_study(load_study(path), results=tmp_path, backend=InProcess(), progress=False)
    assert str(error.value).startswith(said)
    assert not run_dir(tmp_path, 1).exists()


PARALLEL = """
import os, sys, time
import torch, tunewright
import torch.distributed as dist

run = tunewright.current_run()
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(run.seed)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
inputs = torch.randn(64, 4)
targets = inputs.sum(dim=1, keepdim=True)
optimizer = run.optimizer(model)

def evaluate():
    if rank == 0:
        with torch.no_grad():
            run.report(val_loss=(model.module(inputs) - targets).square().mean(), model=model)

evaluate()
for batch in run.steps(torch.arange(64).view(8, 8)):
    mine = batch[rank::2]
    loss = (model(inputs[mine]) - targets[mine]).square().mean()
    run.loss(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if run.evaluation_due:
        evaluate()
print(f"rank {rank} ended after {run.step}", flush=True)
dist.barrier()  # torch aborts some processes while they end, and torchrun then ends the others
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize("base_lr", [0.05, 50.0])
def test_in_a_ddp_run_the_first_process_reports_and_all_end_together(base_lr, tmp_path):
    (tmp_path / "parallel.py").write_text(PARALLEL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = [*torchrun, "--standalone", "parallel.py"]
    optimizer = {"sgd": {"base_lr": base_lr}}
    space = {"warmup_steps": 0, "clip_norm": 5.0, "optimizer": optimizer}
    keys = {"words": words, "log": None, "space": space, "max_train_steps": 400}
    (trial,) = run(tmp_path, timeout=120, **keys)
    said = sorted((run_dir(tmp_path) / "stdout.log").read_text().splitlines())
    if base_lr < 1:
        assert trial.feasible, trial
        assert trial.curve.eval_step.tolist() == list(range(0, 401, 40))
        assert len(trial.curve.loss) == 400
        assert said == ["rank 0 ended after 400", "rank 1 ended after 400"]
        assert trial.best_value < 1e-3
    else:
        assert trial.verdict.outcome == "diverged", trial
        assert status_of(tmp_path)["ended_by"] == "verdict"
        assert said == []


@pytest.mark.slow
@pytest.mark.apart
def test_the_error_of_a_process_of_torchrun_is_the_reason(tmp_path):
    (tmp_path / "fails.py").write_text('raise RuntimeError("no café today")')
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "fails.py"]
    (trial,) = run(tmp_path, words=words, log=None)
    assert trial.verdict.crashed
    assert "RuntimeError: no café today" in trial.verdict.evidence
