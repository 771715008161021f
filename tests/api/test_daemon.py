"""The API in a daemon: what is imported and when, what `meshd exec` tells its program, drains, and kills."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshd_sdk.v1 import budget_pb2, budget_pb2_grpc, context_pb2, context_pb2_grpc
from tests.end_to_end.sidecar import ROOT, Sidecar, environ, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = "agent: ann\ngovernance: {max_tokens_per_workflow: 1000000}\n"

STARTS = """
import asyncio, json, sys
from pathlib import Path
from meshd.config import Address, Config
from meshd.daemon import Daemon

def loaded():
    return sorted(name for name in sys.modules if name in ("grpc", "google.protobuf", "grpc_health", "meshd_sdk.v1"))

def rss_kb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4

async def main():
    port = Address("127.0.0.1", 0)
    daemon = Daemon(Config(Path(sys.argv[1]), listen=port, inbound=port, admin=port, metrics=port, api=port))
    await daemon.start()
    idle = loaded(), rss_kb()
    reader, writer = await asyncio.open_connection(daemon.door.address.host, daemon.door.address.port)
    writer.write(b"GET / HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n")
    assert b"meshd.v1.ContextService" in await reader.read()
    about = loaded()
    from meshd_sdk.v1 import context_pb2, context_pb2_grpc
    import grpc
    async with grpc.aio.insecure_channel(str(daemon.door.address)) as channel:
        await context_pb2_grpc.ContextServiceStub(channel).Open(context_pb2.OpenRequest())
    print(json.dumps([*idle, about, loaded(), rss_kb()]))
    daemon.stop()
    await daemon.serve()

