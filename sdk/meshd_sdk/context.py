"""The context of a workflow, and the signed token in which it travels.

A token is at most 512 characters of the URL-safe base64 alphabet, so it fits a header field, gRPC metadata and one
segment of a path. Inside: a version, the id of the key that signed it, the payload, and HMAC-SHA-256 over all of
that, truncated to 128 bits (RFC 2104 section 5 allows half the hash). The signature is compared before anything of
the payload is read, and a token has exactly one spelling: what does not encode back to itself is refused.

Pure: time and nonces are handed in. Imports the standard library only.
"""

from __future__ import annotations

import hmac
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER_CONTEXT: Final = b"x-meshd-context"
"""The signed token."""
HEADER_WORKFLOW: Final = b"x-meshd-workflow"
"""A workflow's name, given by a caller that has no token."""
HEADER_HOPS: Final = b"x-meshd-hops"
"""Hops that a caller says are behind it: can only raise the count of the token."""
HEADER_DEADLINE: Final = b"x-meshd-deadline"
"""Seconds that a caller gives the call: can only bring the deadline nearer."""
HEADER_DELEGATE: Final = b"x-meshd-delegate"
"""On a call to an agent: at most so many of the caller's tokens may be spent there."""
HEADER_PREFIX: Final = b"x-meshd-"
"""Every request field with this prefix is meshd's own: read where it is one of the above, and never forwarded."""

TOKEN_BYTES_MAX: Final = 512
HOPS_MAX: Final = 1000
"""Above any limit that makes sense; a token that claims more was not minted by meshd."""
KEY_ID_BYTES_MAX: Final = 16
SECRET_BYTES_MIN: Final = 32

_VERSION: Final = 1
_MAC_BYTES: Final = 16
# audience, flags, hops, expiry in unix seconds, nonce, deadline in unix milliseconds, ceiling in tokens
_FIXED: Final = Struct(">BBHI8sQQ")
_NONCE_AT: Final = 8
NONCE_BYTES: Final = 8
PARENT_BYTES: Final = 25
_NONE: Final = 2**64 - 1
_CEILING_MAX: Final = 2**63 - 1
_DEADLINE_MS_MAX: Final = 2**48
NO_CEILING: Final = _CEILING_MAX
"""A ceiling in tokens that limits nothing: it stands where there is one in money alone."""
_MONEY: Final = Struct(">Q")
_HAS_PARENT, _IS_OWN_ACCOUNT, _HAS_MONEY = 1, 2, 4
_FLAGS_ALL: Final = _HAS_PARENT | _IS_OWN_ACCOUNT | _HAS_MONEY
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class Audience(IntEnum):
    """For whom a token was minted. It is refused by everybody else."""

    LOCAL = 1
    """An agent beside a sidecar, which shows it on its own calls; `Context.agent` names it."""
    PEER = 2
    """Another sidecar, on its inbound port; `Context.agent` is the caller, and the receiver mints anew."""
    RUN = 3
    """A per-run address: one segment of the path of every call of that run."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where in which workflow a call stands. Equal for all calls that show the same token."""

    workflow: str
    """Id of the workflow; empty for calls that no evidence ties to one."""
    agent: str
    """Name of the agent whose calls these are."""
    hops: int = 0
    """Agent-to-agent edges from the workflow's beginning to `agent`."""
    path: tuple[str, ...] = ()
    """Agents that called one another to get here, the first one first, without `agent` itself."""
    deadline_s: float | None = None
    """Unix seconds at which the workflow must be done, to the millisecond; None for never."""
    account: str = ""
    """Account of the ledger that pays."""
    ceiling: int | None = None
    """Most tokens that this part of the workflow may spend; None for what the account holds."""
    parent: str = ""
    """`traceparent` of the span that caused this; empty where there is none."""
    memory: tuple[str, ...] = ()
    """References to shared memory that travel with the workflow."""
    ceiling_microdollars: int | None = None
    """Most that this part of the workflow may spend in money; `ceiling` is set too wherever this is."""


class Why(StrEnum):
    """Why a token was refused."""

    MALFORMED = "malformed"
    VERSION = "version"
    FOREIGN_KEY = "foreign_key"
    FORGED = "forged"
    EXPIRED = "expired"


