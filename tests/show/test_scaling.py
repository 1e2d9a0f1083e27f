"""Scaling as figures, as a chapter of the report, and in rows, from sweeps whose law is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import scaled

from tunewright.search.judge.scaled import ScalingReport, told
from tunewright.search.judge.scaling import scalings
from tunewright.search.show.plots import (
    law_figure,
    law_info,
    target_figure,
    target_info,
    trends_figure,
    trends_info,
)
from tunewright.search.show.report import write_report
from tunewright.search.show.scaling import (
    edge_in_words,
    miss_rows,
    optimum_in_words,
    prediction_rows,
    print_scaling,
    scaling_sentences,
    size_rows,
)
from tunewright.search.show.scaling_chapter import scaling_chapter
from tunewright.search.store.results import read_results

SHIPPED = Path(__file__).parents[2] / "results"


@cache
def report() -> ScalingReport:
    trials = scaled.Scaled(noise=0.01).trials()
    found = scalings(trials, "val_error", predict=[64, 4096])
    return ScalingReport("val_error", False, None, tuple(map(told, found)))


def only() -> object:
    (one,) = report().groups
    return one


def test_the_law_is_drawn_over_what_was_measured_with_what_was_asked_for():
    (panel,) = law_info(report()).panels
    assert [one.batch_size for one in panel.optima] == [one.batch_size for one in only().sizes]
    assert [one.value for one in panel.optima] == [one.optimum.base_lr for one in only().sizes]
    assert [one.batch_size for one in panel.asked] == [64, 4096]
    ((last, beyond),) = panel.extrapolated  # dashed from the end of the law to what was asked
    assert (last, beyond) == (panel.law[-1], panel.asked[-1])
    names = {trace.name for trace in law_figure(law_info(report())).data}
    assert {"optimal base_lr", "edge of stability", "predicted", "lr_star"} <= names


def test_an_optimum_that_is_a_bound_is_drawn_as_one():
    first, *others = only().sizes
    bound = replace(first.optimum, where="above", base_lr=0.1, interval=(0.1, math.inf))
    one = replace(only(), sizes=(replace(first, optimum=bound), *others))
    info = law_info(replace(report(), groups=(one,)))
    assert info.panels[0].optima[0].interval == (0.1, math.inf)
    assert law_figure(info).data
    assert optimum_in_words(bound) == "≥ 0.1"
    assert optimum_in_words(replace(bound, where="below")) == "≤ 0.1"
    assert edge_in_words((0.1, math.inf)) == "> 0.1"
    assert edge_in_words((0.0, 0.2)) == "< 0.2"


def test_updates_to_a_target_are_drawn_with_the_guide_of_perfect_scaling():
    (panel,) = target_info(report()).panels
    targets = only().targets
    assert [(one.batch_size, one.value) for one in panel.reached] == [
        (one.batch_size, one.updates) for one in targets.reached
    ]
    (first, updates), (last, fewest) = panel.perfect
    assert updates / fewest == pytest.approx(last / first)
    assert len(target_figure(target_info(report())).data) >= 2


def test_a_group_without_target_or_law_is_told_by_what_is_left():
    bare = replace(
        only(), targets=None, exponent=None, laws=(), left_out=(), predictions=(), optimum_band=()
    )
    without = replace(report(), groups=(bare,))
    assert target_info(without).panels == ()
    assert target_info(without).without == (bare.label,)
    assert law_figure(law_info(without)).data
    (group,) = scaling_chapter(without, [])["groups"]
    assert (group["laws"], group["misses"], group["predictions"]) == ([], [], [])
    assert [row["updates to target"] for row in size_rows(bare)] == ["–"] * len(bare.sizes)
    assert not any("Left out" in sentence for sentence in scaling_sentences(bare))


def test_trends_are_drawn_by_value():
    info = trends_info(report())
    drawn = trends_figure(info)
    decades = next(one for one in only().trends if one.name == "usable decades")
    assert any(list(trace.y) == [value for _, value in decades.values] for trace in drawn.data)


def test_rows_mark_what_is_extrapolated_and_what_fails():
    inside, beyond = prediction_rows(only())
    assert (inside[""], beyond[""]) == ("", "extrapolated")
    first, *others = only().left_out
    failing = replace(only(), left_out=(replace(first, miss=2.0, reach=0.1), *others))
    (failed, *_) = miss_rows(failing)
    assert failed[first.law] == "+2.00 ± 0.10, fails"


def test_the_terminal_shows_all_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_scaling(report())
    printed = capsys.readouterr().out
    assert only().sentence in printed
    assert "extrapolated" in printed


@pytest.mark.parametrize("name", ["scaling_digits", "scaling_transformer"])
def test_shipped_results_have_the_chapter(name, tmp_path):
    results = read_results(SHIPPED / name)
    assert results.scaling is not None
    here = replace(results, store=replace(results.store, folder=tmp_path))
    page = write_report(here).read_text()
    assert 'id="scaling"' in page
    for told_of in results.scaling.groups:
        assert told_of.sentence[1:] in page
