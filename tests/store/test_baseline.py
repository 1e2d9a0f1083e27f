"""The baseline is in the Optuna studies once, for people to see, and in nothing that counts
trials.
"""

import filecmp
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import download_artifact, get_all_artifact_meta
from optuna.trial import FrozenTrial
from stored import feasible, small_study

from tunewright.search.errors import UserError
from tunewright.search.judge.comparison import Checkpoint
from tunewright.search.store.baseline import artifact_store, tell_baseline
from tunewright.search.store.storage import Store, create_store, read_trials, tell
from tunewright.search.train.checkpoints import sha256

TRAINED = feasible(0, 0.1, 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(small_study(batch_sizes=[32, 64]), tmp_path)


def checkpoint(path: Path, content: bytes = b"weights", value: float = 0.01) -> Checkpoint:
    path.write_bytes(content)
    return Checkpoint(str(path), sha256(path), value)


def baselines(store: Store, batch_size: int = 32) -> list[FrozenTrial]:
    """As plain Optuna reads them."""
    url = f"sqlite:///{store.folder / 'study.db'}"
    found = optuna.load_study(study_name=f"small/batch_size={batch_size}", storage=url)
    return [trial for trial in found.trials if trial.user_attrs.get("verdict") == "baseline"]


@pytest.mark.parametrize("batch_size", [32, 64])
def test_each_batch_size_has_the_baseline_with_its_value_and_its_file(store, tmp_path, batch_size):
    baseline = checkpoint(tmp_path / "b.pt")
    tell_baseline(store, baseline)
    (trial,) = baselines(store, batch_size)
    assert (trial.value, trial.params, trial.user_attrs["sha256"]) == (0.01, {}, baseline.sha256)
    (meta,) = get_all_artifact_meta(trial, storage=store.optuna_studies[batch_size]._storage)
    assert meta.filename == "b.pt"
    copy = tmp_path / "copy.pt"
    download_artifact(
        artifact_store=artifact_store(store.folder),
        artifact_id=meta.artifact_id,
        file_path=str(copy),
    )
    assert filecmp.cmp(copy, baseline.path, shallow=False)


def test_the_same_checkpoint_is_added_once_by_whatever_path_and_another_beside_it(store, tmp_path):
    tell_baseline(store, checkpoint(tmp_path / "b.pt"))
    tell_baseline(store, checkpoint(tmp_path / "b.pt"))
    tell_baseline(store, checkpoint(tmp_path / "copied.pt"))
    assert len(baselines(store)) == 1
    tell_baseline(store, checkpoint(tmp_path / "b.pt", b"other weights", 0.02))
    assert [trial.value for trial in baselines(store)] == [0.01, 0.02]
    assert len(list((store.folder / "artifacts").iterdir())) == 2


def test_it_is_no_trial_of_the_search_even_if_it_is_better_than_all_of_them(store, tmp_path):
    tell_baseline(store, checkpoint(tmp_path / "b.pt", value=0.01))
    tell(store, TRAINED)
    assert [trial.point for trial in read_trials(store)] == [TRAINED.point]
    assert store.optuna_studies[32].best_trial.value == TRAINED.best_value
    assert store.optuna_studies[32].best_params == {"base_lr": 0.1}


def test_a_file_that_is_gone_is_one_clear_error_and_adds_nothing(store, tmp_path):
    baseline = checkpoint(tmp_path / "b.pt")
    Path(baseline.path).unlink()
    with pytest.raises(UserError, match="cannot be copied"):
        tell_baseline(store, baseline)
    assert baselines(store) == []
