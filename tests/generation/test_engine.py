from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.generation import engine
from instructgpt.generation.decoding import Decoder
from instructgpt.generation.engine import Completion, generate, generate_ids, prompt_ids, stream
from instructgpt.generation.request import EngineConfig
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import render_prompt
from instructgpt.text.tokenizer import Tokenizer

PROMPTS = ["the cat", "number 7 saw 49 red birds", "猫看见鸟。", "old house", "the red birds near the old house"]


class Scripted(Transformer):
    """Writes a given text after any prompt of one given length, then the last token of it again and again."""

    def __init__(self, config: ModelConfig, prompt_length: int, script: list[int]):
        super().__init__(config)
        self.prompt_length, self.script = prompt_length, torch.tensor(script)

    def hidden(self, ids, positions=None, documents=None, cache=None) -> Tensor:
        assert cache is not None
        return cache.positions[..., None]

    def head(self, hidden: Tensor) -> Tensor:
        place = (hidden[..., 0] - self.prompt_length + 1).clamp(max=len(self.script) - 1)
        return torch.nn.functional.one_hot(self.script[place], self.config.vocab_size).float()


def write(tokenizer: Tokenizer, script: list[int], prompt_length: int = 4, **settings) -> Completion:
    config = ModelConfig(tokenizer.vocab_size, context=16, layers=1, width=8, heads=1)
    prompt = tokenizer.encode("cat" * prompt_length)[:prompt_length]
    return generate_ids(Scripted(config, prompt_length, script), tokenizer, [prompt], SamplingConfig(**settings))[0]


@pytest.mark.parametrize("closing", ["end", "eos"])
def test_a_closing_token_ends_an_answer_and_is_no_part_of_its_text(tokenizer: Tokenizer, closing: str):
    script = [*tokenizer.encode("red cat"), tokenizer.control_ids[closing]]
    assert write(tokenizer, script) == Completion(script, "red cat", "end")


def test_max_new_tokens_ends_an_answer(tokenizer: Tokenizer):
    script = tokenizer.encode("123456789")
    assert len(script) == 9
    assert write(tokenizer, script, max_new_tokens=5) == Completion(script[:5], "12345", "length")


def test_a_stop_string_ends_an_answer_across_tokens_and_is_not_shown(tokenizer: Tokenizer):
    script = tokenizer.encode("1234567")
    assert write(tokenizer, script, stop=("7", "45")) == Completion(script[:5], "123", "stop")
    assert write(tokenizer, script, stop=("78",), max_new_tokens=7) == Completion(script, "1234567", "length")


def test_a_full_context_ends_an_answer(tokenizer: Tokenizer):
    script = tokenizer.encode("1234567")
    assert write(tokenizer, script, prompt_length=14).ids == script[:3]  # the third is predicted by the 16th token
    assert write(tokenizer, script, prompt_length=14).finish == "context"
    assert write(tokenizer, script, prompt_length=16) == Completion(script[:1], "1", "context")
    assert write(tokenizer, script, prompt_length=16, max_new_tokens=1).finish == "length"


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_rows_that_fill_the_context_at_different_times(model: Transformer, tokenizer: Tokenizer, position):
    context = model.config.context
    model = Transformer(replace(model.config, position=position)).eval()
    prompts = [[tokenizer.bos] * length for length in (context, context - 1, context - 20, *[context - 9] * 7, 1)]
    config = SamplingConfig(max_new_tokens=context, temperature=1.0, seed=2)
    completions = generate_ids(model, tokenizer, prompts, config)
    full = [len(prompt) + len(done.ids) for prompt, done in zip(prompts, completions) if done.finish == "context"]
    assert len(full) >= 2 and set(full) == {context + 1}


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: Transformer, tokenizer: Tokenizer):
    prompt = "7 " * 50
    length = len(render_prompt([{"role": "user", "content": prompt}], tokenizer))
    with pytest.raises(UserError, match=f"prompt 2 has {length} tokens.*context holds 48; shorten it by {length - 48}"):
        generate(model, tokenizer, ["short", prompt])
    with pytest.raises(UserError, match="context holds 48"):
        stream(model, tokenizer, prompt)  # before anything is asked of it


