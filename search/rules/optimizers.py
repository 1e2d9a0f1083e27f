"""The update rules of the Tuning Playbook, as in-place arithmetic on stacked rows.

RULES has a row for each: its hyperparameters, its state, its update, and what else a study asks of
an optimizer; `add` adds one. No other module names one for a property that its row has. Of an
optimizer of torch, by its import path, `optimizer_of` says what a study asks.

Shapes: K trials of one rule, P parameters. θ, g and the state m, v are [K, P]; a coefficient is [K,
1], one number per trial, so that one call updates trials with different learning rates, momenta,
... at once. η is the learning rate of this update; t counts updates from 0.

    sgd        θ ← θ − η g
    momentum   v ← γ v + g;   θ ← θ − η v                                     v₀ = 0
    nesterov   v ← γ v + g;   θ ← θ − η (γ v + g)                             v₀ = 0
    rmsprop    v ← ρ v + (1−ρ) g²;   m ← γ m + η g/√(v + ε);   θ ← θ − m      v₀ = 1, m₀ = 0
    adam       m ← β₁ m + (1−β₁) g;   v ← β₂ v + (1−β₂) g²
               θ ← θ − η b m/(√v + ε)                  b = √(1−β₂^(t+1)) / (1−β₁^(t+1)), m₀ = v₀ = 0
    nadam      m, v, b as adam;   θ ← θ − η b (β₁ m + (1−β₁) g)/(√v + ε)
    adamw      m, v, b as adam;   θ ← (1 − η λ) θ − η b m/(√v + ε √(1−β₂^(t+1)))
    lion       θ ← (1 − η λ) θ − η sign(β₁ m + (1−β₁) g);   m ← β₂ m + (1−β₂) g         m₀ = 0
    gi_adam    adam                                                            v₀ = g², g of t = 0
    gi_adamw   adamw                                                           v₀ = g², g of t = 0
    muon       of a matrix θ, a × b:   m ← μ m + (1−μ) g;   o = orthogonal((1−μ) g + μ m)   m₀ = 0
               θ ← (1 − η λ) θ − 0.2 √max(a, b) η o
               orthogonal(x):   X = x / max(‖x‖, 1e-7), then five times, with A = X Xᵀ,
               X ← 3.4445 X − 4.775 A X + 2.0315 A A X
               all other parameters as adamw, with β₁, β₂ and ε
    schedule_free_adamw   v as adam;   z ← z − η (g/(√v̂ + ε) + λ θ),   v̂ = v/(1−β₂^(t+1))
               x ← (1−c) x + c z,   c = η_t²/Σ η_i² over i ≤ t;   θ ← (1−β₁) z + β₁ x   z₀ = x₀ = θ₀

Where torch's rules differ (its Adam and NAdam correct ε for bias, its RMSprop keeps the learning
rate out of the momentum buffer) these follow the playbook. AdamW follows its paper, and equals
torch's. Lion follows its paper, whose defaults are β₁ = 0.9, β₂ = 0.99 and λ = 0: every parameter
moves by η, so that base LRs are 3 to 10 times lower than AdamW's, and λ higher by as much.

GI-Adam starts v at the square of the first gradient, and keeps both bias corrections of Adam. What
v has in the first updates then needs no correction, so that the correction of v shortens them: as
long as g² hardly changes, it is Adam with the learning rate η √(1−β₂^(t+1)), a warmup of about 1 /
(1−β₂) updates. The first update leaves v at g² however much of v₀ it keeps, so here v₀ = 0, and β₂
is 0 in the update t = 0 alone. Its authors' code takes v₀ from a batch that it does not train on.
In a training that skips a parameter in its first updates, for want of a gradient, v of that
parameter starts at 0, as Adam's.

Muon's orthogonal(x) takes the singular values of a matrix close to 1 (Newton-Schulz; ‖x‖ is
Frobenius' norm). With 0.2 √max(a, b) a step has the root mean square of AdamW's usual ones, 0.2 to
0.4, so that base LRs are of the same scale. Matrices are parameters with two dimensions but for
those that `matrices.py` leaves out. It is torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`,
which iterates in bfloat16, where this rule does in the dtype of its state.

Weight decay, λ, is of parameters with two dimensions or more, embeddings among them: biases and the
gains of norms do not decay, unless a study says `decay_vectors`. It multiplies parameters before
their update, by the coefficient that their piece names (pieces.py); an update itself never does.

Schedule-free AdamW has no momentum and no decay of the learning rate: x, the average of z, does the
work of both, and is what is evaluated and kept; gradients and losses are those of θ, which its
paper calls y. Weight decay acts at θ. The weights η² of the average give the updates of a warmup
their small share; there c is 0 as long as all learning rates were 0. Base LRs are 1 to 10 times
AdamW's, λ is 0 unless it is given, as the authors' `schedulefree` has it. Their code weighs by the
highest learning rate so far where the paper weighs by that of the update: they differ under a decay
of the learning rate, with which it should not be used. Buffers, as the statistics of batch
normalization, are those of training at θ.

Source: Tuning Playbook, "What are the update rules for all the popular optimization algorithms?"
(R21); Loshchilov & Hutter 2019, arXiv 1711.05101; Chen et al. 2023, "Symbolic Discovery of
Optimization Algorithms", arXiv 2302.06675; Kalra & Barkeshli 2024, "Why Warmup the Learning Rate?
Underlying Mechanisms and Improvements", arXiv 2406.09405; Jordan et al. 2024, "Muon: An optimizer
for hidden layers in neural networks", kellerjordan.github.io/posts/muon; Liu et al. 2025, "Muon is
Scalable for LLM Training", arXiv 2502.16982; Defazio et al. 2024, "The Road Less Scheduled", arXiv
2405.15682.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import counterparts
from .constructors import is_import_path, module_and_class, read_constructor
from .counterparts import Counterpart
from .hyperparameters import HYPERPARAMETERS, by_name, fault_of, is_finite, is_positive
from .pieces import DECAY, DECAYS, VECTOR_DECAY, Piece

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
Columns = Mapping[str, "Tensor"]
PARAMETERS: Literal["parameters"] = "parameters"  # where a state begins that begins at their values
Start: TypeAlias = float | Literal["parameters"]


def _sgd(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    theta.addcmul_(g, c["eta"], value=-1.0)


def _momentum(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    v = state["v"].mul_(c["momentum"]).add_(g)
    theta.addcmul_(v, c["eta"], value=-1.0)


def _nesterov(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    v = state["v"].mul_(c["momentum"]).add_(g)
    theta.addcmul_(g.addcmul(v, c["momentum"]), c["eta"], value=-1.0)


def _nesterov_max_stable_lr(own: Mapping[str, float], curvature: float) -> float:
    ahead = 1 + 2 * own["momentum"]
    return (2 + 2 * own["momentum"]) / (ahead * curvature)


def _nadam_max_stable_lr(own: Mapping[str, float], curvature: float) -> float:
    """Nesterov's, with the gradient's share 1 − β₁ in m."""
    own_lr = _nesterov_max_stable_lr({"momentum": own["beta1"]}, curvature)
    return own_lr / (1 - own["beta1"])


def _adam_max_stable_lr(own: Mapping[str, float], curvature: float) -> float:
    return (2 + 2 * own["beta1"]) / ((1 - own["beta1"]) * curvature)


def _rmsprop(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    v = state["v"].lerp_(g * g, 1.0 - c["rho"])
    m = state["m"].mul_(c["momentum"]).addcdiv_(g * c["eta"], (v + c["epsilon"]).sqrt_())
    theta.sub_(m)


def _adam(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    m = state["m"].lerp_(g, 1.0 - c["beta1"])
    v = state["v"].lerp_(g * g, 1.0 - c["beta2"])
    theta.addcdiv_(m * c["eta"], v.sqrt().add_(c["epsilon"]), value=-1.0)


def _nadam(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    m = state["m"].lerp_(g, 1.0 - c["beta1"])
    v = state["v"].lerp_(g * g, 1.0 - c["beta2"])
    ahead = m.lerp(g, 1.0 - c["beta1"]).mul_(c["eta"])
    theta.addcdiv_(ahead, v.sqrt().add_(c["epsilon"]), value=-1.0)


def _lion(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    direction = state["m"].lerp(g, 1.0 - c["beta1"]).sign_()
    theta.addcmul_(direction, c["eta"], value=-1.0)
    state["m"].lerp_(g, 1.0 - c["beta2"])


NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7  # of a matrix that is orthogonalized
ALIGNED = 16  # numbers of float32 in a cache line
RMS_OF_ADAMW = 0.2  # of a step of AdamW, as a share of its learning rate


def _muon_matrix(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    """Of matrices, [K, a, b]; coefficients are [K, 1, 1]."""
    m = state["m"].lerp_(g, 1.0 - c["momentum"])
    direction = _orthogonalized(g.lerp(m, c["momentum"]))
    size = RMS_OF_ADAMW * math.sqrt(max(theta.shape[-2:]))
    theta.addcmul_(direction, c["rate"], value=-size)


def _orthogonalized(x: Tensor) -> Tensor:
    """Each matrix of [K, a, b] with its singular values close to 1.

    The shorter side is multiplied with itself, which takes fewer operations. Zeros around the
    matrices, which stay zeros, let each of them begin at the same place of a cache line: kernels
    round by that, and a row would depend on how many lie before it.
    """
    if x.shape[-2] > x.shape[-1]:
        return _orthogonalized(x.mT).mT
    first, third, fifth = NEWTON_SCHULZ
    rows, columns = x.shape[-2:]
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_(min=SMALLEST_NORM)
    padded = x.new_zeros(len(x), rows + -rows % ALIGNED, columns + -columns % ALIGNED)
    padded[:, :rows, :columns] = x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = padded @ padded.mT
        padded = padded.baddbmm(
            gram.baddbmm(gram, gram, beta=third, alpha=fifth), padded, beta=first
        )
    return padded[:, :rows, :columns]


def _schedule_free_adamw(theta: Tensor, g: Tensor, state: State, c: Columns) -> None:
    v = state["v"].lerp_(g * g, 1.0 - c["beta2"])
    z = state["z"].addcdiv_(g * c["eta"], v.sqrt().add_(c["epsilon"]), value=-1.0)
    x = state["x"].lerp_(z, c["average"])
    theta.copy_(z).lerp_(x, c["beta1"])


Table = NDArray[np.float64]  # of one number for each update, [T]
Numbers = NDArray[np.int64]  # of the updates themselves, from 1, [T]
Coefficients = Callable[[Mapping[str, float], Table, Numbers], dict[str, Table]]


def _constant(own: Mapping[str, float], eta: Table, number: Numbers) -> dict[str, Table]:
    """The learning rate of every update, and every hyperparameter as it is."""
    return {"eta": eta} | {name: np.full_like(eta, value) for name, value in own.items()}


def _with_bias_correction(
    own: Mapping[str, float], eta: Table, number: Numbers
) -> dict[str, Table]:
    """Adam's bias correction, folded into the learning rate: `eta` holds η_t b_t."""
    root = np.sqrt(1.0 - own["beta2"] ** number)
    return _constant(own, eta, number) | {"eta": eta * root / (1.0 - own["beta1"] ** number)}


