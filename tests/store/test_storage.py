import csv
import math
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from compared import comparison
from optuna.trial import TrialState
from stored import EVALUATIONS, STEPS, UNTRAINED, diverged, feasible, point, small_study

from tunewright.search.errors import UserError
from tunewright.search.pool.driver import Driver
from tunewright.search.pool.in_process import InProcess
from tunewright.search.pool.progress import Progress
from tunewright.search.store.files import curve_path, write_curve
from tunewright.search.store.places import has_results
from tunewright.search.store.results import read_comparison, write_comparison
from tunewright.search.store.storage import (
    Store,
    _as_frozen,
    continued_by,
    create_store,
    open_storage,
    open_store,
    read_records,
    read_trials,
    tell,
)
from tunewright.search.store.table import write_table
from tunewright.search.study.sampling import (
    ROUND,
    _fixed_values,
    _point,
    _proposals,
    next_points,
    plan,
)
from tunewright.search.study.study import Study, load_study
from tunewright.search.trial import Point, Told, Trial, as_told

TRAINED, EARLY = feasible(0, 0.1, 0.05), diverged(1, 5.0, onset_step=3)
KILLED = Trial.from_crash(
    point(2, 1.0), "MemoryError: out of memory", traceback="Traceback ...", seconds=2.0
)
NAME = "small/batch_size=32"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(small_study(), tmp_path)


def url_of(store: Store) -> str:
    return f"sqlite:///{store.folder / 'study.db'}"


def told(store: Store, trial: Trial) -> optuna.trial.FrozenTrial:
    """The trial as plain Optuna reads it."""
    tell(store, trial)
    return optuna.load_study(study_name=NAME, storage=url_of(store)).trials[-1]


# --- how a trial is told --------------------------------------------------------------------------


def test_a_feasible_trial_is_complete_with_its_best_value_and_a_negative_constraint(
    store: Store,
) -> None:
    frozen = told(store, TRAINED)
    assert (frozen.state, frozen.value, frozen.constraints) == (
        TrialState.COMPLETE,
        0.05,
        {"diverged": -1.0},
    )


def test_an_infeasible_trial_is_complete_with_the_value_of_the_untrained_model(
    store: Store,
) -> None:
    """Also if it was better for a moment: 0.001 at step 2."""
    frozen = told(store, EARLY)
    assert (frozen.state, frozen.value) == (TrialState.COMPLETE, UNTRAINED)
    assert frozen.constraints == {"diverged": 1 - 3 / 100}


def test_a_crashed_trial_failed_and_says_nothing_about_its_point(store: Store) -> None:
    frozen = told(store, KILLED)
    assert (frozen.state, frozen.value, frozen.params) == (TrialState.FAIL, None, {})
    assert frozen.user_attrs["reason"] == "MemoryError: out of memory"


def test_the_later_it_diverges_the_nearer_to_feasible_but_never_feasible() -> None:
    violations = [as_told(diverged(0, 1.0, onset_step)).diverged for onset_step in (0, 3, 50, 99)]
    assert violations == sorted(violations, reverse=True)
    assert violations[0] == 1.0
    assert violations[-1] == pytest.approx(0.01)


def test_a_collapse_found_at_the_end_is_infeasible_too() -> None:
    """Its onset is the last step, or inf where none can be named."""
    for onset_step in (100, math.inf):
        verdict = replace(EARLY.verdict, outcome="collapsed", onset_step=onset_step)
        assert as_told(replace(EARLY, verdict=verdict)).diverged == pytest.approx(0.01)


def test_what_optuna_is_told_is_always_finite() -> None:
    for trial in (
        EARLY,
        replace(EARLY, initial_value=math.nan),
        replace(EARLY, initial_value=math.inf),
    ):
        assert math.isfinite(as_told(trial).value)
        assert as_told(trial).diverged > 0


def test_an_infeasible_trial_is_never_the_best(store: Store) -> None:
    """Not even where every feasible one is worse than the untrained model."""
    tell(store, EARLY)
    tell(store, feasible(2, 0.01, best_value=0.95))
    plain = optuna.load_study(study_name=NAME, storage=url_of(store))
    assert plain.best_trial.user_attrs["number"] == 2


