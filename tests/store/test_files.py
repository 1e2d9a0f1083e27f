"""A file of the results is whole or absent."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tunewright.search.store.files import atomic, read_curve, write_curve, write_json
from tunewright.search.trial import Curve


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


def test_curves_are_read_as_written(tmp_path):
    curve = Curve(
        np.array([1.0, math.nan]),
        np.array([math.inf, 2.0]),
        np.array([0, 2]),
        {"v": np.array([3.0, 4.0])},
        9,
        2.3,
    )
    write_curve(tmp_path / "c.npz", curve)
    assert read_curve(tmp_path / "c.npz") == curve
    clipped = replace(curve, tensors_clipped=np.array([0.0, 0.5]))
    write_curve(tmp_path / "c.npz", clipped)
    assert read_curve(tmp_path / "c.npz") == clipped
    write_curve(tmp_path / "c.npz", replace(curve, tensors_clipped=np.zeros(1)))
    with pytest.raises(ValueError, match="not those of a curve"):
        read_curve(tmp_path / "c.npz")


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.inf, "y": math.nan})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "x": "Infinity",
        "y": "NaN",
    }
