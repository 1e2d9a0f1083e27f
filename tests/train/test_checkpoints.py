"""A checkpoint is put into its model whole, or refused with what is wrong."""

import hashlib

import numpy as np
import pytest
import torch
from baseline_script import save, train
from safetensors.torch import save_file
from torch import nn

from tunewright.models.digits import mlp
from tunewright.search.errors import UserError
from tunewright.search.train.checkpoints import finite, fit, metrics_of, read_tensors, sha256


@pytest.fixture(scope="module")
def baseline():
    return train(epochs=1, lr=0.01, seed=0)


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
def test_a_baseline_of_another_script_is_measured_as_its_own_model_would_be(
    baseline, tmp_path, name
):
    save(baseline, tmp_path / name)
    model = mlp().build_model(3)
    fit(model, read_tensors(tmp_path / name), tmp_path / name)
    want = {name: float(value) for name, value in mlp().evaluate(baseline).items()}
    assert metrics_of(mlp().evaluate, model) == want
    assert want["val_loss"] < 2.0
    assert sha256(tmp_path / name) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_the_model_may_stand_beside_other_things(baseline, tmp_path, name):
    torch.save({name: baseline.state_dict(), "epoch": 3}, tmp_path / "b.pt")
    assert read_tensors(tmp_path / "b.pt").keys() == baseline.state_dict().keys()


def test_what_does_not_fit_is_listed_and_the_model_left_as_it_was(baseline, tmp_path):
    tensors = baseline.state_dict()
    tensors["layers.6.weight"] = tensors.pop("layers.5.weight")
    tensors["layers.1.weight"] = torch.zeros(3, 64)
    model = mlp().build_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        fit(model, tensors, tmp_path / "b.pt")
    for words in (
        "b.pt: does not fit the model",
        "missing: layers.5.weight",
        "unexpected: layers.6.weight",
        "of another shape: layers.1.weight (is [3, 64], must be [64, 64])",
    ):
        assert words in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_weights_may_be_stored_once():
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    fit(tied, {"0.weight": torch.full((2, 2), 7.0)}, "tied")
    assert (tied[1].weight == 7.0).all()


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
def test_a_truncated_file_is_one_clear_error(baseline, tmp_path, name, keep):
    path = tmp_path / name
    save(baseline, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="is damaged, or not a checkpoint"):
        read_tensors(path)


def test_a_torch_file_whose_bytes_were_changed_is_one_clear_error(baseline, tmp_path):
    save(baseline, tmp_path / "b.pt")
    content = bytearray((tmp_path / "b.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "b.pt").write_bytes(content)
    with pytest.raises(UserError, match="is damaged, or not a checkpoint"):
        read_tensors(tmp_path / "b.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_is_wrong_with_a_torch_file_is_one_clear_error(baseline, tmp_path, zipped):
    """A hundred torch files with eight bytes of their beginning changed: either read, or
    refused.
    """
    random, path = np.random.default_rng(0), tmp_path / "b.pt"
    torch.save(baseline.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        content = np.frombuffer(whole, np.uint8).copy()
        content[random.integers(0, 1500, 8)] = random.integers(0, 256, 8)
        path.write_bytes(content.tobytes())
        try:
            read_tensors(path)
        except UserError as error:
            refused += "b.pt: " in str(error)
    assert refused > 80


class Payload:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Payload(), "is damaged, or not a checkpoint"),
        ([1, 2], "must hold tensors by name .a state_dict., got list"),
        ({"epoch": 3}, "not tensors: epoch"),
        ({}, "not tensors: none at all"),
    ],
)
def test_anything_else_is_refused_and_never_executed(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / "b.pt")
    assert capsys.readouterr().out == ""


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path):
    for name in ("no.pt", "no.safetensors"):
        with pytest.raises(UserError, match="cannot be read"):
            read_tensors(tmp_path / name)


def test_a_checkpoint_that_is_worth_nan_is_refused(tmp_path):
    model = mlp().build_model(0)
    tensors = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in model.state_dict().items()
    }
    save_file(tensors, tmp_path / "b.safetensors")
    fit(model, tensors, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="its val_loss must be finite, got nan"):
        finite(tmp_path / "b.safetensors", metrics_of(mlp().evaluate, model), "val_loss")
    with pytest.raises(UserError, match="returns val_error, val_loss; got 'val_eror'"):
        finite(tmp_path / "b.safetensors", metrics_of(mlp().evaluate, model), "val_eror")
