"""`tunewright import`: sweeps of other people become results folders, and nothing of theirs
changes.
"""

import hashlib
import math
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from swept import EDGE, EPOCHS, RAISES, STAR, lightning_runs, optuna_study, wandb_rows, write_csv

from tunewright.search.cli import main
from tunewright.search.errors import LOG, UserError
from tunewright.search.importing import Imported, import_sweep
from tunewright.search.judge.analysis import boundary_checks, summarize, varied_names
from tunewright.search.store.results import Results
from tunewright.search.store.storage import open_store
from tunewright.search.trial import Trial

FIXED = {"batch_size": 128, "optimizer": "sgd"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Optuna study in SQLite that nobody made with tunewright."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    optuna_study(f"sqlite:///{path}")
    return path


def traces(path: Path) -> tuple[str, int, list[str]]:
    """What a reader could have changed: bytes, time and neighbours of a file."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return content, path.stat().st_mtime_ns, sorted(one.name for one in path.parent.iterdir())


def trials_of(done: Imported) -> list[Trial]:
    """As they are read back from the results folder."""
    return list(Results.read(open_store(done.store.folder)).trials)


def outcomes(trials: list[Trial]) -> Counter[str]:
    return Counter(trial.verdict.outcome for trial in trials)


# --- Optuna ---------------------------------------------------------------------------------------


def test_an_optuna_study_made_without_us_has_its_axis_plots(database: Path, tmp_path: Path) -> None:
    """By the commands alone: the acceptance of `import`."""
    before = traces(database)
    where = ["--results", str(tmp_path)]
    command = ["import", f"sqlite:///{database}", "--as", "mnist", *where]
    assert main([*command, "--set", "batch_size=128,optimizer=sgd"]) == 0
    assert traces(database) == before
    folder = tmp_path / "mnist"
    assert main(["report", str(folder)]) == 0
    report = (folder / "report.html").read_text(encoding="utf-8")
    for axis in ("base_lr", "dropout", "n_layers", "activation"):
        assert f'id="axis_{axis}"' in report
    assert "1 crashed" in report
    assert "unfinished" in report
    assert main(["check", str(folder), *where]) == 0


def test_every_optuna_trial_gets_its_place(database: Path, tmp_path: Path) -> None:
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    theirs = optuna.load_study(study_name="mnist", storage=f"sqlite:///{database}").trials
    ours = {trial.point.number: trial for trial in trials_of(done)}
    assert ours.keys() == {trial.number for trial in theirs}
    for trial in theirs:
        mine = ours[trial.number]
        reported = list(trial.intermediate_values.values())
        if trial.number == RAISES:
            expected = "crashed"
        elif any(map(math.isnan, reported)):
            expected = "non_finite"
        elif trial.state == optuna.trial.TrialState.COMPLETE:
            expected = "feasible"
            assert mine.best_value == trial.value
            assert mine.best_step == EPOCHS - 1
        else:
            expected = "unfinished"
        assert mine.verdict.outcome == expected, trial
        assert mine.point.base_lr == trial.params["lr"]
        for name in trial.params.keys() - {"lr"}:
            assert mine.point.workload_args[name] == trial.params[name]
    assert set(outcomes(list(ours.values()))) == {
        *("feasible", "non_finite", "crashed", "unfinished"),
    }
    pruned = next(one for one in ours.values() if "pruned" in one.verdict.evidence)
    assert "no evidence of divergence" in pruned.verdict.evidence
    assert "trial" in pruned.verdict.evidence


def test_ranges_are_those_that_optuna_searched(database: Path, tmp_path: Path) -> None:
    """Not those that happened to be drawn: the boundary check depends on it."""
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    study = open_store(done.store.folder).study
    assert study.ranges["sgd"]["base_lr"] == (1e-5, 1.0, True)
    assert study.ranges["sgd"]["dropout"] == (0.0, 0.5, False)
    assert study.ranges["sgd"]["n_layers"] == (1.0, 4.0, False)
    assert study.scientific_names == ()
    trials = trials_of(done)
    assert set(varied_names(trials)) == {"base_lr", "dropout", "n_layers", "activation"}
    (row,) = summarize(trials, study.scientific_names)
    assert STAR / 10 < row.lr_star < 10 * STAR
    assert row.unstable_base_lr[1] > EDGE
    assert boundary_checks(trials, study.ranges) == [
        note for note in boundary_checks(trials, study.ranges) if note.axis in study.ranges["sgd"]
    ]


def test_evaluations_on_the_way_stay_with_each_trial(database: Path, tmp_path: Path) -> None:
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    feasible = [trial for trial in trials_of(done) if trial.feasible]
    assert feasible
    for trial in feasible:
        assert trial.curve.eval_step.tolist() == list(range(EPOCHS))
        assert trial.curve.metrics["value"][-1] == trial.best_value


def test_a_journal_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "source" / "journal.log"
    path.parent.mkdir()
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    optuna_study(optuna.storages.JournalStorage(backend), trials=15)
    before = traces(path)
    done = import_sweep(str(path), "journal", tmp_path / "results", constants=FIXED)
    assert traces(path) == before
    assert len(trials_of(done)) == 16


def test_a_database_in_use_is_read_between_transactions(tmp_path: Path) -> None:
    """One with a write-ahead log, open in another program, and one that it was closed in."""
    path = tmp_path / "source" / "live.db"
    path.parent.mkdir()
    study = optuna_study(f"sqlite:///{path}", trials=4)
    with sqlite3.connect(path) as live:
        live.execute("PRAGMA journal_mode=WAL")
        live.execute("UPDATE studies SET study_name = 'live'")
        live.commit()
        before = traces(path)
        done = import_sweep(f"sqlite:///{path}", "live", tmp_path / "results", constants=FIXED)
        assert "study 'live'" in done.store.study.imported
        assert traces(path) == before
    live.close()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    before = traces(path)
    again = import_sweep(f"sqlite:///{path}", "live", tmp_path / "results", constants=FIXED)
    assert again.added == 0
    assert traces(path) == before


def test_tables_of_an_older_optuna_are_brought_up_in_the_copy_alone(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "source" / "old.db"
    path.parent.mkdir()
    path.write_bytes(database.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX ix_trials_study_id")
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    connection.close()
    before = traces(path)
    done = import_sweep(f"sqlite:///{path}", "old", tmp_path / "results", constants=FIXED)
    assert traces(path) == before
    assert done.added == 41
    assert capsys.readouterr().err == ""
    assert not LOG.disabled
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
    connection.close()
    assert "another version of Optuna" in refusal(f"sqlite:///{path}", "new", tmp_path)


def test_again_it_adds_what_is_new_and_what_has_gone_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna_study(url, trials=4)
    first = import_sweep(url, "mnist", tmp_path / "results", constants=FIXED)
    assert (first.added, outcomes(trials_of(first))["unfinished"]) == (5, 1)
    assert import_sweep(url, "mnist", tmp_path / "results", constants=FIXED).added == 0
    study.tell(4, 0.25)
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 10.0, log=True)
    study.tell(trial, 0.5)
    second = import_sweep(url, "mnist", tmp_path / "results", constants=FIXED)
    assert second.added == 2
    found = {one.point.number: one for one in trials_of(second)}
    assert (found[4].feasible, found[4].best_value, len(found)) == (True, 0.25, 6)
    assert open_store(second.store.folder).study.ranges["sgd"]["base_lr"] == (1e-5, 10.0, True)


def test_a_kill_in_the_middle_is_completed_by_the_same_command(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.search import importing

    real, calls = importing.tell_all, []

    def killed(store: Any, trials: Any) -> None:
        calls.append(len(trials))
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(store, trials)

    monkeypatch.setattr(importing, "AT_ONCE", 10)
    monkeypatch.setattr(importing, "tell_all", killed)
    with pytest.raises(KeyboardInterrupt):
        import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    monkeypatch.setattr(importing, "tell_all", real)
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    assert done.added == 41 - 20
    assert sorted(trial.point.number for trial in trials_of(done)) == list(range(41))


def test_failed_trials_are_infeasible_where_the_user_says_so(tmp_path: Path) -> None:
    """Of an objective that returned nan Optuna keeps as little as of one that raised."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna.create_study(study_name="nan", storage=url)
    with pytest.warns(UserWarning, match="not acceptable"):
        study.tell(_asked(study, 1.0), math.nan)
    study.tell(_asked(study, 0.1), 0.5)
    said: list[str] = []
    crashed = import_sweep(url, "crashed", tmp_path, constants=FIXED, say=said.append)
    assert outcomes(trials_of(crashed)) == {"crashed": 1, "feasible": 1}
    assert any("--failed infeasible" in line for line in said)
    done = import_sweep(url, "nan", tmp_path, constants=FIXED, failed_is_infeasible=True)
    assert outcomes(trials_of(done)) == {"diverged": 1, "feasible": 1}


def name_objectives(study: optuna.Study, names: list[str]) -> None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(names)


def _asked(study: optuna.Study, lr: float) -> optuna.Trial:
    study.enqueue_trial({"lr": lr})
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 10.0, log=True)
    return trial