class TokenInvalidError(ValueError):
    """A token that does not verify. The message says what to do; it holds nothing of the token."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


class TokenTooLongError(ValueError):
    """A context that does not fit into 512 bytes: too many or too long names on its path."""


class Verified(NamedTuple):
    """What a good token says."""

    context: Context
    audience: Audience
    expires_s: int
    """Unix seconds."""


class Key:
    """One secret of the mesh, with its id. The secret itself is used for nothing else but to derive from."""

    __slots__ = ("_inner", "_outer", "id", "prefix")

    def __init__(self, id: str, secret: bytes) -> None:
        """Raise ValueError where the id is not 1 to 16 visible ASCII characters or the secret under 32 bytes."""
        encoded = id.encode("ascii", "replace")
        if not 1 <= len(encoded) <= KEY_ID_BYTES_MAX or not id.isascii() or not id.isprintable() or " " in id:
            raise ValueError(f"a key id is 1 to {KEY_ID_BYTES_MAX} visible ASCII characters")
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"a secret has at least {SECRET_BYTES_MIN} bytes, not {len(secret)}")
        self.id = id
        self.prefix = bytes((_VERSION, len(encoded))) + encoded
        # A derived key: a signature made for another purpose with the same secret is no signature here.
        derived = hmac.digest(secret, b"meshd context token 1", "sha256")
        # HMAC (RFC 2104) with both keyed blocks hashed beforehand: a third of what hmac.digest takes.
        block = derived + bytes(sha256().block_size - len(derived))
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(self, data: bytes) -> bytes:
        """Return the first 16 bytes of HMAC-SHA-256."""
        inner = self._inner.copy()
        inner.update(data)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()[:_MAC_BYTES]


class Keyring:
    """The keys of a mesh: the first signs, all verify."""

    __slots__ = ("by_id", "keys", "signing")

    def __init__(self, keys: Sequence[Key]) -> None:
        """Raise ValueError where there is no key, or two have one id."""
        if not keys:
            raise ValueError("a mesh needs at least one key")
        self.keys = tuple(keys)
        self.signing = keys[0]
        self.by_id = {key.id.encode(): key for key in keys}
        if len(self.by_id) != len(keys):
            raise ValueError("two keys have one id")


def mint(context: Context, keyring: Keyring, *, audience: Audience, expires_s: int, nonce: bytes) -> bytes:
    """Return the token of a context.

    `expires_s` is in unix seconds, `nonce` 8 random bytes. Raises TokenTooLongError where it would pass 512 bytes, and
    ValueError where a field is outside its range: names are visible ASCII of at most 255 characters.
    """
    return Die(context, keyring, audience=audience, expires_s=expires_s).strike(nonce, parent_bytes(context.parent))


class Die:
    """Strikes the tokens of one context that differ in their nonce and parent alone: the rest is encoded once."""

    __slots__ = ("_after", "_before", "_before_parent", "_between", "_key", "_path_count")

    def __init__(self, context: Context, keyring: Keyring, *, audience: Audience, expires_s: int) -> None:
        """See `mint` for what is raised; the context's own parent is not read."""
        self._key = keyring.signing
        self._path_count = len(context.path)
        try:
            self._encode(context, audience, expires_s)
        except (UnicodeEncodeError, OverflowError) as error:
            raise ValueError("names in a context are ASCII of at most 255 characters") from error

    def _encode(self, context: Context, audience: Audience, expires_s: int) -> None:
        deadline_s, ceiling, money = context.deadline_s, context.ceiling, context.ceiling_microdollars
        if money is not None and (ceiling is None or not 0 <= money <= _CEILING_MAX):
            raise ValueError("a ceiling in money is out of range, or without one in tokens")
        is_own = context.account == "workflow/" + context.workflow
        deadline_ms = _NONE if deadline_s is None else _whole_ms(deadline_s)
        if not 0 <= context.hops <= HOPS_MAX or not 0 <= expires_s < 2**32:
            raise ValueError("hops or expiry out of range")
        if not (deadline_s is None or 0 <= deadline_ms <= _DEADLINE_MS_MAX) or not 0 <= (ceiling or 0) <= _CEILING_MAX:
            raise ValueError("deadline or ceiling out of range")
        if len(context.path) > 255:
            raise TokenTooLongError(f"the context has {len(context.path)} agents on its path, and a token holds 255")
        # A ping-pong's path repeats two names: each is written once, the path is their numbers.
        names = tuple(dict.fromkeys(context.path))
        texts = (context.agent, context.workflow, "" if is_own else context.account, *names, *context.memory)
        if not _are_visible(texts):
            raise ValueError("names in a context are visible ASCII characters")
        encoded = [text.encode("ascii") for text in texts]
        numbers = bytes(map(names.index, context.path)) if len(context.path) > 1 else bytes(len(context.path))
        counts = bytes((len(names), len(context.memory), len(numbers)))
        flags = (_IS_OWN_ACCOUNT if is_own else 0) | (0 if money is None else _HAS_MONEY)
        ceiling_or_none = _NONE if ceiling is None else ceiling
        fixed = _FIXED.pack(audience, flags, context.hops, expires_s, bytes(8), deadline_ms, ceiling_or_none)
        with_parent = bytes((fixed[0], flags | _HAS_PARENT))
        self._before = self._key.prefix + fixed[:_NONCE_AT]
        self._before_parent = self._key.prefix + with_parent + fixed[2:_NONCE_AT]
        self._between = fixed[_NONCE_AT + NONCE_BYTES :]
        packed = b"" if money is None else _MONEY.pack(money)
        self._after = b"".join((packed, counts, bytes(map(len, encoded)), numbers, *encoded))

    def strike(self, nonce: bytes, parent: bytes = b"") -> bytes:
        """Return a token. `nonce` is 8 random bytes, `parent` the 25 of `parent_bytes` or none. Raises as `mint`."""
        if len(nonce) != NONCE_BYTES or (parent and len(parent) != PARENT_BYTES):
            raise ValueError("nonce or parent out of range")
        before = self._before_parent if parent else self._before
        data = b"".join((before, nonce, self._between, parent, self._after))
        token = b2a_base64(data + self._key.mac(data), newline=False).translate(_TO_URL_SAFE).rstrip(b"=")
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenTooLongError(
                f"the context takes {len(token)} of {TOKEN_BYTES_MAX} bytes with {self._path_count} agents on its path"
            )
        return token


