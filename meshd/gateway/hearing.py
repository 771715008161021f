"""Listening to servers for a client that listens: one stream to each server with which the client has a session."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshd.dialects.mcp import METHOD_FIELD, SESSION_FIELD, VERSION_FIELD
from meshd.gateway import calling
from meshd.gateway.messages import LAST_EVENT_FIELD, STATELESS, encode, read, request, with_server
from meshd.gateway.opening import stateless_meta
from meshd.gateway.streams import LIST_CHANGED, inward
from meshd.refusal import Refused
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.gateway.client import Client, Link
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.messages import Said
    from meshd.gateway.streams import Stream

SUBSCRIBE_S: Final = 10.0
AGAIN_S: Final = 1.0
"""A server may end its stream at any time, and wants to be asked again."""


def fields_of(link: Link) -> Headers:
    """Return the fields of a message of the gateway's own."""
    fields: Headers = [(VERSION_FIELD, link.version.encode())]
    if link.id:
        fields.append((SESSION_FIELD, link.id))
    return fields


def start(gateway: Gateway, client: Client, link: Link) -> None:
    """Listen to a server, where somebody wants to hear it and nobody listens yet; or not to all that is wanted now."""
    if not client.streams or not link.is_open:
        return
    uris = _uris(gateway, client, link)
    if link.version < STATELESS:
        # A client with a session has subscribed by itself, and its streams name nothing.
        asked = [uri for uri in uris if uri not in link.uris]
        if asked:
            link.uris = (*link.uris, *asked)
            gateway.begin(_subscribe(gateway, client, link, asked))
        uris = ()
    if link.listening is not None:
        if set(uris) <= set(link.uris):
            return
        stop(link)

    def heard(event: bytes) -> None:
        _heard(gateway, client, link, event)

    def ended(was_stream: bool) -> None:
        link.listening = None
        if was_stream:
            gateway.proxy.later(AGAIN_S, lambda: start(gateway, client, link))

    if link.version >= STATELESS:
        link.uris = uris
    link.listening = _nothing  # Where the server ends it at once, `ended` comes before the next line.
    if link.version >= STATELESS:
        fields = [*fields_of(link), (METHOD_FIELD, b"subscriptions/listen")]
        body = _subscription(client, uris)
        end = calling.listen(
            gateway.proxy, link.upstream, fields, body, agent=client.agent, method="POST", heard=heard, ended=ended
        )
    else:
        end = calling.listen(
            gateway.proxy,
            link.upstream,
            fields_of(link),
            b"",
            agent=client.agent,
            method="GET",
            heard=heard,
            ended=ended,
        )
    if link.listening is _nothing:
        link.listening = end


def resume(gateway: Gateway, client: Client, link: Link, stream: Stream, id: bytes) -> None:
    """Take up a stream of a server's that broke off: what was missed of it goes to the client's new stream."""

    def heard(event: bytes) -> None:
        found = _inward(gateway, client, link, event)
        if found is not None and stream in client.streams:
            stream.send(found[0])

    fields = [*fields_of(link), (LAST_EVENT_FIELD, id)]
    stream.resuming = calling.listen(
        gateway.proxy, link.upstream, fields, b"", agent=client.agent, method="GET", heard=heard, ended=lambda _: None
    )


def stop(link: Link) -> None:
    """Listen no more."""
    listening, link.listening = link.listening, None
    if listening is not None:
        listening()


def _nothing() -> None:
    """Ends nothing."""


def _uris(gateway: Gateway, client: Client, link: Link) -> tuple[str, ...]:
    """Return the resources of one server of whose changes somebody wants to hear, by its own names."""
    names = gateway.names
    places = (names.uris.find(uri) for stream in client.streams for uri in stream.uris)
    return tuple(sorted({place.name for place in places if place is not None and place.server == link.server}))


def _subscription(client: Client, uris: tuple[str, ...]) -> bytes:
    wanted: dict[str, object] = dict.fromkeys(LIST_CHANGED.values(), True)
    if uris:
        wanted["resourceSubscriptions"] = uris
    return request(
        client.next_id(), "subscriptions/listen", encode({"_meta": stateless_meta(), "notifications": wanted})
    )


async def _subscribe(gateway: Gateway, client: Client, link: Link, uris: list[str]) -> None:
    """Subscribe for who listens without a session at a server that knows subscriptions in sessions alone. They last as
    long as the session: what nobody wants to hear any more is told nobody."""
    for uri in uris:
        body = request(client.next_id(), "resources/subscribe", encode({"uri": uri}))
        # What the server or the policy refuses is not heard of; the others are.
        with suppress(Refused):
            await calling.ask(
                gateway.proxy, link.upstream, fields_of(link), body, agent=client.agent, timeout_s=SUBSCRIBE_S
            )


def _heard(gateway: Gateway, client: Client, link: Link, event: bytes) -> None:
    found = _inward(gateway, client, link, event)
    if found is None:
        return
    event, said = found
    if not client.is_shared:
        if client.streams:
            client.streams[-1].send(event)
        return
    if not said.method:
        return
    tell(client, event, said)


def tell(client: Client, event: bytes, said: Said) -> None:
    """Hand what a server says of its lists and resources to those who listen without a session and want to know."""
    for stream in tuple(client.streams):
        # What has params that cannot be read is nothing that anybody asked for.
        with suppress(Refused):
            if stream.takes(said):
                stream.send(event)


def _inward(gateway: Gateway, client: Client, link: Link, event: bytes) -> tuple[bytes, Said] | None:
    """Return what a server says unasked as its client is to have it; None where it is nothing for the client.

    A stream that is taken up again may bring answers: those to what this server was asked, and no others.
    """
    event = with_server(event, link.server)
    body = data_of(event)
    said = read(body) if body else None
    if said is None:
        return None
    if said.method:
        event = inward(gateway, client, link, event, body, said)
        said = read(data_of(event)) if event else None
        return None if said is None else (event, said)
    return (event, said) if client.running.get(said.id) == link.server else None
