"""What the commands that read files, `index` and `embed`, are told about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ChunkTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most tokens of a chunk (default: as many as the model reads)."),
]
OverlapOption = Annotated[
    int, typer.Option(min=0, help="Tokens that a chunk repeats from the one before.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave out, as in a .gitignore; may be repeated."),
]
OcrOption = Annotated[
    bool, typer.Option("--ocr", help="Read pages that are pictures, with tesseract.")
]
MaxFileOption = Annotated[float, typer.Option(min=0.001, help="Largest document that is read.")]
MaxPagesOption = Annotated[int, typer.Option(min=1, help="Most pages of a document.")]
MaxSecondsOption = Annotated[
    float, typer.Option(min=0.1, help="Longest time that a document may take.")
]
RootOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Name files as seen from this directory.")
]
