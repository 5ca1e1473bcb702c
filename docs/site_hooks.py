"""What mkdocs does to pages: notebooks become some, and links out of docs/ lead to the repository.

A notebook `../notebooks/01-x.ipynb` is the page `notebooks/01-x.md` of the site, with the outputs
it was committed with; nothing is run.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

NOTEBOOKS = "notebooks"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each notebook, and its pictures."""
    from mkdocs.structure.files import File

    folder = Path(config["docs_dir"]).parent / NOTEBOOKS
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        markdown, pictures = page_of(notebook, path.stem)
        markdown = outside(markdown, config, "(?!docs/)").replace("](../docs/", "](../")
        markdown = re.sub(r"\]\(([\w-]+)\.ipynb", r"](\1.md", markdown)
        for name, content in {f"{path.stem}.md": markdown, **pictures}.items():
            files.append(File.generated(config, f"{NOTEBOOKS}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links to notebooks lead to their pages, and those to other files to the repository."""
    if page.file.src_uri.startswith(f"{NOTEBOOKS}/"):
        return markdown
    markdown = re.sub(r"\]\(\.\./notebooks/([\w-]+)\.ipynb", r"](notebooks/\1.md", markdown)
    return outside(markdown, config)


def outside(markdown: str, config: Any, which: str = "") -> str:
    """`](../benchmarks/x.py)` becomes a link to that file on the repository's main branch.

    Without a repository's address (`repo_url`) the words of the link stay, and the link goes.
    """
    if address := config["repo_url"]:
        return re.sub(rf"\]\(\.\./{which}", f"]({address.rstrip('/')}/blob/main/", markdown)
    return re.sub(rf"\[([^\]]+)\]\(\.\./{which}[^)]*\)", r"\1", markdown)


def page_of(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their file names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(fenced("python", source))
            for output in cell["outputs"]:
                data = output.get("data", {"text/plain": output.get("text", "")})
                if "image/png" in data:
                    name = f"{stem}-{len(pictures) + 1}.png"
                    pictures[name] = base64.b64decode("".join(data["image/png"]))
                    parts.append(f"![{stem}, figure {len(pictures)}]({name})")
                elif "text/markdown" in data:
                    parts.append("".join(data["text/markdown"]))
                elif "text/html" in data:
                    parts.append("<div>" + "".join(data["text/html"]) + "</div>")
                else:
                    parts.append(fenced('text title="Output"', "".join(data["text/plain"])))
    return "\n\n".join(parts) + "\n", pictures


def fenced(kind: str, text: str) -> str:
    """A block of code, in a fence that is longer than any inside it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"
