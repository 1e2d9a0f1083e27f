"""What whoever knows Optuna alone does with study.db works, and says what we say."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna import visualization
from optuna.trial import TrialState
from stored import small_study

from tunewright.search.judge.analysis import rank_configurations
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.store.table import write_table
from tunewright.search.trial import Trial

TRIALS = 10
SPACE = {
    "optimizer": {
        "momentum": {"base_lr": {"low": 1e-3, "high": 300.0, "log": True}},
        "adam": {"base_lr": {"low": 1e-4, "high": 1.0, "log": True}},
    },
    "warmup_steps": {"low": 0, "high": 10},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    folder = tmp_path_factory.mktemp("results")
    study = small_study(max_train_steps=100, trials=TRIALS, space=SPACE)
    return folder, run_study(study, results=folder, progress=False, backend=InProcess())


@pytest.fixture
def study(results: tuple[Path, list[Trial]]) -> Iterator[optuna.Study]:
    """Opened by Optuna, which knows nothing of tunewright. Its objective has its own name."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{results[0]}/small/study.db")
    (name,) = optuna.get_all_study_names(storage)
    yield optuna.load_study(study_name=name, storage=storage)
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture
def ours(results: tuple[Path, list[Trial]]) -> list[Trial]:
    return results[1]


def test_trials_have_our_numbers_values_states_and_parameters(
    study: optuna.Study, ours: list[Trial]
) -> None:
    assert len(study.trials) == len(ours)
    assert {trial.feasible for trial in ours} == {True, False}
    for theirs, trial in zip(study.trials, ours, strict=True):
        point = trial.point
        assert theirs.number == point.number
        assert theirs.state == TrialState.COMPLETE
        assert theirs.params["optimizer"] == point.optimizer
        assert theirs.params[f"{point.optimizer}.base_lr"] == point.base_lr
        assert theirs.params["warmup_steps"] == point.warmup_steps
        assert theirs.user_attrs["verdict"] == trial.verdict.outcome
        assert (theirs.constraints["diverged"] > 0) is trial.verdict.infeasible
        assert theirs.value == (trial.best_value if trial.feasible else trial.initial_value)
        assert theirs.duration is not None
        took = theirs.duration.total_seconds()
        assert took == pytest.approx(trial.seconds, abs=2e-3)


def test_intermediate_values_are_the_evaluations(study: optuna.Study, ours: list[Trial]) -> None:
    for theirs, trial in zip(study.trials, ours, strict=True):
        steps = trial.curve.eval_step.tolist()
        values = trial.curve.metrics["val_error"].tolist()
        assert theirs.intermediate_values.keys() == set(steps)
        for step, value in zip(steps, values, strict=True):
            told = theirs.intermediate_values[step]
            assert told == value or (math.isnan(told) and math.isnan(value))


def test_ranges_on_a_log_axis_are_known_as_such(study: optuna.Study) -> None:
    found = {name: one for trial in study.trials for name, one in trial.distributions.items()}
    assert found["momentum.base_lr"] == optuna.distributions.FloatDistribution(
        1e-3, 300.0, log=True
    )
    assert found["adam.base_lr"] == optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    assert found["warmup_steps"] == optuna.distributions.IntDistribution(0, 10)


def test_the_best_trial_is_our_best(study: optuna.Study, ours: list[Trial]) -> None:
    best = rank_configurations(ours)[0].point
    assert study.best_trial.number == best.number
    assert study.best_value == min(trial.best_value for trial in ours if trial.feasible)
    assert study.best_params[f"{best.optimizer}.base_lr"] == best.base_lr


def test_a_frame_has_a_row_per_trial_as_our_table_has(
    study: optuna.Study, ours: list[Trial], tmp_path: Path
) -> None:
    frame = study.trials_dataframe()
    write_table(tmp_path / "trials.csv", ours)
    table = pd.read_csv(tmp_path / "trials.csv")
    assert frame["number"].tolist() == table["number"].tolist()
    assert frame["user_attrs_verdict"].tolist() == table["verdict"].tolist()
    assert frame["params_optimizer"].tolist() == table["optimizer"].tolist()
    own = frame["params_momentum.base_lr"].fillna(frame["params_adam.base_lr"])
    assert own.tolist() == pytest.approx(table["base_lr"].tolist())
    trained = table["verdict"] == "feasible"
    assert frame["value_val_error"][trained].tolist() == table["best_value"][trained].tolist()
    assert set(frame["state"]) == {"COMPLETE"}


def drawn(figure: Any) -> list[Any]:
    """What a figure's traces have on either axis, or along each of their dimensions."""
    values: list[Any] = []
    for trace in figure.data:
        for dimension in getattr(trace, "dimensions", None) or ():
            values += list(dimension["values"])
        for axis in ("x", "y"):
            found = getattr(trace, axis, None)
            values += [] if found is None else list(found)
    return values


PLOTS = (
    *("optimization_history", "slice", "parallel_coordinate", "param_importances", "edf"),
    *("intermediate_values", "contour", "rank", "timeline"),
)


@pytest.mark.parametrize("plot", PLOTS)
def test_optunas_own_plots_draw_the_study(study: optuna.Study, plot: str) -> None:
    # without a choice contours are asked for, and refused, of two optimizers' base LRs
    some = {"params": ["momentum.base_lr", "warmup_steps"]} if plot in ("contour", "rank") else {}
    figure = getattr(visualization, f"plot_{plot}")(study, **some)
    assert len(drawn(figure)) > 1


def test_a_plot_has_infeasible_trials_marked_and_the_best_value_of_feasible_ones(
    study: optuna.Study, ours: list[Trial]
) -> None:
    figure = visualization.plot_optimization_history(study)
    traces = {trace.name: trace for trace in figure.data}
    failed = [trial.point.number for trial in ours if trial.verdict.infeasible]
    assert list(traces["Infeasible Trial"].x) == failed
    assert traces["Best Value"].y[-1] == study.best_value
