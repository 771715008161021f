"""The functions of an agent that are called from outside, and how they want to be called.

A handler is async or plain, a plain one runs in a thread with the context carried; one that yields streams its reply.
It takes the context where a parameter is called `ctx` or is annotated with a `Ctx`. Stdlib only.
"""

from __future__ import annotations

import functools
import inspect
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd_sdk.bodies import JSON, Reply
from meshd_sdk.docstring import read as read_docstring
from meshd_sdk.errors import ArgumentsInvalid
from meshd_sdk.shape_of import MISSING, Shapes, hints_of, parameters
from meshd_sdk.shapes import Anything, Faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from meshd_sdk.shapes import Fields, Schema, Shape
    from meshd_sdk.threads import CarryingExecutor

TOOL_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
TOPIC: Final = re.compile(r"(?=.{1,255}$)(?:(?:[A-Za-z0-9_-]+|\*)\.)*(?:[A-Za-z0-9_-]+|\*|>)")
SEQUENCE: Final = re.compile(r"[0-9]{1,20}")
UNIX_S_END: Final = 2**63 / 1e9
THREADS_MAX: Final = 256
"""More than a handler can need that waits for another one of its own process: a thread is made where none is free."""
_END: Final = object()


class Handler:
    """A function, and how it is called. TypeError where it cannot be."""

    def __init__(self, function: Callable[..., Any], names: Mapping[str, Any]) -> None:
        if not callable(function):
            raise TypeError(f"a handler is a function, not {function!r}")
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        called = inspect.unwrap(function)
        self.is_stream = inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called)
        self.is_async = inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)
        self.hints = hints_of(called, names)
        self.parameters = inspect.signature(called).parameters
        self.ctx = next((name for name in self.parameters if self._is_ctx(name)), "")
        """The parameter that takes the context; empty where none does."""

    def _is_ctx(self, name: str) -> bool:
        if name == "ctx":
            return True
        hint = self.hints.get(name)
        # By name: neither face is imported here, and the annotation may be a text that only type checkers can read.
        word = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
        return word.rpartition(".")[2] == "Ctx"

    def start(self, ctx: Any, arguments: dict[str, Any]) -> Any:
        """Call it: return an awaitable, or an async iterator where it streams."""
        if self.ctx:
            arguments = {self.ctx: ctx} | arguments
        if self.is_async:
            return self.function(**arguments)
        if self.is_stream:
            return _pieces(self.function(**arguments))
        return _in_thread(functools.partial(self.function, **arguments))


class Tool(Handler):
    """A function that others may call by name, with arguments that fit its schema."""

    def __init__(
        self,
        function: Callable[..., Any],
        names: Mapping[str, Any],
        *,
        name: str = "",
        version: str = "",
        is_read_only: bool = False,
        is_idempotent: bool = False,
    ) -> None:
        super().__init__(function, names)
        self.name = name or self.name
        if TOOL_NAME.fullmatch(self.name) is None:
            raise ValueError(f"a tool's name is 1 to 128 letters, digits, dots, dashes, underscores, not {self.name!r}")
        said = read_docstring(getattr(function, "__doc__", ""))
        self.description = said.description
        self.version, self.is_read_only, self.is_idempotent = version, is_read_only, is_idempotent
        shapes = Shapes(names)
        without = frozenset({self.ctx} - {""})
        self.fields: Fields = parameters(inspect.unwrap(function), shapes, described=said.arguments, without=without)
        self.input_schema: Schema = shapes.whole(self.fields)
        self.output_schema: Schema | None = self._output_schema(names)

    def _output_schema(self, names: Mapping[str, Any]) -> Schema | None:
        """Return the schema of what is returned; None where nothing, or nothing that JSON has a word for, is said."""
        shapes = Shapes(names)
        try:
            return None if self.is_stream else shapes.whole(shapes.of(self.hints.get("return", MISSING))) or None
        except TypeError:
            return None

    def arguments(self, payload: Any) -> dict[str, Any]:
        """Return the arguments of a call. Raises ArgumentsInvalid with a line for each that does not fit."""
        faults = Faults()
        read = self.fields.read({} if payload is None else payload, "", faults)
        if faults:
            raise ArgumentsInvalid(f"the arguments of {self.name} do not fit:\n" + "\n".join(faults))
        return dict(read)


