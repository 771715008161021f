"""What an agent needs to speak with the meshd beside it.

`meshd_sdk.context` holds the `Context` of a workflow, the names of meshd's header fields, and the signed token in
which a context travels. `meshd_sdk.trace_context` reads and writes the W3C headers. An agent that handles a request
needs one function: `carried`, which picks from the request it received what belongs on the requests that it makes.
One that calls another agent may add `delegating(5000)`: at most so many of its tokens may be spent there.
`meshd_sdk.current` holds the same for the time of a request (`using(Current.from_headers(...))`, then `current()`),
and `instrument()` has httpx, requests, aiohttp, grpc and the clients built on them carry it to the sidecar.
"""

from __future__ import annotations

from meshd_sdk.carry import carried, delegating
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
from meshd_sdk.current import CarryingExecutor, Current, carrying, current, using
from meshd_sdk.instrumenting import instrument, uninstrument

__all__ = [
    "Audience",
    "CarryingExecutor",
    "Context",
    "Current",
    "Key",
    "Keyring",
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
