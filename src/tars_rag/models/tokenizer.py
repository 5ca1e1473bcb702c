"""The `tokenizers` library, wrapped once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tars_rag.errors import InvalidInputError, ModelError
from tars_rag.models.catalog import fetch_again
from tars_rag.runtimes.base import IntArray

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """One text, or one pair of texts, as the model reads it; not padded.

    Attributes:
        ids: int64 [tokens].
        types: int64 [tokens]: 0, and 1 for the second text of a pair.
    """

    ids: IntArray
    types: IntArray

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """Text to token ids, cut at `max_length`.

    A lone surrogate, which no tokenizer takes, becomes U+FFFD for the model only; BERT drops
    that character, NUL and other control characters.

    Raises:
        ModelError: ``tokenizer.json`` is missing or damaged.
    """

    def __init__(self, directory: Path, max_length: int) -> None:
        import tokenizers

        path = directory / TOKENIZER_NAME
        if not path.is_file():
            msg = (
                f"{directory} has no {TOKENIZER_NAME}, so it is not a complete model. "
                f"{fetch_again(directory)}"
            )
            raise ModelError(msg)
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            msg = f"{path} cannot be read ({error}). {fetch_again(directory)}"
            raise ModelError(msg) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self.max_length = max_length
        self._tokenizer = tokenizer
        # Without offsets, where the library has it: a third faster.
        self._batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts, each on its own."""
        size = 8 * self.max_length
        return [_encoding(e) for e in self._batch([self._cut(t, size) for t in texts])]

    def count(self, text: str) -> int:
        """How many tokens a text has, the special ones included, if nothing is cut."""
        return len(self._whole.encode(clean(text)).ids)

    def encode_pairs(self, query: str, texts: Sequence[str]) -> list[Encoding]:
        """Encode (query, text) pairs; what is too long is cut from the longer of the two."""
        # Of two texts that are both too long the longer keeps the odd token, so neither may be
        # cut beforehand, within reason: there, time matters more than that token.
        size = 1 << 14 if self._is_long(query) else 8 * self.max_length
        query = self._cut(query, size)
        return [_encoding(e) for e in self._batch([(query, self._cut(t, size)) for t in texts])]

    def _is_long(self, text: str) -> bool:
        """Whether a text has `max_length` tokens or more."""
        # A character of ASCII is one token at most, and some models begin with one of their own.
        if len(text) + 1 < self.max_length and text.isascii():
            return False
        text = self._cut(text, 8 * self.max_length)
        return len(self._tokenizer.encode(text, add_special_tokens=False)) >= self.max_length

    def _cut(self, text: str, size: int) -> str:
        """What of a long text can reach the model.

        Only the first `max_length` tokens do, so a prefix with that many gives the same ids in a
        fraction of the time and memory. Its last word does not count: the cut may be
        inside it. The first prefix has `size` characters.
        """
        while size < len(text):
            prefix = clean(text[:size])
            words = self._whole.encode(prefix, add_special_tokens=False).word_ids
            if words and len(words) - words.count(words[-1]) >= self.max_length:
                return prefix
            size *= 8
        return clean(text)

    @cached_property
    def _whole(self) -> Any:
        """The same tokenizer without truncation."""
        whole = type(self._tokenizer).from_str(self._tokenizer.to_str())
        whole.no_truncation()
        return whole


def require_texts(texts: Any, what: str = "texts") -> list[str]:
    """The caller's texts in a list of our own.

    Raises:
        InvalidInputError: A bare string, or an element that is not a string (named by index).
    """
    if isinstance(texts, str | bytes):
        msg = f"{what} must be a list of strings, not one {type(texts).__name__}. Pass [text]."
        raise InvalidInputError(msg)
    try:
        items = list(texts)
    except TypeError:
        msg = f"{what} must be a list of strings, not {type(texts).__name__}."
        raise InvalidInputError(msg) from None
    for index, item in enumerate(items):
        require_text(item, f"{what}[{index}]")
    return items


def require_text(text: Any, what: str) -> str:
    """The text itself.

    Raises:
        InvalidInputError: It is not a string.
    """
    if not isinstance(text, str):
        msg = f"{what} is {type(text).__name__}, not str. Leave it out or convert it to text."
        raise InvalidInputError(msg)
    return text


def clean(text: str) -> str:
    """The text as a model reads it: half a surrogate pair is U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def _encoding(encoding: Any) -> Encoding:
    return Encoding(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64))
