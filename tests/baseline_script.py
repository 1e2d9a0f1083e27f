"""Train a baseline with plain torch, knowing nothing of tunewright: a small MLP on scikit-learn's
digits.

    python tests/baseline_script.py baseline.pt
    python tests/baseline_script.py baseline.safetensors --lr 0.003

torch's SGD, a fixed number of epochs, the last epoch's weights: a script like many. Two things it
shares with tunewright.models.digits:mlp, because a comparison needs them: the names of the
parameters, and which examples are kept for validation and test.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, x):
        return self.layers(x)


def train(epochs: int, lr: float, seed: int) -> Net:
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    rows = train_test_split(range(len(x)), test_size=0.2, stratify=y, random_state=0)[0]
    rows = train_test_split(rows, test_size=0.25, stratify=y[rows], random_state=0)[0]
    x = torch.tensor((x[rows] - x[rows].mean()) / x[rows].std(), dtype=torch.float32)
    batches = DataLoader(TensorDataset(x, torch.tensor(y[rows])), batch_size=32, shuffle=True)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model


def save(model: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for one another
    save(train(options.epochs, options.lr, options.seed), options.path)


if __name__ == "__main__":
    main()
