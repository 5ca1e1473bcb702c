"""Embedder: the published vectors, what it does with odd input, threads, pickling."""

from __future__ import annotations

import copy
import json
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkit import reference_bert
from tars_rag import Embedder, Settings
from tars_rag.errors import ConfigError, DeviceError, InvalidInputError, ModelError
from tars_rag.models.prompts import Prompts
from tars_rag.models.random_model import SMALL, write_random_model
from tars_rag.models.tokenizer import Tokenizer
from tars_rag.models.weights import random_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "small", head=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedder(folder: Path, cache: Path) -> Embedder:
    return Embedder(folder, cache_dir=cache, threads=2)


def test_vectors_are_bert_pooled_by_the_mean(embedder: Embedder, folder: Path) -> None:
    text = "how to reset a router"
    (encoding,) = Tokenizer(folder, 512).encode([text])
    mean = reference_bert(random_weights(SMALL, head=False), encoding.ids).mean(0)
    np.testing.assert_allclose(embedder.embed([text])[0], mean / np.linalg.norm(mean), atol=1e-4)


def test_shape_and_description(embedder: Embedder) -> None:
    rows = embedder.embed(["one", "two words"])
    assert (rows.shape, rows.dtype) == ((2, SMALL.hidden), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embedder.embed_query("one").shape == (SMALL.hidden,)
    assert (embedder.model, embedder.device) == ("small", "cpu")
    assert (embedder.dimension, embedder.max_length) == (SMALL.hidden, 512)
    digest, pooling, length, precision = embedder.fingerprint.split(":")
    assert len(digest) == 16
    assert (pooling, length, precision) == ("mean", "512", "exact")


def test_no_texts(embedder: Embedder) -> None:
    rows = embedder.embed([])
    assert (rows.shape, rows.dtype) == ((0, SMALL.hidden), np.float32)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=12))
def test_any_text_has_its_vector_whatever_is_embedded_with_it(
    embedder: Embedder, texts: list[str]
) -> None:
    given_texts = list(texts)
    rows = embedder.embed(texts)
    assert texts == given_texts
    assert np.isfinite(rows).all()
    for row, text in zip(rows, texts, strict=True):
        np.testing.assert_allclose(row, embedder.embed_query(text), atol=1e-5)


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\0", "\udfff"])
def test_nothing_to_read_has_the_vector_of_no_words(embedder: Embedder, blank: str) -> None:
    np.testing.assert_array_equal(embedder.embed_query(blank), embedder.embed_query(""))


def test_lone_surrogates_and_nul_are_left_out(embedder: Embedder) -> None:
    texts = ["rou\ud83dter\0 re\udfffset"]
    np.testing.assert_array_equal(embedder.embed(texts)[0], embedder.embed_query("router reset"))
    assert texts == ["rou\ud83dter\0 re\udfffset"]


@pytest.mark.parametrize(
    "text",
    ["some words here " * 65_536, "x" * 2**20, " " * 2**20, "数据" * 2**19, "a.\n" * 349_525],
    ids=["words", "one word", "blank", "no spaces", "lines"],
)
def test_a_megabyte_takes_a_moment_and_is_cut_like_any_text(embedder: Embedder, text: str) -> None:
    start = time.perf_counter()
    row = embedder.embed_query(text)
    assert time.perf_counter() - start < 10  # 0.01 to 0.8 s on two idle cores
    if " " in text.strip() or "\n" in text:
        np.testing.assert_array_equal(row, embedder.embed_query(text[:8_000]))


