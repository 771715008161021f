"""What happens to a reply's body on its way to the caller.

A reply that no ticket watches and no meter reads passes raw and never comes here. The others are read as they pass:
a stream event by event, a plain reply whole but forwarded at once, and a plain reply that a rule must judge is held
until it has been judged. Nothing here does I/O: bytes go in, the bytes to forward come out.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from meshd.call import ReplyHead
from meshd.filters.contract import Cut
from meshd.refusal import Reason, Refused
from meshd.wire.event_stream import FrameBroken
from meshd.wire.sse import EventTooLarge, Splitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call, Headers
    from meshd.dialects import contract
    from meshd.dialects.contract import Meter
    from meshd.dialects.event import Event
    from meshd.filters.contract import Ticket
    from meshd.limits import Limits

RATIO_MAX: Final = 100
"""Most that one byte of a compressed reply may become: gzip bombs reach 1,000, model output stays below 20."""


class AnswerError(Exception):
    """The reply cannot be read as what it says it is; `str()` says why."""


class _NoMemberError(AnswerError):
    """What follows a whole member of a gzip does not begin like another."""


class Inflater:
    """Decodes a gzip or deflate reply with caps on its size and ratio.

    A gzip may have several members, one behind the other (RFC 1952, 2.2). What follows the last and is none is passed
    over, as gunzip does.
    """

    __slots__ = ("_bytes_in", "_bytes_max", "_bytes_out", "_decoder", "_has_ended", "_is_over")

    def __init__(self, bytes_max: int) -> None:
        self._decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._bytes_in = 0
        self._bytes_out = 0
        self._bytes_max = bytes_max
        self._has_ended = False
        """A member is whole."""
        self._is_over = False
        """What came behind a whole member is none."""

    def feed(self, data: bytes) -> bytes:
        """Return what `data` decodes to. Raises AnswerError on garbage and beyond the caps."""
        self._bytes_in += len(data)
        if self._has_ended:
            return self._next_members(data)
        out = self._decode(data)
        if self._decoder.eof:
            self._has_ended = True
            out += self._next_members(self._decoder.unused_data)
        return out

    def check_end(self) -> None:
        """The body is whole: raises AnswerError where what was compressed is not."""
        if self._bytes_in and not self._is_over and not self._decoder.eof:
            raise AnswerError("it ends in the middle of what was compressed")

    def _next_members(self, data: bytes) -> bytes:
        out = b""
        while data and not self._is_over:
            if self._decoder.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                self._decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            try:
                out += self._decode(data)
            except _NoMemberError:
                self._is_over = True
            data = self._decoder.unused_data
        return out

    def _decode(self, data: bytes) -> bytes:
        room = min(self._bytes_max, self._bytes_in * RATIO_MAX + 65_536) - self._bytes_out
        try:
            out = self._decoder.decompress(data, max(room, 1))
        except zlib.error as error:
            is_none = self._has_ended and "header check" in str(error)
            kind = _NoMemberError if is_none else AnswerError
            raise kind(f"its content-encoding does not decode: {error}") from None
        self._bytes_out += len(out)
        if self._decoder.unconsumed_tail:
            raise AnswerError("it decodes to more than the caps on size and ratio allow")
        return out


ENCODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})


class Answer:
    """The common part: the meter, whoever watches, and how the answer was ended early, if it was."""

    __slots__ = ("_inflater", "cut", "has_content", "is_stream", "meter", "watchers")

    def __init__(self, meter: Meter, watchers: tuple[Callable[[Event], Event | Cut], ...], inflater: Inflater | None):
        self.meter = meter
        self.watchers = watchers
        self.cut: Cut | None = None
        """Set where a ticket ended the answer: nothing more is forwarded."""
        self.has_content = False
        """A stream has brought something that its model has made."""
        self.is_stream = False
        self._inflater = inflater

    @property
    def is_inflated(self) -> bool:
        """The body is forwarded decoded, so its length and encoding are not the upstream's."""
        return self._inflater is not None

    @property
    def is_rewritten(self) -> bool:
        """The body that is forwarded may have another length than the upstream's."""
        return self._inflater is not None

    @property
    def is_held(self) -> bool:
        """Nothing is forwarded before the whole answer has been judged."""
        return False

    def _watch(self, event: Event) -> bytes:
        for watch in self.watchers:
            got = watch(event)
            if got.__class__ is Cut:
                self.cut = got
                return b""
        return event.raw

    def data(self, data: bytes) -> bytes:
        """Take a piece of the body; return what is to be forwarded now. Raises AnswerError."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The body is whole; return what is still to be forwarded. Raises AnswerError."""
        raise NotImplementedError


