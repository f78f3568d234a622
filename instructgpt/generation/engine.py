"""Generation: requests in, tokens out, many at once; they come and go between two steps.

    engine = Engine(model, tokenizer)
    number = engine.add(Request(ids, n=3))
    while engine.busy:
        for update in engine.step():                  what one forward adds to each answer

What a step computes is the scheduler's to say (`scheduler.py`), where it stands in memory the pool's (`blocks.py`), and
how it is computed the decoder's (`decoding.py`). Rows do not see each other and draw from numbers of their own, so an
answer is what its request gives alone, up to the rounding of the machine's matrix products.

`generate`, `generate_ids`, `completions` and `stream` are engines that live for a call: weights may change between two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from instructgpt.errors import UserError
from instructgpt.generation.blocks import Pool
from instructgpt.generation.decoding import Chosen, Decoder, Launched, inference
from instructgpt.generation.graphs import GraphedDecoder
from instructgpt.generation.request import EngineConfig, EngineStats, Finish, Request, Token, Update
from instructgpt.generation.row import Row
from instructgpt.generation.sampling import NOT_A_NUMBER, SamplingConfig
from instructgpt.generation.scheduler import Scheduler, Work
from instructgpt.generation.speculative import DraftModel, Guesser, LookUp, Speculation
from instructgpt.model.counts import cache_memory
from instructgpt.model.inference import computed_dtype, for_inference
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, as_messages, render_prompt
from instructgpt.text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
"""A text is one user turn; messages are a conversation that ends with the user's."""


