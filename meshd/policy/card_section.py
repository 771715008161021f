"""What a policy says of an A2A agent: how its card is judged, and what it is told and believed."""

from typing import Annotated

from pydantic import BaseModel, Field

from meshd.filters.contract import SECTION
from meshd.policy.problem import shown
from meshd.policy.upstreams import parse_url


class CardSection(BaseModel):
    """How an A2A agent's card is judged before a client of this sidecar is shown it."""

    model_config = SECTION

    keys: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(max_length=16)] = ()
    """Files with public keys that may sign it: a JWKS, one JWK, or PEM. What the card says of where keys are (`jku`) is
    never followed. With keys, a card whose signatures do not verify by any of them is refused."""
    require_signature: bool = False
    """Refuse a card that is not signed, too."""
    origins: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=512)], ...], Field(max_length=16)] = ()
    """Other addresses of the same agent, such as `https://agent.example.com`, by which its card names it."""


class Talking(BaseModel):
    """Keys of an upstream that are about A2A: see `meshd.policy.model`."""

    model_config = SECTION

    card: CardSection = CardSection()
    """How the card of an A2A agent is judged."""
    extension: bool | None = None
    """Tell an A2A agent of the workflow in its messages, by meshd's extension. Unset: where its card declares that."""
    charges_usage: bool | None = None
    """Charge what the metadata of an A2A agent's answers says of tokens. Unset: all that it says, but of a `peer` only
    what it says under meshd's extension, since its models are called through its own sidecar."""


def talking_problems(talking: Talking, dialect: str) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with it: key path of the upstream's section and message each."""
    found: list[tuple[tuple[str, ...], str]] = []
    section = talking.card
    if talking.charges_usage is not None and dialect != "a2a":
        found.append((("charges_usage",), f"only an agent of dialect: a2a reports so; this one speaks {dialect}"))
    if talking.extension is not None and dialect != "a2a":
        found.append((("extension",), f"only an agent of dialect: a2a takes one; this one speaks {dialect}"))
    if section != CardSection() and dialect != "a2a":
        found.append((("card",), f"only an agent of dialect: a2a has a card; this one speaks {dialect}"))
    if section.require_signature and not section.keys:
        found.append((("card", "require_signature"), "a signature can only be required with the keys that may sign"))
    for origin in section.origins:
        try:
            if parse_url(origin).base_path:
                found.append((("card", "origins"), f"{shown(origin)}: an origin is a scheme, a host and a port"))
        except ValueError as error:
            found.append((("card", "origins"), str(error)))
    return found
