from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructgpt.data import corpus as module
from instructgpt.data.corpus import Corpus, read_split, write_corpus
from instructgpt.errors import UserError
from instructgpt.text.tokenizer import Tokenizer

WORDS = ["the", "a", "cat", "dog", "river", "sings", "你好", "世界", "runs,", "and", "\t", "very", "12", "thus"]


def prose(lines: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(WORDS, k=rng.randrange(12))) + "\n" for _ in range(lines))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([prose(500)], 330)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(prose(3000), encoding="utf-8")
    return path


def decoded(corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
    documents = [corpus.ids[a:b].tolist() for a, b in zip(corpus.offsets, corpus.offsets[1:])]
    assert all((ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eos) for ids in documents)
    return [tokenizer.decode(ids) for ids in documents]


def test_a_corpus_holds_the_files_text_and_its_tokens(tmp_path, text_file, tokenizer):
    account = write_corpus([text_file], tokenizer, tmp_path / "corpus")
    train, val = (Corpus.open(tmp_path / "corpus", split, tokenizer) for split in ("train", "val"))
    text = text_file.read_text(encoding="utf-8")
    assert decoded(train, tokenizer)[0] + decoded(val, tokenizer)[0] == text
    assert train.text_bytes + val.text_bytes == len(text.encode())
    assert 0.08 < val.text_bytes / len(text.encode()) <= 0.1
    # Cut into pieces or not, the tokens are those of the whole.
    assert train.ids[1:-1].tolist() == tokenizer.encode(decoded(train, tokenizer)[0])
    assert train.ids.dtype == np.uint16 and isinstance(train.ids, np.memmap)
    assert f"{len(text.encode()):,} bytes" in account and f"train {len(train.ids):,} tokens" in account


def test_small_pieces_and_batches_change_nothing(tmp_path, text_file, tokenizer, monkeypatch):
    write_corpus([text_file], tokenizer, tmp_path / "large")
    monkeypatch.setattr("instructgpt.data.documents._PIECE", 100)
    monkeypatch.setattr(module, "_BATCH", 150)
    write_corpus([text_file], tokenizer, tmp_path / "small")
    for split in ("train", "val"):
        large, small = (Corpus.open(tmp_path / name, split) for name in ("large", "small"))
        assert np.array_equal(large.ids, small.ids) and np.array_equal(large.offsets, small.offsets)


def test_many_files_and_documents_keep_their_borders(tmp_path, tokenizer):
    texts = {name: [f"{name} {i} {prose(2, i)}".strip("\n") for i in range(40)] for name in ("a", "b")}
    (tmp_path / "a.txt").write_text("\n<|end|>\n".join(texts["a"]), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts["b"]), encoding="utf-8")
    write_corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"], tokenizer, tmp_path / "corpus", separator="<|end|>")
    train, val = (decoded(Corpus.open(tmp_path / "corpus", split), tokenizer) for split in ("train", "val"))
    assert sorted(train + val) == sorted(texts["a"] + texts["b"])
    assert {text[0] for text in val} == {"a", "b"}, "the last part of each file is held out"


def test_the_tokenizers_training_text_is_the_training_split(tmp_path, text_file, tokenizer):
    write_corpus([text_file], tokenizer, tmp_path / "corpus", 0.2)
    for split in ("train", "val"):
        text = "".join(read_split(text_file, split, 0.2))
        assert [text] == decoded(Corpus.open(tmp_path / "corpus", split), tokenizer)


def test_a_corpus_is_reused_only_for_the_same_request(tmp_path, text_file, tokenizer, monkeypatch):
    def is_reused(**changed: Any) -> bool:
        arguments = {"paths": [text_file], "tokenizer": tokenizer, "directory": tmp_path / "corpus", **changed}
        return "made before" in write_corpus(**arguments)

    assert not is_reused()
    assert is_reused()
    assert not is_reused(holdout=0.2)
    assert not is_reused(holdout=0.1)
    assert not is_reused(separator="the")
    other = Tokenizer.train([prose(500, seed=9)], 320)
    assert not is_reused(tokenizer=other)
    assert not is_reused()
    os.utime(text_file, ns=(1, 1))
    assert not is_reused()
    shard = next((tmp_path / "corpus").glob("train-*.ids"))
    shard.write_bytes(shard.read_bytes()[:-2])
    assert not is_reused()
    assert is_reused()


