"""SentencePiece models of others: the same ids, their own control tokens, nothing lost that they do not take away."""

from __future__ import annotations

import io
import pickle

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.text import model_proto
from instructgpt.text.sentence_piece import SentencePiece
from instructgpt.text.tokenizer import Special, Tokenizer
from tests.text.families import sentence_piece, texts
from tests.text.test_byte_bpe import HOSTILE, any_text, check


def other(**options) -> bytes:
    """A model that others trained, as Llama 2's unless the options say otherwise."""
    written = io.BytesIO()
    settings = dict(
        model_type="bpe", vocab_size=500, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=3, num_threads=1,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(texts()[:20]).split("\n")), model_writer=written, **settings | options
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SentencePiece(sentence_piece(("[INST]", "[/INST]"))), Special(2, 1), None)


def test_ids_are_those_of_the_library(tokenizer: Tokenizer) -> None:
    oracle = sentencepiece.SentencePieceProcessor()
    oracle.LoadFromSerializedProto(tokenizer.subwords.model)
    for text in [*texts(), "a  b ", " x", "[INST] <s> 猫 😀", "\n", "\ta"]:
        assert tokenizer.encode(text) == oracle.EncodeAsIds(text)
        assert tokenizer.encode_batch([text]) == [oracle.EncodeAsIds(text)]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.control_ids == {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}
    assert tokenizer.subwords.begins_with_space and tokenizer.loses == "" and tokenizer.document_start == [1]


@given(text=any_text)
def test_nothing_is_lost_and_no_text_is_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, text)


def test_hostile_text_survives(tokenizer: Tokenizer) -> None:
    for text in HOSTILE:
        check(tokenizer, text)


@given(first=st.text("ab 猫\n1"), second=st.text("ab 猫\n1"))
def test_a_text_that_goes_on_has_no_space_in_front(tokenizer: Tokenizer, first: str, second: str) -> None:
    ids = [*tokenizer.encode(first), *tokenizer.subwords.encode_within(second)]
    assert tokenizer.decode(ids) == (first + second if first else second.removeprefix(" "))


def test_marks_that_a_model_would_find_in_a_text_are_control_tokens() -> None:
    model = other(user_defined_symbols=["<|im_start|>", "[SEP]", "\n\n", "→"])
    oracle = sentencepiece.SentencePieceProcessor()
    oracle.LoadFromSerializedProto(model)
    assert 3 in oracle.EncodeAsIds("a<|im_start|>b"), "as it is, it would be found"
    subwords = SentencePiece(model)
    assert {name: subwords.control[name] for name in ("<|im_start|>", "[SEP]")} == {"<|im_start|>": 3, "[SEP]": 4}
    spelt = subwords.encode("a<|im_start|>b[SEP]")
    assert not {3, 4} & set(spelt) and b"".join(subwords.token_bytes[i] for i in spelt) == b" a<|im_start|>b[SEP]"
    assert 5 in subwords.encode("a\n\nb") and 6 in subwords.encode("→"), "what is no mark is text"
    assert subwords.token_bytes[3] == b"<|im_start|>" and subwords.model == model


def test_what_a_normaliser_takes_away_is_told() -> None:
    assert SentencePiece(other()).loses == ""
    folded = SentencePiece(other(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True))
    assert folded.loses == "the shape of characters, such as full width and white space that is repeated"
    assert SentencePiece(other(remove_extra_whitespaces=True)).loses == "white space that is repeated"
    assert not SentencePiece(other(add_dummy_prefix=False)).begins_with_space


def test_a_model_that_cannot_hold_every_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"x/tokenizer\.model: has no byte fallback"):
        SentencePiece(other(byte_fallback=False), "x/tokenizer.model")


def test_models_pickle(tokenizer: Tokenizer) -> None:
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


# ---- the file


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_are_read_and_a_model_is_made_of_them(kind: str) -> None:
    model = other(model_type=kind, control_symbols=["[A]"])
    oracle = sentencepiece.SentencePieceProcessor()
    oracle.LoadFromSerializedProto(model)
    pieces, scores, kinds = model_proto.pieces(model)
    assert pieces == [oracle.IdToPiece(i) for i in range(len(oracle))]
    assert scores == [oracle.GetScore(i) for i in range(len(oracle))]
    assert [kind == model_proto.CONTROL for kind in kinds] == [oracle.IsControl(i) for i in range(len(oracle))]
    assert model_proto.is_bpe(model) == (kind == "bpe")
    made = model_proto.made_of(pieces, scores, kinds, {"unk": 0, "bos": 1, "eos": 2}, has_prefix=True)
    again = sentencepiece.SentencePieceProcessor()
    again.LoadFromSerializedProto(made)
    assert (again.unk_id(), again.bos_id(), again.eos_id(), again.pad_id()) == (0, 1, 2, -1)
    if kind == "bpe":
        for text in [*texts()[:10], " a  b\n", "猫 😀"]:
            assert again.EncodeAsIds(text) == oracle.EncodeAsIds(text)
    assert model_proto.pieces(made)[0] == pieces


def test_a_kind_is_changed() -> None:
    model = other()
    changed = model_proto.with_types(model, {300: model_proto.CONTROL})
    assert [i for i, kind in enumerate(model_proto.pieces(changed)[2]) if kind == model_proto.CONTROL] == [1, 2, 300]
    assert len(changed) == len(model) + 2
