"""The page of one training: its figure as plain data, and what is written."""

import math

import numpy as np
import pytest

from tunewright.search.judge.readout import read_out
from tunewright.search.show.page import write_page
from tunewright.search.show.plots import training_figure, training_info
from tunewright.search.store.files import read_curve
from tunewright.search.train.recorder import Recorder
from tunewright.search.trial import Point, Trial

FALLS = 2.3 * np.exp(-np.arange(600) / 150) + 0.2


def training(loss, norms, clip_norm=math.inf):
    recorder = Recorder(None)
    recorder.record_block(loss, norms)
    readout = read_out(recorder.curve(), recorder.verdict(), clip_norm)
    point = Point(0, 0, "AdamW", 1e-3, clip_norm=clip_norm)
    return Trial.from_curve(point, readout.verdict, recorder.curve(), "", 1.0), readout


def scattered(count, seed=0):
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(count))


def test_the_figure_has_the_threshold_of_the_readout_and_the_onset():
    loss = np.append(FALLS, np.full(300, 9.0)) * scattered(900)
    norms = scattered(900, 1) * np.append(np.ones(600), np.full(300, 50.0))
    trial, readout = training(loss, norms, clip_norm=3.0)
    info = training_info(trial, readout)
    assert info.onset == readout.verdict.onset_step
    assert abs(info.onset - 600) < 5
    assert info.norms is not None
    assert (
        info.norms.percentile
        == readout.clip_start
        == pytest.approx(np.percentile(norms[: int(info.onset)], 90))
    )
    assert info.norms.clip_norm == 3.0
    assert max(info.loss) == loss.max()
    figure = training_figure(info)
    drawn = {trace.name: set(trace.y) for trace in figure.data if trace.name}
    assert drawn == {"90th percentile": {readout.clip_start}, "clip_norm": {3.0}}
    assert [shape.x0 for shape in figure.layout.shapes] == [info.onset]


@pytest.mark.parametrize("norm", [0.0, math.nan])
def test_norms_that_no_log_axis_has_a_place_for_are_left_out(norm):
    trial, readout = training(np.array([1.0, 0.9]), np.full(2, norm))
    info = training_info(trial, readout)
    assert info.norms is None
    assert "no gradient norm is finite and above 0" in str(training_figure(info))


def test_norms_that_were_clipped_have_no_threshold_to_draw():
    trial, readout = training(FALLS, np.ones(600))
    info = training_info(trial, readout)
    assert info.norms is not None
    assert math.isnan(info.norms.percentile)
    assert [trace.name for trace in training_figure(info).data if trace.name] == []


def test_a_loss_that_is_never_finite_is_drawn_as_nothing(tmp_path):
    trial, readout = training(np.array([math.nan]), np.array([1.0]))
    assert training_info(trial, readout).loss == ()
    write_page(tmp_path, trial, readout, readout.sentences)
    assert read_curve(tmp_path / "curve.npz") == trial.curve


def test_what_is_written_is_escaped_and_needs_no_network(tmp_path):
    folder = tmp_path / "a <b> & c"
    folder.mkdir()
    trial, readout = training(FALLS, scattered(600))
    path = write_page(folder, trial, readout, ["<script>alert()</script> (R16)."])
    page = path.read_text(encoding="utf-8")
    assert "<title>a &lt;b&gt; &amp; c</title>" in page
    assert "<script>alert" not in page
    assert "<script src" not in page
    assert "</abbr>)." in page
