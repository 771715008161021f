"""From the bytes of documents to a `Policy`, or to every problem at once.

    files -> reading (tree with places) -> one merged tree -> model (types) -> upstreams -> checking -> building

Each step reports what it finds and hands on what it understood, so that one run names the mistakes of all of them; a
rule with a mistake in it is left out of the steps that follow.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from meshd.policy import building
from meshd.policy.checking import UNENFORCED, Checker
from meshd.policy.model import Document
from meshd.policy.packaged import packaged
from meshd.policy.problem import LoadError, Problem, shown
from meshd.policy.reading import DOCUMENT_BYTES_MAX, Mapping, Node, Scalar, Sequence, plain, read_tree
from meshd.policy.report import Report, check_keys

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from meshd.policy.compiled import Policy

__all__ = ["DocumentFile", "LoadError", "Overrides", "Problem", "load", "parse", "policy_files"]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line or the environment says over the document."""

    upstreams: tuple[str, ...] = ()
    """`NAME=URL[,dialect=D][,kind=K]` each; adds an upstream, or changes the address of one."""
    agent: str = ""
    """Name of the agent beside this sidecar; empty for the document's."""
    hops: int | None = None
    """Hop limit where the document sets none; None for the default."""


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """One document, read."""

    path: str
    data: bytes


_NO_OVERRIDES = Overrides()


def load(
    paths: Iterable[str | PathLike[str]] = (),
    *,
    accept_unenforced: bool = False,
    overrides: Overrides = _NO_OVERRIDES,
) -> Policy:
    """Load documents; a directory stands for its `*.yaml` and `*.yml` files, sorted; none for the packaged quickstart.

    Upstreams of several files are united and rules appended in the files' order. Raises LoadError with every problem.
    """
    try:
        given = [Path(path) for path in paths] or [packaged()]
    except FileNotFoundError as error:
        raise LoadError([Problem("packaged", 1, 1, str(error))]) from None
    problems: list[Problem] = []
    files = _read(policy_files(given, problems), problems)
    if problems:
        raise LoadError([*problems, *(problem for file in files for problem in read_tree(file.data, file.path)[1])])
    return parse(files, accept_unenforced=accept_unenforced, overrides=overrides)


def policy_files(paths: Iterable[Path], problems: list[Problem]) -> list[Path]:
    """Return the files that paths stand for, in order. Reports a directory without any."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            # Hidden names are how Kubernetes and editors keep what is not (yet) the document.
            found = sorted(
                f for f in path.iterdir() if f.suffix in (".yaml", ".yml") and f.name[:1] != "." and f.is_file()
            )
        except OSError as error:
            problems.append(Problem(str(path), 1, 1, f"cannot be read: {error.strerror or error}"))
            continue
        if not found:
            problems.append(Problem(str(path), 1, 1, "this directory has no *.yaml file"))
        files += found
    return files


def _read(paths: Iterable[Path], problems: list[Problem]) -> list[DocumentFile]:
    files = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                # One byte over the limit is enough to know; a device or a pipe without an end is not waited for.
                files.append(DocumentFile(str(path), stream.read(DOCUMENT_BYTES_MAX + 1)))
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(Problem(str(path), 1, 1, f"cannot be read: {words}"))
    return files


def parse(
    files: list[DocumentFile], *, accept_unenforced: bool = False, overrides: Overrides = _NO_OVERRIDES
) -> Policy:
    """Make a policy of documents that were read. Pure but for looking whether the files that it names exist.

    Raises LoadError with every problem, in the order of the text.
    """
    problems: list[Problem] = []
    root = _merged(files, problems)
    if root is None:
        raise LoadError(problems)
    report = Report(root)
    check_keys(report)
    _check_unenforced(report, accept_unenforced)
    data = _plain_without_nulls(root)
    if overrides.hops is not None and isinstance(limits := data.setdefault("limits", {}), dict):
        limits.setdefault("hops", overrides.hops)
    document, broken = _validated(data, report)
    upstreams = building.upstreams(document, overrides, report)
    agent = overrides.agent or document.agent
    building.check_names(document, overrides, report)
    if upstreams is not None and "upstreams" not in broken:
        Checker(document, upstreams, report, broken={i for i in broken if isinstance(i, int)}).check()
    problems += report.problems
    if problems:
        raise LoadError(problems)
    digest = hashlib.sha256()
    for file in files:
        digest.update(len(file.data).to_bytes(8, "big") + file.data)
    return building.policy(
        document,
        upstreams or {},
        agent=agent,
        digest=digest.hexdigest(),
        source=", ".join(file.path for file in files),
        report=report,
    )


def _merged(files: list[DocumentFile], problems: list[Problem]) -> Mapping | None:
    """Unite the files' trees. None where one of them could not be read: nothing sure can be said of the rest then."""
    root: Mapping | None = None
    is_whole = True
    for file in files:
        tree, found = read_tree(file.data, file.path)
        problems += found
        is_whole = is_whole and not (found and not tree.entries)
        if root is None:
            root = tree
        else:
            _merge(root, tree, problems, depth=0)
    return root if is_whole else None


