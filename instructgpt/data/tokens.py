"""The records between text and batches: one document as tokens, and many of them laid end to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instructgpt.text.chat import Rendered


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """One document: a text, a stretch of one, or a conversation."""

    ids: np.ndarray
    """(T,) int32"""
    is_target: np.ndarray
    """(T,) bool: True where the token is to be predicted from those before it; never the first, which has none."""

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, length: int) -> Tokens:
        """The first so many tokens, or all."""
        return self if len(self) <= length else Tokens(self.ids[:length], self.is_target[:length])

    @classmethod
    def of(cls, rendered: Rendered) -> Tokens:
        """A conversation: what the assistant says, and the `end` tokens that close it, are targets; nothing else is."""
        return cls(np.array(rendered.ids, dtype=np.int32), np.array(rendered.is_answer, dtype=np.bool_))

    @classmethod
    def of_text(cls, ids: np.ndarray) -> Tokens:
        """A text, or a stretch of one: every token but the first is a target."""
        is_target = np.ones(len(ids), dtype=np.bool_)
        is_target[:1] = False
        return cls(ids.astype(np.int32, copy=False), is_target)


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """Documents laid end to end; the arrays may be mapped from disk."""

    ids: np.ndarray
    """(tokens,) of any integer type"""
    offsets: np.ndarray
    """(documents + 1,) int64: document d is `ids[offsets[d]:offsets[d + 1]]`."""
