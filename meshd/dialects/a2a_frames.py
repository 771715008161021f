"""The messages of a gRPC answer of A2A, looked at as they pass, in JSON's words as of its other bindings. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.dialects.a2a_answer_fields import ANSWERS
from meshd.dialects.a2a_usage import READ_BYTES_MAX, is_marked
from meshd.dialects.protobuf import FRAME_HEAD_BYTES, decoded
from meshd.refusal import Refused

if TYPE_CHECKING:
    from meshd.dialects.a2a_usage import Reports


def is_read(method: str) -> bool:
    """Say whether the answers of a method can be read: those of 1.0 that are of a message or a task."""
    return method in ANSWERS


class Frames:
    """Cuts an answer into messages. One that is compressed or over 64 kB is passed over, and the next is read again."""

    __slots__ = ("_method", "_pending", "_skip")

    def __init__(self, method: str) -> None:
        self._method = method
        self._pending = bytearray()
        self._skip = 0
        """Bytes that are still to come of a message that is passed over."""

    def feed(self, data: bytes, reports: Reports) -> None:
        """Read the messages that `data` completes. Holds at most 64 kB beside it; never raises on nonsense."""
        pending, at = self._pending, min(self._skip, len(data))
        self._skip -= at
        pending += data[at:]
        at = 0
        while len(pending) - at >= FRAME_HEAD_BYTES:
            end = at + FRAME_HEAD_BYTES + int.from_bytes(pending[at + 1 : at + FRAME_HEAD_BYTES], "big")
            if end - at > READ_BYTES_MAX:
                self._skip = max(0, end - len(pending))
                at = min(end, len(pending))
                continue
            if end > len(pending):
                break
            if not pending[at]:
                self._read(bytes(pending[at + FRAME_HEAD_BYTES : end]), reports)
            at = end
        del pending[:at]

    def _read(self, message: bytes, reports: Reports) -> None:
        if is_marked(message):
            try:
                found: dict[str, Any] = decoded(message, ANSWERS[self._method], "the answer")
            except Refused:
                return
            reports.take(found)
