"""A schedule of requests gives what each request gives alone, and every block comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.generation.engine import Engine
from instructgpt.generation.request import EngineConfig, Request, Update
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

SHAPES: dict[str, dict[str, Any]] = {
    "learned": dict(mlp="gelu", norm="layernorm", position="learned", bias=True),
    "grouped": dict(kv_heads=2, qk_norm=True),
    "convolution": dict(kv_heads=2, qk_window=4),
}
CONTEXT = 24


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Transformer:
    """In float64: what is compared below is equal tokens, and rounding could tip the scale between two of them."""
    shape = SHAPES[request.param]
    config = ModelConfig(
        tokenizer.vocab_size, context=CONTEXT, layers=2, width=16, heads=4, tie_embeddings=False, **shape
    )
    return talkative(config, seed=1, ends={tokenizer.end: 1.5})


SAMPLING = [
    SamplingConfig(max_new_tokens=9),
    SamplingConfig(max_new_tokens=6, temperature=1.0, seed=3),
    SamplingConfig(max_new_tokens=30, temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.3, seed=8),
    SamplingConfig(max_new_tokens=7, frequency_penalty=0.5, logit_bias=((30, 2.0),), stop=("a", " the")),
]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    # Few different tokens in few different orders: prompts begin alike.
    start = draw(st.sampled_from([20, 20, 20, 90]))
    length = draw(st.integers(1, CONTEXT))
    other = draw(st.integers(0, length))
    ids = [start + i % 7 for i in range(other)] + [60 + i for i in range(length - other)]
    return Request(tuple(ids), draw(st.sampled_from(SAMPLING)), draw(st.integers(1, 3)))


@st.composite
def engines(draw: st.DrawFn) -> EngineConfig:
    size = draw(st.sampled_from([1, 3, 4, 16]))
    least = -(-(CONTEXT + 1) // size)  # room for one answer as long as can be
    return EngineConfig(
        blocks=least + draw(st.integers(0, 3 * least)),
        block_size=size,
        tokens_per_step=draw(st.sampled_from([1, 3, 8, 100])),
        max_rows=draw(st.sampled_from([1, 2, 5, 50])),
        prefix_cache=draw(st.booleans()),
        longest=draw(st.sampled_from([0, 4, 12])),
        draft=draw(st.sampled_from(["none", "ngram"])),
        draft_tokens=draw(st.integers(1, 5)),
    )


def run(engine: Engine, arrivals: list[tuple[int, Request]], aborts: dict[int, int]) -> dict[tuple[int, int], Any]:
    """{(place among the arrivals, index): (ids, text, finish)}; `aborts`: steps after which a place is given up."""
    numbers: dict[int, int] = {}
    found: dict[tuple[int, int], Any] = {}
    waiting, step = sorted(enumerate(arrivals), key=lambda each: each[1][0]), 0
    while waiting or engine.busy:
        while waiting and waiting[0][1][0] <= step:
            place, (_, request) = waiting.pop(0)
            numbers[engine.add(request)] = place
        for number, place in numbers.items():
            if aborts.get(place) == step:
                engine.abort(number)
        updates: list[Update] = engine.step()
        assert updates or waiting or not engine.busy or engine.stats().running, "it stands still"
        for update in updates:
            ids, text, finish = found.get((numbers[update.request], update.index), ([], "", None))
            assert finish is None
            found[numbers[update.request], update.index] = (
                ids + [token.id for token in update.tokens], text + update.text, update.finish
            )  # fmt: skip
        step += 1
        assert step < 5000, "it never ends"
    return found


ALONE: dict[tuple[int, Request], Any] = {}


def alone(model: Transformer, tokenizer: Tokenizer, request: Request) -> list[Any]:
    """What each of its answers is in an engine of its own, asked for by itself."""
    if (id(model), request) not in ALONE:
        ALONE[id(model), request] = [
            run(Engine(model, tokenizer, EngineConfig(blocks=8)), [(0, one)], {})[0, 0]
            for i in range(request.n)
            for one in [replace(request, n=1, sampling=replace(request.sampling, seed=request.sampling.seed + i))]
        ]
    return ALONE[id(model), request]


@settings(max_examples=500 if settings().max_examples >= 200 else 10)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 12), requests()), min_size=1, max_size=6),
    aborts=st.dictionaries(st.integers(0, 5), st.integers(0, 14), max_size=2),
    config=engines(),
)
def test_a_schedule_gives_what_each_request_gives_alone(model, tokenizer, arrivals, aborts, config) -> None:
    engine = Engine(model, tokenizer, config)
    found = run(engine, arrivals, aborts)
    for place, (_, request) in enumerate(arrivals):
        for index, expected in enumerate(alone(model, tokenizer, request)):
            ids, text, finish = found.get((place, index), ([], "", None))
            if finish is None:
                assert place in aborts
                assert ids == expected[0][: len(ids)] and expected[1].startswith(text)
            else:
                assert (ids, text, finish) == expected
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert engine._pool.available == engine._pool.blocks
    assert stats.prefix_hit_tokens <= stats.prompt_tokens and stats.accepted <= stats.drafted


def test_blocks_are_free_when_abort_returns(model, tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineConfig(blocks=40, block_size=4, tokens_per_step=8))
    numbers = [engine.add(Request(tuple(range(20, 38)), SAMPLING[0], n)) for n in (3, 1, 1)]
    for steps, number in zip((1, 3, 1), numbers):  # while it is read, while it answers, while it waits or is read
        for _ in range(steps):
            engine.step()
        engine.abort(number)
        engine.abort(number)  # twice is no mistake
    assert not engine.busy and engine.stats().blocks_used == 0 and engine.step() == []
