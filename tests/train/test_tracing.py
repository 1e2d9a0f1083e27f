"""A recording repeats the operations of a function: on other numbers, and also what it writes in
place.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from tunewright.search.train.tracing import record


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_recording_gives_what_the_function_gives_on_other_numbers():
    def function(tensors, factor):
        return {
            "sum": tensors["a"] @ tensors["b"] + 1,
            "rest": [tensors["a"].softmax(-1) * factor],
        }, []

    replay = record(function, {"a": rows(3, 3), "b": rows(3, 2)}, rows(3, 1))
    new = {"a": rows(3, 3, seed=1), "b": rows(3, 2, seed=2)}, rows(3, 1, seed=3)
    (expected, _), found = function(*new), replay(*new)
    assert torch.equal(found["sum"], expected["sum"])
    assert torch.equal(found["rest"][0], expected["rest"][0])


def test_gradients_of_a_stacked_model_with_running_statistics_replay_to_the_last_bit():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).train()

    def gradients(values, buffers, x):
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        loss = vmap(
            lambda own, kept, x: functional_call(model, {**own, **kept}, (x,)).square().mean()
        )(leaves, buffers, x)
        return loss.detach(), torch.autograd.grad(loss.sum(), list(leaves.values()))

    def inputs(seed):
        values = {name: rows(3, *p.shape, seed=seed) for name, p in model.named_parameters()}
        buffers = {name: torch.stack([b] * 3) for name, b in model.named_buffers()}
        return values, buffers, rows(3, 5, 4, seed=seed + 1)

    replay = record(gradients, *inputs(seed=0))
    own, others = inputs(seed=10), inputs(seed=10)
    for _ in range(2):  # the second time with running statistics that the first has moved
        loss, grads = gradients(*own)
        grads_again = [torch.zeros_like(g) for g in grads]
        loss_again = replay(*others, into=grads_again)
        assert torch.equal(loss, loss_again)
        assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
        assert all(torch.equal(own[1][name], others[1][name]) for name in own[1])
    assert (own[1]["1.num_batches_tracked"] == 2).all()


def test_a_compiled_recording_gives_what_the_function_gives_and_writes_what_it_writes():
    def function(kept, x):
        kept.add_(x.mean())
        return (x.softmax(-1) * kept).sum(), [x.exp().t()]

    replay = record(function, torch.zeros(1).double(), rows(3, 2).double(), compiled=True)
    x, own, others, into = (
        rows(3, 2, seed=1).double(),
        torch.ones(1).double(),
        torch.ones(1).double(),
        torch.zeros(2, 3),
    )
    for _ in range(2):
        expected, (part,) = function(own, x)
        torch.testing.assert_close(replay(others, x, into=[into]), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(into, part.float())
        torch.testing.assert_close(others, own, rtol=1e-12, atol=0)


def test_a_product_with_one_is_left_out_unless_somebody_writes_into_it():
    def kept(x):
        return x * 1 + 2, []

    def written(x):
        y = x * 1
        y.add_(1)
        return (y, x + 0), []

    x = rows(3, seed=1)
    assert torch.equal(record(kept, rows(3))(x), x + 2)
    y, same = record(written, rows(3))(x)
    assert torch.equal(y, x + 1)
    assert torch.equal(same, rows(3, seed=1))


def test_what_a_function_reads_besides_its_arguments_is_constant():
    constant = rows(3)
    replay = record(lambda x: (x + constant, []), rows(3, seed=1))
    assert torch.equal(replay(rows(3, seed=2)), rows(3, seed=2) + constant)


@pytest.mark.parametrize(
    "function", [lambda x: (x * float(x.sum()), []), lambda x: (x if x.sum() > 0 else -x, [])]
)
def test_operations_that_depend_on_values_cannot_be_recorded(function):
    with pytest.raises(RuntimeError, match="read on the host"):
        record(function, rows(3))
