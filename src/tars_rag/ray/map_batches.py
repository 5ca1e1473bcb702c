"""For ``ray.data.Dataset.map_batches``: batches in, the same with vectors out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tars_rag.errors import InvalidInputError
from tars_rag.models.embedder import Embedder
from tars_rag.ray.node import NodeModel, archive_of
from tars_rag.retrieval.passage import Passage
from tars_rag.settings import Placement


def share_model(
    model: str | Path = "all-MiniLM-L6-v2",
    placement: Placement | None = None,
    prompts: Mapping[str, str] | None = None,
) -> NodeModel:
    """Put a model into Ray's object store, from where each node takes it once.

    Args:
        model: As `Embedder` has it; the path of a directory must be one that every node has.
        placement: Where and how it runs on the nodes, each of which keeps models in its own
            directory (MODEL_CACHE_DIR); None: as a CPU does by default.
        prompts: As `Embedder` has them.

    Raises:
        ConfigError: The extra ``ray`` is not installed.
        ModelError: As `Embedder`.
    """
    from tars_rag.ray.cluster import require_ray

    ray = require_ray()
    where = placement or Placement(device="cpu")
    with Embedder.placed(model, where, prompts) as embedder:
        fingerprint = embedder.fingerprint
    archive = archive_of(str(model), where.cache_dir)
    return NodeModel(
        model=str(model),
        placement=replace(where, cache_dir=None),  # a node keeps models where its user wants them
        prompts=None if prompts is None else dict(prompts),
        fingerprint=fingerprint,
        archive=None if archive is None else ray.put(archive),
    )


class EmbedPassages:
    """Adds the columns ``vector`` and ``fingerprint`` to batches of a Ray dataset.

    ```python
    import ray
    from tars_rag.ray import EmbedPassages, share_model

    ray.init()
    rows = ray.data.from_items([{"id": "1", "text": "The kettle is in the kitchen."}])
    done = rows.map_batches(
        EmbedPassages, fn_constructor_args=(share_model(),), concurrency=1, num_cpus=1
    )
    print(done.take(1)[0]["vector"].shape)
    ```

    Args:
        model: What to open on the node (`share_model`).
        column: Which column is embedded. With ``text``, the title and headings that a column
            ``metadata`` (JSON) keeps of a passage are embedded with it, as a store does.
    """

    def __init__(self, model: NodeModel, column: str = "text") -> None:
        import ray

        given = ray.get_runtime_context().get_assigned_resources().get("CPU")
        self._embedder = model.open(max(1, int(given)) if given else None)
        self._column = column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as columns [n], and two more: ``vector`` [n, dim] float32, ``fingerprint``.

        Raises:
            InvalidInputError: The column is missing or holds something else than strings.
        """
        if self._column not in batch:
            msg = f"The dataset has no column {self._column!r}. It has: {', '.join(batch)}."
            raise InvalidInputError(msg)
        texts = list(batch[self._column])
        if self._column == "text" and "metadata" in batch:
            texts = [
                Passage("-", text, _metadata(held)).indexed
                for text, held in zip(texts, batch["metadata"], strict=True)
            ]
        made = self._embedder.embed(texts)
        kinds = np.array([self._embedder.fingerprint] * len(texts), object)
        return {**batch, "vector": made, "fingerprint": kinds}


def _metadata(held: Any) -> dict[str, Any]:
    try:
        about = json.loads(held) if isinstance(held, str) and held else held
    except ValueError as error:
        msg = f"A row's metadata is no JSON ({error}): {held!r:.80}"
        raise InvalidInputError(msg) from error
    return about if isinstance(about, dict) else {}
