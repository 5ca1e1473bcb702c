"""One conversion: the model, the recipe and the texts, and what follows for each length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.convert import fidelity, quantised, toolkit
from tars_rag.convert.quantised import Preparation
from tars_rag.convert.recipes import Recipe
from tars_rag.convert.source import Source
from tars_rag.convert.statistics import Linear
from tars_rag.convert.texts import Sample
from tars_rag.models.bert_graph import Output, build_graph, host_input_names
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.npu.host_inputs import device_inputs
from tars_rag.runtimes.npu.manifest import Fidelity

_ROWS_TO_TRACE: Final = 4
# What makes one operator of an attention, in either toolkit.
_ATTENTION_RULES: Final = (
    "fuse_matmul_softmax_matmul_to_sdpa",
    "fuse_exmatmul_add_mul_exsoftmax13_exmatmul_to_sdpa",
)
_HUGE: Final = 1e9  # in place of infinity, which JSON has not


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is the same for all lengths.

    Attributes:
        source: The FP32 model.
        recipe: What to do to it.
        target: The SoC.
        toolkit_version: Of rknn-toolkit2.
        calibration: Texts that set the int8 ranges; None where nothing is quantised.
        evaluation: Texts to measure with.
        table: The word table, float16 [vocabulary, hidden], where it stays on the host.
        split_attention: Leave attention in parts instead of the chip's one operator for it.
    """

    source: Source
    recipe: Recipe
    target: str
    toolkit_version: str
    calibration: Sample | None
    evaluation: Sample
    table: NDArray[np.float16] | None
    split_attention: bool = False

    @property
    def output(self) -> Output:
        """What the device gives."""
        if self.source.kind == "cross-encoder":
            return "logit"
        # What an untouched export ends in; every other recipe pools in float16, which is exact.
        simple = self.source.pooling in ("mean", "cls") and not self.source.weights.modules
        return "tokens" if self.recipe.quantise == "everything" and simple else "pooled"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the device takes, in order."""
        if self.table is None:
            return self.source.inputs
        scaled = self.recipe.equalise and any(key != "o" for key in self.recipe.int8)
        return host_input_names(
            self.source.weights, self.output, self.source.pooling, scaled=scaled
        )

    @property
    def layers(self) -> list[Linear]:
        """The linear layers that become int8."""
        numbers = range(self.source.weights.config.layers)
        return [(number, key) for number in numbers for key in self.recipe.int8]

    @property
    def _toolkit_finds_ranges(self) -> bool:
        return bool(self.layers) and not self.recipe.equalise

    def prepare(self, length: int, progress: NamedProgress) -> Preparation | None:
        """What makes the layers bear int8, from the calibration texts cut at `length`."""
        if not (self.calibration and self.recipe.equalise and self.layers):
            return None
        progress("prepare the layers for int8", 0, None)
        feeds = self.source.feeds(self.source.encode(self.calibration, length))
        return quantised.prepare(self.source.weights, feeds, self.layers)

    def job(self, length: int, prepared: Preparation | None) -> toolkit.Job:
        """What the toolkit has to do for one length."""
        graph = build_graph(
            prepared.weights if prepared else self.source.weights,
            output=self.output,
            pooling=self.source.pooling,
            shape=(1, length),
            host_inputs=self.table is not None,
            scales=prepared.scales if prepared else None,
        )
        for name, value in (prepared.constants if prepared else {}).items():
            quantised.set_constant(graph, name, value)
        if self.recipe.table == "int8" and self.recipe.equalise:
            quantised.balance_table(
                graph, self.source.weights.arrays["embeddings.word_embeddings.weight"]
            )
        if self.recipe.mask is not None:
            quantised.set_constant(graph, "mask.value", np.asarray(self.recipe.mask, np.float32))
        return toolkit.Job(
            graph=graph.SerializeToString(),
            inputs=self.inputs,
            target=self.target,
            custom_string=json.dumps(self._label(length)),
            quantise=self.recipe.quantise,
            int8_nodes=rf"^l\d+\.({'|'.join(self.recipe.int8)})\.mm" if self.recipe.int8 else None,
            int8_table=self.recipe.table == "int8",
            ranges=prepared.ranges if prepared else {},
            calibration=self._calibration(length),
            evaluation=self._arrays(self.evaluation, length),
            disable_rules=_ATTENTION_RULES if self.split_attention else (),
        )

    def _calibration(self, length: int) -> dict[str, NDArray[Any]] | None:
        """What the toolkit runs to find ranges by itself; few rows where it is told the ranges."""
        if self.calibration is None:
            return None
        arrays = self._arrays(self.calibration, length)
        rows = len(self.calibration) if self._toolkit_finds_ranges else _ROWS_TO_TRACE
        return {name: array[:rows] for name, array in arrays.items()}

    def _label(self, length: int) -> dict[str, object]:
        """What a single .rknn file says of itself."""
        return {
            "format": "tars-rag-rknn",
            "model": self.source.name,
            "kind": self.source.kind,
            "precision": self.recipe.name,
            "target": self.target,
            "toolkit": self.toolkit_version,
            "length": length,
            "inputs": self.inputs,
            "output": self.output,
            "dimension": self.source.dimension,
            "weights_sha256": self.source.weights_sha256,
            "calibration_sha256": self.calibration.sha256 if self.calibration else None,
        }

    def _arrays(self, texts: Sample, length: int) -> dict[str, NDArray[Any]]:
        feeds = self.source.feeds(self.source.encode(texts, length), length)
        rows = [device_inputs(self.inputs, feed, self.table) for feed in feeds]
        columns = (np.concatenate(column) for column in zip(*rows, strict=True))
        return dict(zip(self.inputs, columns, strict=True))

    def measure(
        self, length: int, outputs: NDArray[np.float32], graph: bytes
    ) -> tuple[Fidelity, float]:
        """The verdict on one length, and its largest error: of a logit, or 1 - cosine."""
        source = self.source
        encodings = source.encode(self.evaluation, length)
        exact = fidelity.reference(graph, source.feeds(encodings))
        threshold = self.recipe.thresholds[source.kind]
        if source.kind == "cross-encoder":
            logits, exact = outputs.reshape(len(exact)), exact[:, 0]
            judged = fidelity.of_cross_encoder(logits, exact, self.evaluation.queries, threshold)
            return judged, float(np.nan_to_num(np.abs(logits - exact), nan=_HUGE).max())
        if self.output == "tokens":
            tokens = outputs.reshape(len(exact), length, -1)
            used = [tokens[row, : len(encoding)] for row, encoding in enumerate(encodings)]
            outputs = np.stack(
                [one.mean(0) if source.pooling == "mean" else one[0] for one in used]
            )
        judged = fidelity.of_embedder(outputs.reshape(exact.shape), exact, threshold)
        return judged, 1 - (judged.min_cosine or 0.0)
