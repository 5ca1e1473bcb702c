"""Addresses of stores that are no directory, by their form: a server's, and tables of LanceDB.

Nothing is imported here, so that asking is cheap.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from tars_rag.errors import ConfigError

API_KEY: Final = "TARS_API_KEY"
"""The variable that has the key of servers, where none is given."""
DEFAULT_MODEL: Final = "default"
"""Names whichever model a server has."""


def is_url(path: object) -> bool:
    """Whether a store's path is the address of one that a server has.

    Raises:
        ConfigError: It was, before it became a `Path`, which drops a slash.
    """
    _check_string(path)
    return isinstance(path, str) and path.startswith(("http://", "https://"))


def is_lance(path: object) -> bool:
    """Whether a store's path is the address of a table of LanceDB.

    Raises:
        ConfigError: It was, before it became a `Path`, which drops a slash.
    """
    _check_string(path)
    return isinstance(path, str) and path.startswith(("lance://", "lance+"))


def is_address(path: object) -> bool:
    """Whether a store's path is an address, of whichever kind, and no directory.

    Raises:
        ConfigError: It was, before it became a `Path`, which drops a slash.
    """
    return is_url(path) or is_lance(path)


def lance_address(address: str) -> str:
    """The address of a table of LanceDB in one spelling.

    Raises:
        ConfigError: It is none.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "lance" and rest.startswith("/") and rest.strip("/"):
        return f"lance:///{posixpath.normpath(rest).lstrip('/')}"
    bucket, _, name = rest.strip("/").partition("/")
    if scheme == "lance+s3" and bucket and name:
        return f"lance+s3://{bucket}/{name}"
    msg = (
        f"{address!r} is no address of a store in LanceDB. Use lance:///DIRECTORY (a whole path, "
        "hence three slashes) or lance+s3://BUCKET/NAME"
    )
    raise ConfigError(msg)


def lance_of(path: Path | str) -> str | None:
    """The address of a store in LanceDB, also where it was read as a path; None: it is none.

    Raises:
        ConfigError: It begins like one, and is none.
    """
    text = unfolded(path) if isinstance(path, Path) else path
    return lance_address(text) if is_lance(text) else None


def lance_uri(address: str) -> str:
    """What LanceDB itself calls the place of an address: a directory, or ``s3://bucket/name``.

    Raises:
        ConfigError: It is no such address.
    """
    usual = lance_address(address)
    return (
        usual.removeprefix("lance://") if usual.startswith("lance://") else usual[len("lance+") :]
    )


def unfolded(path: Path) -> str:
    """The path as text; an address that was read as a path has its slashes again."""
    scheme, *rest = path.parts or ("",)
    if scheme not in ("http:", "https:", "lance:") and not scheme.startswith("lance+"):
        return str(path)
    return f"{scheme}//{'/' if scheme == 'lance:' else ''}{'/'.join(rest)}"


def _check_string(path: object) -> None:
    if isinstance(path, Path) and unfolded(path) != str(path):
        msg = f"A store's address is a string, not a Path: {unfolded(path)!r}"
        raise ConfigError(msg)


def server_key(given: str | None) -> str | None:
    """The key that a server is told: the one that was given, or else that of TARS_API_KEY."""
    return (os.environ.get(API_KEY) if given is None else given) or None


def server_url(url: str) -> str:
    """The address of a server, ``http://host:port`` or a path below it, in one spelling.

    Raises:
        ConfigError: It is none.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        _ = parts.port
    except ValueError:  # a port that is no number, half an IPv6 address
        usable = False
    if not usable:
        msg = f"{url!r} is no address of a server. Use http://host:port"
        raise ConfigError(msg)
    return url.rstrip("/").removesuffix("/v1")  # OpenAI's clients are given it


def split_store(url: str) -> tuple[str, str]:
    """The server and the quoted name of a store's address ``http://host:port/name``.

    Raises:
        ConfigError: It names no store.
    """
    base, _, name = url.rstrip("/").rpartition("/")
    if not name or base in ("http:/", "https:/", "http:", "https:", ""):
        msg = f"{url!r} names no store. Use http://host:port/NAME, as in serve --store NAME=DIR."
        raise ConfigError(msg)
    return server_url(base), quote(name, safe="%")


def store_url(url: str) -> str:
    """The address of a server's store in one spelling.

    Raises:
        ConfigError: It names no store.
    """
    split_store(url)
    return url.rstrip("/")
