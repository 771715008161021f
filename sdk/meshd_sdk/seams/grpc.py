"""grpc: channels to the sidecar are made with an interceptor; all others are left alone."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from meshd_sdk.current import current
from meshd_sdk.seams.seam import Patch, needed, replaced, switch
from meshd_sdk.sidecar import due

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

MAKERS = ("insecure_channel", "secure_channel")


def hook(module: ModuleType) -> list[Patch]:
    """Hook what makes channels, sync and async."""
    needed(module, *MAKERS, *(f"aio.{name}" for name in MAKERS), "intercept_channel", "aio.ClientCallDetails")
    return [
        *(replaced(module, name, _around) for name in MAKERS),
        *(replaced(module.aio, name, _around_aio) for name in MAKERS),
    ]


def _goes_to_us(target: Any) -> bool:
    sidecar = switch.sidecar
    return sidecar is not None and isinstance(target, str) and sidecar.is_target(target)


def _around(make: Any) -> Any:
    @wraps(make)
    def make_channel(target: Any, *args: Any, **kwargs: Any) -> Any:
        channel = make(target, *args, **kwargs)
        return grpc.intercept_channel(channel, Carrying()) if _goes_to_us(target) else channel

    return make_channel


def _around_aio(make: Any) -> Any:
    # insecure_channel(target, options, compression, interceptors), and credentials after the target of a secure one
    at = 3 if make.__name__ == "insecure_channel" else 4

    @wraps(make)
    def make_channel(target: Any, *args: Any, **kwargs: Any) -> Any:
        if _goes_to_us(target):
            # Ours come last: they see what the caller's own have set.
            ours = (AioUnaryUnary(), AioUnaryStream(), AioStreamUnary(), AioStreamStream())
            if len(args) >= at:
                args = (*args[: at - 1], (*(args[at - 1] or ()), *ours), *args[at:])
            else:
                kwargs["interceptors"] = (*(kwargs.get("interceptors") or ()), *ours)
        return make(target, *args, **kwargs)

    return make_channel


def _due(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[tuple[str, str | bytes]] | None:
    """Return the metadata with what is due; None where nothing is."""
    now = current()
    if now is None or switch.sidecar is None:
        return None
    pairs = [(name, value) for name, value in metadata or ()]
    added = due(now, {name.lower() for name, _ in pairs}.__contains__)
    return [*pairs, *added.items()] if added else None


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class CallDetails(_Details, grpc.ClientCallDetails):
    """What grpc's own `_ClientCallDetails` is, which is private."""


def _intercept(_: Any, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
    metadata = _due(details.metadata)
    if metadata is not None:
        details = CallDetails(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
    return continuation(details, request)


async def _intercept_aio(_: Any, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
    metadata = _due(details.metadata)
    if metadata is not None:
        details = grpc.aio.ClientCallDetails(
            details.method,
            details.timeout,
            grpc.aio.Metadata(*metadata),
            details.credentials,
            details.wait_for_ready,
        )
    return await continuation(details, request)


# One function serves all four kinds, which differ in what `request` is and in what comes back: neither is looked at.
_SYNC: Any = _intercept
_AIO: Any = _intercept_aio


class Carrying(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds what is current where a call is made; its messages may be sent from another thread."""

    intercept_unary_unary = _SYNC
    intercept_unary_stream = _SYNC
    intercept_stream_unary = _SYNC
    intercept_stream_stream = _SYNC


# grpc.aio files an interceptor under the first of the four kinds that it is: one class would serve one kind alone.
class AioUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    """See `Carrying`."""

    intercept_unary_unary = _AIO


class AioUnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    """See `Carrying`."""

    intercept_unary_stream = _AIO


class AioStreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    """See `Carrying`."""

    intercept_stream_unary = _AIO


class AioStreamStream(grpc.aio.StreamStreamClientInterceptor):
    """See `Carrying`."""

    intercept_stream_stream = _AIO
