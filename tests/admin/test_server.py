"""Both ports over real sockets: what they say, and what nonsense does there."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from typing import TYPE_CHECKING

import aiohttp
import pytest

from meshd.admin.server import AdminError, start
from meshd.admin.token import TokenError
from meshd.admin.view import Check, ReloadResult
from meshd.refusal import Reason, Refused
from meshd.telemetry.telemetry import Telemetry
from tests.admin.daemon import ANY_PORT, Daemon, Ports
from tests.telemetry.calls import call, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from meshd.admin.view import BreakerDump

pytestmark = pytest.mark.both_loops


async def test_prometheus_can_read_what_is_served(ports: Ports, require_engine: Callable[[str], str]) -> None:
    promtool = require_engine("promtool")
    status, text, kind = await ports.metrics("/metrics")
    assert (status, kind) == (200, "text/plain")
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert 'meshd_build_info{names="genai-1.41",version="1.2.3"} 1.0' in text


async def test_openmetrics_is_served_on_request(ports: Ports) -> None:
    status, text, kind = await ports.metrics("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert (status, kind) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_many_scrapers_at_once_are_all_answered(ports: Ports) -> None:
    replies = await asyncio.gather(*(ports.metrics("/metrics") for _ in range(20)))
    assert {status for status, _, _ in replies} == {200}


async def test_alive_is_not_ready(ports: Ports) -> None:
    ports.daemon.checks[1] = Check("store", False, "database is locked")
    ports.daemon.outbound = []
    assert (await ports.metrics("/livez"))[:2] == (200, "ok\n")
    status, body, _ = await ports.metrics("/readyz")
    assert status == 503
    assert body == {
        "ready": False,
        "checks": [
            {"name": "policy", "is_ok": True, "detail": ""},
            {"name": "store", "is_ok": False, "detail": "database is locked"},
            {"name": "drain", "is_ok": True, "detail": ""},
        ],
    }
    # Where nobody looked, nobody may say that it is ready.
    assert (await ports.metrics("/readyz/outbound"))[0] == 503


async def test_ready_where_every_check_is_ok(ports: Ports) -> None:
    assert (await ports.metrics("/readyz"))[0] == 200
    ports.daemon.checks[2] = Check("drain", False, "draining")
    assert (await ports.metrics("/readyz"))[0] == 503
    assert (await ports.metrics("/readyz/outbound"))[0] == 200
    assert (await ports.metrics("/readyz", "HEAD"))[0] == 503


async def test_the_policy_is_shown_without_secrets(ports: Ports) -> None:
    status, body, _ = await ports.admin("/v1/policy")
    assert status == 200
    assert body["never_matched"] == ["never"]
    assert body["rules"][0] == {"name": "budget", "hits": 3, "is_shadow": False}
    assert "hush-hush" not in json.dumps(body)
    assert body["reload_error"].startswith("policies/strict.yaml:3:1:")
    ports.daemon.document = None
    assert (await ports.admin("/v1/policy"))[0] == 503


async def test_breakers_and_status(ports: Ports) -> None:
    assert (await ports.admin("/v1/breakers"))[1]["breakers"][0]["state"] == "open"
    status, body, _ = await ports.admin("/v1/status")
    assert status == 200
    assert body["status"]["version"] == "1.2.3"
    assert body["totals"]["calls"] == 0


async def test_status_counts_what_telemetry_saw(tmp_path: Path) -> None:
    telemetry, made = Telemetry(), call(upstream())
    telemetry.started(made)
    telemetry.ended(made, 402, None, Refused(Reason.BUDGET_EXHAUSTED, "used up"))
    servers = await start(Daemon(), telemetry, state_dir=tmp_path, metrics=None, admin=ANY_PORT)
    async with aiohttp.ClientSession() as session:
        _, body, _ = await Ports(Daemon(), servers, session).admin("/v1/status")
    await servers.close()
    assert servers.metrics_port == 0
    assert body["totals"]["targets"]["openai"]["refused_by_reason"] == {"budget_exhausted": 1}


async def test_reload_says_what_came_of_it_and_never_runs_twice_at_once(ports: Ports) -> None:
    replies = await asyncio.gather(*(ports.admin("/v1/reload", "POST") for _ in range(5)))
    assert [status for status, _, _ in replies] == [200] * 5
    assert ports.daemon.reloads == 5
    ports.daemon.result = ReloadResult(False, "ab" * 32, ["a.yaml:1:1: unknown key `buget`"])
    status, body, _ = await ports.admin("/v1/reload", "POST", data=b"{}")
    assert (status, body["problems"]) == (422, ["a.yaml:1:1: unknown key `buget`"])


async def test_drain_is_accepted(ports: Ports) -> None:
    assert (await ports.admin("/v1/drain", "POST"))[0] == 202
    assert ports.daemon.is_draining
    assert (await ports.admin("/v1/drain", "POST"))[0] == 202


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Basic {}", "{}", "Bearer {}x", "Bearer {} x", "Bearer ü{}"]
)
@pytest.mark.parametrize("path", ["/v1/status", "/v1/drain", "/nowhere", "/"])
async def test_without_the_token_nothing_is_told(ports: Ports, header: str, path: str) -> None:
    headers = {"Authorization": header.format(ports.token)}
    for method in ("GET", "POST", "PROPFIND"):
        status, body, kind = await ports.admin(path, method, headers=headers)
        assert (status, kind, body["title"]) == (401, "application/problem+json", "Token needed")
    assert not ports.daemon.is_draining


async def test_the_token_is_not_taken_from_elsewhere(ports: Ports) -> None:
    for path, headers in [
        (f"/v1/status?token={ports.token}", {}),
        (f"/v1/status?access_token={ports.token}", {}),
        ("/v1/status", {"Cookie": f"token={ports.token}"}),
        ("/v1/status", {"X-Api-Key": ports.token}),
    ]:
        assert (await ports.admin(path, headers={"Authorization": "", **headers}))[0] == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:7403", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]",
        "localhost@evil.example", "localhost:99999999", "[::1", "[::1]x", "[evil.example]", "a b", "лок", "0x7f.1",
    ],
)  # fmt: skip
async def test_a_rebound_name_is_turned_away(ports: Ports, host: str) -> None:
    status, body, _ = await ports.admin("/v1/status", headers={"Host": host})
    assert (status, body["title"]) == (403, "Host not allowed")
    is_pod_address = host == "10.0.0.1" or host == "[::2]"
    is_no_host = host in ("localhost@evil.example", "a b", "лок")  # RFC 9112 section 3.2
    expected = 200 if is_pod_address else 400 if is_no_host else 403
    assert (await ports.metrics("/livez", headers={"Host": host}))[0] == expected


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7403", "127.0.0.1", "127.0.0.2:1", "[::1]:7403", "localhost."]
)
async def test_its_own_names_are_let_in(ports: Ports, host: str) -> None:
    assert (await ports.admin("/v1/status", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:7403", "x"])
async def test_a_page_of_another_origin_is_turned_away(ports: Ports, origin: str) -> None:
    for ask in (ports.admin, ports.metrics):
        status, body, _ = await ask("/v1/status" if ask == ports.admin else "/livez", headers={"Origin": origin})
        assert (status, body["title"]) == (403, "Origin not allowed")
    assert (await ports.metrics("/metrics", headers={"Sec-Fetch-Site": "cross-site"}))[0] == 403


async def test_its_own_origin_is_let_in(ports: Ports) -> None:
    origin = f"http://127.0.0.1:{ports.servers.admin_port}"
    assert (await ports.admin("/v1/status", headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"}))[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/v1/nowhere", "GET", 404), ("/v1/status/", "GET", 404), ("//v1/status", "GET", 404),
        ("/v1/../metrics", "GET", 404), ("/v1/drain", "GET", 405), ("/v1/status", "POST", 405),
        ("/v1/status", "PROPFIND", 405), ("/v1/status", "DELETE", 405),
        ("/v1/status?x=1", "GET", 400), ("/v1/drain?now=1", "POST", 400),
    ],
)  # fmt: skip
async def test_nonsense_is_a_problem_and_changes_nothing(ports: Ports, path: str, method: str, expected: int) -> None:
    status, body, kind = await ports.admin(path, method)
    assert (status, kind) == (expected, "application/problem+json")
    assert body["status"] == expected
    assert body["title"]
    assert not ports.daemon.is_draining


@pytest.mark.parametrize(
    ("body", "expected"), [(b"x" * 5000, 413), (b"now", 400), (b'{"force": true}', 400), (b"\xff", 400), (b" {} ", 202)]
)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_are_not_wanted(ports: Ports, body: bytes, expected: int, is_chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield body

    assert (await ports.admin("/v1/drain", "POST", data=pieces() if is_chunked else body))[0] == expected
    assert ports.daemon.is_draining is (expected == 202)


async def raw(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://[::1/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nOrigin: a\r\nOrigin: b\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        b"BREW /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_heads_that_lie_are_refused_and_the_port_lives_on(ports: Ports, head: bytes) -> None:
    for port in (ports.servers.metrics_port, ports.servers.admin_port):
        reply = await raw(port, head)
        assert reply.split(b" ", 2)[1:2] in ([b"400"], [b"403"], [b"401"], [b"404"], [b"405"]), reply
        assert b"Traceback" not in reply
    assert (await ports.metrics("/livez"))[0] == 200


async def test_what_breaks_inside_stays_inside(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Sequence[BreakerDump]:
        raise RuntimeError("the inside")

    ports.daemon.breakers = broken  # type: ignore[method-assign]
    status, body, _ = await ports.admin("/v1/breakers")
    assert status == 500
    assert "the inside" not in json.dumps(body)
    assert "the inside" in caplog.text


async def test_addresses_that_cannot_be_taken_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with pytest.raises(AdminError, match=rf"admin address 127.0.0.1:{address[1]}: .*[Aa]ddress already in use"):
            await start(Daemon(), Telemetry(), state_dir=tmp_path, metrics=ANY_PORT, admin=address)
        with pytest.raises(AdminError, match=r"metrics address .* choose another port with MESHD_METRICS\."):
            await start(Daemon(), Telemetry(), state_dir=tmp_path, metrics=address, admin=None)
    for metrics in [("no.such.host.invalid", 0), ("127.0.0.1", 70_000)]:
        with pytest.raises(AdminError, match="metrics address"):
            await start(Daemon(), Telemetry(), state_dir=tmp_path, metrics=metrics, admin=None)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.test", ""])
async def test_the_admin_port_stays_on_this_machine(tmp_path: Path, host: str) -> None:
    with pytest.raises(AdminError, match="loopback"):
        await start(Daemon(), Telemetry(), state_dir=tmp_path, metrics=None, admin=(host, 0))


async def test_a_bad_token_file_stops_what_was_started(tmp_path: Path, unused_tcp_port: int) -> None:
    (tmp_path / "admin.token").write_text("weak")
    (tmp_path / "admin.token").chmod(0o600)
    with pytest.raises(TokenError):
        await start(Daemon(), Telemetry(), state_dir=tmp_path, metrics=("127.0.0.1", unused_tcp_port), admin=ANY_PORT)
    with socket.create_server(("127.0.0.1", unused_tcp_port)):
        pass


async def test_closing_twice_is_closing_once(ports: Ports) -> None:
    port = ports.servers.admin_port
    await ports.servers.close()
    await ports.servers.close()
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_further_name_may_call_the_metrics_port(tmp_path: Path) -> None:
    servers = await start(
        Daemon(), Telemetry(), state_dir=tmp_path, metrics=ANY_PORT, admin=None, hosts=["meshd.example.svc"]
    )
    assert servers.token_path is None
    reply = await raw(
        servers.metrics_port, b"GET /livez HTTP/1.1\r\nHost: meshd.example.svc:9464\r\nConnection: close\r\n\r\n"
    )
    await servers.close()
    assert reply.startswith(b"HTTP/1.1 200")


async def test_a_host_that_is_none_is_turned_away_unheard(ports: Ports, caplog: pytest.LogCaptureFixture) -> None:
    for target in (b"*", b"/v1/status"):
        reader, writer = await asyncio.open_connection("127.0.0.1", ports.servers.admin_port)
        writer.write(b"OPTIONS %b HTTP/1.1\r\nhost: l\x81calhost\r\nconnection: close\r\n\r\n" % target)
        assert (await asyncio.wait_for(reader.read(), 60))[9:12] == b"403"
        writer.close()
    assert not caplog.records
