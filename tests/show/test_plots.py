import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from compared import comparison
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.search.judge.edge_ratio import EdgeRatio, EdgeRun
from tunewright.search.judge.readout import read_out
from tunewright.search.judge.stability_edge import Tried
from tunewright.search.show.plots import (
    Told,
    axis_figure,
    axis_info,
    comparable,
    curves_figure,
    curves_info,
    edge_figure,
    edge_info,
    is_untuned,
    loss_figure,
    loss_info,
    norms_figure,
    norms_info,
    overlay_figure,
    overlay_info,
    ratio_figure,
    ratio_info,
    training_figure,
    training_info,
    versus_figure,
    versus_info,
)
from tunewright.search.show.plots.arrange import (
    BREAK,
    WIDE,
    arranged,
    height_of,
    width_of,
    wrapped,
)
from tunewright.search.show.plots.axis import MOST_MARKS, MOST_TOLD, AxisInfo, Mark
from tunewright.search.show.plots.curves import MOST_LINES
from tunewright.search.show.plots.overlay import Repeated
from tunewright.search.show.plots.style import (
    RAIL_NAME,
    colours,
    linear_ticks,
    log_axis,
    log_ticks,
)
from tunewright.search.show.plots.thin import thin
from tunewright.search.trial import EMPTY_CURVE, Array, Curve, Group, Outcome, Point, Trial, Verdict
from tunewright.search.words import readable

STEPS = 200
FALLING = 2.3 * np.exp(-np.linspace(0, 3, STEPS))


def curve(loss: Array = FALLING) -> Curve:
    norm = np.where(np.isfinite(loss), 1 + loss, np.nan)
    return Curve(loss, norm, np.arange(0, len(loss)), {"val_error": loss}, STEPS)


def trial(
    number: int,
    base_lr: float,
    best_value: float = math.inf,
    outcome: Outcome = "feasible",
    measured: Curve = EMPTY_CURVE,
    **point: Any,
) -> Trial:
    return Trial(
        point=Point(
            **{"number": number, "batch_size": 32, "optimizer": "momentum", "base_lr": base_lr}
            | point
        ),
        verdict=Verdict(outcome, "none", math.inf, "loss < 1e3 & falling"),
        curve=measured,
        best_value=best_value,
        best_step=90,
        initial_value=0.9,
        last_loss=1.0,
        clip_fraction=0.25,
        seconds=1.0,
    )


FOUR = [
    trial(0, 0.1, 0.2),
    trial(1, 0.01, 0.3),
    trial(2, 1.0, 0.05, "diverged"),
    trial(3, 0.2, 0, "crashed"),
]


def marks(info: AxisInfo) -> list[Mark]:
    return [mark for panel in info.panels for mark in panel.marks]


def drawn(figure: go.Figure) -> int:
    return sum(len(trace.x) for trace in figure.data if trace.mode == "markers")


def texts_of(figure: go.Figure) -> list[str]:
    """The texts in a figure, in lines of any length."""
    return [note.text.replace(BREAK, " ") for note in figure.layout.annotations]


values = st.floats(1e-6, 1e2)
outcomes = st.sampled_from(["feasible", "non_finite", "diverged", "collapsed", "crashed"])
any_trial = st.builds(
    trial,
    st.integers(0, 500),
    values,
    values,
    outcomes,
    batch_size=st.sampled_from([32, 256]),
    optimizer=st.sampled_from(["momentum", "adam"]),
    clip_norm=st.sampled_from([1.0, 10.0, math.inf]),
    warmup_steps=st.sampled_from([0, 10, 100]),
)


@settings(deadline=None)  # the first figure is slow
@given(
    st.lists(any_trial, min_size=1, max_size=12),
    st.sampled_from(["base_lr", "clip_norm", "warmup_steps"]),
)
def test_marks_drawn_are_trials(trials: list[Trial], axis: str) -> None:
    info = axis_info(trials, axis, "val_error", log=axis == "base_lr")
    left_out = sum(count for _, count in info.not_varied)
    assert len(marks(info)) + left_out == len(trials)
    assert drawn(axis_figure(info)) + left_out == len(trials)


@given(st.lists(any_trial, min_size=1, max_size=12))
def test_only_feasible_trials_set_the_range(trials: list[Trial]) -> None:
    info = axis_info(trials, "optimizer", "val_error")
    low, high = info.y_range
    for mark in marks(info):
        if mark.kind in ("feasible", "best", "winner"):
            assert low <= mark.y <= high
        else:
            assert mark.y > high


def test_the_best_is_a_star_and_infeasible_and_crashed_stand_on_rails() -> None:
    info = axis_info(FOUR, "base_lr", "val_error", log=True)
    assert [mark.kind for mark in marks(info)] == ["best", "feasible", "infeasible", "crashed"]
    assert [mark.x for mark in marks(info)] == [0.1, 0.01, 1.0, 0.2]
    assert marks(info)[1].y == 0.3 < marks(info)[2].y < marks(info)[3].y
    assert (info.y_range, info.log_x, info.log_y, info.categories) == ((0.2, 0.3), True, False, ())
    assert info.panels[0].note == "lr_star = 0.1, headroom 10 ×"
    looks = {
        trace.name: (trace.marker.symbol, trace.marker.color) for trace in axis_figure(info).data
    }
    assert looks["best"] == ("star", "#009E73")
    assert looks["feasible"] == ("circle", "#0072B2")
    assert looks["infeasible"][0] == "x-thin"


def test_a_band_holds_the_base_lrs_that_are_as_good_and_the_star_is_the_best_of_them() -> None:
    values = {0.01: 0.5, 0.1: 0.203, 0.2: 0.201, 0.3: 0.204, 0.4: 0.2, 0.5: 0.202, 0.9: 0.6}
    tried = [trial(i, rate, value) for i, (rate, value) in enumerate(values.items())]
    info = axis_info(tried, "base_lr", "val_error", log=True)
    [panel] = info.panels
    assert panel.as_good == (0.1, 0.5)
    assert panel.note == "lr_star = 0.1 (to 0.5 as good), nothing infeasible above it"
    assert [mark.x for mark in panel.marks if mark.kind == "best"] == [0.4]
    traces = {trace.name: trace for trace in axis_figure(info).data}
    assert set(traces["as good"].x) == {0.1, 0.5}
    assert (traces["best"].x, traces["best"].y) == ((0.4,), (0.2,))
    told = {panel.group: Told(0.2, (0.2, 0.3), "by a diagnosis")}
    [panel] = axis_info(tried, "base_lr", "val_error", log=True, told=told).panels
    assert (panel.as_good, panel.note) == ((0.2, 0.3), "by a diagnosis")
    assert [mark.x for mark in panel.marks if mark.kind == "best"] == [0.2]
    [other] = axis_info(tried, "optimizer", "val_error").panels
    assert all(map(math.isnan, other.as_good))
    assert [mark.y for mark in other.marks if mark.kind == "best"] == [0.2]


