"""The text: real characters, contiguous parts that do not overlap, windows with their next
characters.
"""

import sysconfig
from pathlib import Path

import pytest
import torch

from tunewright.models import text


def decoded(tokens: list[int]) -> str:
    return "".join("\0" if t == text.UNKNOWN else "\n" if t == 1 else chr(t + 30) for t in tokens)


def test_encoding_keeps_what_the_vocabulary_has() -> None:
    tokens = text.encode("a b~\n\té\U0001f600")
    assert tokens.dtype == torch.int64
    assert decoded(tokens.tolist()) == "a b~\n\0\0\0"
    assert text.encode("".join(map(chr, range(1000)))).unique().tolist() == list(
        range(text.VOCABULARY)
    )


def test_the_text_is_bounded_and_almost_all_known() -> None:
    written = text.library_text()
    assert 300_000 < len(written) <= 400_000
    assert (text.encode(written) == text.UNKNOWN).float().mean() < 0.001


def test_targets_are_the_characters_that_follow() -> None:
    for x_NT, y_NT in (text.load(16).train, text.load(16).validation, text.load(16).test):
        assert x_NT.shape == y_NT.shape == (len(x_NT), 16)
        assert torch.equal(x_NT[:, 1:], y_NT[:, :-1])


def test_parts_are_contiguous_and_do_not_overlap() -> None:
    written = text.library_text()
    split = text.load(32)
    train, test = (decoded(part[0].flatten().tolist()) for part in (split.train, split.test))
    border = len(written) - 2 * (len(written) // 10)
    assert train == decoded(text.encode(written[: len(train)]).tolist())
    assert len(train) <= border
    start = border + len(written) // 10
    assert test == decoded(text.encode(written[start : start + len(test)]).tolist())
    validation = decoded(text.encode(written[border:start]).tolist())
    assert all(decoded(window.tolist()) in validation for window in split.validation[0])


def test_validation_reads_a_bounded_number_of_windows() -> None:
    assert [len(text.load(context).validation[0]) for context in (8, 32, 1024)] == [128, 128, 39]


def test_a_library_without_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no source of argparse\.py.*run it with a Python"):
        text.library_text()
