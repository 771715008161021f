"""What a document says of shared state: see `meshd.policy.model`."""

from typing import Annotated

from pydantic import BaseModel, Field

from meshd.filters.contract import SECTION
from meshd.filters.units import Size

Glob = Annotated[str, Field(min_length=1, max_length=255)]


class StateSection(BaseModel):
    """Versioned objects that agents share."""

    model_config = SECTION

    mesh_readers: Annotated[tuple[Glob, ...], Field(max_length=256)] = ("*",)
    """Agents that may read what belongs to the whole mesh (`mesh/...`)."""
    mesh_writers: Annotated[tuple[Glob, ...], Field(max_length=256)] = ("*",)
    """Agents that may write it."""
    value_max: Annotated[Size, Field(ge=1, le=3 * 2**20)] = 2**20
    """Bytes of one value. What is longer is kept elsewhere, and its address here."""
    history: Annotated[int, Field(ge=1, le=64)] = 16
    """Versions that are kept of an object, the newest included."""
    history_max: Annotated[Size, Field(ge=0)] = 8 * 2**20
    """Bytes of all of them together. The newest is kept, whatever its size."""


class Stateful(BaseModel):
    """The key of a document that says so."""

    model_config = SECTION

    state: StateSection = StateSection()
    """Versioned objects that agents share."""
