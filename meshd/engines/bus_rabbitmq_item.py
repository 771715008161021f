"""Something that a sidecar has asked of the log of a bus on RabbitMQ, and who waits for what became of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from meshd.engines.bus_rabbitmq_entry import GiveBack, HandOut, Settle, encode
from meshd.engines.bus_shelf import Attempt
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from meshd.engines.bus_rabbitmq_entry import Command
    from meshd.engines.bus_shelf import HandedOut


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

    def answer(self, result: Any) -> None:
        if isinstance(result, StoreError):
            self.fail(result)
        elif not self.future.done():
            self.future.set_result(result)

    def fail(self, error: StoreError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # of one that is said again, nobody may wait any more


def asked_anew(item: Item, handed: HandedOut) -> list[Item]:
    """Return what is asked in place of a HandOut that is in the log, and was read only over a later connection.

    Nobody here has what it handed out. Others may have given that back meanwhile, and handled it: what says so stands
    further on in the log. So it is given back, unless it was, and events are asked for anew.
    """
    anew = [] if item.future.done() else [item]
    if handed.deliveries and isinstance(item.command, HandOut):
        attempts: list[tuple[int, int]] = [Attempt.of(one) for one in handed.deliveries]
        anew.insert(0, Item(GiveBack(item.command.group, attempts, is_unseen=True), item.due_s, is_ending=False))
    return anew
