"""Tokenizers on 10,000 real lines, English and Chinese: byte for byte what the libraries and the real models give."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from instructgpt.pretrained import hub, smollm2
from instructgpt.text.reading import read_folder, read_gguf
from instructgpt.text.sentence_piece import SentencePiece
from instructgpt.text.tokenizer import Special, Tokenizer
from tests.text.families import FAMILIES, SMOLLM2, sentence_piece
from tests.text.test_formats import CHATS, real_conversations, rendered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lines() -> list[str]:
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside the checkout")
    with gzip.open(folder / "multi30k/data/task1/raw/train.en.gz", "rt", encoding="utf-8") as file:
        found = list(islice(file, 2_000))
    pairs = (folder / "tatoeba-cmn-eng/cmn-eng/cmn.txt").read_text(encoding="utf-8").splitlines()
    found += [side for pair in random.Random(0).sample(pairs, 2_000) for side in pair.split("\t")[:2]]
    records = json.loads((folder / "alpaca-chinese/data/alpaca_chinese_part_1.json").read_text(encoding="utf-8"))
    found += [text for record in records for text in record.values() if isinstance(text, str)][:3_000]
    found += (folder / "wizard-of-oz/tinystories.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:1_000]
    assert len(found) == 10_000 and sum("一" <= c <= "鿿" for line in found for c in line) > 50_000
    return found


def differing(tokenizer: Tokenizer, lines: list[str], expected: list[list[int]]) -> list[str]:
    """The lines whose ids are others than those expected, or that do not come back from them."""
    batch = tokenizer.encode_batch(lines)
    assert len(batch) == len(expected) == len(lines)
    return [line for line, ids, right in zip(lines, batch, expected) if ids != right or tokenizer.decode(ids) != line]


@pytest.mark.parametrize("name", [*FAMILIES])
def test_families(families, lines, name) -> None:
    tokenizer, oracle = families[name]
    # transformers' newer way with SentencePiece puts no space before a text that has one; ours does, as the library.
    asked = [line for line in lines if not line.startswith(" ")] if "mistral" in name else lines
    # What is not composed is kept as it is.
    asked = [line for line in asked if name[:4] != "qwen" or unicodedata.is_normalized("NFC", line)]
    assert len(asked) > 9_900
    assert differing(tokenizer, asked, oracle(asked, add_special_tokens=False)["input_ids"]) == []


def test_sentencepiece(lines) -> None:
    model = sentence_piece()
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(model)
    assert (
        differing(Tokenizer(SentencePiece(model), Special(2, 1), None), lines, library.Encode(lines, out_type=int))
        == []
    )


def test_gpt2(lines, real_data, tmp_path) -> None:
    """The real one, from its vocabulary and merges."""
    for name, file in (("gpt2_vocab.json", "vocab.json"), ("gpt2_merges.txt", "merges.txt")):
        shutil.copy(real_data / "cs336-fixtures" / name, tmp_path / file)
    from transformers import GPT2TokenizerFast

    oracle = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer = read_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.format) == (50257, 50256, None)
    assert differing(tokenizer, lines, oracle(lines)["input_ids"]) == []


def test_smollm2(lines, real_data) -> None:
    """The real one, from its GGUF file."""
    file = hub.cache_folder() / smollm2.NAME / smollm2.FILE
    if not file.exists():
        pytest.skip(f"no {file}: `make smollm2` brings it")
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

    fields = {name: each.contents() for name, each in GGUFReader(file).fields.items() if name.startswith("tokenizer")}
    tokenizer = read_gguf(fields, file)
    pieces = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    library = Library(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:17]])
    oracle = PreTrainedTokenizerFast(tokenizer_object=library, bos_token=pieces[1], eos_token=pieces[2])
    assert fields["tokenizer.chat_template"] == SMOLLM2
    oracle.chat_template = SMOLLM2
    assert differing(tokenizer, lines, oracle(lines)["input_ids"]) == []
    for messages in [*CHATS, *real_conversations(real_data)]:
        for ours, theirs in rendered(("smollm2", tokenizer, oracle), messages):
            assert ours == theirs
