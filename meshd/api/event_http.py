"""Events with plain HTTP, for agents without an SDK and without protobuf: publish with POST, take with SSE.

POST /v1/events/TOPIC           CloudEvents 1.0, binary, structured or batched
GET  /v1/events/TOPIC           a stream of events, one JSON object each; `*` and `>` in the topic
POST /v1/events/TOPIC/settle    {"delivery": "...", "verdict": "success"}
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from meshd.api.cloud_events import read, structured
from meshd.api.failing import body, failure_of, refused_as
from meshd.engines.bus_event import check_topic
from meshd.engines.bus_port import EventMalformed
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.api.events import EventService
    from meshd.api.mesh import Mesh
    from meshd.api.taking import Taking
    from meshd.engines.bus_port import Event

CONTEXT: Final = "x-meshd-context"
SIGN_S: Final = 15.0
"""How often a stream without events is written to, so that whoever has gone is found, and no proxy between gives up."""
WRITE_S: Final = 30.0
"""How long a stream's client may take to read."""
SETTLED: Final = "settle"
_QUERY: Final = ("agent", "group", "credit", "handling_time", "starts", "starts_at", "starts_after")
_VERDICTS: Final = ("success", "retry", "drop")


class EventRoutes:
    """The handlers below /v1/events."""

    def __init__(self, mesh: Mesh, body_of: Callable[[web.Request], Awaitable[bytes]]) -> None:
        """`body_of` reads a request's body within its limits."""
        self._mesh = mesh
        self._body_of = body_of

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.post("/v1/events/{topic:(?s:.+)}/settle", self.settle),
            web.post("/v1/events/{topic:(?s:.*)}", self.publish),
            web.get("/v1/events/{topic:(?s:.*)}", self.subscribe),
        ]

    async def _service(self) -> EventService:
        # Protobuf takes a while to import, and most sidecars never need it.
        from importlib import import_module

        module = await asyncio.to_thread(import_module, "meshd.api.events")
        found: EventService = module.event_service(self._mesh)
        return found

    # ------------------------------------------------------------------ publishing

    async def publish(self, request: web.Request) -> web.Response:
        """Publish what a POST holds."""
        return await _told(self._publish(request))

    async def _publish(self, request: web.Request) -> web.Response:
        query = _query(request, "agent")
        topic = request.match_info["topic"]
        token = _token(request)
        try:
            check_topic(topic)
            if (encoding := request.headers.get("Content-Encoding", "identity")) != "identity":
                raise EventMalformed("content-encoding", f"{encoding[:32]!r} is not read here: send it as it is")
            headers = [(name.lower(), value) for name, value in request.headers.items()]
            events = read(topic, headers, await self._body_of(request))
        except EventMalformed as error:
            raise refused_as(error) from None
        service = await self._service()
        done = await service.publish_all([_request(event, token, query.get("agent", "")) for event in events])
        told = [{"id": one.id, "sequence": one.sequence, "is_duplicate": one.is_duplicate} for one in done]
        is_batch = request.content_type == "application/cloudevents-batch+json"
        return web.json_response({"events": told} if is_batch else told[0])

    # ------------------------------------------------------------------ taking

    async def subscribe(self, request: web.Request) -> web.StreamResponse:
        """Hand out events as server-sent events."""
        try:
            service = await self._service()
            taking = await service.open(_subscription(request))
        except Refused as refused:
            return refusal(refused)
        stream = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        try:
            await stream.prepare(request)
            await _write(stream, b": open\n\n")
            await self._hand_out(service, taking, stream)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            # Whoever hung up cancels this: what is unsettled must go to others all the same.
            await asyncio.shield(service.close(taking))
        return stream

    async def _hand_out(self, service: EventService, taking: Taking, stream: web.StreamResponse) -> None:
        quiet_s = 0.0
        try:
            while not self._mesh.proxy.is_draining:
                found = await service.next(taking, 1.0)
                if found is None:
                    quiet_s += 1.0
                    if quiet_s >= SIGN_S:
                        quiet_s = 0.0
                        await _write(stream, b": here\n\n")
                    continue
                quiet_s = 0.0
                event = taking.handed[found.delivery].handed.delivery.event
                told: dict[str, Any] = {
                    "delivery": found.delivery,
                    "attempt": found.attempt,
                    "may_have_been_handled": found.may_have_been_handled,
                    "event": structured(event, is_verbatim=True),
                }
                if found.context.token:
                    told["context"] = _context(found.context)
                line = msgspec.json.encode(told)
                await _write(stream, b"id: %b\nevent: event\ndata: %b\n\n" % (found.delivery.encode(), line))
            raise Refused(Reason.DRAINING, "This sidecar is shutting down: subscribe again.")
        except Refused as refused:
            _, said = body(failure_of(refused))
            await _write(stream, f"event: error\ndata: {json.dumps(said)}\n\n".encode())

    async def settle(self, request: web.Request) -> web.Response:
        """Say what became of an event that a stream has handed out."""
        return await _told(self._settle(request))

    async def _settle(self, request: web.Request) -> web.Response:
        from google.protobuf import json_format

        from meshd_sdk.v1 import events_pb2

        _query(request)
        wanted = '{"delivery": "...", "verdict": "success", "retry" or "drop", "retry_after": "30s", "reason": "..."}'
        try:
            said = json.loads(await self._body_of(request))
            verdict = said.get("verdict")
            if verdict not in _VERDICTS:
                raise ValueError(f"verdict is one of {', '.join(_VERDICTS)}")
            asked = json_format.ParseDict({**said, "verdict": f"VERDICT_{verdict.upper()}"}, events_pb2.SettleRequest())
        except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
            raise Refused(Reason.MALFORMED, f"{str(error)[:200]}; wanted is {wanted}") from None
        service = await self._service()
        counted = await service.settled(asked, request.match_info["topic"])
        return web.json_response({"is_counted": counted})


