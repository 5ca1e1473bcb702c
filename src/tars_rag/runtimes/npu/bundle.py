"""What a model path may be: our bundle, a single .rknn, or a directory of rk-transformers.

Files are verified here, once; the cores get plain data (`session.NpuSpec`).
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tars_rag.errors import ModelError
from tars_rag.files import sha256_of
from tars_rag.runtimes.npu.manifest import (
    HOW_TO_MAKE,
    MANIFEST_NAME,
    Fidelity,
    Manifest,
    ModelKind,
    load_manifest,
    verify_bundle,
)
from tars_rag.runtimes.npu.spec import KnownAnswer, NpuSpec, RknnFile

logger = logging.getLogger("tars_rag")

DEFAULT_LENGTHS = (32, 64, 96, 128, 192, 256)
"""The buckets `convert` makes unless told otherwise."""


@dataclass(frozen=True)
class NpuModel:
    """A model for the NPU, verified.

    Attributes:
        path: What was asked for.
        spec: What a core must know.
        contents: Differs where any file that is run does; None: not a bundle.
        model: Catalogue name of what it was made of; None: not said.
        identity: sha256 of its .rknn files: the fingerprint class where fidelity is unknown.
        target: SoC it was converted for; None: not said.
        toolkit: Version of the toolkit that made it; None: not said.
        precision: Recipe that made it; None: not said.
        weights_sha256: Of the weights it was made from; None: not said.
        fidelity: As measured when it was converted; None: never.
        max_length: Longest text in tokens; None: as long as its longest graph.
        remarks: What a user should know of how it was compiled.
    """

    path: Path
    spec: NpuSpec
    identity: str
    contents: str | None = None
    model: str | None = None
    target: str | None = None
    toolkit: str | None = None
    precision: str | None = None
    weights_sha256: str | None = None
    fidelity: Fidelity | None = None
    max_length: int | None = None
    remarks: tuple[str, ...] = ()


def read_model(path: Path, kind: ModelKind) -> NpuModel:
    """Find out what `path` is, and verify it.

    Args:
        path: A bundle directory, a .rknn file, or a directory as rk-transformers publishes it.
        kind: What it is to be used as.

    Raises:
        ModelError: It is none of these, damaged, or of the other kind.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _single(path)
    if (path / MANIFEST_NAME).is_file():
        return _bundle(path, kind)
    config = _rk_transformers(path)
    if config:
        return _published(path, kind, config)
    if files := sorted(path.glob("*.rknn")):
        if len(files) == 1:
            return _single(files[0])
        msg = f"{path} has {len(files)} .rknn files and no {MANIFEST_NAME}. Name one of them."
        raise ModelError(msg)
    what = "has no .rknn file" if path.is_dir() else "does not exist"
    msg = (
        f"{path} {what}. Give a bundle directory, a .rknn file, or a directory of "
        f"rk-transformers; or make a bundle: {HOW_TO_MAKE}"
    )
    raise ModelError(msg)


def find_bundles(folder: Path) -> list[tuple[Path, Manifest]]:
    """The bundles directly inside a folder, most faithful first. Files are not hashed."""
    folders = [manifest.parent for manifest in sorted(folder.glob(f"*/{MANIFEST_NAME}"))]
    found = [(bundle, load_manifest(bundle)) for bundle in folders]
    return sorted(found, key=lambda pair: -_score(pair[1].fidelity))


def _score(fidelity: Fidelity) -> float:
    return fidelity.mean_cosine or fidelity.mean_spearman or 0.0


