"""The compose file and its policies: what they name is there, and means what the article wants of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from meshd.config import ALIASES, Address, from_environment
from meshd.policy.model import LimitsSection
from meshd_sdk.agent import GRACE_S
from tests.deploy.compose import (
    COMPOSE,
    DOCUMENT,
    FILE,
    HAS_NATS,
    SERVICES,
    SIDECARS,
    meshd,
    mounted,
    policies,
    sidecar_of,
)
from tests.deploy.test_dockerfile import LAST
from tests.repository.tree import ROOT

AGENTS = {name: one for name, one in SERVICES.items() if "/agents/" in str(one.get("entrypoint"))}


def test_the_files_that_it_names_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in DOCUMENT["volumes"] or (COMPOSE / source).is_dir()
        if "build" in service:
            assert (COMPOSE / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert all((COMPOSE / one["file"]).is_file() for one in DOCUMENT["configs"].values())


def test_images_are_of_one_version() -> None:
    images = {service["image"] for service in SERVICES.values()}
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+(-alpine)?", image) for image in images)
    (own,) = (image for image in images if image.startswith("agent-meshd:"))
    assert f'version="{own.partition(":")[2]}"' in (ROOT / "deploy" / "Dockerfile").read_text()


def test_secrets_are_files_and_nothing_is_published() -> None:
    assert DOCUMENT["secrets"] == {"mesh_key": {"file": "./secrets/mesh.key"}}
    for service in SERVICES.values():
        assert "ports" not in service
        assert not [key for key in service.get("environment", {}) if re.search("SECRET|TOKEN|PASSWORD|API_KEY", key)]
    for name in SIDECARS:
        service = sidecar_of(name)
        assert service["secrets"] == ["mesh_key"]
        assert service["environment"]["MESHD_MESH_KEY"] == "/run/secrets/mesh_key"
    # No agent is given the key.
    assert not [name for name, one in AGENTS.items() if one.get("secrets")]


@pytest.mark.parametrize("name", SIDECARS)
def test_settings_of_a_sidecar_are_ones_that_meshd_knows(name: str) -> None:
    given = dict(sidecar_of(name)["environment"])
    source = (ROOT / "meshd" / "config.py").read_text()
    assert set(given) >= set(ALIASES)
    own = [key for key in given if key not in ALIASES]
    assert [key for key in own if key in source or f'"{key.removeprefix("MESHD_").lower()}"' in source] == own
    if not HAS_NATS:
        assert given.pop("EVENT_BUS_URL") == "nats://nats:4222?synced=true"
    config = from_environment(given)
    assert (config.agent, config.hops, config.app) == (name, 5, "session")
    assert (config.inbound, config.metrics) == (Address("0.0.0.0", 7401), Address("0.0.0.0", 9464))
    # What is the agent's alone stays on loopback, which the two share.
    assert {one.host for one in (config.listen, config.admin)} == {"127.0.0.1"}


def test_an_agent_is_beside_its_sidecar_and_waits_for_it() -> None:
    for name in SIDECARS:
        agent, beside = SERVICES[name], f"{name}-mesh"
        assert agent["network_mode"] == sidecar_of(name)["network_mode"] == f"service:{name}-net"
        assert agent["depends_on"][beside] == {"condition": "service_healthy"}
        assert agent["environment"]["AGENT_ROLE"] == sidecar_of(name)["environment"]["AGENT_ROLE"] == name
        assert SERVICES[f"{name}-net"]["networks"]["default"]["aliases"] == [name]
    programs = {Path(one["entrypoint"][1]).name for one in AGENTS.values()}
    folder = ROOT / "examples" / "trading"
    assert programs == {one.name for one in folder.glob("*.py")} - {"journal.py"}


def test_a_network_that_is_shared_belongs_to_nobody_who_may_be_started_anew() -> None:
    """A container that is started anew gets another network, and who shared the old one stays behind there."""
    shared = {one["network_mode"].removeprefix("service:") for one in SERVICES.values() if "network_mode" in one}
    assert shared == {f"{name}-net" for name in SIDECARS}
    for name in shared:
        assert SERVICES[name]["entrypoint"] == ["sleep", "infinity"]
        assert SERVICES[name]["stop_signal"] == "SIGKILL", "a first process without a handler does not hear SIGTERM"


def test_every_container_of_the_image_has_something_where_its_volume_belongs() -> None:
    """Or the engine makes a volume without a name for it, at each start another, and leaves them all behind."""
    place = json.loads(LAST["VOLUME"])
    assert place == ["/var/lib/meshd"]
    for service in (one for one in SERVICES.values() if one["image"].startswith("agent-meshd:")):
        temporary = [one.partition(":")[0] for one in service.get("tmpfs", [])]
        assert [*temporary, *(one.split(":")[1] for one in service["volumes"])].count(place[0]) == 1
        # Else it is root's, with the image's mode, and nobody can write there. Some engines do not look at `mode`.
        owner = "uid={},gid={}".format(*LAST["USER"].split(":"))
        assert place[0] not in temporary or f"{place[0]}:{owner},mode=0700" in service["tmpfs"]


def test_what_is_under_way_may_finish() -> None:
    """Compose kills a container after 10 seconds, unless it is told otherwise."""
    drain_s = LimitsSection.model_fields["drain"].default
    for service in (one for one in SERVICES.values() if one["image"].startswith("agent-meshd:")):
        given = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
        assert given is not None
        assert int(given[1]) >= (GRACE_S if service in AGENTS.values() else drain_s) + 5


def test_a_policy_that_an_editor_replaces_is_seen() -> None:
    """An engine mounts a file as it was: what takes its place is another file. A directory's files are as they are."""
    for name in SIDECARS:
        own = sidecar_of(name)["environment"]["MESHD_POLICY"].split(":")[0]
        assert mounted(sidecar_of(name))[own] == COMPOSE / "policies" / name
        assert (COMPOSE / "policies" / name).is_dir()


def test_the_image_is_built_once() -> None:
    """Each service that builds exports an image of its own, and all but one of them lose their name."""
    assert [name for name, one in SERVICES.items() if "build" in one] == ["market-analysis-mesh"]


def test_the_mesh_policy_is_the_article_s_and_every_sidecar_s(tmp_path: Path) -> None:
    text = (COMPOSE / "mesh_policy.yaml").read_text()
    assert text == (ROOT / "policies" / "governance.yaml").read_text()
    for name in SIDECARS:
        assert mounted(sidecar_of(name))["/etc/meshd/mesh_policy.yaml"] == COMPOSE / "mesh_policy.yaml"
        done = meshd("check", *policies(name, tmp_path).split(":"))
        assert done.returncode == 0, done.stderr
        assert "fine" in done.stdout


def test_addresses_in_policies_are_those_of_services() -> None:
    exchange = SERVICES["exchange"]["environment"]["EXCHANGE_LISTEN"].rpartition(":")[2]
    known = {f"http://{name}:7401" for name in SIDECARS} | {f"http://exchange:{exchange}"}
    found = set()
    for file in (COMPOSE / "policies").glob("*/*.yaml"):
        found |= set(re.findall(r"http://[\w.:-]+", file.read_text()))
    assert found == {"http://risk-assessment:7401", f"http://exchange:{exchange}"}
    assert found <= known


def test_intents_are_found_by_the_labels_of_the_services() -> None:
    assert SERVICES["market-analysis"]["labels"] == {"ai.acme.intent": "market_analysis,technical_audit"}
    done = meshd("route", "--compose", str(FILE), "technical audit", "--json")
    assert done.returncode == 0, done.stderr
    assert '"market-analysis"' in done.stdout
