"""What is used of other packages without their promise: each name must be where it was.

A package whose private names are used has a cap in pyproject.toml, the version after the newest
one that these tests have seen. To lift a cap, install the new version and run this file. torch is
the exception: its names here are as old as those that it promises, and a cap on torch would keep
people from the version that their GPU needs.
"""

import ast
import inspect
import re
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import optuna
import optuna_dashboard._custom_plot_data as plot_data
import optuna_dashboard._serializer as serializer
import pytest
import torch
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.study._frozen import FrozenStudy
from optuna.trial import create_trial
from packaging.requirements import Requirement

from tunewright.search.store.baseline import ARTIFACTS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNCAPPED = {"torch"}
DISTRIBUTIONS = {"optuna_dashboard": "optuna-dashboard"}
# Not private by name, but copies of other packages that come with this one for its own use.
VENDORED = ("joblib.externals",)
# What Optuna's modules do with these is tested below; so are methods that ours override, and
# attributes that are read: `_storage`, `_backend`, `_trial_id`.
NAMES = {
    "optuna.storages._cached_storage": {"_CachedStorage"},
    "optuna.storages._rdb": {"models"},
    "optuna.study._frozen": {"FrozenStudy"},
    "torch.utils._python_dispatch": {"TorchDispatchMode"},
    "torch.utils._pytree": {"tree_flatten", "tree_leaves", "tree_map", "tree_unflatten"},
}


def is_private(module: str, name: str) -> bool:
    parts = [*module.split("."), name]
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return hidden or module.startswith(VENDORED)


def imported() -> dict[str, set[str]]:
    """The private names that the library and the workloads import from other packages."""
    found: dict[str, set[str]] = {}
    files = [path for folder in ("search", "models") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_bytes()))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {one.name for one in node.names if is_private(node.module, one.name)}
            if names:
                found.setdefault(node.module, set()).update(names)
        elif isinstance(node, ast.Import):
            assert not [one.name for one in node.names if is_private(one.name, "")]
    return found


def requirements() -> dict[str, Requirement]:
    return {one.name: one for one in map(Requirement, PROJECT["dependencies"])}


def test_every_private_name_that_is_imported_is_listed_here():
    found = imported()
    assert found == {module: NAMES[module] & found[module] for module in found}
    assert set(NAMES) == set(found)


@pytest.mark.parametrize(("module", "names"), NAMES.items(), ids=NAMES)
def test_a_private_name_is_where_it_was(module, names):
    assert not [name for name in names if not hasattr(import_module(module), name)]


@pytest.mark.parametrize(
    "package", sorted({*(module.partition(".")[0] for module in NAMES), "optuna_dashboard"})
)
def test_a_package_whose_private_names_are_used_has_a_cap(package):
    name = DISTRIBUTIONS.get(package, package)
    own = requirements()[name].specifier
    assert version(name) in own
    operators = {one.operator for one in own}
    assert operators == ({">="} if package in UNCAPPED else {">=", "<"})


def test_torch_copies_many_tensors_into_many():
    targets, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.ones(3)]
    torch._foreach_copy_(targets, sources)
    assert [own.tolist() for own in targets] == [own.tolist() for own in sources]


# --- Optuna ----------------------------------------------------------------------------------


class Watched(optuna.storages.RDBStorage):
    """Counts the calls of the methods that the store overrides."""

    calls: list[str]

    def _set_trial_intermediate_value_without_commit(self, *arguments):
        self.calls.append("value")
        return super()._set_trial_intermediate_value_without_commit(*arguments)

    def _set_trial_attr_without_commit(self, *arguments):
        self.calls.append("attribute")
        return super()._set_trial_attr_without_commit(*arguments)


@pytest.fixture
def storage():
    made = Watched("sqlite://")
    made.calls = []
    yield made
    made.engine.dispose()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (
            "_set_trial_intermediate_value_without_commit",
            ["self", "session", "trial_id", "step", "intermediate_value"],
        ),
        (
            "_set_trial_attr_without_commit",
            ["self", "session", "model_cls", "trial_id", "key", "value"],
        ),
    ],
)
def test_a_method_that_the_store_overrides_takes_what_it_took(method, parameters):
    found = inspect.signature(getattr(optuna.storages.RDBStorage, method))
    assert list(found.parameters) == parameters


def test_a_trial_that_is_added_is_written_by_the_methods_that_the_store_overrides(storage):
    study = optuna.create_study(storage=storage)
    study.add_trial(
        create_trial(value=1.0, user_attrs={"a": 1}, intermediate_values={0: 2.0, 5: 3.0})
    )
    assert storage.calls == ["attribute", "value", "value"]


def test_the_tables_of_a_database_have_the_columns_that_the_store_writes():
    stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(0.5)
    assert stored == (0.5, models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE)
    tables = models.BaseModel.metadata.tables
    assert set(tables) > {"studies", "trials", "version_info"}
    columns = {column.name for column in tables["trial_intermediate_values"].columns}
    assert columns > {"trial_id", "step", "intermediate_value", "intermediate_value_type"}
    for name in ("trial_user_attributes", "trial_system_attributes"):
        assert {column.name for column in tables[name].columns} > {"trial_id", "key", "value_json"}


def test_studies_and_trials_have_the_attributes_that_are_read(storage):
    study = optuna.create_study(storage=optuna.storages.get_storage(storage))
    assert isinstance(study._storage, _CachedStorage)
    assert study._storage._backend is storage
    study.add_trial(create_trial(value=1.0, constraints={"diverged": -1.0}))
    (trial,) = study.get_trials()
    assert trial.constraints == {"diverged": -1.0}
    assert study._storage.get_trial(trial._trial_id).number == 0
    study._storage.set_study_system_attr(study._study_id, "key", "value")
    (frozen,) = study._storage.get_all_studies()
    assert isinstance(frozen, FrozenStudy)
    assert frozen.system_attrs["key"] == "value"


def test_a_study_keeps_figures_and_artifacts_under_the_names_that_are_read():
    assert ARTIFACTS == ARTIFACTS_ATTR_PREFIX
    assert plot_data.SYSTEM_ATTR_PLOT_DATA == "dashboard:plot_data:"
    assert all(
        re.fullmatch(r"dashboard:plot_data:figure:\d+", key)
        for key in plot_data.split_plot_data("x" * 5000, "dashboard:plot_data:figure:")
    )


# --- Optuna Dashboard ------------------------------------------------------------------------


def test_the_dashboard_reads_constraints_from_the_list_that_it_is_shown():
    """Once it reads Optuna 5's, the list that the dashboard is shown is no longer needed."""
    assert serializer.CONSTRAINTS_KEY == _CONSTRAINTS_KEY == "constraints"
    for system_attrs, expected in (({_CONSTRAINTS_KEY: [2.0]}, [2.0]), ({}, [])):
        trial = create_trial(value=1.0, constraints={"diverged": 1.0}, system_attrs=system_attrs)
        trial.number = trial._trial_id = 0
        assert serializer.serialize_frozen_trial(0, trial, {})["constraints"] == expected
