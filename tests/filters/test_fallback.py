"""Fallback: another attempt only while it is safe, cheap and in time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Call
from meshd.filters import fallback as fallback_filter
from meshd.filters.fallback import RESERVE, Fallback, Next
from meshd.filters.fallback_settings import RetrySettings
from meshd.filters.plan import Plan
from meshd.outcome import Fault, Outcome
from meshd.refusal import Reason
from meshd_sdk.context import Context
from tests.filters.calls import NOW_S, WALL_S, call, chat, outcome

DEFAULT = RetrySettings()


def made(
    target: str = "openai", method: str = "POST", attempt: int = 1, settings: RetrySettings | None = DEFAULT
) -> Call:
    is_llm = target in ("openai", "claude")
    one = call(target, method=method, ask=chat() if is_llm else None, body=b"{}")
    one.plan = Plan(retry=settings)
    one.attempt = attempt
    return one


def following(one: Call, ended: Outcome, chance: float = 1.0) -> Next | None:
    return Fallback(lambda: chance).next(one, ended)


CONNECT, RESET = outcome(0, Fault.CONNECT), outcome(0, Fault.RESET, is_forwarded=True)


@pytest.mark.parametrize(
    "ended",
    [
        CONNECT,
        RESET,
        outcome(0, Fault.CONNECT_TIMEOUT),
        outcome(0, Fault.REFUSED_STREAM, is_forwarded=True),
        outcome(200, Fault.TRUNCATED, is_forwarded=True),
        *[outcome(status, is_forwarded=True) for status in (500, 502, 503, 504, 529)],
        outcome(429),
        outcome(429, retry_after_s=2.0),
        outcome(503, retry_after_s=0.0),
    ],
)
def test_an_llm_is_asked_again_after_what_may_pass(ended: Outcome) -> None:
    one = made()
    assert following(one, ended) == Next(one.target, max(0.25, ended.retry_after_s or 0))


@pytest.mark.parametrize(
    "ended",
    [
        outcome(),
        outcome(400),
        outcome(401),
        outcome(404),
        outcome(408),
        outcome(501),
        outcome(429, retry_after_s=2.1),
        outcome(503, retry_after_s=60.0),
        outcome(503, is_answered=True),
        outcome(0, Fault.RESET, is_answered=True),
        outcome(503, reason=Reason.BUDGET_EXHAUSTED),
        *[
            outcome(0, fault)
            for fault in (
                Fault.TLS, Fault.FIRST_BYTE_TIMEOUT, Fault.GAP_TIMEOUT, Fault.GARBAGE, Fault.POOL_FULL,
                Fault.CALLER_GONE, Fault.CUT, Fault.DEADLINE, Fault.SHUTDOWN,
            )
        ],
    ],
)  # fmt: skip
def test_an_llm_is_not_asked_again_after_what_will_not(ended: Outcome) -> None:
    assert following(made(), ended) is None


@pytest.mark.parametrize("target", ["billing", "writer", "web"])
def test_what_may_change_something_is_sent_again_only_where_it_did_not_arrive(target: str) -> None:
    for method in ("POST", "PATCH", "get", ""):
        assert following(made(target, method), CONNECT) is not None
        for ended in (RESET, outcome(503), outcome(502), outcome(429, retry_after_s=1.0)):
            assert following(made(target, method), ended) is None
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        for ended in (CONNECT, RESET, outcome(502), outcome(503), outcome(504)):
            assert following(made(target, method), ended) is not None
        for ended in (outcome(500), outcome(529), outcome(429, retry_after_s=1.0)):
            assert following(made(target, method), ended) is None


@pytest.mark.parametrize("ended", [outcome(429), outcome(503), outcome(503, retry_after_s=1.0)])
def test_one_that_says_that_it_ends_the_same_is_not_asked_again(ended: Outcome) -> None:
    assert following(made(), ended) is not None
    ended.is_final = True
    assert following(made(), ended) is None


def test_a_body_that_is_gone_is_not_sent_again() -> None:
    one = made("billing", "PUT")
    one.body = None
    assert following(one, RESET) is None
    assert following(one, CONNECT) is not None
    one.method = "DELETE"
    assert following(one, RESET) is not None


def test_a_rule_says_what_is_tried_again() -> None:
    settings = RetrySettings(on=("timeout",))
    assert following(made(settings=settings), outcome(0, Fault.FIRST_BYTE_TIMEOUT)) is not None
    assert following(made(settings=settings), CONNECT) is None
    assert following(made("billing", settings=RetrySettings(on=("5xx",))), outcome(503)) is not None
    assert following(made(settings=RetrySettings(on=())), CONNECT) is None
    assert following(made(settings=None), CONNECT) is None


def test_attempts_are_numbered() -> None:
    for attempt, is_last in ((1, False), (2, False), (3, True), (9, True)):
        assert (following(made(attempt=attempt), CONNECT) is None) is is_last
    assert following(made(settings=RetrySettings(attempts=0)), CONNECT) is None


def test_the_pause_is_random_from_zero_to_a_doubling_end() -> None:
    settings = RetrySettings(attempts=10)
    ends = []
    for attempt in range(1, 8):
        longest, none = (following(made(attempt=attempt, settings=settings), CONNECT, chance) for chance in (1.0, 0.0))
        assert longest is not None
        assert none is not None
        assert none.delay_s == 0
        ends.append(longest.delay_s)
    assert ends == [0.25, 0.5, 1, 2, 4, 5, 5]


def test_a_short_retry_after_is_honoured() -> None:
    ended = outcome(503, retry_after_s=1.5)
    assert following(made(), ended, 0.0) == Next(made().target, 1.5)


@pytest.mark.parametrize("full", [{"status": 0, "fault": Fault.CONNECT}, {"status": 429}], ids=["out", "full"])
def test_no_attempt_begins_past_the_deadline(full: dict[str, Any]) -> None:
    one = made()
    for deadline_s, is_tried in ((WALL_S + 3.2, False), (WALL_S + 3.25, False), (WALL_S + 3.3, True)):
        one.context = Context("w", "a", deadline_s=deadline_s)
        ended = outcome(**full, now_s=NOW_S + 3.0)
        assert (following(one, ended) is not None) is is_tried


def test_a_quiet_upstream_has_one_calls_retries_and_gets_them_back_in_time() -> None:
    one = Fallback(lambda: 0.0)
    ends = [one.next(made(attempt=2), CONNECT) is not None for _ in range(5)]
    assert ends == [True, True, False, False, False]
    assert one.next(made("claude", attempt=2), CONNECT) is not None
    later = outcome(0, Fault.CONNECT, now_s=NOW_S + 10)
    assert [one.next(made(attempt=2), later) is not None for _ in range(2)] == [True, False]
    backwards = outcome(0, Fault.CONNECT, now_s=0.0)
    assert one.next(made(attempt=2), backwards) is None


@pytest.mark.parametrize("ended", [CONNECT, outcome(429)], ids=["out", "full"])
def test_an_outage_adds_a_fifth_to_the_traffic(ended: Outcome) -> None:
    one = Fallback(lambda: 0.0)
    retries = 0
    for _ in range(1000):
        attempt = 1
        while True:
            if one.next(made(attempt=attempt), ended) is None:
                break
            attempt += 1
            retries += 1
    assert retries == pytest.approx(1000 * 0.2, abs=RESERVE)


def test_rare_failures_are_all_tried_again() -> None:
    one = Fallback(lambda: 0.0)
    for number in range(1000):
        if number % 10 == 9:
            assert one.next(made(), CONNECT) is not None
        else:
            one.succeeded(made(), NOW_S)


def test_calls_without_trouble_save_no_more_than_the_last_hundred_would() -> None:
    one = Fallback(lambda: 0.0)
    for _ in range(10_000):
        one.succeeded(made(), NOW_S)
    assert sum(one.next(made(attempt=2), CONNECT) is not None for _ in range(100)) == 20


@pytest.mark.uncompiled
def test_upstreams_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback_filter, "BUDGETS_MAX", 3)
    one = Fallback(lambda: 0.0)
    for number in range(10):
        each = made()
        each.target = each.target._replace(name=f"u{number}")
        one.succeeded(each, NOW_S)
    assert len(one._purses) == 3


@given(
    status=st.integers(0, 999),
    fault=st.sampled_from(Fault),
    attempt=st.integers(0, 20),
    retry_after_s=st.none() | st.floats(allow_nan=True, min_value=None),
    method=st.text(max_size=8),
    is_answered=st.booleans(),
)
def test_whatever_an_attempt_ended_in(
    status: int, fault: Fault, attempt: int, retry_after_s: float | None, method: str, is_answered: bool
) -> None:
    ended = outcome(status, fault, retry_after_s=retry_after_s, is_answered=is_answered)
    then = following(made(method=method, attempt=attempt), ended)
    if then is not None:
        assert not is_answered
        assert attempt <= 2
        assert 0 <= then.delay_s <= 5


def test_it_explains_itself() -> None:
    assert Fallback(lambda: 0.0).explain(made("billing")) == "up to 2 more attempts after connect"
    assert Fallback(lambda: 0.0).explain(made(settings=None)) == "no attempt is made again"
    # A call with a claim is never made again where it may have been carried out: see `Claim.may_repeat`.
    claimed = made("billing", "DELETE")
    assert Fallback(lambda: 0.0).explain(claimed) == "up to 2 more attempts after 5xx, connect, reset"
    claimed.claim = object()
    assert Fallback(lambda: 0.0).explain(claimed) == "up to 2 more attempts after connect"
