"""README's second screen, run as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Your own training\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\w+\.\w+)")
FILES = {name[1]: text for _, text in BLOCKS if (name := NAMED.match(text))}
COMMANDS = [text for language, text in BLOCKS if language == "sh"]
PRINTED = [text for language, text in BLOCKS if not language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the section in a folder, after `tunewright run command.toml`."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(command, folder):
    """What a line of a shell prints; it ends with status 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80"}
    found = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"
    return found.stdout


def commands_of(name):
    """The commands that a file's first line, or the section's text, names."""
    return re.findall(r"`(tunewright [^`]*)`", FILES[name].splitlines()[0])


def test_the_section_has_a_file_for_each_way_and_a_command_for_each_study():
    assert set(FILES) == {
        *("train.py", "function.toml", "script.py", "command.toml", "watched.py", "sweep.py")
    }
    assert commands_of("function.toml") == ["tunewright run function.toml"]
    assert commands_of("command.toml") == ["tunewright run command.toml"]


@pytest.mark.slow
def test_a_workload(folder):
    command = "tunewright new my_project && cd my_project && tunewright run study.toml"
    assert command in SECTION
    assert "lr_star" in run(command, folder)


@pytest.mark.slow
def test_a_function(folder):
    (command,) = commands_of("function.toml")
    assert "torch.optim.RAdam" in run(command, folder)
    assert (folder / "results/function/plots").is_dir() or (
        folder / "results/function/report.html"
    ).is_file()


@pytest.mark.slow
def test_a_command_then_its_logs_and_a_sweep(folder):
    (command,) = commands_of("command.toml")
    assert "lr_star" in run(command, folder)
    judge, sweep, report = COMMANDS[0].splitlines()
    printed = run(f"{judge} || test $? -eq 1", folder)  # 1: a training is infeasible
    assert "feasible, no instability" in printed
    assert "40 trials" in run(sweep, folder)
    assert "unstable at the edge" in run(report, folder)
    assert "base_lr" in (folder / "results/mine/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_training_says_what_the_section_shows(folder):
    (shown,) = PRINTED
    printed = run("python watched.py", folder)
    without_numbers = re.compile(r"[\d.]+")
    for line in shown.splitlines():
        assert without_numbers.sub("#", line.strip()) in without_numbers.sub("#", printed)
    assert (folder / "runs/a/report.html").is_file()
