"""The model's part of a step: all new tokens through the model in one forward, then the next token of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from instructgpt.generation.logits import log_probabilities
from instructgpt.generation.row import Row
from instructgpt.generation.sampling import SamplingRows, sample
from instructgpt.generation.scheduler import Work
from instructgpt.model.adapters import adapter_in_use, use_adapter
from instructgpt.model.cache import Feed, PagedCache
from instructgpt.model.inference import computed_dtype, for_inference
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer


@contextmanager
def inference(model: Transformer) -> Iterator[None]:
    """No gradients and no dropout inside; the model is left as it was found."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def forbidden_tokens(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """(V,) bool, True for what an answer may not contain: control tokens other than those that close it, and embeddings
    that belong to no token."""
    forbidden = torch.ones(vocab_size, dtype=torch.bool)
    forbidden[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.byte_lengths == 0)
    forbidden[list(tokenizer.closing)] = False
    return forbidden


class Sample(NamedTuple):
    """One token that a step chooses."""

    row: Row
    place: int
    """Its number among the row's tokens; beyond the next where what is before it is a guess."""
    guesses: tuple[int, ...] = ()
    """The tokens guessed between what the row has and this one."""


class Chosen(NamedTuple):
    """What a step chose, one for each sample."""

    tokens: list[int]
    logprobs: list[float] | None
    """Of the tokens; None where nobody asked."""
    top: list[list[tuple[int, float]]]
    """The likeliest in the place of each, and their log-probabilities; as many as whoever asked for most."""


class Launched:
    """A step under way; its results on their way to the host, which need not wait for them yet."""

    def __init__(self, samples: list[Sample], tokens: Tensor | None, logprobs: tuple[Tensor, Tensor, Tensor] | None):
        """tokens: (S,). logprobs: as `log_probabilities` gives them; None where nobody asked."""
        self.samples, self._on_device = samples, tokens
        self._fetched = [] if tokens is None else [_fetched(tokens)]
        self._fetched += [_fetched(found) for found in logprobs or ()]
        self._event = None
        if tokens is not None and tokens.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tokens.device))

    def tokens_of(self, rows: Sequence[Row]) -> Tensor:
        """(rows,) what was chosen for these, on the device. A row that is no number is given up as soon as somebody
        looks; until then it must not crash."""
        assert self._on_device is not None
        tokens = self._on_device.clamp(min=0)
        place = {id(sample.row): i for i, sample in enumerate(self.samples)}
        wanted = [place[id(row)] for row in rows]
        if wanted == list(range(len(tokens))):
            return tokens
        return tokens.index_select(0, torch.tensor(wanted, device=tokens.device))

    def read(self) -> Chosen:
        if self._event is not None:
            self._event.synchronize()
        if not self._fetched:
            return Chosen([], None, [])
        tokens, *logprobs = (found.tolist() for found in self._fetched)
        if not logprobs:
            return Chosen(tokens, None, [])
        chosen, best, likeliest = logprobs
        return Chosen(tokens, chosen, [list(zip(*each)) for each in zip(likeliest, best)])


