"""What an A2A agent's answer says that it has spent: tokens in the metadata of what it sends. Pure.

The protocol has no place for that, so agents write what their model's provider told them, in its spelling, into the
metadata of a message, a task, a status update or an artifact. What it is called there is after the frameworks that do
so: `usage` (most), `adk_usage_metadata` (Google's ADK, one model's answer each), `kagent_usage_total` (kagent, the sum
of them), `shared.usage` (the A2A adapters of coding agents). Under meshd's own extension it is said on purpose.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from meshd.dialects.a2a_answers import named_in, unwrapped
from meshd.dialects.a2a_extension import EXTENSION
from meshd.dialects.counting import COUNT_MAX, count
from meshd.dialects.held_task import decoded
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES_MAX: Final = 65_536
"""Of a plain answer, and of one event of a stream: what is longer is passed on unread."""
STEPS_MAX: Final = 4096
"""Of one answer, whose ids are remembered so that none is counted twice."""

_TOTALS: Final = (
    "usage", "usage_metadata", "usageMetadata", "token_usage", "tokenUsage", "adk_usage_total", "kagent_usage_total",
)  # fmt: skip
"""Under which a report is of all that was spent so far, unless it says otherwise."""
_STEPS: Final = ("adk_usage_metadata", "kagent_usage_metadata")
"""Under which it is of one answer of a model: their names say of what framework, and that writes one for each."""
_STEP_IDS: Final = ("adk_event_id", "kagent_event_id")
_PARTIALS: Final = ("adk_partial", "kagent_partial", "kagent_adk_partial")
"""Say that it is only a piece of one, which the whole says again."""

_INPUTS: Final = (
    "input_tokens", "inputTokens", "prompt_tokens", "promptTokens", "promptTokenCount", "prompt_token_count",
)  # fmt: skip
_OUTPUTS: Final = (
    "output_tokens", "outputTokens", "completion_tokens", "completionTokens", "candidatesTokenCount",
    "candidates_token_count",
)  # fmt: skip
_ALL: Final = ("total_tokens", "totalTokens", "totalTokenCount", "total_token_count")
_BESIDE_INPUT: Final = (
    "cache_creation_input_tokens", "cache_read_input_tokens", "toolUsePromptTokenCount", "tool_use_prompt_token_count",
)  # fmt: skip
"""Not in the input, as Anthropic and Gemini count."""
_BESIDE_OUTPUT: Final = ("thoughtsTokenCount", "thoughts_token_count")

_BORDER: Final = re.compile(rb"\r?\n\r?\n|\r\r")
_BORDER_BYTES: Final = 3
_MARKS: Final = (b"usage", b"Usage")
"""One of them stands in whatever reports: nothing else is decoded."""

Tokens = tuple[int, int]
"""Input and output."""


class Events:
    """Cuts a stream into events to be looked at. One that is too long is passed over, and the next is read again."""

    __slots__ = ("_is_skipping", "_pending", "_searched")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._is_skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes. Holds at most `READ_BYTES_MAX` beside it."""
        pending, found, begin = self._pending, [], 0
        pending += data
        for border in _BORDER.finditer(pending, self._searched):
            end = border.end()
            if not self._is_skipping and end - begin <= READ_BYTES_MAX:
                found.append(bytes(pending[begin:end]))
            self._is_skipping = False
            begin = end
        del pending[:begin]
        if len(pending) > READ_BYTES_MAX:
            self._is_skipping = True
            del pending[:-_BORDER_BYTES]
        self._searched = max(0, len(pending) - _BORDER_BYTES)
        return found

    def rest(self) -> bytes:
        """Return what no blank line has ended: clients read it all the same."""
        return b"" if self._is_skipping else bytes(self._pending)


