"""What follows the beginning of an answer that is given again, read while it is sent: no longer than a few pieces of it
are held, and its first byte waits for none of them.

What cannot be read any more is never left out: whoever sends the answer is told by an exception, and ends it broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol
from zlib import crc32

from meshd.engines.port import StoreCorrupt

if TYPE_CHECKING:
    from meshd.claims.record import Answer, ClaimRecord
    from meshd.claims.rpc import Events, Splice
    from meshd.claims.shelf import Shelf
    from meshd.claims.tape import Tape

START_BYTES: Final = 32_768
"""Of an answer, beside its status and fields: what leaves before anything more is read. As a record of NATS or
PostgreSQL it takes no longer to read than an empty one."""
PIECE_BYTES: Final = 262_144
"""Of what follows: a quarter of what NATS takes in one message by default, the narrowest of the engines."""
PIECES_READ: Final = 4
"""At once: what a replay holds for a caller that reads slowly, and one round trip for 1 MB."""
PIECES: Final = "claim-piece"


class RestBroken(Exception):
    """The rest of an answer is not there any more, or not as it was."""


class Rest(Protocol):
    """What follows. It ends with an empty piece; `next` raises RestBroken or StoreError where it cannot go on."""

    async def next(self) -> bytes: ...

    def close(self) -> None: ...


class Pieces:
    """The rest of an answer in a store."""

    __slots__ = ("_answer", "_at", "_left", "_nonce", "_ready", "_shelf")

    def __init__(self, shelf: Shelf, record: ClaimRecord, answer: Answer) -> None:
        self._shelf = shelf
        self._nonce = record.nonce
        self._answer = answer
        self._at = 0
        self._left = answer.size - len(answer.body)
        self._ready: list[bytes] = []
        """Pieces that are read and not given yet, the last one first."""

    async def next(self) -> bytes:
        """See `Rest`."""
        if not self._ready:
            if self._at == self._answer.pieces:
                if self._left:
                    raise self._broken("has not the length that it had")
                return b""
            await self._read()
        return self._ready.pop()

    async def _read(self) -> None:
        sums, first = self._answer.sums, self._at
        names = [piece_name(self._nonce, number) for number in range(first, min(first + PIECES_READ, len(sums)))]
        try:
            found = await self._shelf.store.read(PIECES, names)
        except StoreCorrupt as error:
            raise self._broken(f"cannot be read: {error}") from error
        for number, name in enumerate(names, first):
            record = found.get(name)
            if record is None:
                raise self._broken(f"lacks its piece {number}")
            piece = record.value
            if len(piece) != min(PIECE_BYTES, self._left) or crc32(piece) != sums[number]:
                raise self._broken(f"is damaged in its piece {number}")
            self._left -= len(piece)
            self._ready.append(piece)
        self._ready.reverse()
        self._at += len(names)

    def _broken(self, what: str) -> RestBroken:
        self._shelf.doubt(self._nonce)
        return RestBroken(f"the kept answer {what}")

    def close(self) -> None:
        """See `Rest`."""
        self._ready.clear()


class Taped:
    """The rest of an answer that this process still has on its tape."""

    __slots__ = ("_at", "_is_open", "_tape")

    def __init__(self, tape: Tape, at: int) -> None:
        self._tape = tape
        self._at = at
        self._is_open = True
        tape.hold()

    async def next(self) -> bytes:
        """See `Rest`."""
        size = min(PIECE_BYTES, self._tape.size - self._at)
        piece = self._tape.read(self._at, size)
        if len(piece) != size:
            raise RestBroken("the file that holds the answer cannot be read")
        self._at += size
        return piece

    def close(self) -> None:
        """See `Rest`."""
        if self._is_open:
            self._is_open = False
            self._tape.let_go()


class Readdressed:
    """The rest of a JSON-RPC answer that is given under another id."""

    __slots__ = ("_how", "_is_ended", "_rest")

    def __init__(self, rest: Rest, how: Events | Splice) -> None:
        self._rest = rest
        self._how = how
        self._is_ended = False

    async def next(self) -> bytes:
        """See `Rest`."""
        while not self._is_ended:
            piece = await self._rest.next()
            self._is_ended = not piece
            found = self._how.feed(piece) if piece else self._how.end()
            if found:
                return found
        return b""

    def close(self) -> None:
        """See `Rest`."""
        self._rest.close()


def piece_name(nonce: str, number: int) -> str:
    """Return the name of a piece in the store; those of one answer stand together, in order."""
    return f"{nonce}/{number:05d}"
