"""A stand-in LLM provider that counts for itself and shares no code with meshd.

    python -m demo.llm_server [--port N] [--control-port N]

It answers OpenAI chat completions and Anthropic messages, plain and streamed in pieces, obeys the output cap, reports
usage where the real APIs do, and bills every token that it generates to the API key of the request, whether anybody
listened to the end or not. Its books are read on a second port (`GET /books`), where it can also be told to be dead
(every connection is counted and dropped), to fail (every request answers 500) or to answer again (`POST /behave`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass, field
from typing import cast

from aiohttp import web

from demo.llm_forms import Account, Anthropic, BadRequestError, Form, OpenAI, pieces, understand

_GAP_S = 0.002
_BODY_BYTES_MAX = 32 << 20


@dataclass
class Books:
    """Everything that reached this provider."""

    accounts: dict[str, Account] = field(default_factory=dict)
    connections: int = 0
    requests: int = 0
    mode: str = "answer"

    def account(self, key: str) -> Account:
        """Return the account of an API key, opened at its first request."""
        return self.accounts.setdefault(key, Account())


def _key(request: web.Request) -> str:
    """Return the API key: the SDKs of Anthropic sent it as x-api-key before they took to a bearer."""
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    return bearer or request.headers.get("x-api-key", "")


class Provider:
    """The server: one public face, one for those who keep the books."""

    def __init__(self) -> None:
        self.books = Books()
        self._transports: set[asyncio.WriteTransport] = set()
        self._runners: list[web.AppRunner] = []

    async def start(self, port: int, control_port: int) -> tuple[int, int]:
        """Listen on loopback (0: any free port) and return the ports taken."""
        public = web.Application(client_max_size=_BODY_BYTES_MAX)
        public.router.add_post("/v1/chat/completions", self._chat)
        public.router.add_post("/v1/messages", self._messages)
        public.router.add_get("/v1/models", self._models)
        control = web.Application()
        control.router.add_get("/books", self._show_books)
        control.router.add_post("/behave", self._behave)
        return await self._listen(public, port, is_counted=True), await self._listen(control, control_port)

    async def stop(self) -> None:
        """Close both faces."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, app: web.Application, port: int, is_counted: bool = False) -> int:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        server = runner.server
        assert server is not None
        factory = (lambda: _Door(self, server())) if is_counted else server
        listener = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port)
        return int(listener.sockets[0].getsockname()[1])

    def admit(self, transport: asyncio.WriteTransport) -> bool:
        """Count a connection and say whether anybody is at home."""
        self.books.connections += 1
        if self.books.mode == "dead":
            return False
        self._transports.add(transport)
        return True

    def forget(self, transport: asyncio.WriteTransport | None) -> None:
        """A connection has ended."""
        if transport is not None:
            self._transports.discard(transport)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stand-in", "object": "model", "created": 0}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _key(request), OpenAI())

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _key(request), Anthropic())

    async def _serve(self, request: web.Request, key: str, form: Form) -> web.StreamResponse:
        self.books.requests += 1
        if self.books.mode == "error":
            return web.json_response(form.error("the provider is unwell", "api_error"), status=500)
        if not key:
            return web.json_response(form.error("no API key", "authentication_error"), status=401)
        try:
            job = understand(await request.read(), self.books.account(key))
        except BadRequestError as error:
            return web.json_response(form.error(str(error), "invalid_request_error"), status=400)
        paths = job.account.paths
        paths[request.path] = paths.get(request.path, 0) + 1
        if not job.is_stream:
            job.bill(job.words)
            return web.json_response(form.whole(job))
        reply = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await reply.prepare(request)
        await reply.write(form.opening(job))
        for words in pieces(job.words):
            job.bill(words)
            await reply.write(form.piece(job, words))
            await asyncio.sleep(_GAP_S)
        await reply.write(form.closing(job))
        await reply.write_eof()
        return reply

    async def _show_books(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self.books))

    async def _behave(self, request: web.Request) -> web.Response:
        mode = (await request.json()).get("mode")
        if mode not in ("answer", "dead", "error"):
            return web.json_response({"error": "mode must be answer, dead or error"}, status=400)
        self.books.mode = mode
        if mode == "dead":
            for transport in list(self._transports):
                transport.abort()
        return web.json_response({"mode": mode})


class _Door(asyncio.Protocol):
    """Counts a connection before the HTTP server sees it, and drops it while the provider is dead."""

    def __init__(self, provider: Provider, inner: asyncio.Protocol) -> None:
        self._provider = provider
        self._inner = inner
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By contract a TCP connection's transport can be written to; uvloop's does not derive from asyncio's.
        transport = cast("asyncio.WriteTransport", transport)
        if not self._provider.admit(transport):
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._provider.forget(self._transport)
            self._inner.connection_lost(exc)


async def _main(port: int, control_port: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    provider = Provider()
    ports = await provider.start(port, control_port)
    print(json.dumps({"event": "ready", "port": ports[0], "control_port": ports[1]}), flush=True)
    await ended.wait()
    await provider.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.llm_server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(_main(arguments.port, arguments.control_port)))
