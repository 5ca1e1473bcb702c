"""What the word index finds in many languages, and what its analysis costs.

    python benchmarks/words.py [--set tests/data/multilingual.txt] [--data DIR]

The passages of all languages of the set are in one index, so that each question has more than a
hundred passages to miss. "right": the language's own row, where there is one. With --data, a
collection in BEIR's layout (English), nDCG@10 of the words alone by row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tars_rag.bench.evaluate import load_collection, mean, score
from tars_rag.retrieval.indexes.words.analysers import analyser
from tars_rag.retrieval.indexes.words.languages import LANGUAGES
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage

SET = Path(__file__).parents[1] / "tests" / "data" / "multilingual.txt"


def read(path: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    code = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("## "):
            code = line[3:]
            found[code] = []
        elif line and not line.startswith("#"):
            passage, question = line.split(" = ")
            found[code].append((passage, question))
    return found


@contextmanager
def index_of(passages: Sequence[Passage], language: str) -> Iterator[LexicalIndex]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LexicalIndex(Path(folder) / "lexical", language=language) as index,
    ):
        index.apply((), passages)
        yield index


def recall(index: LexicalIndex, pairs: Sequence[tuple[str, str]], k: int) -> float:
    found = [p in [key for key, _ in index.search(question, k)] for p, question in pairs]
    return sum(found) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", type=Path, default=SET)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    pairs = read(arguments.set)
    passages = [Passage(p, p) for found in pairs.values() for p, _ in found]
    print("| recall@5 (@1) | right | `multi` | `en` | `none` |")
    print("|---|---|---|---|---|")
    for code, asked in pairs.items():
        cells = []
        for language in (code, "multi", "en", "none"):
            if language not in LANGUAGES:
                cells.append("-")
                continue
            with index_of(passages, language) as index:
                cells.append(f"{recall(index, asked, 5):.1f} ({recall(index, asked, 1):.1f})")
        print(f"| {code} | {' | '.join(cells)} |", flush=True)
    if arguments.data is None:
        return
    collection = load_collection(arguments.data)
    print("\n| English collection | nDCG@10 | recall@100 | analysis, µs a passage |")
    print("|---|---|---|---|")
    for language in ("en", "multi", "none"):
        with index_of(collection.passages, language) as index:
            scores = mean(
                [
                    score([i for i, _ in index.search(text, 100)], collection.judgements[key])
                    for key, text in collection.queries.items()
                ]
            )
        read_by = analyser(language)
        began = time.perf_counter()
        for passage in collection.passages:
            read_by.passage_terms(passage.text)
        each = (time.perf_counter() - began) / len(collection.passages) * 1e6
        print(f"| `{language}` | {scores.ndcg_10:.4f} | {scores.recall_100:.4f} | {each:.0f} |")


if __name__ == "__main__":
    main()
