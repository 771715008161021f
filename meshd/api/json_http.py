"""The other face of the API, for languages without gRPC: JSON (or protobuf) over HTTP, and a session over WebSocket.

One request is one POST to `/service/method`, as the Connect protocol has it for calls that are asked and answered once:
its clients can be pointed here. A stream is a WebSocket at the same path, with one JSON message for each text message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web

from meshd.admin.doors import check_host, check_origin, seal
from meshd.admin.problem import Problem
from meshd.api.event_http import EventRoutes
from meshd.api.failing import CODES, body, failure_of
from meshd.api.json_reading import from_json
from meshd.api.services import SERVICES, parsed
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from meshd.admin.hosts import HostRule
    from meshd.api.mesh import Mesh
    from meshd.api.services import Method, Offer, Stream

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_BYTES_MAX: Final = 4 * 2**20
BODY_TIMEOUT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 60.0
"""Of a request that names no nearer one."""
WRITE_TIMEOUT_S: Final = 30.0
"""How long an answer may take to leave: a client that never reads holds none for good."""
HEARTBEAT_S: Final = 30.0
"""How often a WebSocket is pinged; one that does not answer is closed."""
JSON: Final = "application/json"
PROTO: Final = "application/proto"
_ABOUT: Final = "The API of meshd, over gRPC or as JSON: POST /meshd.v1.ContextService/Open {}. Here are:\n"


class JsonDoor:
    """The routes. `offer` returns the services, made with the first request that needs them."""

    def __init__(self, mesh: Mesh, hosts: HostRule, offer: Callable[[], Awaitable[Offer]]) -> None:
        self._mesh = mesh
        self._hosts = hosts
        self._offer = offer
        self._sockets: set[web.WebSocketResponse] = set()
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._pass], client_max_size=BODY_BYTES_MAX)
        app.on_response_prepare.append(seal)
        app.add_routes(
            [
                web.get("/", self.about),
                *EventRoutes(self._mesh, _body).routes(),
                web.post("/{service}/{method}", self.call),
                web.get("/{service}/{method}", self.stream),
            ]
        )
        return app

    async def drain(self, grace_s: float) -> None:
        """Let what runs end, streams too, for at most `grace_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()

    async def close(self) -> None:
        """End the streams."""
        for socket in tuple(self._sockets):
            await socket.close(code=1001, message=b"this sidecar is shutting down")

    @web.middleware
    async def _pass(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._open += 1
        self._idle.clear()
        try:
            answer = await self._answered(request, handler)
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await answer.prepare(request)
                    await answer.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
            return answer
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            # No name can be rebound to a file.
            if isinstance(request.transport and request.transport.get_extra_info("peername"), tuple):
                check_host(request, self._hosts)
            check_origin(request)
            if self._mesh.proxy.is_draining:
                raise Refused(Reason.DRAINING, "This sidecar is shutting down.")
            return await handler(request)
        except Problem as problem:
            return failed(Refused(Reason.NOT_ALLOWED, problem.detail))
        except web.HTTPNotFound:
            return _plain(
                404, f"Here is no method {request.path[:128]}: GET / lists the services, reflection the methods"
            )
        except web.HTTPException as error:
            return _plain(error.status, error.reason, error.headers.get("Allow", ""))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes an answer
            return failed(error)

    async def about(self, request: web.Request) -> web.Response:
        """Say in a few words what is here."""
        return web.Response(text=_ABOUT + "".join(f"  {service.name}\n" for service in SERVICES))

    async def call(self, request: web.Request) -> web.Response:
        """Answer one request."""
        method = await self._method(request)
        if method.answer is None:
            return _plain(405, "A stream is a WebSocket at this path", "GET")
        if (kind := request.content_type) not in (JSON, PROTO):
            answer = _json(415, {"code": "unknown", "message": f"{kind[:64]} is not read here: send {JSON} or {PROTO}"})
            answer.headers["Accept-Post"] = f"{JSON}, {PROTO}"
            return answer
        if (encoding := request.headers.get("Content-Encoding", "identity")) != "identity":
            return _json(501, {"code": "unimplemented", "message": f"{encoding[:32]!r} is not read here: identity is"})
        try:
            async with asyncio.timeout(_timeout_s(request)):
                given = await _body(request)
                asked = from_json(given, method.request) if kind == JSON else parsed(method, given)
                found = await method.answer(asked)
        except TimeoutError:
            raise Refused(Reason.DEADLINE, "The time that the request gave was over.") from None
        if kind == PROTO:
            return web.Response(body=found.SerializeToString(), content_type=PROTO)
        return web.Response(body=_to_json(found), content_type=JSON)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Hold a stream: one JSON message for each text message."""
        method = await self._method(request)
        if method.stream is None:
            return _plain(405, "Ask with POST", "POST")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=BODY_BYTES_MAX, compress=False)
        if not socket.can_prepare(request):
            return _plain(426, "A stream is a WebSocket at this path", "GET")
        await socket.prepare(request)
        self._sockets.add(socket)

        async def send(message: Message) -> None:
            await socket.send_str(_to_json(message).decode())

        try:
            frames, peer = _frames(method, socket), request.remote or "unix:"
            if method.is_asked_once:
                await _until_gone(method.stream, frames, send, peer)
            else:
                await method.stream(frames, send, peer)
            await socket.close()
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - as above
            _, said = body(failure_of(error))
            if not socket.closed:
                await socket.send_str(json.dumps({"error": said}))
                await socket.close(code=1008, message=said["code"].encode())
        finally:
            self._sockets.discard(socket)
        return socket

    async def _method(self, request: web.Request) -> Method:
        found = (await self._offer()).by_path.get(request.path)
        if found is None:
            raise web.HTTPNotFound
        return found


async def _frames(method: Method, socket: web.WebSocketResponse) -> AsyncIterator[Any]:
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            raise Refused(Reason.MALFORMED, "One JSON message in each text message is expected.")
        yield from_json(message.data, method.request)


async def _until_gone(
    stream: Stream, frames: AsyncIterator[Any], send: Callable[[Any], Awaitable[None]], peer: str
) -> None:
    """Answer what is asked once, until it ends or its caller goes: who closes is handed no more."""
    asked = await anext(frames, None)
    if asked is None:
        return

    async def once() -> AsyncIterator[Any]:
        yield asked

    answering = asyncio.ensure_future(stream(once(), send, peer))
    going = asyncio.ensure_future(anext(frames, None))
    try:
        await asyncio.wait((answering, going), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
        elif going.result() is not None:
            raise Refused(Reason.MALFORMED, "This is asked with one message, and answered until it is closed.")
    finally:
        for task in (answering, going):
            task.cancel()
        await asyncio.wait((answering, going))


def _to_json(message: Message) -> bytes:
    from google.protobuf import json_format

    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode()


def _timeout_s(request: web.Request) -> float:
    text = request.headers.get("Connect-Timeout-Ms", "")
    if not text:
        return CALL_TIMEOUT_S
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text)):
        raise Refused(Reason.MALFORMED, "Connect-Timeout-Ms must be a whole number above 0 of at most ten digits.")
    return min(int(text) / 1000, CALL_TIMEOUT_S)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(Reason.TOO_LARGE, f"A request has at most {BODY_BYTES_MAX} bytes.") from None


def failed(error: Exception) -> web.Response:
    """Return the answer that an error is told as."""
    failure = failure_of(error)
    status, said = body(failure)
    answer = _json(status, said)
    if failure.pushback_ms >= 0:
        answer.headers["Retry-After"] = str(failure.pushback_ms // 1000)
    if failure.reason in (Reason.DRAINING, Reason.TOO_LARGE):
        answer.force_close()
    return answer


def _plain(status: int, message: str, allow: str = "") -> web.Response:
    # As the protocol has clients read a status that says nothing more ("HTTP to Error Code").
    code = {404: 12, 405: 12, 426: 12, 413: 8}.get(status, 3 if status < 500 else 13)
    answer = _json(status, {"code": CODES[code].name, "message": message})
    if allow:
        answer.headers["Allow"] = allow
    return answer


def _json(status: int, said: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(said).encode(), status=status, content_type=JSON)
