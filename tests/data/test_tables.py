"""Tables: separators, quotes, line ends, headers, and Parquet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.files import read_lines, read_records
from instructgpt.data.tables import Unreadable
from instructgpt.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_with_quotes_line_ends_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'label,text\r\ngood,"a, ""b""\r\nc"\r\n\r\nbad,d\r\n')
    assert list(read_records(path)) == [
        (2, {"label": "good", "text": 'a, "b"\r\nc'}),
        (5, {"label": "bad", "text": "d"}),
    ]


def test_csv_with_other_separators_and_columns(tmp_path: Path) -> None:
    for separator in ";\t":
        path = write(tmp_path / "a.csv", f'label{separator}text\ngood{separator}"a{separator}b, c"\n')
        assert list(read_records(path)) == [(2, {"label": "good", "text": f"a{separator}b, c"})]
    path = write(tmp_path / "a.csv", "good,a\nbad,b\n")
    named = [(1, {"label": "good", "text": "a"}), (2, {"label": "bad", "text": "b"})]
    assert list(read_records(path, ["label", "text"])) == named
    path = write(tmp_path / "a.csv", "label,text\ngood,a\n")
    assert list(read_records(path, ["label", "text"])) == [(2, {"label": "good", "text": "a"})]
    assert list(read_records(write(tmp_path / "a.csv", ",text\n0,a\n"))) == [(2, {"1": "0", "text": "a"})]


def test_what_is_wrong_with_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [record for _, record in read_records(write(path, "a,b\n1,2\n1\n1,2,3\n"))]
    assert rows[0] == {"a": "1", "b": "2"} and all(isinstance(row, Unreadable) for row in rows[1:])
    assert "3 field(s) in a table of 2" in rows[2].reason
    for content, complaint in [
        ('a,b\n1,2\n"open,3\n4,5\n', r"a\.csv:3: broken CSV"),
        ('a,b\n"x"y,2\n', r"a\.csv:2: broken CSV"),
        ("a,a\n1,2\n", r"a\.csv:1: has two columns named 'a'"),
        ("a,b\n", "has no records"),
    ]:
        with pytest.raises(UserError, match=complaint):
            list(read_records(write(path, content)))
    with pytest.raises(UserError, match=r"a\.csv:1: has 2 column\(s\), but 3 are named: x, y, z"):
        list(read_records(write(path, "1,2\n"), ["x", "y", "z"]))


def test_tables_of_tabs_know_no_quotes(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.txt"):
        path = write(tmp_path / name, 'Hi.\t嗨。\tCC\n"Go!\t走\tCC\n')
        assert list(read_records(path)) == [
            (1, {"1": "Hi.", "2": "嗨。", "3": "CC"}),
            (2, {"1": '"Go!', "2": "走", "3": "CC"}),
        ]
        assert next(read_records(path, ["en", "zh"])) == (1, {"en": "Hi.", "zh": "嗨。"})
        path = write(tmp_path / name, "source\ttarget\r\nHi.\tSalut.\r\n")
        assert list(read_records(path)) == [(2, {"source": "Hi.", "target": "Salut."})]


def test_a_field_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        text = "word " * 100_000
        path = write(tmp_path / name, f'text{separator}label\n"{text}""{separator}"{separator}b\n')
        assert list(read_records(path)) == [(2, {"text": f'{text}"{separator}', "label": "b"})]


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", "sep=|", "sep=\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_first_line_may_name_the_separator(tmp_path: Path, first: str, end: str) -> None:
    separator = first[-1]
    path = write(tmp_path / "a.csv", end.join([first, f"text{separator}label, or none", f'"a{end}b"{separator}c', ""]))
    assert list(read_records(path)) == [(3, {"text": f"a{end}b", "label, or none": "c"})]
    assert next(read_records(path, ["x", "y"])) == (2, {"x": "text", "y": "label, or none"})


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_line_ends_of_carriage_returns_alone(tmp_path: Path, name: str) -> None:
    separator = "," if name == "a.csv" else "\t"
    path = write(tmp_path / name, "\r".join(separator.join(row) for row in (["text", "label"], ["a", "b"], ["c", "d"])))
    assert list(read_records(path)) == [(2, {"text": "a", "label": "b"}), (3, {"text": "c", "label": "d"})]
    lines = write(tmp_path / "lines.txt", "one\rtwo\r\rfour")
    assert list(read_lines(lines)) == [(1, "one"), (2, "two"), (3, ""), (4, "four")]
    assert list(read_lines(write(tmp_path / "b.txt", "one\r"))) == [(1, "one")]


FIELD = st.text(st.sampled_from('ab" \t\n,;猫'), max_size=6)


@given(
    rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    separator=st.sampled_from("\t,;"),
)
def test_what_csv_writers_write_comes_back(tmp_path_factory, rows, quoting, end, separator) -> None:
    """As pandas and csv.writer write: quotes where a field needs them."""
    target = io.StringIO()
    writer = csv.writer(target, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / ("a.tsv" if separator == "\t" else "a.csv"), target.getvalue())
    assert [record for _, record in read_records(path)] == [{"text": a, "label": b} for a, b in rows]


def test_a_table_of_tabs_with_the_quotes_that_pandas_puts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"say ""hi"""\tgood\nplain\tbad\n"two\nlines"\tgood\n"a\tb"\tbad\n')
    assert list(read_records(path)) == [
        (2, {"text": 'say "hi"', "label": "good"}),
        (3, {"text": "plain", "label": "bad"}),
        (4, {"text": "two\nlines", "label": "good"}),
        (6, {"text": "a\tb", "label": "bad"}),
    ]


@pytest.mark.parametrize(
    "text",
    ['"Go!', '"Run!"', 'say "hi"', '"a" and "b"', 'five " wide', '""'],
)
def test_quotes_that_belong_to_the_text_stay(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.tsv", f"source\ttarget\n{text}\tx\nb\ty\n")
    assert next(read_records(path)) == (2, {"source": text, "target": "x"})


@pytest.mark.parametrize("header", ["en\tcs", "ja\tpt-BR", "de\tzh_Hans", "English\tCzech"])
def test_languages_make_a_header(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.tsv", f"{header}\nHi there.\tAhoj.\n")
    assert list(read_records(path)) == [(2, dict(zip(header.split("\t"), ["Hi there.", "Ahoj."])))]
    assert [line for line, _ in read_records(write(tmp_path / "a.tsv", "Hi\tAhoj\nGo\tJdi\n"))] == [1, 2]


def test_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1" + b"\0" * 20 + b"PAR1")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        with pytest.raises(UserError, match=r"a\.parquet: is a Parquet file, which needs pyarrow \(extra `parquet`\)"):
            list(read_records(path))
        pytest.skip("pyarrow is not here")
    with pytest.raises(UserError, match="the Parquet file is damaged or cut off"):
        list(read_records(path))
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}], "label": i} for i in range(1000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_records(path)) == list(enumerate(rows, start=1))
    renamed = write(tmp_path / "a.json", path.read_bytes())
    assert len(list(read_records(renamed))) == 1000, "the content decides"
    whole = path.read_bytes()
    with pytest.raises(UserError, match="the Parquet file is damaged or cut off"):
        list(read_records(write(path, whole[: len(whole) // 2])))
    empty = pyarrow.Table.from_pylist([], schema=pyarrow.schema([("text", pyarrow.string())]))
    pyarrow.parquet.write_table(empty, path)
    with pytest.raises(UserError, match="has no records"):
        list(read_records(path))
