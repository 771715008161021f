"""What an agent reads from its environment: variables with the prefix MESHD_ alone.

    MESHD_API      where the sidecar's API listens: `127.0.0.1:7402` (the default), or `unix:/path/of/a/socket`
    MESHD_AGENT    the agent's name, for a program that names none
    MESHD_CONTEXT  the context that the program was started in: the root of what it does
    MESHD_WITHOUT  without a sidecar: `stop` (the default) raises NoSidecar, `run` goes on ungoverned

Pure: the environment is handed in. Raises `SettingInvalid` for what means nothing, and names the variable.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd_sdk.errors import SettingInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

API_DEFAULT: Final = "127.0.0.1:7402"
TOKEN_CHARS_MAX: Final = 512
STOP, RUN = "stop", "run"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
TAKEN: Final = ("w", "app", "intent")
"""Names that the sidecar has taken for itself."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


class Settings(NamedTuple):
    """See the module."""

    api: str
    agent: str
    context: str
    without: str


class Place(NamedTuple):
    """Where the API listens: a socket's path, or a host and its port."""

    path: str
    host: str
    port: int

    @property
    def grpc_target(self) -> str:
        """The same, as gRPC spells it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place(api: str, *, source: str = "MESHD_API") -> Place:
    """Read an address; `source` is named where it means nothing."""
    if api.startswith("unix:"):
        path = api.removeprefix("unix:")
        if path.startswith("///"):
            path = path[2:]
        if path.startswith("/") and "\0" not in path:
            return Place(path, "", 0)
    elif (match := _HOST.fullmatch(api)) is not None and 0 < int(match[2]) < 65536:
        return Place("", match[1].strip("[]"), int(match[2]))
    raise SettingInvalid(f"{source} is `host:port`, as in {API_DEFAULT}, or `unix:/path`, not {api!r}")


def settings(environ: Mapping[str, str]) -> Settings:
    """Read the environment; a variable that is empty is as one that is not set."""
    found = Settings(
        environ.get("MESHD_API") or API_DEFAULT,
        environ.get("MESHD_AGENT", ""),
        environ.get("MESHD_CONTEXT", ""),
        environ.get("MESHD_WITHOUT") or STOP,
    )
    place(found.api)
    if found.agent:
        agent_name(found.agent, source="MESHD_AGENT")
    if len(found.context) > TOKEN_CHARS_MAX or not _is_visible(found.context):
        raise SettingInvalid(f"MESHD_CONTEXT is a token of at most {TOKEN_CHARS_MAX} visible ASCII characters")
    return found._replace(without=what_without(found.without, source="MESHD_WITHOUT"))


def what_without(value: str, *, source: str = "without") -> str:
    """Return `stop` or `run`."""
    if value not in (STOP, RUN):
        raise SettingInvalid(f"{source} is `{STOP}` or `{RUN}`, not {value!r}")
    return value


def agent_name(value: str, *, source: str = "name") -> str:
    """Return an agent's name: as sidecars take it, so that it is refused where it is written and not in the mesh."""
    if NAME.fullmatch(value) is None:
        raise SettingInvalid(
            f"{source} is 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit, not {value!r}"
        )
    if value in TAKEN:
        raise SettingInvalid(f"{source}: {value!r} is taken by meshd itself")
    return value


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
