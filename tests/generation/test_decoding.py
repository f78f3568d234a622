from __future__ import annotations

import pytest
import torch
from torch import nn

from instructgpt.errors import UserError
from instructgpt.generation.engine import Completion, Engine, generate, generate_ids
from instructgpt.generation.request import Request, Update
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.adapters import LoRA, add_adapter, use_adapter
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

CONFIGS = [
    SamplingConfig(max_new_tokens=30),
    SamplingConfig(max_new_tokens=30, temperature=1.0, seed=4),
    SamplingConfig(max_new_tokens=20, temperature=0.8, top_k=40, top_p=0.9, stop=("e",)),
    SamplingConfig(max_new_tokens=20, temperature=0.8, repetition_penalty=1.4, seed=2),
]


def many(model: Transformer, tokenizer: Tokenizer, config: SamplingConfig, n: int = 5) -> list[Completion]:
    prompts = [[tokenizer.bos, *range(50, 50 + 3 * i)] for i in range(4)]
    return generate_ids(model, tokenizer, prompts, config, n)


def answered(engine: Engine) -> dict[tuple[int, int], list[Update]]:
    """The updates of each answer, until nothing is left to do."""
    found: dict[tuple[int, int], list[Update]] = {}
    while engine.busy:
        for update in engine.step():
            found.setdefault((update.request, update.index), []).append(update)
    return found


def ids_of(updates: list[Update]) -> list[int]:
    return [token.id for update in updates for token in update.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_nan_is_named_as_the_cause(model: Transformer, tokenizer: Tokenizer, temperature: float):
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="output is NaN"):
        generate(model, tokenizer, ["the cat", "red"], temperature=temperature)


def test_each_call_sees_the_weights_of_its_moment(model: Transformer, tokenizer: Tokenizer):
    """Copies of weights must not outlive the call that they were made for, nor what was computed with them."""
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16):
        first = many(model, tokenizer, CONFIGS[0], n=1)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.data.mul_(-1.5)  # what no counter of changes notices
        second = many(model, tokenizer, CONFIGS[0], n=1)
        assert second != first
        fresh = Transformer(model.config)
        fresh.load_state_dict(model.state_dict())
        assert many(fresh.eval(), tokenizer, CONFIGS[0], n=1) == second


def test_requests_with_different_adapters_share_a_step(model: Transformer, tokenizer: Tokenizer):
    for name in ("one", "two"):
        add_adapter(model, LoRA(rank=2), name)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapters" in name:
                parameter.normal_(0, 0.5)
    use_adapter(model, "one")
    prompt, config = (tokenizer.bos, *range(50, 70)), SamplingConfig(max_new_tokens=12)
    engine = Engine(model, tokenizer)
    numbers = {adapter: engine.add(Request(prompt, config, adapter=adapter)) for adapter in ("two", None, "", "one")}
    together = answered(engine)
    found = {adapter: ids_of(together[number, 0]) for adapter, number in numbers.items()}
    for adapter in ("one", "two", None):
        use_adapter(model, adapter)
        assert found[adapter] == generate_ids(model, tokenizer, [prompt], config)[0].ids
    assert found[""] == found["one"] and len({tuple(ids) for ids in found.values()}) == 3
    with pytest.raises(UserError, match="no adapter 'three'"):
        engine.add(Request(prompt, adapter="three"))


def test_log_probabilities_are_the_models_own(model: Transformer, tokenizer: Tokenizer):
    engine, prompt = Engine(model, tokenizer), (tokenizer.bos, 60, 61)
    config = SamplingConfig(max_new_tokens=6, temperature=0.5, top_k=3, seed=2)
    asked = [engine.add(Request(prompt, config, logprobs=k)) for k in (None, 0, 3)]
    found = answered(engine)
    none, chosen, top = ([token for update in found[number, 0] for token in update.tokens] for number in asked)
    assert [token.id for token in none] == [token.id for token in chosen] == [token.id for token in top]
    assert all(token.logprob is None and token.top == () for token in none)
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *(token.id for token in top)]])
        expected = model(ids)[0, len(prompt) - 1 : -1].log_softmax(-1)
    for token, same, right in zip(top, chosen, expected, strict=True):
        assert token.logprob == same.logprob == pytest.approx(float(right[token.id]), abs=1e-5) and same.top == ()
        best, likeliest = right.topk(3)
        assert [i for i, _ in token.top] == likeliest.tolist()
        assert [p for _, p in token.top] == pytest.approx(best.tolist(), abs=1e-5)


class Only:
    """An answer of so many of some tokens, and then its end."""

    def __init__(self, tokens: list[int], count: int, end: int):
        self.tokens, self.count, self.end = tokens, count, end

    def start(self) -> Only:
        return Only(self.tokens, self.count, self.end)

    @property
    def is_complete(self) -> bool:
        return self.count == 0

    def allow(self, may_follow: torch.Tensor) -> None:
        may_follow.fill_(False)
        may_follow[self.tokens if self.count else [self.end]] = True

    def accept(self, token: int) -> None:
        assert token in self.tokens and self.count
        self.count -= 1


def test_a_constraint_binds_each_answer_by_itself(model: Transformer, tokenizer: Tokenizer):
    engine, tokens = Engine(model, tokenizer), tokenizer.encode("123456789")
    config = SamplingConfig(max_new_tokens=5, temperature=1.0)
    free = engine.add(Request((tokenizer.bos, 70), config))
    met = engine.add(Request((tokenizer.bos, 70), config, n=3, constraint=Only(tokens, 3, tokenizer.end)))
    cut = engine.add(Request((tokenizer.bos, 70), config, constraint=Only(tokens, 9, tokenizer.end)))
    found = answered(engine)
    assert ids_of(found[free, 0]) == generate_ids(model, tokenizer, [[tokenizer.bos, 70]], config)[0].ids
    assert found[free, 0][-1].valid is None
    for index in range(3):
        ids = ids_of(found[met, index])
        assert set(ids[:3]) <= set(tokens) and ids[3:] == [tokenizer.end]
        assert (found[met, index][-1].finish, found[met, index][-1].valid) == ("end", True)
    assert len({tuple(ids_of(found[met, index])) for index in range(3)}) > 1
    assert len(ids_of(found[cut, 0])) == 5 and set(ids_of(found[cut, 0])) <= set(tokens)
    assert (found[cut, 0][-1].finish, found[cut, 0][-1].valid) == ("length", False)


def test_stop_ids_end_an_answer_and_are_no_part_of_its_text(model: Transformer, tokenizer: Tokenizer):
    prompts = [[tokenizer.bos, 60 + i] for i in range(20)]
    answers = generate_ids(model, tokenizer, prompts, SamplingConfig(max_new_tokens=12))
    prompt, whole = next((p, answer) for p, answer in zip(prompts, answers) if len(answer.ids) > 6)
    stop = whole.ids[4]
    cut = generate_ids(model, tokenizer, [prompt], SamplingConfig(max_new_tokens=12, stop_ids=(stop,)))[0]
    first = whole.ids.index(stop)
    assert cut.ids == whole.ids[: first + 1] and cut.finish == "stop"
    assert cut.text == tokenizer.decode(whole.ids[:first])
