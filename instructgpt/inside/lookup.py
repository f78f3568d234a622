"""Heads that look things up, in the world's tables: who has how many of what is read in the row of a name.

    | name | geese |
    | Lily | 9 |
    | Paul | 4 |
    How many geese does Lily have?          Lily: geese 9.

The number is not to be known before the table is read. So a head that brings it must look, from the place where the
number is to be said, at the number in the right row; and without that head the answer must become a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from instructgpt.inside.parts import every_head, without_each
from instructgpt.inside.trace import record
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, render_answer, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.core import Example


class Lookup(NamedTuple):
    """A question on a table, with the right answer up to the first number that is looked up."""

    ids: Tensor
    """(T,) the last of them is that number."""
    right: int
    """Where it stands in the table."""
    wrong: list[int]
    """Where the numbers of the other rows stand."""


class HeadLooks(NamedTuple):
    """Of every head, (L, H), from where the number is to be said; means over questions."""

    right: Tensor
    """Attention on the number in the right row."""
    wrong: Tensor
    """Attention on a number in another row."""
    effect: Tensor
    """What the number's log-probability gains by the head, in nats."""


def is_lookup(example: Example) -> bool:
    """Whether it asks, in English, how many of something somebody has, by a table."""
    return example.family == "table" and example.language == "en" and ":" in example.answer


def lookup(example: Example, tokenizer: Tokenizer) -> Lookup:
    """Raises ValueError for an example that is none (`is_lookup`)."""
    found = re.match(r"(\w+): \w+ (\d)", example.answer)
    if found is None or not is_lookup(example):
        raise ValueError(f"{example.answer!r} looks no number up")
    messages = cast("list[Message]", example.messages)  # the world's messages are plain dictionaries
    prompt, answer = render_prompt(messages, tokenizer), render_answer(example.answer, tokenizer)
    rows = {match[1]: match.start(2) for match in re.finditer(r"\| (\w+) \| (\d)", _text(prompt, tokenizer))}
    places = {who: _token_at(prompt, tokenizer, start) for who, start in rows.items()}
    said = re.search(r"\d", _text(answer, tokenizer))
    assert said is not None
    ids = [*prompt, *answer[: _token_at(answer, tokenizer, said.start()) + 1]]
    return Lookup(torch.tensor(ids), places.pop(found[1]), list(places.values()))


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """A character for each byte, so that places in it are sums of the tokens' lengths."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("latin-1")


def _token_at(ids: Sequence[int], tokenizer: Tokenizer, byte: int) -> int:
    """Which token holds this byte of the text."""
    ends = torch.tensor([len(tokenizer.token_bytes(i)) for i in ids]).cumsum(0)
    return int((ends <= byte).sum())


def looks(model: Transformer, lookups: Iterable[Lookup]) -> HeadLooks:
    """Where each head looks, and what it is good for. The model is `readable`."""
    config, found = model.config, []
    for ids, right, wrong in lookups:
        ids = ids.to(model.device)
        trace, place = record(model, ids), len(ids) - 2
        attention = torch.stack([each[:, place] for each in trace.attention])  # (L, H, T)
        logprob = model(ids[None])[0, place].log_softmax(-1)[ids[-1]]
        without = without_each(model, trace, every_head(config), torch.tensor([place], device=ids.device))
        effect = torch.stack([logprob - each.logprobs[0] for each in without]).view(config.layers, config.heads)
        found.append((attention[..., right], attention[..., wrong].mean(-1), effect))
    return HeadLooks(*(torch.stack(each).mean(0) for each in zip(*found)))
