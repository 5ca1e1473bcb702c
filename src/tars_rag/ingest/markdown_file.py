"""What a Markdown file says about itself: its front matter."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

_FRONT = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_LARGEST_FRONT = 64 << 10  # characters


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
