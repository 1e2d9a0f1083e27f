"""Optimizers by the names that study files have for them, as objects of torch.

`make` is all that a training loop asks, its own or somebody else's: an import path becomes an
instance of that class, a row of RULES a `RuleOptimizer`, whose updates are those of the training
loop here (`search/train/loop.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, formatannotation, signature
from typing import Any, TypeAlias, cast, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam

from ..errors import UserError, describe_error
from ..source import import_module
from .constructors import (
    NEEDS_CLOSURE,
    SPARSE_ONLY,
    Constructor,
    constructor_of,
    is_import_path,
    module_and_class,
)
from .counterparts import call_of
from .matrices import matrices_of
from .optimizers import PARAMETERS, RULES, Columns, Start, acting, counterpart, updates_matrices
from .pieces import pieces_of

Kind: TypeAlias = tuple[torch.device, torch.dtype]  # of states and coefficients

MATRICES = "matrices"  # of a group: whether its parameters with two dimensions are matrices
TRAINED = "trained"  # state of a parameter that holds an average: its own values
VECTORS = "decay_vectors"  # of a group: whether weight decay is of biases and norms, too
SMALL = 2**16  # numbers of a parameter, up to which starting an operation costs as much as doing it


def make(
    name: str,
    params: Iterable[Any],
    settings: Mapping[str, Any],
    lr: float,
    decay_vectors: bool = False,
) -> Optimizer:
    """An optimizer by its name in a study file, with its settings.

    `params` is what every optimizer of torch takes: tensors, named tensors, or groups of them.
    Weight decay of a row of RULES is of parameters with two dimensions or more; with
    `decay_vectors` of all. What an optimizer of torch decays, it knows itself.
    Raises UserError for a name that is neither a row of RULES nor the import path of an optimizer
    that can train here, for a setting that it does not have, and with what its constructor says.
    """
    if name in RULES:
        return RuleOptimizer(params, name, lr, decay_vectors, **settings)
    if not is_import_path(name):
        raise UserError(f"optimizer: must be one of {', '.join(RULES)}, got {name!r}")
    kind: Any = load(name)
    constructor = constructor_of_class(kind)
    if fault := constructor.refusal or _fault(constructor, settings):
        raise UserError(f"optimizer {name}: {fault}")
    given = constructor.arguments(settings)
    rate = {"lr": lr} if constructor.open or "lr" in signature(kind).parameters else {}
    try:
        optimizer: Optimizer = kind(params, **rate, **given)
    except Exception as error:
        call = call_of(".".join(module_and_class(name)), lr, given)
        raise UserError(f"optimizer {name}: {call} raised {describe_error(error)}") from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise UserError(
            f"optimizer {name}: has no lr in its param_groups, which a schedule could set"
        )
    return optimizer


def groups_of(name: str, model: nn.Module, not_matrices: Collection[str] = ()) -> list[Any]:
    """A model's trainable parameters as what `make` takes: for a rule of matrices, as two groups.

    `not_matrices` are the names of parameters that such a rule is to treat as vectors, besides
    embeddings. Raises UserError for a name that the model does not have.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not updates_matrices(name):
        return list(trained.values())
    matrices = matrices_of(model, not_matrices)
    inside = [one for name, one in trained.items() if name in matrices]
    others = [one for name, one in trained.items() if name not in matrices]
    found = [{"params": inside}] if inside else []
    return [*found, {"params": others, MATRICES: False}] if others else found


def _fault(constructor: Constructor, settings: Mapping[str, Any]) -> str:
    """What is wrong with settings, in words; empty if nothing is."""
    faults = [f"{setting} {fault}" for setting, fault in constructor.faults(settings)]
    faults += [f"{setting} is required" for setting in constructor.missing(settings)]
    return "; ".join(faults)