def _with_decay(own: Mapping[str, float], eta: Table, number: Numbers) -> dict[str, Table]:
    """Every hyperparameter as it is, and in place of `weight_decay`, λ, what it multiplies by."""
    columns = _constant(own, eta, number)
    columns[DECAY] = columns[VECTOR_DECAY] = 1.0 - eta * columns.pop("weight_decay")
    return columns


def _with_bias_correction_and_decay(
    own: Mapping[str, float], eta: Table, number: Numbers
) -> dict[str, Table]:
    """Adam's bias correction and decay, and `epsilon` holds ε √(1−β₂^(t+1))."""
    root = np.sqrt(1.0 - own["beta2"] ** number)
    corrected = _with_bias_correction(own, eta, number)["eta"]
    return _with_decay(own, eta, number) | {"eta": corrected, "epsilon": own["epsilon"] * root}


def _of_muon(own: Mapping[str, float], eta: Table, number: Numbers) -> dict[str, Table]:
    """Those of AdamW, and `rate` holds the learning rate of matrices."""
    return _with_bias_correction_and_decay(own, eta, number) | {"rate": eta}


def _without_momentum(own: Mapping[str, float], eta: Table, number: Numbers) -> dict[str, Table]:
    """Adam's correction of v and decay; `eta` holds η_t √(1−β₂^(t+1)), `epsilon` as AdamW's."""
    root = np.sqrt(1.0 - own["beta2"] ** number)
    columns = _with_decay(own, eta, number)
    return columns | {"eta": eta * root, "epsilon": own["epsilon"] * root}


