"""What is said under a constraint is valid, or is cut and says so; in one engine with answers that are free."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.config import ModelConfig
from instructgpt.generation.constraints import (
    any_json_constraint,
    choice_constraint,
    regex_constraint,
    schema_constraint,
)
from instructgpt.generation.engine import Engine
from instructgpt.generation.request import EngineConfig, Request
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": -5, "maximum": 5},
        "of": {"enum": ["猫", 'a"b', None]},
    },
    "required": ["ok", "n"],
}  # fmt: skip
PATTERN = r"[a-c]{1,3}( 猫|\d\d)*!?"
CHOICES = ("yes", "yes, of course", "no", "看见鸟")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the cat {i} saw {i * 7} red birds. 猫看见鸟。" for i in range(60)], vocab_size=310)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    model = Transformer(ModelConfig(tokenizer.vocab_size, context=96, layers=1, width=16, heads=2)).double()
    model.reset(torch.Generator().manual_seed(3))
    return model.eval()


def meets(kind: str, text: str) -> bool:
    try:
        if kind == "json":
            return json.loads(text) is not ...
        if kind == "schema":
            found = json.loads(text)
            return isinstance(found["ok"], bool) and -5 <= found["n"] <= 5 and found.get("of") in ("猫", 'a"b', None)
        return bool(re.fullmatch(PATTERN, text)) if kind == "regex" else text in CHOICES
    except (ValueError, KeyError):
        return False


asked = st.lists(
    st.tuples(
        st.sampled_from(["json", "schema", "regex", "choices", "free"]),
        st.builds(
            SamplingConfig,
            max_new_tokens=st.integers(1, 40), temperature=st.sampled_from([0.0, 1.0, 3.0]),
            top_p=st.sampled_from([1.0, 0.9]), seed=st.integers(0, 99), frequency_penalty=st.sampled_from([0.0, 1.0]),
        ),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@given(asked)
def test_what_is_said_is_valid_or_cut(model: Transformer, tokenizer: Tokenizer, asked: Any):
    made = {
        "json": any_json_constraint(tokenizer), "schema": schema_constraint(SCHEMA, tokenizer),
        "regex": regex_constraint(PATTERN, tokenizer), "choices": choice_constraint(CHOICES, tokenizer),
    }  # fmt: skip
    engine = Engine(model, tokenizer, EngineConfig(blocks=40, block_size=4, max_rows=4, tokens_per_step=7))
    kinds = {
        engine.add(Request((9, 10, 11 + i), sampling, n, constraint=made.get(kind))): kind
        for i, (kind, sampling, n) in enumerate(asked)
    }
    texts: dict[tuple[int, int], str] = {}
    while engine.busy:
        for update in engine.step():
            place = update.request, update.index
            texts[place] = texts.get(place, "") + update.text
            kind = kinds[update.request]
            if update.finish is None or kind == "free":
                assert update.valid is None
                continue
            assert update.valid is not None and update.finish in ("end", "length", "context")
            if update.valid:
                assert meets(kind, texts[place]), texts[place]
            else:
                assert update.finish != "end"


def test_a_stop_string_cuts_what_was_valid(model: Transformer, tokenizer: Tokenizer):
    engine = Engine(model, tokenizer, EngineConfig(blocks=40))
    config = SamplingConfig(max_new_tokens=20, stop=("s",))
    engine.add(Request((9, 10), config, constraint=choice_constraint(["yes"], tokenizer)))
    last = [update for _ in range(20) if engine.busy for update in engine.step()][-1]
    assert (last.finish, last.valid) == ("stop", False)
