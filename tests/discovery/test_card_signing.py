"""Signatures of cards, by the official SDK's signer and verifier, and against forgeries."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from a2a.client.card_resolver import parse_agent_card
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types import AgentCard
from a2a.utils._jcs import canonicalize
from a2a.utils.signing import create_agent_card_signer, create_signature_verifier
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery import card_signing
from meshd.discovery.card_signing import SignatureError, jcs, public_jwk, read_keys, sign, verify
from meshd.discovery.cards import CardError
from tests.a2a.sample_agent import card_of

KEYS: dict[str, Any] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
    "PS256": rsa.generate_private_key(65537, 2048),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def signed(alg: str = "ES256", card: AgentCard | None = None, **header: Any) -> dict[str, Any]:
    """A card as the official SDK's server serves it, members of 0.3 included."""
    made = card or card_of("http://127.0.0.1:1", "127.0.0.1:2")
    fields = {"alg": alg, "kid": "k", "jku": "http://127.0.0.1:9/steal", "typ": "JOSE"} | header
    create_agent_card_signer(private(KEYS[alg]).decode(), fields)(made)  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(json.dumps(agent_card_to_dict(made)))
    return found


@pytest.mark.parametrize("alg", KEYS)
def test_what_the_official_sdk_signs_verifies(alg: str) -> None:
    keys = read_keys(public(KEYS[alg]))

    assert verify(signed(alg), keys)


def test_a_jwks_is_read_and_the_id_of_a_key_counts() -> None:
    jwk = public_jwk(KEYS["ES256"].public_key())
    assert verify(signed(), read_keys(json.dumps({"keys": [{**jwk, "kid": "k"}]}).encode())) == "k"
    with pytest.raises(SignatureError, match="none of its signatures"):
        verify(signed(), read_keys(json.dumps({"keys": [{**jwk, "kid": "other"}]}).encode()))


def test_what_we_sign_verifies_with_the_official_sdk() -> None:
    key = KEYS["ES256"]
    jwk = public_jwk(key.public_key())
    card = agent_card_to_dict(card_of("http://127.0.0.1:1", "127.0.0.1:2"))
    asked: list[Any] = []

    def provider(kid: str | None, jku: str | None) -> Any:
        asked.append((kid, jku))
        return jwt.PyJWK(jwk)

    made = sign(card, key, jwk["kid"], "http://here/jwks")
    create_signature_verifier(provider, ["ES256"])(parse_agent_card(json.loads(json.dumps(made))))
    assert asked == [(jwk["kid"], "http://here/jwks")]
    assert verify(made, read_keys(json.dumps(jwk).encode())) == jwk["kid"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Another"},
        {"description": ""},
        {"extra": "said"},
        {"skills": []},
        {"capabilities": {"streaming": False}},
        {"supportedInterfaces": [{"url": "http://evil", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]},
    ],
    ids=lambda change: str(*change),
)
def test_a_card_that_was_changed_does_not_verify(change: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="does not verify"):
        verify({**signed(), **change}, read_keys(public(KEYS["ES256"])))


def forged(header: dict[str, Any], signature: bytes = b"x" * 64) -> dict[str, Any]:
    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    return {"protected": encoded(json.dumps(header).encode()), "signature": encoded(signature)}


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        {},
        "x",
        [None, 1, "x", {}],
        [{"protected": 1, "signature": 2}],
        [{"protected": "é", "signature": "AA"}],
        [{"protected": "A", "signature": "A"}],
        [{"protected": "AA", "signature": "AA"}],
        [forged({"alg": "none"}, b"")],
        [forged({"alg": "ES256"}, b"")],
        [forged({"alg": "ES256"}, b"\x00" * 64)],
        [forged({"alg": "HS256"})],
        [forged({"alg": ["ES256"]})],
        [forged({})],
        [{"protected": base64.urlsafe_b64encode(b"[" * 100_000).decode(), "signature": "AAAA"}],
    ],
)
def test_what_is_no_signature(signatures: Any) -> None:
    with pytest.raises(SignatureError):
        verify({**signed(), "signatures": signatures}, read_keys(public(KEYS["ES256"])))


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    """The confusion of algorithms: HS256 with the public key as its secret."""
    key = public(KEYS["ES256"])
    card = signed()
    payload = card_signing.forms(card)[0]
    header = {"alg": "HS256", "kid": "k"}
    one = forged(header)
    data = f"{one['protected']}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}".encode()
    card["signatures"] = [forged(header, hmac.new(key, data, hashlib.sha256).digest())]
    with pytest.raises(SignatureError):
        verify(card, read_keys(key))


def test_a_header_that_must_be_understood_is_none_that_counts() -> None:
    with pytest.raises(SignatureError):
        verify(signed(crit=["b64"], b64=False), read_keys(public(KEYS["ES256"])))


def test_one_good_signature_among_bad_ones_is_enough() -> None:
    card = signed()
    card["signatures"] = [forged({"alg": "ES256"}), *card["signatures"]]
    assert verify(card, read_keys(public(KEYS["ES256"])))
    card["signatures"] = [forged({"alg": "ES256"})] * 20 + card["signatures"]
    with pytest.raises(SignatureError):
        verify(card, read_keys(public(KEYS["ES256"])))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "neither PEM nor JSON"),
        (b"{}", "of the kind 'None'"),
        (b"[]", "no JSON object"),
        (b'{"keys": []}', "no key"),
        (b'{"keys": 7}', "no key"),
        (b'{"kty": "oct", "k": "AAAA"}', "of the kind 'oct'"),
        (b'{"kty": "EC", "crv": "P-256"}', "lacks a member"),
        (b'{"kty": "EC", "crv": "P-256", "x": 7, "y": 8}', "lacks a member"),
        (b'{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}', ""),
        (b'{"kty": "OKP", "crv": "Ed25519", "x": "AAAAA"}', "base64url"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", ""),
        (private(KEYS["ES256"]), "private key"),
    ],
)
def test_key_files_that_are_none(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_keys(text)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_the_canonical_form_is_that_of_the_official_sdk(value: Any) -> None:
    assert jcs(value).decode() == canonicalize(value)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 10**18 + 1, 10**400])
def test_a_whole_number_that_its_neighbours_would_be_signed_with_is_refused(number: int) -> None:
    with pytest.raises(CardError, match="double"):
        jcs({"limit": number})
    assert jcs(2**53) == b"9007199254740992"
