"""Trees of mixed files for tests: made, and changed at random."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

from conftest import HashEmbedder
from documents import MADE, pdf
from tars_rag.ingest.run import Report, ingest
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter

_WORDS = ["board", "fan", "heat", "sofa", "garden", "music", "piano", "guitar", "river", "sleep"]
_OFFICE = ("docx", "odt", "epub", "rtf", "pptx", "html")
_CELLS = '<row r="1"><c r="A1" t="inlineStr"><is><t>{}</t></is></c></row>'
_WORKBOOK = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
    'content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
    'relationships+xml"/><Default Extension="xml" ContentType="application/xml"/><Override '
    'PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
    'relationships"><Relationship Id="r" Type="http://schemas.openxmlformats.org/officeDocument/'
    '2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": '<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    ' xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>'
    '<sheet name="One" sheetId="1" r:id="r"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/'
    '2006/relationships"><Relationship Id="r" Type="http://schemas.openxmlformats.org/'
    'officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
_SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    f"{_CELLS}</sheetData></worksheet>"
)


def prose(seed: int, sentences: int = 5) -> str:
    rng = random.Random(seed)
    said = (" ".join(rng.choices(_WORDS, k=7)).capitalize() for _ in range(sentences))
    return f"Note {seed}. {'. '.join(said)}."


def sheet(path: Path, text: str) -> None:
    """Write an XLSX of one cell."""
    with zipfile.ZipFile(path, "w") as held:
        for name, part in _WORKBOOK.items():
            held.writestr(name, part)
        held.writestr("xl/worksheets/sheet1.xml", _SHEET.format(text))


def mixed(top: Path, count: int) -> set[str]:
    """Write so many files of all kinds; returns the paths of those that nobody can read."""
    bad: set[str] = set()
    for n in range(count):
        folder = top / f"part{n % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        kind, text = n % 20, prose(n)
        path = folder / f"note{n}"
        if kind < 6:
            path = path.with_suffix((".txt", ".md", ".py", ".csv", ".html", ".jsonl")[kind])
            shown = {
                1: f"---\ntitle: Note {n}\n---\n# One\n\n{text}\n\n## Two\n\n{prose(n + 1)}\n",
                2: f"def note{n}():\n    return {text!r}\n",
                3: f"name,text\nnote{n},{text}\n",
                4: f"<html><body><h1>Note {n}</h1><p>{text}</p><script>x()</script></body></html>",
                5: f'{{"id": "row{n}", "text": "{text}"}}\n',
            }
            path.write_text(shown.get(kind, text))
        elif kind < 12:
            path = path.with_suffix(f".{_OFFICE[kind - 6]}")
            shutil.copyfile(MADE / f"manual.{_OFFICE[kind - 6]}", path)
        elif kind < 14:
            pdf(path.with_suffix(".pdf"), [text, prose(n + 1)], title=f"Note {n}")
        elif kind == 14:
            path.with_suffix(".eml").write_text(f"From: a@b.c\nSubject: Note {n}\n\n{text}\n")
        elif kind == 15:
            sheet(path.with_suffix(".xlsx"), text)
        else:
            path = path.with_suffix((".pdf", ".docx", ".txt", ".jsonl")[kind - 16])
            office = (MADE / "manual.docx").read_bytes()
            rubbish = (b"%PDF-1.4 no", office[: 900 + n], b"a\0\x81\xff\0b" * 9, b'{"id": 3\n')
            path.write_bytes(rubbish[kind - 16])
            bad.add(str(path))
    return bad


class Gardener:
    """Changes a tree of small text files at random."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top, self.rng, self.made = top, random.Random(seed), 0
        top.mkdir(exist_ok=True)

    def change(self) -> None:
        """One change: a file or folder made, rewritten, moved or deleted."""
        files = sorted(path for path in self.top.rglob("*") if path.is_file())
        folders = sorted(path for path in self.top.rglob("*") if path.is_dir())
        what = self.rng.random()
        if what < 0.4 or len(files) < 5:
            self._write(self._new((".txt", ".md")[self.made % 2], folders))
        elif what < 0.6:
            self._write(self.rng.choice(files))
        elif what < 0.65:
            self.rng.choice(files).touch()
        elif what < 0.8:
            old = self.rng.choice(files)
            old.rename(self._new(old.suffix, folders))
        elif what < 0.92:
            self.rng.choice(files).unlink()
        elif folders and what < 0.96:
            self.rng.choice(folders).rename(self._new("", []))
        elif folders:
            shutil.rmtree(self.rng.choice(folders))

    def _new(self, suffix: str, folders: list[Path]) -> Path:
        self.made += 1
        folder = self.rng.choice([self.top, *folders])
        if self.rng.random() < 0.2:
            folder /= f"folder{self.made}"
            folder.mkdir()
        return folder / f"n{self.made}{suffix}"

    def _write(self, path: Path) -> None:
        path.write_text(prose(self.rng.randrange(40), self.rng.randrange(1, 30)))


Held = dict[str, tuple[str, dict[str, Any]]]


def contents(store: HybridStore) -> Held:
    """Id -> text and metadata, of all that a store holds."""
    return {p.id: (p.text, dict(p.metadata)) for p in store.get()}


def afresh(top: Path, store: Path, splitter: Splitter) -> tuple[Held, Report]:
    """What an undisturbed run over a tree puts into a new store."""
    with HybridStore(store, HashEmbedder()) as opened:
        report = ingest(opened, [top], splitter)
        return contents(opened), report
