"""Raw text on disk as token shards: written in one stream in bounded memory, read through memory maps.

    meta.json                   what was read, counts, the tokenizer's fingerprint; written last
    {train,val}-KEY.ids         all documents end to end, each `bos … eos`; uint16 or uint32
    {train,val}-KEY.offsets     int64, where each document begins, and the end of the last

KEY stands for the sources and settings, so that new shards never overwrite those an old meta.json names: at any moment
the directory is a whole corpus. The last part of every file is the validation split.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from instructgpt.atomic import replacing
from instructgpt.data.documents import Piece, Split, split_pieces
from instructgpt.data.tokens import Shard
from instructgpt.errors import UserError
from instructgpt.strict_json import write_json
from instructgpt.text.tokenizer import Tokenizer

SPLITS: tuple[Split, Split] = ("train", "val")

_FORMAT = 1
_BATCH = 1 << 20  # characters whose tokens are held in memory at once
_STALE = 3600.0  # seconds after which a temporary file that nobody writes to was left by a run that was killed


@dataclass(frozen=True, eq=False, slots=True)
class Corpus(Shard):
    """One split of a corpus on disk, mapped into memory."""

    text_bytes: int
    """UTF-8 bytes of the text that the tokens stand for."""

    @classmethod
    def open(cls, directory: str | Path, split: Split, tokenizer: Tokenizer | None = None) -> Corpus:
        """Maps a split. Raises UserError when there is none, it is damaged, or `tokenizer` is another than its own."""
        path = Path(directory)
        meta = _read_meta(path)
        if meta is None:
            raise UserError("holds no corpus", path)
        if tokenizer is not None and meta["request"]["tokenizer"] != tokenizer.fingerprint:
            raise UserError("was made with another tokenizer; write it anew", path)
        counts = meta["splits"][split]
        if not counts["documents"]:
            raise UserError(
                f"holds no text for the {split} split; it was written with a holdout of {meta['request']['holdout']}",
                path,
            )
        if not _is_whole(path, meta):
            raise UserError("is damaged: a shard is missing or has the wrong size; write it anew", path)
        ids, offsets = _files(path, split, meta)
        return cls(np.memmap(ids, meta["dtype"], "r"), np.memmap(offsets, np.int64, "r"), counts["bytes"])


def write_corpus(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    directory: str | Path,
    holdout: float = 0.1,
    encoding: str = "utf-8",
    separator: str = "",
    text_field: str = "",
) -> str:
    """Tokenizes text files into `directory` and returns an account of it, in a line or two.

    A text file is one document, or several ended by `separator`; of .json, .jsonl, .csv and .tsv files, each record is
    one: its field `text` or its list of `paragraphs`, or what `text_field` says (`documents.text_template`). The last
    `holdout` of each file's bytes is validation.
    What is there already is used when it was made by this tokenizer from these files, unchanged, with these settings.
    Memory stays bounded however large the files. Raises UserError for files without text, and as the readers do.
    """
    path = Path(directory)
    request = _request(paths, tokenizer, holdout, encoding, separator, text_field)
    meta = _read_meta(path)
    if meta is not None and meta["request"] == request and _is_whole(path, meta):
        return f"{meta['account']} (made before, still valid)"
    meta = {
        "request": request,
        "key": hashlib.sha256(json.dumps(request).encode()).hexdigest()[:12],
        "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
    }
    dropped: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {split: _Writer(stack, path, split, meta, tokenizer) for split in SPLITS}
        pieces = chain.from_iterable(split_pieces(p, holdout, encoding, separator, dropped, text_field) for p in paths)
        for split, batch in _batches(pieces):
            writers[split].write(batch)
        for writer in writers.values():
            writer.finish()
    counts = {split: writers[split].counts for split in SPLITS}
    meta |= {"splits": counts, "account": _account(counts, len(paths), dropped)}
    write_json(path / "meta.json", meta)
    _remove_others(path, meta["key"])
    return meta["account"]


def read_split(
    path: Path,
    split: Split,
    holdout: float = 0.1,
    encoding: str = "utf-8",
    separator: str = "",
    text_field: str = "",
) -> Iterator[str]:
    """The very text that `write_corpus` puts into a split, in stretches of at most about 64,000 characters."""
    for found, piece in split_pieces(path, holdout, encoding, separator, Counter(), text_field):
        if found == split:
            yield piece.text


# ---- writing


def _batches(pieces: Iterable[tuple[Split, Piece]]) -> Iterator[tuple[Split, list[Piece]]]:
    """Neighbouring pieces of one split, together at least `_BATCH` characters where there are so many."""
    for _, group in groupby(pieces, key=lambda pair: pair[0]):
        batch: list[Piece] = []
        size = 0
        for split, piece in group:
            batch.append(piece)
            size += len(piece.text)
            if size >= _BATCH:
                yield split, batch
                batch, size = [], 0
        if batch:
            yield split, batch


class _Writer:
    """Writes one split's shard; the files take their names when `stack` is left without an error."""

    def __init__(self, stack: ExitStack, directory: Path, split: Split, meta: dict[str, Any], tokenizer: Tokenizer):
        self._tokenizer, self._dtype = tokenizer, meta["dtype"]
        temporary = (stack.enter_context(replacing(path)) for path in _files(directory, split, meta))
        self._ids, self._offsets = (stack.enter_context(path.open("wb")) for path in temporary)
        self._is_open = False
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def write(self, pieces: list[Piece]) -> None:
        tokens: list[int] = []
        starts = array("q")
        for piece, ids in zip(pieces, self._tokenizer.encode_batch([piece.text for piece in pieces])):
            if ids and not self._is_open:
                starts.append(self.counts["tokens"] + len(tokens))
                tokens += self._tokenizer.document_start
                self._is_open = True
            tokens += ids
            if piece.ends_document and self._is_open:
                tokens.append(self._tokenizer.eos)
                self._is_open = False
            self.counts["bytes"] += len(piece.text.encode())
        self._ids.write(np.array(tokens, dtype=self._dtype).tobytes())
        self._offsets.write(starts.tobytes())
        self.counts["tokens"] += len(tokens)
        self.counts["documents"] += len(starts)

    def finish(self) -> None:
        self._offsets.write(array("q", [self.counts["tokens"]]).tobytes())


