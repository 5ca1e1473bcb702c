"""From a model's name to a bundle on disk whose fidelity was measured, or an error."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from tars_rag.convert import environment, fidelity, toolkit
from tars_rag.convert.process import termination_raises
from tars_rag.convert.quantised import Preparation, balance_table, prepare, set_constant
from tars_rag.convert.recipes import Recipe
from tars_rag.convert.recipes import recipe as recipe_named
from tars_rag.convert.source import Source, open_source
from tars_rag.convert.texts import Sample, sample
from tars_rag.errors import ConversionError, InvalidInputError
from tars_rag.models.bert_graph import Output, build_graph
from tars_rag.models.tokenizer import TOKENIZER_NAME
from tars_rag.runtimes.manifest import (
    MANIFEST_NAME,
    BundleFile,
    Fidelity,
    GraphFile,
    Manifest,
    SelfTest,
    sha256_of,
)

TARGETS: Final = ("rk3588", "rk3576", "rk3568", "rk3566", "rk3562")
LENGTHS: Final = (32, 64, 96, 128, 192, 256)
WORD_TABLE: Final = "word_embeddings.npy"
_ROWS_TO_TRACE: Final = 4


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is the same for all lengths."""

    source: Source
    recipe: Recipe
    target: str
    calibration: Sample | None
    evaluation: Sample
    table: NDArray[np.float16] | None

    @property
    def output(self) -> Output:
        if self.source.kind == "cross-encoder":
            return "logit"
        # What an untouched export ends in; every other recipe pools in float16, which is exact.
        return "tokens" if self.recipe.quantise == "everything" else "pooled"

    @property
    def inputs(self) -> tuple[str, ...]:
        words = "input_ids" if self.table is None else "word_embeddings"
        return (words, *self.source.inputs[1:])

    @property
    def layers(self) -> list[tuple[int, str]]:
        numbers = range(self.source.weights.config.layers)
        return [(number, key) for number in numbers for key in self.recipe.int8]


def convert(
    model: str,
    *,
    precision: str | Recipe = "fp16-host",
    lengths: Sequence[int] = LENGTHS,
    target: str = "rk3588",
    calibration: Path | None = None,
    evaluation: Path | None = None,
    out: Path | None = None,
    allow_degraded: bool = False,
    cache_dir: Path | None = None,
    progress: toolkit.Progress = lambda *_: None,
) -> tuple[Path, Manifest]:
    """Convert a model into a bundle for the NPU and measure it in the toolkit's simulator.

    Args:
        model: A catalogue name, or a directory with safetensors, configuration and tokenizer.
        precision: A row of `recipes.RECIPES` by name, or a row of your own.
        lengths: Sequence lengths in tokens; one .rknn file is built for each.
        target: One of `TARGETS`.
        calibration: Texts (pairs for a cross-encoder) that set the int8 ranges; default: bundled.
        evaluation: Texts (pairs) to measure with, disjoint from the former; default: bundled.
        out: The directory to make; default: ``<model>-<target>-<precision>`` here.
        allow_degraded: Keep a bundle below the precision's threshold, and record that it is.
        cache_dir: Where models are kept.
        progress: Told the step in words, and how many of how many.

    Returns:
        The directory, and the manifest in it.

    Raises:
        InvalidInputError: An argument or a file of texts cannot be used.
        ModelError: The model cannot be had or is not of a supported kind.
        ConversionError: No build environment, the toolkit failed, the disk is full, or the
            result is not faithful enough. Nothing is left under the name `out`.
    """
    row = recipe_named(precision) if isinstance(precision, str) else precision
    lengths = _checked_lengths(lengths)
    if target not in TARGETS:
        msg = f"{target!r} is not a target. Choose one of: {', '.join(TARGETS)}."
        raise InvalidInputError(msg)
    name = Path(model).expanduser().resolve().name if Path(model).exists() else model
    out = out or Path(f"{name.replace('/', '-')}-{target}-{row.name}")
    if out.exists():
        msg = f"{out} exists already. Remove it, or name another directory with --out."
        raise InvalidInputError(msg)
    source = open_source(model, cache_dir=cache_dir)
    if lengths[-1] > source.weights.config.positions:
        msg = (
            f"Length {lengths[-1]} is more than the {source.weights.config.positions} positions "
            f"of {source.name}. Leave it out of --lengths."
        )
        raise InvalidInputError(msg)
    plan = _Plan(
        source=source,
        recipe=row,
        target=target,
        calibration=sample(source.kind, "calibration", calibration) if row.calibrated else None,
        evaluation=sample(source.kind, "evaluation", evaluation),
        table=source.word_table() if row.table == "host" else None,
    )
    with termination_raises():
        python = environment.toolkit_python(progress=lambda what: progress(what, 0, 0))
        with _staging(out) as staging:
            manifest = _bundle(plan, lengths, python, staging, allow_degraded, progress)
            staging.rename(out)
    return out, manifest


