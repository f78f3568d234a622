from dataclasses import replace

import pytest

from instructgpt.config import MODEL_PRESETS, ModelConfig, model_preset
from instructgpt.errors import UserError


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"width": 100, "heads": 3}, "width 100 is not a multiple of heads 3"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"head_dim": 5}, "rope needs an even head_dim, not 5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"rope_factor": 0.5}, "rope_factor is 0.5"),
        ({"rope_factor": 8.0, "position": "learned"}, "rope_factor has no meaning for learned positions"),
        ({"rope_low_factor": 4.0}, "rope_low_factor 4.0 is not below rope_high_factor 4.0"),
    ],
)
def test_shapes_that_cannot_be(settings: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ModelConfig(**settings)


def test_zeros_are_filled_in_from_what_they_depend_on() -> None:
    shape = ModelConfig(width=96, heads=6, mlp="swiglu").resolved()
    assert (shape.kv_heads, shape.head_dim, shape.mlp_width) == (6, 16, 256)
    assert ModelConfig(width=96, heads=6, mlp="gelu").resolved().mlp_width == 384
    assert replace(model_preset("tiny"), width=128, heads=2).resolved().head_dim == 64
    assert shape.resolved() == shape
    given = ModelConfig(heads=4, kv_heads=2, head_dim=8, mlp_width=10)
    assert given.resolved() == given


@pytest.mark.parametrize(("preset", "millions"), [("gpt2", 124), ("gpt2-medium", 355), ("llama-124m", 124)])
def test_presets_have_the_size_of_their_name(preset: str, millions: int) -> None:
    from instructgpt.model.counts import count_parameters

    vocab_size = 50257 if preset.startswith("gpt2") else 32_000
    total = count_parameters(replace(MODEL_PRESETS[preset], vocab_size=vocab_size)).total / 1e6
    assert abs(total - millions) < (1 if preset.startswith("gpt2") else 25)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'gpt2'"):
        model_preset("gtp2")
    with pytest.raises(UserError, match="choose one of: tiny, small"):
        model_preset("qwxyz")