def _whole_ms(deadline_s: float) -> int:
    """Return the last whole millisecond that is not after the deadline: exact for one that came out of a token."""
    whole_ms = int(deadline_s * 1000)
    # 1.001 * 1000 is 1000.9999999999999: cut off alone, each edge would take a millisecond.
    if (whole_ms + 1) / 1000 <= deadline_s:
        return whole_ms + 1
    return whole_ms - 1 if whole_ms / 1000 > deadline_s else whole_ms


def parent_bytes(traceparent: str) -> bytes:
    """Return a traceparent as a token holds it: trace id, span id and flags; nothing for an empty one.

    Raises ValueError for what is no traceparent of version 00.
    """
    if not traceparent:
        return b""
    if len(traceparent) != 55 or traceparent[:3] != "00-":
        raise ValueError("the parent is not a traceparent of version 00")
    return bytes.fromhex(traceparent[3:35] + traceparent[36:52] + traceparent[53:])


def _are_visible(texts: tuple[str, ...]) -> bool:
    joined = "".join(texts)
    return not joined or (joined.isascii() and joined.isprintable() and " " not in joined)


def verify(token: bytes, keyring: Keyring, *, now_s: float) -> Verified:
    """Return what a token says. `now_s` is in unix seconds. Raises TokenInvalidError, whatever the bytes are.

    Whether the audience is the right one is the caller's to judge.
    """
    data = _decoded(token)
    end = 2 + data[1]
    key = keyring.by_id.get(data[2:end])
    if key is None:
        raise TokenInvalidError(Why.FOREIGN_KEY, "it was signed with a key that this sidecar does not have")
    signed = data[:-_MAC_BYTES]
    if not hmac.compare_digest(key.mac(signed), data[-_MAC_BYTES:]):
        raise TokenInvalidError(Why.FORGED, "its signature is wrong: it was altered, cut off or never issued")
    try:
        verified = _read(signed, end)
    except (ValueError, IndexError) as error:
        raise TokenInvalidError(Why.MALFORMED, "it is signed but its fields are not those of a token") from error
    if verified.expires_s <= now_s:
        raise TokenInvalidError(Why.EXPIRED, f"it expired {int(now_s) - verified.expires_s} s ago")
    return verified


