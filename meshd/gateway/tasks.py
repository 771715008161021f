"""Which server has a task, and for whom it was made."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

TASKS_MAX: Final = 10_000
TASK_CHARACTERS_MAX: Final = 1024


class Tasks:
    """The tasks that servers have made of calls, the oldest first."""

    __slots__ = ("_servers",)

    def __init__(self) -> None:
        self._servers: OrderedDict[tuple[str, str], str] = OrderedDict()

    def note(self, agent: str, task: bytes, server: str) -> None:
        """Remember which server has a task of an agent's; `task` is its id as JSON. Of two servers that name the same
        the first has it."""
        try:
            id = msgspec.json.decode(task, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if len(id) > TASK_CHARACTERS_MAX or (agent, id) in self._servers:
            return
        while len(self._servers) >= TASKS_MAX:
            self._servers.popitem(last=False)
        self._servers[agent, id] = server

    def server_of(self, agent: str, id: str) -> str | None:
        """Return which server has a task; None where none was made for this agent."""
        return self._servers.get((agent, id))
