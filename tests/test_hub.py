"""Any model of the hub: from a stand-in with the layouts and answers of the real one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hub_standin import COMMIT, Hub, serving
from tars_rag.errors import ModelError
from tars_rag.models.cache import ModelCache
from tars_rag.models.embedder import Embedder
from tars_rag.models.local import write_record
from tars_rag.models.random_model import SMALL, write_random_model
from tars_rag.models.reranker import Reranker
from test_architectures import CONFIGS, ettin, replace, sharded

pytestmark = [pytest.mark.enable_socket]
EMBEDDER, SHARDED, RANKER = "maker/tiny-embedder", "maker/tiny-sharded", "maker/tiny-ettin"


@pytest.fixture(autouse=True)
def loopback_only() -> None:
    from pytest_socket import socket_allow_hosts

    socket_allow_hosts(["127.0.0.1"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Another test may have imported the library while it was offline.
    set_constant(monkeypatch, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving() as hub:
        files = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        set_constant(monkeypatch, "ENDPOINT", hub.address)
        set_constant(monkeypatch, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        folder = write_random_model(tmp_path / "e", head=False)
        with_prompts(folder)
        hub.add(EMBEDDER, folder)
        hub.add(SHARDED, sharded(with_prompts(write_random_model(tmp_path / "s", head=False))))
        hub.add(RANKER, ettin(tmp_path / "r", replace(CONFIGS["modernbert"], vocabulary=800)))
        yield hub


def set_constant(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """A constant of the hub's library, also where an earlier version of it has a copy."""
    import huggingface_hub.file_download
    import huggingface_hub.hf_api  # noqa: F401

    for module in [m for key, m in sys.modules.items() if key.startswith("huggingface_hub.")]:
        if name in vars(module):
            monkeypatch.setattr(module, name, value)


