"""What a server that meshd starts may see and do: how its command becomes one that is confined, or is refused.

Nothing here is a default that gives way. Where a sandbox cannot be had the server is not started, and the message says
what to install; only a policy that says `sandbox: none` has it run without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.upstream import Process

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
"""Where a system's programs stand. `/usr/local` is part of it; `/opt`, `/home` and the rest are not."""
SETTINGS: Final = (
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/ssl",
    "/etc/pki", "/etc/ca-certificates", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/mime.types",
)  # fmt: skip
NETWORK_SETTINGS: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/services")
TMP_BYTES_MAX: Final = 256 * 2**20
"""Of the private `/tmp`, which is memory."""
HOME: Final = "/tmp"  # noqa: S108 - the sandbox's own
PROBE_S: Final = 20.0
_DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


class Unusable(Exception):
    """A server cannot be started as the policy asks; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start."""

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str | None
    is_sandboxed: bool
    """The guard's child is the sandbox, and not the server."""
    limits: dict[str, int]

    def command(self, parent: int) -> list[str]:
        """Return what meshd runs: `launch`, and through it all the rest."""
        asked = {"argv": self.argv, "limits": self.limits, "parent": parent}
        return [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), json.dumps(asked)]


def prepare(process: Process, hidden: tuple[str, ...] = ()) -> Launch:
    """Say how to start a server. Takes some 20 ms the first time: it tries the sandbox. Raises Unusable.

    `hidden`: files and folders that no server may see, whatever the policy lets it read.
    """
    environ = environment(process)
    program = _program(process.command[0], environ["PATH"])
    limits = _limits(process)
    if process.sandbox == "none":
        if process.cwd is not None and not Path(process.cwd).is_dir():
            raise Unusable(f"cwd: there is no folder {process.cwd} here")
        return Launch((program, *process.command[1:]), environ, process.cwd, False, limits)
    if process.sandbox == "runsc":
        raise Unusable(
            "this build cannot start a server in gVisor's runsc. Say sandbox: bwrap (install bubblewrap), or start the "
            "server in a sandbox of your own and give its url."
        )
    bwrap = usable_bwrap(has_network=process.has_network)
    argv = [bwrap, *_confinement(process.has_network), *_folders(process, hidden)]
    cwd = process.cwd or HOME
    for what, path in (("cwd", cwd), ("command", program), ("command", os.path.realpath(program))):
        if not _is_visible(path, process):
            folder = path if what == "cwd" else _folder_of(path)
            raise Unusable(f"{what}: {path} is not to be seen in the sandbox. Add read: [{folder}] to its process.")
    argv += ["--chdir", cwd, "--"]
    if os.getuid() != 0:
        prlimit = shutil.which("prlimit", path="/usr/bin:/bin")
        if prlimit is None:
            raise Unusable("there is no prlimit to limit its processes: install util-linux")
        # Within: the user's other processes would count too.
        argv += [prlimit, f"--nproc={process.processes_max}", "--"]
    return Launch((*argv, program, *process.command[1:]), environ, None, True, limits)


def words(process: Process) -> str:
    """Say how a server is confined, for people."""
    memory = f"{process.memory_bytes // 2**20} MiB of data for each process"
    if process.sandbox == "none":
        return f"NOT SANDBOXED, as the policy says: it can read and do what meshd can ({memory})"
    network = "with the network" if process.has_network else "without a network"
    count = f"at most {process.processes_max} processes" if os.getuid() else "any number of processes (meshd is root)"
    seen = [f"reads {path}" for path in process.read] + [f"changes {path}" for path in process.write]
    name = "bubblewrap" if process.sandbox in ("auto", "bwrap") else process.sandbox
    return ", ".join([f"in {name}", network, memory, count, *seen])


def environment(process: Process) -> dict[str, str]:
    """Return the environment of a server: nothing of meshd's but what the policy names. Raises Unusable."""
    home = os.environ.get("HOME", HOME) if process.sandbox == "none" else HOME
    made = {"PATH": os.environ.get("PATH") or _DEFAULT_PATH, "HOME": home, **dict(process.env)}
    for name in process.env_from:
        if name not in os.environ:
            raise Unusable(f"env_from: the environment of meshd has no {name}")
        made[name] = os.environ[name]
    return made


