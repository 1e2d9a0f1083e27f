"""Tables for the terminal."""

import io
import math
from dataclasses import replace

import pytest
from compared import comparison
from examples import parse
from rich.console import Console
from rich.table import Table
from rich.text import Text
from stored import feasible

from tunewright.search.judge.analysis import summarize
from tunewright.search.judge.diagnosis import Edge, GroupDiagnosis, Remedy
from tunewright.search.show.tables import (
    as_good_in_words,
    comparison_tables,
    diagnosis_plan_table,
    diagnosis_table,
    plan_table,
    print_table,
)
from tunewright.search.study.sampling import some_points
from tunewright.search.trial import Group, Point, group_of


@pytest.mark.parametrize(("prepend", "stop_after"), [(False, 900), (False, 1050), (True, 1050)])
@pytest.mark.parametrize("sampler", ["halton", "grid", "tpe"])
def test_the_plan_says_how_many_updates_trials_have(prepend, stop_after, sampler):
    grid = {"space__optimizer__momentum__base_lr": [0.1, 1.0], "space__optimizer__adam__base_lr": 1}
    changes = grid | {"trials": ...} if sampler == "grid" else {}
    study = parse(sampler=sampler, prepend_warmup=prepend, stop_after=stop_after, **changes)
    table = plan_table(study)
    assert [column.header for column in table.columns][-1] == "updates per trial"
    groups: dict[Group, set[int]] = {}
    for point in some_points(study, most=1000):
        group = group_of(point, study.scientific_names)
        groups.setdefault(group, set()).add(study.updates(point))
    assert list(table.columns[0].cells) == [group.label for group in groups]
    spans = [sorted({min(own), max(own)}) for own in groups.values()]
    assert list(table.columns[-1].cells) == [" to ".join(map(str, own)) for own in spans]


def compared(name):
    found = comparison([[0.1, 0.11, 0.12], [0.2, 0.21, 0.2]], [0.3, 0.31, 0.3])
    candidates = [replace(one, side=replace(one.side, name=name)) for one in found.candidates]
    return comparison_tables(replace(found, candidates=tuple(candidates)))


def diagnosed(name):
    group = Group(32, "momentum", (("depth", 8),))
    plain = Remedy("plain", Point(3, 32, "momentum", 0.1), 1000, 1.0, 2.5, 0.12, 0.0, 0.07, "t")
    rerun = replace(plain, name=name, rerun_in="r", values=(0.07, 0.09), failure_bound=0.4)
    found = GroupDiagnosis(
        group=group,
        kind="none",
        lr_star=0.1,
        edge=Edge((1.0, 3.0), (), 0),
        onset_steps=(),
        steps=(),
        remedies=(plain, rerun),
        adopted=name,
        summary="",
    )
    return diagnosis_table(found, "val_loss")


def tables():
    plan = {Group(32, "momentum"): [("sweep", 64, 64_000), ("confirmation", 6, 6_000)]}
    study = parse(question="Which base LR is best for this network, at each of its batch sizes?")
    cells = Table("side", "share", "", title="of_some_title_with_one_long_word")
    cells.add_row("a_name_of_many_characters", Text("some words to wrap " * 9), "x" * 50)
    winner = Table("optimizer", "share", "more")
    winner.add_row("→ muon", "some words to wrap " * 9, "x" * 15)
    winner.add_row("  a_name_of_thirty_characters_ok", "a few", "x" * 15)
    yield winner
    for name in ("digits_mlp", "digits_mlp_with_a_name_of_forty_letters"):
        yield from compared(name)
        yield diagnosed(name)
    yield from (diagnosis_plan_table(plan, {32: 0.001}), plan_table(study))
    yield from (plan_table(study, {32: 0.001, 256: 0.002}), cells)


def words_of(table):
    texts = [str(table.title or ""), str(table.caption or "")]
    for column in table.columns:
        cells = [str(cell) for cell in column.cells]
        texts += [str(column.header), *cells] if any(cells) else []  # a list has no empty column
    return {word for text in texts for word in text.split()}


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("number", range(len(list(tables()))))
def test_no_word_of_a_table_is_broken(number, width):
    table, printed = list(tables())[number], io.StringIO()
    for _ in range(2):  # the second time with widths that the first has set
        print_table(table, Console(file=printed, width=width, force_terminal=True, no_color=True))
    lines = Text.from_ansi(printed.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= width
    missing = words_of(table) - {word for line in lines for word in line.split()}
    assert not missing


def test_a_table_with_room_for_its_words_stays_a_table():
    table, printed = Table("name", "words", "more"), io.StringIO()
    table.add_row("a_name_of_many_characters", "so much to say " * 8, "again_a_long_word_of_it")
    print_table(table, Console(file=printed, width=80, force_terminal=True, no_color=True))
    assert "┃" in printed.getvalue()


@pytest.mark.parametrize(
    ("as_good", "said"),
    [
        ((0.01, 0.1), "0.01 – 0.1"),
        ((0.01, 10.0), "0.01 – 10, a basin"),
        ((0.0237, 0.0237), "0.0237"),
        ((math.nan, math.nan), "–"),
    ],
)
def test_base_lrs_that_are_as_good_are_a_range_or_one(as_good, said):
    (row,) = summarize([feasible(1, 0.1, 0.2)])
    assert as_good_in_words(replace(row, as_good=as_good)) == said
