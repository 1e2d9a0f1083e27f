"""A LightningModule: `main` trains it once for each trial of study.toml.

`run` has every hyperparameter of the trial as an attribute. The module makes its optimizer by
`run.optimizer(self)`, or one of its own, whose learning rate the study then sets; no scheduler and
no gradient_clip_val, which are the study's.

Needs: pip install 'tunewright[lightning]'
"""

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tunewright.integrations.lightning import arguments

PIXELS, CLASSES = 64, 10


def main(run):
    train, val = digits()
    trainer = lightning.Trainer(**arguments(run))  # watched; ends after the study's updates
    trainer.fit(
        Digits(run),
        DataLoader(train, run.batch_size, shuffle=True, drop_last=True),
        DataLoader(val, len(val)),
    )


class Digits(lightning.LightningModule):
    """YOUR MODULE: here an MLP."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.layers = nn.Sequential(
            nn.Linear(PIXELS, run.width), nn.ReLU(), nn.Linear(run.width, CLASSES)
        )

    def training_step(self, batch, index):
        images, labels = batch
        return functional.cross_entropy(self.layers(images), labels)

    def validation_step(self, batch, index):
        """Whatever is logged here is a metric: the study's `objective` names one."""
        images, labels = batch
        logits = self.layers(images)
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_error", (logits.argmax(dim=1) != labels).float().mean())

    def configure_optimizers(self):
        return self.run.optimizer(self)


def digits():
    """YOUR DATA: 1,797 images of 8 × 8 pixels, no download; the split is that of every trial."""
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(images / 16, dtype=torch.float32)
    parts = train_test_split(images, torch.as_tensor(labels), test_size=0.25, random_state=0)
    train_x, val_x, train_y, val_y = parts
    return TensorDataset(train_x, train_y), TensorDataset(val_x, val_y)
