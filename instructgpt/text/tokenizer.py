"""Text to tokens and back: a SentencePiece model (BPE or unigram) that loses nothing and that no text can trick.

Lossless: the normaliser is the identity, spaces, tabs and newlines are kept, and what the vocabulary lacks is spelt in
UTF-8 bytes, so `decode(encode(text)) == text` for every string that UTF-8 can hold.

Safe: the control tokens are the first ids. SentencePiece neither learns nor matches the names of their pieces in a
text, so they enter a sequence only as ids.

SentencePiece: Kudo & Richardson 2018; BPE: Sennrich et al. 2016; unigram: Kudo 2018.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from instructgpt.atomic import replacing
from instructgpt.errors import UserError, suggestion
from instructgpt.flags import train_command

FILE_NAME = "tokenizer.model"
CONTROL_NAMES = ("bos", "eos", "pad", "system", "user", "assistant", "end")
"""The control tokens; a name's place is its id."""

SPACE = "▁"
"""U+2581, SentencePiece's spelling of a space inside a piece."""

# Newlines, tabs and NUL are spelt as their byte tokens, so no learnt piece may hold one; U+2581 would be taken for a
# space; and SentencePiece drops a line that has its own marker U+2585. All of them end a line of training text.
_LINE_ENDS = re.compile(f"[\n\t\0{SPACE}\u2585]")
# Characters, of at most four bytes: SentencePiece drops a line of more bytes than its max_sentence_length.
_LONGEST_LINE = 4096
# The trainer's threads, fixed: unigram adds its counts up thread by thread, and a sum's last bits depend on the order.
_THREADS = 4
# Characters in a batch: below this, starting threads costs more than they save.
_ONE_THREAD_BELOW = 20_000


class VocabularySizeError(UserError):
    """A text allows no vocabulary of the size that was asked for; `works` is the nearest size that it does allow."""

    def __init__(self, message: str, works: int):
        super().__init__(message)
        self.works = works


def _piece(name: str) -> str:
    return f"<|{name}|>"