def test_wrong_arguments_are_told(model: Transformer, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="give a list"):
        generate(model, tokenizer, "the cat")
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate_ids(model, tokenizer, [[]])
    with pytest.raises(UserError, match="n is 0"):
        generate(model, tokenizer, PROMPTS, n=0)
    with pytest.raises(UserError, match="not messages"):
        generate(model, tokenizer, [[{"role": "user", "content": "x"}]], raw=True)
    with pytest.raises(UserError, match="user's turn"):
        generate(model, tokenizer, [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]])
    with pytest.raises(UserError, match="do not belong together"):
        generate(Transformer(replace(model.config, vocab_size=300)), tokenizer, PROMPTS)


def test_nothing_to_do_gives_nothing(model: Transformer, tokenizer: Tokenizer):
    assert generate(model, tokenizer, []) == []


def test_control_tokens_and_spare_embeddings_are_never_sampled(model: Transformer, tokenizer: Tokenizer):
    config = SamplingConfig(max_new_tokens=40, temperature=5.0)
    completions = generate_ids(model, tokenizer, [[tokenizer.bos]], config, n=40)
    chosen = {token for done in completions for token in done.ids}
    allowed = {i for i in range(tokenizer.vocab_size) if tokenizer.byte_lengths[i]} | {tokenizer.end, tokenizer.eos}
    assert chosen <= allowed and len(chosen) > 200
    # Even a model that wants nothing else.
    user = tokenizer.control_ids["user"]
    assert user not in write(tokenizer, [user], max_new_tokens=4).ids


def test_an_answer_is_closed_once(model: Transformer, tokenizer: Tokenizer):
    config = SamplingConfig(max_new_tokens=40, temperature=1.0)
    completions = generate_ids(model, tokenizer, [[tokenizer.bos]], config, n=40)
    ended = [done for done in completions if done.finish == "end"]
    assert ended
    for done in completions:
        closing = [token for token in done.ids if token in (tokenizer.end, tokenizer.eos)]
        assert closing == (done.ids[-1:] if done.finish == "end" else [])
        assert done.text == tokenizer.decode(done.ids)


def test_samples_of_a_prompt_are_what_the_following_seeds_give(model: Transformer, tokenizer: Tokenizer):
    settings = dict(temperature=1.0, max_new_tokens=12)
    many = generate(model, tokenizer, PROMPTS, n=3, seed=5, **settings)
    singles = [generate(model, tokenizer, PROMPTS, seed=5 + i, **settings) for i in range(3)]
    assert many == [singles[i][p] for p in range(len(PROMPTS)) for i in range(3)]
    assert len(set(many)) > len(PROMPTS)


def test_a_seed_for_each_prompt(model: Transformer, tokenizer: Tokenizer):
    config = SamplingConfig(temperature=1.0, seed=7)
    prompt = [tokenizer.bos, 100]
    several = generate_ids(model, tokenizer, [prompt] * 3, config, seeds=[3, 7, 3])
    assert several[0] == several[2] != several[1] == generate_ids(model, tokenizer, [prompt], config)[0]


def test_the_repetition_penalty_stops_repetition(model: Transformer, tokenizer: Tokenizer):
    prompts = [[tokenizer.bos, 50 + i] for i in range(8)]

    def repeated(penalty: float) -> int:
        config = SamplingConfig(max_new_tokens=40, repetition_penalty=penalty)
        return sum(len(done.ids) - len(set(done.ids)) for done in generate_ids(model, tokenizer, prompts, config))

    assert repeated(1.0) > 10
    assert repeated(1e9) == 0


def test_a_raw_prompt_has_no_turns(tokenizer: Tokenizer):
    assert prompt_ids("the cat", tokenizer, raw=True) == [tokenizer.bos, *tokenizer.encode("the cat")]
    assert prompt_ids("the cat", tokenizer) == render_prompt([{"role": "user", "content": "the cat"}], tokenizer)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "stop": ("e", " b")}])
def test_a_stream_joined_is_what_generate_gives(model: Transformer, tokenizer: Tokenizer, settings):
    for prompt in PROMPTS:
        pieces = list(stream(model, tokenizer, prompt, SamplingConfig(**settings)))
        assert "".join(pieces) == generate(model, tokenizer, [prompt], **settings)[0]
        assert all(pieces)