def test_without_a_feasible_trial_there_is_no_best_one(store: Store) -> None:
    tell(store, EARLY)
    with pytest.raises(ValueError, match="No feasible trials"):
        _ = optuna.load_study(study_name=NAME, storage=url_of(store)).best_trial


def test_plain_optuna_shows_the_curve_and_what_was_found(store: Store) -> None:
    frozen = told(store, EARLY)
    assert len(frozen.intermediate_values) == EVALUATIONS
    assert frozen.intermediate_values[0] == UNTRAINED
    assert math.isnan(frozen.intermediate_values[100])
    assert {name: value for name, value in frozen.user_attrs.items() if name != "record"} == {
        "number": 1,
        "verdict": "non_finite",
        "instability": "early",
        "onset_step": 3,
        "reason": "loss nan at step 3",
        "best_step": 2,
        "last_loss": 2.0,
        "clip_fraction": 0.0,
        "seconds": 1.25,
        "seed": 1,
    }
    assert frozen.params == {"base_lr": 5.0}


def test_rows_are_those_that_optunas_own_storage_writes(store: Store, tmp_path: Path) -> None:
    """Ours only leaves out the look-ups: same trials, numbers, attributes, intermediate values."""
    plain_url = f"sqlite:///{tmp_path / 'plain.db'}"
    plain_study = optuna.create_study(study_name=NAME, storage=plain_url)
    for trial in (TRAINED, EARLY, KILLED):
        tell(store, trial)
        plain_study.add_trial(_as_frozen(store.study, trial))
    assert contents(store.folder / "study.db") == contents(tmp_path / "plain.db")


def contents(database: Path) -> dict[str, list[str]]:
    """Every row about trials, without row ids and dates."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    tables = (
        "trials",
        "trial_values",
        "trial_params",
        "trial_user_attributes",
        "trial_system_attributes",
    )
    rows = {}
    for table in (*tables, "trial_intermediate_values"):
        found = connection.execute(f"SELECT * FROM {table}").fetchall()
        # the first column is the row's own id
        rows[table] = sorted(
            repr([(key, row[key]) for key in row.keys()[1:] if "datetime" not in key])
            for row in found
        )
    connection.close()
    assert all(rows.values())
    return rows


# --- reading back ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trial", [TRAINED, EARLY, KILLED], ids=["feasible", "infeasible", "crashed"]
)
def test_a_trial_is_read_as_it_was_told(store: Store, trial: Trial) -> None:
    """To the bit, nan and inf included, the curve from its file."""
    if not trial.verdict.crashed:
        write_curve(curve_path(store.folder, trial.point), trial.curve)
    tell(store, trial)
    (read,) = read_trials(create_store(store.study, store.folder.parent))
    assert same(read.record(), trial.record())
    assert read.curve == trial.curve


def same(mine: Any, theirs: Any) -> bool:
    """Equal, where nan equals nan and 1 is not 1.0."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, float) and math.isnan(mine):
        return isinstance(theirs, float) and math.isnan(theirs)
    return type(mine) is type(theirs) and bool(mine == theirs)


def test_every_number_of_a_trial_may_be_nan_or_inf(store: Store) -> None:
    odd = replace(
        EARLY,
        point=replace(
            EARLY.point, clip_norm=math.inf, workload_args={"width": 8, "bias": True, "name": "ü"}
        ),
        best_value=math.inf,
        initial_value=math.nan,
        last_loss=-math.inf,
    )
    tell(store, odd)
    assert same(read_trials(store)[0].record(), odd.record())


def test_without_curve_files_the_evaluations_are_still_there(store: Store) -> None:
    """As in a results folder whose database was copied alone."""
    tell(store, EARLY)
    (read,) = read_trials(store)
    assert same(read.record(), EARLY.record())
    np.testing.assert_array_equal(read.curve.eval_step, EARLY.curve.eval_step)
    np.testing.assert_array_equal(read.curve.metrics["val_error"], EARLY.curve.metrics["val_error"])
    assert len(read.curve.loss) == 0


