"""Where all of a figure stands, in columns that fit a width: panels, titles, legend, footnote."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import plotly.graph_objects as go

from .style import FOOT, MUTED, PANEL, RAIL_NAME, SMALL, TEXT

WIDE = 960  # pixels: a figure on a screen of 1,024; below that, it is narrow
MARGIN_WIDTH, LEAST_PANEL_WIDTH = 160, 250  # pixels: a figure of many columns is wider than WIDE

# pixels
# plotly's buttons at the top right: a title stands to their left, or below if it is narrow
MODE_BAR, MODE_BAR_WIDTH = 40, 220
ABOVE_TITLE, ABOVE_PANEL, BELOW_LEGEND = 20, 8, 14
TICKS, AXIS_TITLE = 26, 24
LEGEND_ROW, LEGEND_KEY = 20, 42
PANEL_HEIGHT, ONE_PANEL_HEIGHT = 300, 380
BESIDE, EDGE, Y_TITLE = 85, 14, 30
MARK = 7  # half of a mark on a rail, with what keeps a name apart from it
TITLE, NARROW_TITLE = 18, 16  # sizes of letters
LINE = 1.3  # distance of lines, of the size of letters: plotly's
LETTER = 0.56  # mean width of a letter, of its size; of the widest fonts in use
COLUMN_GAP = 0.06  # of the figure's width, at least
TICK_GAP = 10  # pixels between the texts of two ticks
TILT = 40  # degrees, of names that do not fit beside each other

BREAK = "<br />"  # within a sentence, unlike <br>: it is undone before a text is wrapped anew
TOKENS = re.compile(r"<[^>]*>|[^<\s]+|\s+")
FONT_SIZE = re.compile(r"font-size:\s*(\d+)px")


@dataclass(frozen=True)
class _Panel:
    """The names of a panel's axes in the layout, and its place among the panels of its figure."""

    x: str
    y: str
    row: float
    column: float
    share: float  # of the figure's width


def arranged(figure: go.Figure, columns: int, width: int) -> dict[str, Any]:
    """Changes of the layout that put the panels of a figure in at most `columns` columns.

    `figure` was made by `style.panel_figure`. The keys are those of `Plotly.relayout`
    ("xaxis2.domain", "annotations[0].text"); traces and the names of axes stay. All texts fit into
    `width` pixels or more. Panels of one row stay together: a row of three becomes one of two and
    one of one. In a figure narrower than `WIDE` the legend stands above the panels, and the title
    of a vertical axis above its panel.
    """
    return _Arrangement(figure, columns, width).changes()


def settled(figure: go.Figure) -> go.Figure:
    """The figure with all of it in its place, on a wide screen."""
    columns = len({panel.column for panel in _panels(figure)})
    width = max(WIDE, MARGIN_WIDTH + columns * LEAST_PANEL_WIDTH)
    for key, value in arranged(figure, columns, width).items():
        figure.layout[key] = value
    return figure


def _panels(figure: go.Figure) -> list[_Panel]:
    """From the top left to the bottom right."""
    found = []
    for axis in figure.select_xaxes():
        y = figure.layout[axis.anchor.replace("y", "yaxis")]
        (left, right), top = axis.domain, y.domain[1]
        place = (-round(top, 4), round(left, 4))
        found.append(_Panel(axis.plotly_name, y.plotly_name, *place, right - left))
    return sorted(found, key=lambda panel: (panel.row, panel.column))


