import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import comparison
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from stored import diverged, feasible, small_study

from tunewright.search.judge.analysis import summarize
from tunewright.search.show.notes import KEPT, annotate, verdict_note
from tunewright.search.store.results import Results, read_diagnosis, read_scaling
from tunewright.search.store.storage import Store, create_store
from tunewright.search.trial import Trial
from tunewright.search.words import readable

TRIALS = [
    feasible(0, 0.1, 0.05),
    feasible(1, 0.2, 0.2),
    diverged(2, 0.4, onset_step=90),
    diverged(3, 5.0, onset_step=3),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(small_study(batch_sizes=[32, 64]), tmp_path)


def note_of(trials: list[Trial]) -> str:
    study = small_study()
    return verdict_note(study, 32, summarize(trials, study.scientific_names))


def row_of(note: str) -> list[str]:
    """The cells of the table's only row."""
    _, _, row = (line for line in note.splitlines() if line.startswith("|"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def attributes(store: Store, batch_size: int = 32) -> dict[str, Any]:
    """Where the dashboard keeps notes and figures, cut into pieces."""
    study = store.optuna_studies[batch_size]
    found: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    return found


def figures(store: Store, batch_size: int) -> dict[str, Any]:
    texts = get_plotly_graph_objects(attributes(store, batch_size))
    return {name: json.loads(text) for name, text in texts.items()}


def test_the_note_says_where_the_edge_is() -> None:
    assert row_of(note_of(TRIALS)) == [
        "momentum", "0.1", "–", "0.05", "0.2 – 0.4", "4 ×", "50%", "100", "**on the edge**"
    ]  # fmt: skip


def test_without_instability_the_edge_lies_beyond_what_was_tried() -> None:
    row = row_of(note_of([feasible(0, 0.1, 0.05), feasible(1, 0.2, 0.2), feasible(2, 0.01, 0.2)]))
    assert row[4:7] == ["> 0.2", "–", "0%"]


def test_without_a_feasible_trial_there_is_no_lr_star() -> None:
    row = row_of(note_of([diverged(0, 5.0, onset_step=3)]))
    assert row == ["momentum", "–", "–", "–", "0 – 5", "–", "100%", "–", "**unstable**"]


def test_crashed_trials_are_no_evidence_and_are_named() -> None:
    note = note_of([*TRIALS, Trial.from_crash(TRIALS[0].point, "out of memory")])
    assert row_of(note) == row_of(note_of(TRIALS))
    assert "**crashed**, not counted: 1." in note
    assert "crashed" not in note_of(TRIALS)


def test_each_batch_size_has_a_note_and_axis_plots_of_its_own(store: Store) -> None:
    other = [feasible(0, 0.3, 0.1, batch_size=64), diverged(1, 3.0, 50, batch_size=64)]
    annotate(Results(store, [*TRIALS, *other]))
    assert "| 0.1 |" in get_note(store.optuna_studies[32])
    assert "| 0.3 |" in get_note(store.optuna_studies[64])
    marks = [
        sum(len(trace["x"]) for trace in figures(store, batch_size)["axis-base_lr"]["data"])
        for batch_size in (32, 64)
    ]
    assert marks == [len(TRIALS), len(other)]
    assert store.optuna_studies[32].metric_names == ["val_error"]


def test_writing_again_replaces_and_the_same_again_changes_nothing(store: Store) -> None:
    many = [feasible(n, 0.01 * 1.1**n, 0.1 + 0.01 * n) for n in range(60)]
    annotate(Results(store, many))
    annotate(Results(store, TRIALS))
    once = attributes(store)
    annotate(Results(store, TRIALS))
    assert attributes(store) == once
    assert list(figures(store, 32)) == ["axis-base_lr"]
    assert sum(len(trace["x"]) for trace in figures(store, 32)["axis-base_lr"]["data"]) == len(
        TRIALS
    )


def test_with_a_comparison_the_note_has_the_decision_the_baseline_and_the_distance_to_it(
    store: Store,
) -> None:
    found = comparison([[0.01, 0.02]], None, checkpoint=0.03)
    annotate(Results(store, TRIALS, comparison=found))
    note = get_note(store.optuna_studies[32])
    header, _, first, row = (
        [cell.strip() for cell in line.split("|")] for line in note.splitlines() if "|" in line
    )
    place = header.index("gain")
    assert header[place - 1] == "best value"
    assert (first[1], first[place - 1], first[place]) == ("baseline: <best>.pt", "0.03", "0")
    assert (row[place - 1], row[place]) == ("0.05", "-0.02")
    assert f"**{found.decision}**" in note
    assert found.gain_in_words in note
    lines = figures(store, 32)["axis-base_lr"]["layout"]["shapes"]
    assert [shape["y0"] for shape in lines if shape["type"] == "line"] == [0.03]


def test_what_somebody_wrote_below_the_line_stays(store: Store) -> None:
    study = store.optuna_studies[32]
    annotate(Results(store, TRIALS[:2]))
    save_note(study, get_note(study) + "\nLooks odd: ask Ada.\n")
    annotate(Results(store, TRIALS))
    note = get_note(study)
    assert "on the edge" in note
    assert note.split(KEPT)[1].strip() == "Looks odd: ask Ada."


def test_a_note_written_before_the_first_verdict_stays_too(store: Store) -> None:
    study = store.optuna_studies[32]
    save_note(study, "My own plan.")
    annotate(Results(store, TRIALS))
    assert get_note(study).split(KEPT)[1].strip() == "My own plan."


def test_a_study_without_trials_gets_a_note_and_no_plot(store: Store) -> None:
    annotate(Results(store, []))
    assert "0 trials" in get_note(store.optuna_studies[32])
    assert figures(store, 32) == {}


def test_scientific_values_cannot_break_the_table() -> None:
    study = small_study(workload_args={"norm": ["pre|post", "none"]})
    points = [
        replace(TRIALS[0].point, workload_args={"norm": norm}) for norm in ("pre|post", "none")
    ]
    trials = [replace(TRIALS[0], point=point) for point in points]
    note = verdict_note(study, 32, summarize(trials, study.scientific_names))
    rows = [line for line in note.splitlines() if line.startswith("|")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [10, 10, 10, 10]
    assert "momentum, norm = pre\\|post" in note


def test_the_note_of_a_diagnosed_study_tells_the_diagnosis(store: Store) -> None:
    """Of the batch size that it is about; the verdict follows, and writing again replaces both."""
    shipped = Path(__file__).parents[2] / "results" / "diagnose_post_norm"
    found = read_diagnosis(shipped)
    assert found
    (group,) = found.groups
    own = replace(group, group=replace(group.group, batch_size=32))
    found = replace(found, groups=(own,), recipes={"32": "recipe.toml"})
    for _ in range(2):
        annotate(Results(store, TRIALS, diagnosis=found))
    note = get_note(store.optuna_studies[32])
    assert note.startswith("## Diagnosis at batch size 32\n")
    assert note.count(own.summary) == 1
    assert f"Adopted: **{own.adopted}**" in note
    assert f"tunewright run {store.folder / 'recipe.toml'} --results {store.folder}" in note
    rows = [line for line in note.splitlines() if line.startswith("| ")]
    remedies = [line for line in rows if any(f" {one.name} |" in line for one in own.remedies)]
    assert len(remedies) == len(own.remedies) > 3
    assert note.index("## Diagnosis") < note.index("## val_error at batch size 32")
    other = get_note(store.optuna_studies[64])
    assert own.summary not in other
    assert "Recipe" not in other


def test_the_note_of_each_batch_size_tells_what_all_say_together(store: Store) -> None:
    found = read_scaling(Path(__file__).parents[2] / "results" / "scaling_digits")
    assert found
    annotate(Results(store, TRIALS, scaling=found))
    for batch_size in (32, 64):
        note = get_note(store.optuna_studies[batch_size])
        assert note.count("## Scaling with the batch size") == 1
        assert all(f"**{one.label}**: {one.sentence}." in note for one in found.groups)
        assert note.index("## val_error") < note.index("## Scaling")
        assert f"| {readable(found.groups[0].sizes[0].best_value)} |" in note


def test_importance_is_in_the_note_that_the_dashboard_shows_and_costs_no_run(store: Store) -> None:
    many = [feasible(i, 10 ** (-3 + 0.1 * i), 0.05 + 0.01 * i) for i in range(12)]
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tunewright.search.show.notes.importances",
            lambda trials, direction: asked.append(direction) or {"momentum.base_lr": 0.9},
        )
        annotate(Results(store, many))
        assert (asked, "importance" in get_note(store.optuna_studies[32])) == ([], False)
        annotate(Results(store, many), importance=True)
    note = get_note(store.optuna_studies[32])
    assert "- **importance within momentum** (fANOVA): base_lr 90%." in note
