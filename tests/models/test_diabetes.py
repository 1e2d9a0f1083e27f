"""Diabetes: standardized columns, disjoint parts, and a network better than a constant."""

from itertools import islice

import pytest
import torch

from tunewright.models import diabetes


def test_training_columns_are_standardized() -> None:
    x_NF, y_N = diabetes.load().train
    assert (x_NF.dtype, y_N.dtype) == (torch.float32, torch.float32)
    for column in (*x_NF.T, y_N):
        assert column.mean().item() == pytest.approx(0, abs=1e-5)
        assert column.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert diabetes.mlp().chance_loss == pytest.approx(1, abs=1e-5)


def test_parts_are_disjoint_and_cover_all_patients() -> None:
    split = diabetes.load()
    rows = torch.cat(
        [torch.column_stack(part) for part in (split.train, split.validation, split.test)]
    )
    assert [len(part[1]) for part in (split.train, split.validation, split.test)] == [264, 89, 89]
    assert len(rows.unique(dim=0)) == 442


def test_the_mlp_learns_more_than_a_constant() -> None:
    workload = diabetes.mlp()
    model = workload.build_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in islice(workload.train_batches(32, seed=0), 100):
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
    assert workload.evaluate(model)["val_loss"] < 0.7


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="width: must be a whole number of at least 1, got 0"):
        diabetes.mlp(width=0)
