"""Settings and Placement: every name of the environment, and an error that names what is wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import threading
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tars_rag import Settings
from tars_rag.errors import ConfigError, InvalidInputError
from tars_rag.settings import Placement

NAMES = (
    "NPU_EMBEDDER_ENABLED",
    "RKNN_EMBEDDER_PATH",
    "EMBED_MODEL",
    "NPU_RERANK_ENABLED",
    "RKNN_RERANKER_PATH",
    "RERANK_MODEL",
    "RAG_STRATEGY",
    "MEMORY_TOP_K",
    "NPU_CORE_MASK",
    "NPU_FALLBACK_CPU",
    "MODEL_CACHE_DIR",
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    settings = Settings.from_env()
    assert settings.embed_model == "all-MiniLM-L6-v2"
    assert settings.rerank_model == "ms-marco-MiniLM-L-12-v2"
    assert settings.rag_strategy == "hybrid"
    assert settings.embed_device == "auto"
    assert settings.rerank_device == "cpu"
    assert settings.memory_top_k == 5
    assert settings.npu_fallback_cpu is False
    assert settings.rknn_embedder_path is None


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_field(name: str) -> None:
    assert name.lower() in Settings.model_fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NPU_EMBEDDER_ENABLED", "perhaps"),
        ("NPU_RERANK_ENABLED", "2"),
        ("RAG_STRATEGY", "magic"),
        ("MEMORY_TOP_K", "0"),
        ("MEMORY_TOP_K", "many"),
        ("NPU_CORE_MASK", "5"),
        ("NPU_FALLBACK_CPU", "maybe"),
        ("EMBED_MODEL", ""),
    ],
)
def test_an_unknown_value_names_variable_and_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings.from_env()
    assert f"{name}={value!r}" in str(caught.value)


def test_an_unknown_strategy_says_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STRATEGY", "magic")
    with pytest.raises(ConfigError, match=r"hybrid.*naive.*lexical"):
        Settings.from_env()


@pytest.mark.parametrize(("value", "device"), [("1", "npu"), ("TRUE", "npu"), ("off", "cpu")])
def test_switches(monkeypatch: pytest.MonkeyPatch, value: str, device: str) -> None:
    monkeypatch.setenv("NPU_EMBEDDER_ENABLED", value)
    monkeypatch.setenv("NPU_RERANK_ENABLED", value)
    settings = Settings.from_env()
    assert settings.embed_device == device
    assert settings.rerank_device == device


def test_empty_means_unset_except_for_the_reranker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NPU_EMBEDDER_ENABLED", "RKNN_EMBEDDER_PATH", "MODEL_CACHE_DIR", "RERANK_MODEL"):
        monkeypatch.setenv(name, "")
    settings = Settings.from_env()
    assert settings.embed_device == "auto"
    assert settings.rknn_embedder_path is None
    assert settings.model_cache_dir is None
    assert settings.rerank_model == ""


@pytest.mark.parametrize(
    ("value", "mask"),
    [("NPU_CORE_0_1_2", "0_1_2"), ("7", "0_1_2"), ("3", "0_1"), ("auto", "auto"), ("1", "1")],
)
def test_core_masks_in_the_runtimes_own_spelling(
    monkeypatch: pytest.MonkeyPatch, value: str, mask: str
) -> None:
    monkeypatch.setenv("NPU_CORE_MASK", value)
    assert Settings.from_env().npu_core_mask == mask


def test_dotenv_is_read_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("RAG_STRATEGY=naive\nMEMORY_TOP_K=7\nUNRELATED=1\n")
    monkeypatch.setenv("MEMORY_TOP_K", "9")
    settings = Settings.from_env()
    assert settings.rag_strategy == "naive"
    assert settings.memory_top_k == 9


ENGLISH = "# settings\nMEMORY_TOP_K=7\nexport RAG_STRATEGY='naive'\n"
GERMAN = "OWNER=Jörg Müller\n" + ENGLISH


@pytest.mark.parametrize(
    "data",
    [
        ENGLISH.encode(),
        GERMAN.encode(),
        GERMAN.replace("\n", "\r\n").encode("utf-8-sig"),
        GERMAN.encode("latin-1"),
        GERMAN.replace("\n", "\r\n").encode("latin-1"),
        GERMAN.encode("utf-16"),
        GERMAN.encode("utf-16-be").join([b"\xfe\xff", b""]),
        GERMAN.encode("utf-32"),
        b"KEY=\xff\xfe\x80\n" + ENGLISH.encode(),
    ],
)
def test_dotenv_of_any_encoding_that_can_be_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".env").write_bytes(data)
    settings = Settings.from_env()
    assert (settings.memory_top_k, settings.rag_strategy) == (7, "naive")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("RKNN_EMBEDDER_PATH=/home/jörg/minilm\n".encode("latin-1"), "iconv -f LATIN1 -t UTF-8"),
        (b"embed_model=\xff\n", r"embed_model=b'\\xff'.*iconv"),
        (ENGLISH.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        (b"\x7fELF\0\0\0", "zero bytes"),
        (b"\xff\xfeA", "begins like UTF-16 and is not"),
        (b"A=" + b"x" * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_dotenv_that_cannot_be_read_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / ".env").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.from_env()
    assert str(tmp_path / ".env") in str(caught.value)


def test_the_command_of_the_message_mends_the_file(tmp_path: Path) -> None:
    text = "EMBED_MODEL=modèle\n"
    (tmp_path / ".env").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        Settings.from_env()
    command = str(caught.value).split("convert the file: ")[1]
    subprocess.run(command, shell=True, check=True)
    assert Settings.from_env().embed_model == "modèle"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_dotenv_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(ENGLISH)
    (tmp_path / ".env").chmod(0)
    with pytest.raises(ConfigError, match=r"Permission denied.*chmod u\+r"):
        Settings.from_env()


def test_a_read_error_of_dotenv_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(ENGLISH)

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match=r"Permission denied.*chmod u\+r"):
        Settings.from_env()


def test_a_virtual_environment_named_dotenv_says_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert Settings.from_env().memory_top_k == 5


def test_dotenv_as_a_named_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / ".env")
    monkeypatch.setattr("tars_rag.envfile._PIPE_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="named pipe that nobody has written to"):
        Settings.from_env()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    writer = threading.Thread(target=(tmp_path / ".env").write_text, args=(ENGLISH,))
    writer.start()
    assert Settings.from_env().memory_top_k == 7
    writer.join()


def test_a_named_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "board.env").write_text("MEMORY_TOP_K=9\n")
    (tmp_path / ".env").write_text("MEMORY_TOP_K=7\n")
    assert Settings(_env_file=tmp_path / "board.env").memory_top_k == 9  # type: ignore[call-arg]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary() | st.binary().map(lambda tail: ENGLISH.encode() + tail))
def test_no_dotenv_escapes_as_another_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".env").write_bytes(data)
    with contextlib.suppress(ConfigError):  # and no other
        Settings.from_env()


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STRATEGY", "naive")
    assert Settings.from_env(rag_strategy="lexical").rag_strategy == "lexical"


# -- Placement


@pytest.mark.parametrize(
    ("field", "value", "allowed", "error"),
    [
        ("device", "gpu", "auto, npu, cpu", ConfigError),
        ("device", ["cpu"], "auto, npu, cpu", ConfigError),
        ("precision", "fp16", "fp32, int8", ConfigError),
        ("core_mask", "9", "0_1_2", ConfigError),
        ("core_mask", 1, "0_1_2", ConfigError),
        ("fallback_cpu", "yes", "True, False", ConfigError),
        ("rknn_path", 7, "path", ConfigError),
        ("cache_dir", b"/models", "path", ConfigError),
        ("cache_dir", "~nobody-of-this-name/models", "path", ConfigError),
        ("threads", 0, "at least 1", InvalidInputError),
        ("threads", -3, "at least 1", InvalidInputError),
        ("threads", 2.0, "at least 1", InvalidInputError),
        ("threads", True, "at least 1", InvalidInputError),
        ("threads", "2", "at least 1", InvalidInputError),
    ],
)
def test_a_placement_names_the_field_the_value_and_what_is_allowed(
    field: str, value: Any, allowed: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        Placement(**{field: value})
    assert f"{field}={value!r}" in str(caught.value)
    assert allowed in str(caught.value)
    with pytest.raises(error):
        replace(Placement(), **{field: value})


def test_equal_placements_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    ours = Placement(cache_dir="~/models", rknn_path="", fallback_cpu=True, threads=np.int64(2))
    same = Placement(cache_dir=Path("/home/me/models"), fallback_cpu=1, threads=2)  # type: ignore[arg-type]
    assert ours == same
    assert hash(ours) == hash(same)
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert (ours.rknn_path, ours.fallback_cpu) == (None, True)
    with pytest.raises(FrozenInstanceError):
        ours.device = "cpu"  # type: ignore[misc]


def test_a_placement_may_fall_back() -> None:
    assert Placement().may_fall_back
    assert not Placement(device="npu").may_fall_back
    assert Placement(device="npu", fallback_cpu=True).may_fall_back


def test_settings_say_where_each_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_env().embedder_placement == Placement()
    assert Settings.from_env().reranker_placement == Placement(device="cpu")
    for name, value in {
        "NPU_EMBEDDER_ENABLED": "1",
        "NPU_RERANK_ENABLED": "1",
        "RKNN_EMBEDDER_PATH": "/e",
        "RKNN_RERANKER_PATH": "/r",
        "NPU_CORE_MASK": "3",
        "NPU_FALLBACK_CPU": "1",
        "MODEL_CACHE_DIR": "/models",
    }.items():
        monkeypatch.setenv(name, value)
    common = Placement(device="npu", core_mask="0_1", fallback_cpu=True, cache_dir="/models")
    settings = Settings.from_env()
    assert settings.embedder_placement == replace(common, rknn_path="/e")
    assert settings.reranker_placement == replace(common, rknn_path="/r")
