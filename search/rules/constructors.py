"""Optimizers of torch by import path: what their constructors take, read without importing them.

A study names them as "torch.optim.AdamW", "my_project.opt.Lion" or "my_project.opt:Lion", and their
settings as their constructors' arguments. Of an argument that is a pair, or longer, each member is
a setting of its own, named by the singular and its place: `betas` is set by `beta1` and `beta2`,
`etas` by `eta1` and `eta2`; `eps`, where it is a pair, by `eps1` and `eps2`. The learning rate is
`base_lr`, never `lr`.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal

from ..source import UNREAD, find_module, parameters_of, parsed
from .hyperparameters import is_number

# of a setting's value; "any" where neither default nor annotation says
Kind = Literal["float", "int", "number", "bool", "text", "any"]
IN_WORDS: Mapping[Kind, str] = {
    "float": "a number",
    "int": "an integer",
    "number": "a number",
    "bool": "true or false",
    "text": "a text",
    "any": "a number, a text, true or false",
}
# arguments that are no settings, and what says them instead
NO_SETTINGS = {"lr": "the learning rate is base_lr", "params": "they are the model's"}
BASE = ("torch.optim.optimizer", "Optimizer")
SPARSE = ("torch.optim.sparse_adam", "SparseAdam")
MOST_IMPORTS = 20  # from a name to its class, and from that to its base

NEEDS_CLOSURE = (
    "needs a closure, which computes the loss several times an update: training here computes it "
    "once"
)
SPARSE_ONLY = "is for sparse gradients alone, and training here makes dense ones"


def is_import_path(name: str) -> bool:
    """Whether a name of an optimizer is that of a class somewhere, and none of a table's."""
    return "." in name or ":" in name


