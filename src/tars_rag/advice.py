"""Commands for `pip` that errors give, which work before this package is on an index and after.

What an extra needs is named by its requirements, as the installed package itself records them:
`pip install 'openvino>=2025.2'` is right in a checkout, beside a wheel, and from an index.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

NAME: Final = "tars-rag"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def install(extra: str) -> str:
    """The command that installs what an extra of this package needs.

    Args:
        extra: As in pyproject.toml, for example ``documents``.
    """
    needed = shlex.join(_requirements(extra))
    if not needed:  # a source tree that was never installed, or one that is older than the extra
        here = (_CHECKOUT / "pyproject.toml").is_file()
        needed = shlex.quote(f"{_CHECKOUT if here else NAME}[{extra}]")
    return f"pip install {needed}"


def update() -> str:
    """The command that brings a newer version of this package."""
    checkout, editable = _source()
    if checkout is None:
        return f"pip install --upgrade {NAME}"
    place = shlex.quote(str(checkout))
    return f"git -C {place} pull" + ("" if editable else f" && pip install {place}")


def _requirements(extra: str) -> list[str]:
    try:
        recorded = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    wanted = re.compile(rf"""\bextra\s*==\s*(['"]){re.escape(extra)}\1""")
    parted = [line.partition(";") for line in recorded]
    return [what.strip() for what, _, marker in parted if wanted.search(marker)]


def _source() -> tuple[Path | None, bool]:
    """The clone that this package was installed from, and whether it runs from there (PEP 610)."""
    try:
        recorded = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        recorded = {"url": _CHECKOUT.as_uri(), "dir_info": {"editable": True}}
    place = Path(unquote(urlsplit(recorded.get("url", "")).path))
    if "dir_info" not in recorded or not (place / ".git").exists():
        return None, False
    return place, recorded["dir_info"].get("editable", False)
