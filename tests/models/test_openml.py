"""OpenML's images without OpenML: small data of the same form stand in for the download."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tunewright.models import openml
from tunewright.models.supervised import Classification

FEATURES = {"mnist_784": 784, "Fashion-MNIST": 784, "CIFAR_10": 3072}
FACTORIES = {
    "mnist_784": lambda: openml.mnist(width=8, depth=1),
    "Fashion-MNIST": lambda: openml.fashion_mnist(width=8, depth=1),
    "CIFAR_10": openml.cifar10,
}


class Downloads:
    """`fetch_openml` with 140 random images, in the form that scikit-learn returns; counts its
    calls.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, *, version: int, as_frame: bool, parser: str) -> Any:
        assert (version, as_frame) == (1, False)
        assert parser in ("pandas", "liac-arff")
        self.names.append(name)
        pixels = np.random.default_rng(0).integers(0, 256, (140, FEATURES[name])).astype(np.float64)
        return SimpleNamespace(
            data=pixels, target=np.array([str(i % 10) for i in range(140)], dtype=object)
        )


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(openml, "get_data_home", lambda: str(tmp_path))
    openml.load.cache_clear()
    yield tmp_path
    openml.load.cache_clear()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, home: Path) -> Downloads:
    fetch = Downloads()
    monkeypatch.setattr(openml, "fetch_openml", fetch)
    return fetch


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def unreachable(*arguments: Any, **named: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(openml, "fetch_openml", unreachable)


@pytest.mark.parametrize("name", FACTORIES)
def test_it_downloads_when_the_data_are_first_needed_and_once(
    name: str, downloads: Downloads
) -> None:
    workload: Classification = FACTORIES[name]()
    model = workload.build_model(0)
    assert downloads.names == []
    loss = workload.loss(model, next(workload.train_batches(4, seed=0)))
    loss.backward()
    assert torch.isfinite(loss)
    workload.evaluate(model)
    openml.load.cache_clear()  # as a new process would find it
    workload.evaluate(model)
    assert downloads.names == [name]


def test_images_stay_bytes_and_parts_are_stratified(downloads: Downloads) -> None:
    split = openml.load(openml.CIFAR_10)
    assert [(x.dtype, x.shape) for x, _ in (split.train, split.validation, split.test)] == [
        (torch.uint8, (100, 3, 32, 32)),
        (torch.uint8, (20, 3, 32, 32)),
        (torch.uint8, (20, 3, 32, 32)),
    ]
    assert split.validation[1].bincount().tolist() == [2] * 10


def test_pixels_are_standardized_per_channel() -> None:
    standardize = openml.Standardize(openml.CIFAR_10)
    pixels = 255 * torch.tensor(openml.CIFAR_10.mean).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(standardize(pixels), torch.zeros(2, 3, 4, 4), atol=1e-5, rtol=0)
    deviation = torch.tensor(openml.CIFAR_10.deviation).reshape(1, 3, 1, 1)
    torch.testing.assert_close(standardize(pixels + 255 * deviation), torch.ones(2, 3, 4, 4))


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_message_says_what_to_do(home: Path) -> None:
    workload = openml.mnist()
    with pytest.raises(
        OSError, match=r"mnist_784: not on this machine.*no route to host.*copy the file"
    ) as info:
        workload.train_batches(4, seed=0)
    assert str(home / "tunewright" / "mnist_784.npz") in str(info.value)


@pytest.mark.usefixtures("offline")
def test_an_interrupted_download_leaves_nothing_behind(home: Path) -> None:
    with pytest.raises(OSError, match="mnist_784"):
        openml.load(openml.MNIST)
    assert list(home.rglob("*.npz")) == []


def test_wrong_arguments_are_refused() -> None:
    for wrong in (lambda: openml.mnist(width=0), lambda: openml.fashion_mnist(depth=-1)):
        with pytest.raises(ValueError, match="must be a whole number"):
            wrong()
    with pytest.raises(ValueError, match="strides"):
        openml.cifar10(strides="3,3,3")
