"""A real daemon on each engine: who comes later is handed what was published before, and what is kept is shown."""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from meshd.cli import main
from meshd_sdk import Agent, Event, Refused
from tests.end_to_end.sidecar import Sidecar, environ
from tests.engines.buses import BUS_PLACES, Served
from tests.engines.places import NATS, RABBITMQ, REDIS

# An engine gets its line here: the URL of a bus by the name of a place of its own.
URLS = {
    "sqlite": "sqlite:",
    "redis": f"redis://{REDIS}/0?prefix={{}}&timeout=10",
    "nats": f"nats://{NATS}?stream={{}}&timeout=5&connect_timeout=10",
    "rabbitmq": f"amqp://{RABBITMQ}?prefix={{}}&timeout=10&connect_timeout=20",
}


class Daemon(NamedTuple):
    """One that runs."""

    sidecar: Sidecar
    bus: str

    @property
    def api(self) -> str:
        assert self.sidecar.running is not None
        return str(self.sidecar.running["api"])

    def meshd(self, *arguments: str) -> str:
        """Return what `meshd events` prints."""
        env = {name: None for name in environ() if name.startswith("MESHD_")} | {"MESHD_HOME": str(self.sidecar.home)}
        done = CliRunner(env=env).invoke(main, ["events", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    def subscribed(self, topic: str, **query: str) -> tuple[int, list[dict[str, Any]], str]:
        """Open a stream of events; return its status, up to as many events as `credit` says, and the refusal."""
        where = urllib.parse.urlsplit(self.api if "//" in self.api else f"//{self.api}")
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=30)
        connection.request("GET", f"/v1/events/{topic}?{urllib.parse.urlencode(query)}")
        answer = connection.getresponse()
        try:
            if answer.status != 200:
                return answer.status, [], json.loads(answer.read())["message"]
            found: list[dict[str, Any]] = []
            while len(found) < int(query.get("credit", 1)):
                line = answer.readline()
                if line.startswith(b"data:"):
                    found.append(json.loads(line[5:])["event"])
            return answer.status, found, ""
        finally:
            connection.close()


@pytest.fixture(params=URLS)
def daemon(
    request: pytest.FixtureRequest, sidecars: Callable[[str], Sidecar], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    place = BUS_PLACES[request.param](tmp_path_factory.mktemp("place"))
    bus = URLS[request.param].format(place.name if isinstance(place, Served) else "")
    sidecar = sidecars(f"replay{secrets.token_hex(2)}")
    sidecar.start(None, "--bus", bus)
    yield Daemon(sidecar, bus)
    sidecar.kill()
    place.remove()


def test_a_new_group_is_handed_what_is_kept_since_it_begins(daemon: Daemon) -> None:
    published = [daemon.meshd("publish", f"order.n{n}", f'{{"n": {n}}}', "--id", f"o{n}").split() for n in range(4)]
    sequences = [sequence for _, sequence in published]
    kept = [json.loads(line) for line in daemon.meshd("tail", "order.*", "--once", "--json").splitlines()]
    assert [(one["id"], one["sequence"]) for one in kept] == [(f"o{n}", sequences[n]) for n in range(4)]
    topics = json.loads(daemon.meshd("topics", "--json"))["topics"]
    assert [(one["topic"], one["events"], one["latest"]) for one in topics] == [
        (f"order.n{n}", 1, sequences[n]) for n in range(4)
    ]
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for name, query, ids in (
        ("oldest", {"starts": "oldest"}, ["o0", "o1", "o2", "o3"]),
        ("behind", {"starts_after": sequences[1]}, ["o2", "o3"]),
        ("moment", {"starts_at": hour_ago}, ["o0", "o1", "o2", "o3"]),
    ):
        status, events, _ = daemon.subscribed("order.*", group=name, credit=str(len(ids)), **query)
        assert (status, [one["id"] for one in events]) == (200, ids)
    groups = {one["group"]: one["lag"] for one in json.loads(daemon.meshd("--json"))["groups"]}
    assert groups == {"oldest": 4, "behind": 2, "moment": 4}, "nothing of it was settled"


def test_where_no_group_can_begin_is_said(daemon: Daemon) -> None:
    daemon.meshd("publish", "order.placed", "{}")
    hour_on = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for query, words in (
        ({"starts_after": "00004611686018427387903"}, "starts_after"),
        ({"starts_after": "00000000000000999999"}, "is no event of this bus"),
        ({"starts_after": "-1"}, "is no sequence"),
        ({"starts_after": "0x10"}, "is no sequence"),
        ({"starts_at": hour_on}, "the future"),
        ({"starts_at": "0001-01-01T00:00:00Z"}, "starts_at"),
        ({"starts_at": "yesterday"}, "not as it should be"),
        ({"starts_after": "1", "starts": "oldest"}, "only one of"),
    ):
        status, _, said = daemon.subscribed("order.*", group="late", **query)
        assert (status, words in said) == (400, True), said
    assert json.loads(daemon.meshd("--json"))["groups"] == []


async def test_agents_replay_what_was_published_before_they_came(daemon: Daemon) -> None:
    def agent(name: str) -> Agent:
        return Agent(name, api=daemon.api, environ={}, grace=0)

    async with agent("shop") as shop:
        done = [await shop.ctx.publish("order.placed", {"n": n}, id=f"o{n}", key="k") for n in range(3)]
    for name, starts, ids in (
        ("behind", {"starts_after": done[0].sequence}, ["o1", "o2", "next"]),
        ("moment", {"starts_at": datetime.now(UTC) - timedelta(hours=1)}, ["o0", "o1", "o2", "next"]),
        ("seconds", {"starts_at": time.time() - 3600.0}, ["o0", "o1", "o2", "next"]),
        ("oldest", {"from_oldest": True}, ["o0", "o1", "o2", "next"]),
        ("new", {}, ["next"]),
    ):
        heard: asyncio.Queue[str] = asyncio.Queue()
        listening = agent("desk")

        @listening.on("order.*", group=name, **starts)  # type: ignore[arg-type]
        async def on_order(event: Event, heard: asyncio.Queue[str] = heard) -> None:
            heard.put_nowait(event.id)

        async with listening, agent("shop") as shop:
            await shop.ctx.publish("order.placed", {}, id="next", key="k")
            if name == "new":
                await shop.ctx.publish("order.placed", {}, id="newer", key="k")
                ids = ["newer"]
            assert [await asyncio.wait_for(heard.get(), 30) for _ in ids] == ids
            assert heard.empty()

    # It goes on where it was, whatever it says; a new one is told why not.
    for group, is_refused in (("behind", False), ("elsewhere", True)):
        late = agent("desk")
        late.on("order.*", group=group, starts_after="00000000000000999999")(print)
        if not is_refused:
            async with late:
                continue
        with pytest.raises(Refused, match="is no event of this bus") as told:
            await late.__aenter__()
        assert told.value.code == "INVALID_ARGUMENT"
