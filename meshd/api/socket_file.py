"""The API's unix socket: a file that its owner alone can open, put in the place of one that a killed daemon left."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

PATH_BYTES_MAX: Final = 107
"""Of a socket's path, without the byte that ends it (unix(7))."""
_PEER: Final = struct.Struct("3i")


class SocketFileError(Exception):
    """The socket cannot be had; the message says why."""


def listening(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, mode 0600; one that nobody listens on any more is replaced.

    Raises SocketFileError where the path is too long, is something else, or somebody listens there.
    """
    draft = path.with_name(f".{path.name}{secrets.token_hex(2)}")
    if len(os.fsencode(draft)) > PATH_BYTES_MAX:
        raise SocketFileError(f"{path}: a socket's path has at most {PATH_BYTES_MAX - 5} bytes")
    if os.path.lexists(path) and not path.is_socket():
        raise SocketFileError(f"{path}: is there already, and no socket")
    if is_alive(path):
        raise SocketFileError(f"{path}: another meshd listens there")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.bind(os.fspath(draft))
        draft.chmod(0o600)
        found.listen(128)
        found.setblocking(False)
        # Whole or not at all: nobody finds it with another mode, or gone for a moment.
        draft.replace(path)
    except OSError as error:
        found.close()
        draft.unlink(missing_ok=True)
        raise SocketFileError(f"{path}: {error.strerror or error}") from None
    return found


def is_alive(path: Path) -> bool:
    """Say whether somebody listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(1.0)
        try:
            one.connect(os.fspath(path))
        except (OSError, ValueError):
            return False
        return True


def mark_of(path: Path) -> tuple[int, int]:
    """Return what tells a file from another that has its name by now; zeros where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def remove(path: Path, mark: tuple[int, int]) -> None:
    """Remove a socket's file, where it is still the one of that mark."""
    if mark_of(path) == mark:
        with contextlib.suppress(OSError):
            path.unlink()


def peer_uid(transport: Any) -> int:
    """Return whose process is at the other end of a unix connection; -1 where the kernel does not say."""
    one = transport.get_extra_info("socket")
    try:
        raw = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    except (OSError, AttributeError):
        return -1
    uid: int = _PEER.unpack(raw)[1]
    return uid
