"""The bearer token of the admin port: a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "admin.token"
LENGTH_MIN = 32
LENGTH_MAX = 512


class TokenError(Exception):
    """The token's file cannot be used; says why and what to do."""


def obtain(state_dir: Path) -> tuple[str, Path]:
    """Return the admin token and its file's path; make both on the first start, with mode 0600.

    Raises TokenError where the file is no plain file, belongs to somebody else, can be read by others, or holds
    something that is not a token: a weak one is never used, and none is ever replaced.
    """
    path = state_dir / FILE_NAME
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = _create(path)
        return (token if token is not None else _read(path)), path
    except OSError as error:
        raise TokenError(f"{path}: {error.strerror or error}") from None


def _create(path: Path) -> str | None:
    """Return a new token, or None where the file is there. It appears whole or not at all."""
    if os.path.lexists(path):
        return None
    token = secrets.token_urlsafe(32)
    draft = path.with_name(f"{FILE_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Two daemons may start at once: link, unlike rename, does not replace what the other has made.
        os.link(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink(missing_ok=True)
    return token


def _read(path: Path) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise TokenError(f"{path}: is not a plain file")
        if found.st_uid != os.geteuid():
            raise TokenError(f"{path}: belongs to another user")
        if found.st_mode & 0o077:
            raise TokenError(f"{path}: others can read it; delete it, or chmod 600 if nobody has")
        content = file.read(LENGTH_MAX + 1)
    token = content.decode("ascii", "replace").strip()
    if not LENGTH_MIN <= len(token) <= LENGTH_MAX or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(
            f"{path}: holds no token of {LENGTH_MIN} to {LENGTH_MAX} characters; delete it to get a new one"
        )
    return token
