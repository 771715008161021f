"""The compose file is what the compose specification allows, and what reads it here refuses what that does not."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.compose import COMPOSE, DOCUMENT, FILE
from tests.deploy.compose_spec import problems
from tests.engines.servers import Server, program, running
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

MESH = "services.market-analysis-mesh"


def test_it_is_valid() -> None:
    assert problems(DOCUMENT) == []


def test_compose_itself_takes_it() -> None:
    """Where docker compose is installed; what reads it here stands in for that elsewhere."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return
    done = subprocess.run([docker, "compose", "-f", str(FILE), "config", "--quiet"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("version", "3", "version: Extra inputs"),
        ("name", "Trading", "name"),
        (f"{MESH}.enviroment", {}, "enviroment: Extra inputs"),
        (f"{MESH}.image", None, "image"),
        (f"{MESH}.restart", False, "restart"),
        (f"{MESH}.read_only", "yes", "read_only"),
        (f"{MESH}.environment.MESHD_API", True, "MESHD_API"),
        (f"{MESH}.environment.mesh api", "x", "environment"),
        (f"{MESH}.stop_grace_period", "40", "stop_grace_period"),
        (f"{MESH}.stop_grace_period", 40, "stop_grace_period"),
        (f"{MESH}.secrets", ["mesh-key"], "there is no secret mesh-key"),
        (f"{MESH}.configs", [{"source": "none", "target": "/x"}], "there is no config none"),
        (f"{MESH}.configs", [{"source": "nats", "target": "x"}], "target"),
        (f"{MESH}.depends_on", {"natz": {"condition": "service_healthy"}}, "there is no service natz"),
        (f"{MESH}.depends_on", {"nats": {"condition": "healthy"}}, "condition"),
        (f"{MESH}.depends_on", {"exchange": {"condition": "service_healthy"}}, "never is healthy"),
        (f"{MESH}.depends_on", {"desk": {"condition": "service_started"}}, "without its profile"),
        (f"{MESH}.depends_on", {"market-analysis": {"condition": "service_started"}}, "waits for itself"),
        (f"{MESH}.networks", {"default": {}}, "exclude each other"),
        ("services.market-analysis-net.networks", {"mesh": {}}, "there is no network mesh"),
        (f"{MESH}.volumes", ["data:/var/lib/meshd"], "there is no volume data"),
        (f"{MESH}.volumes", ["market-analysis"], "volumes"),
        (f"{MESH}.tmpfs", ["tmp"], "tmpfs"),
        (f"{MESH}.healthcheck", {"test": ["wget"]}, "CMD"),
        (f"{MESH}.healthcheck", {"test": ["CMD", "x"], "retries": 0}, "retries"),
        (f"{MESH}.stop_signal", "TERM", "stop_signal"),
        (f"{MESH}.user", "nobody", "user"),
        ("services.supervisor.network_mode", "service:desk", "no network of its own"),
        ("services.supervisor.network_mode", "service:none", "there is no service none"),
        ("volumes.nats", {"drivers": "local"}, "volumes"),
        ("secrets.mesh_key.path", "x", "path: Extra inputs"),
    ],
)  # fmt: skip
def test_what_it_may_not_be_is_found(place: str, value: Any, words: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    *way, last = place.split(".")
    at = document
    for one in way:
        at = at[one]
    at[last] = value
    assert any(words in one for one in problems(document)), problems(document)


async def test_nats_starts_with_its_command_and_is_found_healthy(tmp_path: Path) -> None:
    service, port, health = DOCUMENT["services"]["nats"], free_port(), free_port()
    (mounted,) = service["configs"]
    text = (COMPOSE / DOCUMENT["configs"][mounted["source"]]["file"]).read_text()
    (volume,) = service["volumes"]
    assert f"store_dir: {volume.split(':')[1]}\n" in text, "what is acknowledged is on the volume"
    server = program("nats-server")
    version = re.search(r"v(\d+)\.(\d+)", subprocess.check_output([server, "--version"], text=True))
    assert version is not None
    assert "sync_interval: always\n" in text
    if tuple(map(int, version.groups())) < (2, 10):  # the image's knows it
        text = text.replace("  sync_interval: always\n", "")
    file = tmp_path / "nats.conf"
    changed = text.replace("/data", str(tmp_path / "data")).replace("127.0.0.1:8222", f"127.0.0.1:{health}")
    file.write_text(f"{changed}\nhost: 127.0.0.1\nport: {port}\n")
    command = [str(file) if one == mounted["target"] else one for one in service["command"]]
    assert str(file) in command
    async with running(Server([server, *command], port)):
        kind, *check = service["healthcheck"]["test"]
        assert (kind, check[0]) == ("CMD", "wget")
        asked = [one.replace(":8222", f":{health}") for one in check]
        asked[0] = program("wget")
        assert re.search('"status": ?"ok"', subprocess.run(asked, capture_output=True, check=True, text=True).stdout)
