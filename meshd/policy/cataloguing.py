"""What a document says of its upstreams for the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.discovery.labels import intents_of
from meshd.discovery.told import Told
from meshd.discovery.versions import version_of
from meshd.policy.problem import shown
from meshd.policy.upstreams import parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import Document, UpstreamSection
    from meshd.upstream import Upstream

CATALOGUE_KEYS: Final = frozenset(
    {"description", "version", "intents", "labels", "tools", "models", "openapi", "reflection", "discover"}
)
"""Keys of an upstream that the way of a call does not read."""


def told(document: Document, upstreams: Mapping[str, Upstream]) -> dict[str, Told]:
    """Return what is said of each upstream that there is, by its name."""
    sections = document.upstreams or {}
    return {
        name: Told(
            description=section.description,
            version=section.version,
            intents=tuple(dict.fromkeys((*section.intents, *intents_of(section.labels)))),
            tools=tuple(section.tools.items()),
            models=section.models,
            openapi=section.openapi or "",
            is_reflected=section.reflection,
            is_asked=section.discover,
        )
        for name, section in sections.items()
        if name in upstreams and section.model_fields_set & CATALOGUE_KEYS
    }


def catalogue_problems(section: UpstreamSection, kind: Kind | None) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with it: (key path, message) each."""
    found: list[tuple[tuple[str, ...], str]] = []
    if section.version and version_of(section.version) is None:
        found.append((("version",), f"{shown(section.version)} is no semantic version, such as 1.4.2"))
    if kind is Kind.LLM and section.tools:
        found.append((("tools",), "an LLM serves models, not tools"))
    if kind is not Kind.LLM and section.models:
        found.append((("models",), "only an LLM serves models"))
    if section.openapi is not None and not section.openapi.startswith(("/", "file:")):
        try:
            parse_url(section.openapi)
        except ValueError as error:
            found.append((("openapi",), f"expected a path, file: and a path, or an address: {error}"))
    asks = [key for key in ("openapi", "reflection") if getattr(section, key)]
    if section.discover is False and asks:
        found.append((("discover",), f"false, and {asks[0]} says where to ask"))
    if section.discover is True and not asks and section.dialect not in ("mcp", "a2a"):
        found.append((("discover",), "nothing says how to ask it: set dialect: mcp or a2a, openapi, or reflection"))
    return found
