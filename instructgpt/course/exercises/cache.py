"""The key/value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from instructgpt.config import ModelConfig
from instructgpt.course.exercise import Check, Exercise, Mistake, numbers
from instructgpt.model.cache import KVCache

CONFIG = ModelConfig(vocab_size=8, context=8, layers=2, width=4, heads=1)


def _appended(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What each call gives, for tokens that come in parts, and layers one after the other; then what lies in "
    "the cache."""
    cache = KVCache(CONFIG, 1, capacity=5, dtype=torch.float64)
    found = []
    for part in given["parts"]:
        for layer in range(given["layers"]):
            k = part[None, None, :, None].expand(1, 1, -1, 4) + 100 * layer
            keys, values = function(cache, layer, k, -k)
            found.append({"layer": layer, "keys": keys[0, 0, :, 0].tolist(), "values": values[0, 0, :, 0].tolist()})
        cache.advance(len(part))
    return found


def _refusal(function: Callable[..., Any], given: dict[str, Any]) -> str:
    try:
        function(KVCache(CONFIG, 1, capacity=2, dtype=torch.float64), 0, given["k"], given["k"])
    except ValueError:
        return "ValueError"
    except Exception as error:
        return type(error).__name__
    return "no error"


def _held(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The cache itself, after a prompt and a token, in the dtype that it was made with."""
    cache = KVCache(CONFIG, 2, capacity=4, dtype=torch.bfloat16)
    for part in given["parts"]:
        function(cache, 1, part, 2 * part)
        cache.advance(part.size(2))
    return cache.keys.float(), cache.values.float(), cache.length


def _parts(*parts: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(part, dtype=torch.float64) for part in parts]


def _gives(layer: int, *keys: float) -> dict[str, Any]:
    return {"layer": layer, "keys": list(keys), "values": [-key for key in keys]}


EXERCISE = Exercise(
    place=430,
    title="The key/value cache",
    about="Keys and values of earlier tokens do not change when another token comes, so they are kept. `append` stores "
    "what is new behind what is there, layer by layer, and gives attention all of it. (The part about `slot` and a "
    "fixed cache may be left out.)",
    target="instructgpt.model.cache.KVCache.append",
    checks=(
        Check("two tokens, one layer", {"parts": _parts([1, 2]), "layers": 1}, [_gives(0, 1.0, 2.0)], _appended),
        Check(
            "two tokens, then one",
            {"parts": _parts([1, 2], [3]), "layers": 1},
            [_gives(0, 1.0, 2.0), _gives(0, 1.0, 2.0, 3.0)],
            _appended,
        ),
        Check(
            "two layers",
            {"parts": _parts([1], [2]), "layers": 2},
            [_gives(0, 1.0), _gives(1, 101.0), _gives(0, 1.0, 2.0), _gives(1, 101.0, 102.0)],
            _appended,
        ),
        Check("until it is full", {"parts": _parts([1, 2], [3, 4], [5]), "layers": 2}, look=_appended),
        Check("three tokens where two fit: a ValueError", {"k": numbers(1, 1, 3, 4)}, "ValueError", _refusal),
        Check(
            "what lies in the cache after a prompt and a token",
            {"parts": [numbers(2, 1, 2, 4), numbers(2, 1, 1, 4, seed=1)]},
            look=_held,
        ),
    ),
    mistakes=(
        Mistake(
            "new tokens are written over the old ones, at slot 0",
            "keys.narrow(2, self.length, k.size(2)).copy_(k)",
            "keys.narrow(2, 0, k.size(2)).copy_(k)",
            (("values.narrow(2, self.length, k.size(2)).copy_(v)", "values.narrow(2, 0, k.size(2)).copy_(v)"),),
        ),
        Mistake(
            "only the new keys and values are given: the token would see nothing before it",
            "\n    return keys, values",
            "\n    return k, v",
        ),
        Mistake(
            "the whole capacity is given: slots that are not filled would be attended to, as zeros",
            "held.select(0, layer).narrow(2, 0, end)",
            "held.select(0, layer)",
        ),
        Mistake("all layers write to the first one's place", "held.select(0, layer)", "held.select(0, 0)"),
        Mistake(
            "`append` counts the slots as filled, so the next layer begins too late: `advance` does that",
            "\n    return keys, values",
            "\n    self.length = end\n    return keys, values",
        ),
        Mistake("keys are stored as values, too", "copy_(v)", "copy_(k)"),
        Mistake("a full cache is not told as a ValueError that says so", "if end > self.capacity:", "if end < 0:"),
    ),
    hints=(
        "self.keys and self.values are (layers, B, K, capacity, D), and `self.length` slots are filled.",
        "Write k (B, K, T, D) to slots length … length + T of this layer. All layers store theirs before `advance` "
        "counts, so `self.length` stays as it is here.",
        "Slices of self.keys[layer] share its memory: assign to one, and return another one, slots 0 … length "
        "+ T. Check "
        "against `self.capacity` first.",
    ),
)
