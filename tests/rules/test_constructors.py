"""What the source of an optimizer shows is what its class says when it is imported."""

import importlib
import inspect
import subprocess
import sys

import own_optimizers
import pytest
import torch

from tunewright.search.rules.constructors import (
    NEEDS_CLOSURE,
    module_and_class,
    read_constructor,
)
from tunewright.search.rules.torch_optimizers import constructor_of_class, load

OF_TORCH = [
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
]
DOUBTFUL = ("Muon", "Optimizer")  # defaults that are no literals; no optimizer at all


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_source_of_each_of_torchs_own_says_what_the_class_does(name):
    read = read_constructor(f"torch.optim.{name}")
    if name in DOUBTFUL:
        assert read is None
        return
    assert read == constructor_of_class(load(f"torch.optim:{name}"))
    assert read.settings
    assert bool(read.refusal) == (name in ("LBFGS", "SparseAdam"))


@pytest.mark.parametrize(
    "name", ["Signs", "Decoupled", "Inherited", "Counting", "Open", "Needy", "Failing", "Several"]
)
def test_and_so_does_that_of_a_users(name):
    read = read_constructor(f"own_optimizers.{name}")
    assert read == constructor_of_class(getattr(own_optimizers, name))
    assert read.refusal == (NEEDS_CLOSURE if name == "Several" else "")


def test_members_of_a_pair_are_named_by_the_singular_and_their_place():
    settings = read_constructor("torch.optim.Rprop").settings
    assert list(settings)[:4] == ["eta1", "eta2", "step_size1", "step_size2"]
    read = read_constructor("torch.optim.Adafactor")
    assert read.arguments({"eps2": 0.1, "d": 2.0}) == {"eps": (None, 0.1), "d": 2.0}
    read = read_constructor("torch.optim.Adam")
    given = {"beta2": 0.9, "eps": 1e-3, "beta1": 0.5}
    assert read.arguments(given) == {"betas": (0.5, 0.9), "eps": 1e-3}
    assert read.arguments({}) == {}
    assert read.defaults == {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def test_values_are_converted_by_their_kind():
    settings = read_constructor("own_optimizers.Signs").settings
    assert {name: setting.kind for name, setting in settings.items()} == {
        "beta1": "float",
        "beta2": "float",
        "steps": "number",
        "kind": "text",
    }
    counting = read_constructor("own_optimizers.Counting").settings["period"]
    assert counting.kind == "int"
    assert counting.convert(2.7) == 3
    assert isinstance(settings["beta1"].convert(0), float)
    assert isinstance(settings["steps"].convert(2), int)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"lr": 0.1}, ("lr", "is no setting: the learning rate is base_lr")),
        ({"params": 1}, ("params", "is no setting: they are the model's")),
        (
            {"betas": 0.9},
            ("betas", "is no argument of it; known are beta1, beta2, steps, kind"),
        ),
        ({"beta1": "a"}, ("beta1", "must be a number, got 'a'")),
        ({"beta1": (0.9, True)}, ("beta1", "must be a number, got True")),
        ({"kind": 3}, ("kind", "must be a text, got 3")),
    ],
)
def test_a_setting_that_is_none_is_named_with_those_that_are(given, fault):
    assert list(read_constructor("own_optimizers.Signs").faults(given)) == [fault]


def test_a_source_that_leaves_a_doubt_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    head = "from torch.optim import Optimizer as Base, SGD\nimport torch.optim as optim\n"
    body = "(Base):\n    def __init__(self, params, lr=0.1, k=1): pass\n"
    sources = {
        "plain": f"class Own{body}",
        "by_module": f"class Own{body}".replace("Base", "optim.Optimizer"),
        "two": f"class Own{body}class Own{body}",
        "bound": f"class Own{body}Own = SGD\n",
        "decorated": f"@print\nclass Own{body}",
        "mixed": f"class Own{body}".replace("(Base)", "(Base, dict)"),
        "inside": f"if True:\n    class Own{body}".replace("\n    def", "\n        def"),
        "strange": "import nowhere\nclass Own(nowhere.Base): pass\n",
        "broken": "class Own(:",
        "circle": "from circle import Own\n",
        "missing": "",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(head + source)
        read = read_constructor(f"{name}.Own")
        assert (read is not None) == (name in ("plain", "by_module")), name
    assert list(read_constructor("plain.Own").settings) == ["k"]
    assert read_constructor("not_installed.Own") is None


def test_an_edited_source_is_read_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    head = "import torch\nclass Own(torch.optim.Optimizer):\n"
    source = head + "    def __init__(self, params, {}=1): pass\n"
    for name in ("first", "second_of_them"):
        (tmp_path / "edited_module.py").write_text(source.format(name))
        importlib.invalidate_caches()
        assert list(read_constructor("edited_module:Own").settings) == [name]


def test_a_package_may_hand_it_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "handing_on"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Kept as Own\n")
    (package / "inner.py").write_text(
        "from torch.optim import SGD\nclass Kept(SGD):\n    def __init__(self, params, q=2): pass\n"
    )
    assert list(read_constructor("handing_on.Own").settings) == ["q"]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("torch.optim.AdamW", ("torch.optim", "AdamW")),
        ("a.b:C", ("a.b", "C")),
        ("a:C", ("a", "C")),
        ("a..C", ("a..C", "")),
        ("a:b:C", ("a:b:C", "")),
        (".C", (".C", "")),
        ("a.", ("a.", "")),
    ],
)
def test_an_import_path_has_two_parts_or_is_none(path, parts):
    assert module_and_class(path) == parts


def test_reading_imports_no_torch():
    program = (
        "import sys; from tunewright.search.rules.constructors import read_constructor as read; "
        "assert read('torch.optim.AdamW').settings; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
