"""Times a rollout of PPO and one of GRPO in the tree that is imported: `PYTHONPATH=TREE python rollout_time.py RUN N`.

It names nothing but what trees before the engine have, too. The last line is a JSON document: seconds, tokens, and a
digest of each answer's tokens, by stage.
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import instructgpt
from instructgpt.data.queries import WorldQueries
from instructgpt.strict_json import to_json
from instructgpt.training.rollouts import sample_answers

STAGES = {"ppo": (64, 4), "grpo": (32, 8)}
"""Prompts and answers to each, as the stages have them by default."""
_MAX_NEW_TOKENS = 32


def timed(run: str, rounds: int, share: float = 1.0) -> dict[str, Any]:
    """share: of the prompts, to try it."""
    model, tokenizer = instructgpt.load(run)
    queries = WorldQueries("train", tokenizer)
    found: dict[str, Any] = {}
    for stage, (prompts, answers) in STAGES.items():
        asked = [queries[i] for i in range(max(1, int(prompts * share)))]
        seconds, done = [], []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            done = sample_answers(model, tokenizer, asked, answers, _MAX_NEW_TOKENS, seed=0)
            seconds.append(time.perf_counter() - started)
        found[stage] = {
            "seconds": seconds[1:],  # the first warms up
            "tokens": sum(len(each.answer.ids) for each in done),
            "answers": [hashlib.sha256(str(each.answer.ids).encode()).hexdigest()[:16] for each in done],
        }
    return found


if __name__ == "__main__":
    print(to_json(timed(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 1.0)))
