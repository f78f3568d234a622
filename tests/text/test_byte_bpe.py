"""BPE of others: the same tokens as the package gives, nothing lost, and no text a control token."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.text.byte_bpe import PRE_TOKENIZERS, ByteBPE
from instructgpt.text.reading import read_folder
from instructgpt.text.tokenizer import Tokenizer
from tests.text.families import FAMILIES, texts

MARKS = sorted({mark for family in FAMILIES.values() for mark in family.control})
HOSTILE = [
    "", " ", "  ", "\n", " a  b ", "a\r\nb\r", "▁", "a▁▁ b▁", "▁ a", " ▁", "\0", "\x04\x06\x7f\x85", "\ufeffa",
    "\ufffd", "\uffff", "👩‍👩‍👧‍👦 🇫🇷 é e\u0301 ﬁ Ａ ｶﾞ \u2126", "\U00040000", "x" * 3000, " " * 50, "<0x41>", "<unk>",
    *MARKS, "".join(MARKS), " ".join(MARKS),
]  # fmt: skip
any_text = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*MARKS, "▁", " ", "\n", "a", "猫", "e\u0301", "1", "<", "|"]), max_size=8
).map("".join)


def test_hostile_text_survives_and_is_no_control_token(family) -> None:
    for text in HOSTILE:
        check(family[1], text)


@given(text=any_text)
def test_encode_then_decode_is_the_identity(families, text: str) -> None:
    for tokenizer, _ in families.values():
        check(tokenizer, text)


def check(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.control_ids.values())
    assert tokenizer.encode_batch([text, "a"]) == [ids, tokenizer.encode("a")]
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == text
    within = tokenizer.subwords.encode_within(text)
    assert b"".join(map(tokenizer.token_bytes, within)).decode() == text
    has_space = tokenizer.subwords.begins_with_space and bool(ids)
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode()) + has_space


@given(data=st.data())
def test_stream_equals_decode_for_ids_of_no_text(families, data: st.DataObject) -> None:
    for tokenizer, _ in families.values():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
        stream = tokenizer.stream()
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)


def test_tokens_are_those_of_the_oracle(family) -> None:
    _, tokenizer, oracle = family
    for text in [*texts()[:30], "a  b\n\n c ", "12,345.67 猫 😀", "\tdef f(x):\n    return"]:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)


def test_marks_that_are_not_special_are_shown_where_a_model_writes_them(families) -> None:
    tokenizer, _ = families["qwen3"]
    think, end = (tokenizer.control_ids[name] for name in ("<think>", "<|im_end|>"))
    assert tokenizer.decode([think, *tokenizer.encode("a"), end]) == "<think>a"
    assert tokenizer.byte_lengths[think] == 7 and tokenizer.byte_lengths[end] == 0
    assert think not in tokenizer.encode("<think>")


def test_a_saved_one_is_read_back(family, tmp_path) -> None:
    _, tokenizer, _ = family
    file = tokenizer.save(tmp_path / "run")
    assert sorted(f.name for f in file.parent.iterdir()) == ["chat.json", "tokenizer.json"]
    again = Tokenizer.load(tmp_path / "run")
    assert again == tokenizer == pickle.loads(pickle.dumps(tokenizer))
    assert (again.format, again.special, again.template) == (tokenizer.format, tokenizer.special, tokenizer.template)
    assert again.with_chat() != tokenizer
    again.with_chat().save(tmp_path / "run")
    assert Tokenizer.load(tmp_path / "run") == tokenizer.with_chat()


def test_what_is_no_chat_json(families, tmp_path) -> None:
    families["llama3"][0].save(tmp_path)
    for text in ("", "[]", '{"format": "llama3"}', '{"format": "x", "special": {}}'):
        (tmp_path / "chat.json").write_text(text)
        with pytest.raises(UserError, match=r"chat\.json: does not say|unknown chat format 'x'"):
            Tokenizer.load(tmp_path)
    (tmp_path / "chat.json").unlink()
    with pytest.raises(UserError, match=r"no chat\.json beside it says what it is"):
        Tokenizer.load(tmp_path)


# ---- from vocabulary and merges, and from the lists of a GGUF file


def parts(tokenizer: Tokenizer) -> tuple[list[str], list[str], str]:
    pieces, merges, pre = tokenizer.subwords.listed()  # type: ignore[attr-defined]
    assert pre
    return pieces, merges, pre


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "llama3"])
def test_lists_of_pieces_and_merges_give_the_same_tokens(families, name) -> None:
    tokenizer, _ = families[name]
    pieces, merges, pre = parts(tokenizer)
    assert pre == FAMILIES[name].pre
    control = dict.fromkeys(tokenizer.control_ids.values(), True)
    made = ByteBPE.from_pieces(pieces, merges, control, pre)
    assert made.control == tokenizer.subwords.control and made.loses == ""
    for text in [*texts()[:20], *HOSTILE]:
        assert made.encode(text) == tokenizer.encode(text)
    assert pickle.loads(pickle.dumps(made)).encode("the cat") == made.encode("the cat")


def test_vocab_json_and_merges_txt(families, tmp_path) -> None:
    tokenizer, _ = families["smollm2"]
    pieces, merges, _ = parts(tokenizer)
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    read = read_folder(tmp_path)  # as GPT-2's: <|endoftext|> is all that it says
    assert read.eos == read.pad == pieces.index("<|endoftext|>") and read.format is None and read.document_start == []
    assert read.control_ids == {"<|endoftext|>": read.eos}
    gpt2 = ByteBPE.from_pieces(pieces, merges, {read.eos: True}, "gpt-2")
    assert read.encode("in 1987, the cat<|endoftext|>") == gpt2.encode("in 1987, the cat<|endoftext|>")
    settings = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {str(pieces.index("<|im_end|>")): {"content": "<|im_end|>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    qwen = read_folder(tmp_path)
    assert qwen.eos == pieces.index("<|im_end|>")
    assert qwen.encode("x\n\n  y") == ByteBPE.from_pieces(pieces, merges, {}, "qwen2").encode("x\n\n  y")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BloomTokenizer"}')
    with pytest.raises(UserError, match="vocabulary of a Bloom"):
        read_folder(tmp_path)


LETTERS = [chr(i) for i in range(ord("a"), ord("e"))]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(pre="smolm"), "unknown way, 'smolm'; did you mean 'smollm'"),
        (dict(pre=""), "unknown way, ''"),
        (dict(merges=["a b", "ab zz"]), "zz"),
        (dict(merges=["a c"]), "ac"),
        (dict(merges=["ab"]), "is no tokenizer"),
        (dict(merges=["a b c"]), "is no tokenizer"),
    ],
)
def test_lists_that_do_not_fit(change: dict, complaint: str) -> None:
    given = dict(pieces=[*LETTERS, "ab", "<|end|>"], merges=["a b"], control={5: True}, pre="gpt-2", where="m.gguf")
    assert ByteBPE.from_pieces(**given).encode("abab") == [4, 4]
    with pytest.raises(UserError, match=rf"^m\.gguf: .*{complaint}"):
        ByteBPE.from_pieces(**given | change)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])  # in the latter, words that are pieces stay whole
def test_merges_cannot_make_a_control_token(pre: str) -> None:
    pieces = ["e", "n", "d", "en", "end", "endd"]
    made = ByteBPE.from_pieces(pieces, ["e n", "en d", "end d"], {4: True}, pre)
    assert made.encode("end") == [3, 2] and 4 not in made.encode("endd end")
    assert made.loses.startswith("bytes that it has no token for (00 01")
    # The same as files of others have it: the control token among the pieces, too.
    spec = json.loads(made.model)
    spec["model"]["vocab"]["end"] = 4
    spec["model"]["merges"] = [["e", "n"], ["en", "d"], ["end", "d"]]
    read = ByteBPE(json.dumps(spec).encode())
    assert read.encode("end") == [3, 2] and 4 not in read.encode("endd end")


def test_what_the_pieces_cannot_spell_is_named() -> None:
    spelt = ByteBPE.from_pieces([*PRE_TOKENIZERS, *LETTERS], [], {}, "gpt-2")
    assert "61" not in spelt.loses.split("(")[1].split() and "7f" in spelt.loses


# ---- wrong files


def spec(families) -> dict:
    return json.loads(families["smollm2"][0].subwords.model)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is no tokenizer: it has no 'model'"),
        ('{"model": 3}', "is no tokenizer: it has no 'model'"),
        ('{"model": {"type": "WordPiece", "vocab": {}}}', r"of the type WordPiece \(BERT's\); byte-pair encoding"),
        ('{"model": {"type": "Unigram", "vocab": []}}', r"of the type Unigram \(T5's\)"),
        ('{"model": {"type": "WordLevel", "vocab": {}}}', "of the type WordLevel"),
        ('{"model": {"type": "Magic"}}', "of the type Magic;"),
        ('{"model": {"type": "BPE", "vocab": [], "merges": []}}', "'vocab' should say the id"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "'vocab' should say the id"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}', "'added_tokens'"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "neither byte by byte nor as SentencePiece"),
        ('{"model": {"type": "BPE", "vocab": {"▁a": 0}, "merges": []}}', "no byte fallback"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}', "ends of words"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}', "is no tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Magic"}}', "neither"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": [3]}', "should have a 'type'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_such_tokenizer(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=rf"tokenizer\.json:(\d+:)? .*{complaint}"):
        read_folder(tmp_path)


def test_merges_of_unknown_pieces(families, tmp_path) -> None:
    broken = spec(families)
    broken["model"]["merges"].append(["zz", "yy"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"tokenizer\.json: is no tokenizer: .*'zz'"):
        read_folder(tmp_path)


def test_without_the_package_it_is_told_what_to_install(families, monkeypatch) -> None:
    model = families["smollm2"][0].subwords.model
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"x\.json: this tokenizer needs the package tokenizers; install it with pip"):
        ByteBPE(model, "x.json")


def test_a_normaliser_that_changes_text_is_told(families) -> None:
    lossy = spec(families) | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    }
    assert ByteBPE(json.dumps(lossy).encode()).loses == "what its normaliser changes (Lowercase)"
    assert families["qwen2.5"][0].loses == "" and families["llama2"][0].loses == ""
