"""A plain loop that is watched: it trains as it would, and what is told of it is true."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tunewright
from tunewright.search.errors import UserError
from tunewright.search.store.files import read_curve
from tunewright.search.trainers.watched import MisuseError

STEPS, BATCH = 60, 16


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(BATCH, 6, generator=generator)
        yield x, x.sum(1, keepdim=True).sin() + 0.3 * torch.randn(BATCH, 1, generator=generator)


def loss_of(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def plain(model, optimizer, clip_norm=None, parts=1, steps=STEPS):
    """Losses and unclipped norms of a loop that nobody watches."""
    losses, norms, waiting = [], [], []
    for index, batch in enumerate(batches(steps)):
        loss = loss_of(model, batch)
        (loss / parts).backward()
        waiting.append(loss.item())
        if (index + 1) % parts == 0:
            limit = math.inf if clip_norm is None else clip_norm
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), limit).item())
            losses.append(np.mean(waiting))
            waiting = []
            optimizer.step()
            optimizer.zero_grad()
    return losses, norms


def loop(run, model, optimizer, parts=1, steps=STEPS):
    for index, batch in enumerate(batches(steps)):
        loss = loss_of(model, batch)
        run.loss(loss)
        (loss / parts).backward()
        if (index + 1) % parts == 0:
            optimizer.step()
            optimizer.zero_grad()


def two_groups(model):
    first, *others = model.parameters()
    return [{"params": [first], "lr": 0.1}, {"params": others, "weight_decay": 0.01}]


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "groups": lambda model: torch.optim.AdamW(two_groups(model), lr=0.01),
    "fused": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_watched_loop_trains_bit_for_bit_as_another(make, parts):
    watched, other = network(), network()
    optimizer = make(watched)
    with tunewright.watch(optimizer) as run:
        loop(run, watched, optimizer, parts)
    losses, norms = plain(other, make(other), parts=parts)
    assert all(map(torch.equal, watched.parameters(), other.parameters()))
    np.testing.assert_allclose(run.curve.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(run.curve.grad_norm, norms, rtol=1e-5)


def test_with_a_threshold_it_clips_as_torch_does():
    watched, other = network(), network()
    optimizer = OPTIMIZERS["sgd"](watched)
    with tunewright.watch(optimizer, clip_norm=0.9) as run:
        loop(run, watched, optimizer)
    losses, norms = plain(other, OPTIMIZERS["sgd"](other), clip_norm=0.9)
    assert 0.05 < np.mean(np.array(norms) > 0.9) < 0.95
    np.testing.assert_allclose(run.curve.grad_norm, norms, rtol=1e-4)
    np.testing.assert_allclose(run.curve.loss, losses, rtol=1e-4)
    for one, two in zip(watched.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_afterwards_the_optimizer_is_nobodys():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    with tunewright.watch(optimizer) as run:
        loop(run, model, optimizer, steps=5)
    plain(model, optimizer, steps=5)
    assert len(run.curve.loss) == 5
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU must be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_the_device_is_not_waited_for_at_every_step():
    model = network()
    optimizer = OPTIMIZERS["fused"](model)
    with tunewright.watch(optimizer, clip_norm=0.9) as run:
        with Reads() as reads:
            loop(run, model, optimizer, steps=19)
        assert reads.count == 0
    with Reads() as reads:
        torch.ones(2).sum().item()
    assert reads.count == 1


# --- what is said -----------------------------------------------------------------------------


def test_the_verdict_and_how_to_clip_are_printed(capsys, tmp_path):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    with tunewright.watch(optimizer, clip_norm=1e-3) as run:
        loop(run, model, optimizer)
    said = capsys.readouterr().out
    assert "60 updates were watched." in said
    assert "feasible, no instability" in said
    assert "Clipping acts on 100% of the updates: it is a learning rate." in said
    assert f"{np.percentile(run.curve.grad_norm, 90):.3g}: a clip threshold starts there" in said
    assert list(tmp_path.iterdir()) == []


def test_norms_that_were_clipped_before_they_were_seen_are_told(capsys):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    with tunewright.watch(optimizer) as run:
        for batch in batches():
            loss = loss_of(model, batch)
            run.loss(loss)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
    assert "The norm is 0.001 at every step: it was clipped before it was seen." in (
        capsys.readouterr().out
    )


def test_curve_and_page_are_kept(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model)
    with tunewright.watch(optimizer, out=tmp_path / "runs" / "a", chance_loss=0.6) as run:
        run.report(val_loss=torch.tensor(1.0))
        loop(run, model, optimizer)
        run.report(val_loss=0.2)
    folder = tmp_path / "runs" / "a"
    assert read_curve(folder / "curve.npz") == run.curve
    assert run.curve.metrics["val_loss"].tolist() == [1.0, 0.2]
    assert run.curve.eval_step.tolist() == [0, STEPS]
    assert (run.curve.total_steps, run.curve.chance_loss) == (STEPS, 0.6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<title>a</title>" in page
    assert "a clip threshold starts there" in page
    assert '<abbr title="Start with the 90th percentile' in page
    assert '<figure id="training" class="plot"' in page
    assert "https://cdn" not in page.split("</script>")[-2]
    with tunewright.watch(optimizer, out=folder) as run:
        loop(run, model, optimizer, steps=7)
    assert len(read_curve(folder / "curve.npz").loss) == 7


# --- hopeless training ------------------------------------------------------------------------


def diverging(run, steps=400):
    """A loop in which the loss is infinite from update 10 on; the updates it took."""
    model = network()
    optimizer = run.optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, batch in enumerate(batches(steps)):
        run.loss(loss_of(model, batch) * (math.inf if index >= 10 else 1.0))
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
    return steps


def test_a_hopeless_training_is_ended_where_that_is_asked_for(capsys, tmp_path):
    optimizer = OPTIMIZERS["sgd"](network())
    with tunewright.watch(optimizer, stop=True, out=tmp_path) as run:
        diverging(run)
        raise AssertionError("the block goes on")
    assert run.is_hopeless
    assert run.recorder.step == 20  # the first look
    assert len(read_curve(tmp_path / "curve.npz").loss) == 11
    said = capsys.readouterr().out
    assert "hopeless after 20 updates: non_finite" in said
    assert "training was ended there, because it is hopeless" in said


def test_otherwise_it_is_said_once_and_training_goes_on(capsys):
    optimizer = OPTIMIZERS["sgd"](network())
    with tunewright.watch(optimizer) as run:
        assert diverging(run) == 400
    said = capsys.readouterr().out
    assert said.count("hopeless after") == 1
    assert "400 updates were watched." in said


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_seen_before_an_exception_is_kept(error, tmp_path, capsys):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)

    def ends_by_it():
        with tunewright.watch(optimizer, out=tmp_path, stop=True) as run:
            loop(run, model, optimizer, steps=30)
            raise error

    with pytest.raises(error):
        ends_by_it()
    assert len(read_curve(tmp_path / "curve.npz").loss) == 30
    assert (tmp_path / "report.html").is_file()
    assert f"30 updates were watched, until {error.__name__}." in capsys.readouterr().out


def test_a_first_evaluation_after_some_training_is_not_that_of_the_untrained_model():
    """It ends a little worse than the first, which may have been excellent."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with tunewright.watch(optimizer) as run:
        loop(run, model, optimizer, steps=100)
        run.report(error=0.010)
        loop(run, model, optimizer, steps=100)
        run.report(error=0.012)
    assert run.curve.eval_step.tolist() == [100, 200]
    assert run.verdict.feasible
    with tunewright.watch(optimizer) as run:
        run.report(error=0.010)
        loop(run, model, optimizer, steps=100)
        run.report(error=0.012)
    assert run.verdict.outcome == "diverged"


