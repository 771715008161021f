"""Reload: notice that documents changed, and swap them whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.policy.document import LoadError, Overrides, load, policy_files
from meshd.policy.packaged import packaged

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from meshd.policy.compiled import Policy
    from meshd.policy.problem import Problem

Signature = tuple[tuple[object, ...], ...]


class Watch:
    """Says whether documents changed since it last was asked. It looks only when asked, by stat; it reads nothing.

    Make it before the first load, and load after each `changed`: what is written between the two then shows at the
    next question. A Kubernetes ConfigMap is a directory in which `..data` is swapped, and every file is a link
    through it: so the resolved path, device and inode of each file count, besides its times and size.
    """

    __slots__ = ("_paths", "_seen")

    def __init__(self, paths: Iterable[str | PathLike[str]] = ()) -> None:
        self._paths = [Path(path) for path in paths] or [packaged()]
        self._seen = self._look()

    def changed(self) -> bool:
        """Return whether a document was written, replaced, added or removed since the last question. Never raises."""
        now = self._look()
        is_changed = now != self._seen
        self._seen = now
        return is_changed

    def _look(self) -> Signature:
        ignored: list[Problem] = []
        return tuple(_signature(path) for path in policy_files(self._paths, ignored))


def _signature(path: Path) -> tuple[object, ...]:
    try:
        stat = path.stat()
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        return (str(path), type(error).__name__)
    return (str(path), real, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


_EMPTIED = "the document is empty now, as a file is that is just being written; write {} to lift every rule"


def _is_blank(path: Path) -> bool:
    try:
        lines = path.read_bytes().splitlines()
    except (OSError, ValueError):
        return False
    return all(not line.strip() or line.lstrip().startswith(b"#") for line in lines)


class Reloader:
    """Holds the document in force. A new one takes its place only if it loads without a problem."""

    __slots__ = ("_accept_unenforced", "_blank", "_overrides", "_paths", "error", "failures", "policy", "reloads")

    def __init__(
        self,
        policy: Policy,
        paths: Iterable[str | PathLike[str]] = (),
        *,
        accept_unenforced: bool = False,
        overrides: Overrides | None = None,
    ) -> None:
        """`policy` is what was loaded from the same paths at start."""
        self.policy = policy
        self.error = ""
        """Every problem of the last reload, a line each; empty where it succeeded."""
        self.reloads = 0
        """Reloads that put a new document in force."""
        self.failures = 0
        """Reloads that kept the old one."""
        self._paths = tuple(paths)
        self._accept_unenforced = accept_unenforced
        self._overrides = overrides or Overrides()
        self._blank = self._look_for_blank()

    def reload(self) -> Policy | None:
        """Load again. Returns the new policy, or None where there was a problem and the old one stays. Never raises.

        Hit counters of rules that keep their name go on from where they were.
        """
        blank = self._look_for_blank()
        if emptied := blank - self._blank:
            self._failed("".join(f"{path}:1:1: {_EMPTIED}\n" for path in sorted(emptied)).rstrip())
            return None
        try:
            policy = load(self._paths, accept_unenforced=self._accept_unenforced, overrides=self._overrides)
        except LoadError as error:
            self._failed(str(error))
            return None
        except Exception as error:  # noqa: BLE001 - whatever a document does, the one in force stays
            self._failed(f"{type(error).__name__}: {error}")
            return None
        counts = self.policy.hits()
        for rule in policy.rules:
            rule.hits.count = counts.get(rule.name, 0)
        self.policy = policy
        self._blank = blank
        self.error = ""
        self.reloads += 1
        return policy

    def _look_for_blank(self) -> frozenset[str]:
        """Return the documents that say nothing at all."""
        found = policy_files([Path(path) for path in self._paths] or [packaged()], [])
        return frozenset(str(path) for path in found if _is_blank(path))

    def _failed(self, error: str) -> None:
        self.error = error
        self.failures += 1
