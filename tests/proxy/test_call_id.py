"""The id of a call reaches its client on every reply, and by it the decisions are found."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.view_calls import call_of
from tests.proxy.harness import echo, get, plain_policy

pytestmark = pytest.mark.both_loops


def known(one: Any, id: bytes) -> Any:
    found = call_of(one.telemetry.provenance, [], id.decode())
    assert found is not None, id
    return found


async def test_each_reply_over_http_1_carries_an_id_of_its_own(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    replies = [await client.ask(get(f"/up/{number}")) for number in range(3)]
    ids = [reply.get(b"x-meshd-call") for reply in replies]
    assert len(set(ids)) == 3
    await one.idle()
    assert [known(one, id).attempts[0].status for id in ids] == [200] * 3


async def test_an_upstream_cannot_name_our_calls(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(b"", b"X-Meshd-Call: forged", b"X-Request-Id: theirs")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    reply = await one.fetch(get("/up/x"))
    assert [value for name, value in reply.headers if name == b"x-meshd-call"] != [b"forged"]
    assert len([name for name, _ in reply.headers if name == b"x-meshd-call"]) == 1
    assert reply.get(b"x-request-id") == b"theirs"


async def test_replies_and_refusals_over_http_2_carry_it_too(mesh: Any, upstream: Any, h2_client: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    client = await h2_client(one)
    fine, refused = await client.ask("/up/a"), await client.ask("/nobody")
    ids = [half.fields["x-meshd-call"].encode() for half in (fine, refused)]
    assert ids[1].decode() == refused.fields["x-request-id"]
    await one.idle()
    assert known(one, ids[0]).attempts[0].verdict == "success"
    assert known(one, ids[1]).refusals[0].reason == "unknown_target"


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x00\x01\x02\r\n\r\n"])
async def test_bytes_that_are_no_call_are_found_by_what_they_were_told(mesh: Any, upstream: Any, junk: bytes) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    reply = await one.fetch(junk)
    assert reply.status in (400, 501)
    (refusal,) = known(one, reply.get(b"x-request-id")).refusals
    assert (refusal.reason, refusal.attempt) == ("malformed", 0)
