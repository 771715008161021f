"""Which engine a URL names: the one list of those that keep a store. A driver is imported only when it is named."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.engines.port import StoreUnable
from meshd.engines.url import StoreUrl

if TYPE_CHECKING:
    from meshd.engines.port import Store


class Engine(NamedTuple):
    """Where a scheme leads."""

    module: str
    driver: str
    example: str
    extra: str = ""
    """What brings the packages that it needs beyond meshd's own."""


_REDIS: Final = Engine("redis", "RedisStore", "redis://127.0.0.1:6379/0", "redis")
_NATS: Final = Engine("nats", "NatsStore", "nats://127.0.0.1:4222")
_POSTGRES: Final = Engine("postgres", "PostgresStore", "postgres://127.0.0.1:5432/meshd", "postgres")

# An engine that keeps a store gets its line here.
ENGINES: Final[dict[str, Engine]] = {
    "sqlite": Engine("sqlite", "SqliteStore", "sqlite:///var/lib/meshd/ledger.db"),  # the default: one file
    "memory": Engine("memory", "MemoryStore", "memory:"),  # the model
    "redis": _REDIS,
    "rediss": _REDIS._replace(example="rediss://redis.example:6379/0"),  # over TLS
    "unix": _REDIS._replace(example="unix:///run/redis/redis.sock"),
    "nats": _NATS,
    "tls": _NATS._replace(example="tls://nats.example:4222"),  # as NATS itself writes it
    "postgres": _POSTGRES,
    "dynamodb": Engine("dynamodb", "DynamoStore", "dynamodb://eu-central-1/meshd", "dynamodb"),
    "postgresql": _POSTGRES._replace(example="postgresql://127.0.0.1:5432/meshd"),
}
# What can carry events and keep no state that is changed by compare-and-set.
BUSES_ONLY: Final = {"kafka": "Kafka", "rabbitmq": "RabbitMQ", "amqp": "RabbitMQ", "amqps": "RabbitMQ"}


async def open_store(text: str, home: Path) -> Store:
    """Open the store that a URL names. `sqlite:` alone is `ledger.db` in the state directory `home`.

    Raises StoreUnable where no driver can do what the URL asks, before anything is connected to; another StoreError
    where the store itself cannot be used now. No message holds a password.
    """
    url = StoreUrl(text)
    engine = ENGINES.get(url.scheme)
    if engine is None:
        raise StoreUnable(f"{_unknown(url.scheme)}. Engines that keep a store: {_known()}")
    if url.scheme == "memory":
        url.allow(())
        return driver_of(engine)()  # type: ignore[no-any-return]
    if url.scheme == "sqlite":
        url.allow(())
        if url.host:
            raise StoreUnable(
                "a SQLite store is named by its path, with three slashes: sqlite:///var/lib/meshd/ledger.db"
            )
        return driver_of(engine)(Path(url.path) if url.path.strip("/") else home / "ledger.db")  # type: ignore[no-any-return]
    return await driver_of(engine).open(url)  # type: ignore[no-any-return]


def driver_of(engine: Engine, kind: str = "store") -> Any:
    """Return an engine's class, imported now. Raises StoreUnable where a package that it needs is not installed."""
    try:
        module = importlib.import_module(f"meshd.engines.{engine.module}")
    except ModuleNotFoundError as error:
        if not engine.extra or (error.name or "").startswith("meshd"):
            raise
        name, extra, package = engine.module.removeprefix("bus_"), engine.extra, (error.name or "").partition(".")[0]
        raise StoreUnable(
            f"the {name} {kind} needs the package {package}: pip install 'agent-meshd[{extra}]'"
        ) from None
    return getattr(module, engine.driver)


def _unknown(scheme: str) -> str:
    if scheme in BUSES_ONLY:
        return f"{BUSES_ONLY[scheme]} keeps no store: it has no compare-and-set"
    return f"no engine is called {scheme[:40]}"


def _known() -> str:
    return ", ".join(engine.example for engine in dict.fromkeys(ENGINES.values()))
