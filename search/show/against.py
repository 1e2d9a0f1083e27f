"""A comparison with a baseline as a chapter of the report: decision, evidence, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..judge.comparison import (
    ALPHA,
    Candidate,
    Comparison,
    Decision,
    failures_in_words,
    holm,
    smallest_p,
)
from ..words import readable
from .plots import versus_figure, versus_info
from .tables import (
    LEFT,
    comparison_rows,
    cost_rows,
    interval_method,
    on_test_split,
)
from .web import Picture, drawing

COLOURS: Mapping[Decision, str] = {
    "adopt": "good",
    "keep baseline": "bad",
    "not enough evidence": "warn",
}


def versus(result: Comparison) -> Picture:
    """The figure of a comparison."""
    info = versus_info(result)
    return Picture("Against the baseline", "versus", versus_figure(info), 2, info.in_words())


def chapter(result: Comparison) -> dict[str, Any]:
    """The comparison with a baseline, for the template."""
    corrected = holm([one.evidence.p_better for one in result.candidates])
    return {
        "decision": result.decision,
        "colour": COLOURS[result.decision],
        "objective": result.objective,
        "value": readable(result.checkpoint.value),
        "interval_method": interval_method(result),
        "gain": result.gain_in_words,
        "checkpoint": result.checkpoint,
        "seeds": range(result.first_seed, result.first_seed + result.seeds),
        "candidates": [
            {
                "name": one.side.name,
                "decision": one.decision,
                "colour": COLOURS[one.decision],
                "facts": list(_facts(one, p, len(corrected))),
                "sentences": list(_sentences(one, len(corrected))),
            }
            for one, p in zip(result.candidates, corrected, strict=True)
        ],
        "rows": comparison_rows(result),
        "costs": cost_rows(result),
        "text_columns": LEFT,
        "test": on_test_split(result),
        "warnings": result.warnings,
        "figure": drawing(versus(result)),
    }


def _facts(one: Candidate, p: float, candidates: int) -> Iterator[dict[str, str]]:
    """The evidence that decides, each number with what it is."""
    found = one.evidence
    low, high = map(readable, found.gain_interval)
    share_low, share_high = found.better_interval
    of = "paired runs" if found.paired else "runs against one checkpoint"
    yield {"name": "gain", "value": readable(found.gain), "note": f"95 % interval {low} to {high}"}
    yield {
        "name": "P(better)",
        "value": f"{found.better_fraction:.0%}",
        "note": f"95 % interval {share_low:.0%} to {share_high:.0%}",
    }
    yield {"name": "seeds", "value": str(found.seeds), "note": of}
    corrected = f", corrected for {candidates} candidates" if candidates > 1 else ""
    yield {"name": "p", "value": readable(p), "note": f"to adopt: {ALPHA:g} or less{corrected}"}


def _sentences(one: Candidate, candidates: int) -> Iterator[str]:
    """What the runs leave open, and what p cannot say with so few of them."""
    yield failures_in_words(one.side.infeasible, len(one.side.values)).capitalize()
    found = one.evidence
    least, runs = smallest_p(found.paired, found.seeds), "paired runs" if found.paired else "runs"
    told = f"{readable(least)} is the smallest p that {found.seeds} {runs} can show"
    if candidates * least > ALPHA:
        corrected = f", and the correction for {candidates} candidates makes it larger"
        told += corrected if candidates > 1 else ""
        yield f"{told}: above {ALPHA:g}, they cannot decide, whatever their values are (S9)"
    elif min(found.p_better, found.p_worse) <= least * (1 + 1e-9):
        side = "better" if found.p_better < found.p_worse else "worse"
        yield f"{told}: it says that every run is {side}, and the gain says by how much (S9)"
