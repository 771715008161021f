"""What a model is shown: every definition, or three tools with which it finds the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from bench.discovery.retrieval import K, indexed
from bench.discovery.rows import Row, mean
from meshd.tokens.counter import tokens_of
from meshd.tokens.vocabulary import load

if TYPE_CHECKING:
    from bench.discovery.data import Data
    from bench.discovery.rows import Model


def _tool(name: str, description: str, /, **properties: str) -> dict[str, Any]:
    fields = {key: {"type": "string", "description": said} for key, said in properties.items()}
    return {"name": name, "description": description, "inputSchema": {"type": "object", "properties": fields}}


THREE: Final = (
    _tool("find", "Find tools by what you want to do. Returns names, each with one line.", words="What you want"),
    _tool("describe", "Return the whole definition of a tool.", name="As find returned it"),
    _tool("call", "Call a tool.", name="As find returned it", arguments="As describe says"),
)
"""Like those that the gateway shows."""


def saving(data: Data, _model: Model | None) -> list[Row]:
    """Return how many tokens a task's definitions cost, one way and the other."""
    encode = load("o200k_base")
    tools, tasks = data.tools(), data.tasks()
    cost = [tokens_of(tool.definition, encode) for tool in tools]
    every = sum(cost)
    three = sum(tokens_of(json.dumps(tool), encode) for tool in THREE)
    index = indexed([(at, tool.document) for at, tool in enumerate(tools)])
    lines = [tokens_of(f"{tool.name}: {tool.document.description[:120]}", encode) for tool in tools]

    def spent(words: list[str], wanted: int) -> int:
        listed = sum(lines[found.key] for one in words for found in index.search(one, K))  # type: ignore[call-overload]
        # And every tool of the task described once, at what an average one costs.
        return three + listed + round(wanted * every / len(tools))

    used = mean(spent([step for step, _ in task.steps] or [task.question], len(task.tools)) for task in tasks)
    share = 1 - used / every
    figure = f"{share:.3f}  ({every:,} tokens of {len(tools)} definitions, {round(used):,} a task by find and describe)"
    return [Row("definition tokens saved", figure, ">= 0.85", share >= 0.85)]
