"""Python modules by name: imported, or only read, where an import would take seconds."""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError, describe_error
from .signals import STOPS

UNREAD = object()  # a default that is no literal


def make_folder_importable() -> None:
    """Let modules of the working directory be imported, as those of a script's folder are."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def import_module(module_name: str, place: str) -> ModuleType:
    """Import a module; the working directory is importable.

    Raises UserError, which begins with `place`, if it cannot be imported, whatever it raises.
    """
    make_folder_importable()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{place}: {module_name!r} needs {error.name!r}, which is not installed"
            ) from error
        raise UserError(
            f"{place}: cannot import {module_name!r}: {error}. Run from the folder that contains "
            "it, or install it."
        ) from error
    except STOPS:
        raise
    except BaseException as error:  # sys.exit(), too
        raise UserError(
            f"{place}: importing {module_name!r} raised {describe_error(error)}"
        ) from error


def find_module(module_name: str) -> ModuleSpec | None:
    """Where a module is, of whose parent packages none is imported; None if it is not found."""
    spec: ModuleSpec | None = None
    name = ""
    for part in module_name.split("."):
        if name and (spec is None or spec.submodule_search_locations is None):
            return None  # no package
        places = spec.submodule_search_locations if spec else None
        name = f"{name}.{part}" if name else part
        spec = _spec(name, places)
    return spec


def _spec(name: str, places: Sequence[str] | None) -> ModuleSpec | None:
    """What Python's own finders say of a module.

    Also None if the finder would have to import the parent package.
    """
    for finder in sys.meta_path:
        with suppress(Exception):  # a KeyError of PathFinder, or whatever a foreign finder raises
            if spec := finder.find_spec(name, places):
                return spec
    return None


def parsed(spec: ModuleSpec | None) -> ast.Module | None:
    """The syntax tree of a module; None if it has no source, or Python cannot compile that."""
    if spec is not None and spec.origin is None and spec.submodule_search_locations:
        return ast.Module([], [])  # a folder without __init__.py: importing it runs nothing
    if spec is None or not spec.has_location or not spec.origin:
        return None
    if not spec.origin.endswith(tuple(SOURCE_SUFFIXES)):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said when it is imported
            tree = ast.parse(Path(spec.origin).read_bytes(), spec.origin)
            compile(tree, spec.origin, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree


def parameters_of(own: ast.arguments) -> list[Parameter]:
    """The parameters of a signature.

    A default is its value if it is a literal, and otherwise UNREAD; an annotation is a text.
    """
    positional = [
        *((one, Parameter.POSITIONAL_ONLY) for one in own.posonlyargs),
        *((one, Parameter.POSITIONAL_OR_KEYWORD) for one in own.args),
    ]
    defaults = [None] * (len(positional) - len(own.defaults)) + own.defaults
    parameters = [
        _parameter(one, kind, default)
        for (one, kind), default in zip(positional, defaults, strict=True)
    ]
    if own.vararg:
        parameters.append(Parameter(own.vararg.arg, Parameter.VAR_POSITIONAL))
    for one, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
        parameters.append(_parameter(one, Parameter.KEYWORD_ONLY, default))
    if own.kwarg:
        parameters.append(Parameter(own.kwarg.arg, Parameter.VAR_KEYWORD))
    return parameters


def _parameter(one: ast.arg, kind: Any, default: ast.expr | None) -> Parameter:
    annotation = ast.unparse(one.annotation) if one.annotation else Parameter.empty
    value = Parameter.empty if default is None else _literal(default)
    return Parameter(one.arg, kind, default=value, annotation=annotation)


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNREAD
