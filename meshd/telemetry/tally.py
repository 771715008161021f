"""The few numbers of the whole process that belong to no target."""

from __future__ import annotations

from meshd.telemetry.names import ENTRIES


class Tally:
    """Plain ints: the loop's thread writes them, but for the two of the exporter, which its own thread writes."""

    __slots__ = (
        "calls_inbound",
        "calls_outbound",
        "connections_inbound",
        "connections_outbound",
        "entries",
        "is_policy_stale",
        "lines_suppressed",
        "opened_inbound",
        "opened_outbound",
        "policy_taken_s",
        "reloads_failed",
        "reloads_ok",
        "replies_unread",
        "spans_dropped",
        "spans_exported",
        "spans_failed",
        "supervisor_asked",
        "usage_malformed",
    )

    def __init__(self) -> None:
        self.calls_outbound = 0
        """Calls in progress."""
        self.calls_inbound = 0
        self.connections_outbound = 0
        """Connections that are open now."""
        self.connections_inbound = 0
        self.opened_outbound = 0
        """Connections ever opened."""
        self.opened_inbound = 0
        self.entries = dict.fromkeys(ENTRIES, 0)
        """Trace entries that agents recorded, by what they are."""
        self.reloads_ok = 0
        self.reloads_failed = 0
        self.policy_taken_s = 0.0
        """Unix seconds at which the document in force was taken; 0 before the first."""
        self.is_policy_stale = False
        self.spans_dropped = 0
        """Spans for which the queue had no room."""
        self.spans_exported = 0
        """Spans that the collector took; the exporter's thread counts."""
        self.spans_failed = 0
        """Spans that the collector did not take; the exporter's thread counts."""
        self.supervisor_asked: dict[tuple[str, str], int] = {}
        """Questions to a supervisor, by how it is reached and what became of them."""
        self.lines_suppressed = 0
        self.replies_unread: dict[tuple[str, str], int] = {}
        """Replies of models in an encoding that meshd cannot read, by upstream and encoding."""
        self.usage_malformed = 0
        """Replies whose trailers report usage that is no number."""

    def unread(self, upstream: str, encoding: str) -> bool:
        """Count a reply that could not be read; say whether it is the first of its upstream and encoding."""
        found = (upstream, encoding)
        count = self.replies_unread[found] = self.replies_unread.get(found, 0) + 1
        return count == 1
