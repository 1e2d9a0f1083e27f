"""Trainings by the Trainer of Transformers that are watched: the real package, a small model made
from a configuration.
"""

import math
from dataclasses import replace
from functools import partial

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

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tunewright.integrations.transformers import Watch, arguments  # noqa: E402
from tunewright.search.errors import UserError  # noqa: E402
from tunewright.search.store.files import read_curve  # noqa: E402
from tunewright.search.trainers.watched import MisuseError  # noqa: E402
from tunewright.search.trial import Point  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Transformers and its own requirements
]
ROWS, BATCH, WORDS, LENGTH = 32, 4, 20, 8


def rows():
    """Texts of different lengths: labels of -100 do not count."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for row in range(ROWS):
        words = torch.randint(0, WORDS, (LENGTH,), generator=generator)
        labels = words.clone()
        labels[: 1 + row % 4] = -100  # the first word is no target
        found.append({"input_ids": words, "labels": labels})
    return found


def collate(texts):
    return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}


def language_model():
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


class Batchwise(nn.Module):
    """A model whose loss knows nothing of accumulation: the mean over one batch."""

    def __init__(self):
        super().__init__()
        self.inner = language_model()

    def forward(self, input_ids, labels):
        return {"loss": self.inner(input_ids=input_ids, labels=labels).loss}


def trainer(folder, model, **options):
    settings = {
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.05,
        "num_train_epochs": 3,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.7,
        "train_sampling_strategy": "sequential",
    }
    args = transformers.TrainingArguments(str(folder / "trainer"), **settings | options)
    return transformers.Trainer(model, args, train_dataset=rows(), eval_dataset=rows())


def watched(folder, model, stop=False, **options):
    found = trainer(folder, model, **options)
    found.add_callback(Watch(found, out=folder, stop=stop))
    found.train()
    return read_curve(folder / "curve.npz")


def by_hand(model, parts, clip_norm, by_token):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, norms = [], []
    texts = rows()
    for _ in range(3):
        for start in range(0, ROWS, parts * BATCH):
            update = texts[start : start + parts * BATCH]
            batches = [collate(update[at : at + BATCH]) for at in range(0, len(update), BATCH)]
            total = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
            loss = 0.0
            for batch in batches:
                share = 1 / len(batches)
                if by_token:
                    share = (batch["labels"][:, 1:] != -100).sum() / total
                part = model(**batch)["loss"] * share
                part.backward()
                loss += part.item()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip_norm).item())
            losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
    return losses, norms


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.7])
@pytest.mark.parametrize("model", [language_model, Batchwise])
def test_losses_and_unclipped_norms_are_those_of_a_plain_loop(
    tmp_path, model, parts, max_grad_norm
):
    curve = watched(
        tmp_path, model(), gradient_accumulation_steps=parts, max_grad_norm=max_grad_norm
    )
    by_token = model is language_model
    losses, norms = by_hand(model(), parts, max_grad_norm or math.inf, by_token)
    np.testing.assert_allclose(curve.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(curve.grad_norm, norms, rtol=1e-4)
    assert max(norms) > 0.7  # some were clipped


def test_a_watched_training_is_bit_for_bit_the_same(tmp_path):
    one, other = language_model(), language_model()
    watched(tmp_path, one)
    trainer(tmp_path, other).train()
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_the_trainer_is_left_as_it_was(tmp_path):
    found = trainer(tmp_path, language_model())
    before = found.training_step, found.accelerator.clip_grad_norm_
    found.add_callback(Watch(found))
    found.train()
    assert (found.training_step, found.accelerator.clip_grad_norm_) == before


class Breaks(Batchwise):
    calls = 0

    def forward(self, input_ids, labels):
        found = super().forward(input_ids, labels)
        self.calls += self.training
        return {"loss": found["loss"] * (math.nan if self.calls > 5 else 1.0)}


def test_a_loss_that_the_trainer_hides_is_seen(tmp_path, capsys):
    curve = watched(tmp_path, Breaks(), logging_strategy="steps", logging_steps=1)
    assert np.isfinite(curve.loss[:5]).all()
    assert math.isnan(curve.loss[5])
    said = capsys.readouterr().out
    assert "non_finite" in said
    assert "logging_nan_inf_filter" in said


def test_hopeless_training_is_ended(tmp_path, capsys):
    found = trainer(tmp_path, Breaks(), num_train_epochs=50)
    found.add_callback(Watch(found, stop=True, out=tmp_path))
    found.train()
    assert found.state.global_step < 40
    assert "hopeless after" in capsys.readouterr().out


def test_evaluations_are_recorded(tmp_path):
    curve = watched(tmp_path, language_model(), eval_strategy="epoch", eval_on_start=True)
    assert curve.eval_step.tolist() == [0, 8, 16, 24]
    assert curve.metrics.keys() == {"eval_loss"}
    assert np.isfinite(curve.metrics["eval_loss"]).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_curve_until_there(error, tmp_path, capsys):
    class Fails(Breaks):
        def forward(self, input_ids, labels):
            if self.calls == 5:
                raise error("out of luck")
            return super().forward(input_ids, labels)

    with pytest.raises(error, match="out of luck"):
        watched(tmp_path, Fails())
    assert len(read_curve(tmp_path / "curve.npz").loss) == 5
    said = capsys.readouterr().out
    assert f"5 updates were watched, until {error.__name__}: out of luck." in said


def test_options_beside_a_run_are_refused(tmp_path):
    found = trainer(tmp_path, language_model())
    with pytest.raises(UserError, match="out: with a study's run"):
        Watch(found, run=object(), out=tmp_path)


# --- as trials of a study ---------------------------------------------------------------------

POINT = Point(0, BATCH, "momentum", 0.03, warmup_steps=5, clip_norm=0.8, decay="cosine", seed=3)


def by_trainer(run, folder, own=False, **options):
    model = Batchwise()
    optimizer = run.optimizer(model)
    if own:
        optimizer = torch.optim.SGD(model.parameters(), lr=17.0, momentum=0.9)
    settings = {
        "per_device_train_batch_size": run.batch_size,
        "per_device_eval_batch_size": ROWS,
        "train_sampling_strategy": "sequential",
    }
    args = transformers.TrainingArguments(str(folder), **settings | arguments(run) | options)
    found = transformers.Trainer(
        model,
        args,
        train_dataset=rows(),
        eval_dataset=rows(),
        optimizers=(optimizer, None),
    )
    found.add_callback(Watch(found, run))
    found.train()


def by_loop(run):
    model, texts = Batchwise(), rows()
    batches = [collate(texts[at : at + BATCH]) for at in range(0, ROWS, BATCH)]

    def loss_of(batch):
        return model(**batch)["loss"]

    train_by_loop(run, model, batches, loss_of, lambda: {"eval_loss": loss_of(collate(texts))})


@pytest.mark.parametrize("clipping", [{"clip_norm": 1.2}, {"clip_z": 1.0}, {"clip_tensor": 1.05}])
def test_a_trial_is_that_of_a_plain_loop(clipping, monkeypatch, tmp_path):
    point = replace(POINT, **{"clip_norm": math.inf} | clipping)
    function = partial(by_trainer, folder=tmp_path)
    found = train_point(monkeypatch, function, point, "eval_loss")
    expected = train_point(monkeypatch, by_loop, point, "eval_loss")
    assert found.trial.curve.eval_step.tolist() == [0, 14, 28, 40]
    assert 0 < found.trial.clip_fraction < 1
    assert_same(found, expected, rtol=1e-4)


def test_what_a_rule_averages_is_what_the_trainer_evaluates(monkeypatch, tmp_path):
    point = replace(POINT, optimizer="schedule_free_adamw", base_lr=0.01, clip_norm=math.inf)
    function = partial(by_trainer, folder=tmp_path)
    found = train_point(monkeypatch, function, point, "eval_loss")
    assert_same(found, train_point(monkeypatch, by_loop, point, "eval_loss"), rtol=1e-4)
    measured = measure_checkpoint(monkeypatch, function, point, "eval_loss", found.checkpoint)
    assert measured == {"eval_loss": pytest.approx(found.trial.best_value, rel=1e-5)}


def test_a_checkpoint_is_measured_without_an_update(monkeypatch, tmp_path):
    function = partial(by_trainer, folder=tmp_path)
    trained = train_point(monkeypatch, function, POINT, "eval_loss")
    found = measure_checkpoint(monkeypatch, function, POINT, "eval_loss", trained.checkpoint)
    assert found == {"eval_loss": pytest.approx(trained.trial.best_value, rel=1e-5)}


def test_a_hopeless_trial_ends_early_and_is_infeasible(monkeypatch, tmp_path):
    point = replace(POINT, base_lr=1e30, clip_norm=math.inf, warmup_steps=0)
    function = partial(by_trainer, folder=tmp_path)
    found = train_point(monkeypatch, function, point, "eval_loss")
    assert found.trial.verdict.outcome == "non_finite"
    assert len(found.trial.curve.loss) < STEPS


def test_the_trainers_own_clipping_is_refused(monkeypatch, tmp_path):
    clips = partial(by_trainer, folder=tmp_path, max_grad_norm=1.0)
    with pytest.raises(MisuseError, match="the framework clips at 1, beside the study's"):
        train_point(monkeypatch, clips, POINT, "eval_loss")


def test_the_project_that_new_starts_is_a_study_with_its_report(tmp_path, monkeypatch, capsys):
    assert_project_runs("transformers", tmp_path, monkeypatch, capsys)