class StreamAnswer(Answer):
    """A stream of events, server-sent or framed otherwise: each is read and forwarded when its last byte is there."""

    __slots__ = ("_read_event", "_splitter", "_sse")

    is_rewritten = True

    def __init__(
        self,
        meter: Meter,
        watchers: tuple[Any, ...],
        inflater: Inflater | None,
        splitter: contract.Splitter | None = None,
    ) -> None:
        super().__init__(meter, watchers, inflater)
        self.is_stream = True
        self._splitter = splitter = Splitter() if splitter is None else splitter
        # Compiled, a call of what is known by its class costs a third of one that must be looked up.
        self._sse = splitter if isinstance(splitter, Splitter) else None
        self._read_event = meter.read_event

    def data(self, data: bytes) -> bytes:
        if self._inflater is not None:
            data = self._inflater.feed(data)
        sse = self._sse
        try:
            raws = sse.feed(data) if sse is not None else self._splitter.feed(data)
        except (EventTooLarge, FrameBroken) as error:
            raise AnswerError(str(error)) from None
        if len(raws) != 1:
            return self._many(raws)
        # One write is one event, for most servers: no call more than there must be.
        event = self._read_event(raws[0])
        if event is None:
            return b""
        if not self.has_content and event.has_content:
            self.has_content = True
        for watch in self.watchers:
            got = watch(event)
            if got.__class__ is Cut:
                self.cut = got
                return b""
        return event.raw

    def _many(self, raws: list[bytes]) -> bytes:
        out: list[bytes] = []
        for raw in raws:
            event = self.meter.read_event(raw)
            if event is not None:
                self.has_content = self.has_content or event.has_content
                out.append(self._watch(event))
                if self.cut is not None:
                    break
        return b"".join(out)

    def end(self) -> bytes:
        # A stream that has said its last word is whole, however its server leaves the encoding.
        if self._inflater is not None and self.cut is None and not self.meter.is_terminal:
            self._inflater.check_end()
        rest = self._splitter.rest()
        if not rest or self.cut is not None:
            return b""
        # A last event without what ends it: clients read it, so it is metered too.
        event = self.meter.read_event(rest)
        return self._watch(event) if event is not None else b""


class PlainAnswer(Answer):
    """A plain reply: forwarded as it comes and kept aside, up to a cap, to be read when it is whole."""

    __slots__ = ("_bytes_max", "_is_held", "_kept", "_size")

    def __init__(
        self, meter: Meter, watchers: tuple[Any, ...], inflater: Inflater | None, *, is_held: bool, bytes_max: int
    ) -> None:
        super().__init__(meter, watchers, inflater)
        self._kept: list[bytes] = []
        self._size = 0
        self._is_held = is_held
        self._bytes_max = bytes_max

    def data(self, data: bytes) -> bytes:
        if self._inflater is not None:
            data = self._inflater.feed(data)
        self._size += len(data)
        if self._size <= self._bytes_max:
            self._kept.append(data)
        elif self._is_held:
            raise AnswerError(f"it is over {self._bytes_max} bytes, and a rule must read it whole")
        else:
            self._kept.clear()
        return b"" if self._is_held else data

    def end(self) -> bytes:
        if self._inflater is not None:
            self._inflater.check_end()
        if self._size > self._bytes_max:
            return b""
        kept = self._kept
        body = kept[0] if len(kept) == 1 else b"".join(kept)
        event = self.meter.read_message(body)
        if self.watchers:
            event.raw = body
            body = self._watch(event)
        return body if self._is_held else b""

    @property
    def is_held(self) -> bool:
        """Nothing has been forwarded, and nothing will be before the end."""
        return self._is_held


def content_type_of(headers: Headers) -> bytes:
    """Return a reply's content-type; empty where it has none."""
    for name, value in headers:
        if name == b"content-type":
            return value
    return b""


_FRAMED: Final[dict[type, bool]] = {}
"""Whether meters of a class know of framings; there are as many as dialects."""


