"""`tunewright diagnose`: run the playbook's procedure for every group of a study.

The outcome is written into the study's results folder. Every step is an ordinary study in
`results/<study>/steps/`, all of them in the study's own database. Nothing is kept in memory that is
not on disk: interrupted, the same command reads what is there and goes on.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from .errors import UnfinishedError, UserError
from .judge.comparison import fewest_seeds
from .judge.diagnosis import Curvature, Diagnosis, GroupDiagnosis, Remedy, Step
from .judge.edge_ratio import EdgeRun, ratio_sentences
from .pool.progress import Whole
from .procedure.arms import FIRST_LOOK, MOST_CLIMBED
from .procedure.asking import Asking, together
from .procedure.clipping import PERCENTILES
from .procedure.group import (
    CONFIRM_MULTIPLES,
    EDGE_ROUNDS,
    MOST_CLOSE,
    MOST_EXTENSIONS,
    PER_DECADE,
    PROBE_STEPS,
    diagnosis_of,
)
from .procedure.ladder import HIGHER, LADDER
from .procedure.purse import Budget
from .procedure.remedies import ANEW, least_of, most_arms
from .procedure.rounds import TUNING
from .procedure.steps import SCREENING_SEEDS, Case, label, plain, sweep_of
from .procedure.tournament import BEST_FEW, SAFE_SEEDS
from .procedure.warmup import screened_updates, warmup_lengths
from .rules.counterparts import MADE_BY_RUN, ours
from .rules.optimizers import counterpart, optimizer_of, second_moment_of
from .run import Then, run_studies
from .signals import defer_signals
from .store.changes import as_begun, document_of
from .store.files import atomic, checkpoint_path
from .store.places import RUNS, STEPS
from .store.results import Results, write_diagnosis
from .store.storage import create_store
from .study.command import refuse_undiagnosable
from .study.pinned import pin
from .study.sampling import next_points
from .study.study import Study, load_study
from .threads import torch_threads
from .train.checkpoints import fit, read_tensors
from .train.choose import devices
from .train.curvature import follow_edge, largest_eigenvalue, some_batches, stability_limit
from .trainers.tryout import check_studies
from .trial import Group, Point, Trial, group_of
from .words import readable
from .workload.randomness import own_random_numbers
from .workload.workload import architectures_of, build_model, load_workload

SEEDS = 5  # trainings that a finding rests on
# λ₁ then scatters by a tenth or two; more takes a minute for a small Transformer
CURVATURE_EXAMPLES = 128
CURVATURE_STEPS = 1000  # updates of each of the three trainings that are followed, at most
RECIPE_FILE = "recipe.toml"
IN_A_SCRIPT = (
    "Its optimizer in a script of your own, with params = list(model.parameters()) and each "
    "update's lr from the schedule below:"
)
TRACKING_FILE = "tracking.csv"
# steps by the first words of their names, where that is not a word for people
IN_WORDS = {
    "above": "boundary",
    "below": "boundary",
    "confirm": "confirmation",
    "tune": "tuning",
    "rerun": "tournament",
    "look": "first look",
}

Say = Callable[[str], None]


def diagnose(
    study: Study | str | Path,
    results: str | Path = RUNS,
    seeds: int = SEEDS,
    budget: float = math.inf,
    say: Say = lambda text: None,
    then: Then | None = None,
    storage: str | None = None,
    **options: Any,
) -> Diagnosis:
    """Find out of every group of a study whether training is unstable, of which kind, what helps.

        found = tunewright.diagnose("study.toml", workers=2)
        print(found.groups[0].summary)

    Writes diagnosis.json, recipes and tracking.csv into the study's results folder. Every step is a
    study of its own there: interrupted, the same call goes on.

    Args:
        study: the study, or its file
        results: the folder in which the study's results folder is, or is made
        seeds: trainings of each point that a finding rests on
        budget: how many trainings may be spent, each as long as the study's (the mean of its batch
            sizes); every remedy gets a first look, the better ones what is left; what does not fit
            is named in `skipped`, with the budget that reaches it
        say: is told what is asked for next
        then: is called with the results of the study, its diagnosis and the trials of its steps
        storage: URL of the database that trials go to, also those of the steps, as of `run_studies`
        options: who trains, as of `run_studies`: workers, device, backend, progress and the rest

    Raises UserError before anything is trained if the study, its workload or the budget will not
    do; UnfinishedError if a run crashed.
    """
    study = study if isinstance(study, Study) else load_study(study)
    results = Path(results)
    refuse_undiagnosable(study)
    check_studies([study])
    devices(options.get("device"))  # refuses one that is not there before anything is written
    sweep = sweep_of(study)
    groups = [group for size in study.batch_sizes for group in sweep.groups(size)]
    architectures = {group: _architectures(study, group) for group in groups}
    each = round(fmean(study.train_steps(size) for size in study.batch_sizes))
    shared = Budget(budget, each, updates_of(sweep), updates_of)
    _refuse_less_than_a_look(study, groups, architectures, shared)
    begun = create_store(study, results, storage).study  # the folder and its database
    study = as_begun(study, [document_of(begun)])
    options["storage"] = storage
    runs = _Runs(study, results, options, say, _whole(study, seeds))
    purses = {group: shared.purse() for group in groups}
    procedures = [
        diagnosis_of(study, group, seeds, architectures[group], purses[group]) for group in groups
    ]
    found = [one for one in runs.follow(together(*procedures)) if one]
    found = [_with_curvature(study, runs, one) for one in found]
    result = Diagnosis(
        study=study.name,
        objective=study.objective,
        seeds=seeds,
        updates=runs.spent,
        budget=budget,
        skipped=tuple(f"{one.group.label}: {one.budget_in_words}" for one in found if one.left_out),
        groups=tuple(found),
        recipes={},
        maximize=study.maximize,
    )
    with defer_signals():
        result = replace(result, recipes=_write_recipes(study, results / study.name, result))
        write_diagnosis(results / study.name, result)
        _write_tracking(results / study.name / TRACKING_FILE, runs, result)
    if then:
        own = runs.results.get(study.name) or Results.read(create_store(study, results, storage))
        steps = {name: step.trials for name, step in runs.results.items()}
        then(replace(own, diagnosis=result, steps=steps))
    return result


def plan_of(study: Study, seeds: int) -> dict[Group, list[tuple[str, int, int]]]:
    """The most that a diagnosis takes, by group: (step, trainings, updates) in order."""
    sweep = sweep_of(study)
    screening = SCREENING_SEEDS * (len(LADDER) + len(HIGHER))
    plan = {}
    for batch_size in study.batch_sizes:
        steps = study.train_steps(batch_size)
        lengths = warmup_lengths(steps)
        for group in sweep.groups(batch_size):
            points = [
                p for p in next_points(sweep, []) if group_of(p, sweep.scientific_names) == group
            ]
            case = Case(study, group, seeds, plain(points[0]), _architectures(study, group))
            confirmed = (len(LADDER) + len(HIGHER)) * len(lengths) * seeds
            arms = len(most_arms(case))
            half = max(BEST_FEW, math.ceil(arms / 2))
            rerun = max(seeds, fewest_seeds(paired=True, candidates=BEST_FEW))
            whole = {
                "sweep": len(points),
                "boundary": MOST_EXTENSIONS * PER_DECADE * study.most_seeds,
                "close": MOST_CLOSE * seeds,
                "edge": EDGE_ROUNDS * 3 * seeds,
                "confirm": len(CONFIRM_MULTIPLES) * seeds,
                "clipping": SCREENING_SEEDS * (len(PERCENTILES) * len(LADDER) + 1),
                "first look": arms * FIRST_LOOK,
                "more base LRs": half * MOST_CLIMBED,
                "tuning": BEST_FEW * (TUNING + ANEW),
                "tournament": (BEST_FEW + 3) * rerun,
                "safety on the edge": (BEST_FEW + 1) * max(0, SAFE_SEEDS - rerun),
            }
            short = {
                "probe": (SCREENING_SEEDS, min(PROBE_STEPS, steps)),
                **{
                    f"warmup {length}": (screening, screened_updates(length, steps))
                    for length in lengths
                },
                "warmup, confirmed": (confirmed, steps + max(lengths, default=0)),
            }
            rows = [(name, count, count * steps) for name, count in whole.items()]
            plan[group] = rows + [
                (name, count, count * updates) for name, (count, updates) in short.items()
            ]
    return plan


def _whole(study: Study, seeds: int) -> Whole:
    """A diagnosis as its progress counts it."""
    updates: dict[int, int] = defaultdict(int)
    trainings = 0
    for group, rows in plan_of(study, seeds).items():
        trainings += sum(count for _, count, _ in rows)
        updates[group.batch_size] += sum(each for _, _, each in rows)
    return Whole(trainings, updates)


def _kinds(studies: Sequence[Study], study: Study) -> str:
    """What studies of a diagnosis are about, in words."""
    steps = [
        "sweep" if one.name == sweep_of(study).name else one.question.rpartition(": ")[2]
        for one in studies
    ]
    firsts = (re.split("[- ]", step)[0] for step in steps)
    return ", ".join(dict.fromkeys(IN_WORDS.get(first, first) for first in firsts))


def updates_of(study: Study) -> int:
    """Updates of all trials of a study, as planned."""
    return sum(map(study.updates, next_points(study, [])))


def _refuse_less_than_a_look(
    study: Study,
    groups: Sequence[Group],
    architectures: Mapping[Group, Mapping[str, Mapping[str, Any]]],
    budget: Budget,
) -> None:
    """Raise UserError if a budget has no room for a first look at every remedy of every group."""
    points = next_points(sweep_of(study), [])
    names = sweep_of(study).scientific_names
    looks = []
    for group in groups:
        point = next(point for point in points if group_of(point, names) == group)
        case = Case(study, group, SEEDS, plain(point), architectures[group])
        looks.append(least_of(case)[0])
    least = math.ceil((budget.sweep + len(looks) * max(looks)) / budget.each)
    if budget.trainings < least:
        raise UserError(
            f"--budget: must be at least {least} trainings, the sweep and a first look at every "
            f"remedy, got {budget.trainings:g}"
        )


def _architectures(study: Study, group: Group) -> Mapping[str, Mapping[str, Any]]:
    """What the workload of a group declares; a function declares none. Raises UserError if its
    factory does not take it.
    """
    if not study.workload:
        return {}
    held = dict(group.scientific)
    arguments = {name: held.get(name, value) for name, value in study.workload_args.items()}
    declared = architectures_of(load_workload(study.workload, arguments))
    for changed in declared.values():
        load_workload(study.workload, {**arguments, **changed})
    return declared


class _Runs:
    """Trains the studies that procedures ask for, and counts their cost."""

    def __init__(
        self,
        study: Study,
        results: Path,
        options: Mapping[str, Any],
        say: Say,
        whole: Whole,
    ) -> None:
        self.study, self.folder = study, results
        self.options, self.say, self.whole = options, say, whole
        self.rounds = 0
        self.spent = 0
        self.results: dict[str, Results] = {}  # by the names of the studies

    def follow(self, asking: Asking[list[GroupDiagnosis | None]]) -> list[GroupDiagnosis | None]:
        """Answer a procedure until it returns."""
        answers: dict[str, list[Trial]] | None = None
        while True:
            try:
                asked = next(asking) if answers is None else asking.send(answers)
            except StopIteration as done:
                found: list[GroupDiagnosis | None] = done.value
                return found
            self.train([study for study in asked if study.name not in self.results])
            answers = {study.name: list(self.results[study.name].trials) for study in asked}

    def trials_of(self, group: Group) -> int:
        """How many trials a group took: its share of the sweep, and its steps."""
        sweep = sweep_of(self.study)
        swept = [
            t
            for t in self.results[sweep.name].trials
            if group_of(t.point, sweep.scientific_names) == group
        ]
        steps = [
            len(own.trials)
            for name, own in self.results.items()
            if name.startswith(f"{label(group)}-")
        ]
        return len(swept) + sum(steps)

    def train(self, studies: list[Study]) -> None:
        if not studies:
            return
        names = ", ".join(study.name for study in studies)
        trainings = sum(len(next_points(study, [])) for study in studies)
        self.say(f"{names}: {trainings} trainings")
        self.rounds += 1
        self.spent += sum(map(updates_of, studies))
        self.whole.begin(f"step {self.rounds}: {_kinds(studies, self.study)}", studies)
        itself = [study for study in studies if study.name == self.study.name]
        steps = [study for study in studies if study.name != self.study.name]
        for own, folder in ((itself, self.folder), (steps, self.folder / self.study.name / STEPS)):
            if own:
                kept: list[Results] = []
                options = {**self.options, "whole": self.whole}
                run_studies(own, results=folder, then=kept.append, **options)
                for one in kept:
                    self._keep(one)

    def _keep(self, results: Results) -> None:
        for trial in results.trials:
            if trial.verdict.crashed:
                log = results.folder / "crashed.log"
                raise UnfinishedError(
                    f"{results.study.name}: a training crashed: {trial.verdict.evidence}; see {log}"
                )
        self.results[results.study.name] = results


# --- curvature (Gilmer et al. 2021; Cohen et al. 2021, 2022) --------------------------------------


def _with_curvature(study: Study, runs: _Runs, found: GroupDiagnosis) -> GroupDiagnosis:
    """The group with λ₁ before training and at lr_star's best checkpoint, and with how near to the
    edge plain training is, step by step.
    """
    if not found.remedies:
        return found
    if not study.workload:
        kind = "command" if study.command else "function"
        return _with_step(found, (f"λ₁ is not known: a {kind} has no loss that can be called.",))
    runs.say("curvature of plain training, on the CPU: up to three trainings are followed")
    try:
        with torch_threads():
            curvature, studies = _curvature(study, runs, found)
    except ValueError as error:
        return _with_step(found, (f"λ₁ is not known: {error}.",))
    sentences = [_curvature_sentence(found, curvature)] if curvature else []
    edge_runs: tuple[EdgeRun, ...] = ()
    try:
        with torch_threads():
            edge_runs = _edge_runs(study, found)
        sentences += ratio_sentences(edge_runs, found.edge.unstable_base_lr)
    except ValueError as error:
        sentences.append(f"How near to the edge is not known: {error}.")
    found = replace(found, curvature=curvature, edge_runs=edge_runs)
    return _with_step(found, sentences, studies) if sentences else found


def _with_step(
    found: GroupDiagnosis, sentences: Sequence[str], studies: Sequence[str] = ()
) -> GroupDiagnosis:
    """The group with what is said of curvature, after the kind of instability."""
    step = Step("curvature", ("R6",), tuple(sentences), tuple(studies))
    steps = list(found.steps)
    at = next((i for i, one in enumerate(steps) if one.name == "kind"), len(steps) - 1)
    steps.insert(1 + at, step)
    return replace(found, steps=tuple(steps))


def _curvature(
    study: Study, runs: _Runs, found: GroupDiagnosis
) -> tuple[Curvature | None, tuple[str, ...]]:
    """λ₁ before training and at the best checkpoint of plain training, and whose that is.

    None if no checkpoint was kept. Raises ValueError as `largest_eigenvalue`.
    """
    best = found.remedies[0]
    results = runs.results[best.rerun_in or best.tuned_in]
    trial = min(
        (one for one in results.trials if one.feasible),
        key=lambda one: one.cost,
        default=None,
    )
    path = checkpoint_path(results.folder, trial.point) if trial else None
    if trial is None or path is None or not path.exists():
        return None, ()
    point = trial.point
    workload = load_workload(study.workload, point.workload_args)
    with own_random_numbers():
        model = build_model(workload, point.seed, point.batch_size, torch.device("cpu"))
    batches = some_batches(workload, point.batch_size, point.seed, CURVATURE_EXAMPLES)
    at_start = largest_eigenvalue(workload, model, batches)
    fit(model, read_tensors(path), path)
    at_best = largest_eigenvalue(workload, model, batches)
    limits = math.nan, math.nan
    if second_moment_of(point.optimizer) is None:  # else λ₁ alone bounds nothing
        limits = (
            stability_limit(point.optimizer, point.settings, at_start),
            stability_limit(point.optimizer, point.settings, at_best),
        )
    return Curvature(at_start, at_best, *limits), (results.study.name,)


def _edge_runs(study: Study, found: GroupDiagnosis) -> tuple[EdgeRun, ...]:
    """Plain training at lr_star and at both ends of the edge, followed for CURVATURE_STEPS at most.

    None where no learning rate is known to be the rule's edge. Raises ValueError as `follow_edge`.
    """
    point = found.remedies[0].point
    unknown = math.isnan(stability_limit(point.optimizer, point.settings, 1.0))
    if unknown or math.isnan(found.lr_star):
        return ()
    base_lrs = [found.lr_star, *(found.edge.interval if found.edge.found else ())]
    workload = load_workload(study.workload, point.workload_args)
    return tuple(
        follow_edge(
            study, workload, replace(point, base_lr=base_lr), CURVATURE_EXAMPLES, CURVATURE_STEPS
        )
        for base_lr in dict.fromkeys(base_lrs)
    )


def _curvature_sentence(found: GroupDiagnosis, curvature: Curvature) -> str:
    at_start, at_best = (
        readable(curvature.eigenvalue_at_start),
        readable(curvature.eigenvalue_at_best),
    )
    words = (
        f"The largest eigenvalue of the training loss's Hessian, λ₁, is {at_start} before "
        f"training and {at_best} at the best checkpoint of plain training"
    )
    optimizer = found.group.optimizer
    if second_moment_of(optimizer) and optimizer_of(optimizer).max_stable_lr:
        return f"{words}. What bounds {optimizer} is the Hessian divided by what its steps are."
    if math.isnan(curvature.limit_at_start):
        return f"{words}. What limit it sets for {optimizer} is not known."
    limits = f"{readable(curvature.limit_at_start)} and {readable(curvature.limit_at_best)}"
    seen = (
        f"found: {readable(found.edge.unstable_base_lr)}" if found.edge.found else "found: no edge"
    )
    return (
        f"{words}. Full-batch descent is unstable above {limits}, noise of minibatches earlier; "
        f"{seen}."
    )


# --- what a diagnosis leaves behind ---------------------------------------------------------------


def _write_recipes(study: Study, folder: Path, result: Diagnosis) -> dict[str, str]:
    """A runnable study for each batch size: its best group, at the settings that were adopted.

    Returns their files.
    """
    recipes = {}
    for batch_size in study.batch_sizes:
        best = result.best(batch_size)
        if best is None or best.winner is None:
            continue
        name = (
            RECIPE_FILE if len(study.batch_sizes) == 1 else f"recipe-batch_size={batch_size}.toml"
        )
        question = f"Adopted for {best.group.label}: {best.adopted}"
        recipe = pin(
            study,
            best.winner.point,
            "recipe",
            question=question,
            trials=1,
            seed=study.seed,
            prepend_warmup=True,
        )
        with atomic(folder / name) as temporary:
            temporary.write_text(
                _announcement(result, best.winner)
                + _in_a_script(study, best.winner.point)
                + recipe.source,
                encoding="utf-8",
            )
        recipes[str(batch_size)] = name
    return recipes


def _announcement(result: Diagnosis, winner: Remedy) -> str:
    low, high = winner.next_run
    if math.isnan(low):
        return (
            f"# {result.objective} {readable(winner.tuned_value)} where it was tuned; not rerun "
            "on fresh seeds.\n"
        )
    return (
        f"# {result.objective} {readable(winner.mean)} over {len(winner.values)} fresh seeds; one "
        f"more run falls between {readable(low)} and {readable(high)} (95 %).\n"
    )


def _in_a_script(study: Study, point: Point) -> str:
    """Comments of a recipe that say what its optimizer is in a script of one's own."""
    made = (point.settings, point.base_lr)
    found = counterpart(point.optimizer, *made, study.decays_in_scripts)
    exact = ours(point.optimizer, *made, study.decays_in_scripts).call
    lines = [IN_A_SCRIPT, found.call]
    lines += found.sentences
    if found.difference:
        lines.append(f"Exactly the same, in any case: {exact}")
    if not study.workload:
        lines.append(MADE_BY_RUN)
    return "".join(f"# {line}\n" for line in lines)


def _write_tracking(path: Path, runs: _Runs, result: Diagnosis) -> None:
    """A row per group (S13)."""
    columns = (
        "study",
        "batch_size",
        "optimizer",
        "configuration",
        "notes",
        "trials",
        "best",
        "command",
    )
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for one in result.groups:
            winner = one.winner
            writer.writerow(
                {
                    "study": result.study,
                    "batch_size": one.group.batch_size,
                    "optimizer": one.group.optimizer,
                    "configuration": _configuration(winner) if winner else "",
                    "notes": one.summary,
                    "trials": runs.trials_of(one.group),
                    "best": winner.mean if winner and winner.values else "",
                    "command": " ".join(["tunewright", *sys.argv[1:]]),
                }
            )


def _configuration(winner: Remedy) -> str:
    return ", ".join(
        f"{name}={readable(value)}" for name, value in winner.point.shown.items() if name != "seed"
    )
