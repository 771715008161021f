"""Whatever is wrong with the books is said plainly; budgets then refuse, and everything else goes on."""

from __future__ import annotations

import ctypes
import json
import resource
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = "/openai/v1/chat/completions"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def chat(sidecar: Sidecar, workflow: str = "w") -> tuple[int, str]:
    ask: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "go"}]}
    found: tuple[int, str] = fetch(sidecar.url + CHAT, "POST", {"x-meshd-workflow": workflow}, json.dumps(ask).encode())
    return found


def assert_closed(sidecar: Sidecar, provider: Provider, words: str) -> None:
    """Budgets refuse and say why; the rest goes on; probes, metrics and the admin port tell it."""
    seen = len(provider.seen)
    status, text = chat(sidecar)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (503, "meshd_unavailable"), text
    assert words in error["message"]
    assert len(provider.seen) == seen
    assert fetch(f"{sidecar.url}/plain/x")[0] == 200
    assert fetch(f"{sidecar.url}/openai/v1/models")[0] == 200
    status, text = sidecar.get("/readyz")
    assert status == 503
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert not checks["store"]["is_ok"]
    assert str(sidecar.home) not in text, "this port asks for no token"
    assert sidecar.get("/livez")[0] == 200
    assert words in sidecar.admin("/v1/status")["status"]["store"]
    assert sidecar.metric("meshd_store_up") == 0
    assert words in sidecar.log
    assert "Traceback" not in sidecar.log


def used(sidecar: Sidecar, provider: Provider) -> None:
    """Books that have been in use, closed properly."""
    sidecar.start(document(provider.url))
    assert chat(sidecar)[0] == 200
    assert sidecar.stop() == 0


def overwritten(sidecar: Sidecar) -> None:
    (sidecar.home / "ledger.db").write_bytes(b"this is no database at all" * 400)


def damaged(sidecar: Sidecar) -> None:
    path = sidecar.home / "ledger.db"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def newer(sidecar: Sidecar) -> None:
    with closing(sqlite3.connect(sidecar.home / "ledger.db")) as database:
        database.execute("PRAGMA user_version = 99")
        database.commit()


def anothers(sidecar: Sidecar) -> None:
    path = sidecar.home / "ledger.db"
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(overwritten, "not a database"), (damaged, "damaged"), (newer, "newer"), (anothers, "another program")],
    ids=["overwritten", "damaged", "newer", "another program's"],
)
def test_books_that_cannot_be_used(
    sidecar: Sidecar, provider: Provider, spoil: Callable[[Sidecar], None], words: str
) -> None:
    used(sidecar, provider)
    spoil(sidecar)
    spoilt = (sidecar.home / "ledger.db").read_bytes()
    sidecar.start(document(provider.url))
    assert_closed(sidecar, provider, words)
    assert sidecar.stop() == 0
    assert (sidecar.home / "ledger.db").read_bytes() == spoilt, "evidence is left as it is"


def test_a_second_daemon_on_one_state_directory(sidecars: Callable[[str], Sidecar], provider: Provider) -> None:
    first, second = sidecars("home"), sidecars("home")
    second.log_path = second.log_path.with_suffix(".second.log")
    first.start(document(provider.url))
    known = first.running
    assert known is not None
    second.spawn(None, "--policy", str(first.policy))
    until(lambda: "Ctrl-C drains" in second.log)
    assert first.running == known, "the first is the one to be found"
    assert f"{known['pid']}" in second.log
    assert "every budget refuses" in second.log
    url = second.said
    ask = b'{"model": "m", "messages": [{"role": "user", "content": "go"}]}'
    status, text = fetch(url + CHAT, "POST", {}, ask)
    assert (status, "another meshd" in text) == (503, True), text
    assert fetch(f"{url}/plain/x")[0] == 200
    assert second.stop() == 0
    assert first.running == known
    assert chat(first)[0] == 200
    assert first.get("/readyz")[0] == 200


def test_a_database_that_another_program_holds_for_a_while(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    assert chat(sidecar)[0] == 200
    with closing(sqlite3.connect(sidecar.home / "ledger.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        status, text = chat(sidecar, "opened-meanwhile")
        assert (status, "locked" in text) == (503, True), text
        assert fetch(f"{sidecar.url}/plain/x")[0] == 200
        database.execute("ROLLBACK")
    until(lambda: chat(sidecar, "opened-meanwhile")[0] == 200)
    until(lambda: sidecar.get("/readyz")[0] == 200)


def without_root() -> None:
    """Let permissions hold for root too."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_directory_that_may_not_be_written(sidecar: Sidecar, provider: Provider) -> None:
    used(sidecar, provider)
    sidecar.log_path.unlink()
    for path in sidecar.home.iterdir():
        path.chmod(0o400)
    sidecar.home.chmod(0o500)
    try:
        sidecar.spawn(document(provider.url), before=without_root)
        until(lambda: "Ctrl-C drains" in sidecar.log or sidecar.process.poll() is not None)  # type: ignore[union-attr]
        assert "Traceback" not in sidecar.log
        assert str(sidecar.home) in sidecar.log
        url = sidecar.said
        status, text = fetch(url + CHAT, "POST", {}, b'{"model": "m", "messages": []}')
        assert (status, json.loads(text)["error"]["code"]) == (503, "meshd_unavailable")
        assert fetch(f"{url}/plain/x")[0] == 200
    finally:
        sidecar.home.chmod(0o700)


def test_a_state_directory_that_cannot_be_made(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.home.write_text("a file stands in the way")
    sidecar.spawn(document(provider.url))
    assert sidecar.wait() == 1
    assert str(sidecar.home) in sidecar.log
    assert "Traceback" not in sidecar.log


def test_a_full_disk_stops_the_budgets_and_nothing_else(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    for number in range(3):
        assert chat(sidecar, f"w{number}")[0] == 200
    spent = sidecar.accounts()["workflow/w0"][1]
    assert sidecar.process is not None
    # No file may grow, and none may be written beyond its first byte.
    resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    status, text = chat(sidecar, "new")
    assert (status, json.loads(text)["error"]["code"]) == (503, "meshd_unavailable"), text
    assert "full" in text
    assert fetch(f"{sidecar.url}/plain/x")[0] == 200
    assert json.loads(sidecar.get("/readyz")[1])["ready"] is False
    assert "full" in sidecar.admin("/v1/status")["status"]["store"]
    resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: chat(sidecar, "new")[0] == 200, "it goes on by itself")
    assert chat(sidecar, "w0")[0] == 200
    until(lambda: sidecar.get("/readyz")[0] == 200)
    assert "Traceback" not in sidecar.log
    sidecar.kill()
    sidecar.start(document(provider.url))
    assert chat(sidecar, "w0")[0] == 200
    assert sidecar.accounts()["workflow/w0"][1] >= spent + 2 * 9, "nothing was forgotten"