class _Arrangement:
    """The parts of one answer of `arranged`."""

    def __init__(self, figure: go.Figure, columns: int, width: int) -> None:
        self.layout, self.width = figure.layout, width
        self.panels = _panels(figure)
        self.traces = figure.data
        self.entries = _legend_entries(figure.data)
        self.narrow = width < WIDE
        self.aside = self.layout.legend.orientation == "v" and not self.narrow
        own = sorted({panel.column for panel in self.panels})
        self.kept = columns >= len(own)  # every panel in its own column
        self.columns = min(columns, len(own))
        self.rows = list(self._rows(own))
        self.left, self.right = self._margins()
        self.inner = max(width - self.left - self.right - self._legend_width(), 1)
        self.places = self._places()

    def _rows(self, own: Sequence[float]) -> Iterator[dict[int, _Panel]]:
        """Each row of panels, by the numbers of their columns."""
        for _, in_row in groupby(self.panels, key=lambda panel: panel.row):
            row = list(in_row)
            if self.kept:
                yield {own.index(panel.column): panel for panel in row}
                continue
            for first in range(0, len(row), self.columns):
                yield dict(enumerate(row[first : first + self.columns]))

    # --- across

    def _margins(self) -> tuple[int, int]:
        rails = any(note.name == RAIL_NAME for note in self.layout.annotations)
        if not self.narrow:
            beside = rails and not self.aside
            return Y_TITLE + self._tick_width(), BESIDE if beside else 2 * EDGE
        return self._tick_width(), EDGE

    def _tick_width(self) -> int:
        """Of the widest text at a vertical axis, with its tick."""
        texts = [text for panel in self.panels for text in _tick_texts(self.layout[panel.y])]
        return round(12 + max((width_of(text, SMALL) for text in texts), default=36))

    def _legend_width(self) -> float:
        """What a legend at the right takes from the panels."""
        if not self.aside:
            return 0
        texts = [*self.entries, self.layout.legend.title.text or ""]
        return LEGEND_KEY + max((width_of(text, SMALL) for text in texts), default=0)

    def _places(self) -> list[tuple[float, float]]:
        """Left and right end of each column, as shares of the width."""
        beside = self._tick_width() + EDGE + Y_TITLE * self._titled_inside()
        gap = max(COLUMN_GAP, beside / self.inner)
        shares = [1.0] * self.columns
        if self.kept:
            shares = [panel.share for panel in self._one_of_each_column()]
        gap = min(gap, 0.5 / self.columns)
        free = 1 - gap * (self.columns - 1)
        places, left = [], 0.0
        for share in shares:
            right = left + free * share / sum(shares)
            places.append((round(left, 5), round(min(right, 1.0), 5)))
            left = right + gap
        return places

    def _titled_inside(self) -> bool:
        """Whether a panel that is not the first of its row shows a title at its vertical axis."""
        if self.narrow:
            return False
        titles = [[self._title_of("y", row[k]) for k in sorted(row)] for row in self.rows]
        return any(len(set(in_row)) > 1 for in_row in titles)

    def _one_of_each_column(self) -> list[_Panel]:
        by_column = {column: panel for row in self.rows for column, panel in row.items()}
        return [by_column[column] for column in sorted(by_column)]

    def _pixels(self, column: int) -> float:
        left, right = self.places[column]
        return (right - left) * self.inner

    # --- down

    def changes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        title, title_height = self._title()
        legend_height = self._legend_height()
        heads = [self._heads(row, found) for row in self.rows]
        feet = [self._feet(number, found) for number in range(len(self.rows))]
        note, note_height = self._footnote(feet[-1] if feet else TICKS)
        head = title_height + legend_height
        tall = PANEL_HEIGHT if len(self.rows) > 1 or self.narrow else ONE_PANEL_HEIGHT
        top = round(head + (heads[0] if heads else 0))
        bottom = round((feet[-1] if feet else TICKS) + note_height)
        inner = tall * len(self.rows) + sum(heads[1:]) + sum(feet[:-1])
        height = round(top + inner + bottom)
        at = 0.0
        for number, row in enumerate(self.rows):
            at += heads[number] if number else 0
            ends = [1 - (at + tall) / inner, 1 - at / inner]
            for column, panel in row.items():
                found[f"{panel.y}.domain"] = [round(max(end, 0.0), 5) for end in ends]
                found[f"{panel.x}.domain"] = list(self.places[column])
            at += tall + feet[number]
        return found | {
            **title,
            **self._legend(1 - title_height / height),
            **note,
            **self._rails(),
            "height": height,
            "margin.t": top,
            "margin.b": bottom,
            "margin.l": self.left,
            "margin.r": self.right,
        }

    def _title(self) -> tuple[dict[str, Any], float]:
        size = NARROW_TITLE if self.narrow else TITLE
        beside = 0 if self.narrow else MODE_BAR_WIDTH
        above = MODE_BAR if self.narrow else ABOVE_TITLE
        width = self.width - self.left - EDGE
        name, *subtitle = self.layout.title.text.split("<br>", 1)
        lines = [wrapped(name, size, width - beside)]
        text = "<br>".join(lines + [wrapped(line, size, width) for line in subtitle])
        change = {"title.text": text, "title.font.size": size, "title.pad.t": above}
        return change, above + height_of(text, size)

    def _heads(self, row: dict[int, _Panel], found: dict[str, Any]) -> float:
        """Height of the titles above a row of panels, which are wrapped."""
        tallest, before = 0.0, ""
        for column, panel in sorted(row.items()):
            title = self._title_of("y", panel)
            first, before = title if title != before else "", title
            found[f"{panel.y}.title.text"] = "" if self.narrow else first
            for index, note in enumerate(self.layout.annotations):
                if note.name != PANEL or note.xref != f"{panel.x.replace('axis', '')} domain":
                    continue
                text = note.text.split(UPWARDS)[0]
                text += f"{UPWARDS}{first}</span>" if self.narrow and first else ""
                text = wrapped(text, TEXT, self._pixels(column))
                found[f"annotations[{index}].text"] = text
                tallest = max(tallest, height_of(text, TEXT) + ABOVE_PANEL)
        return tallest

    def _title_of(self, letter: str, panel: _Panel) -> str:
        """An axis's title; if it has none, that of the next panel to the left, or below."""
        if letter == "y":
            line = [one for one in self.panels if one.row == panel.row]
            line = line[line.index(panel) :: -1]
        else:
            line = [one for one in self.panels if one.column == panel.column]
            line = line[line.index(panel) :]
        titles = [self.layout[one.y if letter == "y" else one.x].title.text for one in line]
        return next(filter(None, titles), "")

    def _feet(self, number: int, found: dict[str, Any]) -> float:
        """Height of ticks and titles below a row of panels."""
        row, deepest = self.rows[number], 0.0
        for column, panel in row.items():
            title = self._title_of("x", panel)
            below = next((one[column] for one in self.rows[number + 1 :] if column in one), None)
            if below and not self.narrow and self._title_of("x", below) == title:
                title = ""  # it stands below
            found[f"{panel.x}.title.text"] = title
            ticks, depth = _fitting_ticks(self.layout[panel.x], self._pixels(column))
            found |= {f"{panel.x}.{key}": value for key, value in ticks.items()}
            deepest = max(deepest, depth + (AXIS_TITLE if title else 0))
        return deepest + EDGE

    def _footnote(self, below: float) -> tuple[dict[str, Any], float]:
        for index, note in enumerate(self.layout.annotations):
            if note.name == FOOT:
                text = wrapped(note.text, SMALL, self.width - self.left - EDGE)
                change = {"text": text, "yshift": -round(below)}
                height = height_of(text, SMALL) + EDGE
                return {f"annotations[{index}].{key}": one for key, one in change.items()}, height
        return {}, 0.0

    def _legend_height(self) -> float:
        if self.aside or not self.entries:
            return 0
        widths = [LEGEND_KEY + width_of(text, SMALL) for text in self.entries]
        room = self.width - self.left - self.right
        rows = 1
        if sum(widths) > room:
            rows = math.ceil(len(widths) / max(int(room // max(widths)), 1))
        titled = bool(self.layout.legend.title.text)
        return LEGEND_ROW * (rows + titled) + BELOW_LEGEND

    def _legend(self, y: float) -> dict[str, Any]:
        if self.aside:
            return {}
        above = {"orientation": "h", "x": 0, "xanchor": "left", "y": y, "yanchor": "top"}
        above |= {"yref": "container", "title.side": "top"}
        return {f"legend.{key}": value for key, value in above.items()}

    def _rails(self) -> dict[str, Any]:
        """The names of rails: right of the last column, or in each panel where there is no room."""
        found: dict[str, Any] = {}
        for row in self.rows:
            for column, panel in row.items():
                domain = f"{panel.x.replace('axis', '')} domain"
                for index, note in enumerate(self.layout.annotations):
                    if note.name != RAIL_NAME or note.xref != domain:
                        continue
                    if self.narrow or self.aside:
                        change = self._inside(note, panel, self._pixels(column))
                    else:
                        last = column == max(row)
                        change = {"x": 1, "xshift": 6, "font.size": SMALL, "visible": last}
                    found |= {f"annotations[{index}].{key}": one for key, one in change.items()}
        return found

    def _inside(self, note: Any, panel: _Panel, width: float) -> dict[str, Any]:
        """The first place on a rail, from the left, at which its name covers no mark.

        The name is left out if there is none: the marks say what the rail is.
        """
        size = SMALL - 1
        needed, end = width_of(note.text, size), float(EDGE) / 2
        for mark in sorted(self._marks_beside(note.y, panel)):
            if mark * width - MARK >= end + needed:
                break
            end = max(end, mark * width + MARK)
        fits = end + needed <= width
        return {"x": round(end / width, 4), "xshift": 0, "font.size": size, "visible": fits}

    def _marks_beside(self, height: float, panel: _Panel) -> Iterator[float]:
        """Where marks stand across a panel that are at the height of a name, as shares of it."""
        across, up = self.layout[panel.x], self.layout[panel.y]
        close = (SMALL / 2 + MARK) / PANEL_HEIGHT
        for trace in self.traces:
            own = (trace.xaxis or "x").replace("x", "xaxis")
            if own != panel.x or trace.type != "scatter" or "markers" not in (trace.mode or ""):
                continue
            for x, y in zip(trace.x, trace.y, strict=True):
                if abs(_share(up, y) - height) < close:
                    yield _share(across, x)


def _share(axis: Any, value: float) -> float:
    """Where a value stands on an axis whose range is stated: 0 is its start, 1 its end."""
    low, high = map(float, axis.range)
    at = math.log10(value) if axis.type == "log" else value
    return (at - low) / (high - low)


UPWARDS = f"<br><span style='font-size:{SMALL}px;color:{MUTED}'>↑ "


def _legend_entries(traces: Iterable[Any]) -> list[str]:
    return [trace.name for trace in traces if trace.name and trace.showlegend is not False]


# --- texts ----------------------------------------------------------------------------------------


def width_of(text: str, size: float) -> float:
    """Pixels across a line of text, about; tags are not counted."""
    plain = html.unescape(re.sub(r"<[^>]*>", "", text))
    return len(plain) * size * LETTER


def height_of(text: str, size: float) -> float:
    """Pixels down the lines of a text, whose letters are of `size` where no tag says otherwise."""
    return (text.count("<br") + 1) * size * LINE


def wrapped(text: str, size: float, width: float) -> str:
    """The text with breaks where a line would be wider than `width` pixels; tags are kept."""
    parts: list[str] = []
    sizes, used, space = [size], 0.0, ""
    for token in TOKENS.findall(text.replace(BREAK, " ")):
        if token.isspace():
            space = " "
            continue
        if token.startswith("<"):
            if token == "<br>":
                used, space = 0.0, ""
            if token.startswith("<span"):
                stated = FONT_SIZE.search(token)
                sizes.append(float(stated[1]) if stated else sizes[-1])
            elif token == "</span>":
                sizes.pop()
            parts.append(token)
            continue
        own = width_of(space + token, sizes[-1])
        if used and space and used + own > width:
            parts.append(BREAK)
            used, space = 0.0, ""
            own = width_of(token, sizes[-1])
        parts.append(space + token)
        used, space = used + own, ""
    return "".join(parts)


# --- ticks ----------------------------------------------------------------------------------------


def _tick_texts(axis: Any) -> list[str]:
    """What is written at an axis whose ticks are stated."""
    if axis.ticktext is not None:
        return [str(text) for text in axis.ticktext]
    return [f"{value:.6g}" for value in axis.tickvals] if axis.tickvals is not None else []


def _fitting_ticks(axis: Any, width: float) -> tuple[dict[str, Any], float]:
    """The ticks of a horizontal axis that fit beside each other, and the height of their texts.

    A log axis loses some of them. Names stand at an angle.
    """
    texts = _tick_texts(axis)
    room = width + TICK_GAP
    widths = [width_of(text, SMALL) + TICK_GAP for text in texts]
    if sum(widths) <= room:
        return {}, TICKS
    if axis.type != "log":
        depth = max(widths) * math.sin(math.radians(TILT))
        return {"tickangle": -TILT}, depth + TICKS
    values = list(axis.tickvals)
    exponents = [math.log10(value) for value in values]
    tens = [k for k, power in enumerate(exponents) if abs(power - round(power)) < 1e-9]
    kept = tens if len(tens) > 1 else list(range(len(values)))
    every = math.ceil(sum(widths[k] for k in kept) / room)
    kept = kept[::every]
    return {"tickvals": [values[k] for k in kept], "ticktext": [texts[k] for k in kept]}, TICKS
