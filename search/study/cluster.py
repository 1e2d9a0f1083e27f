"""The [cluster] table: what each worker asks of the cluster that starts it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MOST_CORES = 4096  # of a worker: more than any machine has
TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", re.ASCII)  # as Slurm writes it
MEMORY = re.compile(r"([1-9]\d{0,5})([MGT])B?", re.ASCII)
GIGABYTES = {"M": 2**-10, "G": 1.0, "T": 2.0**10}
OPTION = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)  # of sbatch, without its dashes
LINES = re.compile(r"[\r\n\0]")


def _one_line(text: str) -> str:
    if LINES.search(text) or not text:
        raise ValueError("must be one line, and not empty")
    return text


def _time(text: str) -> str:
    if not (TIME.fullmatch(text) and re.search("[1-9]", text)):
        raise ValueError('must be hours:minutes:seconds, as "12:00:00" or "2-00:00:00"')
    return text


def _memory(text: str) -> str:
    if not MEMORY.fullmatch(text):
        raise ValueError('must be a whole number and its unit, as "16GB" or "500MB"')
    return text


def _options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if not OPTION.fullmatch(name):
            raise ValueError(f"must be options of sbatch without their dashes, got {name[:80]!r}")
        if not isinstance(value, bool | int | str) or LINES.search(str(value)):
            raise ValueError(f"{name}: must be a text of one line, a whole number, or true")
    return options


def _count(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("must be a whole number")
    return value


Line = Annotated[str, AfterValidator(_one_line)]


class Cluster(BaseModel):
    """What `tunewright run --backend` asks of a cluster for each of its workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[int, Field(ge=1, le=MOST_CORES), BeforeValidator(_count)] = Field(
        default=1,
        description="Cores of each worker, for processes that load data; it trains on one, or on "
        "as many as --threads says (Slurm, Ray)",
        examples=[4],
    )
    gpus: Annotated[int, Field(ge=0, le=1), BeforeValidator(_count)] = Field(
        default=0,
        description="1: each worker has a GPU of its own, and trains on it (Slurm, Ray)",
        examples=[1],
    )
    memory: Annotated[str, AfterValidator(_memory)] | None = Field(
        default=None, description="Memory of each worker (Slurm, Ray)", examples=["16GB"]
    )
    time: Annotated[str, AfterValidator(_time)] = Field(
        default="1:00:00",
        description="After it Slurm ends a worker, and another goes on",
        examples=["12:00:00", "2-00:00:00"],
    )
    partition: Line | None = Field(
        default=None, description="Partition of the cluster (Slurm)", examples=["short"]
    )
    sbatch: Annotated[dict[str, Any], AfterValidator(_options)] = Field(
        default_factory=dict,
        description="Other options of sbatch, without their dashes (Slurm)",
        examples=[{"account": "a", "qos": "b"}],
    )
    setup: tuple[Line, ...] = Field(
        default=(),
        description="Lines of a shell that run before a worker starts (Slurm)",
        examples=[["module load cuda"]],
    )

    @property
    def minutes(self) -> int:
        """Of its time, rounded up."""
        found = TIME.fullmatch(self.time)
        assert found is not None  # it was checked
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)

    @property
    def gigabytes(self) -> float | None:
        if self.memory is None:
            return None
        found = MEMORY.fullmatch(self.memory)
        assert found is not None
        return int(found[1]) * GIGABYTES[found[2]]
