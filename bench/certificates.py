"""A certificate authority of our own, and a server certificate from it, by the openssl command; alive for a week."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Certificates(NamedTuple):
    """Paths of PEM files."""

    ca: Path
    certificate: Path
    key: Path


def make(folder: Path) -> Certificates | None:
    """Write them into `folder` and return their paths; None where there is no openssl.

    Raises subprocess.CalledProcessError where openssl fails.
    """
    openssl = shutil.which("openssl")
    if not openssl:
        return None
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    request, certificate, key = folder / "upstream.csr", folder / "upstream.pem", folder / "upstream.key"
    extensions = folder / "upstream.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial"]
    commands = [
        ["req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "7", "-subj", "/CN=bench authority"],
        ["req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", request, *authority, "-days", "7", "-extfile", extensions, "-out", certificate],
    ]
    for command in commands:
        subprocess.run([openssl, *map(str, command)], check=True, capture_output=True)
    return Certificates(ca, certificate, key)
