"""Records of a Chroma collection as passages; those that LlamaIndex wrote as its nodes.

LlamaIndex keeps a node's text as the record's document and everything else as JSON in the
metadata. What it embedded is the text with the node's metadata in front: that is searched here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.passage import Passage

_NODE_CONTENT: Final = "_node_content"
_NODE_TYPE: Final = "_node_type"
_DOCUMENT_KEYS: Final = ("document_id", "doc_id", "ref_doc_id")
_NO_DOCUMENT: Final = "None"  # what LlamaIndex writes for a node without one


@dataclass(frozen=True)
class Record:
    """One record of a collection.

    Attributes:
        id: Its id.
        text: Its document; None where it has none.
        metadata: Flat: strings, numbers, booleans and lists of them.
        vector: float32 [dim].
    """

    id: str
    text: str | None
    metadata: dict[str, Any]
    vector: NDArray[np.float32]


def as_passage(record: Record) -> Passage:
    """The passage that a record becomes.

    Raises:
        InvalidInputError: It is a node whose JSON is damaged.
    """
    text = record.text or ""
    if _NODE_CONTENT not in record.metadata:
        return Passage(record.id, text, record.metadata)
    try:
        node = json.loads(record.metadata[_NODE_CONTENT])
        own = dict(node.get("metadata") or {})
        embedded = _embedded_text(node, own, text)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        msg = f"The record {record.id!r} is a LlamaIndex node whose JSON is damaged: {error}."
        raise InvalidInputError(msg) from error
    document = next((record.metadata[k] for k in _DOCUMENT_KEYS if k in record.metadata), None)
    document = None if document == _NO_DOCUMENT else document
    if "text" in node:
        node["text"] = text
    else:
        node["text_resource"] = {"text": text}
    # The layout of tars_rag.llama_index.nodes, which reads it back.
    whole = {
        _NODE_CONTENT: json.dumps(node, ensure_ascii=False),
        _NODE_TYPE: record.metadata.get(_NODE_TYPE, "TextNode"),
    }
    filtered_by = dict.fromkeys(_DOCUMENT_KEYS, document or _NO_DOCUMENT)
    reserved = {"_node": whole, "_node_id": record.id, "_ref_doc_id": document}
    return Passage(record.id, embedded, {**filtered_by, **own, **reserved})


def _embedded_text(node: dict[str, Any], metadata: dict[str, Any], text: str) -> str:
    """`node.get_content(MetadataMode.EMBED)`, as LlamaIndex has it."""
    hidden = set(node.get("excluded_embed_metadata_keys") or ())
    separator = node.get("metadata_separator") or node.get("metadata_seperator") or "\n"
    template = node.get("metadata_template") or "{key}: {value}"
    lines = [
        _fill(template, key=key, value=str(value))
        for key, value in metadata.items()
        if key not in hidden
    ]
    above = str(separator).join(lines).strip()
    if not above:
        return text
    whole = node.get("text_template") or "{metadata_str}\n\n{content}"
    return _fill(whole, metadata_str=above, content=text).strip()


def _fill(template: str, **values: str) -> str:
    """As `str.format` for plain names; a template is another program's and may hold anything."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)