def test_only_the_newest_shards_are_kept(tmp_path, text_file, tokenizer):
    write_corpus([text_file], tokenizer, tmp_path / "corpus")
    half_written = tmp_path / "corpus" / ".train-0123.ids.77.tmp"
    half_written.touch()
    write_corpus([text_file], tokenizer, tmp_path / "corpus", 0.3)
    assert half_written.exists(), "somebody may be writing it"
    os.utime(half_written, (1, 1))
    write_corpus([text_file], tokenizer, tmp_path / "corpus", 0.4)
    assert len(list((tmp_path / "corpus").iterdir())) == 5  # two shards of two files, and meta.json


def test_a_failure_keeps_the_corpus_that_was_there(tmp_path, text_file, tokenizer, monkeypatch):
    write_corpus([text_file], tokenizer, tmp_path / "corpus")
    before = Corpus.open(tmp_path / "corpus", "train").ids.tolist()
    names = sorted(os.listdir(tmp_path / "corpus"))

    def full(self: Any, pieces: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        patch.setattr(module._Writer, "write", full)
        write_corpus([text_file], tokenizer, tmp_path / "corpus", 0.3)
    assert sorted(os.listdir(tmp_path / "corpus")) == names
    assert Corpus.open(tmp_path / "corpus", "train").ids.tolist() == before


def test_a_split_without_text_has_no_documents(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("ab")
    write_corpus([tmp_path / "a.txt"], tokenizer, tmp_path / "corpus", holdout=0.9)
    with pytest.raises(UserError, match="no text for the train split"):
        Corpus.open(tmp_path / "corpus", "train")
    assert decoded(Corpus.open(tmp_path / "corpus", "val"), tokenizer) == ["ab"]


def test_a_large_vocabulary_takes_32_bits(tmp_path, text_file, tokenizer):
    class Large:
        vocab_size = 70_000
        fingerprint = "large"
        document_start, eos = (69_998,), 69_999

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[65_536 + ord(c) % 1000 for c in text] for text in texts]

    write_corpus([text_file], Large(), tmp_path / "corpus")  # pyright: ignore[reportArgumentType]
    ids = Corpus.open(tmp_path / "corpus", "train").ids
    assert ids.dtype == np.uint32 and ids[0] == 69_998 and ids[1:-1].min() >= 65_536


def test_what_is_no_corpus_is_told(tmp_path, text_file, tokenizer):
    with pytest.raises(UserError, match="holds no corpus"):
        Corpus.open(tmp_path, "train")
    write_corpus([text_file], tokenizer, tmp_path / "corpus", holdout=0.0)
    with pytest.raises(UserError, match=r"no text for the val split.*holdout of 0\.0"):
        Corpus.open(tmp_path / "corpus", "val")
    with pytest.raises(UserError, match="another tokenizer"):
        Corpus.open(tmp_path / "corpus", "train", Tokenizer.train([prose(500, seed=9)], 320))
    next((tmp_path / "corpus").glob("train-*.offsets")).unlink()
    with pytest.raises(UserError, match="damaged"):
        Corpus.open(tmp_path / "corpus", "train")
    (tmp_path / "corpus" / "meta.json").write_text("{")
    with pytest.raises(UserError, match="holds no corpus"):
        Corpus.open(tmp_path / "corpus", "train")


def test_a_missing_file_is_told_before_anything_is_written(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read: No such file"):
        write_corpus([tmp_path / "none.txt"], tokenizer, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_real_text_loses_nothing(tmp_path, real_data, tokenizer):
    paths = [real_data / "tinyshakespeare" / "input.txt", *sorted(real_data.glob("chinese-poetry/论语/*.json"))]
    write_corpus(paths, tokenizer, tmp_path / "corpus")
    text = "".join(decoded(Corpus.open(tmp_path / "corpus", "train"), tokenizer)[:1])
    assert paths[0].read_text(encoding="utf-8").startswith(text)
    assert text.endswith("\n") and abs(len(text) / 1_115_394 - 0.9) < 0.001
    assert "论语" not in text and len(Corpus.open(tmp_path / "corpus", "train").offsets) > 15
