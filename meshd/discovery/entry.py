"""One thing that can be called, as whoever serves it describes it."""

from __future__ import annotations

from enum import Enum
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec


class Sort(str, Enum):
    """What sort of thing it is."""

    AGENT = "agent"
    TOOL = "tool"
    SKILL = "skill"
    """What an agent says that it can do (A2A)."""
    MODEL = "model"
    PROMPT = "prompt"
    RESOURCE = "resource"


class Origin(str, Enum):
    """From where it is known."""

    POLICY = "policy"
    SESSION = "session"
    """The agent said it itself, by the SDK."""
    MCP = "mcp"
    A2A = "a2a"
    REFLECTION = "reflection"
    """Of a gRPC server."""
    OPENAPI = "openapi"


_SEPARATOR: Final = b"\0"


class Entry(NamedTuple):
    """Immutable: a change is another entry in its place."""

    sort: Sort
    owner: str
    """The upstream or agent that serves it, by its name in the policy; an agent is its own owner."""
    name: str
    """As its owner calls it."""
    description: str = ""
    title: str = ""
    origin: Origin = Origin.POLICY
    version: str = ""
    """Semantic version; empty where it says none."""
    intents: tuple[str, ...] = ()
    """What it can be asked for: a few words or an example each, and tags."""
    input_schema: bytes = b""
    """JSON Schema as JSON text; empty where there is none."""
    output_schema: bytes = b""
    annotations: bytes = b""
    """What its server says of its effects, as JSON text. Not believed: shown, and pinned."""
    is_read_only: bool = False
    """By the word of an operator or of the protocol; never by that of a server about itself."""
    definition: bytes = b""
    """As its server wrote it, as JSON text with every field that we do not know; empty where there is none."""

    @property
    def key(self) -> tuple[Sort, str, str]:
        """What names it in the catalogue."""
        return self.sort, self.owner, self.name

    def digest(self) -> str:
        """Return the hash by which it is pinned, in hexadecimal: of all that a model is shown of it."""
        parts = (self.name, self.title, self.description, "\n".join(self.intents))
        told = [part.encode("utf-8", "surrogatepass") for part in parts]
        told += [_plain(one) for one in (self.input_schema, self.output_schema, self.annotations)]
        if self.sort is Sort.PROMPT:
            told.append(_plain(self.definition))  # What it takes is described to a model, too.
        # With their lengths: no text can be moved from one field to the next and leave the hash as it was.
        return sha256(_SEPARATOR.join(b"%d:%b" % (len(part), part) for part in told)).hexdigest()


def _plain(text: bytes) -> bytes:
    """Return JSON text that does not depend on how its server spaces it and orders its keys; what is none, as it is."""
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="sorted") if text else text
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
