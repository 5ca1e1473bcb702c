"""Identifiers: found whole, in their order and by what a person types, not by a stray letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage

# Identifier: what finds it first; then what does not find it at all.
TABLE: dict[str, tuple[list[str], list[str]]] = {
    # names in code
    "foo_bar": (["foo_bar", "fooBar", "foo bar", "foobar", "FOO_BAR"], ["f", "b", "oo"]),
    "getUserName": (["getUserName", "get_user_name", "user name", "userName"], ["g", "u", "n"]),
    "XMLHttpRequest": (["XMLHttpRequest", "xml http request", "HttpRequest"], ["x", "h"]),
    "__init__": (["__init__", "init"], ["i", "it"]),
    "numpy.ndarray.reshape": (["numpy.ndarray.reshape", "ndarray reshape", "reshape"], ["nd"]),
    "std::vector<int>": (["std::vector<int>", "std::vector", "vector int"], ["v"]),
    "MAX_RETRY_COUNT": (["MAX_RETRY_COUNT", "max retry count", "maxRetryCount"], ["m", "r"]),
    "rknn_run": (["rknn_run", "rknn_run()", "rknn run"], ["r"]),
    "--dry-run": (["--dry-run", "dry-run", "dry run"], ["d", "r"]),
    "self.assertEqual": (["self.assertEqual", "assertEqual", "assert equal"], ["s"]),
    "org.apache.lucene": (["org.apache.lucene", "apache lucene", "lucene"], ["o"]),
    "#define": (["#define", "define"], ["d"]),
    # languages and products
    "C++": (["C++", "c++"], ["c", "C#", "+", "c+"]),
    "C#": (["C#", "c#"], ["c", "C++", "#"]),
    "F#": (["F#"], ["f", "C#"]),
    ".NET": ([".NET", "net"], ["n"]),
    "Node.js": (["Node.js", "nodejs", "node js"], ["j"]),
    "Objective-C": (["Objective-C", "objective c"], []),
    "g++": (["g++"], ["g", "c++"]),
    "Notepad++": (["Notepad++", "notepad"], ["n", "c++"]),
    "iPhone": (["iPhone", "iphone", "phone"], ["i"]),
    "PostgreSQL": (["PostgreSQL", "postgresql"], ["p"]),
    "AT&T": (["AT&T", "at&t"], ["a", "t"]),
    "R&D": (["R&D", "r&d"], ["r", "d"]),
    "T-shirt": (["T-shirt", "tshirt", "shirt", "t shirt"], ["t"]),
    "X-ray": (["X-ray", "x ray", "xray"], ["x"]),
    "U.S.A.": (["U.S.A.", "USA", "usa"], ["u", "s", "a"]),
    "Ph.D.": (["Ph.D.", "PhD", "phd"], ["p"]),
    "TCP/IP": (["TCP/IP", "tcp", "tcpip"], ["t"]),
    "LaTeX": (["LaTeX", "latex"], ["la", "te", "x"]),
    # errors, parts, standards
    "E-1701": (["E-1701", "E1701", "e 1701", "e1701", "1701"], ["e", "17", "1"]),
    "RK3588": (["RK3588", "rk 3588", "rk-3588", "3588"], ["r", "k", "35"]),
    "RFC 2616": (["RFC 2616", "RFC2616", "rfc-2616", "2616"], ["26"]),
    "ISO-9001:2015": (["ISO-9001:2015", "iso 9001", "ISO9001", "9001:2015"], ["9", "i"]),
    "CVE-2021-44228": (["CVE-2021-44228", "cve 2021 44228", "44228"], ["c", "44"]),
    "0x1F4A9": (["0x1F4A9", "0x1f4a9"], ["x", "f"]),
    "PN-77-4410-B": (["PN-77-4410-B", "77-4410", "4410"], ["p", "b"]),
    "SKU#8841-XL": (["SKU#8841-XL", "8841-xl", "sku 8841", "8841"], ["x", "8"]),
    "DE89 3704 0044": (["DE89 3704 0044", "3704 0044", "de89"], ["d"]),
    "978-3-16-148410-0": (["978-3-16-148410-0", "148410", "978-3-16"], ["3", "0"]),
    "WDX-20T": (["WDX-20T", "wdx20t", "wdx 20t", "20T"], ["w", "t"]),
    "B2B": (["B2B", "b2b"], ["b", "2"]),
    "H2O": (["H2O", "h2o"], ["h", "o"]),
    "MP3": (["MP3", "mp3"], ["m", "3"]),
    "#4512": (["#4512", "4512"], ["45"]),
    "5kg": (["5kg", "5 kg"], ["5", "k"]),
    # versions, addresses, dates, times
    "v2.3.1": (["v2.3.1", "2.3.1", "V2.3.1", "2.3"], ["v", "2", "3"]),
    "3.11.0rc2": (["3.11.0rc2", "3.11", "3.11.0"], ["3", "0"]),
    "10.20.30.40": (["10.20.30.40", "10.20.30", "30.40"], ["1", "4"]),
    "192.168.0.7:8080": (["192.168.0.7:8080", "192.168.0.7", "8080", "192.168"], ["7", "0"]),
    "fe80::1ff:fe23:4567:890a": (["fe80::1ff:fe23:4567:890a", "fe23:4567", "890a"], ["f", "a"]),
    "00:1a:2b:3c:4d:5e": (["00:1a:2b:3c:4d:5e", "001a2b3c4d5e", "3c:4d:5e", "1a:2b"], ["a", "e"]),
    "2024-05-06": (["2024-05-06", "2024/05/06", "2024.05.06", "2024-05"], ["2", "5"]),
    "31/12/1999": (["31/12/1999", "31.12.1999", "31-12-1999", "12/1999"], ["3"]),
    "12:30:45": (["12:30:45", "12:30"], ["1", "4"]),
    "1939-1945": (["1939-1945", "1939", "1945"], ["19"]),
    "7/8": (["7/8"], ["7", "8"]),
    "1,234,567": (["1,234,567", "1234567"], ["1"]),
    "3.14159": (["3.14159"], ["3"]),
    "-40": (["-40", "40"], ["4"]),
    # addresses
    "jane.doe@example.org": (
        ["jane.doe@example.org", "jane doe", "example.org", "jane.doe"],
        ["j", "o"],
    ),
    "https://docs.rs/tantivy/0.22": (
        ["https://docs.rs/tantivy/0.22", "docs.rs", "docs.rs/tantivy", "tantivy 0.22"],
        ["h", "r", "0"],
    ),
    "/etc/ssh/sshd_config": (["/etc/ssh/sshd_config", "sshd_config", "etc ssh"], ["e", "s"]),
    r"C:\Windows\System32": ([r"C:\Windows\System32", "system32", "windows system32"], ["c"]),
    "src/app/main.rs": (["src/app/main.rs", "main.rs", "app/main.rs"], ["m"]),
    "@grace_hopper": (["@grace_hopper", "grace hopper", "gracehopper"], ["g"]),
    "#ClimateAction": (["#ClimateAction", "climate action", "climateaction"], ["c"]),
    "550e8400-e29b-41d4-a716-446655440000": (
        ["550e8400-e29b-41d4-a716-446655440000", "550e8400", "550e8400e29b41d4a716446655440000"],
        ["e", "a"],
    ),
    "d670460b4b4aece5915caf5c68d12f560a9fe3e4": (
        ["d670460b4b4aece5915caf5c68d12f560a9fe3e4", "d670460", "d670460b4b"],
        ["d", "d67"],
    ),
    "O'Brien": (["O'Brien", "OBrien", "brien", "O\u2019Brien"], ["o", "b"]),
    "rock'n'roll": (["rock'n'roll", "rocknroll", "rock roll"], ["n", "r"]),
}
IDENTIFIERS = list(TABLE)


def sentence(identifier: str) -> str:
    return f"Look for {identifier}, as they said."


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LexicalIndex]:
    with LexicalIndex(tmp_path_factory.mktemp("identifiers") / "lexical") as opened:
        opened.apply((), [Passage(key, sentence(key)) for key in IDENTIFIERS])
        yield opened


def test_there_are_enough() -> None:
    assert len(TABLE) >= 60


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_found_whole_and_in_parts(index: LexicalIndex, identifier: str) -> None:
    for query in TABLE[identifier][0]:
        first, *others = index.search(query, 5)
        assert first[0] == identifier, (query, first, others)
        assert all(score < first[1] for _, score in others), (query, others)


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_not_found_by_a_stray_letter_or_another_identifier(
    index: LexicalIndex, identifier: str
) -> None:
    for query in TABLE[identifier][1]:
        found = [key for key, _ in index.search(query, len(TABLE))]
        assert identifier not in found, query


ORDERED = {
    "version": ["2.3.2", "3.2.2", "2.2.3"],
    "version with a letter": ["v1.10.2", "v1.2.10", "v10.1.2", "v2.10.1"],
    "IP address": ["10.0.1.2", "10.2.1.0", "10.1.0.2", "0.10.1.2"],
    "date": ["2024-05-06", "2024-06-05", "2005-06-24"],
    "day first": ["01.02.2003", "02.01.2003", "03.02.2001"],
    "time": ["12:30:45", "45:12:30", "30:45:12"],
    "part number": ["12-34-56", "56-34-12", "34-12-56"],
    "letters and digits": ["AB-12-34", "AB-34-12", "12-AB-34", "34-12-AB"],
    "mac address": ["aa:bb:0c", "bb:aa:0c", "0c:aa:bb"],
    "fraction": ["1/50", "50/1"],
    "one digit each": ["1-2-3", "3-2-1", "2-1-3"],
    "score": ["2:1", "1:2"],
    "telephone": ["030 1234 5678", "5678 030 1234", "1234 5678 030"],
    "name": ["user_name_id", "id_name_user", "name_user_id"],
    "path": ["usr/local/lib", "local/usr/lib", "lib/local/usr"],
    "long path": ["a/deep/path/to/some/file", "a/deep/file/to/some/path"],
    "camel": ["setUserName", "setNameUser", "userSetName"],
    "address": ["ann@example.com", "example@ann.com"],
}


@pytest.mark.parametrize("kind", ORDERED)
def test_the_order_decides(tmp_path: Path, kind: str) -> None:
    texts = [sentence(identifier) for identifier in ORDERED[kind]]
    with LexicalIndex(tmp_path / "lexical") as index:
        # The ids are against the order, so that no tie is won by them.
        index.apply((), [Passage(f"{9 - n}", text) for n, text in enumerate(texts)])
        for number, identifier in enumerate(ORDERED[kind]):
            first, *others = index.search(identifier, 9)
            assert first[0] == f"{9 - number}", identifier
            assert all(score < first[1] for _, score in others), (identifier, others)


def test_a_number_of_its_own_comes_before_one_that_is_a_part(tmp_path: Path) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        index.apply(
            (),
            [
                Passage("a", "Mix oil 1/50."),
                Passage("b", "Mix oil 50/1."),
                Passage("c", "Mix oil 1 and 50."),
            ],
        )
        first, *others = index.search("50", 3)
        assert first[0] == "c"
        assert [key for key, _ in others] == ["a", "b"]


LONE = {
    "vitamin D": "Vitamin D is made in the skin.",
    "vitamin A": "Vitamin A is found in carrots.",
    "vitamin C": "Vitamin C is found in lemons.",
    "type S": "A type S fuse is slow.",
    "type T": "A type T fuse is quick.",
    "plan M": "They went for plan M in the end.",
    "plan B": "They went for plan B in the end.",
    "hepatitis a": "Hepatitis A comes with water.",
    "Don Giovanni": "Don Giovanni was first given in Prague.",
    "Will Smith": "Will Smith was born in Philadelphia.",
    "will smith": "Will Smith was born in Philadelphia.",
    "who is Will Smith": "Will Smith was born in Philadelphia.",
    "tin can": "A can of tin holds soup.",
    "class I": "Class I lasers are harmless.",
    "Elizabeth II": "Elizabeth II reigned for seventy years.",
}


@pytest.mark.parametrize("query", LONE)
def test_single_letters_and_names_keep_their_meaning(tmp_path: Path, query: str) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        texts = dict.fromkeys(LONE.values())
        more = ["He will go and she can stay.", "What a day, do not ask.", "I was in a hurry."]
        index.apply((), [Passage(text, text) for text in (*texts, *more)])
        first, *others = index.search(query, 5)
        assert first[0] == LONE[query]
        assert all(score < first[1] for _, score in others), others


TIED = [
    "don't",
    "dont",
    "do not",
    "can't",
    "the book of Maria",
    "l'eau froide",
    "commedia dell'arte",
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("don't", {"don't", "dont", "do not"}),
        ("dont", {"don't", "dont"}),
        ("can't", {"can't"}),
        ("Maria's book", {"the book of Maria"}),
        ("l'eau", {"l'eau froide"}),
        ("l\u2019eau", {"l'eau froide"}),
        ("eau", {"l'eau froide"}),
        ("dell'arte", {"commedia dell'arte"}),
        ("arte", {"commedia dell'arte"}),
    ],
)
def test_what_an_apostrophe_ties(tmp_path: Path, query: str, expected: set[str]) -> None:
    with LexicalIndex(tmp_path / "lexical") as index:
        index.apply((), [Passage(text, text) for text in TIED])
        assert expected <= {key for key, _ in index.search(query, 9)}
