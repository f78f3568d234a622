"""Answers written as they are made: what was generated for an hour is there, whatever happens in the next minute."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TextIO

from instructgpt.atomic import require_writable, write_text
from instructgpt.evaluation.report import Outcome
from instructgpt.strict_json import to_json


class Predictions:
    """A file of one JSON object an answer: data, index (its place there), family, messages, reference, answer, score …

    Lines come in the order in which answers are finished; when all are there, in the order of the data.
    """

    def __init__(self, path: str):
        """No path, no file. Raises UserError, before anything is generated, where the file cannot be written."""
        self._path = Path(path)
        self._lines: list[tuple[int, int, str]] = []
        self._sets: dict[str, int] = {}
        self._file: TextIO | None = None
        if path:
            require_writable(self._path)
            self._file = self._path.open("w", encoding="utf-8")

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._file is None:
            return
        self._file.close()
        if kind is None:
            write_text(self._path, "".join(line for _, _, line in sorted(self._lines)))

    def add(self, data: str, index: int, outcome: Outcome) -> None:
        if self._file is None:
            return
        line = to_json({"data": data, "index": index, **outcome.to_json()}) + "\n"
        self._lines.append((self._sets.setdefault(data, len(self._sets)), index, line))
        self._file.write(line)
        self._file.flush()
