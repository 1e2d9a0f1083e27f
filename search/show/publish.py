"""What a run leaves in a results folder for people and their tools, beside the database."""

from __future__ import annotations

from ..store.files import atomic, name_of, write_json
from ..store.places import TABLE
from ..store.results import Results
from ..store.storage import drop_checkpoints
from ..store.table import write_table
from .notes import annotate


def write_results(results: Results) -> None:
    """trials.csv, summary.json, the dashboard's notes, and crashed.log if a trial crashed."""
    folder, trials = results.folder, results.trials
    drop_checkpoints(results.store, trials)
    write_table(folder / TABLE, trials, results.comparison, results.study)
    write_json(folder / "summary.json", [row.record() for row in results.summaries])
    annotate(results)
    crashes = [trial for trial in trials if trial.verdict.crashed]
    log = folder / "crashed.log"
    with atomic(log) as temporary:
        temporary.write_text(
            "".join(f"{name_of(t.point)}: {t.verdict.evidence}\n{t.traceback}\n" for t in crashes),
            encoding="utf-8",
            errors="backslashreplace",
        )
    if not crashes:
        log.unlink()
