"""Which version a reference means. Pure: what is there is handed in, and nothing is drawn."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from meshd.discovery.versions import version_of
from meshd.prompts.template import listed

if TYPE_CHECKING:
    from meshd.prompts.record import Head, Weights
    from meshd.prompts.reference import Selector


class Unresolved(Exception):
    """There is no such prompt, or none that may be used; the message is for whoever called."""

    def __init__(self, message: str, *, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone
        """It was there, and the workflow keeps to it."""


def choose(head: Head, selector: Selector, workflow: str) -> str:
    """Return the version that a selector means for a workflow. Raises Unresolved.

    Of a range the newest that lies in it; of a label where it stands, and of two versions always the same one for the
    same workflow.
    """
    if selector.label:
        weights = head.labels.get(selector.label)
        if not weights:
            labels = listed(sorted(head.labels))
            raise Unresolved(
                f"The prompt {head.name} has no label {selector.label}; it has: {labels}. `meshd prompts promote` sets "
                "one."
            )
        return next(iter(weights)) if len(weights) == 1 else canary(weights, head.name, selector.label, workflow)
    assert selector.range is not None
    fit = [
        version for version in map(version_of, head.versions) if version is not None and selector.range.admits(version)
    ]
    if not fit:
        there = listed([str(version) for version in ordered(list(head.versions))])
        raise Unresolved(f"The prompt {head.name} has no version that fits {selector.text[:64]}; it has: {there}.")
    return str(max(fit, key=lambda version: version.rank))


def canary(weights: Weights, name: str, label: str, workflow: str) -> str:
    """Return the version of those weighed that a workflow gets, which is the same at every sidecar.

    The newer one comes first on the scale: when it is given more, no workflow that has it loses it.
    """
    drawn = sha256(f"{name}\0{label}\0{workflow}".encode("utf-8", "replace")).digest()
    point = int.from_bytes(drawn[:8], "big") % sum(weights.values())
    for version in ordered(list(weights)):
        point -= weights[version]
        if point < 0:
            return version
    raise AssertionError("the point lies on the scale")


def ordered(versions: list[str]) -> list[str]:
    """Return versions, the newest first."""

    def rank(version: str) -> tuple[object, ...]:
        found = version_of(version)
        return found.rank if found is not None else ()

    return sorted(versions, key=rank, reverse=True)
