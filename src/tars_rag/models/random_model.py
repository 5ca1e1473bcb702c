"""Models with seeded random weights, in the layouts of the real ones.

For tests and benchmarks where no published weights can be had: the same architecture, files and
speed, and scores that mean nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.models.architectures import tensors
from tars_rag.models.architectures.config import CONFIG_NAME, BertConfig
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.catalog import get_spec
from tars_rag.models.graphs import quantise
from tars_rag.models.local import WEIGHTS_NAME
from tars_rag.models.tokenizer import TOKENIZER_NAME
from tars_rag.models.weights import BertWeights, random_weights

SMALL: Final = BertConfig(layers=2, hidden=32, heads=4, intermediate=64, vocabulary=4096)
"""Big enough for every code path, small enough for a test."""

_SPECIAL: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def write_random_model(
    directory: Path,
    config: BertConfig = SMALL,
    *,
    head: bool = True,
    seed: int = 0,
    tokenizer: Path | None = None,
    onnx: str | None = None,
    quantised: bool = False,
) -> Path:
    """Write a model directory with random weights.

    Args:
        directory: Made if needed. FlashRank wants it named like one of its models.
        config: Sizes.
        head: A cross-encoder; else an embedder.
        seed: The same seed gives the same weights.
        tokenizer: A ``tokenizer.json`` to use. None: a WordPiece of letters and digits.
        onnx: Write a ready-made graph of this name as well, as FlashRank's models have
            (`flashrank_name` gives it).
        quantised: Quantise that graph dynamically to INT8, as FlashRank's are.

    Returns:
        `directory`.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = random_weights(config, head=head, seed=seed)
    save_file(stored_arrays(weights), directory / WEIGHTS_NAME)
    _write_json(directory / CONFIG_NAME, config.to_dict())
    _write_json(directory / "special_tokens_map.json", _SPECIAL)
    _write_json(
        directory / "tokenizer_config.json", {**_SPECIAL, "model_max_length": config.positions}
    )
    if tokenizer:
        shutil.copyfile(tokenizer, directory / TOKENIZER_NAME)
    else:
        _write_tokenizer(directory / TOKENIZER_NAME, config.vocabulary)
    if onnx:
        _write_graph(directory / onnx, weights, quantised=quantised)
    return directory


def stored_arrays(weights: BertWeights) -> dict[str, NDArray[np.float32]]:
    """The tensors by the names that a published file has; with a head, prefixed."""
    prefix = tensors.NAMES[weights.config.architecture].prefix if weights.head else ""
    own = tuple(f"{module.name}." for module in weights.modules if module.name != "pooler.dense")
    return {
        ("" if name.startswith(own) else prefix) + tensors.stored_name(weights.config, name): array
        for name, array in weights.arrays.items()
    }


def flashrank_name(model: str) -> str:
    """The file name that FlashRank gives to the graph of one of the catalogue's rerankers."""
    return next(f.name for f in get_spec(model).files if f.name.endswith(".onnx"))


def _write_graph(path: Path, weights: BertWeights, *, quantised: bool) -> None:
    model = build_graph(weights, output="logit")
    path.write_bytes(quantise(model, per_channel=False) if quantised else model.SerializeToString())


def _write_tokenizer(path: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-()"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    pairs = (f"{a}{b}" for a in letters[:26] for b in letters[:26])
    pieces += [piece for pair in pairs for piece in (pair, f"##{pair}")]
    names = [*_SPECIAL.values(), *pieces][:vocabulary]
    table = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, table[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    tokenizer.save(str(path))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
