"""What is read once, at start: ports, state directory, keys and switches. The policy is apart, and is swapped whole."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshd.trace.retention import KEEP_BYTES, KEEP_S

if TYPE_CHECKING:
    from collections.abc import Mapping

TRACE_MODES: Final = ("fast", "durable", "off")
ALIASES: Final = {
    "EVENT_BUS_URL": "MESHD_BUS",
    "AGENT_ROLE": "MESHD_AGENT",
    "MAX_RECURSION_DEPTH": "MESHD_HOPS",
}
"""Names that deployments of agents use for the same, read where meshd's own is not set."""
HOPS_MAX: Final = 1000
"""As `limits.hops` of a policy has it."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it and says what would be right."""


@dataclass(frozen=True, slots=True)
class Address:
    """One TCP address to listen on; `port` 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, setting: str) -> Address:
    """Read HOST:PORT, [V6]:PORT, :PORT or PORT. Raises ConfigError naming `setting`."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{setting}: {text!r} is not HOST:PORT, for example 127.0.0.1:7400")
    return Address(host, int(port))


def cannot_listen(error: OSError, settings: str) -> str:
    """Say why an address cannot be listened on, and which `settings` choose another."""
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return f"{reason}. Another meshd may run already; choose another port with {settings}."
    return f"{reason}. Choose another address or port with {settings}."


def parse_api(text: str, setting: str) -> Address | None:
    """Read HOST:PORT as above, or `off`, which is None. Raises ConfigError naming `setting`.

    `meshd exec` gives its program MESHD_API too, for the SDK, which takes a unix socket there: that is none of ours.
    """
    if text.strip().lower() in ("off", "none"):
        return None
    if text.startswith("unix:"):
        raise ConfigError(
            f"{setting}: {text!r} is for agents; meshd itself listens at HOST:PORT or not at all (off), and its unix "
            "socket is always api.sock in the state directory"
        )
    return parse_address(text, setting)


def default_home(environ: Mapping[str, str]) -> Path:
    """Return the state directory: $MESHD_HOME, else $XDG_STATE_HOME/meshd, else ~/.local/state/meshd."""
    if home := environ.get("MESHD_HOME"):
        return Path(home)
    if state := environ.get("XDG_STATE_HOME"):
        return Path(state) / "meshd"
    return Path.home() / ".local" / "state" / "meshd"


@dataclass(frozen=True, slots=True)
class Config:
    """One sidecar's settings."""

    home: Path
    policy: tuple[Path, ...] = ()
    """Documents or directories; empty for the packaged quickstart."""
    accept_unenforced: bool = False
    upstreams: tuple[str, ...] = ()
    """NAME=URL[,dialect=D] from the command line."""
    agent: str = ""
    """Name of the agent beside this sidecar; empty for the policy's."""
    hops: int | None = None
    """Agent-to-agent edges of a workflow, where the policy's `limits.hops` says none."""
    app: str = ""
    """Where inbound calls are handed to the agent; empty where it takes none."""
    listen: Address = Address("127.0.0.1", 7400)
    inbound: Address = Address("127.0.0.1", 7401)
    admin: Address = Address("127.0.0.1", 7403)
    metrics: Address = Address("127.0.0.1", 9464)
    api: Address | None = Address("127.0.0.1", 7402)
    """Where agents speak the protobuf API, beside its unix socket in `home`; None for none at all."""
    store: str = field(default="", repr=False)
    """URL of the store engine; empty for the embedded one in `home`. It may hold a password, so it is not shown."""
    bus: str = field(default="", repr=False)
    """URL of the bus engine, as that of the store."""
    labels: tuple[Path, ...] = ()
    """Files of labels or annotations of the pod, as the downward API writes them: what the agent here is for."""
    mesh_key: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    loop: str = "uvloop"
    log_format: str = "auto"
    log_level: str = "info"
    sample_ratio: float = 0.1
    trace: str = "fast"
    """Whether the trace is kept: `fast` (a killed process loses nothing of it), `durable` (nor does a crash of the
    host: each call waits for a sync), or `off`."""
    trace_keep_s: float = KEEP_S
    trace_keep_bytes: int = KEEP_BYTES
    drain_s: float | None = None
    """How long a drain may take; None for what the policy says (limits.drain)."""

    @property
    def key_file(self) -> Path:
        """The mesh key file."""
        return self.mesh_key or self.home / "mesh.key"


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"MESHD_SAMPLE_RATIO: {text!r} is not a number from 0 to 1")
    return ratio


def _seconds(text: str, setting: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 86_400.0:
        raise ConfigError(f"{setting}: {text!r} is not a number of seconds, for example 30")
    return seconds


def _kept(env: Mapping[str, str]) -> dict[str, object]:
    """Read for how long, and how much of, the trace is kept."""
    from meshd.filters.units import seconds, size_bytes

    values: dict[str, object] = {}
    for setting, name, read in (
        ("MESHD_TRACE_KEEP", "trace_keep_s", seconds),
        ("MESHD_TRACE_BYTES", "trace_keep_bytes", size_bytes),
    ):
        if text := env.get(setting):
            written = text.strip()
            try:
                # What is a number in a policy is a text here.
                values[name] = read(int(written) if written.isascii() and written.isdigit() else written)
            except ValueError as error:
                raise ConfigError(f"{setting}: {error}") from None
    return values


def _named(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with meshd's own names for what an alias says. Raises ConfigError where the two differ."""
    named = dict(env)
    for alias, own in ALIASES.items():
        text = env.get(alias, "").strip()
        if not text:
            continue
        if env.get(own, "").strip() not in ("", text):
            raise ConfigError(f"{alias} and {own} say different things: unset one, or let both say the same")
        named[own] = text
    return named


def _setting(env: Mapping[str, str], own: str) -> str:
    """Return the name under which a setting stands in the environment."""
    return next((alias for alias, name in ALIASES.items() if name == own and env.get(alias, "").strip()), own)


def _hops(text: str, setting: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > HOPS_MAX:
        raise ConfigError(f"{setting}: {text[:40]!r} is not a number of hops from 0 to {HOPS_MAX}")
    return int(text)


def _check_bus(url: str, setting: str) -> None:
    """Not with the first event: who starts a sidecar hears at once that it cannot carry any."""
    from meshd.engines.bus_table import check_bus
    from meshd.engines.port import StoreUnable

    try:
        check_bus(url)
    except StoreUnable as error:
        raise ConfigError(f"{setting}: {error}") from None


def from_environment(environ: Mapping[str, str] | None = None, **given: object) -> Config:
    """Make a Config of MESHD_* variables, and of those in ALIASES.

    What is `given` and not None comes from the command line and wins.
    `api` is given only where the command line says something: None is none. Raises ConfigError for a variable whose
    value cannot be used. Unknown MESHD_* variables are left alone: agents
    and their SDK read others from the same environment.
    """
    written = os.environ if environ is None else environ
    env = _named(written)
    values: dict[str, object] = {"home": default_home(env)}
    for name in ("listen", "inbound", "admin", "metrics"):
        if text := env.get(f"MESHD_{name.upper()}"):
            values[name] = parse_address(text, f"MESHD_{name.upper()}")
    if (text := env.get("MESHD_API")) and "api" not in given:
        values["api"] = parse_api(text, "MESHD_API")
    for name in ("agent", "app", "store", "bus", "loop"):
        if text := env.get(f"MESHD_{name.upper()}"):
            values[name] = text
    for name in ("mesh_key", "tls_cert", "tls_key"):
        if text := env.get(f"MESHD_{name.upper()}"):
            values[name] = Path(text)
    for name in ("policy", "labels"):
        if text := env.get(f"MESHD_{name.upper()}"):
            values[name] = tuple(Path(part) for part in text.split(os.pathsep) if part)
    if text := env.get("MESHD_HOPS", "").strip():
        values["hops"] = _hops(text, _setting(written, "MESHD_HOPS"))
    if text := env.get("MESHD_LOG"):
        values["log_level"] = text
    if text := env.get("MESHD_LOG_FORMAT"):
        values["log_format"] = text
    if text := env.get("MESHD_SAMPLE_RATIO"):
        values["sample_ratio"] = _ratio(text)
    if text := env.get("MESHD_TRACE"):
        values["trace"] = text.strip().lower()
    values |= _kept(env)
    if text := env.get("MESHD_DRAIN"):
        values["drain_s"] = _seconds(text, "MESHD_DRAIN")
    values.update({name: value for name, value in given.items() if value is not None or name == "api"})
    config = Config(**values)  # type: ignore[arg-type]
    if config.loop not in ("uvloop", "asyncio"):
        raise ConfigError(f"MESHD_LOOP: {config.loop!r} is neither uvloop nor asyncio")
    if config.trace not in TRACE_MODES:
        setting = "--trace" if given.get("trace") else "MESHD_TRACE"
        raise ConfigError(f"{setting}: {config.trace!r} is neither {', '.join(TRACE_MODES[:-1])} nor {TRACE_MODES[-1]}")
    if config.log_format not in ("auto", "json", "text"):
        raise ConfigError(f"MESHD_LOG_FORMAT: {config.log_format!r} is neither auto, json nor text")
    if config.bus:
        _check_bus(config.bus, "--bus" if given.get("bus") else _setting(written, "MESHD_BUS"))
    if bool(config.tls_cert) != bool(config.tls_key):
        raise ConfigError("MESHD_TLS_CERT and MESHD_TLS_KEY belong together: one is missing")
    return config
