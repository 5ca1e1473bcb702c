"""What a person is shown of a passage: whole words, no marks of Markdown, the part that fits."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tars_rag.cli.markdown import readable
from tars_rag.cli.passages import Question, excerpt

PAGE = """<!-- a comment
over two lines -->
## Cooling ##

A **board** with a *fan* sleeps _well_; see [the page](https://example.org/a_b_c "Title"),
![picture](a.png) and `snake_case_name`, `**kwargs`.<br>

- first item
- second item
  that goes on
1. numbered

> quoted \\*words\\*

| core | speed |
|---|---:|
| `A76` | 2.4 GHz |

Underlined
==========

```sh
# not a heading
tars-rag index docs
```
---
The end.
"""


def test_markdown_is_told_without_its_marks() -> None:
    assert readable(PAGE) == [
        "Cooling",
        "A board with a fan sleeps well; see the page, picture and snake_case_name, **kwargs.",
        "- first item",
        "- second item that goes on",
        "1. numbered",
        "quoted *words*",
        "core, speed",
        "A76, 2.4 GHz",
        "Underlined",
        "# not a heading",
        "tars-rag index docs",
        "The end.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "def __init__(self, *args, **kwargs)",
        "2 * 3 * 4",
        "a[i](x",
        "if a < b and c > d",
        "C# and F#",
    ],
)
def test_what_is_no_markdown_stays(text: str) -> None:
    assert readable(text, markdown=False) == [text]


def test_marks_that_are_hardly_anything_else_go_from_other_texts_too() -> None:
    text = "# Title\nA **bold** [link](https://example.org) and `code`."
    assert readable(text, markdown=False) == ["Title", "A bold link and code."]


@pytest.mark.parametrize("mark", ["_a ", "*a ", "**a ", "`a ", "[a", "<!--", "<b ", "| ", "__a "])
def test_no_text_takes_long(mark: str) -> None:
    began = time.process_time()
    readable(mark * 200_000)
    assert time.process_time() - began < 5


WANTED = Question("Which fan is cooling?")
FILLER = "Nothing of interest is said in this sentence at all."


def test_the_part_with_the_words_is_shown() -> None:
    sentence = "A fan is the best cooling."
    [line] = excerpt([" ".join([FILLER] * 20 + [sentence] + [FILLER] * 20)], WANTED, 120)
    assert sentence in line
    assert line.startswith("... ")
    assert line.endswith(" ...")


def test_a_short_text_is_shown_whole() -> None:
    assert excerpt(["One.", "A fan."], WANTED) == ["One.", "A fan."]
    assert excerpt([], WANTED) == []


def test_a_script_without_spaces_is_cut_too() -> None:
    [line] = excerpt(["\u98a8" * 1000], WANTED, 100)
    assert line == "\u98a8" * 100 + " ..."


@given(
    st.lists(
        st.text(st.sampled_from("abc def. ghi! fan cooling"), min_size=1, max_size=200).map(
            lambda text: " ".join(text.split()) or "x"
        ),
        max_size=8,
    ),
    st.integers(40, 200),
)
def test_no_word_is_cut_and_nothing_is_made_up(blocks: list[str], length: int) -> None:
    lines = excerpt(blocks, WANTED, length)
    words = {word for block in blocks for word in block.split()}
    for word in " ".join(lines).split():
        # what is longer than any word, or than the excerpt, has to be cut somewhere
        assert word == "..." or word in words or any(len(w) > min(length // 3, 80) for w in words)
    assert bool(lines) == bool(blocks)
    assert sum(map(len, lines)) <= length + 8 + len(lines)


@pytest.mark.parametrize(
    ("question", "text", "marked"),
    [
        ("how are boards cooled", "Cooling, of the board: how?", ["Cooling", "board"]),
        ("r\u00e9sum\u00e9", "(resume)", ["resume"]),
        ("C++ or C#", "in C++, C#.", ["C++", "C#"]),
        ("error E1701", "Error E-1701 means", ["Error", "E-1701"]),
        ("\u98a8\u6247", "\u53e4\u3044\u98a8\u6247\u304c\u56de\u308b", ["\u98a8\u6247"]),
        ("what is the", "what the index does", ["what", "the"]),  # nothing else was asked
        ("", "text", []),
    ],
)
def test_words_are_marked_as_the_index_reads_them(
    question: str, text: str, marked: list[str]
) -> None:
    assert [text[a:b] for a, b in Question(question).words_in(text)] == marked
