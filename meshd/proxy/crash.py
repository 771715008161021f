"""What nobody foresaw: an exception in a callback ends its own call at once, and no other.

Without this the call would stay until a timeout found it, its reservation with it. The caller is told 500, since it is
this sidecar that is at fault; what may have been billed is settled at its bound.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meshd.outcome import Fault
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.proxy.exchange import Exchange

log = logging.getLogger("meshd.proxy")


@contextmanager
def ending(exchange: Exchange | None) -> Iterator[None]:
    """Let an exception in the block end `exchange`, and nothing besides. Too slow for what every call goes through."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is, the call must end
        crash(exchange)


def crash(exchange: Exchange | None) -> None:
    """End a call while the exception that broke it is being handled. None where no call was concerned."""
    if exchange is None:
        log.exception("a fault of meshd; no call was lost")  # noqa: LOG004 - called while it is being handled
        return
    log.exception("a fault of meshd ended call %s", exchange.call.id)  # noqa: LOG004 - as above
    if exchange.is_done:
        return
    try:
        if exchange.is_answered:
            attempt = exchange.attempt
            if attempt is not None:
                attempt.leave()
            exchange.finish(attempt, Fault.INTERNAL)
            exchange.caller.abort()
        else:
            message = f"meshd met a fault of its own; its log has the details under call {exchange.call.id}"
            exchange.refuse(Refused(Reason.INTERNAL, message), Fault.INTERNAL)
    except Exception:
        # Whatever is broken may be needed to end the call in good order: then it ends without.
        log.exception("call %s could not be ended in good order", exchange.call.id)
        exchange.is_done = True
        exchange.proxy.left(exchange)
        exchange.caller.abort()
