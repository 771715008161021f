"""What the agents of this folder say of themselves: one JSON object a line, on standard output."""

import asyncio
import json
import signal
import sys
from typing import Any

from meshd_sdk import Agent, MeshError


def say(agent: Agent, event: str, **fields: Any) -> None:
    """Write down what just happened."""
    print(json.dumps({"event": event, "agent": agent.name, **fields}), flush=True)


async def _serve(agent: Agent) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with agent:
        say(agent, "ready")
        await ended.wait()


def serve(agent: Agent) -> None:
    """Serve until told to end, as a program's main, and say when everything is subscribed."""
    try:
        asyncio.run(_serve(agent))
    except MeshError as error:
        sys.exit(f"{agent.name}: {error}")
