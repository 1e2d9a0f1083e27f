"""Rounds: every arm gets a first look, the worst are dropped, those that stay are tuned further.

Source: successive halving (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification"),
with base LRs and seeds as what a round adds. Plain training goes through the same rounds, so that
it is tuned no worse than what it is compared with (S9), and is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..judge.diagnosis import PLAIN, Edge, Step
from ..words import readable
from .arms import MOST_CLIMBED, Arm, Tuning, climb, is_beaten, look, tune
from .asking import Asking, together
from .steps import SCREENING_SEEDS, Case
from .tournament import BEST_FEW, cost_of_reruns, cost_of_safety, is_on_edge

NEIGHBOURHOOD = 3  # the best base LR and both neighbours
TUNING = NEIGHBOURHOOD * (SCREENING_SEEDS - 1)  # trainings of `tune`
Round = Callable[[Case, Tuning], Asking[Tuning]]


@dataclass
class Rounds:
    """Arms in the course of the rounds.

    tried     every arm as far as it was tried, by its name; plain training is one
    running   the names of the remedies that are in the running, the best first
    fates     what became of the others
    """

    tried: dict[str, Tuning]
    running: list[str] = field(default_factory=list)
    fates: dict[str, str] = field(default_factory=dict)

    def rank(self) -> None:
        """The best first. Arms that are as good stay in the order of what they cost to keep."""
        order = [name for name in self.tried if name in self.running]
        self.running = sorted(order, key=lambda name: self.tried[name].cost)

    @property
    def plain(self) -> Tuning:
        return self.tried[PLAIN]

    @property
    def remedies(self) -> list[Tuning]:
        """All but plain training."""
        return [one for name, one in self.tried.items() if name != PLAIN]

    def drop(self, names: Sequence[str], why: str) -> None:
        for name in names:
            self.running.remove(name)
            self.fates[name] = why


def first_look(case: Case, arms: Sequence[Arm]) -> Asking[Rounds]:
    """Look at every arm, and drop remedies that do not train."""
    looked = yield from together(*(look(case, arm) for arm in arms))
    rounds = Rounds({one.name: one for one in looked})
    for one in rounds.remedies:
        if one.best:
            rounds.running.append(one.name)
        else:
            tried = ", ".join(readable(trial.point.base_lr) for trial in one.looked)
            rounds.fates[one.name] = f"trains at no base LR of {tried}"
    rounds.rank()
    return rounds


def tune_best(case: Case, edge: Edge, rounds: Rounds) -> Asking[None]:
    """Drop the worse half, try more base LRs, drop all but BEST_FEW, train more seeds.

    At last those are dropped that are shown to be worse than the best. What a tournament of the
    best one takes is kept back; a remedy whose tuning does not fit in besides is left out, but for
    the best one, which goes on as it is.
    """
    if not rounds.running:
        return
    half = math.ceil(len(rounds.remedies) / 2)
    rounds.drop(rounds.running[max(BEST_FEW, half) :], "dropped after the first look")
    reserve = _reserve(case, edge, rounds)
    yield from _go_on(case, rounds, climb, MOST_CLIMBED, reserve, later=TUNING)
    rounds.drop(rounds.running[BEST_FEW:], "dropped after more base LRs")
    yield from _go_on(case, rounds, tune, TUNING, reserve)
    best = rounds.tried[rounds.running[0]]
    beaten = [
        name
        for name in rounds.running[1:]
        if len(best.best) == SCREENING_SEEDS and is_beaten(rounds.tried[name], best)
    ]
    rounds.drop(beaten, f"dropped: worse than {best.name} on {SCREENING_SEEDS} seeds")


def _reserve(case: Case, edge: Edge, rounds: Rounds) -> float:
    """What the tournament of the best arm takes, with what the edge asks for if that fits in."""
    best = rounds.tried[rounds.running[0]]
    least = cost_of_reruns(case, [best.best[0].point])
    if not is_on_edge(case, edge, best.remedy()):
        return least
    safe = least + cost_of_safety(case, best.best[0].point, 1)
    further = (MOST_CLIMBED + TUNING) * best.arm.updates(case)
    return safe if safe + further <= case.purse.left else least


def _go_on(
    case: Case, rounds: Rounds, part: Round, trainings: int, reserve: float, later: int = 0
) -> Asking[None]:
    """Take plain training and the remedies in the running further, the best of these first.

    `later`: trainings that come after these.
    """
    granted: list[str] = []
    best = rounds.running[0]
    for name in [PLAIN, *rounds.running]:
        each = rounds.tried[name].arm.updates(case)
        if trainings * each + reserve <= case.purse.left:
            granted.append(name)
            reserve += trainings * each
            continue
        case.purse.leave_out([f"the tuning of {name}"], (trainings + later) * each, reserve)
        if name not in (PLAIN, best):
            rounds.drop([name], "left out for budget")
    further = yield from together(*(part(case, rounds.tried[name]) for name in granted))
    rounds.tried |= {one.name: one for one in further}
    rounds.rank()


def rounds_step(case: Case, rounds: Rounds) -> Step:
    """What was found of each arm, and what became of it, for the report."""
    sentences = [f"{name}: {_in_words(case, rounds, one)}." for name, one in rounds.tried.items()]
    studies = [study.name for one in rounds.tried.values() for study in one.studies]
    return Step("arms", ("R18", "S9"), tuple(sentences), tuple(studies))


def _in_words(case: Case, rounds: Rounds, one: Tuning) -> str:
    fate = rounds.fates.get(one.name, "")
    if not one.best:
        return fate
    seeds = len(one.best)
    base_lr = readable(one.best[0].point.base_lr)
    value = readable(one.remedy().tuned_value)
    on = "one seed" if seeds == 1 else f"{seeds} seeds"
    found = f"{case.study.objective} {value} at base_lr {base_lr} on {on}"
    return f"{found}; {fate}" if fate else found
