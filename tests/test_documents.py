"""Documents of real programs are read; what cannot be read costs that file and not the run."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import HashEmbedder
from documents import MADE, bomb, locked, pdf, unpacked
from tars_rag import advice
from tars_rag.cli import app
from tars_rag.errors import InvalidInputError
from tars_rag.ingest import documents
from tars_rag.ingest.chunks import pieces
from tars_rag.ingest.documents import DocumentReader, Limits
from tars_rag.ingest.formats import FORMATS, format_of
from tars_rag.ingest.run import ingest
from tars_rag.ingest.sources import sources_of
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore
from tars_rag.splitting.splitter import Splitter
from tiny_models import write_model

pytest.importorskip("kreuzberg")
_DAMAGED = os.environ.get("TARS_RAG_DAMAGED")  # examples, drawn anew in each run
_LETTERS = ("docx", "doc", "odt", "rtf", "pdf", "pptx", "ppt")
_WHOLE = sorted(
    path.name.removesuffix(".xz")
    for path in MADE.iterdir()
    if path.suffix != ".md" and path.name != "book.pdf.xz"
)


@pytest.fixture(scope="module")
def splitter(tmp_path_factory: pytest.TempPathFactory) -> Splitter:
    model = write_model(tmp_path_factory.mktemp("t") / "tiny", head=False, seed=5)
    return Splitter(model / "tokenizer.json", max_length=66, overlap=8)


@pytest.fixture(scope="module")
def reader() -> Iterator[DocumentReader]:
    with DocumentReader(Limits(seconds=60)) as opened:
        yield opened


def passages(path: Path, splitter: Splitter, reader: DocumentReader) -> list[Passage]:
    found = list(pieces(path, splitter, reader))
    assert [piece.problem for piece in found if piece.problem] == []
    return [piece.passage for piece in found if piece.passage]


@pytest.mark.parametrize("kind", ["docx", "odt", "epub", "rtf", "pptx", "html"])
def test_what_pandoc_writes_is_read(kind: str, splitter: Splitter, reader: DocumentReader) -> None:
    found = passages(MADE / f"manual.{kind}", splitter, reader)
    text = "\n".join(passage.text for passage in found)
    for part in ("Oil the pump every morning", "sixty degrees", "東京は日本の首都です。", "مرحبا"):
        assert part in text
    assert "| hull" in text
    assert "hidden_word" not in text
    assert "meta-author" not in text
    if kind not in ("rtf", "pptx"):
        assert {passage.metadata["title"] for passage in found} == {"The pump manual"}
        assert "Care > Heat" in {passage.metadata.get("heading", "")[-11:] for passage in found}


@pytest.mark.parametrize("name", [*(f"libreoffice.{kind}" for kind in _LETTERS), "chromium.pdf"])
def test_what_office_and_browser_write_is_read(
    name: str, tmp_path: Path, splitter: Splitter, reader: DocumentReader
) -> None:
    found = passages(unpacked(name, tmp_path), splitter, reader)
    text = "\n".join(passage.text for passage in found)
    for part in ("Oil the pump every morning", "sixty degrees", "東京は日本の首都です。", "hull"):
        assert part in text
    assert "&#" not in text
    assert name == "chromium.pdf" or {"مرحبا", "بالعالم"} <= set(text.split())
    assert {passage.metadata["title"] for passage in found} == {"The pump manual"}
    assert {passage.metadata.get("page") for passage in found} == {
        1 if name.endswith(".pdf") else None
    }
    if name.endswith((".docx", ".odt")):
        assert "Care > Heat" in {passage.metadata.get("heading", "")[-11:] for passage in found}


@pytest.mark.parametrize("kind", ["xlsx", "xls", "ods"])
def test_rows_of_a_spreadsheet_stay_rows(
    kind: str, splitter: Splitter, reader: DocumentReader
) -> None:
    text = "\n".join(p.text for p in passages(MADE / f"libreoffice.{kind}", splitter, reader))
    for row in (["North", "Kraken", "61"], ["東京", "ポンプ", "60"], ["رجل", "مضخة", "59"]):
        assert f"| {' | '.join(row)} |" in text


def test_lines_from_right_to_left_keep_their_words(
    splitter: Splitter, reader: DocumentReader
) -> None:
    found = passages(MADE / "libreoffice-arabic.pdf", splitter, reader)
    words = set(" ".join(passage.text for passage in found).split())
    assert {"المضخة", "القديمة", "الزيت", "המשאבה", "הישנה", "המגדלור"} <= words


def test_a_mail_of_a_real_program(splitter: Splitter, reader: DocumentReader) -> None:
    found = passages(MADE / "mutt.eml", splitter, reader)
    assert {passage.metadata["title"] for passage in found} == {"The pump is heiß"}
    assert {passage.metadata["created"][:4] for passage in found} == {"2026"}
    text = "\n".join(passage.text for passage in found)
    for part in ("Zoë", "oil the pump every morning", "東京は日本の首都です。 مرحبا بالعالم"):
        assert part in text


def test_a_locked_document_and_a_scan_are_told(reader: DocumentReader) -> None:
    for name, message in (("locked.pdf", "password"), ("scan.pdf", "--ocr reads them")):
        with pytest.raises(InvalidInputError, match=message) as caught:
            reader.read(MADE / name, format_of(MADE / name))
        assert str(MADE / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs tesseract")
def test_a_scan_is_read_by_tesseract_with_its_page(tmp_path: Path, splitter: Splitter) -> None:
    with DocumentReader(Limits(ocr=True, seconds=300)) as reader:
        found = passages(MADE / "scan.pdf", splitter, reader)
        blank = pdf(tmp_path / "blank.pdf", [""])
        with pytest.raises(InvalidInputError, match="nor has what tesseract sees"):
            reader.read(blank, format_of(blank))
        both = pdf(tmp_path / "both.pdf", ["Of letters.", ""])
        assert reader.read(both, format_of(both)).text == "Of letters."
    assert "The old pump of the lighthouse needs oil" in found[0].text
    assert {passage.metadata["page"] for passage in found} == {1}


_PRIVET = "Привет, мир: насос старый"
_LATIN = b'<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">'
_GERMAN = "Die Pumpe wird jeden Morgen geölt, damit sie nicht heiß läuft und für Jahre hält."


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (f"<meta charset=windows-1251><p>{_PRIVET}".encode("cp1251"), _PRIVET),
        (f"<meta charset=windows-1251><p>{_PRIVET}".encode(), _PRIVET),  # saved by a browser
        (f"<p>{_GERMAN}".encode("latin-1"), _GERMAN),
        (_LATIN + "<p>“Zoë”".encode("cp1252"), "“Zoë”"),
        ("<?xml version='1.0' encoding='euc-jp'?><p>東京は日本の".encode("euc-jp"), "東京は日本の"),
        ("<meta charset='iso-2022-jp'><p>東京は日本の".encode("iso-2022-jp"), "東京は日本の"),
        (b"<meta charset=utf-16><p>A wrong name", "A wrong name"),
        (b"<meta charset=rot13><p>No encoding", "No encoding"),
        ("<p>Zoë 東京".encode("utf-16"), "Zoë 東京"),
        ("\ufeff<p>Zoë 東京".encode(), "Zoë 東京"),
        (
            b"<p>One \xff byte in a long page is wrong, and the others are not." * 2,
            "in a long page",
        ),
    ],
)
def test_a_page_is_read_as_a_browser_reads_it(
    page: bytes, text: str, tmp_path: Path, reader: DocumentReader
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(page)
    read = reader.read(path, format_of(path)).text
    assert text in read
    assert "\ufeff" not in read


def test_a_page_that_is_none_is_told(tmp_path: Path, reader: DocumentReader) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"<meta charset=utf-8><p>" + bytes(range(128, 256)) * 9)
    with pytest.raises(InvalidInputError, match=r"page\.html cannot be read: its characters"):
        reader.read(path, format_of(path))


def test_a_mail_is_called_what_its_subject_says(splitter: Splitter, reader: DocumentReader) -> None:
    found = passages(MADE / "mail.eml", splitter, reader)
    assert {passage.metadata["title"] for passage in found} == {"The pump is heiß"}
    assert "Zoë oils the pump" in found[-1].text


def test_a_pdf_says_on_which_page(
    tmp_path: Path, splitter: Splitter, reader: DocumentReader
) -> None:
    texts = [f"Page {n} is about fan number {n}. " * 12 for n in range(1, 4)]
    path = pdf(tmp_path / "a.pdf", texts, title="Fans")
    found = passages(path, splitter, reader)
    assert {passage.metadata["title"] for passage in found} == {"Fans"}
    first: dict[int, str] = {}
    for passage in found:
        first.setdefault(passage.metadata["page"], passage.text)
    assert sorted(first) == [1, 2, 3]
    assert "fan number 3" in first[3]


_BINARY = [".pdf", ".docx", ".pptx", ".xlsx", ".odt", ".ods", ".epub", ".msg", ".doc", ".xls"]


@pytest.mark.parametrize("kind", _BINARY)
def test_nothing_and_rubbish_are_named(kind: str, tmp_path: Path, reader: DocumentReader) -> None:
    path = tmp_path / f"empty{kind}"
    path.write_bytes(b"")
    form = format_of(path)
    with pytest.raises(InvalidInputError, match="is empty"):
        reader.read(path, form)
    path.write_bytes(b"PK\3\4\0\0" if "open" in form.mime else b"\xd0\xcf\x11\xe0\0\0\0")
    with pytest.raises(InvalidInputError, match=re.escape(str(path))):
        reader.read(path, form)


@settings(max_examples=int(_DAMAGED or 60), derandomize=not _DAMAGED)
@given(
    name=st.sampled_from(_WHOLE),
    share=st.floats(0, 1),
    changed=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=30),
)
def test_a_damaged_file_is_read_or_named(
    name: str,
    share: float,
    changed: list[tuple[float, int]],
    reader: DocumentReader,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Cut anywhere, and bytes overwritten anywhere: never another error, and the next is read."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    whole = bytearray(unpacked(name, folder).read_bytes())
    for place, byte in changed:
        whole[int(place * (len(whole) - 1))] = byte
    path = folder / f"damaged-{name}"
    path.write_bytes(whole[: math.ceil(share * len(whole))])
    told = ""
    try:
        assert reader.read(path, format_of(path)).text.strip()
    except InvalidInputError as error:
        told = str(error)
    assert not told or (str(path) in told and "\n" not in told)
    assert "Zoë" in reader.read(MADE / "mail.eml", format_of(Path("mail.eml"))).text


@pytest.mark.parametrize("kind", ["docx", "odt", "epub", "pptx"])
def test_a_file_that_was_cut_off_is_named(
    kind: str, tmp_path: Path, reader: DocumentReader
) -> None:
    whole = (MADE / f"manual.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        reader.read(path, format_of(path))


@pytest.mark.slow
def test_what_is_hostile_costs_that_file_only(tmp_path: Path, splitter: Splitter) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pdf(folder / "scan.pdf", ["", ""])
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 rubbish")
    bomb(folder / "bomb.docx")
    pdf(folder / "large.pdf", ["x" * 3000] * 40)
    pdf(folder / "good.pdf", ["The pump needs oil."])
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        report = ingest(store, [folder], splitter, limits=Limits(megabytes=0.5, pages=30))
        texts = [passage.text for passage in store.get()]
    told = {Path(source).name: problem for source, problem in report.failures}
    assert sorted(told) == ["bomb.docx", "broken.pdf", "large.pdf", "scan.pdf"]
    assert "--ocr" in told["scan.pdf"]
    assert "unpacks to" in told["bomb.docx"]
    assert "--max-pages" in told["large.pdf"]
    assert texts == ["The pump needs oil."]


@pytest.mark.slow
def test_each_hostile_file_is_one_line_of_the_command_and_the_rest_is_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "tiny", head=False, seed=5)
    monkeypatch.setenv("EMBED_MODEL", str(model))
    folder, store = tmp_path / "in", tmp_path / "store"
    folder.mkdir()
    locked(folder / "locked.pdf")
    for name in ("locked.pdf", "scan.pdf"):
        shutil.copyfile(MADE / name, folder / f"office-{name}")
    (folder / "empty.pdf").write_bytes(b"")
    for kind in ("doc", "xls", "xlsx", "ods"):
        path = folder / f"cut.{kind}"
        path.write_bytes((MADE / f"libreoffice.{kind}").read_bytes()[:3000])
    bomb(folder / "bomb.docx")
    whole = pdf(folder / "good.pdf", ["The pump needs oil."]).read_bytes()
    (folder / "cut.pdf").write_bytes(whole[: len(whole) // 2])
    for kind in ("docx", "odt", "epub", "pptx"):
        office = (MADE / f"manual.{kind}").read_bytes()
        (folder / f"cut.{kind}").write_bytes(office[: len(office) // 2])
        (folder / f"empty.{kind}").write_bytes(b"")
    (folder / "binary.txt").write_bytes(b"a\0\x81\xff\0b" * 9)
    (folder / "scripts.html").write_text("<p>A cat sleeps.</p><script>hidden_word()</script>")
    (folder / "arabic.txt").write_text("مرحبا بالعالم، هذه مضخة.")
    (folder / "japanese.md").write_text("# 東京\n\n東京は日本の首都です。")
    done = CliRunner().invoke(app, ["index", str(folder), "--store", str(store)])
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("not indexed: ")]
    good = {"good.pdf", "scripts.html", "arabic.txt", "japanese.md"}
    bad = sorted(path.name for path in folder.iterdir() if path.name not in good)
    assert len(lines) == len(bad)
    assert all(any(f"{folder / name}" in line for line in lines) for name in bad)
    assert {Path(one).name for one, count in sources_of(store).items() if count} == good


@pytest.mark.slow
def test_a_book_of_300_pages(tmp_path: Path, splitter: Splitter, reader: DocumentReader) -> None:
    found = passages(unpacked("book.pdf", tmp_path), splitter, reader)
    text = " ".join(passage.text for passage in found)
    assert {int(n) for n in re.findall(r"Page (\d+)", text)} == set(range(1, 301))
    for passage in found:
        first = re.search(r"Page (\d+)", passage.text)
        assert first is not None
        assert passage.metadata["page"] == int(first[1])


def test_a_large_file_is_not_even_opened(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf", ["x" * 2000])
    with pytest.raises(InvalidInputError, match=r"--max-file-mb 1"):
        DocumentReader(Limits(megabytes=0.001)).read(path, format_of(path))


_HARM = {"hang": "time.sleep(60)", "die": "os.abort()", "grow": "bytearray(2 << 30)"}


@pytest.mark.parametrize("how", ["hang", "die", "grow"])
def test_a_reader_that_hangs_or_dies_is_replaced(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in is the library in the child: what it does with a file's bytes."""
    stub = tmp_path / "stub" / "kreuzberg.py"
    stub.parent.mkdir()
    stub.write_text(
        "import os, time\n"
        "class ExtractionConfig:\n    def __init__(self, **options): pass\n"
        "class PageConfig(ExtractionConfig): pass\n"
        "class Found:\n    content = 'fine'\n    metadata = {}\n    pages = None\n"
        "def extract_file_sync(path, mime, config):\n"
        "    if 'bad' in path:\n"
        f"        {_HARM[how]}\n"
        "    return Found()\n"
    )
    monkeypatch.syspath_prepend(str(stub.parent))
    good, bad = tmp_path / "good.rtf", tmp_path / "bad.rtf"
    good.write_text("x")
    bad.write_text("x")
    began = time.monotonic()
    with DocumentReader(Limits(seconds=3, memory_megabytes=400)) as reader:
        assert reader.read(good, format_of(good)).text == "fine"
        with pytest.raises(InvalidInputError, match=r"bad\.rtf") as caught:
            reader.read(bad, format_of(bad))
        assert reader.read(good, format_of(good)).text == "fine"
    assert {"hang": "given up", "die": "SIGABRT", "grow": "MemoryError"}[how] in str(caught.value)
    assert time.monotonic() - began < 40


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pdf(tmp_path / "a.pdf", ["x"])
    monkeypatch.setattr(documents, "documents_are_read", lambda: False)
    with pytest.raises(InvalidInputError, match=re.escape(advice.install("documents"))):
        DocumentReader().read(path, format_of(path))


def test_the_child_is_asked_for_no_source_code() -> None:
    code = [s for s, form in FORMATS.items() if form.form == "code"]
    assert ".py" in code
    assert all(FORMATS[suffix].kind == "text" for suffix in code)
