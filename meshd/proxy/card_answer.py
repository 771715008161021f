"""Agents' cards on their way to a client of this sidecar: verified, led here, and signed anew.

A card is what a client goes by: each address in it must lead to this sidecar, else the agent's next call would pass it
by. See `meshd.discovery.card_addresses` for what stays in it, and `card_signing` for what its signature is worth.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from meshd.call import Reply
from meshd.dialects.a2a import JWKS_PATH, message_in
from meshd.dialects.a2a_card_fields import CARD
from meshd.dialects.protobuf import decoded as of_protobuf
from meshd.dialects.protobuf_writing import encoded as to_protobuf
from meshd.dialects.protobuf_writing import frame
from meshd.discovery.card_addresses import folded, may_be_card, rewritten
from meshd.discovery.card_protobuf import is_signed, rewritten_message
from meshd.discovery.card_signing import SignatureError, verify
from meshd.discovery.cards import CARD_BYTES_MAX, CardError, check_card, read_card
from meshd.proxy.answer import AnswerError, decoded
from meshd.proxy.card_addresses import ClientAddress
from meshd.proxy.card_keys import CardKeys, encoded
from meshd.proxy.onward import ALTERED, Onward
from meshd.proxy.telling import Declared
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.call import Call, Headers
    from meshd.discovery.card_addresses import Rewritten
    from meshd.wire.message import Request

CARD_FIELD: Final = b"x-meshd-card"
"""Says of a card what was done to it."""
SAID_MAX: Final = 256
_ROOM: Final = 65_536
"""For what stands around a card in an answer."""
Led = TypeVar("Led")
_log: Final = logging.getLogger("meshd.cards")


class Cards:
    """What one sidecar knows of cards."""

    def __init__(self) -> None:
        self.keys = CardKeys()
        self.declared = Declared()
        self.scheme = "http"
        self.port = 0
        """Of the listener, as clients of this machine dial it."""
        self._said: set[tuple[str, int]] = set()
        """Of agents, and a hash of what was taken out of their cards: what they write is as long as they like."""

    def open(self, home: Path, *, is_tls: bool, port: int) -> None:
        """Say where this sidecar keeps its key and where it listens."""
        self.keys = CardKeys(home)
        self.scheme, self.port = "https" if is_tls else "http", port

    def asked(self, call: Call, request: Request, form: str) -> None:
        """Note that the answer to a call is a card. `form`: `card` alone, else how the protocol carries it."""
        authority = request.fields.authority
        address = ClientAddress(call, request.target, authority, scheme=self.scheme, port=self.port)
        call.card = Asked(self, form, address)

    def jwks(self) -> Reply:
        """Return the key with which this sidecar signs cards."""
        return Reply(200, [(b"content-type", b"application/jwk-set+json")], encoded(self.keys.jwks()))

    def say_removed(self, name: str, removed: tuple[str, ...]) -> None:
        """Log once what is taken out of an agent's card."""
        known = name, hash(removed)
        if known in self._said:
            return
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said.add(known)
        _log.warning(
            "the card of %s names addresses that nothing here leads to, so clients are not shown them: %s; where one "
            "is the agent's own, name it under card.origins of its upstream, or as an upstream",
            name,
            ", ".join(removed[:5]),
        )


class Asked:
    """What is to become of the answer to a call."""

    __slots__ = ("_address", "_cards", "_form")

    def __init__(self, cards: Cards, form: str, address: ClientAddress) -> None:
        self._cards = cards
        self._form = form
        self._address = address

    def onward(self, call: Call, headers: Headers) -> Onward:
        """Return what the answer goes through."""
        return CardAnswer(self._cards, self._form, self._address, call, headers)