def test_a_crashed_trial_gives_way_to_a_later_try_and_to_no_other(store: Store) -> None:
    again = replace(TRAINED, point=KILLED.point)
    tell(store, KILLED)
    assert [trial.verdict.outcome for trial in read_trials(store)] == ["crashed"]
    tell(store, again)
    tell(store, KILLED)
    assert [trial.verdict.outcome for trial in read_trials(store)] == ["feasible"]


def test_trials_come_in_the_order_of_the_plan_whatever_the_order_of_finishing(
    tmp_path: Path,
) -> None:
    store = create_store(small_study(batch_sizes=[32, 256]), tmp_path)
    for number, batch_size in ((3, 32), (0, 256), (0, 32), (1, 256)):
        tell(store, feasible(number, 0.1, 0.05, batch_size))
    places = [(trial.point.batch_size, trial.point.number) for trial in read_trials(store)]
    assert places == [(32, 0), (32, 3), (256, 0), (256, 1)]


def test_a_trial_that_somebody_added_is_left_alone(store: Store) -> None:
    optuna.load_study(study_name=NAME, storage=url_of(store)).add_trial(
        optuna.trial.create_trial(value=0.0)
    )
    tell(store, TRAINED)
    assert [trial.point.number for trial in read_trials(store)] == [0]


def test_the_table_has_a_row_per_trial(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    write_table(path, [TRAINED, EARLY, KILLED])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert [row["verdict"] for row in rows] == ["feasible", "non_finite", "crashed"]
    assert [float(row["base_lr"]) for row in rows] == [0.1, 5.0, 1.0]
    assert rows[0]["clip_norm"] == "inf"
    assert rows[2]["reason"] == "MemoryError: out of memory"


@pytest.mark.parametrize("name", ["clip_z", "clip_tensor"])
def test_a_threshold_has_a_column_if_a_trial_uses_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trials.csv"
    write_table(path, [TRAINED, EARLY])
    without = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    assert without == [
        *(
            "number",
            "batch_size",
            "optimizer",
            "base_lr",
            "warmup_steps",
            "clip_norm",
            "decay",
            "seed",
            "momentum",
        ),
        *(
            "verdict",
            "instability",
            "onset_step",
            "best_value",
            "best_step",
            "initial_value",
            "last_loss",
        ),
        *("clip_fraction", "seconds", "reason"),
    ]
    write_table(path, [TRAINED, replace(EARLY, point=replace(EARLY.point, **{name: 2.5}))])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row[name] for row in rows] == ["inf", "2.5"]
    assert [key for key in rows[0] if key != name] == without


@pytest.mark.parametrize("name", ["clip_z", "clip_tensor"])
@pytest.mark.parametrize("axis", [[math.inf, 2.5], {"low": 1.5, "high": 4.0}])
def test_a_threshold_is_an_optuna_parameter_if_the_study_varies_it(
    tmp_path: Path, axis: Any, name: str
) -> None:
    space = small_study().space.model_dump(mode="json", exclude_none=True)
    store = create_store(small_study(space={**space, name: axis}), tmp_path)
    for planned in plan(store.study):
        frozen = told(store, replace(TRAINED, point=planned))
        assert frozen.params == {"base_lr": planned.base_lr, name: getattr(planned, name)}
    assert [trial.point for trial in read_trials(store)] == plan(store.study)
    assert len({getattr(planned, name) for planned in plan(store.study)}) == (
        2 if isinstance(axis, list) else 4
    )


