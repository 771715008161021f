"""What servers say unasked, and what they ask in the middle of a call: on its way to the client that it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.dialects.json_pairs import member, read_object, text
from meshd.dialects.jsonrpc import ID_BYTES_MAX
from meshd.gateway.client import Asked
from meshd.gateway.messages import (
    SUBSCRIPTION_IN_META,
    as_event,
    params_of,
    with_data,
    with_id,
    with_meta,
    with_params,
)
from meshd.refusal import Refused
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.gateway.client import Client, Link
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.messages import Said

LIST_CHANGED: Final = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}
"""By which a client of 2026 asks for them."""
UPDATED: Final = "notifications/resources/updated"
OF_NO_CALL: Final = frozenset({*LIST_CHANGED, UPDATED})
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
CANCELLED: Final = "notifications/cancelled"
HELD_BYTES_MAX: Final = 2**20
"""What waits for a client that takes nothing: beyond that its stream is ended, and it opens another."""


def inward(gateway: Gateway, client: Client, link: Link, event: bytes, body: bytes, said: Said) -> bytes:
    """Return an event with something that a server says or asks as its client is to have it; empty where it is not for
    the client. `body` and `said` are what the event holds."""
    try:
        return _inward(gateway, client, link, event, body, said)
    except Refused:
        return event  # Its params are none that could be read here: they are the client's to judge.


def _inward(gateway: Gateway, client: Client, link: Link, event: bytes, body: bytes, said: Said) -> bytes:
    if said.id:
        if client.is_shared or len(said.id) > ID_BYTES_MAX:
            gateway.decline(client, link, said)
            return b""
        token = _progress_token(said)
        ours = client.remember_asked(Asked(link.server, said.id, token))
        return with_data(event, with_id(body, ours))
    if said.method == CANCELLED:
        raw = member(params_of(said.pairs), "requestId")
        known = None if raw is None else client.id_of(link.server, bytes(raw))
        return event if known is None else with_data(event, with_params(body, {"requestId": known}))
    if said.method in LIST_CHANGED:
        gateway.changed(link.server)
    elif said.method == UPDATED:
        uri = text(params_of(said.pairs), "uri", "params") or ""
        ours_uri = gateway.uri_of(link.server, uri)
        if ours_uri != uri:
            return with_data(event, with_params(body, {"uri": gateway.encoded(ours_uri)}))
    elif said.method == ACKNOWLEDGED:
        return b""
    return event


def _progress_token(said: Said) -> bytes:
    raw = member(params_of(said.pairs), "_meta")
    if raw is None or bytes(raw)[:1] != b"{":
        return b""
    token = member(read_object(raw, "_meta"), "progressToken")
    return b"" if token is None or len(bytes(token)) > ID_BYTES_MAX else bytes(token)


class Stream:
    """A stream that a client keeps open to hear what nobody asked for: its GET, or `subscriptions/listen`."""

    __slots__ = (
        "_attempt",
        "_held",
        "_held_bytes",
        "ended",
        "is_paused",
        "resuming",
        "subscription",
        "uris",
        "wanted",
    )

    def __init__(
        self,
        attempt: Any,
        *,
        wanted: frozenset[str] | None = None,
        uris: frozenset[str] = frozenset(),
        subscription: bytes = b"",
    ) -> None:
        self._attempt = attempt
        self.wanted = wanted
        """Methods that it asked for; None for all, and for what servers ask."""
        self.uris = uris
        """Resources of whose changes it wants to hear."""
        self.subscription = subscription
        """The id of its `subscriptions/listen`, raw."""
        self.resuming: Callable[[], None] | None = None
        """Ends what takes up a stream that broke off."""
        self.ended: Callable[[Stream], None] | None = None
        """Told when it has ended by itself."""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.is_paused = False
        """The client cannot take more for now."""

    def takes(self, said: Said) -> bool:
        """Say whether a message is one that it asked for."""
        if self.wanted is None:
            return True
        if said.method == UPDATED and not said.id:
            uri = text(params_of(said.pairs), "uri", "params") or ""
            return uri in self.uris
        return not said.id and said.method in self.wanted

    def send(self, event: bytes) -> None:
        """Send an event, or keep it while the client takes nothing."""
        if self._attempt.is_over:
            return
        if self.subscription:
            event = as_event(with_meta(data_of(event), {SUBSCRIPTION_IN_META: self.subscription}))
        if not self.is_paused:
            self._attempt.reply_data(event)
            return
        self._held.append(event)
        self._held_bytes += len(event)
        if self._held_bytes > HELD_BYTES_MAX:
            self.end()

    def pause(self) -> None:
        """The client cannot take more for now."""
        self.is_paused = True

    def resume(self) -> None:
        """The client can take more again."""
        self.is_paused = False
        held, self._held, self._held_bytes = self._held, [], 0
        for event in held:
            if not self._attempt.is_over:
                self._attempt.reply_data(event)

    def end(self) -> None:
        """End it: whoever wants to hear more opens another."""
        self._held.clear()
        if not self._attempt.is_over:
            self._attempt.reply_end([])
        if self.ended is not None:
            self.ended(self)
