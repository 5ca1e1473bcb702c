"""``tars-rag convert``: make a bundle for the NPU of a published model, and measure it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tars_rag.cli.console import command_line, err, print_json, say
from tars_rag.errors import ConversionError, InvalidInputError
from tars_rag.progress import NamedProgress


def convert(
    context: typer.Context,
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
        typer.Option(help="File of texts that set the int8 ranges (default: bundled)."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", help="File of texts to measure with (default: bundled)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The directory to make. [default: MODEL-TARGET-PRECISION]")
    ] = None,
    toolkit: Annotated[
        str,
        typer.Option(
            help="Version of rknn-toolkit2, that of the board's librknnrt (see tars-rag doctor): "
            "2.3.2, 2.5.0."
        ),
    ] = "2.3.2",
    attention: Annotated[
        str | None,
        typer.Option(
            help="fused: the NPU's one operator for it; split: multiplications and a softmax. "
            "[default: fused; for rk3576 split]"
        ),
    ] = None,
    allow_degraded: Annotated[
        bool,
        typer.Option("--allow-degraded", help="Keep a bundle below the fidelity threshold."),
    ] = False,
    cache_dir: Annotated[Path | None, typer.Option(help="Where models are kept.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Make the toolkit's environment without asking.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Convert a model for the NPU and measure how far its results differ from FP32.

    The vendor's toolkit is installed once in an environment of its own (367 MB), after asking.
    If the result is below the threshold of its precision, nothing is kept.
    """
    from tars_rag.convert.build import convert as build
    from tars_rag.convert.build import verdicts

    with _told_when_interrupted(), _progress() as (progress, paused):

        def ask(directory: Path) -> None:
            if not yes:
                with paused():
                    _ask(directory, toolkit, command_line(context, "--yes"))

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
            before_making=ask,
            toolkit=toolkit,
            attention=attention,  # type: ignore[arg-type]  # checked there
        )
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude_none=True))
        return
    for line in verdicts(manifest):
        say(line)
    for remark in manifest.remarks:
        say(remark, style="yellow")
    for file in manifest.files:
        say(f"{file.bytes / 2**20:8.1f} MiB  {file.name}")
    if manifest.fidelity.degraded:
        say("degraded: below the threshold, kept on demand; it says so when loaded", style="yellow")
    typer.echo(directory)


def _ask(directory: Path, toolkit: str, command: str) -> None:
    """Ask whether the toolkit may be installed.

    Raises:
        ConversionError: It may not, or there is no terminal to ask on.
    """
    from tars_rag.convert.environment import DOWNLOAD_MB, SIZE_MB

    needed = (
        f"Converting needs the vendor's rknn-toolkit2 {toolkit} in an environment of its "
        f"own: {DOWNLOAD_MB} MB to fetch, {SIZE_MB} MB in {directory}, once."
    )
    if not sys.stdin.isatty():
        msg = f"{needed} To allow that: {command}"
        raise ConversionError(msg)
    if not typer.confirm(f"{needed} Make it?", err=True):
        msg = f"Nothing was installed, so nothing was converted. To go on: {command}"
        raise ConversionError(msg)


@contextmanager
def _told_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted: nothing was kept. The same command starts again from the beginning.")
        raise


@contextmanager
def _progress() -> Iterator[tuple[NamedProgress, Callable[[], AbstractContextManager[None]]]]:
    """Show progress: a spinner on a terminal, otherwise one line for each new step.

    Yields:
        What to call with each step, and a context manager during which nothing is shown, so that
        the user can be asked something.
    """
    if err.is_terminal:
        with err.status("starting") as status:

            @contextmanager
            def paused() -> Iterator[None]:
                status.stop()
                yield
                status.start()

            yield lambda step, n, of: status.update(f"{step} {n}/{of}" if of else step), paused
        return
    before = ""

    def line(step: str, *_: int | None) -> None:
        nonlocal before
        if step != before:
            say(step)
        before = step

    yield line, nullcontext


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        msg = f"--lengths {text} is not a list of numbers. Example: --lengths 64,128,256"
        raise InvalidInputError(msg) from None