def test_the_same_trials_give_the_same_info() -> None:
    assert axis_info(FOUR, "base_lr", "val_error") == axis_info(list(FOUR), "base_lr", "val_error")


def test_every_group_has_a_panel_and_a_star() -> None:
    trials = [
        trial(number, lr, lr, batch_size=batch, optimizer=optimizer)
        for number, lr in enumerate((0.1, 0.2))
        for batch in (256, 32)
        for optimizer in ("momentum", "adam")
    ]
    info = axis_info(trials, "base_lr", "val_error", log=True)
    assert [panel.group for panel in info.panels] == [
        Group(32, "adam"),
        Group(32, "momentum"),
        Group(256, "adam"),
        Group(256, "momentum"),
    ]
    assert sum(mark.kind == "best" for mark in marks(info)) == 4
    across = axis_info(trials, "optimizer", "val_error")
    assert [panel.group.label for panel in across.panels] == [
        "batch size 32, all optimizers",
        "batch size 256, all optimizers",
    ]
    assert across.categories == ("adam", "momentum")


def test_choices_are_ordered_categories_that_jitter_does_not_mix() -> None:
    trials = [trial(n, 0.1, 0.1 + n, clip_norm=c) for n, c in enumerate([math.inf, 1.0, 10.0] * 40)]
    info = axis_info(trials, "clip_norm", "val_error", log=True)
    assert info.categories == ("1", "10", "inf")
    assert not info.log_x
    assert [round(mark.x) for mark in marks(info)] == [2, 0, 1] * 40
    assert len({mark.x for mark in marks(info)}) == 120


def cut(number: int, base_lr: float, value: float, step: int = 50) -> Trial:
    """A trial that its study stopped after so many of STEPS updates."""
    so_far = replace(curve(FALLING[:step]), total_steps=STEPS)
    stopped = trial(number, base_lr, value, "unfinished", so_far)
    evidence = f"cut at step {step} of {STEPS}: val_error {value}, where the best 3 had reached 0.3"
    return replace(stopped, verdict=replace(stopped.verdict, evidence=evidence))


def test_a_cut_trial_stands_at_its_value_with_a_mark_of_its_own_and_is_never_the_best() -> None:
    trials = [*FOUR, cut(4, 0.02, 0.1), cut(5, 0.003, 0.7)]
    info = axis_info(trials, "base_lr", "val_error", log=True)
    found = {mark.number: (mark.kind, mark.x, mark.y) for mark in marks(info)}
    assert found[4] == ("cut", 0.02, 0.1)
    assert found[5] == ("cut", 0.003, 0.7)
    assert found[0][0] == "best"
    assert info.y_range == (0.1, 0.7)
    assert "lr_star = 0.1, headroom 10 ×, 2 cut, 1 infeasible, 1 crashed" in info.in_words()
    names = {trace.name for trace in axis_figure(info).data}
    assert names == {"best", "feasible", "infeasible", "crashed", "stopped at 25%, value then"}


def test_trials_that_were_cut_at_different_steps_are_told_as_stopped_early() -> None:
    info = axis_info(
        [*FOUR, cut(4, 0.02, 0.1), cut(5, 0.003, 0.7, step=80)], "base_lr", "val_error"
    )
    assert "stopped early, value then" in {trace.name for trace in axis_figure(info).data}


def test_an_unfinished_trial_that_no_study_cut_stays_on_its_rail() -> None:
    info = axis_info([*FOUR, trial(4, 0.02, 0.1, "unfinished")], "base_lr", "val_error")
    assert marks(info)[-1].kind == "unfinished"
    assert info.y_range == (0.2, 0.3)


def test_crosses_of_a_choice_are_scattered_over_its_rail() -> None:
    failed = [trial(n, 1.0, 0.9, "diverged", clip_norm="a") for n in range(200)]
    info = axis_info([*failed, trial(200, 0.1, 0.2, clip_norm="b")], "clip_norm", "val_error")
    across, up = zip(*((mark.x, mark.y) for mark in marks(info)[:200]), strict=True)
    assert abs(np.corrcoef(across, up)[0, 1]) < 0.2


def test_few_repeated_numbers_are_categories_and_many_are_a_scale() -> None:
    warmups = [trial(n, 0.1, 0.1, warmup_steps=w) for n, w in enumerate([0, 10, 100] * 2)]
    assert axis_info(warmups, "warmup_steps", "val_error").categories == ("0", "10", "100")
    many = [trial(n, 0.1, 0.1, settings={"momentum": n / 10}) for n in range(9)]
    assert axis_info(many, "momentum", "val_error").categories == ()


def test_an_optimizer_that_does_not_vary_the_axis_is_named_not_dropped() -> None:
    trials = [trial(n, 0.1, 0.1, settings={"momentum": n / 10}) for n in range(3)]
    info = axis_info([*trials, trial(3, 0.1, 0.1, optimizer="adam")], "momentum", "val_error")
    assert info.not_varied == (("adam", 1),)
    assert "1 trials of adam" in texts_of(axis_figure(info))[-1]


def test_a_setting_of_a_decay_is_an_axis_of_the_trials_that_have_it() -> None:
    trials = [
        *(
            trial(n, 0.1, 0.1, decay="wsd", decay_settings={"decay_fraction": n / 10})
            for n in (1, 3)
        ),
        *(trial(n, 0.1, 0.1) for n in (4, 5, 6)),
    ]
    info = axis_info(trials, "decay_fraction", "val_error")
    (panel,) = info.panels
    assert [mark.x for mark in panel.marks] == [0.1, 0.3]
    assert info.not_varied == (("momentum", 3),)
    text = texts_of(axis_figure(info))[-1]
    assert "3 trials of momentum that do not vary decay_fraction" in text


@pytest.mark.parametrize(
    ("best", "log"), [((0.01, 0.9), True), ((0.1, 0.9), False), ((-1.0, 0.9), False)]
)
def test_the_value_axis_is_logarithmic_over_more_than_one_and_a_half_decades(
    best: tuple[float, float], log: bool
) -> None:
    assert (
        axis_info([trial(0, 0.1, best[0]), trial(1, 0.2, best[1])], "base_lr", "val_error").log_y
        is log
    )


def test_a_scientific_hyperparameter_has_panels_of_its_own_unless_it_is_the_axis() -> None:
    trials = [
        trial(n, 0.1 * (n + 1), 0.1, workload_args={"norm": "pre" if n % 2 else "post"})
        for n in range(4)
    ]
    split = axis_info(trials, "base_lr", "val_error", scientific=["norm"])
    assert [dict(panel.group.scientific) for panel in split.panels] == [
        {"norm": "post"},
        {"norm": "pre"},
    ]
    assert len(axis_info(trials, "norm", "val_error", scientific=["norm"]).panels) == 1


