from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from instructgpt.errors import UserError
from instructgpt.generation import engine
from instructgpt.generation.decoding import Decoder, DecodeState
from instructgpt.generation.engine import Completion, generate, generate_ids, stream
from instructgpt.generation.graphs import GraphedDecoder
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.inference import for_inference
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

CONFIGS = [
    SamplingConfig(max_new_tokens=30),
    SamplingConfig(max_new_tokens=30, temperature=1.0, seed=4),
    SamplingConfig(max_new_tokens=20, temperature=0.8, top_k=40, top_p=0.9, stop=("e",)),
]


class WithoutGraphs(GraphedDecoder):
    """Does all that a decoder from graphs does, with a step called in place of one replayed."""

    captured: list[int]

    def _capture(self, state: DecodeState) -> Callable[[], None]:
        def replay() -> None:
            Decoder.advance(self, state)
            state.cache.length -= 1  # a graph leaves the host's count alone

        replay()  # what a warm-up leaves behind is overwritten
        self.captured.append(state.rows)
        return replay


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generation as on a GPU, the host one token behind; the sizes that were recorded."""
    captured: list[int] = []
    start = engine.Decoding.__init__

    def started(self: engine.Decoding, *args: object) -> None:
        start(self, *args)  # type: ignore[arg-type]
        self._ahead = 1

    WithoutGraphs.captured = captured
    monkeypatch.setattr(engine, "decoder_of", WithoutGraphs)
    monkeypatch.setattr(engine.Decoding, "__init__", started)
    return captured


def many(model: Transformer, tokenizer: Tokenizer, config: SamplingConfig, n: int = 5) -> list[Completion]:
    prompts = [[tokenizer.bos, *range(50, 50 + 3 * i)] for i in range(4)]
    return generate_ids(model, tokenizer, prompts, config, n)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"position": "learned"}, {"qk_window": 3}])
def test_fixed_buffers_and_a_host_behind_change_nothing(
    model: Transformer, tokenizer: Tokenizer, config: SamplingConfig, settings: dict, request: pytest.FixtureRequest
):
    if settings:
        shape = replace(model.config, **settings)
        model = Transformer(shape).double().eval()
    expected = many(model, tokenizer, config)
    captured = request.getfixturevalue("captured")
    assert many(model, tokenizer, config) == expected
    assert captured[0] == 32 and captured == sorted(set(captured), reverse=True)
    if config.temperature == 1.0:
        assert len(captured) > 1, "rows that end leave the batch"


def test_recordings_serve_the_next_batch_and_grow_with_it(
    model: Transformer, tokenizer: Tokenizer, captured: list[int]
):
    model = Transformer(replace(model.config, context=600)).double().eval()
    prompts = [[tokenizer.bos] * length for length in (3, 5, 250, 260)]
    alone = [generate_ids(model, tokenizer, [prompt], SamplingConfig(max_new_tokens=12))[0] for prompt in prompts]
    captured.clear()
    assert generate_ids(model, tokenizer, prompts, SamplingConfig(max_new_tokens=12), batch_size=1) == alone
    assert captured == [1, 1]  # the third does not fit in 256


def test_few_steps_are_not_recorded(model: Transformer, tokenizer: Tokenizer, captured: list[int]):
    generate(model, tokenizer, ["the cat"], max_new_tokens=5)
    assert not captured


def test_a_recording_that_fails_is_told_in_one_line(model, tokenizer, captured, monkeypatch, capsys):
    expected = many(model, tokenizer, CONFIGS[1])
    monkeypatch.setattr(WithoutGraphs, "_capture", lambda self, state: torch.zeros(2) @ torch.zeros(3))
    assert many(model, tokenizer, CONFIGS[1]) == expected
    assert capsys.readouterr().err.startswith("no CUDA graphs, steps are launched one by one: ")


def test_no_more_is_launched_than_an_answer_can_have(model, tokenizer, captured, monkeypatch):
    lengths: list[int] = []
    advance = Decoder.advance
    monkeypatch.setattr(Decoder, "advance", lambda self, s: (lengths.append(s.cache.length), advance(self, s))[1])
    generate(model, tokenizer, ["the cat"], max_new_tokens=5)
    assert len(lengths) == 4


def test_a_stream_is_one_token_behind_and_complete(model, tokenizer, request):
    expected = generate(model, tokenizer, ["the cat"], max_new_tokens=20, temperature=1.0)[0]
    request.getfixturevalue("captured")
    config = SamplingConfig(max_new_tokens=20, temperature=1.0)
    assert "".join(stream(model, tokenizer, "the cat", config)) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_nan_is_named_as_the_cause(model: Transformer, tokenizer: Tokenizer, temperature: float):
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="output is NaN"):
        generate(model, tokenizer, ["the cat", "red"], temperature=temperature)


def test_each_call_sees_the_weights_of_its_moment(model: Transformer, tokenizer: Tokenizer):
    """Copies of weights must not outlive the call that they were made for."""
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


def test_the_model_is_not_changed_by_its_twin(model: Transformer):
    before = {name: type(module) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert for_inference(model.float()) is not model
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())


# ---- natively on a GPU


@pytest.fixture
def on_gpu(model: Transformer, request: pytest.FixtureRequest) -> Transformer:
    from instructgpt.model import resolve_backend

    device = torch.device("cuda")
    shape = replace(model.config, **getattr(request, "param", {}))
    moved = Transformer(shape, resolve_backend("auto", device))
    moved.reset(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.ndim > 1:
                parameter *= 8
    return moved.to(device).eval()


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [
    {},
    {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True},
    {"qk_window": 3, "qk_norm": True},
]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("on_gpu", SHAPES, indirect=True)
def test_graphs_give_what_single_launches_give(on_gpu, tokenizer, config, autocast, monkeypatch, capsys):
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for n in (1, 2, 5, 9):
            replayed = many(on_gpu, tokenizer, config, n)
            with monkeypatch.context() as patch:
                patch.setattr(engine, "decoder_of", FixedWithoutGraphs)
                assert many(on_gpu, tokenizer, config, n) == replayed
    assert "no CUDA graphs" not in capsys.readouterr().err


class FixedWithoutGraphs(WithoutGraphs):
    """The same buffers, and so the same kernels on the same shapes, launched one by one."""

    captured: list[int] = []  # noqa: RUF012


@pytest.mark.gpu
@gpu
def test_graphs_see_weights_that_were_changed_in_place(on_gpu, tokenizer):
    with torch.autocast("cuda", torch.bfloat16):
        first = many(on_gpu, tokenizer, CONFIGS[0])
        with torch.no_grad():
            for parameter in on_gpu.parameters():
                parameter.mul_(-1.1)
        second = many(on_gpu, tokenizer, CONFIGS[0])
    fresh = Transformer(on_gpu.config, on_gpu.backend).to("cuda")
    fresh.load_state_dict(on_gpu.state_dict())
    with torch.autocast("cuda", torch.bfloat16):
        assert many(fresh.eval(), tokenizer, CONFIGS[0]) == second != first


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_graphs_of_a_quantized_model(on_gpu, tokenizer, to, monkeypatch, capsys):
    from instructgpt.model.quantize import quantize

    model = quantize(on_gpu, to, group=32)
    replayed = many(model, tokenizer, CONFIGS[1])
    assert "no CUDA graphs" not in capsys.readouterr().err
    monkeypatch.setattr(engine, "decoder_of", FixedWithoutGraphs)
    assert many(model, tokenizer, CONFIGS[1]) == replayed
