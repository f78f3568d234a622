"""Several models of one service: a base and what adapters make of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgpt.commands.serve import ServeConfig, _add_adapters
from instructgpt.errors import UserError
from instructgpt.model.adapters import LoRA, adapter_tensors, adapters_of, add_adapter
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.training.adapter_file import AdapterRecord
from instructgpt.training.checkpoint import RunDirectory, load
from tests.serving.conftest import ENGINE, Start

SHAPE = LoRA(rank=2, alpha=4)


def stirred(model: Transformer, name: str, seed: int) -> Transformer:
    """The model with an adapter more that says other things."""
    add_adapter(model, SHAPE, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_tensors(model, name).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture
def runs(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """A folder with a run `base`, and runs `french` and `formal` that have adapters for it."""
    base = RunDirectory(tmp_path / "base")
    base.path.mkdir()
    base.write_config("sft", model.config, tokenizer, {})
    base.save_model(model)
    for seed, name in enumerate(("french", "formal")):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir()
        run.write_config("sft", model.config, tokenizer, {}, adapter=AdapterRecord(SHAPE, "../base", base.digest()))
        run.save_model(stirred(copy.deepcopy(model), "default", seed))
    return tmp_path


def test_adapters_stand_beside_their_base(runs: Path) -> None:
    model, _ = load(runs / "base")
    config = ServeConfig(model=str(runs / "base"), adapters=(str(runs / "french"), str(runs / "formal")))
    assert _add_adapters(config, model) == {"base": "", "base:french": "adapter_0", "base:formal": "adapter_1"}
    assert adapters_of(model) == ["adapter_0", "adapter_1"]
    alone, _ = load(runs / "formal")
    assert all(
        torch.equal(tensor, adapter_tensors(alone)[name])
        for name, tensor in adapter_tensors(model, "adapter_1").items()
    )


def test_a_run_with_an_adapter_is_served_with_it_and_its_base_too(runs: Path) -> None:
    model, _ = load(runs / "french")
    assert _add_adapters(ServeConfig(model=str(runs / "french")), model) == {"base:french": "", "base": None}
    model, _ = load(runs / "base", adapter=runs / "french")
    config = ServeConfig(model=str(runs / "base"), adapter=str(runs / "french"), name="birds")
    assert _add_adapters(config, model) == {"birds:french": "", "birds": None}


@pytest.mark.parametrize(
    ("served", "adapters", "complaint"),
    [
        ("base", ("base",), "holds a model of its own and no adapter"),
        ("french", ("formal",), "name their base as --model"),
        ("base", ("french", "french"), "two folders of one name"),
        ("base", ("nowhere",), "no such run directory"),
    ],
)
def test_what_does_not_belong_together(runs: Path, served: str, adapters: tuple[str, ...], complaint: str) -> None:
    config = ServeConfig(model=str(runs / served), adapters=tuple(str(runs / name) for name in adapters))
    with pytest.raises(UserError, match=complaint):
        _add_adapters(config, load(runs / served)[0])


def test_each_model_is_answered_by_its_own_adapter(start: Start, model: Transformer, tokenizer: Tokenizer) -> None:
    from instructgpt.generation.engine import Engine
    from instructgpt.model.adapters import use_adapter

    several = stirred(stirred(copy.deepcopy(model), "one", 1), "two", 2)
    use_adapter(several, None)
    names = {"small": "", "small:one": "one", "small:two": "two"}
    with start(engine=Engine(several, tokenizer, ENGINE), models=names) as live, start() as alone:
        said: dict[str, Any] = {name: live.ask(model=name)["choices"][0]["message"]["content"] for name in names}
        assert said["small"] == alone.ask()["choices"][0]["message"]["content"]
        assert len(set(said.values())) == 3
        status, _, body = live.call("POST", "/v1/completions", {"model": "small:three", "prompt": "a"})
        assert (status == 404 and b"small:two" in body) or b"did you mean" in body
