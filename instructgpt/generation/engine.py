"""Generation: prompts in, answers out; batched over unequal prompts, with the key/value cache, or streamed.

The model's part, from a state to the next, is in `decoding.py`; here are the rows, each an answer in the making, and
what others call. A row that is finished leaves the batch. Rows do not see each other and draw from numbers of their
own, so a batch gives what each prompt gives alone, up to the rounding of the machine's matrix products.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.generation.decoding import Decoder, Fetched, inference
from instructgpt.generation.graphs import GraphedDecoder
from instructgpt.generation.request import Finish
from instructgpt.generation.sampling import NOT_A_NUMBER, SamplingConfig
from instructgpt.generation.stopping import StoppingText
from instructgpt.model.counts import cache_memory
from instructgpt.model.inference import computed_dtype
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, as_messages, render_prompt
from instructgpt.text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
"""A text is one user turn; messages are a conversation that ends with the user's."""

_CACHE_BYTES = 2 << 30
"""A batch has fewer rows when its cache would be larger than this."""


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt."""

    ids: list[int]
    """Every token that was chosen, the control token that closed the answer included."""
    text: str
    """The answer: no control tokens, nothing from a stop string on."""
    finish: Finish


# ---- rows of a batch


class _Row:
    """One answer in the making."""

    def __init__(self, prompt_number: int, prompt: list[int], limit: int, seed: int, text: StoppingText):
        self.prompt_number, self.prompt, self.limit, self.text = prompt_number, prompt, limit, text
        self._seed = seed
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.finish: Finish | None = None

    def numbers(self, count: int) -> Tensor:
        """(count,) random numbers of its own, one a token."""
        return torch.rand(count, generator=torch.Generator().manual_seed(self._seed))

    def add(self, token: int, closing: frozenset[int], max_new_tokens: int) -> None:
        self.ids.append(token)
        self.pieces.append(self.text.push(token))
        if token in closing:
            self.finish = "end"
        elif self.text.stopped:
            self.finish = "stop"
        elif len(self.ids) == self.limit:
            self.finish = "length" if self.limit == max_new_tokens else "context"
        if self.finish:
            self.pieces.append(self.text.close())

    @property
    def completion(self) -> Completion:
        assert self.finish
        return Completion(self.ids, "".join(self.pieces), self.finish)


class Decoding:
    """A batch of rows on the way: prefilled when made, each `step` gives every row a token."""

    def __init__(self, decoder: Decoder, rows: list[_Row], closing: frozenset[int]):
        """closing: the tokens that end an answer."""
        self._decoder, self.rows, self._closing = decoder, rows, closing
        self._config = config = decoder.config
        prompts = {row.prompt_number: row.prompt for row in rows}
        place = {number: i for i, number in enumerate(prompts)}
        numbers = torch.stack([row.numbers(0 if config.greedy else config.max_new_tokens) for row in rows])
        branches = [place[row.prompt_number] for row in rows]
        self._most = max(row.limit for row in rows)
        """Tokens of the longest answer there can be; a cache has room for no more."""
        self._state = decoder.start(list(prompts.values()), branches, numbers, _capacity(rows))
        self._state = decoder.hold(self._state, self._most - 1)
        self._launched = 1
        self._under_way = deque([(rows, Fetched(self._state.tokens))])
        # A GPU works on the next token while the host looks at this one.
        self._ahead = 1 if decoder.device.type == "cuda" else 0

    @property
    def running(self) -> bool:
        return any(row.finish is None for row in self.rows)

    def step(self) -> None:
        """Chooses the next token of every row that is not finished. Raises UserError where the model gives NaN."""
        while len(self._under_way) <= self._ahead and self._launched < self._most:
            self._decoder.advance(self._state)
            self._launched += 1
            self._under_way.append((self.rows, Fetched(self._state.tokens)))
        rows, fetched = self._under_way.popleft()
        for row, token in zip(rows, fetched.read()):
            if row.finish is None:
                if token == NOT_A_NUMBER:
                    raise UserError("the model's output is NaN: its training diverged or its weights are damaged")
                row.add(token, self._closing, self._config.max_new_tokens)
        self._drop_finished()

    def _drop_finished(self) -> None:
        kept = [i for i, row in enumerate(self.rows) if row.finish is None]
        if not kept or self._decoder.rows_for(len(kept)) > 0.75 * self._state.rows:
            return  # moving the whole cache costs more than a few idle rows
        self.rows = [self.rows[i] for i in kept]
        state = self._state.select(torch.tensor(kept, device=self._decoder.device))
        self._state = self._decoder.hold(state, self._most - self._launched)


def _capacity(rows: Sequence[_Row]) -> int:
    """Slots a row's cache needs; the last token generated is never fed back."""
    return max(len(row.prompt) for row in rows) + max(row.limit for row in rows) - 1


def _batches(rows: Sequence[_Row], batch_size: int, bytes_per_token: int) -> Iterator[list[_Row]]:
    """Rows of like length together, so that there is little padding, and no batch's cache above the limit."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (len(row.prompt), row.prompt_number)):
        with_row = [*batch, row]
        too_large = len(with_row) * _capacity(with_row) * bytes_per_token > _CACHE_BYTES
        if batch and (len(batch) == batch_size or too_large):
            yield batch
            with_row = [row]
        batch = with_row
    if batch:
        yield batch


# ---- what others call


def decoder_of(model: Transformer, tokenizer: Tokenizer, config: SamplingConfig) -> Decoder:
    """The way to decode on the model's device."""
    kind = GraphedDecoder if model.device.type == "cuda" else Decoder
    return kind(model, tokenizer, config)