@given(
    st.lists(
        st.sampled_from(["ab", "abc-def", "x" * 120, " ", "\n", "数", "é", ".", "e\u0301"]),
        min_size=1,
        max_size=400,
    ).map("".join)
)
@settings(max_examples=40, deadline=None)
def test_cutting_before_tokenising_changes_no_token(folder: Path, text: str) -> None:
    import tokenizers

    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.enable_truncation(10)
    assert Tokenizer(folder, 10).encode([text])[0].ids.tolist() == whole.encode(text).ids


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", None], r"texts\[1\] is NoneType"),
        ([b"bytes"], r"texts\[0\] is bytes"),
        (["a", "b", 3], r"texts\[2\] is int"),
        ("a bare string", "not one str"),
        (None, "not NoneType"),
        (7, "not int"),
    ],
)
def test_what_is_not_text_is_named(embedder: Embedder, texts: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        embedder.embed(texts)  # type: ignore[arg-type]


def test_a_query_must_be_text(embedder: Embedder) -> None:
    with pytest.raises(InvalidInputError, match="text is NoneType"):
        embedder.embed_query(None)  # type: ignore[arg-type]


def test_any_sequence_of_strings_will_do(embedder: Embedder) -> None:
    expected = embedder.embed(["a", "b"])
    np.testing.assert_array_equal(embedder.embed(("a", "b")), expected)
    np.testing.assert_array_equal(embedder.embed(np.array(["a", "b"])), expected)  # type: ignore[arg-type]


def test_more_texts_than_a_window(embedder: Embedder) -> None:
    texts = [f"note {n}" for n in range(4_100)]
    rows = embedder.embed(texts)
    for n in (0, 4_095, 4_096, 4_099):
        np.testing.assert_allclose(rows[n], embedder.embed_query(texts[n]), atol=1e-5)


def test_many_threads_at_once(embedder: Embedder) -> None:
    texts = [f"question number {n} " * (1 + n % 9) for n in range(64)]
    expected = embedder.embed(texts)
    with ThreadPoolExecutor(16) as pool:
        rows = np.stack(list(pool.map(embedder.embed_query, texts)))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_a_copy_carries_the_configuration_only(embedder: Embedder, copied) -> None:  # type: ignore[no-untyped-def]
    assert len(pickle.dumps(embedder)) < 1_000
    twin = copied(embedder)
    assert twin is not embedder
    assert twin.fingerprint == embedder.fingerprint
    np.testing.assert_array_equal(twin.embed_query("a"), embedder.embed_query("a"))


@pytest.mark.slow
def test_int8_is_close_and_says_what_it_is(embedder: Embedder, folder: Path, cache: Path) -> None:
    small = Embedder(folder, precision="int8", cache_dir=cache)
    texts = ["one short text", "another, which is a little longer than the first one"]
    cosine = (small.embed(texts) * embedder.embed(texts)).sum(1)
    assert (cosine > 0.9).all()
    assert not np.array_equal(small.embed(texts), embedder.embed(texts))
    # What it earned on this small model is as good as exact, or less.
    head, _, precision = small.fingerprint.rpartition(":")
    assert head == embedder.fingerprint.rpartition(":")[0]
    assert precision in {"exact", "hq", "int8"}


def test_the_root_logger_is_left_alone(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    before = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    Embedder(folder, precision="int8", cache_dir=tmp_path)
    assert (logging.getLogger().handlers, logging.getLogger().filters) == before
    assert not caplog.records


def graphs(cache: Path) -> list[Path]:
    return sorted((cache / ".graphs").glob("*.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_is_built_once_and_again_if_it_is_damaged(
    tmp_path: Path, folder: Path, precision
) -> None:  # type: ignore[no-untyped-def]
    def open_it() -> np.ndarray:
        return Embedder(folder, precision=precision, cache_dir=tmp_path).embed_query("a")

    expected = open_it()
    sound = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in graphs(tmp_path)}
    open_it()
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in graphs(tmp_path)} == sound
    for path in sound:
        path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 9)
    np.testing.assert_array_equal(open_it(), expected)
    for path, (_, content) in sound.items():
        assert path.read_bytes() == content
    left = {path.suffix for path in (tmp_path / ".graphs").iterdir()}
    assert left == {".onnx", ".json"}, "temporary files stay behind"


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, folder: Path, embedder: Embedder
) -> None:
    (tmp_path / ".graphs").write_text("a file, where the directory should be")
    for precision in ("fp32", "int8"):
        row = Embedder(folder, precision=precision, cache_dir=tmp_path).embed_query("a")
        assert row.shape == (SMALL.hidden,)
        if precision == "fp32":
            np.testing.assert_array_equal(row, embedder.embed_query("a"))


