"""Every benchmark still runs: with --quick, so that none rots unseen. Its figures mean nothing
here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.apart]

BENCHMARKS = Path(__file__).with_name("benchmarks")
SCRIPTS = [
    path
    for path in sorted(BENCHMARKS.glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]
SECONDS = 600  # of one script on a busy machine; a few to twenty on one that is not


def test_there_are_benchmarks():
    assert len(SCRIPTS) >= 7


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_and_prints_figures(path, tmp_path):
    result = subprocess.run(
        [sys.executable, str(path), "--quick"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [line for line in result.stdout.splitlines() if any(map(str.isdigit, line))]
    assert len(rows) >= 3, result.stdout
