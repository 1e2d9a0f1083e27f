"""A diagnosis as a chapter of the report: each step with its sentences and its figure."""

import html
import math
import re
from dataclasses import replace

import pytest
from diagnosed import UNSTABLE, stored
from simulated import Simulated, study_of

from tunewright.search.show.chapter import COLOURS, NO_CURVES, colour, story
from tunewright.search.show.report import write_report
from tunewright.search.store.places import STEPS as FOLDER
from tunewright.search.store.results import Results
from tunewright.search.store.storage import create_store, open_store
from tunewright.search.words import readable

AXIS = {"base_lr": {"low": 1e-3, "high": 10.0, "log": True, "points": 9}}
EVERY_STEP = ["sweep", "boundary", "edge", "kind", "arms", "warmup", "clipping", "tournament"]


@pytest.fixture(scope="module")
def unstable(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("results"), UNSTABLE)


def test_every_step_is_told_in_order_with_its_sentences(unstable):
    store, result, _ = unstable
    scenes = list(story(Results.read(store)))
    assert [scene.step.name for scene in scenes] == EVERY_STEP
    assert [scene.step for scene in scenes] == list(result.groups[0].steps)
    assert all(scene.step.sentences for scene in scenes)


def test_every_step_with_something_to_draw_has_a_figure(unstable):
    store, _, _ = unstable
    drawn = [scene.step.name for scene in story(Results.read(store)) if scene.figure]
    assert drawn == [name for name in EVERY_STEP if name not in ("boundary", "arms")]


def test_the_sweep_is_titled_with_what_the_diagnosis_found_not_with_the_best_single_training(
    unstable,
):
    """One page tells one lr_star: that of means over seeds, and the headroom of the bracketed
    edge.
    """
    store, result, _ = unstable
    (found,) = result.groups
    sweep = next(scene.figure for scene in story(Results.read(store)) if scene.step.name == "sweep")
    titles = " ".join(annotation.text or "" for annotation in sweep.layout.annotations)
    low, high = map(readable, found.headroom)
    assert f"lr_star = {readable(found.lr_star)}, headroom {low} to {high} ×" in titles


def test_the_report_has_the_chapter_with_its_figures_once_each(unstable):
    store, _, _ = unstable
    text = write_report(Results.read(store)).read_text(encoding="utf-8")
    assert text.count(">Diagnosis: batch size 32, momentum<a ") == 1
    for scene in story(Results.read(store)):
        assert text.count(f'id="{scene.name}"') == (1 if scene.figure else 0)
    assert "Adopt warmup: " in text
    assert "→ warmup" in text
    assert "momentum-32-edge-1" in text


def test_what_the_diagnosis_found_comes_first_and_nothing_on_the_page_contradicts_it(tmp_path):
    """Where lr_star is one of the sweep's base LRs."""
    model = replace(
        UNSTABLE, best_base_lr=10**-1.5, better=lambda point, _: 0.05 * (point.clip_z < 9)
    )
    store, result, _ = stored(tmp_path, model)
    (found,) = result.groups
    text = html.unescape(write_report(Results.read(store)).read_text(encoding="utf-8"))
    first = text.split("<nav")[0]
    assert found.summary in first
    assert "3 seeds" in first
    # within the diagnosis each remedy has an lr_star of its own
    rest = re.sub(r'<section id="diagnosis-.*?</section>', "", text, flags=re.DOTALL)
    stars = set(re.findall(r"lr_star = ([\d.e-]*\d)", rest))
    assert stars == {readable(found.lr_star)}


def test_a_report_without_a_diagnosis_has_no_chapter(tmp_path):
    store = create_store(study_of(), tmp_path)
    assert "Diagnosis:" not in write_report(Results.read(store)).read_text(encoding="utf-8")


