"""How often records are parsed and curves opened, while a test runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tunewright.search.store import files
from tunewright.search.trial import Curve, Trial


@dataclass
class Reads:
    """`records` by what they hold, `curves` by their path."""

    records: Counter[str] = field(default_factory=Counter)
    curves: Counter[Path] = field(default_factory=Counter)

    @classmethod
    def counted(cls, monkeypatch: pytest.MonkeyPatch) -> Reads:
        """From now on, wherever it is read."""
        found, parse, open_curve = cls(), Trial.from_record, files.read_curve

        def from_record(record: Mapping[str, Any], curve: Curve) -> Trial:
            found.records[json.dumps(record, sort_keys=True)] += 1
            return parse(record, curve)

        def read_curve(path: Path) -> Curve:
            found.curves[path] += 1
            return open_curve(path)

        monkeypatch.setattr(Trial, "from_record", staticmethod(from_record))
        monkeypatch.setattr(files, "read_curve", read_curve)
        return found

    def all_once(self, trials: int) -> bool:
        """Whether every record was parsed once, and no curve opened twice."""
        once = {*self.records.values(), *self.curves.values()} <= {1}
        return once and len(self.records) == trials >= len(self.curves) > 0
