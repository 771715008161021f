"""The DynamoDB behind a store: how it is reached, the table, and what its errors mean."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from meshd.engines.port import StoreCorrupt, StoreError, StoreUnable
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from meshd.engines.url import StoreUrl

OPTIONS: Final = ("endpoint", "poll")
POLL_S: Final = 1.0
"""How often a watch asks what has changed."""
INDEX: Final = "by_version"
CONNECTIONS_MAX: Final = 32
ACTIVE_S: Final = 60.0
"""How long a table may take to be made."""
CONDITION: Final = "ConditionalCheckFailedException"
_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}\Z")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}\Z")
_BUSY: Final = frozenset(
    {"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "LimitExceededException"}
)
_SIGNED_OUT: Final = frozenset(
    {
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "ExpiredTokenException",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
    }
)


class Busy(StoreError):
    """The table is asked for more than it takes now; nothing was done."""


def check(url: StoreUrl) -> None:
    """Refuse what a DynamoDB URL cannot say. Raises StoreUnable."""
    url.allow(OPTIONS)
    for option in ("password_file", "cert", "key"):
        if option in url.options:
            raise StoreUnable(
                f"{option}= says nothing to DynamoDB: AWS's own environment and files have the credentials"
            )
    if url.user is not None or url.password is not None:
        raise StoreUnable("a DynamoDB URL has no credentials: AWS's own environment, files and roles have them")
    if _REGION.match(url.host) is None or url.port is not None:
        raise StoreUnable("a DynamoDB store is named by region and table: dynamodb://eu-central-1/meshd")
    if _TABLE.match(url.path.strip("/")) is None:
        raise StoreUnable(
            "the path of a DynamoDB URL is a table's name: 3 to 255 letters, digits, dots, dashes, underscores"
        )


async def connected(url: StoreUrl, exits: AsyncExitStack) -> Any:
    """Return a client. Nothing is asked yet."""
    config = AioConfig(
        connect_timeout=url.seconds("connect_timeout", CONNECT_TIMEOUT_S),
        read_timeout=url.seconds("timeout", TIMEOUT_S),
        max_pool_connections=CONNECTIONS_MAX,
        # A compare-and-set that was made and is sent again would be told as refused.
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,
    )
    try:
        client = get_session().create_client(
            "dynamodb",
            region_name=url.host,
            endpoint_url=url.options.get("endpoint"),
            verify=url.options.get("ca"),
            config=config,
        )
        return await exits.enter_async_context(client)
    except (BotoCoreError, ValueError) as error:
        raise StoreUnable(f"the dynamodb URL cannot be used: {error}") from None


async def table_made(client: Any, table: str, where: str) -> str:
    """Make the table where there is none; return what to warn of, empty for nothing. Raises StoreError."""
    try:
        found = await client.describe_table(TableName=table)
    except ClientError as error:
        if code(error) != "ResourceNotFoundException":
            raise told(where, error) from None
        await _make(client, table, where)
        found = await client.describe_table(TableName=table)
    ends_s = asyncio.get_running_loop().time() + ACTIVE_S
    while not _is_active(found["Table"]):
        if asyncio.get_running_loop().time() > ends_s:
            raise StoreError(f"the table of {where} is {found['Table']['TableStatus'].lower()}, and stays so")
        await asyncio.sleep(0.2)
        found = await client.describe_table(TableName=table)
    keys = {one["AttributeName"]: one["KeyType"] for one in found["Table"]["KeySchema"]}
    indexes = {one["IndexName"] for one in found["Table"].get("GlobalSecondaryIndexes", ())}
    if keys != {"space": "HASH", "key": "RANGE"} or INDEX not in indexes:
        raise StoreCorrupt(f"the table of {where} is not one of meshd's")
    if found["Table"].get("Replicas"):
        return "it is a global table: two regions that write at once overwrite each other"
    return ""


async def _make(client: Any, table: str, where: str) -> None:
    names = [("space", "S"), ("key", "S"), ("v", "N")]
    try:
        await client.create_table(
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name, kind in names],
            KeySchema=[{"AttributeName": "space", "KeyType": "HASH"}, {"AttributeName": "key", "KeyType": "RANGE"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": INDEX,
                    "KeySchema": [
                        {"AttributeName": "space", "KeyType": "HASH"},
                        {"AttributeName": "v", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            ],
        )
    except ClientError as error:
        if code(error) == "ResourceInUseException":
            return  # another sidecar has made it meanwhile
        raise told(where, error) from None
    try:
        await client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        await client.update_time_to_live(
            TableName=table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
        )
    except (ClientError, BotoCoreError):
        pass  # without it, what stands for deleted records stays: it costs room, and nothing else


def _is_active(table: dict[str, Any]) -> bool:
    indexes = table.get("GlobalSecondaryIndexes", ())
    return table["TableStatus"] == "ACTIVE" and all(one.get("IndexStatus", "ACTIVE") == "ACTIVE" for one in indexes)


def code(error: ClientError) -> str:
    """Return the name that DynamoDB gives an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def told(where: str, error: BaseException) -> StoreError:
    """Return what an error means."""
    if isinstance(error, ClientError):
        name, words = code(error), str(error.response.get("Error", {}).get("Message", ""))[:200]
        if name in _BUSY:
            return Busy(f"{where} is busy: {name}")
        if name in _SIGNED_OUT:
            return StoreError(f"{where} does not let meshd in: {name}: {words}")
        if name == "ResourceNotFoundException":
            return StoreError(f"the table of {where} is gone")
        if name == "ValidationException":
            return StoreUnable(f"{where} cannot keep that: {words}")
        return StoreError(f"{where} failed, and what was asked may have been done or not: {name}: {words}")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(f"{where} needs credentials, and AWS's environment, files and roles have none")
    if isinstance(error, ReadTimeoutError | HTTPClientError):
        return StoreError(f"{where} cannot be reached; what was asked may have been done or not")
    return StoreError(f"{where} cannot be used: {type(error).__name__}")
