"""What is put before a text for the model's sake: one prompt for queries, one for passages.

Models that were trained with prompts find less without them: e5 wants "query: " and "passage: ",
arctic and bge a sentence before the query and nothing before the passage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tars_rag.errors import ConfigError, shown


@dataclass(frozen=True, slots=True)
class Prompts:
    """Put before a text as they are, so a blank between them is part of the prompt.

    Attributes:
        query: Before what is asked.
        passage: Before what is stored.
    """

    query: str = ""
    passage: str = ""

    def __bool__(self) -> bool:
        return bool(self.query or self.passage)

    @property
    def digest(self) -> str:
        """8 hexadecimal digits, for the fingerprint: other prompts make other vectors."""
        return hashlib.sha256(json.dumps([self.query, self.passage]).encode()).hexdigest()[:8]

    def changed(self, given: Any) -> Prompts:
        """These prompts, but for those given.

        Args:
            given: A mapping with ``query``, ``passage``, or both; an empty string means none.
                None: no change.

        Raises:
            ConfigError: Another key, or a value that is not a string.
        """
        if given is None:
            return self
        if not isinstance(given, Mapping):
            msg = f"prompts={shown(given)} is not valid. {_EXAMPLE}"
            raise ConfigError(msg)
        for key, value in given.items():
            if key not in ("query", "passage") or not isinstance(value, str):
                msg = f"prompts has {shown(key)}: {shown(value)}, which is not valid. {_EXAMPLE}"
                raise ConfigError(msg)
        return replace(self, **given)

    @classmethod
    def of_sentence_transformers(cls, config: Mapping[str, Any]) -> Prompts:
        """The prompts of a ``config_sentence_transformers.json``.

        As its `encode_query` and `encode_document` choose them: "query"; "document", "passage" or
        "corpus"; otherwise the default prompt, where one is named.

        Raises:
            ValueError: They are not strings by name.
        """
        named: Any = config.get("prompts") or {}
        if not (isinstance(named, dict) and all(isinstance(p, str) for p in named.values())):
            msg = f"they are {shown(named)}"
            raise ValueError(msg)
        default: str = named.get(config.get("default_prompt_name") or "", "")
        passages = [named[key] for key in ("document", "passage", "corpus") if key in named]
        return cls(named.get("query", default), passages[0] if passages else default)


NO_PROMPTS: Final = Prompts()

_EXAMPLE: Final = 'Example: prompts={"query": "query: ", "passage": "passage: "}.'
