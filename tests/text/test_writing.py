"""Tokenizers handed on: transformers reads the same tokens and templates from them, and so does the import."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from instructgpt.errors import UserError
from instructgpt.text.chat import render_conversation, render_prompt
from instructgpt.text.formats import FORMATS
from instructgpt.text.model_proto import is_bpe
from instructgpt.text.reading import read_folder, read_gguf
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.text.writing import chat_template, gguf_fields, write_folder
from tests.text.families import FAMILIES, texts
from tests.text.test_formats import CHATS, chat

TEXTS = [*texts()[:20], "a  b\n\n c ", "12,345 猫 😀 é", "\tdef f(x):\n"]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(texts(), 700, kind=request.param)


def test_transformers_reads_what_was_written(family, tmp_path) -> None:
    name, tokenizer, _ = family
    write_folder(tokenizer, tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        assert oracle.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert oracle.encode(text)[: len(tokenizer.document_start)] == tokenizer.document_start
    for messages in CHATS:
        told = FAMILIES[name].prompt
        assert oracle.apply_chat_template(messages, return_dict=False) == render_conversation(messages, tokenizer).ids
        prompt = oracle.apply_chat_template(messages[:-1], return_dict=False, add_generation_prompt=True, **told)
        assert prompt == render_prompt(messages[:-1], tokenizer)
    assert read_folder(tmp_path) == tokenizer


@pytest.mark.parametrize("name", [*FORMATS])
def test_a_template_is_written_for_every_format(families, name, tmp_path) -> None:
    base = families[name if name.startswith(("mistral", "llama2")) else "smollm2"][0]
    tokenizer = base._replaced(format=None, template="").with_chat(FORMATS[name])
    write_folder(tokenizer, tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for messages in [*CHATS, chat("a", "b", "c", "d", system=" Be brief.\n")]:
        assert oracle.apply_chat_template(messages, return_dict=False) == render_conversation(messages, tokenizer).ids
        prompt = oracle.apply_chat_template(messages[:-1], return_dict=False, add_generation_prompt=True)
        assert prompt == render_prompt(messages[:-1], tokenizer)
    again = read_folder(tmp_path, "" if name in ("instructgpt",) else name)
    assert render_conversation(CHATS[1], again) == render_conversation(CHATS[1], tokenizer)


def test_ours_leaves_and_comes_back(ours: Tokenizer, tmp_path) -> None:
    write_folder(ours, tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        assert oracle.encode(text, add_special_tokens=False) == ours.encode(text)
        assert oracle.decode(ours.encode(text)) == text
    for messages in CHATS:
        assert oracle.apply_chat_template(messages, return_dict=False) == render_conversation(messages, ours).ids
    again = read_folder(tmp_path)
    assert again == ours and again.closing == ours.closing and again.control_ids == ours.control_ids


def test_gguf_fields_come_back(family) -> None:
    _, tokenizer, _ = family
    fields = gguf_fields(tokenizer, tokenizer.vocab_size + 3)
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == tokenizer.vocab_size + 3
    again = read_gguf(fields)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.format == tokenizer.format and again.document_start == tokenizer.document_start
    assert render_conversation(CHATS[1], again._replaced(special=tokenizer.special)) == render_conversation(
        CHATS[1], tokenizer
    )


def test_ours_in_gguf(ours: Tokenizer) -> None:
    if not is_bpe(ours.subwords.model):
        with pytest.raises(UserError, match="unigram tokenizer, which GGUF has no form for"):
            gguf_fields(ours)
        return
    again = read_gguf(gguf_fields(ours))
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
    assert render_conversation(CHATS[1], again) == render_conversation(CHATS[1], ours)


def test_a_base_leaves_without_a_template(families, tmp_path) -> None:
    base = families["llama3"][0]._replaced(format=None, template="")
    write_folder(base, tmp_path)
    assert chat_template(base) == "" and PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template is None
    assert "tokenizer.chat_template" not in gguf_fields(base)
