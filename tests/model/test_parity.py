"""Our kernels beside `transformers`; that models compute what it computes is told in tests/pretrained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


def test_our_kernels_and_transformers_live_side_by_side() -> None:
    """Their optional hub package has the import name of ours: they must see that ours is another, and go without."""
    script = (
        "import kernels, transformers\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
        "transformers.LlamaForCausalLM, transformers.GPT2LMHeadModel\n"
        "print(kernels.attention_reference.__module__)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kernels.attention"
