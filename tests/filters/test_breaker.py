"""Breaker: every cell of its table, the numbers that move it, and what may never happen on any path."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshd.call import Call, Headers
from meshd.filters import breaker as breaker_filter
from meshd.filters.breaker import Breaker, BreakerKey, Permit
from meshd.filters.breaker_settings import BreakerSettings
from meshd.filters.circuit import PROBE_OVERDUE_S, STATES, Circuit, Sign, State
from meshd.filters.plan import Plan
from meshd.outcome import Fault, Outcome
from meshd.refusal import Reason, Refused
from tests.filters.calls import call, chat, outcome, policy

CLOSED, OPEN, HALF_OPEN = State.CLOSED, State.OPEN, State.HALF_OPEN
DEFAULT = BreakerSettings()


# ---------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("state", "sign", "then"),
    [
        (CLOSED, Sign.PASSED, CLOSED),
        (CLOSED, Sign.FAILED, CLOSED),
        (CLOSED, Sign.TRIPPED, OPEN),
        (CLOSED, Sign.COOLED, CLOSED),
        (CLOSED, Sign.RECOVERED, CLOSED),
        (OPEN, Sign.PASSED, OPEN),
        (OPEN, Sign.FAILED, OPEN),
        (OPEN, Sign.TRIPPED, OPEN),
        (OPEN, Sign.COOLED, HALF_OPEN),
        (OPEN, Sign.RECOVERED, OPEN),
        (HALF_OPEN, Sign.PASSED, HALF_OPEN),
        (HALF_OPEN, Sign.FAILED, OPEN),
        (HALF_OPEN, Sign.TRIPPED, OPEN),
        (HALF_OPEN, Sign.COOLED, HALF_OPEN),
        (HALF_OPEN, Sign.RECOVERED, CLOSED),
    ],
)
def test_every_cell(state: State, sign: Sign, then: State) -> None:
    assert STATES[state, sign] is then


def test_the_table_is_whole() -> None:
    assert set(STATES) == set(product(State, Sign))
    assert all(STATES[CLOSED, sign] is not HALF_OPEN for sign in Sign)


# ---------------------------------------------------------------------- one circuit


def ended(circuit: Circuit, now_s: float, status: int = 200, fault: Fault = Fault.NONE, chance: float = 0.5) -> None:
    """Admit and end one attempt at a moment."""
    admitted = circuit.admit(DEFAULT, now_s)
    assert admitted >= 0
    circuit.record(admitted, outcome(status, fault, now_s=now_s), chance)


def is_open_for(circuit: Circuit, now_s: float, wait_s: float) -> bool:
    return circuit.state is OPEN and circuit.wait_s(now_s) == pytest.approx(wait_s)


def opened(now_s: float = 0.0, chance: float = 0.5) -> Circuit:
    circuit = Circuit(DEFAULT, now_s)
    for _ in range(5):
        ended(circuit, now_s, 503, chance=chance)
    assert circuit.state is OPEN
    return circuit


@pytest.mark.parametrize(
    ("status", "fault", "is_terminal"),
    [
        (500, Fault.NONE, True),
        (529, Fault.NONE, True),
        (0, Fault.CONNECT, True),
        (0, Fault.FIRST_BYTE_TIMEOUT, True),
        (200, Fault.GAP_TIMEOUT, False),
        (200, Fault.RESET, False),
        (200, Fault.NONE, False),
    ],
)
def test_five_failures_in_a_row_open_it(status: int, fault: Fault, is_terminal: bool) -> None:
    circuit = Circuit(DEFAULT, 0.0)
    for number in range(5):
        assert circuit.state is CLOSED
        circuit.record(
            circuit.admit(DEFAULT, number), outcome(status, fault, now_s=number, is_terminal=is_terminal), 0.5
        )
    assert circuit.state is OPEN
    assert circuit.since_s == 4


@pytest.mark.parametrize(
    ("status", "fault"),
    [(429, Fault.NONE), (400, Fault.NONE), (404, Fault.NONE), (200, Fault.CALLER_GONE), (0, Fault.DEADLINE)],
)
def test_what_is_no_failure_neither_opens_it_nor_ends_a_row(status: int, fault: Fault) -> None:
    circuit = Circuit(DEFAULT, 0.0)
    for number in range(200):
        ended(circuit, number / 100, status, fault)
    assert circuit.state is CLOSED
    for _ in range(4):
        ended(circuit, 2.0, 503)
    ended(circuit, 2.0, status, fault)
    assert circuit.state is CLOSED
    ended(circuit, 2.0, 503)
    assert circuit.state is OPEN


def test_a_success_ends_a_row() -> None:
    circuit = Circuit(DEFAULT, 0.0)
    for status in (503, 503, 503, 503, 200, 503, 503, 503, 503):
        ended(circuit, 0.0, status)
    assert circuit.state is CLOSED


def test_half_of_twenty_in_the_window_opens_it_and_of_nineteen_does_not() -> None:
    circuit = Circuit(DEFAULT, 0.0)
    for number in range(9):
        ended(circuit, number, 503)
        ended(circuit, number, 200)
    ended(circuit, 10.0, 503)
    assert circuit.state is CLOSED  # 10 of 19
    ended(circuit, 10.0, 503)
    assert circuit.state is OPEN  # 11 of 20


def test_what_is_older_than_the_window_is_forgotten() -> None:
    circuit = Circuit(DEFAULT, 0.0)
    for _ in range(9):
        ended(circuit, 0.0, 503)
        ended(circuit, 0.0, 200)
    for later_s in (40.0, 10_000.0):
        ended(circuit, later_s, 503)
        ended(circuit, later_s, 503)
        ended(circuit, later_s, 200)
    assert circuit.state is CLOSED


def test_it_opens_for_fifteen_seconds_doubling_to_five_minutes_with_jitter() -> None:
    for chance, factor in ((0.0, 0.9), (0.5, 1.0), (1.0, 1.1)):
        circuit = opened(0.0, chance)
        now_s = 0.0
        for expected_s in (15, 30, 60, 120, 240, 300, 300):
            wait_s = circuit.wait_s(now_s)
            longest_s = 300 * (0.8 + 0.2 * chance)  # so that sidecars do not probe together for ever
            assert wait_s == pytest.approx(min(expected_s * factor if expected_s < 300 else 480 * factor, longest_s))
            assert circuit.admit(DEFAULT, now_s + wait_s - 0.01) < 0
            now_s += wait_s
            ended(circuit, now_s, 503, chance=chance)
            assert circuit.state is OPEN


def test_a_probe_that_hears_within_its_answer_that_there_are_too_many_is_answered() -> None:
    circuit = opened()
    heard = outcome(429, now_s=16.0)
    heard.status, heard.error_status = 200, 429
    circuit.record(circuit.admit(DEFAULT, 15.0), heard, 0.5)
    assert circuit.state is HALF_OPEN
    assert min(circuit.admit(DEFAULT, 16.0) for _ in range(3)) >= 0, "it has succeeded, so more may go"


def test_one_probe_then_three_then_closed() -> None:
    circuit = opened()
    first = circuit.admit(DEFAULT, 15.0)
    assert circuit.state is HALF_OPEN
    assert circuit.admit(DEFAULT, 15.0) < 0
    circuit.record(first, outcome(now_s=16.0), 0.5)
    assert circuit.state is HALF_OPEN
    three = [circuit.admit(DEFAULT, 16.0) for _ in range(3)]
    assert min(three) >= 0
    assert circuit.admit(DEFAULT, 16.0) < 0
    for admitted in three:
        assert circuit.state is HALF_OPEN
        circuit.record(admitted, outcome(now_s=17.0), 0.5)
    assert (circuit.state, circuit.since_s) == (CLOSED, 17.0)
    for _ in range(4):
        ended(circuit, 17.0, 503)
    assert circuit.state is CLOSED
    ended(circuit, 17.0, 503)
    assert circuit.wait_s(17.0) == pytest.approx(15.0)  # recovered, so it begins anew


def test_any_failed_probe_opens_it_again_and_the_others_say_nothing_more() -> None:
    circuit = opened()
    circuit.record(circuit.admit(DEFAULT, 15.0), outcome(now_s=15.0), 0.5)
    three = [circuit.admit(DEFAULT, 15.0) for _ in range(3)]
    circuit.record(three[1], outcome(503, now_s=16.0), 0.5)
    assert is_open_for(circuit, 16.0, 30.0)
    circuit.record(three[0], outcome(503, now_s=16.0), 0.5)
    circuit.record(three[2], outcome(now_s=16.0), 0.5)
    assert is_open_for(circuit, 16.0, 30.0)


def test_a_probe_whose_caller_hangs_up_makes_room_for_the_next() -> None:
    circuit = opened()
    for _ in range(50):
        ended(circuit, 15.0, 200, Fault.CALLER_GONE)
        assert circuit.state is HALF_OPEN
    ended(circuit, 15.0)
    for _ in range(3):
        ended(circuit, 15.0)
    assert circuit.state is CLOSED


@pytest.mark.parametrize("status", [400, 404, 429])
def test_an_answer_that_is_no_success_shows_that_it_answers(status: int) -> None:
    circuit = opened()
    for _ in range(4):
        assert circuit.state is not CLOSED
        ended(circuit, 15.0, status)
    assert circuit.state is CLOSED


def test_a_lost_probe_does_not_keep_it_half_open() -> None:
    circuit = opened()
    now_s = 15.0
    assert circuit.admit(DEFAULT, now_s) >= 0
    for _ in range(5):  # each is lost
        assert circuit.admit(DEFAULT, now_s + PROBE_OVERDUE_S - 1) < 0
        now_s += PROBE_OVERDUE_S
        assert circuit.admit(DEFAULT, now_s) >= 0
    now_s += PROBE_OVERDUE_S
    for _ in range(4):
        ended(circuit, now_s)
        now_s += PROBE_OVERDUE_S
    assert circuit.state is CLOSED


def test_what_was_sent_before_it_opened_moves_nothing() -> None:
    circuit = Circuit(DEFAULT, 0.0)
    before = [circuit.admit(DEFAULT, 0.0) for _ in range(20)]
    for admitted in before[:5]:
        circuit.record(admitted, outcome(503, now_s=0.0), 0.5)
    circuit.record(before[5], outcome(now_s=1.0), 0.5)
    assert circuit.wait_s(0.0) == pytest.approx(15.0)
    assert circuit.admit(DEFAULT, 15.0) >= 0
    circuit.record(before[6], outcome(503, now_s=15.0), 0.5)
    circuit.record(before[7], outcome(now_s=15.0), 0.5)
    assert circuit.state is HALF_OPEN
    assert circuit.admit(DEFAULT, 15.0) < 0  # the probe is still out


def test_time_that_runs_backwards_neither_breaks_nor_reopens_it() -> None:
    circuit = Circuit(DEFAULT, 100.0)
    for now_s in (100.0, 50.0, 0.0, -5.0):
        ended(circuit, now_s, 503)
    ended(circuit, 99.0, 503)
    assert is_open_for(circuit, 0.0, 15.0)


def test_settings_of_a_new_policy_hold_at_once() -> None:
    circuit = Circuit(DEFAULT, 0.0)
    ended(circuit, 0.0, 503)
    strict = BreakerSettings.model_validate({"consecutive": 2, "window": "1m", "open": "1s"})
    circuit.record(circuit.admit(strict, 1.0), outcome(503, now_s=1.0), 0.5)
    assert is_open_for(circuit, 1.0, 1.0)


# ---------------------------------------------------------------------- model check


class CircuitMachine(RuleBasedStateMachine):
    """Random attempts, results in any order, losses and pauses: what must hold holds after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.circuit = Circuit(DEFAULT, 0.0)
        self.out: list[tuple[int, State, int]] = []
        self.seen = CLOSED
        self.opened_at_s = 0.0
        self.visits = 0
        """How often the state has changed: an attempt belongs to the visit that it was admitted in."""
        self.last_probe_s = -1e9
        self.has_passed = False

    @rule(pause_s=st.sampled_from([0.0, 0.1, 1.0, 5.0, 16.0, 61.0, 400.0]))
    def wait(self, pause_s: float) -> None:
        self.now_s += pause_s

    @rule()
    def ask(self) -> None:
        probes_out = self.probes_out()
        admitted = self.circuit.admit(DEFAULT, self.now_s)
        self.look()
        if self.seen is CLOSED:
            assert admitted >= 0
        if self.seen is OPEN:
            assert admitted < 0
            assert 0 < self.circuit.wait_s(self.now_s) <= 300
        if self.seen is HALF_OPEN:
            is_overdue = self.now_s - self.last_probe_s >= PROBE_OVERDUE_S
            room = 3 if self.has_passed else 1
            assert (admitted >= 0) == (probes_out < room or is_overdue)
            if admitted >= 0:
                self.last_probe_s = self.now_s
        if admitted >= 0:
            self.out.append((admitted, self.seen, self.visits))

    def probes_out(self) -> int:
        return sum(state is HALF_OPEN and visit == self.visits for _, state, visit in self.out)

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        how=st.sampled_from([(200, Fault.NONE), (503, Fault.NONE), (503, Fault.NONE), (0, Fault.CALLER_GONE)]),
        chance=st.floats(0, 1),
    )
    def end(self, data: st.DataObject, how: tuple[int, Fault], chance: float) -> None:
        admitted, state, visit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        is_current = visit == self.visits
        before = self.seen
        self.circuit.record(admitted, outcome(*how, now_s=self.now_s), chance)
        self.look()
        if not is_current:
            assert self.seen is before
        elif state is HALF_OPEN:
            if how[0] == 503:
                assert self.seen is OPEN
            elif how[0] == 200:
                self.has_passed = self.seen is HALF_OPEN

    def look(self) -> None:
        state = self.circuit.state
        if state is not self.seen:
            assert (self.seen, state) in {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
            if state is HALF_OPEN:
                assert self.now_s - self.opened_at_s >= 15 * 0.9
            if state is OPEN:
                self.opened_at_s = self.now_s
            self.seen = state
            self.visits += 1
            self.has_passed = False
            self.last_probe_s = -1e9

    @invariant()
    def comes_back(self) -> None:
        """From wherever it is, an upstream that is well again is found to be so."""
        if self.seen is not OPEN:
            return
        assert self.circuit.wait_s(self.now_s) <= 300


TestCircuitMachine = CircuitMachine.TestCase


EVENTS = ("ask", "pass", "fail", "leave", "cool", "overdue")
LENGTH = 6


def test_every_way_of_so_many_events() -> None:
    """Walk every sequence: each move is one that the table has, and there is never a second prober beside the first."""
    small = BreakerSettings.model_validate({"consecutive": 2, "probes": 1})
    ends = {"pass": (200, Fault.NONE), "fail": (503, Fault.NONE), "leave": (0, Fault.CALLER_GONE)}
    moves, states = set(), set()
    for way in product(EVENTS, repeat=LENGTH):
        # Every way begins open, since nothing but failures leads there: and once from the beginning.
        for is_opened in (False, True):
            now_s, circuit = 0.0, Circuit(small, 0.0)
            out: list[tuple[int, State, float, int]] = []
            if is_opened:
                for _ in range(2):
                    circuit.record(circuit.admit(small, 0.0), outcome(503, now_s=0.0), 0.5)
            has_passed = False
            for event in way:
                before, round_before = circuit.state, circuit.round
                if event == "cool":
                    now_s += 301.0
                elif event == "overdue":
                    now_s += PROBE_OVERDUE_S
                elif event == "ask":
                    admitted = circuit.admit(small, now_s)
                    probing = [one for one in out if one[3] == circuit.round and one[1] is HALF_OPEN]
                    if admitted >= 0:
                        assert circuit.state is not OPEN
                        if circuit.state is HALF_OPEN and not has_passed:
                            assert all(now_s - sent_s >= PROBE_OVERDUE_S for _, _, sent_s, _ in probing[-1:])
                        out.append((admitted, circuit.state, now_s, circuit.round))
                    else:
                        assert circuit.state is not CLOSED
                elif out:
                    admitted, sent_in, _, round_sent = out.pop(0)
                    circuit.record(admitted, outcome(*ends[event], now_s=now_s), 0.5)
                    if round_sent != round_before:
                        assert circuit.state is before
                    elif sent_in is HALF_OPEN and event == "pass":
                        has_passed = circuit.state is HALF_OPEN
                if circuit.state is not before:
                    moves.add((before, circuit.state))
                    has_passed = False
                states.add(circuit.state)
    assert moves == {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
    assert states == set(State)


# ---------------------------------------------------------------------- the filter


def made(target: str = "openai", model: str = "m", headers: Headers | None = None, now_s: float = 0.0) -> Call:
    one = call(target, ask=chat(model), headers=headers, now_s=now_s)
    one.plan = Plan(breaker=DEFAULT)
    return one


def fail(one: Breaker, *calls: Call, now_s: float = 0.0) -> None:
    for each in calls:
        permit = one.admit(each)
        assert permit is not None
        permit.settle(outcome(503, now_s=now_s))


@pytest.fixture
def one() -> Breaker:
    return Breaker(lambda: 0.5, b"k" * 16)


def test_without_settings_there_is_no_breaker(one: Breaker) -> None:
    bare = call()
    bare.plan = Plan()
    assert one.admit(bare) is None
    assert one.explain(bare) == "no breaker is set"
    assert one.snapshot() == []


def test_an_open_breaker_refuses_and_is_worth_a_retry_only_when_that_helps(one: Breaker) -> None:
    fail(one, *[made() for _ in range(5)])
    for now_s, retry_after_s in ((0.0, None), (12.9, None), (13.5, 2), (14.8, 1)):
        with pytest.raises(Refused) as caught:
            one.admit(made(now_s=now_s))
        error = caught.value
        assert (error.reason, error.status, error.retry_after_s) == (Reason.CIRCUIT_OPEN, 503, retry_after_s)
        assert error.is_retryable is (retry_after_s is not None)
        assert "openai (m)" in error.message
    assert [view[:4] for view in one.snapshot()] == [("openai", "m", OPEN, 0.0)]
    assert one.explain(made()) == "the breaker of openai (m) is open"


def test_upstream_model_and_credential_fail_apart(one: Breaker) -> None:
    key = [(b"authorization", b"Bearer sk-1")]
    fail(one, *[made(headers=key) for _ in range(5)])
    with pytest.raises(Refused):
        one.admit(made(headers=[(b"accept", b"*/*"), *key]))
    others = [
        made(headers=[(b"authorization", b"Bearer sk-2")]),
        made(headers=[(b"x-api-key", b"sk-1")]),
        made(),
        made(model="n", headers=key),
        made("claude", headers=key),
    ]
    assert all(isinstance(one.admit(other), Permit) for other in others)


def test_a_key_that_meshd_attaches_is_one_credential_whatever_the_agent_sends() -> None:
    one = Breaker(lambda: 0.5, b"k" * 16)
    of = policy(
        upstreams="agent: a\nupstreams:\n  openai: {url: 'https://api.openai.com', key: {env: OPENAI_API_KEY}}\n"
    )
    for number in range(5):
        each = made(headers=[(b"authorization", b"Bearer %d" % number)])
        each.upstream = of.upstreams["openai"]
        assert each.upstream.key_header == b"authorization"
        fail(one, each)
    assert len(one.snapshot()) == 1


def test_no_secret_is_kept() -> None:
    one = Breaker(lambda: 0.5, b"k" * 16)
    secret = b"sk-very-secret-0123456789"
    fail(one, made(headers=[(b"authorization", b"Bearer " + secret)]))
    assert secret.decode() not in repr((one._circuits, one._digests))
    assert secret.decode() not in one.explain(made(headers=[(b"authorization", secret)]))
    (first,) = (circuit.key for circuit in one._circuits.values())
    again = Breaker(lambda: 0.5, b"l" * 16)
    fail(again, made(headers=[(b"authorization", b"Bearer " + secret)]))
    (second,) = (circuit.key for circuit in again._circuits.values())
    assert first.credential != second.credential  # keyed: the hash cannot be looked up


def test_two_breakers_of_one_upstream_can_be_told_apart() -> None:
    one = Breaker(lambda: 0.5, b"k" * 16)
    for key in (b"Bearer one", b"Bearer two"):
        one.admit(made(headers=[(b"authorization", key)]))
    one.admit(made())
    shown = [view.credential for view in one.snapshot()]
    assert len(set(shown)) == 3
    assert shown[2] == ""
    assert all(len(digits) == 8 and int(digits, 16) >= 0 for digits in shown[:2])


def test_a_permit_is_settled_once(one: Breaker) -> None:
    permit = one.admit(made())
    assert permit is not None
    for _ in range(10):
        permit.settle(outcome(503, now_s=0.0))
    assert [view.state for view in one.snapshot()] == [CLOSED]


def test_our_own_refusal_is_no_failure_of_the_upstream(one: Breaker) -> None:
    from meshd.outcome import Verdict

    for _ in range(10):
        permit = one.admit(made())
        assert permit is not None
        permit.settle(Outcome(Verdict.NEUTRAL, 0.0, reason=Reason.BUDGET_EXHAUSTED))
    assert [view.state for view in one.snapshot()] == [CLOSED]


def test_every_change_is_told() -> None:
    told: list[tuple[BreakerKey, State, State]] = []
    one = Breaker(lambda: 0.5, b"k" * 16, lambda *change: told.append(change))
    fail(one, *[made() for _ in range(5)])
    for _ in range(4):
        permit = one.admit(made(now_s=15.0))
        assert permit is not None
        permit.settle(outcome(now_s=15.0))
    assert [change[1:] for change in told] == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]


@pytest.mark.uncompiled
def test_their_number_is_bounded_and_open_ones_are_kept(one: Breaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_filter, "BREAKERS_MAX", 8)
    fail(one, *[made(model="broken") for _ in range(5)])
    for number in range(100):
        fail(one, made(model=f"m{number}"))
    assert len(one.snapshot()) == 8
    assert [view.model for view in one.snapshot() if view.state is OPEN] == ["broken"]
    for number in range(20):
        fail(one, *[made(model=f"b{number}") for _ in range(5)])
    assert len(one.snapshot()) == 8


def test_a_call_that_people_were_asked_about_comes_with_the_time_of_now() -> None:
    """It began before the breaker opened, and comes when that is long over."""
    now_s = 0.0
    one = Breaker(lambda: 0.0, bytes(32), clock=lambda: now_s)
    held = made(now_s=0.0)
    fail(one, *[made(now_s=100.0) for _ in range(5)], now_s=100.0)
    now_s = 101.0
    with pytest.raises(Refused):
        one.admit(held)
    now_s = 1000.0
    assert isinstance(one.admit(held), Permit)
