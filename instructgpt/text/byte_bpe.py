"""Byte-pair encoding as others have it: `tokenizer.json`, `vocab.json` with `merges.txt`, or the lists of a GGUF file.

The package `tokenizers` computes (extra `pretrained`). It is given the model without its added tokens, so that it never
finds one in a text: they are control tokens here, whatever a text spells. Two spellings of pieces are known: byte-level
(GPT-2's letters for bytes) and SentencePiece's (▁ for a space, <0x41> for bytes that have no piece).

A normaliser that only composes characters (NFC, as Qwen's) is left out: text that is composed already, as nearly all
is, has the same tokens without it, and other text is not lost.

Byte-level BPE: Radford et al. 2019.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError, suggestion
from instructgpt.text.subwords import SPACE, refuse_surrogates

FILE_NAME = "tokenizer.json"

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _words(digits: str) -> list[dict[str, Any]]:
    """The pre-tokenizer of Llama 3 and Qwen, which differ in how many digits stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES]


PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [_DIGITS, _GPT2],
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "qwen2": _words(r"\p{N}"),
}
"""How text is cut into words before bytes are merged, by the names that GGUF files have for it."""
_SAME = {
    "phi-2": "gpt-2", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Of these, a word that is a piece is not put together by merges."""


class ByteBPE:
    """Another's BPE model. Immutable."""

    file_name = FILE_NAME

    def __init__(self, model: bytes, where: str | Path | None = None):
        """model: what is in a tokenizer.json. UserError, naming `where`, for what is none, or of another kind."""
        self.model = model
        spec = _parsed(model, where)
        added = {token["content"]: token for token in spec["added_tokens"]}
        self.control: dict[str, int] = {name: token["id"] for name, token in added.items()}
        vocab: dict[str, int] = spec["model"]["vocab"]
        self.is_byte_level = _mentions(spec["pre_tokenizer"], "ByteLevel")
        """Or else spelt as SentencePiece does."""
        self.begins_with_space, without_prefix = _without_prefix(spec)
        self._encoder = _encoder(without_prefix, self.control, where)
        size = 1 + max([*vocab.values(), *self.control.values()], default=-1)
        self.token_bytes: list[bytes] = [b""] * size
        for piece, i in vocab.items():
            self.token_bytes[i] = self._bytes_of(piece)
        for name, token in added.items():
            # What is not marked special is text where a model writes it, though no text is read as it.
            self.token_bytes[token["id"]] = b"" if token.get("special") else name.encode()
        self._byte_ids = {value[0]: i for i, value in enumerate(self.token_bytes) if len(value) == 1}
        if not self.is_byte_level and (len(self._byte_ids) < 256 or not spec["model"].get("byte_fallback")):
            raise UserError("has no byte fallback, so it cannot hold every text", where)
        self.loses = self._losses(spec)

    def _bytes_of(self, piece: str) -> bytes:
        if self.is_byte_level:
            return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in piece)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _losses(self, spec: dict[str, Any]) -> str:
        lost = []
        if missing := sorted(set(range(256)) - self._byte_ids.keys() - _NEVER_IN_UTF8):
            lost.append(f"bytes that it has no token for ({' '.join(f'{byte:02x}' for byte in missing)})")
        if changes := sorted({str(step["type"]) for step in _parts(spec["normalizer"]) if not _is_harmless(step)}):
            lost.append(f"what its normaliser changes ({', '.join(changes)})")
        return " and ".join(lost)

    def __reduce__(self) -> tuple[type[ByteBPE], tuple[bytes]]:
        return ByteBPE, (self.model,)

    # ---- making

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        merges: Iterable[str | Sequence[str]],
        control: Mapping[int, bool],
        pre: str,
        where: str | Path | None = None,
    ) -> ByteBPE:
        """From a list of pieces by id, and merges, each of two pieces ("Ġt he"), the first ones to be merged first.

        control: which ids are control tokens; True for those that are nothing in a text, False for marks that are
        shown where a model writes them (user-defined tokens). pre: a name of `PRE_TOKENIZERS`, as
        `tokenizer.ggml.pre` gives it. UserError for one that is not known and for merges of pieces that are not there.
        """
        pre = _SAME.get(pre, pre)
        if pre not in PRE_TOKENIZERS:
            known = sorted([*PRE_TOKENIZERS, *_SAME])
            raise UserError(f"its text is cut into words in an unknown way, {pre!r}{suggestion(pre, known)}", where)
        added = [_added(i, pieces[i], special) for i, special in sorted(control.items())]
        names = {pieces[i] for i in control}
        pairs = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges]
        spec = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": pre in _WHOLE_WORDS,
                "vocab": {piece: i for i, piece in enumerate(pieces) if i not in control},
                "merges": [pair for pair in pairs if names.isdisjoint((*pair, "".join(pair)))],
            },
        }
        return cls(json.dumps(spec, ensure_ascii=False).encode(), where)

    @classmethod
    def from_files(cls, vocab: Path, merges: Path, added: Mapping[str, int], pre: str = "gpt-2") -> ByteBPE:
        """From vocab.json and merges.txt, as GPT-2 has them. added: control tokens by name."""
        try:
            pieces: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise UserError("is missing: vocab.json and merges.txt belong together", error.filename) from None
        except (OSError, ValueError) as error:
            raise UserError(f"is no vocabulary: {error}", vocab) from None
        if not isinstance(pieces, dict) or not all(isinstance(i, int) for i in pieces.values()):
            raise UserError("is no vocabulary: it should say the id of each piece", vocab)
        by_id = {i: piece for piece, i in {**pieces, **added}.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise UserError("is no vocabulary: ids should be 0, 1, 2, … with one piece each", vocab)
        listed = [by_id[i] for i in range(len(by_id))]
        pairs = [line for line in lines if line and not line.startswith("#version")]
        return cls.from_pieces(listed, pairs, dict.fromkeys(added.values(), True), pre, merges)

    def listed(self) -> tuple[list[str], list[str], str | None]:
        """Pieces by id ("" for none), merges, and the name of how text is cut into words, None if it has none."""
        spec = _parsed(self.model, None)
        listed = [""] * len(self.token_bytes)
        for piece, i in {**spec["model"]["vocab"], **self.control}.items():
            listed[i] = piece
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
        steps, whole = (
            [_essence(step) for step in _parts(spec["pre_tokenizer"])],
            bool(spec["model"].get("ignore_merges")),
        )
        for name, known in PRE_TOKENIZERS.items():
            if [_essence(step) for step in known] == steps and (name in _WHOLE_WORDS) == whole:
                return listed, merges, name
        return listed, merges, None

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        return self.encode_within(self._prefixed(text))

    def encode_within(self, text: str) -> list[int]:
        refuse_surrogates(text)
        if self.is_byte_level or SPACE not in text:
            return self._encoder.encode(text, add_special_tokens=False).ids
        # A literal U+2581 would be taken for a space: spell it in bytes, and encode what is between.
        first, *rest = (self._encoder.encode(part, add_special_tokens=False).ids for part in text.split(SPACE))
        literal = [self._byte_ids[byte] for byte in SPACE.encode()]
        for ids in rest:
            first = [*first, *literal, *ids]
        return first

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        prefixed = [self._prefixed(text) for text in texts]
        if not self.is_byte_level and any(SPACE in text for text in texts):
            return [self.encode_within(text) for text in prefixed]
        for text in texts:
            refuse_surrogates(text)
        return [found.ids for found in self._encoder.encode_batch_fast(prefixed, add_special_tokens=False)]

    def _prefixed(self, text: str) -> str:
        return f" {text}" if self.begins_with_space and text else text


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: those that print stand for themselves, the others for U+0100 and on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_KINDS = {"WordPiece": "BERT's", "Unigram": "T5's", "WordLevel": "whole words"}


def _added(i: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, **flags, "special": special}


def _parsed(model: bytes, where: str | Path | None) -> dict[str, Any]:
    """The parts of a tokenizer.json that are used, checked."""
    try:
        spec = json.loads(model)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON: {error}", where, getattr(error, "lineno", None)) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError("is no tokenizer: it has no 'model'", where)
    part = spec["model"]
    # Files of before 2020 name no type: byte-pair encoding has merges, and nothing else has.
    kind = part.get("type") or ("BPE" if "merges" in part else None)
    if kind != "BPE":
        whose = f" ({_KINDS[kind]})" if kind in _KINDS else ""
        raise UserError(f"is a tokenizer of the type {kind}{whose}; byte-pair encoding (BPE) can be read", where)
    vocab, added = part.get("vocab"), spec.get("added_tokens") or []
    if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < 1 << 24 for i in vocab.values()):
        raise UserError("is no tokenizer: 'vocab' should say the id of each piece", where)
    is_token = [type(t) is dict and isinstance(t.get("content"), str) and type(t.get("id")) is int for t in added]
    if not all(is_token) or not all(t["content"] and 0 <= t["id"] < 1 << 24 for t in added):
        raise UserError("is no tokenizer: each of 'added_tokens' should have a content and an id", where)
    if part.get("continuing_subword_prefix") or part.get("end_of_word_suffix"):
        raise UserError("marks the ends of words in its pieces, as CLIP's tokenizer; that is not known here", where)
    pre, normalizer = spec.get("pre_tokenizer"), spec.get("normalizer")
    if not all(
        isinstance(step, dict) and isinstance(step.get("type"), str) for step in [*_parts(pre), *_parts(normalizer)]
    ):
        raise UserError("is no tokenizer: each step before its model should have a 'type'", where)
    if not _mentions(pre, "ByteLevel") and not any(SPACE in piece for piece in vocab):
        raise UserError("spells its pieces neither byte by byte nor as SentencePiece does", where)
    return {**spec, "model": {**part, "type": "BPE"}, "added_tokens": added} | {
        "pre_tokenizer": pre, "normalizer": normalizer
    }  # fmt: skip


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer as its steps in order."""
    if not isinstance(step, dict):
        return [step] if step else []
    inner = step.get("normalizers") or step.get("pretokenizers")
    return [part for one in inner for part in _parts(one)] if inner else [step]


def _essence(step: dict[str, Any]) -> dict[str, Any]:
    """A step without what changes no token."""
    return {key: value for key, value in step.items() if key != "trim_offsets"} | (
        {"use_regex": step.get("use_regex", True)} if step["type"] == "ByteLevel" else {}
    )


def _is_harmless(step: dict[str, Any]) -> bool:
    """Whether a step of a normaliser loses nothing, as those of SentencePiece's spelling; NFC is left out."""
    is_spelling = step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return is_spelling or step["type"] in ("Prepend", "NFC")


