"""How the sync face is derived from the async one: each class becomes one whose methods wait. Stdlib only.

    async def f()                    def f()
    async def f() with yield         a generator
    @asynccontextmanager             a context manager
    async with                       with
    a property, a plain method       itself, and what it returns is turned round likewise

A coroutine runs in the loop's thread, with what is current where it was asked for. A context manager is held by one
task there, and what is current within it is so in the thread that waits, too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.current import current, using

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

_lock = threading.Lock()
_background: list[asyncio.AbstractEventLoop] = []
FACES: Final[dict[type, type]] = {}
"""The sync class of each async one."""


def background() -> asyncio.AbstractEventLoop:
    """Return the loop that drives what has none of its own: one thread for the process, begun when first asked."""
    with _lock:
        if not _background:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="meshd-sdk", daemon=True).start()
            _background.append(loop)
        return _background[0]


class Facing:
    """What every derived class has: the async object, and its loop."""

    _it: Any
    _of: asyncio.AbstractEventLoop

    def __repr__(self) -> str:
        return f"<sync {self._it!r}>"


def face(it: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """Return the sync face of an async object; anything that has none is returned as it is."""
    kind = FACES.get(type(it))
    if kind is None:
        return it
    made: Any = object.__new__(kind)
    made._it, made._of = it, loop
    return made


def derived(source: type, *, without: frozenset[str] = frozenset()) -> type:
    """Return the class whose methods wait for those of `source`; its objects are made by `face`."""
    members: dict[str, Any] = {"__doc__": source.__doc__, "__module__": "meshd_sdk.sync"}
    for name, member in vars(source).items():
        if not name.startswith("_") and name not in without:
            members[name] = _turned(name, member)
    if hasattr(source, "__aenter__"):
        members["__enter__"], members["__exit__"] = _entered, _left
    made = type(source.__name__, (Facing,), members)
    FACES[source] = made
    return made


def _turned(name: str, member: Any) -> Any:
    """Return a member of the sync class."""
    if not inspect.isfunction(member):  # a property: the value may have a face
        return property(lambda self: face(getattr(self._it, name), self._of), doc=getattr(member, "__doc__", None))
    if inspect.iscoroutinefunction(member):
        made: Callable[..., Any] = _waiting(name)
    elif inspect.isasyncgenfunction(member):
        made = _iterating(name)
    elif inspect.isasyncgenfunction(inspect.unwrap(member)):
        made = _holding(name)
    else:
        # The method itself: decorators look at the frame that calls them.
        return property(lambda self: getattr(self._it, name), doc=member.__doc__)
    made.__name__, made.__doc__ = name, member.__doc__
    made.__signature__ = inspect.signature(member)  # type: ignore[attr-defined]
    return made


def _waiting(name: str) -> Callable[..., Any]:
    def call(self: Facing, *args: Any, **kwargs: Any) -> Any:
        return face(wait(getattr(self._it, name)(*args, **kwargs), self._of), self._of)

    return call


def _iterating(name: str) -> Callable[..., Any]:
    def iterate(self: Facing, *args: Any, **kwargs: Any) -> Iterator[Any]:
        iterator: AsyncIterator[Any] = getattr(self._it, name)(*args, **kwargs)
        try:
            while True:
                try:
                    yield face(wait(_next(iterator), self._of), self._of)
                except StopAsyncIteration:
                    return
        finally:
            wait(iterator.aclose(), self._of)  # type: ignore[attr-defined]

    return iterate


def _holding(name: str) -> Callable[..., Any]:
    @contextmanager
    def hold(self: Facing, *args: Any, **kwargs: Any) -> Iterator[Any]:
        held = Held(getattr(self._it, name)(*args, **kwargs), self._of)
        value, now = held.enter()
        try:
            with using(now):
                yield face(value, self._of)
        except BaseException as error:
            if not held.leave(error):
                raise
        else:
            held.leave(None)

    return hold


def _entered(self: Facing) -> Any:
    wait(self._it.__aenter__(), self._of)
    return self


def _left(self: Facing, *exc: object) -> None:
    wait(self._it.__aexit__(*exc), self._of)


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


def wait(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Run a coroutine in a loop's thread, and return what it does. RuntimeError in that very thread: it would wait for
    itself."""
    _check_elsewhere(loop, coroutine)
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


def _check_elsewhere(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
    try:
        is_here = asyncio.get_running_loop() is loop
    except RuntimeError:
        return
    if is_here:
        if coroutine is not None:
            coroutine.close()
        raise RuntimeError("the sync face waits, and this thread runs the loop it waits for: use `await` here")


class Held:
    """An async context manager, held open by a task while a thread is within it."""

    def __init__(self, manager: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._manager, self._loop = manager, loop
        self._entered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._done: concurrent.futures.Future[bool] | None = None
        self._leave: asyncio.Future[BaseException | None] | None = None

    def enter(self) -> tuple[Any, Any]:
        """Return what it yields, and what is current within it."""
        _check_elsewhere(self._loop)
        self._done = asyncio.run_coroutine_threadsafe(self._hold(), self._loop)
        self._done.add_done_callback(self._failed)
        try:
            value, now = self._entered.result()
        except KeyboardInterrupt:
            self._done.cancel()
            raise
        return value, now

    def leave(self, error: BaseException | None) -> bool:
        """End it; return whether it kept the error to itself. Raises what it raises instead."""
        assert self._leave is not None
        assert self._done is not None
        self._loop.call_soon_threadsafe(self._leave.set_result, error)
        try:
            return self._done.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            if error is None or isinstance(error, Exception):
                raise
            return False
        except BaseException as raised:
            if raised is error:
                return False
            raise

    async def _hold(self) -> bool:
        self._leave = asyncio.get_running_loop().create_future()
        async with self._manager as value:
            self._entered.set_result((value, current()))
            error = await self._leave
            if error is not None:
                # KeyboardInterrupt and SystemExit would end the loop: within it they are a cancellation.
                raise error if isinstance(error, Exception) else asyncio.CancelledError from error
        return error is not None

    def _failed(self, done: concurrent.futures.Future[bool]) -> None:
        if not self._entered.done():
            error = None if done.cancelled() else done.exception()
            self._entered.set_exception(error or RuntimeError("the context manager ended before it yielded"))
