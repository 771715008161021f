"""The PostgreSQL behind a connection: how to reach it, its tables, and what it promises of what it has acknowledged."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from meshd.engines import postgres_schema as sql
from meshd.engines.port import StoreCorrupt, StoreError, StoreFull, StoreNewer, StoreReadOnly, StoreUnable

if TYPE_CHECKING:
    from meshd.engines.url import StoreUrl

OLDEST: Final = 120000
PORT: Final = 5432
OPTIONS: Final = ("schema", "sslmode", "host")
PING_EVERY_S: Final = 10.0

_SSL_MODES: Final = ("disable", "prefer", "require", "verify-ca", "verify-full")
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}\Z")


class Session:
    """One connection to the server."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @property
    def is_open(self) -> bool:
        return not self.connection.is_closed()

    def abort(self, _error: StoreError) -> None:
        self.connection.terminate()

    async def goodbye(self, timeout_s: float) -> None:
        """Sign off, so that the server need not find out; what goes wrong with that is of no interest."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.connection.close()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.connection.terminate()


class Promise(NamedTuple):
    """What a server says of itself."""

    is_durable: bool
    caution: str


def check(url: StoreUrl) -> None:
    """Refuse what a PostgreSQL URL cannot say. Raises StoreUnable."""
    url.allow(OPTIONS)
    if not url.host and not url.options.get("host"):
        raise StoreUnable(
            "the postgres URL names no host: postgres://HOST/DATABASE, or postgres:///DATABASE?host=/run/postgresql"
        )
    mode = url.options.get("sslmode", "prefer")
    if mode not in _SSL_MODES:
        raise StoreUnable(f"sslmode={mode[:40]} is none of {', '.join(_SSL_MODES)}")
    schema(url)


def schema(url: StoreUrl) -> str:
    """Return the name of the schema that holds meshd's tables. Raises StoreUnable."""
    name = url.options.get("schema", "meshd")
    if not _SCHEMA.match(name):
        raise StoreUnable(f"schema={name[:40]} is not a plain name: small letters, digits and _, up to 40")
    return name


def place(url: StoreUrl) -> str:
    """Return what messages call the store."""
    host = url.options.get("host") or url.host
    return f"the postgres store at {host}" + ("" if host.startswith("/") else f":{url.port or PORT}")


def _tls(url: StoreUrl) -> ssl.SSLContext | str | bool:
    mode = url.options.get("sslmode") or ("verify-full" if "ca" in url.options else "prefer")
    if mode in ("disable", "prefer"):
        return False if mode == "disable" else mode
    context = url.tls()
    if mode != "verify-full":
        context.check_hostname = False
    if mode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


async def connected(url: StoreUrl, where: str, timeout_s: float) -> Session:
    """Connect and sign in. Raises StoreError, OSError."""
    try:
        connection = await asyncpg.connect(
            host=url.options.get("host") or url.host,
            port=url.port or PORT,
            user=url.user,
            password=url.secret(),
            database=url.path.strip("/") or None,
            ssl=_tls(url),
            timeout=timeout_s,
            # A pooler (PgBouncer) gives each transaction another server, which knows none of our statements.
            statement_cache_size=0,
        )
    except ssl.SSLError:
        raise
    except ConnectionError as error:
        if "SSL" not in str(error):
            raise
        raise StoreUnable(f"{where} does not speak TLS; say sslmode=disable only where nobody can listen") from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise told(where, error) from None
    return Session(connection)


