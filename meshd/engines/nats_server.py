"""The NATS server behind a connection: how to sign in, the bucket, and what it promises of what it has acknowledged."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from meshd.engines.nats_wire import Wire
from meshd.engines.port import StoreError, StoreFull, StoreUnable
from meshd.engines.url import read_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.nats_wire import Info, Message
    from meshd.engines.url import StoreUrl

OLDEST: Final = (2, 9)
"""Oldest version that can be used: in earlier ones a stream does not list the subjects that it holds, page by page."""
SYNCS: Final = (2, 10)
"""Oldest version that has a sync_interval, so that can sync every write before it acknowledges it."""
PORT: Final = 4222
OPTIONS: Final = ("bucket", "replicas", "synced", "creds", "nkey", "token_file")
API: Final = "$JS.API."

_BUCKET: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_SEED: Final = re.compile(rb"\bS[A-Z2-7]{50,}\b")
_JWT: Final = re.compile(r"BEGIN NATS USER JWT-+\s+([A-Za-z0-9_.=-]+)")

T = TypeVar("T")

WRONG_SEQUENCE: Final = 10071
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
NO_STORE: Final = 10049
_FULL: Final = frozenset({10002, 10023, 10047, 10077, 10122})  # the account's limits; memory or disk; the stream's own


class ApiError(msgspec.Struct):
    """What JetStream answers in place of a result."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct):
    """The answer to a message that a stream took, or did not."""

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class Stored(msgspec.Struct):
    """A message that a stream holds."""

    subject: str = ""
    seq: int = 0
    data: bytes = b""
    hdrs: bytes = b""
    time: str = ""

    @property
    def is_marker(self) -> bool:
        """Whether it stands for a record that was deleted."""
        return b"KV-Operation:" in self.hdrs

    @property
    def age_s(self) -> float:
        try:
            return time.time() - unix_s(self.time)
        except ValueError:
            return 0.0


class Got(msgspec.Struct):
    """The answer to STREAM.MSG.GET."""

    message: Stored | None = None
    error: ApiError | None = None


class Config(msgspec.Struct):
    """What makes a stream one in which nothing is lost."""

    subjects: list[str] = []
    retention: str = "limits"
    storage: str = "file"
    discard: str = "old"
    max_msgs: int = -1
    max_bytes: int = -1
    max_age: int = 0
    num_replicas: int = 1
    mirror: Any = None
    sources: Any = None
    duplicate_window: int = 0
    max_msgs_per_subject: int = -1
    deny_delete: bool = False
    deny_purge: bool = False
    allow_rollup_hdrs: bool = False


class State(msgspec.Struct):
    """What a stream holds; its subjects where they were asked for."""

    bytes: int = 0
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_subjects: int = 0
    subjects: dict[str, int] | None = None


class StreamInfo(msgspec.Struct):
    """The answer to STREAM.INFO and STREAM.CREATE."""

    config: Config = msgspec.field(default_factory=Config)
    state: State = msgspec.field(default_factory=State)
    total: int = 0
    error: ApiError | None = None


class Promise(NamedTuple):
    """What a server says of itself."""

    is_durable: bool
    caution: str


def check(url: StoreUrl) -> None:
    """Refuse what a NATS URL cannot say. Raises StoreUnable."""
    url.allow(OPTIONS)
    if not url.host:
        raise StoreUnable(f"the {url.scheme} URL names no host, for example {url.scheme}://127.0.0.1:{PORT}")
    if url.path.strip("/"):
        raise StoreUnable("a NATS URL has no path; the bucket is an option: ?bucket=meshd")
    bucket(url)
    url.is_set("synced")
    url.number("replicas", 1, least=1, most=5)


def bucket(url: StoreUrl) -> str:
    """Return the name of the bucket. Raises StoreUnable."""
    name = url.options.get("bucket", "meshd")
    if not _BUCKET.match(name):
        raise StoreUnable(f"bucket={name[:40]} is not a name of letters, digits, - and _, up to 64")
    return name


