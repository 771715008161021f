"""Which version is meant: ranges, labels, and two versions with a share each."""

from __future__ import annotations

import pytest

from meshd.prompts.choosing import Unresolved, canary, choose, ordered
from meshd.prompts.desk import shared
from meshd.prompts.record import Head
from meshd.prompts.reference import read_selector

HEAD = Head(
    "summarise",
    dict.fromkeys(("1.0.0", "1.9.0", "1.10.0", "2.0.0-beta.1", "0.9.0"), "d"),
    {"production": {"1.9.0": 90, "1.10.0": 10}, "beta": {"2.0.0-beta.1": 1}},
)
WORKFLOWS = [f"wf-{at}" for at in range(10_000)]


@pytest.mark.parametrize(
    ("selector", "version"),
    [
        ("^1", "1.10.0"), ("~1.9", "1.9.0"), ("<1", "0.9.0"), ("*", "1.10.0"), ("1.x", "1.10.0"), ("1.0.0", "1.0.0"),
        ("^2.0.0-beta", "2.0.0-beta.1"), ("beta", "2.0.0-beta.1"), ("0.9 || ^1", "1.10.0"),
    ],
)  # fmt: skip
def test_the_newest_that_fits(selector: str, version: str) -> None:
    assert choose(HEAD, read_selector(selector), "wf") == version


@pytest.mark.parametrize("selector", ["^2", "^3", "staging", "", "9.9.9"])
def test_none_that_fits(selector: str) -> None:
    head = Head("summarise", HEAD.versions, {"beta": {"2.0.0-beta.1": 1}})
    with pytest.raises(Unresolved):
        choose(head, read_selector(selector), "wf")


def test_shares_hold_and_a_workflow_stays_where_it_is() -> None:
    weights = {"1.10.0": 10, "1.9.0": 90}
    got = {one: canary(weights, "summarise", "production", one) for one in WORKFLOWS}
    share = sum(1 for version in got.values() if version == "1.10.0") / len(got)
    assert 0.085 < share < 0.115
    assert got == {one: canary(dict(reversed(weights.items())), "summarise", "production", one) for one in WORKFLOWS}
    more = {one: canary({"1.9.0": 50, "1.10.0": 50}, "summarise", "production", one) for one in WORKFLOWS}
    assert all(more[one] == "1.10.0" for one in WORKFLOWS if got[one] == "1.10.0"), "who has the new one keeps it"
    other = {one: canary(weights, "other", "production", one) for one in WORKFLOWS}
    assert other != got, "it is not the same workflows that try everything"


def test_a_share_is_given_beside_the_version_before() -> None:
    head = Head("a", HEAD.versions, {"production": {"1.0.0": 1}})
    assert shared(head, "production", "1.9.0", 10) == {"1.0.0": 90, "1.9.0": 10}
    assert shared(HEAD, "production", "1.10.0", 50) == {"1.9.0": 50, "1.10.0": 50}
    assert shared(HEAD, "production", "1.10.0", 100) == {"1.10.0": 1}
    for label, version in (("staging", "1.9.0"), ("production", "1.0.0")):
        with pytest.raises(ValueError, match="a share of"):
            shared(HEAD, label, version, 10)


def test_the_newest_come_first() -> None:
    assert ordered(["1.0.0", "1.10.0", "1.9.0", "2.0.0-beta.1", "2.0.0"]) == [
        "2.0.0", "2.0.0-beta.1", "1.10.0", "1.9.0", "1.0.0",
    ]  # fmt: skip
