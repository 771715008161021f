"""A call on its way through the gateway: what is sent in its place, and what its answer goes through."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Target, Wait
from meshd.chain import Pending
from meshd.dialects.json_pairs import member, read_body, read_object, write
from meshd.dialects.mcp import SESSION_FIELD, TOOLS_CALL
from meshd.gateway.hearing import tell
from meshd.gateway.links import METHODS as LINKING
from meshd.gateway.links import linked
from meshd.gateway.messages import (
    CONTEXT_IN_META,
    LEVEL_IN_META,
    STATELESS,
    as_event,
    encode,
    notification,
    passed,
    read,
    with_data,
    with_id,
    with_meta,
    with_server,
)
from meshd.gateway.opening import stateless_meta
from meshd.gateway.sizing import METHODS, Fitting
from meshd.gateway.streams import CANCELLED, OF_NO_CALL, inward
from meshd.proxy.answer import AnswerError, content_type_of
from meshd.proxy.onward import Onward
from meshd.refusal import Refused
from meshd.wire.message import Request
from meshd.wire.sse import EventTooLarge, Splitter, data_of
from meshd_sdk.context import HEADER_CONTEXT

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.gateway.client import Client, Link
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.messages import Said
    from meshd.gateway.sizing import Sized
    from meshd.proxy.exchange import Exchange
    from meshd.wire.message import Fields

_EVENTS: Final = b"text/event-stream"
_RESULT: Final = {"resultType": b'"complete"'}
_RESULT_READ: Final = {**_RESULT, "ttlMs": b"0", "cacheScope": b'"private"'}


class Passage:
    """What is kept of one call. Made before the chain, and asked before each attempt."""

    __slots__ = (
        "_call", "_fields", "_is_reopened", "body", "client", "gateway", "id", "is_looked_for", "link", "name", "sized",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, client: Client | None, body: bytes) -> None:
        self.gateway = gateway
        self.client = client
        """None for one without a session, until it is known which agent calls."""
        self.body = body
        """As its server is to have it, but for what is known only when it is sent."""
        self.name = ""
        """What it is for, as its server calls it."""
        self.link: Link | None = None
        """None for a call that the gateway answers itself."""
        self.id = b""
        """By which its server knows it, raw; empty where that is the client's own."""
        self.is_looked_for = False
        self.sized: Sized | None = None
        """How long the tool's result was, once it has come."""
        self._is_reopened = False
        self._fields: Fields | None = None
        self._call: Call | None = None

    def prepare(self, exchange: Exchange) -> Pending | None:
        """Make the request that goes out now; return what must be waited for first. Raises Refused."""
        call = self._call = exchange.call
        client = self.client
        if client is None:
            client = self.client = self.gateway.shared(call)
        elif client.id:
            self.gateway.check(client, call)
        upstream = call.upstream
        if upstream is None or upstream.is_gateway:
            return None
        link = client.links.get(upstream.name)
        if link is None or not link.is_open or link.upstream is not upstream:
            return Pending(Wait(self.gateway.open(client, upstream)), 0)
        self.link = link
        rpc = call.rpc
        assert rpc is not None
        if self._fields is None:
            self._fields = exchange.request.fields
        call.path = upstream.endpoint
        request = Request("POST", call.path, link.fields(self._fields, rpc.method, self.name))
        call.body = self._body(call, client, link, exchange)
        request.has_body, request.content_length = True, len(call.body)
        request.is_keep_alive, request.has_chunks = exchange.request.is_keep_alive, exchange.request.has_chunks
        exchange.request = request
        if call.substitution is not None:
            # What another server must not have was taken out by `Link.fields`, and that is its own session.
            call.substitution.request = request
        call.headers = request.fields.headers
        if rpc.id and not client.is_shared:
            client.runs_at(rpc.id, upstream.name)
        return None

    def _body(self, call: Call, client: Client, link: Link, exchange: Exchange) -> bytes:
        body, rpc = self.body, call.rpc
        assert rpc is not None
        meta: dict[str, bytes] = {}
        if link.version >= STATELESS and client.version < STATELESS and rpc.id:
            meta = {name: encode(value) for name, value in stateless_meta().items()}
            if client.log_level:
                # There is no `logging/setLevel` any more: each request says what it wants to hear.
                meta[LEVEL_IN_META] = msgspec.json.encode(msgspec.json.decode(client.log_level)["level"])
        context = call.context
        if link.upstream.sends_trace and context is not None and not rpc.is_reply:
            # SEP-414: without a prefix.
            parent = call.span.traceparent if call.span is not None else context.parent
            if parent:
                meta["traceparent"] = encode(parent)
        if link.upstream.is_peer and not rpc.is_reply:
            for name, value in exchange.proxy.chain.context.forward_headers(call):
                if name == HEADER_CONTEXT:
                    meta[CONTEXT_IN_META] = encode(value.decode("latin-1"))
        if meta:
            body = with_meta(body, meta)
        self.id = b""
        if client.is_shared and link.version < STATELESS and rpc.id:
            # Several clients use this session, and each numbers its calls by itself. The bridge does this on its own,
            # and answers under the id of the call.
            self.id = rpc.id if link.upstream.is_bridged else encode(client.next_id())
            body = with_id(body, self.id)
        return body

    def held_at(self, call: Call, server: str) -> None:
        """Say for which server a message is that names a call which was held for a person: only that call knows."""
        upstream = self.gateway.servers.get(server)
        if upstream is not None:
            call.upstream, call.path = upstream, upstream.endpoint
            call.target = Target(upstream.kind, upstream.name)
            # It may be sent there with the fields of this message, past `prepare`.
            call.headers = passed(call.headers)

    def is_forgotten(self) -> bool:
        """Say whether a 404 means that the server has forgotten our session, so that another one is to be opened."""
        link, client = self.link, self.client
        if link is None or client is None or not link.id or self._is_reopened:
            return False
        self._is_reopened = True
        self.gateway.forget(client, link)
        return True

    def given_up(self) -> None:
        """Its client has gone. By 2026-07-28 that cancels a request; a server of 2025 must be told it in words."""
        link, client = self.link, self.client
        # The bridge tells its servers by itself.
        if self.id and link is not None and link.is_open and client is not None and not link.upstream.is_bridged:
            params = b'{"requestId":' + self.id + b',"reason":"Its client has gone"}'
            self.gateway.tell(client, link, notification(CANCELLED, params))

    # ------------------------------------------------------------------ the answer

    def reply_fields(self, fields: Headers) -> Headers:
        """Return the fields of the reply: a server's session is none of the client's."""
        client, call = self.client, self._call
        if client is None or call is None or call.upstream is None or call.upstream.is_gateway:
            return fields
        fields = [field for field in fields if field[0] != SESSION_FIELD]
        if client.id:
            fields.append((SESSION_FIELD, client.id.encode()))
        return fields

    def onward(self, headers: Headers) -> Onward | None:
        """Return what the answer goes through last; None where nothing of it can be another."""
        link, client, call = self.link, self.client, self._call
        if link is None or client is None or call is None:
            return None
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
            raise AnswerError("it is compressed, though it was asked not to be")
        is_task = _may_be_task(call, self.body)
        is_stream = content_type_of(headers).lower().startswith(_EVENTS)
        made = ReturnedStream if is_stream else ReturnedWhole
        fitting = Fitting(self, call) if call.rpc is not None and call.rpc.method in METHODS else None
        return made(self, call.policy.limits.reply_body_bytes_max, fitting, is_task=is_task)

    def stood_in(self, message: bytes) -> bytes:
        """Return what stands in for a server's answer, under the id of the client, as that would have come. Raises
        AnswerError."""
        client, call = self.client, self._call
        if client is None or call is None or call.upstream is None or call.upstream.is_gateway:
            return message
        self.id = b""
        fitting = Fitting(self, call) if call.rpc is not None and call.rpc.method in METHODS else None
        whole = ReturnedWhole(self, call.policy.limits.reply_body_bytes_max, fitting, is_task=False)
        # A server of another era may have said it.
        made = self.returned(message) if client.version >= STATELESS else message
        return whole.data(made) + whole.end()

    @property
    def is_request(self) -> bool:
        """Whether the client waits for an answer."""
        call = self._call
        return call is not None and call.rpc is not None and bool(call.rpc.id) and not call.rpc.is_reply

    def is_answered_by(self, said: Said) -> bool:
        """Say whether a server answers what it was asked. Clients tell answers apart by their ids alone, whichever way
        they come: a server that names another's would answer in the place of another server."""
        if not said.id:
            return True  # It answers nothing: what is wrong with the message as such has no id.
        call = self._call
        assert call is not None
        assert call.rpc is not None
        asked = self.id or call.rpc.id
        return self.is_request and (said.id == asked or _same(said.id, asked))

    def linked(self, message: bytes) -> bytes:
        """Return an answer whose links to resources lead to the server that wrote them."""
        call, gateway = self._call, self.gateway
        if call is None or call.rpc is None or call.rpc.method not in LINKING or gateway.only is not None:
            return message
        assert call.upstream is not None
        server = call.upstream.name
        return linked(message, lambda uri: gateway.uri_of(server, uri))

    def returned(self, message: bytes) -> bytes:
        """Return an answer of a server of 2025 as a client of 2026 is to have it: under the id by which that asked,
        and with what every result says there."""
        call = self._call
        assert call is not None
        assert call.rpc is not None
        edits = {"id": call.rpc.id}
        pairs = read_body(message)
        raw = member(pairs, "result")
        if raw is not None and bytes(raw)[:1] == b"{":
            # A result that says something twice passes as it is: it is its client's to judge.
            with suppress(Refused):
                result = read_object(raw, "the result")
                wanted = _RESULT_READ if call.rpc.method == "resources/read" else _RESULT
                edits["result"] = write(result, {name: wanted[name] for name in wanted if name not in result})
        return write(pairs, edits)


