"""The trace of real sidecars: nothing that went out is missing in it, and clocks travel with the calls."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from meshd.clocks import Order
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Reader
from meshd.trace.verifying import heads_in, verify
from tests.end_to_end.agents import Agent, call, innermost
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.end_to_end.test_context import Pair, document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.trace.record import Event

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Witness:
    """An upstream that notes the path of every request of which it has seen the head."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        data = b""
        with one, suppress(OSError):
            while piece := one.recv(65_536):
                data += piece
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    self.seen.append(head.split(b" ", 2)[1].decode())
                    one.sendall(REPLY)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    yield made
    made.close()


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    made = [Agent() for _ in range(2)]
    yield made
    for one in made:
        one.close()


def events(sidecar: Sidecar, workflow: str | None = None) -> list[Event]:
    return list(Reader(sidecar.home / DIRECTORY).events(workflow))


def hammer(sidecar: Sidecar, name: str, stop: threading.Event) -> None:
    """Send requests down one connection, eight at a time unanswered, until told to stop or cut off."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", sidecar.port)) as one:
        number, answered = 0, one.makefile("rb")
        while not stop.is_set():
            field = f"x-meshd-workflow: load-{name}-{number}"
            paths = [f"/up/{name}/{number + more}" for more in range(8)]
            number += 8
            one.sendall(
                "".join(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{field}\r\n\r\n" for path in paths).encode()
            )
            for _ in paths:
                while (line := answered.readline()) != b"\r\n":
                    if not line:
                        return
                assert answered.read(2) == b"ok"


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_every_call_that_an_upstream_saw_is_in_the_trace_of_a_sidecar_that_was_killed(
    sidecar: Sidecar, witness: Witness, mode: str
) -> None:
    policy = f'upstreams:\n  up: {{url: "{witness.url}", kind: host}}\nlimits: {{turns: {{ladder: note}}}}\n'
    for run in range(3):
        sidecar.start(policy, MESHD_TRACE=mode)
        stop, before = threading.Event(), len(witness.seen)
        threads = [
            threading.Thread(target=hammer, args=(sidecar, f"{run}-{number}", stop), daemon=True) for number in range(4)
        ]
        for thread in threads:
            thread.start()
        until(lambda before=before: len(witness.seen) > before + 400, "load")
        sidecar.kill()
        stop.set()
        for thread in threads:
            thread.join()
    written = {event.facts["path"] for event in events(sidecar) if event.kind == "forwarded"}
    seen = set(witness.seen)
    assert len(seen) > 1200
    assert seen <= written
    found = verify(sidecar.home / DIRECTORY)
    assert found.problems == []
    assert found.records > 2 * len(seen) - 200


def test_clocks_causes_and_heads_travel_between_sidecars(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    pair = Pair(sidecars, agents, provider)
    alpha, beta = pair.alpha, pair.beta
    path = [f"{beta.url}/alpha/run", f"{alpha.url}/host/ping"]
    status, text = call(f"{alpha.url}/beta/run", {"x-meshd-workflow": "over-two"}, {"then": path})
    assert (status, innermost(text)[0]) != (0, 0)
    until(lambda: sum(event.kind == "replied" for event in events(alpha, "over-two")) == 1, "the reply's clock")
    ours, theirs = events(alpha, "over-two"), events(beta, "over-two")
    by_id = {event.id: event for event in (*ours, *theirs)}
    assert [event.kind for event in ours if event.kind != "ended"] == ["forwarded", "arrived", "forwarded", "replied"]
    assert [event.kind for event in theirs if event.kind != "ended"] == ["arrived", "forwarded", "replied"]
    out, inner, tool = (event for event in ours if event.kind in ("forwarded", "arrived"))
    there, back = (event for event in theirs if event.kind in ("forwarded", "arrived"))
    assert there.causes == (out.id,)
    assert back.causes == (there.id,)
    assert inner.causes == (back.id,)
    assert tool.causes == (inner.id,)
    # Each event is before all that follow from it, and what is known of another sidecar stays known.
    for event in by_id.values():
        for cause in event.causes:
            assert by_id[cause].clock.order(event.clock) is Order.BEFORE
            assert by_id[cause].payload.hlc_us < event.payload.hlc_us
    assert there.clock.order(inner.clock) is Order.BEFORE
    assert {*ours[-1].clock} == {alpha_name := ours[0].sidecar, theirs[0].sidecar}
    # The agent sees no clock, and no third party does.
    assert all("x-meshd-clock" not in headers for one in agents for headers in one.seen)
    # Heads are held by the other side: a tail that is dropped shows.
    directories = [alpha.home / DIRECTORY, beta.home / DIRECTORY]
    heads = heads_in(directories)
    assert set(heads) == {alpha_name, theirs[0].sidecar}
    for directory in directories:
        found = verify(directory, heads)
        assert (found.problems, found.heads_held) == ([], 2)


@pytest.mark.parametrize("value", ["nonsense", "AQJrMQ", "x" * 9000])
def test_a_clock_that_does_not_verify_is_refused_and_written_down(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider, value: str
) -> None:
    pair = Pair(sidecars, agents, provider)
    status, text = fetch(f"{pair.beta.inbound}/run", "POST", {"x-meshd-clock": value}, b'{"then": []}')
    assert status == 403
    assert "x-meshd-clock" in text
    refused = until(lambda: [event for event in events(pair.beta) if event.kind == "refused"], "its event")
    assert [event.facts["reason"] for event in refused] == ["context_invalid"]
    assert agents[1].seen == []
    # From an agent the field is not read at all, as everything under our prefix that is none of its own.
    assert fetch(f"{pair.beta.url}/host/ping", headers={"x-meshd-clock": value})[0] == 200


def test_after_a_restart_what_others_did_is_still_known(
    sidecars: Callable[[str], Sidecar], agents: list[Agent], provider: Provider
) -> None:
    pair = Pair(sidecars, agents, provider)
    headers: dict[str, Any] = {"x-meshd-workflow": "long"}
    assert call(f"{pair.alpha.url}/beta/run", headers, {"then": []})[0] == 200
    until(lambda: any(event.kind == "replied" for event in events(pair.alpha, "long")), "the reply's clock")
    before = events(pair.alpha, "long")[-1]
    pair.alpha.kill()
    pair.alpha.start(document("alpha", provider))
    assert fetch(f"{pair.alpha.url}/host/ping", headers=headers)[0] == 200
    after = [event for event in events(pair.alpha, "long") if event.epoch == 2]
    assert len(after[0].clock) == 2
    assert before.clock.order(after[0].clock) is Order.BEFORE


def test_the_trace_can_be_switched_off(sidecar: Sidecar, witness: Witness) -> None:
    policy = f'upstreams:\n  up: {{url: "{witness.url}", kind: host}}\n'
    sidecar.start(policy, "--trace", "off")
    assert fetch(f"{sidecar.url}/up/a")[0] == 200
    assert not (sidecar.home / DIRECTORY).exists()
    assert "meshd_trace_events_total" not in {line.split(" ")[0] for line in sidecar.get("/metrics")[1].splitlines()}


def test_a_trace_that_cannot_be_kept_keeps_no_call_unless_it_must_be(sidecar: Sidecar, witness: Witness) -> None:
    policy = f'upstreams:\n  up: {{url: "{witness.url}", kind: host}}\n'
    sidecar.home.mkdir()
    (sidecar.home / DIRECTORY).write_text("in the way")
    sidecar.start(policy)
    assert fetch(f"{sidecar.url}/up/a")[0] == 200
    assert "no trace is kept" in sidecar.log
    sidecar.stop()
    assert sidecar.spawn(policy, MESHD_TRACE="durable").wait() == 1
    assert "MESHD_TRACE: the trace must be kept" in sidecar.log
    for setting, value in (("MESHD_TRACE", "maybe"), ("MESHD_TRACE_KEEP", "7 parsecs"), ("MESHD_TRACE_BYTES", "-1")):
        assert sidecar.spawn(policy, **{setting: value}).wait() != 0
        assert setting in sidecar.log
