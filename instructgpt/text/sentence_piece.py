"""SentencePiece models (BPE or unigram): ours, which lose nothing and which no text can trick, and those of others.

Ours, lossless: the normaliser is the identity, spaces, tabs and newlines are kept, and what the vocabulary lacks is
spelt in UTF-8 bytes, so `decode(encode(text)) == text` for every string that UTF-8 can hold.

Safe: the control tokens are the first ids. SentencePiece neither learns nor matches the names of their pieces in a
text, so they enter a sequence only as ids.

SentencePiece: Kudo & Richardson 2018; BPE: Sennrich et al. 2016; unigram: Kudo 2018.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from instructgpt.errors import UserError, suggestion
from instructgpt.text import model_proto
from instructgpt.text.subwords import SPACE, refuse_surrogates

FILE_NAME = "tokenizer.model"
CONTROL_NAMES = ("bos", "eos", "pad", "system", "user", "assistant", "end")
"""The control tokens; a name's place is its id."""

_MARK = re.compile(r"<.+>|\[.+\]")
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


class SentencePiece:
    """A SentencePiece model: one that `train` made, or another's. Immutable."""

    file_name = FILE_NAME

    def __init__(self, model: bytes, where: str | Path | None = None):
        """From a serialised model; UserError, naming `where`, for what is none or cannot hold every text."""
        self.model = model
        processor = _processor(model, where)
        pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
        self.token_bytes = [_bytes_of(processor, i, piece) for i, piece in enumerate(pieces)]
        self.control = {piece: i for i, piece in enumerate(pieces) if processor.IsControl(i)}
        # Marks that SentencePiece would match in a text, as in one user-defined piece: [INST], <|im_start|>.
        _, _, kinds = model_proto.pieces(model)
        marks = {
            i: model_proto.CONTROL
            for i, (piece, kind) in enumerate(zip(pieces, kinds))
            if kind == model_proto.USER_DEFINED and _MARK.fullmatch(piece)
        }
        if marks:
            model = model_proto.with_types(model, marks)
            processor = _processor(model, where)
            self.control |= {pieces[i]: i for i in marks}
        self._processor = processor
        byte_ids = {value[0]: i for i, value in enumerate(self.token_bytes) if processor.IsByte(i)}
        if len(byte_ids) != 256:
            raise UserError("has no byte fallback, so it cannot hold every text", where)
        # What SentencePiece takes for a space, and a space where no piece holds one: it would come out as that.
        spelt = (SPACE,) if SPACE in pieces else (SPACE, " ")
        self._spelt = {character: [byte_ids[byte] for byte in character.encode()] for character in spelt}
        self._is_spelt = re.compile(f"([{''.join(spelt)}])")
        self.begins_with_space: bool = processor.Normalize("a") != "a"
        self._within = _processor(model + model_proto.NO_PREFIX, where) if self.begins_with_space else processor
        self.loses: str = _losses(self._within)

    @property
    def is_ours(self) -> bool:
        """Whether `train` made it: our control tokens are its first ids."""
        return list(self.control.items()) == [(_piece(name), i) for i, name in enumerate(CONTROL_NAMES)]

    def __reduce__(self) -> tuple[type[SentencePiece], tuple[bytes]]:
        return SentencePiece, (self.model,)

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
    ) -> SentencePiece:
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
        if not 0.98 <= character_coverage <= 1.0:
            raise UserError(f"character_coverage is {character_coverage}; it is a share of the characters, 0.98 to 1.0")
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

    def encode(self, text: str) -> list[int]:
        refuse_surrogates(text)
        return self._encode(text, self._processor)

    def encode_within(self, text: str) -> list[int]:
        refuse_surrogates(text)
        return self._encode(text, self._within)

    def _encode(self, text: str, processor: sentencepiece.SentencePieceProcessor) -> list[int]:
        if not self._is_spelt.search(text):
            return processor.EncodeAsIds(text)
        # Spelt in bytes, and what is between is encoded.
        parts = self._is_spelt.split(text if processor is self._within else f" {text}")
        return [i for part in parts for i in self._spelt.get(part) or self._within.EncodeAsIds(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores when there is enough of it."""
        for text in texts:
            refuse_surrogates(text)
        threads = 1 if sum(map(len, texts)) < _ONE_THREAD_BELOW else -1
        batch = self._processor.Encode(list(texts), out_type=int, num_threads=threads)
        for i, text in enumerate(texts):
            if self._is_spelt.search(text):
                batch[i] = self.encode(text)
        return batch


def _bytes_of(processor: sentencepiece.SentencePieceProcessor, i: int, piece: str) -> bytes:
    if processor.IsControl(i) or processor.IsUnknown(i):
        return b""
    if processor.IsByte(i):
        return bytes([int(piece[3:-1], 16)])  # "<0x41>"
    return piece.replace(SPACE, " ").encode()


def _processor(model: bytes, where: str | Path | None) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        for i in range(processor.GetPieceSize()):
            processor.IdToPiece(i)
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"is not a SentencePiece model: {_first_line(error)}", where) from None
    return processor


def _losses(processor: sentencepiece.SentencePieceProcessor) -> str:
    """What a model's normaliser takes away, found out by trying."""
    tried = {"the shape of characters, such as full width": "ｶﾞＡ①ﬁ", "white space that is repeated": " a  b "}
    lost = [what for what, text in tried.items() if processor.Normalize(text) != text.replace(" ", SPACE)]
    return " and ".join(lost)


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """The texts in lines that SentencePiece keeps: free of what it reserves, none longer than it accepts."""
    for text in texts:
        refuse_surrogates(text)
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
            f"{found[1]}, or fewer with a character_coverage below {character_coverage}, with rarer ones in bytes"
        )
        return VocabularySizeError(message, int(found[1]))
    return UserError(f"no tokenizer can be trained on this text: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
