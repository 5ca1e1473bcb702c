"""What a Markdown file says about itself: its front matter, and where its headings are.

Blocks are found by a CommonMark parser: a `#` in a fence, in a comment or in front matter is no
heading, and an underlined line is one.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_FRONT = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_LARGEST_FRONT = 64 << 10  # characters
_LINE = re.compile(r"\r\n?|\n")  # as the parser counts lines


def front_matter(text: str) -> tuple[dict[str, Any], int]:
    """The YAML in front of a Markdown text, and where the text begins.

    Returns:
        What of it can be metadata: strings, numbers, booleans, dates (as text) and lists of them;
        and the number of characters before the text, 0 where there is no front matter.
    """
    import yaml

    found = _FRONT.match(text)
    if found is None or len(found[1]) > _LARGEST_FRONT:
        return {}, 0
    try:
        kinds = (yaml.AnchorToken, yaml.AliasToken)  # a few lines of those can stand for gigabytes
        held = None
        if not any(isinstance(token, kinds) for token in yaml.scan(found[1], yaml.SafeLoader)):
            held = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, 0
    if not isinstance(held, dict):
        return {}, 0
    values = {str(key): _plain(value) for key, value in held.items()}
    return {key: value for key, value in values.items() if value is not None}, found.end()


def headings(text: str) -> list[tuple[int, str]]:
    """The start of each heading, and its path, for example ``Boards > Cooling``."""
    lines = [0, *(match.end() for match in _LINE.finditer(text))]
    found: list[tuple[int, str]] = []
    trail: dict[int, str] = {}
    _, begin = front_matter(text)
    body = _parser().parse(text[begin:])
    shift = len(_LINE.findall(text, 0, begin))
    for opened, inline in pairwise(body):
        title = " ".join(inline.content.split())
        if opened.type == "heading_open" and opened.level == 0 and opened.map and title:
            level = int(opened.tag[1])
            trail = {n: above for n, above in trail.items() if n < level} | {level: title}
            found.append((lines[opened.map[0] + shift], " > ".join(trail.values())))
    return found


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])  # what is in a line does not matter
    return parser


def _plain(value: object) -> Any:
    """A value of YAML as metadata; None: it cannot be."""
    if isinstance(value, list):
        values = [_plain(one) for one in value if not isinstance(one, list)]
        return [one for one in values if one is not None] or None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, str | int | float) else None
