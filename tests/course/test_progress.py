"""The record of progress: what it refuses, and that nothing of it is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from instructgpt.course import progress
from instructgpt.errors import UserError

BEFORE = {"gae": {"tries": 2, "solved": True}}


def written(folder: Path) -> object:
    return json.loads((folder / progress.PROGRESS).read_text(encoding="utf-8"))


def test_tries_add_up_and_the_rest_is_what_came_last(tmp_path: Path) -> None:
    for hints in (1, 2):
        progress.note(tmp_path, "gae", tries=1, hints=hints)
    assert written(tmp_path) == {"gae": {"tries": 2, "hints": 2}}


def test_what_another_version_noted_stays(tmp_path: Path) -> None:
    (tmp_path / progress.PROGRESS).write_text('{"gae": {"tries": 1, "stars": 3}, "later": {"seconds": 4.5}}')
    progress.note(tmp_path, "gae", tries=1)
    assert written(tmp_path) == {"gae": {"tries": 2, "stars": 3}, "later": {"seconds": 4.5}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting property name"),
        ("[]", "an object for each exercise"),
        ('{"version": 2, "exercises": {}}', "an object for each exercise"),
        ('{"gae": {"tries": "three"}}', "tries of gae is 'three', and should be int"),
        ('{"gae": {"solved": 1}}', "solved of gae is 1, and should be bool"),
        ('{"gae": {"hints": -1}}', "hints of gae is -1"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe{", "can't decode"),
    ],
)
def test_what_is_no_record_is_refused_and_kept(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = tmp_path / progress.PROGRESS
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    for call in (lambda: progress.read(tmp_path), lambda: progress.note(tmp_path, "gae", tries=1)):
        with pytest.raises(
            UserError, match=r"is no record of progress, or one of a newer version: .*move it away"
        ) as error:
            call()
        assert told in str(error.value)
    assert path.read_bytes() == before


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert progress.read(tmp_path / "file") == progress.read(tmp_path / "nowhere") == {}
    with pytest.raises(UserError, match="file: cannot be written to"):
        progress.note(tmp_path / "file", "gae", tries=1)


@pytest.mark.parametrize("left", [None, "{", '{"dpo": {"tries": 1}}', '{"gae": {"tries": "none"}}'])
def test_what_a_students_code_spoils_is_written_anew(tmp_path: Path, left: str | None) -> None:
    """It may have removed the record, or written to it, while it was judged."""
    if left is not None:
        (tmp_path / progress.PROGRESS).write_text(left)
    progress.note(tmp_path, "gae", BEFORE, tries=1)
    found = progress.read(tmp_path)
    assert found["gae"] == {"tries": 3, "solved": True} and ("dpo" in found) == (left is not None and "dpo" in left)


def notes(folder: Path, name: str, count: int) -> None:
    for _ in range(count):
        progress.note(folder, name, tries=1)
        progress.note(folder, "both", tries=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of Unix")
def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=notes, args=(tmp_path, name, 10)) for name in ("gae", "dpo")]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert {name: entry["tries"] for name, entry in progress.read(tmp_path).items()} == {
        "gae": 10,
        "dpo": 10,
        "both": 20,
    }
