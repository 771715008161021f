"""What nonsense does at the entrance: a refusal that says what to do, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.intent.asking import WORDS_CHARACTERS_MAX, asked
from meshd.refusal import Reason, Refused
from tests.intent.agents import SAID, told, who


@pytest.mark.parametrize(
    ("target", "fields", "words"),
    [
        ("/intent", (), "does not say what it wants"),
        ("/intent/", (), "does not say what it wants"),
        ("/intent//x", (), "does not say what it wants"),
        ("/intent/%20%20/x", (), "does not say what it wants"),
        ("/intent/" + "a" * 10_000 + "/x", (), "longer than 1000 characters"),
        ("/intent/" + "%F0%9F%8C%8D" * 1_001 + "/x", (), "longer than 1000 characters"),
        ("/intent/a%00b/x", (), "control characters"),
        ("/intent/a%0d%0ax-evil:%201/x", (), "control characters"),
        ("/intent/%ff%fe/x", (), "no UTF-8"),
        ("/intent/%ed%a0%80/x", (), "no UTF-8"),
        ("/intent/x", (b"x-meshd-intent: refund", b"x-meshd-intent: audit"), "stands more than once"),
        ("/intent/x", (b"x-meshd-intent:  ",), "does not say what it wants"),
        ("/intent/x", (b"x-meshd-intent: a\xff",), "no UTF-8"),
        ("/intent/refund/x", (b"x-meshd-fan-out: 0",), "from 1 to 99"),
        ("/intent/refund/x", (b"x-meshd-fan-out: -1",), "from 1 to 99"),
        ("/intent/refund/x", (b"x-meshd-fan-out: 100",), "from 1 to 99"),
        ("/intent/refund/x", (b"x-meshd-fan-out: 2", b"x-meshd-fan-out: 2"), "stands more than once"),
        ("mesh://other/refund/x", (), "nor mesh://intent/<words>"),
        ("mesh://intent", (), "does not say what it wants"),
        ("mesh:intent/refund/x", (), "Unexpected char in url schema"),
        ("/intent/refund%20a%20customer/../admin", (), "dot segments"),
        ("/intent/refund%20a%20customer/%2e%2e/admin", (), "dot segments"),
    ],
)
async def test_what_is_no_intent(agents: Any, target: str, fields: tuple[bytes, ...], words: str) -> None:
    one = await agents(SAID)
    reply = await one.call(target, *fields)
    status, message = told(reply)
    assert (status, reply.get(b"x-meshd-reason"), words in message) == (400, b"malformed", True), message
    assert who(await one.call("/intent/refund%20a%20customer/x")) == "billing"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("%E2%80%AErefund%20a%20customer", 200),  # right-to-left override: what the eye reads is what is meant
        ("re%E2%80%8Bfund%20a%20customer", 200),  # a space of no width
        ("%E2%80%AE", 404),
        ("..", 404),
        ("%2e%2e", 404),
        ("%25%32%65", 404),
        ("*", 404),
        ("%22%27%3C%3E%7B%7D", 404),
        ("the%20of%20and", 404),
        ("%zz", 404),
        ("a" * 1000, 404),
    ],
)
async def test_words_that_are_odd(agents: Any, words: str, status: int) -> None:
    one = await agents(SAID)
    reply = await one.call(f"/intent/{words}/x")
    assert reply.status == status
    assert reply.body.isascii(), "what was sent comes back only in letters that do nothing"


async def test_what_is_remembered_is_bounded(agents: Any) -> None:
    one = await agents(SAID)
    intents, policy = one.house.discovering.intents, one.house.mesh.proxy.policy
    for number in range(1_100):
        intents.rank(policy, f"nonsense {number}")
    intents.rank(policy, "x" * 900)
    assert len(intents._known) == 1_024
    assert "x" * 900 not in intents._known


async def test_a_name_that_is_taken(agents: Any) -> None:
    one = await agents(SAID)
    with pytest.raises(Exception, match="taken by meshd itself"):
        one.swap({"intent": SAID["market"]})


@given(st.text(max_size=60), st.lists(st.tuples(st.just(b"x-meshd-intent"), st.binary(max_size=60)), max_size=2))
def test_any_bytes_are_words_or_refused(path: str, fields: list[tuple[bytes, bytes]]) -> None:
    try:
        found = asked(path, fields)
    except Refused as refused:
        reason = refused.reason
    else:
        reason = Reason.MALFORMED
        assert 0 < len(found.words) <= WORDS_CHARACTERS_MAX
        assert found.path.startswith("/") or fields
    assert reason is Reason.MALFORMED
