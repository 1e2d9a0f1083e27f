"""Muon against torch's and against its papers' equations; what it takes for matrices."""

import numpy as np
import plain
import pytest
import torch
import zoo
from torch import nn

from tunewright.search.errors import UserError
from tunewright.search.rules.matrices import matrices_of
from tunewright.search.rules.optimizers import RULES, coefficients
from tunewright.search.rules.pieces import DECAY, VECTOR_DECAY, Piece, pieces_of
from tunewright.search.rules.torch_optimizers import groups_of, make
from tunewright.search.train.execution import Recorded
from tunewright.search.train.rows import Stack
from tunewright.search.workload.workload import check_workload

SHAPES = [(4, 7), (9, 3), (6, 6), (1, 5), (5, 1)]
DEFAULTS = RULES["muon"].defaults
# Of a step, relative to its length: torch's iteration is in bfloat16, which has 8 bits.
IN_BFLOAT16 = 0.03


def gradients_of(shapes, updates, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [
        [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        for _ in range(updates)
    ]


def trained(optimizer, parameters, gradients, rates):
    for rate, found in zip(rates, gradients, strict=True):
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def parameters_of(shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [nn.Parameter(one) for one in drawn]


RATES = [0.01, 0.03, 0.02, 0.05, 0.01, 0.002]


@pytest.mark.parametrize("own", [{}, {"momentum": 0.6, "weight_decay": 0.7}, {"momentum": 0.0}])
def test_matrices_follow_the_equations_of_the_papers(own):
    settings, found = {**DEFAULTS, **own}, parameters_of(SHAPES)
    gradients, states = gradients_of(SHAPES, len(RATES)), [{} for _ in SHAPES]
    wanted = [one.detach().clone() for one in found]
    for t, (rate, drawn) in enumerate(zip(RATES, gradients, strict=True)):
        wanted = [
            plain.rule_step("muon", settings, theta, g, state, rate, t, is_matrix=True)
            for theta, g, state in zip(wanted, drawn, states, strict=True)
        ]
    got = trained(make("muon", found, own, 1.0), found, gradients, RATES)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("own", [{}, {"momentum": 0.6, "weight_decay": 0.7}])
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (64, 64), (3, 5)])
def test_it_is_torchs_but_for_the_dtype_in_which_that_iterates(own, shape):
    """Each step from the same start, by the same momentum: rounding is not carried on."""
    settings = {**DEFAULTS, **own}
    ours, theirs = parameters_of([shape], torch.float32), parameters_of([shape], torch.float32)
    decay, momentum = settings["weight_decay"], settings["momentum"]
    torchs = torch.optim.Muon(
        theirs, lr=1.0, weight_decay=decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
    )
    rule = make("muon", ours, own, 1.0)
    for rate, (gradient,) in zip(RATES, gradients_of([shape], 6, torch.float32), strict=True):
        before = ours[0].detach().clone()
        (got,) = trained(rule, ours, [[gradient]], [rate])
        (want,) = trained(torchs, theirs, [[gradient]], [rate])
        step = want - before
        assert (got - want).norm() <= IN_BFLOAT16 * step.norm()
        with torch.no_grad():
            theirs[0].copy_(got)
    buffer = torchs.state[theirs[0]]["momentum_buffer"]
    torch.testing.assert_close(rule.state[ours[0]]["m"].view(shape), buffer, rtol=1e-6, atol=1e-7)


def test_it_is_torchs_to_the_last_digits_where_both_iterate_alike(monkeypatch):
    """All but the dtype of the iteration: momentum, its order, decay, the size of a step."""
    module = torch.optim._muon

    def in_float64(gradient, coefficients, steps, smallest):
        a, b, c = coefficients
        x = gradient.double().clone()
        x = x / x.norm().clamp(min=smallest)
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", in_float64)
    ours, theirs = parameters_of(SHAPES), parameters_of(SHAPES)
    gradients = gradients_of(SHAPES, len(RATES))
    torchs = torch.optim.Muon(theirs, lr=1.0, adjust_lr_fn="match_rms_adamw")
    want = trained(torchs, theirs, gradients, RATES)
    got = trained(make("muon", ours, {}, 1.0), ours, gradients, RATES)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_what_is_no_matrix_is_torchs_adamw_and_vectors_do_not_decay():
    shapes = [(3, 4), (5,), (), (2, 3, 2, 2)]
    ours, theirs = parameters_of(shapes), parameters_of(shapes)
    rule = make("muon", [{"params": ours, "matrices": False}], {}, 1.0)
    few = [one for one in theirs if one.ndim < 2]
    many = [one for one in theirs if one.ndim >= 2]
    torchs = torch.optim.AdamW(
        [{"params": many}, {"params": few, "weight_decay": 0.0}], weight_decay=0.1
    )
    gradients = gradients_of(shapes, len(RATES))
    got, want = trained(rule, ours, gradients, RATES), trained(torchs, theirs, gradients, RATES)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_a_step_is_that_of_float32_rounded(dtype):
    shapes = [(5, 3), (4,)]
    narrow = [nn.Parameter(one.detach().to(dtype)) for one in parameters_of(shapes)]
    wide = [nn.Parameter(one.detach().float()) for one in narrow]
    gradients = [one.to(dtype) for one in gradients_of(shapes, 1)[0]]
    got = trained(make("muon", narrow, {}, 1.0), narrow, [gradients], [0.1])
    rule = make("muon", wide, {}, 1.0)
    want = trained(rule, wide, [[one.float() for one in gradients]], [0.1])
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))


