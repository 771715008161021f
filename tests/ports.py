"""Ports of loopback for servers that are started in a moment."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

FIRST: Final = 10_000
LAST: Final = 32_000
"""No connection that goes out gets one of these by itself (on Linux from 32,768 on), so that what is free now is free
once its server starts."""

_tried = itertools.count(os.getpid() * 997)
"""Workers begin far apart, and meet late."""


def free_port() -> int:
    """Return a port where nobody listens now, and that is not returned again soon."""
    for number in _tried:
        port = FIRST + number % (LAST - FIRST)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError  # The count has no end.
