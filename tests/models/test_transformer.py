"""The Transformer: causal, its attention the written formula, its logits bounded by qk_norm."""

import math
from itertools import islice

import pytest
import torch

from tunewright.models import supervised, transformer
from tunewright.models.residual import PLACEMENTS
from tunewright.models.transformer import Attention, Transformer

SMALL = {"d_model": 16, "layers": 2, "heads": 2, "context": 8}


@pytest.fixture(autouse=True)
def fixed_random_numbers() -> None:
    torch.manual_seed(0)


def test_changing_a_later_token_changes_no_earlier_logits() -> None:
    model = transformer.characters(**SMALL).build_model(0)
    tokens_BT = torch.arange(8)[None] + 40
    changed_BT = tokens_BT.clone()
    changed_BT[0, 5] = 7
    logits, changed = model(tokens_BT), model(changed_BT)
    assert torch.equal(logits[:, :5], changed[:, :5])
    assert (logits[:, 5:] != changed[:, 5:]).any(-1).all()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_torchs_own(qk_norm: bool) -> None:
    attention, x_BTD = (
        Attention(16, heads=2, qk_norm=qk_norm, temperature=2.0),
        torch.randn(3, 5, 16),
    )
    heads = attention.qkv(x_BTD).reshape(3, 5, 3, 2, 8)
    q, k, v = (heads[:, :, i].transpose(1, 2) for i in range(3))
    if qk_norm:
        q, k = (torch.nn.functional.layer_norm(tensor, (8,)) for tensor in (q, k))
    scale = 1 / (2.0 * math.sqrt(8))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    torch.testing.assert_close(
        attention(x_BTD), attention.join(mixed.transpose(1, 2).reshape(3, 5, 16))
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_qk_norm_bounds_the_logits(temperature: float) -> None:
    bound = math.sqrt(8) / temperature
    q_BHTE, k_BHTE = 100 * torch.randn(2, 2, 5, 8), 100 * torch.randn(2, 2, 5, 8)
    logits = {
        on: Attention(16, 2, on, temperature).logits(q_BHTE, k_BHTE).abs().max()
        for on in (True, False)
    }
    assert logits[True] <= bound * (1 + 1e-6) < logits[False]


def test_the_largest_attention_logit_is_that_of_any_layer_and_example() -> None:
    workload = transformer.characters(**SMALL)
    model = workload.build_model(0)
    with torch.no_grad():
        model.blocks[2].branch.qkv.weight.mul_(30)  # the second layer's
    tokens_BT = workload.load().validation[0][:600]
    seen = []

    def see(attention: Attention, given: tuple[torch.Tensor]) -> None:
        seen.append(every_logit(attention, *given))

    for block in (model.blocks[0], model.blocks[2]):
        block.branch.register_forward_pre_hook(see)
    logits, largest = model(tokens_BT), torch.cat(seen).abs().max()
    assert seen[1].abs().max() == largest > 10 * seen[0].abs().max()
    seen.clear()
    found = model.with_largest_logit(tokens_BT)
    torch.testing.assert_close(found, (logits, largest), rtol=1e-5, atol=1e-6)


def every_logit(attention: Attention, x_BTD: torch.Tensor) -> torch.Tensor:
    """The logits of queries on keys that do not come after them; of keys without their bias."""
    width = x_BTD.shape[-1] // attention.heads
    q, k, _ = attention.qkv(x_BTD).detach().chunk(3, dim=-1)
    k = k - attention.qkv.bias.detach().chunk(3)[1]
    pairs = zip(q.split(width, -1), k.split(width, -1), strict=True)
    each = [torch.einsum("bte,bse->bts", *pair) / math.sqrt(width) for pair in pairs]
    return torch.cat([one[:, *torch.tril_indices(*one.shape[1:])].flatten() for one in each])


def test_an_evaluation_reports_the_largest_of_all_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervised, "EVALUATION_EXAMPLES", 50)
    workload = transformer.characters(**SMALL)
    model = workload.build_model(0)
    tokens_NT = workload.load().validation[0]
    assert len(tokens_NT) > 2 * 50
    found = workload.evaluate(model)["val_attention_logit"]
    torch.testing.assert_close(found, model.with_largest_logit(tokens_NT)[1])


def test_z_loss_adds_the_mean_squared_log_of_the_normalizer() -> None:
    plain, with_z = (transformer.characters(**SMALL, z_loss=z) for z in (0.0, 0.1))
    model = plain.build_model(0)
    batch = next(plain.train_batches(4, seed=0))
    log_z = model(batch[0]).double().exp().sum(-1).log()
    added = with_z.loss(model, batch) - plain.loss(model, batch)
    assert added.item() == pytest.approx(0.1 * log_z.square().mean().item(), rel=1e-4)
    assert with_z.evaluate(model) == plain.evaluate(model)


def test_what_may_mend_it_is_what_it_does_not_have_yet() -> None:
    mended = {"normalization": "pre", "rezero": True, "qk_norm": True, "z_loss": 1e-4}
    assert transformer.characters(**SMALL, **mended).architectures == {}
    offered = transformer.characters(**SMALL, normalization="post").architectures
    assert {name for own in offered.values() for name in own} == mended.keys()


@pytest.mark.parametrize("placement", ["pre", "branch_out", "none"])
def test_the_blocks_of_a_rezero_network_are_the_identity_at_first(placement: str) -> None:
    model = transformer.characters(**SMALL, normalization=placement, rezero=True).build_model(0)
    x_BTD = torch.randn(2, 8, 16)
    assert torch.equal(model.blocks(x_BTD), x_BTD)


def test_a_shorter_text_than_the_context_is_allowed() -> None:
    model = Transformer(11, 8, 16, 1, 2, "pre", False, False, 1.0)
    assert model(torch.zeros(3, 5, dtype=torch.int64)).shape == (3, 5, 11)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_starts_near_a_uniform_guess_and_learns_more_than_frequencies(placement: str) -> None:
    workload = transformer.characters(
        d_model=32, layers=1, heads=2, context=16, normalization=placement
    )
    model = workload.build_model(0)
    uniform = math.log(97)
    assert workload.evaluate(model)["val_loss"].item() == pytest.approx(uniform, abs=0.7)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in islice(workload.train_batches(32, seed=0), 100):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
    assert loss < workload.chance_loss - 0.2


@pytest.mark.parametrize(
    "arguments",
    [
        {"heads": 3},
        {"context": 2000},
        {"context": 0},
        {"layers": 0},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"normalization": "batch"},
        {"qk_norm": "yes"},
        {"z_loss": -1e-4},
        {"z_loss": math.nan},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        transformer.characters(**arguments)  # type: ignore[arg-type]
