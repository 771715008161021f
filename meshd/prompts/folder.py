"""Prompts as files, for those who keep them in git.

    summarise/1.2.0.md       a version: see `meshd.prompts.document`
    summarise/1.3.0.md
    summarise/labels.yaml    production: 1.2.0
                             staging: {1.2.0: 90, 1.3.0: 10}

A name that the folder has is the folder's alone: what a store keeps under it is not seen. A file that is wrong is left
out and reported; what was right in it before does not come back.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from meshd.prompts.document import FILE_BYTES_MAX, DocumentError, place_of, read_prompt, read_yaml
from meshd.prompts.record import LABELS_MAX, VERSIONS_MAX, Head, Prompt, Weights, checked_weights
from meshd.prompts.reference import NAME, is_exact, read_label

LABELS: Final = "labels.yaml"
SUFFIX: Final = ".md"
NAMES_MAX: Final = 10_000
PROBLEMS_MAX: Final = 100

Signature = tuple[tuple[str, int, int], ...]


class Folder:
    """What stood in a folder when it was read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.heads: dict[str, Head] = {}
        self.prompts: dict[tuple[str, str], Prompt] = {}
        """By name and version."""
        self.problems: list[str] = []
        """FILE:LINE:COLUMN: what is wrong."""
        self.signature: Signature = ()

    def problem(self, path: Path, error: Exception) -> None:
        """Note what is wrong with a file."""
        if len(self.problems) < PROBLEMS_MAX:
            at = f"{path}:{error}" if isinstance(error, DocumentError) else f"{path}:1:1: {error}"
            self.problems.append(at)


def read_folder(path: str) -> Folder:
    """Return what stands in a folder. What cannot be read is among the problems."""
    folder = Folder(path)
    folder.signature = signature_of(path)
    root = Path(path)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        folder.problems.append(f"{root}:1:1: it cannot be read: {error.strerror}")
        return folder
    for name in names[:NAMES_MAX]:
        # `.git`, `..data` and their like are no prompts.
        if name.startswith("."):
            continue
        if NAME.fullmatch(name) is None:
            folder.problem(root / name, ValueError("no name of a prompt: a-z, 0-9, '-', '_' and '.', at most 63"))
            continue
        _read_name(folder, root / name, name)
    return folder


def signature_of(path: str) -> Signature:
    """Return what changes when a file of a folder does; nothing of what is in them is read."""
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            place = Path(folder, name)
            try:
                status = place.stat()
            except OSError:
                continue
            found.append((str(place), status.st_mtime_ns, status.st_size))
    return tuple(sorted(found))


def _read_name(folder: Folder, path: Path, name: str) -> None:
    versions: dict[str, str] = {}
    try:
        files = sorted(path.iterdir())
    except OSError as error:
        folder.problem(path, ValueError(f"it cannot be read: {error.strerror}"))
        return
    for file in files:
        version = file.name.removesuffix(SUFFIX)
        if file.name == LABELS or file.name.startswith(".") or file.suffix != SUFFIX:
            continue
        try:
            if not is_exact(version):
                raise DocumentError(f"{version[:64]!r} is no version of a prompt, such as 1.2.0")
            if len(versions) >= VERSIONS_MAX:
                raise DocumentError(f"a prompt has at most {VERSIONS_MAX} versions")
            prompt = read_prompt(_bytes_of(file), name, version)
        except DocumentError as error:
            folder.problem(file, error)
            continue
        folder.prompts[name, version] = prompt
        versions[version] = prompt.digest
    labels = _read_labels(folder, path / LABELS, versions)
    folder.heads[name] = Head(name, versions, labels)


def _read_labels(folder: Folder, path: Path, versions: dict[str, str]) -> dict[str, Weights]:
    if not path.exists():
        return {}
    found: dict[str, Weights] = {}
    try:
        text = _bytes_of(path).decode("utf-8", "replace")
        said = read_yaml(text, dict[str, Any])
        if len(said) > LABELS_MAX:
            raise DocumentError(f"a prompt has at most {LABELS_MAX} labels")
        for label, weights in said.items():
            try:
                one: Weights = {weights: 1} if isinstance(weights, str) else msgspec.convert(weights, Weights)
                found[read_label(label)] = checked_weights(one, versions)
            except msgspec.ValidationError:
                words = f"{label}: it stands at a version such as 1.2.0, or at two with a share each"
                folder.problem(path, DocumentError(words, *place_of(text, label)))
            except ValueError as error:
                folder.problem(path, DocumentError(f"{label}: {error}", *place_of(text, label)))
    except DocumentError as error:
        folder.problem(path, error)
    return found


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror}") from None
