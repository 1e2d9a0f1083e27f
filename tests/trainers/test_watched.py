"""An optimizer that somebody else steps: what is measured, clipped and set before each update."""

import math

import numpy as np
import plain
import pytest
import torch
from torch import nn

from tunewright.search.rules.thresholds import clip_thresholds
from tunewright.search.train.recorder import Recorder
from tunewright.search.trainers.watched import (
    Clipping,
    MisuseError,
    Updates,
    WatchedOptimizer,
    global_norm,
)

STEPS = 60


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(-2, 3, count).exp()
    return [scale * torch.randn(16, 4, generator=generator).double() for scale in scales]


def loss_of(model, batch):
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def train(model, optimizer, before_step=lambda: None, count=STEPS):
    for batch in batches(count):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        before_step()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def watched(optimizer, told=None, clip_norm=math.inf, clip_z=math.inf, **options):
    def tell(norm, clipped):
        if told is not None:
            told.append(norm)

    return WatchedOptimizer(optimizer, tell, Clipping(clip_norm, clip_z), **options)


def test_what_is_only_watched_trains_to_the_last_bit_as_before():
    plain, seen = model_of(), model_of()
    norms, told = [], []
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-2)
    expected = train(plain, optimizer, lambda: norms.append(global_norm_of(plain)))
    optimizer = torch.optim.AdamW(seen.parameters(), 1e-2)
    watched(optimizer, told)
    assert all(map(torch.equal, train(seen, optimizer), expected))
    assert torch.equal(torch.stack(told), torch.stack(norms))


def global_norm_of(model):
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])


def test_norms_are_told_unclipped_and_gradients_are_clipped_at_the_threshold():
    told, after = [], []
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    watched(optimizer, told, clip_norm=1.0)
    optimizer.register_step_pre_hook(lambda *_: after.append(float(global_norm_of(model))))
    train(model, optimizer)
    norms = np.array([float(norm) for norm in told])
    assert norms.min() < 1.0 < norms.max()
    assert np.allclose(after, np.minimum(norms, 1.0), rtol=1e-12)


def test_a_threshold_that_follows_the_norms_is_that_of_the_study():
    told, after = [], []
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    seen = watched(optimizer, told, clip_norm=50.0, clip_z=1.5)
    optimizer.register_step_pre_hook(lambda *_: after.append(float(global_norm_of(model))))
    train(model, optimizer)
    norms = np.array([float(norm) for norm in told])
    thresholds = clip_thresholds(norms, 50.0, 1.5)
    assert (norms[30:] > thresholds[30:]).any()
    assert np.allclose(after, np.minimum(norms, thresholds), rtol=1e-12)
    resumed = Clipping(50.0, 1.5)
    resumed.resume(norms, torch.device("cpu"))
    one, other = (torch.ones(1, dtype=torch.float64) for _ in range(2))
    for clipping, parameter in ((seen.clipping, one), (resumed, other)):
        parameter.grad = torch.ones_like(parameter)
        clipping.clip_([parameter], torch.tensor(1e3).double())
    assert torch.equal(one.grad, other.grad)
    assert one.grad < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_tensor_is_clipped_at_its_own_threshold_whichever_have_a_gradient(dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 4), (5,), (2,), (4,)]
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]
    optimizer = torch.optim.SGD(parameters[:2], 1e-3)
    shares = []
    WatchedOptimizer(
        optimizer, lambda norm, clipped: shares.append(float(clipped)), Clipping(clip_tensor=1.05)
    )
    optimizer.add_param_group({"params": parameters[2:]})
    usual = [None] * len(sizes)
    for t in range(60):
        norms = [0.0] * len(sizes)
        for i, one in enumerate(parameters):
            one.grad = torch.randn(sizes[i], dtype=torch.float64, generator=generator).to(dtype)
            one.grad *= 30 if t == 40 and i == 1 else 0.1
            if (i == 0 and t % 7 == 3) or (i == 2 and t < 30):
                one.grad = None
                continue
            norms[i] = float(one.grad.double().norm())
        factors = plain.clip_tensors(1.05, norms, usual, t)
        wanted = {
            i: (one.grad.double() * factors[i], factors[i])
            for i, one in enumerate(parameters)
            if one.grad is not None
        }
        optimizer.step()
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        for i, (gradient, _) in wanted.items():
            torch.testing.assert_close(
                parameters[i].grad.double(), gradient, rtol=tolerance, atol=1e-30
            )
        assert shares[-1] == pytest.approx(np.mean([factor < 1 for _, factor in wanted.values()]))
    assert 0 < np.mean(shares[25:]) < 1


