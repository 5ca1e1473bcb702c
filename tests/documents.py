"""Documents for tests, made on the spot."""

from __future__ import annotations

import lzma
import zipfile
from collections.abc import Sequence
from pathlib import Path

MADE = Path(__file__).parent / "data" / "documents"


def unpacked(name: str, folder: Path) -> Path:
    """A document of `data/documents`; copied into a folder if it is kept compressed."""
    if (MADE / name).exists():
        return MADE / name
    path = folder / name
    path.write_bytes(lzma.decompress((MADE / f"{name}.xz").read_bytes()))
    return path


def pdf(path: Path, pages: Sequence[str], title: str = "A title") -> Path:
    """Write a PDF with a page for each text; its lines stay lines."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources "
            b"<< /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (5 + 2 * n)
        )
        lines = "".join(f"({line}) Tj T* " for line in text.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 72 760 Td {lines}ET".encode("latin-1")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    objects.append(f"<< /Title ({title}) >>".encode())
    out, places = b"%PDF-1.4\n", []
    for n, held in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (n, held)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>" % (count, len(objects))
    tail = b"xref\n0 %d\n0000000000 65535 f \n%s%s\nstartxref\n%d\n%%%%EOF"
    path.write_bytes(out + tail % (count, table, end, len(out)))
    return path


def locked(path: Path) -> Path:
    """Write a PDF that asks for a password (nobody knows which)."""
    plain = pdf(path, ["A secret."]).read_bytes()
    lock = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (b"41" * 32, b"42" * 32)
    path.write_bytes(
        plain.replace(b"trailer << ", b"trailer << /Encrypt %s /ID [<00> <00>] " % lock)
    )
    return path


def bomb(path: Path) -> Path:
    """Write a DOCX of a hundred kilobytes that unpacks to 90 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        with held.open("word/document.xml", "w") as stream:
            for _ in range(90):
                stream.write(b" " * (1 << 20))
        held.writestr("[Content_Types].xml", "<Types/>")
    return path
