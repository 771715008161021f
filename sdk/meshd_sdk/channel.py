"""A connection to the sidecar's API: is somebody there, the gRPC channel, Hello and Welcome.

Imports grpcio and protobuf: nobody imports this module before there is a sidecar to speak with.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import grpc.aio

from meshd_sdk.errors import NoSidecar, ProtocolBroken
from meshd_sdk.statuses import failure_of_rpc
from meshd_sdk.v1 import session_pb2, session_pb2_grpc

if TYPE_CHECKING:
    from meshd_sdk.settings import Place

WELCOME_S: Final = 10.0
"""Within which a sidecar answers Hello."""
REVISION: Final = 1
_OPTIONS: Final = (
    # A proxy that the environment names is for the world outside, not for the sidecar.
    ("grpc.enable_http_proxy", 0),
    # Channels of one process share connections otherwise, and with them the back-off of one that has failed.
    ("grpc.use_local_subchannel_pool", 1),
    # What the sidecar may send it says itself; what it may be sent stands in Welcome.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.primary_user_agent", "meshd-sdk-python"),
)
# What a status says of somebody who is no sidecar's API, where nothing of meshd's stands in it. INTERNAL is what gRPC
# makes of a server that ends the stream with a status before it has read Hello.
_STRANGERS: Final = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)


class Opened(NamedTuple):
    """A stream on which Welcome has come."""

    channel: grpc.aio.Channel
    stream: Any
    """grpc.aio.StreamStreamCall."""
    welcome: session_pb2.Welcome


async def connect(place: Place, hello: session_pb2.Hello) -> Opened:
    """Open a session's stream. Raises NoSidecar where none is there, Refused where it will not have this agent, and
    ProtocolBroken where what it says is no Welcome."""
    channel = grpc.aio.insecure_channel(place.grpc_target, options=_OPTIONS)
    try:
        stub: Any = session_pb2_grpc.SessionServiceStub(channel)
        stream = stub.Connect(wait_for_ready=False)
        async with asyncio.timeout(WELCOME_S):
            await stream.write(session_pb2.ConnectRequest(hello=hello))
            first = await stream.read()
    except TimeoutError as error:
        await channel.close()
        raise NoSidecar(f"what listens at {place.grpc_target} did not answer within {WELCOME_S:.0f} s") from error
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        refused = await _why(place, stream, error)
        await channel.close()
        raise refused from error
    except BaseException:
        await channel.close()
        raise
    if first is grpc.aio.EOF or first.WhichOneof("frame") != "welcome":
        error_of_end = await _why(place, stream, None) if first is grpc.aio.EOF else None
        await channel.close()
        raise error_of_end or ProtocolBroken("the sidecar's first frame was no Welcome")
    return Opened(channel, stream, first.welcome)


async def _why(place: Place, stream: Any, error: Exception | None) -> Exception:
    """Return why a stream ended before Welcome."""
    if not isinstance(error, grpc.aio.AioRpcError):
        # A write that finds the stream ended says only that; the status says why.
        code = await stream.code()
        error = grpc.aio.AioRpcError(
            code, await stream.initial_metadata(), await stream.trailing_metadata(), details=await stream.details()
        )
    failure = failure_of_rpc(error)
    # The port for agents looks for an upstream of the service's name.
    is_agents_port = failure.reason == "unknown_target"
    if is_agents_port or (not failure.reason and error.code() in _STRANGERS):
        return NoSidecar(
            f"what listens at {place.grpc_target} is no meshd of this protocol: its API is at port 7402 where nothing "
            f"else is said, not at the port that agents call through ({failure.message})"
        )
    return failure
