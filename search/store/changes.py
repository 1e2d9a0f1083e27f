"""What changed between two versions of a study file, and what may change when results are there."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from ..rules.optimizers import decays_vectors
from ..study.study import DECAY_VECTORS, Study

# what may not change of a study whose trials are imported, besides their source
OF_IMPORTED = ("objective", "maximize")


def document_of(study: Study) -> dict[str, Any]:
    """A study file as results keep it: without defaults, but for one that earlier versions had not.

    `as_stated` is what a document of these says.
    """
    document = study.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    return document | {DECAY_VECTORS: study.decay_vectors}


def decays_all(document: Mapping[str, Any]) -> bool:
    """Whether weight decay is of all parameters in results that keep this document of their study.

    Before there was `decay_vectors` it was, of rules that have it. What trained elsewhere knows
    itself what decays.
    """
    if document.get("log") or document.get("imported"):
        return False
    optimizers = document.get("space", {}).get("optimizer", {})
    return bool(document.get(DECAY_VECTORS, decays_vectors(optimizers)))


def as_stated(document: dict[str, Any], study: Study) -> dict[str, Any]:
    """A document that results keep of a study, also one of before there was `decay_vectors`.

    What it leaves open is as in the study of now.
    """
    return {DECAY_VECTORS: decays_all(document) or study.decay_vectors} | document


def as_begun(study: Study, documents: Iterable[Mapping[str, Any]]) -> Study:
    """A study that goes on from results: where its file does not say it, as their documents do.

    If weight decay was of all parameters in one of them, it is so in all. Raises ValueError if the
    file says that it is not.
    """
    if study.decay_vectors or not any(map(decays_all, documents)):
        return study
    if DECAY_VECTORS in study.model_fields_set:
        raise ValueError(f"{DECAY_VECTORS}: was True, is False")
    return study.model_copy(update={DECAY_VECTORS: True})


def text_of(study: Study) -> str:
    """A study file's text, which says whether biases and norms decay where there is weight decay.

    So results that come without their database say it, too. What trained elsewhere says nothing.
    """
    text = study.source
    is_ours = study.makes_optimizers and decays_vectors(study.optimizers)
    if not is_ours or DECAY_VECTORS in tomllib.loads(text):
        return text
    lines = text.splitlines(keepends=True)
    comments = len(list(takewhile(lambda line: line.startswith("#"), lines)))
    stated = f"{DECAY_VECTORS} = {str(study.decay_vectors).lower()}  # of all trials here\n"
    return "".join([*lines[:comments], stated, *lines[comments:]])


def changes_of(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two study files, a line per key, apart from what may differ.

    Of imported trials that is all that follows from them, as ranges: their source may have more by
    now.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    if "imported" in old and old["imported"] == new.get("imported"):
        old, new = ({key: own.get(key) for key in OF_IMPORTED} for own in (old, new))
    # A point's number counts configurations first, then seeds: with one configuration, more seeds
    # keep all numbers.
    may_grow = ("trials", "seeds") if old.get("trials") == new.get("trials") == 1 else ("trials",)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, is_now = old.get(key, "(absent)"), new.get(key, "(absent)")
        free = key in ("question", "keep_checkpoints") or key.startswith(("figure.", "cluster."))
        grown = (
            key in may_grow and isinstance(was, int) and isinstance(is_now, int) and is_now > was
        )
        if was == is_now or free or grown:
            continue
        lines.append(f"{key}: was {was}, is {is_now}")
    return lines


def changes_besides(
    before: dict[str, Any], now: dict[str, Any], keys: Collection[str]
) -> list[str]:
    """`changes_of` apart from these keys at the top of the files."""
    old, new = (
        {key: value for key, value in one.items() if key not in keys} for one in (before, now)
    )
    return changes_of(old, new)


def _flat(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, document
