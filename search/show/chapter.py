"""A diagnosis as a chapter of the report: each group's steps, with sentences and a figure each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from ..judge.analysis import group_trials
from ..judge.diagnosis import GroupDiagnosis, Kind, Step, StepName
from ..procedure.steps import label, sweep_of
from ..store.results import Results
from ..trial import Group, Trial, group_of
from ..words import readable
from .plots import (
    EdgeInfo,
    Told,
    axis_figure,
    axis_info,
    edge_figure,
    edge_panel,
    loss_figure,
    loss_info,
    norms_figure,
    norms_info,
    overlay_figure,
    overlay_info,
    ratio_figure,
    ratio_info,
    told_of,
)

NARROW = ("sweep", "edge", "curvature")  # steps whose figure is one panel wide
SPARSE_EVERY = 50  # updates between two looks of somebody who evaluates rarely (R5)
COLOURS: Mapping[Kind, str] = {
    "none": "good",
    "early": "bad",
    "mid_training": "bad",
    "edge": "bad",
    "unknown": "warn",
}
Trials = Callable[[Iterable[str]], list[Trial]]  # of studies, by their names
Drawn = tuple[go.Figure | None, str]  # and what it shows, or why there is none, in words
NO_CURVES = "Training curves are not among the files of this folder."


@dataclass(frozen=True)
class Scene:
    """A step with its figure, if it has one, and how many panels wide that is.

    `words` says what the figure shows, or why there is none.
    """

    group: GroupDiagnosis
    step: Step
    figure: go.Figure | None
    columns: int = 2
    words: str = ""

    @property
    def name(self) -> str:
        """The figure's name as a file, different for every group and step."""
        return f"diagnosis_{label(self.group.group)}_{self.step.name}"


def story(results: Results) -> Iterator[Scene]:
    """Every step of every group of the diagnosis; none if there was none.

    The trials are those of the study and of `steps/`.
    """
    sweep = sweep_of(results.study)
    names = sweep.scientific_names
    for found in results.diagnosis.groups if results.diagnosis else ():

        def trials(studies: Iterable[str], group: Group = found.group) -> list[Trial]:
            """Trials of these studies; of the sweep, which all groups share, this group's only.

            Any other study belongs to the group alone, those of remedies included.
            """
            own = [(study, trial) for study in studies for trial in results.trials_of(study)]
            return [
                trial
                for study, trial in own
                if study != sweep.name or group_of(trial.point, names) == group
            ]

        for step in found.steps:
            draw = DRAWN.get(step.name)
            drawn = draw(found, step, results.study.objective, trials) if draw else None
            figure, words = drawn or (None, "")
            yield Scene(found, step, figure, 1 if step.name in NARROW else 2, words)


# --- a figure for each step -----------------------------------------------------------------------


