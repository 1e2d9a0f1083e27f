"""Tables with a row per run: what is read, and what each column is taken for."""

import math
from pathlib import Path
from typing import Any

import pytest
from swept import wandb_rows, write_csv

from tunewright.search.errors import UserError
from tunewright.search.sources.columns import Columns, name_columns
from tunewright.search.sources.points import document_of_sweep, optimizer_name, place_runs
from tunewright.search.sources.runs import Run, Sweep
from tunewright.search.sources.tables import cell, read_table, sweep_of_rows
from tunewright.search.study.study import parse_study


def named(rows: list[dict[str, Any]], **given: str) -> tuple[Sweep, Columns]:
    sweep = sweep_of_rows("runs", rows)
    return sweep, name_columns(sweep, {ours: [theirs] for ours, theirs in given.items()}, {})


def points(rows: list[dict[str, Any]], **given: str) -> list[Any]:
    sweep, columns = named(rows, **given)
    numbers = {run.name: number for number, run in enumerate(sweep.runs)}
    placed, _ = place_runs(sweep, columns, numbers)
    return [one.point for one in placed]


def axes(rows: list[dict[str, Any]], **given: str) -> dict[str, Any]:
    sweep, columns = named(rows, **given)
    numbers = {run.name: number for number, run in enumerate(sweep.runs)}
    placed, _ = place_runs(sweep, columns, numbers)
    document = document_of_sweep(sweep, columns, placed, False)
    parse_study(document, "runs", "runs")
    space = document["space"]
    own = {name: axis for table in space["optimizer"].values() for name, axis in table.items()}
    shared = {name: axis for name, axis in space.items() if name != "optimizer"}
    return {**document["workload_args"], **own, **shared}


ROW = {"lr": 0.1, "batch_size": 32, "optimizer": "adamw", "value": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        (" 3 ", 3),
        ("3.0", 3.0),
        ("1e-3", 1e-3),
        ("inf", math.inf),
        ("True", True),
        ("adam", "adam"),
        ("1_000", "1_000"),
        ("9" * 5000, math.inf),
    ],
)
def test_a_cell(text: str, value: Any) -> None:
    assert cell(text) == value


def test_nan_is_a_value_and_an_empty_cell_is_none() -> None:
    assert math.isnan(cell("NaN"))
    assert cell(None) is None


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_optuna_exports_as_a_data_frame(tmp_path: Path, suffix: str) -> None:
    """Columns as of study.trials_dataframe(), whose prefixes say what is what."""
    path = tmp_path / f"trials{suffix}"
    rows = [
        {
            "number": 3 + i,
            "value": 0.5 - i / 10,
            "datetime_start": "2026-11-01 10:00:00",
            "duration": "0 days 00:00:01",
            "params_lr": 10.0**-i,
            "params_batch_size": 32,
            "params_optimizer": "Adam",
            "params_n_layers": 2 + i,
            "user_attrs_epochs": 7.0,
            "state": ["COMPLETE", "PRUNED", "FAIL"][i],
        }
        for i in range(3)
    ]
    if suffix == ".csv":
        write_csv(path, rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    sweep = read_table(path)
    assert [run.number for run in sweep.runs] == [3, 4, 5]
    assert [run.state for run in sweep.runs] == ["finished", "stopped", "failed"]
    assert sweep.config_columns == ["lr", "batch_size", "optimizer", "n_layers"]
    assert sweep.runs[1].metrics == {"value": 0.4, "epochs": 7.0}
    assert name_columns(sweep, {}, {}).objective == "value"


def test_what_mlflow_exports_has_parameters_as_texts() -> None:
    rows = [
        {"run_id": f"a{i}", "status": "FINISHED", "params.lr": 0.1, "metrics.val_loss": 0.3 + i}
        for i in range(2)
    ]
    sweep = sweep_of_rows("mlflow", rows)
    assert [run.name for run in sweep.runs] == ["a0", "a1"]
    assert (sweep.config_columns, sweep.metric_columns) == (["lr"], ["val_loss"])


def test_columns_without_prefixes_are_results_by_their_names() -> None:
    rows = [row | {"val/loss": cell(str(row["val/loss"]))} for row in wandb_rows()]
    sweep = sweep_of_rows("wandb", rows)
    assert sweep.metric_columns == ["val/loss", "val/accuracy"]
    expected = ["learning_rate", "bsz", "opt", "wd", "dropout"]
    assert sweep.config_columns == expected
    kept = {"label_smoothing", "warmup_steps", "loss_function", "max_grad_norm", "num_params_k"}
    row = dict.fromkeys(kept, 1.0) | {"train_loss": 1.0, "epoch": 3.0, "best_f1": 0.5}
    sweep = sweep_of_rows("bare", [row])
    assert set(sweep.config_columns) == kept


def test_numbers_as_other_people_write_them() -> None:
    (point,) = points([ROW | {"gradient_clip_val": 0, "batch_size": 32.0, "wd": 0}])
    assert (point.clip_norm, point.batch_size, point.settings) == (
        math.inf,
        32,
        {"weight_decay": 0.0},
    )
    rows = [ROW | {"lr": 0.1}, ROW | {"lr": 1}]
    assert [type(point.base_lr) for point in points(rows)] == [float, float]
    rows = [ROW | {"hidden": 64}, ROW | {"hidden": 128.0}]
    assert [point.workload_args["hidden"] for point in points(rows)] == [64.0, 128.0]


def test_a_guess_that_its_values_contradict_is_an_axis_of_its_own() -> None:
    """A warmup of 0.1 is a share of training, and no number of steps."""
    rows = [ROW | {"warmup_steps": 0.1}, ROW | {"warmup_steps": 0.2}]
    _, columns = named(rows)
    assert "warmup_steps" not in columns.of
    with pytest.raises(UserError, match="taken for warmup_steps: must be an integer"):
        named(rows, warmup_steps="warmup_steps")


@pytest.mark.parametrize(
    ("text", "config", "name"),
    [
        ("AdamW", {}, "adamw"),
        ("torch.optim.AdamW", {}, "adamw"),
        ("adamw_torch_fused", {}, "adamw"),
        ("SGD", {}, "sgd"),
        ("SGD", {"momentum": 0.9}, "momentum"),
        ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True}, "nesterov"),
        ("Adagrad", {}, "torch.optim.Adagrad"),
        ("torch_optimizer.Lamb", {}, "torch_optimizer.Lamb"),
        ("LAMB", {}, "other.LAMB"),
    ],
)
def test_names_of_optimizers(text: str, config: dict[str, Any], name: str) -> None:
    run = Run("run", config, {})
    assert optimizer_name(text, run, config.get("momentum")) == name
    rows = [ROW | {"optimizer": text} | config]
    assert points(rows)[0].optimizer == name
    assert axes(rows)["base_lr"] == 0.1


