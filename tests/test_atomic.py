from pathlib import Path

import pytest

from instructgpt.atomic import replacing, require_writable, write_text
from instructgpt.errors import UserError, suggestion


def test_a_file_appears_whole_or_not_at_all(tmp_path) -> None:
    file = tmp_path / "new" / "x.txt"
    write_text(file, "first")
    with pytest.raises(RuntimeError, match="half-way"), replacing(file) as temporary:
        temporary.write_text("sec")
        raise RuntimeError("half-way")
    assert file.read_text() == "first"
    write_text(file, "second")
    assert [p.name for p in file.parent.iterdir()] == ["x.txt"] and file.read_text() == "second"


def test_what_cannot_be_written_is_told_in_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written") as error:
        write_text(tmp_path / "file" / "x.txt", "text")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [".", "..", "/", "folder"])
def test_a_folder_is_no_file_to_write(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="it is a folder"):
        require_writable(Path(path))


def test_a_complaint_names_file_and_line() -> None:
    assert str(UserError("is wrong\nhere", "a.json", 3)) == "a.json:3: is wrong here"
    assert str(UserError("is wrong", "a.json")) == "a.json: is wrong"


def test_suggestions() -> None:
    assert suggestion("tinny", ["tiny", "small"]) == "; did you mean 'tiny'?"
    assert suggestion("zzz", ["tiny", "small"]) == "; choose one of: tiny, small"
