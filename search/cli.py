"""The command line: parses, calls, prints.

Exit status 0: done; 1: the work failed, or was stopped by Ctrl-C or SIGHUP; 2: the user's mistake;
75: stopped by SIGTERM or SIGUSR1, as schedulers do, and the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import shtab

from .errors import LOG, UnfinishedError, UserError, describe_error, mask_password
from .messages import told
from .new import loops, shipped_studies, start
from .signals import (
    INTERRUPTED,
    INTERRUPTED_TRAINING,
    STOPS,
    end_at_once_with,
    quit_on_signal,
    status_of_stop,
)
from .store.places import RUNS

if TYPE_CHECKING:
    from .show.advice import Advice
    from .store.results import Results
    from .study.cluster import Cluster
    from .study.study import Study
    from .trial import Trial

# Imports of torch, Optuna and plotly take seconds, and stand in the commands that need them.
CRASHES_SHOWN = 5  # the rest are in crashed.log
STORAGE = "TUNEWRIGHT_STORAGE"  # the environment variable that --storage defaults to
# workers of a machine, or threads of a worker: more than any machine has cores
MOST_PROCESSES = 4096
MOST_SLOTS = 10_000  # trials in one stack: each keeps a model and its optimizer's state in memory
MOST_RUNS = 10_000  # seeds of a diagnosis or of one side of a comparison (`comparison.MOST_SEEDS`)
MOST_TRAININGS = 10**6  # of a budget, as of a study (`study.MOST_TRIALS`)
MOST_PORT = 65535
MOST_BATCH_SIZE = 2**31 - 1
CLUSTERS = ("dask", "ray", "slurm")  # `pool.clusters.KINDS`
PATIENCE = 600.0  # seconds in which a driver that was ended is started again
SHOWN = 80  # characters of a wrong option in a message
ONE_RUN = ": one run has no spread"


def _check(options: argparse.Namespace) -> int:
    from .judge.analysis import summarize
    from .judge.answer import answers
    from .playbook import legend
    from .show.advice import advise
    from .show.tables import (
        cut_in_words,
        missing_in_words,
        plan_table,
        print_table,
        print_wrapped,
        summary_table,
    )
    from .study.study import load_study

    cited = set()
    for path in options.studies:
        path, folder = _study_and_results(path, options.results)
        study = load_study(path, folder.resolve().name if folder == path.parent else "")
        of_workload, seconds_per_step = _try_workload(study, options.time)
        study, trials = _with_results(study, folder, options.storage)
        if study.imported:
            names = study.scientific_names
            print_table(summary_table(answers(trials, summarize(trials, names), names), study.name))
        else:
            print_table(plan_table(study, seconds_per_step))
            if study.earlier:
                print_wrapped([missing_in_words(study, trials)])
            if study.cut:
                print_wrapped([cut_in_words(study)])
        for one in [*advise(study, trials), *of_workload]:
            print_wrapped([f"warning: {path}: {one.place}: {one.sentence}"])
            cited.add(one.rule)
    if cited:
        print("\nRules cited (`tunewright rules ID` names the section of the playbook):")
        print(legend(cited))
    return 0


def _study_and_results(path: Path, results: Path) -> tuple[Path, Path]:
    """A study file and the folder of its results: that of a file in a results folder, or of the
    folder itself, is this one.
    """
    from .store.places import STUDY_FILE, has_results

    if path.is_dir():
        path /= STUDY_FILE
    if path.name == STUDY_FILE and has_results(path.parent):
        return path, path.parent
    return path, results / path.stem


def _try_workload(study: Study, time: bool) -> tuple[list[Advice], dict[int, float] | None]:
    """Advice on a workload, and with `time` the seconds of an update by batch size.

    Raises UserError for a workload that cannot be used. There is no advice if it is not tried. It
    is tried for `time`, or where its source alone does not show that it can be made: only then is
    torch imported.
    """
    from .study.command import check_command
    from .workload.factory import argument_sets, takes_arguments

    if study.imported or (study.lacks_code and not time):
        return [], None
    if study.command:
        check_command(study)
        return [], None
    arguments = next(argument_sets(study))
    is_plain = None not in study.constructors.values()
    given = arguments if study.workload else {"run": 0}
    if not time and is_plain and takes_arguments(study.import_path, given):
        return [], None
    from .show.chance import advise_on_chance
    from .trainers.tryout import check_studies, seconds_per_step
    from .workload.workload import load_workload

    check_studies([study])
    advice: list[Advice] = []
    if study.workload:
        advice += advise_on_chance(study, load_workload(study.workload, arguments))
    return advice, seconds_per_step(study) if time else None


def _with_results(study: Study, folder: Path, url: str | None) -> tuple[Study, list[Trial]]:
    """A study as it goes on from its results folder, and the finished trials there.

    None if they are of another study file; a note is printed in that case.
    """
    from .store.places import has_results

    if not has_results(folder, url):
        return _after_warm_start(study)
    from .store.storage import continued_by, open_store, read_trials

    _quiet_optuna()
    try:
        store = open_store(folder, url)
    except UserError as error:
        LOG.info("note: its results are left out: %s", error)
        return study, []
    continued = continued_by(store, study)
    if continued is None:
        LOG.info(
            "note: %s: holds results of a different study file, which say nothing of this one",
            folder,
        )
        return study, []
    return continued.study, read_trials(continued)


def _after_warm_start(study: Study) -> tuple[Study, list[Trial]]:
    """A study without results as its [warm_start] makes it, and the trials that count."""
    if study.warm_start is None:
        return study, []
    from .store.warm import as_earlier, gather

    _quiet_optuna()
    sources = gather(study)
    for one in sources:
        LOG.info("warm start: %s", one.in_words())
    trials = [replace(trial, point=point) for one in sources for trial, point in one.trials]
    return study.grown_from(as_earlier(study, sources)), trials


def _new(options: argparse.Namespace) -> int:
    study = start(options.folder, options.kind)
    print(f"{study.parent}: {', '.join(sorted(path.name for path in study.parent.iterdir()))}")
    print(f"next: cd {shlex.quote(str(study.parent))} && tunewright run {study.name}")
    return 0


def _rules(options: argparse.Namespace) -> int:
    from .playbook import RULES, legend, rule, section

    try:
        asked = [rule(id) for id in options.ids]
    except LookupError as error:
        raise UserError(str(error)) from error
    for one in asked:
        print(legend([one.id]), section(one), sep="\n")
    if not asked:
        print(legend(RULES))
    return 0


def _schema(options: argparse.Namespace) -> int:
    import json

    from .study.study import schema

    print(json.dumps(schema(), indent=2))
    return 0


def _quiet_optuna() -> None:
    """Keep Optuna from reporting every study that it opens."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def _pool(options: argparse.Namespace, studies: Sequence[Study]) -> Iterator[dict[str, Any]]:
    """What a command that trains says of its workers, as `run_studies` takes it."""
    names = ("workers", "threads", "device", "slots", "compiled")
    pool = {name: getattr(options, name) for name in names}
    _check_pool(options)
    if options.in_process:
        from .pool.in_process import InProcess

        yield {**pool, "backend": InProcess()}
    elif options.backend:
        from .pool.clusters import hired

        kind, address = options.backend
        cluster = _cluster_of(options, studies)
        with hired(
            kind, address, cluster, options.listen, options.device, options.results
        ) as backend:
            LOG.info("%s starts workers, which reach this driver at %s", kind, backend.address)
            yield {**pool, "device": "cpu", "backend": backend}
    elif options.listen:
        from .pool.remote import Remote
        from .pool.wire import read_key

        host, port = options.listen
        with closing(Remote(host, port, read_key())) as backend:
            LOG.info("listening for workers: tunewright worker %s", backend.address)
            yield {**pool, "backend": backend}
    else:
        yield pool


