"""`aiohttp.web`, imported without the system's certificate roots.

aiohttp reads them when it is imported, 2.5 MB, for the client in it; only its server is used here. While OpenSSL is
told of an empty file, there is nothing to read.
"""

from __future__ import annotations

import os

_ROOTS = "SSL_CERT_FILE"
_before = os.environ.get(_ROOTS)
os.environ[_ROOTS] = os.devnull
try:
    from aiohttp import web
finally:
    if _before is None:
        del os.environ[_ROOTS]
    else:
        os.environ[_ROOTS] = _before

__all__ = ["web"]
