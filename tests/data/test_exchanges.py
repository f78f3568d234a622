"""Records of every shape that public sets have, as prompts and answers: the same for all stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructgpt.data.account import Account, Unusable
from instructgpt.data.data_file import DataFile
from instructgpt.data.exchanges import answered, compared
from instructgpt.data.fields import Fields, is_filled
from instructgpt.data.instructions import read_instructions
from instructgpt.data.preferences import read_rankings
from instructgpt.data.queries import read_queries
from instructgpt.data.templates import Templates
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer

BOAT = "What colour is the boat?"
RED = "The boat is red."
ASKED = f"{BOAT}\n\n{RED}"


def u(content: str) -> Message:
    return {"role": "user", "content": content}


def a(content: str, **marks: Any) -> Any:
    return {"role": "assistant", "content": content, **marks}


def s(content: str) -> Message:
    return {"role": "system", "content": content}


def chat(*contents: str) -> list[Any]:
    return [(u, a)[i % 2](content) for i, content in enumerate(contents)]


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the cat number {i} saw {i * 7} red birds. 猫看见鸟。" for i in range(60)], vocab_size=340)


# ---- one answer: (record, conversation, fields not used)

ONE = [
    # a passage in a field of its own
    ({"instruction": BOAT, "context": RED, "response": "Red."}, chat(ASKED, "Red."), ()),
    ({"question": BOAT, "context": RED, "answer": "Red."}, chat(ASKED, "Red."), ()),
    ({"question": BOAT, "Passage": RED, "answer": "Red."}, chat(ASKED, "Red."), ()),
    ({"query": BOAT, "documents": [{"text": RED}], "answer": "Red."}, chat(ASKED, "Red."), ()),
    ({"question": BOAT, "contexts": [RED, "It is old."], "answer": "x"}, chat(f"{ASKED}\n\nIt is old.", "x"), ()),
    ({"messages": chat(BOAT, "Red."), "context": RED}, chat(ASKED, "Red."), ()),
    ({"question": BOAT, "context": RED, "answers": {"text": ["Red."], "n": [4]}}, chat(ASKED, "Red."), ("answers.n",)),
    ({"prompt": "Be brief.", "question": BOAT, "answer": "Red."}, chat(f"Be brief.\n\n{BOAT}", "Red."), ()),
    ({"question": "q", "choices": ["x", "y"], "answer": 1}, chat("q\n\nA. x\nB. y", "B"), ()),
    ({"question": "q", "A": "x", "B": "y", "answer": "A"}, chat("q\n\nA. x\nB. y", "A"), ()),
    (
        {"instruction": BOAT, "output": "Red.", "text": f"### Instruction:\n{BOAT}\n### Response:\nRed."},
        chat(BOAT, "Red."),
        (),
    ),
    # a system message beside the turns
    (
        {"system": "Pirate.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Arr!"}]},
        [s("Pirate."), *chat("Hi", "Arr!")],
        (),
    ),
    ({"system": "Pirate.", "messages": chat("Hi", "Arr!")}, [s("Pirate."), *chat("Hi", "Arr!")], ()),
    ({"system_prompt": "Pirate.", "messages": chat("Hi", "Arr!")}, [s("Pirate."), *chat("Hi", "Arr!")], ()),
    ({"systemPrompt": "Pirate.", "prompt": "Hi", "completion": "Arr!"}, [s("Pirate."), *chat("Hi", "Arr!")], ()),
    ({"system": "Pirate.", "messages": [s("Pirate."), *chat("a", "b")]}, [s("Pirate."), *chat("a", "b")], ()),
    ({"system": "Pirate.", "messages": [s("Brief."), *chat("a", "b")]}, [s("Pirate.\n\nBrief."), *chat("a", "b")], ()),
    ({"messages": [{"role": "developer", "content": "x"}, *chat("a", "b")]}, [s("x"), *chat("a", "b")], ()),
    ({"instruction": "As a pirate.", "messages": chat("a", "b")}, [s("As a pirate."), *chat("a", "b")], ()),
    ({"prompt": "a", "messages": chat("a", "b")}, chat("a", "b"), ()),
    # marks of turns
    *(
        ({"messages": [u("a"), a("b", **mark), *chat("c", "d")]}, [u("a"), a("b", learn=False), *chat("c", "d")], ())
        for mark in ({"weight": 0}, {"train": False}, {"loss": False}, {"loss_weight": 0.0}, {"training": "false"})
    ),
    ({"messages": [u("a"), a("b", weight=1), u("c"), a("d", weight=0)]}, chat("a", "b"), ()),
    ({"messages": [u("a"), a("b", weight=0.5)]}, chat("a", "b"), ("messages.weight",)),
    # preferences: the chosen one
    ({"chosen": chat("a", "b"), "rejected": chat("a", "c")}, chat("a", "b"), ("rejected",)),
    ({"prompt": "a", "chosen": chat("a", "b"), "messages": chat("a", "b")}, chat("a", "b"), ()),
    ({"instruction": "a", "output": ["b", "c"]}, chat("a", "b"), ()),
    ({"prompt": "a", "answers": [{"answer": "c", "rank": 2}, {"answer": "b", "rank": 1}]}, chat("a", "b"), ()),
    # translations
    ({"en": "dog", "ja": "犬"}, chat("dog", "犬"), ()),
    ({"ja": "犬", "en": "dog"}, chat("犬", "dog"), ()),
    ({"translation": {"de": "Hund", "en": "dog"}}, chat("Hund", "dog"), ()),
    ({"id": "7", "pt-BR": "cão", "eng": "dog"}, chat("cão", "dog"), ("id",)),
    ({"sentence_eng_Latn": "dog", "sentence_zho_Hans": "狗"}, chat("dog", "狗"), ()),
    ({"Swahili": "mbwa", "Hindi": "कुत्ता"}, chat("mbwa", "कुत्ता"), ()),
    # other shapes
    ({"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]}, chat(*"abcd"), ()),
    ({"conversation": [{"input": "a", "output": "b"}], "source": "x"}, chat("a", "b"), ("source",)),
    ({"id": 1, "data": ["a", "b", "c", "d"]}, chat(*"abcd"), ("id",)),
    ({"history": [["a", "b"]], "question": "c", "answer": "d"}, chat(*"abcd"), ()),
    ({"history": chat("a", "b"), "question": "c", "answer": "d"}, chat(*"abcd"), ()),
    ({"input": "a", "output": "b"}, chat("a", "b"), ()),
    ({"Question": "a", "Answer": "b"}, chat("a", "b"), ()),
    ({"User": "a", "Assistant": "b"}, chat("a", "b"), ()),
    ({"question": "a", "answer": 42}, chat("a", "42"), ()),
    ({"messages": None, "instruction": "a", "output": "b"}, chat("a", "b"), ()),
    ({"instruction": "a", "output": None, "response": "b"}, chat("a", "b"), ()),
    ({"instruction": "a", "output": "", "response": "b"}, chat("a", "b"), ()),
    ({"conversations": [{**u("a"), "role": None, "from": "human"}, {"from": "gpt", "value": "b"}]}, chat("a", "b"), ()),
    ({"messages": json.dumps(chat("a", "b"))}, chat("a", "b"), ()),
    ({"text": "### Human: a### Assistant: b"}, chat("a", "b"), ()),
    ({"instruction": "a", "output": '["b", "c"]'}, chat("a", '["b", "c"]'), ()),
]  # fmt: skip


@pytest.mark.parametrize(("record", "conversation", "unused"), ONE)
def test_a_record_with_an_answer(
    path: Path, tokenizer: Tokenizer, record: Any, conversation: list[Any], unused: tuple[str, ...]
) -> None:
    account = Account()
    assert list(read_instructions([write(path, record)], account)) == [conversation]
    assert set(account.not_used) == set(unused) and not account.dropped
    if "learn" not in json.dumps(conversation) and "weight" not in json.dumps(record):
        query = read_queries([str(path)], tokenizer, 1000)[0][0]
        assert (query.messages, query.reference) == (conversation[:-1], conversation[-1]["content"])


def test_several_records_in_an_entry(path: Path) -> None:
    two = [chat("a", "b"), chat("c", "d")]
    records = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    for entry in (
        {"data": records},
        {"version": 1, "examples": records},
        {"instruction": ["a", "c"], "output": ["b", "d"]},
        {"question": {"0": "a", "1": "c"}, "answer": {"0": "b", "1": "d"}},
        {"0": records[0], "1": records[1]},
        {"columns": ["question", "answer"], "data": [["a", "b"], ["c", "d"]]},
        {"conversations": two},
        two,
        {"rows": [{"row_idx": i, "row": record} for i, record in enumerate(records)]},
    ):
        assert list(read_instructions([write(path, entry)])) == two, entry
    account = Account()
    assert list(read_instructions([write(path, *two)], account)) == two and account.read == 2
    path.write_text(json.dumps(chat(*"abcd"), indent=1))
    assert list(read_instructions([path])) == [chat(*"abcd")]


@pytest.mark.parametrize(
    "mark",
    [{"kto_tag": False}, {"tag": False}, {"label": 0}, {"label": "false"}, {"label": "False"}, {"is_correct": "no"}],
)
def test_a_bad_answer_is_not_learnt_but_its_prompt_may_be_asked(path: Path, tokenizer: Tokenizer, mark: Any) -> None:
    bad, good = {"prompt": "a", "completion": "b", **mark}, {"prompt": "c", "completion": "d"}
    account = Account()
    assert list(read_instructions([write(path, bad, good)], account)) == [chat("c", "d")]
    assert account.dropped == {"labelled as a bad answer": 1}
    assert [query.reference for query in read_queries([str(path)], tokenizer, 1000)[0]] == [None, "d"]


@pytest.mark.parametrize(
    "mark",
    [{"label": False}, {"kto_tag": False}, {"label": "false"}, {"is_correct": 0}, {"Is Good": "no"}, {"tag": "False"}],
)
def test_a_bad_answer_is_not_learnt_where_templates_say_what_is_what(
    path: Path, tokenizer: Tokenizer, mark: Any
) -> None:
    records = {"q": "a", "a": "b", **mark}, {"q": "c", "a": "d"}
    account, file = Account(), DataFile(write(path, *records), templates=Templates.of(prompt="{q}", answer="{a}"))
    assert list(read_instructions([file], account)) == [chat("c", "d")]
    assert account.dropped == {"labelled as a bad answer": 1} and not account.not_used
    assert [query.reference for query in read_queries([file], tokenizer, 1000)[0]] == [None, "d"]


@pytest.mark.parametrize(
    ("record", "answer", "not_used"),
    [
        ({"q": "a", "label": 0}, "{label}", {}),  # what a template uses is no mark
        ({"q": "a", "label": "negative"}, "{label}", {}),
        ({"q": "a", "correct": False}, "{correct}", {}),
        ({"q": "a", "label": {"text": "bad"}}, "{label.text}", {}),
        ({"q": "a", "name": "bad", "label": 0}, "{name}", {"label": 1}),  # a class has a number and a name
        ({"q": "a", "name": "b", "tag": "negative"}, "{name}", {"tag": 1}),
    ],
)
def test_a_class_is_no_mark_where_templates_say_what_is_what(
    path: Path, record: Any, answer: str, not_used: Any
) -> None:
    account, file = Account(), DataFile(write(path, record), templates=Templates.of(prompt="{q}", answer=answer))
    assert len(list(read_instructions([file], account))) == 1 and account.not_used == not_used


def test_a_label_that_is_no_mark_is_not_used(path: Path) -> None:
    account = Account()
    list(read_instructions([write(path, {"prompt": "a", "completion": "b", "label": "sports"})], account))
    assert account.kept == 1 and account.not_used == {"label": 1}


# ---- several answers

Q1_Q2 = chat("q1", "a1", "q2")
PAIRS = [
    ({"question": BOAT, "context": RED, "chosen": "b", "rejected": "c"}, [u(ASKED)]),
    ({"prompt": "q1", "chosen": [*Q1_Q2, a("b")], "rejected": [*Q1_Q2, a("c")]}, Q1_Q2),
    ({"prompt": "q1", "chosen": [s("x"), *chat("q1", "b")], "rejected": [s("x"), *chat("q1", "c")]}, [s("x"), u("q1")]),
    ({"prompt": "q2", "chosen": [*Q1_Q2, a("b")], "rejected": [*Q1_Q2, a("c")]}, Q1_Q2),
    ({"prompt": Q1_Q2, "chosen": chat("q2", "b"), "rejected": chat("q2", "c")}, Q1_Q2),
    ({"prompt": "q", "chosen": chat("q", "b"), "rejected": chat("q", "c"), "messages": chat("q", "b")}, [u("q")]),
    ({"system": "x", "question": "q", "chosen": "b", "rejected": "c"}, [s("x"), u("q")]),
    ({"system_prompt": "x", "chosen": chat("q", "b"), "rejected": chat("q", "c")}, [s("x"), u("q")]),
    ({"input": {"messages": chat("q")}, "preferred_output": [a("b")], "non_preferred_output": [a("c")]}, [u("q")]),
    ({"instruction": "q", "output": ["b", "c"]}, [u("q")]),
    ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " b", "rejected": " c"}, [u("q")]),
    ({"prompt": "q", "answers": [{"answer": "c", "rank": 2.0}, {"answer": "b", "rank": 1.0}]}, [u("q")]),
    ({"instruction": "q", "completions": [{"response": "c", "score": 3}, {"response": "b", "score": 9}]}, [u("q")]),
    ({"history": "q", "human_ref_A": "c", "human_ref_B": "b", "labels": 0}, [u("q")]),
    ({"prompt": "q", "response_1": "c", "response_2": "b", "preference_strength": 2}, [u("q")]),
    ({"prompt": "q", "response_0": "b", "response_1": "c", "better_response_id": 0}, [u("q")]),
    ({"conversation_a": chat("q", "c"), "conversation_b": chat("q", "b"), "winner": "model_b"}, [u("q")]),
    ({"question": "q", "response_j": "b", "response_k": "c"}, [u("q")]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "prompt"), PAIRS)
def test_a_record_with_two_answers(path: Path, tokenizer: Tokenizer, record: Any, prompt: list[Any]) -> None:
    account = Account()
    [ranking] = read_rankings([write(path, record)], account)
    assert (ranking.messages, tuple(text.strip() for text in ranking.answers)) == (prompt, ("b", "c"))
    assert not account.not_used
    [conversation] = read_instructions([path])
    assert [*conversation[:-1], conversation[-1]["content"].strip()] == [*prompt, "b"]
    assert read_queries([str(path)], tokenizer, 1000)[0][0].messages == prompt


def test_answers_that_are_not_compared_with_each_other_make_pairs_with_the_best(path: Path) -> None:
    found = read_rankings([write(path, {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]})])
    assert [ranking.answers for ranking in found] == [("a", "b"), ("a", "c")]


# ---- prompts alone


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "Say hi"}, [u("Say hi")]),
        ({"messages": chat("a", "b", "c")}, chat("a", "b", "c")),
        ({"prompt": [s("x"), u("a")], "solution": None}, [s("x"), u("a")]),
        ({"turns": ["a", "b"], "category": "writing"}, [u("a")]),
    ],
)
def test_a_prompt_needs_no_answer(path: Path, tokenizer: Tokenizer, record: Any, prompt: Any) -> None:
    [query] = read_queries([str(write(path, record))], tokenizer, 1000)[0]
    assert (query.messages, query.reference) == (prompt, None)


# ---- properties

names = st.sampled_from(
    ["instruction", "input", "context", "system", "messages", "prompt", "chosen", "rejected", "output", "response"]
) | st.sampled_from(["label", "history", "choices", "answers", "images", "Question", "en", "ja", "text", "id"])
texts = st.sampled_from(["", "a", "b", "a longer text that is no chance", "\n\nHuman: a\n\nAssistant: b"])
turn_lists = st.lists(texts, min_size=1, max_size=4).map(lambda contents: chat(*contents))
values = texts | st.none() | st.booleans() | st.integers(0, 2) | turn_lists | st.lists(texts, max_size=2)
records = st.dictionaries(names, values, max_size=6)


def outcome(record: dict[str, Any]) -> tuple[str, set[str]]:
    """What is made of a record, as text, and which of its fields were not used."""
    found = []
    for reader in (answered, compared):
        fields = Fields(record)
        try:
            made: Any = reader(fields, Templates(), Account(), "x")
        except Unusable as unusable:
            made = [unusable]
        found.append((str([repr(one) for one in made]), fields.unused()))
    return found[0][0] + found[1][0], found[0][1] | found[1][1]


@pytest.mark.parametrize("name", ["text", "Content", "CONTEXT", "Source Text"])
def test_turns_in_a_field_for_passages_are_asked_once(name: str) -> None:
    """They are the turns, in any spelling, and no passage besides."""
    made = outcome({name: chat("a", "b")})[0]
    assert "'content': 'a'}], answers=('b',)" in made


@given(record=records)
@example(record={"text": chat("a", "a")})
def test_neither_null_nor_order_nor_case_matters(record: dict[str, Any]) -> None:
    made = outcome(record)
    assert outcome({**record, "target": None, "conversations": None}) == made
    if not {"en", "ja"} <= record.keys():  # their order is the direction
        assert outcome(dict(reversed(record.items()))) == made
    capitals, unused = outcome({name.title(): value for name, value in record.items()})
    assert capitals.casefold() == made[0].casefold()
    assert {name.casefold() for name in unused} == {name.casefold() for name in made[1]}


@given(given=st.lists(records, min_size=1, max_size=4))
def test_each_filled_field_of_a_kept_record_is_in_it_or_not_used(given: list[dict[str, Any]]) -> None:
    for record in given:
        fields = Fields(record)
        try:
            [found] = answered(fields, Templates(), Account(), "x")
        except (Unusable, ValueError):
            continue
        if isinstance(found, Unusable):
            continue
        said = json.dumps([found.prompt, found.answers])
        for name, value in record.items():
            if isinstance(value, str) and is_filled(value) and name not in fields.unused() and "Human:" not in value:
                assert value in said, name
