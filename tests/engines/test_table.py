"""A store is named by its URL: which driver that is, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.config import from_environment
from meshd.engines.port import StoreError, StoreUnable
from meshd.engines.table import BUSES_ONLY, ENGINES, open_store
from meshd.engines.url import StoreUrl, shown

DRIVERS = ("memory", "sqlite", "redis", "nats", "postgres", "dynamodb")
PACKAGES = ("hiredis", "nkeys", "aiobotocore", "asyncpg", "sqlite3")


async def test_the_embedded_engines(tmp_path: Path) -> None:
    for text, file in (
        ("sqlite:", "ledger.db"),
        (f"sqlite://{tmp_path}/other.db", "other.db"),
        ("SQLITE:///", "ledger.db"),
    ):
        store = await open_store(text, tmp_path)
        assert store.name == "sqlite"
        assert (tmp_path / file).is_file()
        await store.close()
    store = await open_store("memory:", tmp_path)
    assert store.name == "memory"
    assert "nothing beyond this process" in store.caution


@pytest.mark.parametrize("scheme", [*BUSES_ONLY, "mysql", "etcd", "http", "s3"])
async def test_an_engine_without_a_store_names_those_that_have_one(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnable) as told:
        await open_store(f"{scheme}://user:canary@127.0.0.1:1/", tmp_path)
    assert "canary" not in str(told.value)
    for one in ENGINES.values():
        assert one.example in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "redis",
        "/var/lib/meshd",
        "://host",
        "redis://",
        "redis:///0",
        "redis://host/zero",
        "redis://host/123456",
        "redis://host:port",
        "redis://host:99999",
        "redis://:pa/canary@host",
        "redis://:canary#1@host:1",
        "redis://[::1",
        "redis://host?nonsense=canary",
        "redis://host?timeout=0",
        "redis://host?timeout=soon",
        "redis://host?timeout=nan",
        "redis://host?timeout=61",
        "redis://host?prefix=",
        "unix://host/path",
        "unix:",
        "nats://",
        "nats://host/path",
        "nats://host?bucket=a.b",
        "nats://host?bucket=",
        "nats://host?replicas=0",
        "nats://host?replicas=three",
        "nats://host?synced=perhaps",
        "nats://host?prefix=x",
        "postgres://",
        "postgres:///db",
        "postgres://host/db?sslmode=perhaps",
        "postgres://host/db?schema=Robert'); DROP TABLE students",
        "postgres://host/db?schema=",
        "dynamodb://",
        "dynamodb:///table",
        "dynamodb://eu-central-1",
        "dynamodb://eu-central-1/a",
        "dynamodb://eu-central-1/a/b",
        "dynamodb://eu-central-1:8000/meshd",
        "dynamodb://key:canary@eu-central-1/meshd",
        "dynamodb://eu-central-1/meshd?password_file=x",
        "dynamodb://eu-central-1/meshd?prefix=canary",
        "dynamodb://eu-central-1/meshd?poll=0",
        "sqlite://host/path",
        "sqlite:?x=1",
        "memory:?x=1",
        "\x00://",
        "rédis://host",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_before_anything_is_connected_to(text: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnable) as told:
        await open_store(text, tmp_path)
    assert "canary" not in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_shown_of_a_url_has_no_secret() -> None:
    said = shown("redis://user:c%40nary@redis.example:6379/3?password_file=/secret&token=canary")
    assert said == "redis://redis.example:6379/3"
    assert shown("nats://canary@[::1]:4222") == "nats://[::1]:4222"
    assert shown("postgres:///db?host=/run/postgresql") == "postgres:/db"
    assert shown("redis://:pa/canary@host") == "a URL that cannot be read"
    assert "canary" not in repr(StoreUrl("redis://u:canary@h"))
    assert "canary" not in repr(from_environment({"MESHD_STORE": "redis://u:canary@h", "MESHD_HOME": "/x"}))


def test_a_password_is_taken_from_its_file_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    url = StoreUrl(f"redis://:in-the-url@h?password_file={file}")
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        url.secret()
    file.write_bytes(b"one two \r\n")
    assert url.secret() == "one two "
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="holds no text"):
        url.secret()
    assert StoreUrl("redis://:p%2Fw%C3%A4@h").secret() == "p/wä"
    assert StoreUrl("redis://h").secret() is None


def test_every_scheme_leads_to_a_driver_that_is_there() -> None:
    assert {engine.module for engine in ENGINES.values()} == set(DRIVERS)
    for scheme, engine in ENGINES.items():
        assert (Path(sys.modules["meshd.engines.table"].__file__ or "").parent / f"{engine.module}.py").is_file()
        assert engine.example.startswith(f"{scheme}:")


@pytest.mark.parametrize("named", DRIVERS)
def test_a_driver_is_imported_only_where_it_is_named(named: str, tmp_path: Path) -> None:
    urls = {"sqlite": "sqlite:", "memory": "memory:", "redis": "redis://127.0.0.1:1", "nats": "nats://127.0.0.1:1"}
    urls["dynamodb"] = "dynamodb://eu-central-1/meshd?endpoint=http://127.0.0.1:1"
    url = urls.get(named, "postgres://127.0.0.1:1/x")
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "import meshd.engines.table as table\nfrom meshd.engines.port import StoreError\n"
        f"modules = {PACKAGES!r} + tuple('meshd.engines.' + one for one in {DRIVERS!r})\n"
        "print(*(one for one in modules if one in sys.modules))\n"
        "async def main():\n"
        f"    try:\n        await (await table.open_store({url!r}, Path({str(tmp_path)!r}))).close()\n"
        "    except StoreError:\n        pass\n"
        "asyncio.run(main())\n"
        "print(*(one for one in modules if one in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    package = {"sqlite": ["sqlite3"], "redis": ["hiredis"], "postgres": ["asyncpg"], "dynamodb": ["aiobotocore"]}.get(
        named, []
    )
    assert before.split() == []
    assert after.split() == [*package, f"meshd.engines.{named}"]


@pytest.mark.parametrize(
    ("engine", "package"), [("redis", "hiredis"), ("postgres", "asyncpg"), ("dynamodb", "aiobotocore")]
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(engine: str, package: str) -> None:
    program = (
        f"import asyncio, sys\nsys.modules[{package!r}] = None\nfrom pathlib import Path\n"
        "from meshd.engines.table import open_store\n"
        f"try:\n    asyncio.run(open_store('{engine}://127.0.0.1/x', Path('/')))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreUnable")
    assert f"needs the package {package}: pip install 'agent-meshd[{engine}]'" in done.stdout


async def test_nobody_logs_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for scheme in ("redis", "rediss", "nats", "tls", "postgres"):
        with pytest.raises(StoreError) as told:
            await open_store(f"{scheme}://user:canary@127.0.0.1:1/", tmp_path)
        assert "canary" not in str(told.value)
        assert "127.0.0.1:1" in str(told.value)
    assert "canary" not in caplog.text
