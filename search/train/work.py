"""The work of one update, counted: what can be known of a workload without a clock.

The numbers depend on model, batch and torch's version, and on nothing that a machine does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..workload.batches import move_batch
from ..workload.randomness import own_random_numbers
from ..workload.workload import Workload, build_model, draw_batches
from .execution import Call
from .tracing import DispatchMode


@dataclass(frozen=True)
class Work:
    """Of the loss and its gradients, of one batch.

    calls        operations that compute or copy; views and new names of a tensor are none
    flops        floating-point operations of products, convolutions and attention
    bytes        written by all calls
    parameters   bytes of those that are trained
    """

    calls: int
    flops: int
    bytes: int
    parameters: int


def count_work(
    workload: Workload, batch_size: int, seed: int, device: str, bfloat16: bool = False
) -> Work:
    """The work of the first update of a seed's untrained model, which is run once.

    The process's random numbers are as they were. Raises what the workload raises.
    """
    where = torch.device(device)
    with own_random_numbers():
        model = build_model(workload, seed, batch_size, where)
        batch = move_batch(next(iter(draw_batches(workload, batch_size, seed))), where)
        call = Call(workload, model, bfloat16)
        with torch.enable_grad(), _Counter() as counted:
            call("loss", batch).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Work(counted.calls, counted.flops, counted.bytes, sum(map(_size, trained)))


class _Counter(DispatchMode):  # type: ignore[no-untyped-call]
    """Counts, with the formulas of torch's FlopCounterMode, which itself imports the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.flops = self.bytes = 0

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        if not operation.is_view:
            self.calls += 1
            self.bytes += sum(_size(leaf) for leaf in tree_leaves(result) if _is_tensor(leaf))
            if formula := flop_registry.get(operation.overloadpacket):
                self.flops += formula(*args, **kwargs, out_val=result)
        return result


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
