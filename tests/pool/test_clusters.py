"""Whatever starts the workers, the table is the same, and what a cluster loses is trained again."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import clustered
import optuna
import pytest
from commanded import start, wait_until
from pool.test_driver import STUDY, finish, rows, trained_in

from tunewright.search.cli import main
from tunewright.search.errors import UnfinishedError, UserError
from tunewright.search.pool import clusters, errand, hired
from tunewright.search.pool.clusters import slurm_parameters
from tunewright.search.pool.errand import Errand, run_errand
from tunewright.search.pool.hired import Hired
from tunewright.search.run import run_study
from tunewright.search.study.cluster import Cluster
from tunewright.search.study.study import load_study

RUN = ("--workers", 2, "--slots", 4)
ERRAND = Errand(1, "127.0.0.1", 1, "a key of many letters", "cpu", 1.0, "results", "/nowhere")


def needs(package):
    reason = f"{package} is not installed"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


# --- what is handed to a cluster ------------------------------------------------------------------


def test_the_key_is_in_the_environment_alone_and_what_dask_does_to_memory_is_undone(
    tmp_path, monkeypatch, capfd
):
    program = (
        "import json, os, sys; "
        "print(json.dumps([dict(os.environ), open('/proc/self/cmdline').read(), os.getcwd()])); "
        "sys.exit(7)"
    )
    asked = [sys.executable, "-c", program]
    monkeypatch.setattr(errand, "command_of", lambda *_: asked)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setenv("TUNEWRIGHT_KEY_FILE", "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert run_errand(ERRAND) == 7
    environment, command, folder = json.loads(capfd.readouterr().out)
    assert environment["TUNEWRIGHT_KEY"] == ERRAND.key
    assert not {"MALLOC_TRIM_THRESHOLD_", "TUNEWRIGHT_KEY_FILE"} & set(environment)
    assert ERRAND.key not in command
    assert ERRAND.key not in repr(ERRAND)
    assert folder == str(tmp_path)  # the driver's is not there


def test_a_pilot_ends_when_the_process_that_started_it_is_killed(tmp_path):
    marks = [tmp_path / "started", tmp_path / "ended"]
    program = (
        "import os, pathlib, signal, sys, time; "
        "from tunewright.search.pool.errand import end_with_parent; "
        f"signal.signal(15, lambda *_: (pathlib.Path({str(marks[1])!r}).write_text('x'), "
        "os._exit(0))); end_with_parent(); assert not sys.stdin.read(); "
        f"pathlib.Path({str(marks[0])!r}).write_text('x'); time.sleep(60)"
    )
    caller = (
        "import sys; from tunewright.search.pool import errand; "
        f"errand.command_of = lambda *_: [sys.executable, '-c', {program!r}]; "
        "errand.run_errand(errand.Errand(1, '', 1, 'k', 'cpu', 1.0, '', ''))"
    )
    process = subprocess.Popen([sys.executable, "-c", caller])
    clustered.until_written(marks[0])
    process.kill()
    process.wait()
    clustered.until_written(marks[1], seconds=10)


class Taking:
    """Takes calls that a test ends."""

    def __init__(self):
        self.errands, self.futures = [], []

    def submit(self, call, one):
        assert call is run_errand
        self.errands.append(one)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def cluster():
    return Taking()


@pytest.fixture
def backend(cluster, monkeypatch):
    monkeypatch.setattr(hired, "SECONDS_TO_REPLACE", 0.0)
    monkeypatch.setattr(hired, "SECONDS_TO_LEAVE", 0.1)
    backend = Hired(cluster, ("127.0.0.1", 0), name="here")
    assert backend.count(2, ["cpu"]) == 2
    backend.start(2, "code", ["cpu"])
    yield backend
    backend.close()


def test_one_call_for_each_worker_whatever_fewer_tasks_need(backend, cluster):
    assert len(cluster.errands) == 2
    assert cluster.errands[0] != cluster.errands[1]  # Dask takes equal calls for one
    assert len(cluster.errands[0].key) == 64
    backend.start(1, "code", ["cpu"])
    backend.wait(0.0)
    assert len(cluster.errands) == 2


def test_another_worker_is_asked_for_where_one_has_ended(backend, cluster):
    cluster.futures[0].set_exception(RuntimeError("its node is gone"))
    backend.wait(0.0)
    backend.wait(0.0)
    assert len(cluster.errands) == 3


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (1, "it could not reach this driver at 127.0.0.1:.*--listen HOST:PORT"),
        (2, "it was refused, or misses its device"),
        (-9, "it ended with status -9"),
        (RuntimeError("no\nluck"), "its call raised RuntimeError: no luck$"),
    ],
)
def test_workers_that_all_end_before_they_train_end_the_run_with_a_reason(
    backend, cluster, outcome, reason
):
    def end_the_last():
        last = cluster.futures[-1]
        if isinstance(outcome, int):
            last.set_result(outcome)
        else:
            last.set_exception(outcome)

    for _ in range(2):
        end_the_last()
        backend.wait(0.0)
        backend.wait(0.0)
    assert len(cluster.futures) == 4  # the first place's, and three tries in the second
    end_the_last()
    with pytest.raises(UnfinishedError, match=f"here: 3 workers ended .*because {reason}"):
        backend.wait(0.0)


def test_as_long_as_trials_come_in_a_worker_may_end_any_number_of_times(backend, cluster):
    for _ in range(5):
        backend._handed_in = time.monotonic()
        cluster.futures[-1].set_result(75)
        backend.wait(0.0)
        backend.wait(0.0)
    assert len(cluster.errands) == 7


def test_what_waits_in_the_clusters_queue_is_taken_back_at_the_end(backend, cluster):
    backend.close()
    assert all(future.cancelled() for future in cluster.futures)


def test_a_cluster_that_takes_no_call_is_a_sentence(tmp_path):
    class Full:
        def submit(self, call, one):
            raise RuntimeError("no room\nfor anybody")

    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(steps=10, trials=2))
    with pytest.raises(UserError, match=r"^executor: starts no worker: no room$"):
        run_study(load_study(path), results=tmp_path, executor=Full(), workers=1, progress=False)
    with pytest.raises(UserError, match="workers: how many executor starts must be said, got None"):
        run_study(load_study(path), results=tmp_path, executor=Full(), progress=False)
    with pytest.raises(UserError, match="executor: cannot stand beside backend"):
        run_study(load_study(path), results=tmp_path, executor=Full(), backend=Full())


def test_a_key_that_no_environment_holds_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_bytes(b"16 characters \0 and more")
    path.chmod(0o600)
    monkeypatch.setenv("TUNEWRIGHT_KEY_FILE", str(path))
    with pytest.raises(UserError, match="null characters"):
        Hired(Taking())


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(steps=600, trials=8))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "slurm"], "--backend: needs --workers N"),
        (["--backend", "slurm", "--workers", "0"], "--workers: 0 needs --listen: "),
        (["--cluster", "c.toml"], "--cluster: says what --backend asks"),
        (["--in-process", "--listen", "127.0.0.1:0"], "--listen: cannot stand beside"),
        (["--in-process", "--backend", "slurm"], "--backend: cannot stand beside --in-process"),
    ],
)
def test_options_that_contradict_each_other(study_file, capsys, options, message):
    assert main(["run", str(study_file), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("text", ["dask", "ray:", "slurm:host", "spark:x"])
def test_a_backend_is_a_kind_with_its_address(capsys, text):
    with pytest.raises(SystemExit):
        main(["run", "s.toml", "--backend", text])
    assert "must be dask:ADDRESS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "package"),
    [("dask:tcp://127.0.0.1:1", "distributed"), ("ray:auto", "ray"), ("slurm", "submitit")],
)
def test_a_package_that_is_missing_is_named(study_file, capsys, monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["run", str(study_file), "--backend", backend, "--workers", "1"]) == 2
    kind = backend.partition(":")[0]
    said = capsys.readouterr().err
    assert f"--backend {kind}: needs a package: pip install 'tunewright[{kind}]'" in said


@needs("submitit")
def test_slurm_without_its_programs_is_a_sentence(study_file, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["run", str(study_file), "--backend", "slurm", "--workers", "1"]) == 2
    assert "--backend slurm: sbatch is not found" in capsys.readouterr().err


@needs("submitit")
def test_a_partition_that_is_not_there_is_said_as_sbatch_says_it(
    study_file, tmp_path, capsys, monkeypatch
):
    for name, value in clustered.like_slurm(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "c.toml").write_text('[cluster]\npartition = "nowhere"\n')
    command = ["run", str(study_file), "--backend", "slurm", "--cluster", "c.toml"]
    assert main([*command, "--workers", "1"]) == 2
    assert "invalid partition specified: nowhere" in capsys.readouterr().err


@pytest.mark.slow
@needs("distributed")
def test_a_scheduler_that_does_not_answer_is_a_sentence(study_file, capsys, monkeypatch):
    monkeypatch.setattr("tunewright.search.pool.clusters.SECONDS_TO_REACH", 1)
    backend = "dask:tcp://127.0.0.1:1"
    assert main(["run", str(study_file), "--backend", backend, "--workers", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --backend dask: no scheduler answers at 'tcp://127.0.0.1:1'")


def test_studies_that_share_workers_ask_the_cluster_for_the_same(study_file, tmp_path, capsys):
    other = tmp_path / "other.toml"
    other.write_text(study_file.read_text() + "[cluster]\ncpus = 2\n")
    command = ["run", str(study_file), str(other), "--backend", "slurm", "--workers", "1"]
    assert main(command) == 2
    assert "small and other have different [cluster] tables" in capsys.readouterr().err


def test_what_slurm_is_asked_for():
    asked = Cluster(
        cpus=4, gpus=1, memory="500MB", time="1-02:03:04", partition="p", sbatch={"qos": "q"}
    )
    assert slurm_parameters(asked) == {
        "job_name": "tunewright",
        "time": 26 * 60 + 4,
        "cpus_per_task": 4,
        "srun_args": ["--cpus-per-task=4"],
        "gpus_per_node": 1,
        "mem_gb": 500 / 1024,
        "partition": "p",
        "additional_parameters": {"qos": "q"},
    }


def test_a_worker_with_a_gpu_trains_on_it(monkeypatch, tmp_path):
    monkeypatch.setitem(clusters.KINDS, "here", lambda *_: nullcontext(clusters.Found(Taking())))
    for gpus, given, device in (
        (0, None, "cpu"),
        (1, None, "cuda"),
        (1, "cpu", "cpu"),
        (0, "cuda:1", "cuda:1"),
    ):
        asked = Cluster(gpus=gpus)
        with clusters.hired("here", "", asked, ("127.0.0.1", 0), given, tmp_path) as backend:
            backend.start(1, "code", ["cpu"])
            assert backend._executor.errands[0].device == device


# --- the same table -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A study, and its table as trained by worker processes of this machine."""
    return trained_in(tmp_path_factory.mktemp("local"), RUN)


