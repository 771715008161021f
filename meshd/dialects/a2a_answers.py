"""Which conversation and which task an A2A agent's answer is of: its first event, or the whole of a plain one. Pure."""

from __future__ import annotations

from typing import Any, Final

from meshd.dialects.held_task import decoded
from meshd.dialects.protobuf import split
from meshd.refusal import Refused
from meshd.wire.sse import EventTooLarge, Splitter, data_of

ID_CHARACTERS_MAX: Final = 512
_WRAPPED: Final = ("task", "message", "msg", "statusUpdate", "artifactUpdate")
"""What 1.0 wraps what it says in."""
_FRAME_HEAD: Final = 5
_LENGTH: Final = 2
_PLACES: Final = {1: (2, 1), 2: (2, 3), 3: (2, 1), 4: (2, 1)}
"""Of a task, a message, and the events of a stream in gRPC: the numbers of the context's id and of the task's."""


class AnswerIds:
    """Reads them as the answer passes. Each byte is looked at about once, in however small pieces it comes."""

    __slots__ = ("_frame_bytes", "_is_grpc", "_pieces", "_splitter")

    def __init__(self, bytes_max: int, *, is_stream: bool, is_grpc: bool) -> None:
        """`bytes_max` is how long a first event may be."""
        self._is_grpc = is_grpc
        self._splitter = Splitter(bytes_max) if is_stream and not is_grpc else None
        self._pieces = bytearray()
        self._frame_bytes = _FRAME_HEAD
        """How much of a gRPC answer is waited for: its first head, then its first frame."""

    def feed(self, data: bytes) -> tuple[str, str] | None:
        """Return the ids of context and task that the answer says, each empty where it says none; None where that is
        not enough of it yet. Never raises on nonsense."""
        if self._splitter is not None:
            return _of_events(self._splitter, data)
        self._pieces += data
        if not self._is_grpc or len(self._pieces) < self._frame_bytes:
            return None
        self._frame_bytes = _FRAME_HEAD + int.from_bytes(self._pieces[1:_FRAME_HEAD], "big")
        return _of_frame(bytes(self._pieces), self._frame_bytes) if len(self._pieces) >= self._frame_bytes else None

    def end(self) -> tuple[str, str] | None:
        """Return the same, now that nothing more comes."""
        said = decoded(bytes(self._pieces)) if self._splitter is None and not self._is_grpc else None
        return _of_json(said) if isinstance(said, dict) else None


def _of_events(splitter: Splitter, data: bytes) -> tuple[str, str] | None:
    try:
        for raw in splitter.feed(data):
            said = decoded(data_of(raw))
            if isinstance(said, dict):
                return _of_json(said)
    except EventTooLarge:
        return "", ""
    return None


def _of_json(said: dict[str, Any]) -> tuple[str, str]:
    inner = unwrapped(said)
    return ("", "") if inner is None else named_in(inner)


def unwrapped(said: object) -> dict[str, Any] | None:
    """Return the message, task or event that an answer holds, over JSON-RPC or REST; None where it holds none."""
    result = said.get("result", said) if isinstance(said, dict) else None
    if not isinstance(result, dict):
        return None
    inner: dict[str, Any] = next((result[name] for name in _WRAPPED if isinstance(result.get(name), dict)), result)
    return inner


def named_in(inner: dict[str, Any]) -> tuple[str, str]:
    """Return the ids of context and task that a message, task or event says, each empty where it says none."""
    task = inner.get("taskId") or (inner.get("id") if "status" in inner else "")
    return _id(inner.get("contextId")), _id(task)


def _of_frame(body: bytes, end: int) -> tuple[str, str]:
    if body[0]:
        return "", ""  # Compressed: to be passed on, and not to be unpacked for this.
    try:
        for number, wire, value in split(body[_FRAME_HEAD:end], "the answer"):
            places = _PLACES.get(number)
            if wire == _LENGTH and places is not None:
                found = {at: raw for at, sort, raw in split(value, "the answer") if sort == _LENGTH}
                context, task = (found.get(at, b"").decode("utf-8", "replace") for at in places)
                return _id(context), _id(task)
    except Refused:
        pass
    return "", ""


def _id(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= ID_CHARACTERS_MAX else ""
