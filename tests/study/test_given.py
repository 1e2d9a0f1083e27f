"""Code that a study is given as an object: named by a hash, sent by value."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from examples import GOOD, WORKLOAD

from tunewright.models import digits
from tunewright.search import InProcess, Study, load_study, run_study
from tunewright.search.cli import main
from tunewright.search.errors import UserError
from tunewright.search.store.storage import open_store, read_trials
from tunewright.search.study.given import Given, code_in_text
from tunewright.search.workload.workload import load_workload

KEYS = {
    "name": "given",
    "objective": "val_loss",
    "max_train_steps": 10,
    "batch_sizes": [4],
    "trials": 2,
    "space": {"optimizer": {"sgd": {"base_lr": [0.01, 0.1]}}},
}
QUIET = {"backend": InProcess(), "progress": False}

# what the cells of a notebook define: a class, what it refers to, and sets
SCRIPT = WORKLOAD.replace("- 1)", "- scale)").replace(
    "import torch",
    """
import torch
from tunewright.search.study.given import code_in_text

scale = torch.tensor(1.0)
names = {"a", "b", "c", "d"}

def known(name):
    return name in {"a", "b", "c", "d"}

def listed(name):
    return name in names
""",
)
GIVEN = ("Line", "Line({'a': torch.ones(3)})", "lambda **a: Line(a)", "known")


def in_main(code: str) -> dict:
    """What a script's own names are: none of them can be imported."""
    names = {"__name__": "__main__"}
    exec(code, names)
    return names


