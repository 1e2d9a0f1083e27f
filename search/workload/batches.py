"""Batches as workloads draw them: nested containers of tensors and of anything else.

Only tensors are moved to a device. Examples are counted and cut only where that is needed: where a
workload is checked, and where gradients are accumulated over parts of a batch.

    B  batch size     N  examples of one batch: B, or fewer in the last batch of an epoch
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..errors import UserError

# A generator is stopped that has no batch after so many passes through its loop for each example
# wanted, and after so many seconds: both, because one that filters examples may reject most of
# them, and one that reads them may be slow.
FRUITLESS_PASSES = 100
FRUITLESS_SECONDS = 3.0
# What a batch may hold that is cut into parts; another object might hide tensors that would have to
# be cut.
CUTTABLE = (Tensor, np.ndarray, list, tuple, str, int, float, np.generic, type(None))
STATED = (
    "train_batches: say how many examples a batch holds, by a method examples(batch) of the "
    "workload"
)


def move_batch(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device. Strings, None, numbers and arrays stay what they are.

    An object of another library that has a method `to` is asked to move itself; so do fields of
    dataclasses.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        if callable(getattr(leaf, "to", None)):
            return leaf.to(device)
        return _with_fields(leaf, lambda value: move_batch(value, device))

    return tree_map(move, batch)


def _with_fields(leaf: Any, change: Callable[[Any], Any]) -> Any:
    """A dataclass with each field changed; any other object as it is."""
    if not is_dataclass(leaf) or isinstance(leaf, type):
        return leaf
    changed = copy.copy(leaf)
    for one in fields(leaf):
        # also where it is frozen
        object.__setattr__(changed, one.name, change(getattr(leaf, one.name)))
    return changed


def only_tensors(batch: Any) -> None:
    """Raise TypeError for a batch that cannot be stacked, because it holds more than tensors."""
    others = sorted(
        {type(leaf).__name__ for leaf in tree_leaves(batch) if not isinstance(leaf, Tensor)}
    )
    if others:
        raise TypeError(f"a batch holds more than tensors: {', '.join(others)}")


def endless(draw: Callable[[], Iterable[Any]], empty: str, ended: str) -> Iterator[Any]:
    """The batches of what `draw` returns, without an end.

    What can be iterated again, as a list or a DataLoader, starts again after each epoch. Raises
    UserError, with the text `empty` if there is no batch at all, with `ended` and its {count} of
    batches if none follow them, as where an iterator ends.
    """
    batches = draw()
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == 0:
            raise UserError(empty)
        if count == before:
            raise UserError(ended.format(count=count))


def first(batches: Iterator[Any], batch_size: int) -> Any:
    """The first batch; what searches for one in vain is stopped.

    `while True: yield from loader` never ends and never yields if the loader is empty. So passes
    through loops that contain a `yield` are counted, in every generator that takes part. Raises
    UserError.
    """
    if sys.gettrace() is not None:  # a debugger is at work
        return next(batches)
    passes = FRUITLESS_PASSES * (batch_size + 1)
    deadline = time.monotonic() + FRUITLESS_SECONDS

    def enter(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        lines = _searching_lines(frame.f_code)
        if not lines:
            return None
        seen: Counter[int] = Counter()

        def follow(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            if event == "line" and frame.f_lineno in lines:
                seen[frame.f_lineno] += 1
                if seen[frame.f_lineno] > passes and time.monotonic() > deadline:
                    raise UserError(no_batch(batch_size))
            return follow

        return follow

    sys.settrace(enter)
    try:
        return next(batches)
    finally:
        sys.settrace(None)


@functools.cache
def _searching_lines(code: CodeType) -> frozenset[int]:
    """The lines of a generator whose innermost loop contains a `yield`."""
    if not code.co_flags & inspect.CO_GENERATOR:
        return frozenset()
    instructions = list(dis.get_instructions(code))
    yields = [one.offset for one in instructions if one.opname == "YIELD_VALUE"]
    jumps = [one for one in instructions if one.opname == "JUMP_BACKWARD"]
    loops = sorted(((one.argval, one.offset) for one in jumps), key=lambda loop: loop[1] - loop[0])
    searching: set[int] = set()
    others: set[int] = set()
    starts = dict(dis.findlinestarts(code))
    line = None
    for one in instructions:
        line = starts.get(one.offset, line)
        innermost = next((loop for loop in loops if loop[0] <= one.offset <= loop[1]), None)
        if line is None or innermost is None:
            continue
        fruitful = any(innermost[0] <= offset <= innermost[1] for offset in yields)
        (searching if fruitful else others).add(line)
    return frozenset(searching - others)


def no_batch(batch_size: int) -> str:
    """What is wrong with `train_batches` that yield nothing."""
    return (
        f"workload: train_batches(batch_size={batch_size}) has no batch: are there fewer than "
        f"{batch_size} training examples, and the last batch is dropped?"
    )


class Parts:
    """Cuts batches into parts along their examples, for accumulated gradients.

    Each tensor's examples lie along its leading dimension, if that has the batch size; else along
    the first dimension that has it (in the layout (time, batch, feature), the second). Which one
    that is, is learned from the first batch, and holds for shorter ones. Arrays, and lists without
    tensors, are cut likewise if they have as many items as there are examples; all else is a part
    of every part.
    """

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size
        self._places: list[int | None] | None = None

    def learn(self, batch: Any) -> None:
        """Find the dimension of the examples in the first batch.

        Raises UserError if there is none.
        """
        if self._places is not None:
            return
        if any(_is_one_each(node, self.batch_size) for node in _nodes(batch)):
            raise UserError(
                "accumulation: cannot cut a batch into parts: it holds a list with the tensors "
                "of each example; stack or pad them to one tensor of all"
            )
        leaves = _leaves(batch)
        others = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, CUTTABLE)})
        if others:
            raise UserError(
                f"accumulation: cannot cut a batch into parts: it holds {', '.join(others)}"
            )
        self._places = [_place(leaf, self.batch_size) for leaf in leaves]

    def __call__(self, batch: Any) -> Iterator[tuple[Any, float]]:
        """Parts of nearly the same size with their shares n / N of the examples; none is empty.

        Raises UserError if the examples cannot be counted.
        """
        if self.count == 1:
            yield batch, 1.0
            return
        self.learn(batch)
        leaves, nesting = tree_flatten(batch, is_leaf=_is_items)
        places = self._places or []
        sizes = {
            _length(leaf, place)
            for leaf, place in zip(leaves, places, strict=False)
            if place is not None
        }
        if len(leaves) != len(places) or len(sizes) != 1:
            raise UserError(
                "accumulation: cannot cut a batch into parts of its examples: no size "
                f"{self.batch_size} that its tensors share; found {_describe(leaves)}"
            )
        (size,) = sizes
        for k in range(self.count):
            start, stop = k * size // self.count, (k + 1) * size // self.count
            if start == stop:
                continue
            cut = [
                _cut(leaf, place, start, stop) for leaf, place in zip(leaves, places, strict=True)
            ]
            yield tree_unflatten(cut, nesting), (stop - start) / size


def _is_items(node: Any) -> bool:
    """Whether a list or tuple holds one plain value for each example, as names do."""
    return (
        isinstance(node, list | tuple)
        and bool(node)
        and all(isinstance(item, str | int | float) for item in node)
    )


def _nodes(batch: Any) -> Iterator[Any]:
    """The containers of a batch."""
    inner = (
        batch.values()
        if isinstance(batch, dict)
        else batch
        if isinstance(batch, list | tuple)
        else ()
    )
    if isinstance(batch, dict | list | tuple):
        yield batch
    for value in inner:
        yield from _nodes(value)


def _is_one_each(node: Any, size: int) -> bool:
    """Whether a list holds one item with tensors for each example.

    Then it is as long as there are examples, and nothing in it has that size.
    """
    if not isinstance(node, list | tuple) or len(node) != size or size == 1:
        return False
    tensors = [leaf for leaf in tree_leaves(node) if isinstance(leaf, Tensor)]
    return bool(tensors) and not any(size in tensor.shape for tensor in tensors)


def _leaves(batch: Any) -> list[Any]:
    return tree_leaves(batch, is_leaf=_is_items)


def _shape(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, Tensor | np.ndarray):
        return tuple(leaf.shape)
    return (len(leaf),) if _is_items(leaf) else ()


def _place(leaf: Any, size: int) -> int | None:
    shape = _shape(leaf)
    return shape.index(size) if size in shape else None


def _length(leaf: Any, place: int) -> int:
    shape = _shape(leaf)
    return shape[place] if place < len(shape) else -1


def _cut(leaf: Any, place: int | None, start: int, stop: int) -> Any:
    if place is None:
        return leaf
    return (
        leaf[(slice(None),) * place + (slice(start, stop),)]
        if _has_shape(leaf)
        else leaf[start:stop]
    )


def _has_shape(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray)


def _describe(leaves: Sequence[Any]) -> str:
    return (
        ", ".join(str(list(shape)) for leaf in leaves if (shape := _shape(leaf)))
        or "no tensor with a dimension"
    )


def examples(batch: Any, batch_size: int) -> int:
    """How many examples a batch has.

    `batch_size`, if most of what it holds has that size in one of its dimensions. Or if the leading
    dimension of its first tensor has it. Otherwise the size that is most frequent among the leading
    dimensions. Raises UserError if nothing has a dimension.
    """
    shapes = [shape for leaf in _plain(batch) if (shape := _shape(leaf))]
    if not shapes:
        raise UserError(f"workload: {STATED}; nothing in it has a dimension")
    having = sum(batch_size in shape for shape in shapes)
    if 2 * having > len(shapes) or shapes[0][0] == batch_size:
        return batch_size
    return Counter(shape[0] for shape in shapes).most_common(1)[0][0]


def _plain(batch: Any) -> list[Any]:
    """The leaves of a batch, with those in dataclasses and in mappings that torch does not know."""
    found: list[Any] = []
    for leaf in _leaves(batch):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += [inner for one in fields(leaf) for inner in _plain(getattr(leaf, one.name))]
        elif isinstance(leaf, Mapping):
            found += [inner for value in leaf.values() for inner in _plain(value)]
        else:
            found.append(leaf)
    return found
