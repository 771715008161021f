"""Keys of agent cards: those that may sign them, read from the policy's files, and this sidecar's own, made on first
use. Cards are seldom asked for, so files are looked at when one is."""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshd.discovery import card_signing

if TYPE_CHECKING:
    from meshd.discovery.card_signing import CardKey

FILE_NAME: Final = "card-key.pem"
FILE_BYTES_MAX: Final = 65_536
_log: Final = logging.getLogger("meshd.cards")


class CardKeys:
    """Both sorts, read once for each state of a file."""

    def __init__(self, home: Path | None = None) -> None:
        """`home` is the state directory; without one the sidecar has no key of its own."""
        self._home = home
        self._read: dict[str, tuple[tuple[int, int], tuple[CardKey, ...]]] = {}
        self._own: tuple[Any, dict[str, str]] | None = None
        self._is_without = home is None

    def of(self, paths: tuple[str, ...]) -> tuple[CardKey, ...]:
        """Return the public keys in some files. Raises ValueError saying what is wrong with one."""
        found: list[CardKey] = []
        for path in paths:
            try:
                status = Path(path).stat()
                seen = (status.st_mtime_ns, status.st_size)
                known = self._read.get(path)
                if known is None or known[0] != seen:
                    with Path(path).open("rb") as file:
                        known = (seen, card_signing.read_keys(file.read(FILE_BYTES_MAX)))
                    self._read[path] = known
            except OSError as error:
                raise ValueError(f"the key file {path} cannot be read: {error.strerror}") from None
            except ImportError:
                raise ValueError("verifying signatures needs the package cryptography (the extra `signing`)") from None
            except ValueError as error:
                raise ValueError(f"the key file {path} cannot be used: {error}") from None
            found += known[1]
        return tuple(found)

    def signed(self, card: dict[str, Any], jku: str) -> dict[str, Any] | None:
        """Return a card signed by this sidecar; None where it has no key."""
        own = self._owned()
        return None if own is None else card_signing.sign(card, own[0], own[1]["kid"], jku)

    def jwks(self) -> dict[str, Any]:
        """Return the public key of this sidecar as a JWKS; it holds none where there is none."""
        own = self._owned()
        return {"keys": [] if own is None else [own[1]]}

    def _owned(self) -> tuple[Any, dict[str, str]] | None:
        if self._own is None and not self._is_without:
            try:
                self._own = self._load()
            except ImportError:
                self._without("the package cryptography is not installed (the extra `signing`)")
            except (OSError, ValueError, TypeError) as error:
                self._without(f"{FILE_NAME} in the state directory cannot be used: {error}")
        return self._own

    def _without(self, why: str) -> None:
        self._is_without = True
        _log.warning("cards are passed on without signatures: %s", why)

    def _load(self) -> tuple[Any, dict[str, str]]:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        assert self._home is not None
        path = self._home / FILE_NAME
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise ValueError(f"others can read it; run: chmod 600 {path}")
        private = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
            raise ValueError("it holds no key of the curve P-256")
        return private, card_signing.public_jwk(private.public_key())


def _make(path: Path) -> None:
    """Make the file with a new key. Where another process makes it at the same time, one of the two wins."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = ec.generate_private_key(ec.SECP256R1())
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def encoded(value: dict[str, Any]) -> bytes:
    """Return what is served of it."""
    return json.dumps(value, separators=(",", ":")).encode()
