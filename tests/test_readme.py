"""What README and docs/ show, run as it is written: files, commands, more than one machine."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import clustered
import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"# (\w+\.\w+)")


def blocks_of(page):
    """Languages and texts of what a page shows as code, indented or not."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [(language, dedent(block)) for _, language, block in found]


def files_of(page):
    """The files that a page shows, by the names in their first lines."""
    return {name[1]: text for _, text in blocks_of(page) if (name := NAMED.match(text))}


SECTION = (ROOT / "docs" / "your-own-training.md").read_text(encoding="utf-8")
BLOCKS, FILES = blocks_of("docs/your-own-training.md"), files_of("docs/your-own-training.md")
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
@pytest.mark.apart
def test_a_workload(folder):
    command = "tunewright new my_project && cd my_project && tunewright run study.toml"
    assert command in SECTION
    assert "lr_star" in run(command, folder)


@pytest.mark.slow
@pytest.mark.apart
def test_a_function(folder):
    (command,) = commands_of("function.toml")
    assert "torch.optim.RAdam" in run(command, folder)
    assert (folder / "runs/function/plots").is_dir() or (
        folder / "runs/function/report.html"
    ).is_file()


@pytest.mark.slow
@pytest.mark.apart
def test_a_command_then_its_logs_and_a_sweep(folder):
    (command,) = commands_of("command.toml")
    assert "lr_star" in run(command, folder)
    judge, sweep, report = COMMANDS[0].splitlines()
    printed = run(f"{judge} || test $? -eq 1", folder)  # 1: a training is infeasible
    assert "feasible, no instability" in printed
    assert "40 trials" in run(sweep, folder)
    assert "on the edge" in run(report, folder)
    assert "base_lr" in (folder / "runs/mine/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.apart
def test_one_training_says_what_the_section_shows(folder):
    (shown,) = PRINTED
    printed = run("python watched.py", folder)
    without_numbers = re.compile(r"[\d.]+")
    for line in shown.splitlines():
        assert without_numbers.sub("#", line.strip()) in without_numbers.sub("#", printed)
    assert (folder / "runs/a/report.html").is_file()


# --- a model of one's own, and what it becomes ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.apart
def test_readmes_model_and_its_study(tmp_path):
    files = files_of("README.md")
    assert set(files) == {"workload.py", "mine.toml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (command,) = re.findall(r"`(tunewright [^`]*)`", files["mine.toml"].splitlines()[0])
    assert "lr_star" in run(command, tmp_path)


# --- more than one machine ------------------------------------------------------------------------

RECIPES = blocks_of("docs/machines.md")
BY_HAND, TABLE, ON_SLURM, ON_DASK_OR_RAY = [text for _, text in RECIPES]
STUDY = """
workload = "tunewright.models.digits:mlp"
objective = "val_loss"
max_train_steps = 60
batch_sizes = [64]
trials = 6
[space.optimizer.adam]
base_lr = { low = 1e-5, high = 1.0, log = true }
"""
# hosts are folders, and what is not said on the command line does not get there
SSH = """
import os, sys
host, *words = sys.argv[1:]
os.chdir(os.path.join(os.environ["HOSTS"], host))
environment = {name: os.environ[name] for name in os.environ if not name.startswith("TUNEWRIGHT")}
os.execvpe("sh", ["sh", "-c", " ".join(words)], environment)
"""
SCP = """
import os, shutil, sys
_, source, target = sys.argv
host, _, place = target.partition(":")
shutil.copy(source, os.path.join(os.environ["HOSTS"], host, place))
"""


@pytest.fixture
def hosts(tmp_path):
    """A project on node1, with folders in place of hosts, and the environment for a shell there."""
    for host in ("node1", "node2"):
        (tmp_path / host / "project").mkdir(parents=True)
    project = tmp_path / "node1" / "project"
    (project / "study.toml").write_text(STUDY)
    found = clustered.programs(tmp_path / "bin", ssh=SSH, scp=SCP)
    return project, {**clustered.QUIET, **found, "HOSTS": str(tmp_path)}


def run_recipe(text, hosts, **environ):
    """Run lines in a shell with a free port and this machine for node1, and end what they leave."""
    project, own = hosts
    for port in sorted(set(re.findall(r"\b87\d\d\b", text))):
        with socket.create_server(("127.0.0.1", 0)) as free:
            text = text.replace(port, str(free.getsockname()[1]))
    process = subprocess.Popen(
        ["bash", "-c", text.replace("node1:", "127.0.0.1:")],
        cwd=project,
        env={**os.environ, **own, **environ},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.wait(150) == 0
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGTERM)
    with (project / "runs" / "study" / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_a_recipe_has_at_most_six_lines():
    for recipe in (BY_HAND, TABLE + ON_SLURM, ON_DASK_OR_RAY):
        assert len(recipe.splitlines()) <= 6


@pytest.mark.slow
@pytest.mark.apart
def test_two_workstations(hosts):
    run_recipe(f"set -e\n{BY_HAND}wait $!", hosts)  # the worker ends with 0, too


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
def test_slurm(hosts, tmp_path):
    project, own = hosts
    (project / "cluster.toml").write_text(TABLE)
    own.update(clustered.like_slurm(tmp_path / "slurm"))
    run_recipe(ON_SLURM, hosts)


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")
def test_dask(hosts):
    on_dask = "".join(ON_DASK_OR_RAY.splitlines(keepends=True)[:-1])
    assert "--backend dask:" in on_dask
    run_recipe(on_dask, hosts)


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray(hosts):
    on_ray = ON_DASK_OR_RAY.splitlines()[-1]
    assert "--backend ray:auto" in on_ray
    with clustered.ray() as address:
        run_recipe(on_ray, hosts, RAY_ADDRESS=address)
