"""The manifests add a sound native sidecar: their own structure, and what kubectl and the published schemas say."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from meshd.config import Address, from_environment
from meshd.sources.labels import labelled
from tests.repository.tree import ROOT, name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KUSTOMIZE = ROOT / "deploy" / "kustomize"
EXAMPLE = KUSTOMIZE / "overlays" / "example"
VERSIONS = ("1.29", "1.33", "1.35")

Document = dict[str, Any]


def documents(text: str) -> list[Document]:
    """Return the documents of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def one(path: Path) -> Document:
    """Return the one document of a file."""
    (document,) = documents(path.read_text())
    return document


def named(items: list[Document], name: str) -> Document:
    """Return the one item of that name."""
    (item,) = (item for item in items if item["name"] == name)
    return item


SIDECAR = one(KUSTOMIZE / "base" / "sidecar.yaml")["spec"]["template"]
POD = SIDECAR["spec"]
MESHD = named(POD["initContainers"], "meshd")


@pytest.mark.parametrize("path", sorted(KUSTOMIZE.rglob("kustomization.yaml")), ids=name_of)
def test_what_a_kustomization_names_is_there(path: Path) -> None:
    document = one(path)
    found = [*document.get("resources", []), *document.get("components", [])]
    found += [patch["path"] for patch in document.get("patches", [])]
    found += [name for generator in document.get("configMapGenerator", []) for name in generator["files"]]
    assert found
    assert [name for name in found if not (path.parent / name).exists()] == []


def test_the_sidecar_is_native_and_bounded() -> None:
    assert MESHD["restartPolicy"] == "Always"
    assert MESHD["resources"]["limits"]["memory"]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", MESHD["image"])


