"""Text to tokens and back, behind one interface: a subword model, its control tokens, and a chat format.

The subword model is ours or another's (`sentence_piece.py`, `byte_bpe.py`); what it does not know is here: which tokens
begin and end what, further control tokens, and how a conversation is written (`formats.py`). A tokenizer is lossless
where its model is (`loses`), and safe: no text maps to a control token, whatever it spells, so these enter a sequence
only as ids.

A directory holds a tokenizer as one file of its subword model and, for all but ours, `chat.json`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from instructgpt.atomic import replacing
from instructgpt.errors import UserError
from instructgpt.flags import train_command
from instructgpt.strict_json import write_json
from instructgpt.text.byte_bpe import ByteBPE
from instructgpt.text.formats import OURS, ChatFormat, Layout, format_named
from instructgpt.text.sentence_piece import CONTROL_NAMES, SentencePiece
from instructgpt.text.subwords import Subwords

CHAT_FILE = "chat.json"
FILE_NAMES = (SentencePiece.file_name, ByteBPE.file_name, CHAT_FILE)
"""Every file that a saved tokenizer may consist of."""
_OUR_NAMES = {f"<|{name}|>": name for name in CONTROL_NAMES}


@dataclass(frozen=True)
class Special:
    """Which tokens of a model do what."""

    eos: int
    """Ends a document."""
    bos: int | None = None
    """Begins one, where the model has such a token."""
    pad: int | None = None
    """Fills rows; `eos` where the model has none."""
    begins: bool = True
    """Whether `bos` is put in front of documents and prompts."""
    prefixes: bool = False
    """Whether the space that the model puts before a text is put before every text behind a control token, too."""
    ends: tuple[int, ...] = ()
    """Further tokens that end what the model writes."""
    added: dict[str, int] = field(default_factory=dict)
    """Control tokens beside those of the subword model, by name."""


class Tokenizer:
    """A subword model, and what its tokens mean. Equal when these are equal; immutable."""

    def __init__(self, subwords: Subwords, special: Special, format: ChatFormat | None = OURS, template: str = ""):
        """format: how conversations are written; None where the model knows none, as a base model. template: the
        model's own, to be handed on with it; it is not used.

        Raises UserError for a format that the control tokens cannot spell, and for ids of no token.
        """
        self.subwords, self.special, self.format, self.template = subwords, special, format, template
        control = subwords.control | special.added
        self.control_ids: dict[str, int] = {_OUR_NAMES.get(name, name): i for name, i in control.items()}
        """Control tokens by name: ours by their bare names (`bos`, `user`, …), others as they are spelt."""
        known = len(subwords.token_bytes)
        self.vocab_size: int = max([known - 1, *special.added.values()]) + 1
        self._bytes = [*subwords.token_bytes, *[b""] * (self.vocab_size - known)]
        self.bos, self.eos = special.bos, special.eos
        self.pad: int = special.eos if special.pad is None else special.pad
        for name, i in {"bos": self.bos, "eos": self.eos, "pad": self.pad}.items():
            if i is not None and not 0 <= i < self.vocab_size:
                raise UserError(f"{name} is token {i}, outside the vocabulary of {self.vocab_size}")
        self.document_start: list[int] = [special.bos] if special.begins and special.bos is not None else []
        """What stands before a document, or a text that a model is to continue."""
        behind = subwords.encode if special.prefixes else subwords.encode_within
        self._layout = format and Layout(format, control, self.document_start, subwords.encode_within, behind)
        ends = self._layout.ends if self._layout else frozenset()
        self.closing: frozenset[int] = frozenset((self.eos, *special.ends)) | ends
        """Tokens that end what a model writes."""
        self.byte_lengths: np.ndarray = np.array([len(value) for value in self._bytes], dtype=np.int64)
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        self.fingerprint: str = hashlib.sha256(subwords.model + self._meaning()).hexdigest()
        """sha256 of the model, and of control tokens and format where they are not ours: equal ones, equal tokens."""

    @property
    def _is_ours(self) -> bool:
        return self.format == OURS and isinstance(self.subwords, SentencePiece) and self.subwords.is_ours

    def _meaning(self) -> bytes:
        """What the subword model does not say, as far as tokens depend on it; of ours nothing."""
        if self._is_ours:
            return b""
        roles = [self.bos, self.eos, self.pad, self.document_start, sorted(self.closing), self.special.prefixes]
        layout = self._layout and self._layout.meaning
        return json.dumps([roles, self.control_ids, layout], sort_keys=True).encode()

    @property
    def layout(self) -> Layout:
        """The chat format in this tokenizer's ids. UserError where there is none."""
        if self._layout is None:
            raise UserError("this model has no chat format: give it raw text, or name a format with --chat-format")
        return self._layout

    @property
    def end(self) -> int:
        """The control token that closes an answer."""
        return self.layout.end

    @property
    def loses(self) -> str:
        """What of a text `decode(encode(text))` does not give back; "" where nothing is lost, as ours."""
        return self.subwords.loses

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Any, ...]]:
        return Tokenizer, (self.subwords, self.special, self.format, self.template)

    # ---- with other control tokens

    def with_control(self, names: Sequence[str]) -> Tokenizer:
        """The same with further control tokens, which take the next ids; those that are there already stay."""
        missing = [name for name in names if name not in self.subwords.control | self.special.added]
        added = self.special.added | {name: self.vocab_size + i for i, name in enumerate(missing)}
        return self._replaced(special=replace(self.special, added=added))

    def with_chat(self, format: ChatFormat = OURS) -> Tokenizer:
        """The same with another chat format, given the control tokens that it needs. The model has to have embeddings
        for all `vocab_size` tokens."""
        return self.with_control(format.control)._replaced(format=format, template="")

    def _replaced(self, **changes: Any) -> Tokenizer:
        kept = {"special": self.special, "format": self.format, "template": self.template}
        return Tokenizer(self.subwords, **kept | changes)

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
        """One of ours, learnt from `texts`; arguments and errors are those of `SentencePiece.train`."""
        return cls._of_ours(
            SentencePiece.train(texts, vocab_size, kind, split_digits, character_coverage, seed, sample_characters)
        )

    @classmethod
    def _of_ours(cls, model: SentencePiece) -> Tokenizer:
        bos, eos, pad = (model.control[f"<|{name}|>"] for name in ("bos", "eos", "pad"))
        return cls(model, Special(eos, bos, pad))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """A saved one, from its directory; of ours, the file will do. UserError when it is missing, damaged or of no
        known kind. Layouts of others are read by `reading.py`."""
        directory = Path(path) if Path(path).is_dir() else Path(path).parent
        kind = ByteBPE if Path(path).is_dir() and (directory / ByteBPE.file_name).exists() else SentencePiece
        file = directory / kind.file_name if Path(path).is_dir() else Path(path)
        try:
            model = kind(file.read_bytes(), where=file)
        except FileNotFoundError:
            raise UserError(f"no such tokenizer; `{train_command('tokenizer')}` makes one", file) from None
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", file) from None
        settings = directory / CHAT_FILE
        if settings.exists():
            return cls._with_settings(model, settings)
        if isinstance(model, SentencePiece) and model.is_ours:
            return cls._of_ours(model)
        raise UserError(
            f"is no tokenizer of ours, and no {CHAT_FILE} beside it says what it is; import the model", file
        )

    @classmethod
    def _with_settings(cls, model: Subwords, file: Path) -> Tokenizer:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            form = values["format"] and replace(
                format_named(values["format"]), default_system=values["default_system"], begins=values["begins"]
            )
            special = values["special"]
            special["ends"] = tuple(special["ends"])
            return cls(model, Special(**special), form, values["template"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"does not say what a tokenizer's tokens are: {error!r}", file) from None

    def save(self, directory: str | Path) -> Path:
        """Write its files into `directory` (made if missing), each whole or not at all; returns the model's."""
        target = Path(directory) / self.subwords.file_name
        with replacing(target) as temporary:
            temporary.write_bytes(self.subwords.model)
        if not self._is_ours:
            write_json(target.with_name(CHAT_FILE), self._settings())
        return target

    def _settings(self) -> dict[str, Any]:
        """What chat.json says."""
        form = self.format
        return {
            "format": form.name if form else "",
            "default_system": form.default_system if form else None,
            "begins": form.begins if form else False,
            "special": asdict(self.special),
            "template": self.template,
        }

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without control tokens. Raises UserError for a lone surrogate, which no UTF-8 can hold."""
        return self.subwords.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores when there is enough of it."""
        return self.subwords.encode_batch(texts)

    # ---- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: control tokens are nothing, bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for an id of no token.
        """
        text = b"".join([self.token_bytes(i) for i in ids]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.subwords.begins_with_space else text

    def token_bytes(self, i: int) -> bytes:
        """The bytes of text that one token stands for. Raises ValueError for an id of no token."""
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token {i} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[i]

    def spelt(self, i: int) -> str:
        """A token as people see it: a control token by its name, half a character as U+FFFD; an embedding that belongs
        to no token is ""."""
        text = self._bytes[i].decode("utf-8", "replace") if i < self.vocab_size else ""
        if text:
            return text
        names = {number: name for name, number in self.control_ids.items()}
        return f"<{names[i]}>" if i in names and not names[i].startswith("<") else names.get(i, "")

    def stream(self, of: Literal["text", "answer", "rest"] = "text") -> StreamDecoder:
        """A decoder to which ids are pushed one at a time: those of a whole text, of an answer in the chat format, or
        of what goes on from a text. They differ in whether a space in front is part of what is said."""
        has_space = {
            "text": self.subwords.begins_with_space,
            "answer": self._layout is not None and self._layout.answer_has_space,
            "rest": False,
        }
        return StreamDecoder(self, has_space[of])

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

    def __init__(self, tokenizer: Tokenizer, has_space: bool):
        """has_space: whether a space stands before the text that is no part of it."""
        self._tokenizer, self.has_space = tokenizer, has_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = True

    def push(self, i: int) -> str:
        """The text that token `i` completes; "" while a character is unfinished."""
        return self._text(self._decoder.decode(self._tokenizer.token_bytes(i)))

    def flush(self) -> str:
        """What was left unfinished, as U+FFFD, or ""; the decoder then starts afresh."""
        rest = self._text(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._is_first = True
        return rest

    def _text(self, text: str) -> str:
        if text and self._is_first:
            self._is_first = False
            return text.removeprefix(" ") if self.has_space else text
        return text
