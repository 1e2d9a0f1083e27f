"""Splits never overlap; batches are full, repeatable, and one order whatever the batch size."""

from itertools import islice

import numpy as np
import pytest
import torch

from tunewright.models.batches import Split, endless_batches, three_parts

EXAMPLES = (torch.arange(10.0), torch.arange(10))


def order(batch_size: int, seed: int, examples: int) -> list[int]:
    batches = islice(endless_batches(EXAMPLES, batch_size, seed), -(-examples // batch_size))
    return torch.cat([y_B for _, y_B in batches]).tolist()[:examples]


def test_parts_are_disjoint_cover_everything_and_have_equal_class_frequencies() -> None:
    labels_N = np.repeat([0, 1, 2], [100, 50, 50])
    parts = three_parts(200, labels_N)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert [np.bincount(labels_N[rows]).tolist() for rows in parts] == [
        [60, 30, 30],
        [20, 10, 10],
        [20, 10, 10],
    ]
    assert all(map(np.array_equal, parts, three_parts(200, labels_N)))


def test_parts_without_labels_have_the_stated_sizes() -> None:
    assert [len(rows) for rows in three_parts(70, fraction=1 / 7)] == [50, 10, 10]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_batch_is_full_and_inputs_stay_with_their_targets(batch_size: int) -> None:
    for x_B, y_B in islice(endless_batches(EXAMPLES, batch_size, seed=0), 12):
        assert x_B.shape == y_B.shape == (batch_size,)
        assert torch.equal(x_B.long(), y_B)


def test_each_epoch_is_a_new_permutation() -> None:
    drawn = order(batch_size=4, seed=0, examples=30)
    epochs = [drawn[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size() -> None:
    assert (
        order(3, seed=1, examples=40)
        == order(8, seed=1, examples=40)
        == order(10, seed=1, examples=40)
    )
    assert order(3, seed=1, examples=40) != order(3, seed=2, examples=40)


def test_the_order_ignores_and_keeps_the_callers_random_state() -> None:
    before = torch.random.get_rng_state()
    first = order(3, seed=0, examples=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert order(3, seed=0, examples=20) == first


@pytest.mark.parametrize("batch_size", [0, 11])
def test_an_impossible_batch_size_is_refused_at_once_with_both_numbers(batch_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"between 1 and the 10 training examples, got {batch_size}"
    ):
        endless_batches(EXAMPLES, batch_size, seed=0)


def test_a_part_is_moved_to_a_device_once() -> None:
    split = Split(train=EXAMPLES, validation=EXAMPLES, test=EXAMPLES)
    meta = torch.device("meta")
    assert split.part("test", meta)[0].device == meta
    assert split.part("test", meta) is split.part("test", meta)
    assert split.part("train", torch.device("cpu"))[0] is EXAMPLES[0]
