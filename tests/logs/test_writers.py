"""Logs that Lightning and Transformers really write, where these are installed."""

import json
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tunewright.search.judge_logs import judge_log
from tunewright.search.logs.formats import logs_in
from tunewright.search.logs.log import read_log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
]
BROKEN = 30  # the update from which on losses are nan
NEVER = 10**9


def only_log(folder):
    (path,) = logs_in(folder)
    return judge_log(read_log(path))


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def lightning_run(folder, broken):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import grad_norm

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch, _):
            loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            if self.global_step >= broken:
                loss = loss * math.nan
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch, _):
            self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

        def on_before_optimizer_step(self, _):
            self.log_dict(grad_norm(self, 2))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    batches = DataLoader(TensorDataset(*data()), 8)
    trainer = lightning.Trainer(
        max_epochs=10,
        logger=CSVLogger(str(folder)),
        log_every_n_steps=2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), batches, batches)
    return only_log(folder)


def test_lightning(tmp_path):
    judged = lightning_run(tmp_path, NEVER)
    log = judged.log
    assert log.format == "Lightning's metrics.csv"
    assert log.guessed == {
        "step": "step",
        "loss": "train_loss_step",
        "grad_norm": "grad_2.0_norm_total",
        "objective": "val_loss",
    }
    assert log.step.tolist() == list(range(1, 80, 2))
    assert len(log.metrics["train_loss_epoch"][0]) == len(log.metrics["val_loss"][0]) == 10
    assert judged.readout.verdict.feasible
    assert judged.readout.norms == 40


def test_lightning_with_losses_that_are_nan(tmp_path):
    verdict = lightning_run(tmp_path, BROKEN).readout.verdict
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", BROKEN + 1)


class Model(nn.Module):
    """A regression that a Trainer trains; its loss is nan from an update on."""

    def __init__(self, broken):
        super().__init__()
        self.layer, self.broken, self.calls = nn.Linear(4, 1), broken, 0

    def forward(self, x=None, labels=None):
        output = self.layer(x)
        loss = nn.functional.mse_loss(output, labels)
        self.calls += self.training
        return {"loss": loss * math.nan if self.calls > self.broken else loss, "logits": output}


def trainer_run(folder, broken, hides_nan=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    x, labels = data()
    items = [{"x": one, "labels": label} for one, label in zip(x, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=100,
        logging_steps=5,
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=20,
        save_steps=50,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_nan_inf_filter=hides_nan,
    )
    model = Model(broken)
    transformers.Trainer(
        model=model, args=arguments, train_dataset=items, eval_dataset=items
    ).train()
    return only_log(folder)


def test_transformers(tmp_path):
    judged = trainer_run(tmp_path, NEVER)
    log = judged.log
    assert log.source.endswith("checkpoint-100/trainer_state.json")
    assert log.guessed == {
        "step": "step", "loss": "loss", "grad_norm": "grad_norm", "objective": "eval_loss"
    }  # fmt: skip
    assert log.step.tolist() == list(range(5, 101, 5))
    assert log.hyperparameters["train_batch_size"] == 8
    assert judged.readout.verdict.feasible
    assert "Each loss is the mean of the updates since the one before" in " ".join(log.notes)


@pytest.mark.parametrize("hides_nan", [True, False])
def test_transformers_with_losses_that_are_nan(tmp_path, hides_nan):
    judged = trainer_run(tmp_path, BROKEN, hides_nan)
    verdict = judged.readout.verdict
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", BROKEN + 5)
    told = " ".join(judged.sentences)
    assert ("exactly 0, and taken as nan: logging_nan_inf_filter" in told) == hides_nan
    state = json.loads((tmp_path / "checkpoint-100" / "trainer_state.json").read_text())
    assert (0.0 in [entry.get("loss") for entry in state["log_history"]]) == hides_nan
