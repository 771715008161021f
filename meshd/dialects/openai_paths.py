"""Which of OpenAI's APIs a path is of, which model it names, and which calls cost nothing.

Paths as OpenAI's API reference and its official SDK have them, behind any prefix. Azure's and the old `engines` paths
name the model themselves; what they name is what is served, whatever the body says.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

OPERATIONS: Final[dict[str, str]] = {
    "chat/completions": "chat",
    "completions": "text_completion",
    "responses": "responses",
    "responses/compact": "compaction",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "moderations": "moderation",
    "images/generations": "image_generation",
    "images/edits": "image_edit",
    "images/variations": "image_variation",
    "audio/speech": "speech",
    "audio/transcriptions": "transcription",
    "audio/translations": "translation",
}
"""What is read, by the last segments of the path of a POST."""

_PARENTS: Final = frozenset(path.partition("/")[0] for path in OPERATIONS if "/" in path)

_READABLE: Final = frozenset(
    {
        "assistants", "batches", "chat", "containers", "conversations", "evals", "files", "fine_tuning", "models",
        "responses", "skills", "threads", "uploads", "vector_stores", "videos",
    }
)  # fmt: skip
"""Resources of which to read, and (but for a model) to delete, runs no model."""
_POSTS: Final = frozenset(
    {
        ("responses", "input_tokens"),
        ("responses", "*", "cancel"),
        ("batches", "*", "cancel"),
        ("fine_tuning", "jobs", "*", "cancel"),
        ("fine_tuning", "jobs", "*", "pause"),
        ("threads", "*", "runs", "*", "cancel"),
        ("evals", "*", "runs", "*", "cancel"),
        ("chat", "completions", "*"),
        ("conversations",),
        ("conversations", "*"),
        ("conversations", "*", "items"),
        ("files",),
        ("uploads",),
        ("uploads", "*", "parts"),
        ("uploads", "*", "complete"),
        ("uploads", "*", "cancel"),
    }
)
"""What may be posted without a model that runs: it counts, ends, names or stores. `*` is an id."""

_SLASHES: Final = re.compile("/{2,}")
# A server may turn such a path into another one: what was recognised would not be what is served.
_ODD: Final = re.compile(r"/\.{1,2}(?:/|\Z)|[%\\;]")
_ODD_TO_READ: Final = re.compile(r"/\.{1,2}(?:/|\Z)|%2[eEfF]|%5[cC]|[\\;]")
_MODEL: Final = re.compile(r"/(?:deployments|engines)/", re.IGNORECASE)
_NAMED: Final = re.compile(
    r".*/(?:deployments|engines)/([A-Za-z0-9][A-Za-z0-9._:-]{0,127})/((?:[a-z]+/)?[a-z]+)\Z", re.IGNORECASE
)
_PREFIX: Final = re.compile(r"v[0-9]+[a-z0-9]*\Z|openai\Z|api\Z")
_ID: Final = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,255}\Z")


class Route(NamedTuple):
    """What a POST to a path asks for."""

    operation: str | None
    model: str
    """As the path names it; empty where the body does."""


_NOWHERE: Final = Route(None, "")
_known: Final[dict[str, Route]] = {}
_KNOWN_MAX: Final = 256
_KNOWN_CHARACTERS_MAX: Final = 256


def route_of(path: str) -> Route:
    """Return the operation of a POST to `path` (with its query), and the model that the path names."""
    known = _known.get(path)
    if known is None:
        known = _find(path)
        if len(path) <= _KNOWN_CHARACTERS_MAX:
            if len(_known) >= _KNOWN_MAX:
                _known.clear()
            _known[path] = known
    return known


def _find(path: str) -> Route:
    bare = _bare(path)
    if _MODEL.search(bare) is not None:
        named = _NAMED.match(bare)
        if named is None or _ODD.search(bare) is not None or len(_MODEL.findall(bare)) > 1:
            return _NOWHERE
        operation = OPERATIONS.get(named[2])
        return Route(operation, named[1]) if operation is not None else _NOWHERE
    if _ODD.search(bare) is not None:
        return _NOWHERE
    head, _, last = bare.rpartition("/")
    before = head.rpartition("/")[2]
    operation = OPERATIONS.get(f"{before}/{last}")
    # A server that is lax about case would take the one for the other.
    if operation is None and before.lower() not in _PARENTS:
        operation = OPERATIONS.get(last)
    return Route(operation, "") if operation is not None else _NOWHERE


def _bare(path: str) -> str:
    return _SLASHES.sub("/", path.partition("?")[0]).removesuffix("/")


def with_model(path: str, model: str) -> str:
    """Return a path that names its model with another one in its place; `path` itself where it names none."""
    bare, mark, query = path.partition("?")
    named = _NAMED.match(bare.removesuffix("/"))
    if named is None:
        return path
    return f"{bare[: named.start(1)]}{model}{bare[named.end(1) :]}{mark}{query}"


def is_free(method: str, path: str) -> bool:
    """Say whether a call that is not read runs no model."""
    if method not in ("GET", "HEAD", "DELETE", "POST"):
        return False
    bare = _bare(path)
    if (_ODD if method == "POST" else _ODD_TO_READ).search(bare) is not None or _MODEL.search(bare) is not None:
        return False
    segments = bare.removeprefix("/").split("/")
    at = next((index for index, segment in enumerate(segments) if segment in _READABLE), -1)
    # In the middle of a path it may belong to a resource of which nothing is known.
    if at == -1 or (at > 0 and segments[at] != "models" and _PREFIX.match(segments[at - 1]) is None):
        return False
    rest = segments[at:]
    if method == "POST":
        return any(len(form) == len(rest) and all(map(_fits, form, rest)) for form in _POSTS)
    if rest[0] == "chat" and rest[1:2] != ["completions"]:
        return False
    return rest[0] != "models" if method == "DELETE" else "search" not in rest


def response_of(path: str) -> str:
    """Return the id of the response that a path is of; empty where it is of none."""
    before, _, last = _bare(path).rpartition("/")
    return last if before.rpartition("/")[2] == "responses" and _ID.match(last) else ""


def _fits(form: str, segment: str) -> bool:
    return _ID.match(segment) is not None if form == "*" else form == segment
