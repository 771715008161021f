"""The services of a compose file as agents of a policy: by their names, and by labels that end in `.intent`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import yaml

from meshd.call import Kind
from meshd.discovery.labels import intents_of
from meshd.discovery.told import Told
from meshd.policy.model import NAME_PATTERN
from meshd.policy.upstreams import agent_upstream

if TYPE_CHECKING:
    from meshd.policy.compiled import Policy

FILE_BYTES_MAX: Final = 1 << 20
_SCALAR: Final = (str, int, float)
"""What a label may be: lists that name one another a few times over would be written out whole."""
_NAME: Final = re.compile(NAME_PATTERN[:-1] + r"\Z")


class ComposeError(Exception):
    """The file holds no services; the message says why."""


def with_services(policy: Policy, data: bytes, place: str) -> Policy:
    """Return the policy with an agent for each service that has an intent and is no upstream already.

    Of a service that is one, its labels are added. Raises ComposeError.
    """
    upstreams, told = dict(policy.upstreams), dict(policy.told)
    for name, intents in _services(data).items():
        known = upstreams.get(name)
        if known is None:
            upstreams[name] = replace(agent_upstream(name, f"http://{name}"), kind=Kind.AGENT)
        elif known.kind is not Kind.AGENT:
            continue
        said = told.get(name, Told())
        told[name] = said._replace(intents=tuple(dict.fromkeys((*said.intents, *intents))))
    return replace(policy, upstreams=upstreams, told=told)


def _services(data: bytes) -> dict[str, tuple[str, ...]]:
    if len(data) > FILE_BYTES_MAX:
        raise ComposeError(f"over {FILE_BYTES_MAX} bytes")
    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ComposeError(f"no YAML: {str(error)[:200]}") from None
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise ComposeError("it has no services")
    found: dict[str, tuple[str, ...]] = {}
    for name, service in services.items():
        if isinstance(name, str) and _NAME.match(name) and isinstance(service, dict):
            intents = intents_of(_labels(service.get("labels")))
            if intents:
                found[name] = intents
    return found


def _labels(said: Any) -> dict[str, str]:
    """Return labels from a map, or from a list of `key=value`."""
    if isinstance(said, dict):
        return {str(key): str(value) for key, value in said.items() if isinstance(value, _SCALAR)}
    pairs = [one.partition("=") for one in said if isinstance(one, str)] if isinstance(said, list) else []
    return {key: value for key, _, value in pairs}