def test_sentences_are_escaped(unstable, tmp_path):
    store, result, _ = unstable
    words = "x < y & <script>alert(1)</script>"
    group = result.groups[0]
    step = replace(group.steps[1], sentences=(words,), studies=("<b>",))  # without a figure
    group = replace(group, summary=words, steps=(step,))
    diagnosis = replace(result, groups=(group,))
    empty = Results(create_store(store.study, tmp_path), [], diagnosis=diagnosis)
    text = write_report(empty).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("x &lt; y &amp; &lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "Runs: &lt;b&gt;" in text


def test_the_figure_of_the_tournament_has_a_line_for_every_remedy(unstable):
    """Those of another optimizer too, in a panel of its own."""
    store, result, _ = unstable
    (figure,) = (
        scene.figure for scene in story(Results.read(store)) if scene.step.name == "tournament"
    )
    shown = {trace.name for trace in figure.data} | {
        note.text for note in figure.layout.annotations
    }
    words = " ".join(map(str, shown))
    rerun = [one for one in result.groups[0].remedies if one.values]
    assert len(rerun) > 1
    for remedy in rerun:
        assert remedy.name in words


def test_the_figure_of_the_edge_shows_only_what_it_was_found_from(unstable):
    store, result, _ = unstable
    (figure,) = (scene.figure for scene in story(Results.read(store)) if scene.step.name == "edge")
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    drawn = {x for trace in marks for x in trace.x if x is not None}
    tried = {one.base_lr for one in result.groups[0].edge.tried}
    assert all(
        any(math.isclose(x, rate) or math.isclose(10**x, rate) for rate in tried) for x in drawn
    )


def test_groups_that_share_a_sweep_are_told_each_of_its_own_trials(tmp_path):
    model = Simulated(5.0, raised=lambda point: 0.4 if point.optimizer == "adam" else 1.0)
    study = study_of(optimizer={"momentum": AXIS, "adam": AXIS})
    store, result, _ = stored(tmp_path, model, study)
    scenes = list(story(Results.read(store)))
    edges = {one.group.optimizer: one.edge for one in result.groups}
    assert edges["adam"].interval[1] < edges["momentum"].interval[0]
    for scene in (scene for scene in scenes if scene.step.name == "edge"):
        assert scene.group.group.optimizer in str(scene.figure.layout.annotations)
    figures = [scene.name for scene in scenes if scene.figure]
    assert len(set(figures)) == len(figures)
    text = write_report(Results.read(store)).read_text(encoding="utf-8")
    assert [text.count(f">Diagnosis: {group.group.label}<a ") for group in result.groups] == [1, 1]


def test_groups_by_a_scientific_argument_have_figures_of_their_own(tmp_path):
    study = study_of(workload_args={"norm": ["pre", "post"]})
    store, result, _ = stored(tmp_path, Simulated(5.0), study)
    assert len(result.groups) == 2
    text = write_report(Results.read(store)).read_text(encoding="utf-8")
    drawn = re.findall(r'id="(diagnosis_[^"]*)"', text)
    assert drawn
    assert len(set(drawn)) == len(drawn)


def test_a_study_with_clipping_has_its_sweep_among_the_steps(tmp_path):
    space = {"clip_norm": [1.0, math.inf], "optimizer": {"momentum": AXIS}}
    store, _, studies = stored(tmp_path, Simulated(5.0), study_of(space=space))
    assert studies[0].name == "sweep"
    assert open_store(store.folder / FOLDER / "sweep").study == studies[0]
    assert next(story(Results.read(store))).figure


def test_whatever_the_budget_left_out_the_report_is_built(tmp_path):
    """That no step names what was not trained is a law of the procedure."""
    for budget in (28, 45):
        store, result, _ = stored(tmp_path / str(budget), UNSTABLE, budget=budget)
        assert result.groups[0].left_out
        assert result.groups[0].summary in html.unescape(
            write_report(Results.read(store)).read_text(encoding="utf-8")
        )


@pytest.mark.parametrize(
    "model", [Simulated(1e-9), Simulated(broken=True), Simulated(0.25, blow_up="recovers")]
)
def test_whatever_was_found_the_report_is_built(tmp_path, model):
    store, result, _ = stored(tmp_path, model, budget=50)
    text = write_report(Results.read(store)).read_text(encoding="utf-8")
    assert colour(result.groups[0]) in text
    assert result.groups[0].kind in COLOURS


def test_lost_curves_leave_the_sentences(tmp_path):
    store, result, _ = stored(tmp_path, UNSTABLE)
    for path in store.folder.rglob("*.npz"):
        path.unlink()
    scenes = list(story(Results.read(store)))
    assert [scene.step for scene in scenes] == list(result.groups[0].steps)
    told = {scene.step.name for scene in scenes if scene.words == NO_CURVES}
    assert {"kind", "warmup"} <= told
    assert not any(scene.figure for scene in scenes if scene.words == NO_CURVES)
    page = write_report(Results.read(store)).read_text()
    assert page.count(f">{NO_CURVES}<") == len(told) + 1  # and the section of the training curves
