"""Passages that read: where a text is cut, and what goes with each piece."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage
from tars_rag.ingest.chunks import _headings
from tars_rag.retrieval.passage import CONTEXT
from tars_rag.splitting.blocks import markdown_blocks
from tars_rag.splitting.splitter import Chunk, Form, Splitter
from tiny_models import write_model

_PIECES = (
    "# H\n", "## sub\n", "word ", "Sentence one. ", "Why, 3.5 m? ", "\n\n", "- item\n", "1. one\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n", "```\ncode\n\nx\n```\n", "> quoted\n", "x" * 130,
    "東京は日本の首都です。", "it's ", "\n", "---\n", "[a]: http://b\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5) / "tokenizer.json"


@pytest.fixture(scope="module")
def splitters(tokenizer: Path) -> list[Splitter]:
    return [Splitter(tokenizer, room, overlap=over) for room, over in ((66, 8), (14, 3), (10, 0))]


def words(n: int, seed: int = 0) -> str:
    names = ["board", "cooling", "fan", "music", "piano", "river", "kitchen", "sleep"]
    return " ".join(names[(i * (seed + 3) + i // 7) % len(names)] for i in range(n))


def sentences(n: int, length: int = 6) -> str:
    return " ".join(f"{words(length, seed).capitalize()}." for seed in range(n))


@settings(deadline=None, max_examples=80)
@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
        st.text("#-=` ~>\n\r<!a1é\u2028|:. ", max_size=120),
        st.lists(st.sampled_from(_PIECES), max_size=40).map("".join),
    ),
    form=st.sampled_from(["plain", "markdown", "code"]),
    which=st.integers(0, 2),
    title=st.sampled_from(["", "board", "a title of things that matter to no one"]),
)
def test_any_text_is_kept_whole_in_pieces_that_fit(
    splitters: list[Splitter], text: str, form: Form, which: int, title: str
) -> None:
    splitter, at = splitters[which], 0
    for chunk in splitter.split(text, form, title=title):
        own = text[chunk.start : chunk.end]
        assert own.strip()
        assert chunk.text.endswith(own)
        assert not text[at : chunk.start].strip()
        at = max(at, chunk.end)
        size = splitter.count(chunk.text) + splitter.count(chunk.context)
        assert size <= (64, 12, 8)[which]
    assert not text[at:].strip()


def test_no_cut_is_inside_a_word_or_a_sentence_that_fits(splitters: list[Splitter]) -> None:
    text = "It's hard, e.g. for Dr. J. Smith, to argue 3.5 times. " * 3 + sentences(40)
    chunks = splitters[0].split(f"{text}\n\n{words(200)}")
    assert len(chunks) > 6
    for chunk in chunks:
        if chunk.end < len(text):
            assert chunk.text.endswith(".")
            assert chunk.text[0].isupper()
            assert not chunk.text.endswith(("Dr.", "J.", "e.g."))
        assert f" {chunk.text.split()[-1]} " in f" {text} {words(200)} "


def test_what_is_repeated_begins_at_a_sentence(tokenizer: Path) -> None:
    text = sentences(30, 5)
    chunks = Splitter(tokenizer, 42, overlap=18).split(text)
    for before, chunk in pairwise(chunks):
        assert chunk.start < before.end
        assert text[chunk.start - 2 : chunk.start] == ". "


def test_a_heading_is_never_alone(splitters: list[Splitter]) -> None:
    body = sentences(9)
    text = f"# One\n\n## Two\n\n{body}\n\n### Three\n\n{body}\n\n## Last\n"
    for chunk in splitters[0].split(text, "markdown"):
        assert any(not line.startswith("#") for line in chunk.text.splitlines() if line)


def test_the_pages_of_this_project_read_well(tokenizer: Path) -> None:
    splitter, chunks = Splitter(tokenizer, 514, overlap=32), 0
    for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        found = splitter.split(text, "markdown")
        chunks += len(found)
        for chunk in found:
            assert {block.kind for block in markdown_blocks(chunk.text)} != {"heading"}
            assert len(chunk.text) >= 40 or len(text) < 40
            for at in (chunk.start, chunk.end):
                assert not re.match(r"[\w'][\w']", text[at - 1 : at + 1] if at else "")
    assert chunks > 100


def test_headings_and_title_stand_beside_the_text(splitters: list[Splitter]) -> None:
    text = f"# One\n\n{sentences(2)}\n\n## Two\n\n{sentences(14)}\n"
    chunks = splitters[0].split(text, "markdown", title="Manual")
    assert [(c.heading, c.context) for c in chunks[:3]] == [
        ("One", "Manual"),
        ("One > Two", "Manual"),  # not "One", which all the text stands below
        ("One > Two", "Manual > One > Two"),
    ]
    assert all(text[c.start : c.end] == c.text for c in chunks)
    chunks = splitters[0].split(f"{text}\n# Three\n\n{sentences(2)}", "markdown")
    assert [(c.heading, c.context) for c in chunks[1:3]] == [
        ("One > Two", "One"),
        ("One > Two", "One > Two"),
    ]
    assert (chunks[-1].heading, chunks[-1].context) == ("Three", "")


def test_small_sections_go_together_and_large_ones_apart(splitters: list[Splitter]) -> None:
    small = "".join(f"## {n}\n\nfan board.\n\n" for n in "abc")
    assert len(splitters[0].split(small, "markdown")) == 1
    large = "".join(f"## {n}\n\n{sentences(3)}\n\n" for n in "abc")
    assert [c.heading for c in splitters[0].split(large, "markdown")] == ["a", "b", "c"]


def test_code_and_tables_and_items_stay_whole_where_they_fit(splitters: list[Splitter]) -> None:
    code = "```\n" + "fan board\n\n" * 12 + "```"
    items = "\n".join(f"- {sentences(4)}" for _ in range(4))
    text = f"{sentences(6)}\n\n{code}\n\n{sentences(4)}\n\n{items}\n"
    chunks = splitters[0].split(text, "markdown")
    assert sum(code in c.text for c in chunks) == 1
    for item in items.splitlines():
        assert any(item in c.text for c in chunks)


def test_a_table_that_is_cut_repeats_its_header(splitters: list[Splitter]) -> None:
    header = "| part | heat |\n|------|-----:|\n"
    rows = [f"| {words(3, n)} | {n} |\n" for n in range(20)]
    text = header + "".join(rows)
    chunks = splitters[0].split(text, "markdown")
    assert len(chunks) > 2
    assert all(c.text.startswith(header) and len(c.text) > len(header) for c in chunks)
    assert [row for c in chunks for row in c.text.removeprefix(header).splitlines()] == [
        row.strip() for row in rows
    ]
    for chunk in chunks[1:]:
        assert chunk.text == header + text[chunk.start : chunk.end]


def test_source_code_is_cut_between_lines(splitters: list[Splitter]) -> None:
    lines = [f"def fan_{n}():\n    return board({n})\n\n" for n in range(20)]
    for chunk in splitters[0].split("".join(lines), "code"):
        assert chunk.text.startswith("def fan_") or chunk.text.startswith("    return")


@pytest.mark.parametrize(
    "unit", ["東京都は日本の首都", "7", "- fan\n  "], ids=["cjk", "no", "list"]
)
def test_no_text_takes_long(splitters: list[Splitter], unit: str) -> None:
    chunks = splitters[0].split(unit * 6000, "markdown")
    assert len(chunks) > 20
    assert "".join(unit.split()) in "".join("".join(c.text.split()) for c in chunks)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Pump\n====\n\ntext\n\nCare *of* it\n---\n", ["Pump", "Care *of* it"]),
        ("# A\n\n~~~~\n~~~\n# no\n~~~~\n\n# B\n", ["A", "B"]),
        ("# A\n\n<div>\n# no\n</div>\n\n<!-- # no\n\n# no -->\n\n## B\n", ["A", "B"]),
        ("# F#\n\n#tag\n\n    # code\n\n## D ##\n", ["F#", "D"]),
        ("# A\n\n> # quoted\n\n- # item\n\n### C\n", ["A", "C"]),
        ("#\n\n# \n\n# A\n", ["A"]),
    ],
)
def test_headings_are_those_of_commonmark(text: str, right: list[str]) -> None:
    assert [block.title for block in markdown_blocks(text) if block.title] == right


def test_headings_of_a_file_begin_behind_its_front_matter() -> None:
    text = "---\n# by a script\ntitle: x\n---\n\n# Pump\n\ntext\n\n## Care\n\ntext\n"
    found = _headings(text)
    assert [path for _, path in found] == ["Pump", "Pump > Care"]
    assert [text[at:].split("\n")[0] for at, _ in found] == ["# Pump", "## Care"]


@given(st.text("#-=` ~>\n\r<!a1é\u2028|", max_size=60))
def test_a_heading_is_a_line_of_the_text(text: str) -> None:
    blocks = markdown_blocks(text)
    for block in blocks:
        assert block.kind != "heading" or block.start == 0 or text[block.start - 1] in "\r\n"
    covered = "".join(text[block.start : block.end] for block in blocks)
    assert covered.split() == text.split()


def test_a_passage_is_found_by_its_chapter_and_returned_as_it_was_written(tmp_path: Path) -> None:
    chunk = Chunk(0, 7, "Oil it.", "Pumps > Care", "Pumps > Care")
    passages = [
        Passage("a", chunk.text, {CONTEXT: chunk.context, "n": 1}),
        Passage("b", "Paint it."),
    ]
    embedder = HashEmbedder()
    with HybridStore(tmp_path / "store", embedder) as store:
        store.upsert(passages)
        for _ in range(2):  # from the log, and from the indexes
            [found] = store.search("pumps", 5, "lexical")
            assert found.passage == passages[0]
            store.flush()
        assert store.vectors(["a"])["a"] == pytest.approx(
            embedder.embed(["Pumps > Care\nOil it."])[0]
        )
