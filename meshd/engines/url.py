"""The URL of a store: where it is, how to sign in, how to trust it. What is shown of it has no secret in it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from meshd.engines.port import StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TIMEOUT_S: Final = 1.0
"""How long an operation waits for its answer. A store that is slower than this is as good as gone."""
CONNECT_TIMEOUT_S: Final = 3.0
SECONDS_MAX: Final = 60.0
SHARED_OPTIONS: Final = frozenset({"timeout", "connect_timeout", "password_file", "ca", "cert", "key"})
"""Options that every engine beyond the network has."""

_SECRET_BYTES_MAX = 64 * 1024


class StoreUrl:
    """A store's URL, read once. Files that it names are read at each connection, so that a new secret is taken."""

    __slots__ = ("host", "options", "password", "path", "port", "scheme", "user")

    def __init__(self, text: str, kind: str = "store") -> None:
        """Raises StoreUnable for what is no URL; no message repeats a part that may hold a secret.

        `kind` is what the URL is to name.
        """
        self.scheme, separator, _ = text.strip().partition(":")
        self.scheme = self.scheme.lower()
        if not separator or not self.scheme.isascii() or not self.scheme.replace("+", "").isalnum():
            raise StoreUnable(f"a {kind} is named by a URL, for example sqlite: or redis://127.0.0.1:6379")
        try:
            parts = urlsplit(text.strip())
            self.host = unquote(parts.hostname or "")
            self.port = parts.port
        except ValueError:
            # Not the error's own words: they quote what stands in the port's place, often the end of a password.
            raise StoreUnable(
                f"the {self.scheme} URL cannot be read: after the host stands a port, and in a password / is written "
                "%2F, @ is %40, : is %3A, # is %23 and ? is %3F"
            ) from None
        if parts.fragment:
            raise StoreUnable(f"the {self.scheme} URL has a #: in a password it is written %23")
        self.user = None if parts.username is None else unquote(parts.username)
        self.password = None if parts.password is None else unquote(parts.password)
        self.path = unquote(parts.path)
        self.options: Mapping[str, str] = dict(parse_qsl(parts.query, keep_blank_values=True))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}:{'//' if host else ''}{host}{port}{self.path}"

    __repr__ = __str__

    def allow(self, own: Iterable[str], kind: str = "store") -> None:
        """Refuse, with StoreUnable, options that are neither in `own` nor shared."""
        known = SHARED_OPTIONS | set(own)
        if unknown := sorted(set(self.options) - known):
            raise StoreUnable(
                f"the {self.scheme} {kind} knows no option {unknown[0][:40]!r}; it knows {', '.join(sorted(known))}"
            )

    def seconds(self, name: str, default: float) -> float:
        """Return an option that is a number of seconds, for example `2` or `0.5`. Raises StoreUnable."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0.0 < seconds <= SECONDS_MAX:
            raise StoreUnable(f"{name}={text[:40]} is not a number of seconds above 0 and up to {SECONDS_MAX:.0f}")
        return seconds

    def number(self, name: str, default: int, *, least: int, most: int) -> int:
        """Return an option that is a whole number. Raises StoreUnable."""
        text = self.options.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not least <= int(text[:9]) <= most:
            raise StoreUnable(f"{name}={text[:40]} is not a whole number from {least} to {most}")
        return int(text)

    def is_set(self, name: str) -> bool:
        """Return an option that is true or false; false where it is left out. Raises StoreUnable."""
        text = self.options.get(name, "false").lower()
        if text not in ("true", "false"):
            raise StoreUnable(f"{name}={text[:40]} is neither true nor false")
        return text == "true"

    def secret(self, option: str = "password_file") -> str | None:
        """Return what the file named by `option` holds; without one, the URL's own password. Raises StoreError."""
        name = self.options.get(option)
        if name is None:
            return self.password
        return read_secret(name, option)

    def tls(self) -> ssl.SSLContext:
        """Return how to talk TLS: trusting `ca`, or what the system trusts, and showing `cert` and `key`.

        Raises StoreUnable.
        """
        try:
            context = ssl.create_default_context(cafile=self.options.get("ca"))
        except (OSError, ssl.SSLError) as error:
            raise StoreUnable(f"ca={self.options.get('ca')} cannot be used: {_reason(error)}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if (cert := self.options.get("cert")) is not None:
            try:
                context.load_cert_chain(cert, self.options.get("key"))
            except (OSError, ssl.SSLError) as error:
                raise StoreUnable(f"cert={cert} cannot be used: {_reason(error)}") from None
        return context


def read_secret(name: str, option: str) -> str:
    """Return a secret that a file holds, without the end of its line. Raises StoreError naming the file."""
    try:
        with Path(name).open("rb") as file:
            return file.read(_SECRET_BYTES_MAX).decode().rstrip("\r\n")
    except OSError as error:
        raise StoreError(f"{option}={name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StoreError(f"{option}={name} holds no text") from None


def shown(text: str) -> str:
    """Return a store's URL as it may stand in a log: no user, no password, no options; of nonsense, its scheme."""
    try:
        return str(StoreUrl(text))
    except StoreUnable:
        return "a URL that cannot be read"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