class CardAnswer(Onward):
    """Holds a card until it is whole."""

    __slots__ = ("_address", "_call", "_cards", "_form", "_headers", "_pieces", "_size", "_upstream")

    is_held = True
    is_rewritten = True

    def __init__(self, cards: Cards, form: str, address: ClientAddress, call: Call, headers: Headers) -> None:
        self._cards = cards
        self._form = form
        self._address = address
        self._call = call
        assert call.upstream is not None
        self._upstream = call.upstream
        self._headers = headers
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > CARD_BYTES_MAX + _ROOM:
            raise AnswerError(f"its card has over {CARD_BYTES_MAX} bytes")
        self._pieces.append(data)
        return b""

    def fields(self, headers: Headers) -> Headers:
        return [field for field in headers if field[0] not in ALTERED]

    def end(self) -> bytes:
        body = b"".join(self._pieces)
        try:
            if self._form == "grpc":
                return self._message(body)
            body = decoded(body, self._headers, CARD_BYTES_MAX + _ROOM)
            return self._result(body) if self._form == "jsonrpc" else msgspec.json.encode(self._card(read_card(body)))
        except SignatureError as error:
            name = self._upstream.name
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The card of {name} is refused: {error}. Whoever runs the agent must sign it by a key that the policy "
                f"names under upstreams.{name}.card.keys.",
            ) from None
        except CardError as error:
            if self._upstream.is_dialect_told or _may_lead(body):
                raise AnswerError(f"it is no card: {error}") from None
            return body  # It only looked like one by its path.

    # ------------------------------------------------------------------ within

    def _result(self, body: bytes) -> bytes:
        """Take the answer of JSON-RPC, whose result is a card."""
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CardError(f"the answer is not JSON: {error}") from None
        if not isinstance(answer, dict):
            raise CardError("the answer is no JSON-RPC message")
        named = [name for name in answer if folded(name) == "result"]
        if not named:
            return body
        if named != ["result"]:
            raise CardError("the answer has its result under another name, or under two")
        check_card(answer["result"])
        return msgspec.json.encode({**answer, "result": self._card(answer["result"])})

    def _card(self, card: dict[str, Any]) -> dict[str, Any]:
        upstream, is_signed_here = self._upstream, bool(card.get("signatures"))
        is_verified = False
        if upstream.card_keys and (is_signed_here or upstream.is_card_signed):
            self._verify(card)
            is_verified = True
        self._cards.declared.note(upstream, card)
        found = self._led(lambda: rewritten(card, self._address.lead))
        led = found.card
        if is_signed_here:
            led = {name: value for name, value in led.items() if name != "signatures"}
            signed = self._cards.keys.signed(led, self._address.here + JWKS_PATH) if is_verified else None
            led = signed or led
        self._say(found, ("verified" if is_verified else "removed") if is_signed_here else "none")
        return led

    def _verify(self, card: dict[str, Any]) -> None:
        try:
            keys = self._cards.keys.of(self._upstream.card_keys)
        except ValueError as error:
            raise Refused(
                Reason.NOT_ALLOWED, f"The card of {self._upstream.name} cannot be verified: {error}."
            ) from None
        verify(card, keys)

    def _message(self, body: bytes) -> bytes:
        """Take the one message of a gRPC answer. Signatures that nobody can verify go."""
        upstream = self._upstream
        if not body:
            return body  # A status alone.
        rpc: Any = self._call.rpc
        is_old = "/" in rpc.method
        try:
            message = message_in(body, self._headers, "the card")
            was_signed = is_signed(message, is_old=is_old)
            if upstream.is_card_signed or (upstream.card_keys and was_signed):
                return self._verified(message, is_old=is_old)
            led, found = self._led(lambda: rewritten_message(message, self._address.lead, is_old=is_old))
        except Refused as refused:
            raise AnswerError(refused.message) from None
        self._say(found, "removed" if was_signed else "none")
        return b"\x00" + len(led).to_bytes(4, "big") + bytes(led)

    def _verified(self, message: bytes, *, is_old: bool) -> bytes:
        """Take a card that must be verified: its signature is of the JSON that says the same."""
        if is_old:
            raise SignatureError("its signature cannot be verified over gRPC of 0.3; ask for it over HTTP")
        card = of_protobuf(message, CARD, "the card")
        check_card(card)
        return frame(to_protobuf(self._card(card), CARD))

    def _led(self, lead: Callable[[], Led]) -> Led:
        """Lead a card's addresses. One of a run has those that are tied to it, and the others only where none is."""
        try:
            return lead()
        except CardError:
            if self._address.is_grpc_led:
                raise
        self._address.is_grpc_led = True
        return lead()

    def _say(self, found: Rewritten, signature: str) -> None:
        if found.removed:
            self._cards.say_removed(self._upstream.name, found.removed)
        said = f"addresses-removed={len(found.removed)}; signature={signature}"
        self._call.reply_headers = [*self._call.reply_headers, (CARD_FIELD, said.encode()), (b"vary", b"host")]


def _may_lead(body: bytes) -> bool:
    """Say whether what cannot be used as a card may be one to a client that reads it more laxly than is done here."""
    try:
        return may_be_card(json.loads(body))
    except RecursionError:
        return True
    except ValueError:
        return False
