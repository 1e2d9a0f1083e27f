"""λ₁ against dense Hessians, and the limits that it sets against the update rules themselves."""

import math
from itertools import repeat

import numpy as np
import pytest
import torch
from examples import parse
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, jacrev
from torch.nn import functional

from tunewright.models import diabetes, digits, on_cue, residual_mlp, transformer, wide_resnet
from tunewright.search.rules.optimizers import RULES, coefficients
from tunewright.search.train.curvature import (
    EXAMPLES,
    follow_edge,
    largest_eigenvalue,
    some_batches,
    stability_limit,
)
from tunewright.search.train.loop import train
from tunewright.search.trial import Point
from tunewright.search.workload.batches import examples

TINY_TEXT = {"d_model": 2, "layers": 1, "heads": 1, "context": 4}


class Task:
    """A workload of a model, a loss and one batch."""

    def __init__(self, model, loss, batch=None):
        self.model, self.loss, self.batch = (
            model,
            loss,
            torch.zeros(4, 3) if batch is None else batch,
        )

    def build_model(self, seed):
        return self.model

    def train_batches(self, batch_size, seed):
        return repeat(self.batch)

    def evaluate(self, model):
        return {}

    def eigenvalue(self):
        return largest_eigenvalue(self, self.model, [self.batch])


class Theta(nn.Module):
    def __init__(self, *theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))


def quadratic(eigenvalues):
    """½ θᵀ Q diag(eigenvalues) Qᵀ θ with a random rotation Q."""
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((len(eigenvalues),) * 2))
    matrix = torch.tensor(rotation @ np.diag(eigenvalues) @ rotation.T)
    return Task(
        Theta(*[0.3] * len(eigenvalues)),
        lambda model, batch: 0.5 * model.theta @ matrix @ model.theta,
    )


@pytest.mark.parametrize(
    "eigenvalues", [[5.0], [5.0, 1.0], [3.0, -40.0, 1.0], [-2.0, -1.0, -7.0], [*range(60), 61.5]]
)
def test_the_largest_eigenvalue_of_a_quadratic_is_the_one_that_it_was_made_of(eigenvalues):
    assert quadratic(eigenvalues).eigenvalue() == pytest.approx(max(eigenvalues), rel=1e-5)


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    assert Task(Theta(1.0, 2.0), lambda model, batch: model.theta.sum()).eigenvalue() == 0


def test_an_mlp_agrees_with_the_dense_hessian_of_torch_func():
    workload = diabetes.mlp(width=3, depth=1)
    model = workload.build_model(0).double()
    batches = some_batches(workload, 50, 0, 150)
    names = [name for name, _ in model.named_parameters()]

    def mean_loss(flat):
        parts = flat.split([p.numel() for p in model.parameters()])
        own = {
            name: part.view_as(p)
            for name, part, p in zip(names, parts, model.parameters(), strict=True)
        }
        predictions = [(functional_call(model, own, (x.double(),)), y.double()) for x, y in batches]
        return sum(functional.mse_loss(output.squeeze(-1), y) for output, y in predictions) / len(
            batches
        )

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    dense = torch.linalg.eigvalsh(jacrev(jacrev(mean_loss))(flat))
    assert dense[0] < 0 < dense[-1]
    assert largest_eigenvalue(workload, model, batches) == pytest.approx(float(dense[-1]), rel=1e-5)


def gradient(workload, model, batches):
    """By plain autograd, flat; buffers are put back, because training mode counts steps and keeps
    statistics.
    """
    total = 0
    for batch in batches:
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        gradients = torch.autograd.grad(
            workload.loss(model, batch) / len(batches), list(model.parameters())
        )
        model.load_state_dict(before, strict=False)
        total = total + torch.cat([g.flatten() for g in gradients])
    return total


