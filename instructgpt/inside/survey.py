"""All that is found out about one prompt and the model's answer to it: what `page.py` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instructgpt.errors import UserError
from instructgpt.generation.engine import generate_ids, prompt_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.inside import heads as behaviour
from instructgpt.inside import lens
from instructgpt.inside.attribution import gradient_times_input, leaving_each_token_out
from instructgpt.inside.parts import Part, Without, every_head, left_out, neuron, whole, without_direction, without_each
from instructgpt.inside.patching import Patching
from instructgpt.inside.trace import Trace, onwards, readable, record, targets_after
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

MOST_TOKENS = 256
"""Of prompt and answer together: the work grows with the square of it, and nobody reads a map of more."""
GUESSES = 5
"""Of the logit lens."""
_NEURONS_A_TOKEN, _MOST_NEURONS, _MOST_ANSWERS = 8, 64, 16


@dataclass(frozen=True)
class Found:
    """A part, and what becomes of the answer without it."""

    without: Without
    answer: str | None
    """Generated anew without the part; None where that was not done, for there were too many."""


@dataclass(frozen=True)
class Direction:
    """The line in the residual stream behind a layer along which the two prompts differ, where the answers part."""

    layer: int
    logprob: float
    """Of the token that the prompt is gone on with there, when nothing is said along that line, in nats."""
    greedy: int
    """The likeliest token then."""


@dataclass(frozen=True)
class Pair:
    """What decides between the answers to the prompt and to another."""

    ids: list[int]
    """The other prompt, and what both answers begin with."""
    answer: str
    own_token: int
    other_token: int
    """The first tokens that differ."""
    stream: Tensor
    """(L, T) and"""
    heads: Tensor
    """(L, H): shares of the way to the other answer, as `Patching` has them."""
    directions: list[Direction]


@dataclass(frozen=True)
class Survey:
    """Of T tokens, of which the last P are the answer."""

    model: Transformer
    tokenizer: Tokenizer
    prompt: int
    """Tokens of the prompt."""
    answer: str
    trace: Trace
    logprobs: Tensor
    """(P,) of the answer's tokens."""
    by_gradient: Tensor
    by_leaving_out: Tensor
    """(P, T) what each of the answer's tokens owes to each token before it, in nats."""
    lens: lens.Lens
    heads: list[Found]
    """Layer by layer."""
    scores: behaviour.Scores
    attentions: list[Found]
    mlps: list[Found]
    """The whole of a layer's."""
    neurons: list[Found]
    """Those that the answer owes most to, by the gradient."""
    pair: Pair | None


def survey(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    pair: str | None = None,
    raw: bool = False,
    answer_tokens: int = 16,
    told: Callable[[str], None] = lambda what: None,
) -> Survey:
    """Asks, and looks into the greedy answer. The model is made `readable`, in place.

    pair: another prompt, of as many tokens and another answer. raw: the prompts are texts to go on with. told: is told
    what is being done. Raises UserError for a prompt that is empty or too long, and for a pair that is none.
    """
    model = readable(model)
    asker = _Asker(model, tokenizer, raw, answer_tokens)
    asked = asker.ids(prompt, "--prompt")
    other = None if pair is None else _other(asker, asked, pair)
    said, text = asker.answer(asked)
    compared = None if other is None or pair is None else _compared(asker, asked, said, other)
    ids = torch.tensor([*asked, *said], device=model.device)
    places = torch.arange(len(asked) - 1, len(ids) - 1, device=model.device)
    told(f"reading {len(ids)} tokens, {len(said)} of them the answer")
    trace = record(model, ids)
    read = lens.read(model, trace, places, min(GUESSES, model.config.vocab_size))
    gradients = gradient_times_input(model, ids, places)
    told("leaving out each token")
    erased = leaving_each_token_out(model, ids, places)
    told("leaving out each head, each layer and the likeliest neurons")
    logits = _logits(model, trace, places)  # (1, P, V)
    finder = _Finder(asker, asked, text, trace, places)
    config = model.config
    found_heads = finder.find(every_head(config))
    attentions = finder.find([whole(config, layer, "attention") for layer in range(config.layers)])
    mlps = finder.find([whole(config, layer, "mlp") for layer in range(config.layers)])
    neurons = finder.find(_owed_most(gradients.neurons))
    told("scoring heads on random tokens")
    control = set(tokenizer.control_ids.values())
    scores = behaviour.score(model, [i for i in range(tokenizer.vocab_size) if i not in control])
    return Survey(
        model, tokenizer, len(asked), text, trace, targets_after(logits, ids[places + 1])[0],
        gradients.tokens, erased, read, found_heads, scores, attentions, mlps, neurons, compared,
    )  # fmt: skip