def test_a_maximized_study_is_maximized(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna.create_study(study_name="acc", storage=url, direction="maximize")
    name_objectives(study, ["accuracy"])
    for lr, value in ((1e-3, 0.7), (1e-2, 0.9), (1e-1, 0.8)):
        study.tell(_asked(study, lr), value)
    done = import_sweep(url, "acc", tmp_path, constants=FIXED)
    assert (done.store.study.objective, done.store.study.maximize) == ("accuracy", True)
    assert summarize(trials_of(done))[0].lr_star == 1e-2


# --- tables and folders ---------------------------------------------------------------------------


def test_a_table_of_wandb_is_told_apart_by_usual_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "runs.csv", wandb_rows())
    before, said = traces(path), []
    done = import_sweep(
        str(path), "sweep", tmp_path / "results", given={"objective": ["val/loss"]}, say=said.append
    )
    assert traces(path)[:2] == before[:2]
    trials = trials_of(done)
    assert outcomes(trials) == {"feasible": 9, "non_finite": 3}
    assert {trial.point.optimizer for trial in trials} == {"adamw"}
    assert {trial.point.batch_size for trial in trials} == {32, 64}
    assert {trial.point.settings["weight_decay"] for trial in trials} == {0.01}
    assert set(varied_names(trials)) == {"base_lr", "dropout"}
    assert trials[0].seconds == 60
    assert "sweep-0" in trials[0].verdict.evidence
    guesses = "guessed: base_lr = learning_rate, batch_size = bsz, optimizer = opt"
    assert any(line.startswith(guesses) for line in said)


