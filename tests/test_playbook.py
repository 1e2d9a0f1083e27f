"""Every id that the project cites is a rule of the table, and every rule is followed somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import escape

from tunewright.search import playbook
from tunewright.search.cli import main
from tunewright.search.playbook import CITATION, RULES, legend, rule
from tunewright.search.show.notes import MEANING, verdict_note
from tunewright.search.show.web import _cite

ROOT = Path(__file__).parents[1]
OWN = {ROOT / "search" / "playbook.py", Path(__file__)}
ID = re.compile(r"\b[RS]\d{1,2}\b")
SUFFIXES = {".py", ".toml", ".jinja", ".md"}


def cited_in_the_project() -> dict[str, set[str]]:
    """The files that cite each id."""
    folders = [ROOT / name for name in ("search", "models", "studies", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]
    found: dict[str, set[str]] = {}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in [*pages, *sorted(files)]:
        for id in ID.findall(path.read_text(encoding="utf-8")) if path not in OWN else ():
            found.setdefault(id, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_id_that_is_cited_is_a_rule():
    unknown = {id: files for id, files in cited_in_the_project().items() if id not in RULES}
    assert unknown == {}


def test_every_rule_is_cited():
    assert set(RULES) - set(cited_in_the_project()) == set()


def test_the_ids_are_complete_and_in_order():
    assert list(RULES) == [f"R{n}" for n in range(1, 22)] + [f"S{n}" for n in range(1, 14)]


@pytest.mark.parametrize("one", RULES.values(), ids=RULES)
def test_a_rule_is_one_sentence_with_its_section(one):
    assert rule(one.id) is one
    assert re.fullmatch(r"[A-Z][^.\n\"]*[^ .]\.", one.sentence)
    assert re.fullmatch(rf"{re.escape(playbook.PLAYBOOK)}#[a-z]+(-[a-z]+)+", one.address)


def test_an_anchor_is_made_as_github_makes_it():
    """As the playbook itself links to these two headings."""
    assert RULES["S11"].address.endswith("#how-should-adams-hyperparameters-be-tuned")
    batch_size = "why-shouldnt-the-batch-size-be-tuned-to-directly-improve-validation-set"
    assert RULES["R20"].address.endswith(f"#{batch_size}-performance")


def test_an_unknown_id_is_an_error_that_lists_all():
    with pytest.raises(LookupError, match=r"'R22' is no rule: the ids are R1, R2, .*, S12, S13$"):
        rule("R22")


def test_the_table_is_read_without_torch_and_optuna():
    code = "import sys, tunewright.search.playbook\n"
    code += "print(sorted({'torch', 'optuna', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("it is (R6)", ["R6"]),
        ("it is (R6, S4), and (R1–R3).", ["R6", "S4", "R1", "R3"]),
        ("(S10): it is", ["S10"]),
        ("R2 = 0.5 (of R2, the score), depth (R2 = 1), val_R2 (lower)", []),
    ],
)
def test_what_is_a_citation(sentence, ids):
    assert CITATION.findall(sentence) == ids


def test_a_cited_id_says_its_rule_and_the_rest_is_escaped():
    html = str(_cite("batch size <b> & 32 (R6, S4)."))
    for id in ("R6", "S4"):
        assert f'<abbr title="{escape(RULES[id].sentence)}">{id}</abbr>' in html
    assert html.startswith("batch size &lt;b&gt; &amp; 32 (<abbr")
    assert html.endswith("</abbr>).")


def test_a_note_of_the_dashboard_links_its_rules():
    from stored import diverged, feasible, small_study

    from tunewright.search.judge.analysis import summarize

    study = small_study()
    trials = [feasible(0, 0.1, 0.05), *(diverged(i, 0.3 + i / 10, 90) for i in (1, 2))]
    note = verdict_note(study, 32, summarize(trials, study.scientific_names))
    (cited,) = (line for line in note.splitlines() if line.startswith("- **on the edge**"))
    for id in CITATION.findall(MEANING["on the edge"]):
        assert f'([{id}]({RULES[id].address} "{RULES[id].sentence}"))' in cited


def test_rules_lists_all_in_80_columns(capsys):
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(RULES)
    assert max(map(len, lines)) <= 80


def test_rules_of_an_id_prints_it_with_its_section(capsys):
    assert main(["rules", "R10"]) == 0
    out = capsys.readouterr().out
    one = RULES["R10"]
    assert out.startswith(legend(["R10"]))
    assert f"Section: {one.heading}\n     {one.address}\n" in out


def test_rules_of_an_unknown_id_is_one_error(capsys):
    assert main(["rules", "R10", "R99"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: 'R99' is no rule: the ids are R1, ")
    assert len(captured.err.splitlines()) == 1