def verdicts(manifest: Manifest) -> list[str]:
    """What was measured at each length, in words."""
    lengths = cast(dict[str, dict[str, Any]], manifest.recipe["lengths"])
    return [f"length {length}: {figures['verdict']}" for length, figures in lengths.items()]


def _checked_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    found = tuple(sorted(set(lengths)))
    if not found or found[0] < 8:
        msg = f"Sequence lengths must be 8 tokens or more, for example 64,128,256; got {lengths}."
        raise InvalidInputError(msg)
    return found


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A directory beside `out` that is gone, or renamed, when the block is left."""
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for old in out.parent.glob(f".{out.name}.*.partial"):
            if not _alive(old.suffixes[-2][1:]):  # its process was killed outright
                shutil.rmtree(old, ignore_errors=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        full = "The disk is full. " if error.errno == errno.ENOSPC else ""
        msg = (
            f"{full}{out} cannot be written: {error}. A conversion needs about 1 GB while it "
            "runs; free some space, or name a directory that can be written with --out."
        )
        raise ConversionError(msg) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _bundle(
    plan: _Plan,
    lengths: Sequence[int],
    python: Path,
    staging: Path,
    allow_degraded: bool,
    progress: toolkit.Progress,
) -> Manifest:
    """Build, measure and judge every length, then write the rest of the bundle."""
    prepared = _preparation(plan, lengths[-1], progress)
    exact_graph = build_graph(
        plan.source.weights,
        output="logit" if plan.source.kind == "cross-encoder" else "pooled",
        pooling=plan.source.pooling,
    ).SerializeToString()
    graphs: list[GraphFile] = []
    judgements: list[Fidelity] = []
    measured: dict[int, object] = {}
    largest_gap = 0.0
    for length in lengths:
        work = staging / "work"
        work.mkdir(exist_ok=True)

        def tell(step: str, row: int, rows: int, length: int = length) -> None:
            progress(f"length {length}: {step}", row, rows)

        output = staging / f"{plan.source.name}-{length}.rknn"
        job = _job(plan, length, prepared)
        built = toolkit.run(job, python, output, work, tell)
        tell("compare with FP32", 0, 0)
        judged, gap = _measure(plan, length, built.outputs, exact_graph)
        words = fidelity.verdict(judged, plan.recipe, plan.source.kind)
        if judged.degraded and not allow_degraded:
            raise ConversionError(_refusal(plan, length, words))
        graphs.append(GraphFile(**_file(output), lengths=(length,)))
        measured[length] = {
            "fidelity": judged.model_dump(exclude_none=True),
            "verdict": words,
            "build_seconds": built.build_seconds,
            "seconds": built.seconds,
            "peak_mb": built.peak_mb,
        }
        judgements.append(judged)
        largest_gap = max(largest_gap, gap)
        shutil.rmtree(work)
    manifest = _manifest(
        plan,
        staging,
        graphs,
        fidelity.worst(judgements),
        measured,
        _self_tests(plan, lengths[0], largest_gap, exact_graph),
    )
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2)
    (staging / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    for file in staging.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return manifest


def _refusal(plan: _Plan, length: int, words: str) -> str:
    better = "fp16-host, which is exact and half the size of fp16"
    advice = (
        f"Try {'hq or ' if plan.recipe.name.startswith('int8') else ''}{better}"
        + ("; or calibrate with texts like yours (--calibration)" if plan.calibration else "")
        if plan.recipe.calibrated
        else "float16 cannot represent this model's activations; run it on the CPU"
    )
    return (
        f"{plan.source.name} at length {length} in {plan.recipe.name} is not faithful enough: "
        f"{words}. Nothing was kept. {advice}. To keep it all the same, marked as degraded: "
        "--allow-degraded."
    )


def _preparation(plan: _Plan, length: int, progress: toolkit.Progress) -> Preparation | None:
    if not (plan.calibration and plan.recipe.equalise and plan.layers):
        return None
    progress("prepare the layers for int8", 0, 0)
    feeds = plan.source.feeds(plan.source.encode(plan.calibration, length))
    return prepare(plan.source.weights, feeds, plan.layers)


def _job(plan: _Plan, length: int, prepared: Preparation | None) -> toolkit.Job:
    graph = build_graph(
        plan.source.weights,
        output=plan.output,
        pooling=plan.source.pooling,
        shape=(1, length),
        host_table=plan.table is not None,
        scales=prepared.scales if prepared else None,
    )
    for name, value in (prepared.constants if prepared else {}).items():
        set_constant(graph, name, value)
    if plan.recipe.table == "int8" and plan.recipe.equalise:
        balance_table(graph, plan.source.weights.arrays["embeddings.word_embeddings.weight"])
    if plan.recipe.mask is not None:
        set_constant(graph, "mask.value", np.asarray(plan.recipe.mask, np.float32))
    return toolkit.Job(
        graph=graph.SerializeToString(),
        inputs=plan.inputs,
        target=plan.target,
        custom_string=json.dumps(_label(plan, length)),
        quantise=plan.recipe.quantise,
        int8_nodes=rf"^l\d+\.({'|'.join(plan.recipe.int8)})\.mm" if plan.recipe.int8 else None,
        int8_table=plan.recipe.table == "int8",
        ranges=prepared.ranges if prepared else {},
        calibration=_calibration(plan, length, prepared),
        evaluation=_arrays(plan, plan.evaluation, length),
    )


def _calibration(
    plan: _Plan, length: int, prepared: Preparation | None
) -> dict[str, NDArray[Any]] | None:
    """What the toolkit runs to find ranges by itself; few rows where it is told the ranges."""
    if plan.calibration is None:
        return None
    arrays = _arrays(plan, plan.calibration, length)
    rows = _ROWS_TO_TRACE if prepared else len(plan.calibration)
    return {name: array[:rows] for name, array in arrays.items()}


def _label(plan: _Plan, length: int) -> dict[str, object]:
    """What a single .rknn file says of itself."""
    return {
        "format": "tars-rag-rknn",
        "model": plan.source.name,
        "kind": plan.source.kind,
        "precision": plan.recipe.name,
        "target": plan.target,
        "toolkit": environment.TOOLKIT_VERSION,
        "length": length,
        "inputs": plan.inputs,
        "output": plan.output,
        "dimension": plan.source.weights.config.hidden,
        "weights_sha256": plan.source.weights_sha256,
        "calibration_sha256": plan.calibration.sha256 if plan.calibration else None,
    }


def _arrays(plan: _Plan, texts: Sample, length: int) -> dict[str, NDArray[Any]]:
    feeds = plan.source.feeds(plan.source.encode(texts, length), length)
    arrays: dict[str, NDArray[Any]] = {
        name: np.concatenate([feed[name] for feed in feeds]) for name in plan.source.inputs
    }
    if plan.table is not None:
        arrays["word_embeddings"] = plan.table[arrays.pop("input_ids")].astype(np.float32)
    return arrays


def _measure(
    plan: _Plan, length: int, outputs: NDArray[np.float32], graph: bytes
) -> tuple[Fidelity, float]:
    """The verdict on one length, and its largest error: of a logit, or 1 - cosine."""
    source = plan.source
    encodings = source.encode(plan.evaluation, length)
    exact = fidelity.reference(graph, source.feeds(encodings))
    threshold = plan.recipe.thresholds[source.kind]
    if source.kind == "cross-encoder":
        logits, exact = outputs.reshape(len(exact)), exact[:, 0]
        judged = fidelity.of_cross_encoder(logits, exact, plan.evaluation.queries, threshold)
        return judged, float(np.nan_to_num(np.abs(logits - exact), nan=np.inf).max())
    if plan.output == "tokens":
        tokens = outputs.reshape(len(exact), length, -1)
        used = [tokens[row, : len(encoding)] for row, encoding in enumerate(encodings)]
        outputs = np.stack([one.mean(0) if source.pooling == "mean" else one[0] for one in used])
    judged = fidelity.of_embedder(outputs.reshape(exact.shape), exact, threshold)
    return judged, 1 - (judged.min_cosine or 0.0)


def _manifest(
    plan: _Plan,
    staging: Path,
    graphs: Sequence[GraphFile],
    judged: Fidelity,
    measured: Mapping[int, object],
    selftest: tuple[SelfTest, ...],
) -> Manifest:
    source = plan.source
    shutil.copyfile(source.directory / TOKENIZER_NAME, staging / TOKENIZER_NAME)
    if plan.table is not None:
        np.save(staging / WORD_TABLE, plan.table)
    return Manifest(
        model=source.name,
        kind=source.kind,
        target=plan.target,
        precision=plan.recipe.name,
        toolkit=environment.TOOLKIT_VERSION,
        inputs=plan.inputs,
        output=plan.output,
        dimension=source.weights.config.hidden,
        max_length=graphs[-1].lengths[-1],
        graphs=tuple(graphs),
        tokenizer=BundleFile(**_file(staging / TOKENIZER_NAME)),
        word_table=None if plan.table is None else BundleFile(**_file(staging / WORD_TABLE)),
        weights_sha256=source.weights_sha256,
        calibration_sha256=plan.calibration.sha256 if plan.calibration else None,
        recipe={
            "name": plan.recipe.name,
            "summary": plan.recipe.summary,
            "int8": list(plan.recipe.int8),
            "table": plan.recipe.table,
            "equalised": bool(plan.recipe.equalise and plan.recipe.int8),
            "pooling": source.pooling,
            "calibration": plan.calibration.source if plan.calibration else None,
            "evaluation": plan.evaluation.source,
            "evaluation_sha256": plan.evaluation.sha256,
            "lengths": {str(length): figures for length, figures in measured.items()},
        },
        fidelity=judged,
        selftest=selftest,
    )


def _self_tests(
    plan: _Plan, shortest: int, largest_gap: float, graph: bytes
) -> tuple[SelfTest, ...]:
    """Two short texts with their FP32 answers; twice the largest measured error is tolerated."""
    source = plan.source
    short = sorted(source.encode(plan.evaluation, shortest), key=len)
    chosen = [short[len(short) // 4], short[len(short) // 2]]
    exact = fidelity.reference(graph, source.feeds(chosen))
    pairs = source.kind == "cross-encoder"
    return tuple(
        SelfTest(
            input_ids=tuple(encoding.ids.tolist()),
            token_type_ids=tuple(encoding.types.tolist()) if pairs else None,
            expected=tuple(answer.tolist()),
            tolerance=max(2 * largest_gap, 0.05 if pairs else 0.001),
        )
        for encoding, answer in zip(chosen, exact, strict=True)
    )


def _file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
