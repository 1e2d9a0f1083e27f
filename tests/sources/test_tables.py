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


@pytest.mark.parametrize("word", ["", "n/a", "NA", "#N/A", "<NA>", "-", "None", "null", "NaN"])
def test_a_word_for_nothing_is_no_value(word: str) -> None:
    """In a column of results, of a hyperparameter of ours, and of an argument that is a range."""
    numbers = {"val/loss": "0.5", "lr": "0.1", "wd": "0.01", "width": "64"}
    rows = [
        ROW | {name: cell(text) for name, text in numbers.items()} | {"width": 64 + i}
        for i in range(10)
    ]
    rows = [row | {"val/loss": 0.5} for row in rows]
    for place, name in enumerate(numbers):
        rows[place] = rows[place] | {name: cell(word)}
    sweep = sweep_of_rows("runs", [{k: v for k, v in row.items() if v is not None} for row in rows])
    columns = name_columns(sweep, {"objective": ["val/loss"]}, {})
    placed, without = place_runs(sweep, columns, {run.name: i for i, run in enumerate(sweep.runs)})
    values = [columns.objective_of(run) for run in sweep.runs]
    assert values[0] is None or math.isnan(values[0])
    assert math.isnan(values[0] or 0.0) == (word == "NaN")
    assert values[1:] == [0.5] * 9
    assert without == ["row 1: has no base_lr"]
    by_number = {one.point.number: one.point for one in placed}
    assert "weight_decay" not in by_number[2].settings
    assert by_number[4].settings["weight_decay"] == 0.01
    if word != "NaN":
        assert "width" not in by_number[3].workload_args
        assert by_number[4].workload_args["width"] == 68


@pytest.mark.parametrize(
    ("name", "ours", "value", "rule"),
    [
        ("lr", "base_lr", "abc", "a number > 0"),
        ("lr", "base_lr", 0, "a number > 0"),
        ("lr", "base_lr", -0.1, "a number > 0"),
        ("lr", "base_lr", math.inf, "a number > 0"),
        ("lr", "base_lr", 1e-300, "between"),
        ("batch_size", "batch_size", 32.5, "a whole number"),
        ("batch_size", "batch_size", "big", "a whole number"),
        ("wd", "weight_decay", "high", "a number"),
        ("seed", "seed", "lucky", "a whole number"),
        ("max_steps", "max_train_steps", "many", "a whole number"),
    ],
)
def test_a_run_with_a_value_that_no_point_may_have_is_left_out_alone(
    name: str, ours: str, value: Any, rule: str
) -> None:
    usual = ROW | {"wd": 0.01, "seed": 1, "max_steps": 100}
    sweep, columns = named([*[usual] * 4, usual | {name: value}])
    placed, without = place_runs(sweep, columns, {run.name: i for i, run in enumerate(sweep.runs)})
    assert [one.point.number for one in placed] == [0, 1, 2, 3]
    assert len(without) == 1
    assert without[0].startswith(f"row 4: {ours} = {value!r}, must be {rule}")
    document_of_sweep(sweep, columns, placed, False)


def test_a_column_that_is_wrong_in_most_runs_is_refused_as_a_whole() -> None:
    rows = [ROW, *[ROW | {"lr": -float(i)} for i in range(1, 4)]]
    with pytest.raises(UserError, match=r"'lr', taken for base_lr: .* one of 3 such values of 4"):
        named(rows)
    sweep, columns = named([*rows[:2], ROW])
    _, without = place_runs(sweep, columns, {run.name: i for i, run in enumerate(sweep.runs)})
    assert len(without) == 1


def test_a_text_among_results_is_told() -> None:
    rows = [ROW | {"val_loss": 0.1 * i} for i in range(4)] + [ROW | {"val_loss": "diverged!"}]
    sweep = sweep_of_rows("runs", rows)
    assert "val_loss" in sweep.metric_columns
    (remark,) = sweep.remarks
    assert "val_loss: 1 of 5 values are no numbers" in remark
    assert "'diverged!' of row 4" in remark
    rows = [{("odd" if name == "val_loss" else name): row[name] for name in row} for row in rows]
    _, columns = named(rows, objective="odd")
    assert "'diverged!' of row 4: is no number" in columns.left_out["odd"]


def test_none_is_a_choice_and_a_clipping_threshold() -> None:
    rows = [ROW | {"clip": value, "augment": value} for value in ("none", "none", 1.0, 2.0)]
    assert [point.clip_norm for point in points(rows)] == [math.inf, math.inf, 1.0, 2.0]
    assert points(rows)[0].workload_args == {"augment": "none"}


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
