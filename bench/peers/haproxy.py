"""haproxy, one thread, connections to the upstream reused."""

from __future__ import annotations

import re
import shutil

from bench.peers.contract import ALL_WIRES, AbsentError, Address, Place, Running, Wire, first_line, start_listener
from bench.processes import free_port

_PATHS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_CONFIG = """
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
  option http-no-delay
"""
_SERVER = """
frontend in_{wire}
  bind 127.0.0.1:{port} backlog 4096 {bind}
  default_backend out_{wire}
backend out_{wire}
  server upstream 127.0.0.1:{upstream} pool-max-conn 4096 {server}
"""


class Haproxy:
    """haproxy."""

    name = "haproxy"
    wires = ALL_WIRES

    def _binary(self) -> str:
        found = shutil.which("haproxy", path=_PATHS)
        if not found:
            raise AbsentError("no haproxy (Debian: haproxy)")
        return found

    def version(self) -> str:
        """As it says, without the distribution's part."""
        line = first_line([self._binary(), "-v"])
        found = re.search(r"version (\d+\.\d+\.\d+)", line)
        return found[1] if found else line

    def start(self, place: Place) -> Running:
        """One pair of frontend and backend for each wire."""
        addresses = {wire: Address(free_port()) for wire in Wire if wire is not Wire.TLS or place.ca}
        text = _CONFIG
        for wire, address in addresses.items():
            server = {Wire.TLS: f"ssl verify required ca-file {place.ca} verifyhost localhost", Wire.H2: "proto h2"}
            text += _SERVER.format(
                wire=wire.value,
                port=address.port,
                upstream=place.upstream[wire],
                bind="proto h2" if wire is Wire.H2 else "",
                server=server.get(wire, ""),
            )
        file = place.folder / "haproxy.cfg"
        file.write_text(text)
        return start_listener(self.name, [self._binary(), "-db", "-f", file], place, addresses)
