"""Settings: the environment, validated once.

The names are those that boards already use. An unknown value is an error that names the
variable, the value and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tars_rag.errors import ConfigError

Strategy = Literal["hybrid", "naive", "lexical"]
Device = Literal["auto", "npu", "cpu"]
Precision = Literal["fp32", "int8"]
CoreMask = Literal["auto", "0", "1", "2", "0_1", "0_1_2", "all"]

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


def _core_mask(value: object) -> object:
    """Accept the runtime's own spellings (NPU_CORE_0_1_2, 7) besides ours (0_1_2)."""
    word = str(_lower(value)).removeprefix("npu_").removeprefix("core_")
    return _CORE_MASKS.get(word, word)


def _empty_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


_Switch = Annotated[bool, BeforeValidator(_switch)]
_OptionalSwitch = Annotated[bool | None, BeforeValidator(_switch), BeforeValidator(_empty_is_none)]
_OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]


def _device(enabled: bool | None, unset: Device) -> Device:
    return unset if enabled is None else "npu" if enabled else "cpu"


class Settings(BaseSettings):
    """What the environment or a ``.env`` file says, with defaults for what it does not.

    Each field is the lower-case name of its environment variable. Use `from_env`, whose errors
    name the variable.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    npu_embedder_enabled: _OptionalSwitch = Field(
        None, description="1: embed on the NPU. 0: on the CPU. Unset: on the NPU if it is usable."
    )
    rknn_embedder_path: _OptionalPath = Field(
        None, description="A bundle directory or a single .rknn file for the embedder."
    )
    embed_model: str = Field("all-MiniLM-L6-v2", min_length=1)
    npu_rerank_enabled: _OptionalSwitch = Field(
        None, description="1: rerank on the NPU. 0 or unset: on the CPU."
    )
    rknn_reranker_path: _OptionalPath = Field(
        None, description="A bundle directory or a single .rknn file for the reranker."
    )
    rerank_model: str = Field("ms-marco-MiniLM-L-12-v2", description="Empty: no reranking.")
    rag_strategy: Annotated[Strategy, BeforeValidator(_lower)] = "hybrid"
    memory_top_k: int = Field(5, ge=1, description="Passages returned by a query.")
    npu_core_mask: Annotated[CoreMask, BeforeValidator(_core_mask)] = "auto"
    npu_fallback_cpu: _Switch = Field(
        False, description="1: run on the CPU, with one warning, where the NPU cannot be used."
    )
    model_cache_dir: _OptionalPath = Field(
        None, description="Where models are kept. Unset: the user's cache directory."
    )

    @property
    def embed_device(self) -> Device:
        """The device `NPU_EMBEDDER_ENABLED` asks for."""
        return _device(self.npu_embedder_enabled, "auto")

    @property
    def rerank_device(self) -> Device:
        """The device `NPU_RERANK_ENABLED` asks for."""
        return _device(self.npu_rerank_enabled, "cpu")

    @classmethod
    def from_env(cls, **overrides: Any) -> Settings:
        """Read the environment and ``.env``; keyword arguments win over both.

        Raises:
            ConfigError: A value is not allowed; the message names the variable, the value and
                what is allowed.
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
