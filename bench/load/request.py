"""What is sent: one request, or several that take turns, on its way to any load generator."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. `turns` are values that take turns in the header `turn_header`, one per call."""

    port: int
    path: str
    headers: dict[str, str]
    body: bytes
    authority: str = ""
    turn_header: str = ""
    turns: tuple[str, ...] = field(default=())

    @property
    def host(self) -> str:
        return self.authority or f"127.0.0.1:{self.port}"

    def http1(self) -> list[bytes]:
        """Return the bytes of the request on HTTP/1.1, one for each turn."""
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append(f"content-length: {len(self.body)}")
        heads = [[*lines, f"{self.turn_header}: {turn}"] for turn in self.turns] or [lines]
        return ["\r\n".join([*head, "", ""]).encode("latin-1") + self.body for head in heads]

    def save(self, file: Path) -> Path:
        """Write it for a load generator of ours that runs as a process of its own."""
        values = {name: getattr(self, name) for name in self.__slots__}
        file.write_text(json.dumps(values | {"body": self.body.decode("latin-1")}))
        return file

    @classmethod
    def read(cls, file: Path) -> Request:
        """Read what `save` wrote. Raises ValueError or TypeError on anything else."""
        values = json.loads(file.read_text())
        return cls(**values | {"body": values["body"].encode("latin-1"), "turns": tuple(values["turns"])})


@dataclass(slots=True)
class Load:
    """What a load generator saw. `count` is what is paid for: calls, or chunks of streams."""

    count: int
    errors: int
    wall_s: float
    generator: str
    latencies_s: list[float] = field(default_factory=list)

    def json(self) -> str:
        """For the output of a load generator of ours."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})
