"""Asks a running daemon's admin port, with the token that lies in its state directory. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from meshd.admin.token import FILE_NAME as TOKEN_FILE

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 10.0
_BYTES_MAX = 16 << 20


class AdminProblem(Exception):
    """The daemon cannot be asked, or says no; the message is for people. `status` is 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """One daemon's admin port. Each method raises AdminProblem."""

    def __init__(self, admin: str, home: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """`admin` is its HOST:PORT, `home` the state directory that holds its token."""
        self._root = f"http://{admin}"
        self._token_file = home / TOKEN_FILE
        self._timeout_s = timeout_s
        # Never through a proxy: the token is for this machine alone.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Return what a GET answers."""
        return self._ask(f"{path}{'?' + urlencode(query) if query else ''}", None)

    def post(self, path: str, body: dict[str, object], **fields: str) -> dict[str, Any]:
        """Return what a POST of a JSON object answers. `fields` are header fields, with `_` for `-`."""
        return self._ask(path, json.dumps(body).encode(), {key.replace("_", "-"): one for key, one in fields.items()})

    def _ask(self, path: str, body: bytes | None, fields: dict[str, str] | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._token()}", "content-type": "application/json", **(fields or {})}
        request = urllib.request.Request(f"{self._root}{path}", body, headers)  # noqa: S310 - the root begins http://
        try:
            with self._opener.open(request, timeout=self._timeout_s) as reply:
                return cast("dict[str, Any]", _object(reply.read(_BYTES_MAX)))
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise AdminProblem(f"the daemon's admin port at {self._root} does not answer: {why}") from None

    def _token(self) -> str:
        try:
            return self._token_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise AdminProblem(f"the admin token {self._token_file} cannot be read: {why}") from None

    def _refused(self, error: urllib.error.HTTPError) -> AdminProblem:
        if error.code == 401:
            return AdminProblem(
                f"{self._root} does not take the token in {self._token_file}: it is another daemon's", error.code
            )
        try:
            problem = _object(error.read(_BYTES_MAX))
            title, detail = str(problem["title"]), str(problem.get("detail", ""))
        except (OSError, ValueError, KeyError):
            return AdminProblem(f"{self._root} answers {error.code}: it is no admin port of meshd", error.code)
        return AdminProblem(f"{title}: {detail}" if detail else title, error.code)


def _object(raw: bytes) -> Any:
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise ValueError("its answer is no JSON object")
    return found
