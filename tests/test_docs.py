"""Pages for people: their code runs, their commands exist, their links lead somewhere.

A block that cannot run here has a comment on the line before it, ``<!-- not run: why -->``; its
syntax and its options are checked all the same.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from nox.project import load_toml

from tars_rag import Embedder
from tars_rag.cli import app

pytest_plugins = ["tiny_models"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.mdx"),
    ]
}
BLOCK = re.compile(
    r"(?ms)^(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$"
)
OWN_TEST = {"docs/langchain.md", "docs/llama-index.md"}  # run by test_framework_docs.py


class Block(NamedTuple):
    code: str
    runs: bool


def blocks(page: str, kind: str) -> list[Block]:
    found = BLOCK.finditer(PAGES[page])
    return [Block(m["code"], m["why"] is None) for m in found if m["kind"] == kind]


def with_blocks(kind: str, *, runs: bool = False) -> list[str]:
    return [p for p in sorted(PAGES) if any(b.runs or not runs for b in blocks(p, kind))]


def test_every_fenced_block_is_read() -> None:
    for page, text in PAGES.items():
        fences = len(re.findall(r"(?m)^```", text))
        assert fences == 2 * len(BLOCK.findall(text)), f"{page}: a fence that is not closed"


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_is_valid(page: str) -> None:
    for block in blocks(page, "python"):
        ast.parse(block.code)


def commands(code: str) -> list[list[str]]:
    """The words of each `tars-rag` command of a shell block, behind the name of the program."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;|\|", re.sub(r"(^|\s)#.*", "", line)):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and Path(words[0]).name == "tars-rag":
                found.append(words[1:])
    return found


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_commands_and_their_options_exist(page: str) -> None:
    program: Any = typer.main.get_command(app)
    for block in blocks(page, "bash"):
        subprocess.run(["bash", "-n", "-c", block.code], check=True)
        for words in commands(block.code):
            command, rest = program, list(words)
            while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
                command = command.get_command(None, rest.pop(0))
                assert command is not None, f"{page}: tars-rag {shlex.join(words)}"
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            used = {word.split("=")[0] for word in rest if word.startswith("-")}
            assert used <= known, f"{page}: tars-rag {shlex.join(words)}: {used - known}"


def test_commands_work_before_there_is_a_release() -> None:
    """RELEASING.md and docs/listing may install it by name: they are about the release."""
    texts = {page: text for page, text in PAGES.items() if not page.startswith("docs/listing/")}
    texts |= {str(p): p.read_text("utf-8") for p in (ROOT / "notebooks").rglob("*.ipynb")}
    del texts["RELEASING.md"]
    named = r"(?:pip|uv|pipx|tool) (?:install|add|run) (?:-\S+ )*['\"\\]*tars-rag\b"
    found = [(page, match) for page, text in texts.items() for match in re.findall(named, text)]
    assert not found


def test_the_readme_reads_well_on_an_index() -> None:
    """What pyproject.toml makes of it has no link or picture that only a repository resolves."""
    text = PAGES["README.md"]
    hooks = load_toml(str(ROOT / "pyproject.toml"))["tool"]["hatch"]["metadata"]["hooks"]
    for change in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    assert "<!--" not in text
    assert "docs/troubleshooting.md" in text  # the words stay


def test_pictures_are_what_their_tables_say() -> None:
    script = [sys.executable, str(ROOT / "docs" / "pictures.py"), "--check"]
    assert subprocess.run(script, capture_output=True, text=True).stderr == ""


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    found: set[str] = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"(?m)^#{1,6} (.+?)(?: \{#[\w-]+\})?$", text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip()))
    return found


def test_links_and_anchors_lead_somewhere() -> None:
    wrong = []
    for page, text in PAGES.items():
        prose = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", text)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"\w+:|/oss/", target):
                continue
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            if not path.exists():
                wrong.append(f"{page}: {target}")
            elif anchor and path.suffix == ".md" and anchor not in slugs(path.read_text("utf-8")):
                wrong.append(f"{page}: {target}: no such heading")
    assert not wrong


@pytest.fixture
def place(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what pages speak of: the documentation, a model, the programs."""
    Embedder(device="cpu").close()  # where the weights cannot be had, this says why
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("models.md", "npu.md", "fusion.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "my-model").symlink_to(tiny_models / "tiny")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return tmp_path


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", sorted({*with_blocks("python", runs=True)} - OWN_TEST))
def test_python_runs(page: str, place: Path, tiny_models: Path) -> None:
    names: dict[str, object] = {}
    reranker = f"Rerank(model={str(tiny_models / 'tiny-ce')!r}, "  # the published one is on a hub
    for number, block in enumerate(blocks(page, "python"), 1):
        if block.runs:
            code = block.code.replace("Rerank(", reranker)
            exec(compile(code, f"{page}, block {number}", "exec"), names)
    for opened in names.values():
        if not isinstance(opened, type):
            getattr(opened, "close", lambda: None)()


@pytest.mark.weights
@pytest.mark.parametrize("page", with_blocks("bash", runs=True))
def test_shell_runs(page: str, place: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page, "bash"):
        if block.runs:
            command = ["bash", "-euc", block.code]
            done = subprocess.run(
                command, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{block.code}\n{done.stdout}{done.stderr}"


def test_the_site_has_every_page_of_docs() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    named = [page for item in nav for entry in item.values() for page in leaves(entry)]
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    pages += [f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(named) == sorted(pages)


def leaves(entry: str | list[dict[str, str]]) -> list[str]:
    """The pages of an entry of the site's navigation."""
    return [entry] if isinstance(entry, str) else [page for one in entry for page in one.values()]


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("https://git.example/a/b/", "[rows](https://git.example/a/b/blob/main/benchmarks/x.py)"),
        (None, "rows"),  # no address yet: the words stay
    ],
)
def test_links_that_leave_docs_lead_to_the_repository_if_it_has_an_address(
    address: str | None, link: str
) -> None:
    outside = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))["outside"]
    page = "See [rows](../benchmarks/x.py), [store](../docs/store.md)."
    made = outside(page, {"repo_url": address}, "(?!docs/)")
    assert made == f"See {link}, [store](../docs/store.md)."


def messages() -> set[str]:
    """Every string of the source but docstrings, with a NUL where a value is put in."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set() if id(node) in docstrings else {node.value}
            elif isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                found.add("".join(map(str, parts)))
    return found


@pytest.mark.slow
def test_messages_that_are_explained_are_those_of_the_source() -> None:
    said = messages()
    quoted = [block.code.strip() for block in blocks("docs/troubleshooting.md", "text")]
    wrong = []
    for quote in quoted:
        parts = [re.escape(part.strip()) for part in quote.split("...") if part.strip()]
        pattern = re.compile(".*?".join(parts), re.DOTALL)
        if not any(pattern.search(message) for message in said):
            wrong.append(quote)
    assert len(quoted) > 40
    assert not wrong