_UNITED = ("governance", "limits", "upstreams", "prices", "errors")


def _merge(into: Mapping, tree: Mapping, problems: list[Problem], *, depth: int) -> None:
    """Add what a further file says. A key that two files set is a problem of the second, naming the first."""
    for name, (key, value) in tree.entries.items():
        if name not in into.entries:
            into.entries[name] = (key, value)
            continue
        first_key, first = into.entries[name]
        if depth == 0 and name in _UNITED and isinstance(first, Mapping) and isinstance(value, Mapping):
            _merge(first, value, problems, depth=1)
        elif depth == 0 and isinstance(first, Sequence) and isinstance(value, Sequence):
            first.items.extend(value.items)
        else:
            problems.append(Problem(*key.place, f"the key {shown(name)} is set already at {first_key.place}"))


def _check_unenforced(report: Report, accept_unenforced: bool) -> None:
    for location in _unenforced(report.root):
        words = f"{'.'.join(str(part) for part in location if isinstance(part, str))} is not enforced by this build"
        if accept_unenforced:
            report.warn(location, f"{words}: accepted, and without effect", is_key=True)
        else:
            report.error(location, f"{words}: remove it, or accept that with --accept-unenforced", is_key=True)


def _unenforced(root: Mapping) -> Iterable[tuple[str | int, ...]]:
    rules = root.entries.get("rules")
    for index, rule in enumerate(rules[1].items if rules is not None and isinstance(rules[1], Sequence) else []):
        if not isinstance(rule, Mapping):
            continue
        for path in UNENFORCED:
            if _has(rule, path):
                yield ("rules", index, *path)


def _has(node: Node, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(node, Mapping) or name not in node.entries:
            return False
        node = node.entries[name][1]
    return True


def _plain_without_nulls(node: Node) -> Any:
    """As `plain`, without the keys that have no value: these are reported, and are not to be reported twice."""
    if isinstance(node, Mapping):
        return {
            name: _plain_without_nulls(value)
            for name, (_, value) in node.entries.items()
            if not (isinstance(value, Scalar) and value.value is None)
        }
    if isinstance(node, Sequence):
        return tuple(_plain_without_nulls(item) for item in node.items)
    return plain(node)


def _validated(data: dict[str, Any], report: Report) -> tuple[Document, set[str | int]]:
    """Return the document without its broken parts, and what these were: section names, and numbers of rules."""
    try:
        return Document.model_validate(data, strict=True), set()
    except ValidationError as error:
        found = error.errors(include_url=False)
    # Unknown keys were reported by `check_keys`, with a hint.
    report.take([each for each in found if each["type"] != "extra_forbidden"])
    broken: set[str | int] = set()
    for each in found:
        section, *rest = each["loc"]
        broken.add(rest[0] if section == "rules" and rest else section)
    left = {name: value for name, value in data.items() if name not in broken and name in Document.model_fields}
    if isinstance(rules := left.get("rules"), tuple):
        left["rules"] = tuple({} if index in broken else rule for index, rule in enumerate(rules))
    return Document.model_validate(left, strict=True), broken
