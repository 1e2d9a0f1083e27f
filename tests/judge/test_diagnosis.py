"""Records of a diagnosis, and which remedy they say to adopt."""

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import Simulated, diagnosed

from tunewright.search.judge.comparison import ALPHA, CONFIDENCE
from tunewright.search.judge.diagnosis import (
    TITLES,
    Curvature,
    Diagnosis,
    Edge,
    GroupDiagnosis,
    Remedy,
    Step,
    adopt,
)
from tunewright.search.judge.stability_edge import Tried
from tunewright.search.show.tables import interval_method, remedy_rows
from tunewright.search.store.results import DIAGNOSIS_FILE, read_diagnosis, write_diagnosis
from tunewright.search.trial import Group, Point


def remedy(name, *values, decision=None, **changes):
    own = Remedy(
        name=name,
        point=Point(0, 32, "momentum", 0.1, settings={"momentum": 0.9}),
        updates=400,
        highest_base_lr=0.3,
        usable_decades=1.0,
        lr_sensitivity=math.nan,
        clip_fraction=0.0,
        tuned_value=0.2,
        tuned_in=f"tune-{name}",
        values=values,
        decision=decision,
    )
    return replace(own, **changes)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_one_more_run_falls_within_the_prediction_interval_of_a_normal_distribution(values):
    """For x of N values, (x − mean) / (s √(1 + 1/N)) has Student's distribution with N − 1 degrees
    of freedom.
    """
    low, high = remedy("plain", *values).next_run
    count = len(values)
    scale = np.std(values, ddof=1) * math.sqrt(1 + 1 / count)
    expected = (
        stats.t.interval(CONFIDENCE, count - 1, loc=np.mean(values), scale=scale)
        if scale > 0
        else (low, high)
    )
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert low <= np.mean(values) + 1e-9
    assert high >= np.mean(values) - 1e-9


def test_one_more_run_does_so_in_the_stated_share_of_cases():
    runs = np.random.default_rng(0).standard_normal((2000, 6))
    within = 0
    for *seen, one_more in runs.tolist():
        low, high = remedy("plain", *seen).next_run
        within += low <= one_more <= high
    assert stats.binomtest(within, len(runs), CONFIDENCE).pvalue > 0.001


@pytest.mark.parametrize("values", [(), (0.1,)])
def test_of_fewer_than_two_runs_nothing_is_predicted(values):
    assert all(map(math.isnan, remedy("plain", *values).next_run))


# --- the edge -------------------------------------------------------------------------------------


def test_unstable_base_lr_is_the_middle_of_its_bracket_on_the_log_axis():
    edge = Edge((0.1, 0.4), (), 20)
    assert edge.unstable_base_lr == pytest.approx(0.2)
    assert edge.decades == pytest.approx(math.log10(4))


@pytest.mark.parametrize("interval", [(0.1, math.inf), (0.0, 0.1), (0.0, math.inf)])
def test_an_open_bracket_is_no_edge(interval):
    edge = Edge(interval, (), 0)
    assert not edge.found
    assert (edge.decades, edge.unstable_base_lr) == (math.inf, math.inf)
    assert group(edge=edge).headroom == (math.inf, math.inf)


def test_headroom_is_relative_to_lr_star():
    assert group(edge=Edge((0.2, 0.3), (), 0), lr_star=0.1).headroom == pytest.approx((2.0, 3.0))


# --- adoption -------------------------------------------------------------------------------------


def test_what_is_not_shown_to_be_better_is_not_adopted():
    others = [
        remedy("a", 0.1, decision="not enough evidence"),
        remedy("b", 0.3, decision="keep baseline"),
    ]
    assert adopt([remedy("plain", 0.2), *others], {}) == "plain"
    assert adopt([], {}) == ""


