"""What every page shares: its frame, and figures that a browser unpacks and draws.

Plotly's script and the figures are compressed: together they are most of a page. A browser draws a
figure when it comes near the screen, in as many columns as there is room for and in the colours of
the page, and all of them before it prints.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from ..playbook import CITATION, rule
from .plots.arrange import arranged
from .plots.style import GRID, INK, MUTED, PALE, TEMPLATE

FOLDER = Path(__file__).parent
PHONE, PAPER, SCREEN = 330, 680, 960  # pixels that a figure has at least: A4 without its margins
PANEL_WIDTH, MARGIN_WIDTH = 270, 160  # pixels: of a panel that can be read, and beside all of them
DARK = {  # colours of figures on a dark page; others are made lighter where they need it
    "white": "#15181D",
    INK: "#E6E8EB",
    MUTED: "#9AA3AF",
    PALE: "#7A8492",
    GRID: "#2A2F37",
}


def render(template: str, /, **values: Any) -> str:
    """A page by the name of its template, in which `rule` and `cited` say what rules are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rule": _abbreviation, "cited": _cite}
    look = {"template": TEMPLATE.to_plotly_json(), "dark": DARK}
    return environment.get_template(template).render(
        plotly_js=_packed_plotly(), look=packed(to_json_plotly(look)), **values
    )


def _abbreviation(id: str) -> Markup:
    """The id of a rule, with the rule's sentence on hover."""
    return Markup('<abbr title="{}">{}</abbr>').format(rule(id).sentence, id)


def _cite(sentence: str) -> Markup:
    """A sentence, escaped, with the sentence of each cited rule on hover."""
    words = CITATION.split(sentence)  # text, id, text, …, id, text
    words[1::2] = map(_abbreviation, words[1::2])
    return Markup("").join(words)


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of a report: its heading, its name as a file, its columns of panels, its content in
    a sentence.
    """

    heading: str
    name: str
    figure: go.Figure
    columns: int
    words: str


def drawing(picture: Picture) -> dict[str, Any]:
    """A figure for the template, with an arrangement for each width from which more columns fit."""
    figure = picture.figure
    whole: dict[str, Any] = dict(figure.to_plotly_json())
    layout: dict[str, Any] = whole["layout"]
    layout.pop("template")  # one for all figures of a page
    arrangements: list[dict[str, Any]] = [
        {"from": width, "layout": arranged(figure, columns, width)}
        for width, columns in _widths(picture.columns)
    ]
    heights = [[one["from"], one["layout"]["height"]] for one in arrangements]
    data = {"data": whole["data"], "layout": layout, "arrangements": arrangements}
    return {
        "name": picture.name,
        "label": picture.words,
        "heights": json.dumps(heights),
        "packed": packed(to_json_plotly(data)),
    }


def _widths(most: int) -> list[tuple[int, int]]:
    """Widths in pixels from which a figure has more columns, and how many, up to `most`."""
    wide = [(max(SCREEN, MARGIN_WIDTH + PANEL_WIDTH * n), n) for n in range(2, most + 1)]
    found = {PHONE: 1, PAPER: min(most, 2), SCREEN: min(most, 2)} | dict(wide)
    return sorted(found.items())


def packed(text: str) -> str:
    """A text as a page holds it: compressed, in letters that need no escape."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@functools.cache
def _packed_plotly() -> str:
    return packed(get_plotlyjs())
