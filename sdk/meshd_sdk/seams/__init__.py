"""Where each client library sends one request, and how the current context gets onto it there: one file a library.

Each says what it needs of the library, and raises SeamMissingError where a version lacks it, before anything is
changed. None imports its library unless that is imported already.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from meshd_sdk.seams import aiohttp, httpx, requests, urllib3
from meshd_sdk.seams.seam import Hook, Patch, SeamMissingError, needed

if TYPE_CHECKING:
    from types import ModuleType

HTTPX: Final = ("httpx", "httpx2")
"""One library under its two names: newer clients are built on httpx2, older ones on httpx."""


def _grpc(module: ModuleType) -> list[Patch]:
    needed(module, "insecure_channel", "ClientCallDetails", "aio.ClientCallDetails")
    from meshd_sdk.seams import grpc  # it imports grpc, and is written in these

    return grpc.hook(module)


def _mcp(module: ModuleType) -> list[Patch]:
    """Hook nothing: it sends by httpx. Raise SeamMissingError where it does so outside the caller's context."""
    try:
        needed(import_module("mcp.shared._context_streams"), "ContextSendStream.send")
    except ImportError:
        raise SeamMissingError(
            "sends from a task of its own, which has the context in which the session was opened: open a session for "
            "each request that the agent answers"
        ) from None
    return []


HOOKS: Final[dict[str, Hook]] = {
    "httpx": httpx.hook,
    "httpx2": httpx.hook,
    "requests": requests.hook,
    "urllib3": urllib3.hook,
    "aiohttp": aiohttp.hook,
    "grpc": _grpc,
    "mcp": _mcp,
}
"""By the name under which a program imports the library."""
