"""Which column is which, of the names that loggers write."""

import pytest

from tunewright.search.logs.roles import guess

ROLES = ("step", "loss", "grad_norm", "objective")
# header → step, loss, grad_norm, objective; a dash: none
HEADERS = {
    "step loss": "step loss - -",
    "epoch accuracy loss val_accuracy val_loss": "- loss - val_loss",
    "epoch step train_loss_epoch train_loss_step val_loss": "step train_loss_step - val_loss",
    "epoch step train_loss val_acc": "step train_loss - val_acc",
    "epoch grad_2.0_norm/w grad_2.0_norm_total step train_loss": (
        "step train_loss grad_2.0_norm_total -"
    ),
    "epoch grad_norm learning_rate loss step eval_loss eval_runtime eval_samples_per_second "
    "train_loss train_runtime": "step loss grad_norm eval_loss",
    "_step _runtime _timestamp train/loss train/global_step train/grad_norm eval/accuracy": (
        "train/global_step train/loss train/grad_norm eval/accuracy"
    ),
    "_step trainer/global_step loss val/f1 val/loss": "trainer/global_step loss - val/loss",
    "global_step loss grad_norm train/loss validation/loss validation/num_examples test/loss": (
        "global_step loss grad_norm validation/loss"
    ),
    "global_step loss train/ctc_loss validation/wer validation/ctc_loss": (
        "global_step loss - validation/ctc_loss"
    ),
    "iter trainLoss gradNorm testError": "iter trainLoss gradNorm testError",
    "Step Loss/train Loss/val": "Step Loss/train - Loss/val",
    "update lr time": "update - - -",
}


@pytest.mark.parametrize("header", HEADERS)
def test_the_columns_of_a_header(header):
    found = guess(dict.fromkeys(header.split(), 10), ROLES)
    assert " ".join(found.get(role, "-") for role in ROLES) == HEADERS[header]


def test_of_two_equally_good_names_the_longer_column_is_taken():
    assert guess({"train_loss": 1, "train/loss": 500}, ["loss"]) == {"loss": "train/loss"}


def test_a_column_without_numbers_is_none():
    assert guess({"loss": 0, "train_loss": 5}, ["loss"]) == {"loss": "train_loss"}


def test_a_chart_of_wandb_names_the_run_first():
    header = ["Step", "brisk-loss-7 - train/loss", "brisk-loss-7 - train/loss__MIN"]
    assert guess(dict.fromkeys(header, 5), ROLES) == {"step": "Step", "loss": header[1]}
