"""Semantic versions and ranges: by example, and by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.versions import Version, matches, range_of, version_of

NUMBERS = st.integers(0, 30)
IDENTIFIERS = st.one_of(st.integers(0, 99).map(str), st.sampled_from(["alpha", "beta", "rc", "x-1", "0a"]))
VERSIONS = st.builds(Version, NUMBERS, NUMBERS, NUMBERS, st.lists(IDENTIFIERS, max_size=3).map(tuple))
RELEASES = st.builds(Version, NUMBERS, NUMBERS, NUMBERS, st.just(()))


@pytest.mark.parametrize(
    ("range", "yes", "no"),
    [
        ("^1.2", ["1.2.0", "1.9.9"], ["1.1.9", "2.0.0", "2.0.0-alpha", "1.5.0-beta"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0", ["0.0.0", "0.9.9"], ["1.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        (">=1 <2", ["1.0.0", "1.99.0"], ["0.9.9", "2.0.0", "2.0.0-rc"]),
        (">1", ["2.0.0"], ["1.9.9"]),
        ("<=1.2", ["1.2.9", "0.0.1"], ["1.3.0"]),
        ("1.x", ["1.0.0", "1.7.2"], ["2.0.0"]),
        ("1.2.*", ["1.2.7"], ["1.3.0"]),
        ("1.2 - 1.4", ["1.2.0", "1.4.9"], ["1.5.0", "1.1.0"]),
        ("1 || 3", ["1.5.0", "3.0.1"], ["2.0.0"]),
        ("1.2.3", ["1.2.3", "v1.2.3", "1.2.3+build"], ["1.2.4"]),
        (">=1.0.0-alpha <2", ["1.0.0-beta", "1.4.0"], ["1.4.0-beta"]),
        ("*", ["0.0.1", "9.9.9"], ["1.0.0-a", "no version"]),
        ("", ["1.0.0", "no version", ""], []),
        (">= 1.2, < 1.4", ["1.3.0"], ["1.4.0"]),
    ],
)
def test_what_lies_in_a_range(range: str, yes: list[str], no: list[str]) -> None:
    assert [one for one in yes if not matches(one, range)] == []
    assert [one for one in no if matches(one, range)] == []


@pytest.mark.parametrize(
    "text", ["1.2.3.4", "a", ">", "^", "1..2", "1 ||| 2", ">=1 <", "1.2.3-", "x" * 300, "1||" * 99]
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="range of versions"):
        range_of(text)


@pytest.mark.parametrize("text", ["", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "one", "1.2.3 ", "-1", "9" * 400])
def test_what_is_no_version(text: str) -> None:
    assert (version_of(text) is None) == (text.strip() != "1.2.3")


@given(VERSIONS)
def test_a_version_is_read_as_it_is_written(version: Version) -> None:
    assert version_of(str(version)) == version


@given(VERSIONS, VERSIONS)
def test_versions_have_one_order(one: Version, other: Version) -> None:
    assert (one.rank == other.rank) == (one == other)
    assert (one.rank < other.rank) + (one.rank > other.rank) + (one == other) == 1


@given(RELEASES, st.lists(IDENTIFIERS, min_size=1, max_size=3))
def test_what_precedes_a_release_is_older_than_it(release: Version, pre: list[str]) -> None:
    assert release._replace(pre=tuple(pre)).rank < release.rank


@given(VERSIONS, VERSIONS)
def test_bounds_are_what_the_order_says(bound: Version, version: Version) -> None:
    if version.pre and (not bound.pre or version[:3] != bound[:3]):
        return  # such a one lies in no range that does not name it
    order = (version.rank > bound.rank) - (version.rank < bound.rank)
    for sign, wanted in ((">", order > 0), (">=", order >= 0), ("<", order < 0), ("<=", order <= 0), ("=", order == 0)):
        assert matches(str(version), f"{sign}{bound}") is wanted


@given(RELEASES, RELEASES)
def test_a_caret_keeps_the_first_number_that_is_not_zero(bound: Version, version: Version) -> None:
    first = next((at for at in range(3) if bound[at]), 2)
    same = version[: first + 1] == bound[: first + 1]
    assert matches(str(version), f"^{bound}") is (same and version.rank >= bound.rank)


@given(RELEASES, RELEASES)
def test_a_tilde_keeps_the_first_two_numbers(bound: Version, version: Version) -> None:
    wanted = version[:2] == bound[:2] and version.rank >= bound.rank
    assert matches(str(version), f"~{bound}") is wanted


@given(st.text(alphabet="0123456789.<>=^~|-*xv, ab", max_size=40), VERSIONS)
def test_nonsense_is_a_range_or_is_refused(text: str, version: Version) -> None:
    try:
        range_of(text).admits(version)
    except ValueError:
        pass