def dense_hessian(workload, model, batches, size=1e-6):
    """In float64 from central differences of gradients: no second derivative is taken."""
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    rows = []
    for unit in torch.eye(len(theta), dtype=torch.float64):
        ends = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(theta + sign * size * unit, model.parameters())
            ends.append(gradient(workload, model, batches))
        rows.append((ends[0] - ends[1]) / (2 * size))
    nn.utils.vector_to_parameters(theta, model.parameters())
    dense = torch.stack(rows)
    return (dense + dense.T) / 2


FAMILIES = {
    "diabetes": diabetes.mlp(width=4, depth=2),
    "mlp": digits.mlp(width=2, depth=1),
    "conv": digits.conv(width=1),
    "on_cue": on_cue.linear(),
    **{
        f"residual_mlp {placement}": residual_mlp.digits(width=3, depth=1, normalization=placement)
        for placement in ("pre", "branch_out", "post", "none")
    },
    "residual_mlp rezero": residual_mlp.digits(width=3, depth=1, rezero=True),
    "transformer": transformer.characters(**TINY_TEXT),
    "transformer qk_norm": transformer.characters(**TINY_TEXT, qk_norm=True, normalization="post"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_agrees_with_its_dense_hessian(family):
    workload = FAMILIES[family]
    model = workload.build_model(3).double()
    batches = some_batches(workload, 8, 0, 8)
    found = largest_eigenvalue(workload, model, batches)
    dense = dense_hessian(workload, model, batches)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
    assert largest_eigenvalue(workload, model.float(), batches) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_a_narrow_wide_resnet_agrees_with_its_dense_hessian(normalization, monkeypatch):
    monkeypatch.setattr(wide_resnet, "CHANNELS", (1, 2, 2))
    workload = wide_resnet.digits(normalization=normalization, strides="2,2,2")
    model = workload.build_model(0).double()
    with torch.no_grad():  # away from the kink of relu at 0, where a channel without bias begins
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batches = some_batches(workload, 8, 0, 16)
    found = largest_eigenvalue(workload, model, batches)
    dense = dense_hessian(workload, model, batches)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_a_wide_resnet_of_usual_size_has_a_curvature(normalization):
    workload = wide_resnet.digits(normalization=normalization)
    assert (
        largest_eigenvalue(workload, workload.build_model(0), some_batches(workload, 16, 0, 32)) > 0
    )


class Worn(nn.Module):
    """Everything that training mode changes or draws: running statistics, dropout, a buffer that is
    replaced.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)
        )
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return self.layers(x) * (1 + self.seen)


def worn():
    torch.manual_seed(0)
    batch = torch.randn(32, 3), torch.randn(32, 1)
    return Task(
        Worn().double(),
        lambda model, batch: functional.mse_loss(*(model(batch[0].double()), batch[1])),
        batch,
    )


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    task = worn()
    task.loss(task.model, task.batch).backward()
    task.model.eval()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    gradients = [p.grad.clone() for p in task.model.parameters()]
    random, identities = torch.get_rng_state(), [id(tensor) for tensor in task.model.buffers()]
    first = task.eigenvalue()
    assert task.eigenvalue() == first
    assert not task.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert [id(tensor) for tensor in task.model.buffers()] == identities
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for p, old in zip(task.model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, old)


def test_no_gradient_is_left_behind_where_there_was_none_and_none_is_needed_to_be_on():
    task = quadratic([2.0, 1.0])
    with torch.no_grad():
        assert task.eigenvalue() == pytest.approx(2.0)
    assert all(p.grad is None for p in task.model.parameters())


def test_parameters_that_are_not_trained_do_not_count():
    task = quadratic([2.0, 1.0])
    task.model.fixed = nn.Parameter(torch.tensor(3.0), requires_grad=False)
    half = task.loss
    task.loss = lambda model, batch: half(model, batch) + 100 * model.fixed**2
    assert task.eigenvalue() == pytest.approx(2.0)


def test_fused_attention_has_a_curvature_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    task = Task(
        layer,
        lambda model, x: model(x).square().mean() + model(x)[:, 0].mean(),
        torch.randn(4, 5, 8),
    )
    assert math.isfinite(task.eigenvalue())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda model, batch: model.theta.sum() * math.nan,
            "the training loss is nan at these parameters",
        ),
        (
            lambda model, batch: model.theta.sum() * math.inf,
            "the training loss is inf at these parameters",
        ),
        (
            lambda model, batch: (model.theta - 1).abs().pow(1.5).sum(),
            "second derivatives .* are not finite",
        ),
        (
            lambda model, batch: Once.apply(model.theta).square().sum(),
            "cannot be differentiated twice: .*once_differentiable",
        ),
    ],
)
def test_a_loss_without_curvature_is_refused_with_the_reason(loss, message):
    task = Task(Theta(1.0, 2.0), loss)
    with pytest.raises(ValueError, match=message):
        task.eigenvalue()
    assert task.model.training


def test_some_batches_are_the_first_ones_within_the_bound():
    workload = digits.mlp()
    batches = some_batches(workload, 100, 7)
    assert [examples(batch, 1000) for batch in batches] == [100] * (EXAMPLES // 100)
    first = workload.train_batches(100, 7)
    assert all(torch.equal(x, next(first)[0]) for x, _ in batches)
    assert [examples(batch, 1000) for batch in some_batches(workload, 1000, 0)] == [1000]


# --- the limit ------------------------------------------------------------------------------------


def size_after(optimizer, settings, base_lr, curvature, steps=1500):
    """|θ| after updates of the real rule on ½ curvature θ², from θ = 1."""
    theta = torch.ones(1, 1, dtype=torch.float64)
    state = {name: torch.full_like(theta, value) for name, value in RULES[optimizer].state.items()}
    table = coefficients(optimizer, settings, np.full(steps, base_lr))
    columns = {name: torch.tensor([[values[0]]]) for name, values in table.items()}
    for _ in range(steps):
        RULES[optimizer].update(theta, curvature * theta, state, columns)
    return float(theta.abs())


@pytest.mark.parametrize("curvature", [0.02, 7.0])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("sgd", {}),
        *(
            (name, {"momentum": g})
            for name in ("momentum", "nesterov")
            for g in (0.0, 0.5, 0.9, 0.99)
        ),
    ],
)
def test_just_below_the_limit_the_rule_converges_and_just_above_it_diverges(
    optimizer, settings, curvature
):
    limit = stability_limit(optimizer, settings, curvature)
    assert size_after(optimizer, settings, 0.98 * limit, curvature) < 0.01
    assert size_after(optimizer, settings, 1.02 * limit, curvature) > 1e3


def test_the_limits_are_the_written_formulas_with_the_rules_own_defaults():
    assert stability_limit("sgd", {}, 4.0) == 0.5
    assert stability_limit("momentum", {}, 4.0) == pytest.approx(3.8 / 4)
    assert stability_limit("nesterov", {}, 4.0) == pytest.approx(3.8 / 2.8 / 4)
    assert stability_limit("nesterov", {"momentum": 0.0}, 4.0) == stability_limit("sgd", {}, 4.0)


@pytest.mark.parametrize("optimizer", RULES)
def test_a_valley_without_walls_has_no_limit_and_of_some_rules_none_is_known(optimizer):
    adaptive = RULES[optimizer].max_stable_lr is None
    for eigenvalue in (0.0, -3.0):
        assert math.isnan(stability_limit(optimizer, {}, eigenvalue)) == adaptive
        assert adaptive or stability_limit(optimizer, {}, eigenvalue) == math.inf
    assert math.isnan(stability_limit(optimizer, {}, 4.0)) == adaptive


def test_torchs_sgd_has_the_limit_of_the_rule_that_it_is():
    own = {"momentum": 0.8}
    limits = stability_limit("torch.optim.SGD", own, 4.0), stability_limit("momentum", own, 4.0)
    assert limits[0] == limits[1]
    assert stability_limit("torch.optim:SGD", {}, 4.0) == stability_limit("sgd", {}, 4.0)
    nesterov = stability_limit("torch.optim.SGD", {**own, "nesterov": True}, 4.0)
    assert nesterov == stability_limit("nesterov", own, 4.0)
    for others in ({"weight_decay": 0.1}, {"dampening": 0.5}):
        assert math.isnan(stability_limit("torch.optim.SGD", own | others, 4.0))
    assert math.isnan(stability_limit("torch.optim.AdamW", {}, 4.0))


# --- preconditioned, and followed -----------------------------------------------------------------

ADAPTIVE = [name for name, rule in RULES.items() if rule.second_moment and rule.max_stable_lr]


def test_a_preconditioned_hessian_has_the_eigenvalue_of_the_dense_one():
    task = quadratic([5.0, 1.0, 3.0, -2.0])
    divisor = torch.tensor([1.0, 0.01, 7.0, 0.3], dtype=torch.float64)
    dense = dense_hessian(task, task.model, [task.batch])
    found = largest_eigenvalue(task, task.model, [task.batch], divisor)
    eigenvalues = torch.linalg.eigvals(dense / divisor[:, None]).real
    assert found == pytest.approx(float(eigenvalues.max()), rel=1e-5)


def test_a_parameter_whose_divisor_is_infinite_is_held():
    task = Task(
        Theta(1.0, 1.0, 1.0), lambda m, b: (m.theta**2 * torch.tensor([9.0, 2.0, 1.0])).sum()
    )
    divisor = torch.tensor([math.inf, 1.0, 1.0])
    assert largest_eigenvalue(task, task.model, [task.batch], divisor) == pytest.approx(4.0)


def grown(optimizer, settings, rate, curvature, v=4.0, steps=1500):
    """|θ| after updates of the real rule on ½ curvature θ², from θ = 1, while v rests."""
    rule = RULES[optimizer]
    theta = torch.ones(1, 1, dtype=torch.float64)
    state = {name: torch.zeros_like(theta) for name in rule.state}
    table = coefficients(optimizer, settings, np.full(100_000, rate))  # beyond bias correction
    columns = {name: torch.tensor([[values[-1]]]) for name, values in table.items()}
    for _ in range(steps):
        state["v"].fill_(v)
        for name in ("beta2", "rho"):
            if name in columns:
                columns[name] = torch.ones(1, 1, dtype=torch.float64)
        rule.update(theta, curvature * theta, state, columns)
    return float(theta.abs())


@pytest.mark.parametrize("optimizer", ADAPTIVE)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_an_adaptive_rule_is_bounded_by_its_preconditioned_curvature(optimizer, kept):
    rule = RULES[optimizer]
    name = "beta1" if "beta1" in rule.defaults else "momentum"
    settings, curvature, v = {name: kept, "epsilon": 0.1}, 7.0, torch.tensor([4.0])
    unit = coefficients(optimizer, settings, np.ones(100_000))
    last = {column: float(values[-1]) for column, values in unit.items()}
    divisor = float(rule.second_moment.divisor({"v": v}, last))
    limit = stability_limit(optimizer, settings, curvature / divisor)
    assert grown(optimizer, settings, 0.98 * limit, curvature) < 0.01
    assert grown(optimizer, settings, 1.02 * limit, curvature) > 1e3


def test_adams_threshold_is_38_by_default():
    assert stability_limit("adam", {}, 1.0) == pytest.approx(38)
    assert stability_limit("adamw", {"beta1": 0.0}, 4.0) == stability_limit("sgd", {}, 4.0)
    assert stability_limit("nadam", {}, 1.0) == pytest.approx(38 / 2.8)


def study_of(optimizer, steps=200, **space):
    return parse(
        objective="val_loss",
        max_train_steps=steps,
        batch_sizes=[4],
        divergence=False,
        space={"optimizer": {optimizer: {"base_lr": [0.01]}}} | space,
    )


class Fixed(Task):
    """A quadratic whose model is built anew, as in any training."""

    def build_model(self, seed):
        return Theta(*[0.3] * len(self.model.theta))

    def evaluate(self, model):
        return {"val_loss": self.loss(model, self.batch)}


def fixed(*eigenvalues):
    scales = torch.tensor(eigenvalues, dtype=torch.float64)
    return Fixed(Theta(*[0.3] * len(eigenvalues)), lambda m, b: 0.5 * (scales * m.theta**2).sum())


def test_on_a_quadratic_the_ratio_is_the_next_learning_rate_over_the_limit():
    point = Point(0, 4, "momentum", 0.02, warmup_steps=20, settings={"momentum": 0.9})
    study = study_of("momentum", warmup_steps=[20])
    found = follow_edge(study, fixed(10.0, 1.0), point)
    assert [look.step for look in found.looks] == [1, 3, 8, 24, 69, 200]
    rates = [0.02 * min(step + 1, 20) / 20 for step in (1, 3, 8, 24, 69, 200)]
    for look, rate in zip(found.looks, rates, strict=True):
        assert look.rate == pytest.approx(rate)
        assert look.eigenvalue == pytest.approx(10.0, rel=1e-5)
        assert look.ratio == pytest.approx(rate * 10.0 / 3.8, rel=1e-5)
    assert found.outcome == "feasible"


def test_adams_ratio_is_of_the_state_that_its_own_updates_leave():
    study = study_of("adam", 24)
    workload, point = fixed(10.0, 1.0), Point(0, 4, "adam", 0.01)
    found = follow_edge(study, workload, point)
    theta = torch.full((1, 2), 0.3, dtype=torch.float64)
    state = {name: torch.zeros_like(theta) for name in ("m", "v")}
    tables = coefficients("adam", {}, np.full(24, 0.01))
    scales, looks = torch.tensor([[10.0, 1.0]], dtype=torch.float64), {}
    for i in range(24):
        columns = {name: torch.tensor([[table[i]]]) for name, table in tables.items()}
        RULES["adam"].update(theta, scales * theta, state, columns)
        bias = (1 - 0.9 ** (i + 1)) / math.sqrt(1 - 0.999 ** (i + 1))
        looks[i + 1] = float((scales / ((state["v"].sqrt() + 1e-8) * bias)).max())
    assert len(found.looks) > 3
    for look in found.looks:
        assert look.eigenvalue == pytest.approx(looks[look.step], rel=1e-4)
        assert look.ratio == pytest.approx(0.01 * looks[look.step] / 38, rel=1e-4)


def test_a_training_that_diverges_is_looked_at_while_it_is_finite():
    found = follow_edge(study_of("sgd", 2000), fixed(10.0, 1.0), Point(0, 4, "sgd", 5.0))
    assert found.outcome == "non_finite"
    assert 1 <= len(found.looks) < 6
    assert all(look.ratio == pytest.approx(25.0) for look in found.looks)


def test_it_ends_after_its_last_look_and_trains_as_without_one():
    study = study_of("momentum", 200)
    workload, point = fixed(10.0, 1.0), Point(0, 4, "momentum", 0.02, settings={"momentum": 0.9})

    class Kept:
        steps, seen = (7, 31), {}

        def look(self, step, values, divisor):
            assert divisor is None
            self.seen[step] = values["theta"].clone()

    kept = Kept()
    (cut,) = train(study, workload, [point], observer=kept)
    (whole,) = train(study, workload, [point])
    assert (len(cut.trial.curve.loss), cut.trial.verdict.outcome) == (31, "unfinished")
    assert np.array_equal(cut.trial.curve.loss, whole.trial.curve.loss[:31])
    for step, theta in kept.seen.items():
        after = float(whole.trial.curve.loss[step])
        assert workload.loss(Theta(*theta), None).item() == pytest.approx(after)


def test_a_loss_without_second_derivatives_is_an_error_that_can_be_told():
    task = Fixed(Theta(0.3, 0.3), lambda model, batch: Once.apply(model.theta).square().sum())
    with pytest.raises(ValueError, match="cannot be differentiated twice"):
        follow_edge(study_of("sgd"), task, Point(0, 4, "sgd", 0.01))


def test_an_unknown_rule_is_refused():
    with pytest.raises(KeyError):
        stability_limit("sdg", {}, 1.0)
