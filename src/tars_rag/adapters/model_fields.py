"""The settings of embedder and reranker as both frameworks' classes have them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from typing_extensions import Self

from tars_rag.adapters.handle import Handle
from tars_rag.adapters.threads import in_thread
from tars_rag.errors import ConfigError
from tars_rag.models.prompts import NO_PROMPTS
from tars_rag.retrieval.address import DEFAULT_MODEL, server_key, server_url
from tars_rag.settings import CoreMask, Device, Engine, Placement, Precision, Settings

if TYPE_CHECKING:
    from tars_rag.models.embedder import Embedder
    from tars_rag.models.reranker import Reranker
    from tars_rag.retrieval.remote.models import RemoteEmbedder, RemoteReranker

T = TypeVar("T")


def _as_text(path: str | Path | None) -> str | None:
    if path is not None and not str(path):
        msg = "an empty path: name a file or directory, or leave it out"
        raise ValueError(msg)
    return None if path is None else os.fspath(path)


PathText = Annotated[str | Path | None, AfterValidator(_as_text)]
"""A path that is kept as text, because both frameworks write their settings as JSON."""


def _as_prompts(given: dict[str, str] | None) -> dict[str, str] | None:
    NO_PROMPTS.changed(given)  # refuses other keys than these two
    return given


def plain_key(key: str | SecretStr | None) -> str | None:
    """The key itself."""
    return key.get_secret_value() if isinstance(key, SecretStr) else key


PromptTexts = Annotated[dict[str, str] | None, AfterValidator(_as_prompts)]
"""``query``, ``passage``, or both."""


class ModelArguments(TypedDict, total=False):
    """For type checkers, which know pydantic's fields by their name or their alias, not both."""

    model: str
    model_name: str
    device: Device
    engine: Engine
    cache_dir: str | Path | None
    threads: int | None
    rknn_path: str | Path | None
    core_mask: CoreMask
    fallback_cpu: bool
    npu_python: str | Path | None
    npu_lock: str | Path | None
    base_url: str | None
    api_key: str | SecretStr | None


class EmbedderArguments(ModelArguments, total=False):
    """The arguments of what is made from `EmbedderFields`."""

    precision: Precision
    prompts: dict[str, str] | None


class ModelFields(BaseModel):
    """The settings that embedder and reranker have in common."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # a key may be in it
    )

    model_name: str = Field(alias="model", min_length=1)
    device: Device = Field("auto", description="'auto', 'npu' or 'cpu'.")
    engine: Engine = Field(
        "auto", description="On the CPU: 'auto' (measured), 'onnxruntime' or 'openvino'."
    )
    cache_dir: PathText = Field(None, description="Where models are kept.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None: the big cores.")
    rknn_path: PathText = Field(None, description="A .rknn file or bundle directory.")
    core_mask: CoreMask = Field("auto", description="NPU cores to use.")
    fallback_cpu: bool = Field(
        False, description="Run on the CPU, with one warning, where the NPU cannot be used."
    )
    npu_python: PathText = Field(None, description="Another Python for the NPU's processes.")
    npu_lock: PathText = Field(
        None, description="A file to lock while the NPU is used, so that programs take turns."
    )

    base_url: str | None = Field(
        None, description="http://host:port of a `tars-rag serve` whose model is used instead."
    )
    api_key: SecretStr | None = Field(
        None, exclude=True, description="Of that server; None: TARS_API_KEY. It is written nowhere."
    )

    _handle: Handle = PrivateAttr(default_factory=Handle)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """LlamaIndex writes the class's name, too; a server has a model of its own."""
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if key != "class_name"}
        if given.get("base_url") is not None and not {"model", "model_name"} & given.keys():
            given["model"] = DEFAULT_MODEL
        return given

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        """Refuse settings that mean nothing where the model is."""
        if self.base_url is None:
            if self.api_key is not None:
                msg = "api_key is for a model of a server: give its base_url, too"
                raise ValueError(msg)
            return self
        server_url(self.base_url)
        fields = type(self).model_fields
        here = [n for n in self._only_here if getattr(self, n) != fields[n].default]
        if here:
            msg = f"{', '.join(here)} is for a model on this machine, and base_url names a server"
            raise ValueError(msg)
        return self

    @property
    def _only_here(self) -> list[str]:
        """Settings of a model that is opened in this process."""
        fields = type(self).model_fields
        named = [field.name for field in dataclasses.fields(Placement) if field.name in fields]
        return [*named, *(name for name in ("prompts", "max_length") if name in fields)]

    @property
    def placement(self) -> Placement:
        """Where and how the model runs, as one value."""
        fields = dataclasses.fields(Placement)
        given = {f.name: getattr(self, f.name) for f in fields if f.name in type(self).model_fields}
        return Placement(**given)

    def _shared(self, kind: object, opened: Callable[[str, Placement], T]) -> T:
        """The one open model of all that have the same settings, and are of this kind."""
        placement = self.placement
        key = (kind, self.model_name, placement)
        return self._handle.get(key, lambda: opened(self.model_name, placement))

    def _served(self, kind: type[T]) -> T:
        """The one connection to a server's model of all that have the same settings."""
        named = (self.base_url, server_key(plain_key(self.api_key)))
        model = self.model_name
        connected: Callable[..., T] = kind
        return self._handle.get((kind, named, model), lambda: connected(*named, model=model))

    async def _aserved(self, kind: type[T]) -> T:
        """As `_served`; only the first use of all needs a thread."""
        named = (self.base_url, server_key(plain_key(self.api_key)))
        opened = self._handle.opened((kind, named, self.model_name))
        return opened if isinstance(opened, kind) else await in_thread("query", self._served, kind)

    @classmethod
    def _from(cls, model: str, placement: Placement, overrides: dict[str, Any]) -> Self:
        if "model_name" in overrides:
            overrides["model"] = overrides.pop("model_name")
        if overrides.get("base_url") is not None:
            return cls(**overrides)  # the environment tells of models on this machine
        fields = dataclasses.fields(Placement)
        given = {f.name: getattr(placement, f.name) for f in fields if f.name in cls.model_fields}
        return cls(**{"model": model, **given, **overrides})


