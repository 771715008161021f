"""The real daemon between the official client and a real agent: signed cards, runs, keys, talks and bad bodies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import jwt
import pytest
from a2a.client import ClientCallContext
from a2a.types import GetExtendedAgentCardRequest, GetTaskRequest, TaskState, a2a_pb2_grpc
from a2a.utils.signing import create_agent_card_signer, create_signature_verifier
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.a2a.sample_agent import SampleAgent, Worker
from tests.a2a.talking import BINDINGS, VERSIONS, card_at, client_of, message, only, said
from tests.end_to_end.conftest import sidecar, sidecars
from tests.end_to_end.sidecar import environ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.end_to_end.sidecar import Sidecar

__all__ = ["sidecar", "sidecars"]
KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def signer(key: Any) -> Any:
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    header = {"alg": "ES256", "kid": "agent-key", "jku": "http://127.0.0.1:9/never-asked", "typ": "JOSE"}
    return create_agent_card_signer(text, header)  # type: ignore[arg-type]


@pytest.fixture
async def signing() -> AsyncIterator[SampleAgent]:
    made = await SampleAgent(Worker(), sign=signer(KEY)).start()
    yield made
    await made.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.pem"
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def policy(agent: SampleAgent, card: str = "", more: str = "") -> str:
    return (
        "agent: manager\nupstreams:\n"
        f'  echo: {{url: "http://127.0.0.1:{agent.port}", kind: agent, dialect: a2a{card}}}\n'
        f'  echo-grpc: {{url: "http://127.0.0.1:{agent.grpc_port}", kind: agent, dialect: a2a}}\n{more}'
    )


async def fetched(url: str, *, method: str = "GET", **what: Any) -> httpx.Response:
    """Ask, in the loop that serves the agent too."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return await http.request(method, url, **what)


async def started(sidecar: Sidecar, document: str) -> Sidecar:
    return await asyncio.to_thread(sidecar.start, document)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("binding", BINDINGS)
async def test_the_official_client_by_the_card_that_it_gets(
    sidecar: Sidecar, agent: Any, binding: str, version: str
) -> None:
    await started(sidecar, policy(agent))
    card = only(await card_at(f"{sidecar.url}/echo"), binding, version)
    async with client_of(card, is_streaming=True) as client:
        events = await said(client, message("work"))
        task = await client.get_task(GetTaskRequest(id=events[0].task.id))
    assert task.status.state == TaskState.TASK_STATE_COMPLETED


async def test_a_signed_card_is_verified_and_signed_anew(
    sidecar: Sidecar, signing: SampleAgent, key_file: Path
) -> None:
    await started(sidecar, policy(signing, f", card: {{keys: [{key_file}], require_signature: true}}"))
    keys = (await fetched(f"{sidecar.url}/.well-known/meshd-jwks.json")).json()["keys"]
    asked: list[str | None] = []

    def provider(kid: str | None, jku: str | None) -> Any:
        asked.append(jku)
        return jwt.PyJWK(next(one for one in keys if one["kid"] == kid))

    card = await card_at(f"{sidecar.url}/echo", signature_verifier=create_signature_verifier(provider, ["ES256"]))

    assert asked == [f"{sidecar.url}/.well-known/meshd-jwks.json"]
    assert card.supported_interfaces[0].url == f"{sidecar.url}/echo/"
    assert (sidecar.home / "card-key.pem").stat().st_mode & 0o777 == 0o600
    assert "d" not in keys[0]
    # The key stays: a card that was taken yesterday verifies tomorrow.
    again = (await fetched(f"{sidecar.url}/.well-known/meshd-jwks.json")).json()["keys"]
    assert again == keys


def over_grpc(agent: SampleAgent, sidecar: Sidecar, key: Path) -> tuple[str, Any]:
    """Return a policy whose gRPC upstream has to sign its cards, and a card that leads to that."""
    text = policy(agent)
    at = text.rindex("dialect: a2a}")
    text = text[:at] + f"dialect: a2a, card: {{keys: [{key}], require_signature: true}}}}" + text[at + 13 :]
    bare = only(agent.card, "GRPC", "1.0")
    return text, bare


