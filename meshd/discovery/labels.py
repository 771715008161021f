"""Labels and annotations of container deployments that say what an agent is for.

The form is `ai.<vendor>.intent: "market_analysis,technical_audit"`: of whatever vendor, a key whose last part is
`intent`. A pod is told its own by the downward API of Kubernetes, as a file of `key="value"` lines in which the values
are quoted as Go quotes them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEY_END: Final = ".intent"
INTENTS_MAX: Final = 64
INTENT_CHARACTERS_MAX: Final = 256
FILE_BYTES_MAX: Final = 1 << 20
"""More than the 256 kB that Kubernetes lets the annotations of one object have, quoted."""
_LINE: Final = re.compile(r'([A-Za-z0-9./_-]{1,317})=("(?:[^"\\]|\\.)*")\s*\Z')
_OF_GO: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|([0-7]{3})|([av]))")


def intents_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the intents that labels name, each once, in their order. Empty and endless ones are passed over."""
    found: dict[str, None] = {}
    for key, value in labels.items():
        if key.endswith(KEY_END):
            found |= dict.fromkeys(_split(value))
    return tuple(found)[:INTENTS_MAX]


def labels_in(text: str) -> dict[str, str]:
    """Return the labels of a file of the downward API. A line that is none is passed over."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = json.loads(_OF_GO.sub(_as_json, match[2]))
        except ValueError:
            continue
        found[match[1]] = value
    return found


def _split(value: str) -> Iterable[str]:
    texts = (part.strip() for part in value.split(","))
    return (text for text in texts if text and len(text) <= INTENT_CHARACTERS_MAX and text.isprintable())


def _as_json(match: re.Match[str]) -> str:
    """Write an escape of Go that JSON has not as one that it has."""
    byte, wide, octal, named = match.groups()
    if named:
        return {"a": "\\u0007", "v": "\\u000b"}[named]
    code = int(byte or wide, 16) if byte or wide else int(octal, 8)
    return json.dumps(chr(code))[1:-1] if code <= 0x10FFFF else "\\ufffd"