def test_a_scaler_skips_updates_and_their_losses():
    """Gradients overflow at first; zero_grad comes first, as in torch's own examples."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    losses = []
    with tunewright.watch(optimizer) as run:
        for batch in batches():
            optimizer.zero_grad()
            before = [parameter.detach().clone() for parameter in model.parameters()]
            loss = 1000 * loss_of(model, batch)
            run.loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not all(map(torch.equal, before, model.parameters())):
                losses.append(loss.item())
    assert 0 < len(losses) < STEPS
    np.testing.assert_allclose(run.curve.loss, losses, rtol=1e-6)
    assert np.isfinite(run.curve.grad_norm).all()


def test_losses_that_are_told_before_one_backward_pass_are_averaged():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    with tunewright.watch(optimizer) as run:
        for one, two in zip(batches(), batches(), strict=True):
            parts = [loss_of(model, one), 3 * loss_of(model, two)]
            for part in parts:
                run.loss(part)
            sum(parts).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert run.curve.loss[-1] == pytest.approx(2 * parts[0].item())


# --- mistakes ---------------------------------------------------------------------------------


def test_a_block_without_an_update_is_told(capsys, tmp_path):
    with tunewright.watch(OPTIMIZERS["sgd"](network()), out=tmp_path):
        pass
    assert "no update was seen" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_step_without_a_loss_is_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    with tunewright.watch(optimizer):
        loss_of(model, next(batches())).backward()
        with pytest.raises(MisuseError, match="none was told before"):
            optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be > 0"),
        ({"clip_norm": math.nan}, "clip_norm must be > 0"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"out": "/proc/nowhere"}, "out: /proc/nowhere: cannot be made: No such file"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        tunewright.watch(OPTIMIZERS["sgd"](network()), **options)


def test_a_folder_that_vanishes_is_an_error_that_hides_no_other(tmp_path, capsys):
    def vanishes(error=None):
        model, folder = network(), tmp_path / "a"
        optimizer = OPTIMIZERS["sgd"](model)
        with tunewright.watch(optimizer, out=folder) as run:
            loop(run, model, optimizer, steps=3)
            folder.rmdir()
            if error:
                raise error

    with pytest.raises(UserError, match="cannot be written: No such file"):
        vanishes()
    with pytest.raises(ValueError, match="first"):
        vanishes(ValueError("first"))
    assert "cannot be written" in capsys.readouterr().out


def test_the_package_is_cheap_to_import():
    code = "import sys, tunewright; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'look'"):
        tunewright.look  # noqa: B018


def test_an_error_before_the_first_update_is_not_taken_for_a_misplaced_optimizer(capsys):
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), tunewright.watch(optimizer):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "tunewright: no update was seen until KeyboardInterrupt\n"


def test_an_objective_that_was_never_reported_is_told_and_the_loss_alone_is_judged(capsys):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with tunewright.watch(optimizer, objective="typo") as run:
        for step in range(60):
            inputs = torch.ones(8, 4)
            loss = (model(inputs) - 1).square().mean()
            run.loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                run.report(val=float(loss.detach()))
    assert run.verdict.feasible
    printed = capsys.readouterr().out
    assert "The objective 'typo' was never reported (val was): the loss alone is judged." in printed
