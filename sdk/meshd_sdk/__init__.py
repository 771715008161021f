"""What an agent needs to speak with the meshd beside it.

`Agent` is an agent with a session: its tools, its events, and in each `Ctx` the calls, parts of a budget and steps of a
workflow; `meshd_sdk.sync` has the same for programs without async. What goes wrong has a type in `meshd_sdk.errors`.
What stands in `_LATER` is imported when it is first asked for, and gRPC and protobuf when there is a sidecar to speak
with: a program should not pay for what it does not use.

`meshd_sdk.context` holds the `Context` of a workflow, the names of meshd's header fields, and the signed token in
which a context travels. `meshd_sdk.trace_context` reads and writes the W3C headers. An agent that handles a request
needs one function: `carried`, which picks from the request it received what belongs on the requests that it makes.
One that calls another agent may add `delegating(5000)`: at most so many of its tokens may be spent there.
`meshd_sdk.current` holds the same for the time of a request (`using(Current.from_headers(...))`, then `current()`),
and `instrument()` has httpx, requests, aiohttp, grpc and the clients built on them carry it to the sidecar.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.carry import carried, delegating

# Not later: the module and the function have one name, and whoever imports the module would get it for the function.
from meshd_sdk.current import Current, carrying, current, using

if TYPE_CHECKING:
    from meshd_sdk.agent import Agent
    from meshd_sdk.bodies import Reply
    from meshd_sdk.context import (
        Audience,
        Context,
        Key,
        Keyring,
        TokenInvalidError,
        TokenTooLongError,
        Verified,
        mint,
        verify,
    )
    from meshd_sdk.ctx import Ctx
    from meshd_sdk.errors import CallFailed, Drop, MeshError, NoSidecar, Refused, Retry
    from meshd_sdk.instrumenting import instrument, uninstrument
    from meshd_sdk.link import Event
    from meshd_sdk.state_values import State
    from meshd_sdk.threads import CarryingExecutor

__all__ = [
    "Agent",
    "Audience",
    "CallFailed",
    "CarryingExecutor",
    "Context",
    "Ctx",
    "Current",
    "Drop",
    "Event",
    "Key",
    "Keyring",
    "MeshError",
    "NoSidecar",
    "Refused",
    "Reply",
    "Retry",
    "State",
    "TokenInvalidError",
    "TokenTooLongError",
    "Verified",
    "carried",
    "carrying",
    "current",
    "delegating",
    "instrument",
    "mint",
    "uninstrument",
    "using",
    "verify",
]

_LATER: Final = {
    "Agent": "agent",
    "Audience": "context",
    "CallFailed": "errors",
    "CarryingExecutor": "threads",
    "Context": "context",
    "Ctx": "ctx",
    "Drop": "errors",
    "Event": "link",
    "Key": "context",
    "Keyring": "context",
    "MeshError": "errors",
    "NoSidecar": "errors",
    "Refused": "errors",
    "Reply": "bodies",
    "Retry": "errors",
    "State": "state_values",
    "TokenInvalidError": "context",
    "TokenTooLongError": "context",
    "Verified": "context",
    "instrument": "instrumenting",
    "mint": "context",
    "uninstrument": "instrumenting",
    "verify": "context",
}
"""The names that are imported when they are asked for, and the modules that have them."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