def _check_pool(options: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other."""
    if options.workers == 0 and (options.backend or not options.listen):
        raise UserError("--workers: 0 needs --listen: somebody must train")
    other = "--listen" if options.listen else "--backend"
    if options.in_process and (options.listen or options.backend):
        raise UserError(f"{other}: cannot stand beside --in-process, where nobody else trains")
    if options.cluster and not options.backend:
        raise UserError("--cluster: says what --backend asks a cluster for, which is missing")
    if options.backend and options.workers is None:
        raise UserError("--backend: needs --workers N: how many workers the cluster starts")


def _cluster_of(options: argparse.Namespace, studies: Sequence[Study]) -> Cluster:
    """What each worker asks of the cluster: --cluster, or what the study files say."""
    from .study.study import load_cluster

    if options.cluster:
        return load_cluster(options.cluster)
    first, *others = studies
    for other in others:
        if other.cluster != first.cluster:
            raise UserError(
                f"cluster: {first.name} and {other.name} have different [cluster] tables, and "
                "share their workers: give one by --cluster FILE"
            )
    return first.cluster


def _worker(options: argparse.Namespace) -> int:
    from .pool.pilot import run_pilot

    host, port = options.driver
    return run_pilot(host, port, options.workers, options.device, options.patience, options.folder)


def _load_study(path: Path) -> Study:
    """A study to be trained; with a warning if its objective sounds better when higher."""
    from .show.advice import direction_of
    from .study.study import load_study

    study = load_study(path)
    for one in direction_of(study):
        LOG.warning("%s: %s: %s", path, one.place, one.sentence)
    return study


def _say_loading() -> None:
    """The first sign of life: what is imported next takes seconds."""
    if "torch" not in sys.modules:
        LOG.info("loading torch …")


def _say_trying(studies: Sequence[Study]) -> None:
    """What comes next imports workloads and takes their first batches."""
    LOG.info("trying the workload of %s …", ", ".join(study.name for study in studies))


def _run(options: argparse.Namespace) -> int:
    _say_loading()
    from .run import run_studies

    _quiet_optuna()
    studies = [_load_study(path) for path in options.studies]
    if options.dry_run:
        return _dry_run(studies, options)
    files = {study.name: path for study, path in zip(studies, options.studies, strict=True)}
    shown: list[_Shown] = []
    with _pool(options, studies) as pool:
        _say_trying(studies)
        run_studies(
            studies,
            results=options.results,
            storage=options.storage,
            progress=not options.quiet,
            then=lambda results: shown.append(
                _show(results, options.json, study=files[results.study.name])
            ),
            **pool,
        )
    if options.json:
        _print_json([one.record for one in shown])
    return max(one.status for one in shown)


def _dry_run(studies: Sequence[Study], options: argparse.Namespace) -> int:
    """Print what would be trained. Raises UserError for what would be refused."""
    from .show.tables import (
        cut_in_words,
        missing_in_words,
        plan_table,
        print_table,
        print_wrapped,
    )
    from .trainers.tryout import check_studies

    check_studies(studies)
    for study in studies:
        study, trials = _with_results(study, options.results / study.name, options.storage)
        print_table(plan_table(study))
        print_wrapped([missing_in_words(study, trials)])
        if study.cut:
            print_wrapped([cut_in_words(study)])
    return 0


@dataclass(frozen=True)
class _Shown:
    """A study's results as they were shown: the exit status, and the same as data."""

    status: int
    record: dict[str, Any]


def _show(
    results: Results, as_json: bool = False, png: bool = False, study: Path | None = None
) -> _Shown:
    """Print a study's answers and results, and build its report; with `as_json` print nothing.

    `study` is its file, if that is known. The status is 1 if a trial crashed, else 0.
    """
    from .show.answers import answer_sentences, next_commands
    from .show.report import write_report
    from .show.tables import print_table, print_wrapped, summary_table

    path = write_report(results, png)
    sentences, commands = answer_sentences(results), next_commands(results, study)
    status = _tell_crashes(results)
    record = {
        "study": results.study.name,
        "objective": results.study.objective,
        "maximize": results.study.maximize,
        "sentences": sentences,
        "answers": [one.record() for one in results.answers],
        "groups": [row.record() for row in results.summaries],
        "comparison": results.comparison.decision if results.comparison else None,
        "report": path,
        "next": commands,
    }
    if not as_json:
        print(results.study.name)
        print_wrapped(sentences)
        print_table(summary_table(results.answers, comparison=results.comparison))
        print(f"report: {path}")
        print("next:", *commands, sep="\n  ")
    return _Shown(status, record)


def _tell_crashes(results: Results) -> int:
    """Tell of trials that crashed. Returns 1 if there are any, else 0."""
    study, trials = results.study, results.trials
    crashes = [trial for trial in trials if trial.verdict.crashed and not study.imported]
    for trial in crashes[:CRASHES_SHOWN]:
        place = f"batch size {trial.point.batch_size}, trial {trial.point.number}"
        LOG.error("crashed: %s, %s: %s", study.name, place, trial.verdict.evidence)
    if crashes:
        LOG.error(
            "%d of %d trials crashed, which says nothing about their points; tracebacks in %s. "
            "The same command tries them again.",
            len(crashes),
            len(trials),
            results.folder / "crashed.log",
        )
    return 1 if crashes else 0


def _print_json(value: object) -> None:
    """As files of results: nan and inf are "NaN" and "Infinity"."""
    from .store.files import json_text

    print(json_text(value))


def _report(options: argparse.Namespace) -> int:
    from .show.publish import write_results
    from .store.results import Results
    from .store.storage import open_store

    _quiet_optuna()
    results = Results.read(open_store(options.folder, options.storage))
    write_results(results)
    shown = _show(results, options.json, options.png)
    if options.json:
        _print_json([shown.record])
    return shown.status


def _compare(options: argparse.Namespace) -> int:
    _say_loading()
    from .compare import baseline_of_point, baseline_of_study, compare, train_recipe
    from .show.report import write_report
    from .show.tables import comparison_tables, print_table, print_wrapped
    from .store.results import Results
    from .store.storage import open_store
    from .study.study import load_study

    _quiet_optuna()
    recipe = options.candidate.is_file()
    baseline = None
    if options.baseline_study is not None:
        beside = options.results if recipe else options.candidate.resolve().parent
        baseline = baseline_of_study(options.baseline_study, beside)
    store = None if recipe else open_store(options.candidate, options.storage)
    study = store.study if store else load_study(options.candidate)
    with _pool(options, [study]) as pool:
        if store:
            results = Results.read(store)
        else:
            results = train_recipe(
                options.candidate,
                options.baseline,
                baseline,
                options.results,
                options.storage,
                progress=not options.quiet,
                **pool,
            )
        if options.baseline_point is not None:
            baseline = baseline_of_point(results, options.baseline_point)
        result = compare(
            results,
            options.baseline,
            baseline,
            options.seeds,
            progress=not options.quiet,
            **pool,
        )
    for table in comparison_tables(result):
        print_table(table)
    for warning in result.warnings:
        LOG.warning("%s", warning)
    print_wrapped(result.failures)
    print(f"report: {write_report(replace(results, comparison=result))}")
    print_wrapped([f"decision: {result.decision_in_words}"])
    return 1 if options.require_better and result.decision != "adopt" else 0


def _diagnose(options: argparse.Namespace) -> int:
    _say_loading()
    from .diagnose import diagnose, plan_of
    from .show.report import write_report
    from .show.tables import (
        diagnosis_plan_table,
        diagnosis_table,
        print_table,
        print_wrapped,
    )
    from .study.command import refuse_undiagnosable
    from .trainers.tryout import check_studies, seconds_per_step

    _quiet_optuna()
    study = _load_study(options.study)
    refuse_undiagnosable(study)
    _say_trying([study])
    check_studies([study])
    if not options.quiet or options.dry_run:
        plan = plan_of(study, options.seeds)
        print_table(diagnosis_plan_table(plan, seconds_per_step(study)))
    if options.dry_run:
        return 0
    kept: list[Results] = []
    with _pool(options, [study]) as pool:
        result = diagnose(
            study,
            results=options.results,
            seeds=options.seeds,
            budget=options.budget,
            storage=options.storage,
            say=LOG.info,
            progress=not options.quiet,
            then=kept.append,
            **pool,
        )
    for found in result.groups:
        print_table(diagnosis_table(found, result.objective, result.maximize))
        print_wrapped([f"{found.group.label}: {found.summary}"])
    (results,) = kept
    print(f"report: {write_report(results)}")
    for recipe in result.recipes.values():
        print(f"recipe: tunewright run {results.folder / recipe} --results {results.folder}")
    return 2 if any(found.fault for found in result.groups) else 0


def _scaling(options: argparse.Namespace) -> int:
    _say_loading()
    from .scaling import scaling
    from .show.report import write_report
    from .show.scaling import print_scaling
    from .store.results import Results, write_scaling
    from .store.storage import open_store

    _quiet_optuna()
    if options.source.is_file():
        results = _trained(options)
    else:
        results = Results.read(open_store(options.source, options.storage))
    status = _tell_crashes(results)
    report = scaling(results, options.target, options.predict)
    write_scaling(results.folder, report)
    path = write_report(replace(results, scaling=report))
    if options.json:
        _print_json(asdict(report))
        return status
    print_scaling(report)
    print(f"report: {path}")
    return status


def _trained(options: argparse.Namespace) -> Results:
    """The results of a study file, after a run that trains what is missing."""
    from .run import run_studies

    study = _load_study(options.source)
    kept: list[Results] = []
    with _pool(options, [study]) as pool:
        _say_trying([study])
        run_studies(
            [study],
            results=options.results,
            storage=options.storage,
            progress=not options.quiet,
            then=kept.append,
            **pool,
        )
    return kept[0]


def _judge(options: argparse.Namespace) -> int:
    from .judge_logs import LogOptions, judge_logs
    from .logs.roles import GivenColumns
    from .show.judged import print_judged

    columns = GivenColumns(options.step, options.loss, options.grad_norm, options.objective)
    how = LogOptions(
        columns, options.maximize, options.clip_norm, options.chance_loss, options.divergence
    )
    judged, errors = judge_logs(options.logs, how)
    print_judged(judged, errors, options.json)
    if errors:
        return 2
    return 1 if any(one.readout.verdict.infeasible for one in judged) else 0


def _import(options: argparse.Namespace) -> int:
    from .importing import import_sweep

    _quiet_optuna()
    constants = {ours: _one(ours, values) for ours, values in _pairs("--set", options.set).items()}
    done = import_sweep(
        options.source,
        options.name,
        options.results,
        study=options.study,
        given=_pairs("--map", options.map),
        constants=constants,
        ignored=[name for text in options.ignore for name in text.split(",")],
        maximize=options.maximize,
        failed_is_infeasible=options.failed == "infeasible",
        storage=options.storage,
        say=lambda text: print(text, flush=True),
    )
    folder = done.store.folder
    if done.added:
        trials = "trial" if done.added == 1 else "trials"
        print(f"{folder}: {done.added} {trials} added, {len(done.trials)} in all")
    else:
        print(f"{folder}: nothing new: it has all {len(done.trials)} trials already")
    print(f"next: tunewright report {shlex.quote(str(folder))}")
    return 0


def _pairs(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """What `ours=theirs,ours=theirs` says, several of one name together."""
    found: dict[str, list[str]] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise UserError(f"{option}: must be name=value,name=value, got {pair!r}")
        found.setdefault(ours, []).append(theirs)
    return found


def _one(ours: str, values: Sequence[str]) -> Any:
    from .sources.tables import cell

    if len(values) > 1:
        raise UserError(f"--set {ours}: is given twice")
    return cell(values[0])


def _dashboard(options: argparse.Namespace) -> int:
    from .show.dashboard import serve
    from .store.storage import open_store

    _quiet_optuna()
    store = open_store(options.folder, options.storage)
    serve(store, options.port)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(mask_password(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tunewright",
        description=(
            "Hyperparameter-search studies for PyTorch, after the Deep Learning Tuning Playbook."
        ),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('tunewright')}")

    def help_alone(_options: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(call=help_alone, last_words=INTERRUPTED, quiet=False, verbose=False)
    shtab.add_argument_to(
        parser, "--print-completion", help="print a script that completes commands, for this shell"
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(call=call)
        loud = sub.add_mutually_exclusive_group()
        loud.add_argument(
            "-q", "--quiet", action="store_true", help="no progress, notes or warnings"
        )
        loud.add_argument(
            "-v", "--verbose", action="store_true", help="also say what it does in detail"
        )
        return sub

    def as_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--json", action="store_true", help="print the same as data: a JSON list, a study each"
        )

    def dry_run(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--dry-run", action="store_true", help="print what would be trained, and train nothing"
        )

    def storage(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--storage",
            metavar="URL",
            default=os.environ.get(STORAGE),
            help="Optuna storage to use instead of the results folder's study.db, as "
            "postgresql://user@host/database; "
            f"a password belongs in PGPASSWORD or ~/.pgpass, or with the whole URL in {STORAGE}",
        )

    def device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--device",
            metavar="D",
            help="torch devices to train on, as cuda:0,cuda:1 or cpu (default: every GPU, or the "
            "CPU where there is none)",
        )

    def pool(sub: argparse.ArgumentParser) -> None:
        sub.set_defaults(last_words=INTERRUPTED_TRAINING)
        who = sub.add_mutually_exclusive_group()
        who.add_argument(
            "--workers",
            type=_whole(0, MOST_PROCESSES),
            metavar="N",
            help="worker processes on this machine (default: one per GPU, or per core)",
        )
        sub.add_argument(
            "--listen",
            type=_address,
            metavar="HOST:PORT",
            help="let workers of other machines join, too: run `tunewright worker HOST:PORT` there",
        )
        sub.add_argument(
            "--backend",
            type=_backend,
            metavar="KIND:ADDRESS",
            help="have a cluster start the N workers: dask:tcp://HOST:PORT, ray:auto, "
            "ray:HOST:PORT or slurm; --listen says where they reach this driver",
        )
        sub.add_argument(
            "--cluster",
            type=Path,
            metavar="FILE",
            help="what each worker asks of the cluster: a [cluster] table (default: the study's)",
        )
        who.add_argument(
            "--in-process",
            action="store_true",
            help=(
                "train in this process instead: breakpoint(), debuggers and print work as in any "
                "script"
            ),
        )
        sub.add_argument(
            "--threads",
            type=_whole(1, MOST_PROCESSES),
            metavar="N",
            help="torch threads per worker (default: 1); others change the last digits",
        )
        device(sub)
        how = sub.add_mutually_exclusive_group()
        how.add_argument(
            "--slots",
            type=_whole(1, MOST_SLOTS),
            metavar="K",
            help=(
                "trials that a worker trains at once; 1 = one after the other (default: by rule, "
                "what should be faster)"
            ),
        )
        how.add_argument(
            "--compile",
            dest="compiled",
            action=argparse.BooleanOptionalAction,
            help=(
                "train by torch.compile, which pays in long studies and changes the last digits "
                "(default: as the study began, at first without)"
            ),
        )

    def results(sub: argparse.ArgumentParser, summary: str) -> None:
        sub.add_argument(
            "--results",
            type=Path,
            default=RUNS,
            metavar="DIR",
            help=f"{summary} (default: {RUNS})",
        )

    kinds, shipped = loops(), shipped_studies()
    new = command(
        "new", _new, "Copy a small workload and its study into a new folder, to start from."
    )
    new.add_argument("folder", metavar="FOLDER", type=Path, help="is created; may exist if empty")
    new.add_argument(
        "--from",
        dest="kind",
        choices=[*kinds, *shipped],
        metavar="NAME",
        help=f"start from a training loop instead ({', '.join(kinds)}), or copy a study that comes "
        f"with tunewright: {', '.join(shipped)}",
    )

    check = command(
        "check",
        _check,
        "Validate studies, print their plans, and warn where they break rules of the playbook.",
    )
    check.add_argument("studies", nargs="+", metavar="STUDY.toml|RESULTS_DIR", type=Path)
    check.add_argument(
        "--time",
        action="store_true",
        help="also try the workload: its methods, batch sizes and chance_loss; and estimate how "
        "long training takes",
    )
    results(check, "where results go; those already there are judged, too")
    storage(check)

    run = command(
        "run",
        _run,
        "Run studies, or go on with them where they stopped, in one pool of worker processes.",
    )
    check.epilog = run.epilog = (
        "A study's `trials` counts configurations per batch size; with `seeds = 3` each is "
        "trained three times."
    )
    run.epilog += (
        " Exit status 0: done; 1: the work failed, or Ctrl-C or SIGHUP ended it; 2: a mistake in "
        "what it was given; 75: SIGTERM or SIGUSR1, as schedulers send them, ended it, what was in "
        "training is saved, and the same command goes on."
    )
    run.add_argument("studies", nargs="+", metavar="STUDY.toml", type=Path)
    as_json(run)
    dry_run(run)
    pool(run)
    results(run, "where results go")
    storage(run)

    worker = command(
        "worker",
        _worker,
        "Train for a run on another machine, which listens (`tunewright run ... --listen`).",
    )
    worker.epilog = (
        "Exit status 0: the run is over; 1: no driver answered; 2: the driver refused this worker; "
        "75: a signal ended it, and what was in training is saved. The key that both sides share "
        "is in the file that TUNEWRIGHT_KEY_FILE names, or in TUNEWRIGHT_KEY."
    )
    worker.add_argument("driver", type=_address, metavar="HOST:PORT", help="where it listens")
    worker.add_argument(
        "--workers",
        type=_whole(1, MOST_PROCESSES),
        metavar="N",
        help="worker processes (default: one per device, or per core)",
    )
    device(worker)
    worker.add_argument(
        "--patience",
        type=_seconds,
        default=PATIENCE,
        metavar="SECONDS",
        help="how long to try again where no driver answers (default: %(default)g)",
    )
    worker.add_argument(
        "--folder",
        type=Path,
        default=RUNS,
        metavar="DIR",
        help=f"where runs of a study's command go on this machine (default: {RUNS})",
    )

    diagnose = command(
        "diagnose",
        _diagnose,
        "Find out whether training is unstable, in which way, and what helps; write a recipe.",
    )
    diagnose.add_argument("study", metavar="STUDY.toml", type=Path)
    diagnose.add_argument(
        "--seeds",
        type=_whole(2, MOST_RUNS, ONE_RUN),
        default=5,
        metavar="N",
        help="trainings of each point that a finding rests on (default: 5)",
    )
    diagnose.add_argument(
        "--budget",
        type=_whole(1, MOST_TRAININGS),
        default=math.inf,
        metavar="TRAININGS",
        help=(
            "how many trainings may be spent, counted in updates: TRAININGS × max_train_steps; "
            "every remedy gets a first look, the better ones the rest (default: no limit)"
        ),
    )
    dry_run(diagnose)
    pool(diagnose)
    results(diagnose, "where results go")
    storage(diagnose)

    report = command(
        "report", _report, "Build plots, tables and report.html again from stored results."
    )
    report.add_argument("folder", metavar="RESULTS_DIR", type=Path)
    report.add_argument(
        "--png",
        action="store_true",
        help="also draw the plots as plots/*.png (needs tunewright[png])",
    )
    as_json(report)
    storage(report)

    compare = command(
        "compare", _compare, "Rerun the best trials on fresh seeds, and decide against a baseline."
    )
    compare.epilog = (
        "A decision against a checkpoint of unknown settings takes 19 seeds or more; with its "
        "settings known, both sides are trained on the same seeds, and fewer suffice."
    )
    compare.add_argument(
        "candidate",
        metavar="RESULTS_DIR|STUDY.toml",
        type=Path,
        help=(
            "a study's results; or a study of one configuration per batch size, which is trained "
            "first"
        ),
    )
    compare.add_argument(
        "--baseline",
        required=True,
        type=Path,
        metavar="CHECKPOINT",
        help="*.safetensors, or a torch.save state_dict",
    )
    known = compare.add_mutually_exclusive_group()
    known.add_argument(
        "--baseline-point",
        metavar="[B:]N",
        help="trial N (of batch size B) of the results has the baseline's settings",
    )
    known.add_argument(
        "--baseline-study",
        type=Path,
        metavar="STUDY.toml",
        help="this study's only configuration, or its best, has the baseline's settings",
    )
    compare.add_argument(
        "--seeds",
        type=_whole(2, MOST_RUNS, ONE_RUN),
        metavar="N",
        help="runs of each side (default: 10, or more if a decision needs more)",
    )
    compare.add_argument(
        "--require-better",
        action="store_true",
        help="exit status 1 unless the decision is to adopt",
    )
    pool(compare)
    results(compare, "where the results of a STUDY.toml go")
    storage(compare)

    scale = command(
        "scaling",
        _scaling,
        "Measure how base_lr, stability and updates to a target change with the batch size.",
    )
    scale.epilog = (
        "Each batch size is tuned on its own; three or more show a law. Exit status as that of run."
    )
    scale.add_argument(
        "source",
        metavar="RESULTS_DIR|STUDY.toml",
        type=Path,
        help="a study's results; or a study, which is trained first",
    )
    scale.add_argument(
        "--target",
        type=_finite,
        metavar="VALUE",
        help="of the objective, for updates to target (default: the best that all batch sizes "
        "reach)",
    )
    scale.add_argument(
        "--predict",
        type=_batch_sizes,
        default=(),
        metavar="B,B",
        help="batch sizes to recommend a base_lr for",
    )
    as_json(scale)
    pool(scale)
    results(scale, "where the results of a STUDY.toml go")
    storage(scale)

    judge = command(
        "judge",
        _judge,
        "Say of logs that exist whether training was stable, since when it was not, and how to "
        "clip.",
    )
    judge.epilog = (
        "Exit status 1 if any is infeasible, 2 if one cannot be read; the others are judged all "
        "the same."
    )
    judge.add_argument(
        "logs",
        nargs="+",
        metavar="FILE",
        type=Path,
        help="CSV, JSON lines, Lightning's metrics.csv, Transformers' trainer_state.json, "
        "TensorBoard's event files (needs tunewright[tensorboard]), a W&B history, AlgoPerf's "
        "measurements.csv; or a folder of such",
    )
    for role, what in {
        "step": "the steps, in updates",
        "loss": "the training losses",
        "grad-norm": "the norms of the gradients, before clipping",
        "objective": "the evaluations",
    }.items():
        judge.add_argument(
            f"--{role}", metavar="COLUMN", help=f"the column of {what} (default: by its name)"
        )
    judge.add_argument(
        "--maximize",
        action=argparse.BooleanOptionalAction,
        help="the objective is better when higher, or when lower (default: by its name)",
    )
    judge.add_argument(
        "--clip-norm",
        type=_positive,
        default=math.inf,
        metavar="NORM",
        help="the clip threshold that training used",
    )
    judge.add_argument(
        "--chance-loss",
        type=_finite,
        default=math.nan,
        metavar="LOSS",
        help="the training loss of a constant predictor (default: the first one)",
    )
    judge.add_argument(
        "--no-divergence",
        dest="divergence",
        action="store_false",
        help="the training loss grows by design, or is no measure: it counts only where it is nan "
        "or infinite",
    )
    judge.add_argument("--json", action="store_true", help="print a JSON list, a log each")

    importing = command(
        "import", _import, "Make a results folder of a sweep that was run without tunewright."
    )
    importing.epilog = (
        "Columns with usual names are found (lr, learning_rate, bs, optim, wd, …), and what was "
        "found is printed. The source is only read."
    )
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="an Optuna storage (its URL, or its file), a CSV or Parquet table with a row per "
        "run, or a folder with a folder per run",
    )
    importing.add_argument(
        "--as",
        dest="name",
        required=True,
        metavar="NAME",
        help="name of the results folder; again, it adds what is new",
    )
    importing.add_argument(
        "--study", metavar="NAME", help="which study of an Optuna storage (default: the only one)"
    )
    importing.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=COLUMN,…",
        help="which column is which hyperparameter, as base_lr=lr,objective=val/loss; a name that "
        "is none of tunewright's is an axis of its own",
    )
    importing.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="what all runs have, as optimizer=adamw,batch_size=128",
    )
    importing.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="COLUMN,…",
        help="columns that are no hyperparameters",
    )
    importing.add_argument(
        "--maximize",
        action=argparse.BooleanOptionalAction,
        help="a higher objective is better, or a lower one (default: what Optuna was told; by the "
        "column's name)",
    )
    importing.add_argument(
        "--failed",
        choices=["crashed", "infeasible"],
        default="crashed",
        help="what a failed run is of which no value says why (default: crashed, which says "
        "nothing of its point)",
    )
    results(importing, "where the results folder is made")
    storage(importing)

    dashboard = command(
        "dashboard", _dashboard, "Serve Optuna Dashboard on this machine, infeasible trials marked."
    )
    dashboard.add_argument("folder", metavar="RESULTS_DIR", type=Path)
    dashboard.add_argument(
        "--port",
        type=_whole(0, MOST_PORT),
        default=8080,
        metavar="P",
        help="0 = any free port (default: 8080)",
    )
    storage(dashboard)

    rules = command("rules", _rules, "Print the playbook's rules that warnings and reports cite.")
    rules.add_argument(
        "ids", nargs="*", metavar="ID", help="rules to print, with their sections (default: all)"
    )

    command("schema", _schema, "Print the JSON schema of study files, for editors.")
    _complete_files(commands.choices.values())
    return parser