def test_the_sidecar_may_do_nothing_that_it_need_not() -> None:
    may = MESHD["securityContext"]
    assert may["runAsNonRoot"] is True
    assert may["readOnlyRootFilesystem"] is True
    assert may["allowPrivilegeEscalation"] is False
    assert may["capabilities"] == {"drop": ["ALL"]}
    assert may["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"USER {may['runAsUser']}:{may['runAsGroup']}" in dockerfile


def test_probes_ask_the_right_questions_on_a_port_that_is_there() -> None:
    ports = {port["name"]: port["containerPort"] for port in MESHD["ports"]}
    asked = {kind: MESHD[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: ask["path"] for kind, ask in asked.items()} == {
        "startup": "/readyz/outbound",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {ask["port"] for ask in asked.values()} <= set(ports)
    assert (MESHD["startupProbe"]["periodSeconds"], MESHD["startupProbe"]["failureThreshold"]) == (1, 120)
    assert SIDECAR["metadata"]["annotations"]["prometheus.io/port"] == str(ports["meshd-metrics"])


def test_streams_may_end_before_the_pod_must() -> None:
    drain_s = int(named(MESHD["env"], "MESHD_DRAIN")["value"])
    assert POD["terminationGracePeriodSeconds"] >= drain_s + 10


def test_every_mount_has_its_volume_and_policy_is_a_directory() -> None:
    mounts = {mount["name"]: mount for mount in MESHD["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in POD["volumes"]}
    assert mounts["meshd-policy"]["mountPath"] == named(MESHD["env"], "MESHD_POLICY")["value"]
    assert mounts["meshd-state"]["mountPath"] == named(MESHD["env"], "MESHD_HOME")["value"]
    assert "subPath" not in mounts["meshd-policy"]


def test_settings_of_the_sidecar_are_ones_that_meshd_knows() -> None:
    given = {variable["name"]: variable["value"] for variable in MESHD["env"]}
    config = from_environment(given)
    assert (config.inbound, config.metrics) == (Address("0.0.0.0", 7401), Address("0.0.0.0", 9464))
    assert (str(config.home), config.app, config.drain_s) == ("/var/lib/meshd", "http://127.0.0.1:8080", 60.0)
    source = (ROOT / "meshd" / "config.py").read_text()
    known = [name for name in given if name in source or f'"{name.removeprefix("MESHD_").lower()}"' in source]
    assert known == list(given)


def test_the_agent_is_pointed_at_the_port_that_meshd_listens_on() -> None:
    from meshd.config import Config

    env = {variable["name"]: variable["value"] for variable in named(POD["containers"], "agent")["env"]}
    assert env == {
        "OPENAI_BASE_URL": f"http://{Config(home=ROOT).listen}/openai/v1",
        "ANTHROPIC_BASE_URL": f"http://{Config(home=ROOT).listen}/anthropic",
    }


def test_the_example_has_what_the_component_asks_for() -> None:
    deployment, service = documents((EXAMPLE / "agent.yaml").read_text())
    assert deployment["metadata"]["labels"]["meshd.io/sidecar"] == "enabled"
    assert named(deployment["spec"]["template"]["spec"]["containers"], "agent")["image"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in MESHD["ports"]}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    generated = {generator["name"] for generator in one(EXAMPLE / "kustomization.yaml")["configMapGenerator"]}
    assert {volume["configMap"]["name"] for volume in POD["volumes"] if "configMap" in volume} <= generated


def test_the_policy_of_the_example_loads_and_has_its_upstreams() -> None:
    from meshd.policy.document import load

    policy = load([EXAMPLE / "policy.yaml"])
    assert policy.agent == "researcher"
    assert {"openai", "anthropic", "writer"} <= set(policy.upstreams)


@pytest.fixture(scope="module")
def rendered(require_engine: Callable[[str], str]) -> list[Document]:
    """Return the example as kubectl renders it."""
    command = [require_engine("kubectl"), "kustomize", str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_accept_the_example(rendered: list[Document], version: str) -> None:
    assert {document["kind"] for document in rendered} == {"ConfigMap", "Service", "Deployment"}
    for document in rendered:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_would_refuse_an_unknown_field() -> None:
    broken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_kubectl_joins_the_sidecar_to_the_agent(rendered: list[Document]) -> None:
    (deployment,) = (document for document in rendered if document["kind"] == "Deployment")
    (policy,) = (document for document in rendered if document["kind"] == "ConfigMap")
    pod = deployment["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["agent"]
    env = [variable["name"] for variable in pod["containers"][0]["env"]]
    assert {"OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "LISTEN"} <= set(env)
    meshd = named(pod["initContainers"], "meshd")
    assert pod["initContainers"][0] is meshd
    assert {mount["name"] for mount in meshd["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert named(pod["volumes"], "meshd-policy")["configMap"]["name"] == policy["metadata"]["name"]
    assert named(pod["volumes"], "meshd-key")["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == meshd["securityContext"]["runAsGroup"]


def test_the_pods_labels_and_annotations_say_what_the_agent_is_for(rendered: list[Document], tmp_path: Path) -> None:
    (deployment,) = (document for document in rendered if document["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    meshd = named(template["spec"]["initContainers"], "meshd")
    mounted = named(meshd["volumeMounts"], "meshd-pod")
    items = named(template["spec"]["volumes"], "meshd-pod")["downwardAPI"]["items"]
    config = from_environment({"MESHD_LABELS": named(meshd["env"], "MESHD_LABELS")["value"]})
    assert [str(path) for path in config.labels] == [f"{mounted['mountPath']}/{item['path']}" for item in items]
    for item in items:
        values = template["metadata"][item["fieldRef"]["fieldPath"].removeprefix("metadata.")]
        # As the kubelet writes them.
        lines = [f"{key}={json.dumps(value)}" for key, value in sorted(values.items())]
        (tmp_path / item["path"]).write_text("\n".join(lines))
    entries = labelled("researcher", [tmp_path / path.name for path in config.labels])
    assert [entry.name for entry in entries] == ["find a paper", "look up a source"]