def test_the_best_of_each_value_stands_out_of_the_others_at_any_base_lr() -> None:
    tried = [
        trial(0, 0.1, 0.5),
        trial(1, 1.0, 0.3),
        trial(2, 0.1, 0.2, warmup_steps=10),
        trial(3, 1.0, 0.9, warmup_steps=10),
        trial(4, 9.0, 0.1, "diverged", warmup_steps=10),
    ]
    info = axis_info(tried, "warmup_steps", "val_error")
    assert {mark.number: mark.kind for mark in marks(info)} == {
        0: "feasible",
        1: "winner",
        2: "best",
        3: "feasible",
        4: "infeasible",
    }
    hovers = {mark.number: mark.hover for mark in marks(info)}
    assert hovers[1].startswith("<b>best of 2 with warmup_steps = 0</b>")
    assert "base_lr = 1" in hovers[1]
    assert hovers[2].startswith("<b>best of 3 with warmup_steps = 10, 1 infeasible</b>")
    assert "best of" not in hovers[0]
    assert (info.isolated, info.joined) == (True, True)
    figure = axis_figure(info)
    [profile] = [trace for trace in figure.data if trace.mode == "lines"]
    assert profile.y == (0.3, 0.2)
    looks = {trace.name: trace.marker for trace in figure.data if trace.mode == "markers"}
    assert looks["best of its value"].size > looks["other feasible trials"].size
    base_lr = axis_info(tried, "base_lr", "val_error", log=True)
    assert not base_lr.isolated
    assert {mark.kind for mark in marks(base_lr)} == {"feasible", "best", "infeasible"}
    names = [trial(n, 0.1, 0.1 + n, workload_args={"norm": "ab"[n % 2]}) for n in range(4)]
    assert not axis_info(names, "norm", "val_error").joined


def test_of_very_many_trials_the_best_and_the_edge_are_drawn_and_the_rest_is_counted() -> None:
    many = [
        trial(n, 10.0 ** (n / 2000 - 3), 0.1 + (n * 7919 % 5000) / 1e4,
              "feasible" if n < 4000 else "diverged")
        for n in range(5000)
    ]  # fmt: skip
    info = axis_info(many, "base_lr", "val_error", log=True)
    shown = {mark.number for mark in marks(info)}
    assert len(shown) == MOST_MARKS
    assert info.panels[0].undrawn == 5000 - MOST_MARKS
    assert info.in_words().endswith(", 1000 infeasible.")  # drawn or not
    best = sorted((one for one in many if one.feasible), key=lambda one: one.best_value)
    assert {one.point.number for one in best[:1000]} <= shown
    assert set(range(4000, 4500)) <= shown  # the lowest base LRs that diverged
    told = [mark for mark in marks(info) if "<br>" in mark.hover]
    assert len(told) == MOST_TOLD
    assert f"{MOST_MARKS} of 5000 trials drawn" in texts_of(axis_figure(info))[-1]
    assert "5000 in all" in axis_figure(info).layout.title.text.replace(BREAK, " ")
    assert len(axis_figure(info).to_json()) < 400_000


def test_text_of_a_trial_is_escaped_in_hover() -> None:
    assert "loss &lt; 1e3 &amp; falling" in marks(axis_info(FOUR, "base_lr", "val_error"))[0].hover


# --- curves ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=1500),
    st.booleans(),
    st.integers(50, 300),
)
def test_thinning_keeps_order_extremes_and_ends(
    drawn_values: list[float], log: bool, most: int
) -> None:
    full = np.array(drawn_values)
    steps, kept = thin(full, log, most)
    finite = full[np.isfinite(full)]
    assert list(kept) == list(full[list(steps)])
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= most
    if len(finite):
        assert (kept[0], kept[-1]) == (finite[0], finite[-1])
        assert (min(kept), max(kept)) == (finite.min(), finite.max())


@pytest.mark.parametrize("log_steps", [False, True])
def test_a_spike_of_one_step_survives_thinning(log_steps: bool) -> None:
    for at in (3, 40, 5_000, 19_999):
        loss = np.ones(20_000)
        loss[at] = 50
        assert at in thin(loss, log_steps)[0]


def test_the_first_steps_are_drawn_in_full() -> None:
    assert thin(np.random.default_rng(0).random(10_000))[0][:25] == tuple(range(25))


def lr_sweep() -> list[Trial]:
    diverging = np.concatenate([FALLING[:50], 10.0 ** np.arange(1, 40), [math.nan]])
    return [
        trial(0, 0.1, 0.2, measured=curve()),
        trial(1, 0.01, 0.4, measured=curve(FALLING + 0.2)),
        trial(2, 0.2, 0.3, measured=curve(FALLING + 0.1)),
        trial(3, 0.4, 0.3, measured=curve(FALLING + 0.1)),
        trial(4, 0.8, outcome="non_finite", measured=curve(diverging)),
        trial(5, 1.6, outcome="non_finite", measured=curve(diverging)),
        trial(6, 0.05, 0.9),
        trial(7, 0.05, outcome="crashed"),
    ]


def test_lr_star_and_the_next_three_learning_rates_are_picked_out() -> None:
    [panel] = curves_info(lr_sweep(), "val_error").panels
    assert {line.number: line.rank for line in panel.lines} == {
        0: 0,
        1: -1,
        2: 1,
        3: 2,
        4: 3,
        5: -1,
    }
    assert panel.lr_star == 0.1


def test_trials_without_a_curve_are_listed() -> None:
    info = curves_info(lr_sweep(), "val_error")
    assert info.panels[0].missing == (6, 7)
    assert "trials 6, 7" in texts_of(curves_figure(info))[-1]
    assert curves_info(lr_sweep(), "val_error") == info


def test_a_curve_is_drawn_for_every_trial_that_has_one() -> None:
    figure = curves_figure(curves_info(lr_sweep(), "val_error"))
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    chosen = [trace for trace in lines if not trace.name]
    assert (len(chosen), len(lines)) == (4 * 2, 4 * 2 + 2)  # every step, and the running median
    [ends] = [trace for trace in figure.data if trace.mode == "markers"]
    assert list(ends.x) == [88, 88]  # the last finite loss of the two that diverged


def test_a_bold_median_lies_over_the_faint_losses_and_keeps_what_failed_whole() -> None:
    noisy = FALLING * np.exp(0.5 * np.random.default_rng(0).standard_normal(STEPS))
    tried = [
        trial(0, 0.1, 0.2, measured=curve(noisy)),
        trial(1, 0.01, 0.4, measured=curve(noisy)),
        trial(2, 0.05, outcome="diverged", measured=curve(noisy)),
    ]
    [panel] = curves_info(tried, "val_error").panels
    for line in panel.lines:
        assert np.std(np.diff(line.typical_loss)) < np.std(np.diff(line.loss))
    figure = curves_figure(curves_info(tried, "val_error"))
    drawn_lines = [trace for trace in figure.data if trace.mode == "lines"]
    star = [trace for trace in drawn_lines if trace.line.color == "#009E73"]
    assert [len(trace.x) for trace in star] == [
        len(panel.lines[0].loss),
        len(panel.lines[0].typical_loss),
    ]
    assert star[0].line.width < star[1].line.width
    assert star[0].opacity < star[1].opacity
    lengths = {trace.name: len(trace.x) for trace in drawn_lines}
    assert lengths["feasible"] == len(panel.lines[1].typical_loss)
    assert lengths["infeasible"] == len(panel.lines[2].loss)
    assert "running median over 2% of the updates" in figure.layout.title.text.replace(BREAK, " ")


