"""What is held out: the same records whatever the seed, and no way for them into training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt import world
from instructgpt.data.comparisons import WorldPreferences
from instructgpt.data.held_out import conversation_key, held_out_keys, prompt_key, without
from instructgpt.data.queries import WorldQueries
from instructgpt.data.sources import WorldInstructions
from instructgpt.errors import UserError
from instructgpt.stages import sft
from instructgpt.stages.sft import SFTConfig, sources
from instructgpt.text.tokenizer import Tokenizer

CONTEXT = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([world.document(i) for i in range(200)], 800)


@given(count=st.integers(0, 2000), share=st.floats(0, 0.99))
def test_some_are_held_out_and_most_are_not(count: int, share: float) -> None:
    keys = [str(i) for i in range(count)] * 2
    held = held_out_keys(keys, share)
    assert held <= set(keys) and len(held) <= min(500, count // 2)
    assert bool(held) == (share > 0 and count > 1)


def test_they_are_spread_over_all() -> None:
    held = sorted(map(int, held_out_keys(map(str, range(20_000)), 0.05)))
    assert len(held) == 500 and held[0] < 100 and held[-1] > 19_900
    assert len(held_out_keys(map(str, range(100)), 0.05)) == 5


A = [{"role": "user", "content": "The  Cat?"}, {"role": "assistant", "content": "red"}]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ([{"role": "system", "content": "s"}, *A], True),
        ([{"role": "user", "content": "the cat? "}, {"role": "assistant", "content": "Red\n"}], True),
        ([*A, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}], True),
        ([A[0], {"role": "assistant", "content": "blue"}], False),
        ([{"role": "user", "content": "the dog?"}, A[1]], False),
    ],
)
def test_what_is_the_same_conversation(other: list[dict[str, str]], same: bool) -> None:
    assert (conversation_key(other) == conversation_key(A)) == same


@given(st.sets(st.integers(0, 50), max_size=20), st.integers(0, 50))
def test_another_stands_where_something_is_held_out(held: set[int], index: int) -> None:
    keys = set(map(str, held))
    draw = without(lambda i: i, str, keys)
    assert (draw(index) == index) == (index not in held) and str(draw(index)) not in keys
    assert draw(index) == draw(index), "pure in the index"


def test_the_world_gives_nothing_that_is_held_out(tokenizer: Tokenizer) -> None:
    conversations = [world.example("train", i).conversation for i in range(6)]
    held = {conversation_key(each) for each in conversations[:3]}
    source = WorldInstructions("train", tokenizer, held=held)
    drawn = [conversation_key(source.conversation(i)) for i in range(6)]
    assert not held & set(drawn) and drawn[3:] == [conversation_key(each) for each in conversations[3:]]

    query_source = WorldQueries("train", tokenizer)
    asked = {prompt_key(query_source[i].messages) for i in range(3)}
    other = WorldQueries("train", tokenizer, held=asked)
    assert not asked & {prompt_key(other[i].messages) for i in range(6)}

    pairs = {prompt_key(WorldPreferences("train", tokenizer, CONTEXT).pair(i).messages) for i in range(3)}
    rest = WorldPreferences("train", tokenizer, CONTEXT, held=pairs)
    assert not pairs & {prompt_key(rest.pair(i).messages) for i in range(6)}


# ---- sft on files


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def alpaca(number: int) -> dict[str, Any]:
    return {"instruction": f"number {number}?", "output": f"it is {number}"}


def chat(number: int) -> dict[str, Any]:
    turns = [("system", "s"), ("user", f"Number {number}?"), ("assistant", f"it is {number}"), ("user", "why?"),
             ("assistant", "so")]  # fmt: skip
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_a_second_file_does_not_train_what_is_held_out(
    tokenizer: Tokenizer, tmp_path: Path, weights: tuple[float, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(40)])
    second = write(tmp_path / "b.jsonl", [alpaca(i) for i in range(10)] + [chat(i) for i in range(40)])
    config = SFTConfig(data=(first, second), weights=weights, val_share=0.2, out=str(tmp_path / "out"))
    data = sources(config, tokenizer, CONTEXT)
    held = {conversation_key(record) for record in data.held_out_records}
    assert len(held) == 8
    trained = {tokenizer.decode(data.training[i].ids.tolist()).casefold() for i in range(300)}
    for number in range(40):
        key = conversation_key(chat(number)["messages"])
        assert any(f"number {number}?" in text for text in trained) == (key not in held)
    out = capsys.readouterr().out
    assert "90 records read, 80 kept, 10 dropped" in out and f"dropped 10: exact duplicate (first at {second}:1)" in out
    assert f"64 conversations to train on, 16 held out to validate on, in {tmp_path / 'out' / 'val.jsonl'}" in out
    assert "kept, " in out and "duplicate, kept" not in out and "duplicates" not in out


def test_a_file_to_validate_on_is_kept_from_training_in_any_form(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = write(tmp_path / "a.jsonl", [chat(i) for i in range(30)])
    val = write(tmp_path / "b.jsonl", [alpaca(i) for i in range(20, 50)])
    config = SFTConfig(data=(trained,), val_data=(val,), out=str(tmp_path / "out"))
    data = sources(config, tokenizer, CONTEXT)
    assert [record[0]["content"] for record in data.held_out_records] == [f"number {i}?" for i in range(20, 50)]
    texts = {tokenizer.decode(data.training[i].ids.tolist()).casefold() for i in range(100)}
    for number in range(30):
        assert any(f"number {number}?" in text for text in texts) == (number < 20)
    assert "20 conversations to train on, 30 held out to validate on" in capsys.readouterr().out
    monkeypatch.setattr(sft, "MOST_HELD", 7)
    few = sources(config, tokenizer, CONTEXT).held_out_records
    assert [record[0]["content"] for record in few] == [f"number {i}?" for i in range(20, 50, 5)]


def test_the_world_is_no_file_to_validate_on() -> None:
    with pytest.raises(UserError, match="--val-data names files"):
        sft.check(SFTConfig(data=("world",), val_data=("world",)))


def test_what_the_world_validates_on_is_not_trained_on_through_a_file(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validated = [{"messages": world.example("val", i).conversation} for i in range(5)]
    file = write(tmp_path / "a.jsonl", [*validated, *(alpaca(i) for i in range(20))])
    config = SFTConfig(data=(file, "world"), val_share=0.0, val_examples=5, out=str(tmp_path / "out"))
    sources(config, tokenizer, 512)
    assert "20 conversations to train on, 0 held out to validate on; 5 on which the world" in capsys.readouterr().out


def test_a_file_that_is_all_in_another_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, [alpaca(i) for i in range(9)]) for name in ("a.jsonl", "b.jsonl"))
    config = SFTConfig(data=(first, second), weights=(1.0, 2.0), out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"b\.jsonl: nothing of it is left to train on"):
        sources(config, tokenizer, CONTEXT)
