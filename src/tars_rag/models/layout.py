"""What a directory of sentence-transformers says beside the weights: pooling, length, prompts.

For a model of the catalogue its row says it.
"""

from __future__ import annotations

from typing import Any, Final

from tars_rag.errors import ModelError
from tars_rag.models.local import LocalModel
from tars_rag.models.prompts import Prompts
from tars_rag.models.spec import Pooling
from tars_rag.models.weights import CONFIG_NAME, BertConfig, read_json

_POOLING: Final = f"1_Pooling/{CONFIG_NAME}"
_LENGTH: Final = "sentence_bert_config.json"
_PROMPTS: Final = "config_sentence_transformers.json"
_POOLINGS: Final[dict[str, Pooling]] = {"mean_tokens": "mean", "cls_token": "cls"}


def pooling(model: LocalModel) -> Pooling:
    """How the tokens' vectors become the text's; the mean where nothing is said.

    Raises:
        ModelError: The file cannot be read, or asks for what is not supported.
    """
    if model.spec:
        return model.spec.pooling
    said = _read(model, _POOLING)
    if not said:
        return "mean"
    prefix = "pooling_mode_"
    modes = {key.removeprefix(prefix) for key, on in said.items() if key.startswith(prefix) and on}
    if len(modes) == 1 and (mode := modes.copy().pop()) in _POOLINGS:
        return _POOLINGS[mode]
    msg = (
        f"{model.directory / _POOLING} asks for {', '.join(sorted(modes)) or 'no pooling'}; only "
        "mean and cls pooling are supported. Choose another model: tars-rag models list"
    )
    raise ModelError(msg)


def max_length(model: LocalModel, config: BertConfig) -> int:
    """The longest text in tokens: as said, and no more than the network has positions."""
    if model.spec:
        return model.spec.max_length
    length = _read(model, _LENGTH).get("max_seq_length")
    return min(int(length), config.positions) if length else config.positions


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
    if chosen and not model.spec and _read(model, _POOLING).get("include_prompt") is False:
        msg = (
            f"{model.directory / _POOLING} leaves the prompt out of the pooling, which is not "
            "supported. Choose another model: tars-rag models list"
        )
        raise ModelError(msg)


def _read(model: LocalModel, name: str) -> dict[str, Any]:
    path = model.directory / name
    return read_json(path) if path.is_file() else {}
