"""One call to several agents: each gets it with its part of the budget, and none harms another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from meshd.filters.delegation import Delegation
from tests.intent.agents import naming, told, who

SAME = "labels: {ai.acme.intent: translation}"
THREE = {"one": SAME, "two": SAME, "three": SAME}
FAN = "intents: {fan_out: 2}\n"
BUDGET = "governance: {max_tokens_per_workflow: 10000}\n"
TASK = b"x-meshd-workflow: task-1"


def answers(reply: Any, status: int = 200) -> dict[str, Any]:
    assert reply.status == status, reply.body
    return {one["agent"]: one for one in json.loads(reply.body)["answers"]}


async def test_two_of_three_are_told_the_same(agents: Any) -> None:
    one = await agents(THREE, FAN)
    reply = await one.call("/intent/translation/run?x=1", TASK, b"content-type: application/json", body=b'{"a":1}')
    found = answers(reply)
    assert list(found) == ["one", "two"]
    assert reply.get(b"x-meshd-intent-target") == b"one, two"
    assert reply.get(b"x-meshd-intent-choice") == b"fanned_out"
    for name, answer in found.items():
        said = answer["body"]
        assert (answer["status"], said["agent"], said["path"], said["body"]) == (200, name, "/run?x=1", '{"a":1}')
        assert said["fields"]["content-type"] == "application/json"
    calls = [record.call for record in one.house.mesh.calls]
    assert [call.target.name for call in calls] == ["one", "two"]
    assert {call.context.workflow for call in calls} == {"task-1"}
    assert {call.agent for call in calls} == {"planner"}


@pytest.mark.parametrize(("asked", "count"), [(b"1", 0), (b"2", 2), (b"9", 3)])
async def test_a_caller_may_have_fewer_and_never_more(agents: Any, asked: bytes, count: int) -> None:
    one = await agents(THREE, "intents: {fan_out: 3}\n")
    reply = await one.call("/intent/translation/run", b"x-meshd-fan-out: " + asked)
    if count:
        assert len(answers(reply)) == count
    else:
        assert who(reply) == "one"


async def test_nothing_is_shared_but_a_post(agents: Any) -> None:
    one = await agents(THREE, FAN)
    assert who(await one.call("/intent/translation/run", method="GET")) == "one"
    assert one.counts == {"named": 1}


async def test_each_has_its_part_and_together_no_more_than_there_is(agents: Any) -> None:
    one = await agents(THREE, BUDGET + "intents: {fan_out: 3}\n")
    ledger = next(rule.ledger for rule in one.house.mesh.proxy.chain.per_call if isinstance(rule, Delegation))
    for _ in range(3):
        answers(await one.call("/intent/translation/run", TASK))
        # What a part has left flows back: the next call finds all of it.
        while (await ledger.orders.books("workflow/task-1")).delegated:
            await asyncio.sleep(0)
    parts = [record.call.context for record in one.house.mesh.calls]
    assert [part.ceiling for part in parts] == [3333] * 9
    assert all(part.account.startswith("delegated/") and part.account.endswith("/workflow/task-1") for part in parts)
    assert len({part.account for part in parts}) == 9


async def test_what_others_hold_is_not_divided(agents: Any) -> None:
    held = asyncio.Event()

    async def slow(peer: Any) -> None:
        await peer.request()
        held.set()
        await peer.closed()

    said = {**THREE, "other": 'description: "Waits."'}
    one = await agents(said, BUDGET + FAN, other=slow)
    client = await one.house.mesh.connect()
    client.send(
        b"POST /other/x HTTP/1.1\r\nhost: localhost\r\nx-meshd-workflow: task-1\r\nx-meshd-delegate: 6000\r\n"
        b"content-length: 2\r\n\r\n{}"
    )
    await held.wait()
    answers(await one.call("/intent/translation/run", TASK))
    parts = [record.call.context for record in one.house.mesh.calls]
    assert [part.ceiling for part in parts] == [6000, 2000, 2000]
    client.abort()
    await one.house.mesh.idle()


async def test_what_the_caller_gives_is_divided(agents: Any) -> None:
    one = await agents(THREE, BUDGET + FAN)
    answers(await one.call("/intent/translation/run", TASK, b"x-meshd-delegate: 3001"))
    assert [record.call.context.ceiling for record in one.house.mesh.calls] == [1500, 1500]
    status, message = told(await one.call("/intent/translation/run", TASK, b"x-meshd-delegate: lots"))
    assert (status, "x-meshd-delegate must be" in message) == (400, True)


async def test_fewer_tokens_than_agents_are_for_fewer_agents(agents: Any) -> None:
    one = await agents(THREE, BUDGET + "intents: {fan_out: 3}\n")
    assert list(answers(await one.call("/intent/translation/run", TASK, b"x-meshd-delegate: 2"))) == ["one", "two"]
    assert sum(record.call.context.ceiling for record in one.house.mesh.calls) == 2


async def test_where_nothing_limits_nothing_is_divided(agents: Any) -> None:
    one = await agents(THREE, FAN)
    answers(await one.call("/intent/translation/run", TASK))
    assert [record.call.context.ceiling for record in one.house.mesh.calls] == [None, None]


async def test_one_that_fails_or_is_refused_harms_no_other(agents: Any) -> None:
    async def broken(peer: Any) -> None:
        await peer.request()
        peer.close()

    rest = "rules:\n  - {match: {}, retry: {attempts: 0}}\nintents: {fan_out: 3}\n"
    one = await agents(THREE, rest, one=broken)
    found = answers(await one.call("/intent/translation/run"))
    assert {name: answer["status"] for name, answer in found.items()} == {"one": 502, "two": 200, "three": 200}
    assert found["one"]["refused"]["reason"] == "upstream_unreachable"


async def test_where_all_fail_the_call_has_failed(agents: Any) -> None:
    async def failing(peer: Any) -> None:
        await peer.request()
        peer.reply(b"no", b"content-type: text/plain", status=b"500 Oh")

    one = await agents(THREE, FAN, one=failing, two=failing)
    found = answers(await one.call("/intent/translation/run"), 500)
    assert [answer["body"] for answer in found.values()] == ["no", "no"]


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b'{"a": 1}', b"application/json", {"a": 1}),
        (b'{"a": ', b"application/json", '{"a": '),
        (b"[1]", b"application/problem+json", [1]),
        (b"\xff\xfe", b"application/octet-stream", "\ufffd\ufffd"),
        (b"[" * 100_000, b"application/json", "[" * 100_000),
        (b"", b"text/plain", ""),
    ],
)
async def test_an_answer_of_any_sort_stands_within_the_whole(
    agents: Any, body: bytes, content_type: bytes, shown: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(body, b"content-type: " + content_type)

    one = await agents(THREE, FAN, one=script)
    found = answers(await one.call("/intent/translation/run"))
    assert found["one"]["body"] == shown
    assert found["one"]["content_type"] == content_type.decode()


async def test_limits_hold_for_each(agents: Any) -> None:
    one = await agents(THREE, "limits: {hops: 0}\n" + FAN)
    found = answers(await one.call("/intent/translation/run", TASK), 403)
    assert {answer["refused"]["reason"] for answer in found.values()} == {"hop_limit"}


async def test_a_key_is_carried_out_once_by_each(agents: Any) -> None:
    asked: list[str] = []

    def counting(name: str) -> Any:
        script = naming(name)

        async def counted(peer: Any) -> None:
            asked.append(name)
            await script(peer)

        return counted

    one = await agents(THREE, FAN, one=counting("one"), two=counting("two"))
    for _ in range(2):
        found = answers(await one.call("/intent/translation/run", TASK, b"idempotency-key: k-1"))
        assert [answer["body"]["agent"] for answer in found.values()] == ["one", "two"]
    assert sorted(asked) == ["one", "two"]


async def test_who_hangs_up_waits_for_nobody(agents: Any) -> None:
    asked = asyncio.Event()

    async def silent(peer: Any) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    one = await agents(THREE, FAN, one=silent)
    client = await one.house.mesh.connect()
    client.send(b"POST /intent/translation/run HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}")
    await asked.wait()
    client.abort()
    await one.house.mesh.idle()


async def test_a_body_that_is_too_long_goes_to_nobody(agents: Any) -> None:
    one = await agents(THREE, "limits: {request_body: 2kB}\n" + FAN)
    reply = await one.call("/intent/translation/run", body=b"x" * 3000)
    assert (reply.status, reply.get(b"x-meshd-reason")) == (413, b"too_large")
    assert not one.house.mesh.calls


async def test_in_chunks_it_is_whole_for_each(agents: Any) -> None:
    one = await agents(THREE, FAN)
    head = b"POST /intent/translation/run HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    reply = await one.house.mesh.fetch(head + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
    assert [answer["body"]["body"] for answer in answers(reply).values()] == ["abcdef", "abcdef"]


async def test_the_drain_ends_it(agents: Any) -> None:
    asked = asyncio.Event()

    async def silent(peer: Any) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    one = await agents(THREE, FAN, one=silent)
    task = asyncio.ensure_future(one.call("/intent/translation/run"))
    await asked.wait()
    assert not await one.house.mesh.proxy.drain(0)
    reply = await task
    assert reply.status in (200, 503)
    await one.house.mesh.idle()
