"""Whom a request may call, by which address, and from where."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.harness import echo, get, llm_policy, plain_policy


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("GET http://up.mesh/a?b HTTP/1.1\r\nHost: ignored", b"/a?b"),
        ("GET http://127.0.0.1:PORT/a HTTP/1.1\r\nHost: elsewhere.example", b"/a"),
        ("GET /a HTTP/1.1\r\nHost: up.mesh", b"/a"),
        ("GET /a HTTP/1.1\r\nHost: UP.MESH:7400", b"/a"),
        ("GET /a HTTP/1.1\r\nHost: up.localhost:7400", b"/a"),
        ("GET http://up.localhost/a HTTP/1.1\r\nHost: x", b"/a"),
        ("GET /up/a HTTP/1.1\r\nHost: localhost:7400", b"/a"),
        ("GET http://127.0.0.1:1/up/a HTTP/1.1\r\nHost: localhost", b"/a"),
        ("GET /up/a HTTP/1.1\r\nHost: [::1]:7400", b"/a"),
        ("GET /up HTTP/1.1\r\nHost: localhost", b"/"),
        ("GET /up?a HTTP/1.1\r\nHost: localhost", b"/?a"),
        ("GET /up/%2f%41?a=/../b HTTP/1.1\r\nHost: localhost", b"/%2f%41?a=/../b"),
        ("GET /up//a HTTP/1.1\r\nHost: localhost", b"//a"),
    ],
)
async def test_addresses_of_an_upstream(mesh: Any, upstream: Any, raw: str, target: bytes) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    reply = await one.fetch(raw.replace("PORT", str(up.port)).encode() + b"\r\n\r\n")
    assert reply.body == b"GET " + target + b"\n"
    assert b"host: 127.0.0.1:%d\r\n" % up.port in up.received.lower()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("GET /nobody/a HTTP/1.1\r\nHost: localhost", 404),
        ("GET / HTTP/1.1\r\nHost: localhost", 404),
        ("GET /a HTTP/1.1\r\nHost: nobody.mesh", 404),
        ("GET /up/a HTTP/1.1\r\nHost: nobody.localhost", 404),
        ("GET /a HTTP/1.1\r\nHost: up.localhost.example", 421),
        ("GET /a HTTP/1.1\r\nHost: .localhost", 421),
        ("GET /a HTTP/1.1\r\nHost: up.localhost\r\nOrigin: https://page.example", 403),
        ("GET http://example.com/ HTTP/1.1\r\nHost: example.com", 404),
        ("GET http://user@up.mesh/a HTTP/1.1\r\nHost: up.mesh", 400),
        ("GET https://127.0.0.1:PORT/a HTTP/1.1\r\nHost: x", 404),
        ("GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: x", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost", 400),
        ("GET /up/a HTTP/1.1\r\nHost: rebound.example", 421),
        ("GET /up/a HTTP/1.1\r\nHost: 10.0.0.1", 421),
        ("GET /up/a HTTP/1.1\r\nHost: localhost.example", 421),
        ("GET /up/a HTTP/1.1\r\nHost: localhost\r\nOrigin: https://page.example", 403),
        ("GET /up/a HTTP/1.1\r\nHost: localhost\r\nOrigin: null", 403),
    ],
)
async def test_addresses_of_nobody(mesh: Any, upstream: Any, raw: str, status: int) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    reply = await client.ask(raw.replace("PORT", str(up.port)).encode() + b"\r\n\r\n")
    assert reply.status == status
    assert up.received == b""
    # A refusal is a reply like any other: the connection goes on.
    assert (await client.ask(get("/up/next"))).body == b"GET /next\n"


async def test_an_allowed_host_and_origin(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + 'hosts_allowed: ["pod.example"]\n')
    raw = b"GET /up/a HTTP/1.1\r\nHost: pod.example:7400\r\nOrigin: https://pod.example\r\n\r\n"
    assert (await one.fetch(raw)).body == b"GET /a\n"


async def test_an_allowed_host_below_localhost_is_the_sidecar_s_own(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + 'hosts_allowed: ["up.localhost"]\n')
    reply = await one.fetch(b"GET /up/a HTTP/1.1\r\nHost: up.localhost\r\n\r\n")
    assert reply.body == b"GET /a\n"


async def test_an_absolute_address_stays_below_the_base_path(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(f'upstreams: {{up: {{url: "http://127.0.0.1:{up.port}/base", kind: tool}}}}\n')
    base = f"http://127.0.0.1:{up.port}"
    assert (await one.fetch(get(f"{base}/base/x"))).body == b"GET /base/x\n"
    assert (await one.fetch(get(f"{base}/other"))).status == 404
    assert (await one.fetch(get(f"{base}/basement"))).status == 404
    assert (await one.fetch(get(f"{base}/base/../other"))).status == 400


@pytest.mark.parametrize("path", ["/llm/v1%2fchat/completions", "/llm/v1\\chat", "/llm/v1/%00", "/llm/v1/%5cchat"])
async def test_an_llm_path_that_reads_two_ways(mesh: Any, upstream: Any, path: str) -> None:
    up = await upstream(echo)
    one = await mesh(llm_policy(up.port))
    assert (await one.fetch(get(path, "Content-Length: 0", method="POST"))).status == 400
    assert up.received == b""


async def test_inbound_calls_go_to_the_app_alone(mesh: Any, upstream: Any) -> None:
    app = await upstream(echo)
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port), app=f"http://127.0.0.1:{app.port}/agent")
    raw = b"GET /up/x HTTP/1.1\r\nHost: anything.example\r\n\r\n"
    assert (await one.fetch(raw, inbound=True)).body == b"GET /agent/up/x\n"
    assert (await one.fetch(b"GET http://up.mesh/x HTTP/1.1\r\nHost: a\r\n\r\n", inbound=True)).status == 400
    assert up.received == b""
