"""How every figure looks: colours, the template, panels in a grid, ticks, hover text."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from ...trial import Group, Trial
from ...words import in_order, readable

# Okabe and Ito's palette, told apart by colour-blind readers too
BLUE, GREEN, VERMILLION, ORANGE, PURPLE, SKY = (
    "#0072B2",
    "#009E73",
    "#D55E00",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
)
PALETTE = (VERMILLION, BLUE, ORANGE, GREEN, PURPLE, SKY)  # for lines in one panel, in this order
LIGHTEST = 0.85  # of a colour scale: beyond it yellow fades into the paper
INK, MUTED, PALE, GRID = "#222222", "#6B7280", "#AEB5BF", "#ECEEF1"
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"

TEXT, SMALL = 13, 12  # sizes of letters, in pixels
PANEL, RAIL_NAME, FOOT = "panel title", "rail", "footnote"  # names of annotations
HOVER_WIDTH = 48  # characters: a phone shows no more
SEPARATOR = " · "  # between scientific values and between their names: a value may hold commas
FEWEST_TICKS = 3  # of an axis that can be read
MOST_TICKS = 12  # of a logarithmic axis: more run into each other
TICK_DECADES = 3.0  # over more, an axis is marked at powers of ten alone

AXIS = {
    "showgrid": True,
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": MUTED,
    "ticks": "outside",
    "tickcolor": MUTED,
    "ticklen": 4,
    "tickfont": {"size": SMALL},
    "title": {"standoff": 8, "font": {"size": 14}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": TEXT, "color": INK},
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
        "legend": {"orientation": "h", "tracegroupgap": 0, "font": {"size": SMALL}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "white",
            "font": {"family": FONT, "size": SMALL},
        },
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)


def in_grid(groups: Iterable[Group]) -> dict[Group, tuple[int, int]]:
    """Where each group's panel stands, (row, column) from 1.

    A column per batch size, else a row each.
    """
    groups = list(groups)
    rows = sorted({_row_key(group) for group in groups}, key=_row_order)
    columns = sorted({group.batch_size for group in groups})
    return {
        group: (rows.index(_row_key(group)) + 1, columns.index(group.batch_size) + 1)
        for group in groups
    }


def _row_key(group: Group) -> tuple[str, tuple[tuple[str, Any], ...]]:
    return group.optimizer, group.scientific


def _row_order(key: tuple[str, tuple[tuple[str, Any], ...]]) -> tuple[Any, ...]:
    return key[0], [in_order(value) for _, value in key[1]]


def panel_figure(
    title: str, subtitle: str, panel_titles: dict[tuple[int, int], str], **subplots: Any
) -> go.Figure:
    """An empty figure with a panel per (row, column), each under its own title.

    Once it is drawn, `settled` puts everything in its place.
    """
    rows = max((row for row, _ in panel_titles), default=1)
    columns = max((column for _, column in panel_titles), default=1)
    inhabited = panel_titles or {(1, 1): ""}
    figure = make_subplots(
        rows=rows,
        cols=columns,
        specs=[
            [{} if (row, column) in inhabited else None for column in range(1, columns + 1)]
            for row in range(1, rows + 1)
        ],
        **subplots,
    )
    figure.update_layout(
        template=TEMPLATE,
        title_text=f"{title}<br><span style='font-size:{TEXT}px;color:{MUTED}'>{subtitle}</span>",
        hovermode="closest",
    )
    for (row, column), text in panel_titles.items():
        place = {"x": 0, "y": 1, "xref": "x domain", "yref": "y domain"}
        figure.add_annotation(
            row=row,
            col=column,
            name=PANEL,
            text=text,
            showarrow=False,
            align="left",
            xanchor="left",
            yanchor="bottom",
            yshift=6,
            **place,
        )
    return figure


def panel_title(label: str, note: str) -> str:
    """Two lines above a panel: whose trials, and what they say; each may be missing."""
    quiet = f"<span style='font-size:{SMALL}px;color:{MUTED}'>{note}</span>" if note else ""
    return "<br>".join(filter(None, [f"<b>{escape(label)}</b>" if label else "", quiet]))


def footnote(figure: go.Figure, text: str) -> None:
    """Add lines under the figure, for what it cannot show."""
    if not text:
        return
    figure.add_annotation(
        name=FOOT,
        text=text,
        x=0,
        y=0,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        showarrow=False,
        align="left",
        font={"size": SMALL, "color": MUTED},
    )


def in_one_sentence(subject: str, parts: Iterable[str]) -> str:
    """What a figure shows, for those who do not see it: its subject, then each part's numbers."""
    return ": ".join(filter(None, [subject, "; ".join(filter(None, parts))])) + "."