async def looked_at(connection: Any, where: str) -> Promise:
    """Look at what a server promises. Raises the kind of StoreError that says why its books cannot be kept there."""
    found = await connection.fetchrow(sql.PROMISES)
    if found["version"] < OLDEST:
        raise StoreUnable(f"{where} is PostgreSQL {found['version_said']}; meshd needs {OLDEST // 10000} or newer")
    if found["is_standby"] or found["read_only"] == "on":
        raise StoreReadOnly(f"{where} is a standby or read-only, which may not be written; name its primary")
    if found["encoding"] != "UTF8":
        raise StoreUnable(f"the database of {where} is encoded in {found['encoding']}; meshd needs UTF8")
    if found["isolation"] != "read committed":
        raise StoreUnable(
            f"{where} isolates this user's transactions as {found['isolation']}; meshd needs read committed "
            "(ALTER ROLE ... SET default_transaction_isolation)"
        )
    cautions = []
    if found["fsync"] == "off":
        cautions.append("fsync is off: a crash of its host may lose or damage anything")
    if found["synchronous_commit"] == "off":
        cautions.append("synchronous_commit is off: a crash loses the last writes that it acknowledged")
    is_durable = not cautions
    if found["standbys"] and not found["synchronous_standbys"]:
        cautions.append("its standbys are not synchronous: one that is promoted may lack the last acknowledged writes")
    return Promise(is_durable, "; ".join(cautions))


async def prepare(connection: Any, schema: str, where: str) -> None:
    """Make the tables where there are none; refuse those of a newer meshd. Raises StoreError."""
    if await _is_made(connection, schema, where):
        return
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({sql.LOCK})")
        if not await _is_made(connection, schema, where):
            await connection.execute(sql.MAKE.format(schema=schema))
            await connection.execute(sql.MADE.format(schema=schema), sql.SCHEMA)


async def _is_made(connection: Any, schema: str, where: str) -> bool:
    found = await connection.fetchrow(sql.LOOK.format(schema=schema))
    if not found["has_format"]:
        if found["has_record"]:
            raise StoreCorrupt(f"{schema}.meshd_record in {where} is a table of another program; name another schema=")
        return False
    version = await connection.fetchval(sql.FORMAT.format(schema=schema))
    if version is None or version < sql.SCHEMA:
        raise StoreCorrupt(f"{schema}.meshd_format in {where} names no format that meshd has written")
    if version > sql.SCHEMA:
        raise StoreNewer(
            f"{where} was written by a newer meshd (format {version}, this one knows {sql.SCHEMA}); "
            "run that version, or name another schema="
        )
    return True


# https://www.postgresql.org/docs/current/errcodes-appendix.html
_CODES: Final[dict[str, tuple[type[StoreError], str]]] = {
    "28P01": (StoreUnable, "refuses the user or the password"),
    "28000": (StoreUnable, "does not let this user in from here (pg_hba.conf)"),
    "3D000": (StoreUnable, "has no such database: the path of the URL names it"),
    "42501": (
        StoreUnable,
        "does not let this user do what meshd must: it needs CREATE on the database, or tables made",
    ),
    "42P01": (StoreCorrupt, "has lost the tables of meshd"),
    "42883": (StoreCorrupt, "has lost the functions of meshd"),
    "3F000": (StoreCorrupt, "has lost the schema of meshd"),
    "25006": (StoreReadOnly, "is a standby or read-only, which may not be written; name its primary"),
    "53100": (StoreFull, "cannot grow: its disk is full"),
    "53200": (StoreFull, "is out of memory"),
    "53300": (StoreError, "has no connection left for us: raise max_connections, or use a pooler"),
    "40P01": (StoreError, "is busy: the change waited in a circle with another"),
    "40001": (StoreError, "is busy: the change came between others"),
    "57P01": (StoreError, "is shutting down"),
    "57P03": (StoreError, "is starting up"),
}
RELIABLE: Final = frozenset({"40P01", "40001", "53200"})
"""After these the same connection may be used again."""


def told(where: str, error: Exception) -> StoreError:
    """Return what an error of the driver means, in words for an operator; never with a password in it."""
    code = getattr(error, "sqlstate", None)
    if code in _CODES:
        kind, words = _CODES[code]
        return kind(f"{where} {words}")
    first = str(error).partition("\n")[0][:200]
    return StoreError(f"{where}: {first or type(error).__name__}")
