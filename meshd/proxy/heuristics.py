"""What answers in a provider's place without one: an answer that was kept, a text, a function, a program.

A program is started by the daemon from the policy's words alone, without a shell and without the daemon's environment;
it reads the request on its standard input, and only so much of what it writes is taken. A function runs in a thread of
its own, which nobody can end: only so many are let run. One that fails, hangs or writes too much gives no answer, and
the chain goes on.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Reply
from meshd.dialects.canned import Canned, answer
from meshd.proxy.stood_in import stood_in
from meshd.wire.fields import CALL_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.call import Call
    from meshd.filters.answers import Kept
    from meshd.filters.chain_settings import Substitute
    from meshd.filters.substitution import Substitution

log = logging.getLogger("meshd.heuristics")

TEXT_BYTES_MAX: Final = 2**20
"""Of what a program or function may answer."""
SAID_BYTES_MAX: Final = 300
"""Of what a program says on its standard error that is told in the log."""
RUNNING_MAX: Final = 16
"""Programs at once, and functions at once: an outage must not become a flood of processes."""
SILENT_S: Final = 10.0
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SYSTEMROOT")
"""What a program is given of the daemon's environment, in which there are keys."""
_PIECE: Final = 65_536


class HeuristicError(Exception):
    """A heuristic gave no answer; `str()` says why, for the log and for the caller."""


class Heuristics:
    """Those of one sidecar."""

    __slots__ = ("_running", "_said", "_threads")

    def __init__(self) -> None:
        self._running = 0
        self._threads = 0
        self._said: dict[tuple[str, str], float] = {}
        """When a failure was last told, by the target and the link: an outage is told once in a while."""

    def answer(self, call: Call, link: Substitute) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        """Return the answer of a link that is no upstream, or the coroutine that ends in it; None for no answer."""
        if link.reply is not None:
            return _reply(call, link.reply, "meshd-reply")
        return self._made(call, link)

    async def _made(self, call: Call, link: Substitute) -> Reply | None:
        substitution: Substitution = call.substitution
        asked = asked_of(call)
        task = asyncio.current_task()
        assert task is not None
        call.on_gone = task.cancel
        try:
            async with asyncio.timeout(_patience_s(call, link)):
                if link.command is not None:
                    text = await self._command(link.command, msgspec.json.encode(asked))
                    return _reply(call, text, "meshd-command")
                assert link.python is not None
                text = await self._python(link.python, asked)
                return _reply(call, text, "meshd-python")
        except TimeoutError:
            substitution.why = f"took more than {link.timeout:g} s"
        except HeuristicError as error:
            substitution.why = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next link must have its turn
            substitution.why = f"failed: {type(error).__name__}: {error}"
        finally:
            call.on_gone = None
        self._tell(call, substitution)
        return None

    def _tell(self, call: Call, substitution: Substitution) -> None:
        key, now_s = (call.target.name, substitution.served_by), asyncio.get_running_loop().time()
        if now_s - self._said.get(key, -SILENT_S) < SILENT_S:
            return
        self._said[key] = now_s
        log.warning(
            "the %s of a fallback gave no answer: %s",
            substitution.served_by,
            substitution.why,
            extra={"fields": {"call": call.id, "target": call.target.name}},
        )

    # ------------------------------------------------------------------ programs

    async def _command(self, command: tuple[str, ...], given: bytes) -> str:
        if self._running >= RUNNING_MAX:
            raise HeuristicError(f"{RUNNING_MAX} programs are running already")
        self._running += 1
        try:
            return await _run(command, given)
        finally:
            self._running -= 1

    # ------------------------------------------------------------------ functions

    async def _python(self, entry: str, asked: dict[str, Any]) -> str:
        if self._threads >= RUNNING_MAX:
            raise HeuristicError(f"{RUNNING_MAX} functions are running already, and none can be ended")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        self._threads += 1

        def ended(set_it: Callable[[Any], None], result: Any) -> None:
            self._threads -= 1
            if not done.done():
                set_it(result)

        def run() -> None:
            try:
                result: Any = _text_of(_function(entry)(asked))
                set_it: Any = done.set_result
            except BaseException as error:  # noqa: BLE001 - a stranger's code may raise anything, SystemExit too
                result = HeuristicError(f"raised {type(error).__name__}: {str(error)[:200]}")
                set_it = done.set_exception
            try:
                loop.call_soon_threadsafe(ended, set_it, result)
            except RuntimeError:
                pass  # The loop has closed: nobody waits any more.

        threading.Thread(target=run, name=f"fallback {entry}", daemon=True).start()
        return await done