def same(folder, table):
    """Whether all trials are there, each told to Optuna once, with the same numbers."""
    results = folder / "runs" / "small"
    assert rows(results) == table
    storage = f"sqlite:///{results / 'study.db'}"
    told = [
        trial
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    assert len(told) == len(table)
    assert not list((results / "inbox").glob("*.json"))


def run_on(backend, path, folder, **environ):
    return start("run", path, *RUN, "--backend", backend, cwd=folder, **clustered.QUIET, **environ)


def some_trials_are_in(folder):
    return len(list((folder / "runs" / "small").glob("curves/*.npz"))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_of_python(local, tmp_path, kind):
    path, table = local
    with kind(2) as executor:
        options = {"executor": executor, "workers": 2, "slots": 4, "progress": False}
        run_study(load_study(path), results=tmp_path / "runs", **options)
    same(tmp_path, table)


@pytest.mark.slow
def test_in_process(local, tmp_path):
    path, table = local
    assert finish(start("run", path, "--in-process", "--slots", 4, cwd=tmp_path))[0] == 0
    same(tmp_path, table)


@pytest.mark.slow
@needs("submitit")
@pytest.mark.filterwarnings("ignore:.*Popen:pytest.PytestUnraisableExceptionWarning")  # its own
def test_submitit(local, tmp_path):
    import submitit

    path, table = local
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    options = {"executor": executor, "workers": 2, "slots": 4, "progress": False}
    run_study(load_study(path), results=tmp_path / "runs", **options)
    same(tmp_path, table)


@pytest.mark.slow
@needs("distributed")
@pytest.mark.parametrize("killed", ["nobody", "a worker and a nanny"])
def test_dask(local, tmp_path, killed):
    import psutil

    path, table = local
    with clustered.dask(tmp_path) as (address, nannies):
        run = run_on(f"dask:{address}", path, tmp_path)
        if killed != "nobody":
            wait_until(lambda: some_trials_are_in(tmp_path), run)
            workers = psutil.Process(nannies[0].pid).children()
            max(workers, key=lambda one: one.memory_info().rss).kill()
            nannies[1].kill()
        status, _, said = finish(run)
        assert status == 0, said
    same(tmp_path, table)


@pytest.mark.slow
@needs("ray")
@pytest.mark.parametrize("killed", ["nobody", "a worker"])
def test_ray(local, tmp_path, killed):
    path, table = local
    with clustered.ray() as address:
        run = run_on(f"ray:{address}", path, tmp_path)
        if killed != "nobody":
            wait_until(lambda: some_trials_are_in(tmp_path), run)
            os.kill(processes_named("ray::run_errand")[0], signal.SIGKILL)
        status, _, said = finish(run)
        assert status == 0, said
    same(tmp_path, table)


def processes_named(beginning):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith(beginning):
                found.append(int(folder.name))
        except OSError:  # it has ended
            pass
    return found


@pytest.mark.slow
@needs("submitit")
def test_slurm_with_programs_in_place_of_its_own(local, tmp_path):
    """One of the jobs is killed in the middle: nothing but the queue says so."""
    path, table = local
    environ = clustered.like_slurm(tmp_path / "slurm")
    run = run_on("slurm", path, tmp_path, **environ)
    wait_until(lambda: some_trials_are_in(tmp_path), run)
    os.killpg(int((tmp_path / "slurm" / "jobs" / "1").read_text()), signal.SIGKILL)
    status, _, said = finish(run)
    assert status == 0, said
    same(tmp_path, table)
    assert (tmp_path / "runs" / ".slurm").stat().st_mode & 0o077 == 0


def has_slurm():
    if find_spec("submitit") is None or shutil.which("sinfo") is None:
        return False
    found = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="there is no Slurm cluster")
def test_slurm(local, tmp_path):
    path, table = local
    status, _, said = finish(run_on("slurm", path, tmp_path))
    assert status == 0, said
    same(tmp_path, table)


@pytest.mark.slow
def test_two_workers_that_are_started_by_hand(local, tmp_path):
    path, table = local
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(secrets.token_hex(16))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = {"TUNEWRIGHT_KEY_FILE": str(key)}
    command = ("worker", address, "--workers", 1, "--patience", 60)
    workers = [start(*command, cwd=tmp_path, **own) for _ in range(2)]
    options = ("--workers", 0, "--slots", 4, "--listen", address)
    status, _, said = finish(start("run", path, *options, cwd=tmp_path, **own))
    assert status == 0, said
    assert [finish(worker)[0] for worker in workers] == [0, 0]
    same(tmp_path, table)


@pytest.mark.slow
def test_worker_processes_end_with_a_pilot_that_is_killed(tmp_path):
    pilot = start("worker", "127.0.0.1:1", "--workers", 1, cwd=tmp_path)
    children = Path(f"/proc/{pilot.pid}/task/{pilot.pid}/children")
    wait_until(lambda: children.read_text().strip() != "", pilot)
    worker = Path("/proc", children.read_text().strip())
    wait_until(lambda: "libtorch" in (worker / "maps").read_text(), pilot)
    with pilot:
        pilot.kill()
    end = time.monotonic() + 30
    while worker.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
