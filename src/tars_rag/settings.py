"""What the user chose, validated once: `Settings`, the environment, and `Placement`.

An unknown value is an error that names the variable or argument, the value and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tars_rag.envfile import read_env_file
from tars_rag.errors import ConfigError, InvalidInputError

Strategy = Literal["hybrid", "naive", "lexical"]
Device = Literal["auto", "npu", "cpu"]
Engine = Literal["auto", "onnxruntime", "openvino"]
Precision = Literal["fp32", "int8"]
CoreMask = Literal["auto", "0", "1", "2", "0_1", "0_1_2", "all"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs, as one value that is passed whole.

    Equal placements describe the same: paths are kept as `Path`, without ``~``.

    Attributes:
        device: ``auto``: the NPU where it is usable, else the CPU; ``npu``; ``cpu``.
        engine: What runs it on the CPU. ``auto``: what was measured to be fastest, else ONNX
            Runtime; ``onnxruntime``; ``openvino``, which is an extra.
        precision: Of an embedder on the CPU; on the NPU the model's file has its own.
        threads: On the CPU. None: one for each core, of big.LITTLE processors the big ones.
        rknn_path: For the NPU: a bundle directory or a single .rknn file. None: the most faithful
            bundle of the model in the model cache.
        core_mask: Which NPU cores to use.
        fallback_cpu: With ``npu``: go on on the CPU, with one warning, where the NPU cannot be
            used or fails.
        cache_dir: The model cache. None: MODEL_CACHE_DIR, or the user's cache directory.
        npu_python: Another Python for the NPU's processes, which has rknn-toolkit-lite2 and numpy.
            None: NPU_PYTHON, or what `tars-rag npu install` made, or this one.
        npu_lock: A file that programs lock while they use the NPU, to take turns. None: no turns.

    Raises:
        ConfigError: A value is not allowed; the message names the field, the value and what is.
        InvalidInputError: `threads` is not a whole number of at least 1.
    """

    device: Device = "auto"
    engine: Engine = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    rknn_path: str | Path | None = None
    core_mask: CoreMask = "auto"
    fallback_cpu: bool = False
    cache_dir: str | Path | None = None
    npu_python: str | Path | None = None
    npu_lock: str | Path | None = None

    def __post_init__(self) -> None:
        _require_choice("device", self.device, get_args(Device))
        _require_choice("engine", self.engine, get_args(Engine))
        _require_choice("precision", self.precision, get_args(Precision))
        _require_choice("core_mask", self.core_mask, get_args(CoreMask))
        _require_choice("fallback_cpu", self.fallback_cpu, (True, False))
        _require_threads(self.threads)
        object.__setattr__(self, "fallback_cpu", bool(self.fallback_cpu))
        for name in ("rknn_path", "cache_dir", "npu_python", "npu_lock"):
            object.__setattr__(self, name, _path(name, getattr(self, name)))

    @property
    def may_fall_back(self) -> bool:
        """Whether the CPU may take over where the NPU cannot be used."""
        return self.fallback_cpu or self.device == "auto"


def _require_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        msg = f"{name}={value!r} is not valid. Use one of: {', '.join(map(str, allowed))}."
        raise ConfigError(msg)


def _require_threads(value: object) -> None:
    if value is None:
        return
    whole = not isinstance(value, bool) and isinstance(value, Integral)
    if whole and value >= 1:  # type: ignore[operator]
        return
    msg = f"threads={value!r} is not valid. Use a whole number of at least 1, or None."
    raise InvalidInputError(msg)


def _path(name: str, value: object) -> Path | None:
    """A path without ``~``; None for none or an empty one."""
    if value is None or value == "":
        return None
    try:
        return Path(os.fspath(value)).expanduser()  # type: ignore[call-overload]
    except (TypeError, RuntimeError) as error:  # no path; the home of nobody
        msg = f"{name}={value!r} is not valid ({error}). Use the path of a file or directory."
        raise ConfigError(msg) from error


_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_CORE_MASKS = {"": "auto", "3": "0_1", "7": "0_1_2", "65535": "all", "0xffff": "all"}


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _switch(value: object) -> object:
    word = _lower(value)
    if isinstance(word, str):
        if word not in _SWITCH:
            msg = f"allowed: {', '.join(_SWITCH)}"
            raise ValueError(msg)
        return _SWITCH[word]
    return value


def _engine(value: object) -> object:
    return _lower(value) or "auto"


def _core_mask(value: object) -> object:
    """Accept the runtime's own spellings (NPU_CORE_0_1_2, 7) besides ours (0_1_2)."""
    word = str(_lower(value)).removeprefix("npu_").removeprefix("core_")
    return _CORE_MASKS.get(word, word)


def _empty_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


_Switch = Annotated[bool, BeforeValidator(_switch)]
_OptionalSwitch = Annotated[bool | None, BeforeValidator(_switch), BeforeValidator(_empty_is_none)]
_OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]


