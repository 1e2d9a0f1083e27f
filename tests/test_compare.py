"""Both sides are rerun on the same fresh seeds, once, and the checkpoint is never trusted
blindly.
"""

import csv
import json
import math
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_script import save, train
from counted import Reads
from examples import FRAGILE

from tunewright.models.digits import mlp
from tunewright.search.cli import main
from tunewright.search.compare import baseline_of_point, baseline_of_study, candidates, compare
from tunewright.search.errors import UserError
from tunewright.search.pool.in_process import InProcess
from tunewright.search.run import run_study
from tunewright.search.store.results import Results, read_comparison
from tunewright.search.store.storage import exclusive, open_store, read_trials
from tunewright.search.study.study import load_study, parse_study

QUIET = {"backend": InProcess(), "slots": 10, "progress": False}
STUDY = """
workload = "tunewright.models.digits:mlp"
objective = "val_loss"
max_train_steps = 100
batch_sizes = {sizes}
sampler = "grid"
evaluations = 10
prepend_warmup = true
[space]
warmup_steps = {warmup}
[space.optimizer.momentum]
base_lr = {rates}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a study in which base_lr 0.03 is far better than 0.0003, and 1000 diverges; a
    baseline beside it.
    """
    top = tmp_path_factory.mktemp("results")
    (top / "found.toml").write_text(
        STUDY.format(sizes=[32], warmup=[10], rates=[0.0003, 0.03, 1000.0])
    )
    run_study(load_study(top / "found.toml"), results=top, **QUIET)
    save(train(epochs=1, lr=0.0003, seed=0), top / "baseline.pt")
    return top


@pytest.fixture(scope="module")
def paired(folder):
    results = Results.read(open_store(folder / "found"))
    return compare(
        results, folder / "baseline.pt", baseline_of_point(results, "0"), seeds=6, **QUIET
    )


def test_a_clear_gain_is_adopted_with_the_tests_split_looked_at_for_the_final_pair(folder, paired):
    assert paired.decision == "adopt"
    (one,) = paired.candidates
    assert one.side.point.base_lr == 0.03
    assert (one.evidence.p_better, one.evidence.better_fraction) == (1 / 64, 1.0)
    assert paired.baseline.point.base_lr == 0.0003
    assert paired.test["candidate"]["test_loss"] < paired.test["baseline"]["test_loss"]
    assert paired.checkpoint.value == pytest.approx(
        float(mlp().evaluate(train(1, 0.0003, 0))["val_loss"])
    )


def test_paths_and_studies_are_compared_as_results_are(folder, paired):
    """All runs are there already: nothing is trained again."""
    study, checkpoint = load_study(folder / "found.toml"), folder / "baseline.pt"
    for candidate in (str(folder / "found"), study, folder / "found.toml"):
        for baseline in (0, "32:0"):
            again = compare(candidate, str(checkpoint), baseline, 6, str(folder), **QUIET)
            assert again == replace(paired, checkpoint=again.checkpoint)


def test_the_sides_have_the_same_seeds_none_of_which_the_search_saw(folder, paired):
    assert paired.first_seed == 1
    reruns = sorted((folder / "found" / "comparison").iterdir())
    seeds = {
        path.name: [trial.point.seed for trial in read_trials(open_store(path))] for path in reruns
    }
    assert all(own == list(range(1, 7)) for own in seeds.values())
    assert len(seeds) == 2
    values = {
        path.name: [trial.best_value for trial in read_trials(open_store(path))] for path in reruns
    }
    assert sorted(values.values()) == sorted(
        [list(paired.baseline.values), list(paired.candidates[0].side.values)]
    )


def test_the_file_holds_the_whole_comparison(folder, paired):
    assert json.loads((folder / "found" / "comparison.json").read_bytes())["decision"] == "adopt"
    assert read_comparison(folder / "found") == paired


