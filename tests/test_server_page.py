"""The search page in a real browser, where there is one: asked by its address, and read."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("mcp")

from listening import listening, serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_page_shows_passages_with_the_words_marked(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is there")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    with serving(tmp_path) as service, listening(service) as port:
        address = f"http://127.0.0.1:{port}/?q=where+do+cats+sleep&store=notes"
        # Its clock stands still while an answer is under way.
        command = [browser, *options, profile, "--virtual-time-budget=10000", address]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=240)
    first = re.search(r'<li><h2>note#1</h2>.*?<div class="text">(.*?)</div>.*?</li>', seen.stdout)
    assert first is not None, seen.stdout[-3000:] + seen.stderr[-1000:]
    assert first[1] == "<mark>cats</mark> <mark>sleep</mark> on the sofa"
    assert "reranker" in first[0]
    assert re.search(r"3 passages in \d+ ms: embed", seen.stdout)
    assert "notes: 3 passages, hash:32" in seen.stdout
