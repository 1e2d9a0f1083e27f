"""Parts of a row of parameters that are updated at once: matrices, and what lies between them.

Shapes: P numbers of one model, its parameters end to end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

# The coefficient by which weight decay multiplies a parameter before its update: of one with two
# dimensions or more, and of one with fewer, as biases and the gains of norms.
DECAY, VECTOR_DECAY = "matrix_decay", "vector_decay"
DECAYS = (DECAY, VECTOR_DECAY)


@dataclass(frozen=True)
class Piece:
    """Numbers of a row that are updated at once.

    where   their places in the row
    matrix  the shape of the matrix that they are; None: each number is updated by itself
    decays  the parts of the piece that decay by the same coefficient, with its name
    """

    where: slice
    matrix: tuple[int, int] | None
    decays: tuple[tuple[str, slice], ...]


def pieces_of(shapes: Sequence[Sequence[int]], matrices: Collection[int], most: int) -> list[Piece]:
    """The pieces of a row of parameters of these shapes, in its order.

    `matrices` are the places in `shapes` of those that are updated as matrices, each alone. All
    others, one beside the other, are cut after every `most` numbers.
    """
    pieces: list[Piece] = []
    between: list[tuple[str, int, int]] = []
    stop = 0
    for place, shape in enumerate(shapes):
        start, stop = stop, stop + math.prod(shape)
        name = DECAY if len(shape) > 1 else VECTOR_DECAY
        if place not in matrices:
            _append(between, name, start, stop)
            continue
        pieces += _cut(between, most)
        between = []
        rows, columns = shape
        decays = ((name, slice(0, stop - start)),)
        pieces.append(Piece(slice(start, stop), (rows, columns), decays))
    return [*pieces, *_cut(between, most)]


def _append(parts: list[tuple[str, int, int]], name: str, start: int, stop: int) -> None:
    """Add a part, or lengthen the last one, if it decays by the same."""
    if parts and parts[-1][0] == name:
        start = parts.pop()[1]
    parts.append((name, start, stop))


def _cut(parts: Sequence[tuple[str, int, int]], most: int) -> Iterator[Piece]:
    """Pieces of parts that lie one beside the other."""
    if not parts:
        return
    first, last = parts[0][1], parts[-1][2]
    for start in range(first, last, most):
        stop = min(start + most, last)
        inside = [(name, max(a, start), min(b, stop)) for name, a, b in parts]
        decays = tuple((name, slice(a - start, b - start)) for name, a, b in inside if a < b)
        yield Piece(slice(start, stop), None, decays)