async def connected(
    url: StoreUrl, where: str, timeout_s: float, inbox: str, lost: Callable[[Wire, StoreError], None]
) -> Wire:
    """Connect and sign in. Raises StoreError, OSError."""
    wire = Wire(where, timeout_s, inbox, lost)
    tls = url.tls() if url.scheme == "tls" or "ca" in url.options or "cert" in url.options else None
    await asyncio.get_running_loop().create_connection(lambda: wire, url.host, url.port or PORT)
    try:
        info = await wire.sign_in(url.host, tls, lambda said: _credentials(url, said))
        numbers = tuple(int(part) for part in info.version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise StoreUnable(f"{where} is NATS {info.version}; meshd needs {wanted} or newer")
        if url.is_set("synced") and numbers < SYNCS:
            raise StoreUnable(f"{where} is NATS {info.version}, which has no sync_interval: synced=true cannot be so")
    except BaseException:
        wire.abort(StoreError(f"{where} cannot be used"))
        raise
    return wire


def _credentials(url: StoreUrl, info: Info) -> dict[str, Any]:
    """Return what is signed in with. Raises StoreError, naming the file that cannot be used."""
    if (name := url.options.get("creds")) is not None:
        text = read_secret(name, "creds")
        jwt = _JWT.search(text)
        if jwt is None:
            raise StoreUnable(f"creds={name} holds no user JWT")
        return {"jwt": jwt[1], "sig": _signed(text.encode(), info.nonce, f"creds={name}")[1]}
    if (name := url.options.get("nkey")) is not None:
        public, signature = _signed(read_secret(name, "nkey").encode(), info.nonce, f"nkey={name}")
        return {"nkey": public, "sig": signature}
    if "token_file" in url.options:
        return {"auth_token": url.secret("token_file")}
    password = url.secret()
    if url.user and password is None:
        return {"auth_token": url.user}  # nats://TOKEN@host, as NATS's own tools read it
    return {} if password is None else {"user": url.user or "", "pass": password}


def _signed(text: bytes, nonce: str, source: str) -> tuple[str, str]:
    """Return the public key of the seed in `text`, and its signature of the server's nonce."""
    try:
        import nkeys
    except ImportError:
        raise StoreUnable(f"{source} needs the package nkeys: pip install 'agent-meshd[nats]'") from None
    seed = _SEED.search(text)
    try:
        pair = nkeys.from_seed(bytearray(seed[0] if seed else b""))
        return pair.public_key.decode(), base64.urlsafe_b64encode(pair.sign(nonce.encode())).decode().rstrip("=")
    except Exception:  # noqa: BLE001 - the library raises whatever its own libraries do
        raise StoreUnable(f"{source} holds no seed of a NATS key") from None


async def bucket_made(wire: Wire, url: StoreUrl, where: str, timeout_s: float) -> Promise:
    """Make the bucket where there is none, and look at what it promises. Raises StoreError."""
    name = bucket(url)
    wanted = {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "storage": "file",
        "discard": "new",
        "num_replicas": url.number("replicas", 1, least=1, most=5),
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }
    config = await stream_made(wire, wanted, where, timeout_s)
    return _looked_at(config, name, where, is_synced=url.is_set("synced"))


async def stream_made(wire: Wire, wanted: dict[str, Any], where: str, timeout_s: float) -> Config:
    """Make a stream where there is none of its name; return what it is. Raises StoreError."""

    async def ask(call: str, request: object = None) -> StreamInfo:
        data = b"" if request is None else msgspec.json.encode(request)
        message = await wire.ask(f"{API}STREAM.{call}.{wanted['name']}", data, timeout_s=timeout_s)
        return decoded(message, StreamInfo, where)

    info = await ask("INFO")
    if info.error is not None and info.error.err_code == NO_STREAM:
        info = await ask("CREATE", wanted)
        if info.error is not None and info.error.err_code == NO_STORE:
            # In this very moment the server let go of the last stream that it had, and of their folder.
            info = await ask("CREATE", wanted)
        if info.error is not None:
            # Another sidecar may have made it since we looked. A server that is asked twice at once can say that the
            # subjects overlap with a stream (10065), which is the very one.
            made = await ask("INFO")
            info = made if made.error is None else info
    if info.error is not None:
        raise told(where, info.error)
    return info.config


def _looked_at(config: Config, name: str, where: str, *, is_synced: bool) -> Promise:
    if config.subjects != [f"$KV.{name}.>"] or config.mirror or config.sources or config.retention != "limits":
        raise StoreUnable(f"the stream KV_{name} of {where} is no bucket of its own; name another one: bucket=")
    if config.max_age:
        raise StoreUnable(
            f"the bucket {name} of {where} forgets records by their age: a budget that is forgotten is granted anew. "
            "Take its time to live away, or name another one: bucket="
        )
    if config.discard != "new" and (config.max_msgs > 0 or config.max_bytes > 0):
        raise StoreUnable(
            f"the bucket {name} of {where} throws old records away when it is full: a budget that is forgotten is "
            "granted anew. Set discard to new, or name another one: bucket="
        )
    cautions = []
    if config.storage != "file":
        cautions.append("the bucket is kept in memory: a restart of the server loses it")
    elif not is_synced:
        cautions.append(
            "no client can see how often the server syncs its files: unless its sync_interval is `always`, a crash of "
            "its host loses the last writes that it acknowledged. Where it is, say so: synced=true"
        )
    return Promise(not cautions, "; ".join(cautions))


def decoded(message: Message, kind: type[T], where: str) -> T:
    """Return what an answer of JetStream says. Raises StoreError where nobody answered, or nonsense."""
    if message.status == 503:
        raise StoreUnable(f"{where} has no JetStream, or not for this user: start it with -js")
    try:
        return msgspec.json.decode(message.data, type=kind)
    except msgspec.MsgspecError:
        raise StoreError(f"{where} answered what cannot be read") from None


def unix_s(text: str) -> float:
    """Return a server's time, without what is below a second. Raises ValueError."""
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def told(where: str, error: ApiError) -> StoreError:
    """Return what an error of JetStream means, in words for an operator."""
    if error.err_code in _FULL:
        return StoreFull(f"{where} is full: {error.description[:200]}")
    if error.code == 503 or error.err_code == 10039:
        return StoreUnable(f"{where} has no JetStream, or not for this user: {error.description[:200]}")
    return StoreError(f"{where} answered: {error.description[:200]} ({error.err_code})")
