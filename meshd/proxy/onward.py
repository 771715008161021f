"""The last thing that happens to an answer on its way to the caller: it is translated, or kept for a later call.

Meters, budgets and watchers have read it by then, in the upstream's own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.mcp_kept import MCP, answer_in
from meshd.dialects.translation_contract import TranslationError
from meshd.filters.answers import ANSWER_BYTES_MAX, are_kept, key_of
from meshd.filters.substitution import Standing
from meshd.proxy.answer import AnswerError, content_type_of
from meshd.wire.sse import EventTooLarge, Splitter

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.dialects.translation_contract import Translation
    from meshd.filters.answers import Answers
    from meshd.filters.chain_settings import ChainSettings
    from meshd.filters.substitution import Substitution
    from meshd.proxy.answer import Answer

ALTERED: Final = frozenset(
    {b"content-encoding", b"content-md5", b"digest", b"content-digest", b"repr-digest", b"etag", b"last-modified"}
)
"""Fields that are of the bytes as they came, which a held answer leaves without where its bytes are others."""
_NO_STORE: Final = b"no-store"
_PARTIAL: Final = 206


class Onward:
    """What an answer goes through last."""

    __slots__ = ()

    is_held = False
    """Nothing leaves before the answer is whole."""
    is_rewritten = False
    """What leaves may have another length."""

    def data(self, data: bytes) -> bytes:
        """Take what is to be forwarded; return what leaves. Raises AnswerError."""
        raise NotImplementedError

    def end(self) -> bytes:
        """Nothing more comes; return what is still to leave. Raises AnswerError; what judges the answer, Refused."""
        raise NotImplementedError

    def fields(self, headers: Headers) -> Headers:
        """Return the header fields with which a held answer leaves."""
        return headers

    def keep(self, answers: Answers, status: int, now_s: float) -> None:
        """The caller has had the whole answer."""


class Recording(Onward):
    """Keeps an answer that passes, for a link that says `cached`."""

    __slots__ = ("_headers", "_key", "_pieces", "_size")

    def __init__(self, call: Call, headers: Headers) -> None:
        self._key = key_of(call, Standing(call))
        self._headers = headers
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size <= ANSWER_BYTES_MAX:
            self._pieces.append(data)
        else:
            self._pieces.clear()
        return data

    def end(self) -> bytes:
        return b""

    def keep(self, answers: Answers, status: int, now_s: float) -> None:
        if self._size <= ANSWER_BYTES_MAX:
            answers.put(self._key, status, self._headers, b"".join(self._pieces), now_s)


class RecordingMessage(Recording):
    """Keeps the answer of an MCP server as one message, however it came."""

    __slots__ = ()

    def keep(self, answers: Answers, status: int, now_s: float) -> None:
        if self._size <= ANSWER_BYTES_MAX:
            is_stream = content_type_of(self._headers).lower().startswith(b"text/event-stream")
            message = answer_in(b"".join(self._pieces), is_stream=is_stream)
            if message is not None:
                answers.put(self._key, 200, [(b"content-type", b"application/json")], message, now_s)


class Both(Onward):
    """What is kept as it came, and goes through something else then."""

    __slots__ = ("_first", "_last", "is_held", "is_rewritten")

    def __init__(self, first: Recording, last: Onward) -> None:
        self._first = first
        self._last = last
        self.is_held = last.is_held
        self.is_rewritten = last.is_rewritten

    def data(self, data: bytes) -> bytes:
        return self._last.data(self._first.data(data))

    def end(self) -> bytes:
        return self._last.end()

    def fields(self, headers: Headers) -> Headers:
        return self._last.fields(headers)

    def keep(self, answers: Answers, status: int, now_s: float) -> None:
        self._first.keep(answers, status, now_s)


class TranslatedWhole(Onward):
    """Puts a plain answer into the caller's dialect."""

    __slots__ = ("_created", "_pieces", "_translation")

    is_held = True
    is_rewritten = True

    def __init__(self, translation: Translation, created: int) -> None:
        """`created` is the time of the answer, in Unix seconds."""
        self._translation = translation
        self._created = created
        self._pieces: list[bytes] = []

    def data(self, data: bytes) -> bytes:
        self._pieces.append(data)
        return b""

    def end(self) -> bytes:
        try:
            return self._translation.reply(b"".join(self._pieces), created=self._created)
        except TranslationError as error:
            raise AnswerError(f"it cannot be translated: {error}") from None


class TranslatedStream(Onward):
    """Puts a stream into the caller's dialect, event by event."""

    __slots__ = ("_splitter", "_stream")

    is_rewritten = True

    def __init__(self, translation: Translation, created: int, event_bytes_max: int) -> None:
        self._stream = translation.stream(created=created)
        self._splitter = Splitter(event_bytes_max)

    def data(self, data: bytes) -> bytes:
        try:
            return b"".join([self._stream.feed(event) for event in self._splitter.feed(data)])
        except (EventTooLarge, TranslationError) as error:
            raise AnswerError(f"it cannot be translated: {error}") from None

    def end(self) -> bytes:
        rest = self._splitter.rest()
        try:
            return (self._stream.feed(rest) if rest else b"") + self._stream.end()
        except TranslationError as error:
            raise AnswerError(f"it cannot be translated: {error}") from None


def onward_for(call: Call, answer: Answer | None, status: int, headers: Headers, *, is_stream: bool) -> Onward | None:
    """Return what an answer of the upstream's goes through last; None for nothing. Raises AnswerError."""
    substitution: Substitution | None = call.substitution
    if substitution is not None:
        standing = substitution.standing
        if standing is None or standing.translation is None:
            return None
        if answer is None:
            raise AnswerError("it cannot be read, so it cannot be translated")
        if is_stream:
            return TranslatedStream(standing.translation, int(call.wall_s), call.policy.limits.reply_body_bytes_max)
        return TranslatedWhole(standing.translation, int(call.wall_s))
    chain: ChainSettings | None = call.plan.chain
    if chain is None or not any(link.cached is not None for link in chain.to):
        return None
    if call.method == "HEAD":
        return None  # Its length is that of a body which nobody has.
    if call.ask is None and (status == _PARTIAL or any(_is_not_kept(*field) for field in headers)):
        return None
    if not are_kept(call):
        return None
    if call.rpc is not None and call.rpc.protocol == MCP:
        is_read = not any(name == b"content-encoding" for name, _ in headers)
        return RecordingMessage(call, headers) if is_read else None
    if answer is not None and answer.is_inflated:
        headers = [field for field in headers if field[0] != b"content-encoding"]
    return Recording(call, headers)


def _is_not_kept(name: bytes, value: bytes) -> bool:
    """Say whether a field of the reply forbids that it is given to another request."""
    return (name == b"cache-control" and _NO_STORE in value.lower()) or (name == b"vary" and b"*" in value)
