"""The rules of the Deep Learning Tuning Playbook that this project follows, as it numbers them.

R1 to R21 are about failures of optimization, batch sizes and update rules, S1 to S13 about studies.
Docstrings, warnings and reports cite these ids. Each rule is said here in our own words; its
heading and address lead to the playbook's.

Source: V. Godbole, G. E. Dahl, J. Gilmer, C. J. Shallue, Z. Nado (2023), Deep Learning Tuning
Playbook.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PLAYBOOK = "https://github.com/google-research/tuning_playbook"
COLUMNS = 80  # of a terminal
INDENT = " " * 5  # as wide as an id
# An id that a sentence cites: the one of (R6), each of (R6, S4) and (R1–R3); none of "R2 = 0.5".
CITATION = re.compile(r"(?<=[(–, ])\b([RS]\d{1,2})(?=(?:(?:, |–)[RS]\d{1,2})*\))")


@dataclass(frozen=True)
class Rule:
    """One rule: its id, what it says, and the playbook's section that says it."""

    id: str
    sentence: str
    heading: str
    address: str


def _anchor(heading: str) -> str:
    """The name that GitHub gives to a heading: lower case, no punctuation, a dash for a space."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Sections, and the rules that they state: id → sentence.
_SECTIONS: Mapping[str, Mapping[str, str]] = {
    "How can optimization failures be debugged and mitigated?": {
        "R1": "Fix a failure of optimization before trying anything else.",
    },
    "Identifying unstable workloads": {
        "R2": "Training becomes unstable early, at initialization or in the first steps, or "
        "suddenly in the middle, after a steady decline of the loss.",
        "R3": "Sweep the learning rate, then look at the training loss just above the best "
        "one: if it rises, fixing the instability will likely improve training.",
        "R4": "Log the L2 norm of the full gradient at every step: its outliers destabilize "
        "training, and its usual size says how hard to clip.",
        "R5": "Some models blow up in the first steps and recover, which rare evaluation "
        "hides: run about 500 steps at twice the best learning rate, evaluated at every step.",
    },
    "When to apply learning rate warmup": {
        "R6": "A best learning rate at the edge of the infeasible region means instability; "
        "infeasible is a loss that is NaN or uncharacteristically high.",
        "R7": "Confirm instability at 5 or 10 times the best learning rate: the training loss "
        "rises suddenly after a steady decline.",
    },
    "How to apply learning rate warmup": {
        "R8": "Warm up from 0 to a base learning rate ten times the unstable one, then hold it.",
        "R9": "Look for the shortest warmup that gives access to much higher learning rates; "
        "hold the rate for twice as many steps as the warmup takes.",
        "R10": "Tune the warmup's length apart from the decay schedule, over several orders "
        "of magnitude, up to 10 % of the training steps.",
        "R11": "Put the warmup before the existing schedule, as additional steps, and compare "
        "with the baseline, each side at its own best checkpoint.",
        "R12": "A warmup of more than 5 % of the training steps may call for more training steps.",
        "R13": "No warmup is typical: some models need 100 steps, some Transformers over 40,000.",
    },
    "Gradient clipping": {
        "R14": "Scale a gradient whose norm exceeds the clip threshold down to the threshold: "
        "this helps against early and mid-training instability.",
        "R15": "Log the norm before clipping; draw it against the step, and as a histogram.",
        "R16": "Start with the 90th percentile of the gradient norms as the clip threshold; "
        "if training stays unstable, try a lower one.",
        "R17": "Clipping more than half of the updates is a strange way of lowering the "
        "learning rate: lower the learning rate instead.",
        "R19": "The playbook leaves open whether to clip during warmup, and thresholds that adapt.",
    },
    "Potential fixes for common instability patterns": {
        "R18": "The remedies are warmup, clipping, another optimizer, residual connections, "
        "normalization and its place, and residual branches that start at 0; a lower learning "
        "rate is the last.",
    },
    "Why shouldn't the batch size be tuned to directly improve validation set performance?": {
        "R20": "Do not tune the batch size for validation quality: give each batch size its "
        "own tuned optimizer and regularization, and the difference usually goes away.",
    },
    "What are the update rules for all the popular optimization algorithms?": {
        "R21": "SGD, momentum, Nesterov, RMSProp, Adam and NAdam update parameters by the "
        "playbook's formulas, from which those of a library may differ.",
    },
    "Identifying scientific, nuisance, and fixed hyperparameters": {
        "S1": "Each hyperparameter is scientific, nuisance or fixed; those of an optimizer "
        "are tuned for it alone, even where two optimizers call theirs by the same name.",
    },
    "Why use quasi-random search instead of more sophisticated black box optimization algorithms "
    "during the exploration phase of tuning?": {
        "S2": "Explore with quasi-random search, exploit with Bayesian optimization, and use "
        "grids for one or two hyperparameters only.",
    },
    "Automate generically useful plots": {
        "S3": "Plot the best validation value of each trial against every hyperparameter that "
        "varies, and the training curves of all trials.",
    },
    "Identifying bad search space boundaries": {
        "S4": "Expand a search space whose border the best trials crowd, unless all beyond fail.",
    },
    "Extracting insight from experimental results": {
        "S5": "Ask which share of trials is infeasible, and whether enough lie in the good region.",
    },
    "Examining the training curves": {
        "S6": "Look at the best trials' curves for overfitting, variance late in training, "
        "training that ended too early or long after it saturated, and a rising training loss.",
    },
    "Detecting whether a change is useful with isolation plots": {
        "S7": "To compare the values of a scientific hyperparameter, plot the best trial of "
        "each over all nuisance hyperparameters.",
    },
    "Deciding how long to train when training is not compute-bound": {
        "S8": "Never tune the number of training steps inside a study: a best checkpoint in "
        "the first 10 % calls for far fewer, one in the last 25 % for more.",
    },
    "Determining whether to adopt a training pipeline change or hyperparameter configuration": {
        "S9": "Before adopting a change, rerun its best trial with other seeds, weigh the "
        "variance of both sides, and tune the baseline equally well.",
    },
    "Setting up periodic evaluations": {
        "S10": "Evaluate at regular intervals of steps, not of time; keep the best checkpoints.",
    },
    "How should Adam's hyperparameters be tuned?": {
        "S11": "With fewer than 10 trials tune Adam's learning rate alone, with 10 to 25 also "
        "β₁, with more also ε, and with far more also β₂.",
    },
    "How many trials are needed to get good results with quasi-random search?": {
        "S12": "Bootstrap the best of n trials to see how many are enough.",
    },
    "Setting up experiment tracking": {
        "S13": "Keep a row for each study: name, configuration, notes, number of trials, best "
        "validation value, and the command that reproduces it.",
    },
}


def _order(id: str) -> tuple[str, int]:
    return id[0], int(id[1:])


_rules = [
    Rule(id, sentence, heading, f"{PLAYBOOK}#{_anchor(heading)}")
    for heading, sentences in _SECTIONS.items()
    for id, sentence in sentences.items()
]
RULES: Mapping[str, Rule] = {one.id: one for one in sorted(_rules, key=lambda one: _order(one.id))}


def rule(id: str) -> Rule:
    """The rule of an id. Raises LookupError, with all ids, if there is none."""
    if id not in RULES:
        raise LookupError(f"{id!r} is no rule: the ids are {', '.join(RULES)}")
    return RULES[id]


def legend(ids: Iterable[str]) -> str:
    """What some rules say, in the order of their ids, for a terminal.

    Raises LookupError, with all ids, if there is no such rule.
    """
    known = sorted((rule(id) for id in set(ids)), key=lambda one: _order(one.id))
    return "\n".join(_wrapped(f"{one.id:<{len(INDENT)}}{one.sentence}") for one in known)


def section(one: Rule) -> str:
    """Where the playbook states a rule, for a terminal; the address stays in one piece."""
    return f"{_wrapped(f'{INDENT}Section: {one.heading}')}\n{INDENT}{one.address}"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, COLUMNS, subsequent_indent=INDENT)
