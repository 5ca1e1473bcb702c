"""Words in every script: one reading of passage and query, languages, very long words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.indexes.words.analysers import analyser
from tars_rag.retrieval.indexes.words.languages import LANGUAGES, check_language
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage

DATA = Path(__file__).with_name("data") / "multilingual.txt"
PROPERTY = settings(max_examples=100, deadline=None)


def multilingual() -> dict[str, list[tuple[str, str]]]:
    """Language code -> (passage, question) pairs."""
    found: dict[str, list[tuple[str, str]]] = {}
    code = ""
    for line in DATA.read_text("utf-8").splitlines():
        if line.startswith("## "):
            code = line[3:]
            found[code] = []
        elif line and not line.startswith("#"):
            passage, question = line.split(" = ")
            found[code].append((passage, question))
    return found


MULTILINGUAL = multilingual()


def recall(directory: Path, code: str, language: str) -> float:
    """Share of the questions of a language that are answered within the first five."""
    pairs = MULTILINGUAL[code]
    with LexicalIndex(directory, language=language) as index:
        index.apply((), [Passage(passage, passage) for passage, _ in pairs])
        return sum(
            passage in [key for key, _ in index.search(question, 5)] for passage, question in pairs
        ) / len(pairs)


def test_the_set_is_large_enough() -> None:
    assert len(MULTILINGUAL) >= 12
    assert {"zh", "ja", "ko", "ar", "hi", "de"} <= MULTILINGUAL.keys()
    assert all(len(pairs) >= 10 for pairs in MULTILINGUAL.values())


@pytest.mark.parametrize("code", [code for code in MULTILINGUAL if code in LANGUAGES])
def test_the_right_language_finds_nine_of_ten(tmp_path: Path, code: str) -> None:
    assert recall(tmp_path, code, code) >= 0.9


@pytest.mark.parametrize("code", MULTILINGUAL)
def test_multi_finds_eight_of_ten(tmp_path: Path, code: str) -> None:
    assert recall(tmp_path, code, "multi") >= 0.8


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LexicalIndex]:
    texts = [
        "Her résumé is on the table",
        "A hyphenated word: car\u00adpet, and zero\u200bwidth",
        "İstanbul and DİYARBAKIR",
        "Ångström, naïve, façade, Łódź, Straße",
        "Ёлки и йод",
        "Η θάλασσα του ΟΔΥΣΣΕΑ",
        "パーティーがある",
        "한글 맞춤법",
        "ﬁnal ﬂow, Ｆｕｌｌ　Ｗｉｄｔｈ １２３",
        "كِتَابٌ جديد",
        "ชื่อภาษาไทยคือ",
        "\ufeffleading mark",
        "wind\u200dmill \u202eturned\u202c",
        "مى\u200cخواهم",
        "١٢٣٤ and ४५६७",
        "½ litre, m² and ①",
    ]
    with LexicalIndex(tmp_path_factory.mktemp("words") / "lexical") as index:
        index.apply((), [Passage(text, text) for text in texts])
        yield index


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("re\u0301sume\u0301", "résumé"),
        ("RESUME", "résumé"),
        ("carpet", "car"),
        ("zerowidth", "car"),
        ("istanbul", "İstanbul"),
        ("I\u0307STANBUL", "İstanbul"),
        ("diyarbakir", "İstanbul"),
        ("angstrom", "Ångström"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("naive facade", "Ångström"),
        ("lodz", "Ångström"),
        ("strasse", "Ångström"),
        ("STRASSE", "Ångström"),
        ("елка", "Ёлки"),
        ("и\u0306од", "Ёлки"),
        ("θαλασσα", "θάλασσα"),
        ("οδυσσεα", "θάλασσα"),
        (unicodedata.normalize("NFD", "パーティー"), "パーティー"),
        ("ﾊﾟｰﾃｨｰ", "パーティー"),
        (unicodedata.normalize("NFD", "한글"), "한글"),
        ("final flow", "ﬁnal"),
        ("full width", "ﬁnal"),
        ("123", "ﬁnal"),
        ("كتاب", "كِتَابٌ"),
        ("الكتاب", "كِتَابٌ"),
        ("ภาษาไทย", "ชื่อ"),
        ("leading", "leading"),
        ("windmill", "wind"),
        ("turned", "wind"),
        ("می\u200cخواهم", "\u0645\u0649"),
        ("1234", "١٢٣٤"),
        ("4567", "١٢٣٤"),
        ("1/2 litre", "½"),
    ],
)
def test_one_reading_however_it_is_written(english: LexicalIndex, query: str, part: str) -> None:
    found = english.search(query, 5)
    assert found, query
    assert part in found[0][0], found


def test_what_is_stored_is_not_changed(english: LexicalIndex) -> None:
    for text, passage in english.passages([key for key, _ in english.search("carpet", 1)]).items():
        assert passage.text == text
        assert "\u00ad" in text


# An acute accent of its own is read as the apostrophe that it is typed for.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\u00b4\u1ffd")


@PROPERTY
@given(st.text(CHARACTERS, max_size=60), st.sampled_from(["NFC", "NFD", "NFKC"]))
def test_every_normal_form_gives_the_same_terms(text: str, form: str) -> None:
    written = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    for code in ("en", "multi", "de"):
        terms = analyser(code).passage_terms(text).split()
        assert analyser(code).passage_terms(written).split() == terms


@PROPERTY
@given(st.text("abcé文 -.", max_size=30), st.sampled_from("\u00ad\u200b\u200d\ufeff\u202e\u2060"))
def test_invisible_characters_are_not_there(text: str, invisible: str) -> None:
    terms = analyser("en").passage_terms(text).split()
    assert analyser("en").passage_terms(invisible.join(text)).split() == terms


@PROPERTY
@given(st.text(max_size=80), st.sampled_from(sorted(LANGUAGES)))
def test_terms_have_no_space_and_a_bounded_length(text: str, code: str) -> None:
    for term in [*analyser(code).passage_terms(text).split(" "), *analyser(code).query_terms(text)]:
        assert not any(char in " \t\r\n\f" for char in term)
        assert len(term) < 100


@PROPERTY
@given(st.from_regex(r"[A-Za-z0-9_.:/@#+'-]{1,40}", fullmatch=True))
def test_a_text_of_one_piece_finds_itself(text: str) -> None:
    # Every term that a query needs is a term of the same text as a passage.
    held = set(analyser("en").passage_terms(text).split())
    asked = {term for term, how in analyser("en").query_terms(text).items() if not how.optional}
    lone = {term for term in asked if term.startswith("=")}
    assert asked - lone <= held


@pytest.mark.parametrize("query", ["猫", "石", "물", "개"])
def test_a_query_of_one_character(tmp_path: Path, query: str) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        texts = ["黑猫喜欢睡在石头上", "물을 마신다", "개가 짖는다", "nothing of it"]
        index.apply((), [Passage(text, text) for text in texts])
        (found, *others) = index.search(query, 5)
        assert query in found[0]
        assert others == []


@pytest.mark.parametrize(
    ("language", "query", "text"),
    [
        ("de", "Haus", "Die Häuser am See"),
        ("de", "Häuser", "Ein Haus am See"),
        ("fr", "école", "L'ECOLE est fermée"),
        ("it", "arte", "la commedia dell\u2019arte"),
        ("tr", "kiz", "KIZLARIN kitabı"),
        ("tr", "İstanbul", "istanbul'un evleri"),
        ("ru", "книга", "В книгах и ёлках"),
        ("hi", "किताबें", "एक किताब"),
        ("none", "running", "RUNNING late"),
        ("multi", "Häuser", "ein Haus am See"),
        ("multi", "книга", "В книгах"),
        ("multi", "cats", "The cat sat"),
        ("en", "книга", "A word in Russian: книгами"),
        ("de", "connections", "Ein Wort: connection"),
    ],
)
def test_inflection(tmp_path: Path, language: str, query: str, text: str) -> None:
    with LexicalIndex(tmp_path / "lexical", language=language) as index:
        index.apply((), [Passage("found", text), Passage("other", "nothing 1 of it")])
        assert [key for key, _ in index.search(query, 5)] == ["found"]


def test_none_stems_nothing_and_has_no_stop_words(tmp_path: Path) -> None:
    with LexicalIndex(tmp_path / "lexical", language="none") as index:
        index.apply((), [Passage("a", "the runner ran"), Passage("b", "running")])
        assert [key for key, _ in index.search("running", 5)] == ["b"]
        assert [key for key, _ in index.search("the running", 5)] == ["b", "a"]


@pytest.mark.parametrize(
    ("given_as", "code"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("german", "de"),
        ("German", "de"),
        ("de-DE", "de"),
        ("de_AT.UTF-8", "de"),
        ("nb", "no"),
        ("zh-Hans", "zh"),
        (" none ", "none"),
        ("multi", "multi"),
    ],
)
def test_a_language_by_code_name_or_locale(given_as: str, code: str) -> None:
    assert check_language(given_as) == code


@pytest.mark.parametrize("wrong", ["klingon", "", "xx", "e", None, 5, ["en"]])
def test_an_unknown_language_is_an_error_that_names_the_others(
    tmp_path: Path, wrong: object
) -> None:
    with pytest.raises(InvalidInputError, match=r"ar, da, .*'multi'.*'none'") as caught:
        LexicalIndex(tmp_path / "lexical", language=wrong)  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)
    assert not (tmp_path / "lexical").exists()


def test_an_index_of_another_language_is_refused(tmp_path: Path) -> None:
    with LexicalIndex(tmp_path / "lexical", language="de") as index:
        index.apply((), [Passage("a", "Häuser")])
    with pytest.raises(StoreError, match="schema"):
        LexicalIndex(tmp_path / "lexical", language="fr")
    with LexicalIndex(tmp_path / "lexical", language="german", read_only=True) as index:
        assert index.language == "de"
        assert index.search("Haus", 1)


@pytest.mark.parametrize(
    "long",
    ["x" * 200_000, "ab-" * 50_000, "a1" * 50_000, "猫" * 50_000, "ก" * 50_000, "'" * 50_000,
     "a'" * 50_000, "_" * 50_000, "A" * 50_000, "aB" * 50_000, "1." * 50_000, "+" * 50_000],
)  # fmt: skip
def test_very_long_words_are_bounded_and_quick(tmp_path: Path, long: str) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        index.apply((), [Passage("long", long), Passage("other", f"kiwi {long[:-1]}z")])
        assert [key for key, _ in index.search("kiwi", 5)] == ["other"]
        index.search(long, 5)
        longest = max(map(len, analyser("en").passage_terms(long).split() or [""]))
        assert longest < 100


def test_a_very_long_word_is_found_by_itself_alone(tmp_path: Path) -> None:
    one, other = "q" * 300 + "a", "q" * 300 + "b"
    with LexicalIndex(tmp_path / "lexical") as index:
        index.apply((), [Passage("one", one), Passage("other", other)])
        assert [key for key, _ in index.search(one, 5)] == ["one"]
