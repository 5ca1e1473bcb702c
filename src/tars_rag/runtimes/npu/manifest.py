"""The manifest of a .rknn bundle: what the files are, and how faithful they were measured to be.

A bundle is a directory with ``manifest.json``, one or several ``.rknn`` files, the tokenizer
and, where the precision says so, the word-embedding table that stays on the host. `convert`
writes it, `runtimes` runs it, `models verify` checks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tars_rag import advice
from tars_rag.errors import ModelError
from tars_rag.files import sha256_of
from tars_rag.runtimes.base import OutputKind
from tars_rag.runtimes.npu.spec import FEED_NAMES

MANIFEST_NAME = "manifest.json"
FORMAT: Final = "tars-rag-bundle"
VERSION: Final = 1
HOW_TO_MAKE: Final = "tars-rag convert --help"
"""Where it is not known of what."""

ModelKind = Literal["embedder", "cross-encoder"]
"""What a bundle's model is used as."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Frozen):
    """One file of the bundle, named relative to its directory."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="File name, no directories.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)


class Operators(_Frozen):
    """What the toolkit made of a graph, as the log of its build says."""

    counts: dict[str, int] = Field(description="Compiled operators by kind, ends not counted.")
    on_cpu: tuple[str, ...] = Field(
        default=(), description="Those that the CPU runs inside the vendor's runtime."
    )
    integer_inputs: int = Field(default=0, description="Inputs that are integers.")
    not_fused: tuple[str, ...] = Field(
        default=(), description="What is left in parts where the chip has one operator for it."
    )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know, in words; empty if all is as it should be."""
        on_cpu = ", ".join(self.on_cpu)
        return (
            *([f"run by the CPU inside the runtime: {on_cpu}"] if on_cpu else ()),
            *([f"not fused: {', '.join(self.not_fused)}"] if self.not_fused else ()),
        )


class GraphFile(BundleFile):
    """One .rknn file and the sequence lengths it runs."""

    lengths: tuple[int, ...] = Field(min_length=1, description="Sequence lengths, ascending.")
    operators: Operators | None = Field(default=None, description="None: not known.")


class Fidelity(_Frozen):
    """How close the simulated bundle was to the FP32 reference, on held-out texts."""

    texts: int = Field(description="Held-out texts (embedder) or pairs (cross-encoder).")
    mean_cosine: float | None = None
    min_cosine: float | None = None
    mean_spearman: float | None = Field(default=None, description="Per query, cross-encoder.")
    min_spearman: float | None = None
    top1_agreement: float | None = None
    top5_overlap: float | None = None
    threshold: float = Field(description="The least mean cosine or Spearman for this precision.")
    degraded: bool = Field(description="Below the threshold, and kept on the user's demand.")


class SelfTest(_Frozen):
    """One text whose FP32 answer is known, run on every core before the bundle is used.

    A bundle with two or more that fit the smallest length proves the most: a device that repeats
    one answer fails. A longer one is run at the length of which it fills nine tenths or more.
    """

    input_ids: tuple[int, ...] = Field(min_length=1, description="Unpadded, with [CLS] and [SEP].")
    token_type_ids: tuple[int, ...] | None = Field(default=None, description="None: all 0.")
    expected: tuple[float, ...] = Field(
        min_length=1, description="FP32: unit-length embedding [dimension], or the logit [1]."
    )
    tolerance: float = Field(
        gt=0, description="Embedder: largest 1 - cosine. Cross-encoder: largest |logit - expected|."
    )


