"""Exit status 0 done, 1 the work failed, 2 the user's mistake; one message, no traceback."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples import WORKLOAD
from stored import feasible

from tunewright.search.cli import main
from tunewright.search.playbook import legend
from tunewright.search.store.storage import create_store, tell
from tunewright.search.study.study import load_study

ROOT = Path(__file__).parents[1]
STUDY = str(ROOT / "studies" / "digits_mlp.toml")


def imported_by(*arguments: str) -> set[str]:
    """The modules that a command has imported when it ends with status 0."""
    code = (
        "import sys; from tunewright.search.cli import main\n"
        "try: status = main(sys.argv[1:])\nexcept SystemExit as stopped: status = stopped.code\n"
        "assert status == 0\nprint('', *sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


SLOW = {"torch", "sklearn", "plotly", "optuna_dashboard", "joblib"}  # seconds, or parts of one
OF_RESULTS = {"optuna", "sqlalchemy"}


def test_help_imports_nothing_that_takes_time():
    others = {"numpy", "scipy", "pydantic", "rich"}
    assert imported_by("--help") & (SLOW | OF_RESULTS | others) == set()


def test_check_imports_neither_torch_nor_optuna(tmp_path):
    found = imported_by("check", STUDY, "--results", str(tmp_path))
    assert "tunewright.search.study.study" in found
    assert found & (SLOW | OF_RESULTS | {"scipy.stats", "scipy.ndimage"}) == set()


def test_check_of_a_study_that_has_results_imports_optuna_and_not_torch(tmp_path):
    path = small_study(tmp_path, evaluations=50)
    tell(create_store(load_study(path), tmp_path), feasible(0, 9.9, 0.1))
    found = imported_by("check", path, "--results", str(tmp_path))
    assert found >= OF_RESULTS
    assert found & SLOW == set()


def test_check_prints_the_plan_of_every_group(capsys):
    assert main(["check", STUDY]) == 0
    out = capsys.readouterr().out
    for words in (
        "batch size 32, momentum",
        "batch size 256, adam",
        "warmup_steps {0, 10, 100}",
        "1000",
    ):
        assert words in out


def test_check_tries_the_workload_and_takes_times_only_when_asked(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "tried"
    folder.mkdir()
    (folder / "untried.py").write_text(WORKLOAD)
    path = folder / "untried.toml"
    path.write_text(UNTRIED)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "`tunewright check --time` also tries the workload" in out
    assert "updates per trial" in out
    assert "Time" not in out
    assert "chance_loss" not in out
    assert main(["check", str(path), "--time"]) == 2
    assert "objective: evaluate() returns val_loss; got 'val_los'" in capsys.readouterr().err
    path.write_text(UNTRIED.replace("val_los", "val_loss"))
    assert main(["check", str(path), "--time"]) == 0
    out = capsys.readouterr().out
    assert "Time: one core, no trial stopped early." in out
    assert re.search(r"batch size 8, sgd .* 40 +\d+ s", out)
    assert "workload: states no chance_loss" in out
    assert "check --time" not in out


UNTRIED = """
workload = "untried:make"
objective = "val_los"
max_train_steps = 40
batch_sizes = [8]
trials = 2
[space.optimizer.sgd]
base_lr = { low = 1e-3, high = 1e-1, log = true }
"""


@pytest.mark.parametrize(
    ("workload", "arguments", "message"),
    [
        ("no.such:mlp", "", "cannot import 'no.such': No module named 'no'"),
        ("tunewright.models.digit:mlp", "", "No module named 'tunewright.models.digit'. Run from"),
        ("tunewright.models.digits:nlp", "", "'tunewright.models.digits' has no 'nlp'"),
        ("tunewright.models.digits:mlp", "wide = 1", "mlp(wide=1): got an unexpected keyword"),
    ],
)
def test_check_names_a_wrong_workload_as_run_does(workload, arguments, message, tmp_path, capsys):
    path = Path(small_study(tmp_path, evaluations=50))
    text = path.read_text().replace("tunewright.models.digits:mlp", workload)
    path.write_text(text.replace("[space", f"[workload_args]\n{arguments}\n[space"))
    results = ["--results", str(tmp_path / "results")]
    assert main(["check", str(path), *results]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: small: workload: ")
    assert message in error
    assert main(["run", str(path), *results]) == 2
    assert capsys.readouterr().err == f"trying the workload of small …\n{error}"


def test_check_warns_of_a_broken_rule_after_the_plan_and_ends_with_0(tmp_path, capsys):
    path = small_study(tmp_path, evaluations=5)
    assert main(["check", path, "--results", str(tmp_path)]) == 0
    plan, warning = capsys.readouterr().out.split("warning: ")
    assert "batch size 32, momentum" in plan
    assert warning == (
        f"{path}: evaluations: 5 are too few: luck decides which is a trial's best, and the "
        f"shape of its curve cannot "
        "be judged; give 10 or more (S10)\n\n"
        "Rules cited (`tunewright rules ID` names the section of the playbook):\n"
        f"{legend(['S10'])}\n"
    )


def test_check_says_each_rule_once_however_many_warnings_cite_it(tmp_path, capsys):
    path = small_study(tmp_path, evaluations=5)
    assert main(["check", path, path, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("(S10)") == 2
    assert out.endswith(f":\n{legend(['S10'])}\n")
    assert out.count(legend(["S10"])) == 1


def test_check_warns_of_what_results_show_unless_they_are_of_another_file(tmp_path, capsys):
    path = small_study(tmp_path, evaluations=50)
    store = create_store(load_study(path), tmp_path)
    for number, (base_lr, value) in enumerate([(0.01, 0.5), (0.1, 0.3), (9.9, 0.1)]):
        tell(store, feasible(number, base_lr, value))
    expected = (
        f"{path}: space.optimizer.momentum.base_lr: batch size 32, momentum: expand base_lr above "
        "10:"
    )
    assert main(["check", path, "--results", str(tmp_path)]) == 0
    assert expected in capsys.readouterr().out
    assert main(["check", path, "--results", str(tmp_path / "elsewhere")]) == 0
    assert "warning" not in capsys.readouterr().out
    small_study(tmp_path, evaluations=25)
    assert main(["check", path, "--results", str(tmp_path)]) == 0
    out, told = capsys.readouterr()
    assert f"note: {tmp_path / 'small'}: holds results of a different study file" in told
    assert "warning" not in out


def small_study(folder: Path, evaluations: int) -> str:
    path = folder / "small.toml"
    path.write_text(
        'workload = "tunewright.models.digits:mlp"\nobjective = "val_error"\nmax_train_steps '
        "= 100\n"
        f"batch_sizes = [32]\ntrials = 4\nevaluations = {evaluations}\n"
        "[space.optimizer.momentum]\nbase_lr = { low = 1e-3, high = 10.0, log = true }\n"
    )
    return str(path)


def test_schema_is_json_with_the_study_keys(capsys):
    assert main(["schema"]) == 0
    assert '"max_train_steps"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no/such.toml"], "no/such.toml: cannot be read: No such file or directory"),
        (["check", "pyproject.toml"], "pyproject.toml: workload: is required"),
        (["report", "studies"], "studies: is not a results folder: it has no study.toml"),
        (["dashboard", "tests"], "tests: is not a results folder"),
        (["run", STUDY, STUDY], "the studies must differ in name"),
        (["run", STUDY, "--results", "/proc/nowhere"], "cannot be written"),
        (["compare", "tests", "--baseline", "b.pt"], "tests: is not a results folder"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["rnu"],
        ["run", STUDY, "--workers", "-1"],
        ["run", STUDY, "--wrokers", "2"],
        ["compare", "r"],
        ["run", STUDY, "--slots", "2", "--compile"],
    ],
)
def test_a_wrong_option_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err
