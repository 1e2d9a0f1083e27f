"""The JSON schema of a study file: what editors show, and what the reference is made of."""

from collections.abc import Iterator
from typing import Any

import pytest
from examples import parse
from pydantic import BaseModel, TypeAdapter

from tunewright.search.rules.hyperparameters import HYPERPARAMETERS
from tunewright.search.rules.optimizers import RULES
from tunewright.search.rules.schedule import SHAPES
from tunewright.search.study.cluster import Cluster
from tunewright.search.study.samplers import SAMPLERS
from tunewright.search.study.study import CommandLog, Figure, Range, Study, schema
from tunewright.search.trial import COMMON

LR = {"low": 1e-3, "high": 1.0, "log": True}


def _keys() -> Iterator[tuple[str, dict[str, Any]]]:
    whole = schema()
    for table, one in [("", whole), *whole["$defs"].items()]:
        for key, said in one.get("properties", {}).items():
            yield f"{table}.{key}".lstrip("."), said


KEYS = dict(_keys())  # every key of a study file, as Table.key, with what the schema says of it


@pytest.mark.parametrize(("key", "said"), KEYS.items(), ids=KEYS)
def test_every_key_is_described_in_a_few_words(key, said):
    assert 5 <= len(said["description"]) <= 250
    assert not said["description"].endswith(".")


def test_what_must_be_one_of_some_words_is_an_enum():
    assert KEYS["sampler"]["enum"] == list(SAMPLERS)
    assert KEYS["precision"]["enum"] == ["float32", "bfloat16"]
    for table in ("Space", "AxesOfTorch", *RULES):
        one, several, _ = KEYS[f"{table}.decay"]["anyOf"]
        assert one["enum"] == several["items"]["enum"] == list(SHAPES)


def test_a_default_is_that_of_the_optimizer():
    for name, rule in RULES.items():
        for setting, default in rule.defaults.items():
            assert KEYS[f"{name}.{setting}"]["description"].endswith(f"; default: {default}")


def examples(model: type[BaseModel]) -> list[Any]:
    return [
        pytest.param(field, example, id=f"{model.__name__}.{name}")
        for name, field in model.model_fields.items()
        for example in field.examples or []
    ]


@pytest.mark.parametrize(
    ("field", "example"),
    [one for model in (Study, CommandLog, Cluster, Figure, Range) for one in examples(model)],
)
def test_every_example_is_valid(field, example):
    TypeAdapter(field.rebuild_annotation()).validate_python(example)


@pytest.mark.parametrize("optimizer", RULES)
def test_every_example_of_a_hyperparameter_is_valid(optimizer):
    for name in (*COMMON, *RULES[optimizer].defaults):
        example = HYPERPARAMETERS[name].example
        assert example is not None
        parse(trials=50, space={"optimizer": {optimizer: {"base_lr": LR, name: example}}})


@pytest.mark.parametrize("decay", [name for name, shape in SHAPES.items() if shape.defaults])
def test_every_example_of_a_setting_of_a_decay_is_valid(decay):
    for name in SHAPES[decay].defaults:
        parse(space__decay=decay, **{f"space__{name}": HYPERPARAMETERS[name].example})