def _request(
    paths: Sequence[Path], tokenizer: Tokenizer, holdout: float, encoding: str, separator: str, text_field: str
) -> dict[str, Any]:
    """All that a corpus depends on, as JSON: equal requests, equal shards."""
    sources = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", path) from None
        sources.append([str(path.resolve()), found.st_size, found.st_mtime_ns])
    settings = {"holdout": holdout, "encoding": encoding, "separator": separator, "text_field": text_field}
    return {"format": _FORMAT, "tokenizer": tokenizer.fingerprint, **settings, "sources": sources}


def _account(splits: Mapping[str, dict[str, int]], files: int, dropped: Counter[str]) -> str:
    documents, tokens, size = (
        sum(split[name] for split in splits.values()) for name in ("documents", "tokens", "bytes")
    )
    parts = [
        f"corpus: {files:,} file(s), {documents:,} document(s), {size:,} bytes",
        f"{size / max(tokens, 1):.2f} bytes a token",
        *(f"{name} {split['tokens']:,} tokens" for name, split in splits.items()),
        *(f"dropped {count:,} record(s) {reason}" for reason, count in dropped.items()),
    ]
    return "; ".join(parts)


# ---- the directory


def _files(directory: Path, split: Split, meta: dict[str, Any]) -> tuple[Path, Path]:
    return directory / f"{split}-{meta['key']}.ids", directory / f"{split}-{meta['key']}.offsets"


def _read_meta(directory: Path) -> dict[str, Any] | None:
    """The corpus's description; None when there is none that this code understands."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        return meta if meta["request"]["format"] == _FORMAT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_whole(directory: Path, meta: dict[str, Any]) -> bool:
    for split in SPLITS:
        counts = meta["splits"][split]
        sizes = (counts["tokens"] * np.dtype(meta["dtype"]).itemsize, (counts["documents"] + 1) * 8)
        for path, size in zip(_files(directory, split, meta), sizes):
            if not path.is_file() or path.stat().st_size != size:
                return False
    return True


def _remove_others(directory: Path, key: str) -> None:
    """Removes shards that meta.json no longer names, and what a killed run left half written."""
    shards = [path for kind in ("ids", "offsets") for split in SPLITS for path in directory.glob(f"{split}-*.{kind}")]
    halves = [path for split in SPLITS for path in directory.glob(f".{split}-*.tmp")]
    for path in shards:
        if f"-{key}." not in path.name:
            path.unlink(missing_ok=True)
    for path in halves:
        if time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)
