"""The lexical side, through the store: what counts as the same word, and what a query may hold."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import HashEmbedder
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.words.files import begin_small_blocks, damage
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore

TEXTS = {
    "cat": "Cat on the mat",
    "cafe": "The Café of Zoë in Łódź",
    "run": "She was jogging, connected and easily bored",
    "sql": "AND OR NOT title:foo",
    "who": "To be or not to be: that is the question",
    "code": "RK3588's rknn_run(ctx) returns -1; see v2.3.2",
    "japan": "東京 タワー",
    "mixed": "left\ud800right \0 middle",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridStore]:
    with HybridStore(tmp_path_factory.mktemp("lexical") / "store", HashEmbedder()) as opened:
        opened.upsert([Passage(key, text) for key, text in TEXTS.items()])
        yield opened


def found(store: HybridStore, query: str, k: int = 50) -> list[str]:
    return [hit.id for hit in store.search(query, k, "lexical")]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("cat.", ["cat"]),  # punctuation and case
        ("CATS?", ["cat"]),  # stemming
        ("jog connection", ["run"]),
        ("jogs", ["run"]),
        ("connecting", ["run"]),
        ("cafe", ["cafe"]),  # accents, both ways
        ("CAFÉS", ["cafe"]),
        ("zoe lodz", ["cafe"]),
        ("rk3588", ["code"]),
        ("what does rknn_run() give", ["code"]),
        ("東京", ["japan"]),
        ("left", ["mixed"]),  # a lone surrogate ends a word
        ("ri\ud800ght right", ["mixed"]),
        ("middle", ["mixed"]),
        ("dog", []),
        ("ca", []),  # no prefixes
        ("c?t ca*", []),  # no wildcards
    ],
)
def test_what_matches(store: HybridStore, query: str, expected: list[str]) -> None:
    assert found(store, query) == expected


@pytest.mark.parametrize(
    "syntax",
    [
        "AND",
        "cat AND",
        'AND ( " ~',
        '"cat mat',
        "(cat",
        "cat)",
        "title:cat",
        "text:cat^2 +cat -mat",
        "id:sql",
        "[a TO z] {x",
        "cat\\",
        "/cat/ *:* ||",
        "NOT cat",
        "~ ^ ! < > =",
        "cat\0mat",
    ],
)
def test_query_syntax_is_only_text(store: HybridStore, syntax: str) -> None:
    ids = found(store, syntax)
    assert ("cat" in ids) == ("cat" in syntax.lower())
    assert len(store.search(syntax, 50)) == len(TEXTS)


def test_a_field_name_is_no_operator(store: HybridStore) -> None:
    assert found(store, "id:cat") == ["cat"]
    assert found(store, "title foo") == ["sql"]
    assert found(store, "id") == found(store, "digest") == []


def test_stop_words_count_only_where_there_is_nothing_else(store: HybridStore) -> None:
    assert found(store, "the cat is not on that") == ["cat"]
    assert "who" in found(store, "to be or not to be")
    assert found(store, "to be or not to be")[0] == "who"


def test_every_hit_shares_a_word_and_has_a_score_above_0(store: HybridStore) -> None:
    hits = store.search("cat question mat", 50, "lexical")
    assert {hit.id for hit in hits} == {"cat", "who"}
    assert all(hit.score > 0 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.slow
def test_a_word_in_every_passage_still_finds_them(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage("a", "board fan"), Passage("b", "board")])
        assert set(found(store, "board")) == {"a", "b"}
        assert all(hit.score > 0 for hit in store.search("board", strategy="lexical"))


def test_a_repeated_word_weighs_more_and_a_rare_one_more_than_a_common_one(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert(
            [
                Passage("rare", "zephyr board"),
                Passage("common", "fan board"),
                *(Passage(f"{n}", "fan rest") for n in range(5)),
            ]
        )
        assert found(store, "zephyr fan", 2)[0] == "rare"
        once = store.search("zephyr", 1, "lexical")[0].score
        twice = store.search("zephyr zephyr", 1, "lexical")[0].score
        assert twice == pytest.approx(2 * once)


def test_a_query_of_many_thousand_words_is_answered(store: HybridStore) -> None:
    many = " ".join(f"w{n}" for n in range(20_000))
    assert found(store, f"cat cat {many}") == ["cat"]
    assert found(store, "x" * 100_000) == []


def test_ties_are_in_the_order_of_the_ids_wherever_k_cuts(tmp_path: Path) -> None:
    names = [f"{n:02}" for n in range(60)]
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        # Stored in two steps, the last first, so that the order in the index is another.
        store.upsert([Passage(name, "kiwi") for name in names[:29:-1]])
        store.upsert([Passage(name, "kiwi") for name in names[29::-1]])
        for k in (1, 10, 31, 60):
            assert found(store, "kiwi", k) == names[:k]


def test_reopening_reads_the_index_and_does_not_make_it_again(tmp_path: Path) -> None:
    def segments() -> dict[str, int]:
        files = (tmp_path / "store" / "lexical").iterdir()
        return {file.name: file.stat().st_mtime_ns for file in files if "-" not in file.name}

    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([Passage(key, text) for key, text in TEXTS.items()])
        before = [(hit.id, hit.score) for hit in store.search("cat question", 9, "lexical")]
    written = segments()
    assert any(name.endswith(".term") for name in written)
    for read_only in (False, True):
        with HybridStore(tmp_path / "store", HashEmbedder(), read_only=read_only) as store:
            again = [(hit.id, hit.score) for hit in store.search("cat question", 9, "lexical")]
        assert again == before
        assert segments() == written


def a_failing_write(index: LexicalIndex, room: int) -> StoreError:
    """Write while no file may grow beyond `room` bytes; the error that comes of it."""
    text = " ".join(f"word{n}" for n in range(3000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(StoreError) as caught:
            index.apply((), [Passage(f"big{n}", f"{text} {n}") for n in range(200)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return caught.value


@pytest.mark.parametrize("room", [0, 500, 5_000, 40_000, 70_000])
def test_a_write_that_failed_tells_its_cause_and_the_next_one_works(
    tmp_path: Path, room: int
) -> None:
    index = LexicalIndex(tmp_path / "lexical")
    index.apply((), [Passage("before", "kiwi")])
    error = a_failing_write(index, room)
    assert "File too large" in str(error)
    # The error is held, as a notebook or a logger does: its traceback keeps what it can reach.
    index.apply((), [Passage("after", "kiwi")])
    assert [key for key, _ in index.search("kiwi", 9)] == ["after", "before"]
    assert index.search("word7", 9) == []
    del error
    index.close()


def test_a_write_that_was_interrupted_leaves_the_index_writable(tmp_path: Path) -> None:
    def passages() -> Iterator[Passage]:
        yield Passage("half", "kiwi")
        raise KeyboardInterrupt

    index = LexicalIndex(tmp_path / "lexical")
    with pytest.raises(KeyboardInterrupt) as held:
        index.apply((), passages())
    index.apply((), [Passage("whole", "kiwi")])
    assert [key for key, _ in index.search("kiwi", 9)] == ["whole"]
    assert held.value is not None
    index.close()


@pytest.mark.parametrize("k", [10**6, 10**9, 10**10, 2**63, 10**30])
def test_a_huge_k_is_as_many_as_there_are(tmp_path: Path, k: int) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        assert index.search("kiwi", k) == []
        index.apply((), [Passage("a", "kiwi"), Passage("b", "kiwi kiwi"), Passage("c", "plum")])
        assert [key for key, _ in index.search("kiwi", k)] == ["b", "a"]


def test_asked_for_more_ids_than_there_are(tmp_path: Path) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        assert index.scores("kiwi", ["a", "b"]) == index.passages(["a"]) == {}
        index.apply((), [Passage("a", "kiwi")])
        many = [*map(str, range(10_000)), "a"]
        assert index.scores("kiwi", many).keys() == index.passages(many).keys() == {"a"}


def test_a_new_index_stores_in_small_blocks_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    def block() -> int:
        settings = json.loads((path / "meta.json").read_bytes())["index_settings"]
        return int(settings["docstore_blocksize"])

    path = tmp_path / "lexical"
    with LexicalIndex(path) as index:
        index.apply((), [Passage(f"p{n}", f"fan {n}") for n in range(300)])
    assert block() == 4096
    altered = (path / "meta.json").read_text().replace("4096", "16384")
    (path / "meta.json").write_text(altered)  # as commits before this one made it
    with LexicalIndex(path) as index:
        index.apply((), [Passage(f"q{n}", f"board {n}") for n in range(300)])
        assert index.passages(["p7", "q299"])["q299"].text == "board 299"
    assert block() == 16384
    assert damage(path) is None
    assert not begin_small_blocks(path), "it holds passages"


def test_a_layout_that_is_not_known_is_left_alone(tmp_path: Path) -> None:
    for content in ("{}", '{"index_settings": {"docstore_blocksize": 32768}, "segments": []}'):
        (tmp_path / "meta.json").write_text(content)
        assert not begin_small_blocks(tmp_path)
        assert (tmp_path / "meta.json").read_text() == content