def with_prompts(folder: Path) -> Path:
    """The small files that sentence-transformers writes, and some that nobody needs here."""
    kind = "sentence_transformers.models."
    rows = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [{"idx": n, "path": p, "type": kind + t} for n, (t, p) in enumerate(rows)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 96}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("a model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("name", [EMBEDDER, SHARDED])
def test_an_embedder_by_its_name(hub: Hub, cache: Path, tmp_path: Path, name: str) -> None:
    embedder = Embedder(name, cache_dir=cache)
    assert (embedder.model, embedder.reference) == (name, name)
    assert embedder.prompts.query == "query: "
    assert (embedder.max_length, embedder.fingerprint.split(":")[1][:3]) == (96, "cls")
    same = Embedder(tmp_path / ("e" if name == EMBEDDER else "s"), cache_dir=tmp_path / "other")
    np.testing.assert_array_equal(embedder.embed_query("a fan"), same.embed_query("a fan"))
    fetched = {path.partition("/main/")[2] or path for path in hub.asked}
    assert not any("README" in path or ".bin" in path or "onnx" in path for path in fetched)

    hub.models.clear()  # it is here: nothing is asked again, and every file is checked
    hub.asked.clear()
    assert Embedder(name, cache_dir=cache).fingerprint == embedder.fingerprint
    assert hub.asked == []
    store = ModelCache(cache)
    assert store.verify(name) is not None
    [local] = store.fetched()
    assert (local.name, local.directory) == (name, cache / name.replace("/", "--"))
    record = json.loads((local.directory / "files.json").read_text())
    assert record["source"] == f"hub {name}@{COMMIT}"
    assert "1_Pooling/config.json" in record["files"]
    settings = local.directory / "1_Pooling" / "config.json"
    settings.write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(ModelError, match=rf"1_Pooling/config\.json.*models pull {name}"):
        Embedder(name, cache_dir=cache)


def test_a_reranker_by_its_name(hub: Hub, cache: Path, tmp_path: Path) -> None:
    scores = Reranker(RANKER, cache_dir=cache).score("a fan", ["the fan", "a cat"])
    same = Reranker(tmp_path / "r", cache_dir=tmp_path / "other").score(
        "a fan", ["the fan", "a cat"]
    )
    np.testing.assert_array_equal(scores, same)


def test_an_archive_of_models_without_a_row(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """Weights in several files, and modules behind the pooling, to a board without a network."""
    here, board = ModelCache(cache), ModelCache(tmp_path / "board")
    fetched = [here.pull(name) for name in (SHARDED, RANKER)]
    archive = here.export([SHARDED, RANKER], tmp_path / "models.tar")
    hub.models.clear()
    for _ in range(2):  # the second replaces the first
        imported = board.import_(archive)
        digests = {one.name: one.weights_digest for one in imported}
        assert digests == {one.name: one.weights_digest for one in fetched}
    assert board.verify(SHARDED) is not None
    with Embedder(SHARDED, cache_dir=cache) as a, Embedder(SHARDED, cache_dir=board.root) as b:
        np.testing.assert_array_equal(a.embed_query("a fan"), b.embed_query("a fan"))
        assert a.fingerprint == b.fingerprint
    with pytest.raises(ModelError, match=rf"not in .*tars-rag models pull {EMBEDDER}"):
        here.export([EMBEDDER], tmp_path / "other.tar")
    own = tmp_path / "own"
    write_random_model(own, head=False)
    write_record(own, ["config.json", "model.safetensors"], "a test")
    with pytest.raises(ModelError, match=r"own was not fetched by tars-rag"):
        here.export([str(own)], tmp_path / "other.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": b'{"model_type": "bert"}'}, r"config\.json has \d+ bytes instead"),
        ({"notes.txt": b"x"}, "no file of a model"),
        ({"pytorch_model.bin": b"x"}, "no file of a model"),
        ({"1_Pooling/model.onnx": b"x"}, "no file of a model"),
        ({"3_Dense/config.json": b"{}"}, r"not what its files\.json says.*maker/tiny-embedder"),
        ({"model-2.safetensors": b"x"}, r"not what its files\.json says"),
        ({"config.json": None}, r"config\.json is missing"),
        ({"files.json": None}, r"lacks maker--tiny-embedder/files\.json.* maker/tiny-embedder"),
        ({"files.json": "moved"}, r"not what its files\.json says"),
        ({"config.json": "llama"}, "model_type='llama'"),
    ],
)
def test_an_archive_that_no_export_wrote(
    hub: Hub, cache: Path, tmp_path: Path, change: dict[str, bytes | str | None], message: str
) -> None:
    local = ModelCache(cache).pull(EMBEDDER)
    folder = local.directory
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    entries = {name: (folder / name).read_bytes() for name in names}
    for name, content in change.items():
        entries.pop(name, None)
        record = json.loads((folder / "files.json").read_text())
        if content == "moved":  # from another model's directory
            record["source"] = f"hub maker/other@{COMMIT}"
        elif content == "llama":
            entries[name] = b'{"model_type": "llama"}'
            (folder / name).write_bytes(entries[name])
            write_record(folder, [n for n in names if n != "files.json"], record["source"])
            record = json.loads((folder / "files.json").read_text())
        elif isinstance(content, bytes):
            entries[name] = content
        if isinstance(content, str):
            entries["files.json"] = json.dumps(record).encode()
    archive = tmp_path / "models.tar"
    with tarfile.open(archive, "w") as tar:
        for name, body in entries.items():
            info = tarfile.TarInfo(f"{folder.name}/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    board = ModelCache(tmp_path / "board")
    with pytest.raises(ModelError, match=message):
        board.import_(archive)
    assert board.find(EMBEDDER) is None


def test_a_row_of_the_catalogue_with_folders(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """The files of an Ettin reranker: fetched by its row, carried in an archive, and run."""
    name = "ettin-reranker-32m-v1"
    hub.models[f"cross-encoder/{name}"] = hub.models[RANKER]
    store = ModelCache(cache)
    local = store.pull(name)
    assert (local.name, local.spec is not None) == (name, True)
    assert (local.directory / "4_Dense" / "model.safetensors").is_file()
    archive = store.export([name], tmp_path / "models.tar")
    hub.models.clear()
    [there] = ModelCache(tmp_path / "board").import_(archive)
    assert there.weights_digest == local.weights_digest
    scores = Reranker(name, cache_dir=tmp_path / "board").score("a fan", ["the fan", "a cat"])
    same = Reranker(tmp_path / "r", cache_dir=tmp_path / "other").score(
        "a fan", ["the fan", "a cat"]
    )
    np.testing.assert_array_equal(scores, same)


def test_a_connection_that_breaks_goes_on_where_it_was(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has come is written, and so kept, 10 MB at a time; the tiny model has less.
    set_constant(monkeypatch, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.faults["model.safetensors"] = ["cut"]
    assert Embedder(EMBEDDER, cache_dir=cache).embed(["a"]).shape == (1, SMALL.hidden)
    parts = [line for line in hub.asked if "bytes=" in line and "model.safetensors" in line]
    assert len(parts) >= 1
    assert not parts[0].endswith("bytes=0-")


def test_what_is_not_what_the_hub_lists_is_refused(hub: Hub, cache: Path) -> None:
    hub.faults["model.safetensors"] = ["altered"] * 9
    with pytest.raises(ModelError, match=rf"model\.safetensors.*models pull {EMBEDDER}"):
        Embedder(EMBEDDER, cache_dir=cache)
    assert not (cache / EMBEDDER.replace("/", "--")).exists()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"401.*private.*HF_TOKEN=hf_.* tars-rag models pull maker/tiny-embedder"),
        (403, r"403.*terms.*HF_TOKEN"),
        (404, r"does not have it \(404\).*models list"),
        (429, r"too often \(429\).*Wait"),
        (503, r"out of order \(503\).*tars-rag models pull"),
    ],
)
def test_each_answer_of_the_hub_is_told(hub: Hub, cache: Path, status: int, message: str) -> None:
    hub.faults["listing"] = [status] * 20
    with pytest.raises(ModelError, match=message):
        ModelCache(cache).pull(EMBEDDER)
    assert not list(cache.glob("*--*"))


def test_a_private_model_is_had_with_a_token(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token[EMBEDDER] = "hf_right"
    with pytest.raises(ModelError, match=r"401.*private"):
        ModelCache(cache).pull(EMBEDDER)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert ModelCache(cache).pull(EMBEDDER).name == EMBEDDER
    hub.token[RANKER] = "gated"
    with pytest.raises(ModelError, match=r"403.*terms"):
        ModelCache(cache).pull(RANKER)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "llama"}', r"config\.json has model_type='llama'"),
        ("config.json", None, r"has no config\.json"),
        ("tokenizer.json", None, r"has no tokenizer\.json"),
        ("model.safetensors", None, r"has no model\.safetensors.*pickles"),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "weightedmean"),
        ("modules.json", '[{"type": "x.CLIPModel", "path": ""}]', "modules CLIPModel"),
        ("modules.json", '[{"type": "a.Transformer", "path": "../x"}]', "cannot be read"),
    ],
)
def test_what_cannot_be_run_is_refused_before_its_weights(
    hub: Hub, cache: Path, file: str, content: str | None, message: str
) -> None:
    if content is None:
        del hub.models[EMBEDDER][file]
    else:
        hub.models[EMBEDDER][file] = content.encode()
    with pytest.raises(ModelError, match=message) as caught:
        Embedder(EMBEDDER, cache_dir=cache)
    assert ".staging" not in str(caught.value)
    assert not any("cdn" in line and "safetensors" in line for line in hub.asked)


