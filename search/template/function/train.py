"""A training loop of your own: `main` trains each trial of study.toml.

`run` has every hyperparameter of the trial as an attribute. The loop stays yours: `run` sets the
optimizer's learning rate, clips, and records, just before each of its steps.
"""

import math

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

PIXELS, CLASSES = 64, 10


def main(run):
    train, val_x, val_y = digits()
    val_x, val_y = val_x.to(run.device), val_y.to(run.device)
    model = nn.Sequential(nn.Linear(PIXELS, run.width), nn.ReLU(), nn.Linear(run.width, CLASSES))
    model.to(run.device)  # before its optimizer is made
    optimizer = run.optimizer(model)  # or run.watch(an optimizer of your own)
    run.chance_loss = math.log(CLASSES)  # optional: tells a training that learns nothing
    run.report(**evaluate(model, val_x, val_y))  # of the untrained model
    loader = DataLoader(train, run.batch_size, shuffle=True, drop_last=True)
    for images, labels in run.steps(loader):  # as many epochs as the study's updates need
        images, labels = images.to(run.device), labels.to(run.device)
        loss = functional.cross_entropy(model(images), labels)
        run.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.evaluation_due:
            run.report(model=model, **evaluate(model, val_x, val_y))  # model: keep the best


def digits():
    """YOUR DATA: 1,797 images of 8 × 8 pixels, no download; the split is that of every trial."""
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(images / 16, dtype=torch.float32)
    parts = train_test_split(images, torch.as_tensor(labels), test_size=0.25, random_state=0)
    train_x, val_x, train_y, val_y = parts
    return TensorDataset(train_x, train_y), val_x, val_y


@torch.no_grad()
def evaluate(model, val_x, val_y):
    """YOUR METRICS: the study's `objective` names one of them."""
    model.eval()
    logits = model(val_x)
    model.train()
    wrong = logits.argmax(dim=1) != val_y
    return {"val_error": wrong.float().mean(), "val_loss": functional.cross_entropy(logits, val_y)}
