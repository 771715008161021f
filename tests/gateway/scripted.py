"""An MCP server that says what a test wants it to say, byte for byte, and a client that does as well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.proxy.harness import Mesh, Peer
    from tests.proxy.messages import Message

Said = dict[str, Any]


class Scripted:
    """Answers each method by what stands for it: a result, or a function that makes one of the message."""

    def __init__(self, answers: dict[str, Any], *, session: str = "s-1") -> None:
        self.answers = {"initialize": _welcome, **answers}
        self.session = session
        self.requests: list[tuple[Message, Said]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            said = json.loads(request.body) if request.body else {}
            self.requests.append((request, said))
            await self._answer(peer, request, said)

    async def _answer(self, peer: Peer, request: Message, said: Said) -> None:
        if request.method == b"GET" and "GET" in self.answers:
            peer.send(self.answers["GET"])
            return
        if request.method != b"POST":
            peer.reply(b"", status=b"405 Method Not Allowed" if request.method == b"GET" else b"200 OK")
            return
        if "id" not in said or "method" not in said:
            peer.reply(b"", status=b"202 Accepted")
            return
        answer = self.answers.get(said["method"], {"error": {"code": -32601, "message": "no such method"}})
        if callable(answer):
            answer = answer(said)
        if answer is None:
            return  # It hangs.
        if isinstance(answer, bytes):
            peer.send(answer)
            return
        body = answer if "error" in answer else {"result": answer}
        fields = [b"content-type: application/json"]
        if said["method"] == "initialize":
            fields.append(b"mcp-session-id: " + self.session.encode())
        peer.reply(json.dumps({"jsonrpc": "2.0", "id": said["id"], **body}).encode(), *fields)

    def count(self, method: str) -> int:
        return sum(said.get("method") == method for _, said in self.requests)


def _welcome(said: Said) -> Said:
    version = said["params"]["protocolVersion"]
    return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}


def tool(name: str, **more: Any) -> Said:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def text(said: str) -> Said:
    return {"content": [{"type": "text", "text": said}]}


class Raw:
    """A client of the gateway that writes its own messages."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.session = ""
        self._number = 0

    async def open(self, **capabilities: Any) -> Raw:
        params = {
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "clientInfo": {"name": "raw", "version": "1"},
        }
        reply = await self.post({"method": "initialize", "params": params})
        assert reply.status == 200, reply.body
        self.session = (reply.get(b"mcp-session-id") or b"").decode()
        await self.post({"method": "notifications/initialized"}, is_request=False)
        return self

    async def post(self, said: Said, *fields: str, is_request: bool = True, path: str = "/mcp") -> Message:
        self._number += 1
        message = {"jsonrpc": "2.0", **({"id": self._number} if is_request else {}), **said}
        given = [*fields]
        if self.session and not any(field.lower().startswith("mcp-session-id") for field in fields):
            given += [f"mcp-session-id: {self.session}"]
        if self.session:
            given += ["mcp-protocol-version: 2025-11-25"]
        return await self.send("POST", path, json.dumps(message).encode(), *given)

    async def send(self, method: str, path: str, body: bytes, *fields: str) -> Message:
        client = await self.mesh.connect()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"host: 127.0.0.1:{self.mesh.port}",
            "accept: application/json",
            *([f"content-length: {len(body)}"] if body else []),
            *fields,
        ]
        reply = await client.ask("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        client.close()
        return reply

    async def call(self, name: str, arguments: Said | None = None, *fields: str, **more: Any) -> Any:
        """Call a tool; return the whole answer."""
        params = {"name": name, "arguments": arguments or {}, **more}
        return json.loads((await self.post({"method": "tools/call", "params": params}, *fields)).body)

    async def tools(self) -> list[str]:
        reply = json.loads((await self.post({"method": "tools/list"})).body)
        return [one["name"] for one in reply["result"]["tools"]]


def stateless(method: str, **params: Any) -> Said:
    """Return a message of 2026-07-28."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"method": method, "params": {**params, "_meta": meta}}


def fields_of(method: str, name: str = "") -> list[str]:
    """Return the fields that go with it."""
    named = [f"mcp-name: {name}"] if name else []
    return ["mcp-protocol-version: 2026-07-28", f"mcp-method: {method}", *named]
