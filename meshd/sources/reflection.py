"""gRPC server reflection: the services of a server and their methods, as its descriptors have them.

Asked over the sidecar's own port as any gRPC client would, by `grpc.reflection.v1`, and by `v1alpha` where that is not
there. grpcio and protobuf are imported with the first look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.sources.asking import LOOK_BYTES_MAX, PAGE_BYTES_MAX, TIMEOUT_S, Failed, Look, json_of

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICES_MAX: Final = 256
FILES_MAX: Final = 1024
_OWN: Final = ("grpc.reflection.", "grpc.health.", "grpc.channelz.")
_METHOD: Final = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
_TYPES: Final = {
    1: "number", 2: "number", 3: "string", 4: "string", 5: "integer", 6: "string", 7: "integer", 8: "boolean",
    9: "string", 11: "object", 12: "string", 13: "integer", 14: "string", 15: "integer", 16: "string", 17: "integer",
    18: "string",
}  # fmt: skip
"""Types of fields (descriptor.proto) as proto3's JSON has them: 64-bit numbers are strings."""
_LIST_LABEL: Final = 3


class Reflection:
    """The services of one upstream."""

    origin = Origin.REFLECTION

    def __init__(self, address: str, upstream: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """`address` is where the agents' port listens: HOST:PORT."""
        self._address = address
        self._upstream = upstream
        self._timeout_s = timeout_s

    async def look(self) -> Look:
        """See `Source.look`."""
        import grpc

        options = (("grpc.default_authority", f"{self._upstream}.mesh"), ("grpc.enable_http_proxy", 0))
        options += (("grpc.max_receive_message_length", PAGE_BYTES_MAX),)  # type: ignore[assignment]
        async with grpc.aio.insecure_channel(self._address, options) as channel:
            try:
                return await self._read(channel, "v1")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise _failed(error) from None
            try:
                return await self._read(channel, "v1alpha")
            except grpc.aio.AioRpcError as error:
                raise _failed(error) from None

    async def _read(self, channel: Any, revision: str) -> Look:
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        from google.protobuf.message import DecodeError
        from grpc_reflection.v1alpha import reflection_pb2 as pb  # v1 has the same messages under another name

        listed = await self._ask(channel, revision, [pb.ServerReflectionRequest(list_services="*")])
        names = [one.name for reply in listed for one in reply.list_services_response.service]
        names = [name for name in names if not name.startswith(_OWN)][:SERVICES_MAX]
        asked = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in names]
        files: dict[str, Any] = {}
        size = 0
        for reply in await self._ask(channel, revision, asked) if asked else ():
            for body in reply.file_descriptor_response.file_descriptor_proto:
                size += len(body)
                if size > LOOK_BYTES_MAX or len(files) > FILES_MAX:
                    most = f"{LOOK_BYTES_MAX} bytes or {FILES_MAX} files"
                    raise Failed(f"its descriptors have more than {most}", "too_large")
                try:
                    file = FileDescriptorProto.FromString(body)
                except DecodeError as error:
                    raise Failed(f"its descriptors cannot be read: {error}", "malformed") from None
                files[file.name] = file
        return Look(_entries(files.values(), frozenset(names), self._upstream))

    async def _ask(self, channel: Any, revision: str, requests: list[Any]) -> list[Any]:
        from grpc_reflection.v1alpha import reflection_pb2 as pb

        method = channel.stream_stream(
            _METHOD.format(revision),
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        return [reply async for reply in method(iter(requests), timeout=self._timeout_s)]

    async def listen(self, changed: Callable[[], None]) -> None:
        """Descriptors tell nobody that they changed."""

    async def close(self) -> None:
        """Nothing is open."""


def _failed(error: Any) -> Failed:
    return Failed(f"it does not reflect its services: {error.code().name}: {error.details()}"[:300], "status")


def _entries(files: Any, services: frozenset[str], owner: str) -> list[Entry]:
    messages = {name: message for file in files for name, message in _messages(file)}
    found: list[Entry] = []
    for file in files:
        comments = _comments(file)
        for at, service in enumerate(file.service):
            full = f"{file.package}.{service.name}" if file.package else service.name
            if full not in services:
                continue
            for number, method in enumerate(service.method):
                told = [comments.get((6, at, 2, number), ""), comments.get((6, at), "")]
                found.append(
                    Entry(
                        Sort.TOOL,
                        owner,
                        f"{full}/{method.name}",
                        "\n\n".join(one for one in told if one),
                        origin=Origin.REFLECTION,
                        input_schema=json_of(_schema(messages.get(method.input_type.lstrip(".")))),
                        output_schema=json_of(_schema(messages.get(method.output_type.lstrip(".")))),
                        is_read_only=method.options.idempotency_level == 1,  # NO_SIDE_EFFECTS
                    )
                )
    return found


def _messages(file: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    left = [(file.package, one) for one in file.message_type]
    while left:
        above, one = left.pop()
        name = f"{above}.{one.name}" if above else one.name
        found.append((name, one))
        left += [(name, nested) for nested in one.nested_type]
    return found


def _comments(file: Any) -> dict[tuple[int, ...], str]:
    # Most servers reflect descriptors without them.
    return {
        tuple(one.path): one.leading_comments.strip()
        for one in file.source_code_info.location
        if one.leading_comments and one.path[:1] == [6]
    }


def _camel(name: str) -> str:
    """Return a field's name as proto3's JSON has it; descriptors say it themselves only where protoc wrote them out."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _schema(message: Any) -> dict[str, Any]:
    """Return a message's fields, one level of them: enough to find it by, and to write a first call."""
    if message is None:
        return {"type": "object"}
    properties: dict[str, Any] = {}
    for field in message.field:
        one: dict[str, Any] = {"type": _TYPES.get(field.type, "string")}
        if field.type_name:
            one["description"] = field.type_name.lstrip(".")
        properties[field.json_name or _camel(field.name)] = (
            {"type": "array", "items": one} if field.label == _LIST_LABEL else one
        )
    return {"type": "object", "properties": properties}