class Entrance(Handler):
    """A function that takes one payload or event, or none: an agent's own entrance, or a topic's handler."""

    def __init__(self, function: Callable[..., Any], names: Mapping[str, Any], *, is_read: bool) -> None:
        super().__init__(function, names)
        rest = [one for name, one in self.parameters.items() if name != self.ctx]
        needed = [
            one for one in rest if one.default is MISSING and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        if not self.ctx and len(needed) == 2:  # two without a name or a type to tell: the context goes first
            self.ctx = needed[0].name
            rest, needed = [one for one in rest if one.name != self.ctx], needed[1:]
        if len(needed) > 1 or any(one.kind is one.POSITIONAL_ONLY for one in self.parameters.values()):
            raise TypeError(
                f"{self.name} takes (ctx, payload), (payload), (ctx) or nothing, not {len(self.parameters)} names"
            )
        taken = needed or rest[:1]
        self.payload = taken[0].name if taken else ""
        """The parameter that takes the payload; empty where none does."""
        hint = self.hints.get(self.payload, MISSING)
        self.is_bytes = is_read and hint is bytes
        is_any = not is_read or hint is Reply or isinstance(hint, str)
        self.shape: Shape = Anything() if is_any else Shapes(names).of(hint)

    def arguments(self, payload: Any) -> dict[str, Any]:
        """Return the arguments of a call. Raises ArgumentsInvalid."""
        if not self.payload:
            return {}
        if isinstance(payload, Reply):
            if self.is_bytes:
                return {self.payload: payload.payload}
            if not isinstance(self.shape, Anything):
                raise ArgumentsInvalid(f"the payload is JSON, not {payload.content_type}: send it as {JSON}")
        faults = Faults()
        read = self.shape.read(payload, "", faults)
        if faults:
            raise ArgumentsInvalid("the payload does not fit:\n" + "\n".join(faults))
        return {self.payload: read}


class Subscription(NamedTuple):
    """A topic and its handler."""

    topic: str
    group: str
    handler: Entrance
    start: Start
    handling_s: float | None


class Start(NamedTuple):
    """Where a new group begins: with what is published from now on, where nothing is set."""

    is_oldest: bool = False
    at_s: float | None = None
    """Unix seconds."""
    after: str = ""
    """A sequence."""


def start_of(from_oldest: bool, starts_at: datetime | float | None, starts_after: str) -> Start:
    """Return where a group is to begin. Raises ValueError."""
    if from_oldest + (starts_at is not None) + bool(starts_after) > 1:
        raise ValueError("only one of from_oldest, starts_at and starts_after says where a group begins")
    if starts_after and not (isinstance(starts_after, str) and SEQUENCE.fullmatch(starts_after)):
        raise ValueError(f"starts_after is the `sequence` of an event, 20 digits, not {starts_after!r}")
    if starts_at is None:
        return Start(from_oldest, None, starts_after)
    if isinstance(starts_at, datetime):
        if starts_at.tzinfo is None:
            raise ValueError("starts_at has no time zone: nobody else knows which moment is meant")
        starts_at = starts_at.timestamp()
    if not 0 <= starts_at < UNIX_S_END:  # also for NaN
        raise ValueError(f"starts_at is a datetime, or a number of Unix seconds until the year 2262, not {starts_at!r}")
    return Start(at_s=float(starts_at))


def topic_pattern(topic: str) -> str:
    """Return a topic that may be subscribed to. Raises ValueError."""
    if not isinstance(topic, str) or TOPIC.fullmatch(topic) is None:
        raise ValueError(
            f"a topic is words of letters, digits, dashes and underscores with dots between, at most 255 characters, "
            f"`*` for one word and a `>` at its end for more; not {topic!r}"
        )
    return topic


def matches(pattern: str, topic: str) -> bool:
    """Say whether a topic is one that a pattern means."""
    wanted, words = pattern.split("."), topic.split(".")
    for at, one in enumerate(wanted):
        if one == ">":
            return len(words) > at
        if at >= len(words) or one not in ("*", words[at]):
            return False
    return len(words) == len(wanted)


@functools.cache
def _threads() -> CarryingExecutor:
    from meshd_sdk.threads import CarryingExecutor

    return CarryingExecutor(THREADS_MAX, thread_name_prefix="meshd-handler")


async def _in_thread(function: Callable[[], Any]) -> Any:
    import asyncio

    return await asyncio.get_running_loop().run_in_executor(_threads(), function)


async def _pieces(generator: Iterator[Any]) -> AsyncIterator[Any]:
    """Yield what a plain generator yields, from a thread."""
    import threading

    lock = threading.Lock()

    def step() -> Any:
        with lock:
            return next(generator, _END)

    try:
        while (piece := await _in_thread(step)) is not _END:
            yield piece
    finally:
        close = getattr(generator, "close", None)
        if close is not None and lock.acquire(blocking=False):
            lock.release()
            close()
