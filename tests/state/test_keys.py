"""What a key and a reference are, and who may do what with which."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.state.access import Act, Terms, denied, handed
from meshd.state.keys import PREFIX, Key, KeyMalformed, Reference, Scope, Who, key_of, reference_of

ANN = Who("ann", "w", "acme")
NAMES = st.text("abzAZ09._:-", min_size=1, max_size=20).filter(lambda one: one not in (".", ".."))


@st.composite
def keys(draw: st.DrawFn) -> Key:
    scope = draw(st.sampled_from(Scope))
    owner = "" if scope is Scope.MESH else draw(NAMES)
    return Key(scope, owner, "/".join(draw(st.lists(NAMES, min_size=1, max_size=3))))


@given(keys(), st.integers(0, 10**15 - 1))
def test_a_reference_is_read_back(key: Key, version: int) -> None:
    assert reference_of(str(Reference(key, version))) == Reference(key, version)
    assert key_of(str(key), ANN) == key


@given(st.text(max_size=40))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    for read in (key_of, reference_of):
        try:
            assert str(read(text)) == text
        except KeyMalformed:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "", "plan", "workflow", "workflow/", "workflow/w", "workflow/w/", "workflow//x", "mesh", "mesh/", "mesh//a",
        "../../x", "mesh/../x", "mesh/./x", "mesh/a/..", "workflow/../x", "agent/./x", "mesh/a b", "mesh/a\n", "mesh/é",
        "MESH/a", "queue/a/b", "/mesh/a", "mesh/a/", "mesh/a@1", "mesh/\x00", "agent/" + "a" * 65 + "/x",
        "mesh/" + "k" * 10_000, "mesh/" + "k" * 251,
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(KeyMalformed):
        key_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "mesh/a@1", PREFIX, PREFIX + "mesh/a", PREFIX + "mesh/a@", PREFIX + "mesh/a@01", PREFIX + "mesh/a@-1",
        PREFIX + "mesh/a@1.0", PREFIX + "mesh/a@" + "9" * 16, PREFIX + "@1", PREFIX + "mesh/a@1@2",
        PREFIX + "mesh/a@\u0661",
        "mesh://intent/mesh/a@1", PREFIX + "../x@1",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(KeyMalformed):
        reference_of(text)


def test_a_dot_is_the_callers_own() -> None:
    assert str(key_of("workflow/./plan", ANN)) == "workflow/w/plan"
    assert str(key_of("agent/./plan", ANN)) == "agent/ann/plan"
    assert str(key_of("tenant/./plan", ANN)) == "tenant/acme/plan"
    with pytest.raises(KeyMalformed, match="no workflow of its own"):
        key_of("workflow/./plan", Who("ann", "", ""))
    with pytest.raises(KeyMalformed, match="255"):
        key_of("workflow/./" + "k" * 240, Who("ann", "w" * 64, ""))


def test_who_may_do_what() -> None:
    """Every scope, owned by the caller and by another, read and written."""
    for scope, act in itertools.product((Scope.WORKFLOW, Scope.AGENT, Scope.TENANT), Act):
        assert denied(Key(scope, ANN.own(scope), "x"), act, ANN) == ""
        assert "belongs to" in denied(Key(scope, "other", "x"), act, ANN)
        # Nobody owns what belongs to nobody.
        assert denied(Key(scope, "", "x"), act, Who("", "", "")) != ""
        assert denied(Key(scope, "w", "x"), act, Who("", "", "")) != ""
    for act in Act:
        assert denied(Key(Scope.MESH, "", "x"), act, ANN) == ""


def test_the_policy_says_who_may_use_the_mesh() -> None:
    key = Key(Scope.MESH, "", "rates")
    terms = Terms(may_read=lambda agent: agent in ("ann", "bob"), may_write=lambda agent: agent == "bob")
    bob, eve = Who("bob", "w", ""), Who("eve", "w", "")
    assert [denied(key, Act.READ, who, terms) == "" for who in (ANN, bob, eve)] == [True, True, False]
    assert [denied(key, Act.WRITE, who, terms) == "" for who in (ANN, bob, eve)] == [False, True, False]
    assert "state.mesh_writers does not name ann" in denied(key, Act.WRITE, ANN, terms)
    assert denied(Key(Scope.AGENT, "ann", "x"), Act.WRITE, ANN, terms) == ""


def test_a_callee_is_handed_what_is_within_its_scope() -> None:
    held = (
        "mesh://state/workflow/w/plan@3",
        "mesh://state/workflow/other/plan@3",
        "mesh://state/agent/ann/habits@1",
        "mesh://state/agent/bob/habits@0",
        "mesh://state/tenant/acme/quotes@7",
        "mesh://state/mesh/rates@2",
        "urn:something:else",
    )
    bob = Who("bob", "w", "")
    assert handed(held, bob) == (held[0], held[3], *held[5:])
    assert handed(held, ANN) == (held[0], held[2], *held[4:])
    assert handed(held, Who("bob", "w", "rival")) == (held[0], held[3], *held[5:])
    assert handed(held, Who("bob", "w", "acme")) == (held[0], *held[3:])
    assert handed((), bob) == ()
    terms = Terms(lambda agent: agent == "ann", lambda _agent: True)
    assert handed(held, bob, terms) == (held[0], held[3], held[6])
    assert handed(held, ANN, terms) == handed(held, ANN)