def _from_first_gradient(coefficients: Coefficients) -> Coefficients:
    """The same coefficients, but v is the square of the gradient after the first update."""

    def found(own: Mapping[str, float], eta: Table, number: Numbers) -> dict[str, Table]:
        columns = coefficients(own, eta, number)
        return columns | {"beta2": np.where(number == 1, 0.0, columns["beta2"])}

    return found


@dataclass(frozen=True)
class Alternative:
    """Another rule, and the base LRs it is usually tuned at, lowest and highest."""

    optimizer: str
    base_lrs: tuple[float, float]


Update = Callable[["Tensor", "Tensor", State, Columns], None]


@dataclass(frozen=True)
class Average:
    """An average over updates that is evaluated and kept in place of the parameters.

    state   the state that holds it, which begins at the parameters
    weight  of each update in it, from its learning rate, [T] both; the coefficient `average` is its
            share in the sum of the weights so far, 0 as long as that is 0
    """

    state: str
    weight: Callable[[Table], Table]


MaxStableLr = Callable[[Mapping[str, float], float], float]
NEAR_EPSILON = 10.0  # times ε: a √v below it is not what a step is divided by


@dataclass(frozen=True)
class SecondMoment:
    """What a rule divides its steps by, per parameter: √v + ε, or √(v + ε).

    state    the name of v in its state
    epsilon  the name of ε among its coefficients
    inside   whether ε stands under the root
    """

    state: str = "v"
    epsilon: str = "epsilon"
    inside: bool = False

    def divisor(self, state: State, columns: Mapping[str, float]) -> Tensor:
        """P where θ moves by −η P⁻¹ m, like v. From coefficients of a learning rate of 1, whose
        `eta` is the bias correction alone.

        inf where v = 0: what never had a gradient rests, if v starts at 0. So do matrices that are
        updated as such.
        """
        v, epsilon = state[self.state].double(), columns[self.epsilon]
        divisor = (v + epsilon).sqrt() if self.inside else v.sqrt() + epsilon
        return (divisor / columns["eta"]).masked_fill(v == 0, math.inf)

    def share_near_epsilon(self, state: State, columns: Mapping[str, float]) -> float:
        """The share of parameters whose √v is below NEAR_EPSILON ε, of a rule that adds it to √v.

        There a step is nearly proportional to the gradient, as SGD's. Both as the update adds them:
        a rule that corrects √v for bias, and not ε, is looked at so. Of the parameters that had a
        gradient (v ≠ 0, so v must start at 0); nan if none had, or one is not finite. Source:
        Wortsman et al. 2023, arXiv 2309.14322.
        """
        v, limit = state[self.state].double(), NEAR_EPSILON * columns[self.epsilon]
        moved = v[v != 0]
        if not len(moved) or not moved.isfinite().all():
            return math.nan
        return float((moved.sqrt() < limit).double().mean())


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What a study must know of an optimizer, whoever computes its updates.

    defaults       its hyperparameters and their defaults, as far as they are known
    family         of optimizers whose steps are of about the same size at the same base_lr (S1)
    alternative    the rule to try instead where a study has this one alone (R18)
    max_stable_lr  the base LR above which it diverges on a quadratic, from its hyperparameters and
                   the curvature (`curvature.stability_limit`); None: the curvature does not tell.
                   Of a rule with a second moment: the curvature divided by it
    from_first_gradient  the rule that is the same but for a second moment that starts at the square
                   of the first gradient, with the same hyperparameters and base LRs; empty: none
    """

    name: str
    defaults: Mapping[str, float]
    family: str
    alternative: Alternative
    max_stable_lr: MaxStableLr | None = None
    from_first_gradient: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule(Optimizer):
    """An optimizer whose updates are computed here.

    Raises TypeError for a row that contradicts itself, as far as that shows without torch: `update`
    is not called. Its hyperparameters are rows of HYPERPARAMETERS.

    state          the names of its state, each with its initial value, or PARAMETERS; a row of a
                   stack for each
    update         one update, in place, from the gradient, the state and the coefficients, of
                   numbers each by itself, [K, P]; after weight decay (DECAYS of pieces.py)
    update_matrix  the same of matrices, [K, a, b], where coefficients are [K, 1, 1]; None: matrices
                   are updated as all parameters are
    decayed        the state that weight decay, of the parameters, is taken from; empty: they are
    coefficients   the coefficients of updates, [T] each, from hyperparameters, the learning rate of
                   each and its number from 1; those of an update depend on no other one
    average        what is evaluated and kept in place of the parameters; None: they are
    in_torch       what comes closest in torch, from hyperparameters and a learning rate; None:
                   nothing there is like it
    second_moment  what steps of numbers each by itself are divided by; None: nothing
    """

    state: Mapping[str, Start]
    update: Update
    update_matrix: Update | None = None
    decayed: str = ""
    coefficients: Coefficients = _constant
    average: Average | None = None
    in_torch: Callable[[Mapping[str, float], float], Counterpart] | None = None
    second_moment: SecondMoment | None = None

    def __post_init__(self) -> None:
        if fault := fault_of(self.defaults, "optimizer"):
            self._refuse(fault)
        self._check_state()
        if not self.family:
            self._refuse("its family must have a name")
        low, high = self.alternative.base_lrs
        if not (is_positive(low) and is_positive(high) and low < high):
            self._refuse(
                "the base LRs of its alternative must be two numbers > 0, the lowest first, got "
                f"{self.alternative.base_lrs}"
            )
        try:
            columns = self.tables(self.defaults, np.ones(2), np.arange(1, 3), decay_vectors=True)
        except KeyError as error:
            self._refuse(f"its coefficients need {error}, which has no default")
        if "eta" not in columns or any(np.shape(table) != (2,) for table in columns.values()):
            self._refuse("its coefficients must be eta and others, a number for each update")
        moment = self.second_moment
        if moment and (moment.state not in self.state or moment.epsilon not in columns):
            self._refuse(
                f"its second moment must name a state and a coefficient, got {moment.state!r} and "
                f"{moment.epsilon!r}"
            )

    def _check_state(self) -> None:
        for name, value in self.state.items():
            if value != PARAMETERS and not is_finite(value):
                self._refuse(f"its state {name} must begin at a finite number, got {value!r}")
        if self.average and self.state.get(self.average.state) != PARAMETERS:
            self._refuse(f"its average, {self.average.state!r}, is no state that begins at them")
        if self.decayed and self.decayed not in self.state:
            self._refuse(f"its decayed, {self.decayed!r}, is no state of it")

    @property
    def decays(self) -> bool:
        """Whether it has weight decay."""
        return "weight_decay" in self.defaults

    def apply(self, piece: Piece, theta: Tensor, g: Tensor, state: State, columns: Columns) -> None:
        """One update of a piece, in place: its parameters and gradients, [K, P], and its state."""
        for name, part in piece.decays:
            if name in columns and self.decayed:
                state[self.decayed][:, part].add_(theta[:, part] * (columns[name] - 1.0))
            elif name in columns:
                theta[:, part].mul_(columns[name])
        if self.update_matrix is None or piece.matrix is None:
            self.update(theta, g, state, columns)
            return
        shape = (len(theta), *piece.matrix)
        own = {name: one.view(shape) for name, one in state.items()}
        wider = {name: column[:, :, None] for name, column in columns.items()}
        self.update_matrix(theta.view(shape), g.view(shape), own, wider)

    def tables(
        self,
        own: Mapping[str, float],
        eta: Table,
        number: Numbers,
        decay_vectors: bool,
        weights: float = 0.0,
    ) -> dict[str, Table]:
        """The coefficients of updates that follow one another, that of the average among them.

        Without those that biases and norms would decay by, unless `decay_vectors`. `weights`: the
        sum of those of the updates before, in the average.
        """
        columns = self.coefficients(own, eta, number)
        if not decay_vectors:
            columns.pop(VECTOR_DECAY, None)
        if self.average:
            weight = self.average.weight(eta)
            total = weights + np.cumsum(weight)
            share = np.divide(weight, total, out=np.zeros_like(total), where=total > 0)
            columns["average"] = share
        return columns

    def fault_of_settings(self, settings: Mapping[str, float]) -> str:
        """What is wrong with values of its hyperparameters; empty if nothing is."""
        strangers = [name for name in settings if name not in self.defaults]
        if strangers:
            known = ", ".join(self.defaults) or "none"
            return f"has no setting {', '.join(strangers)}; known are: {known}"
        for name, value in settings.items():
            row = HYPERPARAMETERS[name]
            if not row.accepts(value):
                return f"{name} must be {row.requirement}, got {value!r}"
        return ""

    def _refuse(self, reason: str) -> NoReturn:
        raise TypeError(f"optimizer {self.name!r}: {reason}")


def check_others(rules: Mapping[str, Rule]) -> None:
    """Raise TypeError for a rule that names another which the table has not, or which is itself.

    And for one whose counterpart from the first gradient has other hyperparameters or base LRs.
    """
    for name, rule in rules.items():
        named = {"alternative": rule.alternative.optimizer}
        if rule.from_first_gradient:
            named["from_first_gradient"] = rule.from_first_gradient
        for field, other in named.items():
            if other not in rules or other == name:
                raise TypeError(
                    f"optimizer {name!r}: its {field}, {other!r}, is no other row of RULES"
                )
        twin = rules.get(rule.from_first_gradient, rule)
        if (twin.defaults, twin.family) != (rule.defaults, rule.family):
            raise TypeError(
                f"optimizer {name!r}: its from_first_gradient, {twin.name!r}, has other defaults "
                "or another family"
            )


_MOMENTUM = {"momentum": 0.9}
_ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
_MOMENTS = {"m": 0.0, "v": 0.0}
_TRY_ADAM = Alternative("adam", (1e-4, 1e-1))
_TRY_MOMENTUM = Alternative("momentum", (1e-3, 1.0))

RULES: dict[str, Rule] = by_name(
    [
        Rule(
            name="sgd",
            defaults={},
            state={},
            update=_sgd,
            in_torch=counterparts.sgd,
            family="sgd",
            alternative=_TRY_ADAM,
            max_stable_lr=lambda own, curvature: 2 / curvature,
        ),
        Rule(
            name="momentum",
            defaults=_MOMENTUM,
            state={"v": 0.0},
            update=_momentum,
            in_torch=counterparts.momentum,
            family="momentum",
            alternative=_TRY_ADAM,
            max_stable_lr=lambda own, curvature: (2 + 2 * own["momentum"]) / curvature,
        ),
        Rule(
            name="nesterov",
            defaults=_MOMENTUM,
            state={"v": 0.0},
            update=_nesterov,
            in_torch=counterparts.nesterov,
            family="momentum",
            alternative=_TRY_ADAM,
            max_stable_lr=_nesterov_max_stable_lr,
        ),
        Rule(
            name="rmsprop",
            defaults={"rho": 0.9, "momentum": 0.0, "epsilon": 1e-10},
            state={"m": 0.0, "v": 1.0},
            update=_rmsprop,
            in_torch=counterparts.rmsprop,
            family="adam",
            alternative=_TRY_ADAM,
            max_stable_lr=lambda own, curvature: (2 + 2 * own["momentum"]) / curvature,
            second_moment=SecondMoment(inside=True),
        ),
        Rule(
            name="adam",
            defaults=_ADAM,
            state=_MOMENTS,
            update=_adam,
            in_torch=counterparts.adam,
            family="adam",
            alternative=_TRY_MOMENTUM,
            coefficients=_with_bias_correction,
            from_first_gradient="gi_adam",
            max_stable_lr=_adam_max_stable_lr,
            second_moment=SecondMoment(),
        ),
        Rule(
            name="nadam",
            defaults=_ADAM,
            state=_MOMENTS,
            update=_nadam,
            in_torch=counterparts.nadam,
            family="adam",
            alternative=_TRY_MOMENTUM,
            coefficients=_with_bias_correction,
            max_stable_lr=_nadam_max_stable_lr,
            second_moment=SecondMoment(),
        ),
        Rule(
            name="adamw",
            defaults=_ADAM | {"weight_decay": 0.01},
            state=_MOMENTS,
            update=_adam,
            in_torch=counterparts.adamw,
            family="adam",
            alternative=_TRY_MOMENTUM,
            coefficients=_with_bias_correction_and_decay,
            from_first_gradient="gi_adamw",
            max_stable_lr=_adam_max_stable_lr,
            second_moment=SecondMoment(),
        ),
        Rule(
            name="lion",
            defaults={"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
            state={"m": 0.0},
            update=_lion,
            family="lion",
            alternative=_TRY_ADAM,
            coefficients=_with_decay,
        ),
        Rule(
            name="gi_adam",
            defaults=_ADAM,
            state=_MOMENTS,
            update=_adam,
            family="adam",
            alternative=_TRY_MOMENTUM,
            max_stable_lr=_adam_max_stable_lr,
            second_moment=SecondMoment(),
            coefficients=_from_first_gradient(_with_bias_correction),
        ),
        Rule(
            name="gi_adamw",
            defaults=_ADAM | {"weight_decay": 0.01},
            state=_MOMENTS,
            update=_adam,
            family="adam",
            alternative=_TRY_MOMENTUM,
            max_stable_lr=_adam_max_stable_lr,
            second_moment=SecondMoment(),
            coefficients=_from_first_gradient(_with_bias_correction_and_decay),
        ),
        Rule(
            name="muon",
            defaults={"momentum": 0.95} | _ADAM | {"weight_decay": 0.1},
            state=_MOMENTS,
            update=_adam,
            update_matrix=_muon_matrix,
            in_torch=counterparts.muon,
            family="adam",
            alternative=_TRY_MOMENTUM,
            second_moment=SecondMoment(),
            coefficients=_of_muon,
        ),
        Rule(
            name="schedule_free_adamw",
            defaults=_ADAM | {"weight_decay": 0.0},
            state={"v": 0.0, "z": PARAMETERS, "x": PARAMETERS},
            update=_schedule_free_adamw,
            in_torch=counterparts.schedule_free_adamw,
            decayed="z",
            family="adam",
            alternative=_TRY_MOMENTUM,
            second_moment=SecondMoment(),
            coefficients=_without_momentum,
            average=Average("x", np.square),
        ),
    ]
)
check_others(RULES)


def add(rule: Rule) -> Rule:
    """Add a row to RULES, under its name, and return it.

    To be called before study files are read, which know the rows of then. Raises TypeError, with
    nothing added, if the name is taken, if the alternative or `from_first_gradient` is no other
    rule, or if the latter has other defaults or another family.
    """
    table = by_name([*RULES.values(), rule])
    check_others(table)
    RULES.update(table)
    return rule


# torch's own whose steps are of about the size of Adam's, by the names of their classes
_LIKE_ADAM = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop")


def _max_stable_lr_of_torchs_sgd(own: Mapping[str, float], curvature: float) -> float:
    """That of the rule that it is; nan with dampening or weight decay, which is none."""
    if own["dampening"] or own["weight_decay"]:
        return math.nan
    rule = RULES["nesterov" if own.get("nesterov") else "momentum"]
    assert rule.max_stable_lr is not None  # its row
    return rule.max_stable_lr({"momentum": own["momentum"]}, curvature)


def optimizer_of(name: str) -> Optimizer:
    """What a study must know of an optimizer: a row of RULES, or one of torch by its import path.

    Of the second little is known: a family of its own, unless it is one of Adam's, and the defaults
    that its source shows. Raises KeyError for a name that is neither.
    """
    if name in RULES or not is_import_path(name):
        return RULES[name]
    place = module_and_class(name)
    is_like_adam, constructor = place[1] in _LIKE_ADAM, read_constructor(name)
    is_sgd = place == ("torch.optim", "SGD")
    defaults = constructor.defaults if constructor else {}
    return Optimizer(
        name=name,
        defaults=defaults,
        family="adam" if is_like_adam else name,
        alternative=_TRY_MOMENTUM if is_like_adam else _TRY_ADAM,
        max_stable_lr=_max_stable_lr_of_torchs_sgd if is_sgd else None,
    )


def counterpart(
    name: str, settings: Mapping[str, Any], lr: float, decay_vectors: bool = False
) -> Counterpart:
    """The optimizer with these settings for another training loop, or what comes closest in torch.

    With `decay_vectors` weight decay is of biases and norms, too. Raises KeyError for an unknown
    one.
    """
    if is_of_torch(name):
        constructor = read_constructor(name)
        arguments = constructor.arguments(settings) if constructor else settings
        return Counterpart(counterparts.call_of(".".join(module_and_class(name)), lr, arguments))
    rule = RULES[name]
    own = {**rule.defaults, **settings}
    found = rule.in_torch(own, lr) if rule.in_torch else counterparts.ours(name, own, lr)
    return counterparts.with_decay(found, own, decay_vectors)


def is_of_torch(name: str) -> bool:
    """Whether an optimizer is a class of torch's kind, whose updates it computes itself."""
    return name not in RULES and is_import_path(name)


