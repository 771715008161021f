"""Signatures of agent cards: JWS over JCS, detached (A2A 1.0, section 8.4). Keys are handed in; nothing is fetched.

A signature counts by a key that the policy names and by nothing in the card: its `jku` is never followed. What is
signed is the card without its signatures and without default values, in the spelling of RFC 8785. Which default values
go is read in more than one way by those who sign, so a card is looked at in each; none lets anybody add what says
something, but for members of 0.3 beside those of 1.0: they are no part of what the official SDK signs.
"""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.discovery.cards import DEPTH_MAX, CardError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURES_MAX: Final = 8
"""Of one card that are tried."""
_EXACT_BELOW: Final = 2.0**53
_FIXED_FROM, _FIXED_BELOW = -6, 21
"""Powers of ten between which a number is written without an exponent."""
_KEPT: Final = frozenset(
    {
        # Required fields of a card and of what stands in it, and optional ones, whose presence says something.
        "name", "description", "supportedInterfaces", "version", "capabilities", "defaultInputModes",
        "defaultOutputModes", "skills", "url", "protocolBinding", "protocolVersion", "organization", "id", "tags",
        "documentationUrl", "iconUrl", "streaming", "pushNotifications", "extendedAgentCard",
    }
)  # fmt: skip
_OLD: Final = frozenset(
    {
        "url", "preferredTransport", "protocolVersion", "additionalInterfaces", "security",
        "supportsAuthenticatedExtendedCard",
    }
)  # fmt: skip
"""Members of 0.3, which the official SDK writes into cards of 1.0 after they were signed."""
_OPAQUE: Final = frozenset({"params", "header"})
"""Members of which the protocol says nothing: they are signed as they are."""


class SignatureError(CardError):
    """A card's signature does not verify, or is missing where it must be there."""


class CardKey(NamedTuple):
    """A public key of `cryptography`, as the policy names it."""

    key: Any
    kid: str = ""
    """Empty where its file says none: it is then tried for every signature."""


def verify(card: dict[str, Any], keys: tuple[CardKey, ...]) -> str:
    """Return the id of the key by which a card is signed. Raises SignatureError where it is signed by none of them."""
    signatures = card.get("signatures")
    if not isinstance(signatures, list) or not signatures:
        raise SignatureError("it is not signed")
    payloads = [_encoded(form) for form in forms(card)]
    why = "none of its signatures is of a key that the policy names"
    for signature in signatures[:SIGNATURES_MAX]:
        protected, signed = _parts(signature)
        header = _header(protected)
        if header is None or "crit" in header:
            continue
        for one in keys:
            if one.kid and header.get("kid") not in (None, one.kid):
                continue
            for payload in payloads:
                if _is_signed(one.key, header.get("alg"), f"{protected}.{payload}".encode(), signed):
                    return one.kid or thumbprint(one.key)
            why = f"its signature does not verify by the key {one.kid or thumbprint(one.key)}"
    raise SignatureError(why)


def forms(card: dict[str, Any]) -> list[bytes]:
    """Return what may have been signed of a card. Raises CardError where it has no canonical form."""
    bare = {name: value for name, value in card.items() if name != "signatures"}
    found = (signed_form(bare), _sparse(bare), _without_empty(bare) or {}, bare)
    return list(dict.fromkeys(jcs(form) for form in found))


