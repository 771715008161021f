"""Is anybody there? Asked of the socket itself: gRPC would be imported first, and answer later. Stdlib only."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from meshd_sdk.errors import NoSidecar

if TYPE_CHECKING:
    from meshd_sdk.settings import Place

CONNECT_S: Final = 2.0


async def probe(place: Place) -> None:
    """Return where something accepts connections at a place; raise NoSidecar where nothing does."""
    try:
        async with asyncio.timeout(CONNECT_S):
            if place.path:
                _, writer = await asyncio.open_unix_connection(place.path)
            else:
                _, writer = await asyncio.open_connection(place.host, place.port)
        writer.close()
    except TimeoutError as error:
        raise NoSidecar(f"nothing answers at {place.grpc_target}") from error
    except OSError as error:
        # asyncio's own words repeat the address; numbers below 0 are those of name look-ups.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise NoSidecar(f"nothing listens at {place.grpc_target} ({why})") from error
