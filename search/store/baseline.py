"""The baseline as a trial of the Optuna studies that it was compared with.

Its checkpoint is an artifact of that trial. It is no trial of the search. Without RECORD
`read_trials` passes it over, so nothing of ours counts it: no plan, no sampler, no table. Its state
is PRUNED, with a value: so Optuna draws it, but takes `best_trial` and importances from the search
alone, and a script that reads `best_params` gets parameters.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.trial import TrialState, create_trial

from ..errors import UserError
from ..judge.comparison import Checkpoint
from .rows import add_trials, stored_trials
from .storage import DIVERGED, Store

ARTIFACTS = "artifacts:"  # prefix of the attributes in which Optuna keeps an artifact's name and id


def artifact_store(folder: Path) -> FileSystemArtifactStore:
    """Where the artifacts of a results folder are, for `optuna.artifacts` and the dashboard."""
    return FileSystemArtifactStore(folder / "artifacts")


def tell_baseline(store: Store, baseline: Checkpoint) -> None:
    """Add the baseline to the Optuna study of each batch size that lacks this checkpoint.

    The file is copied once, its id made of its sha256; each trial is written whole, in one
    transaction, so that no interruption leaves one that is running for ever. Raises UserError if
    the file cannot be read or copied.
    """
    missing = [
        (batch_size, optuna_study)
        for batch_size, optuna_study in store.optuna_studies.items()
        if all(
            trial.user_attrs.get("sha256") != baseline.sha256
            for trial in stored_trials(optuna_study)
        )
    ]
    if not missing:
        return
    path, artifact_id = Path(baseline.path), str(UUID(baseline.sha256[:32]))
    try:
        (store.folder / "artifacts").mkdir(exist_ok=True)
        with path.open("rb") as file:
            artifact_store(store.folder).write(artifact_id, file)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be copied to {store.folder / 'artifacts'}: {error.strerror}"
        ) from error
    meta = ArtifactMeta(artifact_id, path.name, mimetype="application/octet-stream", encoding=None)
    for batch_size, optuna_study in missing:
        trial = create_trial(
            state=TrialState.PRUNED,
            value=baseline.value,
            user_attrs={
                "verdict": "baseline",
                "reason": f"checkpoint {baseline.path}, which the study was compared with",
                "sha256": baseline.sha256,
            },
            # Not upload_artifact: it wants a trial that is still running, and gives each a copy
            # of the file.
            system_attrs={ARTIFACTS + artifact_id: json.dumps(asdict(meta))},
            constraints={DIVERGED: -1.0},
        )
        add_trials(optuna_study, [trial], store.planned[batch_size])