def read_unverified(token: bytes) -> Context:
    """Return what a token says, whoever signed it: to show and to log, never to decide by.

    An agent has no key; what it got from its sidecar it may read. Raises TokenInvalidError for what is no token.
    """
    data = _decoded(token)
    try:
        return _read(data[:-_MAC_BYTES], 2 + data[1]).context
    except (ValueError, IndexError) as error:
        raise TokenInvalidError(Why.MALFORMED, "its fields are not those of a token") from error


def _decoded(token: bytes) -> bytes:
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenInvalidError(Why.MALFORMED, f"it has {len(token)} bytes, and a token at most {TOKEN_BYTES_MAX}")
    try:
        data = a2b_base64(token.translate(_TO_STANDARD) + b"=="[: -len(token) % 4])
    except Base64Error as error:
        raise TokenInvalidError(Why.MALFORMED, "it is not base64") from error
    # a2b_base64 passes over foreign characters and stray bits: a token must be what its bytes encode to.
    if b2a_base64(data, newline=False).translate(_TO_URL_SAFE).rstrip(b"=") != token:
        raise TokenInvalidError(Why.MALFORMED, "it is not base64 as tokens are spelled")
    if len(data) < 2 or data[0] != _VERSION:
        raise TokenInvalidError(Why.VERSION, "it is not a token of a version that this sidecar knows")
    if len(data) < 2 + data[1] + _FIXED.size + 3 + _MAC_BYTES:
        raise TokenInvalidError(Why.MALFORMED, "it is cut off")
    return data


def _read(data: bytes, at: int) -> Verified:
    """Read a signed payload. Strict all the same: another version of meshd may hold the key. Raises ValueError."""
    audience, flags, hops, expires_s, _nonce, deadline_ms, ceiling = _FIXED.unpack_from(data, at)
    at += _FIXED.size
    parent = ""
    if flags & _HAS_PARENT:
        hexed = data[at : at + PARENT_BYTES].hex()
        parent = f"00-{hexed[:32]}-{hexed[32:48]}-{hexed[48:]}"
        at += PARENT_BYTES
    money: int | None = None
    if flags & _HAS_MONEY:
        # A slice that is cut short is padded by nobody: its length is looked at below, with all the others.
        money = int.from_bytes(data[at : at + _MONEY.size], "big")
        at += _MONEY.size
    name_count, memory_count, path_count = data[at], data[at + 1], data[at + 2]
    at += 3
    text_count = 3 + name_count + memory_count
    lengths = data[at : at + text_count]
    at += text_count
    numbers = data[at : at + path_count]
    at += path_count
    if len(data) != at + sum(lengths) or len(numbers) != path_count:
        raise ValueError("lengths do not add up")
    if hops > HOPS_MAX or flags & ~_FLAGS_ALL or (deadline_ms > _DEADLINE_MS_MAX and deadline_ms != _NONE):
        raise ValueError("a field is out of its range")
    if (ceiling > _CEILING_MAX and ceiling != _NONE) or (money or 0) > _CEILING_MAX:
        raise ValueError("the ceiling is out of its range")
    if money is not None and ceiling == _NONE:
        raise ValueError("a ceiling in money stands beside one in tokens")
    text = data[at:].decode("ascii")
    if text and (not text.isprintable() or " " in text):
        raise ValueError("a name is not visible ASCII")
    texts, start = [], 0
    for length in lengths:
        texts.append(text[start : start + length])
        start += length
    agent, workflow, account = texts[:3]
    names = texts[3 : 3 + name_count]
    context = Context(
        workflow,
        agent,
        hops,
        tuple([names[number] for number in numbers]),
        None if deadline_ms == _NONE else deadline_ms / 1000,
        "workflow/" + workflow if flags & _IS_OWN_ACCOUNT else account,
        None if ceiling == _NONE else ceiling,
        parent,
        tuple(texts[3 + name_count :]),
        money,
    )
    return Verified(context, Audience(audience), expires_s)
