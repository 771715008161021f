"""The compose file's settings, policies and programs, run without containers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.deploy.compose import HAS_NATS, SERVICES, SIDECARS, meshd, policies, sidecar_of
from tests.end_to_end.sidecar import Sidecar, environ, until
from tests.engines.servers import nats_server, redis_server, running
from tests.repository.tree import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable


class Program:
    """A program of a service, with its environment, beside a sidecar."""

    def __init__(self, service: str, api: str, log: Path) -> None:
        self.log = log / f"{service}.out"
        path = ROOT / "examples" / "trading" / Path(SERVICES[service]["entrypoint"][1]).name
        given = SERVICES[service]["environment"] | ({"MESHD_API": api} if api else {"EXCHANGE_LISTEN": "127.0.0.1:0"})
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(path)],
                stdout=out,
                stderr=out,
                env=environ(PYTHONUNBUFFERED="1", **given),
            )

    def until(self, text: str) -> str:
        """Wait until it has written that; return all that it wrote."""
        until(lambda: text in self.log.read_text() or self.process.poll() is not None, f"{text!r} in {self.log.name}")
        assert text in self.log.read_text(), self.log.read_text()
        return self.log.read_text()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


async def test_a_person_allows_the_order_that_a_tick_leads_to(
    sidecars: Callable[[str], Sidecar], tmp_path: Path
) -> None:
    server = nats_server(tmp_path / "server") if HAS_NATS else redis_server(tmp_path / "server")
    async with running(server), AsyncExitStack() as stack:
        url = f"{'nats' if HAS_NATS else 'redis'}://{server.address}"
        await asyncio.to_thread(_trade, sidecars, tmp_path, url, stack)


def _trade(sidecars: Callable[[str], Sidecar], tmp_path: Path, url: str, stack: AsyncExitStack) -> None:
    def run(service: str, api: str = "") -> Program:
        program = Program(service, api, tmp_path)
        stack.callback(program.stop)
        return program

    exchange = json.loads(run("exchange").until("ready").splitlines()[0])
    key = json.loads(meshd("approvals", "key", "ana", "--json").stdout)

    def change(text: str) -> str:
        text = text.replace("http://exchange:8090", f"http://127.0.0.1:{exchange['port']}")
        return text.replace("sha256:" + "0" * 64, key["policy"]["ana"]["key"])

    apis = {}
    for name in SIDECARS:
        given = dict(sidecar_of(name)["environment"])
        given |= {"EVENT_BUS_URL": url, "MESHD_STORE": url, "MESHD_MESH_KEY": str(tmp_path / "mesh.key")}
        given |= {"MESHD_POLICY": policies(name, tmp_path, change)}
        given |= {"MESHD_INBOUND": "127.0.0.1:0", "MESHD_METRICS": "127.0.0.1:0"}
        sidecar = sidecars(name).start(None, **given)
        assert sidecar.running is not None
        assert sidecar.running["agent"] == name
        apis[name] = str(sidecar.running["api"])
    for name in SIDECARS:
        run(name, apis[name]).until("ready")
    run("supervisor", apis[SERVICES["supervisor"]["network_mode"].removeprefix("service:").removesuffix("-net")]).until(
        "ready"
    )
    desk = run("desk", apis["market-analysis"])
    desk.until("published")
    home = {"MESHD_HOME": str(sidecars("trade-execution").home)}
    held = until(lambda: json.loads(meshd("approvals", "--json", **home).stdout or "[]"), "an approval that waits")
    pending = held["approvals"] if isinstance(held, dict) else held
    assert [(one["target"], one["agent"]) for one in pending] == [("exchange", "trade-execution")]
    assert desk.process.poll() is None
    key_file = tmp_path / "ana.key"
    key_file.touch(mode=0o600)
    key_file.write_text(key["key"])
    done = meshd("approvals", "approve", pending[0]["id"], "--key-file", str(key_file), **home)
    assert done.returncode == 0, done.stderr
    assert "100 ACME at 97, execution" in desk.until("execution")
