"""The parts of the pages that the code says: keys, commands, rules, update rules, pictures, names.

A page names its part in a comment, `<!-- generated: keys -->`, which `fill` replaces by Markdown.
So no page repeats by hand what a table or a docstring of the code has.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from pydantic import BaseModel

import tunewright
import tunewright.search
from tunewright.search import cli
from tunewright.search.judge.analysis import GroupSummary, summarize
from tunewright.search.judge.readout import read_out
from tunewright.search.judge.verdict import judge
from tunewright.search.playbook import CITATION, RULES
from tunewright.search.rules import optimizers, schedule
from tunewright.search.rules.hyperparameters import HYPERPARAMETERS, Hyperparameter
from tunewright.search.rules.schedule import SHAPES
from tunewright.search.show.notes import MEANING
from tunewright.search.show.plots import axis_figure, axis_info, training_figure, training_info
from tunewright.search.study.command import PLACEHOLDERS
from tunewright.search.study.study import schema
from tunewright.search.trial import COMMON, Curve, Point, Trial

PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
PLOTLY = "_static/plotly.min.js"  # one file, which a page loads before its first figure
BARE_KEY = re.compile(r"[\w-]+", re.ASCII)


# --- what Sphinx calls ----------------------------------------------------------------------------


def fill(app: Any, page: str, source: list[str]) -> None:
    """Write the parts that a page names into it. Raises KeyError for a part that there is not."""
    source[0] = PLACE.sub(lambda place: PARTS[place[1]](), source[0])


def write_plotly(app: Any) -> None:
    """Put plotly.js, as installed, beside the pages: no network is needed to read them."""
    path = Path(app.outdir) / PLOTLY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(get_plotlyjs(), encoding="utf-8")


def as_rst(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring, whose tables and code are indented or aligned."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = "\n\n".join(map(_paragraph, paragraphs)).split("\n")


def signature_of(
    app: Any, what: str, name: str, of: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """No signature of a model: its fields are the keys of a study file, on a page of their own."""
    is_model = inspect.isclass(of) and issubclass(of, BaseModel)
    return ("", "") if is_model else None


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    is_prose = not any(re.search(r"^ |\S {2,}\S", line) for line in lines)
    if is_prose and not any(re.match(r"(def|with|from|import|for) ", line) for line in lines):
        return re.sub(r"([*|_])(?=\W|$)|(?<=\s)([*|])", r"\\\g<0>", text)
    return "::\n\n" + textwrap.indent(text, "    ")


# --- the keys of a study file ---------------------------------------------------------------------


def keys() -> str:
    """Every key at the top of a study file and of its small tables."""
    whole = schema()
    tables = whole["$defs"]
    small = {
        "cut": "Cut",
        "warm_start": "WarmStart",
        "figure": "Figure",
        "cluster": "Cluster",
        "log": "CommandLog",
    }
    texts = ["## At the top of the file", *_sections(whole)]
    for name, table in small.items():
        texts += [f"## [{name}]", _sentence(tables[table]["description"])]
        texts += _sections(tables[table], f"{name}.")
    return "\n\n".join(texts)


def ranges() -> str:
    """How a value of [space] may be written: the keys of a range, and the word for warmups."""
    tables = schema()["$defs"]
    texts = [*_sections(tables["Range"]), *_sections(tables["OrdersOfMagnitude"])]
    return "\n\n".join(texts)


def hyperparameters() -> str:
    """Every hyperparameter of every training, then those of optimizers, with their defaults."""
    own = [name for name, row in HYPERPARAMETERS.items() if row.kind == "optimizer"]
    decays = [name for name, row in HYPERPARAMETERS.items() if row.kind == "schedule"]
    texts = ["## Hyperparameters of every training"]
    texts += [_hyperparameter(name) for name in (*COMMON, *decays)]
    texts += ["## Hyperparameters of optimizers", *map(_hyperparameter, own)]
    return "\n\n".join(texts)


def placeholders() -> str:
    rows = [f"| `{{{name}}}` | {said} |" for name, said in PLACEHOLDERS.items()]
    return "\n".join(["| placeholder | what stands for it |", "|---|---|", *rows])


def _sections(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    required = table.get("required", [])
    for name, said in table["properties"].items():
        facts = {"Type": _words(said), "Default": _default(said, name in required)}
        example = said.get("examples")
        if example:
            facts["Example"] = _code(f"{name} = {toml(example[0])}")
        yield _section(f"{prefix}{name}", _sentence(said["description"]), facts)


def _section(title: str, text: str, facts: Mapping[str, str]) -> str:
    listed = "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items() if fact)
    return f"### {title}\n\n{text}\n\n{listed}"


def _hyperparameter(name: str) -> str:
    row = HYPERPARAMETERS[name]
    facts = {
        "Value": row.requirement,
        "Default": _code(toml(row.default)) if row.default is not None else _defaults_of(row),
        "Example": _code(f"{name} = {toml(row.example)}"),
        "Written as a list": f"should contain {toml(row.off)}, which is as if it were not there "
        f"({row.control})"
        if row.control
        else "",
        "Best fixed": f"with fewer than {row.fewest_trials} trials (S11)"
        if row.fewest_trials
        else "",
    }
    facts = {fact: cite(said) for fact, said in facts.items()}
    return _section(name, _sentence(row.description), facts)


def _defaults_of(row: Hyperparameter) -> str:
    """Who has it, with the default of each."""
    owners: Mapping[str, Any] = optimizers.RULES if row.kind == "optimizer" else SHAPES
    found = [
        f"{_code(toml(one.defaults[row.name]))} ({owner})"
        for owner, one in owners.items()
        if row.name in one.defaults
    ]
    if row.kind == "common":
        return "none: every study gives one"
    return ", ".join(found) or "that of the constructor, of optimizers of torch"


def _words(said: Mapping[str, Any]) -> str:
    """A type of the JSON schema in words."""
    either = said.get("anyOf") or said.get("oneOf") or [said]
    forms = [one for one in either if one.get("type") != "null"]
    return " or ".join(dict.fromkeys(map(_one_type, forms)))


def _one_type(form: Mapping[str, Any]) -> str:
    if "enum" in form:
        return f"one of {', '.join(_code(toml(one)) for one in form['enum'])}"
    if "const" in form:
        return _code(toml(form["const"]))
    if "$ref" in form or form["type"] == "object":
        return "a table"
    if form["type"] == "array":
        least, most = form.get("minItems", 0), form.get("maxItems")
        count = f", {least:,} to {most:,} of them" if most else ""
        return f"a list: {_words(form['items'])}{count}"
    name = {"string": "a text", "boolean": "`true` or `false`", "integer": "a whole number"}
    return name.get(form["type"], "a number") + _bounds(form)


def _bounds(form: Mapping[str, Any]) -> str:
    bounds = [
        f"{word} {form[key]:,.12g}"
        for key, word in {
            "minimum": "at least",
            "exclusiveMinimum": "more than",
            "maximum": "at most",
            "exclusiveMaximum": "less than",
        }.items()
        if key in form
    ]
    return f", {' and '.join(bounds)}" if bounds else ""


def _default(said: Mapping[str, Any], is_required: bool) -> str:
    if is_required:
        return "none: it is required"
    default = said.get("default")
    if default in (None, "", [], {}) or isinstance(default, dict):
        return "none"
    return _code(toml(default))


def toml(value: Any) -> str:
    """A value as a study file has it, on one line."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case Mapping():
            pairs = (f"{_key(name)} = {toml(one)}" for name, one in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case float():
            return f"{value:g}" if value != int_of(value) else repr(value)
    return str(value)


def int_of(value: float) -> float:
    return float(int(value)) if np.isfinite(value) else value


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else f'"{name}"'


def _code(text: str) -> str:
    return f"`{text}`"


def _sentence(text: str) -> str:
    return f"{cite(text)}." if not text.endswith(".") else cite(text)


def cite(text: str) -> str:
    """A text whose rules of the playbook are links to what they say."""
    return CITATION.sub(lambda one: f"[{one[0]}](playbook.md#{one[0].lower()})", text)


# --- the command line -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """That of the program, whose texts are made reStructuredText."""
    whole = cli._parser()
    for one in _parsers(whole):
        one.description, one.epilog = _text(one.description), _text(one.epilog)
        for action in one._actions:
            action.help = _text(action.help)
    return whole


def _parsers(whole: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield whole
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _text(text: str | None) -> str | None:
    """Names in backticks as code, and stars as stars."""
    if text is None or text == argparse.SUPPRESS:
        return text
    return re.sub(r"`([^`]+)`", r"``\1``", text.replace("*", r"\*"))


# --- rules ----------------------------------------------------------------------------------------


def playbook() -> str:
    """Every rule under its id, which pages link to, with the section that states it."""
    heads = {"R1": "## Failures of training, batch sizes, update rules", "S1": "## Studies"}
    texts = []
    for one in RULES.values():
        texts += [heads[one.id]] if one.id in heads else []
        texts += [f"### {one.id}", one.sentence, f"Section: [{one.heading}]({one.address})"]
    return "\n\n".join(texts)


def update_rules() -> str:
    """Each optimizer: its equation as its docstring has it, its defaults, and torch's."""
    equations = _equations(optimizers.__doc__ or "", optimizers.RULES)
    texts = []
    for name, rule in optimizers.RULES.items():
        own = ", ".join(_code(f"{key} = {value:g}") for key, value in rule.defaults.items())
        away = optimizers.counterpart(name, rule.defaults, 0.001)
        code = "\n".join(filter(None, [f"optimizer = {away.call}", away.once]))
        texts.append(
            f"### {name}\n\n```text\n{equations[name]}\n```\n\n"
            f"- **Its own settings**: {own or 'none'}\n"
            f"- **Base LRs of the same scale as**: {_family(rule.family, name)}\n"
            f"- **Evaluated and kept**: {_evaluated(rule)}\n\n"
            f"In torch, at base LR 0.001:\n\n```python\n{code}\n```\n\n"
            + "\n\n".join([away.difference, _each(away.each), away.distance]).strip()
        )
    return "\n\n".join(texts)


def _family(family: str, name: str) -> str:
    alike = [one.name for one in optimizers.RULES.values() if one.family == family]
    return ", ".join(one for one in alike if one != name) or "no other"


def _evaluated(rule: optimizers.Rule) -> str:
    if rule.average is None:
        return "the parameters θ"
    return f"the average {rule.average.state}; losses and gradients are of the parameters θ"


def _each(statement: str) -> str:
    return f"Before update n = 1, 2, …:\n\n```python\n{statement}\n```" if statement else ""


def schedules() -> str:
    """Each shape of decay with its equation, as its docstring has it."""
    text = schedule.__doc__ or ""
    blocks = [one for one in re.split(r"\n\s*\n", text) if one.startswith("    ")]
    return "\n\n".join(f"```text\n{textwrap.dedent(one)}\n```" for one in blocks)


def _equations(text: str, names: Iterable[str]) -> dict[str, str]:
    """Of a block of a docstring the lines of each name: that which begins with it, and the next."""
    (block,) = (one for one in re.split(r"\n\s*\n", text) if one.startswith("    "))
    found: dict[str, str] = {}
    for line in textwrap.dedent(block).splitlines():
        word, _, rest = line.partition(" ")
        if word in names:
            current = word
            found[current] = rest.strip()
        else:
            found[current] += f"\n{line.strip()}"
    return found


# --- pictures of verdicts -------------------------------------------------------------------------

STEPS = 600
CHANCE = float(np.log(10))
EVERY = 20  # updates between two evaluations


def _decline(seed: int = 0) -> np.ndarray:
    """The loss of a training that goes well, as of ten classes."""
    noise = 1 + 0.04 * np.random.default_rng(seed).standard_normal(STEPS)
    return (0.1 + (CHANCE - 0.1) * np.exp(-np.arange(STEPS) / 60)) * noise


def _blown_up(begin: int, losses: np.ndarray) -> np.ndarray:
    """That of one in which some losses are others."""
    loss = _decline()
    loss[begin : begin + len(losses)] = losses
    return loss


def _curves() -> dict[str, tuple[str, np.ndarray]]:
    """What is drawn: what happened, and the losses."""
    flat = CHANCE * (1 + 0.02 * np.random.default_rng(1).standard_normal(STEPS))
    rise = np.geomspace(0.1, 60.0, 40)
    return {
        "Stable": ("It fell, and stayed low.", _decline()),
        "Early instability": (
            "The loss blew up in the first steps, and recovered. Rare evaluation hides this (R5). "
            "Warmup and clipping help (R14, R18).",
            _blown_up(3, np.geomspace(60.0, CHANCE, 57)),
        ),
        "Mid-training instability": (
            "After a steady decline the loss rose suddenly, and came back (R2, R7). Clipping helps "
            "(R14).",
            _blown_up(400, np.full(10, 5.0)),
        ),
        "Diverged": (
            "The loss rose far above where it began, and stayed there.",
            _blown_up(300, np.concatenate([rise, np.full(260, 60.0)])),
        ),
        "Collapsed": (
            "The loss rose back to that of a constant predictor, and what had been learned was "
            "lost.",
            _blown_up(300, np.concatenate([np.linspace(0.1, CHANCE, 60), flat[:240]])),
        ),
        "Non-finite": (
            "The loss became nan or infinite. Nothing is trained after that.",
            _blown_up(400, np.full(200, np.nan))[:401],
        ),
    }


def _trial(number: int, base_lr: float, loss: np.ndarray, lowest: float) -> Trial:
    """A training with these losses, whose best evaluation is `lowest` if it went well."""
    eval_step = np.arange(0, len(loss) + 1, EVERY)
    seen = loss[np.minimum(eval_step, len(loss) - 1)]
    values = np.maximum(seen - 0.1 + lowest, lowest)
    norms = np.exp(0.2 * np.random.default_rng(2).standard_normal(len(loss))) * (0.3 + loss)
    curve = Curve(loss, norms, eval_step, {"val_loss": values}, STEPS, CHANCE)
    point = Point(number=number, batch_size=64, optimizer="momentum", base_lr=base_lr)
    return Trial.from_curve(point, judge(curve), curve, "val_loss", 1.0)


def verdicts() -> str:
    """A picture of each way in which one training ends, with what is said of it."""
    texts = [f'<script src="../{PLOTLY}"></script>']
    for title, (said, loss) in _curves().items():
        trial = _trial(0, 0.1, loss, 0.1)
        readout = read_out(trial.curve, trial.verdict)
        figure = training_figure(training_info(trial, readout))
        figure.update_layout(title=None)
        quoted = "\n".join(f"> {one}" for one in readout.sentences)
        texts.append(f"### {title}\n\n{cite(said)}\n\n{cite(quoted)}\n\n{_html(figure)}")
    return "\n\n".join(texts)


# Sweeps of a training that is best at 0.1: lowest and highest base LR, and where it breaks.
SWEEPS = ((1e-3, 10.0, 1.0), (1e-3, 10.0, 0.2), (1e-4, 0.3, np.inf), (3.0, 50.0, 1.0))


def group_verdicts() -> str:
    """A picture of each verdict on a group of trials: an axis plot, and the numbers of its row."""
    texts = []
    for low, high, edge in SWEEPS:
        trials = [
            _of_base_lr(number, base_lr, edge)
            for number, base_lr in enumerate(np.geomspace(low, high, 24))
        ]
        (row,) = summarize(trials)
        info = axis_info(trials, "base_lr", "val_loss", log=True)
        texts.append(
            f"### {row.verdict[0].upper()}{row.verdict[1:]}\n\n{_meaning(row)}\n\n"
            f"{_numbers(row)}\n\n{_html(axis_figure(info))}"
        )
    return "\n\n".join(texts)


def _meaning(row: GroupSummary) -> str:
    """What its verdict means, with names as code and a capital at the beginning."""
    text = re.sub(r"\b(lr_star|base_lr)\b", r"`\1`", cite(MEANING[row.verdict]))
    return text[0].upper() + text[1:]


def _of_base_lr(number: int, base_lr: float, edge: float) -> Trial:
    """A training that is best at base LR 0.1, and diverges beyond the edge."""
    lowest = 0.1 + 0.08 * np.log10(base_lr / 0.1) ** 2
    loss = _decline(number) - 0.1 + lowest
    if base_lr > edge:
        loss[60:] = 40.0
    return _trial(number, float(base_lr), loss, lowest)


def _numbers(row: GroupSummary) -> str:
    share = f"{row.infeasible} of {row.trials} trials are infeasible"
    if not row.feasible:
        return f"{share}."
    edge = row.unstable_base_lr[1]
    if edge == np.inf:
        return f"{share}; `lr_star` is {row.lr_star:.3g}."
    return (
        f"{share}; `lr_star` is {row.lr_star:.3g}, `unstable_base_lr` up to {edge:.3g}, so that "
        f"`headroom` is {row.headroom:.3g}."
    )


def _html(figure: go.Figure) -> str:
    """A figure as a part of a page, without plotly.js, and without an empty line, which would end
    the part.
    """
    text = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    in_one_piece = re.sub(r"\n\s*\n", "\n", text)
    return f'<div class="figure">{in_one_piece}</div>'


# --- the Python interface -------------------------------------------------------------------------


def python() -> str:
    """Every public name, functions first, as its docstring has it."""
    functions, classes = [], []
    for name, home in _public():
        is_class = inspect.isclass(getattr(importlib.import_module(home), name))
        (classes if is_class else functions).append(f"{home}.{name}")
    texts = ["## Functions", *(_directive("autofunction", name) for name in functions)]
    texts += ["## Classes", *(_directive("autoclass", name, "   :members:") for name in classes)]
    return "\n\n".join(texts)


def _public() -> Iterator[tuple[str, str]]:
    """Public names of both packages, and the modules that have them."""
    homes = {name: getattr(tunewright, name).__module__ for name in tunewright.__all__}
    for home, names in tunewright.search._HOMES.items():
        homes |= dict.fromkeys(names, f"tunewright.search.{home}")
    return iter(homes.items())


def _directive(kind: str, name: str, *options: str) -> str:
    return "\n".join(["```{eval-rst}", f".. {kind}:: {name}", *options, "```"])


PARTS = {
    "keys": keys,
    "ranges": ranges,
    "hyperparameters": hyperparameters,
    "placeholders": placeholders,
    "playbook": playbook,
    "update_rules": update_rules,
    "schedules": schedules,
    "verdicts": verdicts,
    "group_verdicts": group_verdicts,
    "python": python,
}
