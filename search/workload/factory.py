"""Whether the source of a workload shows that its factory can be called: nothing of it is imported.

To import a workload is to import torch and often data, which takes seconds. `tunewright check`
reads its source instead, and imports it only where that leaves a doubt (`takes_arguments`).
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from inspect import Parameter, Signature
from typing import Any

from ..source import find_module, make_folder_importable, parameters_of, parsed
from ..study.study import Study

METHODS = ("build_model", "train_batches", "loss", "evaluate")  # of a workload
# Names by which a module may bind others that its source does not show.
DYNAMIC = {"globals", "locals", "vars", "exec", "eval"}


def argument_sets(study: Study) -> Iterator[dict[str, Any]]:
    """Every combination of the workload's arguments in a study."""
    seen = []
    for group in study.groups(study.batch_sizes[0]):
        held = dict(group.scientific)
        arguments = {name: held.get(name, value) for name, value in study.workload_args.items()}
        if arguments not in seen:
            seen.append(arguments)
            yield arguments


def takes_arguments(factory: str, arguments: Mapping[str, Any]) -> bool:
    """Whether `package.module:factory` plainly exists, and takes arguments of these names.

    True only for an undecorated function, or a class without bases, that stands once at the top of
    a module of Python source, where all modules that it and its packages import are installed.
    False may mean a mistake, or a module too clever to tell: to import it says which.
    """
    module_name, _, factory_name = factory.partition(":")
    make_folder_importable()
    tree = parsed(find_module(module_name))
    parents = [name for name in _parents(module_name) if name not in sys.modules]
    packages = [parsed(find_module(name)) for name in parents]
    if tree is None or not all(package and _only_defines(package) for package in packages):
        return False
    imported = itertools.chain(*(_imports(one) for one in [tree, *packages] if one))
    if any(map(_may_end, tree.body)) or not all(map(_is_found, imported)):
        return False
    definition = _definition(tree, factory_name)
    parameters = None if definition is None else _parameters(definition)
    if parameters is None:
        return False
    try:
        Signature(parameters).bind(**arguments)
    except TypeError:
        return False
    return True


def _parents(module_name: str) -> list[str]:
    """The packages that a module is in, outermost first: importing it runs them, too."""
    parts = module_name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _only_defines(tree: ast.Module) -> bool:
    """Whether a package's own module has imports, definitions, constants and texts alone."""
    plain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        is_value = isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)
        calls = any(isinstance(inner, ast.Call) for inner in ast.walk(node)) if is_value else False
        if calls or not (is_value or isinstance(node, plain)):
            return False
    return True


def _may_end(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module raises, or calls something that may exit."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) in ("sys.exit", "os._exit", "exit", "quit")
    return isinstance(node, ast.Raise)


def _imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports by their full names wherever it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


def _is_found(module_name: str) -> bool:
    """Whether a module is there; one such as os.path is no file in a package, but imported."""
    return module_name in sys.modules or find_module(module_name) is not None


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of a name at the top of a module, if nothing else can have the name."""
    if any(_may_bind(node, name) for node in ast.walk(tree)):
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name == name
    ]
    if len(found) != 1 or found[0] not in tree.body or found[0].decorator_list:
        return None
    return None if isinstance(found[0], ast.AsyncFunctionDef) else found[0]


def _may_bind(node: ast.AST, name: str) -> bool:
    """Whether a statement or expression other than a definition may give a name a value."""
    match node:
        case ast.Name(id=own):
            is_target = own == name and not isinstance(node.ctx, ast.Load)
            return is_target or own in DYNAMIC
        case ast.alias(name=own, asname=other):
            return own == "*" or (other or own) == name
        case ast.Attribute(value=ast.Name(id="sys"), attr="modules"):
            return True
        case ast.Global(names=names):
            return name in names
        case ast.ExceptHandler(name=own) | ast.MatchAs(name=own) | ast.MatchStar(name=own):
            return own == name
        case ast.MatchMapping(rest=own):
            return own == name
    return False


def _parameters(definition: ast.FunctionDef | ast.ClassDef) -> list[Parameter] | None:
    """What a function or class takes when it is called; None where its source does not show it."""
    if isinstance(definition, ast.FunctionDef):
        yields = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(definition))
        return None if yields else parameters_of(definition.args)
    if definition.bases or definition.keywords:
        return None
    own = [node for node in definition.body if isinstance(node, ast.FunctionDef)]
    names = {node.name for node in own}
    if "__getattr__" not in names and not names.issuperset(METHODS):
        return None
    makers = [node for node in own if node.name in ("__init__", "__new__")]
    if not makers:
        return []
    if len(makers) > 1 or makers[0].name == "__new__" or makers[0].decorator_list:
        return None
    return parameters_of(makers[0].args)[1:]  # without self
