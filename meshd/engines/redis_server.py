"""The Redis behind a connection: how to reach it and sign in, and what it promises about what it has acknowledged."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.engines.port import StoreCorrupt, StoreError, StoreFull, StoreReadOnly, StoreUnable
from meshd.engines.redis_wire import ReplyError, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.url import StoreUrl

OLDEST: Final = (5, 0)
"""Oldest version that can be used: from it on what a script did is replicated, not the script."""
PORT: Final = 6379
OPTIONS: Final = ("prefix",)


class Promise(NamedTuple):
    """What a server says of itself."""

    is_durable: bool
    caution: str
    run: str
    """Names this run of the server; empty where it does not tell."""


def check(url: StoreUrl, kind: str = "store") -> None:
    """Refuse what a Redis URL of a store, or of a bus, cannot say. Raises StoreUnable."""
    url.allow(OPTIONS, kind)
    if url.scheme == "unix":
        if not url.path or url.host:
            raise StoreUnable("a Redis socket is named by its path: unix:///run/redis/redis.sock")
    elif not url.host:
        raise StoreUnable(f"the {url.scheme} URL names no host, for example {url.scheme}://127.0.0.1:{PORT}")
    if not url.options.get("prefix", "meshd"):
        raise StoreUnable("prefix= is empty: what begins the names of meshd's keys")
    database(url)


def database(url: StoreUrl) -> int:
    """Return the number of the database: the URL's path. Raises StoreUnable."""
    text = "" if url.scheme == "unix" else url.path.strip("/")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise StoreUnable("the path of a Redis URL is the number of a database, for example /0")
    return int(text)


def place(url: StoreUrl, kind: str = "store") -> str:
    """Return what messages call the store, or the bus."""
    if url.scheme == "unix":
        return f"the redis {kind} at {url.path}"
    return f"the redis {kind} at {url.host}:{url.port or PORT}"


async def connected(
    url: StoreUrl,
    where: str,
    timeout_s: float,
    lost: Callable[[Wire, StoreError], None],
    pushed: Callable[[bytes, bytes], None] | None = None,
) -> Wire:
    """Connect, sign in and choose the database. Raises StoreError, OSError."""
    loop = asyncio.get_running_loop()
    wire = Wire(where, timeout_s, lost, pushed)
    if url.scheme == "unix":
        await loop.create_unix_connection(lambda: wire, url.path)
    else:
        tls = url.tls() if url.scheme == "rediss" else None
        await loop.create_connection(lambda: wire, url.host, url.port or PORT, ssl=tls)
    try:
        if (password := url.secret()) is not None:
            await asked(wire, where, "AUTH", *([url.user] if url.user else []), password)
        await asked(wire, where, "SELECT", database(url))
    except BaseException:
        wire.abort(StoreError(f"{where} cannot be used"))
        raise
    return wire


async def asked(wire: Wire, where: str, *command: str | bytes | int) -> Any:
    """Return the reply to a command. Raises StoreError."""
    try:
        return await wire.ask(*command)
    except ReplyError as error:
        raise told(where, str(error)) from None


async def looked_at(wire: Wire, where: str, loss: str) -> Promise:
    """Look at what a server promises. Raises the kind of StoreError that says why its books cannot be kept there.

    `loss`: what an eviction would do.
    """
    info: dict[str, str] = {}
    cautions: list[str] = []
    try:
        info = _pairs(await wire.ask("INFO"))
    except ReplyError as error:
        if not str(error).startswith(("NOPERM", "ERR")):
            raise told(where, str(error)) from None
        cautions.append("the server does not let this user look (INFO), so what it promises cannot be told")
    if info:
        _refuse(info, where)
    settings = await _settings(wire)
    policy = settings.get("maxmemory-policy", info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise StoreUnable(
            f"{where} evicts keys when it is full (maxmemory-policy {policy}): {loss}. Set maxmemory-policy "
            "noeviction, or name a Redis of its own"
        )
    is_durable = settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"
    if not settings:
        cautions.append(
            "the server does not say how it keeps what it acknowledged (CONFIG GET is refused); only with appendonly "
            "yes and appendfsync always a crash loses none of it"
        )
    elif settings.get("appendonly") != "yes":
        cautions.append(
            "appendonly is off: a crash or restart loses what was written since the last snapshot, or all of it"
        )
    elif not is_durable:
        cautions.append(
            f"appendfsync is {settings.get('appendfsync')}: a crash of its host loses the last acknowledged writes"
        )
    if info.get("connected_slaves", "0") != "0":
        cautions.append("it has replicas: one that is promoted may lack the last writes that were acknowledged")
    return Promise(is_durable, "; ".join(cautions), info.get("run_id", ""))


def _refuse(info: dict[str, str], where: str) -> None:
    version = info.get("redis_version", "")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise StoreUnable(f"{where} is Redis {version or 'of no version'}; meshd needs {wanted} or newer")
    if info.get("role") == "slave":
        raise StoreReadOnly(f"{where} is a replica, which may not be written; name its master")
    if info.get("cluster_enabled") == "1":
        raise StoreUnable(
            f"{where} is a node of a Redis Cluster, which keeps no script's keys together; name a single one"
        )


async def _settings(wire: Wire) -> dict[str, str]:
    """Return the settings that matter; none where the server does not tell them, as hosted ones do not."""
    found: dict[str, str] = {}
    for name in ("append*", "maxmemory-policy"):
        try:
            reply = await wire.ask("CONFIG", "GET", name)
        except ReplyError:
            return {}
        texts = [part.decode(errors="replace") for part in reply]
        found |= dict(zip(texts[::2], texts[1::2], strict=False))
    return found


def _pairs(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in lines if separator}


_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?")
_KINDS: Final[dict[str, tuple[type[StoreError], str]]] = {
    "WRONGPASS": (StoreUnable, "refuses the user or the password"),
    "NOAUTH": (StoreUnable, "asks for a password: redis://:PASSWORD@... or password_file="),
    "NOPERM": (StoreUnable, "does not let this user do what meshd must"),
    "READONLY": (StoreReadOnly, "is a replica, which may not be written; name its master"),
    "LOADING": (StoreError, "is still loading its data"),
    "MASTERDOWN": (StoreReadOnly, "is a replica that has lost its master"),
    "MISCONF": (StoreError, "refuses writes because it cannot save to its disk"),
    "NOREPLICAS": (StoreError, "refuses writes while too few of its replicas are connected"),
    "BUSY": (StoreError, "is busy with a script of somebody else"),
    "OOM": (StoreFull, "is full"),
    "MOVED": (StoreUnable, "is a node of a Redis Cluster, which meshd cannot use"),
    "CROSSSLOT": (StoreUnable, "is a node of a Redis Cluster, which meshd cannot use"),
    "WRONGTYPE": (StoreCorrupt, "holds something else in the place of a record"),
}


def words_of(reply: ReplyError) -> str:
    """Return an error reply as the command's own words, which begin with its kind: without what scripts put around."""
    text = str(reply).removeprefix("ERR ")  # which Redis 7 puts before a script's own words
    if text.startswith("Error running script"):  # older ones put this before the words of a command in a script
        text = _IN_SCRIPT.split(text)[-1]
    return text


def told(where: str, text: str) -> StoreError:
    """Return what an error reply means, in words for an operator."""
    if text.startswith("The user executing the script"):
        text = "NOPERM"  # which Redis 7 says so where a script lacks a right
    kind, words = _KINDS.get(text.partition(" ")[0], (StoreError, f"answered: {text[:200]}"))
    return kind(f"{where} {words}")
