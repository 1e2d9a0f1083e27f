"""What is kept of one training that was watched: its curve as a file, and a page that opens without
a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..judge.readout import Readout
from ..store.files import atomic, write_curve
from ..trial import Trial
from .plots import training_figure, training_info
from .report import figure_html, template

TEMPLATE = Path(__file__).with_name("page.html.jinja")
CURVE, PAGE = "curve.npz", "report.html"


def write_page(folder: Path, trial: Trial, readout: Readout, sentences: Sequence[str]) -> Path:
    """Write curve.npz and report.html of a training into a folder, each whole or not at all, and
    return the page's path.
    """
    write_curve(folder / CURVE, trial.curve)
    figure = training_figure(training_info(trial, readout))
    document = template(TEMPLATE).render(
        title=folder.resolve().name,
        headline=readout.headline,
        colour="good" if trial.feasible else "bad",
        sentences=sentences,
        figure=figure_html(figure, "training"),
        curve=CURVE,
        plotly_js=Markup(get_plotlyjs()),
    )
    path = folder / PAGE
    with atomic(path) as temporary:
        temporary.write_text(document, encoding="utf-8", errors="backslashreplace")
    return path
