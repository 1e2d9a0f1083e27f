"""Verdicts of AlgoPerf's measurements.csv, against what the validation of these runs says.

The data is no part of the repository: TUNEWRIGHT_ALGOPERF names a folder that holds runs.jsonl.gz
(see algoperf.py). Each run is written as its measurements.csv was: a row for each time that losses
were logged, and one for each evaluation.
"""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from tunewright.search.judge_logs import judge_log
from tunewright.search.logs.log import read_log

FOLDER = os.environ.get("TUNEWRIGHT_ALGOPERF", "")
AGREEMENT = 0.99

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="TUNEWRIGHT_ALGOPERF is not set"),
]


def write_measurements(path: Path, record: dict) -> None:
    rows: dict[tuple[int, int], dict[str, object]] = {}
    for name in ("loss", "grad_norm"):
        for step, value in record[name] or ():
            rows.setdefault((step, 0), {})[name] = value
    for step, value in record["validation"]:
        more = {record["objective"]: value, "accumulated_submission_time": 60.0 * step}
        rows.setdefault((step, 1), {}).update(more, **{"test/num_examples": 500})
    names = ["loss", "grad_norm", record["objective"], "test/num_examples"]
    names += ["accumulated_submission_time", "global_step"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for (step, _), cells in sorted(rows.items()):
            writer.writerow(cells | {"global_step": step})


def test_verdicts_agree_with_validation(tmp_path):
    wrong, count = [], 0
    with gzip.open(Path(FOLDER) / "runs.jsonl.gz", "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            path = tmp_path / "measurements.csv"
            write_measurements(path, record)
            log = read_log(path)
            assert log.format == "AlgoPerf's measurements.csv"
            assert log.guessed["objective"] == record["objective"]
            assert len(log.loss) == len(record["loss"])
            verdict = judge_log(log).readout.verdict
            count += 1
            if verdict.feasible != (record["label"] == "trained"):
                wrong.append(f"{record['run']}: {record['label']}, but {verdict}")
            if verdict.infeasible:  # in updates, not in losses
                assert verdict.onset_step in [step for step, _ in record["loss"]]
    print(f"{count - len(wrong)} of {count} verdicts agree")
    assert count > 100
    assert len(wrong) <= (1 - AGREEMENT) * count, wrong
    assert not [name for name in wrong if "trained, but" not in name]