class _EnvFile(PydanticBaseSettingsSource):
    """``.env``, read by `read_env_file`: pydantic's own reader gives up on one byte of Latin-1."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return read_env_file({field_name}).get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(read_env_file(self.settings_cls.model_fields.keys()))


def _device(enabled: bool | None, unset: Device) -> Device:
    return unset if enabled is None else "npu" if enabled else "cpu"


class Settings(BaseSettings):
    """What the environment or a ``.env`` file says, with defaults for what it does not.

    Each field is the lower-case name of its environment variable. Use `from_env`, whose errors
    name the variable.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    npu_embedder_enabled: _OptionalSwitch = Field(
        None, description="1: embed on the NPU. 0: on the CPU. Unset: on the NPU if it is usable."
    )
    rknn_embedder_path: _OptionalPath = Field(
        None, description="A bundle directory or a single .rknn file for the embedder."
    )
    embed_model: str = Field(
        "all-MiniLM-L6-v2",
        min_length=1,
        description="The embedder: a name of tars-rag models list, or a model's directory.",
    )
    embed_query_prompt: str | None = Field(
        None, description="Put before queries. Unset: the model's own. Empty: none."
    )
    embed_passage_prompt: str | None = Field(
        None, description="Put before passages. Unset: the model's own. Empty: none."
    )
    npu_rerank_enabled: _OptionalSwitch = Field(
        None, description="1: rerank on the NPU. 0 or unset: on the CPU."
    )
    rknn_reranker_path: _OptionalPath = Field(
        None, description="A bundle directory or a single .rknn file for the reranker."
    )
    rerank_model: str = Field(
        "ms-marco-MiniLM-L-12-v2",
        description="The reranker: a name of tars-rag models list, or a model's directory. "
        "Empty: no reranking.",
    )
    rag_strategy: Annotated[Strategy, BeforeValidator(_lower)] = Field(
        "hybrid",
        description="What a query searches: vectors and words (hybrid), vectors alone (naive), "
        "words alone (lexical).",
    )
    rag_language: Annotated[str | None, BeforeValidator(_empty_is_none)] = Field(
        None, description="How words are read in a new store: en, de, ..., multi. Unset: en."
    )
    memory_top_k: int = Field(5, ge=1, description="Passages returned by a query.")
    cpu_engine: Annotated[Engine, BeforeValidator(_engine)] = Field(
        "auto",
        description="What runs models on the CPU: auto, onnxruntime or openvino.",
    )
    npu_core_mask: Annotated[CoreMask, BeforeValidator(_core_mask)] = Field(
        "auto", description="Which NPU cores to use: one, the first two or three, or all."
    )
    npu_fallback_cpu: _Switch = Field(
        False, description="1: run on the CPU, with one warning, where the NPU cannot be used."
    )
    npu_python: _OptionalPath = Field(
        None,
        description="Another Python for the NPU, with rknn-toolkit-lite2 and numpy. Unset: the one "
        "of tars-rag npu install, or this one.",
    )
    npu_lock: _OptionalPath = Field(
        None,
        description="A file to lock while the NPU is used, so that programs take turns. Unset: no.",
    )
    tars_store: _OptionalPath = Field(
        None, description="The store that commands use without --store."
    )
    model_cache_dir: _OptionalPath = Field(
        None, description="Where models are kept. Unset: the user's cache directory."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, and that over ``.env``."""
        named = getattr(dotenv_settings, "env_file", None)  # Settings(_env_file=...)
        return init_settings, env_settings, dotenv_settings if named else _EnvFile(settings_cls)

    @property
    def embed_device(self) -> Device:
        """The device `NPU_EMBEDDER_ENABLED` asks for."""
        return _device(self.npu_embedder_enabled, "auto")

    @property
    def rerank_device(self) -> Device:
        """The device `NPU_RERANK_ENABLED` asks for."""
        return _device(self.npu_rerank_enabled, "cpu")

    @property
    def embed_prompts(self) -> dict[str, str] | None:
        """The prompts that were given, ``query`` and ``passage``; None: the model's own."""
        given = {"query": self.embed_query_prompt, "passage": self.embed_passage_prompt}
        return {name: prompt for name, prompt in given.items() if prompt is not None} or None

    @property
    def embedder_placement(self) -> Placement:
        """Where and how the embedder runs."""
        return self._placement(self.embed_device, self.rknn_embedder_path)

    @property
    def reranker_placement(self) -> Placement:
        """Where and how the reranker runs."""
        return self._placement(self.rerank_device, self.rknn_reranker_path)

    def _placement(self, device: Device, rknn_path: Path | None) -> Placement:
        return Placement(
            device=device,
            engine=self.cpu_engine,
            rknn_path=rknn_path,
            core_mask=self.npu_core_mask,
            fallback_cpu=self.npu_fallback_cpu,
            cache_dir=self.model_cache_dir,
            npu_python=self.npu_python,
            npu_lock=self.npu_lock,
        )

    @classmethod
    def from_env(cls, **overrides: Any) -> Settings:
        """Read the environment and ``.env``; keyword arguments win over both.

        Raises:
            ConfigError: A value is not allowed; the message names the variable, the value and
                what is allowed. Or ``.env`` cannot be read.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            problems = "; ".join(
                f"{str(e['loc'][0]).upper()}={e['input']!r} is not valid: {_allowed(e)}"
                for e in error.errors()
            )
            msg = f"{problems}. Correct it in the environment or in .env."
            raise ConfigError(msg) from error


def _allowed(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