def _types(step: dict[str, Any] | None) -> list[str]:
    return [str(part.get("type")) for part in _parts(step)]


def _mentions(step: dict[str, Any] | None, kind: str) -> bool:
    return kind in _types(step)


def _without_prefix(spec: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a space is put before a text, and the same tokenizer without that and without NFC."""
    normalizers, steps = _parts(spec["normalizer"]), _parts(spec["pre_tokenizer"])
    prefixed = (
        any(step["type"] == "Prepend" for step in normalizers)
        or any(step["type"] == "ByteLevel" and step.get("add_prefix_space", True) for step in steps)
        or any(step["type"] == "Metaspace" and _prepends(step) for step in steps)
    )
    kept = [step for step in normalizers if step["type"] not in ("Prepend", "NFC")]
    cut = []
    for step in steps:
        if step["type"] == "ByteLevel":
            step = step | {"add_prefix_space": False}
        elif step["type"] == "Metaspace":
            step = {key: value for key, value in step.items() if key != "add_prefix_space"}
            step = step | {"prepend_scheme": "never"}
        cut.append(step)
    return prefixed, spec | {
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut} if cut else None,
    }


def _prepends(metaspace: dict[str, Any]) -> bool:
    scheme = metaspace.get("prepend_scheme")
    return metaspace.get("add_prefix_space", True) if scheme is None else scheme != "never"


def _encoder(spec: dict[str, Any], control: Mapping[str, int], where: str | Path | None) -> Any:
    """The package's tokenizer, to which control tokens are unknown."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "this tokenizer needs the package tokenizers; install it with pip install 'instructgpt[pretrained]'", where
        ) from None
    taken = set(control.values())
    vocab = {piece: i for piece, i in spec["model"]["vocab"].items() if i not in taken}
    merges = []
    for merge in spec["model"].get("merges", ()):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise UserError(f"is no tokenizer: {merge!r} is no merge of two pieces", where)
        made = (*pair, "".join(pair))
        if not control.keys().isdisjoint(made):
            continue  # no text is to be merged into a control token
        if missing := next((piece for piece in made if piece not in vocab), None):
            raise UserError(f"is no tokenizer: its merges name the piece {missing!r}, which it does not have", where)
        merges.append(pair)
    model = spec["model"] | {"vocab": vocab, "merges": merges, "unk_token": None, "dropout": None}
    bare = spec | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None, "model": model}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare))
    except Exception as error:  # the package raises bare ones
        raise UserError(f"is no tokenizer: {error}", where) from None


def begins_by_itself(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json puts a control token before a text, as its post-processor says."""
    step = spec.get("post_processor") or {}
    steps = step.get("processors", [step])
    return any("SpecialToken" in first for each in steps for first in each.get("single", [])[:1])


def prefixes_parts(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json puts a space before every text behind a control token, not the first text alone."""
    steps = [*_parts(spec.get("normalizer")), *_parts(spec.get("pre_tokenizer"))]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "ByteLevel" and step.get("add_prefix_space", True))
        or (step["type"] == "Metaspace" and _prepends(step) and step.get("prepend_scheme") != "first")
        for step in steps
    )
