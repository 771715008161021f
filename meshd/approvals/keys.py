"""Approvers' keys. The policy knows each by its SHA-256: a key is random, so nothing slower is needed."""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "mak_"
"""By which people, and `meshd.telemetry.redact`, know a meshd approver's key."""
KEY_CHARACTERS_MAX: Final = 256
WRONG_MAX: Final = 10
WRONG_EVERY_S: Final = 6.0
_NOBODY: Final = "0" * 64
_MADE: Final = re.compile(r"mak_[A-Za-z0-9_-]{43}")


def new_key() -> str:
    """Return a key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what the policy keeps of a key."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def is_made(key: str) -> bool:
    """Say whether a key is of the form that `new_key` gives: nobody guesses one of these."""
    return _MADE.fullmatch(key) is not None


def approver_of(key: str, name: str, approvers: Mapping[str, str]) -> str:
    """Return the approver whose key it is: `name`, or whoever has it where that is empty. Empty where nobody does.

    It takes the same time whichever key is the right one, and whether or not there is such a name.
    """
    given = hash_of(key[: KEY_CHARACTERS_MAX + 1])
    found = ""
    for one, known in (*approvers.items(), ("", _NOBODY)):
        if hmac.compare_digest(given, known) and (not name or hmac.compare_digest(name.encode(), one.encode())):
            found = one
    return found


class Guard:
    """Lets ten wrong keys pass, and one more every six seconds. While it is shut, keys that somebody thought up wait,
    right ones too: what is being guessed must not be found. Keys that meshd made are looked at all the same, or an
    agent that sends wrong ones without end could keep everybody from deciding."""

    __slots__ = ("_at_s", "_room", "refused")

    def __init__(self) -> None:
        self._room = float(WRONG_MAX)
        self._at_s = 0.0
        self.refused = 0
        """Keys that were wrong, or came while it was shut."""

    def wait_s(self, now_s: float) -> float:
        """Return for how many seconds no key is looked at; 0 where one may be."""
        self._room = min(float(WRONG_MAX), self._room + max(0.0, now_s - self._at_s) / WRONG_EVERY_S)
        self._at_s = now_s
        return 0.0 if self._room >= 1.0 else (1.0 - self._room) * WRONG_EVERY_S

    def wrong(self) -> None:
        """A key was wrong."""
        self._room -= 1.0
        self.refused += 1
