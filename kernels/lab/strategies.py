"""How specs draw what is worth an example now and then, but not each time."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def mostly(usual: SearchStrategy[T], *rare: SearchStrategy[T], one_in: int = 40) -> SearchStrategy[T]:
    """Draws from `usual`, and from each of `rare` in one example of `one_in`: large shapes, which take long and whose
    paths small ones do not take. A failure shrinks to `usual` where that fails too."""
    return st.sampled_from([usual] * (one_in - len(rare)) + list(rare)).flatmap(lambda drawn: drawn)
