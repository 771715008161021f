"""What `instrument` does to libraries, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import httpx
import httpx2
import pytest
import requests
import urllib3

from meshd_sdk import instrument, uninstrument
from meshd_sdk.instrumenting import CLIENTS
from meshd_sdk.seams import HOOKS
from meshd_sdk.seams.seam import SeamMissingError, switch
from tests.end_to_end.sidecar import ROOT

LIBRARIES = ("aiohttp", "grpc", "httpx", "httpx2", "mcp", "requests", "urllib3")
SEAMS: list[tuple[Any, str]] = [
    (httpx.Client, "_send_single_request"),
    (httpx.AsyncClient, "_send_single_request"),
    (httpx2.Client, "_send_single_request"),
    (httpx2.AsyncClient, "_send_single_request"),
    (requests.adapters.HTTPAdapter, "send"),
    (urllib3.HTTPConnectionPool, "urlopen"),
    (aiohttp.ClientRequest, "send"),
    (grpc, "insecure_channel"),
    (grpc, "secure_channel"),
    (grpc.aio, "insecure_channel"),
    (grpc.aio, "secure_channel"),
]


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    uninstrument()


def seams() -> list[Any]:
    return [vars(owner)[name] for owner, name in SEAMS]


def python(program: str, *options: str, **environ: str) -> str:
    """Run a program by itself, and return what it printed."""
    trees = os.pathsep.join([str(ROOT), str(ROOT / "sdk")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHD_")}
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        env=kept | {"PYTHONPATH": trees} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_that_is_imported_is_hooked_once_and_put_back_whole() -> None:
    before = seams()
    done = instrument()
    assert set(done.hooked) >= {"aiohttp", "grpc", "httpx", "httpx2", "requests", "urllib3"}
    assert done.missing == ()
    hooked = seams()
    assert [one for one, other in zip(hooked, before, strict=True) if one is other] == []
    assert instrument() == done
    assert seams() == hooked, "hooked twice"
    uninstrument()
    assert seams() == before
    uninstrument()
    assert switch.sidecar is None


def test_names_select() -> None:
    before = seams()
    assert instrument("requests").hooked == ("requests",)
    assert sum(one is not other for one, other in zip(seams(), before, strict=True)) == 1
    assert instrument("grpc").hooked == ("grpc", "requests"), "together with what was hooked before"


@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_a_model_s_client_is_the_library_that_it_is_built_on(client: str) -> None:
    done = instrument(client)
    assert {*done.hooked, *done.waiting} == {"httpx", "httpx2"}


def test_every_client_sends_by_libraries_that_have_a_hook() -> None:
    assert {library for libraries in CLIENTS.values() for library in libraries} == HOOKS.keys()


def test_an_unknown_name_changes_nothing() -> None:
    before = seams()
    with pytest.raises(ValueError, match=r"no such client: pycurl; there are httpx, .*a2a"):
        instrument("httpx", "pycurl")
    assert seams() == before


@pytest.mark.parametrize("base_url", ["nonsense", "", ["http://127.0.0.1:7400", "ftp://x"]])
def test_an_address_that_is_none_changes_nothing(base_url: Any) -> None:
    before = seams()
    with pytest.raises(ValueError, match="an address such as"):
        instrument(base_url=base_url)
    assert seams() == before
    assert switch.sidecar is None


def test_the_environment_is_read_and_an_address_that_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHD_URL", "http://127.0.0.1:7411/w/AQln")
    instrument("httpx")
    assert switch.sidecar is not None
    assert switch.sidecar.is_at("127.0.0.1", 7411)
    instrument("httpx", base_url="http://127.0.0.1:7422")
    instrument("requests")
    assert switch.sidecar.is_at("127.0.0.1", 7422)
    assert not switch.sidecar.is_at("127.0.0.1", 7411)
    monkeypatch.setenv("MESHD_URL", "nonsense")
    uninstrument()
    with pytest.raises(ValueError, match="MESHD_URL: an address such as"):
        instrument("httpx")


def library(name: str, **what: Any) -> types.ModuleType:
    """A library of a version to come, which has what it is given and no more."""
    made = types.ModuleType(name)
    made.__dict__.update({"__version__": "99.1"} | what)
    return made


@pytest.mark.parametrize("name", LIBRARIES[:4] + LIBRARIES[5:])
def test_a_version_without_the_seam_is_named_and_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, library(name))
    with pytest.warns(RuntimeWarning, match=rf"{name} 99\.1 has no \S+: its requests carry no context") as caught:
        done = instrument(name)
    assert name in done.missing
    assert name not in done.hooked
    assert [one.filename for one in caught] == [__file__], "it points at the call of instrument"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instrument(name)  # said once


def test_a_hook_that_fails_fails_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(_: Any) -> Any:
        raise KeyError("surprise")

    monkeypatch.setitem(HOOKS, "requests", hook)
    with pytest.warns(RuntimeWarning, match="requests cannot be hooked, its requests carry no context: KeyError"):
        done = instrument("requests", "urllib3")
    assert (done.hooked, done.missing) == (("urllib3",), ("requests",))


def test_half_a_seam_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def _send_single_request(self) -> None: ...

    half = library("httpx", Client=Client)
    before = vars(Client)["_send_single_request"]
    with pytest.raises(SeamMissingError):
        HOOKS["httpx"](half)
    assert vars(Client)["_send_single_request"] is before


def test_an_mcp_that_sends_outside_of_the_caller_s_context_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", library("mcp"))
    monkeypatch.setitem(sys.modules, "mcp.shared._context_streams", None)
    with pytest.warns(RuntimeWarning, match=r"mcp 99\.1 sends from a task of its own"):
        assert instrument("mcp").missing == ("mcp",)


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openai", raising=False)
    monkeypatch.setattr("meshd_sdk.instrumenting.find_spec", lambda _: None)
    with pytest.warns(RuntimeWarning, match="openai is not installed"):
        instrument("openai")


def test_what_somebody_wrapped_over_ours_is_not_torn_out() -> None:
    instrument("requests")
    ours = requests.adapters.HTTPAdapter.send

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    original = ours.__wrapped__  # type: ignore[attr-defined]
    requests.adapters.HTTPAdapter.send = theirs  # type: ignore[method-assign]
    try:
        uninstrument()
        assert requests.adapters.HTTPAdapter.send is theirs
        assert switch.sidecar is None, "so ours adds nothing any more"
    finally:
        requests.adapters.HTTPAdapter.send = original  # type: ignore[method-assign]


def test_what_is_imported_later_is_hooked_then() -> None:
    said = python(
        "import sys, meshd_sdk\n"
        "first = meshd_sdk.instrument()\n"
        "assert first.hooked == (), first\n"
        f"assert first.waiting == {LIBRARIES!r}, first\n"
        "loaded = {'httpx', 'httpx2', 'requests', 'urllib3', 'aiohttp', 'grpc', 'mcp'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
        "import requests, httpx, aiohttp, grpc\n"
        "import importlib.util, inspect\n"
        "assert importlib.util.find_spec('httpx2') is not None and 'httpx2' not in sys.modules\n"
        "assert 'from ._client import' in inspect.getsource(httpx)\n"
        "import openai\n"
        "print(*meshd_sdk.instrument().hooked)\n"
        "for one in (httpx.Client._send_single_request, requests.adapters.HTTPAdapter.send, grpc.aio.secure_channel,\n"
        "            sys.modules['httpx2'].AsyncClient._send_single_request, aiohttp.ClientRequest.send):\n"
        "    assert one.__module__.startswith('meshd_sdk.seams') or hasattr(one, '__wrapped__'), one\n"
        "meshd_sdk.uninstrument()\n"
        "assert not hasattr(httpx.Client._send_single_request, '__wrapped__')\n"
        "assert not [one for one in sys.meta_path if type(one).__module__.startswith('meshd_sdk')]\n"
    )
    assert said == "aiohttp grpc httpx httpx2 requests urllib3"


def test_what_is_not_installed_is_still_not_found() -> None:
    said = python(
        "import sys\n"
        "sys.modules['requests'] = None\n"
        "import meshd_sdk\n"
        "meshd_sdk.instrument()\n"
        "try:\n    import requests\n"
        "except ModuleNotFoundError as error:\n    print(error.name)\n"
        "import httpx\n"
        "print('httpx' in meshd_sdk.instrument().hooked)\n"
    )
    assert said.split() == ["requests", "True"]


def test_httpx2_in_the_place_of_httpx_is_hooked_once() -> None:
    said = python(
        "import httpx2, meshd_sdk\n"
        "httpx2.alias_httpx()\n"
        "done = meshd_sdk.instrument()\n"
        "import httpx\n"
        "assert httpx.Client is httpx2.Client\n"
        "send = httpx2.Client._send_single_request\n"
        "assert hasattr(send, '__wrapped__') and not hasattr(send.__wrapped__, '__wrapped__')\n"
        "print(*done.hooked)\n",
    )
    assert {"httpx", "httpx2"} <= set(said.split())


def test_a_hook_that_warns_does_not_break_the_import(tmp_path: Any) -> None:
    (tmp_path / "requests.py").write_text("__version__ = '99.1'\n")
    said = python(
        f"import sys, warnings\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "import meshd_sdk\n"
        "meshd_sdk.instrument('requests')\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import requests\n"
        "print(requests.__version__, caught[0].message)\n"
    )
    assert said.startswith("99.1 meshd_sdk.instrument: requests 99.1 has no adapters.HTTPAdapter.send")


def test_the_sdk_imports_no_client_and_nothing_heavy() -> None:
    said = python(
        "import sys, meshd_sdk\n"
        "heavy = {'httpx', 'httpx2', 'requests', 'urllib3', 'aiohttp', 'grpc', 'google', 'google.protobuf', 'openai',\n"
        "         'anthropic', 'mcp', 'a2a', 'pydantic', 'starlette', 'ssl', 'http.client', 'asyncio'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "import meshd_sdk.asgi, meshd_sdk.wsgi, meshd_sdk.aiohttp_server\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    assert said.split() == ["[]", "[]"]
