"""Tokenizers as others lay them out: the folder of a model, and the fields of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructgpt.errors import UserError
from instructgpt.text import model_proto
from instructgpt.text.byte_bpe import ByteBPE, begins_by_itself, prefixes_parts
from instructgpt.text.formats import ChatFormat, find_format, format_named
from instructgpt.text.sentence_piece import SentencePiece
from instructgpt.text.subwords import Subwords
from instructgpt.text.tokenizer import Special, Tokenizer

_PRE_OF_CLASS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
"""How text is cut into words where there are but vocab.json and merges.txt."""

_END_OF_TEXT = "<|endoftext|>"
"""What ends a text where nothing else is said to, as GPT-2's files say nothing."""


def read_folder(folder: str | Path, chat_format: str = "") -> Tokenizer:
    """The tokenizer of a folder with a model of others: `tokenizer.model`, `tokenizer.json`, or `vocab.json` with
    `merges.txt`, and what the settings beside it say.

    chat_format: by name; found out where it is not given. A model without any has none (`Tokenizer.with_chat`).
    Raises UserError for what is missing, damaged or of an unknown kind, and for a chat template that is none of ours.
    """
    path = Path(folder)
    settings = _json(path / "tokenizer_config.json")
    subwords, added = _subwords(path, settings)
    control = subwords.control | added
    model = _json(path / "config.json")
    model |= _json(path / "generation_config.json")
    named = _json(path / "special_tokens_map.json") | {k: v for k, v in settings.items() if v is not None}

    def special(role: str) -> int | None:
        name = named.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if not isinstance(name, str | None):
            raise UserError(
                f"{role}_token is {name!r}; it should be the name of a token", path / "tokenizer_config.json"
            )
        return control[name] if name in control else next(iter(_ids(model, role, path)), None)

    bos, eos = special("bos"), special("eos")
    eos = control.get(_END_OF_TEXT) if eos is None else eos
    if eos is None:
        raise UserError("says of no token that it ends a text: eos_token", path / "tokenizer_config.json")
    ends = tuple(i for i in _ids(model, "eos", path) if i != eos)
    spec = _json(path / "tokenizer.json")
    begins = settings.get("add_bos_token")
    if begins is None:
        begins = isinstance(subwords, SentencePiece) or begins_by_itself(spec)
    prefixes = prefixes_parts(spec) if spec else settings.get("legacy") is not False
    found = Special(eos, bos, special("pad"), bool(begins), prefixes, ends, added)
    template = _template(path, settings)
    return Tokenizer(subwords, found, _format(chat_format, control, template, path), template)


def _ids(model: Mapping[str, Any], role: str, path: Path) -> list[int]:
    """The ids that config.json and generation_config.json give a role."""
    found = model.get(f"{role}_token_id")
    found = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int for i in found):
        raise UserError(f"{role}_token_id is {found}; it should be the id of a token, or several", path / "config.json")
    return found


