"""Models that stand in the path, as Google's APIs and Amazon Bedrock have them.

What is judged must be what is served: a model's name is taken from the path after its escapes, and only where no
server could read it in another way. Anything else is not read, so a budget refuses it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from meshd.refusal import Reason, Refused

_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,255}\Z")
COLLECTIONS: Final = frozenset({"models", "tunedModels", "endpoints"})
"""What Google's APIs call a place for models."""


class Place(NamedTuple):
    """What a path of Google's form says: `.../<collection>/<name>:<method>`."""

    before: str
    """The path up to the collection, its slash included."""
    collection: str
    name: str
    method: str
    query: str
    """With its question mark; empty where there is none."""


def placed(path: str) -> Place | None:
    """Return what a path says of a model and what is asked of it; None where it is no such path."""
    bare, mark, query = path.partition("?")
    head, _, last = bare.rpartition("/")
    name, colon, method = last.rpartition(":")
    before, slash, collection = head.rpartition("/")
    if not colon or not slash or collection not in COLLECTIONS or not method.isalpha():
        return None
    name = unescaped(name)
    return Place(f"{before}/", collection, name, method, mark + query) if name else None


def model_of(place: Place) -> str:
    """Return the name that rules match: a tuned model's with its collection."""
    return place.name if place.collection == "models" else f"{place.collection}/{place.name}"


def unescaped(segment: str) -> str:
    """Return a model's name from its segment of a path; empty where servers might read it in different ways."""
    name = unquote(segment) if "%" in segment else segment
    return name if _MODEL.match(name) else ""


def replaced(place: Place, model: str) -> str:
    """Return the path with another model. Raises Refused(NOT_ALLOWED) for a name that no path can carry."""
    collection, slash, name = model.rpartition("/")
    if not slash:
        collection = "models"
    # An endpoint of Vertex stands beside no models, and is replaced by endpoints alone.
    is_endpoint = place.collection == "endpoints"
    if collection not in COLLECTIONS or (collection == "endpoints") != is_endpoint or not _MODEL.match(name):
        raise Refused(
            Reason.NOT_ALLOWED,
            f"The model stands in the path of this call, and {model[:128]!r} cannot stand there: name it as the API "
            "does, for example gemini-2.5-flash.",
        )
    return f"{place.before}{collection}/{quote(name, safe=':@')}:{place.method}{place.query}"
