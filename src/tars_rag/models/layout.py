"""What a directory of sentence-transformers says beside the weights: modules, length, prompts.

For a model of the catalogue its row says it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tars_rag.errors import ModelError
from tars_rag.models.catalog import fetch_again
from tars_rag.models.local import LocalModel
from tars_rag.models.prompts import Prompts
from tars_rag.models.spec import Pooling
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.models.weights import CONFIG_NAME, BertConfig, read_json

_MODULES: Final = "modules.json"
_LENGTH: Final = "sentence_bert_config.json"
_PROMPTS: Final = "config_sentence_transformers.json"
_POOLINGS: Final[dict[str, Pooling]] = {"mean_tokens": "mean", "cls_token": "cls"}


def pooling(model: LocalModel) -> Pooling:
    """How the tokens' vectors become the text's; the mean where nothing is said.

    Raises:
        ModelError: A file cannot be read, or asks for what is not supported.
    """
    if model.spec:
        return model.spec.pooling
    name = _pooling_file(model)
    said = _read(model, name)
    if not said:
        return "mean"
    prefix = "pooling_mode_"
    modes = {key.removeprefix(prefix) for key, on in said.items() if key.startswith(prefix) and on}
    if len(modes) == 1 and (mode := modes.copy().pop()) in _POOLINGS:
        return _POOLINGS[mode]
    msg = (
        f"{model.directory / name} asks for {', '.join(sorted(modes)) or 'no pooling'}; only "
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
    """The settings of the pooling, by what ``modules.json`` says comes after the network.

    Raises:
        ModelError: There are other modules than an encoder, a pooling and the unit length.
    """
    path = model.directory / _MODULES
    if not path.is_file():
        return f"1_Pooling/{CONFIG_NAME}"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        folders = [str(module["path"]) for module in modules]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        msg = f"{path} cannot be read ({str(error)[:200]}). {fetch_again(model.directory)}"
        raise ModelError(msg) from error
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        msg = (
            f"{path} has the modules {', '.join(kinds) or 'none'}; only Transformer, Pooling and "
            "Normalize are supported. Choose another model: tars-rag models list"
        )
        raise ModelError(msg)
    return f"{folders[1]}/{CONFIG_NAME}"


def _read(model: LocalModel, name: str) -> dict[str, Any]:
    path = model.directory / name
    return read_json(path) if path.is_file() else {}
