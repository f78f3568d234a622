"""The model's part of generation: from prompts to a state, and from a state to the next, on buffers that stay.

    prefill      all prompts at once, padded on the left, fill the cache and give the first logits
    decode_step  one token a row through the model gives the next logits
    Decoder      both, with sampling after: what a batch is between two tokens lies in a `DecodeState`, on the device

`Decoder.advance` reads nothing but its state's tensors, writes into them and waits for nothing. So it can be recorded
(`graphs.py`), and be launched anew before anybody has looked at what it found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from instructgpt.generation.logits import Generated
from instructgpt.generation.sampling import SamplingConfig, SamplingRows, sample
from instructgpt.model.cache import KVCache
from instructgpt.model.inference import computed_dtype, for_inference
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer


@contextmanager
def inference(model: Transformer) -> Iterator[None]:
    """No gradients and no dropout inside; the model is left as it was found."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def prefill(model: Transformer, prompts: Sequence[Sequence[int]], capacity: int, pad: int) -> tuple[KVCache, Tensor]:
    """A cache for `capacity` tokens a row, filled with the prompts, and the logits (B, V) of the token after each."""
    longest = max(map(len, prompts))
    pad_lengths = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * padding + list(prompt) for padding, prompt in zip(pad_lengths, prompts)])  # (B, T)
    cache = KVCache(model.config, len(prompts), capacity, model.device, computed_dtype(model), pad_lengths)
    hidden = model.hidden(ids.to(model.device), cache=cache)  # (B, T, C)
    return cache, model.head(hidden[:, -1])


def decode_step(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) of the token after `tokens` (B,), which are appended to the cache."""
    # A finished row may still be in the batch and run past the context; nobody reads it, but it must not crash.
    positions = cache.positions(1).clamp(max=model.config.context - 1)  # (B, 1)
    return model.head(model.hidden(tokens[:, None], positions, cache=cache)[:, -1])


def forbidden_tokens(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """(V,) bool, True for what an answer may not contain: control tokens other than those that close it, and embeddings
    that belong to no token."""
    forbidden = torch.ones(vocab_size, dtype=torch.bool)
    forbidden[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.byte_lengths == 0)
    forbidden[list(tokenizer.closing)] = False
    return forbidden


@dataclass
class DecodeState:
    """A batch of B rows between two tokens."""

    cache: KVCache
    """All tokens but the last."""
    tokens: Tensor
    """(B,) int64, the last token of each row, or NOT_A_NUMBER."""
    numbers: Tensor
    """(B, N), the random numbers of each row: the i-th chooses its i-th token. N is 0 when greedy."""
    chosen: Tensor
    """(1,) int64, how many tokens of each row were chosen."""
    generated: Generated | None
    """Tokens generated so far; None where no repetition is punished."""

    @property
    def rows(self) -> int:
        return self.tokens.size(0)

    def select(self, rows: Tensor) -> DecodeState:
        """The state of the rows of these indices alone, in memory of its own."""
        cache = copy.copy(self.cache)
        cache.select(rows)
        generated = self.generated and _of_rows(self.generated, rows)
        return DecodeState(cache, self.tokens[rows], self.numbers[rows], self.chosen.clone(), generated)

    def load(self, other: DecodeState) -> None:
        """Takes over what `other` holds, a state of as many rows or fewer."""
        self.cache.load(other.cache)
        self.tokens[: other.rows] = other.tokens
        self.numbers[: other.rows] = other.numbers
        self.chosen.copy_(other.chosen)
        self.generated = other.generated


def _of_rows(generated: Generated, rows: Tensor) -> Generated:
    at, place = (generated.rows[:, None] == rows).nonzero(as_tuple=True)
    return Generated(place, generated.tokens[at])


class Decoder:
    """A model on the way from prompts to answers: its weights as they are now (`for_inference`), and how it chooses."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, config: SamplingConfig):
        self.model, self.config, self._pad = for_inference(model), config, tokenizer.pad
        self._rows: dict[int, SamplingRows] = {}
        self._forbidden = forbidden_tokens(tokenizer, model.config.vocab_size).nonzero()[:, 0].to(model.device)
        """Their ids, which are few: a mask over the vocabulary would be read for every token."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    def start(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[int], numbers: Tensor, capacity: int
    ) -> DecodeState:
        """The state after the first token of each row. Row b goes on with prompt `branches[b]`: samples of one prompt
        share its prefill. numbers: (B, N), as in `DecodeState`."""
        cache, logits = prefill(self.model, prompts, capacity, self._pad)
        if list(branches) != list(range(len(prompts))):
            rows = torch.tensor(branches, device=self.device)
            cache.select(rows)
            logits = logits[rows]
        state = self.empty_state(cache, numbers.to(self.device))
        self._choose(state, logits)
        return state

    def empty_state(self, cache: KVCache, numbers: Tensor) -> DecodeState:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=self.device, dtype=torch.int64)

        generated = self._rules(cache.batch).generated([[]] * cache.batch)
        return DecodeState(cache, zeros(cache.batch), numbers, zeros(1), generated)

    def _rules(self, rows: int) -> SamplingRows:
        if rows not in self._rows:
            self._rows[rows] = SamplingRows.of([self.config] * rows, self.device)
        return self._rows[rows]

    def rows_for(self, rows: int) -> int:
        """Rows of the state that would hold so many."""
        return rows

    def hold(self, state: DecodeState, steps: int) -> DecodeState:
        """The state in the memory that it is advanced in, for so many steps more; rows to spare come last."""
        return state

    def advance(self, state: DecodeState) -> None:
        """One token more for every row."""
        # A row that is no number is given up as soon as somebody looks; until then it must not crash.
        self._choose(state, decode_step(self.model, state.tokens.clamp(min=0), state.cache))

    def _choose(self, state: DecodeState, logits: Tensor) -> None:
        # The largest of bfloat16s takes a CPU longer to find than to convert them.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill_(1, self._forbidden, -torch.inf)
        u = None
        if not self.config.greedy:
            # Finished rows may go on beyond their last number.
            column = state.chosen.clamp(max=state.numbers.size(1) - 1)
            u = state.numbers.index_select(1, column).squeeze(1)
        rules = self._rules(state.rows)
        state.tokens.copy_(sample(logits, rules, u, state.generated))
        state.chosen.add_(1)
        state.generated = rules.and_then(state.generated, state.tokens)


class Fetched:
    """A state's tokens on the way to the host, which need not wait for them yet."""

    def __init__(self, tokens: Tensor):
        self._event = None
        if tokens.device.type == "cuda":
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tokens.device))
        else:
            self._tokens = tokens.clone()

    def read(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.tolist()
