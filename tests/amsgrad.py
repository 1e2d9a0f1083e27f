"""AMSGrad, which tunewright does not ship: all that one more update rule takes, in one file.

    m, v, b as adam;   u ← max(u, v);   θ ← θ − η b m/(√u + ε)                      u₀ = 0

Its workload is here, too, so that worker processes, which import that, know the rule. Source: Reddi
et al. 2018, "On the Convergence of Adam and Beyond".
"""

import torch
import zoo

from tunewright.search.rules.optimizers import RULES, Alternative, Rule, add


def update(theta, g, state, c):
    m = state["m"].lerp_(g, 1.0 - c["beta1"])
    v = state["v"].lerp_(g * g, 1.0 - c["beta2"])
    u = torch.maximum(state["u"], v, out=state["u"])
    theta.addcdiv_(m * c["eta"], u.sqrt().add_(c["epsilon"]), value=-1.0)


add(
    Rule(
        name="amsgrad",
        defaults={"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        state={"m": 0.0, "v": 0.0, "u": 0.0},
        update=update,
        family="adam",
        alternative=Alternative("momentum", (1e-3, 1.0)),
        coefficients=RULES["adam"].coefficients,
    )
)


def make():
    return zoo.make("Mlp")
