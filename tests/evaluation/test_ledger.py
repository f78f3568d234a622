"""The ledger: intervals over prompts and seeds, gaps, and that the assessment measures what it says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from instructgpt import world
from instructgpt.config import ModelConfig
from instructgpt.evaluation.assessment import Assessment, assess
from instructgpt.evaluation.ledger import Entry, Ledger, Row
from instructgpt.evaluation.scores import Interval, mean_interval, seed_interval
from instructgpt.model.heads import RewardModel
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

A_SHARE = Interval(0.5, 0.2, 0.8, 4)


def assessment(rewards: list[float], **changes) -> Assessment:
    n = len(rewards)
    made = Assessment(
        true_rewards=rewards, scores=[1.0] * n, believed=[1.0] * n, kl=[0.5] * n, lengths=[4] * n, ended=[1.0] * n,
        greedy={"sort": A_SHARE, "count": Interval(1.0, 0.8, 1.0, 4)}, right_refusals=A_SHARE, wrong_refusals=A_SHARE,
    )  # fmt: skip
    return replace(made, **changes)


def entry(seed: int, rewards: list[float], **changes) -> Entry:
    return Entry(f"runs/dpo-{seed}", seed, 1.5, 300 << 20, assessment(rewards, **changes), 0.75)


def test_seed_interval_is_students() -> None:
    assert seed_interval([0.3]) is None
    found = seed_interval([0.4, 0.5, 0.6])
    assert found is not None and found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    equal = seed_interval([0.7] * 5)
    assert equal is not None and equal.half_width == pytest.approx(0)


def test_a_row_by_hand() -> None:
    row = Row("dpo", [entry(0, [1, 0, 1, 1]), entry(1, [1, 0, 0, 0])])
    # Prompts: means over seeds are 1, 0, 0.5, 0.5.
    assert row.over_prompts == mean_interval([1, 0, 0.5, 0.5]) and row.over_prompts.mean == 0.5
    assert row.over_seeds is not None
    assert row.over_seeds.half_width == pytest.approx(12.706 * np.std([0.75, 0.25], ddof=1) / math.sqrt(2))
    figures = row.figures()
    assert figures["gap"] == pytest.approx(0.5), "all are believed right, half are"
    assert figures["greedy_macro"] == 0.75 and row.families == {"sort": 0.5, "count": 1.0}
    assert figures["kl_to_sft"] == 0.5 and figures["minutes"] == 1.5 and figures["peak_memory"] == 300 << 20


def test_what_was_not_measured_is_a_dash_and_null() -> None:
    row = Row("pretrain", [entry(0, [0, 0, 1, 0], scores=None, believed=None, kl=None)])
    ledger = Ledger([row], prompts=4)
    (stage,) = ledger.to_json()["stages"]
    assert stage["kl_to_sft"] is stage["gap"] is stage["interval_over_seeds"] is None
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ledger.table())
    assert "–" in console.export_text()


def test_table_json_and_plot(tmp_path: Path) -> None:
    rows = [Row("sft", [entry(0, [0, 0, 1, 0])]), Row("dpo", [entry(0, [1, 0, 1, 1]), entry(1, [1, 0, 0, 0])])]
    ledger = Ledger(rows, prompts=4, notes=["runs/reward-0: 0.950 right"])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ledger.table())
    text = console.export_text()
    assert "dpo" in text and "0.500" in text and "300 MiB" in text and "runs/reward-0: 0.950 right" in text
    found = json.loads(json.dumps(ledger.to_json()))
    assert [stage["stage"] for stage in found["stages"]] == ["sft", "dpo"]
    assert found["stages"][1]["true_reward_by_seed"] == [0.75, 0.25]
    pytest.importorskip("matplotlib")
    assert ledger.plot(tmp_path / "ledger.png") and (tmp_path / "ledger.png").stat().st_size > 1000


def test_an_entry_survives_json() -> None:
    made = entry(3, [1, 0, 0.5, 1])
    assert Entry.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(100)], 700)


def model(tokenizer: Tokenizer, seed: int) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=256, layers=1, width=16, heads=2))
    with torch.no_grad():
        made.embedding.weight *= 10  # so that answers vary
    return made.eval()


def test_assessment_of_a_policy_against_itself_and_another(tokenizer: Tokenizer) -> None:
    policy, other = model(tokenizer, 0), model(tokenizer, 1)
    examples, requests = world.sample("test", 20), world.sample("test", 12, families=("refusal",))
    before = [p.clone() for p in (*policy.parameters(), *other.parameters())]
    same = assess(policy, tokenizer, examples, requests, reference=policy, max_new_tokens=8)
    assert same.kl == [0.0] * 20 and same.scores is None and same.gap is None
    found = assess(policy, tokenizer, examples, requests, other, RewardModel(other).eval(), max_new_tokens=8)
    assert found.kl is not None and np.mean(found.kl) > 0.1
    assert found.believed == [1.0] * 20, "a reward model that gives every answer 0 takes all for right"
    assert found.gap == pytest.approx(1 - np.mean(found.true_rewards))
    assert all(1 <= length <= 8 for length in found.lengths)
    assert all(length == 8 for length, ended in zip(found.lengths, found.ended) if not ended)
    assert found.lengths == same.lengths, "the same seed draws the same answers"
    assert found.right_refusals.n + found.wrong_refusals.n == 12
    after = [*policy.parameters(), *other.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after)), "measuring changes no model by a bit"


def test_kl_is_what_the_models_say_by_hand(tokenizer: Tokenizer) -> None:
    """Teacher-forced, one answer at a time, without packing."""
    from instructgpt.data.comparisons import Ranked
    from instructgpt.evaluation.assessment import _logprobs, _tokens

    policy = model(tokenizer, 0)
    prompt, answer = [tokenizer.bos, 30, 31, 32], [40, 41, tokenizer.end]
    found = _logprobs(policy, [Ranked((_tokens(prompt, answer),)), Ranked((_tokens(prompt, answer[:1]),))])
    logits = policy(torch.tensor([prompt + answer]))[0].log_softmax(-1)
    each = [logits[3 + i, token].item() for i, token in enumerate(answer)]
    assert found.tolist() == pytest.approx([sum(each), each[0]], abs=1e-5)