def test_the_baseline_is_in_the_results_once_and_no_run_counts_it(folder, paired):
    def rows():
        with (folder / "found" / "trials.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def told():
        return open_store(folder / "found").optuna_studies[32].trials

    first, *rest = rows()
    assert (first["number"], first["base_lr"]) == ("baseline", "0.0003")
    assert float(first["best_value"]) == paired.checkpoint.value
    assert all(
        float(row["gain"]) == paired.checkpoint.value - float(row["best_value"]) for row in rest[:2]
    )
    assert [trial.user_attrs["verdict"] for trial in told()].count("baseline") == 1
    before = told()
    results = Results.read(open_store(folder / "found"))
    compare(results, folder / "baseline.pt", baseline_of_point(results, "0"), seeds=6, **QUIET)
    run_study(load_study(folder / "found.toml"), results=folder, **QUIET)
    assert told() == before
    assert [row["number"] for row in rows()] == ["baseline", "0", "1", "2"]


def test_once_all_is_trained_everything_is_read_once(folder, paired, monkeypatch, capsys):
    """The three trials of the search, and six seeds of both sides."""
    trained = [folder / "found", *(folder / "found" / "comparison").iterdir()]
    trials = sum(len(read_trials(open_store(path))) for path in trained)
    reads = Reads.counted(monkeypatch)
    words = ["--baseline-point", "0", "--seeds", "6", "--workers", "1", "--slots", "10"]
    baseline = str(folder / "baseline.pt")
    assert main(["compare", str(folder / "found"), "--baseline", baseline, *words]) == 0
    assert "decision: adopt" in capsys.readouterr().out
    assert reads.all_once(trials), reads


def test_while_a_run_is_writing_there_is_nothing_to_compare_yet(folder):
    results = Results.read(open_store(folder / "found"))
    with exclusive(results.store), pytest.raises(UserError, match="another run is writing here"):
        compare(results, folder / "baseline.pt", **QUIET)


def test_more_seeds_train_only_what_is_not_there_yet(folder, paired):
    results = Results.read(open_store(folder / "found"))
    curves = {
        path: path.stat().st_mtime_ns
        for path in (folder / "found" / "comparison").glob("*/curves/*")
    }
    again = compare(
        results, folder / "baseline.pt", baseline_of_point(results, "0"), seeds=7, **QUIET
    )
    assert again.baseline.values[:6] == paired.baseline.values
    assert {path: path.stat().st_mtime_ns for path in curves} == curves
    assert len(list((folder / "found" / "comparison").glob("*/curves/*"))) == len(curves) + 2


def test_a_checkpoint_of_unknown_settings_takes_19_seeds_and_has_no_spread(folder):
    result = compare(Results.read(open_store(folder / "found")), folder / "baseline.pt", **QUIET)
    assert (result.seeds, result.decision) == (19, "adopt")
    assert math.isnan(result.candidates[0].evidence.baseline_spread)
    assert "unknown settings" in result.warnings[0]
    (few,) = compare(
        Results.read(open_store(folder / "found")), folder / "baseline.pt", seeds=19, **QUIET
    ).candidates
    assert few == result.candidates[0]


def test_a_prepended_warmup_is_compared_at_equal_steps_too(folder):
    (folder / "plain.toml").write_text(STUDY.format(sizes=[32], warmup=0, rates=[0.0003]))
    settings = baseline_of_study(folder / "plain.toml", folder)
    result = compare(
        Results.read(open_store(folder / "found")),
        folder / "baseline.pt",
        settings,
        seeds=5,
        **QUIET,
    )
    (one,) = result.candidates
    assert (result.baseline.total_steps, one.side.total_steps) == (100, 110)
    assert 0 < one.equal_steps.gain < one.evidence.gain
    assert any("trains for 100 updates" in warning for warning in result.warnings)
    assert any("the baseline of 1" in warning for warning in result.warnings)


def test_a_baseline_study_gives_its_only_configuration_or_its_best(folder):
    (folder / "plain.toml").write_text(STUDY.format(sizes=[32], warmup=0, rates=[0.0003]))
    assert baseline_of_study(folder / "plain.toml", folder).searched == ()
    for path in (folder / "found.toml", folder / "found" / "study.toml"):
        best = baseline_of_study(path, folder)
        assert (best.point.base_lr, len(best.searched)) == (0.03, 3)
    with pytest.raises(UserError, match="has several configurations and no results"):
        baseline_of_study(folder / "found.toml", folder / "elsewhere")


def test_every_batch_size_has_a_candidate_and_a_point_needs_its_own(tmp_path):
    (tmp_path / "two.toml").write_text(STUDY.format(sizes=[16, 64], warmup=0, rates=[0.001, 0.03]))
    run_study(load_study(tmp_path / "two.toml"), results=tmp_path, **QUIET)
    results = Results.read(open_store(tmp_path / "two"))
    assert [side.point.batch_size for side in candidates(results)] == [16, 64]
    assert baseline_of_point(results, "64:1").point.batch_size == 64
    for text, message in (("1", "write one of 16:1, 64:1"), ("7", "must be"), ("16:x", "must be")):
        with pytest.raises(UserError, match=message):
            baseline_of_point(results, text)


def test_the_baseline_may_not_be_the_candidate_itself(folder):
    results = Results.read(open_store(folder / "found"))
    with pytest.raises(UserError, match="nothing to compare"):
        compare(results, folder / "baseline.pt", baseline_of_point(results, "1"), **QUIET)


def test_a_wrong_checkpoint_is_status_2_before_anything_is_trained(folder, tmp_path, capsys):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    before = files(folder / "found")
    assert main(["compare", str(folder / "found"), "--baseline", str(tmp_path / "other.pt")]) == 2
    err = capsys.readouterr().err
    assert "missing: layers.1.weight" in err
    assert "unexpected: weight" in err
    assert files(folder / "found") == before


def files(folder):
    """All but SQLite's own, which vanish when a connection is collected."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith("study.db-"))


@pytest.mark.parametrize(("better", "status"), [(True, 0), (False, 1)])
def test_require_better_is_the_exit_status(folder, paired, tmp_path, capsys, better, status):
    """A baseline that is worth nothing; then one far better than 100 updates can be."""
    path = tmp_path / "b.safetensors"
    save(train(epochs=0, lr=0.1, seed=0) if better else train(epochs=20, lr=0.05, seed=0), path)
    options = ["--in-process", "--slots", "10", "--require-better"]
    assert main(["compare", str(folder / "found"), "--baseline", str(path), *options]) == status
    out = capsys.readouterr().out
    assert f"decision: {'adopt' if better else 'keep baseline'}" in out
    assert np.isfinite(
        json.loads((folder / "found" / "comparison.json").read_text())["checkpoint"]["value"]
    )


def test_a_recipe_is_trained_in_the_ordinary_way_and_then_compared(tmp_path, capsys):
    recipe = STUDY.format(sizes=[32], warmup=10, rates=0.03)
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "plain.toml").write_text(STUDY.format(sizes=[32], warmup=0, rates=[0.0003]))
    save(train(epochs=1, lr=0.0003, seed=0), tmp_path / "b.pt")
    words = [
        "compare",
        str(tmp_path / "recipe.toml"),
        "--baseline",
        str(tmp_path / "b.pt"),
        "--seeds",
        "5",
    ]
    words += [
        "--baseline-study",
        str(tmp_path / "plain.toml"),
        "--results",
        str(tmp_path / "results"),
    ]
    words += ["--in-process", "--slots", "10"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "decision: adopt" in printed.out
    assert "how many trials found it is not known" in printed.err
    result = read_comparison(tmp_path / "results" / "recipe")
    (one,) = result.candidates
    assert (one.side.point.base_lr, one.side.trials, one.side.space) == (0.03, 1, "one point")
    (trial,) = run_study(
        parse_study(tomllib.loads(recipe), "recipe", "r"), results=tmp_path / "results", **QUIET
    )
    assert trial.point == one.side.point


def test_runs_keep_as_many_checkpoints_as_the_study_and_the_best_run_is_among_them(tmp_path):
    text = "keep_checkpoints = 1" + STUDY.format(sizes=[32], warmup=0, rates=[0.0003, 0.03])
    (tmp_path / "s.toml").write_text(text)
    run_study(load_study(tmp_path / "s.toml"), results=tmp_path, **QUIET)
    save(train(epochs=1, lr=0.0003, seed=0), tmp_path / "b.pt")
    results = Results.read(open_store(tmp_path / "s"))
    for seeds in (7, 5):  # then of fewer seeds, the best of which may be none that was kept
        result = compare(
            results, tmp_path / "b.pt", baseline_of_point(results, "0"), seeds=seeds, **QUIET
        )
        assert result.decision == "adopt"
        assert result.test["candidate"]["test_loss"] < result.test["baseline"]["test_loss"]
    kept = [
        len(list((path / "checkpoints").iterdir()))
        for path in (tmp_path / "s" / "comparison").iterdir()
    ]
    assert kept == [1, 1]


@pytest.mark.parametrize(
    ("sizes", "rates", "more"),
    [
        ([32], [0.01, 0.03], ""),
        ([16, 32], [0.01, 0.03], ""),
        ([32], 0.01, 'trials = 2\nsampler = "halton"'),
    ],
)
def test_what_has_several_configurations_is_no_recipe_and_is_not_trained(
    tmp_path, capsys, sizes, rates, more
):
    text = STUDY.format(sizes=sizes, warmup=0, rates=rates)
    (tmp_path / "r.toml").write_text(text.replace('sampler = "grid"', more or 'sampler = "grid"'))
    save(train(epochs=0, lr=0.1, seed=0), tmp_path / "b.pt")
    words = [
        "compare",
        str(tmp_path / "r.toml"),
        "--baseline",
        str(tmp_path / "b.pt"),
        "--results",
        str(tmp_path / "x"),
    ]
    assert main(words) == 2
    assert "r.toml: must have exactly one configuration per batch size" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_recipe_whose_baseline_does_not_fit_is_not_trained(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(STUDY.format(sizes=[16, 32], warmup=0, rates=0.01))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.pt")
    words = ["compare", str(tmp_path / "r.toml"), "--results", str(tmp_path / "x"), "--baseline"]
    for name, message in (("b.pt", "missing: layers.1.weight"), ("no.pt", "cannot be read")):
        assert main([*words, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_crashed_run_is_status_1_and_the_same_command_tries_it_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fragile", raising=False)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "s.toml").write_text(
        'workload = "fragile:Fragile"\nobjective = "val_loss"\nmax_train_steps = '
        "9\nbatch_sizes = [4]\n"
        "trials = 1\n[space.optimizer.sgd]\nbase_lr = 0.1\n"
    )
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "b.pt")

    def run(*arguments):
        status = main([*arguments, "--in-process", "--slots", "1"])
        return status, *capsys.readouterr()

    assert run("run", "s.toml")[0] == 0
    (tmp_path / "unlucky.toml").write_text("seed = 1\n" + (tmp_path / "s.toml").read_text())
    status, _, err = run("compare", "unlucky.toml", "--baseline", "b.pt")
    assert (status, err) == (2, "error: unlucky: workload: RuntimeError: seed 1 is unlucky\n")
    compared = ("compare", "runs/s", "--baseline", "b.pt", "--seeds", "2")
    status, _, err = run(*compared)
    assert status == 1
    assert "is unlucky" in err
    assert "The same command tries again." in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / "s" / "comparison.json").exists()
    (tmp_path / "mended").touch()
    status, out, err = run(*compared)
    assert status == 0, err
    assert "2 seeds cannot decide" in err
    assert "decision: not enough evidence" in out
