"""How large a tool's result is, and what becomes of one that is larger than the policy lets through.

A result that cannot be over the limit, by its length, passes as it came; so does every one where there is no limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.dialects.counting import BYTES_PER_TOKEN
from meshd.dialects.json_pairs import malformed, member, read_body, read_object, text, write
from meshd.dialects.mcp import TOOLS_CALL
from meshd.gateway.clipping import clip, tokens_of
from meshd.gateway.messages import STATELESS, encode, error, result
from meshd.gateway.names import READ
from meshd.gateway.results import URI, owner_of
from meshd.refusal import Refused

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.dialects.json_pairs import Pairs
    from meshd.gateway.passage import Passage
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

METHODS: Final = frozenset({TOOLS_CALL, "tasks/result", "tasks/get"})
"""Whose answers hold a tool's result."""
RESULT_BYTES_MAX: Final = 8 * 2**20
"""Of a result that is cut: a longer one would keep all other calls waiting for a tenth of a second and more."""
LINKS_SINCE: Final = "2025-06-18"
"""Revisions before that know no `resource_link`, and their clients take no block that they do not know."""
_INTERNAL: Final = -32603


class Sized(NamedTuple):
    """What is known of one result."""

    bytes: int
    tokens: int
    left_out: int = 0
    """Tokens."""


def limit_of(policy: Policy, upstream: Upstream) -> int | None:
    """Return how many tokens of a result of a server's reach the client; None for all."""
    if upstream.result_tokens_max is not None:
        return upstream.result_tokens_max
    return None if policy.mcp is None else policy.mcp.result_tokens_max


def is_limited(policy: Policy, servers: dict[str, Upstream]) -> bool:
    """Say whether any result may be cut."""
    return any(limit_of(policy, one) is not None for one in servers.values())


class Fitting:
    """Measures the result of one call, and cuts it down to the limit."""

    __slots__ = ("_call", "_passage", "_server", "bytes_max", "tokens_max")

    def __init__(self, passage: Passage, call: Call) -> None:
        self._passage = passage
        self._call = call
        assert call.upstream is not None
        self._server = call.upstream.name
        self.tokens_max = limit_of(call.policy, call.upstream)
        self.bytes_max = call.policy.limits.reply_body_bytes_max
        """Of a result that is read to be cut."""
        if self.tokens_max is not None:
            self.bytes_max = min(self.bytes_max, call.policy.mcp.results_size, RESULT_BYTES_MAX)

    @property
    def is_cut(self) -> bool:
        """Whether there is a limit."""
        return self.tokens_max is not None

    def count(self, size: int) -> None:
        """Note how long the result is. A task that is asked for time and again mostly has none yet, and counts no more
        than what is cut of it."""
        if self._is_of_task:
            return
        passage = self._passage
        passage.sized = Sized(size, tokens_of(size))
        passage.gateway.results.count(self._server, size)

    def fit(self, message: bytes) -> bytes:
        """Return an answer with as much of its result as the limit allows."""
        self.count(len(message))
        limit = self.tokens_max
        # JSON is no shorter than what it says.
        if limit is None or len(message) <= limit * BYTES_PER_TOKEN:
            return message
        try:
            return self._fit(message, limit)
        except Refused:
            return self.replaced("it cannot be read, so it cannot be cut", len(message))

    def _fit(self, message: bytes, limit: int) -> bytes:
        pairs = read_body(message)
        raw = member(pairs, "result")
        if raw is None:
            return self._error(pairs, limit, message)
        outer = found = read_object(raw, "the result")
        inner = member(outer, "result")
        is_task = inner is not None and self._is_of_task
        if is_task:
            assert inner is not None
            raw, found = inner, read_object(inner, "the result")
        clipped = clip(found, limit)
        if clipped is None:
            return message
        passage, settings, name = self._passage, self._call.policy.mcp, self._server
        assert passage.client is not None
        id = passage.gateway.results.put(
            owner_of(self._call, passage.client),
            bytes(raw),
            kept_s=settings.result_kept,
            bytes_max=settings.results_size,
            tokens_max=limit,
        )
        self._clipped(len(message), clipped.left_out)
        edits: dict[str, bytes] = {}
        if clipped.structured is not None:
            edits["structuredContent"] = clipped.structured
        else:
            found.pop("structuredContent", None)
        note = self._note(clipped.left_out, clipped.shown_to, id)
        blocks = [*(clipped.content or ()), encode({"type": "text", "text": note})]
        if id and passage.client.version >= LINKS_SINCE:
            link = {
                "type": "resource_link", "uri": URI + id, "name": f"Whole result of {name}",
                "mimeType": "application/json", "size": len(memoryview(raw)),
            }  # fmt: skip
            blocks.append(encode(link))
        edits["content"] = b"[" + b",".join(blocks) + b"]"
        made = write(found, edits)
        return write(pairs, {"result": write(outer, {"result": made}) if is_task else made})

    @property
    def _is_of_task(self) -> bool:
        return self._call.rpc is not None and self._call.rpc.method == "tasks/get"

    def _note(self, left_out: int, shown_to: int | None, id: str) -> str:
        said = f"[meshd: this result is cut to about {self.tokens_max:,} tokens; about {left_out:,} are left out."
        if not id:
            return f"{said} They are not kept: ask for less.]"
        minutes = self._call.policy.mcp.result_kept / 60
        more = f' Read on with {READ} {{"id": "{id}", "from": {shown_to}}}' if shown_to is not None else ""
        whole = f"all of it is the resource {URI}{id}"
        return f"{said}{more}{'; ' if more else ' '}{whole}, for {minutes:.3g} minutes.]"

    def _error(self, pairs: Pairs, limit: int, message: bytes) -> bytes:
        """Cut what an error says: models are shown it as well. Its rest is not kept."""
        raw = member(pairs, "error")
        if raw is None:
            malformed("the answer holds neither a result nor an error")
        found = read_object(raw, "the error")
        said, room = text(found, "message", "the error") or "", limit * BYTES_PER_TOKEN
        if len(memoryview(raw)) <= room:
            return message
        kept = said.encode()[:room].decode("utf-8", "ignore")
        found.pop("data", None)
        left_out = tokens_of(len(memoryview(raw)) - len(kept.encode()))
        self._clipped(len(message), left_out)
        note = f"{kept} [meshd: about {left_out:,} tokens of this error are left out]"
        return write(pairs, {"error": write(found, {"message": encode(note)})})

    def _clipped(self, size: int, left_out: int) -> None:
        self._passage.sized = Sized(size, tokens_of(size), left_out)
        self._passage.gateway.results.count_clipped(self._server, left_out)

    def replaced(self, why: str, size: int) -> bytes:
        """Return what the model is told in place of a result of which nothing can be shown."""
        rpc, client = self._call.rpc, self._passage.client
        assert rpc is not None
        assert client is not None
        if self._passage.sized is None:
            self.count(size)
        self._clipped(size, tokens_of(size))
        words = f"[meshd: the result of {self._server}, {size:,} bytes, is left out: {why}. Ask for less.]"
        if self._is_of_task:
            return error(rpc.id, _INTERNAL, words)
        made: dict[str, Any] = {"content": [{"type": "text", "text": words}], "isError": True}
        if client.version >= STATELESS:
            made["resultType"] = "complete"
        return result(rpc.id, encode(made))
