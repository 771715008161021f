"""What must not stand in a file that others receive: paths of one machine, and addresses of package registries."""

from __future__ import annotations

import re

import pytest

from tests.repository.tree import name_of, tracked

# Put together from halves, so that this file does not hold what it looks for.
_MACHINE = "|".join(["wo" + "rk", "ro" + "ot", "Us" + "ers", "ho" + "me"])
MACHINE_PATH = re.compile(
    rf"(?<![\w.$}})\]-])/(?:{_MACHINE})/[\w.-]+|(?<![\w.])/tmp/(?:env|brief)\b|\b[A-Z]:\\\\Us" + "ers"
)
_REGISTRIES = [
    "python" + "hosted",
    r"py" + r"pi\.org",
    "registry" + r"\.npm",
    "deb" + r"\.debian\.org",
    "index" + "-url",
]
REGISTRY = re.compile("|".join(_REGISTRIES))
# What says in prose or in an option that no registry is named.
ALLOWED = {"requirements/lock.py": {"index" + "-url"}}


def found_in(text: str) -> set[str]:
    """Return the forbidden words of a text."""
    return {hit.group(0) for pattern in (MACHINE_PATH, REGISTRY) for hit in pattern.finditer(text)}


def test_no_tracked_file_holds_a_machine_path_or_a_registry() -> None:
    bad: dict[str, set[str]] = {}
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        hits = found_in(text) - ALLOWED.get(name_of(path), set())
        if hits:
            bad[name_of(path)] = hits
    assert bad == {}


@pytest.mark.parametrize(
    "text",
    ["see /" + "root/notes", "open('/ho" + "me/ann/x')", "--index" + "-url https://a", "https://py" + "pi.org/simple"],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert found_in(text)


@pytest.mark.parametrize(
    "text", ["/v1/chat", "~/.local/state/meshd", "/etc/meshd/policies", "a/root/b", "/var/lib/meshd"]
)
def test_the_search_lets_ordinary_paths_be(text: str) -> None:
    assert not found_in(text)