def names_in(folder: Path, code: str, seed: str) -> list[str]:
    """How a script in a process of its own names what it gives, and what it is told last."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(code + "".join(f"print(code_in_text({one}))\n" for one in GIVEN))
    found = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


@pytest.mark.slow
def test_the_same_code_has_the_same_name_in_another_process(tmp_path):
    here = names_in(tmp_path / "here", SCRIPT, seed="1")
    assert len(set(here)) == len(GIVEN)
    assert names_in(tmp_path / "there", f"import torch.fx\n\n\n{SCRIPT}", seed="2") == here
    changed = names_in(tmp_path / "changed", SCRIPT.replace("(1.0)", "(2.0)"), seed="1")
    differ = [one != other for one, other in zip(here, changed, strict=True)]
    assert differ == [True, True, True, False]


def test_a_set_of_several_items_is_told(caplog):
    names = in_main(SCRIPT)
    code_in_text(names["known"])
    assert not caplog.records
    code_in_text(names["listed"])
    assert "listed: holds a set" in caplog.text


def test_what_can_be_imported_is_named_by_its_path():
    study = Study(**{**KEYS, "objective": "val_error"}, workload=digits.mlp)
    assert study.workload == "tunewright.models.digits:mlp"
    assert not isinstance(study.workload, Given)


def test_each_load_is_a_new_object_and_leaves_the_class_alone():
    names = in_main(WORKLOAD)
    before = dict(vars(names["Line"]))
    given = code_in_text(names["Line"])
    first, second = given.load("workload"), given.load("workload")
    assert first is not second
    assert first is not names["Line"]
    first.changed = True
    assert not hasattr(second, "changed")
    assert dict(vars(names["Line"])) == before


def test_its_code_says_where_it_stands(tmp_path):
    path = tmp_path / "cell.py"
    names = {"__name__": "__main__"}
    exec(compile("def fail(run):\n    raise RuntimeError('here')\n", str(path), "exec"), names)
    function = code_in_text(names["fail"]).load("train")
    with pytest.raises(RuntimeError) as error:
        function(None)
    assert error.traceback[-1].path == str(path)
    assert error.traceback[-1].lineno == 1


def test_a_class_and_an_object_train_alike(tmp_path):
    names = in_main(WORKLOAD)
    whole = Study(**KEYS, workload=names["make"], workload_args={"depth": 2})
    object = Study(**KEYS | {"name": "object"}, workload=names["Line"]({"depth": 2}))
    values = [
        [trial.best_value for trial in run_study(study, results=tmp_path, **QUIET)]
        for study in (whole, object)
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 2


def test_the_results_can_be_opened_and_only_the_same_code_goes_on(tmp_path):
    study = Study(**KEYS, workload=in_main(WORKLOAD)["Line"]({}))
    trials = run_study(study, results=tmp_path, **QUIET)
    again = Study(**KEYS, workload=in_main("\n\n" + WORKLOAD)["Line"]({}))
    assert run_study(again, results=tmp_path, **QUIET) == trials
    assert read_trials(open_store(tmp_path / "given")) == trials
    other = Study(**KEYS, workload=in_main(WORKLOAD.replace("- 1)", "- 2)"))["Line"]({}))
    with pytest.raises(UserError, match=r"workload: was Line, a Python object, sha256 \w+, is"):
        run_study(other, results=tmp_path, **QUIET)


def test_its_file_alone_cannot_train(tmp_path):
    run_study(Study(**KEYS, workload=in_main(WORKLOAD)["Line"]({})), results=tmp_path, **QUIET)
    study = load_study(tmp_path / "given" / "study.toml", name="given")
    with pytest.raises(UserError, match=r"given: workload: Line is a Python object of a notebook"):
        run_study(study, results=tmp_path, **QUIET)
    again = study.with_(workload=in_main(WORKLOAD)["Line"]({}), trials=4)
    assert len(run_study(again, results=tmp_path, **QUIET)) == 4


def test_its_file_is_checked_and_reported_and_not_run(tmp_path, capsys):
    study = Study(**KEYS, workload=in_main(WORKLOAD)["Line"]({}))
    run_study(study, results=tmp_path, **QUIET)
    folder, file = str(tmp_path / "given"), str(tmp_path / "given" / "study.toml")
    assert main(["check", file]) == main(["report", folder]) == 0
    assert capsys.readouterr().err == ""
    for command in (["run", file], ["check", file, "--time"], ["diagnose", file]):
        assert main(command) == 2
        assert "Line is a Python object of a notebook or script" in capsys.readouterr().err


def test_a_function_that_trains(tmp_path):
    def train(run):
        model = torch.nn.Linear(1, 1)
        optimizer = run.optimizer(model)
        for _ in run.steps([None] * 10):
            loss = (model(torch.ones(1, 1)) - 1).square().mean()
            run.loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.evaluation_due:
                run.report(val_loss=loss)

    study = Study(**KEYS, train=train)
    assert study.train.startswith("train, a Python object")
    assert all(trial.feasible for trial in run_study(study, results=tmp_path, **QUIET))


def test_what_a_script_remembers_is_seen_and_keeps_trials_apart(tmp_path):
    """Else a stack would share what each training counts for itself."""
    counting = WORKLOAD.replace("import torch", "import torch\ncalls = 0").replace(
        "        return (model(batch) - 1)",
        "        global calls\n        calls += 1\n        return (model(batch) - 1)",
    )
    reasons = {}
    for name, code in {"plain": WORKLOAD, "counting": counting}.items():
        study = Study(**KEYS | {"name": name}, workload=in_main(code)["Line"]({}))
        run_study(study, results=tmp_path, **QUIET)
        (engine,) = json.loads((tmp_path / name / "environment.json").read_text())[
            "engines"
        ].values()
        reasons[name] = engine["{}"]["reason"]
    assert "Python" in reasons["counting"]
    assert reasons["plain"] != reasons["counting"]


@pytest.mark.slow
def test_workers_train_what_cannot_be_imported(tmp_path):
    keys = KEYS | {"trials": 4, "workload": in_main(WORKLOAD)["Line"]({})}
    found = run_study(Study(**keys), results=tmp_path, workers=2, progress=False)
    here = run_study(Study(**keys | {"name": "here"}), results=tmp_path, **QUIET)
    assert [trial.curve for trial in found] == [trial.curve for trial in here]


class Holder:
    def __init__(self):
        self.parts = {"lock": [threading.Lock()]}


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (Holder, r"Holder\.parts\['lock'\]\[0\] \(lock\)"),
        (lambda lock=LOCK: lambda: lock, r"<lambda>, which uses lock \(lock\)"),
        (lambda: type("Held", (), {"lock": LOCK}), r"Held\.lock \(lock\)"),
        (lambda: type("Held", (), {"use": lambda self: LOCK})(), r"Held\.use, which uses LOCK"),
    ],
)
def test_what_cannot_be_pickled_is_named(make, part):
    with pytest.raises(UserError, match=f"given: workload: cannot be sent to workers: {part}"):
        Study(**KEYS, workload=make())


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_what_is_no_code_is_refused(value):
    with pytest.raises(UserError, match="workload: must be an import path, a function, a class"):
        Study(**KEYS, workload=value)


@pytest.mark.parametrize("key", ["workload", "train"])
def test_an_object_that_is_neither_is_refused(key, tmp_path):
    study = Study(**KEYS, **{key: Holder.__new__(Holder)})
    with pytest.raises(UserError, match=rf"given: {key}: must be a \w+, or an object with"):
        run_study(study, results=tmp_path, **QUIET)


def test_arguments_need_a_factory():
    given = code_in_text(in_main(WORKLOAD)["Line"]({}))
    with pytest.raises(UserError, match="got an unexpected keyword argument 'depth'"):
        load_workload(given, {"depth": 2})


def test_the_texts_in_files_are_import_paths_or_names():
    assert GOOD["workload"] == code_in_text(GOOD["workload"])
    name = str(code_in_text(in_main(WORKLOAD)["Line"]))
    assert isinstance(code_in_text(name), Given)
    assert not code_in_text(name).payload