def test_no_colour_in_a_curves_key_is_that_of_what_failed_and_each_is_drawn() -> None:
    figure = curves_figure(curves_info(lr_sweep(), "val_error"))
    key = set(re.findall(r"color:(#[0-9A-F]{6})'><b> ?━", texts_of(figure)[0]))
    drawn_colours = {trace.line.color for trace in figure.data if trace.mode == "lines"}
    others = {trace.line.color for trace in figure.data if trace.name in ("feasible", "infeasible")}
    assert len(key) == 4
    assert key <= drawn_colours
    assert not key & others


def test_of_very_many_curves_those_in_colour_and_the_most_informative_are_drawn() -> None:
    many = [trial(n, 0.001 + n / 1e4, 0.1 + n / 1e3, measured=curve()) for n in range(500)]
    [panel] = curves_info(many, "val_error").panels
    assert panel.undrawn == 500 - len(panel.lines)
    assert len(panel.lines) <= MOST_LINES + 4
    assert {line.rank for line in panel.lines} == {-1, 0, 1, 2, 3}
    figure = curves_figure(curves_info(many, "val_error"))
    assert f"{len(panel.lines)} of 500 curves drawn" in texts_of(figure)[-1]
    assert "training loss of 500 trials" in curves_info(many, "val_error").in_words()


def test_what_diverges_leaves_the_frame_instead_of_setting_it() -> None:
    info = curves_info(lr_sweep(), "val_error")
    assert info.loss_range[1] == pytest.approx(25.0, rel=0.01)  # 10 × the highest initial loss
    assert info.log_loss


def test_on_a_log_axis_the_first_step_is_one() -> None:
    figure = curves_figure(curves_info(lr_sweep(), "val_error", log_steps=True))
    assert min(min(trace.x) for trace in figure.data) == 1
    assert figure.layout.xaxis.type == "log"


def test_without_any_curve_there_is_still_a_figure() -> None:
    assert curves_figure(curves_info(FOUR, "val_error")).layout.annotations


# --- gradient norms -------------------------------------------------------------------------------


def test_norms_are_those_of_lr_star_with_their_90th_percentile() -> None:
    norms = np.arange(1.0, 101.0)
    best = trial(7, 0.1, 0.1, measured=Curve(norms, norms, np.array([0]), {}, 100), clip_norm=50.0)
    info = norms_info([best, trial(8, 0.2, 0.2)])
    [panel] = info.panels
    assert (panel.number, panel.clip_norm, panel.unshown) == (7, 50.0, 0)
    assert panel.percentile == pytest.approx(90.1)
    assert sum(panel.counts) == 100
    figure = norms_figure(info)
    lines = {trace.name: trace.y[0] for trace in figure.data if trace.name}
    assert lines == {"90th percentile": pytest.approx(90.1), "clip_norm": 50.0}


def test_an_infinite_threshold_is_no_line() -> None:
    figure = norms_figure(norms_info([trial(0, 0.1, 0.1, measured=curve())]))
    assert {trace.name for trace in figure.data if trace.name} == {"90th percentile"}


def test_norms_that_no_log_axis_shows_are_counted() -> None:
    norms = np.array([0.0, 1.0, 2.0, math.inf])
    [panel] = norms_info(
        [trial(0, 0.1, 0.1, measured=Curve(norms, norms, np.array([0]), {}, 4))]
    ).panels
    assert (panel.unshown, panel.norms) == (2, (1.0, 2.0))


def test_groups_without_norms_are_named() -> None:
    info = norms_info([trial(0, 0.1, 0.1), trial(1, 0.1, outcome="diverged", optimizer="adam")])
    assert info.missing == (
        "batch size 32, adam: no curve for trial 1",
        "batch size 32, momentum: no curve for trial 0",
    )
    assert texts_of(norms_figure(info))[-1] == "; ".join(info.missing)


def test_a_group_without_a_feasible_trial_shows_its_infeasible_one_at_the_lowest_base_lr() -> None:
    lost = [
        trial(n, lr, outcome="diverged", measured=curve()) for n, lr in enumerate((0.4, 0.2, 0.8))
    ]
    info = norms_info(lost)
    assert [panel.number for panel in info.panels] == [1]
    assert sum(trace.marker.symbol == "x-thin" for trace in norms_figure(info).data) == 1
    assert any("trial 1 (diverged)" in text for text in texts_of(norms_figure(info)))
    assert norms_info([trial(0, 0.1, outcome="crashed")]).panels == ()


def test_groups_of_one_optimizer_share_the_scale_of_norms_and_thresholds() -> None:
    thresholds = [
        trial(n, 0.1, 0.1, measured=curve(), clip_norm=clip)
        for n, clip in enumerate((0.1, math.inf))
    ]
    info = norms_info(thresholds, scientific=["clip_norm"])
    # the smaller threshold, the largest norm: 1 + 2.3
    assert info.scale == (0.1, pytest.approx(3.3))
    figure = norms_figure(info)
    assert figure.layout.yaxis.range == figure.layout.yaxis3.range
    assert figure.layout.xaxis.range == figure.layout.xaxis3.range
    assert (
        norms_info([*thresholds, trial(2, 0.1, 0.1, measured=curve(), optimizer="adam")]).scale
        is None
    )


def test_clipping_more_than_half_of_the_updates_is_pointed_out() -> None:
    clipped = replace(trial(0, 0.1, 0.1, measured=curve(), clip_norm=1.0), clip_fraction=0.6)
    texts = texts_of(norms_figure(norms_info([clipped])))
    assert any("cut 60% of updates: lower base_lr instead (R17)" in text for text in texts)


def test_what_cut_the_updates_is_named() -> None:
    def note(**thresholds: float) -> str:
        clipped = replace(trial(0, 0.1, 0.1, measured=curve(), **thresholds), clip_fraction=0.25)
        return texts_of(norms_figure(norms_info([clipped])))[0]

    assert "clip_" not in note()
    assert "clip_norm = 1 cut 25% of updates" in note(clip_norm=1.0)
    assert "clip_z = 2.5 cut 25% of updates" in note(clip_z=2.5)
    assert "clip_norm = 1 and clip_z = 2.5 cut 25% of updates" in note(clip_norm=1.0, clip_z=2.5)
    assert "clip_tensor = 1.05 cut 25% of tensors" in note(clip_tensor=1.05)


# --- groups over one another ----------------------------------------------------------------------