def _bundle(path: Path, kind: ModelKind) -> NpuModel:
    manifest = verify_bundle(path)
    if manifest.kind != kind:
        msg = (
            f"{path} is a bundle of kind {manifest.kind}, not {kind}. Give the path of the other "
            f"one; those of the model cache: ls {shlex.quote(str(path.absolute().parent))}"
        )
        raise ModelError(msg)
    if manifest.fidelity.degraded:
        logger.warning(
            "%s (%s) is degraded: when it was converted it was measured below the fidelity asked "
            "of %s (%.4f), and kept with --allow-degraded.",
            path,
            manifest.model,
            manifest.precision,
            manifest.fidelity.threshold,
        )
    table = manifest.word_table
    spec = NpuSpec(
        graphs=tuple(RknnFile(str(path / g.name), g.lengths) for g in manifest.graphs),
        inputs=manifest.inputs,
        output=manifest.output,
        word_table=str(path / table.name) if table else None,
        answers=tuple(
            KnownAnswer(t.input_ids, t.token_type_ids, t.expected, t.tolerance)
            for t in manifest.selftest
        ),
    )
    return NpuModel(
        path,
        spec,
        identity=manifest.graphs[0].sha256,
        contents=_contents(manifest),
        model=manifest.model,
        target=manifest.target,
        toolkit=manifest.toolkit,
        precision=manifest.precision,
        weights_sha256=manifest.weights_sha256,
        fidelity=manifest.fidelity,
        max_length=manifest.max_length,
        remarks=manifest.remarks,
    )


def _contents(manifest: Manifest) -> str:
    sums = [file.sha256 for file in (*manifest.graphs, manifest.word_table) if file]
    return sha256("".join(sums).encode("ascii")).hexdigest()


def _single(path: Path) -> NpuModel:
    if path.suffix != ".rknn":
        msg = f"{path} is not a .rknn file. To make one: {HOW_TO_MAKE}"
        raise ModelError(msg)
    # Inputs, length and output are asked of the file once it is open on the device.
    return NpuModel(path, NpuSpec((RknnFile(str(path)),)), identity=sha256_of(path))


def _rk_transformers(path: Path) -> dict[str, Any]:
    """The ``rknn`` entry of config.json: one description per .rknn file."""
    config = path / "config.json"
    if not config.is_file():
        return {}
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{config} cannot be read ({error}). Download the directory again."
        raise ModelError(msg) from error
    entry = data.get("rknn") if isinstance(data, dict) else None
    return entry if isinstance(entry, dict) else {}


def _published(path: Path, kind: ModelKind, config: dict[str, Any]) -> NpuModel:
    """One file per length, the unquantised ones, of those that take one text at a time."""
    usable: dict[int, tuple[bool, str, dict[str, Any]]] = {}
    for name, entry in config.items():
        quantised = bool((entry.get("quantization") or {}).get("do_quantization"))
        length, rows = entry.get("max_seq_length"), entry.get("batch_size", 1)
        if rows != 1 or not isinstance(length, int) or not (path / name).is_file():
            continue
        # A directory may hold both; naive INT8 transformers are worthless (cosine 0.37).
        if length not in usable or (quantised, name) < usable[length][:2]:
            usable[length] = (quantised, name, entry)
    if not usable:
        names = ", ".join(config)
        msg = f"{path}: none of {names} is there with batch size 1. Download the directory again."
        raise ModelError(msg)
    entries = [entry for _, _, entry in usable.values()]
    inputs = {tuple(e["model_input_names"]) for e in entries if e.get("model_input_names")}
    if len(inputs) > 1:
        msg = f"{path}: its .rknn files differ in their inputs ({inputs}). Name one of them."
        raise ModelError(msg)
    targets = {str(e["target_platform"]) for e in entries if e.get("target_platform")}
    graphs = tuple(RknnFile(str(path / usable[n][1]), (n,)) for n in sorted(usable))
    return NpuModel(
        path,
        NpuSpec(
            graphs,
            inputs=inputs.pop() if inputs else (),
            output="tokens" if kind == "embedder" else "logit",
        ),
        identity=sha256_of(Path(graphs[0].path)),
        target=targets.pop() if len(targets) == 1 else None,
        max_length=max(usable),
    )
