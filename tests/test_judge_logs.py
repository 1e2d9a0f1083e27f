"""`tunewright judge`: what it prints, as text and JSON, and its exit status."""

import io
import json
import math
import re
import stat

import numpy as np
import pytest
from logged import LOSS, NORM, csv_of, diverging, healthy_csv, json_lines_of, with_nan
from rich.console import Console
from test_cli import SLOW, imported_by

from tunewright.search.cli import main
from tunewright.search.judge_logs import LogOptions, judge_log
from tunewright.search.logs.log import read_log
from tunewright.search.show.judged import judged_table


@pytest.fixture
def healthy(tmp_path):
    return healthy_csv(tmp_path / "healthy.csv")


@pytest.fixture
def diverged(tmp_path):
    return healthy_csv(tmp_path / "diverged.csv", every=100, loss=diverging())


def test_a_stable_log(healthy, capsys):
    assert main(["judge", str(healthy)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"{healthy} (CSV)"
    assert lines[1].startswith("  feasible, no instability: stable: loss 2.")
    assert f"is {np.percentile(NORM, 90):.3g}: a clip threshold starts" in " ".join(out.split())
    assert "Guessed: step = step, loss = loss, grad_norm = grad_norm." in out
    assert re.search(r"^R16  Start with the 90th percentile", out, re.MULTILINE)
    assert max(map(len, lines[1:])) <= 80


def test_an_infeasible_log_says_since_when_in_true_steps(diverged, capsys):
    assert main(["judge", str(diverged)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "diverged, mid-training instability since step 12000: loss far above its start" in out
    assert "90th percentile of the gradient norms before step 12000 is" in out
    assert "Losses are logged every 100 steps: " in out
    assert "(R5)" in out


def test_several_logs_have_a_row_each_and_one_that_cannot_be_read_stops_none(
    healthy, diverged, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where names are short enough for a row
    assert main(["judge", healthy.name, "missing.csv", diverged.name]) == 2
    captured = capsys.readouterr()
    assert captured.err == "missing.csv: is no file and no folder\n"
    assert captured.out.count(healthy.name) == captured.out.count(diverged.name) == 2
    row = next(line for line in captured.out.splitlines() if diverged.name in line)
    assert row.split()[1:4] == ["diverged", "mid-training", "12000"]


def test_a_file_that_may_not_be_read(healthy, tmp_path, capsys, monkeypatch):
    from pathlib import Path

    real = Path.open

    def refuse(self, *arguments, **more):
        if self.name == "locked.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **more)

    locked = csv_of(tmp_path / "locked.csv", {"step": [0], "loss": [1]})
    assert stat.S_ISREG(locked.stat().st_mode)
    monkeypatch.setattr(Path, "open", refuse)
    assert main(["judge", str(locked), str(healthy)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{locked}: Permission denied\n"
    assert "feasible" in captured.out


def test_json_is_strict_and_has_all(healthy, diverged, tmp_path, capsys):
    missing = tmp_path / "missing.csv"
    broken = csv_of(tmp_path / "nan.csv", {"step": range(200), "loss": with_nan(130)})
    paths = [str(path) for path in (healthy, diverged, broken, missing)]
    assert main(["judge", "--json", *paths]) == 2

    def refuse(constant):
        raise AssertionError(f"no strict JSON: {constant}")

    records = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert [record["source"] for record in records] == paths
    assert [record.get("outcome") for record in records] == [
        "feasible", "diverged", "non_finite", None
    ]  # fmt: skip
    assert [record.get("onset_step") for record in records] == [None, 12_000, 130, None]
    assert records[0]["clip_start"] == float(np.percentile(NORM, 90))
    assert records[0]["guessed"] == {"step": "step", "loss": "loss", "grad_norm": "grad_norm"}
    assert records[1]["losses"] == 200
    assert records[1]["total_steps"] == 19_900
    assert records[3]["error"].endswith("is no file and no folder")


def test_the_share_of_updates_that_a_known_threshold_clips(healthy, capsys):
    low = float(np.percentile(NORM, 17))
    assert main(["judge", str(healthy), "--clip-norm", str(low)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Clipping acts on 83% of the updates: it is a learning rate." in out
    assert "(R17)" in out


def test_a_share_is_of_the_norms_as_logged(tmp_path):
    """Not of those that are filled in where losses have none."""
    norm = [None] * 200
    norm[::20] = [1.0] * 5 + [3.0] * 5
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": LOSS, "grad_norm": norm})
    judged = judge_log(read_log(path), LogOptions(clip_norm=2.0))
    assert judged.readout.norms == 10
    assert judged.readout.clip_fraction == 0.5


def test_norms_that_were_clipped_before_they_were_seen(tmp_path, capsys):
    path = csv_of(
        tmp_path / "log.csv", {"step": range(200), "loss": LOSS, "grad_norm": [1.0] * 200}
    )
    assert main(["judge", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The norm is 1.000 at every step: it was clipped before it was seen." in out


def evaluated(path, name):
    """A loss that collapses to chance, and a metric that rises as the model learns."""
    records = [{"step": step, "loss": 2.3 if step >= 120 else LOSS[step]} for step in range(200)]
    records += [{"step": step, name: 0.1 + 0.004 * step} for step in range(0, 201, 20)]
    return json_lines_of(path, sorted(records, key=lambda record: record["step"]))


def test_a_metric_is_maximized_by_its_name_or_by_what_the_user_says(tmp_path, capsys):
    path = evaluated(tmp_path / "accuracy.jsonl", "val_accuracy")
    assert main(["judge", str(path)]) == 0
    assert "objective = val_accuracy, better when higher." in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["judge", str(path), "--no-maximize"]) == 1
    path = evaluated(tmp_path / "other.jsonl", "val_thing")
    assert main(["judge", str(path)]) == 1
    assert main(["judge", str(path), "--maximize"]) == 0


def test_named_columns(tmp_path, capsys):
    path = csv_of(tmp_path / "log.csv", {"n": range(200), "cost": LOSS, "loss": diverging()})
    assert main(["judge", str(path)]) == 1
    assert main(["judge", str(path), "--step", "n", "--loss", "cost"]) == 0
    capsys.readouterr()
    assert main(["judge", str(path), "--loss", "costs"]) == 2
    assert capsys.readouterr().err == f"{path}: --loss: no column 'costs'; it has n, cost, loss\n"


def test_a_loss_that_grows_by_design(tmp_path):
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": LOSS[::-1]})
    assert main(["judge", str(path)]) == 1
    assert main(["judge", str(path), "--no-divergence"]) == 0


def test_a_chance_loss_is_known(tmp_path):
    """A loss that stands still far above it, though it is where it began, after a blow-up."""
    loss = np.full(200, 6.0) + 0.01 * np.random.default_rng(0).standard_normal(200)
    loss[:3] = 2.4, 2.3, 30.0
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": loss})
    assert main(["judge", str(path), "--chance-loss", "2.3"]) == 1


@pytest.mark.parametrize(
    "option", [["--clip-norm", "0"], ["--clip-norm", "x"], ["--chance-loss", "nan"]]
)
def test_options_that_are_no_numbers(healthy, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["judge", str(healthy), *option])
    assert stopped.value.code == 2
    assert "must be" in capsys.readouterr().err


def test_a_folder_of_runs(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        healthy_csv(tmp_path / name / "metrics.csv")
    assert main(["judge", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count(str(tmp_path / "a" / "metrics.csv")) == 2
    assert main(["judge", str(tmp_path / "a" / "..")]) == 0


def test_the_table_fits_a_terminal(tmp_path):
    folder = tmp_path / ("a-run-with-a-long-name-" * 4)
    folder.mkdir()
    logs = [healthy_csv(folder / f"{name}.csv", loss=diverging()) for name in "ab"]
    console = Console(width=80, file=io.StringIO())
    console.print(judged_table([judge_log(read_log(path)) for path in logs]))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("diverged", "mid-training", "120"):
        assert text.count(words) == 2


def test_it_imports_nothing_that_takes_time(healthy):
    found = imported_by("judge", str(healthy))
    assert "tunewright.search.judge_logs" in found
    assert found & (SLOW | {"optuna", "sqlalchemy", "pandas", "tensorboard"}) == set()


def test_a_verdict_of_evaluations_alone_says_so(tmp_path, capsys):
    path = csv_of(tmp_path / "log.csv", {"step": [0, 100, 200, 300], "val_loss": [2.3, 1, 0.4, 2]})
    assert main(["judge", str(path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "collapsed, of unknown kind: the objective lost more than half of what it had" in out
    assert "without training losses overfitting is not told from instability" in out
    assert "There are no training losses: the evaluations alone are judged." in out


def test_a_nan_is_known_by_its_onset(tmp_path):
    path = csv_of(tmp_path / "log.csv", {"step": range(200), "loss": with_nan(130)})
    judged = judge_log(read_log(path))
    assert judged.readout.verdict.onset_step == 130
    assert math.isnan(judged.readout.clip_start)
