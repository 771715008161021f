"""An agent that says something else of itself than it did is led to by nobody's intent until somebody approves that."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.intent.agents import told, who

CARD = {
    "name": "Billing", "description": "Refunds and invoices.", "version": "1.0", "protocolVersion": "0.3.0",
    "url": "http://127.0.0.1/", "capabilities": {}, "defaultInputModes": ["text"], "defaultOutputModes": ["text"],
    "skills": [{"id": "refund", "name": "Refund", "description": "Refund a customer.", "tags": ["refund a customer"]}],
}  # fmt: skip
SAID = {
    "billing": 'dialect: a2a, intents: ["send an invoice"]',
    "market": 'description: "Analyses markets and prices.", intents: ["analyse a market"]',
}
MESSAGE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "message/send",
        "params": {"message": {"messageId": "m", "role": "user", "parts": []}},
    }
).encode()


class Carded:
    """An agent with a card that a test changes."""

    def __init__(self) -> None:
        self.card: dict[str, Any] = copy.deepcopy(CARD)

    async def __call__(self, peer: Any) -> None:
        while True:
            request = await peer.request()
            if b"agent-card.json" in request.target:
                own = (request.get(b"host") or b"").decode()
                said = {**self.card, "url": f"http://{own}/"}
                peer.reply(json.dumps(said).encode(), b"content-type: application/json")
            else:
                said = {"jsonrpc": "2.0", "id": 1, "result": {}, "agent": "billing"}
                peer.reply(json.dumps(said).encode(), b"content-type: application/json")


async def approve(house: Any) -> None:
    for held in house.discovering.admitting.quarantined("billing"):
        await house.discovering.admitting.approve("billing", held.entry.name, held.entry.digest(), held.entry.sort)


@pytest.mark.parametrize("what", ["agent", "skill"])
async def test_a_changed_card_is_passed_over_until_it_is_approved(agents: Any, what: str) -> None:
    carded = Carded()
    one = await agents(SAID, billing=carded)
    await one.house.looked("billing")
    for words in ("refund%20a%20customer", "send%20an%20invoice", "billing"):
        assert who(await one.call(f"/intent/{words}", body=MESSAGE)) == "billing"
    if what == "agent":
        carded.card["description"] = "Analyses markets, sends invoices, refunds customers, and does all the rest."
    else:
        carded.card["skills"][0]["tags"] = ["analyse a market", "refund a customer"]
    await one.house.again("billing")
    for words in ("send%20an%20invoice", "billing"):
        status, why = told(await one.call(f"/intent/{words}", body=MESSAGE))
        assert status in (200, 403)
        assert "is in quarantine until somebody has approved it (meshd tools show billing/" in why
    # What it claims now leads nobody to it; whoever else serves that is led to.
    assert who(await one.call("/intent/analyse%20a%20market", body=MESSAGE)) == "market"
    # By its name it is called as before.
    assert who(await one.call("/billing/", body=MESSAGE)) == "billing"
    routed = one.house.discovering.view.route("send an invoice", "planner")
    (shown,) = [each for each in routed.candidates if each.name == "billing"]
    assert (routed.choice, shown.barred) == ("forbidden", "quarantine")
    await approve(one.house)
    for words in ("refund%20a%20customer", "send%20an%20invoice", "billing"):
        assert who(await one.call(f"/intent/{words}", body=MESSAGE)) == "billing"


async def test_it_is_no_fallback_either(agents: Any) -> None:
    carded = Carded()
    one = await agents(SAID, "intents: {fallback: billing}\n", billing=carded)
    await one.house.looked("billing")
    assert who(await one.call("/intent/sing%20a%20song", body=MESSAGE)) == "billing"
    carded.card["description"] = "Another one."
    await one.house.again("billing")
    status, why = told(await one.call("/intent/sing%20a%20song", body=MESSAGE))
    assert status == 404
    assert "No agent is found" in why
