"""What generation must not depend on: the cache, the other rows of a batch, the order they come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.generation.decoding import forbidden_tokens
from instructgpt.generation.engine import generate, generate_ids, stream
from instructgpt.generation.sampling import SamplingConfig, SamplingRows, sample
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.random_models import talkative

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": dict(mlp="gelu", norm="layernorm", position="learned", bias=True),
    "llama": dict(kv_heads=2, qk_norm=True),
    "convolution": dict(kv_heads=2, qk_window=4),
}
CONTEXT = 20


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Transformer:
    """In float64: what is compared below is equal tokens, and rounding could tip the scale between two of them."""
    shape = SHAPES[request.param]
    config = ModelConfig(
        tokenizer.vocab_size, context=CONTEXT, layers=2, width=32, heads=4, tie_embeddings=False, **shape
    )
    return talkative(config, seed=1, ends={tokenizer.end: 2})


prompts_of_ids = st.lists(st.lists(st.integers(7, 339), min_size=1, max_size=CONTEXT), min_size=1, max_size=4)
settings_of_sampling = st.sampled_from(
    [
        SamplingConfig(max_new_tokens=8),
        SamplingConfig(max_new_tokens=8, temperature=1.0, seed=3),
        SamplingConfig(max_new_tokens=30, temperature=2.0, top_k=50, top_p=0.95, seed=8),
        SamplingConfig(max_new_tokens=8, temperature=0.7, min_p=0.05, repetition_penalty=1.3, seed=1),
        SamplingConfig(max_new_tokens=8, temperature=1.0, stop=("a", " the"), seed=2),
    ]
)


def without_cache(model: Transformer, tokenizer: Tokenizer, prompt: list[int], config: SamplingConfig) -> list[int]:
    """The plainest generation there is: the whole sequence through the model for every token."""
    ids, generator = list(prompt), torch.Generator().manual_seed(config.seed)
    forbidden = forbidden_tokens(tokenizer, model.config.vocab_size)
    rows = SamplingRows.of([config])
    while len(ids) - len(prompt) < config.max_new_tokens and len(ids) <= model.config.context:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[:, -1].masked_fill(forbidden, -torch.inf)
        number = torch.rand(1, generator=generator)
        token = int(sample(logits, rows, number, rows.generated([ids[len(prompt) :]])))
        ids.append(token)
        text = tokenizer.decode(ids[len(prompt) :])
        if token in (tokenizer.end, tokenizer.eos) or any(stop in text for stop in config.stop):
            break
    return ids[len(prompt) :]


@given(prompts=prompts_of_ids, config=settings_of_sampling)
def test_generation_with_the_cache_equals_generation_without(model, tokenizer, prompts, config):
    completions = generate_ids(model, tokenizer, prompts, config)
    assert [done.ids for done in completions] == [without_cache(model, tokenizer, p, config) for p in prompts]


@given(prompts=prompts_of_ids, config=settings_of_sampling, batch_size=st.integers(1, 8))
def test_a_batch_of_unequal_prompts_equals_each_prompt_alone(model, tokenizer, prompts, config, batch_size):
    together = generate_ids(model, tokenizer, prompts, config, n=2, batch_size=batch_size)
    alone = [done for prompt in prompts for done in generate_ids(model, tokenizer, [prompt], config, n=2)]
    assert together == alone


@given(order=st.permutations(range(5)), seed=st.integers(0, 100))
def test_the_order_of_the_prompts_does_not_matter(model, tokenizer, order, seed):
    prompts = ["cat", "the cat saw 49 red birds", "number 7", "猫看见鸟", "saw"]
    settings = dict(max_new_tokens=8, temperature=1.0, seed=seed)
    texts = generate(model, tokenizer, prompts, **settings)
    assert generate(model, tokenizer, [prompts[i] for i in order], **settings) == [texts[i] for i in order]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model, tokenizer):
    def texts(seed: int) -> list[str]:
        return generate(model, tokenizer, ["the cat", "saw 7"], temperature=1.0, seed=seed)

    torch.manual_seed(0)
    first = texts(4)
    torch.manual_seed(1)  # nor does the state of torch's own generator matter
    assert texts(4) == first
    assert len({tuple(texts(seed)) for seed in range(5)}) == 5


def test_sampling_leaves_the_global_random_state_alone(model, tokenizer):
    before = torch.get_rng_state()
    generate(model, tokenizer, ["the cat"], temperature=1.0)
    list(stream(model, tokenizer, "the cat", SamplingConfig(temperature=1.0)))
    assert torch.equal(torch.get_rng_state(), before)