asyncio.run(main())
"""


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with tempfile.TemporaryDirectory(prefix="meshd-") as short:  # a socket's path has at most 107 bytes
        made = Sidecar(Path(short) / "home")
        yield made
        made.kill()


def api_of(sidecar: Sidecar) -> str:
    assert sidecar.running is not None
    return str(sidecar.running["api"])


def test_neither_grpc_nor_protobuf_is_loaded_before_somebody_speaks_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    done = subprocess.run(command, env=environ(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    idle, idle_kb, about, after, after_kb = json.loads(done.stdout.splitlines()[-1])
    assert (idle, about) == ([], [])
    assert "grpc" in after
    # Both stand in the report of a run; the bound is far off, so that no other machine fails it.
    print(f"RSS idle {idle_kb / 1024:.1f} MB, with gRPC server and client {after_kb / 1024:.1f} MB")
    assert idle_kb < after_kb < 300 * 1024


def test_where_the_api_is_is_said(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    assert sidecar.running is not None
    assert f"API for agents that speak it: {api_of(sidecar)}  (export MESHD_API={api_of(sidecar)} for" in sidecar.log
    assert f"  export MESHD_URL={sidecar.url}  #" in sidecar.log
    path = Path(sidecar.running["api_socket"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert fetch(f"http://{api_of(sidecar)}/")[0] == 200
    assert sidecar.stop() == 0
    assert not path.exists()
    assert not list(sidecar.home.glob(".api-*"))


def test_there_need_be_none(sidecar: Sidecar) -> None:
    sidecar.start(POLICY, "--api", "off")
    assert sidecar.running is not None
    assert (sidecar.running["api"], sidecar.running["api_socket"]) == ("", "")
    assert not (sidecar.home / "api.sock").exists()
    assert sidecar.stop() == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.0.0.0:0", "loopback"),
        ("unix:/run/api.sock", "for agents"),
        ("nonsense", "HOST:PORT"),
        ("1.2.3.4:1", "loopback"),
    ],
)
def test_an_address_that_cannot_be_is_an_error_in_words(sidecar: Sidecar, value: str, words: str) -> None:
    sidecar.spawn(POLICY, "--quiet", MESHD_API=value)
    assert sidecar.wait() == 1
    assert words in sidecar.log
    assert "MESHD_API" in sidecar.log
    assert "Traceback" not in sidecar.log


async def test_a_drain_says_so_and_ends_with_the_daemon(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    async with grpc.aio.insecure_channel(api_of(sidecar)) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        sidecar.signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert await asyncio.to_thread(sidecar.wait) == 0
    assert "Traceback" not in sidecar.log


async def test_a_drain_under_load_ends_and_loses_no_report(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    token, charged, sent = await _open(sidecar), 0, 0
    async with grpc.aio.insecure_channel(api_of(sidecar)) as channel:
        stub = budget_pb2_grpc.BudgetServiceStub(channel)

        async def load(number: int) -> None:
            nonlocal charged, sent
            for at in range(1000):
                sent += 10
                try:
                    charged += (await stub.ReportUsage(_report(token, f"{number}-{at}"))).charged_tokens
                except grpc.aio.AioRpcError:
                    return

        loads = [asyncio.ensure_future(load(number)) for number in range(8)]
        while charged < 500:
            await asyncio.sleep(0.005)
        sidecar.signal(signal.SIGTERM)
        await asyncio.gather(*loads)
        assert await asyncio.to_thread(sidecar.wait) == 0
    assert "Traceback" not in sidecar.log
    sidecar.start(POLICY)
    assert charged <= sidecar.accounts()["workflow/w"][1] <= sent


async def test_a_killed_daemon_has_lost_no_report_that_it_had_taken(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    token, taken, sent = await _open(sidecar), set[str](), set[str]()
    async with grpc.aio.insecure_channel(api_of(sidecar)) as channel:
        stub = budget_pb2_grpc.BudgetServiceStub(channel)

        async def load(number: int) -> None:
            for at in range(1000):
                id = f"{number}-{at}"
                sent.add(id)
                try:
                    await stub.ReportUsage(_report(token, id))
                except grpc.aio.AioRpcError:
                    return
                taken.add(id)

        loads = [asyncio.ensure_future(load(number)) for number in range(8)]
        while len(taken) < 100:
            await asyncio.sleep(0.005)
        sidecar.kill()
        await asyncio.gather(*loads)
    sidecar.start(POLICY)
    spent = sidecar.accounts()["workflow/w"][1]
    assert 10 * len(taken) <= spent <= 10 * len(sent)
    async with grpc.aio.insecure_channel(api_of(sidecar)) as channel:
        stub = budget_pb2_grpc.BudgetServiceStub(channel)
        again = [(await stub.ReportUsage(_report(token, id))).charged_tokens for id in sorted(taken)]
        assert set(again) == {0}
        assert len(list(sidecar.home.glob(".api-*"))) == 1  # that of the run before is swept away
        for id in sorted(sent - taken):
            await stub.ReportUsage(_report(token, id))
    # What was being taken when it was killed may stand twice, and never not at all: eight at the most.
    assert 0 <= sidecar.accounts()["workflow/w"][1] - 10 * len(sent) <= 10 * 8


def _report(token: str, id: str) -> budget_pb2.ReportUsageRequest:
    return budget_pb2.ReportUsageRequest(token=token, report_id=id, model="m", input_tokens=7, output_tokens=3)


async def _open(sidecar: Sidecar) -> str:
    async with grpc.aio.insecure_channel(api_of(sidecar)) as channel:
        found = await context_pb2_grpc.ContextServiceStub(channel).Open(context_pb2.OpenRequest(workflow="w"))
        return str(found.context.token)


AGENT = """
import asyncio, json, os, grpc
from meshd_sdk.v1 import context_pb2, context_pb2_grpc

async def main():
    async with grpc.aio.insecure_channel(os.environ["MESHD_API"]) as channel:
        stub = context_pb2_grpc.ContextServiceStub(channel)
        found = (await stub.Read(context_pb2.ReadRequest(token=os.environ["MESHD_CONTEXT"]))).context
        print(json.dumps([found.workflow, found.account, found.ceiling_tokens, os.environ["MESHD_WORKFLOW"]]))

asyncio.run(main())
"""


@pytest.mark.parametrize("is_private", [True, False])
def test_a_program_of_exec_is_in_its_runs_workflow(sidecar: Sidecar, tmp_path: Path, is_private: bool) -> None:
    more: dict[str, Any] = {"MESHD_HOME": str(tmp_path if is_private else sidecar.home)}
    if not is_private:
        sidecar.start(POLICY)
    command = [sys.executable, "-m", "meshd.cli", "exec", "--budget", "5k", "--workflow", "nightly", "--"]
    done = subprocess.run(
        [*command, sys.executable, "-c", AGENT],
        env=environ(**more), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["nightly", "workflow/nightly", 5000, "nightly"]
