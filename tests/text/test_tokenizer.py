"""The tokenizer: lossless, safe against text that imitates control tokens, deterministic, clear about its limits."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.text.sentence_piece import CONTROL_NAMES, FILE_NAME, _sample, _training_lines
from instructgpt.text.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on a", "mat", "saw 12", "birds", "in 1987", "while", "猫", "坐在", "垫子", "鸟", "été"]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=12)) + ".\n\tdef f(x):\n        return x + 1" for i in range(300)]
NAMES = [f"<|{name}|>" for name in (*CONTROL_NAMES, "unk")]
IMITATIONS = [*NAMES, "</s>", "<s>", "<unk>", "<pad>", "<0x41>", "<0x0A>", "<0xFF>"]
# What is easily lost: SentencePiece's space, its own marker, NUL, controls, BOM, U+FFFD, noncharacters, joined emoji.
HOSTILE = [
    "", " ", "   ", "\n", "\n\n\t\n", " a  b ", "a\r\nb\r", "▁", "a▁▁ b▁", "\u2585\u2047", "\0", "a\0b", "\x01\x7f\x85",
    "\ufeffa\ufeff", "\ufffd", "\ufffe\uffff", "\u200b\u200d\u202e", "👩‍👩‍👧‍👦 🇫🇷 é e\u0301", "𠀀 中文",
    "x" * 5000, *IMITATIONS,
]  # fmt: skip


def largest_vocabulary(texts: list[str], **options) -> int:
    """What the error says works, when a vocabulary is asked for that no text allows."""
    with pytest.raises(UserError, match=r"vocab_size 50000 .*largest that works is") as error:
        Tokenizer.train(texts, 50_000, **options)
    return int(str(error.value).split()[-1])


any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab ▁\n\t<|>user0x41 猫😀\0\u0301")


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=316, kind=request.param)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=any_text)
def test_encode_then_decode_is_the_identity(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    # No text reaches a control token, nor the unknown token that follows them.
    assert all(i > len(CONTROL_NAMES) for i in ids)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize(
    ("texts", "size"), [(["xyz"], 267), (["春眠不觉晓"], 269), (["你好" * 3000, "再 见"], 266), (["abab"] * 9, 267)]
)
def test_a_space_comes_back_where_training_saw_none_or_too_few_to_learn(texts: list[str], size: int) -> None:
    learnt = Tokenizer.train(texts, size)
    for text in ("a b", "  春 眠  ", "▁ ▁", " "):
        assert learnt.decode(learnt.encode(text)) == text
        assert learnt.encode_batch([text]) == [learnt.encode(text)]


@given(texts=st.lists(any_text, max_size=5))
def test_batch_equals_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_a_large_batch_on_threads_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "a▁b"]
    assert sum(map(len, texts)) > 20_000
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(first=any_text, second=any_text)
def test_a_newline_separates(tokenizer: Tokenizer, first: str, second: str) -> None:
    newline = tokenizer.encode("\n")
    assert len(newline) == 1
    assert tokenizer.encode(f"{first}\n{second}") == [*tokenizer.encode(first), *newline, *tokenizer.encode(second)]


@given(text=any_text)
def test_stream_equals_decode_and_never_gives_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(data=st.data())
def test_stream_equals_decode_for_ids_of_no_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)


def test_stream_holds_back_an_unfinished_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode("😀")
    assert len(ids) == 4  # not in the vocabulary: four bytes
    assert [stream.push(i) for i in ids[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.encode("a")[0]) == "a"


def test_control_tokens_are_the_first_ids_and_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.control_ids.items()) == [(name, i) for i, name in enumerate(CONTROL_NAMES)]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 2)
    assert tokenizer.end == 6 and tokenizer.closing == {1, 6} and tokenizer.document_start == [0]
    ids = tokenizer.encode("a b")
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.control_ids["user"], tokenizer.end]) == "a b"
    assert not tokenizer.byte_lengths[: len(CONTROL_NAMES)].any()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_text_full_of_imitations_teaches_none(kind: str) -> None:
    texts = [" ".join(random.Random(i).choices(IMITATIONS, k=6)) for i in range(200)]
    largest = largest_vocabulary(texts, kind=kind, split_digits=False)
    trained = Tokenizer.train(texts, largest, kind=kind, split_digits=False)  # type: ignore[arg-type]
    for text in [*IMITATIONS, " ".join(IMITATIONS), "".join(IMITATIONS)]:
        ids = trained.encode(text)
        assert min(ids) > len(CONTROL_NAMES) and trained.decode(ids) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic(kind: str) -> None:
    first, second = (Tokenizer.train(iter(TEXTS), 320, kind=kind, seed=3) for _ in range(2))  # type: ignore[arg-type]
    assert first == second and hash(first) == hash(second)
    assert first != Tokenizer.train(TEXTS, 321, kind=kind)  # type: ignore[arg-type]


def test_digits_are_single_tokens_only_when_split() -> None:
    texts = ["in 1987 and 1987 or 1987"] * 50
    split, joined = (Tokenizer.train(texts, 280, split_digits=choice) for choice in (True, False))
    assert len(split.encode("1987")) == 4
    assert len(joined.encode("1987")) < 4


def test_hostile_training_text_is_taken() -> None:
    trained = Tokenizer.train([*TEXTS, *HOSTILE], 400)
    assert all(trained.decode(trained.encode(text)) == text for text in HOSTILE)


def test_what_no_piece_may_hold_ends_a_training_line() -> None:
    # SentencePiece drops a line with U+2585 and takes U+2581 for a space; newlines separate, whatever precedes.
    odd, even = "the cat\u2585sat on\u2581the mat\tthen\0ran.\n", "the cat\nsat on\nthe mat\nthen\nran.\n"
    assert Tokenizer.train([odd], 284) == Tokenizer.train([even], 284)
    trained = Tokenizer.train(TEXTS, 316)
    for character in "\n\t\0":
        assert sum(character.encode() in trained.token_bytes(i) for i in range(trained.vocab_size)) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_names_the_largest_that_works(kind: str) -> None:
    largest = largest_vocabulary(TEXTS, kind=kind)
    assert Tokenizer.train(TEXTS, largest, kind=kind).vocab_size == largest  # type: ignore[arg-type]
    with pytest.raises(UserError):
        Tokenizer.train(TEXTS, largest + 1, kind=kind)  # type: ignore[arg-type]


def test_a_vocabulary_too_small_names_the_smallest() -> None:
    with pytest.raises(UserError, match="vocab_size 100 is too small") as error:
        Tokenizer.train(TEXTS, 100)
    smallest = int(str(error.value).split("alone are ")[1].split(",")[0])
    assert Tokenizer.train(TEXTS, smallest).vocab_size == smallest


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "\0"]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(UserError, match="empty"):
        Tokenizer.train(texts, 300)


def test_unknown_kind_and_coverage() -> None:
    with pytest.raises(UserError, match="did you mean 'unigram'"):
        Tokenizer.train(TEXTS, 300, kind="unigramm")  # type: ignore[arg-type]


@pytest.mark.parametrize("coverage", [95, 1.001, 0.979, 0.95, 0.0, -1.0, float("nan")])
def test_a_coverage_that_sentencepiece_refuses_is_told(coverage: float) -> None:
    with pytest.raises(UserError, match=f"character_coverage is {coverage}; .* 0.98 to 1"):
        Tokenizer.train(TEXTS, 300, character_coverage=coverage)


@pytest.mark.parametrize("coverage", [0.98, 1.0])
def test_the_ends_of_the_range_of_coverage_are_in_it(coverage: float) -> None:
    assert Tokenizer.train(TEXTS, 300, character_coverage=coverage).vocab_size == 300


def test_a_lone_surrogate_is_a_clear_error(tokenizer: Tokenizer) -> None:
    text = "ab\ud800c"
    for call in (tokenizer.encode, lambda t: tokenizer.encode_batch(["a", t]), lambda t: Tokenizer.train([t], 300)):
        with pytest.raises(UserError, match=r"character 2 .* lone surrogate U\+D800"):
            call(text)


def test_an_id_of_no_token_is_refused(tokenizer: Tokenizer) -> None:
    for i in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([i])


def test_long_lines_are_split_not_dropped() -> None:
    text = "猫 and " * 5000
    lines = list(_training_lines([text]))
    assert len(lines) > 5 and "".join(lines) == text
    assert max(map(len, lines)) <= 4096 and all(line.startswith(" ") for line in lines[1:])
    assert Tokenizer.train([text], 275).vocab_size == 275  # dropped, it would be "empty"
    assert "".join(_training_lines(["x" * 10_000])) == "x" * 10_000


def test_text_is_read_once_and_sampled_evenly_within_bounds() -> None:
    lines = [f"line {i:06d}" for i in range(20_000)]
    sample = _sample(iter(lines), 11 * 1000, seed=1)
    assert sum(map(len, sample)) <= 11 * 1000 and len(sample) > 400
    assert sample == sorted(sample) and len(set(sample)) == len(sample)
    assert abs(sum(int(line[5:]) for line in sample) / len(sample) - 10_000) < 1_000
    assert sample == _sample(iter(lines), 11 * 1000, seed=1) != _sample(iter(lines), 11 * 1000, seed=2)
    assert _sample(iter(lines), 10**9, seed=1) == lines


def test_save_and_load(tokenizer: Tokenizer, tmp_path) -> None:
    file = tokenizer.save(tmp_path / "run")
    assert file.name == FILE_NAME and [f.name for f in file.parent.iterdir()] == [FILE_NAME]
    for path in (file, file.parent, str(file.parent)):
        assert Tokenizer.load(path) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_loading_what_is_no_tokenizer(tmp_path) -> None:
    with pytest.raises(UserError, match="no such tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"not a model")
    with pytest.raises(UserError, match=rf"{FILE_NAME}: .*not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"")
    with pytest.raises(UserError, match=FILE_NAME):
        Tokenizer.load(tmp_path)


def test_a_sentencepiece_model_that_says_nothing_of_its_tokens_is_refused(tmp_path) -> None:
    import sentencepiece

    with (tmp_path / FILE_NAME).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=file, vocab_size=300, byte_fallback=True, minloglevel=3
        )
    with pytest.raises(UserError, match="import the model"):
        Tokenizer.load(tmp_path)


def test_bytes_per_token(tokenizer: Tokenizer) -> None:
    texts = ["the cat 猫", "1987"]
    assert tokenizer.bytes_per_token(texts) == 15 / sum(len(tokenizer.encode(text)) for text in texts)
    assert tokenizer.bytes_per_token([]) == 0.0
