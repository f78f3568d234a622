"""--weights and what they mean, in every stage that reads --data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from instructgpt.errors import UserError
from instructgpt.stages import comparisons, policy, sft
from instructgpt.stages.mixture import groups
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"word {i} of a text with many letters: abcdefgh" for i in range(60)], vocab_size=300)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two of a prompt's own letter each, with answers that every stage can read."""
    for name in "ab":
        records = [{"prompt": f"{name} {i}", "chosen": f"good {name}", "rejected": f"bad {name}"} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def source_of(stage: str, tokenizer: Tokenizer, **settings: Any) -> Any:
    if stage == "sft":
        return sft.sources(sft.SFTConfig(val_share=0.1, **settings), tokenizer, 64).training
    if stage == "dpo":
        return comparisons.comparisons(comparisons.ComparisonConfig(**settings), tokenizer, 64)[0]
    return policy._queries(policy.PolicyStageConfig(**settings), tokenizer, 64)[0]


def text_of(stage: str, item: Any, tokenizer: Tokenizer) -> str:
    ids = item.ids if stage != "dpo" else item.answers[0].ids
    return tokenizer.decode([int(i) for i in ids]).strip()


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_each_file_is_drawn_by_its_weight(stage: str, tokenizer: Tokenizer, files: list[str]):
    source = source_of(stage, tokenizer, data=tuple(files), weights=(3.0, 1.0))
    drawn = Counter(text_of(stage, source[i], tokenizer)[0] for i in range(1000))
    assert drawn == {"a": 750, "b": 250}


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_without_weights_files_are_one_source_beside_the_world(stage: str, tokenizer: Tokenizer, files: list[str]):
    source = source_of(stage, tokenizer, data=(*files, "world"))
    texts = [text_of(stage, source[i], tokenizer) for i in range(1000)]
    from_files = [text[0] for text in texts if text[:2] in ("a ", "b ") and text.split()[1][:1].isdigit()]
    assert len(from_files) == 500 and 200 < from_files.count("a") < 300


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_a_number_for_each_or_none(stage: str, tokenizer: Tokenizer, files: list[str]):
    if stage == "sft":
        with pytest.raises(UserError, match="--weights has 3 values for 2 sources"):
            sft.check(sft.SFTConfig(data=tuple(files), weights=(1.0, 2.0, 3.0)))
        return
    with pytest.raises(UserError, match="--weights has 3 values for 2 sources"):
        source_of(stage, tokenizer, data=tuple(files), weights=(1.0, 2.0, 3.0))


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_a_file_of_which_nothing_is_left_is_one_line(stage: str, tokenizer: Tokenizer, files: list[str]):
    Path(files[1]).write_text(Path(files[0]).read_text())
    with pytest.raises(UserError, match=r"b\.jsonl: nothing of it is left to train on"):
        source_of(stage, tokenizer, data=tuple(files), weights=(1.0, 1.0))


def test_groups():
    assert groups(("a", "world", "b"), ()) == [["a", "b"], ["world"]]
    assert groups(("a", "world"), (1, 2)) == [["a"], ["world"]]
    assert groups(("world",), ()) == [["world"]]
