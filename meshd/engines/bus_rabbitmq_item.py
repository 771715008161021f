"""Something that a sidecar has asked of the log of a bus on RabbitMQ, and who waits for what became of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from meshd.engines.bus_rabbitmq_entry import GiveBack, HandOut, Settle, encode

if TYPE_CHECKING:
    from meshd.engines.bus_rabbitmq_entry import Command
    from meshd.engines.port import StoreError


class Item:
    """A command. `due_s`: on the loop's clock, until when its answer is waited for."""

    __slots__ = ("command", "due_s", "future", "is_patient", "raw")

    def __init__(self, command: Command, due_s: float, *, is_ending: bool) -> None:
        self.command = command
        self.raw = encode(command)
        self.due_s = due_s
        self.is_patient = isinstance(command, HandOut) and not is_ending
        """Whoever waits for events waits for a connection, too, until the bus is to be closed."""
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def is_lasting(self) -> bool:
        """It is said again over a new connection, whatever whoever asked was told meanwhile."""
        return self.is_patient or isinstance(self.command, (Settle, GiveBack))

    def fail(self, error: StoreError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # of one that is said again, nobody may wait any more
