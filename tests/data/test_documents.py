from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data import documents as module
from instructgpt.data.documents import Piece, _cut, split_pieces
from instructgpt.errors import UserError


def documents_in(pieces: list[Piece]) -> list[str]:
    """Whole documents, put together from their pieces."""
    found, text = [], ""
    for piece in pieces:
        text += piece.text
        if piece.ends_document:
            found.append(text)
            text = ""
    assert not text, "the last document has no end"
    return found


def split_documents(path: Path, holdout: float = 0.1, separator: str = "") -> dict[str, list[str]]:
    pieces: dict[str, list[Piece]] = {"train": [], "val": []}
    for split, piece in split_pieces(path, holdout, "utf-8", separator, Counter()):
        pieces[split].append(piece)
    return {split: documents_in(found) for split, found in pieces.items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def chunked(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@given(st.text("ab \n字<|>", max_size=200), st.integers(1, 30), st.integers(2, 20))
def test_pieces_of_a_text_without_separator_are_the_text(text, chunk, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", longest)
        pieces = list(_cut(chunked(text, chunk), ""))
    assert documents_in(pieces) == ([text] if text.strip() or len(text) > longest else [])
    assert all(len(piece.text) <= longest for piece in pieces)
    # A cut falls behind a newline or before a space wherever the piece has one.
    for piece, after in itertools.pairwise(pieces):
        if "\n" in piece.text:
            assert piece.text.endswith("\n")
        elif " " in piece.text[1:]:
            assert after.text.startswith(" ")


@given(st.lists(st.text("ab \n字", max_size=40), max_size=8), st.integers(1, 30), st.integers(2, 60))
def test_a_separator_ends_documents_wherever_chunks_are_cut(texts, chunk, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", longest)
        pieces = list(_cut(chunked("<|end|>".join(texts), chunk), "<|end|>"))
    found = [document.strip("\n") for document in documents_in(pieces)]
    assert [each for each in found if each.strip()] == [each for text in texts if (each := text.strip("\n")).strip()]
    assert "<|end|>" not in "".join(piece.text for piece in pieces)


def test_newlines_around_a_separator_are_no_text():
    pieces = list(_cut(["one\nline\n<|end|>\n two\n\n<|end|>\n<|end|>\n"], "<|end|>"))
    assert documents_in(pieces) == ["one\nline", " two"]


@given(st.lists(st.text("ab 字", min_size=1, max_size=30), min_size=1, max_size=60), st.floats(0.05, 0.6))
def test_the_split_loses_nothing_and_holds_out_about_its_share(tmp_path_factory, lines, holdout):
    text = "\n".join(lines)
    if not text.strip():
        return
    found = split_documents(write(tmp_path_factory.mktemp("split") / "a.txt", text), holdout)
    assert "".join(found["train"] + found["val"]) == text
    size = len(text.encode())
    held_out = sum(len(each.encode()) for each in found["val"])
    assert size * holdout / 2 - 4 <= held_out <= size * holdout + 1


def test_a_text_is_split_at_the_end_of_a_line(tmp_path):
    found = split_documents(write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(1000))))
    assert found["train"][0].endswith("\n") and found["val"][0].startswith("line 9")


def test_records_are_split_between_documents(tmp_path):
    texts = [f"document {i}\nof two lines" for i in range(100)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = split_documents(path)
    assert found["train"] + found["val"] == texts and 90 <= len(found["train"]) <= 92


def test_one_long_record_is_split_within(tmp_path):
    found = split_documents(write(tmp_path / "a.json", json.dumps([{"text": "a line\n" * 100}])))
    assert [len(found["train"]), len(found["val"])] == [1, 1] and found["train"][0].endswith("\n")


def test_without_a_holdout_everything_is_trained_on(tmp_path):
    assert split_documents(write(tmp_path / "a.txt", "a\nb\n"), holdout=0.0) == {"train": ["a\nb\n"], "val": []}


def test_zipped_text_is_split_by_what_it_unpacks_to(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert split_documents(tmp_path / "a.txt.gz") == split_documents(write(tmp_path / "a.txt", text))


def test_records_give_text_paragraphs_or_are_counted(tmp_path):
    records = [
        {"text": "plain"}, {"paragraphs": ["one", "two"]}, "a string",
        {"text": " "}, {"title": "none"}, {"text": None}, 7, {"paragraphs": ["one", 2]},
    ]  # fmt: skip
    dropped: Counter[str] = Counter()
    path = write(tmp_path / "a.json", json.dumps(records))
    texts = [piece.text for _, piece in split_pieces(path, 0.0, "utf-8", "", dropped)]
    assert texts == ["plain", "one\ntwo", "a string"]
    assert sorted(dropped.values()) == [1, 4]


def test_a_table_gives_its_text_column(tmp_path):
    path = write(tmp_path / "a.csv", 'label,text\r\n1,"one, two"\r\n2,three\r\n1\r\n')
    dropped: Counter[str] = Counter()
    assert [piece.text for _, piece in split_pieces(path, 0.0, "utf-8", "", dropped)] == ["one, two", "three"]
    assert dropped == {"that is a row of 1 field(s) in a table of 2": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "has no text"),
        ("a.txt", " \n", "has no text"),
        ("a.json", '[{"title": "x"}]', "has no text: 1 record.* without a field 'text'"),
        ("a.csv", "label,sentence\n1,x\n", "without a field 'text'"),
        ("a.json", '[{"text": "x"', "broken JSON"),
    ],
)
def test_files_without_text_are_the_users_mistake(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        split_documents(write(tmp_path / name, text))


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 2.0, float("nan")])
def test_a_holdout_is_a_share(tmp_path, holdout):
    with pytest.raises(UserError, match="holdout"):
        split_documents(write(tmp_path / "a.txt", "text"), holdout)


@pytest.mark.parametrize(
    ("text_field", "texts", "dropped"),
    [
        ("content", ["one"], {"with null where text should be, in 'content'": 1, "with no field 'content'": 1}),
        ("body.parts", ["a\nb"], {"with no field 'body.parts'": 2}),
        (r"{title}\n\n{content?}", ["T\n\none", "U"], {"with no field 'title'": 1}),
        ("", ["plain"], {"without a field 'text' or a list of 'paragraphs'": 2}),
    ],
)
def test_the_field_that_holds_the_text(
    tmp_path: Path, text_field: str, texts: list[str], dropped: dict[str, int]
) -> None:
    records = [{"title": "T", "content": "one"}, {"title": "U", "content": None, "body": {"parts": ["a", "b"]}}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*records, {"text": "plain"}]), encoding="utf-8")
    counts: Counter[str] = Counter()
    assert [piece.text for _, piece in split_pieces(path, 0.0, "utf-8", "", counts, text_field)] == texts
    assert counts == dropped


def test_a_text_field_that_no_record_has(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"has no text: 1 record\(s\) with no field 'content'; the first one has the fields body"
    ):
        list(split_pieces(path, 0.0, "utf-8", "", Counter(), "content"))
    with pytest.raises(UserError, match=r"--text-field '\{a': the brace"):
        list(split_pieces(path, 0.0, "utf-8", "", Counter(), "{a"))
