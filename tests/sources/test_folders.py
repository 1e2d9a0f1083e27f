"""Folders of runs: where hyperparameters, logs and results are found."""

import json
from pathlib import Path

import pytest
from swept import lightning_runs, write_csv

from tunewright.search.errors import UserError
from tunewright.search.sources.folders import read_folder


def test_what_lightning_writes(tmp_path: Path) -> None:
    """Nested values have dotted names; objects of Python are left out."""
    sweep = read_folder(lightning_runs(tmp_path / "logs", 2))
    assert [run.name for run in sweep.runs] == ["version_0", "version_1"]
    assert set(sweep.config_columns) == {
        *("lr", "batch_size", "optimizer", "momentum", "model.hidden"),
    }
    assert sweep.objective == "val_loss"
    assert any("guessed: objective = val_loss" in remark for remark in sweep.remarks)
    run = sweep.runs[0]
    assert (run.state, len(run.curve.loss), len(run.curve.eval_step)) == ("finished", 100, 10)


def test_what_wandb_writes(tmp_path: Path) -> None:
    files = tmp_path / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text(
        "wandb_version: 1\n_wandb:\n  desc: null\n  value: {cli_version: 0.17}\n"
        "lr:\n  desc: null\n  value: 0.1\nmodel:\n  desc: null\n  value: {depth: 3}\n"
    )
    (files / "wandb-summary.json").write_text(json.dumps({"val/loss": 0.25, "note": "x"}))
    (run,) = read_folder(tmp_path).runs
    assert run.name == "wandb/run-1"
    assert run.config == {"lr": 0.1, "model.depth": 3}
    assert run.metrics == {"val/loss": 0.25}


def test_what_hydra_and_ray_and_scripts_write(tmp_path: Path) -> None:
    hydra, ray, script = (tmp_path / name for name in ("0", "trial_1", "script"))
    (hydra / ".hydra").mkdir(parents=True)
    (hydra / ".hydra" / "config.yaml").write_text("optim: {lr: 0.1}\nlayers: [1, 2]\n")
    ray.mkdir()
    (ray / "params.json").write_text('{"lr": 0.2}')
    write_csv(ray / "progress.csv", [{"training_iteration": i, "loss": 1.0} for i in range(5)])
    script.mkdir()
    (script / "config.toml").write_text("lr = 0.3\n[data]\naugment = true\n")
    (script / "log.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n')
    found = {run.name: run for run in read_folder(tmp_path).runs}
    assert found["0"].config == {"optim.lr": 0.1, "layers": "[1, 2]"}
    assert found["trial_1"].config == {"lr": 0.2}
    assert len(found["trial_1"].curve.loss) == 5
    assert found["script"].config == {"lr": 0.3, "data.augment": True}
    assert found["script"].curve.loss.tolist() == [2.0, 1.0]
    assert all(run.state == "" for run in found.values())


def test_a_named_objective_is_that_of_every_log(tmp_path: Path) -> None:
    folder = lightning_runs(tmp_path / "logs", 2)
    for run in folder.iterdir():
        rows = [{"step": i, "loss": 2.0 - i / 10, "val_f1": i / 10} for i in range(10)]
        write_csv(run / "metrics.csv", rows)
    sweep = read_folder(folder, "val_f1")
    assert {tuple(run.curve.metrics) for run in sweep.runs} == {("val_f1",)}
    missing = read_folder(folder, "val_auc")
    assert {(run.state, tuple(run.curve.metrics)) for run in missing.runs} == {("", ())}


def test_a_log_that_cannot_be_read_is_said_and_its_run_kept(tmp_path: Path) -> None:
    folder = lightning_runs(tmp_path / "logs", 2)
    (folder / "version_1" / "metrics.csv").write_text("")
    sweep = read_folder(folder)
    assert [len(run.curve.loss) for run in sweep.runs] == [100, 0]
    assert any("a log is left out" in remark for remark in sweep.remarks)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[1]", "must hold hyperparameters by name, got list"),
        ("config.yaml", "a: [", "cannot be read"),
        ("config.toml", "a = ", "cannot be read"),
    ],
)
def test_files_of_hyperparameters_that_are_none(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["hparams.yaml", "summary.json"])
def test_a_damaged_file_costs_its_run_alone(tmp_path: Path, name: str) -> None:
    folder = lightning_runs(tmp_path / "logs", 3)
    (folder / "version_1" / name).write_text("{")
    sweep = read_folder(folder)
    assert [run.name for run in sweep.runs] == ["version_0", "version_2"]
    assert any("a run is left out" in remark and name in remark for remark in sweep.remarks)


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no runs"):
        read_folder(tmp_path)
