"""What all pages have: their styles, scripts that are known by their hash, and data that ends nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from instructgpt.html import read_page, script_data, script_policy

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "instructgpt").rglob("*.html"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_a_page_has_the_shared_styles_and_every_colour_that_it_names(path: Path):
    html = read_page(path)
    assert "/*shared*/" in path.read_text(encoding="utf-8") and "/*shared*/" not in html
    given, asked = set(re.findall(r"(--[a-z-]+):", html)), set(re.findall(r"var\((--[a-z-]{2,})", html))
    assert {"--paper", "--ink"} <= asked <= given


def test_no_page_repeats_what_is_shared():
    shared = set((ROOT / "instructgpt/page.css").read_text(encoding="utf-8").splitlines())
    for path in PAGES:
        assert {line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 1} & shared == {":root {"}


def test_a_policy_names_the_scripts_that_stand_in_the_page_and_no_data():
    one = f"'sha256-{base64.b64encode(hashlib.sha256(b'run()').digest()).decode()}'"
    assert script_policy('<script type="application/json">{}</script><script>run()</script>') == f"script-src {one}"
    assert script_policy("<p>nothing runs</p>") == "script-src 'none'"


@pytest.mark.parametrize("text", ["</script>", "<!-- <script>", "a & b", "\u2028\u2029", "\ud800", "\0", "猫"])
def test_data_has_no_mark_by_which_a_script_could_end(text: str):
    data = script_data({"text": text})
    assert not set(data) & set("<>&\u2028\u2029") and json.loads(data) == {"text": text}