class Tokenizer:
    """A trained SentencePiece model. Equal when the model's bytes are equal; immutable."""

    def __init__(self, model: bytes, where: str | Path | None = None):
        """From a serialised SentencePiece model that `train` made; UserError for any other, naming `where`."""
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            pieces = [self._processor.IdToPiece(i) for i in range(self._processor.GetPieceSize())]
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"is not a SentencePiece model: {_first_line(error)}", where) from None
        for i, name in enumerate(CONTROL_NAMES):
            if len(pieces) <= i or pieces[i] != _piece(name) or not self._processor.IsControl(i):
                found = repr(pieces[i]) if i < len(pieces) else "nothing"
                raise UserError(f"token {i} of this tokenizer is {found}; one trained here has {_piece(name)!r}", where)
        self.vocab_size: int = len(pieces)
        self.control_ids: dict[str, int] = {name: i for i, name in enumerate(CONTROL_NAMES)}
        self.bos, self.eos, self.pad, self.system, self.user, self.assistant, self.end = range(len(CONTROL_NAMES))
        self._bytes = [self._bytes_of(i, piece) for i, piece in enumerate(pieces)]
        self._byte_ids = {value[0]: i for i, value in enumerate(self._bytes) if self._processor.IsByte(i)}
        if len(self._byte_ids) != 256:
            raise UserError("has no byte fallback, so it cannot hold every text", where)
        self._space_ids = [self._byte_ids[byte] for byte in SPACE.encode()]
        self.byte_lengths: np.ndarray = np.array([len(value) for value in self._bytes], dtype=np.int64)
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        self.fingerprint: str = hashlib.sha256(model).hexdigest()
        """sha256 of the model: equal fingerprints, equal tokens."""

    def _bytes_of(self, i: int, piece: str) -> bytes:
        if self._processor.IsControl(i) or self._processor.IsUnknown(i):
            return b""
        if self._processor.IsByte(i):
            return bytes([int(piece[3:-1], 16)])  # "<0x41>"
        return piece.replace(SPACE, " ").encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)

    # ---- making, saving, loading

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        kind: Literal["bpe", "unigram"] = "bpe",
        split_digits: bool = True,
        character_coverage: float = 0.9995,
        seed: int = 0,
        sample_characters: int = 100_000_000,
    ) -> Tokenizer:
        """Learn a vocabulary of exactly `vocab_size` tokens from `texts`, which is read once and never held whole.

        split_digits: every digit is its own token, so that numbers are spelt alike wherever they stand.
        character_coverage: the share of the text's characters that get a token; the rarest are spelt in bytes.
        sample_characters: above this much text, a sample of its lines is learnt from; `seed` chooses which.

        The same texts and arguments give the same model, byte for byte.
        Raises UserError when the text is empty, and VocabularySizeError when it allows no vocabulary as large or as
        small as `vocab_size`.
        """
        if kind not in ("bpe", "unigram"):
            raise UserError(f"unknown kind of tokenizer {kind!r}{suggestion(str(kind), ('bpe', 'unigram'))}")
        if not 0.9 <= character_coverage <= 1.0:
            raise UserError(f"character_coverage is {character_coverage}; it is a share of the characters, 0.9 to 1.0")
        lines = _sample(_training_lines(texts), sample_characters, seed)
        if not lines:
            raise UserError("the text to train a tokenizer on is empty")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type=kind,
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                split_digits=split_digits,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,  # runs of spaces, as code has them
                byte_fallback=True,
                bos_id=0, bos_piece=_piece("bos"),
                eos_id=1, eos_piece=_piece("eos"),
                pad_id=2, pad_piece=_piece("pad"),
                control_symbols=[_piece(name) for name in CONTROL_NAMES[3:]],
                unk_id=len(CONTROL_NAMES), unk_piece=_piece("unk"),  # demanded; bytes make it unreachable
                max_sentence_length=4 * _LONGEST_LINE,
                num_threads=_THREADS,
                minloglevel=3,
            )  # fmt: skip
        except RuntimeError as error:
            raise _vocabulary_error(vocab_size, character_coverage, error) from None
        return cls(written.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a model file, or a directory that holds `tokenizer.model`. UserError when it is missing or not ours."""
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            model = file.read_bytes()
        except FileNotFoundError:
            raise UserError(f"no such tokenizer; `{train_command('tokenizer')}` makes one", file) from None
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", file) from None
        return cls(model, where=file)

    def save(self, directory: str | Path) -> Path:
        """Write `tokenizer.model` into `directory` (made if missing); returns the file. Whole or not at all."""
        target = Path(directory) / FILE_NAME
        with replacing(target) as temporary:
            temporary.write_bytes(self._model)
        return target

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without control tokens. Raises UserError for a lone surrogate, which no UTF-8 can hold."""
        _refuse_surrogates(text)
        if SPACE not in text:
            return self._processor.EncodeAsIds(text)
        # SentencePiece would take a literal U+2581 for a space: spell it in bytes, and encode what is between.
        first, *rest = (self._processor.EncodeAsIds(part) for part in text.split(SPACE))
        for ids in rest:
            first += self._space_ids
            first += ids
        return first

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores when there is enough of it."""
        for text in texts:
            _refuse_surrogates(text)
        threads = 1 if sum(map(len, texts)) < _ONE_THREAD_BELOW else -1
        batch = self._processor.Encode(list(texts), out_type=int, num_threads=threads)
        for i, text in enumerate(texts):
            if SPACE in text:
                batch[i] = self.encode(text)
        return batch

    # ---- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: control tokens are nothing, bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for an id of no token.
        """
        return b"".join([self.token_bytes(i) for i in ids]).decode("utf-8", "replace")

    def token_bytes(self, i: int) -> bytes:
        """The bytes of text that one token stands for. Raises ValueError for an id of no token."""
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token {i} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[i]

    def stream(self) -> StreamDecoder:
        """A decoder to which ids are pushed one at a time."""
        return StreamDecoder(self)

    def bytes_per_token(self, texts: Iterable[str]) -> float:
        """Mean bytes of UTF-8 a token holds on `texts`; higher is a better fit. 0.0 for no text."""
        size = tokens = 0
        for text in texts:
            size += len(text.encode())
            tokens += len(self.encode(text))
        return size / tokens if tokens else 0.0


class StreamDecoder:
    """Decodes tokens as they are generated: what all pushes and the flush return, joined, is `decode` of all the ids.

    A character that is spelt in several tokens is returned by the push that completes it, never in halves.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, i: int) -> str:
        """The text that token `i` completes; "" while a character is unfinished."""
        return self._decoder.decode(self._tokenizer.token_bytes(i))

    def flush(self) -> str:
        """What was left unfinished, as U+FFFD, or ""; the decoder then starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UserError(
            f"character {error.start} of the text is the lone surrogate U+{code:04X}, half of a character; "
            "give the text as valid Unicode"
        ) from None


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """The texts in lines that SentencePiece keeps: free of what it reserves, none longer than it accepts."""
    for text in texts:
        _refuse_surrogates(text)
        for line in _LINE_ENDS.split(text):
            while len(line) > _LONGEST_LINE:
                # At a space where there is one, so that no word is torn; the space begins the next word.
                cut = line.rfind(" ", _LONGEST_LINE // 2, _LONGEST_LINE)
                cut = _LONGEST_LINE if cut < 0 else cut
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def _sample(lines: Iterable[str], characters: int, seed: int) -> list[str]:
    """All lines, or an even sample of at most `characters`, in their order, from one pass in bounded memory.

    Each line draws a number; lines below a threshold are kept; when they grow too many, the threshold halves.
    """
    draw = random.Random(seed).random
    threshold, size = 1.0, 0
    kept: list[tuple[float, str]] = []
    for line in lines:
        number = draw()
        if number >= threshold:
            continue
        kept.append((number, line))
        size += len(line)
        while size > characters and len(kept) > 1:
            threshold /= 2
            kept = [(n, text) for n, text in kept if n < threshold]
            size = sum(len(text) for _, text in kept)
    return [line for _, line in kept]


def _vocabulary_error(vocab_size: int, character_coverage: float, error: RuntimeError) -> UserError:
    """SentencePiece's own words on a vocabulary that does not fit, as advice."""
    if found := re.search(r"value <= (\d+)", str(error)):
        message = f"vocab_size {vocab_size} is more than this text allows; the largest that works is {found[1]}"
        return VocabularySizeError(message, int(found[1]))
    if found := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        message = (
            f"vocab_size {vocab_size} is too small: bytes, control tokens and this text's characters alone are "
            f"{found[1]}; give at least that, or lower character_coverage from {character_coverage}, so that rarer "
            "characters are spelt in bytes"
        )
        return VocabularySizeError(message, int(found[1]))
    return UserError(f"no tokenizer can be trained on this text: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
