"""The settings of embedder and reranker as both frameworks' classes have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from tars_rag.adapters.handle import Handle
from tars_rag.errors import ConfigError
from tars_rag.settings import CoreMask, Device, Precision, Settings

if TYPE_CHECKING:
    from tars_rag.models.embedder import Embedder
    from tars_rag.models.reranker import Reranker

T = TypeVar("T")


def _as_text(path: str | Path | None) -> str | None:
    if path is not None and not str(path):
        msg = "an empty path: name a file or directory, or leave it out"
        raise ValueError(msg)
    return None if path is None else os.fspath(path)


PathText = Annotated[str | Path | None, AfterValidator(_as_text)]
"""A path that is kept as text, because both frameworks write their settings as JSON."""


class EngineArguments(TypedDict, total=False):
    """For type checkers, which know pydantic's fields by their name or their alias, not both."""

    model: str
    model_name: str
    device: Device
    cache_dir: str | Path | None
    threads: int | None
    rknn_path: str | Path | None
    core_mask: CoreMask
    fallback_cpu: bool


class EmbedderArguments(EngineArguments, total=False):
    """The arguments of what is made from `EmbedderFields`."""

    precision: Precision


class EngineFields(BaseModel):
    """The settings that embedder and reranker have in common."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model_name: str = Field(alias="model", min_length=1)
    device: Device = Field("auto", description="'auto', 'npu' or 'cpu'.")
    cache_dir: PathText = Field(None, description="Where models are kept.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None: the big cores.")
    rknn_path: PathText = Field(None, description="A .rknn file or bundle directory.")
    core_mask: CoreMask = Field("auto", description="NPU cores to use.")
    fallback_cpu: bool = Field(
        False, description="Run on the CPU, with one warning, where the NPU cannot be used."
    )

    _handle: Handle = PrivateAttr(default_factory=Handle)

    @model_validator(mode="before")
    @classmethod
    def _drop_class_name(cls, data: Any) -> Any:
        """LlamaIndex writes the class's name among the settings."""
        if isinstance(data, dict) and "class_name" in data:
            return {key: value for key, value in data.items() if key != "class_name"}
        return data

    def _open(self, engine: Callable[..., T], *more: str) -> T:
        names = ("device", "cache_dir", "threads", "rknn_path", "core_mask", "fallback_cpu", *more)
        settings = {"model": self.model_name, **{name: getattr(self, name) for name in names}}
        return self._handle.get((engine, *settings.items()), lambda: engine(**settings))

    @classmethod
    def _from(cls, settings: Settings, fields: dict[str, Any], overrides: dict[str, Any]) -> Self:
        if "model_name" in overrides:
            overrides["model"] = overrides.pop("model_name")
        common = {
            "cache_dir": settings.model_cache_dir,
            "core_mask": settings.npu_core_mask,
            "fallback_cpu": settings.npu_fallback_cpu,
        }
        return cls(**{**common, **fields, **overrides})


class EmbedderFields(EngineFields):
    """The settings of an `Embedder`, and the engine they describe."""

    model_name: str = Field(
        "all-MiniLM-L6-v2", alias="model", min_length=1, description="Catalogue name of the model."
    )
    precision: Precision = Field("fp32", description="'fp32' or 'int8', on the CPU.")

    @property
    def engine(self) -> Embedder:
        """The embedder, opened on first use and shared by all that have the same settings.

        Raises:
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device cannot be used and `fallback_cpu` is off.
        """
        from tars_rag.models.embedder import Embedder

        return self._open(Embedder, "precision")

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """Read EMBED_MODEL, NPU_EMBEDDER_ENABLED, RKNN_EMBEDDER_PATH and the common variables.

        Args:
            **overrides: Fields that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed.
        """
        settings = Settings.from_env()
        fields = {
            "model": settings.embed_model,
            "device": settings.embed_device,
            "rknn_path": settings.rknn_embedder_path,
        }
        return cls._from(settings, fields, overrides)


class RerankerFields(EngineFields):
    """The settings of a `Reranker`, and the engine they describe."""

    model_name: str = Field(
        "ms-marco-MiniLM-L-12-v2",
        alias="model",
        min_length=1,
        description="Catalogue name, or the path of a model directory in FlashRank's layout.",
    )
    device: Device = Field("cpu", description="'auto', 'npu' or 'cpu'.")

    @property
    def engine(self) -> Reranker:
        """The reranker, opened on first use and shared by all that have the same settings.

        Raises:
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device cannot be used and `fallback_cpu` is off.
        """
        from tars_rag.models.reranker import Reranker

        return self._open(Reranker)

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """Read RERANK_MODEL, NPU_RERANK_ENABLED, RKNN_RERANKER_PATH and the common variables.

        Args:
            **overrides: Fields that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed, or RERANK_MODEL is empty:
                that means no reranking, so there is nothing to build.
        """
        settings = Settings.from_env()
        if not settings.rerank_model.strip() and not {"model", "model_name"} & overrides.keys():
            msg = (
                f"RERANK_MODEL is empty, which means no reranking, so {cls.__name__} cannot be "
                "made from the environment. Leave it out of the chain, or set RERANK_MODEL, for "
                "example to ms-marco-MiniLM-L-12-v2."
            )
            raise ConfigError(msg)
        fields = {
            "model": settings.rerank_model,
            "device": settings.rerank_device,
            "rknn_path": settings.rknn_reranker_path,
        }
        return cls._from(settings, fields, overrides)
