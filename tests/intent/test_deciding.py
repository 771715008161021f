"""Whom words lead to, decided without any of the world."""

from __future__ import annotations

import pytest

from meshd.discovery.intent_terms import IntentTerms
from meshd.discovery.ranking import Score
from meshd.intent.deciding import Bar, Barred, Choice, Decision, decide, refusal
from meshd.refusal import Reason

TERMS = IntentTerms(threshold=0.3, margin=0.05)
POLICY = Barred(Bar.POLICY, "it may not be called here")
HEALTH = Barred(Bar.HEALTH, "its breaker is open")
HELD = Barred(Bar.QUARANTINE, "its card is in quarantine")


def scores(*pairs: tuple[str, float]) -> list[Score]:
    return [Score(name, score, score, score, "", 0.0, score == 1.0) for name, score in pairs]


def made(found: list[Score], bars: dict[str, Barred] | None = None, fan_out: int = 1, **terms: object) -> Decision:
    return decide(found, lambda name: (bars or {}).get(name), TERMS._replace(**terms), fan_out)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "bars", "fan_out", "choice", "targets"),
    [
        ([("a", 0.6), ("b", 0.5)], {}, 1, Choice.CHOSEN, ("a",)),
        ([("a", 0.3)], {}, 1, Choice.CHOSEN, ("a",)),
        ([("a", 0.299)], {}, 1, Choice.UNCLEAR, ()),
        ([], {}, 1, Choice.UNCLEAR, ()),
        ([("a", 0.6), ("b", 0.56)], {}, 1, Choice.UNCLEAR, ()),
        ([("a", 0.6), ("b", 0.56), ("c", 0.55)], {}, 2, Choice.FANNED_OUT, ("a", "b")),
        ([("a", 0.6), ("b", 0.56), ("c", 0.4)], {}, 9, Choice.FANNED_OUT, ("a", "b")),
        ([("a", 0.31), ("b", 0.29)], {}, 9, Choice.CHOSEN, ("a",)),
        ([("a", 0.6), ("b", 0.4)], {"a": POLICY}, 1, Choice.CHOSEN, ("b",)),
        ([("a", 0.6), ("b", 0.59)], {"b": HEALTH}, 1, Choice.CHOSEN, ("a",)),
        ([("a", 0.6), ("b", 0.2)], {"a": POLICY}, 1, Choice.FORBIDDEN, ()),
        ([("a", 0.6), ("b", 0.2)], {"a": HEALTH}, 1, Choice.AWAY, ()),
        ([("a", 0.6), ("b", 0.5)], {"a": HEALTH, "b": POLICY}, 1, Choice.FORBIDDEN, ()),
        ([("a", 0.2)], {"a": POLICY}, 1, Choice.UNCLEAR, ()),
        ([("a", 1.0), ("b", 0.97)], {}, 1, Choice.NAMED, ("a",)),
        ([("a", 1.0), ("b", 1.0)], {}, 1, Choice.NAMED, ("a",)),
        ([("a", 1.0), ("b", 1.0), ("c", 0.99)], {}, 3, Choice.FANNED_OUT, ("a", "b")),
        ([("a", 1.0), ("b", 1.0)], {"a": HEALTH}, 1, Choice.NAMED, ("b",)),
        ([("a", 1.0), ("b", 1.0)], {"a": POLICY}, 1, Choice.NAMED, ("b",)),
        ([("a", 1.0), ("b", 0.9)], {"a": POLICY}, 1, Choice.FORBIDDEN, ()),
        ([("a", 1.0), ("b", 0.9)], {"a": HEALTH}, 1, Choice.CHOSEN, ("b",)),
        ([("a", 0.6), ("b", 0.4)], {"a": HELD}, 1, Choice.CHOSEN, ("b",)),
        ([("a", 0.6), ("b", 0.2)], {"a": HELD}, 1, Choice.FORBIDDEN, ()),
        ([("a", 1.0), ("b", 0.9)], {"a": HELD}, 1, Choice.FORBIDDEN, ()),
    ],
)
def test_every_way(
    found: list[tuple[str, float]], bars: dict[str, Barred], fan_out: int, choice: Choice, targets: tuple[str, ...]
) -> None:
    decision = made(scores(*found), bars, fan_out)
    assert (decision.choice, decision.targets) == (choice, targets)
    assert decision.why


def test_a_fallback_takes_the_place_of_a_refusal() -> None:
    for found, bars in (([], {}), ([("a", 0.6), ("b", 0.59)], {}), ([("a", 0.6)], {"a": POLICY})):
        decision = made(scores(*found), bars, fallback="desk")
        assert (decision.choice, decision.targets) == (Choice.FALLBACK, ("desk",))


def test_those_far_below_are_not_even_looked_at() -> None:
    asked: list[str] = []

    def bar(name: str) -> Barred | None:
        asked.append(name)
        return None

    decide(scores(("a", 0.9), *((f"x{at}", 0.1) for at in range(100))), bar, TERMS)
    assert asked == ["a"]


@pytest.mark.parametrize(
    ("bars", "reason"), [({"a": POLICY}, Reason.NOT_ALLOWED), ({"a": HEALTH}, Reason.UNKNOWN_TARGET)]
)
def test_a_refusal_says_who_came_near_and_why_not(bars: dict[str, Barred], reason: Reason) -> None:
    refused = refusal(made(scores(("a", 0.61), ("b", 0.1)), bars), "words\u202e" * 50)
    assert refused.reason is reason
    assert f"a (0.61) would, but {bars['a'].why}" in refused.message
    assert "\u202e" not in refused.message
    assert len(refused.message) < 700


def test_nobody_falls_back_on_who_is_in_quarantine() -> None:
    decision = made([], {"desk": HELD}, fallback="desk")
    assert (decision.choice, decision.targets) == (Choice.UNCLEAR, ())