def test_axes_of_what_was_tried() -> None:
    rows = [
        ROW | {"lr": 10.0**-i, "dropout": i / 20, "wd": [0.0, 0.1][i % 2], "act": "ab"[i % 2]}
        for i in range(12)
    ]
    found = axes(rows)
    assert found["base_lr"] == {"low": 1e-11, "high": 1.0, "log": True}
    assert found["dropout"] == {"low": 0.0, "high": 0.55}
    assert found["weight_decay"] == [0.0, 0.1]
    assert found["act"] == ["a", "b"]


def test_a_learning_rate_for_each_optimizer_is_one_axis() -> None:
    rows = [ROW | {"optimizer": "adam", "adam_lr": 1e-3}, ROW | {"optimizer": "sgd", "sgd_lr": 0.1}]
    rows = [{name: value for name, value in row.items() if name != "lr"} for row in rows]
    assert [point.base_lr for point in points(rows)] == [1e-3, 0.1]


def test_a_text_of_its_own_in_every_run_is_no_axis() -> None:
    rows = [ROW | {"comment": f"try {i}", "machine": "a"} for i in range(20)]
    _, columns = named(rows)
    assert not columns.arguments
    assert set(columns.left_out) == {"comment", "machine"}


def test_a_run_without_a_learning_rate_is_named() -> None:
    rows = [ROW | {"id": "a"}, {key: value for key, value in ROW.items() if key != "lr"}]
    sweep, columns = named(rows)
    numbers = {run.name: number for number, run in enumerate(sweep.runs)}
    placed, without = place_runs(sweep, columns, numbers)
    assert len(placed) == 1
    assert without == ["row 1: has no base_lr"]


def test_many_batch_sizes_are_refused_with_a_way_out() -> None:
    rows = [ROW | {"batch_size": 16 + i} for i in range(50)]
    with pytest.raises(UserError, match="50 batch sizes"):
        points(rows)
    sweep = sweep_of_rows("runs", rows)
    columns = name_columns(sweep, {"samples": ["batch_size"]}, {"batch_size": 64})
    placed, _ = place_runs(sweep, columns, {run.name: i for i, run in enumerate(sweep.runs)})
    assert {one.point.batch_size for one in placed} == {64}
    assert placed[3].point.workload_args == {"samples": 19}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"lr,lr\n1,2\n", "two columns of one name: lr"),
        (b"lr,value\n\xff,2\n", "must be UTF-8"),
        (b'lr,value\n"0.1,2\n', "is no table"),
        (b"", "has no rows"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_table(path)
    path = tmp_path / "runs.parquet"
    path.write_bytes(content)
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="is no Parquet table"):
        read_table(path)


@pytest.mark.parametrize("name", ["log_lr", "log10_lr", "min_lr", "final_learning_rate"])
def test_another_number_than_a_learning_rate_is_not_taken_for_one(name: str) -> None:
    row = {key: value for key, value in ROW.items() if key != "lr"} | {name: 3.0}
    with pytest.raises(UserError, match="no column has a usual name of base_lr"):
        named([row])
