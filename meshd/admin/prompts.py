"""Prompts over the admin port: shown, added, labels moved, and what a reference comes to.

What is answered is not searched for secrets, as other answers are: a text must be shown as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from meshd.admin.doors import json_body, only_queries, page_limit
from meshd.admin.problem import Problem
from meshd.engines.port import StoreError
from meshd.prompts.choosing import Unresolved
from meshd.prompts.desk import variables_of
from meshd.prompts.record import AUTHOR_MAX, MODELS_MAX, NOTES_MAX, Damaged, Weights, made
from meshd.prompts.reference import NAME, BadReference, read_label, read_version
from meshd.prompts.shelf import Conflict, UnknownPrompt
from meshd.prompts.template import TemplateError, VariableError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from meshd.admin.view import AdminView
    from meshd.prompts.desk import PromptDesk
    from meshd.prompts.record import Prompt

ADD_BYTES_MAX: Final = 512 * 1024
"""A text of the longest, with every character escaped."""
NAME_MAX: Final = 63
WORKFLOW_MAX: Final = 64
VALUES_MAX: Final = 256 * 1024

T = TypeVar("T")


class Add(Struct, forbid_unknown_fields=True):
    """A version to add."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    text: str
    author: Annotated[str, Meta(max_length=AUTHOR_MAX)] = ""
    notes: Annotated[str, Meta(max_length=NOTES_MAX)] = ""
    models: Annotated[tuple[str, ...], Meta(max_length=MODELS_MAX)] = ()


class Promote(Struct, forbid_unknown_fields=True):
    """Where a label is to stand."""

    label: Annotated[str, Meta(min_length=1, max_length=32)]
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    share: Annotated[int, Meta(ge=1, le=100)] = 100
    """Of a hundred workflows, so many get this version; the others that at which the label stands."""
    expected: Weights | None = None
    """Where it must stand now; empty for nowhere."""


class Rollback(Struct, forbid_unknown_fields=True):
    """Which label is to stand where it stood."""

    label: Annotated[str, Meta(min_length=1, max_length=32)]
    expected: Weights | None = None


class Render(Struct, forbid_unknown_fields=True):
    """What to fill in."""

    reference: str
    variables: dict[str, str] = {}
    workflow: Annotated[str, Meta(max_length=WORKFLOW_MAX)] = ""


class PromptsApi:
    """The handlers below /v1/prompts."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.get("/v1/prompts", self.list),
            web.post("/v1/prompts", self.add),
            web.post("/v1/prompts/render", self.render),
            web.get("/v1/prompts/{name}", self.show),
            web.get("/v1/prompts/{name}/{version}", self.version),
            web.post("/v1/prompts/{name}/promote", self.promote),
            web.post("/v1/prompts/{name}/rollback", self.roll_back),
        ]

    @property
    def _desk(self) -> PromptDesk:
        desk = self._view.prompts
        if desk is None:
            raise Problem(503, "No prompts", "This sidecar keeps no prompts.")
        return desk

    async def list(self, request: web.Request) -> web.Response:
        """Names with their labels, `limit` at a time, and what is wrong with the policy's folder."""
        query = only_queries(request, "limit", "after")
        found, next_after, problems = await _answered(self._desk.page(query.get("after", ""), page_limit(query)))
        return _reply({"prompts": found, "next_after": next_after, "problems": problems})

    async def show(self, request: web.Request) -> web.Response:
        """One name: its versions, where its labels are and were."""
        only_queries(request)
        return _reply(await _answered(self._desk.show(_name(request))))

    async def version(self, request: web.Request) -> web.Response:
        """One version, with its text."""
        only_queries(request)
        name, version = _name(request), _read(read_version, request.match_info["version"])
        return _reply(_dump(await _answered(self._desk.prompt(name, str(version)))))

    async def add(self, request: web.Request) -> web.Response:
        """Add a version: 201, or 200 where the very same is there already."""
        only_queries(request)
        body = await json_body(request, Add, ADD_BYTES_MAX)
        if NAME.fullmatch(body.name) is None:
            raise Problem(400, "Bad name", _NAMES)
        try:
            prompt = made(
                body.name,
                body.version,
                body.text,
                author=body.author,
                notes=body.notes,
                models=body.models,
                added_s=self._desk.clock(),
            )
        except TemplateError as error:
            raise Problem(422, "Bad text", str(error)) from None
        except ValueError as error:
            raise Problem(422, "Bad prompt", str(error)) from None
        kept, is_new = await _answered(self._desk.add(prompt))
        return _reply(_dump(kept) | {"is_new": is_new}, 201 if is_new else 200)

    async def promote(self, request: web.Request) -> web.Response:
        """Move a label; 409 where it does not stand where it was thought to."""
        only_queries(request)
        name, body = _name(request), await json_body(request, Promote)
        label, version = _read(read_label, body.label), str(_read(read_version, body.version))
        return _reply(await _answered(self._desk.promote(name, label, version, body.share, body.expected)))

    async def roll_back(self, request: web.Request) -> web.Response:
        """Move a label to where it stood before; 409 where it stood nowhere."""
        only_queries(request)
        name, body = _name(request), await json_body(request, Rollback)
        return _reply(await _answered(self._desk.roll_back(name, _read(read_label, body.label), body.expected)))

    async def render(self, request: web.Request) -> web.Response:
        """What a reference comes to, with its variables filled in."""
        only_queries(request)
        body = await json_body(request, Render, VALUES_MAX)
        prompt, text = await _answered(self._desk.render(body.reference, body.variables, body.workflow))
        return _reply({"name": prompt.name, "version": prompt.version, "digest": prompt.digest, "text": text})


_NAMES: Final = "A prompt's name is of a-z, 0-9, '-', '_' and '.', at most 63, beginning with a letter or a digit."


def _name(request: web.Request) -> str:
    name = request.match_info["name"]
    if NAME.fullmatch(name) is None:
        raise Problem(400, "Bad name", _NAMES)
    return name


def _read(reader: Any, text: str) -> Any:
    try:
        return reader(text)
    except ValueError as error:
        raise Problem(400, "Bad request", str(error)) from None


def _dump(prompt: Prompt) -> dict[str, Any]:
    found = {name: getattr(prompt, name) for name in prompt.__struct_fields__}
    return found | {"variables": variables_of(prompt.text)}


def _reply(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


async def _answered(question: Awaitable[T]) -> T:
    try:
        return await question
    except (Unresolved, UnknownPrompt) as error:
        raise Problem(404, "Unknown prompt", str(error)) from None
    except Conflict as error:
        raise Problem(409, "Conflict", str(error)) from None
    except BadReference as error:
        raise Problem(400, "Bad reference", str(error)) from None
    except VariableError as error:
        raise Problem(422, "Bad variables", str(error)) from None
    except ValueError as error:
        raise Problem(422, "Bad share", str(error)) from None
    except Damaged as error:
        raise Problem(410, "Damaged prompt", str(error)) from None
    except StoreError as error:
        raise Problem(503, "The store cannot be reached", str(error), {"Retry-After": "1"}) from None
