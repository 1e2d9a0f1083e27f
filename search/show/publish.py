"""What a run leaves in a results folder for people and their tools, beside the database."""

from __future__ import annotations

from collections.abc import Mapping

from ..judge.analysis import summarize
from ..store.files import atomic, name_of, write_json
from ..store.results import read_comparison
from ..store.storage import Store, drop_checkpoints, read_trials
from ..store.table import write_table
from .notes import annotate


def write_results(store: Store, provenance: Mapping[str, object] | None = None) -> None:
    """trials.csv, summary.json and the dashboard's notes; environment.json if there is something to
    put in it.
    """
    trials = read_trials(store)
    drop_checkpoints(store, trials)
    write_table(store.folder / "trials.csv", trials, read_comparison(store.folder))
    summaries = summarize(trials, store.study.scientific_names, store.study.ranges)
    write_json(store.folder / "summary.json", [row.record() for row in summaries])
    if provenance:
        write_json(store.folder / "environment.json", provenance)
    annotate(store, trials)
    crashes = [trial for trial in trials if trial.verdict.crashed]
    log = store.folder / "crashed.log"
    with atomic(log) as temporary:
        temporary.write_text(
            "".join(f"{name_of(t.point)}: {t.verdict.evidence}\n{t.traceback}\n" for t in crashes),
            encoding="utf-8",
            errors="backslashreplace",
        )
    if not crashes:
        log.unlink()
