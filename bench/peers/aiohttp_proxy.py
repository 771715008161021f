"""A reverse proxy as one writes it with aiohttp: a server and a ClientSession, both ways streaming, on uvloop."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.peers.contract import AbsentError, Address, Place, Running, Wire, start_listener
from bench.processes import free_port

_PROGRAM = Path(__file__).with_name("aiohttp_program.py")


class AiohttpProxy:
    """The aiohttp reverse proxy."""

    name = "aiohttp"
    wires = frozenset({Wire.HTTP, Wire.TLS})

    def version(self) -> str:
        """As it says."""
        try:
            import aiohttp
        except ImportError:
            raise AbsentError("no aiohttp") from None
        return aiohttp.__version__

    def start(self, place: Place) -> Running:
        """One process, two ports."""
        addresses = {Wire.HTTP: Address(free_port())}
        command: list[str | Path] = [
            sys.executable,
            _PROGRAM,
            str(addresses[Wire.HTTP].port),
            str(place.upstream[Wire.HTTP]),
        ]
        if place.ca:
            addresses[Wire.TLS] = Address(free_port())
            command += [str(addresses[Wire.TLS].port), str(place.upstream[Wire.TLS]), str(place.ca)]
        return start_listener(self.name, command, place, addresses)
