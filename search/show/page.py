"""What is kept of one training that was watched: its curve as a file, and a page that opens without
a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..judge.readout import Readout
from ..store.files import atomic, write_curve
from ..trial import Trial
from .plots import training_figure, training_info
from .web import Picture, drawing, render

TEMPLATE = "page.html.jinja"
CURVE, PAGE = "curve.npz", "report.html"


def write_page(folder: Path, trial: Trial, readout: Readout, sentences: Sequence[str]) -> Path:
    """Write curve.npz and report.html of a training into a folder, each whole or not at all, and
    return the page's path.
    """
    write_curve(folder / CURVE, trial.curve)
    info = training_info(trial, readout)
    figure = training_figure(info)
    document = render(
        TEMPLATE,
        name=folder.resolve().name,
        headline=readout.headline,
        colour="good" if trial.feasible else "bad",
        sentences=sentences,
        drawn=drawing(Picture("", "training", figure, 2, info.in_words())),
        curve=CURVE,
    )
    path = folder / PAGE
    with atomic(path) as temporary:
        temporary.write_text(document, encoding="utf-8", errors="backslashreplace")
    return path
