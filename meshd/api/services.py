"""Which services there are, and who answers them: one table, read by both faces of the API (gRPC, and JSON over HTTP).

A service answers with plain methods, named as the protocol's but in lower case: `async def get_balance(request)`
returns the response or raises Refused; a stream is `async def connect(frames, send, peer)`, where `frames` yields what
comes, `send` takes what goes (ConnectionError where the other side is gone), and its return ends the stream. So none
knows which face it was asked through.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from meshd.api.mesh import Mesh

    Answer = Callable[[Any], Awaitable[Message]]
    Stream = Callable[[AsyncIterator[Any], Callable[[Any], Awaitable[None]], str], Awaitable[None]]


class Service(NamedTuple):
    """One service of the protocol. Its modules are imported when somebody first speaks with the API."""

    name: str
    messages: str
    """The generated module that holds its descriptor."""
    module: str
    answers: str
    """What makes the one that answers, in `module`: called with the Mesh."""


SERVICES: Final[tuple[Service, ...]] = (
    Service("meshd.v1.ContextService", "meshd_sdk.v1.context_pb2", "meshd.api.contexts", "ContextService"),
    Service("meshd.v1.BudgetService", "meshd_sdk.v1.budget_pb2", "meshd.api.budgets", "BudgetService"),
    Service("meshd.v1.ApprovalService", "meshd_sdk.v1.approvals_pb2", "meshd.api.approvals", "ApprovalService"),
    Service("meshd.v1.TraceService", "meshd_sdk.v1.trace_pb2", "meshd.api.traces", "trace_service"),
    Service("meshd.v1.DiscoveryService", "meshd_sdk.v1.discovery_pb2", "meshd.api.discovery", "DiscoveryService"),
    Service("meshd.v1.EventService", "meshd_sdk.v1.events_pb2", "meshd.api.events", "event_service"),
    Service("meshd.v1.StateService", "meshd_sdk.v1.state_pb2", "meshd.api.state", "StateService"),
    Service("meshd.v1.SessionService", "meshd_sdk.v1.session_pb2", "meshd.api.sessions", "SessionService"),
)
"""What this build answers."""

_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")


class Method(NamedTuple):
    """One method: how its messages are made, and who answers."""

    request: type[Message]
    response: type[Message]
    answer: Answer | None
    """None for a stream."""
    stream: Stream | None
    """None for one that is asked and answered once."""
    is_asked_once: bool
    """Its caller sends one message, whatever it is answered."""


class Offer:
    """The services, made once: both faces ask the same objects."""

    __slots__ = ("by_path", "names")

    def __init__(self, mesh: Mesh, services: Sequence[Service] = SERVICES) -> None:
        """Import and make them; takes a tenth of a second the first time, so do it in a thread."""
        from google.protobuf.message_factory import GetMessageClass

        self.names = tuple(service.name for service in services)
        self.by_path: dict[str, Method] = {}
        """By `/service/method`."""
        for service in services:
            descriptor = import_module(service.messages).DESCRIPTOR.services_by_name[service.name.rpartition(".")[2]]
            answers = getattr(import_module(service.module), service.answers)(mesh)
            for method in descriptor.methods:
                bound = getattr(answers, _WORD.sub("_", method.name).lower())
                is_stream = method.client_streaming or method.server_streaming
                self.by_path[f"/{service.name}/{method.name}"] = Method(
                    GetMessageClass(method.input_type),
                    GetMessageClass(method.output_type),
                    None if is_stream else bound,
                    bound if is_stream else None,
                    not method.client_streaming,
                )


def parsed(method: Method, body: bytes) -> Message:
    """Return the request in `body`. Raises Refused(MALFORMED) where it is none."""
    from google.protobuf.message import DecodeError

    try:
        return method.request.FromString(body)
    except (DecodeError, UnicodeDecodeError):
        wanted = method.request.DESCRIPTOR.full_name
        raise Refused(Reason.MALFORMED, f"The request's bytes are not a {wanted}.") from None
