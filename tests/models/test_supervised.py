"""Laws that every workload keeps, whatever its data and architecture."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from tunewright.models import diabetes, digits, on_cue, residual_mlp, transformer, wide_resnet
from tunewright.models.batches import Split
from tunewright.models.supervised import Classification, Regression, Supervised
from tunewright.search.rules.matrices import matrices_of

CHARACTERS = {"d_model": 16, "layers": 1, "heads": 2, "context": 8}
WORKLOADS: dict[str, Supervised] = {
    "digits:mlp": digits.mlp(),
    "digits:conv": digits.conv(width=4),
    **{
        f"residual_mlp {name}": residual_mlp.digits(16, 2, name)
        for name in ("pre", "branch_out", "post")
    },
    "residual_mlp none rezero": residual_mlp.digits(16, 2, "none", rezero=True),
    "wide_resnet batch": wide_resnet.digits(),
    "wide_resnet none 16×16": wide_resnet.digits(
        normalization="none", image_size=16, strides="2,2,2"
    ),
    "transformer pre": transformer.characters(**CHARACTERS),
    "transformer post qk_norm": transformer.characters(
        **CHARACTERS, normalization="post", qk_norm=True
    ),
    "diabetes:mlp": diabetes.mlp(),
    **{f"on_cue {kind}": on_cue.linear(cue_step=1, kind=kind) for kind in on_cue.KINDS},
}


@pytest.fixture(params=WORKLOADS)
def workload(request: pytest.FixtureRequest) -> Supervised:
    return WORKLOADS[request.param]


class Bound(nn.Module):
    """`function(model, …)` as a module's forward, so that `functional_call` can swap the model's
    state.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)


def losses_and_gradients(
    workload: Supervised, models: list[nn.Module], batch: Any
) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    losses = [workload.loss(model, batch) for model in models]
    return [
        (loss.detach(), torch.autograd.grad(loss, list(model.parameters())))
        for loss, model in zip(losses, models, strict=True)
    ]


def test_stacked_models_equal_single_ones(workload: Supervised) -> None:
    """Losses, gradients, buffers and metrics of two models under vmap are those of each alone."""
    models = [workload.build_model(seed).double() for seed in (0, 1)]
    parameters, buffers = stack_module_state([Bound(model, workload.loss) for model in models])
    (batch,) = [next(workload.train_batches(8, seed=0))]

    def stacked(function: Callable[..., Any], *arguments: Any) -> Any:
        bound = Bound(workload.build_model(0).double(), function)
        return vmap(lambda p, b: functional_call(bound, (p, b), arguments))(parameters, buffers)

    losses = stacked(workload.loss, batch)
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
    metrics = stacked(workload.evaluate)

    for i, (loss, gradient) in enumerate(losses_and_gradients(workload, models, batch)):
        close = {"rtol": 1e-10, "atol": 1e-10, "equal_nan": True}
        torch.testing.assert_close(losses[i], loss, **close)
        torch.testing.assert_close(tuple(g[i] for g in gradients), gradient, **close)
        for name, buffer in models[i].named_buffers():
            torch.testing.assert_close(buffers[f"model.{name}"][i], buffer, **close)
        torch.testing.assert_close(
            {k: m[i] for k, m in metrics.items()}, workload.evaluate(models[i]), **close
        )


def test_building_is_a_function_of_the_seed_and_leaves_the_callers_random_state(
    workload: Supervised,
) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (workload.build_model(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_batches_have_one_shape_and_repeat_with_the_seed(workload: Supervised) -> None:
    first, again = workload.train_batches(48, seed=5), workload.train_batches(48, seed=5)
    for _ in range(30):  # several epochs of the small sets
        batch = next(first)
        assert all(torch.equal(*pair) for pair in zip(batch, next(again), strict=True))
        assert all(len(tensor) == 48 for tensor in batch)
    with pytest.raises(ValueError, match=r"training examples, got 100000"):
        workload.train_batches(100_000, seed=0)


def test_metrics_are_scalars_and_evaluating_changes_nothing(workload: Supervised) -> None:
    model = workload.build_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metrics = workload.evaluate(model) | workload.test(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert {"val_loss", "test_loss"} <= metrics.keys()
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith("error"))
    workload.evaluate(model.eval())
    assert not model.training


def test_a_pickled_workload_is_small_and_trains_the_same(workload: Supervised) -> None:
    stored = pickle.dumps(workload)
    copy = pickle.loads(stored)
    assert len(stored) < 1000
    losses = [w.loss(w.build_model(0), next(w.train_batches(8, seed=0))) for w in (workload, copy)]
    assert torch.equal(*losses)


def test_data_follow_the_models_device(workload: Supervised) -> None:
    model = workload.build_model(0).to("meta")
    assert workload.loss(model, next(workload.train_batches(8, seed=0))).device.type == "meta"
    assert workload.evaluate(model)["val_loss"].device.type == "meta"


def test_chance_loss_is_the_loss_of_the_best_constant_predictor(workload: Supervised) -> None:
    y = workload.load().train[1].flatten()
    if isinstance(workload, Regression):
        expected = ((y - y.mean()) ** 2).mean().item()
    else:
        assert isinstance(workload, Classification)
        frequency = y.bincount() / len(y)
        seen = frequency[frequency > 0]
        expected = -(seen * seen.log()).sum().item()
    assert workload.chance_loss == pytest.approx(expected, rel=1e-5)


def few() -> Split:
    x_N1, y_N = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1])
    return Split(train=(x_N1, y_N), validation=(x_N1, y_N), test=(x_N1[:1], y_N[:1]))


def test_cross_entropy_and_error_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Classification(few, lambda: nn.Linear(1, 2))
    model = workload.build_model(0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))  # logits (0, x): always class 1
        model.bias.zero_()
    softplus = [math.log1p(math.exp(z)) for z in (1, -2, -3)]
    expected = {"val_loss": sum(softplus) / 3, "val_error": 1 / 3}
    for chunk in (512, 2, 1):  # a whole part at once, or in unequal pieces
        monkeypatch.setattr("tunewright.models.supervised.EVALUATION_EXAMPLES", chunk)
        found = {name: value.item() for name, value in workload.evaluate(model).items()}
        assert found == pytest.approx(expected, rel=1e-6)
    assert workload.test(model)["test_error"] == 1


def test_squared_error_by_hand() -> None:
    workload = Regression(few, lambda: nn.Linear(1, 1))
    model = workload.build_model(0)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    assert workload.evaluate(model)["val_loss"].item() == pytest.approx((1 + 1 + 4) / 3)


def test_the_mode_is_restored_when_an_evaluation_fails() -> None:
    workload = Classification(few, lambda: nn.Linear(2, 2))
    model = workload.build_model(0)
    with pytest.raises(RuntimeError):
        workload.evaluate(model)
    assert model.training


def test_the_output_layer_is_no_matrix_for_muon_and_hidden_layers_are(workload: Supervised) -> None:
    model = workload.build_model(0)
    outputs = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    known = dict(model.named_parameters())
    assert any(known[name] is outputs.weight for name in workload.not_matrices)
    hidden = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]
    matrices = {id(known[name]) for name in matrices_of(model, workload.not_matrices)}
    assert matrices == {id(weight) for weight in hidden}