class Engine:
    """A model that answers requests. It belongs to one thread, and runs under the caller's autocast."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        draft: Transformer | None = None,
    ):
        """Weights are those of this moment. draft: the smaller model of `config.draft` "model". Raises UserError where
        the tokenizer is not the model's."""
        require_tokenizer(model, tokenizer)
        config = config or EngineConfig()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        size, context = config.block_size, model.config.context
        with inference(model):
            blocks = config.blocks or blocks_within(model, config)
            self._decoder = decoder_of(model, tokenizer, blocks, size)
        cell = min(-(-(config.longest or context) // size), blocks // config.max_rows)
        self._pool = Pool(blocks, size, cell, config.prefix_cache)
        self._scheduler = Scheduler(self._pool, config.tokens_per_step, config.max_rows)
        self._speculation: Speculation | None = None
        if config.draft != "none":
            self._speculation = Speculation(self._guesser(draft, blocks, cell), config.draft_tokens)
        self._rows: dict[int, list[Row]] = {}
        """What is not finished, by request."""
        self._prompts: dict[int, Row] = {}
        """Prompts with several answers, until they are read."""
        self._under_way: deque[tuple[list[Work], Launched]] = deque()
        """Steps that were launched; a GPU works on the next while the host looks at this one."""
        self._added = self._prompt_tokens = self._generated = self._drafted = self._accepted = 0

    def _guesser(self, draft: Transformer | None, blocks: int, cell: int) -> Guesser:
        if self.config.draft == "ngram":
            return LookUp()
        if draft is None:
            raise UserError("draft is 'model' and no model is given to guess with; give one, or take 'ngram'")
        with inference(draft):
            return DraftModel(draft, self.tokenizer, blocks, self.config.block_size, cell)

    @property
    def busy(self) -> bool:
        """Something runs or waits."""
        return bool(self._rows)

    def add(self, request: Request) -> int:
        """Takes a request; gives the number that its updates have. Raises UserError for one that cannot be met."""
        limit = limit_of(request, self.model)
        room = self._pool.blocks * self._pool.block_size
        if len(request.ids) + limit - 1 > room:
            raise UserError(
                f"the prompt's {len(request.ids)} tokens and up to {limit} new ones are more than the cache holds, "
                f"{room}; ask for fewer, or give it more memory"
            )
        request.sampling.check_ids(self.model.config.vocab_size)
        with inference(self.model):
            self._decoder.twin(request.adapter)
        number = self._added
        rows = [Row(number, index, request, limit, self.tokenizer) for index in range(request.n)]
        first = rows[0]
        if request.n > 1:
            first = Row(number, 0, replace(request, constraint=None), limit, self.tokenizer)
            first.branches = list(rows)
            self._prompts[number] = first
        self._added += 1
        self._prompt_tokens += len(request.ids)
        self._rows[number] = rows
        self._scheduler.add(first)
        return number

    def abort(self, number: int) -> None:
        """Gives up what is left of a request, none where it is done; its blocks are free at once."""
        rows = self._rows.pop(number, [])
        for row in [self._prompts.pop(number)] if number in self._prompts else rows:
            self._scheduler.drop(row)

    def step(self) -> list[Update]:
        """One forward: the next token of each answer on its way, and some of the prompts of others. Raises UserError
        where the model gives NaN."""
        with inference(self.model):
            while self._under_way and not any(each.row.is_running for each in self._under_way[0][0]):
                self._under_way.popleft()
            if not self._under_way:
                if self._speculation:
                    self._speculation.begin(self._scheduler.running)
                work = self._scheduler.plan()
                if not work:
                    return []
                self._under_way.append((work, self._decoder.launch(work)))
            work, launched = self._under_way[-1]
            is_ahead = self._decoder.is_ahead and self._speculation is None
            if is_ahead and len(self._under_way) == 1 and (then := self._scheduler.plan_ahead(work)):
                self._under_way.append((then, self._decoder.launch(then, launched)))
            work, launched = self._under_way.popleft()
            updates = self._taken(work, launched.read())
            if self._speculation:
                is_reading = any(len(each.ids) != each.chosen for each in work)
                self._speculation.end(sum(len(update.tokens) for update in updates), is_reading)
            return updates

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=scheduler.answers,
            waiting=sum(row.answers for row in scheduler.waiting),
            blocks_used=self._pool.used,
            blocks_total=self._pool.blocks,
            prompt_tokens=self._prompt_tokens,
            prefix_hit_tokens=scheduler.prefix_hits,
            generated=self._generated,
            drafted=self._drafted,
            accepted=self._accepted,
            preempted=scheduler.preempted,
        )

    def _taken(self, work: list[Work], chosen: Chosen) -> list[Update]:
        """Gives each answer what was chosen for it."""
        updates: list[Update] = []
        sources: list[int] = []
        targets: list[int] = []
        at = 0
        for row, start, ids, count in work:
            if not row.is_running:  # it ended while this was under way
                at += count
            elif not count:
                self._scheduler.computed(row, start + len(ids))
            elif row.branches:
                self._scheduler.computed(row, start + len(ids))
                updates.extend(self._update(branch, at + i, 1, chosen) for i, branch in enumerate(row.branches))
                del self._prompts[row.number]
                its_sources, its_targets = self._scheduler.fork(row)
                sources += its_sources
                targets += its_targets
                at += row.answers
            else:
                updates.append(self._update(row, at, count, chosen))
                right = len(updates[-1].tokens) - 1  # guesses that turned out to be right
                self._drafted += count - 1
                self._accepted += right
                self._scheduler.computed(row, start + len(ids) - count + 1 + right if ids else start + 1)
                if row.finish:
                    self._scheduler.drop(row)
                at += count
        if sources:  # at once: a block that one prompt has left may be where another's is copied to
            self._decoder.cache.copy(sources, targets)
        return updates

    def _update(self, row: Row, at: int, count: int, chosen: Chosen) -> Update:
        """Takes tokens from `chosen[at]` on, up to `count`, as long as the guess before each was right."""
        tokens: list[Token] = []
        text = ""
        for i in range(at, at + count):
            token = chosen.tokens[i]
            if token == NOT_A_NUMBER:
                raise UserError("the model's output is NaN: its training diverged or its weights are damaged")
            text += row.push(token)
            asked = row.request.logprobs
            if asked is None or chosen.logprobs is None:
                tokens.append(Token(token))
            else:
                tokens.append(Token(token, chosen.logprobs[i], tuple(chosen.top[i][:asked])))
            if row.finish or (i < at + count - 1 and row.drafts[i - at] != token):
                break
        self._generated += len(tokens)
        row.drafts = []
        if row.finish:
            rows = self._rows[row.number]
            rows.remove(row)
            if not rows:
                del self._rows[row.number]
        return Update(row.number, row.index, tuple(tokens), text, row.finish, row.valid if row.finish else None)


def decoder_of(model: Transformer, tokenizer: Tokenizer, blocks: int, block_size: int) -> Decoder:
    """What computes on this model's device."""
    has_pages = model.device.type == "cuda" and model.backend.name == "triton"
    return (GraphedDecoder if has_pages else Decoder)(model, tokenizer, blocks, block_size)


def require_tokenizer(model: Transformer, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: they do not "
            "belong together"
        )


def limit_of(request: Request, model: Transformer, name: str = "the prompt") -> int:
    """Most tokens that can be generated. Raises UserError, which calls the prompt `name`, where it cannot be met."""
    length, context, tokens = len(request.ids), model.config.context, model.config.vocab_size
    if not request.ids:
        raise UserError(f"{name} is empty; it needs a token to go on from")
    if length > context:
        raise UserError(
            f"{name} has {length} tokens, the model's context holds {context}; shorten it by {length - context}"
        )
    if min(request.ids) < 0 or max(request.ids) >= tokens:
        wrong = next(i for i in request.ids if not 0 <= i < tokens)
        raise UserError(f"{name} has token {wrong}; the model's are from 0 to {tokens - 1}")
    if request.n < 1:
        raise UserError(f"n is {request.n}; it must be at least 1")
    # A full context still predicts one token, which is not fed back.
    return min(request.sampling.max_new_tokens, context - length + 1)


def blocks_within(model: Transformer, config: EngineConfig) -> int:
    """Blocks that `config.cache_bytes` hold, under the caller's autocast; at least one."""
    dtype = computed_dtype(for_inference(model))
    return max(1, config.cache_bytes // cache_memory(model.config, config.block_size, dtype))


# ---- a call, and its answers


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt."""

    ids: list[int]
    """Every token that was chosen, the control token that closed the answer included."""
    text: str
    """The answer: no control tokens, nothing from a stop string on."""
    finish: Finish


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
    settings = [config] * len(prompts) if seeds is None else [replace(config, seed=seed) for seed in seeds]
    requests = [Request(tuple(prompt), each, n, raw) for prompt, each in zip(prompts, settings)]
    engine = _engine_for(model, tokenizer, requests, batch_size)
    tokens: dict[int, list[int]] = {}
    texts: dict[int, list[str]] = {}
    while engine.busy:
        for update in engine.step():
            place = update.request * n + update.index
            tokens.setdefault(place, []).extend(token.id for token in update.tokens)
            texts.setdefault(place, []).append(update.text)
            if update.finish:
                yield place, Completion(tokens.pop(place), "".join(texts.pop(place)), update.finish)


def _engine_for(model: Transformer, tokenizer: Tokenizer, requests: Sequence[Request], max_rows: int) -> Engine:
    """An engine with these requests, and memory for as many of their answers at a time as there may be."""
    require_tokenizer(model, tokenizer)
    usual = EngineConfig()
    size, longest, whole, answers, n = usual.block_size, 1, 1, 0, 1
    for number, request in enumerate(requests, start=1):
        length, limit = len(request.ids), limit_of(request, model, f"prompt {number}")
        whole = max(whole, length + limit - 1)
        longest = max(longest, length + limit - 1 if request.n == 1 else max(length, length % size + limit - 1))
        answers, n = answers + request.n, request.n
    rows = max(1, min(max_rows, answers))
    prompts = rows // n + 1 if n > 1 else 0  # they have cells of their own
    with inference(model):
        most = blocks_within(model, usual)
    blocks = max(-(-whole // size), min(most, (rows + prompts) * -(-longest // size)))
    engine = Engine(model, tokenizer, replace(usual, blocks=blocks, max_rows=rows, longest=longest))
    for request in requests:
        engine.add(request)
    return engine


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
    request = Request(tuple(prompt_ids(prompt, tokenizer, raw)), config, raw=raw)
    engine = _engine_for(model, tokenizer, [request], 1)

    def pieces() -> Iterator[str]:
        while engine.busy:  # each step is in inference mode; between two pieces the caller is in his own
            for update in engine.step():
                if update.text:
                    yield update.text

    return pieces()