def repeated(base_lr: float, norm: str, *values: float, infeasible: int = 0) -> list[Trial]:
    """One configuration: a feasible seed per value, then infeasible ones."""
    all_values = [*values, *[0.0] * infeasible]
    return [
        trial(seed, base_lr, value, "feasible" if seed < len(values) else "diverged",
              measured=curve(), seed=seed, workload_args={"norm": norm})
        for seed, value in enumerate(all_values)
    ]  # fmt: skip


PRE_AND_POST = [
    *repeated(0.1, "pre", 0.2, 0.4),
    *repeated(0.2, "pre", 0.1, 0.1),
    *repeated(0.1, "post", 0.3, 0.5),
    *repeated(0.2, "post", 0.1, infeasible=1),
]


def test_an_overlay_has_a_line_per_group_through_means_that_one_infeasible_seed_ends() -> None:
    info = overlay_info(PRE_AND_POST, "val_error", ["norm"])
    post, pre = info.lines
    assert (post.lr_star, pre.lr_star) == (0.1, 0.2)
    assert [point.mean for point in pre.points] == pytest.approx([0.3, 0.1])
    assert post.points == (Repeated(0.1, (0.3, 0.5), 0), Repeated(0.2, (0.1,), 1))
    assert math.isnan(post.points[1].mean)
    assert (info.seeds, info.y_range, info.outdone) == (2, (0.1, 0.5), 0)


@given(st.lists(any_trial, min_size=1, max_size=12))
def test_an_overlay_accounts_for_every_trial(trials: list[Trial]) -> None:
    info = overlay_info(trials, "val_error", ["clip_norm"])
    shown = sum(
        len(point.values) + point.infeasible for line in info.lines for point in line.points
    )
    assert shown + info.outdone + info.crashed == len(trials)


def test_every_seed_of_an_overlay_is_a_mark_in_the_colour_of_its_line() -> None:
    figure = overlay_figure(overlay_info(PRE_AND_POST, "val_error", ["norm"]))
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x-thin"]
    assert [len(trace.x) for trace in crosses] == [1, 0]
    assert crosses[0].y[0] > 0.5  # on the rail
    seeds = [trace for trace in figure.data if trace.marker.opacity == 0.45]
    assert [len(trace.x) for trace in seeds] == [3, 4]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["post", "pre"]
    assert "8 trials, 2 seeds" in texts_of(figure)[-1]


def test_at_each_base_lr_the_best_configuration_is_drawn_and_the_others_are_counted() -> None:
    worse = [
        replace(one, point=replace(one.point, clip_norm=1.0), best_value=0.9)
        for one in PRE_AND_POST[:2]
    ]
    info = overlay_info([*PRE_AND_POST, *worse], "val_error", ["norm"])
    assert info.lines == overlay_info(PRE_AND_POST, "val_error", ["norm"]).lines
    assert info.outdone == 2
    assert "2 trials of others not drawn" in texts_of(overlay_figure(info))[-1]


def test_groups_are_comparable_if_they_were_tried_at_the_same_base_lrs() -> None:
    assert comparable(PRE_AND_POST, ["norm"])
    assert not comparable(PRE_AND_POST, [])
    assert not comparable(PRE_AND_POST[:-2], ["norm"])
    assert not comparable(PRE_AND_POST[:2] + PRE_AND_POST[4:6], ["norm"])  # one base_lr is no curve


def test_losses_are_laid_over_one_another_where_nothing_is_tuned() -> None:
    at_one_lr = [one for one in PRE_AND_POST if one.point.base_lr == 0.2]
    assert is_untuned(at_one_lr, ["norm"])
    assert not is_untuned(PRE_AND_POST, ["norm"])
    assert not is_untuned(at_one_lr[:2], ["norm"])  # one group
    info = loss_info(at_one_lr, ["norm"], sparse_every=50)
    assert [dict(one.group.scientific)["norm"] for one in info.groups] == ["post", "pre"]
    line = info.groups[0].lines[1]
    assert (line.seed, line.infeasible, line.sparse_steps) == (1, True, (0, 50, 100, 150))
    assert line.sparse_loss == tuple(FALLING[::50])
    figure = loss_figure(info)
    # every step, and the running median
    assert sum(trace.mode == "lines" for trace in figure.data) == 8
    assert sum(trace.mode == "lines+markers" for trace in figure.data) == 4
    assert [trace.name for trace in figure.data if trace.showlegend] == ["post", "pre"]
    assert "4 trials, 2 seeds per colour" in texts_of(figure)[-1]


@given(st.integers(20, 160), st.floats(1, 1e6))
def test_the_running_median_ignores_one_spike_that_the_thin_line_keeps(
    at: int, height: float
) -> None:
    loss = np.full(STEPS, 1.0)
    loss[at] += height
    [group] = loss_info([trial(0, 0.1, 0.1, measured=curve(loss))], []).groups
    assert max(group.lines[0].typical_loss) == 1.0
    assert max(group.lines[0].loss) == 1.0 + height


def test_a_trial_without_a_curve_is_counted_under_the_losses() -> None:
    at_one_lr = [
        *repeated(0.1, "pre", 0.2),
        replace(repeated(0.1, "post", 0.2)[0], curve=EMPTY_CURVE),
    ]
    info = loss_info(at_one_lr, ["norm"])
    assert [one.missing for one in info.groups] == [1, 0]
    assert "no curve of 1 more" in texts_of(loss_figure(info))[-1]


def test_one_numeric_scientific_axis_goes_from_dark_to_light_and_names_are_clearly_different() -> (
    None
):
    ordered = colours([{"warmup_steps": steps} for steps in (0, 10, 100)])
    assert len(set(ordered)) == 3
    assert ordered != colours([{"norm": name} for name in ("pre", "post", "none")])


# --- the edge of stability ------------------------------------------------------------------------


def seeds_at(base_lr: float, feasible: int, infeasible: int, **point: Any) -> list[Trial]:
    return [
        trial(
            seed,
            base_lr,
            1 / base_lr,
            "feasible" if seed < feasible else "diverged",
            seed=seed,
            **point,
        )
        for seed in range(feasible + infeasible)
    ]


EDGE = [
    *seeds_at(1e-4, 0, 3),  # too slow to train
    *seeds_at(0.01, 4, 0),
    *seeds_at(0.1, 4, 0),
    *seeds_at(1.0, 3, 1),
    *seeds_at(10.0, 1, 3),
]
LIMITS = {
    Group(32, "momentum"): {"2/λ₁ at initialization": 20.0, "flat": math.inf, "adaptive": math.nan}
}


def test_the_edge_is_fitted_from_lr_star_on_and_bracketed_where_half_diverge() -> None:
    info = edge_info(EDGE, limits=LIMITS)
    [panel] = info.panels
    assert panel.tried[0] == Tried(1e-4, 3, 3)
    assert panel.lr_star == 0.1
    assert panel.fitted == ((0.1, 0.0), (1.0, 0.25), (10.0, 0.75))
    assert (panel.bracket, panel.decades) == ((1.0, 10.0), 1.0)
    assert panel.limits == (("2/λ₁ at initialization", 20.0),)
    assert edge_info(reversed(EDGE), limits=LIMITS).panels == info.panels


