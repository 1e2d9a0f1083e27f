"""The tuned result against a baseline checkpoint: rerun both sides on fresh seeds, decide.

The decision is written into comparison.json.

The best feasible configuration of each batch size is a candidate (R20); a study with one
configuration only, such as a recipe, is trained first. The reruns are ordinary studies of one
point each, in `<results>/comparison/`: interrupted, they go on where they stopped, and more seeds
or another baseline train only what is not there yet. Their seeds are fresh: on those of the search,
the winner also won by luck.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import nn

from .errors import UnfinishedError, UserError, describe_error
from .judge.analysis import rank_configurations, repetitions
from .judge.best_of import best_of
from .judge.comparison import (
    Candidate,
    Checkpoint,
    Comparison,
    Side,
    decide,
    evidence,
    failure_bound,
    fewest_seeds,
    settles,
)
from .rules.optimizers import decays_vectors
from .run import run_studies
from .show.publish import write_results
from .show.tables import space_in_words
from .signals import defer_signals
from .store.baseline import tell_baseline
from .store.changes import as_begun, document_of
from .store.files import checkpoint_path, name_of
from .store.places import RUNS, STUDY_FILE, has_results
from .store.results import Results, read_results, write_comparison
from .store.storage import continued_by, create_store, exclusive, open_store, read_trials
from .study.pinned import pin
from .study.sampling import next_points
from .study.study import Study, load_study, refuse_imported
from .threads import torch_threads
from .train.checkpoints import finite, fit, metrics_of, read_tensors, sha256
from .train.choose import devices
from .trainers.function import measure_by_function
from .trainers.tryout import check_studies
from .trial import Point, Trial, as_told, told_cost
from .words import readable
from .workload.randomness import own_random_numbers
from .workload.workload import Workload, build_model, load_workload

# of each side by default: enough for a gain as large as its spread between seeds (power 0.9)
SEEDS = 10
# of results, as text: [BATCH_SIZE:]NUMBER
TRIAL = re.compile(r"(\d+:)?\d+")
Found = TypeVar("Found")  # of a checkpoint, besides the settings that it fits


@dataclass(frozen=True)
class Settings:
    """How one side is trained: a point of a study, and the trials of the search that found it.

    There are no trials if the point was given.
    """

    study: Study
    point: Point
    searched: Sequence[Trial] = ()

    @property
    def total_steps(self) -> int:
        return self.study.schedule(self.point)

    @property
    def training(self) -> tuple[object, ...]:
        """What two settings that train alike have in common."""
        study = self.study
        return (
            study.import_path,
            self.point.configuration,
            self.total_steps,
            study.precision,
            study.accumulation,
            study.decay_vectors and decays_vectors([self.point.optimizer]),
        )

    @property
    def bfloat16(self) -> bool:
        return self.study.precision == "bfloat16"

    @property
    def label(self) -> str:
        return f"{self.study.name}, batch size {self.point.batch_size}, trial {self.point.number}"

    def workload(self) -> Workload:
        """Raises UserError for a study without one."""
        if not self.study.workload:
            raise UserError(
                f"{self.study.name}: {self.study.source_key}: a checkpoint can be measured by "
                "a `workload`, or by a function (`train`), alone"
            )
        return load_workload(self.study.workload, self.point.workload_args)


# --- which settings are compared ------------------------------------------------------------------


def candidates(results: Results) -> list[Settings]:
    """The best feasible configuration of each batch size, whatever its optimizer.

    Raises UserError if there is none.
    """
    study = results.study
    found = []
    for batch_size in study.batch_sizes:
        own = [trial for trial in results.trials if trial.point.batch_size == batch_size]
        found += [Settings(study, best.point, own) for best in rank_configurations(own)[:1]]
    if not found:
        raise UserError(f"{results.folder}: has no feasible trial to compare with the baseline")
    return found


def baseline_of_point(results: Results, text: str) -> Settings:
    """The settings of a trial, `[BATCH_SIZE:]NUMBER`.

    Raises UserError unless it names one trial of the results.
    """
    batch_size, _, number = text.rpartition(":")
    points = [trial.point for trial in results.trials]
    found = [p for p in points if str(p.number) == number and batch_size in ("", str(p.batch_size))]
    if not found:
        raise UserError(
            f"--baseline-point: must be [BATCH_SIZE:]NUMBER of a trial in {results.folder}, got "
            f"{text!r}"
        )
    if len(found) > 1:
        choices = ", ".join(f"{point.batch_size}:{point.number}" for point in found)
        raise UserError(
            f"--baseline-point: {text} is a trial of several batch sizes: write one of {choices}"
        )
    return Settings(results.study, found[0])


def baseline_of_study(given: Study | Path, results: Path) -> Settings:
    """The only configuration of a study, or the best one of its results.

    The results are looked for beside the file, or in `results`. Raises UserError if the study has
    several configurations and no results, or if none is feasible.
    """
    path, beside = Path(), False
    if isinstance(given, Study):
        study = given
    else:
        path, beside = given, (given.parent / "study.db").is_file()
        study = load_study(path, name=path.resolve().parent.name if beside else "")
    refuse_imported(study, "compare")
    points = _only_points(study)
    if len(points) == 1:
        return Settings(_begun(study, path.parent if beside else results / study.name), points[0])
    if beside:
        store = open_store(path.parent)
    elif (results / study.name / "study.db").is_file():
        store = create_store(study, results)
    else:
        place = study.name if isinstance(given, Study) else path
        raise UserError(
            f"{place}: has several configurations and no results in {results / study.name}: run it "
            "first, or leave the one that the baseline was trained with"
        )
    trials = read_trials(store)
    for best in rank_configurations(trials)[:1]:
        return Settings(store.study, best.point, trials)
    raise UserError(f"{store.folder}: has no feasible trial to take the baseline's settings from")


def _begun(study: Study, folder: Path) -> Study:
    """A study whose weight decay is of what it is of in its results, if it has any."""
    if not has_results(folder):
        return study
    store = continued_by(open_store(folder), study)
    return as_begun(study, [document_of(store.study)]) if store else study


def _only_points(study: Study) -> list[Point]:
    """The configuration of each batch size, if each has one only; else none."""
    sizes = len(study.batch_sizes)
    if study.planned_trials() != sizes * study.first_seeds:
        return []
    points = next_points(study, [])
    alone = (
        len({point.configuration for point in points}) == sizes
        and len(points) == sizes * study.first_seeds
    )
    return points[:: study.first_seeds] if alone else []


def train_recipe(
    recipe: Study | Path,
    checkpoint: Path,
    baseline: Settings | None = None,
    results: Path = RUNS,
    storage: str | None = None,
    **options: Any,
) -> Results:
    """Train a study of one configuration per batch size, and return its results.

    It is trained as by `tunewright run`. Raises UserError, before anything is trained, if it has
    several, or if the baseline's checkpoint cannot be compared with it; UnfinishedError if a trial
    crashed.
    """
    study = recipe if isinstance(recipe, Study) else load_study(recipe)
    refuse_imported(study, "compare")
    points = _only_points(study)
    if not points:
        place = study.name if isinstance(recipe, Study) else recipe
        raise UserError(
            f"{place}: must have exactly one configuration per batch size to be a candidate, "
            "trained once with each seed. Run it first, and compare the best of its results: "
            f"tunewright compare {results / study.name}"
        )
    check_studies([study])
    _measure_checkpoint(checkpoint, [baseline or Settings(study, points[0])], study, options)
    kept: list[Results] = []
    run_studies([study], results=results, storage=storage, then=kept.append, **options)
    (found,) = kept
    for trial in found.trials:
        _raise_if_crashed(trial, found, f"{study.name}, batch size {trial.point.batch_size}")
    return found


# --- the comparison -------------------------------------------------------------------------------


def compare(
    candidate: Results | Study | str | Path,
    checkpoint: str | Path,
    baseline: Settings | Study | str | Path | int | None = None,
    seeds: int | None = None,
    results: str | Path = RUNS,
    storage: str | None = None,
    **options: Any,
) -> Comparison:
    """Decide between the best of a study and a checkpoint: rerun both sides on fresh seeds.

        found = tunewright.compare("results/mine", "baseline.pt", baseline=12, workers=2)
        print(found.decision)  # adopt, keep baseline, or not enough evidence

    Writes comparison.json beside the results, a trial for the baseline into each Optuna study, and
    the tables with a row for it. Interrupted, the same call goes on.

    Args:
        candidate: results or their folder; or a study or its file: the results that it has, or, of
            a study of one configuration per batch size, what comes of training it first
        checkpoint: the baseline's, *.safetensors or a state_dict of torch.save
        baseline: what it was trained with, where that is known: the number of a trial of the
            candidate's results, 12 or "64:12" with its batch size, or a study of one configuration
            or with results, or its file
        seeds: runs of each side; by default 10, or the fewest with which the rule can decide
        results: the folder in which results of studies are, or are made
        storage: the URL of the database of the candidate's results, where it is not their own
        options: who trains, as of `run_studies`: workers, device, backend, progress and the rest

    Raises UserError, before anything is trained, if the checkpoint cannot be read or does not fit;
    UnfinishedError if a run crashed; KeyboardInterrupt passes through, with all finished runs kept.
    """
    results, checkpoint = Path(results), Path(checkpoint)
    by_number = isinstance(baseline, int) or TRIAL.fullmatch(str(baseline)) is not None
    settings = None if by_number else _settings_of(baseline, results)
    found = _results_of(candidate, checkpoint, settings, results, storage, options)
    if by_number:
        settings = baseline_of_point(found, str(baseline))
    refuse_imported(found.study, "compare")
    with exclusive(found.store):
        result = _run_comparison(found, checkpoint, settings, seeds, options)
        with defer_signals():
            write_comparison(found.folder, result)
            tell_baseline(found.store, result.checkpoint)
            write_results(replace(found, comparison=result))
    return result


def _settings_of(
    baseline: Settings | Study | str | Path | int | None, results: Path
) -> Settings | None:
    """Of all but the number of a trial."""
    if baseline is None or isinstance(baseline, Settings):
        return baseline
    given = baseline if isinstance(baseline, Study) else Path(str(baseline))
    return baseline_of_study(given, results)


def _results_of(
    candidate: Results | Study | str | Path,
    checkpoint: Path,
    baseline: Settings | None,
    results: Path,
    storage: str | None,
    options: Mapping[str, Any],
) -> Results:
    """The results of the candidates, which are trained first if they are those of a recipe."""
    if isinstance(candidate, Results):
        return candidate
    if not isinstance(candidate, Study):
        if not Path(candidate).is_file():
            return read_results(candidate, storage)
        candidate = load_study(candidate)
    if not _only_points(candidate) and has_results(results / candidate.name, storage):
        return Results.read(create_store(candidate, results, storage))
    return train_recipe(candidate, checkpoint, baseline, results, storage, **options)


def _run_comparison(
    results: Results,
    checkpoint: Path,
    baseline: Settings | None,
    seeds: int | None,
    options: dict[str, Any],
) -> Comparison:
    found, study = candidates(results), results.study
    choices = [baseline] if baseline else _architectures(found)
    fits, model, measured = _measure_checkpoint(checkpoint, choices, study, options)
    found = [side for side in found if baseline is None or side.training != baseline.training]
    if not found:
        raise UserError(
            f"{results.folder}: its best trial has the settings of the baseline: there is nothing "
            "to compare"
        )
    seeds = seeds or max(SEEDS, fewest_seeds(paired=baseline is not None, candidates=len(found)))
    controls = [_control(side, baseline) for side in found]
    runs = _Runs(
        [side for side in (*found, baseline, *controls) if side],
        results.folder / "comparison",
        seeds,
        options,
    )
    sides = [_side(side, runs.trials(side)) for side in found]
    base = _side(baseline, runs.trials(baseline)) if baseline else None
    reference = base.values if base else [measured.value]
    evidences = [evidence(side.values, reference, study.maximize) for side in sides]
    result = Comparison(
        objective=study.objective,
        first_seed=runs.first_seed,
        seeds=seeds,
        checkpoint=measured,
        baseline=base,
        candidates=tuple(
            Candidate(
                side=side,
                evidence=one,
                decision=decision,
                seeds_needed=settles(one, len(found)),
                equal_steps=evidence(side.values, _values(runs.trials(control)), study.maximize)
                if control
                else None,
            )
            for side, control, one, decision in zip(
                sides, controls, evidences, decide(evidences), strict=True
            )
        ),
        test={},
        warnings=(),
        maximize=study.maximize,
    )
    result = replace(result, warnings=tuple(_warnings(result)))
    if result.decision != "not enough evidence":  # looked at once, after the decision
        chosen = found[sides.index(result.final.side)]
        result = replace(result, test=_on_test(chosen, runs, fits, model))
    return result


def _architectures(found: Sequence[Settings]) -> list[Settings]:
    """One setting for each combination of workload arguments that the search tried."""
    tried = [replace(side, point=trial.point) for side in found for trial in side.searched]
    return list({side.point.workload_key: side for side in reversed(tried)}.values())


def _measure_checkpoint(
    path: Path, choices: Sequence[Settings], study: Study, options: Mapping[str, Any]
) -> tuple[Settings, nn.Module | None, Checkpoint]:
    """The one of the choices that the baseline's checkpoint fits, its model if a workload makes
    it, and what it is worth by the objective of the candidates' study.

    Raises UserError if the checkpoint cannot be read, fits none or several, or has no finite value
    of the objective; or if the study of a choice has another objective or direction.
    """
    objective = study.objective
    for settings in choices:
        own = settings.study
        if own.objective != objective:
            raise UserError(
                f"{own.name}: objective: must be {objective!r} as that of the candidates"
            )
        if own.maximize != study.maximize:
            wanted = str(study.maximize).lower()
            raise UserError(f"{own.name}: maximize: must be {wanted} as that of the candidates")
    device, model = devices(options.get("device"))[0], None
    if choices[0].study.train:
        fits, metrics = _measure_by_function(path, choices, device)
    else:
        fits, model = _fit(path, choices, device)
        with torch_threads():
            metrics = metrics_of(fits.workload().evaluate, model, fits.bfloat16)
    digest = sha256(path)  # of what was read now, not of what may be there hours later
    return fits, model, Checkpoint(str(path), digest, finite(path, metrics, objective))


def _measure_by_function(
    checkpoint: Path, choices: Sequence[Settings], device: str
) -> tuple[Settings, dict[str, float]]:
    """The settings whose function can take the checkpoint, and the metrics that it reports.

    Raises UserError unless there is exactly one.
    """
    tensors, found, errors = read_tensors(checkpoint), [], []
    for settings in choices:
        with torch_threads():
            try:
                metrics = measure_by_function(
                    settings.study, settings.point, checkpoint, tensors, device
                )
            except UserError as error:
                errors.append(error)
            except Exception as error:
                raise UserError(
                    f"{settings.study.name}: {settings.study.train}: {describe_error(error)}"
                ) from error
            else:
                found.append((settings, metrics))
    return _only(found, errors, checkpoint)


def _fit(checkpoint: Path, choices: Sequence[Settings], device: str) -> tuple[Settings, nn.Module]:
    """The settings whose model the checkpoint fits, and that model.

    Raises UserError unless there is exactly one.
    """
    tensors, fits, errors = read_tensors(checkpoint), [], []
    for settings in choices:
        with own_random_numbers():
            point, cpu = settings.point, torch.device("cpu")
            try:
                model = build_model(settings.workload(), point.seed, point.batch_size, cpu)
            except Exception as error:
                raise UserError(
                    f"{settings.study.name}: workload: {describe_error(error)}"
                ) from error
        try:
            fit(model, tensors, checkpoint)
        except UserError as error:
            errors.append(error)
        else:
            fits.append((settings, model.to(device)))
    return _only(fits, errors, checkpoint)


def _only(
    fits: Sequence[tuple[Settings, Found]], errors: Sequence[UserError], checkpoint: Path
) -> tuple[Settings, Found]:
    """The settings that a checkpoint fits, and what was found. Raises UserError unless just one."""
    if not fits:
        raise errors[0]
    if len(fits) > 1:
        several = "; ".join(str(settings.point.workload_args) for settings, _ in fits)
        raise UserError(
            f"{checkpoint}: fits several models: {several}. Say which: --baseline-point N"
        )
    return fits[0]


class _Runs:
    """Every side trained on the same fresh seeds, as studies of one point each, in one pool."""

    def __init__(
        self, sides: Sequence[Settings], folder: Path, seeds: int, options: dict[str, Any]
    ) -> None:
        self.first_seed = max(side.study.seed + side.study.most_seeds for side in sides)
        self.seeds, self.folder = seeds, folder
        self.device = devices(options.get("device"))[0]
        studies = {self.name(side): self.study(side) for side in sides}
        kept: list[Results] = []
        run_studies(list(studies.values()), results=folder, then=kept.append, **options)
        self.results = dict(zip(studies, kept, strict=True))

    def name(self, side: Settings) -> str:
        origin = f"{side.study.name}-{name_of(side.point)}"
        return f"{origin}-steps={side.total_steps}-seed={self.first_seed}"

    def study(self, side: Settings) -> Study:
        return pin(
            side.study,
            side.point,
            self.name(side),
            question=f"What other seeds make of {side.label}",
            trials=1,
            seed=self.first_seed,
            seeds=max(self.seeds, self.stored_seeds(side)),
        )

    def stored_seeds(self, side: Settings) -> int:
        """How many seeds an earlier comparison planned; 0 if there was none.

        They stay, and this comparison looks at the first of them.
        """
        path = self.folder / self.name(side) / STUDY_FILE
        return load_study(path).most_seeds if path.is_file() else 0

    def best_checkpoint(self, side: Settings) -> Path:
        """The checkpoint of a side's best run, or of a further seed's if only that is kept."""
        results = self.results[self.name(side)]
        ranking = sorted(results.trials, key=lambda trial: (told_cost(trial), trial.point.seed))
        paths = (checkpoint_path(results.folder, trial.point) for trial in ranking)
        return next(path for path in paths if path.exists())

    def trials(self, side: Settings) -> list[Trial]:
        """The runs of a side, by seed. Raises UnfinishedError if one crashed."""
        results = self.results[self.name(side)]
        trials = list(results.trials[: self.seeds])
        for trial in trials:
            _raise_if_crashed(trial, results, side.label)
        return trials


def _raise_if_crashed(trial: Trial, results: Results, place: str) -> None:
    if trial.verdict.crashed:
        log = results.folder / "crashed.log"
        raise UnfinishedError(
            f"{place}, seed {trial.point.seed}: crashed: {trial.verdict.evidence}; see {log}"
        )


def _side(settings: Settings, runs: Sequence[Trial]) -> Side:
    searched = repetitions(settings.searched)
    values = [fmean(as_told(trial).value for trial in seeds) for seeds in searched]
    failed = sum(not trial.feasible for trial in runs)
    search_seconds = sum(trial.seconds for trial in settings.searched)
    selected = settings.study.sampling.is_adaptive or settings.study.cut
    independent = len(values) > 1 and not selected
    return Side(
        name=settings.label,
        point=settings.point,
        trials=max(len(searched), 1),
        space=space_in_words(settings.study) if len(searched) > 1 else "one point",
        search_seconds=search_seconds,
        max_train_steps=settings.study.train_steps(settings.point.batch_size),
        total_steps=settings.total_steps,
        values=_values(runs),
        infeasible=failed,
        failure_bound=failure_bound(failed, len(runs)),
        run_seconds=fmean(trial.seconds for trial in runs),
        best_of=best_of(values, settings.study.maximize) if independent else None,
    )


def _values(runs: Sequence[Trial]) -> tuple[float, ...]:
    """The value of each run as samplers are told it.

    An infeasible run is worth as much as its untrained model.
    """
    return tuple(as_told(trial).value for trial in runs)


def _control(candidate: Settings, baseline: Settings | None) -> Settings | None:
    """The baseline trained for as many updates in all as a candidate that has more (R11)."""
    if baseline is None or candidate.total_steps <= baseline.total_steps:
        return None
    steps = baseline.study.train_steps(baseline.point.batch_size)
    steps += candidate.total_steps - baseline.total_steps
    return replace(baseline, study=baseline.study.model_copy(update={"max_train_steps": steps}))


def _on_test(
    candidate: Settings, runs: _Runs, fits: Settings, model: nn.Module | None
) -> dict[str, dict[str, float]]:
    """Metrics on the test split of the baseline and of the candidate's best run.

    Empty without a test split, which a function does not show.
    """
    if model is None or not candidate.study.workload:
        return {}
    _, trained = _fit(runs.best_checkpoint(candidate), [candidate], runs.device)
    pair = {"baseline": (fits, model), "candidate": (candidate, trained)}
    with torch_threads():
        return {
            name: metrics_of(test, own, settings.bfloat16)
            for name, (settings, own) in pair.items()
            if (test := getattr(settings.workload(), "test", None)) is not None
        }


# --- what makes it unfair -------------------------------------------------------------------------


def _warnings(result: Comparison) -> Iterator[str]:
    """What a reader must know before believing the decision (S9)."""
    needed = fewest_seeds(result.baseline is not None, len(result.candidates))
    if result.seeds < needed:
        yield f"{result.seeds} seeds cannot decide, whatever they show: it takes {needed}"
    base, candidates = result.baseline, [one.side for one in result.candidates]
    for side in [*candidates, base] if base else candidates:
        if side.infeasible:
            yield (
                f"{side.name}: {side.infeasible} of {result.seeds} runs are infeasible, and count "
                "as untrained"
            )
    for side in candidates:
        if side.trials == 1:
            yield (
                f"{side.name}: the only configuration of its study: how many trials found it is "
                "not known"
            )
    if base is None:
        yield (
            "the baseline is one checkpoint of unknown settings: how much another run of it "
            "would differ, and how well it was tuned, is not known. --baseline-point or "
            "--baseline-study name its settings"
        )
        return
    if not min(base.values) <= result.checkpoint.value <= max(base.values):
        yield (
            f"the checkpoint's {readable(result.checkpoint.value)} is not among the values of its "
            f"retrained settings, {readable(min(base.values))} to {readable(max(base.values))}: "
            "are these its settings?"
        )
    for side in candidates:
        yield from _unlike(base, side)


def _unlike(base: Side, side: Side) -> Iterator[str]:
    """In what a candidate had more than the baseline, or was measured otherwise."""
    if base.trials < side.trials:
        yield (
            f"{side.name}: the best of {side.trials} trials, the baseline of {base.trials}: "
            "tune it as well (S9)"
        )
    if base.total_steps < side.total_steps:
        yield (
            f"the baseline trains for {base.total_steps} updates, {side.name} for "
            f"{side.total_steps}"
        )
    if base.point.batch_size != side.point.batch_size:
        yield (
            f"{side.name}: paired by seed alone: its batch size is not the baseline's, and so "
            "its batches differ"
        )
