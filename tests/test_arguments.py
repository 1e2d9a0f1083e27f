"""A factory's arguments: right ones pass, wrong ones are named with their rule and value."""

import pytest

from tunewright.models.arguments import at_least, one_of


def test_right_values_pass() -> None:
    at_least(0, depth=0, width=3)
    one_of(("pre", "post"), normalization="post")


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
def test_a_wrong_number_is_named_with_its_rule(value: object) -> None:
    with pytest.raises(
        ValueError, match=f"width: must be a whole number of at least 1, got {value!r}"
    ):
        at_least(1, width=value)  # type: ignore[arg-type]


def test_a_wrong_choice_is_named_with_all_choices() -> None:
    with pytest.raises(
        ValueError, match="normalization: must be one of 'pre', 'post', got 'middle'"
    ):
        one_of(("pre", "post"), normalization="middle")


def test_a_number_that_would_fill_memory_is_named_with_its_rule() -> None:
    at_least(1, width=10_000)
    with pytest.raises(
        ValueError, match="width: must be a whole number of at most 10000, got 1000000000"
    ):
        at_least(1, width=10**9)
    at_least(0, most=10**9, cue_step=10**9)