def _complete_files(commands: Iterable[argparse.ArgumentParser]) -> None:
    """Let the shell complete paths."""
    for action in (action for command in commands for action in command._actions):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _whole(lowest: int, highest: int, because: str = "") -> Callable[[str], int]:
    """A parser of whole numbers within bounds, ends included."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # no digits, or thousands of them
            number = lowest - 1
        if not lowest <= number <= highest:
            given = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {lowest} to {highest}, got {given!r}{because}"
            )
        return number

    return parse


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) <= MOST_PORT):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, got {text[:SHOWN]!r}")
    return host.strip("[]"), int(port)


def _batch_sizes(text: str) -> list[int]:
    one = _whole(1, MOST_BATCH_SIZE)
    return [one(part.strip()) for part in text.split(",")]


def _backend(text: str) -> tuple[str, str]:
    kind, _, address = text.partition(":")
    if kind not in CLUSTERS or (kind == "slurm") != (not address):
        raise argparse.ArgumentTypeError(
            "must be dask:ADDRESS, as dask:tcp://host:8786, ray:auto, ray:HOST:PORT or slurm, got "
            f"{text[:SHOWN]!r}"
        )
    return kind, address


def _seconds(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text[:SHOWN]!r}")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text[:SHOWN]!r}")
    return number


def _positive(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text[:SHOWN]!r}")
    return number


# --- output that nobody reads ---------------------------------------------------------------------


class _Forgiving:
    """A stream whose reader may be gone, as with `| head`: what is written then is dropped.

    A character that its encoding lacks is written as an escape.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._until_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_closed():
            self._stream.flush()

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        # from here on all output is dropped, the interpreter's own flush at its end included
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def _forgiving_output() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Forgiving(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _hide(secret: str) -> None:
    """Overwrite a URL that may hold a password in the process list, where Linux allows it."""
    with suppress(OSError, ValueError):
        first, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(first)
            words = memory.read(end - first)
            memory.seek(first)
            memory.write(words.replace(os.fsencode(secret), b"*" * len(os.fsencode(secret))))


def main(arguments: Sequence[str] | None = None) -> int:
    with quit_on_signal():
        for word in sys.argv:
            if mask_password(word) != word:
                _hide(word)
        options = _parser().parse_args(arguments)
        with quit_on_signal(options.last_words), _forgiving_output():
            return _call(options)


def run_program() -> NoReturn:
    """Run the command as a process: to its very end, a signal stops it in order or at once."""
    status = main()
    end_at_once_with(status)
    sys.exit(status)


def _call(options: argparse.Namespace) -> int:
    """Call a command, and say in a sentence what went wrong."""
    with told(options.quiet, options.verbose):
        try:
            return int(options.call(options))
        except UserError as error:
            LOG.error("%s", error)
            return 2
        except UnfinishedError as error:
            LOG.error("%s. The same command tries again.", error)
            return 1
        except STOPS as stop:
            print(options.last_words, file=sys.stderr)
            return status_of_stop(stop)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            words = error.strerror or describe_error(error)
            LOG.error("%s%s. The same command tries again.", place, words)
            return 1


if __name__ == "__main__":
    run_program()
