"""Windows stand still in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.filters.window import Window, length_s


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("window", "at", "start", "resets"),
    [
        ("1h", "2026-11-26T09:59:59", "2026-11-26T09:00", "2026-11-26 10:00 UTC"),
        ("1h", "2026-11-26T10:00:00", "2026-11-26T10:00", "2026-11-26 11:00 UTC"),
        ("90m", "2026-11-26T10:00:00", "2026-11-26T09:00", "2026-11-26 10:30 UTC"),
        ("1d", "2026-11-26T23:59:59.999", "2026-11-26T00:00", "2026-11-27 00:00 UTC"),
        ("7d", "2026-11-25T23:59:59", "2026-11-19T00:00", "2026-11-26 00:00 UTC"),
        ("7d", "2026-11-26T00:00:00", "2026-11-26T00:00", "2026-12-03 00:00 UTC"),
        ("month", "2026-02-28T23:59:59", "2026-02-01T00:00", "2026-03-01 00:00 UTC"),
        ("month", "2026-12-31T23:59:59", "2026-12-01T00:00", "2027-01-01 00:00 UTC"),
    ],
)
def test_where_a_window_begins_and_ends(window: str, at: str, start: str, resets: str) -> None:
    one = Window(window)
    assert one.at(unix(at)) == f"{window}/{start}"
    assert one.resets(unix(at)) == resets


@pytest.mark.parametrize(
    "text",
    ["", "0h", "0d", "1", "h", "-1h", "1.5h", "1w", "1y", "1s", "Month", "1h\n", "367d", "99999h", "1h30m", "٣h"],
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        length_s(text)


@pytest.mark.parametrize("wall_s", [-1.0, 0.0, 1e18, float("inf")])
def test_no_clock_breaks_it(wall_s: float) -> None:
    for text in ("1h", "month", "366d"):
        assert Window(text).at(wall_s).startswith(f"{text}/")


@given(st.floats(0, 4e9), st.floats(0, 4e9), st.sampled_from(["1m", "1h", "6h", "1d", "7d", "30d", "month"]))
def test_two_moments_share_a_window_exactly_if_neither_is_past_the_others_end(
    one_s: float, other_s: float, text: str
) -> None:
    """Whatever it was asked before: it remembers one window, and may be asked for an older one."""
    fresh, used = Window(text), Window(text)
    used.at(other_s)
    assert used.at(one_s) == fresh.at(one_s)
    assert fresh.start_s <= one_s < fresh.end_s
    assert (Window(text).at(other_s) == fresh.at(one_s)) is (fresh.start_s <= other_s < fresh.end_s)