async def test_a_signed_card_over_grpc_is_verified_and_signed_anew(
    sidecar: Sidecar, signing: SampleAgent, key_file: Path
) -> None:
    text, bare = over_grpc(signing, sidecar, key_file)
    await started(sidecar, text)
    bare.supported_interfaces[0].url = f"echo-grpc.localhost:{sidecar.port}"
    keys = (await fetched(f"{sidecar.url}/.well-known/meshd-jwks.json")).json()["keys"]

    def provider(kid: str | None, jku: str | None) -> Any:
        return jwt.PyJWK(next(one for one in keys if one["kid"] == kid))

    async with client_of(bare) as client:
        card = await client.get_extended_agent_card(
            GetExtendedAgentCardRequest(), signature_verifier=create_signature_verifier(provider, ["ES256"])
        )
    assert {one.url for one in card.supported_interfaces if one.protocol_binding == "GRPC"} == {
        f"echo-grpc.localhost:{sidecar.port}"
    }
    assert not any(f":{signing.port}" in one.url for one in card.supported_interfaces)
    assert len(card.signatures) == 1


async def test_a_card_over_grpc_that_another_has_signed_is_refused(
    sidecar: Sidecar, signing: SampleAgent, tmp_path: Path
) -> None:
    path = tmp_path / "other.pem"
    path.write_bytes(OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    text, bare = over_grpc(signing, sidecar, path)
    await started(sidecar, text)
    bare.supported_interfaces[0].url = f"echo-grpc.localhost:{sidecar.port}"
    async with client_of(bare) as client:
        with pytest.raises(Exception, match=r"card\.keys"):
            await client.get_extended_agent_card(GetExtendedAgentCardRequest())


async def test_a_card_that_another_has_signed_is_refused(
    sidecar: Sidecar, signing: SampleAgent, tmp_path: Path
) -> None:
    path = tmp_path / "other.pem"
    path.write_bytes(OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    await started(sidecar, policy(signing, f", card: {{keys: [{path}]}}"))
    response = await fetched(f"{sidecar.url}/echo/.well-known/agent-card.json")

    assert (response.status_code, response.headers["x-meshd-reason"]) == (403, "not_allowed")
    assert "upstreams.echo.card.keys" in response.json()["error"]["message"]
    page = (await fetched(f"{sidecar.url}/.well-known/agent-cards")).json()
    assert "echo" not in [one["agent"] for one in page["cards"]]


async def test_a_card_without_a_signature_is_refused_where_one_is_required(
    sidecar: Sidecar, agent: Any, key_file: Path
) -> None:
    await started(sidecar, policy(agent, f", card: {{keys: [{key_file}], require_signature: true}}"))
    response = await fetched(f"{sidecar.url}/echo/.well-known/agent-card.json")

    assert response.status_code == 403
    assert "not signed" in response.json()["error"]["message"]
    body = {"jsonrpc": "2.0", "id": 7, "method": "GetExtendedAgentCard"}
    extended = await fetched(f"{sidecar.url}/echo/", json=body, headers={"a2a-version": "1.0"}, method="POST")
    assert (extended.status_code, extended.json()["id"], extended.json()["error"]["code"]) == (200, 7, -32014)


async def test_where_nobody_verifies_a_signature_goes(sidecar: Sidecar, signing: SampleAgent) -> None:
    await started(sidecar, policy(signing))
    response = await fetched(f"{sidecar.url}/echo/.well-known/agent-card.json")

    assert "signatures" not in response.json()
    assert response.headers["x-meshd-card"].endswith("signature=removed")
    assert not (sidecar.home / "card-key.pem").exists()


async def test_a_card_of_a_run_leads_into_that_run(sidecar: Sidecar, agent: Any) -> None:
    await started(sidecar, policy(agent))
    command = [sys.executable, "-m", "meshd.cli", "exec", "--", sys.executable, "-c"]
    command.append("import os; print(os.environ['MESHD_URL'])")
    found = await asyncio.to_thread(
        subprocess.run, command, env=environ(MESHD_HOME=str(sidecar.home)), capture_output=True, check=True
    )
    run = found.stdout.decode().strip()
    card = await card_at(f"{run}/echo")

    assert {one.protocol_binding for one in card.supported_interfaces} == {"JSONRPC", "HTTP+JSON"}
    assert all(one.url.startswith(f"{run}/echo") for one in card.supported_interfaces)
    async with client_of(only(card, "HTTP+JSON", "1.0")) as client:
        assert (await said(client, message("message hi")))[-1].message.parts[0].text == "you said message hi"
    page = (await fetched(f"{run}/.well-known/agent-cards")).json()
    assert page["cards"][0]["card"]["supportedInterfaces"][0]["url"] == f"{run}/echo/"


@pytest.mark.parametrize("binding", BINDINGS)
async def test_a_message_that_is_sent_again_is_carried_out_once(sidecar: Sidecar, agent: Any, binding: str) -> None:
    await started(sidecar, policy(agent))
    card = only(await card_at(f"{sidecar.url}/echo"), binding, "1.0")
    same = message("message once", message_id="m-once")
    async with client_of(card) as client:
        answers = [(await said(client, same))[-1].message.message_id for _ in range(2)]

    assert agent.worker.told == ["message once"]
    assert answers[0] == answers[1]


def call_records(sidecar: Sidecar) -> str:
    return sidecar.get("/metrics")[1]


@pytest.mark.parametrize("binding", BINDINGS)
async def test_what_goes_on_with_a_context_belongs_to_its_workflow(sidecar: Sidecar, agent: Any, binding: str) -> None:
    await started(sidecar, policy(agent))
    card = only(await card_at(f"{sidecar.url}/echo"), binding, "1.0")
    async with client_of(card) as client:
        # In a workflow that the caller names; the agent makes the context.
        named = named_as(client, "report-42")
        task = (await said(named, message("ask")))[-1].task
        await said(client, message("message on", context_id=task.context_id))
        await said(client, message("message other"))
    counted = [line for line in call_records(sidecar).splitlines() if line.startswith("meshd_calls_by_evidence_total")]
    by = {line.split('evidence="')[1].split('"')[0]: float(line.split()[-1]) for line in counted}
    assert by.get("named") == 1
    assert by.get("relayed") == 1
    assert by.get("none", 0) >= 1


def named_as(client: Any, workflow: str) -> Any:
    """The same client, whose calls say the name of a workflow."""

    class Named:
        def send_message(self, request: Any) -> Any:
            context = ClientCallContext(service_parameters={"x-meshd-workflow": workflow})
            return client.send_message(request, context=context)

    return Named()


async def test_bad_bodies_are_refused_and_the_next_call_is_served(sidecar: Sidecar, agent: Any) -> None:
    await started(sidecar, policy(agent))
    base = f"{sidecar.url}/echo"
    fields = {"a2a-version": "1.0", "content-type": "application/json"}
    for body in (b"<x/>", b"[]", b'{"message": {"messageId": "a", "messageId": "b"}}'):
        response = await fetched(f"{base}/message:send", method="POST", content=body, headers=fields)
        assert (response.status_code, response.headers["x-meshd-reason"]) == (400, "malformed")
        assert response.json()["error"]["details"][0]["reason"] == "INVALID_REQUEST"
    long = {
        "message": {"messageId": "m", "contextId": "c" * 10_000, "role": "ROLE_USER", "parts": [{"text": "message"}]}
    }
    response = await fetched(f"{base}/message:send", method="POST", json=long, headers=fields)
    assert response.status_code == 200
    assert agent.worker.contexts == ["c" * 10_000]

    request = message("message hi")
    whole = request.SerializeToString()
    async with grpc.aio.insecure_channel(f"echo-grpc.localhost:{sidecar.port}") as channel:
        raw = channel.unary_unary("/lf.a2a.v1.A2AService/SendMessage")
        for body in (whole[:-1], whole + whole, b"\xff\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(body, timeout=20)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        stub = a2a_pb2_grpc.A2AServiceStub(channel)
        answer = await stub.SendMessage(request, metadata=(("a2a-version", "1.0"),), timeout=20)
    assert answer.message.parts[0].text == "you said message hi"
