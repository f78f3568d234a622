"""Chat formats: id for id what the models' own templates give, found by control tokens, safe, and consistent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.account import Account
from instructgpt.data.data_file import DataFile
from instructgpt.data.instructions import read_instructions
from instructgpt.errors import UserError
from instructgpt.text.chat import Conversation, Message, render_answer, render_conversation, render_prompt
from instructgpt.text.formats import (
    CHATML,
    FORMATS,
    LLAMA3,
    LLAMA31,
    MISTRAL3,
    OURS,
    QWEN3,
    find_format,
    format_named,
    left_out,
)
from tests.text import families as made
from tests.text.families import FAMILIES

IMITATIONS = [
    *sorted({mark for family in FAMILIES.values() for mark in family.control}),
    "<|im_start|>user\n", "</s><s>[INST]", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<unk>", "<0x0A>",
]  # fmt: skip


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def chat(*turns: str, system: str | None = None) -> list[Message]:
    messages = [] if system is None else [turn("system", system)]
    return [*messages, *(turn(("user", "assistant")[i % 2], content) for i, content in enumerate(turns))]


CHATS = [
    chat("hi", "hello"),
    chat("  the cat\n\n sat  ", "On 1234 mats.", "and?\n", "猫\n\nyes 😀 "),
    chat("a", "b", "c", "d", "e", "f"),
    chat("", ""),
    chat("{{ messages }} {% if x %} it's 12,345.67", "{}{0}"),
]


def rendered(family: tuple, messages: list[Message]) -> Iterator[tuple[list[int], list[int]]]:
    """Our ids and those of the template: of the whole conversation, and of the prompt."""
    name, tokenizer, oracle = family
    told = FAMILIES[name].prompt
    # The template of Mistral v0.3 silently loses a system message when an answer follows.
    if not (name == "mistral-v3" and messages[0]["role"] == "system"):
        yield render_conversation(messages, tokenizer).ids, oracle.apply_chat_template(messages, return_dict=False)
    theirs = oracle.apply_chat_template(messages[:-1], return_dict=False, add_generation_prompt=True, **told)
    yield render_prompt(messages[:-1], tokenizer), theirs


@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
@pytest.mark.parametrize("system", [None, "Be brief.", " a\n"])
def test_a_conversation_is_what_the_models_own_template_gives(family, messages, system) -> None:
    for ours, theirs in rendered(family, messages if system is None else [turn("system", system), *messages]):
        assert ours == theirs


def real_conversations(folder: Path) -> list[list[Message]]:
    """Two hundred, English ones of several turns and Chinese ones; a third has a system message."""

    def read(name: str, count: int) -> list[list[Message]]:
        return list(islice(read_instructions([DataFile(str(folder / name))], Account(name)), count))

    conversations = read("hh-rlhf/harmless-base/test.jsonl.gz", 120)
    conversations += read("alpaca-chinese/data/alpaca_chinese_part_10.json", 80)
    assert len(conversations) == 200 and sum(len(each) > 2 for each in conversations) > 60
    plain = [[turn(each["role"], each["content"]) for each in messages] for messages in conversations]
    system = turn("system", "You are a careful assistant.\n")
    return [[system, *each] if i % 3 == 0 and each[0]["role"] != "system" else each for i, each in enumerate(plain)]


@pytest.mark.slow
def test_two_hundred_real_conversations_are_what_the_models_own_templates_give(family, real_data) -> None:
    for messages in real_conversations(real_data):
        for ours, theirs in rendered(family, messages):
            assert ours == theirs


def test_what_is_trained_on_is_the_answer_and_what_closes_it(family) -> None:
    _, tokenizer, _ = family
    messages = chat("who", "the cat", "and", "the mat", system="Be brief.")
    ids, is_answer = render_conversation(messages, tokenizer)
    learnt = [i for i, learns in zip(ids, is_answer) if learns]
    assert learnt == [*render_answer("the cat", tokenizer), *render_answer("the mat", tokenizer)]
    assert learnt.count(tokenizer.end) == 2 and learnt[-1] == tokenizer.end and tokenizer.end in tokenizer.closing
    assert tokenizer.decode(render_answer("the cat", tokenizer)).strip() == "the cat"
    prompt = render_prompt(messages[:-1], tokenizer)
    assert ids[: len(prompt)] == prompt and not is_answer[len(prompt) - 1] and is_answer[len(prompt)]


@given(content=st.text("ab \n猫1"))
def test_an_answer_comes_back_as_it_was_said(families, content) -> None:
    """The space that a format puts before an answer is none of it; one that goes on from a text is kept."""
    for tokenizer, _ in families.values():
        *ids, _ = render_answer(content, tokenizer)
        answer, rest = tokenizer.stream("answer"), tokenizer.stream("rest")
        after = " " if tokenizer.layout.format.name == "llama2" else ""
        text = "".join([answer.push(i) for i in ids]) + answer.flush()
        assert text == tokenizer.layout.said("assistant", content) + after
        going_on = tokenizer.subwords.encode_within(content)
        assert "".join([rest.push(i) for i in going_on]) + rest.flush() == content


def test_an_answer_that_is_not_to_be_learnt_is_read_only(family) -> None:
    _, tokenizer, _ = family
    messages = chat("who", "the cat", "and", "the mat")
    messages[1]["learn"] = False
    ids, is_answer = render_conversation(messages, tokenizer)
    assert [i for i, learns in zip(ids, is_answer) if learns] == render_answer("the mat", tokenizer)


contents = st.lists(st.sampled_from([*IMITATIONS, " ", "\n", "a", "猫", "12"]), max_size=6).map("".join)


@given(said=st.lists(contents, min_size=2, max_size=4), system=st.none() | contents)
def test_contents_can_neither_close_nor_open_a_turn(families, said, system) -> None:
    for tokenizer, _ in families.values():
        control = set(tokenizer.control_ids.values()) | {
            i for i in range(tokenizer.vocab_size) if not tokenizer.byte_lengths[i]
        }
        messages, blank = chat(*said, system=system), chat(*["a"] * len(said), system=None if system is None else "a")
        shown, expected = (
            [i for i in Conversation(each, tokenizer).stretch().ids if i in control] for each in (messages, blank)
        )
        assert shown == expected


@given(said=st.lists(st.text("ab \n猫1", max_size=12), min_size=2, max_size=8), system=st.none() | st.text("ab \n"))
def test_turn_by_turn_is_the_whole(families, said, system) -> None:
    """What a stretch of turns needs is known without rendering it; turns follow one another as they are alone."""
    for tokenizer, _ in families.values():
        conversation = Conversation(chat(*said, system=system), tokenizer)
        count = len(conversation.messages)
        for first in range(count):
            for end in range(first, count + 1):
                assert conversation.length(first, end) == len(conversation.stretch(first, end).ids)
        if conversation.layout.format.system_in == "turn" and not conversation.layout.thought:
            whole = conversation.stretch(0, 0).ids
            for i in range(count):
                whole += conversation.stretch(i, i + 1).ids[len(conversation.stretch(0, 0).ids) :]
            assert whole == conversation.stretch().ids


def test_formats_are_found_by_control_tokens_and_by_the_look_of_a_template() -> None:
    for family in FAMILIES.values():
        assert find_format(family.control, family.template) == FORMATS[family.format]
    assert find_format(("<|im_start|>", "<|im_end|>")) == CHATML
    assert find_format(FAMILIES["llama3"].control) == LLAMA3 and find_format(FAMILIES["llama3.1"].control) == LLAMA31
    assert find_format(FAMILIES["mistral-v3"].control) == MISTRAL3
    assert find_format(OURS.control) == OURS
    own = made.SMOLLM2.replace(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "I\\'m Bo.\\nHi."
    )
    found = find_format(CHATML.control, own)
    assert found and found.name == "chatml" and found.default_system == "I'm Bo.\nHi."
    assert QWEN3.name not in (found.name, find_format(FAMILIES["qwen3"].control, made.QWEN25).name)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("control", "template"),
    [
        ((), ""),
        (("<|endoftext|>",), ""),
        (("<s>", "</s>"), ""),
        (("<s>", "</s>"), "{{ '### Instruction:' }}"),
        (("<|im_start|>", "<|im_end|>", "<|im_sep|>"), "'<|im_start|>user<|im_sep|>'"),
        (("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]"), "[SYSTEM_PROMPT] [INST]"),
        (("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "{{ '<|user|>\n' + content + '<|end|>\n' }}"),
    ],
)
def test_no_format_is_guessed(control: tuple[str, ...], template: str) -> None:
    assert find_format(control, template) is None


def test_what_a_template_does_beyond_its_format_is_named() -> None:
    beyond = "{%- if tools %}{{ documents }}{%- endif %}{{ message.reasoning_content }}{% if item.type == 'image' %}"
    assert left_out(beyond) == ["tools", "documents", "thoughts", "pictures"]
    assert left_out(made.SMOLLM2) == left_out(made.LLAMA3) == left_out("{{ stools.imagery }}") == []
    assert left_out(made.QWEN3) == ["thoughts"]


def test_a_format_is_named() -> None:
    assert format_named("llama3") is LLAMA3
    with pytest.raises(UserError, match="unknown chat format 'lama3'; did you mean 'llama3"):
        format_named("lama3")


def test_a_system_message_without_a_turn_of_its_own(families) -> None:
    first, _ = families["mistral-v1"]
    last, _ = families["mistral-v3"]
    messages = chat("one", "two", "three", "four", system="Brief.")
    for tokenizer, place in ((first, 0), (last, 2)):
        asked = ["one", "two", "three", "four"]
        asked[place] = f"Brief.\n\n{asked[place]}"
        assert render_conversation(messages, tokenizer) == render_conversation(chat(*asked), tokenizer)
    # Where no turn of the user can bear it, one is put in front.
    opened = [turn("system", "Brief."), turn("assistant", "hi"), turn("user", "a"), turn("assistant", "b")]
    conversation = Conversation(opened, first)
    assert first.decode(conversation.stretch(0, 1).ids) == "[INST] Brief.\n\n [/INST] hi"


def test_a_format_that_the_control_tokens_cannot_spell_is_refused(families) -> None:
    tokenizer, _ = families["smollm2"]
    with pytest.raises(
        UserError, match=r"chat format llama3 needs the control token\(s\) <\|start_header_id\|>, .*lacks"
    ):
        tokenizer._replaced(format=LLAMA3)


def test_without_a_format_there_is_no_chat(families) -> None:
    base = families["llama2"][0]._replaced(format=None)
    with pytest.raises(UserError, match="no chat format"):
        render_prompt(chat("hi"), base)
    assert base.closing == {base.eos}


def test_a_base_is_given_our_format_with_tokens_of_its_own(family) -> None:
    _, tokenizer, _ = family
    base = tokenizer._replaced(format=None)
    chatting = base.with_chat()
    roles = {name: chatting.control_ids[name] for name in ("system", "user", "assistant", "end")}
    assert list(roles.values()) == list(range(base.vocab_size, base.vocab_size + 4))
    assert chatting.vocab_size == base.vocab_size + 4 and chatting.encode("the cat") == base.encode("the cat")
    ids = render_prompt(chat("the cat"), chatting)
    said = base.subwords.encode("the cat") if base.special.prefixes else base.subwords.encode_within("the cat")
    assert ids == [*base.document_start, roles["user"], *said, roles["end"], roles["assistant"]]
    assert chatting.closing == base.closing | {roles["end"]} and chatting != base
    assert not chatting.byte_lengths[-4:].any() and chatting.decode(list(roles.values())) == ""
    assert chatting.with_chat() == chatting and base.with_control(["<|x|>"]).control_ids["<|x|>"] == base.vocab_size
