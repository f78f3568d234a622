"""Flags for all files, and --map for those that are another way."""

from __future__ import annotations

import pytest

from instructgpt.data.data_file import DataFile, Reading
from instructgpt.errors import UserError

NAMES = ("a.json", "world", "sets/b.csv", "c.tsv")


def written(file: DataFile) -> dict[str, str]:
    return {name: template.written for name, template in vars(file.templates).items() if template}


def test_flags_hold_for_all_files_but_those_of_a_map() -> None:
    reading = Reading(
        prompt="{text}",
        answer="{label}",
        encoding="latin-1",
        map=("b.csv:prompt=Good, or bad? {a}={b},chosen={c}, columns=a,b,c", "c.tsv:encoding=gb18030"),
    )
    a, b, c = reading.files(NAMES)
    assert (a.path, a.encoding, a.columns, written(a)) == (
        "a.json", "latin-1", None, {"prompt": "{text}", "answer": "{label}"},
    )  # fmt: skip
    assert (b.path, b.encoding, b.columns) == ("sets/b.csv", "latin-1", ("a", "b", "c"))
    assert written(b) == {"prompt": "Good, or bad? {a}={b}", "chosen": "{c}"}, "templates are replaced as a whole"
    assert (c.encoding, written(c)) == ("gb18030", written(a))


@pytest.mark.parametrize(
    ("entry", "prompt"),
    [
        (r"a.json:prompt=What is the answer\, answer={a}?,answer={b}", "What is the answer, answer={a}?"),
        ("a.json:prompt=x = {a}, prompting: {b},answer={b}", "x = {a}, prompting: {b}"),
        ("a.json: answer={b} , prompt={a}:{b},", "{a}:{b},"),
        (r"a.json:prompt={a}\n{b:, },answer={b}", r"{a}\n{b:, }"),
    ],
)
def test_commas_equals_signs_and_colons_in_a_template(entry: str, prompt: str) -> None:
    (file,) = Reading(map=(entry,)).files(("a.json",))
    assert written(file)["prompt"] == prompt


def test_a_path_with_a_colon() -> None:
    (file,) = Reading(map=(r"C:\data\b.csv:prompt={a},answer={b}",)).files((r"C:\data\b.csv",))
    assert written(file) == {"prompt": "{a}", "answer": "{b}"}


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (("d.csv:prompt={a},answer={b}",), "--map d.csv: --data names no such file; "),
        (("a.jsn:prompt={a},answer={b}",), "did you mean 'a.json'?"),
        (("world:prompt={a},answer={b}",), "--map world: --data names no such file"),
        (("a.json",), "--map 'a.json' is no entry"),
        (("a.json:promt={a}",), "is no entry; write FILE:'prompt=...,answer=...' with any of prompt, answer"),
        (("a.json:prompt={a},answer={b}", "a.json:encoding=latin-1"), "--map has two entries for a.json"),
        (("a.json:prompt={a},prompt={b}",), "has prompt twice"),
        (("a.json:answer={b}",), "--map a.json: --prompt and --answer go together"),
        (("a.json:prompt={a",), "--map a.json:prompt='{a': the brace"),
    ],
)
def test_mistakes(entries: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(UserError) as found:
        Reading(map=entries).files(NAMES)
    assert complaint in str(found.value) and "\n" not in str(found.value)


def test_two_files_of_one_name() -> None:
    with pytest.raises(UserError, match=r"--map b\.csv: --data has 2 files of that name"):
        Reading(map=("b.csv:prompt={a},answer={b}",)).files(("x/b.csv", "y/b.csv"))
    files = Reading(map=("x/b.csv:prompt={a},answer={b}",)).files(("x/b.csv", "y/b.csv"))
    assert [bool(written(file)) for file in files] == [True, False]
