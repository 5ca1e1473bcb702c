"""Passages as Chroma can hold them, and back, without losing a character.

Chroma keeps UTF-8 text and flat metadata. A string that is not valid Unicode (lone surrogates) is
kept in base64 behind a prefix. Text and metadata are kept whole, as compressed JSON, under one
reserved key of Chroma's metadata; top-level scalars, and lists of one type of them, are repeated
beside it so that `where` can filter on them. A list that Chroma cannot hold is named, so that a
filter which would have to look into it can be refused (see filter_plan). What is in no way a value
to compare with (None, dicts, lists without a scalar) is left out: no test but a negated one holds
for it.
The text is not a Chroma document: Chroma would index every three letters of it, which doubles the
time of a write and adds two thirds to the disk, for a search that BM25 does here.
"""

from __future__ import annotations

import base64
import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.passage import CONTEXT, Passage

ENVELOPE = "_tars"
UNHELD_LISTS = "_tars:lists"
"""Names the keys whose lists Chroma cannot hold, or `ALL_KEYS`."""
RESERVED = (ENVELOPE, UNHELD_LISTS, CONTEXT)
ALL_KEYS = ""
INT64 = 1 << 63
MAX_ID_BYTES = 4096
MAX_KEYS = 5000
"""Top-level values of one passage that can be filtered on; likewise the values of all its lists.
Chroma writes each kind with one SQL statement of six variables a value. From 5,462 values on that
fails, at some later time, and from then on no write and no read of the collection succeeds."""
_MAX_UNHELD = 100
_PREFIX = "tars-b64:"
_COMPRESSED = "tars-zlib:"
_SHORT = 256  # characters of JSON that are kept as they are


def encode(text: str) -> str:
    """The string itself, or its base64 where UTF-8 cannot express it. Injective."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    else:
        if not text.startswith(_PREFIX):
            return text
    return _PREFIX + base64.b64encode(data).decode("ascii")


def decode(text: str) -> str:
    """The inverse of `encode`."""
    if not text.startswith(_PREFIX):
        return text
    return base64.b64decode(text[len(_PREFIX) :]).decode("utf-8", "surrogatepass")


def decode_all(texts: Sequence[str]) -> list[str]:
    """`decode` for many, nearly all of which are themselves."""
    return [decode(text) if text.startswith(_PREFIX) else text for text in texts]


def sketch(vector: NDArray[np.float32]) -> list[float]:
    """Four projections of one vector [dim], stored beside it so that another one is found out.

    Not a checksum: Chroma scales vectors to unit length, which moves their last bits.
    """
    unit = np.asarray(vector, np.float64) / np.linalg.norm(vector)
    return [round(float(value), 4) for value in _waves(len(unit)) @ unit]


@lru_cache(maxsize=8)
def _waves(dim: int) -> NDArray[np.float64]:
    """Four directions, [4, dim]."""
    steps = np.outer(np.arange(1, 5) * math.pi * (math.sqrt(5) - 1), np.arange(1, dim + 1))
    waves: NDArray[np.float64] = math.sqrt(2) * np.cos(steps)
    return waves


def matches(vector: NDArray[np.float32] | None, stored: Sequence[float]) -> bool:
    """Whether `vector` is the one that was sketched."""
    if vector is None or not np.isfinite(vector).all() or not np.any(vector):
        return False
    return bool(np.allclose(sketch(vector), stored, rtol=0, atol=1e-3))


def check_id(passage_id: object) -> str:
    """The id, if it can be one.

    Raises:
        InvalidInputError: Not a string, empty, or longer than 4096 bytes.
    """
    if not isinstance(passage_id, str) or not passage_id:
        msg = f"A passage id must be a string that is not empty, got {shown(passage_id)}."
        raise InvalidInputError(msg)
    if len(encode(passage_id).encode()) > MAX_ID_BYTES:
        msg = (
            f"The passage id {passage_id[:40]!r}... is longer than {MAX_ID_BYTES} bytes. "
            "Use a shorter one, for instance a hash of it."
        )
        raise InvalidInputError(msg)
    return passage_id


def check_passage(passage: Any) -> Passage:
    """The passage, if the store can hold and return it unchanged.

    Raises:
        InvalidInputError: Not a `Passage`, or its id, text or metadata is not usable; the message
            names the id and the metadata key.
    """
    if not isinstance(passage, Passage):
        msg = f"Expected a Passage(id, text, metadata), got {type(passage).__name__}."
        raise InvalidInputError(msg)
    check_id(passage.id)
    text: Any = passage.text
    metadata: Any = passage.metadata
    if not isinstance(text, str):
        msg = f"The text of passage {passage.id!r} must be a string, got {shown(text)}."
        raise InvalidInputError(msg)
    if not isinstance(metadata, Mapping):
        msg = f"The metadata of passage {passage.id!r} must be a mapping, got {shown(metadata)}."
        raise InvalidInputError(msg)
    for key, value in metadata.items():
        problem = None if isinstance(key, str) else "the key is not a string"
        problem = problem or _not_json(value)
        if problem:
            msg = (
                f"Metadata {shown(key)} of passage {passage.id!r} cannot be stored: {problem}. "
                "Use strings, finite numbers, booleans, None, lists and dicts with string keys."
            )
            raise InvalidInputError(msg)
    if (
        len(metadata) > MAX_KEYS
        and sum(kind_of(v) is not None for v in metadata.values()) > MAX_KEYS
    ):
        msg = (
            f"Passage {passage.id!r} has more than {MAX_KEYS:,} top-level metadata keys: Chroma "
            'cannot hold them. Put those that are not filtered on into one: {"fields": {...}}.'
        )
        raise InvalidInputError(msg)
    return passage


def pack_metadata(passage: Passage, vector: NDArray[np.float32]) -> dict[str, Any]:
    """What Chroma keeps for a checked `passage`: the envelope, and what can be filtered on."""
    envelope = {"sketch": sketch(vector), **_content(passage)}
    return {**filterable(passage), ENVELOPE: _compressed(_json(envelope))}


def filterable(passage: Passage) -> dict[str, Any]:
    """The metadata of a checked `passage` as Chroma can hold and filter on it."""
    packed: dict[str, Any] = {}
    unheld: list[str] = []
    room = MAX_KEYS - _MAX_UNHELD
    for key, value in passage.metadata.items():
        if not usable_key(key):
            continue
        if isinstance(value, list | tuple):
            values = [element for element in value if kind_of(element) is not None]
            if len(values) > room or not _uniform(values):
                unheld.append(encode(key))
            elif values:
                packed[encode(key)] = [_held(element) for element in values]
                room -= len(values)
        elif kind_of(value) is not None:
            packed[encode(key)] = _held(value)
    if unheld:
        packed[UNHELD_LISTS] = unheld if len(unheld) <= _MAX_UNHELD else [ALL_KEYS]
    return packed


def outdated(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What to change (None: to remove) in metadata that an earlier version packed; {}: nothing."""
    held = metadata or {}
    content = _envelope(metadata)
    today = filterable(Passage("", content["text"], content["metadata"]))
    gone = dict.fromkeys(held.keys() - today.keys() - {ENVELOPE})
    return gone | {
        key: value
        for key, value in today.items()
        if held.get(key) != value or type(held[key]) is not type(value)
    }


