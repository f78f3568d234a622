"""From raw text to an assistant that follows instructions. The whole public interface is importable from here:

    import instructgpt as ig

    model, tokenizer = ig.load("runs/tiny/sft")
    ig.generate(model, tokenizer, ["Translate to French: the red cat"])
    ig.world.sample("test", n=100, seed=0)

Each name is imported when it is first asked for: torch takes seconds, and the world needs none of it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructgpt import world
    from instructgpt.config import MODEL_PRESETS, ModelConfig
    from instructgpt.errors import UserError
    from instructgpt.generation.engine import generate, stream
    from instructgpt.model.transformer import Transformer
    from instructgpt.text.tokenizer import Tokenizer
    from instructgpt.training.checkpoint import load, load_reward_model

# Read when torch is loaded, which is later. By default a thread of OpenMP that waits for others spins; where another
# process has one of the cores, it spins while the one it waits for is not running. On two cores of which one is busy,
# `tiny` trains at 3,600 tokens/s so, and at 8,800 if waiting threads sleep; on an idle machine it makes no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = [
    "MODEL_PRESETS", "ModelConfig", "Tokenizer", "Transformer", "UserError", "generate", "load",
    "load_reward_model", "stream", "world",
]  # fmt: skip

# Where each public name lives.
_HOMES = {
    "MODEL_PRESETS": "config",
    "ModelConfig": "config",
    "Tokenizer": "text.tokenizer",
    "Transformer": "model.transformer",
    "UserError": "errors",
    "generate": "generation.engine",
    "load": "training.checkpoint",
    "load_reward_model": "training.checkpoint",
    "stream": "generation.engine",
}


def __getattr__(name: str) -> Any:
    if name == "world":
        return importlib.import_module("instructgpt.world")
    if name not in _HOMES:
        raise AttributeError(f"module 'instructgpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"instructgpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