def test_the_direction_is_guessed_by_the_name_of_a_column(tmp_path: Path) -> None:
    path, said = str(write_csv(tmp_path / "runs.csv", wandb_rows())), []
    given = {"objective": ["val/accuracy"]}
    done = import_sweep(path, "guessed", tmp_path, given=given, say=said.append)
    assert done.store.study.maximize
    assert any("val/accuracy is better when higher" in line for line in said)
    told = import_sweep(path, "told", tmp_path, given=given, maximize=False)
    assert not told.store.study.maximize


def test_runs_that_have_no_point_are_counted_and_named(tmp_path: Path) -> None:
    """One bad value costs its run, and no other."""
    rows = wandb_rows()
    rows[2]["learning_rate"], rows[3]["bsz"] = "abc", 0
    rows[4]["val/loss"], rows[5]["val/loss"] = "n/a", "Infinity"
    path = str(write_csv(tmp_path / "runs.csv", rows))
    said: list[str] = []
    done = import_sweep(
        path, "sweep", tmp_path, given={"objective": ["val/loss"]}, maximize=False, say=said.append
    )
    (line,) = (line for line in said if line.startswith("left out: 2 runs of 12 have no place"))
    assert "sweep-2: base_lr = 'abc', must be a number > 0" in line
    assert "sweep-3: batch_size = 0, must be a whole number" in line
    assert outcomes(trials_of(done)) == {"feasible": 5, "non_finite": 4, "unfinished": 1}
    assert main(["report", str(done.store.folder)]) == 0
    assert "sweep-2: base_lr = " in (done.store.folder / "report.html").read_text("utf-8")


def test_what_nobody_states_is_not_shown(tmp_path: Path) -> None:
    """A warmup of 0 would be a claim about runs of which nothing is known."""
    path = write_csv(tmp_path / "runs.csv", wandb_rows())
    done = import_sweep(str(path), "sweep", tmp_path, given={"objective": ["val/loss"]})
    shown = trials_of(done)[0].point.shown
    assert shown.keys() == {"batch_size", "optimizer", "base_lr", "weight_decay", "dropout"}


def test_a_row_that_comes_later_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    """W&B puts the newest run first."""
    rows, given = wandb_rows(), {"objective": ["val/loss"]}
    path = write_csv(tmp_path / "runs.csv", rows[1:])
    before = import_sweep(str(path), "sweep", tmp_path, given=given)
    write_csv(path, rows)
    after = import_sweep(str(path), "sweep", tmp_path, given=given)
    assert after.added == 1
    numbers = {one.point.number: one.point.base_lr for one in trials_of(after)}
    assert {one.point.number for one in before.trials} == set(range(11))
    assert numbers[11] == pytest.approx(1e-4)