def load(path: str) -> type[Optimizer]:
    """The class of an import path, as "torch.optim.AdamW" or "my_project.opt:Lion".

    Raises UserError if there is none, or it is no optimizer of torch.
    """
    module_name, name = module_and_class(path)
    place = f"optimizer {path}"
    if not name:
        raise UserError(f"{place}: must be package.module.Class or package.module:Class")
    module = import_module(module_name, place)
    kind = getattr(module, name, None)
    if kind is None:
        near = get_close_matches(name, dir(module), n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{place}: {module_name} has no {name}{guess}")
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or kind is Optimizer:
        raise UserError(f"{place}: is no subclass of torch.optim.Optimizer")
    return kind


def constructor_of_class(kind: type[Optimizer]) -> Constructor:
    """What an optimizer's constructor takes, and whether it can train here."""
    step = list(signature(kind.step).parameters.values())[1:]
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in step if one.default is Parameter.empty and one.kind in positional]
    refusal = NEEDS_CLOSURE if needed else ""
    if issubclass(kind, SparseAdam):
        refusal = SPARSE_ONLY
    return constructor_of((_with_text(one) for one in signature(kind).parameters.values()), refusal)


def _with_text(parameter: Parameter) -> Parameter:
    """A parameter whose annotation is a text, as it stands in the source."""
    if parameter.annotation is Parameter.empty:
        return parameter
    return parameter.replace(annotation=formatannotation(parameter.annotation))


