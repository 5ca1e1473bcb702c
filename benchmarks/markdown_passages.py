"""Passages of real Markdown files: how many are cut inside a word, headings alone, or tiny.

    python benchmarks/markdown_passages.py DIR [DIR ...]

All ``*.md`` files below the directories, for example site-packages of an environment, are cut as
``tars-rag index`` cuts them for all-MiniLM-L6-v2; of files with the same content, one. Inside a
word means: no white space on either side of an end, in a script that has spaces. Headings alone and
tiny (below 40 characters) count in files that hold more than that.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tars_rag import Embedder
from tars_rag.errors import InvalidInputError
from tars_rag.ingest.files import read_text
from tars_rag.ingest.markdown_file import front_matter
from tars_rag.splitting.blocks import markdown_blocks
from tars_rag.splitting.splitter import Chunk, Splitter

_FEW = 40  # characters
_JOINED = re.compile(r"[\w'\u2019.,/+#-]{2}")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff]")


def inside_a_word(text: str, at: int) -> bool:
    around = text[max(at - 1, 0) : at + 1]
    return bool(0 < at < len(text) and _JOINED.match(around) and not _UNSPACED.search(around))


def heading_only(text: str) -> bool:
    return {block.kind for block in markdown_blocks(text)} <= {"heading", "rule"}


def faults(text: str, chunks: list[Chunk]) -> tuple[int, int, int]:
    """How many of a text's passages are cut inside a word, headings alone, tiny."""
    cut = sum(inside_a_word(text, at) for chunk in chunks for at in (chunk.start, chunk.end))
    alone = sum(heading_only(chunk.text) for chunk in chunks) if not heading_only(text) else 0
    tiny = sum(len(chunk.text) < _FEW for chunk in chunks) if len(text.strip()) >= _FEW else 0
    return cut, alone, tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    files = [file for top in parser.parse_args().directories for file in sorted(top.rglob("*.md"))]
    with Embedder() as embedder:
        splitter = Splitter(embedder.tokenizer_path, embedder.passage_length)
    seen: set[str] = set()
    passages = 0
    found = [0, 0, 0]
    for file in files:
        try:
            text = read_text(file)
        except InvalidInputError as error:
            print(f"left out: {error}")
            continue
        if text in seen:
            continue
        seen.add(text)
        chunks = splitter.split(text, "markdown", begin=front_matter(text)[1])
        of_file = faults(text, chunks)
        if any(of_file):
            print(file, *of_file)
        passages += len(chunks)
        found = [a + b for a, b in zip(found, of_file, strict=True)]
    cut, alone, tiny = found
    print(
        f"{len(seen)} files, {passages} passages: {cut} cut inside a word, {alone} headings alone, "
        f"{tiny} below {_FEW} characters ({100 * tiny / max(passages, 1):.2f} %)"
    )


if __name__ == "__main__":
    main()