def usable_bwrap(*, has_network: bool) -> str:
    """Return the path of bubblewrap, once it has shown that it can make a sandbox here. Raises Unusable."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unusable(
            "its sandbox needs bubblewrap, which is not installed. Install it (the package bubblewrap of Debian, "
            "Ubuntu, Fedora and Alpine), or say sandbox: none in the policy to run the server without one."
        )
    why = _why_not(bwrap, has_network)
    if why:
        raise Unusable(
            f"bubblewrap cannot make a sandbox here: {why}. It needs user namespaces, which the kernel "
            "(kernel.unprivileged_userns_clone, user.max_user_namespaces), AppArmor or a container's seccomp profile "
            "may forbid, and a /proc of its own. Allow them, or say sandbox: none in the policy to run the server "
            "without one."
        )
    return bwrap


@lru_cache(maxsize=8)
def _why_not(bwrap: str, has_network: bool) -> str:
    """Try to make a sandbox; return why that fails, empty where it does not."""
    true = shutil.which("true", path=_DEFAULT_PATH) or "/bin/true"
    command = [bwrap, *_confinement(has_network), *_system(has_network), "--", true]
    try:
        tried = subprocess.run(  # noqa: S603 - all of it is ours
            command, capture_output=True, timeout=PROBE_S, env={}, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return tried.stderr.decode("utf-8", "replace").strip()[:300] or "" if tried.returncode else ""


def _confinement(has_network: bool) -> list[str]:
    shared = ["--share-net"] if has_network else []
    return [
        "--unshare-all", *shared, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox",
        "--proc", "/proc", "--dev", "/dev", "--size", str(TMP_BYTES_MAX), "--tmpfs", HOME,
    ]  # fmt: skip


def _system(has_network: bool) -> list[str]:
    argv = []
    for path in SYSTEM:
        if Path(path).is_symlink():
            argv += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            argv += ["--ro-bind", path, path]
    for path in (*SETTINGS, *(NETWORK_SETTINGS if has_network else ())):
        argv += ["--ro-bind-try", path, path]
    return argv


def _folders(process: Process, hidden: tuple[str, ...]) -> list[str]:
    argv = _system(process.has_network)
    named = [(path.rstrip("/"), "--ro-bind") for path in process.read]
    named += [(path.rstrip("/"), "--bind") for path in process.write]
    # A folder comes before what lies in it, or it would cover that.
    for path, option in sorted(named):
        real = os.path.realpath(path)
        if not Path(real).exists():
            raise Unusable(f"{'read' if option == '--ro-bind' else 'write'}: there is no {path} here")
        argv += [option, real, path]
        for secret in map(os.path.realpath, hidden):
            if _is_within(real, secret):
                raise Unusable(f"{path} holds what is meshd's own ({secret}): a server may not see it")
            if _is_within(secret, real):
                inside = f"{path}/{os.path.relpath(secret, real)}"
                argv += ["--tmpfs", inside] if Path(secret).is_dir() else ["--ro-bind", os.devnull, inside]
    return argv


def _limits(process: Process) -> dict[str, int]:
    limits = {"RLIMIT_DATA": process.memory_bytes, "RLIMIT_NOFILE": process.files_max, "RLIMIT_CORE": 0}
    if process.cpu_s is not None:
        limits["RLIMIT_CPU"] = max(1, round(process.cpu_s))
    return limits


def _program(name: str, path: str) -> str:
    if "/" in name and not name.startswith("/"):
        raise Unusable(f"command: {name} is a path from nowhere. Write it from the root, or its name alone.")
    found = shutil.which(name, path=path)
    if found is None:
        raise Unusable(f"command: there is no program {name} here (PATH is {path})")
    return found


def _is_visible(path: str, process: Process) -> bool:
    named = (*process.read, *process.write)
    own = (HOME,) if path == HOME else ()
    return any(_is_within(path, root) for root in (*SYSTEM, *own, *named, *map(os.path.realpath, named)))


def _is_within(path: str, root: str) -> bool:
    root = root.rstrip("/")
    return path == root or path.startswith(root + "/")


def _folder_of(path: str) -> str:
    folder = Path(path).parent
    return str(folder.parent if folder.name == "bin" else folder)