def test_settings_of_a_decay_are_stored_with_the_trials_that_have_them(tmp_path: Path) -> None:
    optimizer = {"momentum": {"base_lr": 0.1}}
    axes = {
        "decay": ["constant", "wsd", "cosine_restarts"],
        "decay_fraction": {"low": 0.1, "high": 0.5},
        "restarts": {"low": 0, "high": 3},
    }
    study = small_study(trials=6, scientific=["decay"], space={"optimizer": optimizer, **axes})
    store = create_store(study, tmp_path)
    points = plan(study)
    for planned in points:
        frozen = told(store, replace(TRAINED, point=planned))
        assert frozen.params == {"decay": planned.decay, **planned.decay_settings}
    trials = read_trials(store)
    assert [trial.point for trial in trials] == points
    assert [len(point.decay_settings) for point in points] == [0, 1, 1] * 2
    write_table(tmp_path / "trials.csv", trials)
    rows = table(tmp_path / "trials.csv")
    assert [row["decay_fraction"] != "" for row in rows] == [False, True, False] * 2
    assert [row["restarts"].isdigit() for row in rows] == [False, False, True] * 2


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("known", [True, False])
def test_the_baseline_is_row_0_of_the_table_and_gain_is_how_much_better_a_trial_is(
    tmp_path: Path, known: bool
) -> None:
    found = comparison([[0.2, 0.3]], [0.3, 0.31] if known else None, checkpoint=0.25)
    write_table(tmp_path / "trials.csv", [TRAINED, EARLY, KILLED], found)
    first, *rest = table(tmp_path / "trials.csv")
    assert (first["number"], first["best_value"], first["gain"]) == ("baseline", "0.25", "0.0")
    assert (first["base_lr"], first["seed"], first["verdict"]) == ("0.1" if known else "", "", "")
    assert first["reason"] == f"checkpoint runs/<best>.pt, sha256 {'0' * 64}"
    assert [row["number"] for row in rest] == ["0", "1", "2"]
    assert float(rest[0]["gain"]) == pytest.approx(0.25 - 0.05)
    assert [row["gain"] for row in rest[1:]] == ["", ""]  # a value of what did not train is none
    write_table(tmp_path / "trials.csv", [TRAINED, EARLY, KILLED])
    assert table(tmp_path / "trials.csv") == [
        {name: text for name, text in row.items() if name != "gain"} for row in rest
    ]


def test_a_damaged_comparison_is_named_and_counts_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_comparison(tmp_path) is None
    written = comparison([[0.2, 0.3]], None)
    write_comparison(tmp_path, written)
    assert repr(read_comparison(tmp_path)) == repr(written)  # nan is not equal to itself
    path = tmp_path / "comparison.json"
    for content in (path.read_bytes()[:-9], b"{}"):
        path.write_bytes(content)
        assert read_comparison(tmp_path) is None
    assert [record.message for record in caplog.records] == [
        (
            f"{path}: is damaged, or of another version, and left out: `tunewright compare` "
            "writes it anew"
        )
    ]


# --- whose results are these ----------------------------------------------------------------------


def refusal(study: Study, results: Path) -> str:
    with pytest.raises(UserError) as refused:
        create_store(study, results)
    return str(refused.value)


def test_a_changed_study_file_is_refused_with_what_changed(store: Store) -> None:
    space = {"optimizer": {"momentum": {"base_lr": {"low": 1e-2, "high": 10.0, "log": True}}}}
    message = refusal(small_study(space=space, seed=2), store.folder.parent)
    assert (
        message.splitlines()[0]
        == f"{store.folder}: holds results of a different study file. Changed since:"
    )
    assert message.splitlines()[1:-1] == ["  seed: was 1, is 2"]  # ranges may change


def test_a_study_goes_on_with_its_results_as_long_as_it_would_not_be_refused(store: Store) -> None:
    assert continued_by(store, small_study(trials=9, question="Which?"))
    assert not continued_by(store, small_study(seed=2))


def test_trials_may_grow_but_not_shrink(store: Store) -> None:
    results = store.folder.parent
    create_store(small_study(trials=6), results)
    assert "trials: was 6, is 5" in refusal(small_study(trials=5), results)


def test_the_question_may_be_put_differently(store: Store) -> None:
    create_store(small_study(question="Why?"), store.folder.parent)
    create_store(small_study(), store.folder.parent)


def test_a_study_may_be_drawn_differently(store: Store) -> None:
    create_store(small_study(figure={"log_steps": True, "sparse_every": 5}), store.folder.parent)
    create_store(small_study(), store.folder.parent)


def test_a_study_may_go_on_on_another_cluster(store: Store) -> None:
    create_store(small_study(cluster={"cpus": 2, "sbatch": {"qos": "a"}}), store.folder.parent)
    create_store(small_study(), store.folder.parent)


def test_seeds_can_neither_grow_nor_shrink(store: Store) -> None:
    assert "seeds: was (absent), is 2" in refusal(small_study(seeds=2), store.folder.parent)


