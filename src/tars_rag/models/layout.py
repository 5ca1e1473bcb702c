"""What a directory of sentence-transformers says beside the weights: modules, length, prompts.

For a model of the catalogue its row says it.
"""

from __future__ import annotations

from typing import Any, Final

from tars_rag.errors import ModelError
from tars_rag.models.architectures.config import (
    CONFIG_NAME,
    COUNTED_FROM_PADDING,
    BertConfig,
    read_json,
)
from tars_rag.models.local import LocalModel
from tars_rag.models.modules import MODULES_NAME, read_chain, read_pooling
from tars_rag.models.prompts import Prompts
from tars_rag.models.spec import Pooling
from tars_rag.models.tokenizer import TOKENIZER_CONFIG_NAME, Tokenizer

_LENGTH: Final = "sentence_bert_config.json"
_PROMPTS: Final = "config_sentence_transformers.json"


def pooling(model: LocalModel) -> Pooling:
    """How the tokens' vectors become the text's; the mean where nothing is said.

    Raises:
        ModelError: A file cannot be read, or asks for what is not supported.
    """
    if model.spec:
        return model.spec.pooling
    return read_pooling(model.directory, _pooling_file(model))


def width(model: LocalModel, config: BertConfig) -> int:
    """The width of an embedding: of the last Dense module, or of the network."""
    return read_chain(model.directory).width or config.hidden


def max_length(model: LocalModel, config: BertConfig) -> int:
    """The longest text in tokens: as said, and no more than the network has positions."""
    if model.spec:
        return model.spec.max_length
    length = _read(model, _LENGTH).get("max_seq_length")
    length = length or _read(model, TOKENIZER_CONFIG_NAME).get("model_max_length")
    number = isinstance(length, int | float) and length > 0
    # A tokenizer that knows of no limit has 1e30 there.
    return int(min(length or 0, config.positions)) if number else config.positions


def pair_length(model: LocalModel, most: int) -> int:
    """The longest query and passage together, in tokens, that a cross-encoder has positions for.

    Read from ``config.json`` alone, because FlashRank's files may be of any architecture.
    """
    config = read_json(model.directory / CONFIG_NAME)
    positions = int(config.get("max_position_embeddings", most))
    if config.get("model_type") in COUNTED_FROM_PADDING:
        positions -= int(config.get("pad_token_id", 1)) + 1
    return min(most, positions)


def prompts(model: LocalModel) -> Prompts:
    """The model's own prompts.

    Raises:
        ModelError: The file cannot be read, or its prompts are not strings by name.
    """
    if model.spec:
        return model.spec.prompts
    try:
        return Prompts.of_sentence_transformers(_read(model, _PROMPTS))
    except ValueError as error:
        msg = (
            f"{model.directory / _PROMPTS} has prompts that are not strings by name ({error}). "
            "Correct it, or fetch the model again."
        )
        raise ModelError(msg) from error


def require_prompts(model: LocalModel, chosen: Prompts) -> None:
    """Refuse prompts for a model that leaves their tokens out of the pooling.

    Raises:
        ModelError: It is such a model.
    """
    if not chosen or model.spec:
        return
    name = _pooling_file(model)
    if _read(model, name).get("include_prompt") is False:
        msg = (
            f"{model.directory / name} leaves the prompt out of the pooling, which is not "
            "supported. Choose another model: tars-rag models list"
        )
        raise ModelError(msg)


def require_case(model: LocalModel, tokenizer: Tokenizer) -> None:
    """Refuse a model whose texts are to be in lower case where its tokenizer does not see to it.

    Raises:
        ModelError: It is such a model.
    """
    if model.spec or not _read(model, _LENGTH).get("do_lower_case"):
        return
    large, small = tokenizer.encode(["ABC", "abc"])
    if large.ids.tolist() != small.ids.tolist():
        msg = (
            f"{model.directory / _LENGTH} asks for texts in lower case, but the tokenizer tells "
            "cases apart, which is not supported. Choose another model: tars-rag models list"
        )
        raise ModelError(msg)


def _pooling_file(model: LocalModel) -> str:
    """The settings of the pooling.

    Raises:
        ModelError: There is none, or another module that is not supported.
    """
    name = read_chain(model.directory).pooling_file
    if name is None:
        msg = (
            f"{model.directory / MODULES_NAME} has no pooling, so it is not an embedder's. "
            "Choose another model: tars-rag models list"
        )
        raise ModelError(msg)
    return name


def _read(model: LocalModel, name: str) -> dict[str, Any]:
    path = model.directory / name
    return read_json(path) if path.is_file() else {}
