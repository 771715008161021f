"""What a call wants: the words of its address, or of its header, and what is not let in. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Headers

INTENT_FIELD: Final = b"x-meshd-intent"
FAN_OUT_FIELD: Final = b"x-meshd-fan-out"
WORDS_CHARACTERS_MAX: Final = 1000
"""Of what somebody wants; who has more to say says it in the body."""
_HOW: Final = "as in /intent/market%20analysis/<path>, or on a call to /intent/<path> in the header x-meshd-intent"


class Asked(NamedTuple):
    """What a call wants."""

    words: str
    path: str
    """Path and query for whoever serves it, without the words."""
    fan_out: int | None
    """To how many it may go, by the caller's word; None where that says nothing."""


def asked(path: str, governed: Headers, *, is_grpc: bool = False) -> Asked:
    """Read what a call to an intent wants. Raises Refused(MALFORMED).

    `path` is what stands behind `/intent`; `governed` are the header fields under our prefix.
    """
    raw = _only(governed, INTENT_FIELD)
    if raw is None and is_grpc:
        raise Refused(
            Reason.MALFORMED,
            "The path of a gRPC call has no room for words: say what it wants in the metadata x-meshd-intent.",
        )
    if raw is None:
        bare, mark, query = path.partition("?")
        segment, slash, rest = bare.removeprefix("/").partition("/")
        raw, path = segment.encode("latin-1", "replace"), f"/{rest if slash else ''}{mark}{query}"
    return Asked(read_words(raw), path, _fan_out(_only(governed, FAN_OUT_FIELD)))


def _only(governed: Headers, name: bytes) -> bytes | None:
    found = [value for key, value in governed if key == name]
    if len(found) > 1:
        raise Refused(
            Reason.MALFORMED, f"{name.decode()} stands more than once in the request: which one holds cannot be told."
        )
    return found[0] if found else None


def read_words(raw: bytes) -> str:
    """Return words that may be written with percent signs, in UTF-8. Raises Refused(MALFORMED)."""
    if len(raw) > 12 * WORDS_CHARACTERS_MAX:
        raise _too_long()
    try:
        words = unquote_to_bytes(raw).decode("utf-8").strip()
    except UnicodeDecodeError:
        raise Refused(Reason.MALFORMED, f"What the call wants is no UTF-8: write it percent-encoded, {_HOW}.") from None
    if len(words) > WORDS_CHARACTERS_MAX:
        raise _too_long()
    if not words:
        raise Refused(Reason.MALFORMED, f"The call does not say what it wants: name it, {_HOW}.")
    if any(ord(one) < 32 or ord(one) == 127 for one in words):
        raise Refused(Reason.MALFORMED, "What the call wants has control characters in it.")
    return words


def _too_long() -> Refused:
    return Refused(
        Reason.MALFORMED,
        f"What the call wants is longer than {WORDS_CHARACTERS_MAX} characters: a few words choose who serves it, and "
        "the body says the rest.",
    )


def _fan_out(raw: bytes | None) -> int | None:
    if raw is None:
        return None
    if not raw.isdigit() or len(raw) > 2 or not int(raw):
        raise Refused(Reason.MALFORMED, "x-meshd-fan-out must be how many agents the call may go to, from 1 to 99.")
    return int(raw)
