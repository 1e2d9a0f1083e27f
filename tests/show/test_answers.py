"""The sentences that a run ends with, and the table below them at 80 columns."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from stored import small_study

from tunewright.search.judge.analysis import Group
from tunewright.search.judge.answer import Answer
from tunewright.search.judge.diagnosis import Edge, GroupDiagnosis, Remedy
from tunewright.search.show.answers import (
    SHORT,
    answer_sentence,
    next_commands,
    next_in_words,
    settings_in_words,
)
from tunewright.search.show.tables import print_table
from tunewright.search.store.results import Results
from tunewright.search.store.storage import create_store
from tunewright.search.trial import EMPTY_CURVE, Outcome, Point, Trial, Verdict
from tunewright.search.words import ratio, readable

VARIED = ("base_lr", "warmup_steps", "clip_norm")


def trial(
    number: int, base_lr: float, value: float, outcome: Outcome = "feasible", **own: object
) -> Trial:
    point = Point(number, 256, "rmsprop", base_lr, **own)
    verdict = Verdict(outcome, "none", math.inf, "")
    return Trial(point, verdict, EMPTY_CURVE, value, 10, 2.3, 0.1, 0.0, 1.0)


SWEEP = [
    trial(0, 0.001, 0.3),
    trial(1, 0.004, 0.0838, warmup_steps=10, clip_norm=10.0),
    trial(2, 0.008, 0.0902),
    trial(3, 0.012, 0.083, warmup_steps=10, clip_norm=10.0),
    trial(4, 0.02, 0.0874),
    trial(5, 0.03, 0.0835),
    trial(6, 0.068, 0.4),
]


def results(tmp_path: Path, trials: list[Trial], **keys: object) -> Results:
    study = small_study(batch_sizes=[256])
    return Results(create_store(study, tmp_path), trials, **keys)


def sentence(tmp_path: Path, trials: list[Trial]) -> str:
    [answer] = results(tmp_path, trials).answers
    return answer_sentence(answer, "val_loss", VARIED)


def test_after_a_comparison_none_is_advised(tmp_path: Path) -> None:
    [stable] = results(tmp_path, [*SWEEP, trial(7, 0.3, math.inf, "diverged")]).answers
    assert "tunewright compare" in next_in_words(stable, compared=False)
    assert next_in_words(stable, compared=True) == ""
    [open_end] = results(tmp_path / "open", SWEEP).answers
    assert "widen" in next_in_words(open_end, compared=True)


def test_a_sentence_says_what_to_use_how_sure_and_what_next(tmp_path: Path) -> None:
    assert sentence(tmp_path, SWEEP) == (
        "batch size 256: rmsprop, base_lr 0.012 (0.004 to 0.03 as good), warmup 10, clip 10: "
        "val_loss 0.083. "
        "Edge not reached up to base_lr 0.068: widen the range."
    )
    [answer] = results(tmp_path / "again", SWEEP).answers
    assert (answer.point.base_lr, answer.value) == (0.012, 0.083)
    wide = [*SWEEP[:2], *(trial(i, 0.003 * 1.4**i, 0.083) for i in range(2, 12))]
    assert "(a basin, 0.00588 to 0.121 as good)" in sentence(tmp_path / "wide", wide)
    above = [*SWEEP[:-1], trial(7, 0.5, 2.3, "diverged")]
    assert (
        "Edge not reached: above base_lr 0.03 one trial alone was tried, which failed at 0.5: "
        "widen the range." in sentence(tmp_path / "above", above)
    )


@pytest.mark.parametrize(
    ("infeasible", "words"),
    [
        (0.04, "On the edge: training breaks between base_lr 0.03 and 0.04, 3.3 × the best: try"),
        (0.06, "Stable: training breaks between base_lr 0.03 and 0.06, 5 × the best."),
        (12.0, "Stable: training breaks between base_lr 0.068 and 12, over 100 × the best."),
    ],
)
def test_a_sentence_says_where_training_breaks(
    tmp_path: Path, infeasible: float, words: str
) -> None:
    assert words in sentence(tmp_path, [*SWEEP, trial(9, infeasible, 2.3, "diverged")])


def test_a_best_far_below_the_edge_on_a_flat_is_told_as_a_flat(tmp_path: Path) -> None:
    """A lucky best at the lower end: how far the edge is above it says little."""
    flat = [trial(i, 0.003 * 2**i, 0.083 + 0.004 * i) for i in range(9)]
    text = sentence(
        tmp_path, [*flat, trial(9, 1.0, 2.3, "diverged"), trial(10, 2.0, 2.3, "diverged")]
    )
    assert "over 100 × the best, flat from 0.003 to 0.768, within 5 % of what is learned" in text
    assert "is learned (LR sensitivity 0.19)." in text


def test_a_mean_over_seeds_has_its_range_and_what_is_off_is_said_so(tmp_path: Path) -> None:
    again = [replace(one, point=replace(one.point, number=9, seed=1)) for one in SWEEP]
    seeds = [*SWEEP, *(replace(one, best_value=one.best_value + 0.002) for one in again)]
    text = sentence(tmp_path, seeds)
    assert "val_loss 0.084 (mean of 2 seeds, 0.083 to 0.085)" in text
    off = sentence(
        tmp_path, [replace(one, point=replace(one.point, number=0)) for one in SWEEP[:1]]
    )
    assert ", no warmup, no clipping: val_loss 0.3" in off


@pytest.mark.parametrize("name", ["clip_norm", "clip_z", "clip_tensor"])
def test_what_clips_is_told_without_a_word_of_what_does_not(name: str) -> None:
    point = Point(0, 8, "momentum", 0.1, **{name: 1.05})
    found = settings_in_words(point, ["warmup_steps", "clip_norm", "clip_z", "clip_tensor"])
    assert found == ["no warmup", f"{SHORT.get(name, name)} 1.05"]


def test_where_nothing_trains_the_sentence_says_to_lower_base_lr(tmp_path: Path) -> None:
    text = sentence(tmp_path, [trial(0, 0.5, 2.3, "diverged"), trial(1, 0.1, 2.3, "collapsed")])
    assert text.startswith("batch size 256: nothing trains: even base_lr 0.1, the lowest")
    crashed = sentence(tmp_path, [trial(0, 0.5, math.inf, "crashed")])
    assert crashed == "batch size 256: no trial says anything of its point yet."


def test_with_a_diagnosis_its_verdict_comes_first_and_what_it_adopted(tmp_path: Path) -> None:
    [answer] = results(tmp_path, SWEEP).answers
    point = Point(0, 256, "adam", 0.00464, warmup_steps=40)
    remedy = Remedy("adam", point, 100, 0.1, 1.0, 0.1, 0.0, 0.07, "t", "r", (0.07, 0.09))
    found = GroupDiagnosis(
        Group(256, "rmsprop"), "early", 0.01, Edge((0.1, 0.2), (), 0), (), (), (remedy,), "adam",
        "Unstable from the first steps. Adopt adam.",
    )  # fmt: skip
    told: Answer = replace(answer, found=found)
    assert told.value == pytest.approx(0.08)
    text = answer_sentence(told, "val_loss", VARIED)
    assert text.startswith("batch size 256: Unstable from the first steps. Adopt adam. Use adam, ")
    assert "base_lr 0.00464, warmup 40" in text


def test_what_comes_next_follows_from_the_verdicts(tmp_path: Path) -> None:
    file = Path("studies/small.toml")
    reached = [*SWEEP, trial(9, 12.0, 2.3, "diverged")]
    near = [*SWEEP, trial(9, 0.04, 2.3, "diverged")]
    firsts = [
        next_commands(results(tmp_path / str(i), trials), file)[0].split()[1]
        for i, trials in enumerate((SWEEP, reached, near))
    ]
    assert firsts == ["check", "compare", "diagnose"]
    for trials in (SWEEP, reached, near):
        assert len(next_commands(results(tmp_path, trials), file)) == 2


@pytest.mark.parametrize("value", [0.001234, 0.5, 9.96, 99.96, 562.3, 999.7, 5.6e2, 123456.0])
def test_numbers_are_written_out(value: float) -> None:
    assert "e" not in readable(value)
    assert "e" not in ratio(value)
    assert float(readable(value)) == pytest.approx(value, rel=6e-3)


def test_a_table_that_does_not_fit_is_printed_as_a_list_and_no_word_is_broken() -> None:
    words = [f"word{i}" * 3 for i in range(9)]
    table = Table(title="Title")
    for word in words:
        table.add_column(word)
    table.add_row(*(f"{word}-value" for word in words))
    file = io.StringIO()
    print_table(table, Console(file=file, width=80, force_terminal=True, color_system=None))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in words:
        assert word in text.split()
        assert f"{word}-value" in text.split()


def test_no_clipping_is_said_once_however_many_thresholds_are_off(tmp_path: Path) -> None:
    point = replace(SWEEP[0].point, clip_norm=math.inf)
    told = settings_in_words(point, ["warmup_steps", "clip_norm", "clip_z", "clip_tensor"])
    assert told.count("no clipping") == 1
    assert not any("inf" in one for one in told)
