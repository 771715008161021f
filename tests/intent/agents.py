"""A sidecar before agents over real sockets. Each answers with its name and what it was asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.proxy.messages import Message

if TYPE_CHECKING:
    from tests.sources.house import House

SAID = {
    "market": 'description: "Analyses markets, competitors and prices.", intents: ["analyse a market"], '
    'labels: {ai.acme.intent: "market_analysis,competitor_watch", ai.acme.team: "red"}',
    "audit": 'description: "Technical audits of source code and infrastructure.", intents: ["review code"]',
    "billing": 'description: "Invoices and refunds.", intents: ["refund a customer", "send an invoice"]',
}
"""Three agents that have nothing to do with one another."""


def naming(name: str) -> Any:
    """Return a script that answers with a name, the path, and the fields that it was sent."""

    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            fields = {key.decode(): value.decode("latin-1") for key, value in request.headers}
            said = {"agent": name, "path": request.target.decode(), "body": request.body.decode(), "fields": fields}
            peer.reply(json.dumps(said).encode(), b"content-type: application/json")

    return script


class Agents:
    """The sidecar is `house`; what calls it uses `call`."""

    def __init__(self, house: Any, upstream: Any) -> None:
        self._start_house = house
        self._upstream = upstream
        self.house: House
        self.ports: dict[str, int] = {}

    async def start(self, said: dict[str, str], rest: str = "", **scripts: Any) -> Agents:
        """`said` is what the policy says of each; `scripts` is what some of them do in place of answering."""
        for name in said:
            self.ports[name] = (await self._upstream(scripts.get(name) or naming(name))).port
        self.house = await self._start_house(self.document(said, rest))
        return self

    def document(self, said: dict[str, str], rest: str = "") -> str:
        url = "url: 'http://127.0.0.1:{}', kind: agent, "
        lines = [
            f"  {name}: {{{'' if 'session' in what else url.format(self.ports.get(name, 9))}{what}}}"
            for name, what in said.items()
        ]
        return "agent: planner\nupstreams:\n" + "\n".join(lines) + "\n" + rest

    def swap(self, said: dict[str, str], rest: str = "") -> None:
        """Put another document into force, as a reload does."""
        policy = self.house.mesh.load(self.document(said, rest))
        self.house.mesh.proxy.swap(policy)
        self.house.discovering.take(policy)

    async def call(
        self, target: str, *fields: bytes, method: str = "POST", body: bytes = b"{}", host: bytes = b"localhost"
    ) -> Message:
        head = [b"%s %s HTTP/1.1" % (method.encode(), target.encode("latin-1")), b"host: " + host, *fields]
        if method == "POST":
            head.append(b"content-length: %d" % len(body))
        else:
            body = b""
        return await self.house.mesh.fetch(b"\r\n".join(head) + b"\r\n\r\n" + body)

    @property
    def counts(self) -> dict[str, int]:
        """What was decided, without zeros."""
        return {choice: count for choice, count in self.house.discovering.intents.counts.items() if count}


def who(reply: Message) -> str:
    """Return which agent has answered."""
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)["agent"])


def told(reply: Message) -> tuple[int, str]:
    """Return the status of a refusal, and its words."""
    found = json.loads(reply.body)
    return reply.status, found.get("detail") or found["error"]["message"]
