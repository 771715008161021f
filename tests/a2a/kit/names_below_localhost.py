"""A pytest plugin for the official test kit's process: names below `localhost` are loopback, as RFC 6761 (6.3) has it.

Most systems resolve them so; the C library alone does not, and the kit asks it.
"""

import socket
from typing import Any

_ask: Any = socket.getaddrinfo


def _asked(host: Any, *more: Any, **named: Any) -> Any:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    return _ask("127.0.0.1" if isinstance(name, str) and name.endswith(".localhost") else host, *more, **named)


socket.getaddrinfo = _asked
