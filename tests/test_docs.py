"""The documentation: it builds without a warning, its links lead somewhere, and it says it all."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tunewright.search import __all__ as public
from tunewright.search.cli import _parser
from tunewright.search.playbook import RULES
from tunewright.search.rules.hyperparameters import HYPERPARAMETERS
from tunewright.search.rules.optimizers import RULES as OPTIMIZERS
from tunewright.search.study.study import parse_study, schema

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
NEEDS_SPHINX = pytest.mark.skipif(find_spec("furo") is None, reason="the extra docs is missing")


class Page(HTMLParser):
    """A page's names, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if value and key == "id":
                self.names.add(value)
            if value and key in ("href", "src"):
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages. No warning is left out."""
    folder = tmp_path_factory.mktemp("site")
    options = ("-W", "--keep-going", "-q", "-c", "docs", "-b", "html", "-d", folder / "trees")
    command = [sys.executable, "-m", "sphinx", *map(str, options), ".", str(folder / "html")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "html"


def text(site: Path, page: str) -> str:
    return (site / "docs" / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.slow
@NEEDS_SPHINX
def test_every_link_within_leads_to_a_page_and_a_place(site: Path) -> None:
    page_of = cache(Page)
    lost = []
    for path in sorted(site.rglob("*.html")):
        for link in page_of(path).links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            place = unquote(address.fragment)
            is_lost = place and target.suffix == ".html" and place not in page_of(target).names
            if not target.exists() or is_lost:
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


@pytest.mark.slow
@NEEDS_SPHINX
def test_no_page_needs_a_network(site: Path) -> None:
    found = [link for path in site.rglob("*.html") for link in fetched(path)]
    assert found == []


def fetched(path: Path) -> Iterator[str]:
    """What a page loads from elsewhere."""
    source = path.read_text(encoding="utf-8")
    yield from re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^\"]*", source)
    yield from re.findall(r"<link rel=\"stylesheet\"[^>]*href=\"(?:https?:)?//[^\"]*", source)


@pytest.mark.slow
@NEEDS_SPHINX
def test_the_reference_has_every_key_rule_option_and_name(site: Path) -> None:
    keys = set(schema()["properties"]) | set(HYPERPARAMETERS)
    names = Page(site / "docs" / "study-file.html").names
    assert {key.replace("_", "-") for key in keys} <= {name.replace("_", "-") for name in names}
    assert {id.lower() for id in RULES} <= Page(site / "docs" / "playbook.html").names
    assert set(OPTIMIZERS) <= Page(site / "docs" / "optimizers.html").names
    (commands,) = (one for one in _parser()._actions if isinstance(one.choices, dict))
    for name, command in commands.choices.items():
        assert name in Page(site / "docs" / "command-line.html").names
        actions = [one for one in command._actions if one.dest != "help"]
        options = [one for action in actions for one in action.option_strings]
        shown = text(site, "command-line")
        assert [one for one in options if one not in shown] == []
    described = Page(site / "docs" / "python.html").names
    assert {name.rpartition(".")[2] for name in described} >= {"watch", "current_run", *public}


@pytest.mark.slow
@NEEDS_SPHINX
def test_every_verdict_has_a_picture_of_its_own(site: Path) -> None:
    shown = text(site, "verdicts")
    single = ("stable", "early-instability", "mid-training-instability")
    for place in (*single, "diverged", "collapsed", "non-finite"):
        section = shown.split(f'id="{place}"')[1].split("</section>")[0]
        assert section.count("Plotly.newPlot(") == 1
    boxes = re.findall(r"<blockquote>.*?</blockquote>", shown, re.DOTALL)
    heads = [re.sub(r"<[^>]*>|\s+", " ", box).strip().split(":")[0] for box in boxes]
    assert [re.sub(r"\d+", "N", head) for head in heads] == [
        "feasible, no instability",
        "feasible, early instability at step N",
        "feasible, mid-training instability at step N",
        "diverged, mid-training instability since step N",
        "collapsed, mid-training instability since step N",
        "non_finite, mid-training instability since step N",
    ]
    of_groups = shown.split('id="of-a-batch-size-and-an-optimizer"')[1]
    words = re.findall(r"<h3>([^<]*)<", of_groups)
    assert words == ["Stable", "On the edge", "Edge not reached", "Unstable"]
    assert of_groups.count("Plotly.newPlot(") == len(words)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere_on_a_code_host(path: Path) -> None:
    """Of the sources themselves, as they are read without a site."""
    source = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in LINK.findall(source) if "://" not in link]
    lost = [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert lost == []


def test_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_page_is_on_the_first_one() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.stem for page in PAGES if f"\n{page.stem}\n" not in index] == ["index"]


# --- what is said of commands and study files -----------------------------------------------------

PROSE = [ROOT / "README.md", *PAGES]
(COMMANDS,) = (one.choices for one in _parser()._actions if isinstance(one.choices, dict))
OTHERS = {"--constraint", "--index-url", "--port", "--nthreads", "--head"}  # of pip, Dask and Ray


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_every_command_that_is_named_is_one(path: Path) -> None:
    named = re.findall(
        r"(?:`|/|^ *|&& )tunewright ([a-z]+)", path.read_text(encoding="utf-8"), re.M
    )
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_every_option_that_is_named_is_one(path: Path) -> None:
    parsers = [_parser(), *COMMANDS.values()]
    known = {name for one in parsers for action in one._actions for name in action.option_strings}
    source = path.read_text(encoding="utf-8")
    shown = re.findall(r"`[^`\n]*`|^ *\S*tunewright .*$", source, re.MULTILINE)
    named = {one for text in shown for one in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert named - OTHERS <= known


def studies() -> Iterator[tuple[str, str]]:
    """Every study file that a page shows, as a whole."""
    for path in PROSE:
        blocks = re.findall(r"^```toml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
        yield from ((path.stem, block) for block in blocks if "\nmax_train_steps" in block)


@pytest.mark.parametrize(("page", "text"), list(studies()))
def test_every_study_file_that_is_shown_is_valid(page: str, text: str) -> None:
    parse_study(tomllib.loads(text), name=page, place=page)


def test_there_are_study_files_to_look_at() -> None:
    assert {page for page, _ in studies()} >= {"README", "your-own-model", "study-file"}
