"""Pages that look alike, run their own scripts and no others, and carry data that nothing can break out of."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from instructgpt.strict_json import to_json

_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}
_STYLE = Path(__file__).with_name("page.css")


def read_page(path: Path) -> str:
    """A page's file, with the styles that all our pages share in the place of its mark `/*shared*/`."""
    return path.read_text(encoding="utf-8").replace("/*shared*/\n", _STYLE.read_text(encoding="utf-8"), 1)


def script_policy(html: str) -> str:
    """What a Content-Security-Policy says of scripts so that those that stand in the page run, and no other."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    ]
    return f"script-src {' '.join(hashes) or repr('none')}"


def script_data(value: Any) -> str:
    """JSON that can stand inside a `<script type="application/json">`: it has no mark by which that could end."""
    return to_json(value).translate(_ESCAPES)