def scientific_label(values: Iterable[tuple[str, Any]]) -> str:
    """Scientific values by their names, for a legend whose title has the names."""
    return SEPARATOR.join(readable(value) for _, value in values)


def colours(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """A colour for each choice of scientific values.

    They go from dark to light along one numeric axis, and are clearly different otherwise.
    """
    values = [value for choice in choices for value in choice.values()]
    ordered = len(values) == len(choices) and all(
        isinstance(value, int | float) for value in values
    )
    if not ordered or len(choices) == 1:
        return [PALETTE[i % len(PALETTE)] for i in range(len(choices))]
    places = [LIGHTEST * i / (len(choices) - 1) for i in range(len(choices))]
    return [str(colour) for colour in sample_colorscale("Viridis", places)]


def right_legend(figure: go.Figure, title: str) -> None:
    """The legend as a column at the right, where long names push nothing out of place."""
    figure.update_layout(
        legend={
            "orientation": "v",
            "x": 1.02,
            "xanchor": "left",
            "y": 1,
            "yref": "paper",
            "yanchor": "top",
            "title": {"text": escape(title), "font": {"size": SMALL}},
        }
    )


def trial_id(batch_size: int, number: int) -> str:
    """What a page calls a trial by: numbers begin anew at each batch size."""
    return f"{batch_size}-{number}"


def escape(value: Any) -> str:
    return html.escape(readable(value), quote=False)


def hover(trial: Trial, objective: str) -> str:
    """Every hyperparameter of a trial and what became of it, for the mouse."""
    verdict = trial.verdict
    onset = f" at step {readable(verdict.onset_step)}" if math.isfinite(verdict.onset_step) else ""
    unstable = f", {verdict.instability} instability" if verdict.instability != "none" else ""
    step = "" if math.isnan(trial.best_step) else f" at step {trial.best_step}"
    lines = [
        f"<b>trial {trial.point.number}: {verdict.outcome}{unstable}{onset}</b>",
        *(f"{escape(name)} = {escape(value)}" for name, value in trial.point.shown.items()),
        f"best {escape(objective)} = {readable(trial.best_value)}{step}",
        *textwrap.wrap(escape(verdict.evidence), HOVER_WIDTH),
    ]
    return "<br>".join(lines)


def brief(trial: Trial) -> str:
    """A trial's number, outcome and base_lr, where the text of `hover` would be too much."""
    base_lr = readable(trial.point.base_lr)
    return f"trial {trial.point.number}: {trial.verdict.outcome}, base_lr {base_lr}"


def log_axis(low: float, high: float, marked: tuple[float, float] | None = None) -> dict[str, Any]:
    """A logarithmic plotly axis over [low, high], with readable ticks within `marked` (None: all).

    Ticks are 0.02, 0.05, 0.1, ...; over many decades 10⁻⁵, 10⁻⁴, ...
    """
    ticks = log_ticks(*(marked or (low, high)))
    near_one = not ticks or (ticks[0] >= 1e-3 and ticks[-1] <= 1e3)
    plain = near_one or not all(map(_is_power_of_ten, ticks))
    texts = [
        f"{tick:.6g}" if plain else f"10<sup>{round(math.log10(tick))}</sup>" for tick in ticks
    ]
    texts = [text.replace("-", "−") for text in texts]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": texts,
    }


def _is_power_of_ten(tick: float) -> bool:
    exponent = math.log10(tick)
    return abs(exponent - round(exponent)) < 1e-9


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 × 10^k apart) within [low, high], at most `most` of them."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(
        factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1
    )
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 × 10^k within [low, high].

    Powers of ten over more than three decades, no more than MOST_TICKS of them; evenly spaced round
    numbers within part of one.
    """
    factors = (1, 2, 5) if math.log10(high / low) <= TICK_DECADES else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    apart = 1 if last - first < MOST_TICKS else math.ceil((last - first) / MOST_TICKS / 5) * 5
    exponents = range(math.ceil(first / apart) * apart, last + 1, apart)
    ticks = [factor * 10.0**k for k in exponents for factor in factors]
    within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return within if len(within) >= FEWEST_TICKS else linear_ticks(low, high)
