"""The context of what the program is doing now, in one ContextVar.

Whoever answers a request sets it for that time with `using`; whatever calls out meanwhile reads it with `current`.
Tasks that asyncio starts have it by themselves, `asyncio.to_thread` takes it along, and `carrying` takes it into
threads that are started by other means. Imports the standard library only.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from meshd_sdk.carry import carried, delegating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

P = ParamSpec("P")
R = TypeVar("R")

CONTEXT: Final = "x-meshd-context"
DEADLINE: Final = "x-meshd-deadline"
LEFT_S_MAX: Final = 999_999_999.0
"""Nine digits, the most that meshd reads in `x-meshd-deadline`."""
_LEFT: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Current:
    """In which workflow the program is working now. Immutable; `dataclasses.replace` makes another."""

    token: str = ""
    """The signed token, to be sent as `x-meshd-context`; empty where there is none."""
    workflow: str = ""
    """The workflow's id, for reading: what counts is what the token says."""
    agent: str = ""
    """The agent that the token was issued to, for reading."""
    traceparent: str = ""
    """The span that what is called belongs under; empty where nothing is traced."""
    tracestate: str = ""
    baggage: str = ""
    deadline_s: float | None = None
    """Unix seconds by which the work must be done; None for never."""
    delegate_tokens: int | None = None
    """Most tokens that each agent called from here may spend; None for what the account holds."""

    def headers(self) -> dict[str, str]:
        """Return the header fields of a call made now, names in lower case; `x-meshd-deadline` in seconds left.

        A value that cannot stand in a header field or gRPC metadata everywhere (visible ASCII) is left out.
        Raises ValueError where `delegate_tokens` is no number of tokens.
        """
        found = {
            CONTEXT: self.token,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
            "baggage": self.baggage,
        }
        fields = {name: value for name, value in found.items() if value and _is_field(value)}
        if self.deadline_s is not None:
            fields[DEADLINE] = f"{min(max(self.deadline_s - time.time(), 0.0), LEFT_S_MAX):.3f}"
        if self.delegate_tokens is not None:
            fields |= delegating(self.delegate_tokens)
        return fields

    @classmethod
    def from_headers(
        cls, headers: Mapping[str, str] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
    ) -> Current | None:
        """Return the context of a request that is being answered; None where its headers hold nothing of one.

        Takes a mapping, or pairs of texts or of bytes, as ASGI has them. Of a field that came twice, and of a
        deadline that is no number of seconds, nothing is taken. The token is read, not verified: this program has
        no key, and the sidecar judges it on every call.
        """
        pairs = [(_text(name), _text(value)) for name, value in _pairs(headers)]
        found = {name: value for name, value in carried(pairs).items() if value}
        left = [value.strip() for name, value in pairs if name.lower() == DEADLINE]
        deadline_s = time.time() + float(left[0]) if len(left) == 1 and _LEFT.fullmatch(left[0]) else None
        if not found and deadline_s is None:
            return None
        token = found.get(CONTEXT, "")
        workflow = agent = ""
        if token:
            from meshd_sdk.context import TokenInvalidError, read_unverified  # with all of cryptography

            try:
                said = read_unverified(token.encode("latin-1", "replace"))
                workflow, agent = said.workflow, said.agent
            except TokenInvalidError:
                # It goes on as it came: the sidecar refuses it in words that say why.
                pass
        return cls(
            token,
            workflow,
            agent,
            found.get("traceparent", ""),
            found.get("tracestate", ""),
            found.get("baggage", ""),
            deadline_s,
        )


_CURRENT: ContextVar[Current | None] = ContextVar("meshd_sdk_current", default=None)


def current() -> Current | None:
    """Return the context of what is being done now, or None."""
    return _CURRENT.get()


def become(now: Current | None) -> None:
    """Make a context the current one for the rest of this task or thread: `using` is better wherever it can stand."""
    _CURRENT.set(now)


@contextmanager
def using(now: Current | None) -> Iterator[Current | None]:
    """Make a context the current one within the `with` block, in async code too; None for none at all."""
    before = _CURRENT.set(now)
    try:
        yield now
    finally:
        try:
            _CURRENT.reset(before)
        except ValueError:
            # An async generator that is closed from another task: what was set in that one is not ours to undo.
            pass


def carrying(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` so that it runs with what is current now, in whichever thread it is called.

    For `threading.Thread(target=carrying(work))`, `loop.run_in_executor(None, carrying(work))` and callbacks of
    libraries with threads of their own. May be called many times, at once too.
    """
    kept = copy_context()

    @wraps(function)
    def carry(*args: P.args, **kwargs: P.kwargs) -> R:
        # A copy each: one context cannot be entered twice at a time.
        return kept.copy().run(function, *args, **kwargs)

    return carry


def _pairs(
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]],
) -> Iterable[tuple[str | bytes, str | bytes]]:
    return headers.items() if hasattr(headers, "items") else headers


def _is_field(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