def _same(one: bytes, other: bytes) -> bool:
    """Say whether two ids are one, written in two ways."""
    try:
        found, asked = msgspec.json.decode(one), msgspec.json.decode(other)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return isinstance(found, str) is isinstance(asked, str) and bool(found == asked)


def _may_be_task(call: Call, body: bytes) -> bool:
    """Say whether the answer may name a task, whose server must be known when it is asked for."""
    rpc = call.rpc
    return rpc is not None and rpc.method == TOOLS_CALL and (rpc.declares_tasks or b'"task"' in body)


class ReturnedWhole(Onward):
    """A plain answer, which nobody can use before it is whole."""

    __slots__ = ("_bytes_max", "_fitting", "_is_task", "_passage", "_pieces", "_size")

    is_held = True
    is_rewritten = True

    def __init__(self, passage: Passage, bytes_max: int, fitting: Fitting | None, *, is_task: bool) -> None:
        self._passage = passage
        self._fitting = fitting
        self._bytes_max = bytes_max if fitting is None else fitting.bytes_max
        self._is_task = is_task
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > self._bytes_max:
            self._pieces.clear()
            if self._fitting is None or not self._fitting.is_cut:
                raise AnswerError(f"it is over {self._bytes_max} bytes")
            # It was carried out: its client is told that at its end, and nobody tries again.
            return b""
        self._pieces.append(data)
        return b""

    def end(self) -> bytes:
        fitting = self._fitting
        if fitting is not None and self._size > self._bytes_max:
            return fitting.replaced(f"it is over {self._bytes_max:,} bytes", self._size)
        body = b"".join(self._pieces)
        if not body.strip():
            return body
        passage, said = self._passage, read(body)
        if not passage.is_request:
            return b""  # Nobody waits for an answer: what some servers write there all the same is for nobody.
        if said is None:
            # A plain answer is one message (Streamable HTTP, "Sending Messages"), and clients parse it whole. Some
            # servers write notices on lines before it, which no client could read: the last line is the answer.
            body = body.rstrip().rpartition(b"\n")[2]
            said = read(body)
        if said is None or said.method or not passage.is_answered_by(said):
            raise AnswerError("it is no answer to what was asked")
        if self._is_task:
            note_task(passage, body)
        if passage.id:
            body = passage.returned(body)
        body = passage.linked(body)
        return body if fitting is None else fitting.fit(body)