def asked_of(call: Call) -> dict[str, Any]:
    """Return what a program or function is told of a request: no header, no key, and the body as JSON where it is."""
    body: Any = call.body or b""
    try:
        body = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        body = body.decode("utf-8", "replace")
    context = call.context
    return {
        "kind": call.target.kind.value,
        "target": call.target.name,
        "model": call.target.model,
        "operation": call.ask.operation if call.ask is not None else "",
        "agent": call.agent,
        "workflow": context.workflow if context is not None else "",
        "method": call.method,
        "path": call.path.partition("?")[0],
        "body": body,
    }


def kept_reply(call: Call, kept: Kept, now_s: float) -> Reply | None:
    """Return an answer that the same request got before, and say how old it is; None where it must not be given now."""
    headers = [*kept.headers, (b"age", b"%d" % max(0, int(now_s - kept.stored_s))), (CALL_ID, call.id.encode())]
    return stood_in(call, Reply(kept.status, headers + call.reply_headers, kept.body))


def _reply(call: Call, text: str, model: str) -> Reply | None:
    canned = Canned(text, model, call.id, int(call.wall_s))
    content_type, body = answer(call.dialect, call.ask, getattr(call, "rpc", None), canned)
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store"), (CALL_ID, call.id.encode())]
    return stood_in(call, Reply(200, headers + call.reply_headers, body))


def _patience_s(call: Call, link: Substitute) -> float:
    """Return how long a heuristic may take: never past the workflow's deadline."""
    context = call.context
    left_s: float = link.timeout
    if context is not None and context.deadline_s is not None:
        loop = asyncio.get_running_loop()
        left_s = min(left_s, context.deadline_s - call.wall_s - (loop.time() - call.now_s))
    return max(left_s, 0.0)


def _text_of(result: Any) -> str:
    if isinstance(result, bytes):
        result = result.decode("utf-8", "replace")
    elif not isinstance(result, str):
        if result is None:
            raise ValueError("it returned nothing")
        result = msgspec.json.encode(result).decode()
    if len(result) > TEXT_BYTES_MAX:
        raise ValueError(f"it returned more than {TEXT_BYTES_MAX} characters")
    text: str = result
    return text


def _function(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


async def _run(command: tuple[str, ...], given: bytes) -> str:
    """Run a program to its end. Raises HeuristicError; whatever ends this ends the program and what it has begun."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(), start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise HeuristicError(f"cannot be started: {error}") from None
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said, complaint, _ = await asyncio.gather(
            _read(process.stdout), _read_beginning(process.stderr), _write(process.stdin, given)
        )
        code = await process.wait()
    finally:
        _end(process)
    if code:
        more = complaint.decode("utf-8", "replace").strip()
        raise HeuristicError(f"ended with {code}" + (f": {more}" if more else ""))
    return said.decode("utf-8", "replace").removesuffix("\n")


def _end(process: asyncio.subprocess.Process) -> None:
    """End a program and whatever it has started; what has ended by itself is left as it is."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


async def _write(stdin: Any, given: bytes) -> None:
    try:
        stdin.write(given)
        await stdin.drain()
        stdin.close()
    except (ConnectionError, BrokenPipeError):
        pass  # It may well answer without having read everything.


async def _read(stream: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await stream.read(_PIECE):
        size += len(piece)
        if size > TEXT_BYTES_MAX:
            raise HeuristicError(f"wrote more than {TEXT_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def _read_beginning(stream: asyncio.StreamReader) -> bytes:
    """Read to the end and keep the beginning: a program that cannot write its complaints would stop."""
    kept = b""
    while piece := await stream.read(_PIECE):
        kept += piece[: SAID_BYTES_MAX - len(kept)]
    return kept
