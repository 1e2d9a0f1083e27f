"""Optimizers of torch's kind that a user may bring, in a module of their own."""

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lbfgs import LBFGS


class Signs(Optimizer):
    """Follows the sign of a running mean, and writes its parameters anew instead of in place."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), steps=1, kind="sign"):
        super().__init__(params, {"lr": lr, "betas": betas, "steps": steps, "kind": kind})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                step = mean.lerp(p.grad, 1 - first).sign()
                p.data = p.data - group["lr"] * group["steps"] * step
                mean.lerp_(p.grad, 1 - second)


class Decoupled(AdamW):
    """Another default than its base."""

    def __init__(self, params, lr=1e-3, *, weight_decay: float = 0.1):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


class Inherited(AdamW):
    """Its base's constructor."""


class Counting(Optimizer):
    """Keeps in Python what no state_dict has."""

    def __init__(self, params, lr=1e-3, period: int = 3):
        super().__init__(params, {"lr": lr})
        self.period, self.calls = period, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and self.calls % self.period:
                    p.add_(p.grad, alpha=-group["lr"])


class Open(torch.optim.SGD):
    """Takes anything."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)


class Needy(Optimizer):
    """Has a setting without a default, and no learning rate in its groups."""

    def __init__(self, params, scale: float):
        super().__init__(params, {"scale": scale})

    def step(self, closure=None):
        return None


class Failing(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("it never worked")


class Several(LBFGS):
    pass


class NoOptimizer:
    def __init__(self, params, lr=0.1):
        pass
