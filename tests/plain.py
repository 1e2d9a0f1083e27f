"""The training that a trial must equal: one model, one plain torch loop, nothing shared with the
library.
"""

import math

import torch


def rule_step(name, own, theta, g, state, eta, t):
    """R21, per tensor."""
    m, v = state.setdefault("m", torch.zeros_like(theta)), state.get("v")
    if v is None:
        v = torch.ones_like(theta) if name == "rmsprop" else torch.zeros_like(theta)
    if name == "sgd":
        step = eta * g
    elif name in ("momentum", "nesterov"):
        v = own["momentum"] * v + g
        step = eta * (v if name == "momentum" else own["momentum"] * v + g)
    elif name == "rmsprop":
        v = own["rho"] * v + (1 - own["rho"]) * g * g
        m = own["momentum"] * m + eta * g / torch.sqrt(v + own["epsilon"])
        step = m
    elif name == "lion":
        towards = torch.sign(own["beta1"] * m + (1 - own["beta1"]) * g)
        m = own["beta2"] * m + (1 - own["beta2"]) * g
        step = eta * (towards + own["weight_decay"] * theta)
    else:
        b1, b2 = own["beta1"], own["beta2"]
        if name.startswith("gi_") and t == 0:
            v = g * g  # v₀
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = math.sqrt(1 - b2 ** (t + 1))
        b = root / (1 - b1 ** (t + 1))
        if name == "nadam":
            step = eta * b * (b1 * m + (1 - b1) * g) / (torch.sqrt(v) + own["epsilon"])
        elif name in ("adam", "gi_adam"):
            step = eta * b * m / (torch.sqrt(v) + own["epsilon"])
        else:
            step = eta * own["weight_decay"] * theta + eta * b * m / (
                torch.sqrt(v) + own["epsilon"] * root
            )
    state["m"], state["v"] = m, v
    return theta - step


def threshold(point, entered):
    """R14, R19: the fixed one, or mean and standard deviation of what entered so far, with weights
    0.97^age.
    """
    if math.isinf(point.clip_z) or len(entered) < 25:
        return point.clip_norm
    weights = [0.97**age for age in reversed(range(len(entered)))]
    mean = sum(w * n for w, n in zip(weights, entered, strict=True)) / sum(weights)
    variance = sum(w * (n - mean) ** 2 for w, n in zip(weights, entered, strict=True)) / sum(
        weights
    )
    return min(point.clip_norm, mean + point.clip_z * math.sqrt(variance))


def clip_tensors(multiple, norms, usual, t):
    """AdaGC (Wang et al. 2025): the factor of each tensor's gradient; `usual`, γ, is changed.

    With 25 first updates, in which all are clipped by the global norm at 1, γ by what they were.
    """
    if math.isinf(multiple):
        return [1.0] * len(norms)
    whole = math.sqrt(sum(norm**2 for norm in norms))
    factors = []
    for i, norm in enumerate(norms):
        factor = min(1.0, 1.0 / whole) if t < 25 and whole else 1.0
        if norm and t >= 25 and usual[i] is not None:
            factor = min(multiple * usual[i] / norm, 1.0)
            usual[i] = 0.98 * usual[i] + 0.02 * factor * norm
        elif norm:
            usual[i] = min(usual[i] or math.inf, norm)
        factors.append(factor)
    return factors


def train(workload, point, own, etas, dtype):
    """Losses and unclipped gradient norms of every update, and the trained model."""
    torch.manual_seed(point.seed)
    model = workload.build_model(point.seed).to(dtype)
    batches = iter(workload.train_batches(point.batch_size, point.seed))
    states = [{} for _ in model.parameters()]
    usual = [None] * len(states)
    losses, norms, entered = [], [], []
    for t, eta in enumerate(etas):
        loss = workload.loss(model, next(batches))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.sqrt(sum((g * g).sum() for g in gradients))
        factor = min(1.0, threshold(point, entered) / float(norm))
        entered.append(factor * float(norm))
        gradients = [g * factor for g in gradients]
        each_norm = [float(torch.sqrt((g * g).sum())) for g in gradients]
        factors = clip_tensors(point.clip_tensor, each_norm, usual, t)
        gradients = [g * each for g, each in zip(gradients, factors, strict=True)]
        with torch.no_grad():
            for parameter, g, state in zip(model.parameters(), gradients, states, strict=True):
                parameter.copy_(rule_step(point.optimizer, own, parameter, g, state, float(eta), t))
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return losses, norms, model
