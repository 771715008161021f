"""What is written down: a number for each kind of event, and the names of its facts in their order.

Both are written into files. A number is never used for anything else, and a new fact goes to the end of its row.
"""

from __future__ import annotations

from typing import Final

ARRIVED: Final = 1
FORWARDED: Final = 2
ENDED: Final = 3
REFUSED: Final = 4
SHADOWED: Final = 5
ANSWERED: Final = 6
REPLIED: Final = 7
STEP: Final = 10
TOOL_CALL: Final = 11
DECISION: Final = 12
NOTE: Final = 13
ROUTED: Final = 15
SUPERVISED: Final = 16
STATE: Final = 20
PROMPT: Final = 21
PUBLISHED: Final = 22
HANDLED: Final = 23
HANDED: Final = 24
UNPUBLISHED: Final = 25
WRITING: Final = 26
READ: Final = 27
OPENED: Final = 30
RETIRED: Final = 31
ERASED: Final = 32
MISSED: Final = 33

_HEAD: Final = (
    "direction", "kind", "method", "path", "operation", "model", "input_bound", "output_cap", "choices", "is_stream",
    "tool", "rpc", "hops", "evidence", "attempt",
)  # fmt: skip
_ENTRY: Final = ("entry", "parent", "began_ns", "ended_ns", "text_segment", "text_at", "failed")

NAMES: Final[dict[int, str]] = {
    ARRIVED: "arrived",
    FORWARDED: "forwarded",
    ENDED: "ended",
    REFUSED: "refused",
    SHADOWED: "shadowed",
    ANSWERED: "answered",
    REPLIED: "replied",
    STEP: "step",
    TOOL_CALL: "tool_call",
    DECISION: "decision",
    NOTE: "note",
    ROUTED: "routed",
    SUPERVISED: "supervised",
    STATE: "state",
    PROMPT: "prompt",
    PUBLISHED: "published",
    HANDLED: "handled",
    HANDED: "handed",
    UNPUBLISHED: "unpublished",
    WRITING: "writing",
    READ: "read",
    OPENED: "opened",
    RETIRED: "retired",
    ERASED: "erased",
    MISSED: "missed",
}
FACTS: Final[dict[int, tuple[str, ...]]] = {
    ARRIVED: (*_HEAD, "peer_head"),
    FORWARDED: (*_HEAD, "peer_head"),
    ENDED: (
        "status", "verdict", "fault", "is_forwarded", "input_tokens", "output_tokens", "cached_tokens", "account",
        "reserved", "charged", "microdollars", "took_ms", "grpc_status",
    ),
    REFUSED: (*_HEAD, "reason", "rule", "status", "message"),
    SHADOWED: (*_HEAD, "reason", "rule", "status", "message"),
    ANSWERED: (*_HEAD, "status"),
    REPLIED: ("peer_head",),
    STEP: _ENTRY,
    TOOL_CALL: _ENTRY,
    DECISION: _ENTRY,
    NOTE: _ENTRY,
    ROUTED: ("targets", "score", "choice"),
    SUPERVISED: ("way", "result"),
    WRITING: ("key", "base", "act"),
    STATE: ("key", "version", "act", "result"),
    READ: ("key", "version", "act", "result", "writer", "peer_head"),
    PROMPT: ("prompt", "version", "digest"),
    PUBLISHED: ("event_id", "topic", "key", "source"),
    UNPUBLISHED: ("event_id", "topic", "why"),
    HANDED: ("event_id", "topic", "group", "attempt", "may_have_been_handled", "peer_head"),
    HANDLED: ("event_id", "topic", "group", "result", "attempt", "why"),
    OPENED: ("version", "boot", "found_sequence", "said_sequence", "lost", "is_same_boot"),
    RETIRED: ("first_segment", "last_sequence", "why"),
    ERASED: ("copies",),
    MISSED: ("count", "why"),
}  # fmt: skip
ENTRIES: Final = {"step": STEP, "tool_call": TOOL_CALL, "decision": DECISION, "note": NOTE}
"""What an agent says of itself, by the name that the protocol has for it."""
ENDINGS: Final = {FORWARDED: ENDED, ARRIVED: ENDED, HANDED: HANDLED, WRITING: STATE}
"""What begins, and what tells of its end: that one's first cause is its beginning."""
