"""Events that say what is wanted reach every agent that they fit, a fallback, or the dead letters: real sidecar, real
agents, with the SDK and without."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.sidecar import Sidecar, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORDS = "my screen is glitchy and I am furious"


class Taker:
    """An agent that takes calls: what it was handed, and what a router's `/route` answers."""

    def __init__(self, *answers: bytes) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.may_answer = threading.Event()
        """What holds the words `hold this` is not answered before."""
        taker, left = self, list(answers)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                taker.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                if b"hold this" in body:
                    taker.may_answer.wait(60)
                answer = left.pop(0) if len(left) > 1 else (left or [b"ok"])[0]
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def takers() -> Iterator[Callable[..., Taker]]:
    made: list[Taker] = []

    def make(*answers: bytes) -> Taker:
        made.append(Taker(*answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def document(support: Taker, rest: str, more: str = "") -> str:
    return f"""
agent: shop
upstreams:
  support: {{url: "{support.url}", kind: agent, intents: ["my screen is broken", "my screen is glitchy"]}}
  retention: {{kind: agent, session: true, intents: ["I am furious", "an angry customer wants to leave"]}}
  billing: {{kind: agent, session: true, intents: ["refund a payment", "send an invoice"]}}
  {more}
intents: {rest}
"""


async def publish(api: str, words: Any, id: str) -> None:
    async with Agent("shop", api=api, environ={}, grace=0) as shop, shop.workflow(f"w-{id}") as ctx:
        await ctx.publish("mesh.intent", words, id=id)


def dead(sidecar: Sidecar) -> list[dict[str, Any]]:
    return list(sidecar.admin("/v1/events/dead?group=meshd-intents")["dead"])


async def test_an_event_goes_to_every_agent_that_it_fits(
    sidecars: Callable[[str], Sidecar], takers: Callable[..., Taker]
) -> None:
    support, one = takers(), sidecars("one")
    await asyncio.to_thread(one.start, document(support, "{threshold: 0.2, events: {agents: 3}}"))
    assert one.running is not None
    api = str(one.running["api"])
    await publish(api, {"text": WORDS}, "e1")
    await asyncio.to_thread(until, lambda: support.got)
    path, headers, body = support.got[0]
    assert path == "/events"
    assert json.loads(body) == {"text": WORDS}
    assert (headers["ce-id"], headers["ce-causationid"], headers["ce-correlationid"]) == ("e1.support", "e1", "w-e1")
    assert headers["ce-meshintent"] == "fanned_out"
    # An agent that was away when it was led gets it once it is there.
    heard: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
    retention = Agent("retention", api=api, environ={}, grace=0)

    @retention.on("mesh.intent.retention")
    async def on_event(ctx: Ctx, event: Event) -> None:
        await heard.put((event.data["text"], ctx.workflow, ctx.hops))

    async with retention, asyncio.timeout(30):
        assert await heard.get() == (WORDS, "w-e1", 1), "the router is no hop"
    assert one.metric("meshd_events_led_total", choice="fanned_out") == 1
    topics = {each["topic"] for each in one.admin("/v1/events/topics")["topics"]}
    assert topics == {"mesh.intent", "mesh.intent.support", "mesh.intent.retention"}
    assert "an event was led" in one.log
    assert WORDS not in one.log
    assert not dead(one)


async def test_nobody_found_is_the_fallback_or_a_dead_letter(
    sidecars: Callable[[str], Sidecar], takers: Callable[..., Taker]
) -> None:
    support, desk, one, two = takers(), takers(), sidecars("one"), sidecars("two")
    await asyncio.to_thread(one.start, document(support, "{events: {}}"))
    assert one.running is not None
    await publish(str(one.running["api"]), "quarterly llama yodelling", "lost")
    await publish(str(one.running["api"]), {"no": "words"}, "dumb")
    letters = await asyncio.to_thread(until, lambda: len(found := dead(one)) == 2 and found)
    reasons = {each["event"]["id"]: each["reason"] for each in letters}
    assert reasons["lost"].startswith("unclear: it takes a score of 0.3")
    assert reasons["dumb"].startswith("data: says nothing in words")
    assert one.metric("meshd_events_led_total", choice="unclear") == 1
    more = f'desk: {{url: "{desk.url}", kind: agent}}'
    await asyncio.to_thread(two.start, document(support, "{fallback: desk, events: {}}", more))
    assert two.running is not None
    await publish(str(two.running["api"]), "quarterly llama yodelling", "lost")
    await asyncio.to_thread(until, lambda: desk.got)
    assert desk.got[0][1]["ce-meshintent"] == "fallback"
    assert not support.got
    assert not dead(two)


@pytest.mark.parametrize("none", [b"[]", b'{"agents": "support"}', b'{"agents": {"support": 1}}'])
async def test_a_router_agent_decides_where_one_is_named(
    sidecars: Callable[[str], Sidecar], takers: Callable[..., Taker], none: bytes
) -> None:
    support, one = takers(), sidecars("one")
    router = takers(b'{"agents": ["support", "nobody", "support"]}', none)
    more = f'router: {{url: "{router.url}", kind: agent}}'
    await asyncio.to_thread(one.start, document(support, "{events: {router: router}}", more))
    assert one.running is not None
    api = str(one.running["api"])
    await publish(api, "quarterly llama yodelling", "r1")
    await asyncio.to_thread(until, lambda: support.got)
    path, _, body = router.got[0]
    assert path == "/route"
    asked = json.loads(body)
    assert (asked["words"], asked["at_most"]) == ("quarterly llama yodelling", 3)
    assert {each["name"] for each in asked["agents"]} == {"support", "retention", "billing"}
    assert len(support.got) == 1
    assert one.metric("meshd_events_led_total", choice="routed") == 1
    # An answer that is none is tried again, and the event is not lost meanwhile.
    await publish(api, "something else", "r2")
    (group,) = await asyncio.to_thread(
        until,
        lambda: [
            each
            for each in one.admin("/v1/events/groups")["groups"]
            if each["group"] == "meshd-intents" and each["waiting"] == 1
        ],
    )
    assert group["dropped"] == 0


async def test_a_router_that_takes_its_time_keeps_no_others_waiting(
    sidecars: Callable[[str], Sidecar], takers: Callable[..., Taker]
) -> None:
    support, one, router = takers(), sidecars("one"), takers(b'{"agents": ["support"]}')
    more = f'router: {{url: "{router.url}", kind: agent}}'
    await asyncio.to_thread(one.start, document(support, "{events: {router: router, timeout: 60s}}", more))
    assert one.running is not None
    api = str(one.running["api"])
    await publish(api, "hold this", "slow")
    await asyncio.to_thread(until, lambda: router.got)
    await publish(api, "something else", "quick")
    await asyncio.to_thread(until, lambda: support.got)
    assert support.got[0][1]["ce-id"] == "quick.support"
    router.may_answer.set()
    support.may_answer.set()
    await asyncio.to_thread(until, lambda: len(support.got) == 2)
    assert support.got[1][1]["ce-id"] == "slow.support"