def _fetched(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def samples_of(work: Sequence[Work], ahead: bool = False) -> tuple[list[Sample], list[int]]:
    """What a step chooses, and for each of these the flat place of the token that it follows. ahead: one token a row,
    which is not known yet."""
    if ahead:
        return [Sample(each.row, each.row.chosen + 1) for each in work], list(range(len(work)))
    samples: list[Sample] = []
    places: list[int] = []
    end = 0
    for row, _, ids, chosen in work:
        end += len(ids)
        if chosen == 1:
            for each in row.branches or (row,):
                samples.append(Sample(each, each.chosen))
                places.append(end - 1)
        else:
            for i in range(chosen):
                guesses = tuple(ids[len(ids) - chosen + 1 : len(ids) - chosen + 1 + i])
                samples.append(Sample(row, row.chosen + i, guesses))
                places.append(end - chosen + i)
    return samples, places


class Decoder:
    """A model with its weights as they are now (`for_inference`), and the cache that it computes with."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, blocks: int, block_size: int):
        self._model = model
        self._twins: dict[str | None, Transformer] = {"": for_inference(model)}
        self.cache = PagedCache(model.config, blocks, block_size, model.device, computed_dtype(self._twins[""]))
        self._forbidden = forbidden_tokens(tokenizer, model.config.vocab_size).nonzero()[:, 0].to(model.device)
        """Their ids, which are few: a mask over the vocabulary would be read for every token."""
        self._rules: tuple[list[Row], SamplingRows] | None = None

    @property
    def is_ahead(self) -> bool:
        """A step is launched before the one under way is looked at."""
        return self.device.type == "cuda"

    @property
    def device(self) -> torch.device:
        return self._model.device

    def twin(self, adapter: str | None) -> Transformer:
        """The model with this adapter; "" is the model as it was given, None its base. Raises UserError for others."""
        if adapter not in self._twins:
            before = adapter_in_use(self._model)
            use_adapter(self._model, adapter)
            try:
                self._twins[adapter] = for_inference(self._model)
            finally:
                use_adapter(self._model, before)
        return self._twins[adapter]

    def launch(self, work: Sequence[Work], before: Launched | None = None) -> Launched:
        """Computes it, and chooses, without waiting for a GPU. before: what is under way, whose choices are what the
        tokens of `work` are that have no ids yet."""
        samples, places = samples_of(work, ahead=before is not None)
        logits = self._logits(work, places, before)  # (S, V)
        if not samples:
            return Launched(samples, None, None)
        wanted = [each.row.request.logprobs for each in samples]
        most = max((w for w in wanted if w is not None), default=None)
        free = logits if most is None else logits.clone()
        tokens = self._choose(logits.index_fill_(1, self._forbidden, -torch.inf), samples)
        return Launched(samples, tokens, None if most is None else log_probabilities(free, tokens, most))

    def _logits(self, work: Sequence[Work], places: list[int], before: Launched | None) -> Tensor:
        """(S, V), of the tokens after those at `places` of all new tokens."""
        hidden = self._hidden(work, before)  # (N, C)
        if places != list(range(len(hidden))):
            hidden = hidden[torch.tensor(places, dtype=torch.int64, device=self.device)]
        if not places:
            return hidden
        logits = self._twins[""].head(hidden)
        # The largest of bfloat16s takes a CPU longer to find than to convert them.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _hidden(self, work: Sequence[Work], before: Launched | None) -> Tensor:
        by_adapter: dict[str | None, list[Work]] = {}
        for each in work:
            by_adapter.setdefault(each.row.request.adapter, []).append(each)
        if len(by_adapter) == 1:
            return self._forward(work, before)
        found = torch.cat([self._forward(its, before) for its in by_adapter.values()])
        # Back in the order of the work.
        order, at = {}, 0
        for its in by_adapter.values():
            for each in its:
                order[id(each)] = range(at, at + len(each.ids))
                at += len(each.ids)
        return found[torch.tensor([i for each in work for i in order[id(each)]], device=self.device)]

    def _forward(self, work: Sequence[Work], before: Launched | None) -> Tensor:
        """(N, C) of all new tokens, side by side."""
        if before is None:
            ids = torch.tensor([[token for each in work for token in each.ids]], device=self.device)
        else:
            ids = before.tokens_of([each.row for each in work])[None]
        tables, starts, counts = zip(*[(each.row.table, each.start, len(each.ids) or 1) for each in work])
        feed = Feed(self.cache, tables, starts, counts)
        return self.twin(work[0].row.request.adapter).hidden(ids, cache=feed)[0]

    def _choose(self, logits: Tensor, samples: list[Sample]) -> Tensor:
        rows = [each.row for each in samples]
        bound = [i for i, row in enumerate(rows) if row.matcher is not None]
        if self._rules is None or self._rules[0] != rows:
            configs = [row.request.sampling for row in rows]
            self._rules = rows, SamplingRows.of(configs, self.device, bound)
        rules = self._rules[1]
        numbers = generated = may_follow = None
        if rules.drawn is not None:
            drawn = [each.row.numbers[each.place] if each.row.numbers else 0.0 for each in samples]
            numbers = torch.tensor(drawn, device=logits.device)
        if rules.punished is not None:
            punishes = [row.request.sampling.punishes for row in rows]
            ids = [[*each.row.generated, *each.guesses] if it else [] for each, it in zip(samples, punishes)]
            generated = rules.generated(ids)
        if bound:
            may_follow = torch.empty(len(bound), logits.size(1), dtype=torch.bool)
            for mask, i in zip(may_follow, bound):
                rows[i].matcher.allow(mask)  # type: ignore[union-attr]
        return sample(logits, rules, numbers, generated, may_follow)
