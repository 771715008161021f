"""The metrics port as HTTP/1.1 has it, over raw sockets: what belongs to which request, and when it ends."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from typing import TYPE_CHECKING

import pytest

from meshd.admin import metrics_port

if TYPE_CHECKING:
    from tests.admin.daemon import Ports

pytestmark = pytest.mark.both_loops

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def asked(ports: Ports, request: bytes, *, is_ended: bool = False) -> bytes:
    """What comes back until the port closes; `is_ended`: it is told that no more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port)
    writer.write(request)
    if is_ended:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+) ", answer)


def port_of(ports: Ports) -> metrics_port.MetricsPort:
    (port,) = [one for one in ports.servers._serving if isinstance(one, metrics_port.MetricsPort)]
    return port


async def write_on(writer: asyncio.StreamWriter) -> None:
    while True:
        await writer.drain()
        writer.write(LIVEZ)
        await asyncio.sleep(0.01)


async def test_requests_behind_one_another_are_answered_in_turn(ports: Ports) -> None:
    last = LIVEZ.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    nowhere = LIVEZ.replace(b"/livez", b"/nowhere")
    metrics = LIVEZ.replace(b"/livez", b"/metrics")
    answer = await asked(ports, LIVEZ + nowhere + metrics + last + LIVEZ)
    assert statuses(answer) == [b"200", b"404", b"200", b"200"]
    assert answer.endswith(b"\r\n\r\nok\n")
    assert answer.count(b"Connection: close") == 1


async def test_a_connection_serves_many(ports: Ports) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port)
    for at in range(0, len(LIVEZ) * 3, 7):  # in pieces that fit no request
        writer.write((LIVEZ * 3)[at : at + 7])
        await writer.drain()
    for _ in range(3):
        assert await reader.readuntil(b"\r\n\r\nok\n")
    writer.close()


async def test_who_is_done_asking_is_answered(ports: Ports) -> None:
    assert statuses(await asked(ports, LIVEZ, is_ended=True)) == [b"200"]
    assert await asked(ports, b"", is_ended=True) == b""


async def test_an_answer_to_head_has_a_length_and_no_body(ports: Ports) -> None:
    answer = await asked(ports, LIVEZ.replace(b"GET", b"HEAD"), is_ended=True)
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_http_1_0_ends_unless_it_asks_to_go_on(ports: Ports) -> None:
    old = LIVEZ.replace(b"HTTP/1.1", b"HTTP/1.0")
    assert b"Connection: close\r\n" in await asked(ports, old)
    kept = await asked(ports, old.replace(b"\r\n\r\n", b"\r\nconnection: keep-alive\r\n\r\n") + old)
    assert statuses(kept) == [b"200", b"200"]
    assert kept.count(b"Connection: keep-alive\r\n") == 1


@pytest.mark.parametrize(("size", "expected"), [(3, [b"405", b"200"]), (metrics_port.BODY_BYTES_MAX + 1, [b"400"])])
async def test_a_body_is_read_past_and_has_an_end(ports: Ports, size: int, expected: list[bytes]) -> None:
    post = LIVEZ.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\ncontent-length: %d\r\n\r\n" % size)
    assert statuses(await asked(ports, post + b"x" * size + LIVEZ, is_ended=True)) == expected


@pytest.mark.parametrize("target", [b"http://localhost/livez", b"http://127.0.0.1:9464/livez?x", b"/livez?verbose"])
async def test_every_form_of_its_address_is_known(ports: Ports, target: bytes) -> None:
    assert statuses(await asked(ports, LIVEZ.replace(b"/livez", target), is_ended=True)) == [b"200"]


async def test_a_path_has_its_methods_and_a_query_its_fields(ports: Ports) -> None:
    answer = await asked(ports, LIVEZ.replace(b"GET", b"DELETE"), is_ended=True)
    assert statuses(answer) == [b"405"]
    assert b"Allow: GET,HEAD\r\n" in answer
    for query, expected in ((b"verbose", b"200"), (b"verbose=1", b"200"), (b"x=1", b"400"), (b"verbose&x", b"400")):
        ready = LIVEZ.replace(b"/livez", b"/readyz?" + query)
        assert statuses(await asked(ports, ready, is_ended=True)) == [expected]