def _sweep(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    """lr_star and what is as good are the diagnosis', by means over seeds."""
    own = trials(step.studies + _studies(found, "boundary"))
    if not own:
        return None
    told = dict.fromkeys(group_trials(own), Told(found.lr_star, found.as_good, _star(found)))
    info = axis_info(own, "base_lr", objective, log=True, told=told)
    return axis_figure(info), info.in_words()


def _star(found: GroupDiagnosis) -> str:
    """lr_star and headroom of a diagnosis, as a note below a panel's title."""
    if math.isnan(found.lr_star):
        return "no feasible trial"
    star = f"lr_star = {readable(found.lr_star)}"
    if found.as_good[0] < found.as_good[1]:
        star += f" (to {readable(found.as_good[1])} as good)"
    if not found.edge.found:
        return f"{star}, no edge found above it"
    low, high = map(readable, found.headroom)
    return f"{star}, headroom {low} to {high} ×"


def told_by(results: Results) -> dict[Group, Told]:
    """lr_star and what is as good of every group: the diagnosis' where it has one."""
    told = {row.group: told_of(row) for row in results.summaries}
    for found in results.diagnosis.groups if results.diagnosis else ():
        own = next((row for row in results.summaries if row.group == found.group), None)
        if own and own.diagnosed_with:
            note = f"{_star(found)} (diagnosis)"
            told[own.group] = Told(own.lr_star, own.as_good, note)
    return told


def _edge(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    """The edge as the diagnosis recorded it.

    Beside lr_star, more trials may count as collapsed than by their own curves.
    """
    limits = {}
    if found.curvature:
        limits = {
            "limit of λ₁ before training": found.curvature.limit_at_start,
            "limit of λ₁ at the best checkpoint": found.curvature.limit_at_best,
        }
    panel = edge_panel(found.group, found.edge.tried, found.lr_star, limits)
    if not panel.tried:
        return None
    info = EdgeInfo((panel,), crashed=0)
    return edge_figure(info), info.in_words()


def _kind(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    trained = trials(step.studies)
    own = [trial for trial in trained if len(trial.curve.loss)]
    if not own:
        return None, without_curves(trained)
    info = loss_info(own, ("base_lr",), log_steps=True, sparse_every=SPARSE_EVERY)
    return loss_figure(info), info.in_words()


def _warmup(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    """Screening runs of every warmup length, at one base LR.

    It is the highest at which some length trains; if none does, the lowest.
    """
    screened = trials(name for name in step.studies if "-screen-" in name)
    screens = [trial for trial in screened if len(trial.curve.loss)]
    if not screens:
        return None, without_curves(screened)
    works = [trial.point.base_lr for trial in screens if trial.feasible]
    shown = max(works) if works else min(trial.point.base_lr for trial in screens)
    own = [trial for trial in screens if trial.point.base_lr == shown]
    info = loss_info(own, ("warmup_steps",), log_steps=True)
    return loss_figure(info), info.in_words()


def _clipping(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    tried = trials(_studies(found, "sweep") + _studies(found, "boundary") + _studies(found, "arms"))
    plain = found.remedies[0].point.configuration
    own = [trial for trial in tried if trial.point.configuration == plain]
    info = norms_info(own)
    if not info.panels:
        return None, without_curves(own)
    return norms_figure(info), info.in_words()


def _tournament(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    """The sweeps of the remedies that were rerun: more lines than these could not be told apart."""
    own: list[Trial] = []
    for remedy in [one for one in found.remedies if one.values] or found.remedies:
        for trial in trials([*remedy.looked_in, remedy.tuned_in]):
            named = {**trial.point.workload_args, "remedy": remedy.name}
            own.append(replace(trial, point=replace(trial.point, workload_args=named)))
    if not own:
        return None
    info = overlay_info(own, objective, ("remedy",))
    return overlay_figure(info), info.in_words()


def _studies(found: GroupDiagnosis, name: StepName) -> tuple[str, ...]:
    return next((step.studies for step in found.steps if step.name == name), ())


def _curvature(found: GroupDiagnosis, step: Step, objective: str, trials: Trials) -> Drawn | None:
    info = ratio_info(found.group, found.edge_runs)
    return (ratio_figure(info), info.in_words()) if info.lines else None


DRAWN: Mapping[StepName, Callable[[GroupDiagnosis, Step, str, Trials], Drawn | None]] = {
    "sweep": _sweep,
    "edge": _edge,
    "kind": _kind,
    "curvature": _curvature,
    "warmup": _warmup,
    "clipping": _clipping,
    "tournament": _tournament,
}


def without_curves(trials: Iterable[Trial]) -> str:
    """That the curves of these trials are not kept; empty if one is, or if none has trained.

    A folder that came from version control holds none.
    """
    trained = [trial for trial in trials if not trial.verdict.crashed]
    kept = any(len(trial.curve.loss) for trial in trained)
    return NO_CURVES if trained and not kept else ""


def colour(found: GroupDiagnosis) -> str:
    """The class of the verdict in the report."""
    return COLOURS[found.kind]
