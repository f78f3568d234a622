"""SentencePiece's file format, as far as it has to be read and written: its pieces, and a model made of them.

A model is a protocol buffer: fields one after another, each a number, a kind and a value. Of two values of one field
the last counts, and messages are merged, so what is appended to a serialised model changes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces; GGUF files have the same numbers."""
NO_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a model: normalizer_spec.add_dummy_prefix = false."""
_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5
_PIECE, _TYPE = 1, 3  # ModelProto.pieces; SentencePiece.type


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _field(number: int, kind: int, value: bytes) -> bytes:
    size = _varint(len(value)) if kind == _MESSAGE else b""
    return _varint(number << 3 | kind) + size + value


def _number(number: int, value: int) -> bytes:
    return _field(number, _VARINT, _varint(value & (1 << 64) - 1))  # a negative one as 64 bits


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, kind and value of each field. IndexError or ValueError for what is no message."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        start = at
        if kind == _MESSAGE:
            size, start = _read_varint(data, at)
            at = start + size
        elif kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field of kind {kind}")
        yield key >> 3, kind, data[start:at]


def pieces(model: bytes) -> tuple[list[str], list[float], list[int]]:
    """The pieces, their scores and their kinds, by id."""
    spelt, scores, kinds = [], [], []
    for number, _, value in _fields(model):
        if number == _PIECE:
            parts = {inner: part for inner, _, part in _fields(value)}
            spelt.append(parts.get(1, b"").decode())
            scores.append(struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0)
            kinds.append(_read_varint(parts[_TYPE], 0)[0] if _TYPE in parts else NORMAL)
    return spelt, scores, kinds


def is_bpe(model: bytes) -> bool:
    """Whether pieces are put together by merges; unigram models choose them by probability."""
    kind = 1  # TrainerSpec.model_type is unigram where it is not said
    for number, _, value in _fields(model):
        if number == 2:
            for inner, _, part in _fields(value):
                kind = _read_varint(part, 0)[0] if inner == 3 else kind
    return kind == 2


def with_types(model: bytes, types: dict[int, int]) -> bytes:
    """The model with other kinds for some pieces, by id."""
    written, i = [], 0
    for number, kind, value in _fields(model):
        if number == _PIECE:
            value += _field(_TYPE, _VARINT, _varint(types[i])) if i in types else b""
            i += 1
        written.append(_field(number, kind, value))
    return b"".join(written)


def made_of(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], special: dict[str, int], has_prefix: bool
) -> bytes:
    """A BPE model of these pieces that changes no text. special: ids of `unk`, `bos`, `eos`, `pad`, where there are."""
    written = []
    for piece, score, kind in zip(pieces, scores, types):
        spelt = _field(1, _MESSAGE, piece.encode()) + _field(2, _FIXED32, struct.pack("<f", score))
        written.append(_field(_PIECE, _MESSAGE, spelt + _number(_TYPE, kind)))
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)  # model_type BPE, vocab_size, byte_fallback
    for place, name in enumerate(("unk", "bos", "eos", "pad")):  # TrainerSpec.unk_id and so on, unk_piece and so on
        trainer += _number(40 + place, special.get(name, -1))
        if name in special:
            trainer += _field(45 + place, _MESSAGE, pieces[special[name]].encode())
    # name, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = _field(1, _MESSAGE, b"identity") + _number(3, has_prefix) + _number(4, 0) + _number(5, 1)
    return b"".join(written) + _field(2, _MESSAGE, trainer) + _field(3, _MESSAGE, normalizer)