async def test_who_says_nothing_and_who_reads_nothing_is_cut_off(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port, "IDLE_TIMEOUT_S", 0.1)
    assert await asked(ports, b"GET /livez HTTP/1.1\r\nhost:") == b""
    _, writer = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port)
    # What it asks for is more than the sockets between hold.
    writer.write(LIVEZ.replace(b"/livez", b"/metrics") * 2000)
    with pytest.raises(ConnectionError):
        await write_on(writer)


async def test_what_breaks_inside_stays_inside(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: bool) -> None:
        raise RuntimeError("the inside")

    monkeypatch.setattr(ports.daemon, "ready", broken)
    answer = await asked(ports, LIVEZ.replace(b"/livez", b"/readyz"), is_ended=True)
    assert statuses(answer) == [b"500"]
    assert b"the inside" not in answer


async def test_what_is_being_answered_is_ended_with_the_port(ports: Ports) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port)
    idle, _ = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port)
    writer.write(LIVEZ)
    assert await reader.readuntil(b"\r\n\r\nok\n")
    await ports.servers.close()
    assert await asyncio.wait_for(asyncio.gather(reader.read(), idle.read()), 60) == [b"", b""]


async def test_who_reads_late_is_told_all(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port, "LINGER_S", 0.0)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", ports.servers.metrics_port))
    reader, writer = await asyncio.open_connection(sock=slow, limit=1024)
    while not port_of(ports).sessions:
        await asyncio.sleep(0)
    (session,) = port_of(ports).sessions
    session._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    # Less than a loop holds for a transport by itself, and more than the sockets between do.
    last = LIVEZ.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    writer.write(LIVEZ.replace(b"/livez", b"/metrics") * 3 + last)
    assert await reader.read(1)
    await asyncio.sleep(0.1)
    assert statuses(b"H" + await asyncio.wait_for(reader.read(), 60)) == [b"200"] * 4
    writer.close()


async def test_who_reads_on_is_not_cut_off(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"# HELP slow read slowly\n" * 2**20  # as of a sidecar with very many accounts
    monkeypatch.setattr(ports.daemon.telemetry, "render", lambda _: (body, "text/plain"))
    monkeypatch.setattr(metrics_port, "IDLE_TIMEOUT_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.servers.metrics_port, limit=2**16)
    writer.write(LIVEZ.replace(b"/livez", b"/metrics"))
    await reader.readuntil(b"\r\n\r\n")
    left = len(body)
    while left:
        left -= len(await reader.readexactly(min(left, 2**18)))
        await asyncio.sleep(0.01)
    writer.close()


async def test_who_is_gone_leaves_nothing_behind(ports: Ports) -> None:
    loop, failed = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    for _ in range(20):
        one = socket.create_connection(("127.0.0.1", ports.servers.metrics_port))
        one.sendall(LIVEZ.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        one.close()  # what is answered then is met by a reset
    assert statuses(await asked(ports, LIVEZ, is_ended=True)) == [b"200"]
    async with asyncio.timeout(60):
        while port_of(ports).sessions:
            await asyncio.sleep(0.01)
    gc.collect()
    loop.set_exception_handler(None)
    assert not failed


async def test_who_asks_whether_to_send_a_body_is_answered(ports: Ports) -> None:
    post = b"POST /livez HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    answer = await asked(ports, post)
    assert statuses(answer) == [b"400"]
    assert b"wants no body" in answer


@pytest.mark.parametrize("version", ["one", "1.x", "", "1.0.0"])
async def test_a_version_that_is_none_is_not_asked_for(ports: Ports, version: str) -> None:
    status, text, kind = await ports.metrics(
        "/metrics", headers={"Accept": f"application/openmetrics-text;version={version},text/plain;version={version}"}
    )
    assert (status, "meshd_build_info" in text) == (200, True)
    assert kind == ("application/openmetrics-text" if version in ("", "1.0.0") else "text/plain")