class ReturnedStream(Onward):
    """A stream of events: what the server asks of the client in it gets an id of ours, and what answers something else
    than what was asked, or cannot be read, is left out."""

    __slots__ = ("_fitting", "_is_over", "_is_task", "_passage", "_splitter")

    is_rewritten = True

    def __init__(self, passage: Passage, event_bytes_max: int, fitting: Fitting | None, *, is_task: bool) -> None:
        self._passage = passage
        self._fitting = fitting
        self._is_task = is_task
        self._is_over = False
        self._splitter = Splitter(event_bytes_max if fitting is None else fitting.bytes_max)

    def data(self, data: bytes) -> bytes:
        if self._is_over:
            return b""
        try:
            events = self._splitter.feed(data)
        except EventTooLarge as error:
            if self._fitting is None or not self._fitting.is_cut:
                raise AnswerError(str(error)) from None
            self._is_over = True
            return as_event(self._fitting.replaced(str(error), error.event_bytes_max + 1))
        return b"".join([self._event(event) for event in events])

    def end(self) -> bytes:
        rest = b"" if self._is_over else self._splitter.rest()
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        passage = self._passage
        assert passage.client is not None
        assert passage.link is not None
        event = with_server(event, passage.link.server)
        body = data_of(event)
        if not body:
            return event
        said = read(body)
        if said is None or (not said.method and not passage.is_answered_by(said)):
            return b""
        if said.method:
            made = inward(passage.gateway, passage.client, passage.link, event, body, said)
            return self._kept_for_listeners(made, said) if made and passage.client.is_shared else made
        if self._is_task:
            note_task(passage, body)
        made = passage.linked(passage.returned(body) if passage.id and said.id else body)
        if self._fitting is not None:
            made = self._fitting.fit(made)
        return event if made is body else with_data(event, made)

    def _kept_for_listeners(self, event: bytes, said: Said) -> bytes:
        """Bring what concerns no call to those of the agent's clients that listen: a server of 2025 may say it on any
        of its streams, and a client of 2026 hears it on its own alone. Return what is left for this call."""
        passage = self._passage
        assert passage.client is not None
        assert passage.link is not None
        if said.id or said.method not in OF_NO_CALL or passage.link.version >= STATELESS:
            return event
        told = read(data_of(event))
        if told is not None:
            tell(passage.client, event, told)
        return b""


def note_task(passage: Passage, message: bytes) -> None:
    """Remember which server has made a task of a call."""
    said: Any = read(message)
    raw = None if said is None else member(said.pairs, "result")
    if raw is None or bytes(raw)[:1] != b"{" or passage.link is None:
        return
    with suppress(Refused):
        found = read_object(raw, "the result")
        inner = member(found, "task")
        if inner is not None and bytes(inner)[:1] == b"{":
            found = read_object(inner, "the task")
        task = member(found, "taskId")
        if task is not None:
            assert passage.client is not None
            passage.gateway.tasks.note(passage.client.agent, bytes(task), passage.link.server)