def test_a_folder_of_runs_is_judged_by_its_curves(tmp_path: Path) -> None:
    folder = lightning_runs(tmp_path / "logs")
    done = import_sweep(str(folder), "lightning", tmp_path / "results")
    trials = trials_of(done)
    assert outcomes(trials) == {"feasible": 4, "non_finite": 2}
    infeasible = [trial for trial in trials if not trial.feasible]
    assert [trial.verdict.onset_step for trial in infeasible] == [320, 320]
    assert min(trial.point.base_lr for trial in infeasible) > EDGE
    assert {trial.point.optimizer for trial in trials} == {"momentum"}
    assert {trial.point.workload_args["model.hidden"] for trial in trials} == {64, 128}
    curve = next(trial.curve for trial in trials if trial.feasible)
    assert curve.loss_step is not None
    assert curve.loss_step.tolist() == list(range(0, 1000, 10))
    assert np.isfinite(curve.metrics["val_loss"]).all()
    assert main(["report", str(done.store.folder)]) == 0


def test_a_later_folder_of_a_run_is_added(tmp_path: Path) -> None:
    folder = lightning_runs(tmp_path / "logs", 3)
    import_sweep(str(folder), "lightning", tmp_path / "results")
    lightning_runs(folder / "a", 2)
    done = import_sweep(str(folder), "lightning", tmp_path / "results")
    assert done.added == 2
    assert {trial.point.number for trial in trials_of(done)} == set(range(5))


