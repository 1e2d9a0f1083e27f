"""What a stranger meets first: the wheel, the command line, a first project, files about this
one.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunewright
from tunewright.search import load_study
from tunewright.search.cli import main
from tunewright.search.new import loops, shipped_studies
from tunewright.search.workload.workload import load_workload

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = ("search", "models", "studies")  # what is installed
FILES = ("pyproject.toml", "README.md", "LICENSE")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*words: object, folder: Path) -> str:
    """What a command prints. It ends with status 0."""
    command = [str(word) for word in words]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


# --- the wheel -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel, and the packages it needs from that of the tests."""

    home: Path

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def tunewright(self) -> Path:
        return self.home / "bin" / "tunewright"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, built from a copy: builds write into their tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree, environment = folder / "tree", Installed(folder / "venv")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, tree / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(
        *pip,
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
        folder=tree,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(environment.home, with_pip=False)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(environment.python, "-c", where, folder=folder).strip())
    # The packages of the tests, without their tunewright: an editable one is found by a .pth file
    # of its own, and those of folders that a .pth file names are not read.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages.pth").write_text("\n".join(packages), encoding="utf-8")
    into = ("--python", environment.python, "install", "--no-deps", "--no-index")
    run(*pip, *into, wheel, folder=folder)
    return environment


@pytest.mark.slow
def test_the_wheel_is_what_is_imported(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import tunewright, tunewright.search, tunewright.models.digits\n"
        "for one in (tunewright, tunewright.search, tunewright.models): print(one.__file__)\n"
        "print(tunewright.__version__)"
    )
    *files, version = run(installed.python, "-c", code, folder=tmp_path).splitlines()
    assert [installed.home in Path(file).parents for file in files] == [True] * 3
    assert version == PROJECT["version"]
    for file in files:
        assert Path(file).with_name("py.typed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tunewright", "tunewright.search"])
def test_both_packages_run_as_modules(installed: Installed, tmp_path: Path, module: str) -> None:
    expected = f"tunewright {PROJECT['version']}\n"
    assert run(installed.python, "-m", module, "--version", folder=tmp_path) == expected
    assert run(sys.executable, "-m", module, "--version", folder=tmp_path) == expected


@pytest.mark.slow
def test_a_new_project_runs_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    run(installed.tunewright, "new", "demo", folder=tmp_path)
    out = run(installed.tunewright, "run", "study.toml", folder=tmp_path / "demo")
    assert re.search(r"64 +→ adam", out)
    assert "report: runs/study/report.html" in out
    trials = (tmp_path / "demo" / "runs" / "study" / "trials.csv").read_text(encoding="utf-8")
    assert len(trials.splitlines()) == 1 + load_study(tmp_path / "demo" / "study.toml").trials
    assert "crashed" not in trials


@pytest.mark.slow
def test_the_wheel_has_all_shipped_studies(installed: Installed, tmp_path: Path) -> None:
    run(installed.tunewright, "new", "demo", "--from", "digits_mlp", folder=tmp_path)
    out = run(installed.tunewright, "check", "digits_mlp.toml", folder=tmp_path / "demo")
    assert "batch size 32, momentum" in out
    code = "from tunewright.search.new import shipped_studies; print(*shipped_studies())"
    assert run(installed.python, "-c", code, folder=tmp_path).split() == shipped_studies()


# --- tunewright new --------------------------------------------------------------------------


def test_new_copies_a_study_that_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setitem(sys.modules, "workload", None)  # put back as it was, at the end
    del sys.modules["workload"]
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my first"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "my first: study.schema.json, study.toml, workload.py",
        "next: cd 'my first' && tunewright run study.toml",
    ]
    assert main(["check", "my first/study.toml"]) == 2  # the working directory has no workload.py
    sys.modules.pop("workload", None)  # the folder of tests of that name, which has none either
    monkeypatch.chdir("my first")
    assert main(["check", "study.toml", "--time"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", shipped_studies())
def test_new_copies_each_shipped_study(name: str, tmp_path: Path) -> None:
    assert main(["new", str(tmp_path / "demo"), "--from", name]) == 0
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        f"{name}.toml",
        "study.schema.json",
    }
    study = load_study(tmp_path / "demo" / f"{name}.toml")
    assert study == load_study(ROOT / "studies" / f"{name}.toml")
    assert load_workload(study.workload, {}) is not None


@pytest.mark.parametrize("kind", loops())
def test_new_starts_from_a_training_loop(kind: str, tmp_path: Path) -> None:
    assert main(["new", str(tmp_path / "demo"), "--from", kind]) == 0
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "study.schema.json",
        "study.toml",
        "train.py",
    }
    study = load_study(tmp_path / "demo" / "study.toml")
    assert study.train == "train:main"
    source = (tmp_path / "demo" / "train.py").read_text(encoding="utf-8")
    assert "def main(run):" in source


def test_a_training_loop_of_ones_own_is_checked_and_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setitem(sys.modules, "train", None)  # put back as it was, at the end
    del sys.modules["train"]
    monkeypatch.chdir(tmp_path)
    assert main(["new", ".", "--from", "function"]) == 0
    assert main(["check", "study.toml", "--time"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_the_shipped_studies_are_those_of_the_folder() -> None:
    assert shipped_studies() == sorted(path.stem for path in (ROOT / "studies").glob("*.toml"))
    assert "digits_mlp" in shipped_studies()


def test_new_fills_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "."]) == 0
    assert (tmp_path / "workload.py").exists()


def test_new_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "study.toml"
    mine.write_text("mine", encoding="utf-8")
    assert main(["new", str(tmp_path)]) == 2
    error = f"{tmp_path}: is not empty, and is left as it is: name a new folder\n"
    assert capsys.readouterr() == ("", f"error: {error}")
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
    assert mine.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "file: is a file: name a new folder\n"),
        ("file/demo", "file/demo: cannot be written: Not a directory\n"),
        (
            "/proc/nowhere/demo",
            "/proc/nowhere/demo: cannot be written: No such file or directory\n",
        ),
    ],
)
def test_new_says_where_it_cannot_write(
    folder: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["new", folder]) == 2
    assert capsys.readouterr() == ("", f"error: {message}")


def test_an_unknown_study_is_an_error_that_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["new", "demo", "--from", "nonsense"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    for name in ("nonsense", "function", "lightning", *shipped_studies()):
        assert name in error


# --- the command line and the library --------------------------------------------------------


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("usage: tunewright")
    assert error == ""


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"tunewright {tunewright.__version__}\n"
    assert tunewright.__version__ == PROJECT["version"]


def test_dir_lists_the_public_names_and_imports_nothing_for_it() -> None:
    code = (
        "import sys, tunewright.search\n"
        "assert dir(tunewright.search) == sorted(tunewright.search.__all__)\n"
        "assert {'load_study', 'run_study', 'Trial'} <= set(dir(tunewright.search))\n"
        "print(sorted({'torch', 'optuna', 'numpy', 'plotly'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", code, folder=ROOT) == "[]\n"


# --- files about the project -----------------------------------------------------------------


def checked() -> list[str]:
    """The commands of `make check`, without the folder of their environment."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    return [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_hooks_run_what_make_check_runs() -> None:
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    hooks = local["hooks"]
    assert [hook["entry"] for hook in hooks] == checked()
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_the_workflow_runs_all_checks() -> None:
    steps = read_yaml(".github/workflows/check.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make check-all"]


def test_the_citation_agrees_with_the_project() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"] == [{"name": "The tunewright authors"}]
    assert {"message", "title", "type"} <= set(citation)


def test_the_license_is_the_one_that_is_named() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
