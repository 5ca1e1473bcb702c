"""From a model's name to a bundle on disk whose fidelity was measured, or an error."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import numpy as np

from tars_rag.convert import environment, fidelity, toolkit
from tars_rag.convert.activations import check_range, largest_activation
from tars_rag.convert.known_answers import known_answers
from tars_rag.convert.operators import compiled_operators
from tars_rag.convert.plan import Plan
from tars_rag.convert.process import termination_raises
from tars_rag.convert.recipes import Recipe
from tars_rag.convert.recipes import recipe as recipe_named
from tars_rag.convert.source import open_source
from tars_rag.convert.staging import staged
from tars_rag.convert.texts import check_disjoint, sample
from tars_rag.errors import ConversionError, InvalidInputError
from tars_rag.files import sha256_of
from tars_rag.models.bert_graph import build_graph
from tars_rag.models.tokenizer import TOKENIZER_NAME
from tars_rag.progress import NamedProgress
from tars_rag.runtimes.npu.library import TOOLKITS
from tars_rag.runtimes.npu.manifest import (
    MANIFEST_NAME,
    BundleFile,
    Fidelity,
    GraphFile,
    Manifest,
    SelfTest,
)

TARGETS: Final = ("rk3588", "rk3576", "rk3568", "rk3566", "rk3562")
Attention = Literal["fused", "split"]
SPLIT_TARGETS: Final = ("rk3576",)
"""There the one operator for an attention was reported to give zeros (rknn-toolkit2 issue 574)."""
LENGTHS: Final = (32, 64, 96, 128, 192, 256)
WORD_TABLE: Final = "word_embeddings.npy"


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
    progress: NamedProgress = lambda *_: None,
    before_making: Callable[[Path], None] = lambda _: None,
    toolkit: str = environment.DEFAULT_TOOLKIT,
    attention: Attention | None = None,
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
        progress: Told the step, and how many rows of how many, where there are rows.
        before_making: Called with its directory before the toolkit's environment is made; may
            raise, and then nothing is made.
        toolkit: Version of rknn-toolkit2, that of the board's librknnrt: one of `TOOLKITS`.
        attention: ``fused``: the chip's one operator for it; ``split``: multiplications and a
            softmax. None: split for `SPLIT_TARGETS`, fused for the others.

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
    if toolkit not in TOOLKITS:
        msg = f"Toolkit {toolkit!r} cannot be used. Choose one of: {', '.join(TOOLKITS)}."
        raise InvalidInputError(msg)
    if attention not in (None, *get_args(Attention)):
        msg = f"attention={attention!r} is not valid. Use one of: {', '.join(get_args(Attention))}."
        raise InvalidInputError(msg)
    attention = attention or ("split" if target in SPLIT_TARGETS else "fused")
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
    if row.int8 and source.weights.config.rotary:
        msg = (
            f"{row.name} is not to be had for {source.name}: int8 layers are worked out for BERT's "
            f"encoder, and this is a {source.weights.config.architecture}. Exact, and half the "
            f"size of fp16: tars-rag convert {model} --precision fp16-host"
        )
        raise ConversionError(msg)
    plan = Plan(
        source=source,
        recipe=row,
        target=target,
        toolkit_version=toolkit,
        calibration=sample(source.kind, "calibration", calibration) if row.calibrated else None,
        evaluation=sample(source.kind, "evaluation", evaluation),
        table=source.word_table() if row.table == "host" else None,
        split_attention=attention == "split",
    )
    if plan.calibration:
        check_disjoint(plan.calibration, plan.evaluation)
    with termination_raises():
        python = environment.toolkit_python(
            progress=progress, before_making=before_making, toolkit=toolkit
        )
        with staged(out) as staging:
            manifest = _bundle(plan, lengths, python, staging, allow_degraded, progress)
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


def _bundle(
    plan: Plan,
    lengths: Sequence[int],
    python: Path,
    staging: Path,
    allow_degraded: bool,
    progress: NamedProgress,
) -> Manifest:
    """Build, measure and judge every length, then write the rest of the bundle."""
    progress("look at the range of the activations", 0, None)
    texts = plan.source.feeds(plan.source.encode(plan.evaluation, lengths[-1]))
    if allow_degraded:
        largest = largest_activation(plan.source.weights, texts)[1]
    else:
        largest = check_range(plan.source.name, plan.source.weights, texts)
    prepared = plan.prepare(lengths[-1], progress)
    exact_graph = build_graph(
        plan.source.weights,
        output="logit" if plan.source.kind == "cross-encoder" else "pooled",
        pooling=plan.source.pooling,
    ).SerializeToString()
    graphs: list[GraphFile] = []
    judgements: list[Fidelity] = []
    measured: dict[int, object] = {}
    largest_gap = 0.0
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.source.name)
    for length in lengths:
        work = staging / "work"
        work.mkdir(exist_ok=True)

        def tell(step: str, row: int, rows: int | None, length: int = length) -> None:
            progress(f"length {length}: {step}", row, rows)

        output = staging / f"{stem}-{length}.rknn"
        job = plan.job(length, prepared)
        built = toolkit.run(job, python, output, work, tell)
        tell("compare with FP32", 0, None)
        judged, gap = plan.measure(length, built.outputs, exact_graph)
        words = fidelity.verdict(judged, plan.recipe, plan.source.kind)
        if judged.degraded and not allow_degraded:
            raise ConversionError(_refusal(plan, length, words))
        operators = compiled_operators(
            built.log,
            plan.source.weights.config.layers,
            split_attention=plan.split_attention,
        )
        graphs.append(GraphFile(**_file(output), lengths=(length,), operators=operators))
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
        largest,
        known_answers(plan, lengths, largest_gap, exact_graph),
    )
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2)
    (staging / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return manifest


def _refusal(plan: Plan, length: int, words: str) -> str:
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


def _manifest(
    plan: Plan,
    staging: Path,
    graphs: Sequence[GraphFile],
    judged: Fidelity,
    measured: Mapping[int, object],
    largest: float,
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
        toolkit=plan.toolkit_version,
        inputs=plan.inputs,
        output=plan.output,
        dimension=source.dimension,
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
            "attention": "split" if plan.split_attention else "fused",
            "calibration": plan.calibration.source if plan.calibration else None,
            "evaluation": plan.evaluation.source,
            "evaluation_sha256": plan.evaluation.sha256,
            "largest_activation": largest,
            "lengths": {str(length): figures for length, figures in measured.items()},
        },
        fidelity=judged,
        selftest=selftest,
    )


def _file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
