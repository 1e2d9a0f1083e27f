"""What is said on standard error, and printed in sentences: within a terminal's width."""

import io
import os
import pty
import select
import termios

import pytest

from tunewright.search.errors import LOG
from tunewright.search.messages import told
from tunewright.search.show.tables import print_wrapped
from tunewright.search.words import fitted

SENTENCE = " ".join(["space.optimizer.adam.base_lr:", *["some words of a sentence"] * 8])
WIDTHS = {"told by the terminal": None, "told by COLUMNS": "60"}


@pytest.fixture(params=WIDTHS.values(), ids=WIDTHS)
def terminal(request, monkeypatch):
    """A stream to a terminal of 60 columns, and what is read at its other end."""
    if request.param:
        monkeypatch.setenv("COLUMNS", request.param)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    other, own = pty.openpty()
    if not request.param:
        termios.tcsetwinsize(own, (24, 60))
    with open(own, "w") as stream:
        yield stream, lambda: stream.flush() or read_all(other).splitlines()
    os.close(other)


def read_all(descriptor):
    found = b""
    while select.select([descriptor], [], [], 0.5)[0]:
        found += os.read(descriptor, 65536)
    return found.decode()


@pytest.mark.parametrize("kind", ["warning", "error", "info"])
def test_messages_are_wrapped_on_a_terminal(terminal, monkeypatch, kind):
    stream, read = terminal
    monkeypatch.setattr("sys.stderr", stream)
    with told():
        getattr(LOG, kind)("%s", SENTENCE)
    lines = read()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()).endswith(SENTENCE)


def test_sentences_are_wrapped_on_a_terminal(terminal, monkeypatch):
    stream, read = terminal
    monkeypatch.setattr("sys.stdout", stream)
    print_wrapped([SENTENCE, "short"])
    *lines, last = read()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == SENTENCE
    assert last == "short"


def test_lines_of_a_pipe_stay_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with told():
        LOG.warning("%s", SENTENCE)
    print_wrapped([SENTENCE])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{SENTENCE}\n", f"warning: {SENTENCE}\n")
    assert fitted(SENTENCE, io.StringIO()) == SENTENCE


def test_lines_that_fit_and_words_that_do_not_stay_as_they_are(terminal):
    stream, _ = terminal
    path = "/a" * 40
    assert fitted(f"first:  1\n    {path}\n\nlast", stream) == f"first:  1\n    {path}\n\nlast"
