"""What figures against the batch size share: their panels, axes, bands, and intervals with arrows.

Both axes are logarithmic. An interval that nothing bounds at an end has an arrow there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from ...judge.comparison import Interval
from ...words import readable

COLUMNS = 2  # of panels: three beside each other are too narrow for their notes
MARGIN = 0.09  # at either end of an axis, of its decades
LEAST_DECADES = 0.3  # of an axis
APART = 0.09  # of an axis: ticks that are closer run into each other
ARROW = 0.22  # decades: how long an arrow is
FAR = 1.0  # decades: what an interval reaches beyond its value, an axis need not show
BAND_OPACITY = 0.16


@dataclass(frozen=True)
class Known:
    """A value at one batch size, and its 95 % interval.

    interval   an end is 0 or inf where nothing bounds it; a bound is itself the other end. (nan,
               nan) if it is not known
    """

    batch_size: float
    value: float
    interval: Interval

    @property
    def is_bound(self) -> bool:
        """Whether the value is no estimate: the quantity is at least, or at most, that."""
        low, high = self.interval
        at_least = low == self.value and math.isinf(high)
        return at_least or (high == self.value and low == 0)

    @property
    def in_words(self) -> str:
        """ "0.1 (0.05 to 0.2)", "≥ 0.1", "0.1"."""
        low, high = self.interval
        if self.is_bound:
            return f"{'≥' if low else '≤'} {readable(self.value)}"
        if math.isnan(low):
            return readable(self.value)
        return f"{readable(self.value)} ({readable(low)} to {readable(high)})"


def in_panels(count: int) -> list[tuple[int, int]]:
    """(row, column) from 1 of each of so many panels."""
    return [(place // COLUMNS + 1, place % COLUMNS + 1) for place in range(count)]


def size_axis(measured: Iterable[float], asked: Iterable[float] = ()) -> dict[str, Any]:
    """A plotly axis of batch sizes, marked at those that were measured, and at others with room."""
    sizes = [*measured, *asked]
    low, high = around(sizes)
    ticks: list[float] = []
    for size in dict.fromkeys(map(float, sizes)):
        away = [abs(math.log(size / tick)) for tick in ticks]
        if min(away, default=math.inf) > APART * math.log(high / low):
            ticks.append(size)
    ticks.sort()
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": list(map(readable, ticks)),
    }


def around(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a margin."""
    low, high = min(values), max(values)
    margin = 10 ** (MARGIN * max(math.log10(high / low), LEAST_DECADES))
    return low / margin, high * margin


def reach(marks: Iterable[Known]) -> list[float]:
    """What an axis must show of some values and their intervals."""
    found = []
    for one in marks:
        far = one.value / 10**FAR, one.value * 10**FAR
        found += [one.value, *_within(_drawn(one), far)]
    return found


def of_equal_decades(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ranges, widened to as many decades each: the same slope then looks the same."""
    most = max(high / low for low, high in ranges)
    middles = [math.sqrt(low * high) for low, high in ranges]
    return [(middle / math.sqrt(most), middle * math.sqrt(most)) for middle in middles]


# --- traces ---------------------------------------------------------------------------------------


def intervals(
    marks: Sequence[Known], colour: str, width: float = 2, **look: Any
) -> list[go.Scatter]:
    """A bar from end to end of each interval, and an arrow where nothing bounds it."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    arrows: list[tuple[float, float, str]] = []
    for one in marks:
        low, high = one.interval
        bottom, top = _drawn(one)
        xs += [one.batch_size, one.batch_size, None]
        ys += [bottom, top, None]
        arrows += [(one.batch_size, bottom, "arrow-down")] * (low == 0)
        arrows += [(one.batch_size, top, "arrow-up")] * math.isinf(high)
    shared = {"hoverinfo": "skip", "showlegend": False} | look
    bars = go.Scatter(x=xs, y=ys, mode="lines", line={"color": colour, "width": width}, **shared)
    heads = go.Scatter(
        x=[x for x, _, _ in arrows],
        y=[y for _, y, _ in arrows],
        mode="markers",
        marker={"symbol": [symbol for _, _, symbol in arrows], "size": 11, "color": colour},
        **shared,
    )
    return [bars, heads] if arrows else [bars]


def _drawn(one: Known) -> tuple[float, float]:
    """The ends of an interval as drawn; those of an unknown one at its value."""
    low, high = one.interval
    if math.isnan(low):
        return one.value, one.value
    length = 10**ARROW
    return low or one.value / length, one.value * length if math.isinf(high) else high


def band(marks: Sequence[Known], ends: tuple[float, float], colour: str, **look: Any) -> go.Scatter:
    """The area between the ends of intervals that follow one another, within an axis."""
    sizes = [one.batch_size for one in marks]
    low, high = zip(*(_within(one.interval, ends) for one in marks), strict=True)
    return go.Scatter(
        x=sizes + sizes[::-1],
        y=[*low, *high[::-1]],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=tinted(colour),
        hoverinfo="skip",
        **{"showlegend": False} | look,
    )


def _within(interval: Interval, ends: tuple[float, float]) -> Interval:
    low, high = (min(max(end, ends[0]), ends[1]) for end in interval)
    return low, high


def tinted(colour: str) -> str:
    """The colour of a band."""
    return f"rgba({', '.join(map(str, hex_to_rgb(colour)))}, {BAND_OPACITY})"