class RuleOptimizer(Optimizer):
    """A row of RULES as an optimizer of torch: each update is the row's, parameter by parameter.

    Coefficients are computed in float64 from the group's `lr` of now and the number of its update.
    States and coefficients are float32 at least, whatever the parameters are. A parameter whose
    gradient is None rests, with its state and weight decay, while the updates are counted on: bias
    correction follows the count of the group, `updates`, where torch's own counts for each
    parameter.

    A rule of matrices, as Muon, takes each parameter with two dimensions for one. A group with
    `"matrices": False` has none: embeddings and output layers belong there (`groups_of`).

    Of a rule with an average the parameters are those of training. Call `eval()` before they are
    evaluated or saved, and `train()` before training goes on; of other rules both do nothing.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: str,
        lr: float,
        decay_vectors: bool = False,
        **settings: float,
    ) -> None:
        """Optimize `params` by the row of RULES of this name.

        A group may have a `decay_vectors` of its own, as any setting.

        Raises KeyError for an unknown rule, UserError for settings that it does not have or that
        are not what their rows ask for, and for parameters that have no update rules.
        """
        self.rule, row = rule, RULES[rule]
        if fault := row.fault_of_settings(settings):
            raise UserError(f"optimizer {rule}: {fault}")
        # by the place of its group, made by the next step: which parameters, and their buckets
        self._buckets: dict[int, tuple[tuple[Any, ...], list[_Bucket]]] = {}
        # by what they are of, and their names
        self._columns: dict[tuple[Kind, tuple[str, ...]], tuple[Tensor, Columns]] = {}
        of_decay = {VECTORS: decay_vectors} if row.decays else {}
        # of the average: the sum of its weights so far, and whether the parameters hold it
        average = {"weights": 0.0, "is_evaluating": False} if row.average else {}
        own = {**row.defaults, **settings, **of_decay, "updates": 0, **average}
        super().__init__(params, {"lr": lr, **own})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "_buckets": {}, "_columns": {}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Raises UserError for a parameter that is no tensor of real numbers, and unless what a group
        says of MATRICES and VECTORS is true or false.
        """
        for key in (MATRICES, VECTORS):
            if not isinstance(param_group.get(key, True), bool):
                raise UserError(
                    f"optimizer {self.rule}: {key} of a group must be True or False, got "
                    f"{param_group[key]!r}"
                )
        super().add_param_group(param_group)
        self._buckets = {}
        for parameter in param_group["params"]:
            if not parameter.is_floating_point():
                raise UserError(
                    f"optimizer {self.rule}: has no update for parameters of {parameter.dtype}: "
                    "keep real and imaginary parts as two real parameters (torch.view_as_complex)"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their dtype, where torch's take that of the parameter."""
        super().load_state_dict(state_dict)
        self._buckets = {}
        ours = [p for group in self.param_groups for p in group["params"]]
        saved = [place for group in state_dict["param_groups"] for place in group["params"]]
        for parameter, place in zip(ours, saved, strict=True):
            for name, value in state_dict["state"].get(place, {}).items():
                self.state[parameter][name] = value.detach().to(
                    parameter.device, _wide(parameter), copy=True
                )

    @property
    def holds_average(self) -> bool | None:
        """Whether the parameters hold what is evaluated; None if the rule has no average."""
        if RULES[self.rule].average is None:
            return None
        return all(group["is_evaluating"] for group in self.param_groups)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average that is to be evaluated and saved into the parameters."""
        average = RULES[self.rule].average
        if average is None or self.holds_average:
            return
        for group in self.param_groups:
            group["is_evaluating"] = True
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if average.state in state and TRAINED not in state:
                    state[TRAINED] = parameter.detach().clone()
                    parameter.copy_(state[average.state])

    @torch.no_grad()
    def train(self) -> None:
        """Put the values of training back into the parameters, as they were at `eval()`."""
        if RULES[self.rule].average is None:
            return
        for group in self.param_groups:
            group["is_evaluating"] = False
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if TRAINED in state:
                    parameter.copy_(state.pop(TRAINED))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns the loss of a closure.

        Raises UserError for a gradient that is sparse, and between `eval()` and `train()`.
        """
        if any(group.get("is_evaluating") for group in self.param_groups):
            raise UserError(
                f"optimizer {self.rule}: the parameters hold the average that is evaluated: call "
                "optimizer.train() before the gradients of an update are computed"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, group in enumerate(self.param_groups):
            group["updates"] += 1
            tables = acting(self._tables(group))
            values = torch.from_numpy(np.array(list(tables.values()))[:, :, None])
            columns: dict[Kind, Columns] = {}
            for bucket in self._buckets_of(place):
                if bucket.kind not in columns:
                    columns[bucket.kind] = self._columns_of(bucket.kind, tables, values)
                self._update(bucket, columns[bucket.kind])
        return loss

    def _tables(self, group: dict[str, Any]) -> dict[str, Any]:
        """The coefficients of a group's update, [1] each; its weight enters those of the next."""
        rule, rate = RULES[self.rule], np.array([float(group["lr"])])
        own = {name: group[name] for name in rule.defaults}
        number = np.array([group["updates"]])
        # a state that was saved before there was the choice is of a training that decays all
        vectors = group.get(VECTORS, True)
        tables = rule.tables(own, rate, number, vectors, group.get("weights", 0.0))
        if rule.average:
            group["weights"] += float(rule.average.weight(rate)[0])
        return tables

    def _columns_of(self, kind: Kind, names: Iterable[str], values: Tensor) -> Columns:
        """Coefficients by name, in the tensors that had those of the update before."""
        key = kind, tuple(names)
        if key not in self._columns:
            room = torch.empty_like(values, device=kind[0], dtype=kind[1])
            self._columns[key] = room, dict(zip(names, room.unbind(), strict=True))
        room, columns = self._columns[key]
        room.copy_(values)
        return columns

    def _update(self, bucket: _Bucket, columns: Columns) -> None:
        gradients = [cast(Tensor, one.grad) for one in bucket.parameters]
        if any(gradient.layout != torch.strided for gradient in gradients):
            raise UserError(
                f"optimizer {self.rule}: takes no sparse gradients: make layers with sparse=False"
            )
        theta, gradient = bucket.fetch(gradients)
        for piece in bucket.pieces:
            RULES[self.rule].apply(piece, theta, gradient, bucket.state, columns)
        bucket.put_back(theta)

    def _buckets_of(self, place: int) -> list[_Bucket]:
        """The parameters of a group that have a gradient, in the same buckets while these are the
        same.
        """
        given = [one for one in self.param_groups[place]["params"] if one.grad is not None]
        known, buckets = self._buckets.get(place, ((), []))
        seen = tuple((id(one), one.device, one.dtype) for one in given)
        if seen != known:
            buckets = list(self._fill_buckets(given, self._has_matrices(place)))
            self._buckets[place] = seen, buckets
        return buckets

    def _has_matrices(self, place: int) -> bool:
        """Whether parameters of a group that have two dimensions are updated as matrices."""
        return updates_matrices(self.rule) and bool(self.param_groups[place].get(MATRICES, True))

    def _fill_buckets(self, given: Iterable[Tensor], has_matrices: bool) -> Iterator[_Bucket]:
        """Small parameters of a kind together, which takes fewer operations; others alone.

        Others are large ones and matrices.
        """
        small: dict[Kind, list[Tensor]] = {}
        for parameter in given:
            kind = (parameter.device, _wide(parameter))
            is_matrix = has_matrices and parameter.ndim == 2
            if parameter.numel() <= SMALL and not is_matrix:
                small.setdefault(kind, []).append(parameter)
            else:
                yield self._bucket([parameter], kind, is_matrix)
        for kind, parameters in small.items():
            yield self._bucket(parameters, kind)

    def _bucket(self, parameters: list[Tensor], kind: Kind, is_matrix: bool = False) -> _Bucket:
        """Parameters in a row, whose states become parts of the row's."""
        rows = {}
        for name, start in RULES[self.rule].state.items():
            known = [self.state[one].get(name, _initial(one, start, kind[1])) for one in parameters]
            rows[name] = torch.cat([one.to(*kind).reshape(-1) for one in known]).view(1, -1)
            for parameter, part in zip(parameters, _parts(rows[name], parameters), strict=True):
                self.state[parameter][name] = part
        return _Bucket(parameters, kind, rows, is_matrix)


class _Bucket:
    """Parameters that are updated together, on one device.

    kind    that device, and the dtype of states and coefficients
    state   by name, [1, P], of which each parameter's is a part
    pieces  the whole row as one piece; none of a row without numbers
    """

    def __init__(
        self,
        parameters: list[Tensor],
        kind: Kind,
        state: Mapping[str, Tensor],
        is_matrix: bool = False,
    ) -> None:
        self.parameters, self.kind, self.state = parameters, kind, state
        width = sum(one.numel() for one in parameters)
        matrices = (0,) if is_matrix else ()
        self.pieces = pieces_of([one.shape for one in parameters], matrices, max(width, 1))
        # room for values and gradients, [1, P] each, and its parts; one alone needs none
        self._rows: tuple[Tensor, ...] = ()
        if len(parameters) > 1:
            self._rows = torch.empty((2, 1, width), device=kind[0], dtype=kind[1]).unbind()
            self._parts = [part for row in self._rows for part in _parts(row, parameters)]

    def fetch(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Values and gradients of now end to end, [1, P] each."""
        if not self._rows:
            both = (self.parameters[0], gradients[0])
            theta, gradient = (one.to(self.kind[1]).reshape(1, -1) for one in both)
        else:
            theta, gradient = self._rows
            torch._foreach_copy_(self._parts, [*self.parameters, *gradients])
        return theta, gradient

    def put_back(self, theta: Tensor) -> None:
        """Write the values that `fetch` returned into the parameters."""
        if self._rows:
            torch._foreach_copy_(self.parameters, self._parts[: len(self.parameters)])
        elif theta.data_ptr() != self.parameters[0].data_ptr():  # a copy
            self.parameters[0].copy_(theta.view(self.parameters[0].shape))


def _parts(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A row, [1, P], as tensors of these shapes, which share its memory."""
    parts = torch.split(row.view(-1), [one.numel() for one in like])
    return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]


def _initial(parameter: Tensor, start: Start, dtype: torch.dtype) -> Tensor:
    """A state before the first update."""
    if start == PARAMETERS:
        return parameter.detach().to(dtype)
    return torch.full_like(parameter, start, dtype=dtype)


def _wide(parameter: Tensor) -> torch.dtype:
    """The dtype of its states and coefficients."""
    return torch.promote_types(parameter.dtype, torch.float32)


def why_another(optimizer: Optimizer, name: str) -> str:
    """Why an optimizer is not the one that a study names so, in words; empty if it may be.

    Its settings are not looked at.
    """
    kind = type(optimizer)
    if isinstance(optimizer, RuleOptimizer):
        is_named = optimizer.rule == name
    elif name not in RULES:
        is_named = kind.__name__ == module_and_class(name)[1]
    else:
        # the class itself, or what one of the user's inherits: torch's AdamW is an Adam
        of_torch = next(one for one in kind.__mro__ if one.__module__.startswith("torch.optim."))
        closest = _closest_in_torch(name)
        is_named = of_torch in (closest, Optimizer) if closest else of_torch is not kind
    if is_named:
        return ""
    return (
        f"the study names the optimizer {name}, and this is {kind.__module__}.{kind.__qualname__}: "
        "name it in [space.optimizer], or make it by run.optimizer(model)"
    )


def _closest_in_torch(rule: str) -> type[Optimizer] | None:
    """The class of torch that `counterparts` names for a row of RULES, if there is one."""
    path, _, _ = counterpart(rule, {}, 1.0).call.partition("(")
    kind: type[Optimizer] | None = getattr(torch.optim, module_and_class(path)[1], None)
    return kind
