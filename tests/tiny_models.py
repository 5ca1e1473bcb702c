"""Models with seeded random weights, so small that a test can open them.

A plugin: ``pytest_plugins = ["tiny_models"]``.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from tars_rag.models.weights import BertConfig, random_weights

WORDS = "the a of and in is to board npu cpu core heat fan cat dog bird fish sleep run query"
WORDS += " passage vector token rerank sofa garden kitchen music piano guitar river mountain"


def write_model(
    directory: Path,
    *,
    head: bool,
    seed: int,
    shape: tuple[int, int, int, int] = (2, 32, 2, 64),
) -> Path:
    """A BERT with a vocabulary of some words and all letters; `shape` as in `BertConfig`."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split()]
    vocabulary += [c for c in letters if c not in WORDS.split()] + [f"##{c}" for c in letters]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
    )
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = BertConfig(*shape, len(vocabulary), positions=128)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    weights = random_weights(config, head=head, seed=seed)
    save_file(dict(weights.arrays), directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, (name, head) in enumerate({"tiny": False, "other": False, "tiny-ce": True}.items()):
        write_model(root / name, head=head, seed=seed)
    return root


@pytest.fixture
def embedder_dir(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tiny_models / "cache"))
    return str(tiny_models / "tiny")


@pytest.fixture
def other_embedder_dir(embedder_dir: str) -> str:
    return str(Path(embedder_dir).with_name("other"))


@pytest.fixture
def reranker_dir(embedder_dir: str) -> str:
    return str(Path(embedder_dir).with_name("tiny-ce"))
