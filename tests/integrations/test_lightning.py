"""Trainings by Lightning that are watched: the real package, small models."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch")

from tunewright.integrations.lightning import Watch  # noqa: E402
from tunewright.search.errors import UserError  # noqa: E402
from tunewright.search.store.files import read_curve  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Lightning and its own requirements
]
ROWS, BATCH = 48, 8


def data(nan_from=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 5, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(ROWS, 1, generator=generator)
    if nan_from is not None:
        y[nan_from:] = math.nan
    return DataLoader(TensorDataset(x, y), BATCH, generator=torch.Generator().manual_seed(0))


class Line(lightning.LightningModule):
    def __init__(self, lr=0.05, manual=False):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.lr = nn.Linear(5, 1), lr
        self.automatic_optimization = not manual

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def fit(model, *callbacks, validate=False, loader=None, **options):
    settings = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(callbacks=list(callbacks), **settings | options)
    trainer.fit(model, loader or data(), data() if validate else None)
    return trainer


def by_hand(parts=1, clip_norm=math.inf, epochs=3):
    """Losses and unclipped norms of the same training in a plain loop, and the model."""
    model = Line()
    optimizer = model.configure_optimizers()
    losses, norms = [], []
    for _ in range(epochs):
        waiting = []
        for index, batch in enumerate(data()):
            loss = model.loss(batch)
            (loss / parts).backward()
            waiting.append(loss.item())
            if (index + 1) % parts == 0:
                norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                losses.append(np.mean(waiting))
                norms.append(norm.item())
                waiting = []
                optimizer.step()
                optimizer.zero_grad()
    return losses, norms, model


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_losses_and_unclipped_norms_are_those_of_a_plain_loop(tmp_path, parts, clip_norm):
    model = Line()
    fit(model, Watch(out=tmp_path), accumulate_grad_batches=parts, gradient_clip_val=clip_norm)
    losses, norms, other = by_hand(parts, clip_norm or math.inf)
    curve = read_curve(tmp_path / "curve.npz")
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(curve.grad_norm, norms, rtol=1e-6)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_watched_training_is_bit_for_bit_the_same():
    watched, other = Line(), Line()
    fit(watched, Watch(), gradient_clip_val=0.5, validate=True)
    fit(other, gradient_clip_val=0.5, validate=True)
    assert all(map(torch.equal, watched.parameters(), other.parameters()))


def test_manual_optimization_is_watched(tmp_path):
    fit(Line(manual=True), Watch(out=tmp_path))
    losses, norms, _ = by_hand()
    curve = read_curve(tmp_path / "curve.npz")
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(curve.grad_norm, norms, rtol=1e-6)


def test_evaluations_are_recorded_with_that_of_the_untrained_model(tmp_path):
    fit(Line(), Watch(out=tmp_path), validate=True, num_sanity_val_steps=-1)
    curve = read_curve(tmp_path / "curve.npz")
    assert curve.eval_step.tolist() == [0, 6, 12, 18]
    assert curve.metrics.keys() == {"val_loss"}
    assert np.isfinite(curve.metrics["val_loss"]).all()
    partial = tmp_path / "partial"
    fit(Line(), Watch(out=partial), validate=True)
    assert math.isnan(read_curve(partial / "curve.npz").metrics["val_loss"][0])


def test_updates_that_a_scaler_skips_are_not_recorded(tmp_path):
    """Gradients of the first update overflow at this scale; float16's norms are those of float32,
    roughly.
    """
    plugin = lightning.plugins.MixedPrecision(
        "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**22)
    )
    trainer = fit(Line(), Watch(out=tmp_path), plugins=[plugin])
    curve = read_curve(tmp_path / "curve.npz")
    assert trainer.global_step == 18
    assert 0 < len(curve.loss) < 18
    assert np.isfinite(curve.grad_norm).all()
    assert np.isfinite(curve.loss).all()
    skipped = 18 - len(curve.loss)
    # what came first after the skipped ones was of the untrained model still
    batches = list(data())
    first = Line().loss(batches[skipped % len(batches)]).item()
    assert curve.loss[0] == pytest.approx(first, rel=1e-2)
    assert curve.grad_norm[0] == pytest.approx(_norm(batches[skipped % len(batches)]), rel=1e-2)


def _norm(batch):
    model = Line()
    model.loss(batch).backward()
    return nn.utils.get_total_norm([one.grad for one in model.parameters()]).item()


def test_hopeless_training_is_ended_and_said(tmp_path, capsys):
    trainer = fit(Line(), Watch(stop=True, out=tmp_path), loader=data(nan_from=24), max_epochs=50)
    assert trainer.global_step < 50
    said = capsys.readouterr().out
    assert "tunewright: hopeless after" in said
    assert "non_finite" in said
    assert len(read_curve(tmp_path / "curve.npz").loss) == 4
    assert (tmp_path / "report.html").is_file()


def test_an_exception_leaves_the_curve_until_there(tmp_path, capsys):
    class Fails(Line):
        def training_step(self, batch, index):
            if self.global_step == 7:
                raise RuntimeError("out of luck")
            return super().training_step(batch, index)

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Fails(), Watch(out=tmp_path))
    assert len(read_curve(tmp_path / "curve.npz").loss) == 7
    assert "7 updates were watched, until RuntimeError: out of luck." in capsys.readouterr().out


def test_what_cannot_be_watched_is_refused():
    class Two(Line):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 1)]

    class Newton(Line):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(UserError, match="must see one optimizer, got 2"):
        fit(Two(manual=True), Watch())
    with pytest.raises(UserError, match="LBFGS"):
        fit(Newton(), Watch())
