"""Says once that texts are longer than a model reads, and how much of them its vectors lack."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tars_rag.models.tokenizer import Encoding, Tokenizer

_log = logging.getLogger(__name__)
_MOST: Final = 64  # texts that are measured
_LONGEST: Final = 1 << 20  # characters of one that are


class LongTexts:
    """Looks at what is embedded until something was cut, and says it then.

    Args:
        model: Its name.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer, self._told = model, tokenizer, False

    def look(self, texts: Sequence[str], encodings: Sequence[Encoding]) -> None:
        """Texts, and what the model is given of them."""
        if self._told:
            return
        full = self._tokenizer.max_length
        cut = [text for text, given in zip(texts, encodings, strict=True) if len(given) >= full]
        sizes = [self._tokenizer.count(text[:_LONGEST]) for text in cut[:_MOST]]
        long = [size for size in sizes if size > full]
        if not long:
            return
        self._told = True
        share = 1 - len(long) * full / sum(long)
        _log.warning(
            "%d of %d texts are longer than the %d tokens that %s reads: %.0f %% of them is in no "
            "vector (the longest has %d tokens). Cut them first: tars_rag.langchain.TarsSplitter, "
            "tars_rag.llama_index.TarsNodeParser, or tars-rag index. This is said once.",
            sum(size > full for size in sizes) if len(cut) <= _MOST else len(cut),
            len(texts),
            full,
            self._model,
            100 * share,
            max(long),
        )