def sign(card: dict[str, Any], private: Any, kid: str, jku: str) -> dict[str, Any]:
    """Return a card with one signature, in the place of those that it has: ES256, by a key of the curve P-256."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    bare = {name: value for name, value in card.items() if name != "signatures"}
    header = {"alg": "ES256", "typ": "JOSE", "kid": kid, "jku": jku}
    protected = _encoded(jcs(header))
    payload = _encoded(jcs(signed_form(bare)))
    r, s = decode_dss_signature(private.sign(f"{protected}.{payload}".encode(), *_ecdsa("ES256")))
    signed = _encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    return {**bare, "signatures": [{"protected": protected, "signature": signed}]}


# ---------------------------------------------------------------------- keys


def read_keys(text: bytes) -> tuple[CardKey, ...]:
    """Return the public keys of a file: a JWKS, one JWK, or PEM. Raises ValueError saying what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if text.lstrip().startswith(b"-----"):
        if b"PRIVATE" in text:
            raise ValueError("it holds a private key: the public one is enough to verify with, and all that it needs")
        try:
            return (CardKey(load_pem_public_key(text)),)
        except UnsupportedAlgorithm as error:
            raise ValueError(f"it is of a kind that cannot be used: {error}") from None
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is neither PEM nor JSON: {error}") from None
    listed = said.get("keys") if isinstance(said, dict) and "keys" in said else [said]
    if not isinstance(listed, list) or not listed:
        raise ValueError("it holds no key")
    return tuple([_of_jwk(one) for one in listed])


def _of_jwk(jwk: Any) -> CardKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if not isinstance(jwk, dict):
        raise ValueError("a key in it is no JSON object")
    kid = jwk.get("kid")
    kid = kid if isinstance(kid, str) else ""
    curves: dict[Any, Any] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
    try:
        if jwk.get("kty") == "EC" and jwk.get("crv") in curves:
            return CardKey(
                ec.EllipticCurvePublicNumbers(
                    _number_in(jwk["x"]), _number_in(jwk["y"]), curves[jwk["crv"]]()
                ).public_key(),
                kid,
            )
        if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
            return CardKey(ed25519.Ed25519PublicKey.from_public_bytes(_bytes_in(jwk["x"])), kid)
        if jwk.get("kty") == "RSA":
            return CardKey(rsa.RSAPublicNumbers(_number_in(jwk["e"]), _number_in(jwk["n"])).public_key(), kid)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a key in it lacks a member, or has one that is no text: {error}") from None
    raise ValueError(f"a key in it is of the kind {str(jwk.get('kty'))[:32]!r}; EC, OKP (Ed25519) and RSA are read")


