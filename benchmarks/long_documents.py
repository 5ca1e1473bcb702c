"""Passages of long documents: our splitter against pieces cut by hand, and fixed windows.

    python benchmarks/long_documents.py cranfield [--skip 700] [--abstracts 700]

The abstracts of a collection in BEIR's layout are joined, 20 to a Markdown document, each below a
heading with its title. A passage counts for the abstract that most of it comes from; judgements are
per abstract. Where semantic-text-splitter is installed, its passages (what `index` used before) are
measured too.
Printed is nDCG@10 over the queries that have a relevant abstract among those that were taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tars_rag import Embedder, HybridStore, Passage
from tars_rag.bench.evaluate import load_collection, mean, score
from tars_rag.retrieval.passage import CONTEXT
from tars_rag.splitting.splitter import Splitter

_EACH, _WINDOW = 20, 254
Owned = tuple[str, Passage]  # of which abstract
Spans = list[tuple[int, int, str]]


def documents(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Spans]]:
    for first in range(0, len(rows), _EACH):
        some, spans = rows[first : first + _EACH], []
        text = f"# Reports {first + 1} to {first + len(some)}\n\n"
        for row in some:
            start = len(text)
            text += f"## {' '.join(row['title'].split())}\n\n{row['text'].strip()}\n\n"
            spans.append((start, len(text), row["_id"]))
        yield text, spans


def owner(spans: Spans, start: int, end: int) -> str:
    return max(spans, key=lambda span: min(span[1], end) - max(span[0], start))[2]


def by_hand(rows: list[dict[str, Any]], embedder: Embedder) -> Iterator[Owned]:
    for n, row in enumerate(rows):
        yield row["_id"], Passage(str(n), f"{row['title']} {row['text']}")


def ours(rows: list[dict[str, Any]], embedder: Embedder) -> Iterator[Owned]:
    splitter = Splitter(embedder.tokenizer_path, embedder.passage_length)
    for number, (text, spans) in enumerate(documents(rows)):
        for n, chunk in enumerate(splitter.split(text, "markdown")):
            passage = Passage(f"{number}#{n}", chunk.text, {CONTEXT: chunk.context})
            yield owner(spans, chunk.start, chunk.end), passage


def windows(rows: list[dict[str, Any]], embedder: Embedder) -> Iterator[Owned]:
    tokenizer = Tokenizer.from_file(str(embedder.tokenizer_path))
    tokenizer.no_truncation()
    for number, (text, spans) in enumerate(documents(rows)):
        places = tokenizer.encode(text, add_special_tokens=False).offsets
        for n in range(0, len(places), _WINDOW):
            start, end = places[n][0], places[min(n + _WINDOW, len(places)) - 1][1]
            yield owner(spans, start, end), Passage(f"{number}#{n}", text[start:end])


def before(rows: list[dict[str, Any]], embedder: Embedder) -> Iterator[Owned]:
    from semantic_text_splitter import MarkdownSplitter

    tokenizer = Tokenizer.from_file(str(embedder.tokenizer_path))
    tokenizer.no_truncation()
    splitter = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, _WINDOW, overlap=32)
    for number, (text, spans) in enumerate(documents(rows)):
        for n, (start, piece) in enumerate(splitter.chunk_indices(text)):
            yield owner(spans, start, start + len(piece)), Passage(f"{number}#{n}", piece)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--abstracts", type=int, default=None, help="only the first so many")
    parser.add_argument("--skip", type=int, default=0, help="so many before them")
    given = parser.parse_args()
    collection = load_collection(given.collection)
    lines = (given.collection / "corpus.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if (row["title"] + row["text"]).strip()]
    rows = rows[given.skip :][: given.abstracts]
    cuts = [by_hand, ours, windows]
    if find_spec("semantic_text_splitter"):
        cuts.insert(2, before)
    taken = {row["_id"] for row in rows}
    judged = {
        query: {key: grade for key, grade in grades.items() if key in taken}
        for query, grades in collection.judgements.items()
    }
    judged = {
        query: grades for query, grades in judged.items() if max(grades.values(), default=0) > 0
    }
    with Embedder() as embedder:
        asked = embedder.embed([collection.queries[query] for query in judged])
        for cut in cuts:
            made = list(cut(rows, embedder))
            owners = {passage.id: key for key, passage in made}
            found = {}
            with tempfile.TemporaryDirectory() as folder, HybridStore(folder, embedder) as store:
                store.upsert([passage for _, passage in made])
                for strategy in ("naive", "lexical", "hybrid"):
                    scores = []
                    for (query, grades), vector in zip(judged.items(), asked, strict=True):
                        text = collection.queries[query]
                        hits = store.search(text, 100, strategy, vector=vector)
                        ranking = list(dict.fromkeys(owners[hit.id] for hit in hits))
                        scores.append(score(ranking, grades))
                    found[strategy] = round(mean(scores).ndcg_10, 4)
            print(f"{cut.__name__:8} {len(made):5} passages", found, flush=True)


if __name__ == "__main__":
    main()
