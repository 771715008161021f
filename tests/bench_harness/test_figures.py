"""The arithmetic of the benchmark's tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Bound, Goal, median, percentile, ratio, rise, rotated, verdict

NUMBERS = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=50)


def test_median_of_odd_and_even_counts() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 3, 2]) == 2.5


def test_percentile_is_the_nearest_rank() -> None:
    values = list(range(1, 101))
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1) == 100
    assert percentile(values, 0) == 1
    assert percentile([7], 0.99) == 7


@given(NUMBERS, st.floats(0, 1))
def test_percentile_is_one_of_the_values_and_enough_lie_below(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 0.01


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], -0.1), ([1], 1.1)])
def test_percentile_refuses_nonsense(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="needs values"):
        percentile(values, share)


def test_median_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_every_peer_is_first_once_in_as_many_rounds() -> None:
    names = ["a", "b", "c"]
    assert [rotated(names, turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(rotated(names, turn)) == names for turn in range(7))
    assert rotated([], 3) == []


def test_rise_finds_the_worst_later_point() -> None:
    assert rise([30, 20, 25, 22]) == 1.25
    assert rise([30, 20, 10]) == 1.0
    assert rise([]) == 1.0


@given(NUMBERS)
def test_rise_never_hides_growth_behind_a_dear_first_point(values: list[float]) -> None:
    assert rise([1e12, *values]) == rise(values)


def test_a_goal_is_judged_by_the_figure_as_it_was_measured() -> None:
    assert verdict(Goal(Bound.AT_MOST, 1.0), 1.0) == "met"
    assert verdict(Goal(Bound.AT_MOST, 1.0), 1.0000001) == "MISSED"
    assert verdict(Goal(Bound.BELOW, 20), 20) == "MISSED"
    assert verdict(Goal(Bound.AT_LEAST, 150), 149.999) == "MISSED"
    assert verdict(Goal(Bound.AT_LEAST, 150), 150) == "met"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert verdict(Goal(Bound.AT_MOST, 1.0), None) == "not measured"
    assert verdict(None, None) == ""
    assert verdict(None, 5.0) == ""
    assert verdict(Goal(Bound.AT_MOST, 1.0), 0.5, is_valid=False) == "INVALID"


def test_an_absent_peer_is_never_beaten() -> None:
    assert ratio(10.0, None) is None
    assert ratio(None, 10.0) is None
    assert ratio(10.0, 0.0) is None
    assert ratio(10.0, 20.0) == 0.5