def test_every_group_keeps_its_ratio_to_the_first_whatever_else_sets_its_lr():
    model = model_of()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].weight, "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    schedule = iter(np.linspace(1e-3, 1e-2, STEPS))
    seen = watched(optimizer, learning_rate=lambda: next(schedule))
    optimizer.add_param_group({"params": model[2].bias, "lr": 0.2})
    found = []
    optimizer.register_step_pre_hook(
        lambda *_: found.append([group["lr"] for group in optimizer.param_groups])
    )
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    train(model, optimizer, count=10)
    expected = np.linspace(1e-3, 1e-2, STEPS)[:10, None] * [1.0, 4.0, 2.0]
    assert np.allclose(found, expected, rtol=1e-12)
    seen.release()
    train(model, optimizer, count=1)
    assert next(schedule) == pytest.approx(np.linspace(1e-3, 1e-2, STEPS)[10])


def test_a_norm_of_half_precision_does_not_overflow():
    gradients = [torch.full((1000,), 3e4, dtype=torch.float16), torch.ones(3, dtype=torch.float16)]
    assert float(global_norm(gradients)) == pytest.approx(3e4 * math.sqrt(1000), rel=1e-4)


@pytest.mark.parametrize("dtypes", [["float32"], ["float64"], ["bfloat16", "float64", "float32"]])
def test_the_norm_is_that_of_all_gradients_end_to_end(dtypes):
    gradients = [
        torch.randn(3, 5 * place, dtype=getattr(torch, dtypes[place % len(dtypes)]))
        for place in range(1, 7)
    ]
    flat = torch.cat([gradient.double().flatten() for gradient in gradients])
    found = global_norm(gradients)
    assert float(found) == pytest.approx(float(flat.norm()), rel=1e-6)
    if len(dtypes) == 1:  # to the last bit
        assert torch.equal(found, torch.nn.utils.get_total_norm(gradients))


def test_parameters_without_a_gradient_rest():
    model = model_of()
    model[0].weight.requires_grad_(False)
    told = []
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    watched(optimizer, told, clip_norm=0.1)
    before = model[0].weight.clone()
    train(model, optimizer, count=3)
    assert torch.equal(model[0].weight, before)
    assert len(told) == 3


def closure_step(optimizer, model):
    optimizer.step(lambda: loss_of(model, batches(1)[0]))


def sparse_step(optimizer, model):
    model[0].weight.grad = torch.ones(8, 4).double().to_sparse()
    optimizer.step()


def fused_step(optimizer, model):
    loss_of(model, batches(1)[0]).backward()
    optimizer.found_inf = torch.zeros(())  # as a GradScaler hands it to a fused optimizer
    optimizer.step()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (closure_step, "step.closure. computes its gradients after"),
        (sparse_step, "sparse gradients cannot be measured"),
        (fused_step, "make it without fused=True"),
        (lambda optimizer, model: optimizer.step(), "no parameter has a gradient"),
    ],
)
def test_what_cannot_be_seen_is_refused(step, message):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    watched(optimizer)
    with pytest.raises(MisuseError, match=message):
        step(optimizer, model)


def test_an_lr_of_0_and_what_is_no_optimizer_are_refused():
    optimizer = torch.optim.SGD(model_of().parameters(), 0.0)
    with pytest.raises(MisuseError, match="lr must be a number > 0"):
        watched(optimizer, learning_rate=lambda: 1.0)
    with pytest.raises(MisuseError, match=r"must be given a torch.optim.Optimizer, got Linear"):
        watched(nn.Linear(1, 1))


def test_the_loss_of_an_update_is_the_mean_since_the_update_before():
    recorder = Recorder(3, "v")
    updates = Updates(recorder)
    updates.add_loss(torch.tensor([2.0], requires_grad=True))
    updates.add_loss(4)
    updates.record(torch.tensor(1.0))
    updates.add_loss(7.0)
    updates.record(torch.tensor(2.0))
    assert recorder.losses.tolist() == [3.0, 7.0]
    with pytest.raises(MisuseError, match="none was told before"):
        updates.record(torch.tensor(1.0))
    with pytest.raises(MisuseError, match=r"must be one number, got shape \(2,\)"):
        updates.add_loss(torch.ones(2))


def test_nothing_waits_for_the_device():
    """A tensor on the meta device has no value that could be read: a look raises."""
    recorder = Recorder(9, "v")
    updates = Updates(recorder)
    parameter = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = torch.optim.SGD([parameter], 1.0)
    WatchedOptimizer(optimizer, updates.record, Clipping(1.0, 2.5), lambda: 0.1)
    for _ in range(5):
        parameter.grad = torch.ones(3, device="meta")
        updates.add_loss(torch.ones((), device="meta"))
        optimizer.step()
    assert recorder.step == 5