async def _told(answer: Awaitable[web.Response]) -> web.Response:
    try:
        return await answer
    except Refused as refused:
        return refusal(refused)


def refusal(refused: Refused) -> web.Response:
    """Return a refusal with its status as on the agents' port, and the body that the API has."""
    failure = failure_of(refused)
    _, said = body(failure)
    answer = web.json_response(said, status=refused.status)
    if failure.pushback_ms >= 0:
        answer.headers["Retry-After"] = str(failure.pushback_ms // 1000)
    if refused.reason is Reason.TOO_LARGE:
        answer.force_close()
    return answer


async def _write(stream: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await stream.write(data)


def _query(request: web.Request, *known: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known or name in found:
            words = "stands twice" if name in found else f"is not known here; there are {', '.join(known) or 'none'}"
            raise Refused(Reason.MALFORMED, f"The query's field {name[:40]!r} {words}.")
        if not value:
            raise Refused(Reason.MALFORMED, f"The query's field {name[:40]!r} is empty: leave it out.")
        found[name] = value
    return found


def _token(request: web.Request) -> str:
    tokens = request.headers.getall(CONTEXT, [])
    if len(tokens) > 1:
        raise Refused(Reason.CONTEXT_INVALID, f"{CONTEXT} stands more than once in the request.")
    return tokens[0] if tokens else ""


def _request(event: Event, token: str, agent: str) -> Any:
    from meshd.api.event_frames import event_frame
    from meshd_sdk.v1 import events_pb2

    return events_pb2.PublishRequest(token=token, agent=agent, event=event_frame(event))


def _subscription(request: web.Request) -> Any:
    """Return what a GET asks for. Raises Refused."""
    from google.protobuf import json_format

    from meshd_sdk.v1 import events_pb2

    query = _query(request, *_QUERY)
    starts = query.pop("starts", "now")
    if starts not in ("now", "oldest"):
        raise Refused(Reason.MALFORMED, "starts is now or oldest; starts_at a moment, starts_after a sequence.")
    asked: dict[str, Any] = {"topic": request.match_info["topic"], "starts_at_oldest": starts == "oldest", **query}
    try:
        request_of = json_format.ParseDict(asked, events_pb2.SubscribeRequest())
    except (json_format.ParseError, ValueError, TypeError) as error:
        raise Refused(Reason.MALFORMED, f"The query is not as it should be: {str(error)[:200]}") from None
    if "credit" in query and not request_of.credit:
        raise Refused(Reason.MALFORMED, "credit is how many events may be unsettled at once: 1 or more.")
    return request_of


def _context(context: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "token": context.token,
        "workflow": context.workflow,
        "agent": context.agent,
        "hops": context.hops,
        "path": list(context.path),
    }
    if context.HasField("deadline"):
        told["deadline"] = context.deadline.ToJsonString()
    return told
