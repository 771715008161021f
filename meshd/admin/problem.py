"""What the ports answer where something is wrong, and how everything that they answer is encoded and sealed.

Errors are problem details (RFC 9457) and tell nothing of the inside.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.telemetry import redact

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
SEAL: Final = {
    "Server": "meshd",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer: what keeps it out of caches and frames."""


class Problem(Exception):
    """An error answer: HTTP status, a title, and what to do."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        headers: dict[str, str] | None = None,
        *,
        type: str = "about:blank",
    ) -> None:
        super().__init__(title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers or {}
        self.type = type

    def body(self) -> dict[str, Any]:
        """Return the problem's details."""
        body: dict[str, Any] = {"type": self.type, "status": self.status, "title": self.title}
        if self.detail:
            body["detail"] = self.detail
        return body


def encoded(value: Any) -> bytes:
    """Return `value` as JSON, without secrets."""
    return msgspec.json.encode(redact.anything(msgspec.to_builtins(value))) + b"\n"
