"""What is wrong with the section of an MCP server that the policy starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.policy.process import process_problems

if TYPE_CHECKING:
    from meshd.policy.model import UpstreamSection

_MEANT = frozenset(
    {
        "process", "kind", "dialect", "pool", "timeouts", "prefix",
        "description", "version", "intents", "labels", "discover",
    }
)  # fmt: skip


def started_problems(section: UpstreamSection) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with a section that has `process`: (key path, message) each."""
    found: list[tuple[tuple[str, ...], str]] = []
    assert section.process is not None
    if section.url is not None:
        found.append((("process",), "a server is either started here or called at a url"))
    if section.dialect != "mcp":
        found.append((("process",), "a program that is started speaks dialect: mcp"))
    if section.kind not in (None, "tool", "agent"):
        found.append((("kind",), f"only a tool or an agent speaks mcp; this is of kind {section.kind}"))
    if section.timeouts.first_token is not None:
        found.append((("timeouts", "first_token"), "only an LLM sends tokens; this is a server of tools"))
    found += [
        ((key,), f"{key} says nothing of a server that is started here")
        for key in sorted(section.model_fields_set - _MEANT - {"url"})
    ]
    found += [(("process", *key), message) for key, message in process_problems(section.process)]
    return found
