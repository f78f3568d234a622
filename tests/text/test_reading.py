"""Tokenizers of others, from folders and from GGUF fields: what the settings say of the tokens, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructgpt.errors import UserError
from instructgpt.text.formats import CHATML, LLAMA2
from instructgpt.text.reading import read_folder, read_gguf
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.text.writing import gguf_fields
from tests.text.families import LLAMA2 as LLAMA2_TEMPLATE
from tests.text.families import saved, sentence_piece


def llama(folder: Path, **settings: Any) -> Path:
    """A folder as that of Llama 2: SentencePiece's file, and settings."""
    (folder / "tokenizer.model").write_bytes(sentence_piece())
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": LLAMA2_TEMPLATE} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_with_a_sentencepiece_model(tmp_path) -> None:
    read = read_folder(llama(tmp_path))
    assert (read.bos, read.eos, read.pad, read.document_start) == (1, 2, 2, [1])
    assert read.format == LLAMA2 and read.template == LLAMA2_TEMPLATE and read.closing == {2}
    read.save(tmp_path / "run")
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == ["chat.json", "tokenizer.model"]
    assert Tokenizer.load(tmp_path / "run") == read


def test_what_settings_say_of_the_tokens(tmp_path) -> None:
    added = {"600": {"content": "<|im_start|>"}, "601": {"content": "<|im_end|>"}}
    folder = llama(
        tmp_path, add_bos_token=False, added_tokens_decoder=added, chat_template=None, pad_token="<|im_end|>"
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 601, 5]}')
    read = read_folder(folder)
    assert read.control_ids == {"<s>": 1, "</s>": 2, "<|im_start|>": 600, "<|im_end|>": 601}
    assert read.vocab_size == 602 and read.document_start == [] and read.pad == 601 and read.format == CHATML
    assert read.closing == {2, 601, 5}
    assert not {600, 601} & set(read.encode("<|im_start|>user<|im_end|>"))
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text('{"<|x|>": 600}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    (folder / "config.json").write_text('{"bos_token_id": 1}')
    read = read_folder(folder)
    assert read.control_ids == {"<s>": 1, "</s>": 2, "<|x|>": 600} and read.bos == 1 and read.format is None


def test_a_template_of_its_own_file_counts(tmp_path) -> None:
    folder = llama(tmp_path, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": ""}])
    assert read_folder(folder).template == ""
    (folder / "chat_template.jinja").write_text(LLAMA2_TEMPLATE)
    assert read_folder(folder).format == LLAMA2


def test_an_unknown_template_asks_for_a_name(tmp_path) -> None:
    folder = llama(tmp_path, chat_template="{{ '### Instruction:' }}")
    with pytest.raises(UserError, match="chat template that is not known; name the format with --chat-format"):
        read_folder(folder)
    assert read_folder(folder, "llama2").format == LLAMA2
    with pytest.raises(UserError, match=r"needs the control token\(s\) <\|im_start\|>, <\|im_end\|>"):
        read_folder(folder, "chatml")
    with pytest.raises(UserError, match="unknown chat format 'chatmll'"):
        read_folder(folder, "chatmll")


def test_nothing_of_a_template_is_run(tmp_path) -> None:
    trap = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "run") + "') }}" + LLAMA2_TEMPLATE
    assert read_folder(llama(tmp_path, chat_template=trap)).format == LLAMA2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds no tokenizer: tokenizer.model, tokenizer.json, or vocab.json with merges.txt"),
        ({"tokenizer.model": "x"}, r"tokenizer\.model: is not a SentencePiece model"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{"}, r"tokenizer_config\.json:1: is not JSON"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, r"tokenizer_config\.json: is not a JSON object"),
        ({"vocab.json": '{"a": 0}'}, r"merges\.txt: is missing"),
        ({"vocab.json": '{"a": 0, "b": 2}', "merges.txt": ""}, "ids should be 0, 1, 2"),
        ({"vocab.json": '{"a": "0"}', "merges.txt": ""}, "should say the id of each piece"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "says of no token that it ends a text: eos_token"),
    ],
)
def test_a_folder_that_holds_none(tmp_path, files: dict[str, str], complaint: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"added_tokens_decoder": {"x": {}}}, {"added_tokens_decoder": 3}, {"bos_token": 7}]
)
def test_settings_that_say_nothing_sensible(tmp_path, settings: dict) -> None:
    with pytest.raises(UserError, match=r"tokenizer_config\.json: "):
        read_folder(llama(tmp_path, **settings))


def test_ids_of_no_token(tmp_path) -> None:
    folder = llama(tmp_path, eos_token=None)
    (folder / "config.json").write_text('{"eos_token_id": 4000}')
    with pytest.raises(UserError, match="eos is token 4000, outside the vocabulary of 600"):
        read_folder(folder)


def test_a_list_of_ranks_beside_tokenizer_json_is_not_sentencepiece(tmp_path) -> None:
    saved("llama3", tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert read_folder(tmp_path).format.name == "llama3"  # type: ignore[union-attr]


def test_gguf_fields(families) -> None:
    fields = gguf_fields(families["smollm2"][0])
    assert read_gguf(fields).format.name == "smollm2"  # type: ignore[union-attr]
    pre = "tokenizer.ggml."
    cases: list[tuple[dict[str, Any], str]] = [
        ({pre + "model": "bert"}, "tokenizer of the kind 'bert'; llama and gpt2"),
        ({pre + "pre": "viking"}, "unknown way, 'viking'"),
        ({pre + "tokens": []}, "tokenizer.ggml.tokens is missing"),
        ({pre + "token_type": [1]}, "a kind, or a role, of tokens that it does not list"),
        ({pre + "eos_token_id": 10_000}, "a kind, or a role, of tokens that it does not list"),
        ({pre + "eos_token_id": None}, "says of no token that it ends a text"),
        ({pre + "merges": ["zz yy"]}, "merges name the piece 'zz'"),
        ({"tokenizer.chat_template": "{{ 'Q:' }}"}, "chat template that is not known"),
        ({pre + "model": "llama", pre + "scores": [0.0]}, "a score for each of its pieces"),
    ]
    for change, complaint in cases:
        with pytest.raises(UserError, match=rf"^m\.gguf: .*{complaint}"):
            read_gguf(fields | change, "m.gguf")
