"""A study of optimizers of torch from its file to its report, tables and notes."""

import csv
import json
import re

import pytest
from examples import WORKLOAD

from tunewright.search.cli import main

STUDY = """
workload = "line:make"
objective = "val_loss"
max_train_steps = 40
batch_sizes = [4]
trials = 12
[space]
warmup_steps = 0
base_lr = { low = 1e-3, high = 1.0, log = true }
[space.optimizer.rmsprop]
[space.optimizer."torch.optim.AdamW"]
amsgrad = [true, false]
beta2 = { low = 0.9, high = 0.99 }
[space.optimizer."own_optimizers:Signs"]
kind = ["sign", "other"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("of_torch")
    (place / "line.py").write_text(WORKLOAD)
    (place / "s.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert main(["check", "s.toml"]) == 0
        assert main(["run", "s.toml", "--in-process", "--results", "results"]) == 0
    return place / "results" / "s"


def rows(folder):
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_column_for_each_setting(folder):
    found = rows(folder)
    assert "crashed" not in {row["verdict"] for row in found}
    of = {row["optimizer"]: row for row in found}
    assert of.keys() == {"rmsprop", "torch.optim.AdamW", "own_optimizers:Signs"}
    assert of["torch.optim.AdamW"]["amsgrad"] in ("True", "False")
    assert 0.9 <= float(of["torch.optim.AdamW"]["beta2"]) <= 0.99
    assert of["own_optimizers:Signs"]["kind"] in ("sign", "other")
    assert of["rmsprop"]["amsgrad"] == of["rmsprop"]["kind"] == ""


def test_the_environment_says_why_nothing_was_stacked(folder):
    engines = json.loads((folder / "environment.json").read_text())["engines"]
    (engine,) = engines["4"].values()
    assert not engine["stacked"]
    assert "is an optimizer of torch, which updates one model at a time" in engine["reason"]


def test_the_report_has_an_axis_plot_of_each_and_the_code_of_the_best(folder):
    text = (folder / "report.html").read_text()
    for axis in ("base_lr", "optimizer", "amsgrad", "beta2", "kind"):
        assert f'id="axis_{axis}"' in text
    block = text[text.index('<section id="in-a-script-of-your-own"') :]
    codes = re.findall(r"<code>(.*?)</code>", block[: block.index("</section>")])
    assert any(code.startswith("torch.optim.RMSprop(params, lr=0.") for code in codes)
    assert any(code.startswith("optimizer.state.update(") for code in codes)
    assert any(re.match(r"torch\.optim\.AdamW\(.*betas=\(0\.9, 0\.9", code) for code in codes)
    assert any(code.startswith("own_optimizers.Signs(params, lr=0.") for code in codes)


def test_the_same_command_trains_nothing_again(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent.parent)
    before = rows(folder)
    assert main(["run", "s.toml", "--in-process", "--results", "results"]) == 0
    assert rows(folder) == before


def test_a_setting_that_the_class_refuses_stops_the_run_before_its_first_trial(
    folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder.parent.parent)
    path = folder.parent.parent / "refused.toml"
    path.write_text(STUDY.replace("beta2 = { low = 0.9, high = 0.99 }", "beta2 = 1.5"))
    assert main(["run", "refused.toml", "--in-process", "--results", "results"]) == 2
    error = capsys.readouterr().err
    assert "Invalid beta parameter at index 1: 1.5" in error
    assert "Traceback" not in error
    assert not (folder.parent / "refused").exists()
