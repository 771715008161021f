"""What a supervisor is told: the story as JSON, and as one line for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from meshd.turns.supervision import Story

EXAMPLES: dict[str, dict[str, Any]] = {
    "continue": {"action": "continue", "turns": 20, "reason": "it is nearly done"},
    "redirect": {"action": "redirect", "target": "another-upstream", "reason": "that one knows"},
    "finish": {"action": "finish", "answer": "what the caller is told in place of an answer", "reason": "enough"},
    "stop": {"action": "stop", "reason": "it will never end"},
}
"""An answer of each kind, as a supervisor may send it."""


def as_dict(story: Story) -> dict[str, Any]:
    """Return the story as plain values, with the answers that it takes."""
    told = asdict(story)
    told["answers"] = [EXAMPLES[action] for action in story.actions]
    return told


def encode(story: Story) -> bytes:
    """Return `{"story": {...}}` as JSON: a tool of a session agent takes it as its one argument."""
    return msgspec.json.encode({"story": as_dict(story)})


def headline(story: Story) -> str:
    """Return one line for people: who goes in circles with whom, and what was found."""
    of = f"workflow {story.workflow}" if story.workflow else f"calls of {story.source} without a workflow"
    return f"{of}: {story.source} calls {story.target} in circles ({story.detector}). {story.why}"
