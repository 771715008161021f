"""docs/grpc.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshd.dialects.grpc import NAMES, USAGE_INPUT, USAGE_OUTPUT
from meshd.policy.document import load
from meshd.refusal import TABLE, Reason
from tests.grpc import testing_pb2 as pb
from tests.grpc import testing_pb2_grpc as rpc
from tests.grpc.conftest import policy

TEXT = (Path(__file__).parents[2] / "docs" / "grpc.md").read_text()


def test_every_reason_stands_beside_its_status() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.*) \|$", TEXT, re.MULTILINE)
    said = {reason: status for status, cell in rows for reason in re.findall(r"`(\w+)`", cell)}
    assert said == {reason.value: NAMES[TABLE[reason].grpc] for reason in Reason}


def test_what_is_worth_trying_again_is_marked() -> None:
    for reason in Reason:
        (cell,) = re.findall(rf"^\| [A-Z_]+ \| (.*`{reason.value}`.*) \|$", TEXT, re.MULTILINE)
        assert cell.partition(f"`{reason.value}`")[2].startswith(" (again)") is TABLE[reason].is_retryable, reason


def test_the_trailers_are_those_that_are_read() -> None:
    assert set(re.findall(r"^\| `(x-meshd-usage-[a-z-]+)`", TEXT, re.MULTILINE)) == {
        USAGE_INPUT.decode(), USAGE_OUTPUT.decode(),
    }  # fmt: skip


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_its_policy_loads(block: str, tmp_path: Path) -> None:
    document = tmp_path / "policy.yaml"
    document.write_text(block)
    assert load([document]).rules


async def test_its_python_channel_works(mesh: Any, serve: Any) -> None:
    one = await mesh(policy((await serve()).port).replace("  up:", "  research:"))
    (line,) = re.findall(r"^channel = (.*)$", TEXT, re.MULTILINE)
    made = line.replace("127.0.0.1:7400", f"127.0.0.1:{one.port}").replace("grpc.insecure", "grpc.aio.insecure")
    async with eval(made, {"grpc": grpc}) as channel:
        assert await rpc.TestServiceStub(channel).EmptyCall(pb.Empty()) == pb.Empty()


async def test_its_example_reads_a_refusal(mesh: Any) -> None:
    one = await mesh(policy(1))
    (code,) = re.findall(r"```python\n(from google.*?)```", TEXT, re.DOTALL)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.TestServiceStub(channel).EmptyCall(pb.Empty())
    found: dict[str, Any] = {"error": caught.value}
    exec(code, found)
    assert (found["info"].domain, found["info"].reason) == ("meshd", "UNKNOWN_TARGET")
