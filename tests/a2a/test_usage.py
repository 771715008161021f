"""What an A2A agent's answer reports of tokens is charged to the workflow, once, by the official client and server."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from a2a.types import GetTaskRequest

from meshd.dialects.a2a_extension import EXTENSION
from tests.a2a.talking import VERSIONS, card_at, client_of, message, only, said
from tests.a2a.test_daemon import fetched, named_as, policy
from tests.end_to_end.conftest import sidecar, sidecars
from tests.end_to_end.sidecar import until
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.end_to_end.sidecar import Sidecar

__all__ = ["sidecar", "sidecars"]
BUDGET = "rules: [{match: {kind: agent}, budget: {tokens: 100000}}]\n"
JSON_BINDINGS = ("JSONRPC", "HTTP+JSON")
READ = [(binding, version) for binding in JSON_BINDINGS for version in VERSIONS] + [("GRPC", "1.0")]


async def started(sidecar: Sidecar, document: str) -> Sidecar:
    return await asyncio.to_thread(sidecar.start, document)


async def spent(sidecar: Sidecar, total: int) -> int:
    """Return what was charged once it is `total`, or what it is when that never comes."""

    def charged() -> bool:
        return sidecar.metric("meshd_budget_spent_tokens_total") >= total

    await asyncio.to_thread(until, charged, f"{total} tokens charged")
    return (await asyncio.to_thread(sidecar.accounts))["workflow/w-1"][1]


def ours(given: Any, made: Any) -> dict[str, Any]:
    return {EXTENSION: {"usage": {"input_tokens": given, "output_tokens": made}}}


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("binding", "version"), READ)
async def test_a_message_reports(sidecar: Sidecar, agent: Any, binding: str, version: str, is_streaming: bool) -> None:
    await started(sidecar, policy(agent, more=BUDGET))
    card = only(await card_at(f"{sidecar.url}/echo"), binding, version)
    async with client_of(card, is_streaming=is_streaming) as client:
        for total, metadata in ((120, ours(100, 20)), (127, {"usage": {"prompt_tokens": 5, "completion_tokens": 2}})):
            agent.worker.reports = [metadata]
            answered = await said(named_as(client, "w-1"), message("message hi"))
            assert answered[-1].message.parts[0].text == "you said message hi"
            assert await spent(sidecar, total) == total


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("binding", "version"), READ)
async def test_a_task_s_reports_are_the_sum_so_far(
    sidecar: Sidecar, agent: Any, binding: str, version: str, is_streaming: bool
) -> None:
    await started(sidecar, policy(agent, more=BUDGET))
    card = only(await card_at(f"{sidecar.url}/echo"), binding, version)
    agent.worker.reports = [ours(10, 1), ours(30, 4), ours(50, 6)]
    async with client_of(card, is_streaming=is_streaming) as client:
        events = await said(named_as(client, "w-1"), message("work"))
        assert await spent(sidecar, 56) == 56
        # What is asked for again was charged already, in whichever workflow.
        await client.get_task(GetTaskRequest(id=events[0].task.id))
        await client.get_task(GetTaskRequest(id=events[0].task.id))
    assert await spent(sidecar, 56) == 56
    assert sidecar.metric("meshd_budget_spent_tokens_total") == 56


async def test_junk_charges_nothing_and_is_counted(sidecar: Sidecar, agent: Any) -> None:
    await started(sidecar, policy(agent, more=BUDGET))
    card = only(await card_at(f"{sidecar.url}/echo"), "JSONRPC", "1.0")
    junk = [
        ours(-5, 7), ours("12", 7), ours(1.5, 7), ours(True, 7), ours(2e9, 7), ours(None, None), {EXTENSION: "much"},
        {EXTENSION: {"usage": [1, 2]}}, {"usage": "much"}, {"usage": {"cpu": 3}}, {"usage": {"input_tokens": -1}},
    ]  # fmt: skip
    async with client_of(card) as client:
        for number, metadata in enumerate(junk):
            agent.worker.reports = [metadata]
            answered = await said(named_as(client, f"w-{number}"), message("message hi"))
            assert answered[-1].message.parts[0].text == "you said message hi"
    assert sidecar.metric("meshd_budget_spent_tokens_total") == 0
    # Those that meant to report: {EXTENSION: "much"} and what has no tokens in it say nothing.
    assert sidecar.metric("meshd_usage_malformed_total") == 8
    assert "reported usage is no number" in sidecar.log


async def test_a_policy_may_believe_nothing(sidecar: Sidecar, agent: Any) -> None:
    await started(sidecar, policy(agent, ", charges_usage: false", BUDGET))
    card = only(await card_at(f"{sidecar.url}/echo"), "JSONRPC", "1.0")
    agent.worker.reports = [ours(100, 20)]
    async with client_of(card) as client:
        await said(named_as(client, "w-1"), message("message hi"))
    assert sidecar.metric("meshd_budget_spent_tokens_total") == 0


async def test_two_sidecars_charge_it_once_and_believe_what_is_said_on_purpose(sidecars: Any, agent: Any) -> None:
    """Of an agent behind a sidecar, what its framework copies from its models is charged where these are called."""
    near, far, inbound = sidecars("near"), sidecars("far"), free_port()
    key = ("--mesh-key", str(near.home.parent / "shared.key"))
    rules = BUDGET.replace("kind: agent", "target: app")
    app = ("--app", f"http://127.0.0.1:{agent.port}", *key)
    other = "upstreams: {other: {url: 'http://127.0.0.1:1', kind: agent}}\n"
    await asyncio.to_thread(
        partial(far.start, f"agent: writer\n{rules}{other}", *app, MESHD_INBOUND=f"127.0.0.1:{inbound}")
    )
    url = f"http://127.0.0.1:{inbound}"
    document = f'agent: manager\n{BUDGET}upstreams: {{echo: {{url: "{url}", kind: agent, dialect: a2a, peer: true}}}}\n'
    await asyncio.to_thread(near.start, document, *key)
    fields = {"a2a-version": "1.0", "x-meshd-workflow": "w-1"}
    for number, metadata in enumerate(({"usage": {"input_tokens": 1000}}, ours(100, 20))):
        agent.worker.reports = [metadata]
        sent = {"messageId": f"m-{number}", "role": "ROLE_USER", "parts": [{"text": f"message {number}"}]}
        body = {"jsonrpc": "2.0", "id": number, "method": "SendMessage", "params": {"message": sent}}
        response = await fetched(f"{near.url}/echo/", method="POST", json=body, headers=fields)
        assert response.json()["result"]["message"]["metadata"] == metadata
    assert await spent(far, 120) == 120
    assert near.metric("meshd_budget_spent_tokens_total") == 0
