"""The source of a workload says whether its factory can be called; only doubt needs an import."""

import sys
from pathlib import Path

import pytest
from examples import parse

from tunewright.search.errors import UserError
from tunewright.search.new import STUDIES, TEMPLATE
from tunewright.search.study.study import load_study
from tunewright.search.workload import factory
from tunewright.search.workload.factory import argument_sets, takes_arguments
from tunewright.search.workload.workload import load_workload

METHODS = "".join(f"\n    def {name}(self): ..." for name in factory.METHODS)
LOUD = "import sys\nsys.imported = True\n"  # what must not be run
PLAIN = {
    "a function": ("def make(width, depth=2): ...", {"width": 8}),
    "no arguments": ("def make(): ...", {}),
    "any arguments": ("def make(**rest): ...", {"width": 8, "depth": 2}),
    "keywords alone": ("def make(*, width, depth=2): ...", {"width": 8}),
    "a class": (
        f"class make:\n    def __init__(self, width): ...{METHODS}",
        {"width": 8},
    ),
    "a class that takes nothing": (f"class make:{METHODS}", {}),
    "a class that hands on": ("class make:\n    def __getattr__(self, name): ...", {}),
    "that looks at modules": ("def make(model): return list(model.modules())", {"model": 1}),
    "among others": ("import json\nother = 1\ndef make(): ...\ndef others(make): ...", {}),
    "beside what may be missing": (
        "try:\n    import no_such_package\nexcept ImportError:\n    pass\ndef make(): ...",
        {},
    ),
}
DOUBTFUL = {
    "a generator": "def make(width):\n    yield 1",
    "a class without the methods": "class make:\n    def __init__(self, width): ...",
    "that exits": "import sys\nsys.exit(4)\ndef make(width): ...",
    "that raises": "def make(width): ...\nraise KeyboardInterrupt",
    "a module that is in no package": "import json.no_such\ndef make(width): ...",
    "a decorator": "import functools\n@functools.cache\ndef make(width): ...",
    "a base": "class Base:\n    def __init__(self, width): ...\nclass make(Base): ...",
    "two": "def make(width): ...\ndef make(width): ...",
    "inside an if": "if True:\n    def make(width): ...",
    "a value": "from functools import partial\nmake = partial(dict, depth=2)",
    "bound again": "def make(width): ...\nmake = dict",
    "bound again elsewhere": "def make(width): ...\ndef other():\n    global make",
    "imported": "from builtins import dict as make",
    "a star": "from builtins import *\ndef make(width): ...",
    "modules": "import sys\nsys.modules[__name__].make = dict\ndef make(width): ...",
    "globals": "globals()['make'] = dict\ndef make(width): ...",
    "locals": "def make(width): ...\nlocals()['make'] = 3",
    "eval": "def make(width): ...\neval('(make := 3)')",
    "an exception": "def make(width): ...\ntry:\n    1 / 0\nexcept ValueError as make:\n    pass",
    "a pattern": "def make(width): ...\nmatch 3:\n    case make:\n        pass",
    "a part of a pattern": "def make(width): ...\nmatch [3]:\n    case [int() as make]: ...",
    "a star of a pattern": "def make(width): ...\nmatch [3]:\n    case [_, *make]:\n        pass",
    "a rest of a pattern": "def make(width): ...\nmatch {}:\n    case {'a': 1, **make}: ...",
    "another maker": "class make:\n    def __new__(cls, width):\n        return 1",
}
WRONG = {
    "another name": ("def maker(width): ...", "'{module}' has no 'make'"),
    "an argument too many": (
        "def make(): ...",
        "{module}:make(width=8): got an unexpected keyword argument 'width'",
    ),
    "an argument too few": (
        "def make(width, depth): ...",
        "{module}:make(width=8): missing a required argument: 'depth'",
    ),
    "by position alone": (
        "def make(width, /): ...",
        "{module}:make(width=8): 'width' parameter is positional only, but was passed as a keyword",
    ),
    "a class that takes nothing": (
        "class make:\n    def loss(self, model, batch): ...",
        "{module}:make(width=8): got an unexpected keyword argument 'width'",
    ),
    "no Python": ("def make(width)", "importing '{module}' raised SyntaxError: expected ':'"),
    "no compiled Python": ("return 1\ndef make(width): ...", "SyntaxError: 'return' outside"),
    "a missing package": (
        "import no_such_package.part\ndef make(width): ...",
        "'{module}' needs 'no_such_package', which is not installed",
    ),
    "a missing package to import from": (
        "from no_such_package import part\ndef make(width): ...",
        "'{module}' needs 'no_such_package', which is not installed",
    ),
}


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of a name of its own into the working directory, and returns the name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    name = f"made_{abs(hash(request.node.name))}"

    def write(text: str) -> str:
        Path(f"{name}.py").write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("source", "arguments"), PLAIN.values(), ids=PLAIN)
def test_a_plain_factory_is_seen_and_nothing_is_imported(source, arguments, module):
    name = module(LOUD + source)
    assert takes_arguments(f"{name}:make", arguments)
    assert name not in sys.modules
    assert not hasattr(sys, "imported")


@pytest.mark.parametrize("source", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_factory_that_is_not_plain_is_left_to_the_import(source, module):
    assert not takes_arguments(f"{module(source)}:make", {"width": 8})


@pytest.mark.parametrize(("source", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_seen_and_the_import_says_which(source, message, module):
    name = module(source)
    assert not takes_arguments(f"{name}:make", {"width": 8})
    with pytest.raises(UserError) as raised:
        load_workload(f"{name}:make", {"width": 8})
    assert message.format(module=name) in str(raised.value)


@pytest.mark.parametrize(
    "path", ["no_such_module:make", "json.no_such:make", "sys:make", "json.decoder.x:make"]
)
def test_a_module_that_is_not_there_or_has_no_source_is_left_to_the_import(path):
    assert not takes_arguments(path, {})


def test_a_module_in_a_package_is_found_without_importing_the_package(tmp_path, monkeypatch):
    inner = tmp_path / "my_package" / "inner"
    inner.mkdir(parents=True)
    for package in (inner, inner.parent):
        (package / "__init__.py").write_text('"""Mine."""\nimport json\n__all__ = ["here"]')
    (inner / "here.py").write_text("def make(): ...")
    (tmp_path / "without_init").mkdir()
    (tmp_path / "without_init" / "here.py").write_text("def make(): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert takes_arguments("my_package.inner.here:make", {})
    assert takes_arguments("without_init.here:make", {})
    assert not {"my_package", "without_init"} & set(sys.modules)


@pytest.mark.parametrize("text", ["raise RuntimeError", "print()", "import no_such_package"])
def test_a_package_that_may_fail_when_it_is_imported_is_left_to_the_import(
    tmp_path, monkeypatch, text
):
    (tmp_path / "fails").mkdir()
    (tmp_path / "fails" / "__init__.py").write_text(text)
    (tmp_path / "fails" / "here.py").write_text("def make(): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert not takes_arguments("fails.here:make", {})


SHIPPED = [*sorted(STUDIES.glob("*.toml")), TEMPLATE / "study.toml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_plain(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", sys.path[:])
    study = load_study(path)
    for arguments in argument_sets(study):
        assert takes_arguments(study.workload, arguments)


def test_every_combination_of_arguments_comes_once():
    study = parse(workload_args={"depth": [1, 2], "width": 8}, scientific=["clip_norm"])
    assert list(argument_sets(study)) == [{"depth": 1, "width": 8}, {"depth": 2, "width": 8}]
