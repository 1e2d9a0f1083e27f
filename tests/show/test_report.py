import errno
import html
import io
import itertools
import math
import os
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import comparison
from examples import parse
from plotly.offline import get_plotlyjs
from rich.console import Console

from tunewright.search.judge.analysis import group_trials, summarize
from tunewright.search.judge.answer import answers
from tunewright.search.judge.comparison import Comparison
from tunewright.search.playbook import RULES
from tunewright.search.show import report
from tunewright.search.show.chapter import NO_CURVES
from tunewright.search.show.report import pictures, write_report
from tunewright.search.show.tables import plan_table, summary_cells, summary_table
from tunewright.search.show.web import packed
from tunewright.search.store.results import Results
from tunewright.search.store.storage import Store, create_store
from tunewright.search.trial import EMPTY_CURVE, Curve, Point, Trial, Verdict

STABLE = Verdict("feasible", "none", math.inf, "stable: loss 2.3 to 0.1")
DIVERGED = Verdict("diverged", "mid_training", 40, "loss <far> above its start & staying there")


def trials(count: int = 8, steps: int = 100) -> list[Trial]:
    """Half of each optimizer; the upper quarter of learning rates diverged; one crash at the
    end.
    """
    random = np.random.default_rng(0)
    finished = []
    for number in range(count):
        share = number / count
        point = Point(
            number=number,
            batch_size=32 if number % 4 < 2 else 256,
            optimizer=("momentum", "adam")[number % 2],
            base_lr=1e-3 * 1e3**share,
            clip_norm=(math.inf, 1.0, 10.0)[number % 3],
        )
        loss = (
            2.3
            * np.exp(-np.linspace(0, 1 + 3 * share, steps))
            * np.exp(0.1 * random.standard_normal(steps))
        )
        evaluations = np.arange(0, steps + 1, steps // 20)
        error = 0.9 * np.exp(-np.linspace(0, 1 + 3 * share, len(evaluations)))
        curve = Curve(loss, 1 + loss, evaluations, {"val_error": error}, steps)
        verdict = STABLE if share < 0.75 else DIVERGED
        finished.append(Trial.from_curve(point, verdict, curve, "val_error", seconds=1.5))
    return [*finished, Trial.from_crash(Point(count, 32, "momentum", 0.1), "CUDA out of memory")]


def results(folder: Path, finished: list[Trial], **known: Any) -> Results:
    """Of a study whose file is that of the examples; `study` are changes of it."""
    study = parse(**{"question": "?"} | known.pop("study", {}))
    return Results(Store(study, folder, {}), finished, **known)


def write(folder: Path, finished: list[Trial], **known: Any) -> str:
    folder.mkdir(exist_ok=True)
    path = write_report(results(folder, finished, **known))
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """What a browser would fetch, the headings, and the rows of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.rows: list[int] = []
        self.headings: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.fetched += [value for value in known if not value.startswith("#")]
        self.inside = tag
        if tag == "table":
            self.rows.append(0)
        elif tag == "tr":
            self.rows[-1] += 1

    def handle_data(self, data: str) -> None:
        if self.inside in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())


def test_the_report_fetches_nothing_and_holds_plotly_once(tmp_path: Path) -> None:
    text = write(tmp_path, trials())
    assert Outline(text).fetched == []
    assert text.count(packed(get_plotlyjs())) == 1
    assert not re.search(r"@import|url\(\s*http", text)


def test_every_trial_has_a_row_and_every_varied_hyperparameter_a_plot(tmp_path: Path) -> None:
    text = write(tmp_path, trials())
    # per group a row and its best point; per trial a row
    assert Outline(text).rows == [1 + 2 * 4, 1 + 9]
    assert [
        text.count(f'id="{name}"') for name in ("axis_base_lr", "axis_optimizer", "axis_clip_norm")
    ] == [1] * 3
    assert text.count('id="axis_') == 3
    assert "CUDA out of memory" in text


def test_every_id_of_a_rule_says_the_rule(tmp_path: Path) -> None:
    text = write(tmp_path, trials(), comparison=comparison([[0.1, 0.2]], [0.3, 0.4]))
    body = re.sub(r"<(script|style)>.*?</\1>|<script .*?</script>", "", text, flags=re.DOTALL)
    said = re.findall(r'<abbr title="([^"]+)">([RS]\d+)</abbr>', body)
    assert {"R1", "R3", "R6", "S4", "S5", "S9", "R16", "R20"} <= {id for _, id in said}
    assert all(html.unescape(sentence) == RULES[id].sentence for sentence, id in said)
    rest = re.sub(r"<abbr .*?</abbr>", "", body)
    assert re.findall(r"\b[RS]\d{1,2}\b", rest) == []


def test_the_order_of_the_sections(tmp_path: Path) -> None:
    text = write(tmp_path, trials(), environment={"torch": "2.13"})
    assert Outline(text).headings == [
        "s",
        "Batch size 32",
        "Batch size 256",
        "Result per group",
        "What to look at",
        "Axis plots",
        "Training curves",
        "Gradient norms",
        "The best points in a script of your own",
        "How to read this",
        "All trials",
        "Provenance",
    ]


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    text = write(
        tmp_path / "report.html",
        trials(),
        study={"question": "<script>alert(1)</script> a < b"},
        environment={"command": "a && b"},
    )
    for escaped in (
        "&lt;script&gt;alert(1)",
        "a &lt; b",
        "a &amp;&amp; b",
        "loss &lt;far&gt; above",
    ):
        assert escaped in text
    assert "<script>alert(1)" not in text
    assert "<far>" not in text


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    assert write(tmp_path / "a", trials()) == write(tmp_path / "b", trials())


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, trials())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_study_without_trials_has_a_report(tmp_path: Path) -> None:
    assert "No trial has finished." in write(tmp_path, [])


def test_a_folder_without_curves_says_so_and_one_with_them_does_not(tmp_path: Path) -> None:
    kept = trials()
    assert NO_CURVES not in write(tmp_path / "kept", kept)
    lost = write(tmp_path / "lost", [replace(trial, curve=EMPTY_CURVE) for trial in kept])
    section = lost.partition('<section id="training-curves"')[2].partition("</section>")[0]
    assert NO_CURVES in section
    assert "<figure" not in section
    crashed = Trial.from_crash(Point(0, 32, "momentum", 0.1), "CUDA out of memory")
    assert NO_CURVES not in write(tmp_path / "crashed", [crashed])


def test_128_trials_of_1000_steps_take_seconds_and_a_few_megabytes(tmp_path: Path) -> None:
    many = trials(128, 1000)
    begin = time.process_time()
    text = write(tmp_path, many)
    assert time.process_time() - begin < 5
    assert len(text) < 2_500_000


@pytest.mark.parametrize("baseline", [None, [0.30, 0.31, 0.29, 0.30, 0.32, 0.30]])
def test_a_comparison_is_a_chapter_with_its_decision_its_costs_and_its_warnings(
    tmp_path: Path, baseline: list[float] | None
) -> None:
    found = comparison([[0.2, 0.21, 0.22, 0.2, 0.19, 0.2]], baseline, warning="Mind <this>.")
    text = write(tmp_path, trials(), comparison=found)
    outline = Outline(text)
    assert outline.headings[3] == "Against the baseline"  # after the answers
    assert outline.headings[5:8] == ["What to look at", "Against the baseline", "Axis plots"]
    assert f">{found.decision}</span>" in text
    assert found.decision == ("adopt" if baseline else "not enough evidence")
    for words in (
        "Mind &lt;this&gt;.",
        "test_error 0.21",
        "runs/&lt;best&gt;.pt",
        "base_lr 0.001 to 10",
    ):
        assert words in text
    assert (">unknown</td>" in text) == (baseline is None)


def test_with_a_comparison_the_baseline_is_the_first_row_and_gain_a_column_of_both_tables(
    tmp_path: Path,
) -> None:
    found = comparison([[0.2, 0.21]], None, checkpoint=0.25)
    text, plain = (
        write(tmp_path / "a", trials(), comparison=found),
        write(tmp_path / "b", trials()),
    )
    before, after = Outline(plain).rows, Outline(text).rows
    assert (after[0], after[-1]) == (before[0] + 1, before[-1] + 1)
    assert text.count(">gain</th>") == 3  # and one of the comparison
    assert text.count(f"{found.gain_in_words}.") == 2
    assert ">gain</th>" not in plain
    body = text.split('id="result-per-group"')[1].split("<tbody>")[1]
    name = "baseline: &lt;best&gt;.pt"
    row = rf'^\s*<tr><th scope="row" class="text">{name}</th>.*?<td>0.25</td><td>0</td>'
    assert re.search(row, body)
    body = text.split('id="all-trials"')[1].split("<tbody>")[1]
    row = '<tr id="trial-baseline"><th scope="row" data-value="baseline">baseline</th>'
    assert body.strip().startswith(row)


def test_gain_is_above_0_for_what_is_better_and_a_dash_where_nothing_trained() -> None:
    found, only = comparison([[0.2, 0.21]], None, checkpoint=0.25), seeded(0, 0.1, 0, 0.2)
    for error, gain in ((0.2, "+0.05"), (0.25, "0"), (0.5, "-0.25")):
        assert summary_cells(summarize([seeded(0, 0.1, 0, error)])[0], [], found)["gain"] == gain
    [row] = summarize([replace(only, verdict=DIVERGED)])
    assert summary_cells(row, [], found)["gain"] == "–"


def test_the_report_of_a_store_uses_the_study(tmp_path: Path) -> None:
    study = parse(question="Which base LR?")
    store = create_store(study, tmp_path)
    path = write_report(Results.read(store))
    assert path == store.folder / "report.html"
    assert "Which base LR?" in path.read_text(encoding="utf-8")


def test_the_space_of_a_study_holds_its_ranges_only() -> None:
    assert parse().ranges == {
        "momentum": {"base_lr": (1e-3, 10.0, True)},
        "adam": {"base_lr": (1e-5, 0.1, True)},
    }


@pytest.mark.parametrize("found", [None, comparison([[0.2, 0.21]], None)])
def test_the_summary_fits_80_columns(found: Comparison | None) -> None:
    file = io.StringIO()
    table = summary_table(answers(trials(16), summarize(trials(16))), comparison=found)
    Console(file=file, width=80).print(table)
    text = file.getvalue()
    assert ("baseline" in text) == (found is not None)
    if found:
        assert found.gain_in_words in text
    assert max(map(len, text.splitlines())) <= 80
    assert "unstable" in text
    assert "…" not in text


def seeded(
    number: int, base_lr: float, seed: int, error: float, verdict: Verdict = STABLE, **point: Any
) -> Trial:
    curve = Curve(
        np.full(9, 2.0), np.ones(9), np.array([0, 9]), {"val_error": np.array([0.9, error])}, 9
    )
    return Trial.from_curve(
        Point(number, 32, "adam", base_lr, seed=seed, **point), verdict, curve, "val_error", 1.0
    )


def test_scientific_groups_are_compared_in_one_picture() -> None:
    clips = [
        seeded(number, lr, 0, lr, clip_norm=clip)
        for number, (lr, clip) in enumerate(itertools.product((0.1, 0.2), (1.0, math.inf)))
    ]

    def names(finished: list[Trial], scientific: list[str]) -> list[str]:
        known = results(Path(), finished, study={"scientific": scientific})
        return [picture.name for picture in pictures(known)]

    rest = ["axis_clip_norm", "training_curves", "gradient_norms"]
    assert names(clips, []) == ["axis_base_lr", *rest]
    # tuned over the same base LRs
    assert names(clips, ["clip_norm"]) == ["comparison", "axis_base_lr", *rest]
    assert names(clips[:2], ["clip_norm"]) == ["training_loss", *rest]  # nothing tuned


def test_several_seeds_show_their_mean_their_spread_and_their_share_at_the_edge(
    tmp_path: Path,
) -> None:
    finished = [seeded(s, 0.1, s, 0.1 + 0.1 * s) for s in range(3)]
    finished += [seeded(3 + s, 0.4, s, 0.5, STABLE if s else DIVERGED) for s in range(3)]
    [row] = summarize(finished)
    cells = summary_cells(row, [])
    assert cells["best value"] == "0.2 (0.1 – 0.3)"
    assert cells["unstable_base_lr"] == "0.1 – 0.4 (1 of 3)"
    assert "Every configuration was trained with 3 seeds" in write(tmp_path / "three", finished)
    assert "seeds" not in write(tmp_path / "one", finished[::3]).split("</table>")[0]
    asked = {"seeds": {"all": 1, "finalists": 3, "of": 2}}
    assert "Finalists were trained with 3 seeds" in write(tmp_path / "few", finished, study=asked)


def test_the_plan_counts_configurations_and_says_how_many_seeds() -> None:
    study = parse(trials=6, seeds=3)
    file = io.StringIO()
    Console(file=file, width=140).print(plan_table(study, {32: 0.001, 256: 0.002}))
    assert file.getvalue().count("3 × 3 seeds") == 4
    assert "9 s" in file.getvalue()  # 3 configurations × 3 seeds × 1000 updates × 1 ms


def test_a_group_without_a_feasible_trial_is_a_row_of_dashes() -> None:
    file = io.StringIO()
    only = [trial for trial in trials() if trial.verdict.crashed]
    Console(file=file, width=140).print(summary_table(answers(only, summarize(only))))
    assert "no evidence" in file.getvalue()
    assert "nan" not in file.getvalue()
    assert "inf " not in file.getvalue()


def test_of_too_many_trials_the_best_of_each_group_have_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_ROWS", 20)
    finished = trials(40)
    text = write(tmp_path, finished)
    listed = set(re.findall(r'<tr id="trial-(\d+-\d+)"', text))
    assert len(listed) == 20
    assert "20 of 41 trials: the best of each group." in text
    assert 'href="trials.csv"' in text
    assert set(re.findall(r'href="#trial-([^"]*)"', text)) <= listed
    left_out = [
        one for one in finished if f"{one.point.batch_size}-{one.point.number}" not in listed
    ]
    worst = [
        max(one.best_value for one in own if one not in left_out)
        for own in group_trials(finished).values()
    ]
    for own, limit in zip(group_trials(finished).values(), worst, strict=True):
        assert all(one.best_value >= limit for one in own if one in left_out and one.feasible)


@pytest.mark.parametrize(
    ("seeds", "candidates", "words"),
    [
        (6, 1, "0.0156 is the smallest p that 6 paired runs can show: it says that every run is"),
        (5, 2, "the correction for 2 candidates makes it larger: above 0.05, they cannot decide"),
        (4, 1, "0.0625 is the smallest p that 4 paired runs can show: above 0.05, they cannot"),
    ],
)
def test_a_rank_test_at_its_floor_is_explained(
    tmp_path: Path, seeds: int, candidates: int, words: str
) -> None:
    found = comparison([[0.1 + i / 100 for i in range(seeds)]] * candidates, [0.5] * seeds)
    assert words in write(tmp_path, trials(), comparison=found)


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, True),
        ({"decay_vectors": True}, False),
        ({"workload": ..., "imported": "sqlite:///mine.db"}, False),
        (
            {
                "workload": ...,
                "command": ["train", "{base_lr}", "{batch_size}"],
                "log": {"path": "{run_dir}/log", "loss": "loss"},
            },
            False,
        ),
    ],
)
def test_code_leaves_vectors_out_of_weight_decay_only_where_training_is_known_to(
    tmp_path, changes, alone
) -> None:
    optimizers = {"adamw": {"base_lr": {"low": 1e-3, "high": 1.0, "log": True}}}
    one = trials()[0]
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
    point = replace(one.point, optimizer="adamw", clip_norm=math.inf, settings=settings)
    study = {"space": {"optimizer": optimizers}, **changes}
    text = html.unescape(write(tmp_path, [replace(one, point=point)], study=study))
    assert ("make(name, params, settings, lr)" in text) is alone
    assert ("make(name, params, settings, lr, decay_vectors=True)" in text) is not alone
    assert ("torch.optim.AdamW([{" in text) is alone
    assert ("torch.optim.AdamW(params, lr=" in text) is not alone
