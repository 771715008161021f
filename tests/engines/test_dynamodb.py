"""What is DynamoDB's own, against moto's server: it is no DynamoDB, and only as strict as it happens to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshd.engines.port import Ability, Change, StoreCorrupt, StoreError, StoreUnable
from meshd.engines.table import open_store
from tests.engines.places import Place, place_of

pytest.importorskip("aiobotocore")

from botocore.exceptions import ClientError

from meshd.engines import dynamodb
from meshd.engines.dynamodb import DynamoStore


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of("dynamodb", tmp_path) as one:
        yield one


@pytest.fixture
async def store(place: Place) -> AsyncIterator[DynamoStore]:
    one = await place.open()
    assert isinstance(one, DynamoStore)
    yield one
    await one.close()


def failing(store: DynamoStore, code: str, *, times: int, does_it: bool = False) -> list[str]:
    """Let the client fail with a code so many times; return what is asked of it, as it is."""
    client, asked, left = store._client, [], times

    class Client:
        def __getattr__(self, name: str) -> Any:
            async def ask(**arguments: Any) -> Any:
                nonlocal left
                asked.append(name)
                if left > 0:
                    left -= 1
                    if does_it:
                        await getattr(client, name)(**arguments)
                    raise ClientError({"Error": {"Code": code, "Message": "no"}}, name)
                return await getattr(client, name)(**arguments)

            return ask

    store._client = Client()
    return asked


async def test_the_table_that_is_made(store: DynamoStore, place: Place) -> None:
    table = (await store._client.describe_table(TableName=place.name))["Table"]
    assert {one["AttributeName"]: one["KeyType"] for one in table["KeySchema"]} == {"space": "HASH", "key": "RANGE"}
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    living = await store._client.describe_time_to_live(TableName=place.name)
    assert living["TimeToLiveDescription"]["AttributeName"] == "until"
    assert store.abilities == {Ability.SHARED, Ability.DURABLE}
    assert store.caution == ""


async def test_a_table_that_is_anothers_is_left_alone(store: DynamoStore, place: Place, tmp_path: Path) -> None:
    name = f"{place.name}_other"
    await store._client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    with pytest.raises(StoreCorrupt, match="not one of meshd's"):
        await open_store(place.url.replace(place.name, name), tmp_path)


async def test_what_busy_did_not_do_is_asked_again_and_nothing_else(store: DynamoStore) -> None:
    asked = failing(store, "ThrottlingException", times=2)
    assert await store.write([Change("s", "a", b"one", 0)]) == [True]
    assert asked == ["update_item"] * 3
    store._client = None
    asked = failing(store, "ThrottlingException", times=99)
    with pytest.raises(StoreError, match="is busy"):
        await store.write([Change("s", "a", b"two")])
    assert len(asked) == 4


async def test_what_may_have_been_done_is_told_as_such(store: DynamoStore) -> None:
    asked = failing(store, "InternalServerError", times=1, does_it=True)
    with pytest.raises(StoreError, match="may have been done or not"):
        await store.write([Change("s", "a", b"one", 0), Change("s", "b", b"one", 0)])
    assert asked == ["update_item"]  # neither again, nor what stands after it
    assert set(await store.read("s", ["a", "b"])) == {"a"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDeniedException", "does not let meshd in"),
        ("ExpiredTokenException", "does not let meshd in"),
        ("ResourceNotFoundException", "is gone"),
        ("ValidationException", "cannot keep that"),
    ],
)
async def test_refusals_are_told_in_words(store: DynamoStore, code: str, words: str) -> None:
    failing(store, code, times=9)
    with pytest.raises(StoreError, match=words):
        await store.read("s", ["a"])


async def test_a_record_that_is_too_long_fails_alone(store: DynamoStore) -> None:
    with pytest.raises(StoreUnable, match="400000"):
        await store.write([Change("s", "a", b"x" * 400_001)])
    with pytest.raises(StoreError):
        await store.write([Change("s", "k" * 2000, b"")])  # a sort key has 1,024 bytes
    assert await store.write([Change("s", "a", b"x" * 400_000)]) == [True]
    assert len((await store.read("s", ["a"]))["a"].value) == 400_000


async def test_versions_grow_though_another_clock_is_ahead(
    store: DynamoStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await place.open()
    assert isinstance(other, DynamoStore)
    now_us = store._now_us
    monkeypatch.setattr(other, "_now_us", lambda: now_us() + 3_600_000_000, raising=False)
    await other.write([Change("s", "a", b"ahead"), Change("s", "b", b"ahead"), Change("s", "c", b"9")])
    before = await other.read("s", ["a", "b", "c"])
    await other.write([Change("s", "b", None)])
    assert await store.write([Change("s", "a", b"behind"), Change("s", "b", b"anew", 0)]) == [True, True]
    assert await store.take("s", "c", 1, 99) == 10
    after = await store.read("s", ["a", "b", "c"])
    assert all(after[key].version > before[key].version for key in "abc")
    assert await store.write([Change("s", "a", None), Change("s", "a", b"", before["a"].version)]) == [True, False]
    await other.close()


async def test_a_deleted_record_is_remembered_for_a_day(store: DynamoStore, place: Place) -> None:
    await store.write([Change("s", "a", b"one"), Change("s", "a", None)])
    item = (await store._client.get_item(TableName=place.name, Key=dynamodb._at("s", "a")))["Item"]
    assert set(item) == {"space", "key", "v", "gone", "until"}
    assert await store.read("s", ["a"]) == {}
    assert await store.keys("s") == []


async def test_what_is_not_a_record_is_told_as_such(store: DynamoStore, place: Place) -> None:
    await store._client.put_item(TableName=place.name, Item=dynamodb._at("s", "a") | {"d": {"S": "text"}})
    with pytest.raises(StoreCorrupt, match="under a"):
        await store.read("s", ["a"])


async def test_a_watch_looks_again_after_what_it_missed(store: DynamoStore) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    end = await store.watch("s", heard.put_nowait)
    client = store._client
    asked = failing(store, "InternalServerError", times=1)
    while not asked:
        await asyncio.sleep(0.01)
    store._client = client
    while await heard.get() != "":
        pass
    end()


async def test_an_endpoint_where_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with pytest.raises(StoreError, match=r"cannot be (used|reached)") as told:
        await open_store("dynamodb://eu-central-1/meshd?endpoint=http://127.0.0.1:1", tmp_path)
    assert "canary" not in str(told.value)
    with pytest.raises(StoreUnable, match="cannot be used"):
        await open_store("dynamodb://eu-central-1/meshd?endpoint=nonsense", tmp_path)


async def test_without_credentials(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="needs credentials"):
        await open_store(place.url, tmp_path)