def test_every_base_lr_has_a_dot_with_its_confidence_and_every_finite_limit_a_line() -> None:
    figure = edge_figure(edge_info(EDGE, limits=LIMITS))
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == [
        "lr_star",
        "2/λ₁ at initialization",
        "non-decreasing fit",
        "share that diverged",
    ]
    dots = traces["share that diverged"]
    assert list(dots.x) == [1e-4, 0.01, 0.1, 1.0, 10.0]
    assert list(dots.y) == [1.0, 0.0, 0.0, 0.25, 0.75]
    assert dots.y[1] + dots.error_y.array[1] == pytest.approx(1 - 0.025 ** (1 / 4))
    assert dots.marker.size[0] < dots.marker.size[1]  # three trials, four
    assert "<br>1 of 4 infeasible<br>95 %: 0.01 to 0.81" in dots.hovertext[3]
    assert {traces[name].x[0] for name in ("lr_star", "2/λ₁ at initialization")} == {0.1, 20.0}
    [band] = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1) == (1.0, 10.0)
    texts = texts_of(figure)
    assert "1.00 decades" in texts
    assert any("lr_star = 0.1, unstable_base_lr 1 to 10" in text for text in texts)
    low, high = figure.layout.xaxis.range
    assert 10**low < 1e-4 < 20 < 10**high


def test_an_open_bracket_is_shaded_to_the_border_and_a_single_trial_has_no_bar() -> None:
    stable = edge_info([trial(0, 0.1, 0.2), trial(1, 1.0, 0.3)])
    figure = edge_figure(stable)
    assert (stable.panels[0].bracket, stable.panels[0].decades) == ((1.0, math.inf), math.inf)
    assert math.log10(figure.layout.shapes[0].x1) == pytest.approx(figure.layout.xaxis.range[1])
    assert list(figure.data[-1].error_y.array) == [0, 0]
    texts = texts_of(figure)
    assert "½ not reached" in texts
    assert "no bar where one trial stands alone" in texts[-1]
    lost = edge_info([trial(0, 0.1, outcome="diverged"), trial(1, 1.0, outcome="non_finite")])
    assert (lost.panels[0].bracket, lost.panels[0].fitted) == ((0.0, 0.1), ((0.1, 1.0), (1.0, 1.0)))
    figure = edge_figure(lost)
    assert math.log10(figure.layout.shapes[0].x0) == pytest.approx(figure.layout.xaxis.range[0])
    assert any(
        "no feasible trial, unstable_base_lr at most 0.1" in text for text in texts_of(figure)
    )


@settings(deadline=None, max_examples=30)  # figures of many panels are slow
@given(st.lists(any_trial, min_size=1, max_size=12))
def test_an_edge_accounts_for_every_trial(trials: list[Trial]) -> None:
    info = edge_info(trials, ["clip_norm"])
    assert sum(one.trials for panel in info.panels for one in panel.tried) + info.crashed == len(
        trials
    )
    for panel in info.panels:
        low, high = panel.bracket
        assert low < high
        assert math.isnan(panel.lr_star) or low >= panel.lr_star or low == 0
    dots = [trace for trace in edge_figure(info).data if trace.name == "share that diverged"]
    assert sum(len(trace.x) for trace in dots) == sum(len(panel.tried) for panel in info.panels)
    assert sum(bool(trace.showlegend) for trace in dots) == bool(dots)


# --- ticks ----------------------------------------------------------------------------------------


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_linear_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = linear_ticks(low, low + span)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_log_ticks_are_1_2_5_over_few_decades_and_powers_over_many() -> None:
    assert log_ticks(0.01, 0.3) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2])
    assert log_ticks(1.6, 8.0) == [2, 4, 6, 8]
    assert log_ticks(1e-5, 1) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])


@pytest.mark.parametrize("baseline", [None, [0.31, 0.29]])
def test_a_comparison_shows_every_run_and_the_best_of_n_where_there_was_a_search(
    baseline: list[float] | None,
) -> None:
    info = versus_info(comparison([[0.2, 0.21], [0.4, 0.01]], baseline))
    assert [side.values for side in info.sides] == ([(0.31, 0.29)] if baseline else []) + [
        (0.2, 0.21),
        (0.4, 0.01),
    ]
    assert [side.best_of is None for side in info.sides] == ([True] if baseline else []) + [
        False,
        False,
    ]
    assert (info.checkpoint, info.y_range) == (0.3, (0.01, 0.9))
    figure = versus_figure(info)
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert [tuple(trace.y) for trace in marks] == [side.values for side in info.sides]
    pairs = [trace for trace in figure.data if trace.mode == "lines" and None in trace.x]
    assert [tuple(trace.y) for trace in pairs] == (
        [(0.31, 0.2, 0.4, None, 0.29, 0.21, 0.01, None)] if baseline else []
    )
    # the runs stand on an axis of their own, which the bad trials of a search do not stretch
    assert info.runs_range == (0.01, 0.4)
    assert max(figure.layout.yaxis.range) < 0.5


def test_the_gain_of_each_candidate_stands_large_with_its_interval_and_above_0_is_better() -> None:
    result = comparison([[0.2, 0.21], [0.4, 0.01]], [0.31, 0.29])
    info = versus_info(result)
    found = [one.evidence for one in result.candidates]
    assert [(one.gain, one.interval) for one in info.gains] == [
        (one.gain, one.gain_interval) for one in found
    ]
    assert info.gains[0].gain == pytest.approx(0.095)
    marks = [trace for trace in versus_figure(info).data if trace.mode == "markers+text"]
    for mark, one in zip(marks, found, strict=True):
        assert mark.y == (one.gain,)
        assert one.gain + mark.error_y.array[0] == pytest.approx(one.gain_interval[1])
        assert one.gain - mark.error_y.arrayminus[0] == pytest.approx(one.gain_interval[0])
    assert [mark.text for mark in marks] == [("<b>+0.095</b>",), ("<b>+0.095</b>",)]
    colours_of = {trace.legendgroup: trace.marker.color for trace in marks}
    runs = {trace.name: trace.marker.color for trace in versus_figure(info).data if trace.name}
    assert all(runs[name] in (colour, None) for name, colour in colours_of.items())
    low, high = map(readable, info.gains[0].interval)
    assert f"found 0, gain +0.095 ({low} to {high})" in info.in_words()


def test_the_baseline_is_a_dashed_line_that_the_range_holds() -> None:
    finished = [trial(0, 0.1, 0.3), trial(1, 0.2, 0.2)]
    assert axis_info(finished, "base_lr", "val_error").y_range == (0.2, 0.3)
    info = axis_info(finished, "base_lr", "val_error", baseline=0.35)
    assert info.y_range == (0.2, 0.35)
    lines = [shape for shape in axis_figure(info).layout.shapes if shape.type == "line"]
    assert [(line.y0, line.line.dash) for line in lines] == [(0.35, "dash")]
    assert not [
        shape
        for shape in axis_figure(replace(info, baseline=None)).layout.shapes
        if shape.type == "line"
    ]


