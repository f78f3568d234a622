from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("24GB", 24 * 10**9), ("24gb", 24 * 10**9), ("24 GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("1.5 gib", 3 * 2**29),
     ("800MB", 8 * 10**8), ("1TB", 10**12), ("4096b", 4096), ("0.5KiB", 512)],
)  # fmt: skip
def test_sizes(text: str, bytes: int) -> None:
    assert parse_size("--memory", text) == bytes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("24GBB", "'GBB' is unknown; did you mean 'GB'?"), ("24GBi", "'GBi' is unknown"), ("24G", "'G' is unknown"),
     ("24", "24 has no unit: write 24GB, say, or 24GiB"), ("-1GB", "'-1GB' is not a size"), ("", "'' is not a size"),
     ("GB", "'GB' is not a size"), ("24,5GB", "not a size"), ("1e3GB", "not a size"), ("nanGB", "not a size"),
     ("infGB", "not a size"), ("24GB free", "not a size"), ("２４GB", "not a size"),
     ("0GB", "no size that a memory has"), ("9" * 400 + "GB", "no size that a memory has"),
     ("0.1B", "no size that a memory has"),
     ("2.GB", "not a size")],
)  # fmt: skip
def test_misspelt_sizes(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=r"^--memory ") as caught:
        parse_size("--memory", text)
    assert complaint in str(caught.value)


@given(st.text(max_size=8))
def test_a_text_is_a_size_or_refused(text: str) -> None:
    with suppress(UserError):
        assert parse_size("--memory", text) >= 1


@given(st.integers(1, 2**62))
def test_a_shown_size_is_read_back(size: int) -> None:
    assert parse_size("--memory", size_text(size)) == pytest.approx(size, rel=6e-3)