class Reports:
    """What one answer has reported so far. `is_any`: in other spellings than under meshd's extension, too."""

    __slots__ = ("_is_any", "_steps", "_steps_seen", "_totals", "bad", "task_id")

    def __init__(self, *, is_any: bool) -> None:
        self._is_any = is_any
        self._totals: Tokens = (0, 0)
        self._steps: Tokens = (0, 0)
        self._steps_seen: set[int] = set()
        self.task_id = ""
        """Of which task it is; empty where it says none."""
        self.bad = b""
        """The first that was no number of tokens: it charges nothing, nor does what stands beside it."""

    def take_event(self, raw: bytes) -> None:
        """Read one event of a stream. Never raises on nonsense."""
        if is_marked(raw):
            self._take(data_of(raw))

    def take_body(self, body: bytes) -> None:
        """Read a whole plain answer. Never raises on nonsense."""
        if is_marked(body):
            self._take(body)

    def more_than(self, known: Tokens, *, is_new: bool) -> Tokens:
        """Return what was spent beside what is `known` of the same task. `is_new`: the answer is of new work, so that
        what models' answers report in it is new; else it may have been reported before."""
        made = (0, 0) if is_new else self._steps
        least = self._steps if is_new else (0, 0)
        given = max(self._totals[0], made[0]) - known[0], max(self._totals[1], made[1]) - known[1]
        return max(given[0], least[0], 0), max(given[1], least[1], 0)

    def _take(self, data: bytes) -> None:
        self.take(decoded(data))

    def take(self, said: Any) -> None:
        """Read what an answer, or a part of one, says in JSON's words. Never raises on nonsense."""
        inner = unwrapped(said)
        if inner is None:
            return
        self.task_id = self.task_id or named_in(inner)[1]
        steps: dict[int, Tokens] = {}
        for metadata in _metadata_in(inner):
            self._read(metadata, steps)
        for step, tokens in steps.items():
            if len(self._steps_seen) < STEPS_MAX:
                self._steps_seen.add(step)
            self._steps = (min(self._steps[0] + tokens[0], COUNT_MAX), min(self._steps[1] + tokens[1], COUNT_MAX))

    def _read(self, metadata: dict[str, Any], steps: dict[int, Tokens]) -> None:
        ours = metadata.get(EXTENSION)
        if type(ours) is dict and ours.get("usage") is not None:
            self._total(ours["usage"], is_ours=True)
        if not self._is_any:
            return
        for name in _TOTALS:
            self._total(metadata.get(name))
        shared = metadata.get("shared")
        if type(shared) is dict:
            self._total(shared.get("usage"))
        if any(metadata.get(name) is True for name in _PARTIALS):
            return
        for name in _STEPS:
            tokens = self._tokens(metadata.get(name))
            if tokens is not None:
                # Without an id, an artifact and the task that has it may say the same twice; two events do not.
                id = next((metadata[key] for key in _STEP_IDS if type(metadata.get(key)) is str), "")
                step = hash(id) if id else hash((len(self._steps_seen), tokens))
                if step not in self._steps_seen:
                    steps[step] = tokens
                return

    def _total(self, said: Any, *, is_ours: bool = False) -> None:
        tokens = self._tokens(said, is_ours=is_ours)
        if tokens is not None:
            # The largest is the last, unless somebody takes tokens back.
            self._totals = max(self._totals[0], tokens[0]), max(self._totals[1], tokens[1])

    def _tokens(self, said: Any, *, is_ours: bool = False) -> Tokens | None:
        if type(said) is not dict:
            self.bad = self.bad or (repr(said)[:64].encode() if is_ours else b"")
            return None
        bad: list[Any] = []
        given, made, whole = _first(said, _INPUTS, bad), _first(said, _OUTPUTS, bad), _first(said, _ALL, bad)
        beside = [_first(said, (name,), bad) or 0 for name in _BESIDE_INPUT]
        thought = [_first(said, (name,), bad) or 0 for name in _BESIDE_OUTPUT]
        if not bad and is_ours and given is None and made is None:
            bad.append(said)
        if bad:
            self.bad = self.bad or repr(bad[0])[:64].encode("utf-8", "replace")
            return None
        if given is None and made is None and whole is None:
            return None
        tokens = (given or 0) + sum(beside), (made or 0) + sum(thought)
        if whole is not None:
            # What it does not say of which kind it was.
            tokens = tokens[0], max(tokens[1], whole - tokens[0])
        return tokens


def is_marked(data: bytes) -> bool:
    """Say whether bytes may report: nothing else is decoded."""
    return any(mark in data for mark in _MARKS)


def _metadata_in(inner: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return each metadata of a message, a task or an event: its own, its status's message's, and its artifacts'."""
    status, artifacts = inner.get("status"), inner.get("artifacts")
    places = [inner, inner.get("artifact"), *(artifacts if type(artifacts) is list else ())]
    if type(status) is dict:
        places += [status, status.get("message")]
    for place in places:
        metadata = place.get("metadata") if type(place) is dict else None
        if type(metadata) is dict:
            yield metadata


def _first(said: dict[str, Any], names: tuple[str, ...], bad: list[Any]) -> int | None:
    """Return the first number of tokens under these names; None where there is none. What is no such number is put
    into `bad`."""
    for name in names:
        value = said.get(name)
        if value is None:
            continue
        # Protobuf's own JSON writes the numbers of metadata as it likes: 12 may be 12.0.
        number = count(int(value) if type(value) is float and value.is_integer() else value)
        if number is None:
            bad.append(value)
        return number
    return None
