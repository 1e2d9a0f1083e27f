"""Trainings by Lightning that are watched: the real package, small models."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from followed import (
    STEPS,
    assert_project_runs,
    assert_same,
    measure_checkpoint,
    train_by_loop,
    train_point,
)
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

lightning = pytest.importorskip("lightning.pytorch")

from tunewright.integrations.lightning import Watch, arguments  # noqa: E402
from tunewright.search.errors import UserError  # noqa: E402
from tunewright.search.store.files import read_curve  # noqa: E402
from tunewright.search.trainers.watched import MisuseError  # noqa: E402
from tunewright.search.trial import Point  # noqa: E402

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
    assert read_curve(partial / "curve.npz").eval_step.tolist() == [6, 12, 18]


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


def test_ctrl_c_leaves_the_curve_until_there(tmp_path):
    class Interrupted(Line):
        def training_step(self, batch, index):
            if self.global_step == 7:
                raise KeyboardInterrupt
            return super().training_step(batch, index)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):  # Lightning's, which also ignores Ctrl-C from here on
            fit(Interrupted(), Watch(out=tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read_curve(tmp_path / "curve.npz").loss) == 7
    assert (tmp_path / "report.html").is_file()


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {paths}
from test_lightning import Line, Watch, fit
fit(Line(), Watch(out="out", stop={stop}), devices=2, strategy="ddp", max_epochs=1)
"""


@pytest.mark.parametrize("stop", [False, True])
def test_of_two_processes_the_first_is_told(tmp_path, stop):
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[1])]
    (tmp_path / "script.py").write_text(SCRIPT.format(paths=paths, stop=stop), encoding="utf-8")
    command = [sys.executable, "script.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if stop:
        assert "stop=True ends training in one process, got 2" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("3 updates were watched.") == 1
    curve = read_curve(tmp_path / "out" / "curve.npz")
    losses, norms = of_two_processes()
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(curve.grad_norm, norms, rtol=1e-5)


def of_two_processes():
    """Losses of the first and norms of the mean gradient, each with half of the rows."""
    rows = data().dataset
    halves = [list(DistributedSampler(rows, 2, rank, seed=0)) for rank in range(2)]
    model = Line()
    optimizer = model.configure_optimizers()
    losses, norms = [], []
    for at in range(0, ROWS // 2, BATCH):
        parts = [model.loss(rows[half[at : at + BATCH]]) for half in halves]
        (sum(parts) / 2).backward()
        losses.append(parts[0].item())
        norms.append(nn.utils.get_total_norm([one.grad for one in model.parameters()]).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


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


# --- as trials of a study ---------------------------------------------------------------------

POINT = Point(0, BATCH, "momentum", 0.03, warmup_steps=5, clip_norm=0.8, decay="cosine", seed=3)


class Tuned(Line):
    """It makes the study's optimizer, or one of its own with another learning rate."""

    def __init__(self, run, own=False, **options):
        super().__init__(**options)
        self.run, self.own = run, own

    def configure_optimizers(self):
        if self.own:
            return torch.optim.SGD(self.parameters(), lr=17.0, momentum=0.9)
        return self.run.optimizer(self)


def by_lightning(run, own=False, manual=False, **options):
    trainer = lightning.Trainer(**arguments(run) | options)
    trainer.fit(Tuned(run, own, manual=manual), data(), data())


def by_loop(run):
    model = Tuned(run)

    def evaluate():
        return {"val_loss": np.mean([model.loss(one).item() for one in data()])}

    train_by_loop(run, model, data(), model.loss, evaluate)


@pytest.mark.parametrize(
    "clipping",
    [{"clip_norm": 0.8}, {"clip_z": 0.5, "base_lr": 1e-4}, {"clip_tensor": 1.05, "base_lr": 1e-4}],
)
@pytest.mark.parametrize("options", [{}, {"own": True}, {"manual": True}])
def test_a_trial_is_that_of_a_plain_loop(options, clipping, monkeypatch):
    point = replace(POINT, **{"clip_norm": math.inf} | clipping)
    found = train_point(monkeypatch, partial(by_lightning, **options), point, "val_loss")
    expected = train_point(monkeypatch, by_loop, point, "val_loss")
    assert found.trial.curve.eval_step.tolist() == [0, 14, 28, 40]
    assert len(found.trial.curve.loss) == STEPS
    assert 0 < found.trial.clip_fraction < 1
    assert_same(found, expected)


@pytest.mark.parametrize("manual", [False, True])
def test_what_a_rule_averages_is_what_lightning_validates(manual, monkeypatch):
    point = replace(POINT, optimizer="schedule_free_adamw", base_lr=0.05)
    found = train_point(monkeypatch, partial(by_lightning, manual=manual), point, "val_loss")
    expected = train_point(monkeypatch, by_loop, point, "val_loss")
    assert_same(found, expected)
    measured = measure_checkpoint(monkeypatch, by_lightning, point, "val_loss", found.checkpoint)
    assert measured == {"val_loss": pytest.approx(found.trial.best_value, rel=1e-6)}


def test_a_checkpoint_is_measured_without_an_update(monkeypatch):
    trained = train_point(monkeypatch, by_lightning, POINT, "val_loss")
    found = measure_checkpoint(monkeypatch, by_lightning, POINT, "val_loss", trained.checkpoint)
    assert found == {"val_loss": pytest.approx(trained.trial.best_value, rel=1e-6)}


def test_a_hopeless_trial_ends_early_and_is_infeasible(monkeypatch):
    point = replace(POINT, base_lr=1e9, clip_norm=math.inf, warmup_steps=0)
    found = train_point(monkeypatch, by_lightning, point, "val_loss")
    assert found.trial.verdict.outcome == "non_finite"
    assert len(found.trial.curve.loss) < STEPS


def test_skipped_updates_are_not_counted_among_those_of_the_study(monkeypatch):
    def half(run):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
        by_lightning(run, plugins=[plugin])

    found = train_point(monkeypatch, half, POINT, "val_loss")
    assert len(found.trial.curve.loss) == STEPS
    assert np.isfinite(found.trial.curve.grad_norm).all()


def test_what_would_clip_beside_the_study_is_refused(monkeypatch):
    clips = partial(by_lightning, gradient_clip_val=1.0)
    with pytest.raises(MisuseError, match=r"gradient_clip_val=1.0 clips beside the study's"):
        train_point(monkeypatch, clips, POINT, "val_loss")


def test_the_project_that_new_starts_is_a_study_with_its_report(tmp_path, monkeypatch, capsys):
    assert_project_runs("lightning", tmp_path, monkeypatch, capsys)
