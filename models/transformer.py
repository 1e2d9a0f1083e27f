"""Decoder-only Transformer, and a character language model with it.

  B  batch size    T  positions    D  width of the stream    V  vocabulary    H  heads    E = D/H

Source: Vaswani et al. 2017 (arXiv 1706.03762); query-key normalization: Henry et al. 2020 (arXiv
2010.04245), in the form of Dehghani et al. 2023 (arXiv 2302.05442); z-loss: Chowdhery et al. 2022
(arXiv 2204.02311); placements and ReZero: see `residual`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arguments import at_least, one_of
from .batches import Examples
from .residual import PLACEMENTS, Residual, last_norm, other_architectures
from .supervised import Classification, predict, quality
from .text import VOCABULARY, load

MAX_CONTEXT = 1024  # longer windows would leave fewer than 40 of them for validation
Z_LOSS = 1e-4  # weight that PaLM was trained with


class Transformer(nn.Module):
    """Token and position embeddings, `layers` × (attention, MLP), linear layer; causal.

    tokens_BT int64, T ≤ context → logits_BTV
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        d_model: int,
        layers: int,
        heads: int,
        normalization: str,
        rezero: bool,
        qk_norm: bool,
        temperature: float,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, d_model)
        self.position = nn.Parameter(torch.randn(context, d_model))
        branches = [
            branch
            for _ in range(layers)
            for branch in (Attention(d_model, heads, qk_norm, temperature), _feedforward(d_model))
        ]
        self.blocks = nn.Sequential(
            *(Residual(branch, d_model, normalization, rezero) for branch in branches)
        )
        self.head = nn.Sequential(last_norm(d_model, normalization), nn.Linear(d_model, vocabulary))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(self._embed(tokens_BT))))

    def with_largest_logit(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and the largest |attention logit| of all layers, heads and positions."""
        x_BTD = self._embed(tokens_BT)
        found = []
        for block in cast(Iterable[Residual], self.blocks):
            if isinstance(block.branch, Attention):
                found.append(block.branch.largest_logit(block.before(x_BTD)))
            x_BTD = block(x_BTD)
        return cast(Tensor, self.head(x_BTD)), torch.stack(found).amax()

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return cast(Tensor, self.token(tokens_BT) + self.position[: tokens_BT.shape[1]])


class Attention(nn.Module):
    """Causal self-attention: softmax(q kᵀ / (temperature √E)) v per head, joined by a linear layer.

    With `qk_norm`, q and k are layer-normalized (learnable scale, no shift) over E: while the
    scales are 1, no |logit| exceeds √E / temperature, whatever the weights. x_BTD → x_BTD
    """

    def __init__(self, d_model: int, heads: int, qk_norm: bool, temperature: float) -> None:
        super().__init__()
        self.heads = heads
        self.divisor = temperature * math.sqrt(d_model // heads)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.norm_q = nn.LayerNorm(d_model // heads, bias=False) if qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(d_model // heads, bias=False) if qk_norm else nn.Identity()
        self.join = nn.Linear(d_model, d_model)

    def logits(self, q_BHTE: Tensor, k_BHTE: Tensor) -> Tensor:
        """Attention logits_BHTT, queries along the third axis; before the causal mask."""
        q_BHTE, k_BHTE = self.norm_q(q_BHTE), self.norm_k(k_BHTE)
        return q_BHTE @ k_BHTE.transpose(-1, -2) / self.divisor

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = self._heads(x_BTD)
        # Not scaled_dot_product_attention: on the CPU it has no rule for torch.func.vmap.
        logits_BHTT = self.logits(q_BHTE, k_BHTE).masked_fill(_future(x_BTD), -math.inf)
        mixed_BHTE = logits_BHTT.softmax(-1) @ v_BHTE
        return cast(Tensor, self.join(mixed_BHTE.transpose(1, 2).flatten(2)))

    def largest_logit(self, x_BTD: Tensor) -> Tensor:
        """The largest |logit| that enters the softmax.

        Unless keys are normalized, it is without their bias. That adds the same number to all
        logits of a query, so that the softmax is blind to it and its gradient is rounding alone.
        """
        q_BHTE, k_BHTE, _ = self._heads(x_BTD)
        if isinstance(self.norm_k, nn.Identity):
            bias_HE = self.qkv.bias.view(3, self.heads, -1)[1]
            k_BHTE = k_BHTE - bias_HE[:, None]
        return self.logits(q_BHTE, k_BHTE).masked_fill(_future(x_BTD), 0.0).abs().amax()

    def _heads(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, [B, H, T, E] each."""
        heads_BT3HE: Tensor = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        return heads_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)


def _future(x_BTD: Tensor) -> Tensor:
    """Which keys come after a query, [T, T]."""
    positions = x_BTD.shape[1]
    return torch.ones(positions, positions, dtype=torch.bool, device=x_BTD.device).triu(1)


def _feedforward(d_model: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
    )


@dataclass(frozen=True)
class LanguageModel(Classification):
    """Next-token prediction by a Transformer.

    z_loss   weight z of what is added to the training loss, z mean (log Z)², where Z = Σ exp(logit)
             at a position: it keeps logits from drifting; evaluations are without it
    """

    z_loss: float = 0.0

    largest: ClassVar[frozenset[str]] = frozenset({"attention_logit"})

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        logits_BTV, y_BT = predict(model, batch)
        loss = functional.cross_entropy(logits_BTV.flatten(0, -2), y_BT.flatten())
        if self.z_loss:
            loss = loss + self.z_loss * logits_BTV.logsumexp(-1).square().mean()
        return loss

    def measure(self, model: nn.Module, batch: Examples) -> dict[str, Tensor]:
        tokens_BT, y_BT = (tensor.to(next(model.parameters()).device) for tensor in batch)
        network = cast(Transformer, model)
        logits_BTV, largest = network.with_largest_logit(tokens_BT)
        return quality(logits_BTV, y_BT) | {"attention_logit": largest}


def characters(
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 32,
    normalization: str = "pre",
    rezero: bool = False,
    qk_norm: bool = False,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> LanguageModel:
    """Next character of Python source with a small Transformer; loss in nats per character.

    Raises ValueError unless all sizes are ≥ 1, heads divides d_model, context ≤ 1024, normalization
    is a placement, rezero and qk_norm are booleans, temperature is a positive number, and z_loss a
    number ≥ 0.
    """
    at_least(1, d_model=d_model, layers=layers, heads=heads, context=context)
    if d_model % heads:
        raise ValueError(f"heads: must divide d_model, got heads={heads}, d_model={d_model}")
    if context > MAX_CONTEXT:
        raise ValueError(f"context: must be at most {MAX_CONTEXT}, got {context}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: must be a positive number, got {temperature!r}")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: must be a number ≥ 0, got {z_loss!r}")
    one_of(PLACEMENTS, normalization=normalization)
    one_of((False, True), rezero=rezero, qk_norm=qk_norm)
    sizes = (VOCABULARY, context, d_model, layers, heads)
    network = functools.partial(Transformer, *sizes, normalization, rezero, qk_norm, temperature)
    others = other_architectures(normalization, rezero)
    if not qk_norm:
        others["QK-norm"] = {"qk_norm": True}
    if not z_loss:
        others["z-loss"] = {"z_loss": Z_LOSS}
    return LanguageModel(
        functools.partial(load, context),
        network,
        others,
        not_matrices=("position", "head.1.weight"),
        z_loss=z_loss,
    )