# torch's own whose weight decay multiplies parameters by 1 − learning rate × weight_decay
_DECOUPLED = ("AdamW", "Muon")


def decays_by_itself(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether weight decay is known to multiply parameters by 1 − learning rate × weight_decay.

    That of rules is, by the hyperparameter's row; of torch's optimizers some, or with a setting.
    """
    if not is_of_torch(name):
        return True
    module, class_name = module_and_class(name)
    is_decoupled = class_name in _DECOUPLED or settings.get("decoupled_weight_decay") is True
    return module == "torch.optim" and is_decoupled


def average_of(name: str) -> Average | None:
    """What is evaluated in place of an optimizer's parameters; None if they are, or nobody knows.

    A name that is no row of RULES is that of somebody else's optimizer.
    """
    return RULES[name].average if name in RULES else None


def state_of(name: str) -> Mapping[str, Start]:
    """The state that rows of a stack hold of an optimizer, as `Rule.state`.

    None of one of torch, which holds its own.
    """
    return {} if is_of_torch(name) else RULES[name].state


def second_moment_of(name: str) -> SecondMoment | None:
    """What an optimizer divides its steps by; None: nothing, or one of torch, which holds it."""
    return None if is_of_torch(name) else RULES[name].second_moment


def updates_matrices(name: str) -> bool:
    """Whether an optimizer updates matrices as a whole (`Rule.update_matrix`)."""
    return name in RULES and RULES[name].update_matrix is not None


def decays_vectors(optimizers: Iterable[str]) -> bool:
    """Whether `decay_vectors` makes a difference to any of these: rules with weight decay."""
    return any(name in RULES and RULES[name].decays for name in optimizers)


def coefficients(
    optimizer: str,
    settings: Mapping[str, float],
    learning_rates: Table,
    decay_vectors: bool = False,
) -> dict[str, Table]:
    """The coefficients of every update by name, each [T], in float64.

    Of an optimizer of torch `eta` alone, its learning rate. With `decay_vectors` weight decay is of
    parameters with fewer than two dimensions, too. Raises KeyError for an unknown one.
    """
    if is_of_torch(optimizer):
        return {"eta": learning_rates}
    rule, numbers = RULES[optimizer], np.arange(1, len(learning_rates) + 1)
    own = {**rule.defaults, **settings}
    return rule.tables(own, learning_rates, numbers, decay_vectors)


def acting(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Coefficients without weight decay that multiplies by 1."""
    return {
        name: table
        for name, table in tables.items()
        if name not in DECAYS or bool((table != 1.0).any())
    }
