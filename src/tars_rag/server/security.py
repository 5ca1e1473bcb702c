"""Who may ask: keys, and the names this server goes by."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from tars_rag.errors import ConfigError


class Keys:
    """API keys; none: nobody needs one. Only their checksums are kept.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with a key on each line; lines that begin with # are comments.

        Raises:
            ConfigError: It cannot be read, has no key, or one of fewer than 16 characters.
        """
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            msg = f"The key file {path} cannot be read ({error})."
            raise ConfigError(msg) from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys or min(map(len, keys)) < 16:
            msg = (
                f"{path} needs one key of at least 16 characters on each line. "
                f"Make one: openssl rand -hex 24 > {path}"
            )
            raise ConfigError(msg)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes, api_key: bytes = b"") -> bool:
        """Whether one of the headers has a key; takes as long for a wrong one as for a right one.

        Args:
            authorization: ``Bearer KEY``.
            api_key: The header X-Api-Key.
        """
        if not self._digests:
            return True
        scheme, _, given = authorization.partition(b" ")
        token = given.strip() if scheme.lower() == b"bearer" else api_key.strip()
        digest = _digest(token)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Hosts:
    """The names by which a client may call this server (against DNS rebinding).

    A page of another site can have its own name lead here, but no number: IP addresses, localhost
    and this machine's name are always good.

    Args:
        more: Further names, such as that of a reverse proxy.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own.partition('.')[0]}.local"}
        self._names |= {name.lower() for name in more}

    def admit(self, host: bytes, origin: bytes | None = None) -> bool:
        """Whether a Host header names this server, and an Origin header the same place."""
        try:
            text = host.decode("ascii").lower()
            name = urlsplit(f"//{text}").hostname or ""
            if origin is not None and urlsplit(origin.decode("ascii").lower()).netloc != text:
                return False
        except ValueError:  # not ASCII, or brackets that do not match
            return False
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def check_exposure(host: str, keys: Keys, no_auth: bool) -> None:
    """Refuse to listen where others can ask without a key.

    Raises:
        ConfigError: The host is not this machine's own, and there is neither key nor --no-auth.
    """
    if not is_loopback(host) and not keys and not no_auth:
        msg = (
            f"--host {host} lets other machines in, so it needs keys: "
            "openssl rand -hex 24 > tars-rag.key && "
            f"tars-rag serve --host {host} --api-key-file tars-rag.key "
            "(or --no-auth, where everybody on the network may read and write)."
        )
        raise ConfigError(msg)