def kind_of(value: object) -> str | None:
    """The type of a value that can be compared with: str, int, float, bool; None: it cannot."""
    for kind in (bool, int, float, str):  # True is an int, too
        if isinstance(value, kind):
            return kind.__name__
    return None


def usable_key(key: str) -> bool:
    """Whether Chroma can hold, and filter on, metadata under this key."""
    return bool(key) and key not in RESERVED and not key.startswith(("$", "#", "chroma:"))


def same_content(one: Passage, other: Passage) -> bool:
    """Whether text and metadata are the same, type for type (1 is not 1.0, nor True)."""
    return one.text == other.text and _json(one.metadata) == _json(other.metadata)


def unpack(passage_id: str, metadata: Mapping[str, Any] | None) -> Passage:
    """The passage that was packed; `passage_id` and `metadata` as Chroma returned them.

    Raises:
        KeyError, ValueError: The record was not written by this package.
    """
    envelope = _envelope(metadata)
    return Passage(decode(passage_id), envelope["text"], envelope["metadata"])


def pack_content(passage: Passage) -> bytes:
    """Text and metadata of a checked passage; equal content gives equal bytes."""
    return _json(_content(passage)).encode("utf-8", "surrogatepass")


def unpack_content(passage_id: str, content: bytes) -> Passage:
    """The passage whose content was packed; its id as `encode` made it."""
    held = json.loads(content.decode("utf-8", "surrogatepass"))
    return Passage(decode(passage_id), held["text"], held["metadata"])


def stored_sketch(metadata: Mapping[str, Any] | None) -> list[float]:
    """The sketch that was stored with the vector."""
    stored: list[float] = _envelope(metadata)["sketch"]
    return stored


def _content(passage: Passage) -> dict[str, Any]:
    return {"text": passage.text, "metadata": dict(passage.metadata)}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"))


def _envelope(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    held = (metadata or {})[ENVELOPE]
    envelope: dict[str, Any] = json.loads(_decompressed(held))
    return envelope


def _compressed(text: str) -> str:
    """JSON as a string that is shorter, where it is long.

    Chroma keeps a string twice, in a table and whole in an index of it, and what does not fit into
    a quarter of a page of that takes pages of its own: 100,000 abstracts took 415 MB as they are.
    """
    if len(text) < _SHORT:
        return encode(text)
    data = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
    return _COMPRESSED + base64.b64encode(data).decode("ascii")


def _decompressed(held: str) -> str:
    """The inverse of `_compressed`."""
    if not held.startswith(_COMPRESSED):
        return decode(held)
    try:
        data = zlib.decompress(base64.b64decode(held[len(_COMPRESSED) :]))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return data.decode("utf-8", "surrogatepass")


def _uniform(values: Sequence[Any]) -> bool:
    """Whether Chroma keeps these scalars, as one list, as what they are."""
    if len({kind_of(value) for value in values}) > 1:
        return False
    return all(-INT64 <= value < INT64 for value in values if isinstance(value, int))


def _held(value: Any) -> Any:
    """A scalar as Chroma keeps it: a number beyond 64 bits becomes the nearest float, as there."""
    if isinstance(value, str):
        return encode(value)
    if isinstance(value, bool | float) or -INT64 <= value < INT64:
        return value
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max


def _not_json(value: object) -> str | None:
    """Why `value` would not come back as it is; None if it would (tuples come back as lists)."""
    try:
        _check_keys(value)
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _check_keys(value: object) -> None:
    """json.dumps turns other keys into strings without a word."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                msg = f"the key {shown(key)} is not a string"
                raise TypeError(msg)
            _check_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_keys(inner)
