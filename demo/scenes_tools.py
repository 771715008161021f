"""Scenes of tools that change something: done once, and only with a person's consent."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from demo.story import detail

if TYPE_CHECKING:
    from demo.story import Story

_POLL_S = 0.05
_ASK_TIMEOUT_S = 15.0


async def show_order(story: Story) -> None:
    """An order that is sent again under its key is carried out once, and its answer given again byte for byte."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("8  A duplicated order: sent three times under one Idempotency-Key, carried out once")
    body = {
        "task": "buy",
        "method": "POST",
        "path": "/orders",
        "json": {"item": "a crate of lamps"},
        "key": f"order-{world.run_id}",
        "copies": 2,
        "again": 1,
    }
    workflow = world.workflow("order")
    _, result = await world.ask("clerk", body, workflow)
    answers = result["answers"]
    for number, answer in enumerate(answers, 1):
        is_given_again = "given again" if answer["is_replayed"] else "from the shop"
        screen.step(f"copy {number}: {answer['status']} {answer['body']}  ({is_given_again})")
    orders = (await world.books("shop"))["orders"]
    checks.claim(len(answers) == 3 and len(orders) == 1, f"the shop's books: {len(orders)} order", (orders, answers))
    replayed = sum(answer["is_replayed"] for answer in answers)
    is_same = {(answer["status"], answer["sha256"]) for answer in answers} == {(201, answers[0]["sha256"])}
    checks.claim(is_same and replayed == 2, "the other two got the first one's answer, byte for byte", answers)
    changed = {**body, "json": {"item": "two crates of lamps"}, "copies": 1, "again": 0}
    _, result = await world.ask("clerk", changed, workflow)
    seen = (result["answers"][0]["status"], result["answers"][0]["reason"])
    orders = (await world.books("shop"))["orders"]
    is_refused = seen[0] == 422 and len(orders) == 1
    checks.claim(is_refused, f"another order under the same key: {seen[0]} {seen[1]}, and nothing is ordered", seen)


async def show_approval(story: Story) -> None:
    """A destructive call is held until a person allows exactly it; another is denied, and the agent told why."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("9  A destructive tool call waits for a person (played here by the demo, with the approver's key)")
    asking = asyncio.ensure_future(_delete(story, "jones"))
    try:
        id = await _pending(story)
        screen.step("$ meshd approvals")
        screen.step((await world.cli("approvals")).splitlines()[0])
        before = (await world.books("shop"))["deleted"]
        checks.claim(not asking.done() and before == [], "the call is held, and the shop has seen nothing", before)
        await _decide(story, "approve", id, "the customer asked for it")
        answer = await asking
    finally:
        asking.cancel()
    deleted = (await world.books("shop"))["deleted"]
    is_done = answer["status"] == 200 and deleted == ["jones"]
    checks.claim(is_done, "allowed: the held call went out and was answered, once", (answer, deleted))
    asking = asyncio.ensure_future(_delete(story, "everybody"))
    try:
        id = await _pending(story)
        await _decide(story, "deny", id, "not without a ticket")
        answer = await asking
    finally:
        asking.cancel()
    screen.step(f"the agent is told {answer['status']} {answer['reason']}:")
    screen.quote(detail(answer["body"]))
    deleted = (await world.books("shop"))["deleted"]
    is_told = answer["status"] == 403 and "not without a ticket" in answer["body"] and deleted == ["jones"]
    checks.claim(is_told, "denied: the agent knows why, and the shop has seen nothing of it", (answer, deleted))


async def _delete(story: Story, customer: str) -> dict[str, Any]:
    body = {"task": f"delete {customer}", "method": "DELETE", "path": f"/customers/{customer}"}
    _, result = await story.world.ask("clerk", body, story.world.workflow("delete"))
    answer: dict[str, Any] = result["answers"][0]
    return answer


async def _pending(story: Story) -> str:
    """Wait until one call asks, and return the approval's id. Raises LookupError where none does."""
    ends_s = time.monotonic() + _ASK_TIMEOUT_S
    while time.monotonic() < ends_s:
        found = (await story.world.admin("/v1/approvals?state=pending"))["approvals"]
        if found:
            return str(found[0]["id"])
        await asyncio.sleep(_POLL_S)
    raise LookupError("no call asked for an approval")


async def _decide(story: Story, what: str, id: str, reason: str) -> None:
    world = story.world
    story.screen.step(f"$ meshd approvals {what} {id} --reason {json.dumps(reason)} --key-file visitor.key")
    await world.cli("approvals", what, id, "--reason", reason, "--key-file", str(world.approver_key_file))
