"""Hearing of changes in a bucket: an ephemeral consumer per watched space, which the server forgets with us.

Where a message is missing, everybody is told to look again: what was missed need not be fetched, since it is only news
of a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.nats_consumer import Consumer
from meshd.engines.nats_keys import decoded, encoded
from meshd.engines.watchers import MISSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.nats_consumer import Numbers
    from meshd.engines.nats_wire import Message, Wire
    from meshd.engines.watchers import Watchers


class Ear:
    """Listens in the spaces that somebody watches."""

    def __init__(self, bucket: str, watchers: Watchers, wrong: Callable[[Wire, str], None]) -> None:
        """`wrong` is called where a consumer has failed; the connection is then made anew, and this with it."""
        self._bucket = bucket
        self._watchers = watchers
        self._wrong = wrong
        self._spaces: dict[str, Consumer] = {}

    async def listen(self, wire: Wire, space: str) -> None:
        """Hear of changes in a space over a connection, from the return of this on. Raises StoreError."""
        before = self._spaces.get(space)
        if before is not None and before.wire is wire:
            await before.is_ready
            return
        consumer = self._spaces[space] = self._consumer(wire, space)
        try:
            await consumer.start("the nats store")
        except BaseException:
            consumer.stop()
            if self._spaces.get(space) is consumer:
                del self._spaces[space]
            raise
        finally:
            if before is not None:
                before.stop()

    def leave(self, space: str) -> None:
        """Listen in a space no longer."""
        if (consumer := self._spaces.pop(space, None)) is not None:
            consumer.stop()

    def close(self) -> None:
        for space in list(self._spaces):
            self.leave(space)

    def _consumer(self, wire: Wire, space: str) -> Consumer:
        prefix = f"$KV.{self._bucket}.{encoded(space)}."

        def heard(message: Message, found: Numbers | None) -> None:
            key = decoded(message.subject.removeprefix(prefix))
            self._watchers.tell(space, (MISSED if found is None or key is None else key,))

        config = {"deliver_policy": "new", "headers_only": True, "filter_subject": f"{prefix}>"}
        return Consumer(wire, f"KV_{self._bucket}", config, heard, self._wrong)