def test_a_stream_comes_in_pieces(tokenizer: Tokenizer):
    config = ModelConfig(tokenizer.vocab_size, context=16, layers=1, width=8, heads=1)
    model = Scripted(config, 2, [*tokenizer.encode("1234"), tokenizer.end])
    assert tokenizer.encode("7") == prompt_ids("7", tokenizer, raw=True)[1:] and len(tokenizer.encode("7")) == 1
    assert list(stream(model, tokenizer, "7", raw=True)) == ["1", "2", "3", "4"]
    assert list(stream(model, tokenizer, "7", SamplingConfig(stop=("35", "4")), raw=True)) == ["1", "2", "3"]


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_is_left_as_it_was(model: Transformer, tokenizer: Tokenizer, was_training: bool):
    model.train(was_training)
    generate(model, tokenizer, PROMPTS[:2])
    assert model.training == was_training == model.blocks[0].training
    with pytest.raises(UserError):
        engine.generate_ids(model, tokenizer, [[tokenizer.bos] * 100])
    pieces = stream(model, tokenizer, PROMPTS[0])
    next(pieces)  # the caller goes on, in his own mode, between two pieces
    assert model.training == was_training
    assert not torch.is_inference_mode_enabled()
    model(torch.tensor([[1, 2]])).sum().backward()


def test_dropout_is_off(model: Transformer, tokenizer: Tokenizer):
    dropping = Transformer(replace(model.config, dropout=0.5)).double()
    dropping.load_state_dict(model.state_dict())
    assert generate(dropping.train(), tokenizer, PROMPTS) == generate(model, tokenizer, PROMPTS)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Decoder, list[int]]]:
    """The tokens of each row in every step, and what computed them."""
    found: list[tuple[Decoder, list[int]]] = []
    launch = Decoder.launch

    def counted(self, work, before=None):
        found.append((self, [len(each.ids) for each in work]))
        return launch(self, work, before)

    monkeypatch.setattr(Decoder, "launch", counted)
    return found


def test_a_small_limit_on_the_cache_changes_nothing(model: Transformer, tokenizer: Tokenizer, monkeypatch, steps):
    settings = dict(temperature=1.0, n=3, max_new_tokens=10)
    expected = generate(model, tokenizer, PROMPTS, **settings)
    held = steps[-1][0].cache.bytes
    monkeypatch.setattr(engine, "EngineConfig", lambda: EngineConfig(cache_bytes=held // 4))
    assert generate(model, tokenizer, PROMPTS, **settings) == expected
    assert steps[-1][0].cache.bytes <= held // 4
    monkeypatch.setattr(engine, "EngineConfig", lambda: EngineConfig(cache_bytes=1))  # less than one row
    assert generate(model, tokenizer, PROMPTS, **settings) == expected


def test_the_cache_has_the_format_that_the_model_computes_in(model: Transformer, tokenizer: Tokenizer, steps):
    generate(model, tokenizer, PROMPTS)
    assert steps[-1][0].cache.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(generate(model.float(), tokenizer, PROMPTS)) == len(PROMPTS)
    assert steps[-1][0].cache.dtype == torch.bfloat16


def test_finished_rows_leave_and_others_take_their_place(model: Transformer, tokenizer: Tokenizer, steps):
    config = SamplingConfig(max_new_tokens=40, temperature=1.0)
    generate_ids(model, tokenizer, [[tokenizer.bos]], config, n=32)
    rows = [len(counts) for _, counts in steps]
    assert rows[0] == 1 and rows[1] > rows[-1] and sorted(rows[1:], reverse=True) == rows[1:]
    steps.clear()
    generate_ids(model, tokenizer, [[tokenizer.bos]] * 32, config, seeds=range(32), batch_size=4)
    rows = [len(counts) for _, counts in steps]
    assert max(rows) == 4 and sum(row < 4 for row in rows) < len(rows) / 2


def test_no_more_is_computed_than_an_answer_can_have(model: Transformer, tokenizer: Tokenizer, steps):
    generate(model, tokenizer, ["the cat"], max_new_tokens=5)
    assert len(steps) == 5
