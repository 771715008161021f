"""`daemon.json`: what a running daemon says of itself to those on the same machine who look for it.

The daemon writes it into its state directory once it listens, and removes it at its end; a reader trusts it only
while the address in it accepts connections, since a killed daemon leaves it behind. Standard library only.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "daemon.json"
_FILE_BYTES_MAX = 1 << 20
_CONNECT_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Door:
    """One upstream, as far as those need to know who point a program at it."""

    name: str
    kind: str
    """llm, tool, agent or host."""
    dialect: str
    base_path: str = ""
    """What meshd puts before a call's path: `/v1` where the document's URL ends so."""
    is_keyed: bool = False
    """meshd attaches the provider's key, so the program needs none."""


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon: where it listens (HOST:PORT) and what it serves."""

    pid: int
    """1 in a container, where meshd is the first process."""
    listen: str
    started_s: float = 0.0
    """Unix seconds."""
    admin: str = ""
    metrics: str = ""
    api: str = ""
    """HOST:PORT of the protobuf API; empty where there is none."""
    api_socket: str = ""
    """Path of its unix socket; empty likewise."""
    agent: str = "agent"
    mesh_key: str = ""
    """Path of the file that its keys are in; empty for the state directory's own."""
    doors: tuple[Door, ...] = ()


def write(home: Path, running: Running) -> None:
    """Put the file in its place, whole or not at all, readable by the owner alone. Raises OSError."""
    draft = home / f".{FILE_NAME}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(running), file, indent=1)
        draft.replace(home / FILE_NAME)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove(home: Path, pid: int) -> None:
    """Remove the file where it is still that of the daemon `pid`: another may have taken the directory over."""
    found = read(home)
    if found is not None and found.pid == pid:
        (home / FILE_NAME).unlink(missing_ok=True)


def read(home: Path) -> Running | None:
    """Return what the file says; None where there is none, or it is not one of ours."""
    try:
        with (home / FILE_NAME).open("rb") as file:
            raw = json.loads(file.read(_FILE_BYTES_MAX))
        doors = tuple(_door(door) for door in raw.get("doors", []))
        running = Running(
            pid=raw["pid"],
            listen=raw["listen"],
            started_s=raw.get("started_s", 0.0),
            admin=raw.get("admin", ""),
            metrics=raw.get("metrics", ""),
            api=raw.get("api", ""),
            api_socket=raw.get("api_socket", ""),
            agent=raw.get("agent", "agent"),
            mesh_key=raw.get("mesh_key", ""),
            doors=doors,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    texts = (running.listen, running.admin, running.metrics, running.api, running.api_socket, running.agent)
    is_text = all(isinstance(text, str) for text in (*texts, running.mesh_key))
    is_sound = isinstance(running.pid, int) and running.pid > 0 and is_text
    return running if is_sound else None


def _door(raw: dict[str, Any]) -> Door:
    door = Door(raw["name"], raw["kind"], raw["dialect"], raw.get("base_path", ""), bool(raw.get("is_keyed", False)))
    if not all(isinstance(text, str) for text in (door.name, door.kind, door.dialect, door.base_path)):
        raise ValueError("a door's fields are texts")
    return door


def accepts(address: str, timeout_s: float = _CONNECT_TIMEOUT_S) -> bool:
    """Say whether somebody accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        return False
    try:
        with socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), timeout_s):
            return True
    except (OSError, UnicodeError):
        return False


def is_alive(pid: int) -> bool:
    """Say whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # Somebody else's.
    return True


def find(home: Path) -> Running | None:
    """Return the daemon of a state directory, where it is alive."""
    running = read(home)
    return running if running is not None and accepts(running.listen) else None
