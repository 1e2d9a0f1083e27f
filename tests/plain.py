"""The training that a trial must equal: one model, one plain torch loop, nothing shared with the
library.
"""

import copy
import math

import torch


def matrices(model, not_matrices=()):
    """The parameters that Muon updates as matrices, by their identity."""
    tables = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    left_out = {id(table.weight) for table in tables}
    left_out |= {id(p) for name, p in model.named_parameters() if name in not_matrices}
    return {id(p) for p in model.parameters() if p.dim() == 2} - left_out


def orthogonal(x):
    """Five steps of Newton-Schulz, as Jordan et al. 2024 write them, of one matrix."""
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def rule_step(name, own, theta, g, state, eta, t, is_matrix=False, decay_vectors=False):
    """R21, per tensor."""
    if theta.dim() < 2 and not decay_vectors:
        own = {**own, "weight_decay": 0.0}
    if name == "schedule_free_adamw":
        return schedule_free_step(own, theta, g, state, eta, t)
    if name == "muon" and is_matrix:
        return muon_step(own, theta, g, state, eta)
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
        step, m, v = like_adam(name, own, theta, g, m, v, eta, t)
    state["m"], state["v"] = m, v
    return theta - step


def like_adam(name, own, theta, g, m, v, eta, t):
    """The step, and m and v after it."""
    b1, b2 = own["beta1"], own["beta2"]
    if name.startswith("gi_") and t == 0:
        v = g * g  # v₀
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root = math.sqrt(1 - b2 ** (t + 1))
    b = root / (1 - b1 ** (t + 1))
    if name == "nadam":
        return eta * b * (b1 * m + (1 - b1) * g) / (torch.sqrt(v) + own["epsilon"]), m, v
    if name in ("adam", "gi_adam"):
        return eta * b * m / (torch.sqrt(v) + own["epsilon"]), m, v
    step = eta * b * m / (torch.sqrt(v) + own["epsilon"] * root)
    return eta * own["weight_decay"] * theta + step, m, v


def muon_step(own, theta, g, state, eta):
    """Of a matrix, as Liu et al. 2025 write it."""
    m = own["momentum"] * state.get("m", torch.zeros_like(theta)) + (1 - own["momentum"]) * g
    o = orthogonal(own["momentum"] * m + (1 - own["momentum"]) * g)
    state["m"] = m
    return theta - eta * (0.2 * math.sqrt(max(theta.shape)) * o + own["weight_decay"] * theta)


def schedule_free_step(own, theta, g, state, eta, t):
    """Defazio et al. 2024, Algorithm 1: θ is its y, and `evaluated` its x."""
    z, x = state.get("z", theta), state.get("evaluated", theta)
    v = own["beta2"] * state.get("v", torch.zeros_like(theta)) + (1 - own["beta2"]) * g * g
    weights = [*state.get("weights", []), eta**2]
    corrected = torch.sqrt(v / (1 - own["beta2"] ** (t + 1)))
    z = z - eta * (g / (corrected + own["epsilon"]) + own["weight_decay"] * theta)
    c = weights[-1] / sum(weights) if any(weights) else 0.0
    x = (1 - c) * x + c * z
    state.update(z=z, evaluated=x, v=v, weights=weights)
    return (1 - own["beta1"]) * z + own["beta1"] * x


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


def train(workload, point, own, etas, dtype, decay_vectors=False):
    """Losses and unclipped gradient norms of every update, and the model that is evaluated."""
    torch.manual_seed(point.seed)
    model = workload.build_model(point.seed).to(dtype)
    batches = iter(workload.train_batches(point.batch_size, point.seed))
    states = [{} for _ in model.parameters()]
    of_muon = matrices(model, getattr(workload, "not_matrices", ()))
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
                is_matrix = id(parameter) in of_muon
                of = (own, parameter, g, state, float(eta), t, is_matrix, decay_vectors)
                parameter.copy_(rule_step(point.optimizer, *of))
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return losses, norms, evaluated(model, states)


@torch.no_grad()
def evaluated(model, states):
    """A copy of the model with what its rule evaluates in place of the parameters."""
    found = copy.deepcopy(model)
    for parameter, state in zip(found.parameters(), states, strict=True):
        parameter.copy_(state.get("evaluated", parameter))
    return found
