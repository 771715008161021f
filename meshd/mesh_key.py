"""The mesh key file: the secrets that sign and verify context tokens, one a line.

    k7f3a90b2 3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
    k19c04d11 ...

Each line is an id and a secret in base64; blank lines and lines that begin with # are passed over. The first key
signs, all verify. Sidecars that share a workflow share the file. To rotate: add the new key at the end everywhere,
so that all can verify it; move it to the front everywhere; remove the old one once its tokens have expired. (On one
machine, adding it in front is all.)

The file is made on first start, readable by its owner alone, and refused where others can read it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING

from meshd_sdk.context import SECRET_BYTES_MIN, Key, Keyring

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 65_536
SECRET_BYTES_MAX = 256
_ID = re.compile(r"[A-Za-z0-9._-]{1,16}\Z")


class MeshKeyError(Exception):
    """The key file cannot be used. The message names file and lines, says what to do, and holds no secret."""


class MeshKeys:
    """The keys of this mesh, as their file has them.

    `ring` is replaced whole, and `generation` raised, when a reload found other keys. Who keeps anything that the
    old ones verified compares the generation.
    """

    __slots__ = ("_content", "_seen", "generation", "is_made", "path", "ring")

    def __init__(self, path: Path, *, can_be_made: bool = True) -> None:
        """Read the file, and make it first where there is none and `can_be_made`. Raises MeshKeyError."""
        self.path = path
        self.is_made = False
        """There was no file, and it was made: no other sidecar has its key yet."""
        try:
            self._content, self._seen = _content(path)
        except FileNotFoundError:
            if not can_be_made:
                raise MeshKeyError(f"{path}: there is no mesh key file; MESHD_MESH_KEY names another") from None
            self.is_made = _create(path)
            self._content, self._seen = _content(path)
        self.ring = _parse(self._content, path)
        self.generation = 0

    def reload(self) -> bool:
        """Read the file again, and say whether the keys are others now.

        Raises MeshKeyError where it cannot be used; the keys then stay what they were.
        """
        try:
            # Before the file is judged: a bad one is complained of once, not at every poll.
            self._seen = _signature(self.path.stat())
            content, self._seen = _content(self.path)
        except OSError as error:
            raise MeshKeyError(f"{self.path}: {error.strerror}; the mesh keys read before stay in use") from error
        if content == self._content:
            return False
        self.ring = _parse(content, self.path)
        self._content = content
        self.generation += 1
        return True

    def is_changed(self) -> bool:
        """Say whether the file looks other than when it was read last: one stat, for polling."""
        try:
            return _signature(self.path.stat()) != self._seen
        except OSError:
            return True


def parse(content: bytes, source: str) -> Keyring:
    """Return the keys in the bytes of a key file. Raises MeshKeyError that names every line in error at once."""
    keys: list[Key] = []
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        words = line.decode("ascii", "replace").split()
        if not words or words[0].startswith("#"):
            continue
        problem, key = _key(words)
        if key is not None and key.id in lines:
            problem = f"the id {key.id} stands on line {lines[key.id]} already"
        if problem:
            problems.append(f"line {number}: {problem}")
        elif key is not None:
            lines[key.id] = number
            keys.append(key)
    if not keys and not problems:
        problems.append("it holds no key; remove it, and a new one is made at the next start")
    if problems:
        raise MeshKeyError(f"{source}: " + "; ".join(problems[:20]))
    return Keyring(keys)


def _key(words: list[str]) -> tuple[str, Key | None]:
    # The words themselves never go into a message: a secret may stand where the id should.
    if len(words) != 2:
        return f"expected an id and a secret in base64, not {len(words)} words", None
    if _ID.match(words[0]) is None:
        return "the id is not 1 to 16 letters, digits, dots, dashes or underscores", None
    try:
        secret = b64decode(words[1], validate=True)
    except (Base64Error, ValueError):
        return f"the secret of {words[0]} is not base64", None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        wanted = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}"
        return f"the secret of {words[0]} has {len(secret)} bytes, and needs {wanted}", None
    return "", Key(words[0], secret)


def _parse(content: bytes, path: Path) -> Keyring:
    return parse(content, str(path))


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_size


def _content(path: Path) -> tuple[bytes, tuple[int, ...]]:
    """Return the bytes of the file and its signature. Raises FileNotFoundError, and MeshKeyError for all else."""
    try:
        # Without O_NONBLOCK a named pipe in the file's place would hold the start up for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MeshKeyError(f"{path}: the mesh key file cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        _check(path, status)
        return os.read(descriptor, FILE_BYTES_MAX + 1), _signature(status)
    except OSError as error:
        raise MeshKeyError(f"{path}: the mesh key file cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise MeshKeyError(f"{path}: the mesh key file is not a regular file")
    forbidden = 0o077
    if status.st_uid == 0 and os.geteuid() != 0:
        # How a Kubernetes Secret is mounted with an fsGroup: root's, readable by the pod's own group.
        forbidden = 0o037
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise MeshKeyError(f"{path}: others can read the mesh key file (mode {mode:04o}); run: chmod 600 {path}")
    if status.st_size > FILE_BYTES_MAX:
        raise MeshKeyError(f"{path}: the mesh key file has {status.st_size} bytes, more than {FILE_BYTES_MAX}")


def _create(path: Path) -> bool:
    """Make the file with one new key. Where another process makes it at the same time, one of the two wins: return
    whether it was this one."""
    line = f"k{secrets.token_hex(4)} {b64encode(secrets.token_bytes(SECRET_BYTES_MIN)).decode()}\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            # link, unlike rename, never replaces: a key that another process made and signs with stays.
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
    except OSError as error:
        raise MeshKeyError(f"{path}: the mesh key file cannot be made: {error.strerror}") from error
    return True