def splitter_of(meter: Meter, headers: Headers, event_bytes_max: int) -> contract.Splitter | None:
    """Return what cuts a reply into events: server-sent ones, or those that its meter knows. None for a plain reply.

    An event may hold an image, or repeat a whole answer: it may be as long as a plain reply.
    """
    content_type = content_type_of(headers)
    kind = meter.__class__
    is_framed = _FRAMED.get(kind)
    if is_framed is None:
        is_framed = _FRAMED[kind] = hasattr(kind, "splitter_for")
    if is_framed:
        framed: Any = meter
        splitter: contract.Splitter | None = framed.splitter_for(content_type, event_bytes_max)
        return splitter
    return Splitter(event_bytes_max) if content_type[:17].lower() == b"text/event-stream" else None


def inflater_for(headers: Headers, bytes_max: int) -> Inflater | None:
    """Return the decoder of a reply's content-encoding, None where it has none. Raises AnswerError on others."""
    for name, _ in headers:
        if name == b"content-encoding":
            break
    else:
        return None
    values = [value for name, value in headers if name == b"content-encoding"]
    encodings = [part.strip().lower() for value in values for part in value.split(b",")]
    encodings = [encoding for encoding in encodings if encoding not in (b"", b"identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in ENCODINGS:
        raise AnswerError("it came compressed although it was asked for plainly, in an encoding that meshd cannot read")
    return Inflater(bytes_max)


_UNREADABLE: Final = {b"br": "br", b"zstd": "zstd"}
"""Encodings that providers' front ends know beside those of `ENCODINGS`; no library that meshd needs has them."""


def unknown_encoding(headers: Headers) -> str:
    """Return why a body of such a reply cannot be read here: its encoding, or `other`; empty where it can."""
    try:
        inflater_for(headers, 0)
    except AnswerError:
        said = next((value for name, value in headers if name == b"content-encoding"), b"")
        return _UNREADABLE.get(said.strip().lower(), "other")
    return ""


def decoded(body: bytes, headers: Headers, bytes_max: int) -> bytes:
    """Return what a whole body says; empty where it cannot be read, or is more than `bytes_max`."""
    try:
        inflater = inflater_for(headers, bytes_max)
        return body if inflater is None else inflater.feed(body)
    except AnswerError:
        return b""


def forbidden_reply(cut: Cut) -> Refused:
    """Return the refusal that stands in place of an answer, or after its beginning."""
    return Refused(Reason.NOT_ALLOWED, cut.message)


_WATCHES: Final[dict[type, bool]] = {}
"""Whether tickets of a class see the answer; there are as many as filters."""
_SEES_HEAD: Final[dict[type, bool]] = {}
"""The same of its head."""


def watchers_in(*ticket_lists: list[Ticket]) -> tuple[Ticket, ...]:
    """Return the tickets that see the reply's head or its events: for most calls, none."""
    found: tuple[Ticket, ...] = ()
    for tickets in ticket_lists:
        for ticket in tickets:
            kind = ticket.__class__
            watches = _WATCHES.get(kind)
            if watches is None:
                watches = _WATCHES[kind] = hasattr(kind, "on_head") or hasattr(kind, "on_event")
            if watches:
                found += (ticket,)
    return found


def show_head(watching: tuple[Any, ...], status: int, headers: Headers) -> None:
    """Let the tickets that look at the reply's head see it."""
    for ticket in watching:
        kind = ticket.__class__
        sees = _SEES_HEAD.get(kind)
        if sees is None:
            # To ask for a method that is not there costs a microsecond: once for each class, then.
            sees = _SEES_HEAD[kind] = hasattr(kind, "on_head")
        if sees:
            ticket.on_head(ReplyHead(status, headers))


def choose_answer(call: Call, headers: Headers, tickets: tuple[Ticket, ...]) -> Answer | None:
    """Return how the reply to a metered call is read; None where it can only be passed on. Raises AnswerError."""
    watchers: list[Any] = []
    is_judged = False
    for ticket in tickets:
        on_event = getattr(ticket, "on_event", None)
        if on_event is not None:
            watchers.append(on_event)
            is_judged = is_judged or getattr(ticket, "judges_whole", False)
    limits: Limits = call.policy.limits
    bytes_max = limits.reply_body_bytes_max
    meter = call.dialect.meter(call.ask or call.earlier)
    try:
        inflater = inflater_for(headers, bytes_max)
    except AnswerError:
        if is_judged:
            raise
        return None  # It cannot be metered, so it is charged at its bound; it can still be passed on.
    splitter = splitter_of(meter, headers, bytes_max)
    if splitter is not None:
        return StreamAnswer(meter, tuple(watchers), inflater, splitter)
    return PlainAnswer(meter, tuple(watchers), inflater, is_held=is_judged, bytes_max=bytes_max)