def test_the_best_is_adopted_unless_a_simpler_one_cannot_be_told_from_it():
    plain, a, b, c = (
        remedy("plain", 0.9),
        remedy("a", 0.3, decision="adopt"),
        remedy("b", 0.2, decision="adopt"),
        remedy("c", 0.1, decision="adopt"),
    )
    shown, unknown = ALPHA / 2, ALPHA * 2
    better = dict.fromkeys([("c", "a"), ("c", "b")], shown)
    assert adopt([plain, a, b, c], better) == "c"
    assert adopt([plain, a, b, c], better | {("c", "b"): unknown}) == "b"
    assert adopt([plain, a, b, c], better | {("c", "a"): unknown}) == "a"
    undecided = replace(a, decision="not enough evidence")
    assert adopt([plain, undecided, b, c], better | {("c", "a"): unknown}) == "c"


# --- as a file ------------------------------------------------------------------------------------


def group(**changes):
    own = GroupDiagnosis(
        group=Group(32, "momentum", (("depth", 3), ("norm", "pre"))),
        kind="early",
        lr_star=0.1,
        edge=Edge((0.2, 0.25), (Tried(0.2, 1, 5), Tried(0.25, 4, 5)), 20),
        onset_steps=(3.0, 5.0),
        steps=(Step("sweep", ("R3",), ("Seen <so> & so.",), ("sweep",)),),
        remedies=(remedy("plain", 0.3, 0.2), remedy("clipping", 0.1, 0.2, decision="adopt")),
        adopted="clipping",
        summary="Unstable.",
    )
    return replace(own, **changes)


def whole(*groups):
    return Diagnosis(
        "s", "val_error", 5, 4000, math.inf, ("momentum-32-probe",), groups, {"32": "recipe.toml"}
    )


@cache
def found(edge):
    return diagnosed(Simulated(edge, best_base_lr=1.0))[0]


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (group(),),
        (group(curvature=Curvature(3.0, 200.0, math.nan, math.nan)),),
        (
            group(
                lr_star=math.nan,
                edge=Edge((0.0, 0.1), (), 0),
                onset_steps=(math.inf,),
                remedies=(),
                adopted="",
            ),
        ),
        (found(0.08), found(1e-9)),
        (found(math.inf),),
    ],
)
def test_diagnosis_json_is_read_as_it_was_written_nan_and_inf_included(groups, tmp_path):
    written = whole(*groups)
    write_diagnosis(tmp_path, written)
    read = read_diagnosis(tmp_path)
    assert repr(read) == repr(written)  # nan is not equal to itself
    first = (tmp_path / "diagnosis.json").read_bytes()
    write_diagnosis(tmp_path, read)
    assert (tmp_path / "diagnosis.json").read_bytes() == first
    json.loads(first, parse_constant=pytest.fail)  # strict: no bare NaN or Infinity


def test_without_a_file_there_was_no_diagnosis(tmp_path):
    assert read_diagnosis(tmp_path) is None


def test_every_step_of_a_diagnosis_has_a_title_and_a_rule():
    for step in found(0.08).steps:
        assert step.title == TITLES[step.name]
        assert step.rules
        assert step.sentences


def test_the_best_group_of_a_batch_size_is_the_one_whose_adopted_training_is_best():
    worse = group(group=Group(32, "sgd"), adopted="plain")
    other = group(group=Group(64, "adam"))
    nothing = group(group=Group(32, "adam"), remedies=(), adopted="")
    result = whole(nothing, worse, group(), other)
    assert result.best(32) == group()
    assert result.best(64) == other
    assert result.best(128) is None
    assert whole(nothing).best(32) is None


def test_a_group_that_was_not_rerun_is_as_good_as_where_it_was_tuned():
    tuned = group(remedies=(remedy("plain", tuned_value=0.01),), adopted="plain")
    assert whole(group(), tuned).best(32) == tuned


def test_a_diagnosis_from_before_still_opens_with_headroom_relative_to_lr_star(tmp_path):
    before = Path(__file__).parents[1] / "golden" / "diagnosis_before_rounds.json"
    shutil.copy(before, tmp_path / DIAGNOSIS_FILE)
    (found,) = read_diagnosis(tmp_path).groups
    assert found.headroom == pytest.approx((1.33, 1.78), abs=0.01)
    assert math.isnan(found.best_base_lr)
    assert interval_method(found) == "percentile bootstrap"
    assert len(remedy_rows(found)) == len(found.remedies)
