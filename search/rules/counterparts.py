"""What comes closest in torch to an update rule: code for a script of one's own.

`away` is measured: ‖θ − θ′‖ / ‖θ − θ₀‖ after 100 updates, of the rule's parameters θ and torch's θ′
from the same start θ₀, at the rule's defaults, lr 0.001, in float64 on the digits MLP of width 16
with batches of 64 (tests/rules/test_counterparts.py). Where it is 0 they are equal but for
rounding, at every setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

OURS = "tunewright.search.rules.torch_optimizers.make"
# Of a study whose own code may have made the optimizer itself, where settings are not seen.
MADE_BY_RUN = (
    "This is what run.optimizer makes. Where your code makes the optimizer itself, settings that "
    "the study does not name are those of your code, and so is which parameters decay."
)


@dataclass(frozen=True)
class Counterpart:
    """An optimizer for another training loop, as Python code.

    call        makes it, of `params`, a list
    once        a statement to follow, about `optimizer`; empty if none need
    each        a statement before every update, about `optimizer` and `n`, the update's number from
                1; empty if none need
    difference  from what trained here, in words; empty if there is none
    away        how far it is with those statements
    without     how far it is without them
    """

    call: str
    once: str = ""
    each: str = ""
    difference: str = ""
    away: float = 0.0
    without: float = 0.0

    @property
    def sentences(self) -> list[str]:
        """All that is to say of the code, in words."""
        found = [self.difference] if self.difference else []
        if self.once:
            found.append(f"Once, after it: {self.once}")
        if self.each:
            found.append(f"Before update n = 1, 2, …: {self.each}")
        return [*found, self.distance]

    @property
    def distance(self) -> str:
        """How far it is from what trained here, as a sentence."""
        if self.once or self.each:
            return f"With this line: {_away(self.away)}; without it: {_away(self.without)}."
        return _away(self.away).capitalize() + "."


def _away(share: float) -> str:
    if share == 0:
        return "the same as what trained here, but for rounding"
    return (
        f"{share:.1%} away from what trained here after 100 updates of a small network, at the "
        "rule's defaults"
    )


def call_of(name: str, lr: float, arguments: Mapping[str, Any]) -> str:
    """The code that makes an optimizer."""
    return f"{name}(params, {_keywords({'lr': lr, **arguments})})"


def ours(
    rule: str, settings: Mapping[str, Any], lr: float, decay_vectors: bool = False
) -> Counterpart:
    """The rule itself, as an optimizer of torch."""
    arguments = f"{rule!r}, params, {dict(settings)!r}, lr={lr!r}"
    return Counterpart(call_of_ours(arguments, decay_vectors))


def call_of_ours(arguments: str, decay_vectors: bool) -> str:
    """The call that makes a rule itself as an optimizer of torch."""
    return f"{OURS}({arguments}, decay_vectors=True)" if decay_vectors else f"{OURS}({arguments})"


# of `params`: those that weight decay is of, and those with fewer than two dimensions
GROUPS = (
    '[{"params": [p for p in params if p.ndim > 1]}, '
    '{"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]'
)


def with_decay(found: Counterpart, own: Mapping[str, Any], decay_vectors: bool) -> Counterpart:
    """A rule's counterpart whose weight decay is of what it is of here.

    Torch's decay all parameters unless they are told otherwise, a rule itself those with two
    dimensions or more.
    """
    if not own.get("weight_decay") or found.call.startswith(OURS) != decay_vectors:
        return found
    if decay_vectors:
        return replace(found, call=f"{found.call[:-1]}, decay_vectors=True)")
    return replace(found, call=found.call.replace("(params,", f"({GROUPS},", 1))


def _keywords(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


# --- of the rules, from all of their settings and a learning rate ---------------------------------

Settings = Mapping[str, float]


def sgd(own: Settings, lr: float) -> Counterpart:
    return Counterpart(call_of("torch.optim.SGD", lr, {}))


def momentum(own: Settings, lr: float) -> Counterpart:
    return Counterpart(call_of("torch.optim.SGD", lr, {"momentum": own["momentum"]}))


def nesterov(own: Settings, lr: float) -> Counterpart:
    """Of Nesterov's momentum; without momentum torch refuses it, and it is SGD."""
    if own["momentum"] == 0:
        return sgd(own, lr)
    return Counterpart(
        call_of("torch.optim.SGD", lr, {"momentum": own["momentum"], "nesterov": True})
    )


