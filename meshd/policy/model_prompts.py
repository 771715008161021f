"""What a document says of prompts: see `meshd.policy.model`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from meshd.filters.contract import SECTION
from meshd.prompts.terms import ROLES


class PromptsSection(BaseModel):
    """Prompts that requests name by `prompt://`."""

    model_config = SECTION

    dir: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """A folder of prompts as files. A name that it has is not looked for in the store. Unset: they are in the store
    alone."""
    roles: Annotated[tuple[Literal["system", "developer", "user"], ...], Field(min_length=1)] = ROLES
    """In whose messages they are looked for. Leave `user` out where what other people write is sent on as it is."""


class Prompted(BaseModel):
    """The key of a document that says so."""

    model_config = SECTION

    prompts: PromptsSection = PromptsSection()
    """Where prompts are kept, and where they may be named."""
