"""Who may decide, and what that does: pure."""

from __future__ import annotations

import msgspec
import pytest

from meshd.approvals.deciding import Declined, Why, decided, holds
from meshd.approvals.keys import WRONG_EVERY_S, WRONG_MAX, Guard, approver_of, hash_of, new_key
from meshd.approvals.record import Approval, Damaged, Decision, decode, encode, new_id, read_id
from meshd.approvals.state import State
from tests.approvals.asking import KEYS, NOW_S, approval

LATER_S = NOW_S + 601
KNOWN = {name: hash_of(key) for name, key in KEYS.items()}


def allow(one: Approval, who: str, now_s: float = NOW_S) -> Approval:
    return decided(one, who, is_allowed=True, reason="", now_s=now_s)


def deny(one: Approval, who: str, now_s: float = NOW_S) -> Approval:
    return decided(one, who, is_allowed=False, reason="no", now_s=now_s)


def test_a_quorum_is_of_different_people() -> None:
    one = allow(approval(quorum=2), "ana")
    assert (one.state, one.allowed_by) == (State.PENDING, ("ana",))
    with pytest.raises(Declined) as caught:
        allow(one, "ana")
    assert caught.value.why is Why.TWICE
    both = allow(one, "ben", NOW_S + 10)
    assert (both.state, both.allowed_by) == (State.APPROVED, ("ana", "ben"))
    assert both.expires_s == NOW_S + 610, "what was allowed must be used within the same time, from then on"


def test_one_who_denies_decides_also_after_others_have_allowed() -> None:
    granted = allow(approval(), "ana")
    denied = deny(granted, "ben")
    assert denied.state is State.DENIED
    assert denied.denied_by is not None
    assert not holds(denied, KNOWN)
    changed = deny(granted, "ana")
    assert [(one.approver, one.is_allowed) for one in changed.decisions] == [("ana", False)]


@pytest.mark.parametrize("state", [State.DENIED, State.EXPIRED, State.USED, State.CANCELLED])
@pytest.mark.parametrize("is_allowed", [True, False])
def test_what_is_over_cannot_be_decided(state: State, is_allowed: bool) -> None:
    with pytest.raises(Declined) as caught:
        decided(approval(state=state), "ana", is_allowed=is_allowed, reason="x", now_s=NOW_S)
    assert caught.value.why is Why.OVER


def test_silence_is_no() -> None:
    assert approval().state_at(LATER_S) is State.EXPIRED
    assert allow(approval(), "ana").state_at(LATER_S) is State.EXPIRED
    for decide in (allow, deny):
        with pytest.raises(Declined) as caught:
            decide(approval(), "ana", LATER_S)
        assert caught.value.why is Why.OVER


@pytest.mark.parametrize(
    ("who", "why"), [("ola", Why.OWN), ("researcher", Why.OWN), ("eve", Why.NOT_ASKED), ("", Why.NOT_ASKED)]
)
def test_an_agent_and_its_owner_never_decide(who: str, why: Why) -> None:
    one = approval(approvers=("ana", "ola", "researcher"))
    for is_allowed in (True, False):
        with pytest.raises(Declined) as caught:
            decided(one, who, is_allowed=is_allowed, reason="x", now_s=NOW_S)
        assert caught.value.why is why


def test_a_denial_says_why() -> None:
    with pytest.raises(Declined) as caught:
        decided(approval(), "ana", is_allowed=False, reason=" ", now_s=NOW_S)
    assert caught.value.why is Why.REASON


def test_who_left_the_policy_allows_nothing_any_more() -> None:
    granted = allow(approval(), "ana")
    assert holds(granted, KNOWN)
    assert not holds(granted, {name: key for name, key in KNOWN.items() if name != "ana"})
    forged = msgspec.structs.replace(approval(state=State.APPROVED), decisions=(Decision("ola", True, "", NOW_S),))
    assert not holds(forged, KNOWN)
    assert not holds(approval(state=State.APPROVED), KNOWN), "approved by nobody"


def test_a_key_says_whose_it_is() -> None:
    assert approver_of(KEYS["ana"], "", KNOWN) == "ana"
    assert approver_of(KEYS["ana"], "ana", KNOWN) == "ana"
    for key, name in ((KEYS["ana"], "ben"), (new_key(), ""), ("", ""), (KNOWN["ana"], "ana"), ("x" * 10_000, "")):
        assert approver_of(key, name, KNOWN) == ""
    assert approver_of("", "", {}) == ""


def test_the_guard_shuts_and_opens() -> None:
    guard = Guard()
    for _ in range(WRONG_MAX):
        assert guard.wait_s(NOW_S) == 0
        guard.wrong()
    assert guard.wait_s(NOW_S) == WRONG_EVERY_S
    assert guard.wait_s(NOW_S - 100) > 0, "a clock that goes back opens nothing"
    assert guard.wait_s(NOW_S + WRONG_EVERY_S) == 0


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"id": 1}', b"[" * 5000, encode(approval(id="0000-0000-0002")),
     encode(approval(quorum=0)), encode(approval(lasts_s=0.0)), encode(approval(version=2)),
     encode(approval()).replace(b"researcher", b"\xff"), encode(approval(state=State.USED)).replace(b"used", b"free")],
)  # fmt: skip
def test_a_damaged_record_is_no_approval(value: bytes) -> None:
    with pytest.raises(Damaged):
        decode(value, "0000-0000-0001")


def test_a_record_comes_back_as_it_went() -> None:
    one = deny(allow(approval(arguments="ä\u202e", fields={"x": "y"}), "ana"), "ben")
    assert decode(encode(one), one.id) == one


def _id_of(number: int) -> str:
    return new_id(lambda size: number.to_bytes(size, "big"))


def test_ids_are_read_as_they_are_typed() -> None:
    made = set(map(_id_of, range(1000)))
    assert len(made) == 1000
    for one in made:
        assert read_id(one) == read_id(one.upper()) == read_id(one.replace("-", "")) == read_id(f" {one} ") == one
    assert read_id("oO1l-iIzz-zzzz") == "0011-11zz-zzzz"
    for typed in ("", "abc", "uuuu-uuuu-uuuu", "0000-0000-00001", "../../../../x", "0" * 1000):
        assert read_id(typed) == ""