def test_seeds_of_a_single_configuration_may_grow_but_not_shrink(tmp_path: Path) -> None:
    few, more = small_study(trials=1, seeds=2), small_study(trials=1, seeds=3)
    assert plan(more)[:2] == plan(few)
    create_store(few, tmp_path)
    create_store(more, tmp_path)
    assert "seeds: was 3, is 2" in refusal(few, tmp_path)


def test_a_refusal_leaves_the_results_as_they_were(store: Store) -> None:
    tell(store, TRAINED)
    refusal(small_study(seed=2), store.folder.parent)
    assert len(read_trials(create_store(small_study(), store.folder.parent))) == 1


def test_the_database_of_another_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{tmp_path / 'small' / 'study.db'}")
    database = tmp_path / "small" / "study.db"
    assert refusal(small_study(), tmp_path) == f"{database}: belongs to another study: theirs"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "study.db").write_text("This is not a database. " * 100)
    message = refusal(small_study(), tmp_path)
    assert message.startswith("storage: cannot open sqlite:///")
    assert "\n" not in message


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("a file in the folder's place")
    assert (
        refusal(small_study(), tmp_path)
        == f"{tmp_path / 'small'}: cannot be written: Not a directory"
    )
    assert (
        refusal(small_study(), Path("/proc"))
        == "/proc/small: cannot be written: No such file or directory"
    )


def test_the_study_file_is_kept_and_opens_the_results_again(tmp_path: Path) -> None:
    text = """
# Why momentum? Because Ada asked.
workload = "tunewright.models.digits:mlp"
objective = "val_error"
max_train_steps = 100
batch_sizes = [32]
trials = 4
[space.optimizer.momentum]
base_lr = { low = 1e-3, high = 10.0, log = true }
"""
    (tmp_path / "small.toml").write_text(text)
    store = create_store(load_study(tmp_path / "small.toml"), tmp_path / "results")
    tell(store, TRAINED)
    assert (store.folder / "study.toml").read_text() == text
    assert has_results(store.folder)
    again = open_store(tmp_path / "results" / "small")
    assert again.study == store.study
    assert len(read_trials(again)) == 1


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    assert not has_results(tmp_path)
    with pytest.raises(UserError, match=r"is not a results folder: it has no study.toml$"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    "name", ["space in it", "50%", "what?", "{braces}", "{SCHEMA_VERSION}", "a#b", "ü"]
)
def test_any_folder_will_do(tmp_path: Path, name: str) -> None:
    create_store(small_study(), tmp_path / name)
    assert (tmp_path / name / "small" / "study.db").is_file()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:opensesame@127.0.0.1:1/studies",  # nobody listens
        "postgres://ada:opensesame@127.0.0.1/studies",  # no such dialect
        "postgresql://ada:opensesame@127.0.0.1:port/studies",  # no such port
        "postgresql//ada:opensesame@127.0.0.1/studies",  # not a URL
        "ada:opensesame@127.0.0.1",
    ],
)
def test_no_error_about_a_storage_shows_its_password(url: str) -> None:
    with pytest.raises(UserError) as refused:
        open_storage(url)
    assert str(refused.value).startswith("storage: ")
    assert "opensesame" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_password_is_refused_and_not_shown(postgresql: str) -> None:
    with pytest.raises(UserError, match="password authentication failed") as refused:
        open_storage(re.sub("(?<=:)[a-z]+(?=@)", "notthispassword", postgresql))
    assert "notthispassword" not in str(refused.value)


# --- what samplers learn from it ------------------------------------------------------------------
# Half of the square diverges, and the best points lie next to that region. Told as infeasible, with
# a graded constraint, it is left alone; told as failed, both samplers know nothing of it and see
# the best points on its near side: they walk into it.


def train(at: Point) -> Trial:
    """base_lr is stable up to an edge that moves down as momentum goes up; the best is just below
    it.
    """
    place, momentum = (math.log10(at.base_lr) + 4) / 4, at.settings["momentum"]
    below_edge = 0.7 - 0.4 * momentum - place
    if below_edge < 0:
        onset_step = max(0, round(100 + 200 * below_edge))
        return replace(diverged(at.number, at.base_lr, min(onset_step, 99)), point=at)
    value = 0.05 + (below_edge - 0.03) ** 2 + 0.5 * (momentum - 0.5) ** 2
    return replace(feasible(at.number, at.base_lr, value), point=at)


