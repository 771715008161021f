"""The extension by which an A2A agent and meshd tell each other of the workflow: what is written, and under which name.

After A2A 1.0, section 4.6, and 0.3: an agent's card declares an extension by its URI in `capabilities.extensions`, a
client activates it by `A2A-Extensions`, and what it says stands in metadata under that URI. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.dialects.json_pairs import member, read_object, write

if TYPE_CHECKING:
    from meshd.dialects.json_pairs import Pairs

EXTENSION: Final = "https://meshd.io/a2a/context/v1"
MESSAGES: Final = ("message", "request")
"""Of what is sent: in the protobuf of 0.3 it has the other name."""
CLAIM: Final = b'"' + EXTENSION.encode() + b'":'
"""As it stands in canonical JSON, wherever somebody has written under it."""
_METADATA: Final = "metadata"
_FIELD: Final = b"a2a-extensions"
_OLD_FIELD: Final = b"x-a2a-extensions"


def field_of(*, is_old: bool) -> bytes:
    """Return the header field, or gRPC metadata, that names the extensions of a request; 0.3 had another one."""
    return _OLD_FIELD if is_old else _FIELD


def declares(card: dict[str, Any]) -> bool:
    """Say whether an agent's card declares the extension."""
    capabilities = card.get("capabilities")
    extensions = capabilities.get("extensions") if isinstance(capabilities, dict) else None
    if not isinstance(extensions, list):
        return False
    return any(isinstance(one, dict) and one.get("uri") == EXTENSION for one in extensions)


def written(body: bytes, words: bytes | None, *, is_rpc: bool) -> bytes:
    """Return a request that sends a message, with `words` (raw JSON) under the extension in the message's metadata in
    the place of what was there; where they are None, with nothing there. `body` itself where nothing differs.

    Every other member stays as it came, byte by byte. Raises Refused(MALFORMED) on what is no such request.
    """
    outer = read_object(body, "the request body")
    params = read_object(outer["params"], "params") if is_rpc else outer
    edits: dict[str, bytes] = {}
    name = next((name for name in MESSAGES if member(params, name) is not None), "")
    if name:
        message = read_object(params[name], "the message")
        inner = _metadata(message, words)
        if inner:
            edits[name] = write(message, inner)
    edits |= _metadata(params, None)
    if not edits:
        return body
    new = write(params, edits)
    return write(outer, {"params": new}) if is_rpc else new


def _metadata(pairs: Pairs, words: bytes | None) -> dict[str, bytes]:
    """Return what is to stand in the place of an object's metadata. Some parsers take it by other cases, too: there
    nothing stands under the extension."""
    found: dict[str, bytes] = {}
    for name, raw in pairs.items():
        if name.lower() != _METADATA or bytes(raw)[:1] != b"{":
            continue  # Metadata that is no object is the agent's to judge.
        held = read_object(raw, "metadata")
        is_told = words is not None and name == _METADATA
        if held.pop(EXTENSION, None) is not None or is_told:
            found[name] = write(held, {EXTENSION: words} if words is not None and is_told else {})
    if words is not None and member(pairs, _METADATA) is None:
        found[_METADATA] = write({}, {EXTENSION: words})
    return found
