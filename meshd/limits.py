"""The limits of a policy, as the hot path reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that hold for every call, whatever its target."""

    hops: int = 16
    """Agent-to-agent edges from the workflow's beginning."""
    deadline_s: float | None = None
    """Seconds that a workflow may take, where its opener named no nearer deadline; None for no limit."""
    header_count_max: int = 100
    header_bytes_max: int = 65_536
    url_bytes_max: int = 16_384
    request_body_bytes_max: int = 32 * 2**20
    """Of a request that a dialect must read whole; others stream without a limit."""
    reply_body_bytes_max: int = 32 * 2**20
    """Of a reply that is kept while it passes, to be metered or judged."""
    connections_per_peer_max: int = 1024
    streams_per_connection_max: int = 100
    resets_per_minute_max: int = 1000
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0
    body_rate_min_bytes_s: int = 240
    """A caller that sends its body slower than this, on average after the first seconds, is dropped."""
    drain_s: float = 30.0
    names_workflows: bool = True
    """A caller may name the workflow that its call belongs to."""
    infers_context: bool = True
    """A call that does not say to which workflow it belongs may be tied to one by other evidence."""
    unattributed_tokens: int = 100_000
    """Tokens for each agent and UTC day for calls that no evidence ties to a workflow."""
