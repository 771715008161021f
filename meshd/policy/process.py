"""A program that the policy starts: an MCP server that speaks over its standard input and output.

Only a document names one. No call, no registration and no API does: what runs beside an agent is its operator's choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, Field

from meshd.filters.contract import SECTION
from meshd.filters.units import Duration, Size
from meshd.upstream import Process, SandboxName

if TYPE_CHECKING:
    from collections.abc import Iterator

RestartName = Literal["on-failure", "never"]
SANDBOXES: tuple[str, ...] = get_args(SandboxName)
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"
_OURS = "MESHD_"
_STEERING = ("LD_", "DYLD_")

Variable = Annotated[str, Field(pattern=VARIABLE_PATTERN)]
Text = Annotated[str, Field(max_length=32_768)]
Folder = Annotated[str, Field(min_length=2, max_length=4096, pattern=r"^/")]


class ProcessSection(BaseModel):
    """A server that meshd starts, one for each of its clients, and that speaks MCP over standard input and output."""

    model_config = SECTION

    command: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=32_768)], ...], Field(min_length=1)]
    """Program and arguments. No shell reads them."""
    cwd: Folder | None = None
    """Folder that it starts in. Unset: an empty one in its sandbox, without one meshd's own."""
    env: dict[Variable, Text] = {}
    """Environment variables, as they stand here. Besides these it has `PATH`, `HOME` and what `env_from` names."""
    env_from: tuple[Variable, ...] = ()
    """Environment variables of meshd that it is given too; one that is not set is an error at its start."""
    sandbox: SandboxName = "auto"
    """`bwrap` (bubblewrap), `runsc` (gVisor) or `none`. `auto`: bubblewrap. Where it cannot be had the server is not
    started: it never runs without because something is missing."""
    read: tuple[Folder, ...] = ()
    """Files and folders that it may read besides the system's programs."""
    write: tuple[Folder, ...] = ()
    """Files and folders that it may read and change."""
    network: bool = False
    """It may reach the network."""
    memory: Size = Field(default=2 * 2**30, ge=16 * 2**20, le=2**46)
    """Bytes of data that each of its processes may have (RLIMIT_DATA)."""
    processes: int = Field(default=256, ge=1, le=1_000_000)
    """Processes and threads at once. Needs bwrap, and a meshd that does not run as root."""
    files: int = Field(default=1024, ge=16, le=1_000_000)
    """Files that each of its processes may have open."""
    cpu: Annotated[Duration, Field(ge=1)] | None = None
    """Processor time of each of its processes. Unset: no limit."""
    children: int = Field(default=16, ge=1, le=10_000)
    """Copies at once: one for each session of a client, and one for each agent whose client has no sessions."""
    start_timeout: Annotated[Duration, Field(gt=0, le=3600)] = 30.0
    """Time until its first answer."""
    idle_timeout: Annotated[Duration, Field(gt=0, le=86_400)] = 1800.0
    """Time after which a copy ends that nobody calls or listens to."""
    restart: RestartName = "on-failure"
    """What becomes of a session whose copy has crashed. `on-failure`: the next call starts another, which is told what
    the client said at its beginning; `never`: the session is over, and its client begins another."""


def compile_process(section: ProcessSection) -> Process:
    """Make the object that starting reads."""
    return Process(
        command=section.command,
        cwd=section.cwd,
        env=tuple(sorted(section.env.items())),
        env_from=tuple(dict.fromkeys(section.env_from)),
        sandbox=section.sandbox,
        read=section.read,
        write=section.write,
        has_network=section.network,
        memory_bytes=section.memory,
        processes_max=section.processes,
        files_max=section.files,
        cpu_s=section.cpu,
        children_max=section.children,
        start_timeout_s=section.start_timeout,
        idle_timeout_s=section.idle_timeout,
        is_restarted=section.restart == "on-failure",
    )


def process_problems(section: ProcessSection) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong with a section beyond its types: (key path, message) each."""
    if "\0" in "".join((*section.command, *section.env.values(), *section.read, *section.write, section.cwd or "")):
        yield (), "no argument, path or variable holds a null byte"
    for name in (*section.env, *section.env_from):
        if name.startswith(_OURS):
            yield ("env",), f"{name} is meshd's own: what starts with {_OURS} is not handed on"
        if name.startswith(_STEERING):
            yield ("env",), f"{name} steers the loader of programs, meshd's own among them: set it within the command"
    for name in sorted(set(section.env) & set(section.env_from)):
        yield ("env_from",), f"{name} stands in env too"
    for key, paths in (("read", section.read), ("write", section.write), ("cwd", (section.cwd or "/x",))):
        for path in paths:
            if any(part in (".", "..") for part in path.split("/")):
                yield (key,), f"{path}: a path here has no dot segments"
    for key, paths in (("read", section.read), ("write", section.write)):
        for path in paths:
            if path.rstrip("/") in ("", "/proc", "/dev", "/sys") or path.startswith(("/proc/", "/dev/", "/sys/")):
                yield (key,), f"{path}: name the folders that it needs; the machine's own is not one of them"
    if section.sandbox == "none":
        for key in ("read", "write", "network", "processes"):
            if key in section.model_fields_set:
                yield (key,), f"without a sandbox nothing holds to {key}: choose a sandbox, or leave it out"
