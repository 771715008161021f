"""What the compose specification allows of a file, as far as ours goes: fields, their forms, and what names what.

https://github.com/compose-spec/compose-spec, 05-services.md and the schema beside it. A field that is not here is
refused: whoever uses another one adds it, as that document has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]+$")]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?(\d+us)?$", min_length=2)]
Path = Annotated[str, StringConstraints(pattern=r"^/")]
Scalar = str | int | float | None
"""Of an environment: a boolean is refused by compose, since YAML has too many words for it."""


class Form(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class Build(Form):
    context: str
    dockerfile: str


class Mounted(Form):
    source: Name
    target: Path


class Depends(Form):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Form):
    disable: bool = False
    test: list[str] | None = None
    interval: Duration | None = None
    timeout: Duration | None = None
    retries: Annotated[int, Field(ge=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _has_a_test(self) -> Healthcheck:
        if not self.disable and (not self.test or self.test[0] not in ("CMD", "CMD-SHELL") or len(self.test) < 2):
            raise ValueError("a test begins with CMD or CMD-SHELL")
        return self


class Network(Form):
    aliases: list[Name] = []


class Service(Form):
    image: str
    build: Build | None = None
    cap_drop: list[str] = []
    command: list[str] = []
    configs: list[Mounted] = []
    depends_on: dict[Name, Depends] = {}
    entrypoint: list[str] = []
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")], Scalar] = {}
    healthcheck: Healthcheck | None = None
    labels: dict[str, str] = {}
    network_mode: Annotated[str, StringConstraints(pattern=r"^(service:.+|none|host|bridge)$")] | None = None
    networks: dict[Name, Network | None] = {}
    profiles: list[Name] = []
    read_only: bool = False
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    secrets: list[Name] = []
    security_opt: list[Annotated[str, StringConstraints(pattern=r"^[\w-]+(:.+)?$")]] = []
    stop_grace_period: Duration | None = None
    stop_signal: Annotated[str, StringConstraints(pattern=r"^SIG[A-Z0-9]+$")] | None = None
    tmpfs: list[Path] = []
    user: Annotated[str, StringConstraints(pattern=r"^\d+:\d+$")] | None = None
    volumes: list[Annotated[str, StringConstraints(pattern=r"^[^:]+:/[^:]*(:(ro|rw))?$")]] = []


class File(Form):
    file: str


class Document(Form):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[Name, Service]
    configs: dict[Name, File] = {}
    secrets: dict[Name, File] = {}
    volumes: dict[Name, Annotated[dict[str, Any], Field(max_length=0)] | None] = {}


def problems(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a parsed file, a line each."""
    try:
        found = Document.model_validate({key: value for key, value in document.items() if not key.startswith("x-")})
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    said = []
    for name, service in found.services.items():
        for kind, used, known in (
            ("config", [one.source for one in service.configs], found.configs),
            ("secret", service.secrets, found.secrets),
            ("service", service.depends_on, found.services),
            ("network", service.networks, {"default"}),
            ("volume", [one.split(":")[0] for one in service.volumes if one[0] not in "./~"], found.volumes),
        ):
            said += [f"{name}: there is no {kind} {one}" for one in used if one not in known]
        said += _waits(name, service, found.services) + _network(name, service, found.services)
        if len({one.target for one in service.configs}) < len(service.configs):
            said.append(f"{name}: two configs in one place")
    return said


def _waits(name: str, service: Service, services: dict[str, Service]) -> list[str]:
    said, seen, left = [], {name}, list(service.depends_on)
    for one, how in service.depends_on.items():
        check = services[one].healthcheck if one in services else None
        if how.condition == "service_healthy" and check is not None and check.disable:
            said.append(f"{name}: {one} never is healthy, its check is switched off")
        if one in services and services[one].profiles and services[one].profiles != service.profiles:
            said.append(f"{name}: {one} is not started without its profile")
    while left:
        one = left.pop()
        if one == name:
            return [*said, f"{name}: waits for itself"]
        if one not in seen and one in services:
            seen.add(one)
            left += services[one].depends_on
    return said


def _network(name: str, service: Service, services: dict[str, Service]) -> list[str]:
    if service.network_mode is None:
        return []
    said = [f"{name}: network_mode and networks exclude each other"] if service.networks else []
    kind, _, other = service.network_mode.partition(":")
    if kind == "service":
        if other not in services:
            said.append(f"{name}: there is no service {other} whose network to share")
        elif services[other].network_mode is not None:
            said.append(f"{name}: {other} has no network of its own")
    return said
