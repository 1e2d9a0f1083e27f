"""A tensor program, recorded once and replayed.

It has the operations that a function does, without the function. Replaying skips what modules,
autograd and vmap cost in Python, and computes the same numbers: the operations are those that ran,
in their order, with their arguments. Recorded with a TorchDispatchMode, not with make_fx, because
that imports torch's compiler: seconds in each worker process, for nothing that a short study uses.

A recording can also be compiled: torch's compiler fuses its operations, for half a minute once, and
rounds differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import first_line

aten = torch.ops.aten
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.expand.default}


def record(
    function: Callable[..., Any], *arguments: Any, compiled: bool = False
) -> Callable[..., Any]:
    """Call a function of nested tensors once; return `replay`, which repeats its operations.

    `replay` takes new arguments. The new arguments must have the nesting, shapes, dtypes and
    devices of the first ones. Tensors that the function reads besides its arguments are constants.
    What it writes in place, it writes when replayed, too.

    The function returns (result, parts). `replay(*arguments, into=tensors)` returns the result, and
    copies each of the parts into a tensor as soon as it is computed: never are all parts held
    twice.

    With `compiled`, torch.compile makes machine code of it when it is first replayed.

    Raises what the function raises. A function whose operations depend on values of tensors fails
    here, with RuntimeError, if it reads them by `.item()` or `bool()`.
    """
    leaves, nesting = tree_flatten(arguments)
    recorder = _Recorder(leaves)
    with recorder:
        result, parts = function(*tree_unflatten(leaves, nesting))
    outputs, result_nesting = tree_flatten(result)
    module = recorder.program(outputs, parts)
    program: Callable[..., list[Tensor]] = module.forward
    if compiled:
        program = _compile(module)

    def replay(*arguments: Any, into: Sequence[Tensor] = ()) -> Any:
        return tree_unflatten(program(*tree_leaves(arguments), *into), result_nesting)

    return replay


def compiler_trouble(device: str) -> str:
    """Why torch's compiler makes no machine code here, of whatever program; empty if it does."""
    try:
        _compile(_one_more)(torch.zeros(1, device=device))
    except Exception as error:  # there is no C++ compiler, say
        return first_line(error)
    return ""


def _one_more(tensor: Tensor) -> Tensor:
    return tensor + 1


def _compile(program: Callable[..., Any]) -> Callable[..., Any]:
    """By one thread: worker processes share the machine."""
    return torch.compile(program, dynamic=False, fullgraph=True, options={"compile_threads": 1})


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation that reaches a device, without torch's compiler."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch; to say yes imports its compiler: seconds in each worker process."""
        return False


class _Recorder(DispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operation into a graph."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        # by the tensor they make, which recording must not keep alive
        self.nodes = WeakTensorKeyDictionary()
        self.written: set[int] = set()  # memory that an operation changed in place
        # multiplications by 1, and the memory of both sides
        self.copies: list[tuple[fx.Node, set[int]]] = []
        for i, tensor in enumerate(inputs):
            self.nodes[tensor] = self.graph.placeholder(f"input_{i}")

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if operation is aten._local_scalar_dense.default:
            raise RuntimeError(
                "the value of a tensor is read on the host (.item(), bool() or the like)"
            )
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        if self._is_the_same(operation, args, result):
            self.nodes[result] = self._node(args[0])
            return result
        node = self.graph.call_function(operation, *tree_map(self._node, (args, dict(kwargs))))
        if operation is aten.mul.Scalar and args[1] == 1 and result.dtype == args[0].dtype:
            self.copies.append((node, {_memory(args[0]), _memory(result)}))
        for i, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed = args[i] if i < len(args) else kwargs[argument.name]
                self.written |= {
                    _memory(leaf) for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)
                }
        if isinstance(result, Tensor):
            self.nodes[result] = node
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self.nodes[part] = self.graph.call_function(_item, (node, i))
        return result

    @staticmethod
    def _is_the_same(operation: Any, args: tuple[Any, ...], result: Any) -> bool:
        """Whether an operation returns its argument under another name.

        vmap and autograd do many of them.
        """
        return operation is aten.detach.default or (
            operation in RESHAPES and result.shape == args[0].shape
        )

    def _node(self, value: Any) -> Any:
        """What stands for a value in the graph.

        A tensor that nothing recorded made is a constant.
        """
        if not isinstance(value, Tensor):
            return value
        if value not in self.nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value.detach()
            self.nodes[value] = self.graph.get_attr(name)
        return self.nodes[value]

    def program(self, outputs: Sequence[Tensor], parts: Sequence[Tensor]) -> fx.GraphModule:
        """The graph as a module, without what nobody reads."""
        self.graph.output([self._node(tensor) for tensor in outputs])
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        for i, part in enumerate(parts):
            source = self._node(part)
            with self.graph.inserting_before(first):
                target = self.graph.placeholder(f"into_{i}")
            with self.graph.inserting_after(max(source, target)):
                self.graph.call_function(aten.copy_.default, (target, source))
        for node, memory in self.copies:
            if not memory & self.written:
                node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.constants, self.graph)


def _item(values: Any, index: int) -> Any:
    return values[index]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
