"""Every dialect that this build speaks. A new one is a file and a line here; the golden suite picks it up.

An upstream has one dialect, and may serve a second body language below other paths: Ollama speaks OpenAI's and
Anthropic's under `/v1`, Vertex AI serves Claude beside Gemini. `dialect_at` says which one a path is written in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.a2a import A2A, A2AGrpc
from meshd.dialects.a2a import VERSION_FIELD as A2A_VERSION
from meshd.dialects.anthropic import Anthropic
from meshd.dialects.anthropic_vertex import AnthropicOnVertex, is_on_vertex
from meshd.dialects.bedrock import Bedrock
from meshd.dialects.gemini import Gemini
from meshd.dialects.grpc import Grpc
from meshd.dialects.mcp import SESSION_FIELD, VERSION_FIELD, Mcp
from meshd.dialects.ollama import Ollama
from meshd.dialects.openai import OpenAI
from meshd.dialects.plain import Plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Headers
    from meshd.dialects.contract import Dialect

_OPENAI: Final = OpenAI()
_ANTHROPIC: Final = Anthropic()
_ON_VERTEX: Final = AnthropicOnVertex()
_GEMINI: Final = Gemini()
_OLLAMA: Final = Ollama()

DIALECTS: Final[dict[str, Dialect]] = {
    "openai": _OPENAI,
    "anthropic": _ANTHROPIC,
    "gemini": _GEMINI,
    "ollama": _OLLAMA,
    "bedrock": Bedrock(),
    "plain": Plain(),
    "mcp": Mcp(),
    "a2a": A2A(),
}
GRPC: Final = Grpc()
"""Of a call, by its content-type, and of no upstream: see its module."""
A2A_GRPC: Final = A2AGrpc()
"""The same, to an upstream of which the policy says that it speaks A2A."""
RPC: Final = frozenset({"mcp", "a2a"})
"""Dialects whose bodies are JSON-RPC: see `meshd.dialects.jsonrpc.RpcDialect`."""


RPC_FIELDS: Final = {VERSION_FIELD: "mcp", SESSION_FIELD: "mcp", A2A_VERSION: "a2a"}
"""Header fields of which one is enough to say what a body is written in."""


def _anthropic_at(path: str) -> Dialect:
    return _ON_VERTEX if is_on_vertex(path) else _ANTHROPIC


def _gemini_at(path: str) -> Dialect:
    return _ON_VERTEX if is_on_vertex(path) else _GEMINI


def _ollama_at(path: str) -> Dialect:
    if "/v1/" not in path.partition("?")[0]:
        return _OLLAMA
    return _ANTHROPIC if _ANTHROPIC.recognise("POST", path) else _OPENAI


_AT: Final[dict[str, Callable[[str], Dialect]]] = {
    "anthropic": _anthropic_at,
    "gemini": _gemini_at,
    "ollama": _ollama_at,
}


def dialect_at(name: str, path: str) -> Dialect:
    """Return what speaks at a path of an upstream whose dialect is `name`."""
    at = _AT.get(name)
    return DIALECTS[name] if at is None else at(path)


def spoken_in(content_type: bytes, headers: Headers) -> str:
    """Return the dialect that a POST's own fields say it is written in, `plain` where they say none.

    For upstreams of which the policy says nothing. MCP's clients send its version or a session with every message but
    the first, and take a plain answer and a stream; A2A's send its version since 1.0.
    """
    if content_type[:16].lower() != b"application/json":
        return "plain"
    accepts = b""
    for name, value in headers:
        spoken = RPC_FIELDS.get(name)
        if spoken is not None:
            return spoken
        if name == b"accept":
            accepts += value.lower()
    return "mcp" if b"application/json" in accepts and b"text/event-stream" in accepts else "plain"


def recognise(method: str, path: str) -> tuple[str, str] | None:
    """Return (dialect name, operation) of the first dialect that claims a request; None where none does.

    For what has no upstream to say which dialect it speaks, such as `meshd explain`.
    """
    for name in DIALECTS:
        if name in RPC:
            continue  # They would claim every POST.
        operation = dialect_at(name, path).recognise(method, path)
        if operation is not None:
            return name, operation
    return None
