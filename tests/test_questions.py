"""The questions of docs/questions lead to the pages that answer them, by words alone."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROW = re.compile(r"(?m)^\| (?P<question>[^|]+) \| \[[^]]+\]\(\.\./(?P<page>[\w-]+\.md)\) \|$")
QUESTIONS = ROW.findall((DOCS / "questions" / "README.md").read_text("utf-8"))


def sections() -> list[Passage]:
    """Every page of docs by its sections, each with the title of its page."""
    passages = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text("utf-8")
        title = text.partition("\n")[0]
        for number, section in enumerate(re.split(r"(?m)^(?=#{2,3} )", text)):
            passages.append(Passage(f"{path.name}#{number}", f"{title}\n{section}"))
    return passages


def test_questions_lead_to_their_pages(tmp_path: Path) -> None:
    assert len(QUESTIONS) == len(dict(QUESTIONS)) == 30
    wrong = {}
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert(sections())
        for question, page in QUESTIONS:
            hits = store.search(question, 30, "lexical")
            pages = list(dict.fromkeys(hit.id.partition("#")[0] for hit in hits))
            if page not in pages[:3]:
                wrong[question] = pages[:5]
    assert not wrong
