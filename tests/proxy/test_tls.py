"""TLS on both sides: ALPN chooses the wire, and a certificate that is not the upstream's is refused."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from meshd.outcome import Fault
from tests.proxy.harness import echo, get, post
from tests.proxy.peers_h2 import H2Client, echo_h2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.both_loops
NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}}]\n"


class Certificates(NamedTuple):
    """Files of a private authority: its own, and one certificate with key for each name."""

    ca: Path
    good: Path
    other: Path
    """For another host."""

    def server(self, path: Path, *protocols: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def client(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if protocols:
            context.set_alpn_protocols(protocols)
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, require_engine: Callable[[str], str]) -> Certificates:
    home = tmp_path_factory.mktemp("tls")
    openssl = require_engine("openssl")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=home, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test", "-days", "3650")
    for name, alt in (("good", "IP:127.0.0.1,DNS:localhost"), ("other", "DNS:elsewhere.example")):
        (home / "ext").write_text(f"subjectAltName={alt}\n")
        run("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "3650", "-extfile", "ext", "-out", f"{name}.crt")  # fmt: skip
        (home / f"{name}.pem").write_bytes((home / f"{name}.crt").read_bytes() + (home / f"{name}.key").read_bytes())
    return Certificates(home / "ca.pem", home / "good.pem", home / "other.pem")


def policy(port: int, ca: Path | None, extra: str = "", host: str = "127.0.0.1") -> str:
    tls = f', tls: {{ca: "{ca}"}}' if ca else ""
    return f'upstreams:\n  up: {{url: "https://{host}:{port}", kind: tool{tls}{extra}}}\n' + NO_RETRY


async def test_alpn_chooses_http2(mesh: Any, upstream_h2: Any, certificates: Certificates) -> None:
    up = await upstream_h2(echo_h2, tls=certificates.server(certificates.good, "h2", "http/1.1"))
    one = await mesh(policy(up.port, certificates.ca))
    for number in range(3):
        assert (await one.fetch(post(f"/up/{number}", b"x"))).body == b"POST /%d\nx" % number
    assert len(up.servers) == 1
    assert up.servers[0].streams[1].fields[":scheme"] == "https"


@pytest.mark.parametrize("protocols", [("http/1.1",), ()], ids=["http/1.1", "no alpn"])
async def test_alpn_chooses_http1(mesh: Any, upstream: Any, certificates: Certificates, protocols: Any) -> None:
    up = await upstream(echo, tls=certificates.server(certificates.good, *protocols))
    one = await mesh(policy(up.port, certificates.ca))
    for number in range(3):
        assert (await one.fetch(post(f"/up/{number}", b"x" * 100_000))).body == b"POST /%d\n" % number + b"x" * 100_000
    assert len(up.peers) == 1


async def test_the_policy_can_insist(mesh: Any, upstream: Any, upstream_h2: Any, certificates: Certificates) -> None:
    up = await upstream(echo, tls=certificates.server(certificates.good, "http/1.1"))
    one = await mesh(policy(up.port, certificates.ca, ", protocol: h2"))
    assert (await one.fetch(get())).status == 502
    assert up.received == b""
    both = await upstream(echo, tls=certificates.server(certificates.good, "h2", "http/1.1"))
    two = await mesh(policy(both.port, certificates.ca, ', protocol: "http/1.1"'))
    assert (await two.fetch(get())).status == 200


async def test_a_certificate_of_another_host_is_refused(mesh: Any, upstream: Any, certificates: Certificates) -> None:
    up = await upstream(echo, tls=certificates.server(certificates.other))
    one = await mesh(policy(up.port, certificates.ca))
    reply = await one.fetch(get())
    assert reply.status == 502
    assert one.attempts[0].outcome.fault is Fault.TLS
    assert up.received == b""


async def test_an_unknown_authority_is_refused(mesh: Any, upstream: Any, certificates: Certificates) -> None:
    up = await upstream(echo, tls=certificates.server(certificates.good))
    one = await mesh(policy(up.port, None))
    assert (await one.fetch(get())).status == 502
    assert one.attempts[0].outcome.fault is Fault.TLS
    assert up.received == b""


async def test_an_upstream_without_tls(mesh: Any, upstream: Any, certificates: Certificates) -> None:
    async def script(peer: Any) -> None:
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    up = await upstream(script)
    one = await mesh(policy(up.port, certificates.ca))
    assert (await one.fetch(get())).status == 502


async def test_the_listener_speaks_what_alpn_chose(mesh: Any, upstream: Any, certificates: Certificates) -> None:
    up = await upstream(echo)
    document = f'upstreams:\n  up: {{url: "http://127.0.0.1:{up.port}", kind: tool}}\n'
    one = await mesh(document, tls=certificates.server(certificates.good, "h2", "http/1.1"))
    client = await H2Client.connect(one.port, ssl=certificates.client("h2"))
    assert (await client.ask("/up/a", method="POST", body=b"x" * 300_000)).body == b"POST /a\n" + b"x" * 300_000
    client.close()
    for protocols in (("http/1.1",), ()):
        plain = await one.connect(ssl=certificates.client(*protocols))
        assert (await plain.ask(post("/up/b", b"y" * 300_000))).body == b"POST /b\n" + b"y" * 300_000
        assert (await plain.ask(get("/up/c"))).body == b"GET /c\n"


async def test_nonsense_on_a_tls_listener(mesh: Any, upstream: Any, certificates: Certificates) -> None:
    up = await upstream(echo)
    document = f'upstreams:\n  up: {{url: "http://127.0.0.1:{up.port}", kind: tool}}\n'
    one = await mesh(document, tls=certificates.server(certificates.good, "h2", "http/1.1"))
    plain = await one.connect()
    plain.send(get())
    await plain.rest()
    broken = await one.connect(ssl=certificates.client("http/1.1"))
    broken.send(b"\x00\x01\x02\r\n\r\n")
    assert (await broken.reply()).status in (400, 501)
    again = await one.connect(ssl=certificates.client())
    assert (await again.ask(get())).status == 200
