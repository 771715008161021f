"""Tools that their own program calls: each such call within a context goes into the trace by itself. Stdlib only."""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from meshd_sdk.ctx import Ctx, Doing
from meshd_sdk.current import current
from meshd_sdk.step import cut, digest, entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd_sdk.handlers import Tool
    from meshd_sdk.link import Entry

P = ParamSpec("P")
R = TypeVar("R")


def recording(function: Callable[P, R], tool: Tool) -> Callable[P, R]:
    """Return `function` so that a call from within a context is recorded; one that streams, or has no context, is not.

    A call that comes through the sidecar goes past this: the sidecar has seen it.
    """
    if tool.is_stream:
        return function
    signature = inspect.signature(function)
    made: Any

    if tool.is_async:

        @functools.wraps(function)
        async def made(*args: Any, **kwargs: Any) -> Any:
            ctx, step = _where()
            if ctx is None:
                return await function(*args, **kwargs)  # type: ignore[misc]
            one = _begun(tool, signature, step, args, kwargs)
            try:
                result = await function(*args, **kwargs)  # type: ignore[misc]
            except BaseException as error:
                one.error = type(error).__name__
                raise
            else:
                one.fields["result_digest"] = digest(result)
                return result
            finally:
                one.ended_s = time.time()
                ctx.record_later([one])

    else:

        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            ctx, step = _where()
            if ctx is None:
                return function(*args, **kwargs)
            one = _begun(tool, signature, step, args, kwargs)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                one.error = type(error).__name__
                raise
            else:
                one.fields["result_digest"] = digest(result)
                return result
            finally:
                one.ended_s = time.time()
                ctx.record_later([one])

    return made  # type: ignore[no-any-return]


def _where() -> tuple[Ctx | None, str]:
    now = current()
    return (now.ctx, now.step) if isinstance(now, Doing) else (None, "")


def _begun(tool: Tool, signature: inspect.Signature, step: str, args: Any, kwargs: Any) -> Entry:
    try:
        given = {name: one for name, one in signature.bind(*args, **kwargs).arguments.items() if name != tool.ctx}
    except TypeError:
        given = {}  # the call itself says what is wrong
    fields = {"tool": cut(tool.name, 128), "arguments_digest": digest(given)}
    return entry("tool_call", step, fields)