# --- what is refused ------------------------------------------------------------------------------


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        import_sweep(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    rows = wandb_rows()
    path = str(write_csv(tmp_path / "runs.csv", rows))
    assert "val/loss, val/accuracy" in refusal(path, "a", tmp_path)
    message = refusal(path, "a", tmp_path, given={"objective": ["loss"]})
    assert "--map objective=loss: there is no column 'loss'" in message
    assert "val/loss" in message
    for wrong in ({"batch_size": "many"}, {"momentum": 2}, {"base_lr": 0}, {"warmup_steps": 0.5}):
        (ours,) = wrong
        message = refusal(path, "a", tmp_path, constants=wrong)
        assert message.startswith(f"--set {ours}=")
    texts = [row | {"learning_rate": "high"} for row in rows]
    path = str(write_csv(tmp_path / "texts.csv", texts))
    message = refusal(path, "a", tmp_path, given={"objective": ["val/loss"]})
    assert "column 'learning_rate', taken for base_lr: must be a number > 0" in message
    assert "'high'" in message
    without = [{key: row[key] for key in ("learning_rate", "val/loss")} for row in rows]
    path = str(write_csv(tmp_path / "few.csv", without))
    assert "--set batch_size=…,optimizer=…" in refusal(path, "a", tmp_path)
    empty = tmp_path / "empty.csv"
    empty.write_text("lr,val_loss\n")
    assert "has no rows" in refusal(str(empty), "a", tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_storage_names_its_studies(database: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{database}"
    assert "has no study 'cifar': there are 'mnist'" in refusal(url, "a", tmp_path, study="cifar")
    missing = tmp_path / "missing.db"
    assert "there is no such file" in refusal(f"sqlite:///{missing}", "a", tmp_path)
    assert not missing.exists()
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()
    assert "its tables are songs" in refusal(f"sqlite:///{foreign}", "a", tmp_path)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(database.read_bytes()[:30_000])
    assert "damaged.db" in refusal(f"sqlite:///{damaged}", "a", tmp_path)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database at all" * 100)
    assert "garbage.db" in refusal(f"sqlite:///{garbage}", "a", tmp_path)
    message = refusal("mysql://ada:opensesame@127.0.0.1/studies", "a", tmp_path)
    assert "driver" in message
    assert "opensesame" not in message
    message = refusal("postgresql://ada:opensesame@127.0.0.1:1/studies", "a", tmp_path)
    assert "opensesame" not in message


def test_several_objectives_are_refused_until_one_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna.create_study(study_name="two", storage=url, directions=["minimize", "maximize"])
    name_objectives(study, ["loss", "accuracy"])
    for lr, values in ((1e-3, (0.5, 0.9)), (1e-2, (0.4, 0.8))):
        study.tell(_asked(study, lr), values)
    message = refusal(url, "two", tmp_path, constants=FIXED)
    assert "has 2 objectives" in message
    assert "--map objective=…: loss, accuracy" in message
    given = {"objective": ["accuracy"]}
    done = import_sweep(url, "two", tmp_path, constants=FIXED, given=given)
    assert done.store.study.maximize
    assert summarize(trials_of(done))[0].lr_star == 1e-3


def test_another_source_or_another_reading_is_refused(database: Path, tmp_path: Path) -> None:
    import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    path = str(write_csv(tmp_path / "runs.csv", wandb_rows()))
    message = refusal(path, "mnist", tmp_path, given={"objective": ["val/loss"]})
    assert "holds trials imported from study 'mnist'" in message
    before = (tmp_path / "mnist" / "study.toml").read_text()
    message = refusal(
        f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED, given={"base_lr": ["dropout"]}
    )
    assert "base_lr" in message
    assert (tmp_path / "mnist" / "study.toml").read_text() == before


def test_results_of_our_own_have_their_report_already(database: Path, tmp_path: Path) -> None:
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    message = refusal(f"sqlite:///{done.store.folder / 'study.db'}", "again", tmp_path)
    assert "was made by tunewright" in message


def test_what_trains_refuses_imported_trials(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = import_sweep(f"sqlite:///{database}", "mnist", tmp_path, constants=FIXED)
    file = str(done.store.folder / "study.toml")
    assert main(["run", file, "--results", str(tmp_path)]) == 2
    assert main(["diagnose", file, "--results", str(tmp_path)]) == 2
    assert main(["compare", str(done.store.folder), "--baseline", "x.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.count("imported from") + said.count("come from") == 3


@pytest.mark.slow
def test_a_server_is_only_read(postgresql: str, tmp_path: Path) -> None:
    study = optuna_study(postgresql, trials=10)
    study._storage.remove_session()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    done = import_sweep(postgresql, "mnist", tmp_path, study="mnist", constants=FIXED)
    assert len(trials_of(done)) == 11
    assert "opensesame" not in done.store.study.imported
    assert "opensesame" not in (done.store.folder / "environment.json").read_text()


@pytest.mark.parametrize("state", ["FAIL", "PRUNED", "RUNNING"])
def test_a_hyperparameter_with_the_name_of_the_objective_is_no_result(
    tmp_path: Path, state: str
) -> None:
    """Of a trial without a value none is told, though a parameter is called `value`, too."""
    url = f"sqlite:///{tmp_path}/named.db"
    study = optuna.create_study(study_name="named", storage=url)
    axes = dict.fromkeys(("lr", "value"), optuna.distributions.FloatDistribution(1e-5, 1.0))
    for i, told in enumerate(("COMPLETE", "COMPLETE", state)):
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[told],
                value=0.5 if told == "COMPLETE" else None,
                params={"lr": 0.1, "value": 0.001 * (i + 1)},
                distributions=axes,
            )
        )
    said: list[str] = []
    constants = {"batch_size": 8, "optimizer": "adam"}
    done = import_sweep(url, "named", tmp_path, constants=constants, say=said.append)
    *finished, last = trials_of(done)
    assert [trial.best_value for trial in finished] == [0.5, 0.5]
    assert not math.isfinite(last.best_value)
    assert "0.003" not in last.verdict.evidence
    assert any("value has the name of the objective" in line for line in said)


def test_trials_that_violate_a_constraint_are_told(tmp_path: Path) -> None:
    """Optuna takes none of them for the best; here they are ranked."""
    url = f"sqlite:///{tmp_path}/constrained.db"
    study = optuna.create_study(study_name="constrained", storage=url)
    lr = optuna.distributions.FloatDistribution(1e-5, 1.0)
    for value, violation in ((0.5, -1.0), (0.4, 0.0), (0.1, 2.0)):
        trial = optuna.trial.create_trial(
            value=value,
            params={"lr": 0.1},
            distributions={"lr": lr},
            constraints={"memory": violation},
        )
        study.add_trial(trial)
    said: list[str] = []
    constants = {"batch_size": 8, "optimizer": "adam"}
    import_sweep(url, "constrained", tmp_path, constants=constants, say=said.append)
    assert any("1 of 3 trials violate the study's constraints, as trial 2" in line for line in said)
