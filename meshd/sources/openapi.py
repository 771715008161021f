"""An OpenAPI document (3.0, 3.1; 2.0 likewise): each operation is a tool of its upstream.

Where it is, the policy says: a path is asked of the upstream itself, `file:` names a file, and `https://` an address.
References within the document are written out, to a depth; one that leads outside, or back to itself, is left open.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.policy.upstreams import parse_url
from meshd.sources.asking import PAGE_BYTES_MAX, TIMEOUT_S, Asking, Failed, Look, json_of, text_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.proxy.proxy import Proxy

OPERATIONS_MAX: Final = 4096
METHODS: Final = ("get", "put", "post", "delete", "patch", "head", "options")
_SAFE: Final = frozenset({"get", "head", "options"})
"""RFC 9110, section 9.2.1: by the word of the protocol they change nothing."""
_DEPTH_MAX: Final = 12
_NODES_MAX: Final = 20_000
"""Of one operation, written out."""


class OpenApi:
    """The document of one upstream."""

    origin = Origin.OPENAPI

    def __init__(self, proxy: Proxy, upstream: str, place: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._asking = Asking(proxy, upstream, timeout_s=timeout_s)
        self._place = place
        self._timeout_s = timeout_s

    async def look(self) -> Look:
        """See `Source.look`."""
        self._asking.begin()
        if self._place.startswith("/"):
            answered = await self._asking.send("GET", self._place, [(b"accept", b"application/json, */*;q=0.5")])
            if answered.status != 200:
                raise Failed(f"there is no document at {self._place}: status {answered.status}", "status")
            body = answered.body
        elif self._place.startswith("file:"):
            body = await asyncio.to_thread(_file, Path(self._place.removeprefix("file:").removeprefix("//")))
        else:
            body = await _fetched(self._place, self._timeout_s)
        # A megabyte of YAML takes a second: not on the loop.
        return await asyncio.to_thread(read_document, body, self._asking.upstream)

    async def listen(self, changed: Callable[[], None]) -> None:
        """Documents tell nobody that they changed."""

    async def close(self) -> None:
        """Nothing is open."""


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            body = file.read(PAGE_BYTES_MAX + 1)
    except OSError as error:
        raise Failed(f"the file {path} cannot be read: {error.strerror}", "unreadable") from None
    if len(body) > PAGE_BYTES_MAX:
        raise Failed(f"the file {path} has more than {PAGE_BYTES_MAX} bytes", "too_large")
    return body


async def _fetched(url: str, timeout_s: float) -> bytes:
    """Fetch a document from an address that the operator named: no redirects, no cookies, no proxy of the system's."""
    # Not at the start: most sidecars never fetch one.
    import aiohttp

    try:
        parse_url(url)
    except ValueError as error:
        raise Failed(str(error), "malformed") from None
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as client,
            client.get(url, allow_redirects=False) as reply,
        ):
            if reply.status != 200:
                raise Failed(f"{url} answers with status {reply.status}", "status")
            body = b""
            while len(body) <= PAGE_BYTES_MAX and (piece := await reply.content.read(1 << 16)):
                body += piece
    except TimeoutError:
        raise Failed(f"{url} did not answer within {timeout_s:g} s", "upstream_timeout") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Failed(f"{url}: {error}", "upstream_unreachable") from None
    if len(body) > PAGE_BYTES_MAX:
        raise Failed(f"{url} has more than {PAGE_BYTES_MAX} bytes", "too_large")
    return body


def read_document(body: bytes, owner: str) -> Look:
    """Return the operations that a document describes. Raises Failed where it is none."""
    document = _parsed(body)
    paths = document.get("paths")
    if not isinstance(paths, dict) or not (text_in(document, "openapi") or text_in(document, "swagger")):
        raise Failed("it is no OpenAPI document: it has no `openapi`, or no `paths`", "malformed")
    info = document.get("info")
    info = info if isinstance(info, dict) else {}
    version = text_in(info, "version")
    entries: list[Entry] = []
    for path, item in paths.items():
        if not isinstance(item, dict) or not isinstance(path, str):
            continue
        for method in METHODS:
            if isinstance(operation := item.get(method), dict) and len(entries) < OPERATIONS_MAX:
                shared = item.get("parameters")
                entries.append(_entry(document, owner, version, (method, path), operation, shared))
    return Look(entries, text_in(info, "description") or text_in(info, "title"), version)


