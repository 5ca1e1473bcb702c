"""The one place where LanceDB is imported, and what its errors become."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tars_rag import advice
from tars_rag.errors import ConfigError, StoreError, TarsRagError
from tars_rag.retrieval.address import lance_uri

_MOST_TOLD: Final = 300
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
CONFLICTS: Final = ("conflict", "contention", "concurrent")
"""Words of Lance's errors about two writers at once."""


def library() -> Any:
    """LanceDB.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are of what is tried again
    try:
        import lancedb
        import lancedb.index
        import lancedb.query
    except ImportError as error:
        msg = (
            f"A store at lance:// needs LanceDB, which cannot be imported ({error}). "
            f"Install it: {advice.install('lance')}"
        )
        raise ConfigError(msg) from error
    return lancedb


def arrow() -> Any:
    """Pyarrow, which LanceDB brings."""
    import pyarrow

    return pyarrow


def connected(address: str) -> Any:
    """A connection to the place of a store; nothing is asked of it yet.

    Region, endpoint and keys of S3 are in the usual AWS_* variables, which Lance reads by itself.

    Raises:
        ConfigError: LanceDB is not installed, or the address is none.
    """
    uri = lance_uri(address)
    options: dict[str, str] = {}
    if uri.startswith("s3://"):
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if endpoint:
            options["aws_endpoint"] = endpoint
        if endpoint.startswith("http://"):
            options["allow_http"] = "true"
    lancedb = library()
    with asking(address, "opened"):
        return lancedb.connect(uri, storage_options=options or None)


@contextlib.contextmanager
def asking(address: str, done: str) -> Iterator[None]:
    """Turn LanceDB's errors into a `StoreError` that says what was to be done and what is next."""
    try:
        yield
    except TarsRagError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise StoreError(problem(address, done, error)) from error


def problem(address: str, done: str, error: BaseException) -> str:
    """The message about an error of LanceDB."""
    told = short(error)
    place = lance_uri(address)
    step = (
        "Check bucket, network and the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_REGION and AWS_ENDPOINT_URL"
        if place.startswith("s3://")
        else f"Check that {place} can be reached, its disk and its permissions (df, ls -ld)"
    )
    return (
        f"The store {address} cannot be {done}: {told}. {step}, then repeat the call; nothing that "
        "was acknowledged is lost."
    )


def short(error: BaseException) -> str:
    """An error of LanceDB, some of which are pages long."""
    told = " ".join(str(error).split())
    return told if len(told) <= _MOST_TOLD else f"{told[:_MOST_TOLD]} ..."


def is_conflict(error: BaseException) -> bool:
    """Whether another writer was faster, so that the same is to be tried again."""
    told = str(error).lower()
    return any(word in told for word in CONFLICTS)


def check_place(address: str, *, read_only: bool) -> None:
    """Refuse a directory that is a store of the other kind, and nothing where nothing is made.

    Raises:
        StoreError: It is, or there is none.
    """
    uri = lance_uri(address)
    if uri.startswith("s3://"):
        return
    path = Path(uri)
    if (path / "store.json").exists():
        msg = (
            f"{path} is the directory of a store without LanceDB. Open it by its path: {path}; or "
            f"give another directory after lance://"
        )
        raise StoreError(msg)
    if read_only and is_missing(address):
        raise StoreError(no_store(address))


def is_missing(address: str) -> bool:
    """Whether there is no such directory, which LanceDB would make."""
    uri = lance_uri(address)
    return not uri.startswith("s3://") and not Path(uri).is_dir()


def no_store(address: str) -> str:
    """The message that there is none."""
    return (
        f"There is no store at {address}. Make one: tars-rag index FILES --store {address}; or "
        f"load one: tars-rag index --from-parquet FILE --store {address}"
    )