def _subwords(path: Path, settings: Mapping[str, Any]) -> tuple[Subwords, dict[str, int]]:
    """The subword model, and the control tokens that it does not know of."""
    added = _json(path / "added_tokens.json")
    try:
        added |= {token["content"]: int(i) for i, token in (settings.get("added_tokens_decoder") or {}).items()}
        if not all(isinstance(name, str) and type(i) is int and 0 <= i < 1 << 24 for name, i in added.items()):
            raise ValueError("each should have a name and an id")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"does not say what its added tokens are: {error}", path / "tokenizer_config.json") from None
    model, whole, vocab = (path / name for name in ("tokenizer.model", "tokenizer.json", "vocab.json"))
    if model.is_file() and not _is_ranks(model):
        subwords = SentencePiece(model.read_bytes(), model)
        known = len(subwords.token_bytes)
        return subwords, {name: i for name, i in added.items() if i >= known}
    if whole.is_file():
        subwords = ByteBPE(whole.read_bytes(), whole)
        return subwords, {name: i for name, i in added.items() if name not in subwords.control}
    if vocab.is_file():
        kind = str(settings.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
        if kind not in _PRE_OF_CLASS:
            raise UserError(f"is the vocabulary of a {kind}, which is not known without tokenizer.json", vocab)
        if not added and _END_OF_TEXT in (pieces := _json(vocab)):
            added = {_END_OF_TEXT: pieces[_END_OF_TEXT]}
        return ByteBPE.from_files(vocab, path / "merges.txt", added, _PRE_OF_CLASS[kind]), {}
    raise UserError("holds no tokenizer: tokenizer.model, tokenizer.json, or vocab.json with merges.txt", path)


def _is_ranks(file: Path) -> bool:
    """Whether it lists pieces in base 64 by rank, as Llama 3's own file does, which has the name of SentencePiece's."""
    with file.open("rb") as opened:
        first = opened.readline(200).split()
    return len(first) == 2 and first[1].isdigit() and first[0].isascii()


def read_gguf(fields: Mapping[str, Any], where: str | Path | None = None, chat_format: str = "") -> Tokenizer:
    """The tokenizer of a GGUF file, from its fields by name (`tokenizer.ggml.tokens` and so on); errors as above."""

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    kind, pieces, types = get("model"), get("tokens"), get("token_type")
    if not pieces:
        raise UserError("holds no tokenizer: tokenizer.ggml.tokens is missing", where)
    types = types or [model_proto.NORMAL] * len(pieces)
    ids = {role: get(f"{role}_token_id") for role in ("bos", "eos", "padding", "unknown")}
    if len(types) != len(pieces) or any(i is not None and not 0 <= i < len(pieces) for i in ids.values()):
        raise UserError("its tokenizer says a kind, or a role, of tokens that it does not list", where)
    pre = get("pre", "")
    if kind == "llama":
        if len(get("scores", ())) != len(pieces):
            raise UserError("its tokenizer does not say a score for each of its pieces", where)
        special = {"unk": ids["unknown"], "bos": ids["bos"], "eos": ids["eos"], "pad": ids["padding"]}
        has = {role: i for role, i in special.items() if i is not None}
        made = model_proto.made_of(pieces, get("scores", ()), types, has, get("add_space_prefix", True))
        subwords: Subwords = SentencePiece(made, where)
    elif kind == "gpt2":
        marks = {model_proto.CONTROL: True, model_proto.USER_DEFINED: False}
        control = {i: marks[each] for i, each in enumerate(types) if each in marks}
        subwords = ByteBPE.from_pieces(pieces, get("merges", ()), control, pre, where)
    else:
        raise UserError(f"has a tokenizer of the kind {kind!r}; llama and gpt2 can be read", where)
    if ids["eos"] is None:
        raise UserError("says of no token that it ends a text: tokenizer.ggml.eos_token_id", where)
    begins = get("add_bos_token", kind == "llama" or pre == "llama-bpe")
    ends = tuple(i for i in (get("eot_token_id"), get("eom_token_id")) if i is not None)
    special = Special(ids["eos"], ids["bos"], ids["padding"], begins, prefixes=True, ends=ends)
    template = str(fields.get("tokenizer.chat_template", ""))
    return Tokenizer(subwords, special, _format(chat_format, subwords.control, template, where), template)


def _format(name: str, control: Mapping[str, int], template: str, where: str | Path | None) -> ChatFormat | None:
    if name:
        return format_named(name)
    found = find_format(control, template)
    if template and found is None:
        raise UserError("has a chat template that is not known; name the format with --chat-format", where)
    return found


def _template(path: Path, settings: Mapping[str, Any]) -> str:
    """The model's own template, as text."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template") or ""
    if isinstance(found, list):
        found = next((each["template"] for each in found if each.get("name") == "default"), "")
    return str(found)


def _json(file: Path) -> dict[str, Any]:
    """An object in a file; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"is not JSON: {error}", file, getattr(error, "lineno", None)) from None
    if not isinstance(values, dict):
        raise UserError("is not a JSON object", file)
    return values
