from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from instructgpt.errors import UserError
from instructgpt.generation.decoding import forbidden_tokens
from instructgpt.generation.engine import Engine, generate_ids
from instructgpt.generation.request import EngineConfig, Request
from instructgpt.generation.row import Row
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.generation.speculative import LookUp, Speculation
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.generation.test_decoding import CONFIGS, answered, ids_of


def row_of(tokenizer: Tokenizer, ids: list[int]) -> Row:
    return Row(0, 0, Request(tuple(ids)), 20, tokenizer)


def test_look_up_guesses_what_followed_the_last_time(tokenizer: Tokenizer) -> None:
    row = row_of(tokenizer, [1, 2, 3, 4, 5, 9, 2, 3])
    look_up = LookUp()
    assert look_up.guess([row], [2]) == [[4, 5]]  # after 2, 3
    row.ids += [8, 2, 3]
    assert look_up.guess([row], [4]) == [[8, 2, 3]]  # the last time it was 8
    row.ids += [7]
    assert look_up.guess([row], [4]) == [[]]
    row.ids += [1, 2, 3]
    assert look_up.guess([row], [1]) == [[4]]  # the longest that was there before, 1, 2, 3


def noisy(model: Transformer, share: float) -> Transformer:
    """A model that mostly says the same."""
    twin = Transformer(model.config).double()
    twin.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return twin.eval()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("draft", ["ngram", "model"])
def test_guesses_change_no_token(model: Transformer, tokenizer: Tokenizer, config: SamplingConfig, draft: str) -> None:
    prompts = [[tokenizer.bos, *range(50, 50 + 5 * i), *range(50, 50 + 2 * i)] for i in range(4)]
    expected = generate_ids(model, tokenizer, prompts, config, n=2)
    engine = Engine(model, tokenizer, EngineConfig(blocks=60, draft=draft, draft_tokens=3), noisy(model, 0.01))
    numbers = [engine.add(Request(tuple(prompt), config, 2)) for prompt in prompts]
    found = answered(engine)
    for i, done in enumerate(expected):
        updates = found[numbers[i // 2], i % 2]
        assert (ids_of(updates), updates[-1].finish) == (done.ids, done.finish)
    stats = engine.stats()
    assert stats.generated == sum(len(done.ids) for done in expected) and stats.blocks_used == 0
    if draft == "model":
        # The two draw with the same numbers: they mostly agree, and most steps give several tokens.
        assert stats.drafted > 20 and stats.accepted > 0.5 * stats.drafted
        assert max(len(update.tokens) for updates in found.values() for update in updates) == 4


def test_guesses_are_exact_in_distribution(model: Transformer, tokenizer: Tokenizer) -> None:
    """Of the second token of an answer, guessed by a model that is often wrong: χ² against what the model says."""
    prompt, config = (tokenizer.bos, 60), SamplingConfig(max_new_tokens=3, temperature=0.7, top_k=4)
    engine = Engine(model, tokenizer, EngineConfig(blocks=900, draft="model"), noisy(model, 0.3))
    engine.add(Request(prompt, config, n=600))
    counts: dict[tuple[int, int], int] = {}
    for updates in answered(engine).values():
        ids = [*ids_of(updates), -1][:2]
        counts[ids[0], ids[1]] = counts.get((ids[0], ids[1]), 0) + 1
    stats = engine.stats()
    assert 0.1 < stats.accepted / stats.drafted < 0.95
    starts = {a: sum(n for (b, _), n in counts.items() if b == a) for a, _ in counts if a not in tokenizer.closing}
    first = max(starts, key=lambda a: starts[a])
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, first]]))[0, -1]
    logits[forbidden_tokens(tokenizer, len(logits))] = -torch.inf
    best, tokens = logits.topk(4)
    expected = (best / 0.7).softmax(-1) * starts[first]
    found = torch.tensor([counts.get((first, token), 0) for token in tokens.tolist()])
    assert found.sum() == starts[first] > 100
    assert float(((found - expected) ** 2 / expected).sum()) < 16.3  # p = 0.001 with 3 degrees of freedom


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("costs, pays", [((1.0, 2.0), True), ((3.0, 2.0), False)])
def test_it_is_done_where_it_pays(tokenizer: Tokenizer, costs: tuple[float, float], pays: bool) -> None:
    """Seconds of a step with guesses and without, each giving a token; the other way is tried now and then."""
    clock, row = Clock(), row_of(tokenizer, [1, 2, 1])
    row.cached = 2
    speculation, guessed = Speculation(LookUp(), 4, clock), []
    for _ in range(3 * Speculation.ROUND):
        speculation.begin([row])
        guessed.append(bool(row.drafts))
        clock.now += costs[0] if row.drafts else costs[1]
        row.drafts = []
        speculation.end(1, False)
    assert speculation.pays == pays
    usual = sum(guessed) / len(guessed)
    assert (usual > 0.9) if pays else (usual < 0.1)
    assert guessed[Speculation.ROUND] and not guessed[Speculation.ROUND + Speculation.TRIAL]


def test_wrong_drafts_are_told(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no model is given"):
        Engine(model, tokenizer, EngineConfig(blocks=9, draft="model"))
    small = Transformer(replace(model.config, vocab_size=300))
    with pytest.raises(UserError, match="same tokenizer"):
        Engine(model, tokenizer, EngineConfig(blocks=9, draft="model"), small)
