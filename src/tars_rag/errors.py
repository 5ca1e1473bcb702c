"""Every error this package raises on purpose.

Each message says what failed, why, and what to do next.
"""

from __future__ import annotations


class TarsRagError(Exception):
    """Base of all errors raised on purpose by tars-rag."""


class InvalidInputError(TarsRagError, ValueError):
    """A text, id, number or filter that the caller passed cannot be used."""


class ConfigError(TarsRagError, ValueError):
    """A setting, environment variable or combination of arguments is not valid."""


class ModelError(TarsRagError):
    """A model is unknown, missing, damaged, or cannot be fetched."""


class DeviceError(TarsRagError, RuntimeError):
    """A device is absent, unusable, or gave an answer that cannot be trusted."""


class NonFiniteError(DeviceError):
    """A device answered NaN or infinity: it failed, or the text overflows its arithmetic."""


class MissingLengthError(DeviceError):
    """An NPU core cannot open the graph of a length, usually for want of memory; others it can."""


class StoreError(TarsRagError):
    """A passage store is damaged, locked, or cannot be read or written."""


class StoreLockedError(StoreError):
    """Another process has the store open; the message names its pid."""


class UnknownLayoutError(StoreError):
    """A file of Chroma or tantivy looks otherwise than in the versions tested; not damage."""


class FingerprintError(StoreError):
    """The store's vectors were made by another embedder than the one given."""


class ConversionError(TarsRagError):
    """A model could not be converted, or the result is not faithful enough to keep."""


_SHOWN = 80


def shown(value: object) -> str:
    """A value for a message: short, whatever it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: an int of thousands of digits
        return f"{type(value).__name__} that is too large to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
