"""Files to text and records: told apart by content, streamed, and clear about what is wrong and where."""

from __future__ import annotations

import gzip
import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.files import read_lines, read_records, read_text
from instructgpt.errors import UserError

RECORDS = [{"instruction": "say 猫", "output": 'a "b"\nc'}, {"instruction": "😀", "output": "d"}]
JSON_LINES = "\n".join(json.dumps(record) for record in RECORDS)


def write(path: Path, content: str | bytes, zipped: bool = False) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


# ---- text


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    zipped=st.booleans(),
    marked=st.booleans(),
)
def test_text_comes_back_as_it_is(tmp_path_factory, text: str, zipped: bool, marked: bool) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    write(path, b"\xef\xbb\xbf" * marked + text.encode(), zipped)
    assert "".join(read_text(path)) == (text if marked else text.removeprefix("\ufeff"))


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\r\nb\u2028c\fd\n\ne\rf\n\ng")
    assert list(read_lines(path)) == [(1, "a"), (2, "b\u2028c\fd"), (3, ""), (4, "e\rf"), (5, ""), (6, "g")]


@pytest.mark.parametrize(("encoding", "bad"), [("utf-8", b"\xff"), ("gb18030", b"\xff"), ("ascii", b"\xe9")])
def test_a_wrong_encoding_names_byte_and_line(tmp_path: Path, encoding: str, bad: bytes) -> None:
    # Far enough in that the byte stands in a later chunk; lines of eight bytes.
    for lines in (0, 3, 300_000):
        path = write(tmp_path / "a.txt", b"abcdefg\n" * lines + b"ab" + bad + b"cd\n")
        with pytest.raises(
            UserError, match=rf"a\.txt:{lines + 1}: byte {8 * lines + 2} \(0x{bad.hex()}\) is not {encoding}"
        ):
            list(read_text(path, encoding))


def test_a_character_cut_at_a_chunk_or_at_the_end(tmp_path: Path) -> None:
    text = "a" + "猫" * 700_000  # three bytes each: chunks end inside characters
    assert "".join(read_text(write(tmp_path / "a.txt", text))) == text
    with pytest.raises(UserError, match=r"byte 2100001 \(0xe7\)"):
        list(read_text(write(tmp_path / "a.txt", text.encode() + "猫".encode()[:2])))
    with pytest.raises(UserError, match="byte 4 "):
        list(read_text(write(tmp_path / "a.txt", b"\xef\xbb\xbfa\xff")))


def test_utf16_is_suggested_and_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "猫\nb".encode("utf-16"))
    with pytest.raises(UserError, match=r"byte 0 .*--encoding utf-16"):
        list(read_text(path))
    assert "".join(read_text(path, "utf-16")) == "猫\nb"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["plain text\nand more\n", "To be, or not – to be\n", "name,text\n1,猫 and 狗\n"])
def test_wide_encodings_are_told_by_their_bytes(tmp_path: Path, encoding: str, text: str) -> None:
    path = write(tmp_path / "a.txt", text.encode(encoding))
    with pytest.raises(UserError, match=rf"a\.txt:\d: .*looks like {encoding}; give --encoding {encoding}$"):
        list(read_text(path))
    assert "".join(read_text(path, encoding)) == text


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("Déjà vu\n".encode("latin-1"), "in another encoding, such as latin-1 or gb18030, give its --encoding"),
        ("床前明月光\n".encode("gb18030"), "in another encoding"),
        ("日本語\n".encode("shift_jis"), "in another encoding"),
        ("Привет\n".encode("koi8-r"), "in another encoding"),
        # Their first bytes happen to be UTF-8: of 学, 模, 直 and 창 each.
        ("学而时习之，不亦说乎？\n".encode("gb18030"), "in another encoding"),
        ("模型很大，直到今天。\n".encode("gbk") * 3000, "in another encoding"),
        ("直接\n".encode("euc_jp"), "in another encoding"),
        ("abc 창문을 열다\n".encode("euc_kr"), "in another encoding"),
        ("早上好, 你好\n".encode() + b"ab\xff\n", "the text before it is, so the file is damaged or cut off there"),
        ("Il était une fois".encode() + b"\xc3", "damaged or cut off there"),
        ("早上好, 你好，学而时习之\n".encode() * 9 + b"\xff\xfe\xff" * 9, "damaged or cut off there"),
        ("Déjà vu\n".encode() + b"plain\n" * 20_000 + b"\xe9t", "damaged or cut off there"),
        (bytes(range(1, 256)), "it is not text"),
        (b"\x0c\x01\x02\xff\xfe\x03\x04" * 40, "it is not text"),
    ],
)
def test_an_encoding_is_suggested_where_there_may_be_one(tmp_path: Path, data: bytes, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        list(read_text(write(tmp_path / "a.txt", data)))
    assert advice in str(caught.value)
    assert ("--encoding" in str(caught.value)) == ("encoding" in advice)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "gb18030"])
