"""The texts a conversion needs: to calibrate with, and, disjoint from them, to measure with.

A bundled sample of both is part of the package: prose, questions, code, logs, numbers, single
words and a dozen languages, because one scale per tensor has to serve whatever people embed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, Literal

from tars_rag.errors import InvalidInputError
from tars_rag.runtimes.npu.manifest import ModelKind

Purpose = Literal["calibration", "evaluation"]

LEAST: Final = 16
"""Fewer texts or pairs than this say nothing; the bundled samples have more than 64."""

_MOST_CALIBRATION: Final = 256
_PARAGRAPH: Final = 40
_PASSAGES_PER_QUERY: Final = {"calibration": 5, "evaluation": 16}
_FORMATS: Final = {
    "embedder": 'one text a line, or JSONL with "text" (and "title")',
    "cross-encoder": 'JSONL with "query" and "text" or "passages", "query<TAB>passage" a line, '
    "or one text a line",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts, or (query, passage) pairs, and where they came from.

    Attributes:
        texts: For an embedder: single texts. For a cross-encoder: the passages.
        queries: For a cross-encoder: the query of each passage; empty for an embedder.
        source: ``bundled`` or the file's name.
    """

    texts: tuple[str, ...]
    queries: tuple[str, ...]
    source: str

    @property
    def sha256(self) -> str:
        """Of the texts as UTF-8 JSON: equal for equal texts, whatever the file looked like."""
        return sha256(json.dumps([self.texts, self.queries]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.texts)


def sample(kind: ModelKind, purpose: Purpose, path: Path | None = None) -> Sample:
    """The texts or pairs in a file, or the bundled ones.

    Raises:
        InvalidInputError: The file is missing, empty, not UTF-8 text, of an unknown layout, or
            has too few texts.
    """
    if path is None:
        lines = _bundled(f"{purpose}.txt")
        if kind == "embedder":
            return Sample(tuple(lines), (), "bundled")
        return _graded(lines, _bundled(f"{purpose}-queries.txt"), "bundled", purpose)
    lines = _read(path, purpose)
    found = _parse(path, lines, kind, purpose)
    if len(found) < LEAST:
        things = "texts" if kind == "embedder" else "pairs"
        msg = (
            f"{path} has {len(found)} {things}; {purpose} needs {LEAST} or more. Add some "
            f"({_FORMATS[kind]}), or leave the option out to use the bundled ones."
        )
        raise InvalidInputError(msg)
    if kind == "cross-encoder" and purpose == "evaluation" and _no_choice(found):
        msg = (
            f"{path} has one passage for each query; a ranking needs several. Give the same query "
            "with two passages or more (ten say much more)."
        )
        raise InvalidInputError(msg)
    return _thinned(found) if purpose == "calibration" else found


def check_disjoint(calibration: Sample, evaluation: Sample) -> None:
    """Held-out texts must be held out.

    Raises:
        InvalidInputError: A text or pair is in both.
    """

    def entries(of: Sample) -> set[tuple[str, str]]:
        return set(zip(of.queries or [""] * len(of), of.texts, strict=True))

    if common := entries(calibration) & entries(evaluation):
        msg = (
            f"{len(common)} texts of {evaluation.source} are in {calibration.source} too. What is "
            "calibrated on cannot be measured on: give --eval other texts than --calibration."
        )
        raise InvalidInputError(msg)


def _no_choice(given: Sample) -> bool:
    return len(set(given.queries)) == len(given)


def _thinned(given: Sample) -> Sample:
    """At most `_MOST_CALIBRATION`, evenly taken: more only takes longer."""
    if len(given) <= _MOST_CALIBRATION:
        return given
    rows = [row * len(given) // _MOST_CALIBRATION for row in range(_MOST_CALIBRATION)]
    queries = tuple(given.queries[row] for row in rows) if given.queries else ()
    return Sample(tuple(given.texts[row] for row in rows), queries, given.source)


def _bundled(name: str) -> list[str]:
    return (files(__package__) / "texts" / name).read_text(encoding="utf-8").splitlines()


def _read(path: Path, purpose: Purpose) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        msg = f"The {purpose} file {path} cannot be read: {error.strerror}. Check the path."
        raise InvalidInputError(msg) from error
    except UnicodeDecodeError as error:
        msg = (
            f"The {purpose} file {path} is not UTF-8 text ({error.reason} at byte {error.start}). "
            "Give a text or JSONL file, saved as UTF-8."
        )
        raise InvalidInputError(msg) from error
    if "\0" in text:
        msg = f"The {purpose} file {path} is binary, not text. Give a text or JSONL file."
        raise InvalidInputError(msg)
    # Not splitlines: that also splits at characters which are part of a text, such as U+2028.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    if not any(lines):
        msg = f"The {purpose} file {path} is empty. Put one text a line, or leave the option out."
        raise InvalidInputError(msg)
    return lines


def _parse(path: Path, lines: list[str], kind: ModelKind, purpose: Purpose) -> Sample:
    """Every line the same layout: JSON if the first is, else pairs if all have a tab, else text."""
    filled = [(number, line) for number, line in enumerate(lines, 1) if line]
    texts: list[str] = []
    queries: list[str] = []
    if filled[0][1].startswith("{"):
        for number, line in filled:
            try:
                found = _record(json.loads(line), kind)
            except (ValueError, TypeError, KeyError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                msg = f"{path}, line {number}: {reason}. Expected: {_FORMATS[kind]}."
                raise InvalidInputError(msg) from error
            for query, text in found:
                queries.append(query)
                texts.append(text)
    elif kind == "cross-encoder" and all("\t" in line for _, line in filled):
        for _, line in filled:
            query, _, text = line.partition("\t")
            queries.append(query.strip())
            texts.append(text.strip())
    elif kind == "cross-encoder":
        plain = [line for _, line in filled]
        made = [" ".join(_sentences(line)[0].split()[:12]) for line in plain]
        return _graded(plain, made, path.name, purpose)
    else:
        texts = [line for _, line in filled]
    return Sample(tuple(texts), tuple(queries) if kind == "cross-encoder" else (), path.name)


def _record(raw: Any, kind: ModelKind) -> list[tuple[str, str]]:
    """The (query, text) pairs of one JSON line; the query is empty for an embedder."""
    if not isinstance(raw, dict):
        msg = "is not a JSON object"
        raise TypeError(msg)
    if kind == "embedder":
        parts = [raw.get("title"), raw["text"]]
        return [("", " ".join(part.strip() for part in map(_string, parts) if part.strip()))]
    passages = raw["passages"] if "passages" in raw else [raw["text"]]
    return [(_string(raw["query"]), _string(passage)) for passage in passages]


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"{value!r} is not a string"
        raise TypeError(msg)
    return value


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) ", text)


def _graded(lines: list[str], queries: list[str], source: str, purpose: Purpose) -> Sample:
    """Pairs whose relevance is graded: a query with its paragraph, parts of it, and others.

    The n-th query belongs to the n-th paragraph (40 words or more; where a file has no such, any
    line). Only whole, half and single sentences give a ranking worth keeping: sixteen passages
    that have nothing to do with the query are all scored alike.
    """
    long = [line for line in lines if len(line.split()) >= _PARAGRAPH]
    paragraphs = long if len(long) >= len(queries) or source == "bundled" else lines
    each = _PASSAGES_PER_QUERY[purpose]
    texts: list[str] = []
    asked: list[str] = []
    for number, (query, paragraph) in enumerate(zip(queries, paragraphs, strict=False)):
        words = paragraph.split()
        half = len(words) // 2
        parts = [paragraph, " ".join(words[:half]), " ".join(words[half:]), *_sentences(paragraph)]
        others = [paragraphs[(number + step) % len(paragraphs)] for step in range(1, each)]
        # Of both kinds, in turn, so that a few are as varied as many.
        mixed = [text for two in zip_longest(parts[:8], others) for text in two if text]
        passages = list(dict.fromkeys(mixed))[:each]
        texts += passages
        asked += [query] * len(passages)
    return Sample(tuple(texts), tuple(asked), source)
