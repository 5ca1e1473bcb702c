"""What mkdocs does to a page: links to files outside docs/ lead to the repository."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """`](../benchmarks/x.py)` becomes a link to that file on the repository's main branch."""
    return re.sub(r"\]\(\.\./", f"]({config['repo_url'].rstrip('/')}/blob/main/", markdown)
