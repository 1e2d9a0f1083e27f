"""A workload: what each trial of study.toml trains.

It is an object with the four methods below, and inherits from nothing. To train your own model,
change `build_model`, the data in `__init__`, `loss` and `evaluate`; the learning rate, optimizer,
warmup and clipping are the study's.
"""

import math

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

PIXELS, CLASSES = 64, 10


class Digits:
    """An MLP on scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels, no download."""

    # Optional: the loss of a constant predictor, by which a training that learns nothing is told.
    chance_loss = math.log(CLASSES)

    def __init__(self, width: int) -> None:
        self.width = width
        # YOUR DATA. The split is the same in every trial; only order and initialization vary.
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images / 16, labels, test_size=0.25, random_state=0)
        train_x, val_x, train_y, val_y = split
        self.train = TensorDataset(_inputs(train_x), torch.as_tensor(train_y))
        self.val_x, self.val_y = _inputs(val_x), torch.as_tensor(val_y)

    def build_model(self, seed: int) -> nn.Module:
        """YOUR MODEL, with new parameters. torch is seeded already: nothing to do with `seed`."""
        return nn.Sequential(
            nn.Linear(PIXELS, self.width),
            nn.ReLU(),
            nn.Linear(self.width, CLASSES),
        )

    def train_batches(self, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the size that the study asks for; they are iterated again for each epoch."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.train, batch_size, shuffle=True, drop_last=True, generator=generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """YOUR TRAINING LOSS on a batch: a scalar with a gradient."""
        inputs, labels = batch
        return functional.cross_entropy(model(inputs), labels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """YOUR METRICS on the validation set. The study's `objective` names one of them."""
        model.eval()
        device = next(model.parameters()).device  # batches are moved there for you, these are not
        inputs, labels = self.val_x.to(device), self.val_y.to(device)
        logits = model(inputs)
        wrong = logits.argmax(dim=1) != labels
        return {
            "val_error": wrong.float().mean(),
            "val_loss": functional.cross_entropy(logits, labels),
        }


def digits(width: int = 64) -> Digits:
    """The factory that study.toml names; its arguments are [workload_args] there."""
    return Digits(width)


def _inputs(pixels: object) -> Tensor:
    return torch.as_tensor(pixels, dtype=torch.float32)
