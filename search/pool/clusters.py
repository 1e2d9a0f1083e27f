"""The executors of Dask, Ray and Slurm: each in one function, its package imported there."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..study.cluster import Cluster
from .errand import Errand
from .hired import Executor, Future, Hired

SECONDS_TO_REACH = 10  # a scheduler
SECONDS_BETWEEN_LOOKS = 5.0  # into Slurm's queue
LOGS = ".slurm"  # folder beside the results; no study can have this name
# states of Slurm's in which a job is over; one that is not in its queue is over, too
OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class Found:
    """An executor, and the host of its scheduler, if that is known."""

    executor: Executor
    near: str | None = None


@contextmanager
def hired(
    kind: str,
    address: str,
    cluster: Cluster,
    listen: tuple[str, int] | None,
    device: str | None,
    results: Path,
) -> Iterator[Hired]:
    """A backend of workers that a cluster of KINDS starts. Raises UserError as `Hired`.

    Also if the cluster cannot be reached, or what is needed for it is missing here.
    """
    device = device or ("cuda" if cluster.gpus else "cpu")
    with KINDS[kind](address, cluster, results) as found:
        backend = Hired(found.executor, listen, found.near, device, results, name=kind)
        with closing(backend):
            yield backend


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"--backend {extra}: needs a package: pip install 'tunewright[{extra}]' ({error})"
        ) from error


@contextmanager
def _dask(address: str, _cluster: Cluster, _results: Path) -> Iterator[Found]:
    distributed = _package("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=SECONDS_TO_REACH, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a TimeoutError is an OSError
        raise UserError(
            f"--backend dask: no scheduler answers at {address!r}: {first_line(error)}"
        ) from error
    with client:
        near = distributed.comm.get_address_host(client.scheduler.address)
        yield Found(client.get_executor(pure=False, retries=0), near)


@contextmanager
def _ray(address: str, cluster: Cluster, _results: Path) -> Iterator[Found]:
    ray = _package("ray", "ray")
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--backend ray: no cluster answers at {address!r}: {first_line(error)}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray's own would end a run in the middle of anything
    try:
        near = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        yield Found(_Ray(ray, cluster), near)
    finally:
        ray.shutdown()


class _Ray:
    def __init__(self, ray: Any, cluster: Cluster) -> None:
        memory = cluster.gigabytes and int(cluster.gigabytes * 2**30)
        self._as_task = ray.remote(
            num_cpus=cluster.cpus, num_gpus=cluster.gpus, memory=memory, max_retries=0
        )

    def submit(self, call: Callable[[Errand], int], errand: Errand, /) -> Future:
        future: Future = self._as_task(call).remote(errand).future()
        return future


@contextmanager
def _slurm(_address: str, cluster: Cluster, results: Path) -> Iterator[Found]:
    submitit = _package("submitit", "slurm")
    for program in ("sbatch", "srun", "squeue"):
        if shutil.which(program) is None:
            raise UserError(f"--backend slurm: {program} is not found: is this a Slurm cluster?")
    folder = results.absolute() / LOGS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # what is submitted has the key of the run
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**slurm_parameters(cluster))
    yield Found(_Slurm(executor))


def slurm_parameters(cluster: Cluster) -> dict[str, Any]:
    """As submitit takes them."""
    wanted = {
        "job_name": "tunewright",
        "time": cluster.minutes,
        "cpus_per_task": cluster.cpus,
        "srun_args": [f"--cpus-per-task={cluster.cpus}"],  # srun does not take it from sbatch
        "gpus_per_node": cluster.gpus,
        "mem_gb": cluster.gigabytes,
        "partition": cluster.partition,
        "setup": list(cluster.setup),
        "additional_parameters": dict(cluster.sbatch),
    }
    return {name: value for name, value in wanted.items() if value}


class _Slurm:
    """Jobs of submitit, whose ends are seen in Slurm's queue: its accounting may be missing."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._open: set[str] = set()
        self._states: Mapping[str, str] = {}
        self._looked = 0.0

    def submit(self, call: Callable[[Errand], int], errand: Errand, /) -> Future:
        job = self._executor.submit(call, errand)
        self._open.add(job.job_id)
        return _Job(job, self)

    def is_over(self, job_id: str) -> bool:
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            self._states = self._look()
        return self._states.get(job_id, "PENDING") in OVER

    def _look(self) -> Mapping[str, str]:
        """The states of the jobs that are not known to be over; as before if Slurm is silent."""
        command = ["squeue", "--noheader", "--states=all", "--format=%i %T", "--me"]
        try:
            said = subprocess.check_output(
                command, stderr=subprocess.DEVNULL, text=True, timeout=SECONDS_TO_REACH
            )
        except subprocess.SubprocessError:
            return self._states
        states = dict(line.split() for line in said.splitlines())
        return {one: states.get(one, "COMPLETED") for one in self._open}


@dataclass(frozen=True)
class _Job:
    job: Any
    slurm: _Slurm

    def done(self) -> bool:
        return self.job.paths.result_pickle.exists() or self.slurm.is_over(self.job.job_id)

    def result(self) -> Any:
        if not self.job.paths.result_pickle.exists():
            raise RuntimeError(f"Slurm ended job {self.job.job_id}: see {self.job.paths.stderr}")
        return self.job.result()

    def cancel(self) -> None:
        self.job.cancel(check=False)


KINDS: dict[str, Any] = {"dask": _dask, "ray": _ray, "slurm": _slurm}
