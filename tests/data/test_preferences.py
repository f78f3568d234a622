"""Preference files: pairs of answers to one prompt, from every format that has them."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.account import Account
from instructgpt.data.preferences import Ranking, read_rankings
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, validate_messages

GOOD = {"instruction": "a", "chosen": "b", "rejected": "c"}


def turns(*contents: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def read(path: Path, records: list[Any], **options: Any) -> tuple[list[Ranking], Account]:
    account = Account()
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return list(read_rankings([path], account=account, **options)), account


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


def transcript(*contents: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {content}" for i, content in enumerate(contents))


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (GOOD, turns("a")),
        ({"instruction": "a", "input": "i", "output": "b", "rejected": "c"}, turns("a\n\ni")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, turns("a")),
        ({"prompt": "a", "chosen": turns("a", "b"), "rejected": turns("a", "c")}, turns("a")),
        (
            {"prompt": turns("x", "y", "a"), "chosen": turns("", "b")[1:], "rejected": turns("", "c")[1:]},
            turns("x", "y", "a"),
        ),
        ({"messages": turns("a"), "chosen": turns("", "b")[1], "rejected": "c"}, turns("a")),
        (
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            turns("a"),
        ),
        ({"chosen": turns("x", "y", "a", "b"), "rejected": turns("x", "y", "a", "c")}, turns("x", "y", "a")),
        ({"chosen": transcript("x", "y", "a", "b"), "rejected": transcript("x", "y", "a", "c")}, turns("x", "y", "a")),
        ({"chosen": transcript("a\n\nA", "b"), "rejected": transcript("a\n\nA", "c")}, turns("a\n\nA")),
    ],
)
def test_formats(path: Path, record: dict, prompt: list[Message]) -> None:
    pairs, account = read(path, [record])
    assert pairs == [Ranking(prompt, ("b", "c"))]
    assert (account.read, account.kept, account.dropped.total()) == (1, 1, 0)


def test_turns_of_one_role_in_a_row_are_joined(path: Path) -> None:
    record = {"chosen": transcript("a", "b") + "\n\nAssistant:  B", "rejected": transcript("a", "c")}
    pairs, account = read(path, [record])
    assert pairs == [Ranking(turns("a"), ("b\n\nB", "c"))]
    assert account.notes == {"turns of one role in a row, joined": 1}


BAD = [
    ({**GOOD, "rejected": "b"}, "chosen equals rejected"),
    ({**GOOD, "rejected": ""}, "empty answer"),
    ({**GOOD, "chosen": " "}, "empty answer"),
    ({**GOOD, "chosen": None}, "none of the known formats"),
    ({**GOOD, "rejected": [["c"]]}, "a list where text should be, in 'rejected'"),
    ({**GOOD, "rejected": {"role": "assistant"}}, "a message without content"),
    ({**GOOD, "instruction": None}, "none of the known formats"),
    ({"instruction": "a", "chosen": "b"}, "none of the known formats"),
    ({"instruction": "a", "rejected": "b"}, "none of the known formats"),
    ({"chosen": "b", "rejected": "c"}, "none of the known formats"),
    ({"messages": turns("a", "x"), "chosen": "b", "rejected": "c"}, "a prompt that does not end with the user's turn"),
    ({"chosen": transcript("a", "b"), "rejected": transcript("A", "c")}, "different prompts in the two halves"),
    (
        {"chosen": transcript("a", "b"), "rejected": transcript("a")},
        "a conversation that does not end with the assistant's turn",
    ),
    ({"chosen": transcript("a", "b", "", "d"), "rejected": transcript("a", "c")}, "empty prompt"),
    ({"chosen": transcript("a", ""), "rejected": transcript("a", "c")}, "empty answer"),
    (
        {"chosen": transcript("a", "b. Human: x"), "rejected": transcript("a", "c")},
        "'Human:' or 'Assistant:' inside a turn",
    ),
    ("text", "text where a record should be"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_bad_records(path: Path, bad: Any, reason: str) -> None:
    pairs, account = read(path, [GOOD, bad, GOOD])
    assert len(pairs) == 2 and account.dropped == {reason: 1}
    assert f"(first at {path}:2)" in account.report()
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {re.escape(reason)}"):
        read(path, [GOOD, bad], strict=True)
    with pytest.raises(UserError, match=rf"a\.jsonl:1: {re.escape(reason)}.*none of the first 1 record"):
        read(path, [bad])


names = st.sampled_from(
    ["instruction", "prompt", "messages", "chosen", "rejected", "output", "role", "content", "from"]
)
leaves = (
    st.none() | st.integers() | st.sampled_from(["", "a", "b", "user", "assistant", transcript("a", "b"), "\n\nHuman:"])
)
hostile = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@given(records=st.lists(st.dictionaries(names, hostile, max_size=5), min_size=1, max_size=5))
def test_hostile_records_give_valid_pairs_or_a_user_error(tmp_path_factory, records: list) -> None:
    try:
        for pair in read(tmp_path_factory.mktemp("hostile") / "a.jsonl", records)[0]:
            validate_messages(pair.messages)
            assert pair.messages[-1]["role"] == "user"
            assert len(set(pair.answers)) == len(pair.answers) > 1 and all(map(str.strip, pair.answers))
    except UserError as error:
        assert "a.jsonl" in str(error)


# ---- real files


def test_real_pairs(real_data: Path) -> None:
    for name, kept, dropped in [
        (
            "raschka-instruction/ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json",
            1094,
            {"chosen equals rejected": 6},
        ),
        ("llamafactory-demo/dpo_en_demo.json", 300, {}),
    ]:
        account = Account()
        assert len(list(read_rankings([real_data / name], account=account))) == kept
        assert account.dropped == dropped


def test_real_transcripts(real_data: Path) -> None:
    path = real_data / "hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    account = Account()
    pairs = list(read_rankings([path], account=account))
    assert (account.read, account.kept) == (2312, 2259)
    assert account.dropped == {"'Human:' or 'Assistant:' inside a turn": 49, "empty answer": 4}
    for pair in pairs:
        roles = [message["role"] for message in pair.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    # In the raw file 13 transcripts have two turns of one role in a row, and 5 pairs have for that reason prompts that
    # differ; joined, the prompts agree, and none is dropped for it.
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    labels = [
        re.findall(r"\n\n(Human|Assistant):", record[half]) for record in records for half in ("chosen", "rejected")
    ]
    assert sum(any(a == b for a, b in itertools.pairwise(found)) for found in labels) == 13
    assert sum(len(chosen) != len(rejected) for chosen, rejected in zip(labels[::2], labels[1::2])) == 5


def test_a_real_file_of_another_format(real_data: Path) -> None:
    with pytest.raises(UserError, match=r"alpaca_en_demo\.json:2: none of the known formats; .* chosen and rejected"):
        list(read_rankings([real_data / "llamafactory-demo" / "alpaca_en_demo.json"]))
