"""Asks a running daemon's API as JSON, as an agent without the SDK would. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 30.0
UNAVAILABLE = 503
_BYTES_MAX = 16 << 20


class ApiProblem(Exception):
    """The API cannot be asked, or says no; the message is for people."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing
        """It is away, or its store is: asked again later it may answer."""


class ApiClient:
    """One daemon's API. Each method raises ApiProblem."""

    def __init__(self, api: str) -> None:
        """`api` is its HOST:PORT."""
        self._root = f"http://{api}"
        # Never through a proxy: the API is this machine's alone.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request, by the method's name, such as `StateService/GetState`."""
        url = f"{self._root}/meshd.v1.{method}"
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(url, json.dumps(request).encode(), headers)  # noqa: S310 - it begins http://
        try:
            with self._opener.open(asked, timeout=TIMEOUT_S) as reply:
                found = json.loads(reply.read(_BYTES_MAX))
        except urllib.error.HTTPError as error:
            raise ApiProblem(_words(error), is_passing=error.code == UNAVAILABLE) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise ApiProblem(f"the API at {self._root} does not answer: {why}", is_passing=True) from None
        return found if isinstance(found, dict) else {}


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_BYTES_MAX))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"the API answers {error.code}: it is none of meshd's"