def rmsprop(own: Settings, lr: float) -> Counterpart:
    """Of RMSProp, with the eps that is never far off, and v started at 1.

    With eps = c √ε, torch's denominator √v + c √ε is between c and √(1 + c²) times √(v + ε), at
    every v. Both are as far from 1 at c = 3/4: 25 %.
    """
    arguments = {"alpha": own["rho"], "eps": 0.75 * own["epsilon"] ** 0.5}
    if own["momentum"]:
        arguments["momentum"] = own["momentum"]
    difference = (
        "torch adds eps to √v instead of ε to v: with eps = ¾ √ε no denominator is more than 25 % "
        "off. It starts v at 0 instead of 1."
    )
    if own["momentum"]:
        difference += (
            " Its momentum buffer holds no learning rates: while lr changes, steps of before are "
            "scaled by the lr of now."
        )
    start = '"step": torch.tensor(0.0), "square_avg": torch.ones_like(p)'
    if own["momentum"]:
        start += ', "momentum_buffer": torch.zeros_like(p)'
    return Counterpart(
        call_of("torch.optim.RMSprop", lr, arguments),
        once=f"optimizer.state.update((p, {{{start}}}) for p in params)",
        difference=difference,
        away=0.001,
        without=3.56,
    )


def _set_epsilon(own: Settings) -> str:
    """The statement that undoes the correction of ε.

    Torch's denominator is √v/√(1−β₂ⁿ) + eps, that of the rules (√v + ε)/√(1−β₂ⁿ).
    """
    epsilon, beta2 = own["epsilon"], own["beta2"]
    return f"optimizer.param_groups[0]['eps'] = {epsilon!r} / (1 - {beta2!r} ** n) ** 0.5"


def adam(own: Settings, lr: float) -> Counterpart:
    arguments = {"betas": (own["beta1"], own["beta2"]), "eps": own["epsilon"]}
    return Counterpart(
        call_of("torch.optim.Adam", lr, arguments),
        each=_set_epsilon(own),
        difference="torch corrects ε for bias: in early updates its is smaller, √(1 − β₂ⁿ) ε.",
        without=0.006,
    )


def nadam(own: Settings, lr: float) -> Counterpart:
    """Of NAdam, with a momentum that does not grow.

    Where momentum_decay is so large that 0.96^momentum_decay is 0, torch's momentum is β₁ in every
    update, as here.
    """
    betas = (own["beta1"], own["beta2"])
    arguments = {"betas": betas, "eps": own["epsilon"], "momentum_decay": 1e4}
    return Counterpart(
        call_of("torch.optim.NAdam", lr, arguments),
        each=_set_epsilon(own),
        difference=(
            "torch lets the momentum grow over the updates, which momentum_decay = 1e4 turns off; "
            "it corrects ε for bias, and divides m by 1 − β₁ⁿ⁺¹ instead of 1 − β₁ⁿ, so that early "
            "steps are smaller."
        ),
        away=0.06,
        without=0.06,
    )


def adamw(own: Settings, lr: float) -> Counterpart:
    arguments = {"betas": (own["beta1"], own["beta2"]), "eps": own["epsilon"]}
    return Counterpart(
        call_of("torch.optim.AdamW", lr, arguments | {"weight_decay": own["weight_decay"]})
    )


def muon(own: Settings, lr: float) -> Counterpart:
    """The rule itself: torch's iterates in bfloat16, and takes matrices alone."""
    return replace(
        ours("muon", own, lr),
        difference=(
            "Embeddings, and the output layer where it was none here, belong to a group "
            '{"params": …, "matrices": False}, as groups_of in the same module makes it of a '
            'model. torch.optim.Muon with adjust_lr_fn="match_rms_adamw" is the same for matrices '
            "but iterates in bfloat16, so that a step is some 2 % off; it needs a second "
            "optimizer for all else."
        ),
    )


def schedule_free_adamw(own: Settings, lr: float) -> Counterpart:
    """The rule itself: torch has none; that of its authors is a package of its own."""
    return replace(
        ours("schedule_free_adamw", own, lr),
        difference=(
            "What is evaluated and saved is an average of the parameters: call optimizer.eval() "
            "before, and optimizer.train() before training goes on. schedulefree.AdamWScheduleFree "
            "is the same without weight decay, as long as the learning rate does not fall."
        ),
    )