class Manifest(_Frozen):
    """Everything a board must know about a bundle before it runs it."""

    format: Literal["tars-rag-bundle"] = FORMAT
    version: Literal[1] = VERSION
    model: str = Field(description="Catalogue name, e.g. all-MiniLM-L6-v2.")
    kind: ModelKind
    target: str = Field(description="SoC, e.g. rk3588.")
    precision: str = Field(description="fp16, fp16-host, hq, int8, ...")
    toolkit: str = Field(description="rknn-toolkit2 version that built the files.")
    inputs: tuple[str, ...] = Field(
        description="Device inputs in order: the int64 arrays of a feed, or what the host makes "
        "of them in float32 (see `host_inputs`)."
    )
    output: OutputKind
    dimension: int = Field(gt=0, description="Width of an embedding; of a cross-encoder's layers.")
    max_length: int = Field(gt=0, description="Longest text in tokens; longer ones are cut.")
    graphs: tuple[GraphFile, ...] = Field(min_length=1)
    tokenizer: BundleFile
    word_table: BundleFile | None = Field(
        default=None, description="NumPy .npy, float16 or float32 [vocabulary, hidden]."
    )
    weights_sha256: str
    calibration_sha256: str | None = None
    recipe: dict[str, object] = Field(default_factory=dict)
    fidelity: Fidelity
    selftest: tuple[SelfTest, ...] = Field(
        default=(), description="Optional; without it a core is only checked for consistency."
    )

    @property
    def command(self) -> str:
        """What makes the bundle again, on a PC."""
        return f"tars-rag convert {self.model} --target {self.target} --precision {self.precision}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the build logs said that a user should know, each with the lengths it is true of."""
        said: dict[str, list[int]] = {}
        for graph in self.graphs:
            for remark in graph.operators.remarks if graph.operators else ():
                said.setdefault(remark, []).extend(graph.lengths)
        found = [
            f"length {', '.join(map(str, lengths))}: {remark}" for remark, lengths in said.items()
        ]
        if self.target == "rk3576" and (integers := [n for n in self.inputs if n in FEED_NAMES]):
            found.append(
                f"{', '.join(integers)} are integers; graphs that take such crashed on RK3576 "
                "in public reports"
            )
        return tuple(found)

    @property
    def lengths(self) -> tuple[int, ...]:
        """All sequence lengths the bundle runs, ascending."""
        return tuple(sorted({n for graph in self.graphs for n in graph.lengths}))

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """Every file the manifest vouches for."""
        table = (self.word_table,) if self.word_table else ()
        return (*self.graphs, self.tokenizer, *table)


def load_manifest(directory: Path) -> Manifest:
    """Read and validate ``manifest.json`` of a bundle directory (files are not hashed).

    Raises:
        ModelError: No manifest, not JSON, of another version, or with invalid fields.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{directory} is not a bundle: it has no {MANIFEST_NAME}. To make one: {HOW_TO_MAKE}"
        raise ModelError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error}). Copy the bundle again, or make it: {HOW_TO_MAKE}"
        raise ModelError(msg) from error
    if isinstance(raw, dict) and raw.get("version", VERSION) != VERSION:
        msg = (
            f"{path} is of version {raw.get('version')}, this tars-rag reads version {VERSION}. "
            f"Update it ({advice.update()}), or convert with this one: {HOW_TO_MAKE}"
        )
        raise ModelError(msg)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        msg = f"{path} is not a valid manifest: {error}. Make the bundle again: {HOW_TO_MAKE}"
        raise ModelError(msg) from error


def verify_bundle(directory: Path) -> Manifest:
    """Read the manifest and check size and sha256 of every file it names.

    Raises:
        ModelError: As `load_manifest`, or a file is missing, truncated or altered (named).
    """
    manifest = load_manifest(directory)
    for file in manifest.files:
        path = directory / file.name
        if not path.is_file():
            problem = "is missing"
        elif (size := path.stat().st_size) != file.bytes:
            problem = f"has {size} bytes instead of {file.bytes}"
        elif sha256_of(path) != file.sha256:
            problem = "does not have the recorded sha256"
        else:
            continue
        msg = f"{path} {problem}. Copy the bundle again, or make it again: {manifest.command}"
        raise ModelError(msg)
    return manifest
