"""``tars-rag convert``: a published model into a bundle for the NPU, with measured fidelity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tars_rag.cli.console import err, print_json, say
from tars_rag.errors import InvalidInputError
from tars_rag.progress import NamedProgress


def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="A catalogue name, or a directory with model.safetensors, config.json and "
            "tokenizer.json."
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(help="fp16, fp16-host, int8-table, hq, hq-host, int8, int8-host, naive-int8."),
    ] = "fp16-host",
    lengths: Annotated[
        str, typer.Option(help="Sequence lengths in tokens, separated by commas.")
    ] = "32,64,96,128,192,256",
    target: Annotated[str, typer.Option(help="rk3588, rk3576, rk3568, rk3566, rk3562.")] = "rk3588",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Texts that set the int8 ranges, instead of the bundled ones."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", help="Texts to measure with (one a line), instead of the bundled ones."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The directory to make. [default: MODEL-TARGET-PRECISION]")
    ] = None,
    allow_degraded: Annotated[
        bool,
        typer.Option("--allow-degraded", help="Keep a bundle below the fidelity threshold."),
    ] = False,
    cache_dir: Annotated[Path | None, typer.Option(help="Where models are kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Convert a model for the NPU and measure what that costs.

    The vendor's toolkit is installed once, apart from your environment. A result below the
    precision's fidelity threshold is not kept.
    """
    from tars_rag.convert.build import convert as build
    from tars_rag.convert.build import verdicts

    with _told_when_interrupted(), _progress() as progress:
        directory, manifest = build(
            model,
            precision=precision,
            lengths=_numbers(lengths),
            target=target,
            calibration=calibration,
            evaluation=evaluation,
            out=out,
            allow_degraded=allow_degraded,
            cache_dir=cache_dir,
            progress=progress,
        )
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude_none=True))
        return
    for line in verdicts(manifest):
        say(line)
    for file in manifest.files:
        say(f"{file.bytes / 2**20:8.1f} MiB  {file.name}")
    if manifest.fidelity.degraded:
        say("degraded: below the threshold, kept on demand; it says so when loaded", style="yellow")
    typer.echo(directory)


@contextmanager
def _told_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted: nothing was kept. The same command starts again from the beginning.")
        raise


@contextmanager
def _progress() -> Iterator[NamedProgress]:
    """A spinner for a person; for a log, one line for each new step."""
    if err.is_terminal:
        with err.status("starting") as status:
            yield lambda step, done, of: status.update(f"{step} {done}/{of}" if of else step)
        return
    before = ""

    def line(step: str, *_: int | None) -> None:
        nonlocal before
        if step != before:
            say(step)
        before = step

    yield line


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        msg = f"--lengths {text} is not a list of numbers. Example: --lengths 64,128,256"
        raise InvalidInputError(msg) from None
