"""No body language at all: everything is opaque, and passes as it is. Refusals are problem details (RFC 9457)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask, Usage
from meshd.dialects.event import Event

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Plain:
    """The dialect `plain`."""

    name = "plain"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: nothing is."""
        return None

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: only what asks for nothing to be done. Whether the rest costs is the upstream's kind's
        to say."""
        return method in _SAFE

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`: an ask for which nothing but the size of its body is known."""
        return Ask(operation, "", input_bound=len(body), has_output=False)

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`: never."""
        return body

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`: never."""
        return path

    def meter(self, ask: Ask) -> PlainMeter:
        """See `Dialect.meter`."""
        return PlainMeter()

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`."""
        problem = _problem(refused) | {
            "instance": f"urn:meshd:call:{call_id}",
            # An extension of ours (section 3.2): an LLM's SDK that has missed its upstream shows this and nothing else.
            "error": {"type": refused.row.openai_type, "code": refused.row.code, "message": refused.message},
        }
        return b"application/problem+json", msgspec.json.encode(problem)


def _problem(refused: Refused) -> dict[str, str | int | bool]:
    return {
        "type": f"urn:meshd:reason:{refused.reason.value}",
        "title": refused.reason.value.replace("_", " ").capitalize(),
        "status": refused.status,
        "detail": refused.message,
        "code": refused.row.code,
        "retryable": refused.is_retryable,
    }


class PlainMeter:
    """See `Meter`. Understands nothing, so a stream's end is its end of file."""

    __slots__ = (
        "_event", "error_status", "finish_reasons", "is_terminal", "output_estimate", "response_id", "response_model",
        "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self._event = Event()
        self.usage: Usage | None = None
        self.output_estimate = 0
        self.is_terminal = True
        self.response_id = ""
        self.response_model = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.error_status = 0

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`."""
        self._event.raw = body
        return self._event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`."""
        self._event.raw = raw
        return self._event

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: nothing is known that would end it well-formed."""
        return b""

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`."""
        return b"event: error\ndata: " + msgspec.json.encode(_problem(refused)) + b"\n\n"
