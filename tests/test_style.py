"""Readers read decisions: no statement holds more than a few of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "search").rglob("*.py"), *(ROOT / "models").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
STORE = ROOT / "search" / "store"
OUTSIDE = [path for path in FILES if STORE not in path.parents]
MOST = 3  # generators, filters and conditional expressions in one statement


def decisions(node: ast.AST) -> int:
    """Generators, their filters and conditional expressions of a statement alone."""
    inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
    filters = len(node.ifs) + 1 if isinstance(node, ast.comprehension) else 0
    return filters + isinstance(node, ast.IfExp) + sum(map(decisions, inner))


def dense(source: str) -> Iterator[int]:
    """The lines at which statements begin that hold too many decisions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and decisions(node) > MOST:
            yield node.lineno


def storages(source: str) -> Iterator[int]:
    """The lines that name optuna.storages, or a private part of Optuna's; some of them twice."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        if any(re.match(r"optuna\.(storages\b|([a-z.]+\.)?_)", name) for name in names):
            yield node.lineno


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_store_names_optuna_storages(path: Path) -> None:
    """A contract that lint-imports cannot hold: it knows packages of others as a whole alone."""
    found = [f"{path}:{line}" for line in storages(path.read_text(encoding="utf-8"))]
    assert not found, "move this into search/store: " + ", ".join(found)


def test_what_names_optuna_storages() -> None:
    for line in (
        "import optuna.storages",
        "from optuna import storages",
        "from optuna.storages._rdb import models",
        "from optuna.study._frozen import FrozenStudy",
        "def f(a: optuna.storages.BaseStorage): pass",
    ):
        assert set(storages(line)) == {1}, line
    for line in ("import optuna", "from optuna.trial import FrozenTrial", "optuna.Study.x._y"):
        assert list(storages(line)) == [], line


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_statement_is_dense(path: Path) -> None:
    found = [f"{path}:{line}" for line in dense(path.read_text(encoding="utf-8"))]
    assert not found, "name the middle of what stands here: " + ", ".join(found)


def test_what_is_counted() -> None:
    assert list(dense("a = [x for y in z if y for x in y]\n")) == []
    assert list(dense("a = [x for y in z if y for x in y if x]\n")) == [1]
    assert list(dense("b = 1\na = c if d else [e if f else g for g in (h for h in i)]\n")) == [2]
    assert list(dense("def f():\n    a = [b for b in c if b]\n    d = [b for b in c if b]\n")) == []