@torch.no_grad()
def _logits(model: Transformer, trace: Trace, places: Tensor) -> Tensor:
    """(1, P, V)"""
    return onwards(model, trace.stream[-1][None], model.config.layers, places)


class _Asker:
    """Prompts to greedy answers, and what is too long for that."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, raw: bool, answer_tokens: int):
        self.model, self.tokenizer, self.raw, self.answer_tokens = model, tokenizer, raw, answer_tokens

    def ids(self, prompt: str, flag: str) -> list[int]:
        """UserError for a prompt that is empty, or after which no answer fits."""
        if not prompt.strip():
            raise UserError(f"{flag} is empty")
        ids, most = prompt_ids(prompt, self.tokenizer, self.raw), min(MOST_TOKENS, self.model.config.context)
        if not ids:
            raise UserError(f"{flag} has no token")
        if len(ids) >= most:
            why = "the model's context holds" if most == self.model.config.context else "look shows at most"
            raise UserError(f"{flag} has {len(ids)} tokens; {why} {most} with the answer: shorten it")
        return ids

    def answer(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """Tokens, the one that closes the answer included, and text."""
        room = min(MOST_TOKENS, self.model.config.context) - len(ids)
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=min(self.answer_tokens, room))
        (done,) = generate_ids(self.model, self.tokenizer, [ids], sampling, raw=self.raw)
        return done.ids, done.text


@dataclass(frozen=True)
class _Finder:
    """What becomes of one answer without parts of the model."""

    asker: _Asker
    asked: list[int]
    text: str
    trace: Trace
    places: Tensor

    def find(self, parts: Sequence[Part]) -> list[Found]:
        """An answer is generated anew only where it changes: where each of its tokens stays the likeliest after those
        before it, it stays. Of many that change, those whose tokens become least likely are."""
        without = without_each(self.asker.model, self.trace, parts, self.places)
        changed = [each for each in without if not torch.equal(each.greedy, self.trace.ids[self.places + 1])]
        changed.sort(key=lambda each: float(each.logprobs.sum()))
        answers: dict[Part, str | None] = dict.fromkeys((each.part for each in changed), None)
        for each in changed[:_MOST_ANSWERS]:
            with left_out(self.asker.model, [each.part]):
                answers[each.part] = self.asker.answer(self.asked)[1]
        return [Found(each, answers.get(each.part, self.text)) for each in without]


def _owed_most(owed: Tensor) -> list[Part]:
    """Of each token (P, L, mlp_width) the neurons that it owes most to, or that speak most against it."""
    width = owed.size(-1)
    top = owed.flatten(1).abs().topk(min(_NEURONS_A_TOKEN, owed[0].numel())).indices  # (P, n)
    # The first of all tokens before the second of any.
    chosen = list(dict.fromkeys(top.T.flatten().tolist()))[:_MOST_NEURONS]
    return [neuron(each // width, each % width) for each in sorted(chosen)]


def _other(asker: _Asker, asked: list[int], pair: str) -> list[int]:
    other = asker.ids(pair, "--pair")
    if len(other) != len(asked):
        raise UserError(f"--pair has {len(other)} tokens and --prompt {len(asked)}: patching needs as many of each")
    if other == asked:
        raise UserError("--pair is the same as --prompt")
    return other


def _compared(asker: _Asker, asked: list[int], said: list[int], other: list[int]) -> Pair:
    model = asker.model
    other_said, text = asker.answer(other)
    parting = next((n for n, (a, b) in enumerate(zip(said, other_said)) if a != b), None)
    if parting is None:
        raise UserError("--pair gets the same answer as --prompt: choose one with another, or raise --answer-tokens")
    own_ids, other_ids = [*asked, *said[:parting]], [*other, *said[:parting]]
    own, there = (torch.tensor(ids, device=model.device) for ids in (own_ids, other_ids))
    patching = Patching.of(model, own, there, said[parting], other_said[parting])
    return Pair(
        other_ids, text, said[parting], other_said[parting], patching.stream(), patching.heads(), _directions(patching)
    )


@torch.no_grad()
def _directions(patching: Patching) -> list[Direction]:
    model, own, other = patching.model, patching.own, patching.other
    last = torch.tensor([len(own.ids) - 1], device=model.device)
    found = []
    for layer in range(model.config.layers):
        difference = own.stream[layer + 1][-1] - other.stream[layer + 1][-1]  # (C,)
        with without_direction(model, layer, difference):
            logits = onwards(model, own.stream[layer][None], layer, last)  # (1, 1, V)
        logprob = targets_after(logits, torch.tensor([patching.own_token], device=model.device))
        found.append(Direction(layer, float(logprob), int(logits.argmax())))
    return found