def module_and_class(path: str) -> tuple[str, str]:
    """The two parts of an import path; the second is empty if it is none."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    is_path = all(part.isidentifier() for part in (*module.split("."), name))
    return (module, name) if is_path else (path, "")


@dataclass(frozen=True)
class Setting:
    """A setting of an optimizer: an argument of its constructor, or a member of one.

    place    the position of a member; None: the argument itself
    default  of the whole argument; Parameter.empty: it has none
    """

    argument: str
    kind: Kind
    place: int | None
    default: Any

    def accepts(self, value: Any) -> bool:
        """Whether a value is of its kind."""
        match self.kind:
            case "float" | "number":
                return is_number(value)
            case "int":
                return is_number(value) and value == int(value)
            case "bool":
                return isinstance(value, bool)
            case "text":
                return isinstance(value, str)
        return isinstance(value, bool | str) or is_number(value)

    def convert(self, value: Any) -> Any:
        """A value of a study file as a Point holds it."""
        if self.kind in ("float", "int") and is_number(value):
            return float(value) if self.kind == "float" else round(value)
        return value


@dataclass(frozen=True)
class Constructor:
    """What an optimizer of torch takes.

    settings  by name, in the order of its arguments
    open      whether it takes arguments of any name besides (**kwargs)
    refusal   why it cannot train here, in words; empty if it can
    """

    settings: Mapping[str, Setting]
    open: bool = False
    refusal: str = ""

    def faults(self, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is wrong with settings, as (name, sentence). Values may be several, in a tuple."""
        known = ", ".join(self.settings) or "none"
        for name, values in given.items():
            if name in NO_SETTINGS:
                yield name, f"is no setting: {NO_SETTINGS[name]}"
                continue
            setting = self.settings.get(name)
            if setting is None:
                if not self.open:
                    yield name, f"is no argument of it; known are {known}"
                continue
            for value in values if isinstance(values, tuple) else (values,):
                if not setting.accepts(value):
                    yield name, f"must be {IN_WORDS[setting.kind]}, got {value!r}"
                    break

    def missing(self, given: Iterable[str]) -> list[str]:
        """Settings without a default that are not given."""
        given = set(given)
        return [
            name
            for name, setting in self.settings.items()
            if setting.default is Parameter.empty and name not in given
        ]

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as keyword arguments: members put together with the defaults of the others."""
        found: dict[str, Any] = {}
        for name, value in given.items():
            setting = self.settings.get(name)
            if setting is None or setting.place is None:
                found[name] = value
                continue
            members = list(found.get(setting.argument, setting.default))
            members[setting.place] = value
            found[setting.argument] = tuple(members)
        return found

    @property
    def defaults(self) -> dict[str, float]:
        """The defaults of the settings that are numbers."""
        found = {}
        for name, setting in self.settings.items():
            whole = setting.place is None
            value = setting.default if whole else setting.default[setting.place or 0]
            if is_number(value):
                found[name] = setting.convert(value)
        return found


def constructor_of(parameters: Iterable[Parameter], refusal: str = "") -> Constructor:
    """A constructor by its parameters, self left out."""
    settings: dict[str, Setting] = {}
    is_open = False
    for one in parameters:
        if one.kind is Parameter.VAR_KEYWORD:
            is_open = True
        if one.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) or one.name in NO_SETTINGS:
            continue
        annotation = "" if one.annotation is Parameter.empty else str(one.annotation)
        if not isinstance(one.default, tuple):
            kind = _kind(one.default, annotation)
            settings[one.name] = Setting(one.name, kind, None, one.default)
            continue
        singular = one.name if one.name == "eps" else one.name.removesuffix("s")
        for place, member in enumerate(one.default):
            kind = _kind(member, annotation)
            settings[f"{singular}{place + 1}"] = Setting(one.name, kind, place, one.default)
    return Constructor(settings, is_open, refusal)


def _kind(default: object, annotation: str) -> Kind:
    """The kind of a setting, from its default and its annotation."""
    words = re.findall(r"\w+", annotation)
    if isinstance(default, bool) or "bool" in words:
        return "bool"
    if isinstance(default, float) or "float" in words:
        return "float"
    if "int" in words:
        return "int"
    if isinstance(default, int):
        return "number"
    return "text" if isinstance(default, str) or "str" in words else "any"


# --- from source ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Class:
    """A class as its source shows it."""

    module: str
    definition: ast.ClassDef
    names: Mapping[str, str]  # what imports at the top of its module bind, as full names


_KNOWN: dict[str, tuple[dict[str, int], Constructor | None]] = {}


def read_constructor(path: str) -> Constructor | None:
    """What the source of an optimizer shows of its constructor; None where it leaves a doubt.

    Not None only for a class of Python source that plainly derives from torch.optim.Optimizer: to
    import any other says what it is. A source is read again when it has changed.
    """
    if path in _KNOWN:
        stamps, found = _KNOWN[path]
        if all(_stamp(file) == stamp for file, stamp in stamps.items()):
            return found
    files: set[str] = set()
    found = _read(path, files)
    _KNOWN[path] = {file: _stamp(file) for file in files}, found
    return found


def _stamp(file: str) -> int:
    return os.stat(file).st_mtime_ns if os.path.exists(file) else 0


def _read(path: str, files: set[str]) -> Constructor | None:
    chain = _chain(*module_and_class(path), files)
    if chain is None:
        return None
    definitions = [one.definition for one in chain]
    maker, step = _method(definitions, "__init__"), _method(definitions, "step")
    if maker is None or maker.decorator_list:
        return None
    parameters = parameters_of(maker.args)[1:]
    if any(one.default is UNREAD and "tuple" in str(one.annotation).lower() for one in parameters):
        return None  # of how many members, its source does not show
    refusal = ""
    if any((one.module, one.definition.name) == SPARSE for one in chain):
        refusal = SPARSE_ONLY
    elif step is not None and any(
        one.default is Parameter.empty and one.kind is Parameter.POSITIONAL_OR_KEYWORD
        for one in parameters_of(step.args)[1:]
    ):
        refusal = NEEDS_CLOSURE
    return constructor_of(parameters, refusal)


def _method(definitions: Iterable[ast.ClassDef], name: str) -> ast.FunctionDef | None:
    """The first method of a name, of a class and its bases in turn."""
    for definition in definitions:
        for node in definition.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
    return None


def _chain(module: str, name: str, files: set[str]) -> list[_Class] | None:
    """A class and its bases up to torch's Optimizer, which is left out; None if one is in doubt."""
    chain: list[_Class] = []
    while name:
        found = _find(module, name, files)
        if found is None or len(chain) > MOST_IMPORTS:
            return None
        if (found.module, found.definition.name) == BASE:
            return chain or None
        chain.append(found)
        if len(found.definition.bases) != 1 or found.definition.keywords:
            return None
        base = ast.unparse(found.definition.bases[0])
        first, _, rest = base.partition(".")
        if first in found.names:
            full = ".".join(filter(None, [found.names[first], rest]))
        else:
            full = f"{found.module}.{base}"
        module, _, name = full.rpartition(".")
    return None


def _find(module: str, name: str, files: set[str]) -> _Class | None:
    """The class that a module has under a name, its own or imported from where it stands."""
    for _ in range(MOST_IMPORTS):
        spec = find_module(module)
        tree = parsed(spec)
        if spec is None or tree is None:
            return None
        if spec.origin:
            files.add(spec.origin)
        package = module if spec.submodule_search_locations else module.rpartition(".")[0]
        names = dict(_imported_names(tree, package))
        own = [node for node in ast.walk(tree) if _defines(node, name)]
        if own:
            first = own[0]
            if not isinstance(first, ast.ClassDef) or first not in tree.body or len(own) > 1:
                return None
            is_plain = not first.decorator_list and name not in names
            return _Class(module, first, names) if is_plain else None
        module, _, name = names.get(name, "").rpartition(".")
        if not module:
            return None
    return None


def _defines(node: ast.AST, name: str) -> bool:
    """Whether a statement or expression gives a name a value, imports apart."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name == name
    return isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)


def _imported_names(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """What the imports at the top of a module bind, each with its full name."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                full = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or full, full
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            place = ".".join(parents) if node.level else ""
            full = ".".join(filter(None, [place, node.module]))
            for alias in node.names:
                yield alias.asname or alias.name, f"{full}.{alias.name}"
