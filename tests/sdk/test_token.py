"""The token says what was put in, to whom it was meant for, and nothing else does."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd_sdk.context import (
    HOPS_MAX,
    NO_CEILING,
    TOKEN_BYTES_MAX,
    Audience,
    Context,
    Key,
    Keyring,
    TokenInvalidError,
    TokenTooLongError,
    Why,
    mint,
    verify,
)

KEY = Key("k1", b"s" * 32)
RING = Keyring([KEY])
NOW_S = 1_790_000_000
NONCE = b"12345678"
PARENT = "00-" + "a1" * 16 + "-" + "b2" * 8 + "-01"
FULL = Context("wf-1", "writer", 3, ("a", "b", "a"), NOW_S + 10.5, "workflow/wf-1", 5000, PARENT, ("m1",))

names = st.text("abcdefgh-._:0123456789", min_size=1, max_size=12)
contexts = st.builds(
    Context,
    workflow=st.text("abc-0123", max_size=40),
    agent=names,
    hops=st.integers(0, HOPS_MAX),
    path=st.lists(names, max_size=8).map(tuple),
    deadline_s=st.none() | st.integers(0, 2**40).map(lambda ms: ms / 1000),
    account=names.map(lambda name: f"unattributed/{name}/2026-09-21"),
    ceiling=st.none() | st.integers(0, 2**63 - 1),
    parent=st.sampled_from(["", PARENT]),
    memory=st.lists(names, max_size=3).map(tuple),
).flatmap(
    lambda context: (
        st.just(context)
        if context.ceiling is None
        else st.builds(replace, st.just(context), ceiling_microdollars=st.none() | st.integers(0, 2**63 - 1))
    )
)


def minted(context: Context = FULL, ring: Keyring = RING, expires_s: int = NOW_S + 60) -> bytes:
    return mint(context, ring, audience=Audience.LOCAL, expires_s=expires_s, nonce=NONCE)


def signed(payload: bytes, key: Key = KEY) -> bytes:
    """Sign any bytes at all, as somebody with the key could."""
    data = key.prefix + payload
    return base64.urlsafe_b64encode(data + key.mac(data)).rstrip(b"=")


def why(token: bytes, ring: Keyring = RING, now_s: float = NOW_S) -> Why:
    with pytest.raises(TokenInvalidError) as caught:
        verify(token, ring, now_s=now_s)
    return caught.value.why


@given(contexts, st.sampled_from(Audience))
def test_a_token_says_what_was_put_in(context: Context, audience: Audience) -> None:
    token = mint(context, RING, audience=audience, expires_s=NOW_S + 60, nonce=NONCE)
    assert verify(token, RING, now_s=NOW_S) == (context, audience, NOW_S + 60)
    assert len(token) <= TOKEN_BYTES_MAX
    assert set(token) <= set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.floats(0, 2**38))
def test_a_deadline_is_cut_to_the_millisecond_and_then_stays(deadline_s: float) -> None:
    once = verify(minted(replace(FULL, deadline_s=deadline_s)), RING, now_s=NOW_S).context
    assert once.deadline_s is not None
    assert deadline_s - 0.0011 <= once.deadline_s <= deadline_s
    assert verify(minted(once), RING, now_s=NOW_S).context == once


def test_a_deadline_that_a_float_cannot_hold_loses_nothing_over_many_edges() -> None:
    context = replace(FULL, deadline_s=1.001)
    for _ in range(10):
        context = verify(minted(context), RING, now_s=NOW_S).context
    assert context.deadline_s == 1.001


def test_every_flipped_bit_is_found() -> None:
    token = minted()
    for index in range(len(token) * 8):
        altered = bytearray(token)
        altered[index // 8] ^= 1 << index % 8
        assert why(bytes(altered)) in set(Why) - {Why.EXPIRED}


def test_every_cut_and_every_addition_is_found() -> None:
    token = minted()
    for length in range(len(token)):
        why(token[:length])
    for more in (b"A", b"=", b" ", b"\n", b"AAAA", token):
        why(token + more)
        why(more + token)


def test_a_token_has_one_spelling() -> None:
    for length in range(8):
        token = minted(replace(FULL, agent="w" * (length + 1)))
        alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        verifying = 0
        for last in alphabet:
            try:
                verify(token[:-1] + bytes([last]), RING, now_s=NOW_S)
            except TokenInvalidError:
                continue
            verifying += 1
        assert verifying == 1


@given(st.binary(max_size=600))
def test_nonsense_is_refused_and_nothing_else(token: bytes) -> None:
    why(token)


@given(st.binary(max_size=300))
def test_signed_nonsense_is_refused_or_a_context_in_its_ranges(payload: bytes) -> None:
    try:
        context, audience, _ = verify(signed(payload), RING, now_s=0)
    except TokenInvalidError:
        return
    assert isinstance(audience, Audience)
    assert 0 <= context.hops <= HOPS_MAX


@given(st.data())
def test_a_signed_payload_with_bytes_of_nonsense_is_refused_or_in_its_ranges(data: st.DataObject) -> None:
    raw = base64.urlsafe_b64decode(minted() + b"==")[len(KEY.prefix) : -16]
    payload = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        context, _, _ = verify(signed(bytes(payload)), RING, now_s=0)
    except TokenInvalidError:
        return
    assert type(context.hops) is int
    assert 0 <= context.hops <= HOPS_MAX
    assert context.ceiling is None or 0 <= context.ceiling < 2**63
    assert context.deadline_s is None or 0 <= context.deadline_s < 2**40
    for name in (context.agent, context.workflow, *context.path):
        assert not name or (name.isascii() and name.isprintable() and " " not in name)


def test_the_reasons_are_told_apart() -> None:
    assert why(minted(), Keyring([Key("k2", b"s" * 32)])) is Why.FOREIGN_KEY
    assert why(minted(), Keyring([Key("k1", b"t" * 32)])) is Why.FORGED
    assert why(minted(expires_s=NOW_S)) is Why.EXPIRED
    assert why(b"") is Why.VERSION
    assert why(base64.urlsafe_b64encode(b"\x02" + b"x" * 80).rstrip(b"=")) is Why.VERSION
    assert why(b"A" * 513) is Why.MALFORMED


def test_a_token_of_an_older_key_verifies_while_that_is_kept() -> None:
    older, newer = Key("old", b"o" * 32), Key("new", b"n" * 32)
    token = minted(ring=Keyring([older]))
    assert verify(token, Keyring([newer, older]), now_s=NOW_S).context == FULL
    assert why(token, Keyring([newer])) is Why.FOREIGN_KEY
    assert verify(minted(ring=Keyring([newer, older])), Keyring([newer]), now_s=NOW_S).context == FULL


def test_a_mac_of_the_secret_for_another_purpose_is_no_signature() -> None:
    import hmac

    data = base64.urlsafe_b64decode(minted() + b"==")[:-16]
    forged = data + hmac.digest(b"s" * 32, data, "sha256")[:16]
    assert why(base64.urlsafe_b64encode(forged).rstrip(b"=")) is Why.FORGED


def test_the_mac_is_hmac_sha256_of_the_derived_key() -> None:
    import hmac

    derived = hmac.digest(b"s" * 32, b"meshd context token 1", "sha256")
    for size in (0, 1, 55, 64, 65, 200):
        assert KEY.mac(b"x" * size) == hmac.digest(derived, b"x" * size, "sha256")[:16]


def test_sixteen_hops_of_a_ping_pong_fit_and_too_much_is_said() -> None:
    ping_pong = replace(FULL, path=("a-rather-long-agent-name", "another-rather-long-name") * 8, hops=16)
    assert verify(minted(ping_pong), RING, now_s=NOW_S).context == ping_pong
    with pytest.raises(TokenTooLongError):
        minted(replace(FULL, path=tuple(f"{n:064d}" for n in range(8))))
    with pytest.raises(TokenTooLongError):
        minted(replace(FULL, path=("a",) * 256))


@pytest.mark.parametrize(
    "fields",
    [
        {"hops": -1},
        {"hops": 1001},
        {"hops": 10**30},
        {"deadline_s": -1.0},
        {"deadline_s": float("inf")},
        {"deadline_s": float("nan")},
        {"ceiling": -1},
        {"ceiling": 2**64 - 1},
        {"agent": "a b"},
        {"agent": "a\n"},
        {"agent": "\u00e4"},
        {"agent": "a" * 256},
        {"workflow": "a\x00"},
        {"parent": "00-zz"},
        {"parent": "01" + PARENT[2:]},
    ],
)
def test_what_cannot_be_said_is_not_minted(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        minted(replace(FULL, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("id", "secret"), [("", b"s" * 32), ("k" * 17, b"s" * 32), ("a b", b"s" * 32), ("k", b"s" * 31)]
)
def test_weak_keys_are_refused(id: str, secret: bytes) -> None:
    with pytest.raises(ValueError):
        Key(id, secret)


def test_rings_are_never_empty_nor_ambiguous() -> None:
    with pytest.raises(ValueError):
        Keyring([])
    with pytest.raises(ValueError):
        Keyring([KEY, Key("k1", b"t" * 32)])


def test_the_codec_imports_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; known = set(sys.modules); import meshd_sdk; "
        "print([m for m in set(sys.modules) - known if m.split('.')[0] not in sys.stdlib_module_names | {'meshd_sdk'}])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


def test_a_ceiling_in_money_travels_beside_one_in_tokens() -> None:
    """One alone is nonsense: whoever knows tokens only must not take such a context for one without a limit."""
    context = replace(FULL, ceiling=NO_CEILING, ceiling_microdollars=5_000_000)
    assert verify(minted(context), RING, now_s=NOW_S).context == context
    for wrong in (replace(FULL, ceiling=None), FULL):
        for money in (-1, 2**63) if wrong.ceiling is not None else (5,):
            with pytest.raises(ValueError, match="money"):
                minted(replace(wrong, ceiling_microdollars=money))


def test_every_cut_of_a_token_with_money_is_found() -> None:
    token = minted(replace(FULL, ceiling_microdollars=1))
    for length in range(len(token)):
        why(token[:length])


def test_a_signed_token_whose_money_is_missing_is_refused() -> None:
    data = base64.urlsafe_b64decode(minted(replace(FULL, ceiling=None)) + b"==")
    payload = bytearray(data[len(KEY.prefix) : -16])
    payload[1] |= 4
    assert why(signed(bytes(payload))) is Why.MALFORMED
    assert why(signed(bytes(payload[:40]))) is Why.MALFORMED