def test_a_matrix_without_gradient_stays_where_it_is_and_one_of_zeros_decays_alone():
    still, empty = parameters_of([(3, 4), (4, 3)])
    before = still.detach().clone(), empty.detach().clone()
    optimizer = make("muon", [still, empty], {"weight_decay": 0.5}, 0.1)
    empty.grad = torch.zeros_like(empty)
    optimizer.step()
    assert torch.equal(still, before[0])
    torch.testing.assert_close(empty.detach(), before[1] * 0.95)


def test_in_a_stack_a_row_is_what_it_is_alone_to_the_last_bit():
    """Whatever K, and whatever its neighbours are."""
    generator = torch.Generator().manual_seed(0)
    theta, g, m = torch.randn(3, 4, 9 * 16, generator=generator)
    (piece,) = pieces_of([(9, 16)], {0}, 10)
    table = coefficients("muon", {}, np.array(RATES))

    def updated(rows):
        columns = {name: torch.full((len(rows), 1), one[2]) for name, one in table.items()}
        own = theta[rows].clone()
        RULES["muon"].apply(piece, own, g[rows], {"m": m[rows].clone(), "v": m[rows]}, columns)
        return own

    whole = updated([0, 1, 2, 3])
    for rows in ([0], [1, 0], [3, 2, 1]):
        assert torch.equal(updated(rows), whole[rows])


# --- which parameters -----------------------------------------------------------------------------


class Tokens(nn.Module):
    """An embedding that is tied to the output, one that is not, a head, and other shapes."""

    def __init__(self):
        super().__init__()
        self.tokens, self.bags = nn.Embedding(7, 4), nn.EmbeddingBag(5, 4)
        self.norm, self.inner = nn.LayerNorm(4), nn.Linear(4, 4)
        self.out, self.head = nn.Linear(4, 7, bias=False), nn.Linear(4, 3)
        self.out.weight = self.tokens.weight
        self.conv = nn.Conv1d(2, 3, 1)


def test_matrices_are_parameters_of_two_dimensions_but_for_embeddings_and_what_is_named():
    assert matrices_of(Tokens()) == {"inner.weight", "head.weight"}
    assert matrices_of(Tokens(), ["head.weight", "head.bias"]) == {"inner.weight"}


def test_a_name_of_a_tied_weight_may_be_either():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert matrices_of(model) == {"0.weight"}
    assert matrices_of(model, ("1.weight",)) == set()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["hed.weight"],
            "not_matrices names 'hed.weight', which is no parameter of the model; it ",
        ),
        ("head.weight", "not_matrices must be a list of names of parameters, got 'head.weight'"),
        (3, "not_matrices must be a list of names of parameters, got 3"),
    ],
)
def test_what_is_no_name_is_refused_before_training(given, said):
    work = zoo.make("Mlp")
    work.not_matrices = given
    with pytest.raises(UserError, match=f"workload: {said}"):
        check_workload(work, "val_loss", [24])


def test_a_stack_updates_matrices_alone_and_all_else_in_chunks():
    work = zoo.make("Mlp")
    work.not_matrices = ["2.weight"]
    made = Stack(Recorded(work, work.build_model(0)), 2, ["muon", "adamw"])
    first, rest = made._pieces["muon"]
    assert first == Piece(slice(0, 48), (8, 6), ((DECAY, slice(0, 48)),))
    assert rest.matrix is None
    assert rest.where == slice(48, 48 + 8 + 8 + 1)
    parts = [
        (VECTOR_DECAY, slice(0, 8)),
        (DECAY, slice(8, 16)),
        (VECTOR_DECAY, slice(16, 17)),
    ]
    assert list(rest.decays) == parts
    assert [one.where for one in made._pieces["adamw"]] == [slice(0, 65)]


def test_pieces_cut_what_lies_between_matrices_and_lose_nothing():
    shapes = [(3,), (2, 5), (4,), (), (2, 2, 2), (5, 2), (2, 4)]
    pieces = pieces_of(shapes, {1, 5}, 6)
    places = [place for one in pieces for place in range(one.where.start, one.where.stop)]
    assert places == list(range(3 + 10 + 4 + 1 + 8 + 10 + 8))
    assert [one.matrix for one in pieces if one.matrix] == [(2, 5), (5, 2)]
    assert max(one.where.stop - one.where.start for one in pieces if not one.matrix) == 6
    decays = [
        (name, one.where.start + part.start, one.where.start + part.stop)
        for one in pieces
        for name, part in one.decays
    ]
    by_place = [name for name, start, stop in decays for _ in range(start, stop)]
    names = [VECTOR_DECAY if len(shape) < 2 else DECAY for shape in shapes]
    sizes = [int(np.prod(shape)) for shape in shapes]
    assert by_place == [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]


def test_a_models_groups_leave_out_what_is_no_matrix_and_what_is_frozen():
    model = Tokens()
    model.conv.requires_grad_(False)
    inside, others = groups_of("muon", model, ["head.weight"])
    assert [id(one) for one in inside["params"]] == [id(model.inner.weight)]
    assert others["matrices"] is False
    names = {id(one): name for name, one in model.named_parameters()}
    assert {names[id(one)] for one in others["params"]} == {
        *("tokens.weight", "bags.weight", "norm.weight", "norm.bias"),
        *("inner.bias", "head.weight", "head.bias"),
    }
    assert len(groups_of("adamw", model)) == len(list(model.parameters())) - 2
    frozen = nn.Sequential(nn.LayerNorm(3))
    assert [group["matrices"] for group in groups_of("muon", frozen)] == [False]


def test_what_a_group_says_of_matrices_is_true_or_false():
    group = {"params": [torch.ones(2, 2, requires_grad=True)], "matrices": "no"}
    with pytest.raises(UserError, match="matrices of a group must be True or False, got 'no'"):
        make("muon", [group], {}, 0.1)
