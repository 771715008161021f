"""CPU of a tool call through the MCP gateway, beside the same call past it and a plain call: `python -m bench.tools`.

One meshd and one server, each a process; the caller keeps some connections busy. The server answers every message of
MCP with the same short result, as JSON or as a stream, and a plain POST with as many bytes. What is measured is the
CPU of meshd alone, by the kernel's books.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import click
import uvloop

from bench.proc import cpu_ns, tree
from bench.processes import Child, Cores, end_all_on_signals, end_process, free_port, start, wait_until

RATIO_MAX: Final = 2.0
_TEXT: Final = "The answer has as many words as a short tool has to say. " * 4
_SESSION: Final = b"bench-session"
_POLICY: Final = """
agent: bench
upstreams:
  plain: {{url: "http://127.0.0.1:{port}", kind: tool, dialect: plain}}
  bare: {{url: "http://127.0.0.1:{port}", kind: host}}
  tools: {{url: "http://127.0.0.1:{port}", kind: tool, dialect: mcp}}
  more: {{url: "http://127.0.0.1:{port}", kind: tool, dialect: mcp}}
governance: {{allowed_tools: [search, plain, read_*], max_tokens_per_workflow: 50000}}
limits: {{turns: {{ladder: note}}}}
rules:
  - {{name: no-deletes, match: {{tool: "delete_*"}}, deny: ask a person}}
"""


# ---------------------------------------------------------------------- the server


class Server(asyncio.Protocol):
    """Answers one request after another on a connection."""

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
            if len(self._data) < end + 4 + length:
                return
            body = self._data[end + 4 : end + 4 + length]
            self._data = self._data[end + 4 + length :]
            self._transport.write(answer(head, body))  # type: ignore[attr-defined]


def answer(head: bytes, body: bytes) -> bytes:
    """Return the whole reply."""
    if head.startswith((b"get", b"delete")):
        return b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n"
    said = json.loads(body)
    method, more = said.get("method", ""), b""
    if method and "id" not in said:
        return b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
    if method == "initialize":
        more = b"mcp-session-id: " + _SESSION + b"\r\n"
        result: object = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bench", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": "search", "inputSchema": {"type": "object"}}]}
    else:
        result = {"content": [{"type": "text", "text": _TEXT}]}
    reply = json.dumps({"jsonrpc": "2.0", "id": said.get("id"), "result": result}).encode()
    kind = b"application/json"
    if b'"stream"' in body:
        reply, kind = b"event: message\ndata: " + reply + b"\n\n", b"text/event-stream"
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n" % (kind, more, len(reply)) + reply


async def _serve(port: int) -> None:
    await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


# ---------------------------------------------------------------------- the caller


async def _reply(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return head, body
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


def _request(port: int, path: str, said: object, session: bytes = b"") -> bytes:
    body = json.dumps(said).encode()
    more = b"mcp-session-id: %b\r\nmcp-protocol-version: 2025-11-25\r\n" % session if session else b""
    return (
        b"POST %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
        b"accept: application/json, text/event-stream\r\nx-meshd-workflow: bench\r\n%bcontent-length: %d\r\n\r\n"
        % (path.encode(), port, more, len(body))
    ) + body


def _tool_call(number: int, name: str, *, is_stream: bool) -> dict[str, object]:
    arguments = {"words": f"what was said about call {number}", **({"how": "stream"} if is_stream else {})}
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


async def _work(port: int, path: str, name: str, session: bytes, calls: int, *, is_stream: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(1, calls + 1):
        writer.write(_request(port, path, _tool_call(number, name, is_stream=is_stream), session))
        head, body = await _reply(reader)
        if b" 200 " not in head[:13] or b'"result"' not in body:
            raise click.ClickException(f"{path} answers {head[:200]!r} {body[:300]!r}")
    writer.close()


# ---------------------------------------------------------------------- the run


ROWS: Final = (
    ("plain call, nothing read (kind host)", "/bare/x", "search", False, False),
    ("plain call to a tool", "/plain/x", "search", False, False),
    ("MCP call, one server", "/tools/mcp", "search", True, False),
    ("MCP call through the gateway", "/mcp", "tools__search", True, False),
    ("the same, answered as a stream: one server", "/tools/mcp", "search", True, True),
    ("the same, answered as a stream: gateway", "/mcp", "tools__search", True, True),
)


async def _measure(port: int, pid: int, calls: int, connections: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for title, path, name, is_mcp, is_stream in ROWS:
        session = b""
        if is_mcp:
            session = await _session(port, path)
        await _work(port, path, name, session, 300, is_stream=is_stream)
        before = cpu_ns(tree(pid))
        each = calls // connections
        await asyncio.gather(*[_work(port, path, name, session, each, is_stream=is_stream) for _ in range(connections)])
        found[title] = (cpu_ns(tree(pid)) - before) / (each * connections) / 1000
    return found


async def _session(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    writer.write(_request(port, path, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}))
    raw = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    at = raw.lower().find(b"mcp-session-id: ")
    if at < 0:
        raise click.ClickException(f"{path} opens no session: {raw!r}")
    return raw[at + 16 :].partition(b"\r\n")[0]


@click.command()
@click.option("--calls", default=8_000, show_default=True, help="Calls of each row.")
@click.option("--connections", default=8, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="The best round counts: others have been disturbed.")
def main(calls: int, connections: int, rounds: int) -> None:
    """Print microseconds of meshd's CPU for a call, and exit 1 where the gateway's is over twice a plain one's."""
    end_all_on_signals()
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, port, metrics = free_port(), free_port(), free_port()
        (folder / "policy.yaml").write_text(_POLICY.format(port=server))
        start(
            [sys.executable, "-m", "bench.tools", "serve", str(server)], core=cores.upstream, log=folder / "server.log"
        )
        arguments = ["run", "--policy", str(folder / "policy.yaml"), "--listen", f"127.0.0.1:{port}"]
        env = dict.fromkeys(("MESHD_ADMIN", "MESHD_INBOUND", "MESHD_API"), "127.0.0.1:0")
        env |= {"MESHD_HOME": str(folder / "home"), "MESHD_METRICS": f"127.0.0.1:{metrics}"}
        command = [sys.executable, "-m", "meshd.cli", *arguments]
        child: Child = start(command, core=cores.proxy, log=folder / "meshd.log", env=env)

        def is_ready() -> bool:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{metrics}/readyz", timeout=2) as reply:
                return bool(reply.status == 200)
            return False

        wait_until(is_ready, child, what="meshd", timeout_s=60.0)
        best: dict[str, float] = {}
        for _ in range(rounds):
            for title, us in uvloop.run(_measure(port, child.pid, calls, connections)).items():
                best[title] = min(us, best.get(title, us))
        end_process(child.process)
    plain, gateway = best[ROWS[1][0]], best[ROWS[3][0]]
    click.echo(f"{'CPU of meshd for a call':<46} {'us':>8} {'to a plain call':>16}")
    for title, us in best.items():
        click.echo(f"{title:<46} {us:8.1f} {us / plain:15.2f}x")
    click.echo(f"\nthrough the gateway: {gateway / plain:.2f} x a plain call (goal: under {RATIO_MAX:g})")
    sys.exit(0 if gateway < RATIO_MAX * plain else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        with suppress(KeyboardInterrupt):
            uvloop.run(_serve(int(sys.argv[2])))
        os._exit(0)
    main()