def public_jwk(public: Any) -> dict[str, str]:
    """Return a public key of the curve P-256 as a JWK."""
    numbers = public.public_numbers()
    x, y = (_encoded(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": thumbprint(public)}


def thumbprint(public: Any) -> str:
    """Return what names a key that has no name: the beginning of the SHA-256 of its DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(der).hexdigest()[:32]


def _number_in(text: str) -> int:
    return int.from_bytes(_bytes_in(text), "big")


def _bytes_in(text: str) -> bytes:
    if len(text) % 4 == 1:
        raise ValueError("a member of a key in it is no base64url")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


# ---------------------------------------------------------------------- one signature


def _parts(signature: Any) -> tuple[str, bytes]:
    protected = signature.get("protected") if isinstance(signature, dict) else None
    signed = signature.get("signature") if isinstance(signature, dict) else None
    if not isinstance(protected, str) or not isinstance(signed, str) or not protected.isascii():
        return "", b""
    try:
        return protected, _bytes_in(signed)
    except ValueError:
        return "", b""


def _header(protected: str) -> dict[str, Any] | None:
    try:
        header = json.loads(_bytes_in(protected))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _is_signed(key: Any, alg: Any, data: bytes, signed: bytes) -> bool:
    """Say whether a signature is of a key, by an algorithm that is that key's: never by what the card would like."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            size = (key.key_size + 7) // 8
            if alg != {256: "ES256", 384: "ES384", 521: "ES512"}.get(key.key_size) or len(signed) != 2 * size:
                return False
            halves = (int.from_bytes(signed[:size], "big"), int.from_bytes(signed[size:], "big"))
            key.verify(encode_dss_signature(*halves), data, *_ecdsa(alg))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            if alg not in ("EdDSA", "Ed25519"):
                return False
            key.verify(signed, data)
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(alg, str) and alg[:2] in ("RS", "PS"):
            hashed = _hash(alg)
            if hashed is None:
                return False
            pad: Any = padding.PKCS1v15() if alg[:2] == "RS" else padding.PSS(padding.MGF1(hashed), hashed.digest_size)
            key.verify(signed, data, pad, hashed)
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True


def _ecdsa(alg: str) -> tuple[Any, ...]:
    from cryptography.hazmat.primitives.asymmetric import ec

    return (ec.ECDSA(_hash(alg)),)


def _hash(alg: str) -> Any:
    from cryptography.hazmat.primitives import hashes

    known: dict[str, Any] = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
    made = known.get(alg[2:])
    return None if made is None else made()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---------------------------------------------------------------------- what is signed


def signed_form(bare: dict[str, Any]) -> dict[str, Any]:
    """Return of a card without signatures what the official SDK signs and verifies."""
    if isinstance(bare.get("supportedInterfaces"), list):
        bare = {name: value for name, value in bare.items() if name not in _OLD}
        skills = bare.get("skills")
        if isinstance(skills, list):
            bare["skills"] = [
                {name: value for name, value in one.items() if name != "security"} if isinstance(one, dict) else one
                for one in skills
            ]
    return _without_empty(_sparse(bare)) or {}


def _without_empty(value: Any) -> Any:
    """Return JSON without texts, lists and objects that are empty; None where nothing is left of it."""
    if isinstance(value, dict):
        kept = {name: left for name, one in value.items() if (left := _without_empty(one)) is not None}
        return kept or None
    if isinstance(value, list):
        return [left for one in value if (left := _without_empty(one)) is not None] or None
    return None if value == "" else value


def _sparse(value: Any) -> Any:
    """Return JSON without members that have their default, but for those that the specification keeps."""
    if isinstance(value, dict):
        found = {}
        for name, one in value.items():
            left = one if name in _OPAQUE else _sparse(one)
            is_default = left in ("", None) or left is False or left == [] or left == {} or (left == 0 and left != "")
            if name in _KEPT or not is_default:
                found[name] = left
        return found
    if isinstance(value, list):
        return [_sparse(one) for one in value]
    return value


def jcs(value: Any) -> bytes:
    """Return JSON in the spelling of RFC 8785. Raises CardError for what has none."""
    try:
        return "".join(_spelled(value, 0)).encode()
    except UnicodeEncodeError:
        raise CardError("it holds half of a surrogate pair") from None
    except OverflowError:
        raise CardError("it holds a number that is beyond what a double can hold") from None


def _spelled(value: Any, depth: int) -> Iterator[str]:
    if depth > 2 * DEPTH_MAX:
        raise CardError(f"it is nested more than {DEPTH_MAX} deep")
    if isinstance(value, dict):
        yield "{"
        for at, name in enumerate(sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))):
            yield f"{',' if at else ''}{json.dumps(name, ensure_ascii=False)}:"
            yield from _spelled(value[name], depth + 1)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for at, one in enumerate(value):
            if at:
                yield ","
            yield from _spelled(one, depth + 1)
        yield "]"
    elif isinstance(value, int) and not isinstance(value, bool) and value != int(float(value)):
        # RFC 8785, 3.2.2.3: its neighbours would have the same spelling, and so the same signature.
        raise CardError("it holds a whole number that a double cannot hold")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield _number(float(value))
    else:
        yield json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """Return a double as ECMAScript writes it (RFC 8785, 3.2.2.3)."""
    if value - value != 0.0:
        raise OverflowError
    if value == int(value) and abs(value) < _EXACT_BELOW:
        return str(int(value))
    text = repr(value)
    mantissa, _, power = text.partition("e")
    if not power:
        return text.removesuffix(".0")
    exponent = int(power)
    if exponent < _FIXED_FROM:
        return f"{mantissa.removesuffix('.0')}e{exponent}"
    if exponent < _FIXED_BELOW:
        return format(Decimal(text), "f")
    return f"{mantissa.removesuffix('.0')}e+{exponent}"
