"""What a NATS server says, in whatever pieces it arrives."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from meshd.engines.nats_wire import Message, Wire
from meshd.engines.port import StoreError

SAID = (
    b'INFO {"version": "2.9.10", "headers": true}\r\n'
    b"MSG a.b 1 5\r\nhello\r\n"
    b"MSG a.b 1 to.me 0\r\n\r\n"
    b"MSG a.b 1  3\r\n\r\nx\r\n"
    b"+OK\r\nPING\r\nPONG\r\n"
    b"HMSG a.b 1 to.me 18 20\r\nNATS/1.0\r\nK: v\r\n\r\nhi\r\n"
    b"HMSG a.b 1 30 30\r\nNATS/1.0 503\r\nDescription:\r\n\r\n\r\n"
    b"MSG other 2 4\r\nlost\r\n"
    b"MSG a.b 1 3\r\nend\r\n"
)
HEARD = [
    Message("a.b", "", 0, b"", b"hello"),
    Message("a.b", "to.me", 0, b"", b""),
    Message("a.b", "", 0, b"", b"\r\nx"),
    Message("a.b", "to.me", 0, b"K: v\r\n\r\n", b"hi"),
    Message("a.b", "", 503, b"Description:\r\n\r\n", b""),
    Message("a.b", "", 0, b"", b"end"),
]


class Written(asyncio.Transport):
    """What is written to a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.is_aborted = False

    def write(self, data: object) -> None:
        self.data += cast("bytes", data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


def heard_by() -> tuple[Wire, Written, list[Message], list[StoreError]]:
    lost: list[StoreError] = []
    wire, transport = Wire("here", 1.0, "inbox", lambda _, error: lost.append(error)), Written()
    wire.connection_made(transport)
    messages: list[Message] = []
    wire.subscribe("a.b", messages.append)
    return wire, transport, messages, lost


async def test_it_is_the_same_in_pieces_of_every_size() -> None:
    for size in range(1, len(SAID) + 1):
        wire, transport, messages, lost = heard_by()
        for at in range(0, len(SAID), size):
            wire.data_received(SAID[at : at + size])
        assert messages == HEARD
        assert (await wire.info).version == "2.9.10"
        await asyncio.sleep(0)
        assert transport.data == b"SUB a.b 1\r\nPONG\r\n"
        assert not lost


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 400\r\n",
        b"x" * 8,
        b"INFO {}\r\nMSG a.b 1 x\r\n",
        b"INFO {}\r\nno\r\n",
        b"INFO {}\r\nHMSG a.b 1 9 5\r\n",
        b"INFO {}\r\nMSG a.b 1 99999999999\r\n",
    ],
)
async def test_what_is_no_nats_ends_the_connection(text: bytes) -> None:
    wire, transport, messages, lost = heard_by()
    wire.data_received(text)
    assert transport.is_aborted
    assert "does not speak NATS" in str(lost[0])
    assert not messages
