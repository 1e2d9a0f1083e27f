"""What changed between two versions of a study file, and what may change when results are there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ..study.study import Study

# what may not change of a study whose trials are imported, besides their source
OF_IMPORTED = ("objective", "maximize")


def document_of(study: Study) -> dict[str, Any]:
    return study.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)


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
