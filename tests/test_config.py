"""Settings under the names that deployments of agents use: what they mean, and what they may not contradict."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from meshd.config import ALIASES, Config, ConfigError, from_environment
from meshd.policy.document import DocumentFile, LoadError, Overrides, parse
from tests.repository.tree import ROOT

HOME = {"MESHD_HOME": "/x"}


def test_an_alias_says_what_meshd_s_own_name_would() -> None:
    config = from_environment(
        HOME | {"EVENT_BUS_URL": "memory:", "AGENT_ROLE": "market_analyst", "MAX_RECURSION_DEPTH": " 5 "}
    )
    assert (config.bus, config.agent, config.hops) == ("memory:", "market_analyst", 5)
    own = from_environment(HOME | {"MESHD_BUS": "memory:", "MESHD_AGENT": "market_analyst", "MESHD_HOPS": "5"})
    assert own == config
    assert from_environment(HOME | dict.fromkeys(ALIASES, "")) == from_environment(HOME)


def test_the_command_line_wins() -> None:
    config = from_environment(HOME | {"EVENT_BUS_URL": "sqlite:", "AGENT_ROLE": "one"}, bus="memory:", agent="two")
    assert (config.bus, config.agent) == ("memory:", "two")


@pytest.mark.parametrize(("alias", "own"), ALIASES.items())
def test_two_that_differ_are_refused_and_two_that_agree_are_not(alias: str, own: str) -> None:
    value, other = {"MESHD_BUS": ("memory:", "sqlite:"), "MESHD_HOPS": ("5", "6")}.get(own, ("one", "two"))
    from_environment(HOME | {alias: value, own: f" {value} "})
    with pytest.raises(ConfigError, match=f"{alias} and {own} say different things"):
        from_environment(HOME | {alias: value, own: other})


@pytest.mark.parametrize("text", ["-1", "1001", "five", "5.0", "٥", "9" * 40])
@pytest.mark.parametrize("name", ["MAX_RECURSION_DEPTH", "MESHD_HOPS"])
def test_a_depth_that_is_none_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name}: ")):
        from_environment(HOME | {name: text})


def test_a_bus_that_there_is_not_is_named_as_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"^EVENT_BUS_URL: this build has no bus called pigeon"):
        from_environment(HOME | {"EVENT_BUS_URL": "pigeon://loft"})
    with pytest.raises(ConfigError, match=r"^--bus: "):
        from_environment(HOME | {"EVENT_BUS_URL": "memory:"}, bus="pigeon://loft")
    with pytest.raises(ConfigError, match=r"^MESHD_BUS: a bus is named by a URL"):
        from_environment(HOME | {"MESHD_BUS": "pigeon"})


def test_what_is_kept_of_the_trace_may_be_said_without_a_unit() -> None:
    plain = from_environment(HOME | {"MESHD_TRACE_KEEP": "3600", "MESHD_TRACE_BYTES": "1048576"})
    assert plain == from_environment(HOME | {"MESHD_TRACE_KEEP": "1h", "MESHD_TRACE_BYTES": "1MiB"})
    with pytest.raises(ConfigError, match=r"^MESHD_TRACE_BYTES: expected a size"):
        from_environment(HOME | {"MESHD_TRACE_BYTES": "much"})


@pytest.mark.parametrize(("given", "name"), [({}, "MESHD_TRACE"), ({"trace": "maybe"}, "--trace")])
def test_a_mode_of_the_trace_that_there_is_not_is_named_as_it_was_given(given: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: 'maybe' is neither fast, durable nor off"):
        from_environment(HOME | {"MESHD_TRACE": "maybe"}, **given)


WRITTEN = {
    "log_level": "LOG",
    "drain_s": "DRAIN",
    "trace_keep_s": "TRACE_KEEP",
    "trace_keep_bytes": "TRACE_BYTES",
    "accept_unenforced": "",
    "upstreams": "",
}
"""What is not called MESHD_ and the field's name; empty for an option alone."""


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_every_setting_is_documented(name: str) -> None:
    from click.testing import CliRunner

    from meshd.cli import main

    variable = WRITTEN.get(name, name.upper())
    if variable:
        assert f"`MESHD_{variable}`" in (ROOT / "docs" / "settings.md").read_text()
        assert re.search(rf"\bMESHD_{variable}\b", CliRunner().invoke(main, ["run", "--help"]).stdout)


DOCUMENTS = {"{}": 5, "limits: {deadline: 5m}": 5, "limits: {}": 5, "limits: {hops: 3}": 3, "limits: {hops: 16}": 16}


@pytest.mark.parametrize(("document", "hops"), DOCUMENTS.items())
def test_hops_of_the_environment_hold_where_the_policy_says_none(document: str, hops: int) -> None:
    policy = parse([DocumentFile("p.yaml", document.encode())], overrides=Overrides(hops=5))
    assert policy.limits.hops == hops


@pytest.mark.parametrize("document", ["limits: 7", "limits: [hops]", "limits: {hops: x}"])
def test_limits_that_are_none_are_named_all_the_same(document: str) -> None:
    with pytest.raises(LoadError, match="expected a"):
        parse([DocumentFile("p.yaml", document.encode())], overrides=Overrides(hops=5))


def test_every_alias_stands_in_the_documents() -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    assert [name for pair in ALIASES.items() for name in pair if f"`{name}`" not in text] == []
