"""Sweeps as other people leave them: Optuna studies, tables and folders of runs, made without
tunewright.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna

STAR = 1e-2  # the base LR at which the invented training is best
EDGE = 0.1  # above which it diverges
RAISES = 7  # number of the trial that fails
STOPS = 5  # epochs that are never pruned
EPOCHS = 12


def loss_of(lr: float, epoch: int, dropout: float = 0.0) -> float:
    """A validation loss that falls to its best; nan from epoch 4 on above the edge."""
    if lr > EDGE and epoch >= 4:
        return math.nan
    best = 0.1 + 0.2 * abs(math.log10(lr / STAR)) + 0.1 * dropout
    return best + (2.3 - best) * math.exp(-epoch / 2)


def objective(trial: optuna.Trial) -> float:
    """Plain Optuna, as in its tutorials."""
    lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    trial.suggest_int("n_layers", 1, 4)
    trial.suggest_categorical("activation", ["relu", "tanh"])
    if trial.number == RAISES:
        raise RuntimeError("out of memory")
    loss = math.nan
    for epoch in range(EPOCHS):
        loss = loss_of(lr, epoch, dropout)
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def optuna_study(storage: str | optuna.storages.BaseStorage, trials: int = 40) -> optuna.Study:
    """A study with finished, pruned, failed and diverged trials; then one that still runs."""
    study = optuna.create_study(
        study_name="mnist",
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=STOPS),
    )
    study.optimize(objective, n_trials=trials, catch=(RuntimeError,))
    running = study.ask()
    running.suggest_float("lr", 1e-5, 1.0, log=True)
    running.report(2.0, 0)
    return study


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def wandb_rows(count: int = 12) -> list[dict[str, Any]]:
    """What W&B exports: configuration and summary side by side, a state, and an id."""
    rows = []
    for i in range(count):
        lr = 10 ** (-4 + 4 * i / (count - 1))
        loss = loss_of(lr, EPOCHS)
        rows.append(
            {
                "Name": f"sweep-{i}",
                "State": "finished",
                "Created": "2026-11-01T10:00:00.000Z",
                "Runtime": 60 + i,
                "learning_rate": lr,
                "bsz": 64 if i % 2 else 32,
                "opt": "AdamW",
                "wd": 0.01,
                "dropout": i % 3 / 10,
                "val/loss": "NaN" if math.isnan(loss) else loss,
                "val/accuracy": 0.5 if math.isnan(loss) else 1 - loss / 3,
            }
        )
    return rows


def lightning_runs(folder: Path, count: int = 6) -> Path:
    """Folders as Lightning's CSVLogger makes them, the loss logged every 10 updates."""
    for i in range(count):
        run, lr = folder / f"version_{i}", 10 ** (-4 + 4 * i / (count - 1))
        run.mkdir(parents=True)
        (run / "hparams.yaml").write_text(
            f"lr: {lr}\nbatch_size: 32\noptimizer: torch.optim.SGD\nmomentum: 0.9\n"
            f"model:\n  hidden: {64 if i % 2 else 128}\n  act: !!python/name:torch.relu ''\n"
        )
        rows: list[dict[str, Any]] = []
        for step in range(0, 1000, 10):
            loss = loss_of(lr, step // 80)
            rows.append({"epoch": step // 100, "step": step, "train_loss": loss})
            if step % 100 == 90:
                rows.append({"epoch": step // 100, "step": step, "val_loss": 1.1 * loss})
        write_csv(run / "metrics.csv", rows)
    return folder
