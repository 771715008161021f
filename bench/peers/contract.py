"""What a peer is: a proxy that can be started in front of the upstream stand-in."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bench import proc
from bench.processes import Child, end_process, is_listening, start, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Wire(StrEnum):
    """Which way through a proxy a row takes."""

    HTTP = "http"
    """HTTP/1.1 in, HTTP/1.1 to the upstream."""
    TLS = "tls"
    """HTTP/1.1 in, HTTP/1.1 over verified TLS to the upstream."""
    H2 = "h2"
    """HTTP/2 in, HTTP/2 to the upstream, both without TLS."""


ALL_WIRES = frozenset(Wire)


class AbsentError(Exception):
    """The peer is not on this machine; the message says what is missing. An absent peer is never beaten."""


class Address(NamedTuple):
    """Where a call to the upstream enters a proxy."""

    port: int
    prefix: str = ""
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where proxies are started: a folder of their own, the upstream's ports, and the core they are pinned to."""

    folder: Path
    upstream: Mapping[Wire, int]
    ca: Path | None
    core: int


@dataclass(slots=True)
class Running:
    """A started peer."""

    name: str
    child: Child
    addresses: dict[Wire, Address]
    ready_s: float
    """Seconds from its start to the moment that it was ready."""
    headers: dict[str, str] = field(default_factory=dict)
    """Header fields that each call through it carries, beside those of the row."""
    metrics_port: int = 0
    """Where it tells what it counted; 0 where that is of no use here."""
    key_file: Path | None = None
    """The key that signs contexts, meshd only."""

    def pids(self) -> list[int]:
        """Its processes that are alive."""
        return proc.tree(self.child.pid)

    def end(self) -> None:
        """End it and wait."""
        end_process(self.child.process)


class Peer(Protocol):
    """A proxy, by its name."""

    name: str
    wires: frozenset[Wire]

    def version(self) -> str:
        """Return its version. Raises AbsentError."""
        ...

    def start(self, place: Place) -> Running:
        """Start it and wait until it is ready. Raises AbsentError or NotReadyError."""
        ...


def first_line(command: Sequence[str]) -> str:
    """Return the first line that a command prints. Raises AbsentError where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{command[0]} does not run: {error}") from None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def start_listener(
    name: str,
    command: Sequence[str | Path],
    place: Place,
    addresses: dict[Wire, Address],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 20.0,
) -> Running:
    """Start a proxy and wait until all its ports accept connections."""
    child = start(command, core=place.core, log=place.folder / f"{name}.log", env=env)
    ports = {address.port for address in addresses.values()}
    ready_s = wait_until(lambda: all(map(is_listening, ports)), child, what=name, timeout_s=timeout_s)
    return Running(name, child, addresses, ready_s)
