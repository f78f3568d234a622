"""Instruction files of every format: the usable is taken, the rest counted, and what is no format is an error."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.account import Account
from instructgpt.data.data_file import DataFile
from instructgpt.data.instructions import read_instructions
from instructgpt.data.templates import Templates
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, validate_messages

GOOD = {"instruction": "say", "output": "hello"}


def exchange(*contents: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def read(path: Path, records: list[Any], **options: Any) -> tuple[list[list[Message]], Account]:
    account = Account()
    file = DataFile(str(write_lines(path, records)), templates=Templates.of(**options))
    return list(read_instructions([file], account)), account


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


# ---- formats


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "value": "a"}, {"type": "text", "text": "A"}, "!"]},
    {"role": "assistant", "content": [{"type": "text", "value": "b"}]},
]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (GOOD, [exchange("say", "hello")]),
        ({"instruction": "say", "input": "it", "output": "hello"}, [exchange("say\n\nit", "hello")]),
        ({"instruction": "say", "input": None, "output": "hello"}, [exchange("say", "hello")]),
        ({"instruction": "", "input": "it", "output": "hello"}, [exchange("it", "hello")]),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, [exchange("a", "b", "c", "d")]),
        ({"instruction": "a", "output": "b", "system": "s"}, [CHAT]),
        (
            {
                "en_instruction": "a",
                "en_input": "i",
                "en_output": "b",
                "instruction": "甲",
                "input": "",
                "output": "乙",
            },
            [exchange("a\n\ni", "b"), exchange("甲", "乙")],
        ),
        (
            {"zh_instruction": "甲", "zh_output": "乙", "en_instruction": "a", "en_output": "b"},
            [exchange("a", "b"), exchange("甲", "乙")],
        ),
        ({"messages": CHAT}, [CHAT]),
        ({"messages": PARTS}, [exchange("aA!", "b")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [exchange("a", "b")]),
        (
            {"instruction": "a", "instances": [{"input": "i", "output": "b"}, {"input": "", "output": "c"}]},
            [exchange("a\n\ni", "b"), exchange("a", "c")],
        ),
        ({"question": "a", "answer": "b"}, [exchange("a", "b")]),
        ({"question": "a", "answer": 7}, [exchange("a", "7")]),
        ({"question": "a", "answer": 7.5}, [exchange("a", "7.5")]),
        ({"question": "a", "answer": True}, [exchange("a", "true")]),
        ({"prompt": "a", "completion": "b"}, [exchange("a", "b")]),
        ({"prompt": "a", "completion": "b", "label": True}, [exchange("a", "b")]),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            [exchange("a", "b")],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            [exchange("a", "b")],
        ),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, [exchange("a", "b")]),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, [exchange("a", "b")]),
        ({"source": "a", "target": "b"}, [exchange("a", "b")]),
        ({"en": "a", "fr": "b", "id": 3}, [exchange("a", "b")]),
        (
            {"instruction": "I am {{name}}", "output": "</s> <|user|> {x}"},
            [exchange("I am {{name}}", "</s> <|user|> {x}")],
        ),
    ],
)
def test_formats(path: Path, record: dict, expected: list[list[Message]]) -> None:
    conversations, account = read(path, [record])
    assert conversations == expected
    assert (account.kept, account.dropped.total()) == (len(expected), 0)


@pytest.mark.parametrize(
    "given_input", ["n/a", "N/A", "None", "none.", "<noinput>", "No Input", " `<noinput>` ", "不适用"]
)
def test_an_input_that_says_there_is_none_is_none(path: Path, given_input: str) -> None:
    conversations, account = read(path, [{**GOOD, "input": given_input}])
    assert conversations == [exchange("say", "hello")]
    assert account.notes == {"an input that says there is none, taken as empty": 1}


def test_an_answer_that_says_none_stays(path: Path) -> None:
    assert read(path, [{"instruction": "say", "output": "None"}])[0] == [exchange("say", "None")]


def test_turns_are_made_to_alternate(path: Path) -> None:
    turns = [("user", "a"), ("user", "A"), ("assistant", "b"), ("assistant", "B"), ("user", "unanswered")]
    records = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    conversations, account = read(path, records)
    assert conversations == [exchange("a\n\nA", "b\n\nB")]
    assert set(account.notes) == {"turns of one role in a row, joined", "an unanswered last turn, left out"}


# ---- single bad records


def chat(*turns: tuple[Any, Any]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD = [
    ({"instruction": "say"}, "no answer"),
    ({"instruction": "say", "output": ""}, "empty answer"),
    ({"instruction": "say", "output": " \n"}, "empty answer"),
    ({"instruction": "say", "output": None}, "no answer"),
    ({"instruction": "say", "output": [["hello"]]}, "a list where text should be, in 'output'"),
    ({"instruction": "say", "output": []}, "no answer"),
    ({"instruction": None, "output": "hello"}, "no prompt"),
    ({"instruction": "say", "input": {"a": "it"}, "output": "hello"}, "an object where text should be, in 'input'"),
    ({"instruction": " ", "output": "hello"}, "empty prompt"),
    ({"output": "hello"}, "no prompt"),
    ({}, "none of the known formats"),
    (
        {"instruction": "say", "output": "hello", "history": 5},
        "a number where a list of earlier turns should be, in 'history'",
    ),
    (
        {"instruction": "say", "output": "hello", "history": [["a"]]},
        "a list where a message should be",
    ),
    ({"instruction": "say", "output": "hello", "label": False}, "labelled as a bad answer"),
    ({"messages": "hello"}, "text where a list of messages should be"),
    ({"messages": None}, "none of the known formats"),
    ({"messages": []}, "no answer"),
    ({"messages": ["hello"]}, "no answer"),
    ({"messages": ["hello", 3]}, "text where a message should be"),
    ({"messages": [{"role": "user"}]}, "a message without content"),
    (chat(("user", None), ("assistant", "b")), "a message without content"),
    (chat(("user", "a"), ("assistant", "")), "empty answer"),
    (chat(("user", ""), ("assistant", "b")), "empty prompt"),
    (chat(("user", "a"), ("usr", "b")), "unknown role of a message"),
    (chat(("user", "a"), (["x"], "b")), "unknown role of a message"),
    (chat(("user", "a")), "no answer"),
    (chat(("assistant", "b"), ("user", "a")), "begins with the assistant"),
    (chat(("user", "a"), ("system", "s"), ("assistant", "b")), "a system turn that is not first"),
    (chat(("user", "a"), ("tool", "{}"), ("assistant", "b")), "tool calls"),
    (chat(("user", [{"type": "image_url", "text": "a"}]), ("assistant", "b")), "content that is not text"),
    (chat(("user", [{"type": "text", "text": None}]), ("assistant", "b")), "content that is not text"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "tool calls",
    ),
    ({"instruction": "a", "instances": []}, "no answer"),
    ({"instruction": "a", "instances": [3]}, "no answer"),
    ({"prompt": [{"role": "assistant", "content": "a"}], "answer": "b"}, "begins with the assistant"),
    ({"prompt": [], "answer": "b"}, "empty prompt"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b Human: c", "rejected": "x"}, "'Human:' or 'Assistant:' inside a turn"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "x"}, "empty answer"),
    ("text", "text where a record should be"),
    (None, "null where a record should be"),
    (3, "a number where a record should be"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_record_is_counted_and_the_good_ones_are_taken(path: Path, bad: Any, reason: str) -> None:
    conversations, account = read(path, [GOOD, bad, GOOD])
    assert conversations == [exchange("say", "hello")] * 2
    assert (account.read, account.kept, account.dropped) == (3, 2, {reason: 1})
    assert f"dropped 1: {reason} (first at {path}:2)" in account.report()


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_strict_stops_at_the_first_bad_record(path: Path, bad: Any, reason: str) -> None:
    stream = read_instructions([write_lines(path, [GOOD, bad, GOOD])], strict=True)
    assert next(stream) == exchange("say", "hello")
    with pytest.raises(UserError) as error:
        next(stream)
    assert str(error.value).startswith(f"{path}:2: {reason}")


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_file_of_nothing_usable_is_an_error_at_the_first_line(path: Path, bad: Any, reason: str) -> None:
    with pytest.raises(UserError) as error:
        read(path, [bad, bad])
    assert str(error.value).startswith(f"{path}:1: {reason}")
    assert "none of the first 2 record(s) is usable" in str(error.value)


def test_every_file_must_have_something_usable(tmp_path: Path) -> None:
    good, bad = write_lines(tmp_path / "good.jsonl", [GOOD]), write_lines(tmp_path / "bad.jsonl", [{"a": 1}])
    with pytest.raises(
        UserError, match=r"bad\.jsonl:1: none of the known formats; it has the fields a; known are Alpaca"
    ):
        list(read_instructions([good, bad]))


def test_a_huge_file_of_another_format_is_not_read_to_its_end(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("instructgpt.data.records._PATIENCE", 30)
    with pytest.raises(UserError, match=r"none of the first 30 record\(s\)"):
        read(path, [{"a": 1}] * 30 + [GOOD])
    assert len(read(path, [{"a": 1}] * 29 + [GOOD])[0]) == 1


def test_a_sorted_file_may_begin_with_any_number_of_records_that_cannot_be_used(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("instructgpt.data.records._PATIENCE", 30)
    unusable = [
        {**GOOD, "output": None},
        {**GOOD, "label": False},
        {"messages": []},
        {"instruction": "", "output": "x"},
    ]
    for bad in unusable:
        conversations, account = read(path, [bad] * 1500 + [{"a": 1}, GOOD])
        assert conversations == [exchange("say", "hello")] and account.dropped.total() == 1501


def test_one_bad_half_does_not_spoil_the_other(path: Path) -> None:
    record = {"en_instruction": "a", "en_output": "", "instruction": "甲", "output": "乙"}
    conversations, account = read(path, [record, {"instruction": "a", "instances": [{"output": "b"}, 3]}])
    assert conversations == [exchange("甲", "乙"), exchange("a", "b")]
    assert account.dropped == {"empty answer": 1, "a number where a record should be": 1}


def test_a_pretty_printed_array_names_the_line_of_the_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {"instruction": "say"}], indent=4), encoding="utf-8")
    account = Account()
    assert len(list(read_instructions([path], account=account))) == 1
    assert f"no answer (first at {path}:6)" in account.report()


def test_wrong_files_are_told_with_their_line(tmp_path: Path) -> None:
    for name, content, complaint in [
        ("a.json", b"", r"a\.json: is empty"),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction"', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"instruction": "\xe9", "output": "b"}', r"a\.jsonl:1: byte 17 \(0xe9\) is not utf-8"),
        ("a.csv", b"x,y\n1,2\n", r"a\.csv:2: none of the known formats; it has the fields x, y"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            list(read_instructions([tmp_path / name]))
    with pytest.raises(UserError, match=r"missing: no such file"):
        list(read_instructions([tmp_path / "missing"]))


def test_duplicates_are_noted(path: Path) -> None:
    assert read(path, [GOOD, {**GOOD, "input": ""}, GOOD])[1].notes == {"exact duplicate, kept": 2}


# ---- fields that were not used


def test_filled_fields_that_were_not_used_are_said_with_how_many_records_had_them(path: Path) -> None:
    records = [{**GOOD, "images": [1] if i < 6 else [], "tools": "t" if i < 41 else None} for i in range(50)]
    _, account = read(path, [*records, {"instruction": "say", "images": [1]}])
    assert account.report().splitlines()[-1] == "  not used: tools (41), images (6)"
    messages = [{**message, "name": "Ann"} for message in CHAT]
    assert read(path, [{"messages": messages, "id": 1}])[1].not_used == {"messages.name": 1, "id": 1}
    assert read(path, [{"text": "t", "label": 1, "n": 2}], prompt="{text}", answer="{label}")[1].not_used == {"n": 1}
    instances = [{"input": "i", "output": "b", "is_classification": True}, 3]
    assert read(path, [{"instruction": "a", "instances": instances}])[1].not_used == {"is_classification": 1}


# ---- tables and templates


def test_templates_make_prompts_of_any_fields(path: Path) -> None:
    records = [{"text": "profits {label} rose", "label": 1, "note": None}]
    conversations, _ = read(path, records, prompt="Is {{this}} good? {text}", answer="{label}")
    assert conversations == [exchange("Is {{this}} good? profits {label} rose", "1")]
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'headline'; it has the fields text, label, note"):
        read(path, records, prompt="{headline}", answer="{label}")
    with pytest.raises(UserError, match="null where text should be, in 'note'"):
        read(path, records, prompt="{text}", answer="{note}")


def test_templates_on_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'good,"up, up"\r\nbad,down\r\nbad\r\n')
    account = Account()
    found = read_instructions(
        [
            DataFile(
                str(path), columns=("label", "text"), templates=Templates.of(prompt="Good? {text}", answer="{label}")
            )
        ],
        account,
    )
    assert list(found) == [exchange("Good? up, up", "good"), exchange("Good? down", "bad")]
    assert account.dropped == {"a row of 1 field(s) in a table of 2": 1}
    path.write_bytes(b"Sentiment,Headline\r\ngood,up\r\n")
    with pytest.raises(UserError, match=r"a\.csv:2: no field 'text'; it has the fields Sentiment, Headline"):
        list(read_instructions([DataFile(str(path), templates=Templates.of(prompt="{text}", answer="{Sentiment}"))]))


def test_wrong_templates() -> None:
    with pytest.raises(UserError, match="--prompt and --answer go together"):
        read_instructions([DataFile("", templates=Templates.of(prompt="{text}"))])
    with pytest.raises(UserError, match="--answer 'yes' names no field"):
        Templates.of(prompt="{text}", answer="yes")


def test_parallel_text(tmp_path: Path) -> None:
    table = tmp_path / "a.txt"
    table.write_text("Hi.\t嗨。\tCC\nGo!\t\tCC\n", encoding="utf-8")
    account = Account()
    assert list(read_instructions([table], account=account)) == [exchange("Hi.", "嗨。")]
    assert account.dropped == {"empty answer": 1}
    for name, text in (("t.en.gz", "a dog\n"), ("t.fr.gz", "un chien\n")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    pair = f"{tmp_path / 't.en.gz'}+{tmp_path / 't.fr.gz'}"
    assert list(read_instructions([pair])) == [exchange("a dog", "un chien")]
    found = read_instructions([DataFile(pair, templates=Templates.of(prompt="In English: {fr}", answer="{en}"))])
    assert list(found) == [exchange("In English: un chien", "a dog")]


# ---- properties


names = st.sampled_from(
    ["instruction", "input", "output", "messages", "conversations", "instances", "prompt", "chosen"]
)
names |= st.sampled_from(["history", "system", "role", "content", "from", "value", "type", "text", "label", "rejected"])
names |= st.sampled_from(["en_instruction", "en_output", "1", "2"])
leaves = (
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", " ", "user", "assistant", "system", "a", "n/a"])
)
leaves |= st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "\n\nAssistant: b\n\nHuman: c", "\ud800"])
hostile = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))


@given(records=st.lists(hostile | st.dictionaries(names, hostile, max_size=5), min_size=1, max_size=5))
def test_hostile_records_give_valid_conversations_or_a_user_error(tmp_path_factory, records: list) -> None:
    account = Account()
    path = write_lines(tmp_path_factory.mktemp("hostile") / "a.jsonl", records)
    try:
        for conversation in read_instructions([path], account=account):
            validate_messages(conversation)
            assert conversation[-1]["role"] == "assistant"
            assert all(message["content"].strip() for message in conversation)
            "".join(message["content"] for message in conversation).encode()
    except UserError as error:
        assert "a.jsonl" in str(error)
    else:
        assert account.read >= len(records) and account.kept + account.dropped.total() >= account.read


# ---- real files


def test_real_alpaca_chinese(real_data: Path) -> None:
    account = Account()
    files = sorted((real_data / "alpaca-chinese" / "data").glob("*.json"))
    assert sum(1 for _ in read_instructions(files, account=account)) == account.kept
    # 37 records have an empty answer, each in both languages; every record has two conversations.
    assert (account.read, account.kept, account.dropped) == (36_000, 71_926, {"empty answer": 74})
    assert account.notes["an input that says there is none, taken as empty"] == 40


REAL = {
    "raschka-instruction/ch07/01_main-chapter-code/instruction-data.json": (1100, {}),
    "llamafactory-demo/alpaca_en_demo.json": (999, {}),
    "llamafactory-demo/alpaca_zh_demo.json": (1000, {}),
    "llamafactory-demo/identity.json": (91, {}),
    "llamafactory-demo/v1_sft_demo.jsonl": (500, {}),
    "llamafactory-demo/glaive_toolcall_en_demo.json": (147, {"tool calls": 153}),
    "llamafactory-demo/kto_en_demo.json": (150, {"labelled as a bad answer": 150}),
    "llamafactory-demo/dpo_en_demo.json": (300, {}),
    "self-instruct/data/seed_tasks.jsonl": (175, {}),
    "self-instruct/human_eval/user_oriented_instructions.jsonl": (252, {}),
    "alpaca-eval/results/text_davinci_003/model_outputs.json": (803, {"empty answer": 2}),
    "gsm8k/grade_school_math/data/train.jsonl": (7473, {}),
    "tatoeba-cmn-eng/cmn-eng/cmn.txt": (26_388, {}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(real_data: Path, name: str) -> None:
    account = Account()
    conversations = list(read_instructions([real_data / name], account=account))
    assert (account.kept, account.dropped) == REAL[name]
    for conversation in conversations:
        validate_messages(conversation)
        assert [message["role"] for message in conversation][-2:] == ["user", "assistant"]


def test_real_files_by_template(real_data: Path) -> None:
    fewclue = real_data / "fewclue" / "datasets"
    for path, prompt, answer, kept in [
        (real_data / "financial-phrasebank" / "all-data.csv", "{Headline}", "{Sentiment}", 4845),
        (fewclue / "tnews" / "train_few_all.json", "{sentence}", "{label_desc}", 1185),
        (fewclue / "ocnli" / "train_few_all.json", "{sentence1}\n{sentence2}", "{label}", 160),
        (fewclue / "ocnli" / "train_few_all.json", "{sentence1}\n{sentence2}", "{label0}", 13),
        (real_data / "human-eval" / "data" / "HumanEval.jsonl.gz", "{prompt}", "{canonical_solution}", 164),
    ]:
        file = DataFile(str(path), templates=Templates.of(prompt=prompt, answer=answer))
        assert sum(1 for _ in read_instructions([file])) == kept


@pytest.mark.parametrize(
    "name", ["tinyshakespeare/input.txt", "llamafactory-demo/dataset_info.json", "chinese-poetry/四书五经/daxue.json"]
)
def test_real_files_of_other_formats(real_data: Path, name: str) -> None:
    with pytest.raises(UserError, match=":1: none of the known formats"):
        list(read_instructions([real_data / name]))
