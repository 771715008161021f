"""W3C Trace Context (level 1, with the tolerance it asks for future versions) and Baggage. Pure, stdlib only.

What is malformed is no trace: the specification has it ignored, and a new trace begun. It is never repaired.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

TRACESTATE_MEMBERS_MAX: Final = 32
TRACESTATE_CHARS_MAX: Final = 512
"""The least that must be passed on whole (section 3.3.1.5); what is longer is dropped rather than cut."""
BAGGAGE_MEMBERS_MAX: Final = 64
BAGGAGE_BYTES_MAX: Final = 8192

# Version ff is invalid; version 00 ends after the flags; a later one may go on after a dash (section 4.3).
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})((?:-[!-~]*)?)"
)
_KEY: Final = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER: Final = re.compile(rf"({_KEY})=([ -+\--<>-~]{{0,255}}[!-+\--<>-~])")
# Possessive quantifiers: each piece ends where the next cannot begin, so a long run of blanks is read once.
_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# baggage-octet: visible ASCII without quote, comma, semicolon and backslash
_VALUE: Final = r"[!#-+\--:<-\[\]-~]*+"
_BAGGAGE_MEMBER: Final = re.compile(
    rf"[ \t]*+{_NAME}[ \t]*+=[ \t]*+{_VALUE}[ \t]*+(?:;[ \t]*+{_NAME}[ \t]*+(?:=[ \t]*+{_VALUE}[ \t]*+)?+)*+"
)


class TraceParent(NamedTuple):
    """A span, as `traceparent` names it."""

    trace_id: str
    """32 hex digits, not all zero."""
    span_id: str
    """16 hex digits, not all zero."""
    flags: int
    """0 to 255."""

    @property
    def is_sampled(self) -> bool:
        """The caller may have recorded the span."""
        return bool(self.flags & 1)

    def __str__(self) -> str:
        """Format as version 00, whatever version was read."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse_traceparent(value: str) -> TraceParent | None:
    """Return the span that a `traceparent` names, or None where it is malformed."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "00":
        return None if more else TraceParent(trace_id, span_id, int(flags, 16))
    # Of a later version only the sampled flag is known.
    return TraceParent(trace_id, span_id, int(flags, 16) & 1)


def parse_tracestate(value: str) -> tuple[tuple[str, str], ...] | None:
    """Return the members of a `tracestate`, newest first, or None where it is malformed or has over 32."""
    members: dict[str, str] = {}
    for part in value.split(","):
        stripped = part.strip(" \t")
        if not stripped:
            continue
        match = _MEMBER.fullmatch(stripped)
        if match is None or match[1] in members:
            return None
        members[match[1]] = match[2]
    return tuple(members.items()) if len(members) <= TRACESTATE_MEMBERS_MAX else None


def format_tracestate(members: tuple[tuple[str, str], ...]) -> str:
    """Return the header value of members; empty where they do not fit into 512 characters."""
    value = ",".join([f"{key}={text}" for key, text in members])
    return value if len(value) <= TRACESTATE_CHARS_MAX else ""


def parse_baggage(value: str) -> tuple[str, ...] | None:
    """Return the members of a `baggage`, properties included, trimmed; None where it is malformed or too much."""
    if len(value) > BAGGAGE_BYTES_MAX:
        return None
    members = value.split(",")
    if len(members) > BAGGAGE_MEMBERS_MAX:
        return None
    if any(_BAGGAGE_MEMBER.fullmatch(member) is None for member in members):
        return None
    return tuple([member.strip(" \t") for member in members])


def format_baggage(members: tuple[str, ...]) -> str:
    """Return the header value of members."""
    return ",".join(members)
