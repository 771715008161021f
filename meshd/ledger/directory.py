"""The state directory: one daemon at a time, and which run of the host this is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from meshd.engines.port import StoreError, StoreLocked
from meshd.ledger.journal import told

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return an id that changes whenever the host starts; "" where the system has none, which equals no other."""
    try:
        return _BOOT_ID.read_text("ascii").strip()[:36]
    except (OSError, ValueError):
        return ""


class Directory:
    """A state directory, held by this process until `close`.

    Raises StoreLocked naming the process that holds it, and StoreError where it cannot be made or written.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        lock = path / "lock"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise told(error, path) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            if isinstance(error, BlockingIOError):
                raise StoreLocked(
                    f"{path} is in use by another meshd (process {pid or 'unknown'}); "
                    "stop it, or give this one another state directory"
                ) from error
            raise StoreError(f"{lock} cannot be locked: {error.strerror}") from error
        self._say_pid(lock)

    def _say_pid(self, lock: Path) -> None:
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.close()
            raise told(error, lock) from error

    def recall(self, name: str) -> str:
        """Return what `remember` has kept under a name; "" where there is nothing. Raises StoreError."""
        file = self.path / name
        try:
            return file.read_text("ascii").strip()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise StoreError(f"{file} cannot be read: {error}") from error

    def remember(self, name: str, value: str) -> None:
        """Keep one short text; on return it survives a crash of the host. Raises StoreError. Blocks."""
        file, new = self.path / name, self.path / f"{name}.new"
        try:
            with new.open("w", encoding="ascii") as stream:
                stream.write(value + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            new.rename(file)
            self.sync()
        except OSError as error:
            raise told(error, file) from error

    def sync(self) -> None:
        """Make the files' names survive a crash of the host. Blocks."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let another process have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
