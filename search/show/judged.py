"""Logs and their verdicts on the terminal.

Where there are several, each has a row in a table; then follows what is to be told of each.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..judge.readout import KINDS
from ..playbook import CITATION, COLUMNS, legend
from ..words import INDENT, fitted, readable, wrapped

if TYPE_CHECKING:
    from rich.table import Table

    from ..judge_logs import JudgedLog


def print_judged(
    judged: Sequence[JudgedLog], errors: Mapping[str, str], as_json: bool = False
) -> None:
    """Print what logs say, for people or as a JSON list.

    Which of them cannot be read is said on standard error.
    """
    if as_json:
        unread = [{"source": source, "error": sentence} for source, sentence in errors.items()]
        print(json.dumps([*(one.record() for one in judged), *unread], indent=2, default=str))
    else:
        _print_for_people(judged)
    for sentence in errors.values():
        print(fitted(sentence, sys.stderr), file=sys.stderr)


def _print_for_people(judged: Sequence[JudgedLog]) -> None:
    if len(judged) > 1:
        from .tables import print_table

        print_table(judged_table(judged))
    for one in judged:
        print(judged_block(one), end="\n\n")
    told = " ".join(sentence for one in judged for sentence in one.sentences)
    if cited := set(CITATION.findall(told)):
        print(legend(cited))


def judged_table(judged: Sequence[JudgedLog]) -> Table:
    """A row for each log."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in _CELLS.items():
        table.add_column(name, justify="right" if justify else "left", overflow="fold")
    for one in judged:
        table.add_row(*map(Text, _cells(one)))
    return table


# the columns of the table, and whether they hold numbers
_CELLS = {
    "log": False,
    "verdict": False,
    "instability": False,
    "since step": True,
    "clipped": True,
    "clip at": True,
}


def _cells(one: JudgedLog) -> list[str]:
    readout = one.readout
    verdict = readout.verdict
    return [
        one.log.source,
        verdict.outcome,
        "" if verdict.instability == "none" else KINDS[verdict.instability],
        _or_nothing(verdict.onset_step, f"{verdict.onset_step:.0f}"),
        _or_nothing(readout.clip_fraction, f"{readout.clip_fraction:.0%}"),
        _or_nothing(readout.clip_start, readable(readout.clip_start)),
    ]


def _or_nothing(value: float, text: str) -> str:
    return text if math.isfinite(value) else ""


def judged_block(one: JudgedLog) -> str:
    """What is to be told of a log, within the width of a terminal."""
    first = f"{one.log.source} ({one.log.format})"
    higher = ", better when higher" if one.maximize else ""
    guessed = f"Guessed: {one.columns}{higher}." if one.columns else ""
    sentences = [sentence for sentence in (*one.sentences, guessed) if sentence]
    return "\n".join([first, *(wrapped(sentence, COLUMNS, INDENT) for sentence in sentences)])