@pytest.mark.parametrize("low", [1e-300, 1e-143, 1e-20, 1e-9])
def test_ticks_over_very_many_decades_are_few(low: float) -> None:
    ticks = log_ticks(low, 1.0)
    assert 3 <= len(ticks) <= 13
    exponents = np.log10(ticks)
    assert exponents == pytest.approx(np.round(exponents))
    assert np.diff(exponents) == pytest.approx(np.diff(exponents)[0])


# --- columns that fit a width ---------------------------------------------------------------------


def grid(batch_sizes: int, optimizers: int, missing: bool) -> go.Figure:
    """An axis plot of a panel per batch size and optimizer, the last of which may be missing."""
    groups = [(32 * 2**b, f"rule{o}") for o in range(optimizers) for b in range(batch_sizes)]
    groups = groups[: len(groups) - missing or None]
    return axis_figure(
        axis_info(
            [
                trial(n, lr, lr, outcome, batch_size=batch_size, optimizer=optimizer)
                for n, (batch_size, optimizer) in enumerate(groups)
                for lr, outcome in ((1e-4, "feasible"), (0.1, "feasible"), (1.0, "diverged"))
            ],
            "base_lr",
            "val_error",
            log=True,
        )
    )


PHONE, TABLET = 374, 720


def every_figure() -> dict[str, go.Figure]:
    swept, repeats = lr_sweep(), [*PRE_AND_POST]
    one = next(found for found in swept if len(found.curve.loss))
    return {
        "axis": axis_figure(axis_info(swept, "base_lr", "val_error", log=True)),
        "overlay": overlay_figure(overlay_info(repeats, "val_error", ["norm"])),
        "loss": loss_figure(loss_info(repeats, ["norm"], sparse_every=50)),
        "curves": curves_figure(curves_info(swept, "val_error")),
        "norms": norms_figure(norms_info(swept)),
        "edge": edge_figure(edge_info(EDGE, limits=LIMITS)),
        "versus": versus_figure(versus_info(comparison([[0.1, 0.2, 0.15]], [0.3, 0.2, 0.4]))),
        "training": training_figure(training_info(one, read_out(one.curve, one.verdict))),
    }


def test_each_figure_has_a_sentence_with_its_numbers() -> None:
    swept = lr_sweep()
    axis = axis_info(swept, "base_lr", "val_error", log=True).in_words()
    assert axis == (
        "val_error against base_lr, 8 trials: batch size 32, momentum, 8 trials, lr_star = 0.1, "
        "headroom 8 ×, 2 infeasible, 1 crashed."
    )
    assert curves_info(swept, "val_error").in_words() == (
        "training loss of 6 trials: batch size 32, momentum, lr_star = 0.1, above what "
        "is as good 0.2 feasible, 0.4 feasible, 0.8 infeasible."
    )
    assert edge_info(EDGE).in_words() == (
        "how often training diverges, 19 trials: batch size 32, momentum, lr_star = 0.1, "
        "unstable_base_lr 1 to 10."
    )
    assert overlay_info(PRE_AND_POST, "val_error", ["norm"]).in_words() == (
        "best val_error against base_lr: batch size 32, momentum, norm=post, 0.4 at "
        "lr_star = 0.1; batch size 32, momentum, norm=pre, 0.1 at lr_star = 0.2."
    )
    assert "norm=post, 1 of 4 infeasible" in loss_info(PRE_AND_POST, ["norm"]).in_words()
    assert "trial 0, base_lr = 0.1, 90th percentile = 2.7" in norms_info(swept).in_words()
    lost = swept[4]
    told = training_info(lost, read_out(lost.curve, lost.verdict)).in_words()
    assert told.startswith("training loss of one training: from 2.3 to 1e+39; at every step")
    assert (
        axis_info([], "base_lr", "val_error").in_words() == "val_error against base_lr, 0 trials."
    )


def axis_pairs(figure: go.Figure) -> list[tuple[str, str]]:
    return [(x.plotly_name, x.anchor.replace("y", "yaxis")) for x in figure.select_xaxes()]


@pytest.mark.parametrize(("columns", "width"), [(1, PHONE), (2, TABLET)])
def test_every_figure_fits_a_phone_and_a_tablet(columns: int, width: int) -> None:
    for name, figure in every_figure().items():
        change = arranged(figure, columns, width)
        across = width - change["margin.l"] - change["margin.r"]
        tall = change["height"] - change["margin.t"] - change["margin.b"]
        boxes = []
        for x, y in axis_pairs(figure):
            left, right = change[f"{x}.domain"]
            low, high = change[f"{y}.domain"]
            assert 0 <= left < right <= 1, name
            assert 0 <= low < high <= 1, name
            assert (high - low) * tall == pytest.approx(300, abs=1), name
            if columns == 1:
                assert (right - left) * across >= 300, name
            boxes.append((left, right, low, high))
        for i, (left, right, low, high) in enumerate(boxes):
            for other_left, other_right, other_low, other_high in boxes[i + 1 :]:
                assert (
                    right < other_left or other_right < left or high < other_low or other_high < low
                ), name
        texts = [change[key] for key in change if key.startswith("annotations") and "text" in key]
        for text in texts:
            assert all(width_of(line, 12) < width for line in text.split("<br")), (name, text)


@pytest.mark.parametrize("missing", [False, True])
def test_rows_of_panels_stay_together_and_each_axis_keeps_its_title(missing: bool) -> None:
    figure = grid(3, 2, missing)
    wide = {axis.title.text for axis in figure.select_xaxes() if axis.title.text}
    assert wide == {"base_lr"}
    change = arranged(figure, 2, TABLET)
    tops = [round(change[f"{y}.domain"][1], 3) for _, y in axis_pairs(figure)]
    assert tops[0] == tops[1] > tops[2] > tops[3] == tops[4]
    if not missing:
        assert tops[4] > tops[5]
    phone = arranged(figure, 1, PHONE)
    assert {phone[f"{x}.title.text"] for x, _ in axis_pairs(figure)} == {"base_lr"}
    titles = [text for key, text in phone.items() if key.endswith("].text") and "batch" in text]
    assert len(titles) == len(axis_pairs(figure))
    assert all("↑ best val_error" in text for text in titles)


def test_a_panel_that_is_missing_leaves_the_title_of_its_column_to_the_one_above() -> None:
    figure = grid(2, 2, missing=True)
    shown = [axis.title.text for axis in figure.select_xaxes()]
    assert shown == ["", "base_lr", "base_lr"]  # above another panel; in the empty column; lowest


