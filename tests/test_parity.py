"""Each architecture against `transformers`, each head against sentence-transformers.

Random weights, in float32 on the CPU. Needs the extra ``parity``: `nox -s parity`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tars_rag.models.bert_graph import build_graph, host_input_names
from tars_rag.models.modules import read_chain, read_pooling
from tars_rag.models.weights import load_weights
from tars_rag.runtimes.npu.host_inputs import device_inputs

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity]

LENGTHS = (1, 2, 7, 64, 65, 200, 512)
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 99}
WIDE = SIZES | {"intermediate_size": 64, "initializer_range": 0.3}
COUNTED = WIDE | {"max_position_embeddings": 514, "pad_token_id": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", WIDE),
    "roberta": ("Roberta", COUNTED | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", COUNTED | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "camembert": ("Camembert", COUNTED | {"type_vocab_size": 1}),
    "mpnet": ("MPNet", COUNTED),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99}
        | {"initializer_range": 0.3},
    ),
    "modernbert": (
        "ModernBert",
        WIDE
        | {"local_attention": 32, "global_attn_every_n_layers": 3, "pad_token_id": 0}
        | {"max_position_embeddings": 1024},
    ),
    "modernbert-biased": (
        "ModernBert",
        WIDE
        | {"local_attention": 16, "global_attn_every_n_layers": 2, "pad_token_id": 0}
        | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
        | {"classifier_pooling": "mean", "global_rope_theta": 500.0}
        | {"hidden_activation": "silu"},
    ),
}


def model_of(kind: str, suffix: str, folder: Path, **more: Any) -> Any:
    """A model of `transformers` with random weights, as it writes itself to disk."""
    name, sizes = KINDS[kind]
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}{suffix}")(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias") or (value.dim() == 1 and "norm" in key.lower()):
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model


def texts(pad: int, *, most: int = 512) -> dict[str, np.ndarray]:
    """A batch with a row of each length, padded on the right."""
    random = np.random.default_rng(3)
    lengths = [n for n in LENGTHS if n <= most]
    ids = np.full((len(lengths), most), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = random.integers(5, 99, length)
        mask[row, :length] = 1
    types = np.where(np.arange(most) > 30, mask, 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def run(graph: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {one.name: feeds[one.name] for one in session.get_inputs()})[0]


def theirs(model: Any, feeds: dict[str, np.ndarray], *names: str) -> Any:
    given = {name: torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask")}
    given |= {name: torch.from_numpy(feeds[name]) for name in names}
    with torch.no_grad():
        return model(**given)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_every_length_equals_transformers(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, "Model", tmp_path)
    weights = load_weights(tmp_path)
    feeds = texts(weights.config.pad_id)
    right = theirs(model, feeds).last_hidden_state.numpy()
    ours = run(build_graph(weights, output="tokens"), feeds)
    seen = feeds["attention_mask"].astype(bool)
    assert np.abs(right[seen]).max() > 1
    np.testing.assert_allclose(ours[seen], right[seen], atol=1e-4)

    # The NPU's form: a fixed length, no integers, words looked up by the host.
    for row in (0, 4):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        graph = build_graph(weights, output="tokens", shape=(1, 512), host_inputs=True)
        names = host_input_names(weights, "tokens", "mean", scaled=False)
        table = weights.arrays["embeddings.word_embeddings.weight"]
        arrays = dict(zip(names, device_inputs(names, one, table), strict=True))
        length = one["attention_mask"].sum()
        np.testing.assert_allclose(run(graph, arrays)[0, :length], right[row, :length], atol=1e-4)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_transformers(kind: str, labels: int, tmp_path: Path) -> None:
    """One logit as it is; of two the difference, whose sigmoid is the softmax of the second."""
    model = model_of(kind, "ForSequenceClassification", tmp_path, num_labels=labels)
    weights = load_weights(tmp_path)
    feeds = texts(weights.config.pad_id)
    types = ("token_type_ids",) if kind == "bert" else ()
    right = theirs(model, feeds, *types).logits.numpy()
    right = right[:, 1:] - right[:, :1] if labels == 2 else right
    assert right.std() > 0.01
    np.testing.assert_allclose(run(build_graph(weights, output="logit"), feeds), right, atol=1e-4)
    fixed = build_graph(weights, output="logit", shape=(1, 512), host_inputs=True)
    names = host_input_names(weights, "logit", "mean", scaled=False)
    table = weights.arrays["embeddings.word_embeddings.weight"]
    for row in (0, 4):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        arrays = dict(zip(names, device_inputs(names, one, table), strict=True))
        np.testing.assert_allclose(run(fixed, arrays), right[row : row + 1], atol=1e-4)


def bare_tokenizer(folder: Path, pad: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": pad, **{f"w{n}": n for n in range(99) if n != pad}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"})
    )


@pytest.mark.parametrize("tail", ["none", "dense", "ettin"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_modules_equal_sentence_transformers(pooling: str, tail: str, tmp_path: Path) -> None:
    sentence = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    network = tmp_path / "network"
    kind = "modernbert" if tail == "ettin" else "xlm-roberta"
    model_of(kind, "Model", network)
    bare_tokenizer(network, pad=load_weights(network).config.pad_id)
    torch.manual_seed(1)
    parts = [
        modules.Transformer(str(network)),
        modules.Pooling(32, pooling_mode=pooling),
    ]
    if tail == "dense":
        parts.append(modules.Dense(32, 20, activation_function=torch.nn.Tanh()))
    if tail == "ettin":
        norm = modules.LayerNorm(32)
        torch.nn.init.normal_(norm.norm.weight, 1, 0.2)
        torch.nn.init.normal_(norm.norm.bias, 0, 0.2)
        gelu, plain = torch.nn.GELU(), torch.nn.Identity()
        parts += [
            modules.Dense(32, 32, bias=False, activation_function=gelu),
            norm,
            modules.Dense(32, 1, activation_function=plain),
        ]
    else:
        parts.append(modules.Normalize())
    folder = tmp_path / "model"
    model = sentence.SentenceTransformer(modules=parts, device="cpu")
    model.save(str(folder))
    weights = load_weights(folder)
    assert weights.head == (tail == "ettin")
    feeds = texts(weights.config.pad_id)
    with torch.no_grad():
        given = {k: torch.from_numpy(feeds[k]) for k in ("input_ids", "attention_mask")}
        right = model(given)["sentence_embedding"].numpy()
    output: Any = "logit" if weights.head else "pooled"
    read = read_pooling(folder, read_chain(folder).pooling_file or "")
    assert read == pooling
    ours = run(build_graph(weights, output=output, pooling=read), feeds)
    np.testing.assert_allclose(ours, right, atol=1e-4)
    fixed = build_graph(weights, output=output, pooling=read, shape=(1, 512), host_inputs=True)
    names = host_input_names(weights, output, read, scaled=False)
    table = weights.arrays["embeddings.word_embeddings.weight"]
    for row in (0, 4):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        arrays = dict(zip(names, device_inputs(names, one, table), strict=True))
        np.testing.assert_allclose(run(fixed, arrays), right[row : row + 1], atol=1e-4)


def test_an_embedder_of_the_hubs_layout_equals_sentence_transformers(tmp_path: Path) -> None:
    """From text to vector: tokenizer, length, prompts and modules of a saved directory."""
    sentence = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    from tars_rag.models.embedder import Embedder

    network = tmp_path / "network"
    model_of("modernbert", "Model", network)
    bare_tokenizer(network, pad=0)
    parts = [modules.Transformer(str(network), max_seq_length=48), modules.Pooling(32, "cls")]
    parts += [modules.Dense(32, 12, activation_function=torch.nn.Identity())]
    prompts = {"query": "w7 w8 ", "document": "w9 "}
    model = sentence.SentenceTransformer(modules=parts, device="cpu", prompts=prompts)
    model.save(str(tmp_path / "model"))
    embedder = Embedder(tmp_path / "model", device="cpu", cache_dir=tmp_path / "cache")
    assert (embedder.dimension, embedder.max_length) == (12, 48)
    passages = ["w3 w4 w5", " ".join(f"w{n % 90 + 5}" for n in range(200)), "w11"]
    right = model.encode_document(passages, normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed(passages), right, atol=1e-4)
    right = model.encode_query("w3 w4", normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed_query("w3 w4"), right, atol=1e-4)
