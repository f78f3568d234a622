"""What is shown of files is what would be trained on, and what is counted is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.account import Account
from instructgpt.data.data_file import DataFile
from instructgpt.data.show import Entry, Overview, duplicates, lengths, main_script, read_overview, scripts, segments
from instructgpt.errors import UserError
from instructgpt.text.chat import Message, render_conversation
from instructgpt.text.formats import LLAMA2, MISTRAL3, SMOLLM2, ChatFormat
from instructgpt.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"the cat number {i} saw {i * 7} red birds. 猫看见鸟。" for i in range(60)], vocab_size=340)


def write(path: Path, records: list[Any]) -> DataFile:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return DataFile(str(path))


def chat(*contents: str, learn: bool = True) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    if not learn:
        messages[1]["learn"] = False
    return tuple(messages)


contents = st.lists(st.text("the cat 猫<end>[]\n ", min_size=1, max_size=12), min_size=2, max_size=6)


@given(contents.filter(lambda texts: len(texts) % 2 == 0), st.booleans())
def test_what_is_marked_is_what_is_trained_on(tokenizer: Tokenizer, texts: list[str], learn: bool) -> None:
    entry = Entry(chat(*texts, learn=learn or len(texts) == 2))
    rendered = render_conversation(entry.messages, tokenizer)
    shown = list(segments(entry, tokenizer))
    trained = [i for i, learnt in zip(rendered.ids, rendered.is_answer) if learnt]
    assert "".join(s.text for s in shown if s.is_learnt and not s.is_control) == tokenizer.decode(trained)
    assert sum(s.is_learnt and s.is_control for s in shown) == trained.count(tokenizer.end)
    assert sum(s.is_control for s in shown) == sum(i in tokenizer.control_ids.values() for i in rendered.ids)
    assert lengths([entry], tokenizer).whole.tolist() == [len(rendered.ids)]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (SMOLLM2, f"<|im_start|>system\n{SMOLLM2.default_system}<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
         "<|im_start|>assistant\n[a<|im_end|>]\n"),
        (LLAMA2, "<s>[INST] q [/INST] [a </s>]"),
        (MISTRAL3, "<bos>[INST] q[/INST] [a</s>]"),
    ],
)  # fmt: skip
def test_an_example_is_shown_as_its_format_has_it(tokenizer: Tokenizer, form: ChatFormat, expected: str) -> None:
    other = tokenizer.with_chat(form)
    entry = Entry(chat("q", "a"))
    assert (
        "".join(f"[{s.text}]" if s.is_learnt else s.text for s in segments(entry, other)).replace("][", "") == expected
    )
    # Texts beside a content are counted apart from it.
    assert abs(lengths([entry], other).whole[0] - len(render_conversation(entry.messages, other).ids)) <= 2
    borne = Entry(({"role": "system", "content": "s"}, *chat("q", "a", "r", "b")))
    text = "".join(s.text for s in segments(borne, other))
    assert text.count("s<|im_end|>") + text.count("<<SYS>>\ns\n<</SYS>>\n\nq") + text.count("[INST] s\n\nr") == 1


def test_a_comparison_and_a_text_as_they_are_rendered() -> None:
    shown = "".join(f"[{s.text}]" if s.is_learnt else s.text for s in segments(Entry(chat("q"), ("good", "bad"))))
    assert shown == "<bos><user>q<end><assistant>\nbetter: [good][<end>]\nworse: [bad][<end>]"
    earlier = Entry(chat("q", "a", "why?"), ("good", "bad"))
    assert [s.text for s in segments(earlier) if s.is_learnt] == ["good", "<end>", "bad", "<end>"]
    assert (lengths([earlier]).prompt.tolist(), lengths([earlier]).answer.tolist()) == ([6], [4])
    assert "".join(s.text for s in segments(Entry(text="once"))) == "<bos>once<eos>"


@pytest.mark.parametrize(
    ("records", "kind", "count"),
    [
        ([{"instruction": "a", "output": "b"}], "conversations", 1),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "comparisons", 1),
        ([{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}], "comparisons", 1),
        ([{"text": "once"}, {"text": "twice"}], "text", 2),
    ],
)
def test_the_kind_is_found(tmp_path: Path, records: list[Any], kind: str, count: int) -> None:
    overview = read_overview(write(tmp_path / "a.jsonl", records))
    assert (overview.kind, len(overview.entries), overview.account.kept) == (kind, count, count)


def test_what_can_be_read_as_nothing_is_told_as_sft_would(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: none of the known formats"):
        read_overview(write(tmp_path / "a.jsonl", [{"x": 1}]))


def test_duplicates_are_counted_by_file() -> None:
    def overview(*entries: Entry) -> Overview:
        return Overview(DataFile("a"), "conversations", Account(), list(entries))

    first, other, second = Entry(chat("q", "a")), Entry(chat("q", "b")), Entry(chat("p", "a"))
    found = duplicates([overview(first, first, other, second), overview(second, Entry(chat("p", "c")))])
    assert [tuple(each) for each in found] == [(1, 0, 1), (0, 1, 1)]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The cat", "Latin"), ("猫看见鸟", "Han"), ("猫が鳥を見た", "Japanese"),
        ("고양이", "Korean"), ("кот", "Cyrillic"),
        ("القط", "Arabic"), ("γάτα", "Greek"), ("बिल्ली", "Devanagari"), ("1 + 2 = 3", None),
        ("我用 Python 写程序", "Latin"),
        ("ＡＢＣ", "Latin"),
    ],
)  # fmt: skip
def test_scripts(text: str, script: str | None) -> None:
    assert main_script([text]) == script


def test_scripts_of_prompts_and_answers() -> None:
    asked, answered = scripts([Entry(chat("Translate: cat", "猫")), Entry(chat("2 + 2", "4"))])
    assert (asked, answered) == ({"Latin": 1, "no letters": 1}, {"Han": 1, "no letters": 1})
