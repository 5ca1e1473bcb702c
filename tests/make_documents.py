"""Makes the documents of `data/documents` anew, by the programs that people use.

python tests/make_documents.py    (needs soffice, chromium, mutt, and fonts with Arabic and Chinese)

Its input are `manual.docx`, `manual.pptx` and `manual.html`, which pandoc made.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent / "data" / "documents"
_SHEET = "name,pump,temperature\nNorth,Kraken,61\nSouth,Hydra,58\n東京,ポンプ,60\nرجل,مضخة,59\n"
_SCAN = """<body style="font: 28px serif; margin: 40px; width: 700px">
<p>The old pump of the lighthouse needs oil every morning.</p>
<p>Close the valve before the water is warmer than sixty degrees.</p></body>"""
_PICTURE = '<style>@page{margin:0}</style><img src="scan.png" style="width:100%">'
_RIGHT_TO_LEFT = """<meta charset="utf-8"><title>مضخة</title><body dir="rtl"><h1>مضخة المنارة</h1>
<p>المضخة القديمة في المنارة تحتاج إلى الزيت كل صباح في الساعة 9.</p>
<p>أغلق الصمام قبل أن تصبح درجة حرارة الماء فوق 60 درجة.</p>
<h1>משאבה</h1><p>המשאבה הישנה של המגדלור צריכה שמן בכל בוקר בשעה 9.</p></body>"""
_MAIL = """Hello Zoë,

please oil the pump every morning at nine. 東京は日本の首都です。 مرحبا بالعالم

The list is attached.
"""


def office(folder: Path, source: Path, kind: str, name: str, password: str = "") -> None:
    """Let LibreOffice read a file and write it as another kind."""
    lock = {
        "EncryptFile": {"type": "boolean", "value": "true"},
        "DocumentOpenPassword": {"type": "string", "value": password},
    }
    target = f"{kind}:writer_pdf_Export:{json.dumps(lock)}" if password else kind
    profile = f"-env:UserInstallation=file://{folder}/profile"
    table = ["--infilter=CSV:44,34,76"] if source.suffix == ".csv" else []
    command = ["soffice", "--headless", profile, *table, "--convert-to", target]
    subprocess.run([*command, "--outdir", folder, source], check=True, capture_output=True)
    shutil.move(folder / f"{source.stem}.{kind}", folder / name)


def chromium(source: Path, *arguments: str) -> None:
    """Let Chromium print or draw a page."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command = ["chromium", *options, *arguments, source.as_uri()]
    subprocess.run(command, check=True, capture_output=True)


def page(folder: Path, name: str, html: str) -> Path:
    path = folder / name
    path.write_text(html)
    return path


def mail(folder: Path, attached: Path, name: str) -> None:
    """Let mutt send a mail, to a program that keeps it."""
    keeper = page(folder, "keep", f'#!/bin/sh\ncat > "{folder / name}"\n')
    keeper.chmod(0o755)
    lines = [f"sendmail={keeper}", 'from="Ada <ada@example.org>"', "hostname=example.org"]
    lines += ["charset=utf-8", "send_charset=utf-8", "copy=no"]
    settings = page(folder, "muttrc", "".join(f"set {line}\n" for line in lines))
    command = ["mutt", "-F", settings, "-s", "The pump is heiß", "-a", attached, "--"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [*command, "Zoë <zoe@example.org>"], input=_MAIL.encode(), check=True, env=environment
    )


def make(folder: Path) -> None:
    """Make all of them in a folder."""
    sheet = page(folder, "sheet.csv", _SHEET)
    for kind in ("docx", "doc", "odt", "rtf", "pdf"):
        office(folder, HERE / "manual.docx", kind, f"libreoffice.{kind}")
    office(
        folder,
        HERE / "manual.docx",
        "pdf",
        "locked.pdf",
        EncryptFile=True,
        DocumentOpenPassword="s",
    )
    for kind in ("pptx", "ppt"):
        office(folder, HERE / "manual.pptx", kind, f"libreoffice.{kind}")
    for kind in ("xlsx", "xls", "ods"):
        office(folder, sheet, kind, f"libreoffice.{kind}")
    chromium(HERE / "manual.html", f"--print-to-pdf={folder}/chromium.pdf")
    arabic = page(folder, "arabic.html", _RIGHT_TO_LEFT)
    office(folder, arabic, "pdf", "libreoffice-arabic.pdf")
    scan = page(folder, "scan.html", _SCAN)
    chromium(scan, "--window-size=800,400", f"--screenshot={folder}/scan.png")
    chromium(page(folder, "picture.html", _PICTURE), f"--print-to-pdf={folder}/scan.pdf")
    leaf = "<div style='break-after: page'>Page {n} is about fan number {n}.</div>"
    book = "".join(leaf.format(n=n) for n in range(1, 301))
    chromium(page(folder, "book.html", book), f"--print-to-pdf={folder}/book.pdf")
    mail(folder, sheet, "mutt.eml")
    for name in ("book.pdf", "libreoffice.ppt"):  # large, and mostly air
        path = folder / name
        (folder / f"{name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
        path.unlink()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        for kept in (
            "libreoffice*",
            "chromium.pdf",
            "locked.pdf",
            "scan.pdf",
            "book.*.xz",
            "*.eml",
        ):
            for path in Path(made).glob(kept):
                shutil.copyfile(path, HERE / path.name)
