"""Tables for the terminal."""

import pytest
from examples import parse

from tunewright.search.show.tables import plan_table
from tunewright.search.study.sampling import some_points
from tunewright.search.trial import Group, group_of


@pytest.mark.parametrize(("prepend", "stop_after"), [(False, 900), (False, 1050), (True, 1050)])
@pytest.mark.parametrize("sampler", ["halton", "grid", "tpe"])
def test_the_plan_says_how_many_updates_trials_have(prepend, stop_after, sampler):
    grid = {"space__optimizer__momentum__base_lr": [0.1, 1.0], "space__optimizer__adam__base_lr": 1}
    changes = grid | {"trials": ...} if sampler == "grid" else {}
    study = parse(sampler=sampler, prepend_warmup=prepend, stop_after=stop_after, **changes)
    table = plan_table(study)
    assert [column.header for column in table.columns][-1] == "updates per trial"
    groups: dict[Group, set[int]] = {}
    for point in some_points(study, most=1000):
        group = group_of(point, study.scientific_names)
        groups.setdefault(group, set()).add(study.updates(point))
    assert list(table.columns[0].cells) == [group.label for group in groups]
    spans = [sorted({min(own), max(own)}) for own in groups.values()]
    assert list(table.columns[-1].cells) == [" to ".join(map(str, own)) for own in spans]
