"""``tars-rag npu``: what the NPU needs on this machine besides the package."""

from __future__ import annotations

from typing import Annotated

import typer

from tars_rag.cli.console import say

app = typer.Typer(
    no_args_is_help=True, help="What the NPU needs on this machine besides the package."
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def install(
    python: Annotated[
        str | None,
        typer.Option(help="Which Python: 3.10 to 3.12, or the path of one. [default: 3.12]"),
    ] = None,
    wheel: Annotated[
        str | None,
        typer.Option(help="Version of rknn-toolkit-lite2. [default: that of librknnrt here]"),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew where there is one that works.")
    ] = False,
) -> None:
    """Make a Python of its own for the NPU, for machines whose Python has no wheel of it.

    The vendor's rknn-toolkit-lite2 exists for Python 3.10 to 3.12. tars-rag runs on newer ones too:
    only the processes that drive the NPU are run by the Python that is made here, with uv if it is
    installed (it fetches a Python where there is none), else with one that is found.
    """
    from tars_rag.runtimes.npu import interpreter
    from tars_rag.runtimes.npu.library import PUBLIC_VERSION, TOOLKITS
    from tars_rag.runtimes.npu.probe import probe

    here = probe().library_version
    version = wheel or (here if here in TOOLKITS else PUBLIC_VERSION)
    made = interpreter.install(version, lambda step, *_: say(step), again=again, python=python)
    of = ".".join(map(str, made.version))
    say(f"rknn-toolkit-lite2 {made.wheel} for Python {of}: used from now on. Look: tars-rag doctor")
    typer.echo(made.path)
