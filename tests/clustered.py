"""Clusters of one machine for tests: Dask and Ray as they are, and programs in place of Slurm's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
# Ray would make a token in the home folder
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

RAY = """
import sys, ray
found = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
SBATCH = """
import os, pathlib, subprocess, sys
script = pathlib.Path(sys.argv[1])
if "#SBATCH --partition=nowhere" in script.read_text():
    sys.exit("sbatch: error: invalid partition specified: nowhere")
jobs = pathlib.Path(os.environ["JOBS"])
name = next(str(n) for n in range(1, 999) if not (jobs / str(n)).exists())
environment = {**os.environ, "SLURM_JOB_ID": name}
nothing = subprocess.DEVNULL
child = subprocess.Popen(
    ["bash", script], env=environment, start_new_session=True, stdout=nothing, stderr=nothing
)
(jobs / name).write_text(str(child.pid))
print("Submitted batch job", name)
"""
SRUN = """
import os, sys
words, paths = sys.argv[1:], {}
while words[0].startswith("--"):
    option = words.pop(0)
    if option in ("--output", "--error"):
        paths[option] = words.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
for number, option in ((1, "--output"), (2, "--error")):
    os.dup2(os.open(paths[option], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
os.execvp(words[0], words)
"""
SQUEUE = """
import os, pathlib
for job in pathlib.Path(os.environ["JOBS"]).iterdir():
    try:
        state = pathlib.Path("/proc", job.read_text(), "stat").read_text().split()[2]
    except OSError:
        continue
    if state != "Z":
        print(job.name, "RUNNING")
"""
SCANCEL = """
import os, pathlib, signal, sys
os.killpg(int((pathlib.Path(os.environ["JOBS"]) / sys.argv[1]).read_text()), signal.SIGTERM)
"""


def programs(folder: Path, **sources: str) -> dict[str, str]:
    """An environment in whose PATH these programs come first, after this Python's."""
    folder.mkdir()
    for name, source in sources.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), str(BIN), os.environ["PATH"]])}


def like_slurm(folder: Path) -> dict[str, str]:
    """An environment with sbatch, srun, squeue and scancel that start jobs right here."""
    jobs = folder / "jobs"
    jobs.mkdir(parents=True)
    found = programs(folder / "bin", sbatch=SBATCH, srun=SRUN, squeue=SQUEUE, scancel=SCANCEL)
    return {**found, "JOBS": str(jobs)}


@contextmanager
def started(*command: object, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    """A process with all that it starts, which are killed in the end."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, **QUIET, **environ},
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()


def until_written(path: Path, seconds: float = 60) -> str:
    """What somebody else writes into a file."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return path.read_text()


@contextmanager
def dask(folder: Path, workers: int = 2) -> Iterator[tuple[str, list["subprocess.Popen[str]"]]]:
    """The address of a scheduler, and the nannies of its workers of one thread each."""
    file = folder / "scheduler.json"
    quiet = ("--no-dashboard", "--host", "127.0.0.1")
    command = (BIN / "dask", "scheduler", *quiet, "--port", 0, "--scheduler-file", file)
    with started(*command):
        address = json.loads(until_written(file))["address"]
        one = (BIN / "dask", "worker", address, "--nthreads", 1, *quiet)
        nannies = [started(*one, "--local-directory", folder) for _ in range(workers)]
        with nannies[0] as first, nannies[1] as second:
            yield address, [first, second]


@contextmanager
def ray() -> Iterator[str]:
    """The address of a cluster of two cores."""
    with started(sys.executable, "-c", RAY) as process:
        yield process.stdout.readline().strip()
