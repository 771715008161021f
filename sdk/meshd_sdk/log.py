"""The SDK's logger, `meshd_sdk`. A module of its own: logging is imported with the first line, not with the SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


def log() -> logging.Logger:
    """Return it."""
    import logging

    return logging.getLogger("meshd_sdk")
