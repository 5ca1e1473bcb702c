"""Write docs/configuration.md from `Settings` itself, or check that it says the same.

python docs/configuration_table.py --write
python docs/configuration_table.py --check
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from tars_rag.settings import Settings

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration: environment variables and .env

Every variable that `Settings` reads, with its default, the values it takes and what it does. The
command line and every `from_env()` read them, from the environment and from a file `.env` in the
working directory. What is given in code or as an option of a command wins over the environment,
and that wins over `.env`. A value that is not allowed is an error that names the variable, the
value and what is allowed; other variables in `.env` are left alone.

This page is made by `python docs/configuration_table.py --write`, and CI compares it with the code.

| variable | default | values | what it does |
|---|---|---|---|
"""
TAIL = """
## Others

| variable | default | what it does |
|---|---|---|
| `TARS_CHROMA_TIMEOUT` | `20` | Seconds that a request to a Chroma server may take. |
| `TARS_API_KEY` | unset | The key of a `tars-rag serve`, where none is given in code. |
| `HF_ENDPOINT` | unset | Another model hub; huggingface_hub's own variable, as the next two. |
| `HF_TOKEN` | unset | Who asks the hub, for models that not everybody may have. |
| `HF_HUB_OFFLINE` | unset | 1: never ask the hub. |

## For one call, and in Python

Written before a command, variables are for this call only:

```bash
CPU_ENGINE=onnxruntime RAG_STRATEGY=lexical tars-rag doctor
```

In Python, `Settings.from_env(memory_top_k=8)` reads the same; its arguments are the names in lower
case.

```python
from tars_rag import Settings

print(Settings.from_env(memory_top_k=8).memory_top_k)
```
"""


def page() -> str:
    """The whole page, from the fields as they are."""
    rows = [row(name, field) for name, field in Settings.model_fields.items()]
    return HEAD + "".join(rows) + TAIL


def row(name: str, field: Any) -> str:
    """One variable as a row of the table."""
    if not field.description:
        msg = f"Settings.{name} has no description."
        raise SystemExit(msg)
    cells = [f"`{name.upper()}`", default(field.default), values(field), field.description]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def default(value: Any) -> str:
    """A default as a person would write it into `.env`."""
    if value is None:
        return "unset"
    return f"`{int(value)}`" if isinstance(value, bool) else f"`{value}`"


def values(field: Any) -> str:
    """What a variable takes: its choices, or a word for its type and its bounds."""
    kind = plain(field.annotation)
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if kind is bool:
        return "`1`, `true`, `yes`, `on`; `0`, `false`, `no`, `off`"
    if kind is int:
        least = next(bound.ge for bound in field.metadata if hasattr(bound, "ge"))
        return f"a whole number of at least {least}"
    words = {Path: "a path", str: "text"}[kind]
    must_have_some = any(getattr(bound, "min_length", 0) for bound in field.metadata)
    return f"{words}, not empty" if must_have_some else words


def plain(annotation: Any) -> Any:
    """A type without `| None` and without what `Annotated` adds."""
    if typing.get_origin(annotation) is Annotated:
        return plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        [one] = [a for a in typing.get_args(annotation) if a is not type(None)]
        return plain(one)
    return annotation


def main() -> int:
    """Write or check; 1 where the page differs from the code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--write", action="store_true")
    todo.add_argument("--check", action="store_true")
    wanted = parser.parse_args()
    if wanted.write:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == page():
        return 0
    print(f"{PAGE.name} is older than Settings: python docs/configuration_table.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