def _parsed(body: bytes) -> dict[str, Any]:
    found: Any = None
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # YAML costs a megabyte, and documents in JSON do not need it.
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            found = yaml.load(body, Loader=loader)  # noqa: S506 - the safe one, in C where it is there
        except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
            raise Failed(f"it is neither JSON nor YAML: {str(error)[:120]}", "malformed") from None
    if not isinstance(found, dict):
        raise Failed("it is no object", "malformed")
    return found


def _entry(
    document: dict[str, Any], owner: str, version: str, place: tuple[str, str], operation: dict[str, Any], shared: Any
) -> Entry:
    method, path = place
    told = [text_in(operation, "summary"), text_in(operation, "description")]
    tags = operation.get("tags")
    return Entry(
        Sort.TOOL,
        owner,
        text_in(operation, "operationId") or f"{method.upper()} {path}",
        "\n\n".join(dict.fromkeys(one for one in told if one)),
        f"{method.upper()} {path}",
        Origin.OPENAPI,
        version,
        intents=tuple(one for one in tags if isinstance(one, str))[:64] if isinstance(tags, list) else (),
        input_schema=_json(_input(document, operation, shared)),
        is_read_only=method in _SAFE,
    )


def _input(document: dict[str, Any], operation: dict[str, Any], shared: Any) -> dict[str, Any]:
    """Return one schema of all that an operation takes: parameters by their names, a body as `body`."""
    writing = _Writing(document)
    properties: dict[str, Any] = {}
    required: list[str] = []
    own = operation.get("parameters")
    listed = [*(shared if isinstance(shared, list) else ()), *(own if isinstance(own, list) else ())]
    for parameter in (writing.out(one, 0) for one in listed):
        if not isinstance(parameter, dict) or not (name := text_in(parameter, "name")):
            continue
        schema = parameter.get("schema")
        schema = dict(schema) if isinstance(schema, dict) else {}
        if parameter.get("in") == "body":
            name = "body"
        if (description := text_in(parameter, "description")) and "description" not in schema:
            schema["description"] = description
        properties[name] = schema
        if parameter.get("required") is True:
            required.append(name)
    body = writing.out(operation.get("requestBody"), 0)
    if isinstance(body, dict) and isinstance(content := body.get("content"), dict):
        kinds = [one for one in (content.get("application/json"), *content.values()) if isinstance(one, dict)]
        properties["body"] = kinds[0].get("schema", {}) if kinds else {}
        if body.get("required") is True:
            required.append("body")
    found: dict[str, Any] = {"type": "object", "properties": properties}
    return found | ({"required": sorted(set(required))} if required else {})


class _Writing:
    """Writes references out."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._nodes = 0

    def out(self, node: Any, depth: int, way: tuple[str, ...] = ()) -> Any:
        """Return a node with what it refers to in its place. What leads outside, too deep or back is left open."""
        self._nodes += 1
        if depth > _DEPTH_MAX or self._nodes > _NODES_MAX:
            return {}
        if isinstance(node, list):
            return [self.out(one, depth + 1, way) for one in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            if reference in way or not reference.startswith("#/"):
                return {}
            return self.out(self._at(reference), depth + 1, (*way, reference))
        return {str(key): self.out(value, depth + 1, way) for key, value in node.items()}

    def _at(self, reference: str) -> Any:
        found: Any = self._document
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        return found


def _json(schema: dict[str, Any]) -> bytes:
    try:
        return json_of(schema)
    except (TypeError, ValueError, RecursionError):
        return b'{"type":"object"}'  # YAML has values that JSON has not.