def told_our_way(study: Study) -> list[Told]:
    trials: dict[int, Told] = {}
    while len(trials) < (study.trials or 0):
        for proposed in next_points(study, list(trials.values())):
            trials.setdefault(proposed.number, as_told(train(proposed)))
    return list(trials.values())


def told_as_failed(study: Study) -> list[Told]:
    """The same, with every divergent trial hidden, which is what samplers make of FAIL."""
    (group,) = study.groups(32)
    trials: list[Told] = []
    while len(trials) < (study.trials or 0):
        healthy = [trial for trial in trials if trial.diverged <= 0]
        proposals = _proposals(study, group, healthy, ROUND)
        proposed = [
            _point(study, _fixed_values(study), group, len(trials) + k, values)
            for k, values in enumerate(proposals)
        ]
        trials += [as_told(train(one)) for one in proposed]
    return trials


def later_divergent_share(
    way: Callable[[Study], list[Told]], sampler: str, trials: int, seeds: int
) -> float:
    space = {
        "momentum": {
            "base_lr": {"low": 1e-4, "high": 1.0, "log": True},
            "momentum": {"low": 0.0, "high": 0.99},
        }
    }
    shares = []
    for seed in range(seeds):
        study = small_study(sampler=sampler, trials=trials, seed=seed, space={"optimizer": space})
        later = way(study)[trials // 2 :]
        shares.append(sum(trial.diverged > 0 for trial in later) / len(later))
    return sum(shares) / len(shares)


@pytest.mark.parametrize(("sampler", "trials", "seeds"), [("tpe", 48, 6), ("gp", 16, 3)])
def test_samplers_leave_the_divergent_region_as_we_tell_it_and_walk_into_it_as_failures(
    sampler: str, trials: int, seeds: int
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # GP's small matrices: more threads only get in each other's way
    try:
        ours = later_divergent_share(told_our_way, sampler, trials, seeds)
        as_failed = later_divergent_share(told_as_failed, sampler, trials, seeds)
    finally:
        torch.set_num_threads(threads)
    assert ours < 0.5 < as_failed
    assert as_failed > 2 * ours


def test_without_curves_a_trial_is_told_and_ranked_as_with_them(tmp_path):
    store = create_store(small_study(), tmp_path)
    for trial in (feasible(0, 0.1, 0.05), diverged(1, 5.0, onset_step=30)):
        write_curve(curve_path(store.folder, trial.point), trial.curve)
        tell(store, trial)
    whole, bare = read_trials(store), read_records(store)
    assert [as_told(trial) for trial in bare] == [as_told(trial) for trial in whole]
    assert [trial.record() for trial in bare] == [trial.record() for trial in whole]
    assert sum(len(trial.curve.loss) + len(trial.curve.metrics) for trial in bare) == 0
    assert sum(len(trial.curve.loss) for trial in whole) == STEPS + 31


def test_a_driver_keeps_no_curve_in_memory(tmp_path):
    store = create_store(small_study(), tmp_path)
    tell(store, feasible(0, 0.1, 0.05))
    write_curve(curve_path(store.folder, point(0, 0.1)), feasible(0, 0.1, 0.05).curve)
    driver = Driver([store], InProcess(), 1, devices=["cpu"], slots=1, threads=1, compiled=None)
    with Progress(driver.finished_trials(), shown=False) as driver.show:
        driver.record(store, feasible(1, 0.2, 0.04))
    (kept,) = driver.trials
    assert [trial.best_value for trial in kept.values()] == [0.05, 0.04]
    assert [(len(t.curve.loss), t.curve.metrics, t.curve.total_steps) for t in kept.values()] == [
        (0, {}, STEPS)
    ] * 2


def test_results_in_a_folder_that_happens_to_be_named_steps_have_their_database_with_them(tmp_path):
    """Only the steps of a diagnosis share the database of its study."""
    store = create_store(small_study(), tmp_path / "steps")
    assert (store.folder / "study.db").is_file()
    assert not (tmp_path / "study.db").exists()