class RerankerArguments(ModelArguments, total=False):
    """The arguments of what is made from `RerankerFields`."""

    max_length: int | None


class EmbedderFields(ModelFields):
    """The settings of an `Embedder`, and the model they describe."""

    model_name: str = Field(
        "all-MiniLM-L6-v2", alias="model", min_length=1, description="Catalogue name of the model."
    )
    precision: Precision = Field("fp32", description="'fp32' or 'int8', on the CPU.")
    prompts: PromptTexts = Field(
        None,
        description="Put before queries and passages; what is left out is the model's own.",
    )

    @property
    def embedder(self) -> Embedder | RemoteEmbedder:
        """The embedder, opened on first use and shared by all that have the same settings.

        Raises:
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device cannot be used and `fallback_cpu` is off.
            ConfigError: The server of `base_url` has another model, or another key.
            StoreError: It cannot be reached.
        """
        if self.base_url is not None:
            from tars_rag.retrieval.remote.models import RemoteEmbedder

            return self._served(RemoteEmbedder)
        from tars_rag.models.embedder import Embedder

        prompts = self.prompts
        chosen = None if prompts is None else tuple(sorted(prompts.items()))
        return self._shared(
            (Embedder, chosen),
            lambda model, placement: Embedder.placed(model, placement, prompts),
        )

    async def _remote_embedder(self) -> RemoteEmbedder:
        from tars_rag.retrieval.remote.models import RemoteEmbedder

        return await self._aserved(RemoteEmbedder)

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """Read EMBED_MODEL, EMBED_QUERY_PROMPT, EMBED_PASSAGE_PROMPT and the common variables.

        Args:
            **overrides: Fields that win over the environment.

        Raises:
            ConfigError: A variable has a value that is not allowed.
        """
        settings = Settings.from_env()
        if overrides.get("base_url") is None:
            overrides.setdefault("prompts", settings.embed_prompts)
        return cls._from(settings.embed_model, settings.embedder_placement, overrides)


class RerankerFields(ModelFields):
    """The settings of a `Reranker`, and the model they describe."""

    model_name: str = Field(
        "ms-marco-MiniLM-L-12-v2",
        alias="model",
        min_length=1,
        description="Catalogue name, or the path of a model directory in FlashRank's layout.",
    )
    device: Device = Field("cpu", description="'auto', 'npu' or 'cpu'.")
    max_length: int | None = Field(
        None, ge=16, description="Query and passage together, in tokens. None: up to 512."
    )

    @property
    def reranker(self) -> Reranker | RemoteReranker:
        """The reranker, opened on first use and shared by all that have the same settings.

        Raises:
            ModelError: The model is unknown, missing or damaged.
            DeviceError: The device cannot be used and `fallback_cpu` is off.
            ConfigError: The server of `base_url` has another model or none, or another key.
            StoreError: It cannot be reached.
        """
        if self.base_url is not None:
            from tars_rag.retrieval.remote.models import RemoteReranker

            return self._served(RemoteReranker)
        from tars_rag.models.reranker import Reranker

        length = self.max_length
        return self._shared(
            (Reranker, length),
            lambda model, placement: Reranker.placed(model, placement, length),
        )

    async def _remote_reranker(self) -> RemoteReranker:
        from tars_rag.retrieval.remote.models import RemoteReranker

        return await self._aserved(RemoteReranker)

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
        named = {"model", "model_name", "base_url"} & overrides.keys()
        if not settings.rerank_model.strip() and not named:
            msg = (
                f"RERANK_MODEL is empty, which means no reranking, so {cls.__name__} cannot be "
                "made from the environment. Leave it out of the chain, or set RERANK_MODEL, for "
                "example to ms-marco-MiniLM-L-12-v2."
            )
            raise ConfigError(msg)
        return cls._from(settings.rerank_model, settings.reranker_placement, overrides)
