"""The report of results that exist, for scripts and notebooks."""

from __future__ import annotations

from pathlib import Path

from ..store.results import Results, read_results
from .publish import write_results
from .report import write_report


def build_report(results: Results | str | Path, png: bool = False) -> Path:
    """Write tables and report.html of a study's results, and return the path of report.html.

        webbrowser.open(tunewright.build_report("results/mine").as_uri())

    Args:
        results: the results, or their folder
        png: whether to draw the plots as files, too (needs tunewright[png])

    Raises UserError for a folder that has no results, and if `png` is asked for where what it
    needs is not installed.
    """
    found = results if isinstance(results, Results) else read_results(results)
    write_results(found)
    return write_report(found, png).resolve()
