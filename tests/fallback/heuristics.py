"""Functions that a policy of these tests names, good and bad; the sidecar imports them."""

from __future__ import annotations

import threading
from typing import Any


def shout(asked: dict[str, Any]) -> str:
    """Answer with the last message in capitals."""
    return str(asked["body"]["messages"][-1]["content"]).upper()


def raises(asked: dict[str, Any]) -> str:
    """Fail as a stranger's code may."""
    raise RuntimeError(f"cannot do {asked['operation']}")


def leaves(asked: dict[str, Any]) -> str:
    """End the process, or try to."""
    raise SystemExit(3)


def hangs(asked: dict[str, Any]) -> str:
    """Never come back."""
    threading.Event().wait()
    return ""


def floods(asked: dict[str, Any]) -> str:
    """Answer with too much."""
    return "x" * (1 << 21)


def nothing(asked: dict[str, Any]) -> None:
    """Answer with nothing."""


def table(asked: dict[str, Any]) -> dict[str, Any]:
    """Answer with what is no text: it becomes JSON."""
    return {"seen": asked["path"]}
