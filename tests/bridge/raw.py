"""A client that says just what a test wants, over streamable HTTP."""

from __future__ import annotations

import json
from typing import Any

import aiohttp


class Raw:
    """One client of the upstream `files`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/files/mcp"
        self.session = ""
        self._http = aiohttp.ClientSession()
        self._id = 0

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    def _headers(self, **more: str) -> dict[str, str]:
        headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"} | more
        if self.session:
            headers["mcp-session-id"] = self.session
        return headers

    async def post(self, message: Any, **headers: str) -> tuple[int, Any, list[Any]]:
        """Return the status, the answer (the last message) and the messages before it."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        async with self._http.post(self.url, data=body, headers=self._headers(**headers)) as reply:
            text = await reply.text()
            self.last = reply.headers
            if reply.content_type == "text/event-stream":
                found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
                return reply.status, (found[-1] if found else None), found[:-1]
            return reply.status, (json.loads(text) if text else None), []

    async def open(self) -> Raw:
        """Begin a session."""
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        status, answer, _ = await self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        assert status == 200, answer
        assert "result" in answer, answer
        self.session = self.last["mcp-session-id"]
        assert (await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}))[0] == 202
        return self

    async def call(self, what: str = "", **headers: str) -> tuple[Any, list[Any]]:
        """Call the tool; return the answer and what came before it."""
        self._id += 1
        arguments = {"what": what} if what else {}
        params = {"name": "do", "arguments": arguments, "_meta": {"progressToken": "mine"}}
        message = {"jsonrpc": "2.0", "id": f"c{self._id}", "method": "tools/call", "params": params}
        status, answer, before = await self.post(message, **headers)
        assert status == 200, answer
        assert answer["id"] == f"c{self._id}"
        return answer, before

    async def said(self, what: str) -> str:
        """Call the tool; return its text."""
        answer, _ = await self.call(what)
        return str(answer["result"]["content"][0]["text"])

    async def error(self, what: str = "") -> str:
        """Call the tool; return the message of its error."""
        answer, _ = await self.call(what)
        assert "error" in answer, answer
        return str(answer["error"]["message"])

    def get(self, **headers: str) -> Any:
        return self._http.get(self.url, headers=self._headers(accept="text/event-stream") | headers)

    def delete(self) -> Any:
        return self._http.delete(self.url, headers=self._headers())