def test_the_names_of_rails_stand_in_each_panel_of_a_phone_and_beside_the_last_otherwise() -> None:
    figure = grid(2, 1, missing=False)
    rails = [note for note in figure.layout.annotations if note.text == "infeasible"]
    assert [note.visible for note in rails] == [False, True]
    phone = arranged(figure, 1, PHONE)
    assert [value for key, value in phone.items() if key.endswith(".visible")] == [True, True]


def rail_name(norms: list[str]) -> tuple[float, float, list[float]]:
    """Left and right end of a rail's name on a phone, and where its crosses are; shares of it."""
    failed = [trial(n, 1.0, 0.9, "diverged", clip_norm=norm) for n, norm in enumerate(norms)]
    good = [trial(90 + n, 0.1, 0.2, clip_norm=norm) for n, norm in enumerate("abc")]
    figure = axis_figure(axis_info([*good, *failed], "clip_norm", "val_error"))
    change = arranged(figure, 1, PHONE)
    at = next(n for n, note in enumerate(figure.layout.annotations) if note.name == RAIL_NAME)
    crosses = next(trace.x for trace in figure.data if trace.name == "infeasible")
    low, high = figure.layout.xaxis.range
    width = PHONE - change["margin.l"] - change["margin.r"]
    left = change[f"annotations[{at}].x"] + change[f"annotations[{at}].xshift"] / width
    right = left + width_of("infeasible", change[f"annotations[{at}].font.size"]) / width
    shown = change[f"annotations[{at}].visible"]
    return left, right if shown else left, [(x - low) / (high - low) for x in crosses]


@pytest.mark.parametrize("norms", ["aaab", "aabbb", "abc", "ccca", "b"])
def test_the_name_of_a_rail_covers_no_cross_on_a_phone(norms: str) -> None:
    left, right, crosses = rail_name(list(norms))
    assert 0 <= left < right <= 1
    assert [at for at in crosses if left - 0.01 < at < right + 0.01] == []


def test_the_name_of_a_rail_that_is_full_is_left_out() -> None:
    left, right, _ = rail_name(list("abc" * 20))
    assert left == right


def test_the_ticks_of_panels_of_like_ranges_are_written_alike() -> None:
    three_decades, four_decades = (log_axis(0.9e-5, high)["ticktext"] for high in (1.5e-2, 0.15))
    assert three_decades == four_decades[:-1]
    assert three_decades[0] == "10<sup>−5</sup>"


def test_a_wide_figure_arranged_anew_is_the_same() -> None:
    for name, figure in every_figure().items():
        before = figure.to_dict()["layout"]
        columns = len({axis.domain for axis in figure.select_xaxes()})
        for key, value in arranged(figure, columns, WIDE).items():
            figure.layout[key] = value
        assert figure.to_dict()["layout"] == before, name


words = st.lists(st.text("abcdef", min_size=1, max_size=12), min_size=1, max_size=30)


@given(words, st.integers(60, 900))
def test_wrapping_loses_no_word_and_fits_the_width(found: list[str], width: int) -> None:
    text = f"<b>{found[0]}</b><br><span style='font-size:12px'>{' '.join(found[1:])}</span>"
    lines = wrapped(text, 12, width)
    assert lines.replace(BREAK, " ") == text
    assert wrapped(lines, 12, width) == lines
    for line in lines.replace(BREAK, "<br>").split("<br>"):
        plain = line.replace("</span>", "").split(">")[-1]
        assert width_of(line, 12) <= width + 1e-6 or " " not in plain
    assert height_of(lines, 12) == pytest.approx(12 * 1.3 * (lines.count("<br") + 1))


def test_ticks_of_a_log_axis_become_fewer_and_names_stand_at_an_angle() -> None:
    many = [trial(n, lr, 0.1 + n) for n, lr in enumerate(np.geomspace(1e-4, 0.05, 30))]
    figure = axis_figure(axis_info(many, "base_lr", "val_error", log=True))
    change = arranged(figure, 1, PHONE)
    shown = change["xaxis.ticktext"]
    assert len(shown) >= 2
    assert sum(width_of(text, 12) for text in shown) < PHONE
    assert set(shown) < set(figure.layout.xaxis.ticktext)
    names = [
        trial(n, 0.1, 0.1, workload_args={"norm": f"a long name of the choice {n % 4}"})
        for n in range(12)
    ]
    named = axis_figure(axis_info(names, "norm", "val_error"))
    tilted = arranged(named, 1, PHONE)
    assert tilted["xaxis.tickangle"] < 0
    assert tilted["margin.b"] > named.layout.margin.b


# --- ratio to the edge ----------------------------------------------------------------------------


def ratio_run(base_lr: float, outcome: Outcome, *ratios: float, optimizer: str = "adam") -> EdgeRun:
    looks = [EdgeRatio(3**i, base_lr, 1.0, ratio) for i, ratio in enumerate(ratios)]
    return EdgeRun(base_lr, optimizer, outcome, tuple(looks))


RATIOS = [
    ratio_run(0.01, "feasible", 40.0, 0.0, 0.2, 0.3),
    ratio_run(0.04, "feasible", 90.0, 2.0, 0.9, 0.7),
    ratio_run(0.1, "diverged", 1e6, 1e5, 1e4, 3.0),
    ratio_run(0.2, "non_finite"),
]


def test_ratios_are_a_line_per_training_and_those_of_0_are_left_out() -> None:
    info = ratio_info(Group(32, "adam"), RATIOS)
    assert [line.base_lr for line in info.lines] == [0.01, 0.04, 0.1, 0.2]
    first = info.lines[0]
    assert (first.steps, first.ratios) == ((1, 9, 27), (40.0, 0.2, 0.3))
    assert first.counts == (False, False, True)
    *seen, unseen = info.lines
    assert [line.highest for line in seen] == [0.3, 0.7, 3.0]
    assert math.isnan(unseen.highest)
    assert not unseen.steps
    assert "base_lr 0.1 (diverged) at most 3 of the edge" in info.in_words()


def test_the_edge_is_a_line_at_1_and_looks_that_do_not_count_are_hollow() -> None:
    figure = ratio_figure(ratio_info(Group(32, "adam"), RATIOS))
    (edge,) = figure.layout.shapes
    assert (edge.y0, edge.y1) == (1.0, 1.0)
    assert figure.data[0].marker.symbol == ("circle-open", "circle-open", "circle")
    assert figure.data[2].marker.symbol[-1] == "x"
    low, high = figure.layout.yaxis.range
    assert 10**low < 0.2 < 1 < 90 < 10**high
    text = " ".join(str(one.text) for one in figure.layout.annotations)
    assert "Hollow: before step 10" in text
    assert "above 10,000 leaves the frame" in text


def test_without_a_second_moment_every_look_counts_and_no_note_is_below() -> None:
    own = [ratio_run(0.1, "feasible", 0.5, 0.9, optimizer="momentum")]
    figure = ratio_figure(ratio_info(Group(32, "momentum"), own))
    assert figure.data[0].marker.symbol == ("circle", "circle")
    assert not any("Hollow" in str(one.text) for one in figure.layout.annotations)
