"""Hooks that put the current context on the requests that an agent's client libraries send to its sidecar.

A hook stands where a library sends one request over one connection: after redirects, retries and the caller's own
headers, so that each hop is judged by where it really goes. No library is imported here; what is not imported yet is
hooked when it is.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd_sdk.seams import HOOKS, HTTPX
from meshd_sdk.seams.seam import SeamMissingError, switch
from meshd_sdk.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from meshd_sdk.seams.seam import Patch

CLIENTS: Final[dict[str, tuple[str, ...]]] = {
    "httpx": HTTPX,
    "httpx2": HTTPX,
    "requests": ("requests",),
    "urllib3": ("urllib3",),
    "aiohttp": ("aiohttp",),
    "grpc": ("grpc",),
    "openai": HTTPX,
    "anthropic": HTTPX,
    "mcp": (*HTTPX, "mcp"),
    "a2a": (*HTTPX, "grpc"),
}
"""What may be named, and the libraries that it sends by."""


class Instrumented(NamedTuple):
    """What is instrumented now, of all calls of `instrument` together."""

    hooked: tuple[str, ...]
    """Libraries whose requests carry the context from now on."""
    waiting: tuple[str, ...]
    """Libraries that will be hooked when the program imports them."""
    missing: tuple[str, ...]
    """Libraries that are imported and have no seam that is known: their requests carry nothing."""


def instrument(*clients: str, base_url: str | Iterable[str] | None = None) -> Instrumented:
    """Let the clients that are named, or else all in `CLIENTS`, carry the current context to the sidecar.

    The sidecar is where `base_url` says, else where an earlier call said, else where MESHD_URL says, else at
    http://127.0.0.1:7400. Nothing is imported, nothing is hooked twice, and nothing is added to a request for anybody
    else. Raises ValueError for a name that is not in `CLIENTS` and for what is no address; warns (RuntimeWarning)
    of a named client that is not installed, and of a library in a version without the seam.
    """
    unknown = sorted(set(clients) - CLIENTS.keys())
    if unknown:
        raise ValueError(f"no such client: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    named = [base_url] if isinstance(base_url, str) else base_url
    with _lock:
        if named is not None:
            switch.sidecar, _state.is_sidecar_named = Sidecar(named), True
        elif not _state.is_sidecar_named:
            switch.sidecar = Sidecar.of(os.environ)
        for client in clients:
            if client not in sys.modules and find_spec(client) is None:
                _warn(f"{client} is not installed; its requests will carry the context once it is")
        _state.take({library for client in clients or CLIENTS for library in CLIENTS[client]})
        return Instrumented(tuple(sorted(_state.patches)), tuple(sorted(_state.waiting)), tuple(sorted(_state.missing)))


def uninstrument() -> None:
    """Undo all of it. Clients and channels made meanwhile carry nothing any more."""
    with _lock:
        switch.sidecar, _state.is_sidecar_named = None, False
        _state.drop()


class _State:
    """What is hooked, and what waits. All of it is changed under `_lock` alone."""

    def __init__(self) -> None:
        self.patches: dict[str, list[Patch]] = {}
        self.waiting: set[str] = set()
        self.missing: set[str] = set()
        self.is_sidecar_named = False
        self.finder = _Finder()

    def take(self, libraries: set[str]) -> None:
        for library in libraries - self.patches.keys() - self.missing:
            module = sys.modules.get(library)
            if module is None or getattr(module.__spec__, "_initializing", False):
                self.waiting.add(library)
            else:
                self.hook(library, module)
        if self.waiting and self.finder not in sys.meta_path:
            sys.meta_path.insert(0, self.finder)

    def hook(self, library: str, module: ModuleType) -> None:
        self.waiting.discard(library)
        try:
            # httpx2 can stand in for httpx: it is hooked under its own name.
            self.patches[library] = HOOKS[library](module) if module.__name__ == library else []
        except SeamMissingError as error:
            self.missing.add(library)
            version = getattr(module, "__version__", "of an unknown version")
            _warn(f"{library} {version} {error}")
        except Exception as error:  # noqa: BLE001
            # Most often from within the program's own import of it, which must not fail for our sake.
            self.missing.add(library)
            _warn(f"{library} cannot be hooked, its requests carry no context: {error!r}")

    def drop(self) -> None:
        for patches in self.patches.values():
            for patch in reversed(patches):
                patch.undo()
        self.patches.clear()
        self.waiting.clear()
        self.missing.clear()
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)


class _Finder:
    """Finds nothing by itself: has the others find what waits, and hooks it once it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _state.waiting:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None and (spec := find(fullname, path, target)) is not None:
                _arm(fullname, spec)
                return spec  # type: ignore[no-any-return]
        return None


def _arm(library: str, spec: ModuleSpec) -> None:
    """Have the loader hook the module when it has run it; the loader itself stays, with all that it can do."""
    loader = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):
        return
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        with _lock:
            if library in _state.waiting:
                _state.hook(library, module)

    try:
        loader.exec_module = exec_module  # type: ignore[method-assign]
    except AttributeError:
        _warn(f"{library} is loaded by {type(loader).__name__}, which cannot be followed: import it, then instrument()")


def _warn(text: str) -> None:
    # Said of the line that called us; of what was waiting, of the import.
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"meshd_sdk.instrument: {text}", RuntimeWarning, stacklevel=level)


_lock = threading.RLock()
_state = _State()
