from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from instructgpt.generation import engine
from instructgpt.generation.engine import Engine, generate, generate_ids, stream
from instructgpt.generation.graphs import GraphedDecoder
from instructgpt.generation.request import EngineConfig, Request
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model import pages
from instructgpt.model.backend import sdpa
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from tests.generation.test_decoding import CONFIGS, answered, ids_of, many
from tests.random_models import talkative


class WithoutGraphs(GraphedDecoder):
    """Does all that a decoder from graphs does, with a step called in place of one replayed."""

    captured: list[int]
    is_ahead = True  # type: ignore[assignment]

    def _capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        logits = step()
        self.captured.append(len(logits))
        return logits, lambda: logits.copy_(step())


def in_pages(model: Transformer) -> Transformer:
    """The same weights, attention over pages."""
    twin = Transformer(model.config, replace(sdpa(), cached_attention=pages.PageAttention)).to(model.embedding.weight)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generation as on a GPU, the host one token behind, with the kernels' references; the sizes that were recorded."""

    def attention(q: Tensor, k: Tensor, v: Tensor, intervals: Any = None, causal: bool = True) -> Tensor:
        return kernels.attention_reference(q, k, v, causal=True, documents=intervals)

    monkeypatch.setattr(kernels, "attention", attention)
    monkeypatch.setattr(kernels, "key_intervals", lambda queries, keys, device, causal, documents: documents)
    monkeypatch.setattr(kernels, "paged_decode_attention", kernels.paged_decode_attention_reference)
    WithoutGraphs.captured = []
    monkeypatch.setattr(engine, "decoder_of", WithoutGraphs)
    return WithoutGraphs.captured


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"position": "learned"}, {"qk_window": 3}])
def test_fixed_buffers_and_a_host_behind_change_nothing(
    model: Transformer, tokenizer: Tokenizer, config: SamplingConfig, settings: dict, request: pytest.FixtureRequest
):
    if settings:
        model = Transformer(replace(model.config, **settings)).double().eval()
    expected = many(model, tokenizer, config)
    captured = request.getfixturevalue("captured")
    assert many(in_pages(model), tokenizer, config) == expected
    assert captured[0] >= 16 and captured == sorted(set(captured), reverse=True)
    if config.temperature == 1.0:
        assert len(captured) > 1, "rows that end leave the batch"


def test_recordings_serve_the_next_step_and_grow_with_it(model: Transformer, tokenizer: Tokenizer, request):
    model = Transformer(replace(model.config, context=600)).double().eval()
    prompts = [[tokenizer.bos] * length for length in (3, 5, 250, 260)]
    alone = [generate_ids(model, tokenizer, [prompt], SamplingConfig(max_new_tokens=12))[0] for prompt in prompts]
    captured = request.getfixturevalue("captured")
    config = SamplingConfig(max_new_tokens=12)
    assert generate_ids(in_pages(model), tokenizer, prompts, config, batch_size=1) == alone
    assert captured == [1, 1]  # 250 tokens and more do not fit in 16 pages


def test_few_steps_are_not_recorded(model: Transformer, tokenizer: Tokenizer, captured: list[int]):
    generate(in_pages(model), tokenizer, ["the cat"], max_new_tokens=5)
    assert not captured


def test_a_recording_that_fails_is_told_in_one_line(model, tokenizer, request, monkeypatch, capsys):
    expected = many(model, tokenizer, CONFIGS[1])
    request.getfixturevalue("captured")
    monkeypatch.setattr(WithoutGraphs, "_capture", lambda self, step: torch.zeros(2) @ torch.zeros(3))
    assert many(in_pages(model), tokenizer, CONFIGS[1]) == expected
    assert capsys.readouterr().err.startswith("no CUDA graphs, steps are launched one by one: ")


def test_a_stream_is_one_token_behind_and_complete(model, tokenizer, request):
    expected = generate(model, tokenizer, ["the cat"], max_new_tokens=20, temperature=1.0)[0]
    request.getfixturevalue("captured")
    config = SamplingConfig(max_new_tokens=20, temperature=1.0)
    assert "".join(stream(in_pages(model), tokenizer, "the cat", config)) == expected


def test_requests_that_come_and_go_while_a_step_is_under_way(model, tokenizer, request):
    config = SamplingConfig(max_new_tokens=20, temperature=1.0, seed=6)
    asked = [Request((tokenizer.bos, *range(50, 55 + i)), config, n=1 + i % 2) for i in range(4)]
    alone = [generate_ids(model, tokenizer, [each.ids], config, each.n) for each in asked]
    request.getfixturevalue("captured")
    at_work = Engine(in_pages(model), tokenizer, EngineConfig(blocks=20))
    found = {}
    numbers = [at_work.add(asked[0]), at_work.add(asked[1])]
    for step in range(4):
        for update in at_work.step():
            found.setdefault((update.request, update.index), []).append(update)
        if step == 2:
            at_work.abort(numbers[1])
    numbers += [at_work.add(each) for each in asked[2:]]
    for place, updates in answered(at_work).items():
        found.setdefault(place, []).extend(updates)
    for which in (0, 2, 3):
        for index, expected in enumerate(alone[which]):
            assert ids_of(found[numbers[which], index]) == expected.ids
    assert at_work.stats().blocks_used == 0 and at_work.step() == []


# ---- on a GPU


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [
    {},
    {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True},
    {"qk_window": 3, "qk_norm": True},
]


@pytest.fixture
def on_gpu(request: pytest.FixtureRequest, model: Transformer) -> Transformer:
    from instructgpt.model.backend import resolve_backend

    device = torch.device("cuda")
    shape = replace(model.config, **getattr(request, "param", {}))
    return talkative(shape, dtype=torch.float32, backend=resolve_backend("auto", device)).to(device)


class Unrecorded(GraphedDecoder):
    """The same buffers, and so the same kernels on the same shapes, launched one by one."""

    def _capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        logits = step()
        return logits, lambda: logits.copy_(step())


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
                patch.setattr(engine, "decoder_of", Unrecorded)
                assert many(on_gpu, tokenizer, config, n) == replayed
    assert "no CUDA graphs" not in capsys.readouterr().err


@pytest.mark.gpu
@gpu
def test_a_gpu_says_what_a_cpu_says(on_gpu, tokenizer):
    on_cpu = Transformer(on_gpu.config)
    on_cpu.load_state_dict(on_gpu.state_dict())
    for n in (1, 5):
        theirs, ours = (many(each, tokenizer, CONFIGS[0], n) for each in (on_cpu.eval(), on_gpu))
        same = sum(a.ids == b.ids for a, b in zip(theirs, ours))
        assert same >= 0.9 * len(ours)  # float32 rounds otherwise there


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
    monkeypatch.setattr(engine, "decoder_of", Unrecorded)
    assert many(model, tokenizer, CONFIGS[1]) == replayed
