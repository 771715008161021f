"""The model, the tools and the agents of a scenario: real servers on loopback, which answer as the player says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from aiohttp import web

from tests.loops import bodies
from tests.loops.playing import Actor, StoppedError

if TYPE_CHECKING:
    from tests.loops.playing import Handle, Said

CONTEXT = "x-meshd-context"
CALL = "x-call"
"""Names the call, so that its target knows which of the player's it is; meshd passes it through unread."""
_STATUS_OF = {429: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE}


class Stage:
    """Every server of one scenario. `expected` holds the calls that were made and have not arrived yet."""

    def __init__(self, *, passes_context: bool, pace: float) -> None:
        self.expected: dict[str, tuple[Said, Handle]] = {}
        self.background: set[asyncio.Task[None]] = set()
        self.errors: list[str] = []
        self._passes_context = passes_context
        self._pace = pace
        self._runners: list[web.AppRunner] = []
        self._grpc: list[grpc.aio.Server] = []

    async def serve_http(self, name: str) -> int:
        """Serve an agent, or (with an empty name) the model and the tools. Return the port."""
        app = web.Application(client_max_size=64 << 20)

        async def serve(request: web.Request) -> web.Response:
            return await self._http(name, request)

        app.router.add_route("*", "/{tail:.*}", serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
        self._runners.append(runner)
        return int(runner.addresses[0][1])

    async def serve_grpc(self, name: str) -> int:
        """Serve an agent by gRPC: one unary method. Return the port."""
        server = grpc.aio.server()

        async def run(_: bytes, context: Any) -> bytes:
            return await self._rpc(name, context)

        method: Any = grpc.unary_unary_rpc_method_handler(run)
        service, _, rpc = bodies.GRPC_METHOD.strip("/").partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {rpc: method}),))
        port = int(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        self._grpc.append(server)
        return port

    async def close(self) -> None:
        """End what still works, and every server."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        for server in self._grpc:
            await server.stop(None)

    async def _http(self, name: str, request: web.Request) -> web.Response:
        await request.read()
        said, handle = self.expected[request.headers[CALL]]
        ok = await self._work(name, said, handle, request.headers.get(CONTEXT, ""))
        if not ok:
            return web.json_response({"error": "a call that I made was refused"}, status=500)
        return web.Response(body=said.answer, status=said.status, content_type="application/json")

    async def _rpc(self, name: str, context: Any) -> bytes:
        found = dict(context.invocation_metadata())
        said, handle = self.expected[found[CALL]]
        ok = await self._work(name, said, handle, str(found.get(CONTEXT, "")))
        if not ok:
            await context.abort(grpc.StatusCode.ABORTED, "a call that I made was refused")
        if said.status != 200:
            await context.abort(_STATUS_OF.get(said.status, grpc.StatusCode.INTERNAL), bodies.text_of(said.reply))
        return said.answer

    async def _work(self, name: str, said: Said, handle: Handle, token: str) -> bool:
        """Do what the call makes the agent do; return False where that was refused."""
        said.reached = True
        await asyncio.sleep(said.takes_s * self._pace)
        if not name:
            return True
        actor = Actor(name, token=token if self._passes_context else "")
        if not said.is_forwarded:
            return await self._finished(handle, actor)
        task = asyncio.get_running_loop().create_task(self._later(handle, actor))
        self.background.add(task)
        return True

    async def _later(self, handle: Handle, actor: Actor) -> None:
        await self._finished(handle, actor)

    async def _finished(self, handle: Handle, actor: Actor) -> bool:
        try:
            await handle(actor)
        except StoppedError:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it was, the record shows it
            self.errors.append(repr(error))
            return False
        return True
