"""Clipping: at a threshold, at one that follows the norms, and of each tensor at its own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunewright.search.rules.clipping import (
    Gate,
    TensorGate,
    clip_,
    clip_tensors,
    clip_threshold,
    global_norm,
    share_clipped,
    tensor_norms,
)
from tunewright.search.rules.thresholds import (
    TENSOR_DECAY,
    TENSOR_FIRST,
    TENSOR_GATHERS,
    Z_DECAY,
    Z_GATHERS,
    clip_thresholds,
    clip_z_of,
    share_of,
    update_moments,
)

norms = st.lists(st.floats(1e-6, 1e6), min_size=30, max_size=60).map(np.array)
SPIKE = 40  # update


def noisy(seed=0, steps=80):
    return np.random.default_rng(seed).uniform(0.8, 1.2, steps)


def statistics(entered_t):
    """Mean and standard deviation with weights β^age, from their definition."""
    weights = Z_DECAY ** np.arange(len(entered_t))[::-1]
    mean = np.average(entered_t, weights=weights)
    return mean, math.sqrt(np.average((entered_t - mean) ** 2, weights=weights))


def on_device(norms_KT, clip_norm_K, clip_z_K):
    """Thresholds as a stack finds them, update by update, for all slots at once: [K, T]."""
    mean_K1, variance_K1 = (torch.zeros((len(norms_KT), 1), dtype=torch.float64) for _ in range(2))
    found = []
    for t, norm_K in enumerate(norms_KT.T):
        update_K1 = np.full((len(norm_K), 1), t)
        columns = (
            clip_norm_K[:, None],
            clip_z_of(update_K1, clip_z_K[:, None]),
            share_of(update_K1),
        )
        gate = Gate(*(torch.tensor(column) for column in columns))
        limit_K1 = clip_threshold(mean_K1, variance_K1, gate)
        norm_K1 = torch.minimum(torch.tensor(norm_K)[:, None], limit_K1)
        mean_K1, variance_K1 = update_moments(mean_K1, variance_K1, norm_K1, gate.share)
        found.append(limit_K1[:, 0].numpy())
    return np.array(found).T


def test_clipping_gives_the_threshold_and_is_idempotent():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0], [0.0, 0.0]], dtype=torch.float64)
    limit_K1 = torch.tensor([[1.0], [1.0], [math.inf], [1.0]], dtype=torch.float64)
    before = g.clone()
    clip_(g, global_norm(g), limit_K1)
    torch.testing.assert_close(
        global_norm(g)[:, 0], torch.tensor([1.0, 0.5, 50.0, 0.0], dtype=torch.float64)
    )
    torch.testing.assert_close(g[0] / g[0, 0], before[0] / before[0, 0])
    assert torch.equal(g[1:3], before[1:3])
    once = g.clone()
    clip_(g, global_norm(g), limit_K1)
    torch.testing.assert_close(g, once)


@given(norms, st.floats(0.5, 4.0), st.sampled_from([0.5, 10.0, math.inf]))
def test_the_threshold_is_mean_plus_z_deviations_of_what_entered_before_it(
    norm_T, clip_z, clip_norm
):
    limit_T = clip_thresholds(norm_T, clip_norm, clip_z)
    entered_T = np.minimum(norm_T, limit_T)
    for t in range(Z_GATHERS, len(norm_T)):
        mean, deviation = statistics(entered_T[:t])
        if deviation > 1e-6 * mean:
            assert limit_T[t] == pytest.approx(min(clip_norm, mean + clip_z * deviation), rel=1e-6)
    assert (limit_T <= clip_norm).all()  # the smaller threshold wins
    assert (limit_T[:Z_GATHERS] == clip_norm).all()


@given(norms, st.floats(0.5, 4.0), st.sampled_from([0.5, 10.0, math.inf]))
def test_the_host_finds_the_thresholds_of_the_stack(norm_T, clip_z, clip_norm):
    stack = on_device(
        np.stack([norm_T, norm_T[::-1]]), np.array([clip_norm, 1.0]), np.array([clip_z, 2.0])
    )
    np.testing.assert_allclose(stack[0], clip_thresholds(norm_T, clip_norm, clip_z), rtol=1e-12)
    np.testing.assert_allclose(stack[1], clip_thresholds(norm_T[::-1], 1.0, 2.0), rtol=1e-12)


def test_the_threshold_is_found_without_a_look_at_values():
    """On meta tensors, which have none: on a device each look would wait for it."""
    some_K1 = torch.empty((3, 1), dtype=torch.float64, device="meta")
    limit_K1 = clip_threshold(some_K1, some_K1, Gate(some_K1, some_K1, some_K1))
    assert [
        tensor.shape for tensor in (limit_K1, *update_moments(some_K1, some_K1, limit_K1, some_K1))
    ] == [(3, 1)] * 3


def test_a_clipped_norm_never_exceeds_its_threshold():
    gradient_KP = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 5)) ** 3)
    norm_K1 = global_norm(gradient_KP)
    limit_K1 = torch.from_numpy(clip_thresholds(norm_K1[:, 0].numpy(), math.inf, 1.5))[:, None]
    clip_(gradient_KP, norm_K1, limit_K1)
    assert (global_norm(gradient_KP) <= limit_K1 * (1 + 1e-12)).all()
    clipped = norm_K1 > limit_K1
    assert clipped.any()
    torch.testing.assert_close(global_norm(gradient_KP)[clipped], limit_K1[clipped])


@pytest.mark.parametrize("clip_norm", [math.inf, 0.9])
def test_inf_is_off(clip_norm):
    np.testing.assert_array_equal(
        clip_thresholds(noisy(), clip_norm, math.inf), np.full(80, clip_norm)
    )
    off = on_device(noisy()[None], np.array([clip_norm]), np.array([math.inf]))
    np.testing.assert_array_equal(off[0], np.full(80, clip_norm))


def test_one_spike_is_clipped_to_the_threshold_and_does_not_open_the_gate():
    spiked = noisy()
    spiked[SPIKE] = 1e6
    limit_T = clip_thresholds(spiked, math.inf, 2.5)
    assert limit_T[SPIKE] < 1.5
    at_most = noisy()
    at_most[SPIKE] = limit_T[SPIKE]
    # as if it had been as high as its threshold
    np.testing.assert_array_equal(clip_thresholds(at_most, math.inf, 2.5), limit_T)
    before, after = (statistics(np.minimum(spiked, limit_T)[:t])[0] for t in (SPIKE, SPIKE + 1))
    assert 0 < after - before <= 1.001 * share_of(np.array(SPIKE)) * (limit_T[SPIKE] - before)
    assert limit_T[SPIKE + 1 :].max() < 1.1 * limit_T[SPIKE]


def test_a_spike_among_the_first_updates_is_left_to_clip_norm():
    spiked = noisy()
    spiked[Z_GATHERS - 1] = 1e6
    assert clip_thresholds(spiked, math.inf, 2.5)[Z_GATHERS] > 1e4
    assert clip_thresholds(spiked, 2.0, 2.5)[Z_GATHERS] < 2.0


def test_norms_that_rise_are_followed_if_clip_z_is_above_one_and_not_below():
    rising = noisy() * np.where(np.arange(80) < SPIKE, 1, 100)
    assert clip_thresholds(np.append(rising, np.full(500, 100.0)), math.inf, 2.5)[-1] > 100
    assert clip_thresholds(np.append(rising, np.full(500, 100.0)), math.inf, 0.9)[-1] < 10


@pytest.mark.parametrize("norm", [0.0, 0.7])
def test_equal_norms_have_no_z_score_and_are_not_clipped(norm):
    assert (clip_thresholds(np.full(80, norm), math.inf, 2.5) >= norm).all()
    equal = on_device(np.full((1, 80), norm), np.array([math.inf]), np.array([2.5]))
    assert (equal >= norm).all()
    gradient_KP = torch.full((1, 4), norm / 2, dtype=torch.float64)
    clip_(gradient_KP, global_norm(gradient_KP), torch.from_numpy(equal[:, -1:]))
    torch.testing.assert_close(gradient_KP, torch.full((1, 4), norm / 2, dtype=torch.float64))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("update", [3, SPIKE])
def test_a_norm_that_is_not_finite_stays_in_its_slot(broken, update):
    sound, sick = noisy(1), noisy(2)
    sick[update] = broken
    both = on_device(np.stack([sound, sick]), np.full(2, math.inf), np.full(2, 2.0))
    np.testing.assert_allclose(both[0], clip_thresholds(sound, math.inf, 2.0), rtol=1e-12)
    np.testing.assert_allclose(
        both[1, : update + 1], clip_thresholds(sick[: update + 1], math.inf, 2.0), rtol=1e-12
    )


# --- by tensor ------------------------------------------------------------------------------------


def paper(norms_TN, multiple):
    """Algorithm 1 of AdaGC, in NumPy: the factors and γ of every update, [T, N] each.

    Its first updates are TENSOR_GATHERS, and γ follows their norms as they are.
    """
    factors, usuals, usual = [], [], np.full(norms_TN.shape[1], math.inf)
    for t, norm in enumerate(norms_TN):
        if t < TENSOR_GATHERS:
            factor = np.full_like(norm, min(1.0, TENSOR_FIRST / np.sqrt(np.sum(norm**2))))
            usual = np.minimum(usual, norm)
        else:
            factor = np.minimum(multiple * usual / norm, 1.0)
            usual = TENSOR_DECAY * usual + (1 - TENSOR_DECAY) * factor * norm
        factors.append(factor)
        usuals.append(usual)
    return np.array(factors), np.array(usuals)


def by_tensor(norms_KTN, multiples_K, dtype=torch.float64):
    """The same as a stack finds them, for all slots at once: [K, T, N] each."""
    slots, updates, tensors = norms_KTN.shape
    usual_KN = torch.full((slots, tensors), math.inf, dtype=dtype)
    factors, usuals = [], []
    for t in range(updates):
        gathers = np.full((slots, 1), t < TENSOR_GATHERS)
        multiples = multiples_K[:, None]
        limits = (
            np.where(gathers, math.inf, multiples),
            np.where(gathers & np.isfinite(multiples), TENSOR_FIRST, math.inf),
        )
        gate = TensorGate(
            *(torch.tensor(one, dtype=dtype) for one in limits), torch.tensor(gathers)
        )
        norm_KN = torch.tensor(norms_KTN[:, t], dtype=dtype)
        factor_KN, usual_KN = clip_tensors(norm_KN, usual_KN, gate)
        factors.append(factor_KN.double().numpy())
        usuals.append(usual_KN.double().numpy())
    return np.array(factors).swapaxes(0, 1), np.array(usuals).swapaxes(0, 1)


many_norms = st.integers(0, 2**31).map(
    lambda seed: np.exp(np.random.default_rng(seed).normal(0, 1, (2, 60, 3)))
)


@given(many_norms, st.floats(0.5, 4.0))
def test_clipping_by_tensor_is_that_of_the_paper(norms_KTN, multiple):
    multiples = np.array([multiple, 1.05])
    factors, usuals = by_tensor(norms_KTN, multiples)
    for k in range(2):
        wanted = paper(norms_KTN[k], multiples[k])
        np.testing.assert_allclose(factors[k], wanted[0], rtol=1e-12)
        np.testing.assert_allclose(usuals[k], wanted[1], rtol=1e-12)


def test_a_spike_of_one_tensor_is_clipped_to_its_own_threshold_and_no_other():
    norms = np.stack([noisy(1), 100 * noisy(2)], axis=1)
    norms[SPIKE, 0] = 1e6
    factors, usuals = (found[0] for found in by_tensor(norms[None], np.array([1.5])))
    assert factors[SPIKE, 0] * 1e6 == pytest.approx(1.5 * usuals[SPIKE - 1, 0], rel=1e-12)
    assert (factors[TENSOR_GATHERS:, 1] == 1.0).all()
    assert usuals[SPIKE, 0] / usuals[SPIKE - 1, 0] == pytest.approx(1 + 0.02 * 0.5, rel=1e-12)


@pytest.mark.parametrize("until", [1, 10, TENSOR_GATHERS, SPIKE])
def test_a_tensor_whose_first_gradients_are_0_is_not_held_there(until):
    """As those of layers behind a weight that starts at 0."""
    norms = np.stack([noisy(1), noisy(2)], axis=1)
    norms[:until, 0] = 0.0
    norms[SPIKE + 5, 0] = 0.0  # and one without a gradient says nothing of what is usual
    factors, usuals = (found[0] for found in by_tensor(norms[None], np.array([1.05])))
    assert np.isinf(usuals[until - 1, 0])
    assert usuals[until:].min() > 0.5
    assert factors.min() > 0.5
    assert usuals[SPIKE + 5, 0] == usuals[SPIKE + 4, 0]


def test_inf_leaves_every_tensor_as_it_is_beside_one_that_is_clipped():
    norms = np.exp(np.random.default_rng(0).normal(0, 2, (2, 60, 4)))
    factors, _ = by_tensor(norms, np.array([math.inf, 1.05]), torch.float32)
    assert (factors[0] == 1.0).all()
    assert (factors[1] < 1.0).any()


def test_a_tensor_that_is_not_finite_stays_in_its_slot():
    norms = np.exp(np.random.default_rng(0).normal(0, 1, (2, 60, 2)))
    sick = norms.copy()
    sick[1, SPIKE, 0] = math.nan
    sound, both = (by_tensor(one, np.full(2, 1.05))[0] for one in (norms, sick))
    np.testing.assert_array_equal(sound[0], both[0])
    np.testing.assert_array_equal(sound[1, :SPIKE], both[1, :SPIKE])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norms_of_tensors_are_those_of_each_slot_in_float32_at_least(dtype):
    parts = [torch.full((3, 5), 3e4, dtype=dtype), torch.ones((3, 1), dtype=dtype)]
    wide = torch.promote_types(dtype, torch.float32)
    norm_KN = tensor_norms(parts, wide)
    assert (norm_KN.shape, norm_KN.dtype) == ((3, 2), wide)
    want = torch.tensor([float(parts[0][0, 0]) * math.sqrt(5), 1.0], dtype=wide).expand(3, 2)
    torch.testing.assert_close(norm_KN, want, rtol=1e-6, atol=0)


def test_the_share_is_of_the_tensors_that_have_a_gradient():
    factor = torch.tensor([[0.5, 1.0, 0.2, 1.0], [1.0, 0.5, 1.0, 1.0]])
    norm = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert share_clipped(factor, norm).tolist() == [0.5, 0.0]


def test_thresholds_of_tensors_are_found_without_a_look_at_values():
    norm = torch.empty((3, 4), device="meta")
    gathers = torch.empty((3, 1), dtype=torch.bool, device="meta")
    gate = TensorGate(norm[:, :1], norm[:, :1], gathers)
    factor, usual = clip_tensors(norm, norm, gate)
    assert [one.shape for one in (factor, usual, share_clipped(factor, norm))] == [
        (3, 4),
        (3, 4),
        (3,),
    ]