def test_offline_and_out_of_reach(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_constant(monkeypatch, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=f"tars-rag models pull {EMBEDDER}"):
        Embedder(EMBEDDER, cache_dir=cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set"):
        Embedder(EMBEDDER, cache_dir=cache)


@pytest.mark.slow
def test_from_the_command_to_an_answer(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """One command each: pull, index, query; with a model that was never in the catalogue."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "MODEL_CACHE_DIR": str(cache),
        "EMBED_MODEL": EMBEDDER,
        "RERANK_MODEL": "",
        "NPU_EMBEDDER_ENABLED": "0",
        "COLUMNS": "80",
    }

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "tars_rag", *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert EMBEDDER in run("models", "pull", EMBEDDER)
    listed = json.loads(run("models", "list", "--json"))
    row = next(row for row in listed if row["name"] == EMBEDDER)
    assert (row["revision"], row["prompts"]) == (COMMIT, {"query": "query: ", "passage": ""})
    assert (row["max_length"], row["pooling"], row["dimension"]) == (96, "cls", SMALL.hidden)
    lines = run("models", "list").splitlines()
    assert any(EMBEDDER in line and " hub " in line for line in lines)
    assert max(map(len, lines)) <= 80
    note = tmp_path / "notes" / "fan.md"
    note.parent.mkdir()
    note.write_text("# Fans\n\nThe fan of the board starts at sixty degrees.\n")
    run("index", note.parent, "--store", tmp_path / "store")
    assert "sixty" in run("query", "when does the fan start", "--store", tmp_path / "store")