def test_pooling_and_length_are_read_from_the_models_own_files(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "m", head=False)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    cls = Embedder(folder, cache_dir=tmp_path)
    assert cls.fingerprint.split(":")[1:3] == ["cls", "64"]
    (encoding,) = Tokenizer(folder, 64).encode(["a b c"])
    first = reference_bert(random_weights(SMALL, head=False), encoding.ids)[0]
    np.testing.assert_allclose(cls.embed_query("a b c"), first / np.linalg.norm(first), atol=1e-4)
    pooling.write_text(json.dumps({"pooling_mode": "lasttoken", "include_prompt": True}))
    last = Embedder(folder, cache_dir=tmp_path)
    tokens = reference_bert(random_weights(SMALL, head=False), encoding.ids)
    np.testing.assert_allclose(
        last.embed_query("a b c"), tokens[-1] / np.linalg.norm(tokens[-1]), atol=1e-4
    )
    assert len({cls.fingerprint, last.fingerprint}) == 2
    pooling.write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(ModelError, match="weightedmean_tokens"):
        Embedder(folder, cache_dir=tmp_path)


def test_a_bert_with_the_vocabulary_of_xlm_roberta(tmp_path: Path, cache: Path) -> None:
    """As multilingual-e5-small has it: pieces of words from a Unigram model, <s> and </s>."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors

    folder = write_random_model(tmp_path / "m", head=False)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdehlnorstuwé日本語", "▁the", "▁world"]
    library = Library(models.Unigram([(piece, -1.0) for piece in pieces], 3, False))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    library.save(str(folder / "tokenizer.json"))
    embedder = Embedder(folder, cache_dir=cache)
    for text in ("the world", "héllo", "日本語 the", ""):
        (encoding,) = Tokenizer(folder, 512).encode([text])
        assert (encoding.ids[0], encoding.ids[-1], set(encoding.types)) == (0, 2, {0})
        mean = reference_bert(random_weights(SMALL, head=False), encoding.ids).mean(0)
        np.testing.assert_allclose(
            embedder.embed_query(text), mean / np.linalg.norm(mean), atol=1e-4
        )


def with_prompts(folder: Path, content: str) -> Path:
    (folder / "config_sentence_transformers.json").write_text(content)
    return folder


PROMPTED = '{"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": null}'


def test_prompts_are_put_before_queries_and_passages(folder: Path, cache: Path) -> None:
    plain = Embedder(folder, cache_dir=cache)
    prompted = Embedder(folder, cache_dir=cache, prompts={"query": "find: ", "passage": "text: "})
    texts = ["a fan", ""]
    np.testing.assert_array_equal(
        prompted.embed(texts), plain.embed([f"text: {text}" for text in texts])
    )
    np.testing.assert_array_equal(prompted.embed_query("a fan"), plain.embed_query("find: a fan"))
    assert not np.array_equal(prompted.embed_query("a fan"), plain.embed_query("a fan"))


def test_other_prompts_are_another_kind_of_vectors(folder: Path, cache: Path) -> None:
    def fingerprint(prompts: dict[str, str] | None) -> str:
        return Embedder(folder, cache_dir=cache, prompts=prompts).fingerprint

    plain = fingerprint(None)
    assert plain.split(":")[1] == "mean"
    assert fingerprint({}) == fingerprint({"query": ""}) == plain
    others = [{"query": "a"}, {"passage": "a"}, {"query": "a", "passage": "a"}, {"query": "a "}]
    found = {fingerprint(prompts) for prompts in others}
    assert len(found | {plain}) == 5
    assert all(len(one.split(":")) == 4 for one in found)
    assert {one.split(":")[-1] for one in found} == {"exact"}


@pytest.mark.parametrize(
    ("content", "query", "passage"),
    [
        (PROMPTED, "query: ", "passage: "),
        ('{"prompts": {"query": "q ", "passage": "p "}}', "q ", "p "),
        ('{"prompts": {"query": "q "}}', "q ", ""),
        ('{"prompts": {"s2s": "same: "}, "default_prompt_name": "s2s"}', "same: ", "same: "),
        ('{"prompts": {"s2s": "same: "}}', "", ""),
        ('{"prompts": {}, "default_prompt_name": null}', "", ""),
        ('{"__version__": {"torch": "2"}}', "", ""),
    ],
)
def test_prompts_of_the_models_own_files(
    tmp_path: Path, cache: Path, content: str, query: str, passage: str
) -> None:
    folder = with_prompts(write_random_model(tmp_path / "m", head=False), content)
    assert Embedder(folder, cache_dir=cache).prompts == Prompts(query, passage)
    one = Embedder(folder, cache_dir=cache, prompts={"query": "mine: "})
    assert one.prompts == Prompts("mine: ", passage)
    none = Embedder(folder, cache_dir=cache, prompts={"query": "", "passage": ""})
    assert not none.prompts


def test_a_prompt_takes_room_from_the_text(tmp_path: Path, cache: Path) -> None:
    folder = write_random_model(tmp_path / "m", head=False)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    plain = Embedder(folder, cache_dir=cache)
    assert plain.passage_length == plain.max_length == 32
    prompt = "one two three "
    taken = len(Tokenizer(folder, 32).encode([prompt])[0]) - 2
    prompted = Embedder(folder, cache_dir=cache, prompts={"passage": prompt})
    assert prompted.passage_length == 32 - taken
    for prompts in ({"passage": prompt * 10}, {"query": prompt * 10}):
        with pytest.raises(ConfigError, match="takes 32 of the 32 tokens"):
            Embedder(folder, cache_dir=cache, prompts=prompts)


def test_prompts_survive_pickling_and_come_from_the_environment(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompted = Embedder(folder, cache_dir=cache, prompts={"query": "find: "})
    for twin in (pickle.loads(pickle.dumps(prompted)), copy.copy(prompted)):
        assert (twin.prompts, twin.fingerprint) == (prompted.prompts, prompted.fingerprint)
    monkeypatch.setenv("EMBED_MODEL", str(folder))
    monkeypatch.setenv("MODEL_CACHE_DIR", str(cache))
    monkeypatch.setenv("EMBED_QUERY_PROMPT", "find: ")
    assert Embedder.from_env().fingerprint == prompted.fingerprint
    assert not Embedder.from_env(prompts={"query": ""}).prompts


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"document": "x"}, "'document'"),
        ({"query": 3}, "'query': 3"),
        ("query: ", "prompts='query: '"),
    ],
)
def test_wrong_prompts_are_named(folder: Path, cache: Path, prompts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Embedder(folder, cache_dir=cache, prompts=prompts)


@pytest.mark.parametrize("content", ['{"prompts": ["a"]}', '{"prompts": {"query": 1}}', "[]", "{"])
def test_prompts_that_cannot_be_read_name_the_file(
    tmp_path: Path, cache: Path, content: str
) -> None:
    folder = with_prompts(write_random_model(tmp_path / "m", head=False), content)
    with pytest.raises(ModelError, match=r"config_sentence_transformers\.json"):
        Embedder(folder, cache_dir=cache)


def test_a_pooling_that_leaves_out_the_prompt_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = with_prompts(write_random_model(tmp_path / "m", head=False), PROMPTED)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "include_prompt": false}'
    )
    with pytest.raises(ModelError, match="leaves the prompt out"):
        Embedder(folder, cache_dir=cache)
    assert not Embedder(folder, cache_dir=cache, prompts={"query": "", "passage": ""}).prompts


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "gpu"}, ConfigError, "device='gpu'.*auto, npu, cpu"),
        ({"precision": "fp16"}, ConfigError, "precision='fp16'.*fp32, int8"),
        ({"core_mask": "9"}, ConfigError, "core_mask='9'"),
        ({"threads": 0}, InvalidInputError, "threads=0"),
        ({"device": "npu"}, DeviceError, "NPU"),
        ({"model": "all-MiniLM"}, ModelError, "Unknown model"),
        ({"model": "/nowhere/model"}, ModelError, "does not exist"),
    ],
)
def test_a_wrong_argument_is_named(folder: Path, cache: Path, arguments, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        Embedder(**{"model": folder, "cache_dir": cache} | arguments)


ENCODER = "sentence_transformers.models.Transformer"
POOLING = "sentence_transformers.models.Pooling"


def with_modules(folder: Path, *modules: tuple[str, str]) -> Path:
    listed = [{"idx": n, "path": path, "type": kind} for n, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def test_the_pooling_is_where_modules_json_says(tmp_path: Path, cache: Path) -> None:
    unit = ("sentence_transformers.models.Normalize", "2_Normalize")
    for modules in ([(ENCODER, ""), (POOLING, "pool")], [(ENCODER, ""), (POOLING, "pool"), unit]):
        folder = with_modules(write_random_model(tmp_path / "m", head=False), *modules)
        (folder / "pool").mkdir(exist_ok=True)
        (folder / "pool" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        assert Embedder(folder, cache_dir=cache).fingerprint.split(":")[1] == "cls"


def test_modules_that_are_not_run_are_refused_by_name(tmp_path: Path, cache: Path) -> None:
    """A layer that is left out makes other vectors, and nobody would notice."""
    other = ("sentence_transformers.models.WeightedLayerPooling", "2_Layers")
    folder = write_random_model(tmp_path / "m", head=False)
    with_modules(folder, (ENCODER, ""), (POOLING, "1_Pooling"), other)
    with pytest.raises(ModelError, match="Transformer, Pooling, WeightedLayerPooling; only"):
        Embedder(folder, cache_dir=cache)
    (folder / "modules.json").write_text("[3]")
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        Embedder(folder, cache_dir=cache)


def test_lower_case_that_the_tokenizer_does_not_make_is_refused(
    tmp_path: Path, cache: Path
) -> None:
    folder = write_random_model(tmp_path / "m", head=False)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert Embedder(folder, cache_dir=cache).model == "m"  # its tokenizer does
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="lower case"):
        Embedder(folder, cache_dir=cache)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_broken_model_directory_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    path = write_random_model(tmp_path / "m", head=False) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=name):
        Embedder(path.parent, cache_dir=tmp_path)


def test_from_settings_and_from_env(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_MODEL", str(folder))
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", "0")
    monkeypatch.setenv("MODEL_CACHE_DIR", str(cache))
    embedder = Embedder.from_env(threads=1)
    assert (embedder.model, embedder.device) == ("small", "cpu")
    again = Embedder.from_settings(Settings.from_env(), precision="int8")
    assert not np.array_equal(again.embed_query("a"), embedder.embed_query("a"))


def test_closed_is_closed(folder: Path, cache: Path) -> None:
    with Embedder(folder, cache_dir=cache) as embedder:
        embedder.embed(["a"])
    embedder.close()
    with pytest.raises(DeviceError, match="closed"):
        embedder.embed(["a"])


# sentence-transformers 6.2 (torch 2.13, float32) on all-MiniLM-L6-v2: the first numbers of each.
CANONICAL = {
    "hello world": (-0.034477, 0.031023, 0.006735, 0.026109, -0.039362, -0.160302),
    "How do I reset the router to its factory settings?": (
        *(-0.019351, 0.009026, -0.019413, 0.032085, -0.039267, 0.054686),
    ),
    "": (-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292),
    "Crème brûlée, naïve façade: 数据 😀": (
        *(0.012468, 0.038049, 0.048883, -0.032784, -0.014413, -0.06702),
    ),
    # cut at 256 tokens
    "The boundary layer separates. " * 100: (
        *(-0.094439, -0.007895, 0.026217, -0.045277, -0.007213, -0.000453),
    ),
}


@pytest.mark.weights
def test_the_published_models_vectors() -> None:
    embedder = Embedder(device="cpu")
    assert embedder.fingerprint == "53aa51172d142c89:mean:256:exact"
    assert (embedder.dimension, embedder.max_length) == (384, 256)
    rows = embedder.embed(list(CANONICAL))
    for row, expected in zip(rows, CANONICAL.values(), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)


@pytest.mark.weights
@pytest.mark.data
def test_int8_on_cranfield(cranfield: Path) -> None:
    documents = map(json.loads, (cranfield / "corpus.jsonl").read_text().splitlines())
    texts = [f"{d['title']} {d['text']}".strip() for d in documents][:280]
    exact, small = (Embedder(device="cpu", precision=p).embed(texts) for p in ("fp32", "int8"))
    cosine = (exact * small).sum(1)
    assert cosine.mean() >= 0.994
    assert cosine.min() >= 0.985
    assert Embedder(device="cpu", precision="int8").fingerprint.endswith(":int8")


def test_what_is_cut_off_is_told_once_and_how_much(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Embedder(folder, cache_dir=cache) as embedder:
        fits = "board " * 20
        embedder.embed([fits, ""])
        embedder.embed_query("board " * 500)
        assert "longer than" not in caplog.text
        embedder.embed([fits, "board " * (4 * embedder.max_length - 2)])
        embedder.embed(["board " * 900])
    [told] = [record for record in caplog.records if "longer than" in record.message]
    assert told.message.startswith("1 of 2 texts")
    assert re.search(r"\d\d % of them is in no vector", told.message)
    assert "TarsSplitter" in told.message
