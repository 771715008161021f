"""What the policy says of prompts."""

from __future__ import annotations

from typing import Final, NamedTuple

ROLES: Final = ("system", "developer", "user")


class PromptTerms(NamedTuple):
    """Where prompts are, and in whose messages they are looked for."""

    folder: str = ""
    """Path of a folder of files; empty for none."""
    roles: frozenset[str] = frozenset(ROLES)