def generate_ids(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig | None = None,
    n: int = 1,
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
    raw: bool = False,
) -> list[Completion]:
    """n completions of each prompt of token ids, those of the first prompt first; see `completions`."""
    found = dict(completions(model, tokenizer, prompts, config, n, seeds, batch_size, raw))
    return [found[place] for place in range(len(found))]


def completions(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig | None = None,
    n: int = 1,
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
    raw: bool = False,
) -> Iterator[tuple[int, Completion]]:
    """Each completion as soon as it is done, so that an interruption loses none, with its place in the flat list of n
    for each prompt.

    seeds: one a prompt, `config.seed` for all by default; sample i draws from seed + i, whatever else is in the batch.
    batch_size: most rows at a time. raw: the prompts are texts to go on with, not conversations.
    Runs under the caller's autocast, without gradients.
    Raises UserError for a prompt that is empty or longer than the context, and for a tokenizer that is not the model's.
    """
    config = config or SamplingConfig()
    if n < 1 or batch_size < 1:
        raise UserError(f"n is {n} and batch_size {batch_size}; both must be at least 1")
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    rows = [
        row for number, prompt in enumerate(prompts)
        for row in _rows(
            model, tokenizer, number, prompt, config, n, config.seed if seeds is None else seeds[number], raw
        )
    ]  # fmt: skip
    place = {id(row): i for i, row in enumerate(rows)}
    closing = tokenizer.closing
    with inference(model):
        decoder = decoder_of(model, tokenizer, config)
        bytes_per_token = cache_memory(model.config, 1, 1, computed_dtype(decoder.model))
    for batch in _batches(rows, batch_size, bytes_per_token):
        with inference(model):
            decoding = Decoding(decoder, batch, closing)
        waiting = batch
        while waiting:
            # Inference mode is not left open while the caller has the word, as in `stream`.
            with inference(model):
                while all(row.finish is None for row in waiting):
                    decoding.step()
            yield from ((place[id(row)], row.completion) for row in waiting if row.finish)
            waiting = [row for row in waiting if row.finish is None]


def _rows(
    model: Transformer,
    tokenizer: Tokenizer,
    number: int,
    prompt: Sequence[int],
    config: SamplingConfig,
    n: int,
    seed: int,
    raw: bool,
) -> list[_Row]:
    context = model.config.context
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: they do not "
            "belong together"
        )
    if not prompt:
        raise UserError(f"prompt {number + 1} is empty; it needs a token to go on from")
    if len(prompt) > context:
        raise UserError(
            f"prompt {number + 1} has {len(prompt)} tokens, the model's context holds {context}; shorten it by "
            f"{len(prompt) - context}"
        )
    # A full context still predicts one token, which is not fed back.
    limit = min(config.max_new_tokens, context - len(prompt) + 1)
    return [_Row(number, list(prompt), limit, seed + i, StoppingText(tokenizer, config.stop, raw)) for i in range(n)]


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, raw: bool = False) -> list[int]:
    """The tokens that the model is to continue: the conversation up to the assistant's turn or, if `raw`, a text as in
    pretraining, without any turns. Raises UserError for a conversation that is not valid."""
    if not raw:
        return render_prompt(as_messages(prompt), tokenizer)
    if not isinstance(prompt, str):
        raise UserError("a raw prompt is a text to go on with, not messages")
    return [*tokenizer.document_start, *tokenizer.encode(prompt)]


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    n: int = 1,
    raw: bool = False,
    batch_size: int = 64,
) -> list[str]:
    """The answers to `prompts`, each a text (one user turn) or a list of messages. See `SamplingConfig` for the rest.

    n: samples of each prompt; the result is one flat list, those of the first prompt first. The same seed gives the
    same texts, prompt by prompt the same as one at a time.
    raw: continue each text as it stands, as a base model does, instead of answering it.
    Raises UserError for a prompt that is no valid conversation or longer than the context.
    """
    if isinstance(prompts, str):
        raise UserError("prompts is one text; give a list of prompts")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    config = SamplingConfig(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
    ids = [prompt_ids(prompt, tokenizer, raw) for prompt in prompts]
    return [done.text for done in generate_ids(model, tokenizer, ids, config, n, batch_size=batch_size, raw=raw)]


def stream(
    model: Transformer, tokenizer: Tokenizer, prompt: Prompt, config: SamplingConfig | None = None, raw: bool = False
) -> Iterator[str]:
    """The answer to one prompt in pieces, as they become certain; joined they are what `generate` gives.

    No piece is empty, ends within a character, or belongs to a stop string. Raises UserError as `generate`, at once.
    """
    config = config or SamplingConfig()
    (row,) = _rows(model, tokenizer, 0, prompt_ids(prompt, tokenizer, raw), config, 1, config.seed, raw)

    def pieces() -> Iterator[str]:
        # Inference mode is entered for each step alone: left open, it would hold for the caller between two pieces.
        with inference(model):
            decoding = Decoding(decoder_of(model, tokenizer, config), [row], tokenizer.closing)
        while decoding.running:
            with inference(model):
                decoding.step()
            if piece := "".join(row.pieces):
                yield piece
            row.pieces.clear()

    return pieces()