def test_nul_bytes_are_never_text(tmp_path: Path, encoding: str) -> None:
    for data, line in ((b"ab\0cd\n", 1), (b"ab\ncd\n" * 300_000 + b"\0", 600_001), (b"\0\1\2\3" * 999, 1)):
        with pytest.raises(UserError, match=rf"a\.txt:{line}: holds a NUL byte: it is not text$"):
            list(read_text(write(tmp_path / "a.txt", data), encoding))
    with pytest.raises(UserError, match=r"a\.json:1: holds a NUL byte"):
        list(read_records(write(tmp_path / "a.json", b'{"a": "\0"}'), None, encoding))


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "", "a\0b"])
def test_an_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UserError, match="unknown encoding"):
        list(read_text(write(tmp_path / "a.txt", "a"), encoding))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json: no such file"):
        list(read_records(tmp_path / "missing.json"))
    with pytest.raises(UserError, match="is a directory"):
        list(read_records(tmp_path))
    whole = gzip.compress(b"a" * 5000)
    for data in (
        whole[:-9],
        b"\x1f\x8bnot a zip at all",
        whole + b"tail",
        whole[:10] + b"\xff" * 50,
        whole[:-8] + b"12345678",
    ):
        with pytest.raises(UserError, match=r"a\.gz: the gzip file is damaged or cut off"):
            list(read_text(write(tmp_path / "a.gz", data)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=write, args=(tmp_path / "pipe", JSON_LINES, True))
    writer.start()
    assert list(read_records(tmp_path / "pipe")) == [(1, RECORDS[0]), (2, RECORDS[1])]
    writer.join()


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    record = json.dumps({"text": "x" * 1000})
    for name, content in (("a.jsonl", f"{record}\n" * 20_000), ("b.json", "[" + ",".join([record] * 20_000) + "]")):
        path = write(tmp_path / name, content)
        tracemalloc.start()
        assert sum(1 for _ in read_records(path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6 < len(content)


# ---- records


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.csv", "a", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_json_is_told_by_content_not_by_name(tmp_path: Path, name: str, zipped: bool) -> None:
    assert [r for _, r in read_records(write(tmp_path / name, JSON_LINES, zipped))] == RECORDS
    for indent in (None, 2):
        path = write(tmp_path / name, "\n \n" + json.dumps(RECORDS, indent=indent), zipped)
        assert [r for _, r in read_records(path)] == RECORDS
    path = write(tmp_path / name, b"\xef\xbb\xbf" + json.dumps(RECORDS[0], indent=1).encode(), zipped)
    assert list(read_records(path)) == [(1, RECORDS[0])]


def test_other_text_gives_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "To be, or not\n\n[Exit]\tHAMLET\n{aside}\n")
    assert list(read_records(path)) == [
        (1, {"text": "To be, or not"}),
        (3, {"text": "[Exit]\tHAMLET"}),
        (4, {"text": "{aside}"}),
    ]
    assert list(read_records(write(tmp_path / "b.txt", " \n" * 30 + "a\tb"))) == [(31, {"text": "a\tb"})]
    assert next(read_records(path, ["line"])) == (1, {"line": "To be, or not"})


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.csv", "a.tsv"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file(tmp_path: Path, name: str, content: str) -> None:
    for zipped in (False, True):
        with pytest.raises(UserError, match=f"{name}: is empty"):
            list(read_records(write(tmp_path / name, content, zipped)))


def test_an_array_without_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no records"):
        list(read_records(write(tmp_path / "a.json", "[ ]\n")))


def test_line_aligned_files(tmp_path: Path) -> None:
    english = write(tmp_path / "train.en.gz", "a dog\na cat\n", zipped=True)
    french = write(tmp_path / "train.fr.gz", "un chien\nun chat", zipped=True)
    both = f"{english}+{french}"
    expected = [(1, {"en": "a dog", "fr": "un chien"}), (2, {"en": "a cat", "fr": "un chat"})]
    assert list(read_records(both)) == list(read_records(Path(both))) == expected
    assert next(read_records(both, ["x", "y"])) == (1, {"x": "a dog", "y": "un chien"})
    assert next(read_records(f"{english}+{english}")) == (1, {"1": "a dog", "2": "a dog"})
    for first, second, names in (
        ("train.en.txt", "train.cs.txt", ["en", "cs"]),
        ("en-ja.en", "en-ja.ja", ["en", "ja"]),
        ("de/a.txt", "en/a.txt", ["1", "2"]),
        ("news.de.gz", "news.sv.gz", ["de", "sv"]),
    ):
        paths = [tmp_path / name for name in (first, second)]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            write(path, "a\n")
        assert list(next(read_records("+".join(map(str, paths))))[1]) == names
    with pytest.raises(UserError, match="2 files, but 1 columns"):
        list(read_records(both, ["x"]))
    write(french, "un chien\n")
    with pytest.raises(UserError, match=r"train\.fr\.gz: ends after 1 lines, but .*train\.en\.gz goes on"):
        list(read_records(both))
    with pytest.raises(UserError, match=r"missing: no such file"):
        list(read_records(f"{english}+{tmp_path / 'missing'}"))
    literal = write(tmp_path / "a+b.txt", "one file\n")
    assert list(read_records(literal)) == [(1, {"text": "one file"})]


@given(
    data=st.binary() | st.text('[]{}",:\t\n\r\\a1').map(str.encode),
    name=st.sampled_from(["a.json", "a.csv", "a.tsv", "a.txt"]),
)
def test_hostile_bytes_give_records_or_a_user_error(tmp_path_factory, data: bytes, name: str) -> None:
    path = write(tmp_path_factory.mktemp("hostile") / name, data)
    try:
        for line, _ in read_records(path):
            assert 1 <= line <= max(data.count(b"\n"), data.count(b"\r")) + 1
    except UserError as error:
        assert name in str(error)


# ---- real files


def test_real_files_have_their_counts(real_data: Path) -> None:
    flickr = real_data / "multi30k" / "data" / "task1" / "raw"
    counts = {
        "financial-phrasebank/all-data.csv": 4845,
        "fewclue/datasets/tnews/train_few_all.json": 1185,
        "fewclue/datasets/ocnli/test_public.json": 2520,
        "human-eval/data/HumanEval.jsonl.gz": 164,
        "gsm8k/grade_school_math/data/train.jsonl": 7473,
        "chinese-poetry/全唐诗/poet.tang.3000.json": 1001,
        "chinese-poetry/四书五经/daxue.json": 1,
        "tatoeba-cmn-eng/cmn-eng/cmn.txt": 26_388,
        "llamafactory-demo/dataset_info.json": 1,
    }
    assert {name: sum(1 for _ in read_records(real_data / name)) for name in counts} == counts
    pair = f"{flickr / 'train.en.gz'}+{flickr / 'train.fr.gz'}"
    records = list(read_records(pair))
    assert len(records) == 29_000 and set(records[0][1]) == {"en", "fr"}
    assert len("".join(read_text(real_data / "tinyshakespeare" / "input.txt"))) == 1_115_394
