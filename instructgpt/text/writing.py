"""Tokenizers as others read them: the files of a model's folder, and the fields of a GGUF file.

What other engines do with them is theirs: they find control tokens in a text that spells them; here none are found.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from instructgpt.atomic import replacing, write_text
from instructgpt.errors import UserError
from instructgpt.strict_json import write_json
from instructgpt.text import model_proto
from instructgpt.text.byte_bpe import ByteBPE, begins_by_itself
from instructgpt.text.formats import OUR_TEMPLATE, OURS, ChatFormat
from instructgpt.text.sentence_piece import SentencePiece
from instructgpt.text.tokenizer import Tokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def write_folder(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` with the chat template and, of SentencePiece, its own file.

    transformers, vLLM and llama.cpp's converter read these. `reading.read_folder` gives back an equal tokenizer.
    """
    path = Path(folder)
    subwords = tokenizer.subwords
    if isinstance(subwords, SentencePiece):
        with replacing(path / subwords.file_name) as temporary:
            temporary.write_bytes(subwords.model)
        spec = _spec_of(subwords, tokenizer.special.prefixes)
    else:
        spec = json.loads(subwords.model)
    known = {token["content"] for token in spec["added_tokens"]}
    spec["added_tokens"] += [_added(i, name) for name, i in tokenizer.special.added.items() if name not in known]
    if begins_by_itself(spec) != bool(tokenizer.document_start):
        spec["post_processor"] = _post_processor(tokenizer)
    is_unchanged = isinstance(subwords, ByteBPE) and spec == json.loads(subwords.model)
    text = subwords.model.decode() if is_unchanged else json.dumps(spec, ensure_ascii=False)
    write_text(path / "tokenizer.json", text)
    names = {i: name for name, i in (subwords.control | tokenizer.special.added).items()}
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.special.pad}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.special.begins and tokenizer.bos is not None,
        "clean_up_tokenization_spaces": False,
        "legacy": tokenizer.special.prefixes,
        **{f"{role}_token": names[i] for role, i in roles.items() if i is not None and i in names},
        "added_tokens_decoder": {str(token["id"]): {**token, "id": None} for token in spec["added_tokens"]},
    }
    for token in settings["added_tokens_decoder"].values():
        del token["id"]
    if template := chat_template(tokenizer):
        settings["chat_template"] = template
    write_json(path / "tokenizer_config.json", settings)


def chat_template(tokenizer: Tokenizer) -> str:
    """The Jinja template for other engines: the model's own where it brought one; "" where it has no chat format."""
    if tokenizer.template or tokenizer.format is None:
        return tokenizer.template
    return _template_of(tokenizer.format, bool(tokenizer.document_start))


def gguf_fields(tokenizer: Tokenizer, vocab_size: int = 0, where: str | Path | None = None) -> dict[str, Any]:
    """`tokenizer.ggml.*` and the chat template. vocab_size: rows of the embedding; spare ones are named as unused.

    Raises UserError for a tokenizer that GGUF has no form for.
    """
    subwords, special = tokenizer.subwords, tokenizer.special
    if isinstance(subwords, SentencePiece):
        found = _fields_of_sentence_piece(subwords, where)
    elif isinstance(subwords, ByteBPE):
        found = _fields_of_bpe(subwords, where)
    else:
        raise TypeError(f"no fields for {type(subwords)}")
    tokens, types = found["tokens"], found["token_type"]
    names = {i: name for name, i in special.added.items()}
    for i in range(len(tokens), max(vocab_size, tokenizer.vocab_size)):
        tokens.append(names.get(i, f"[PAD{i}]"))
        types.append(model_proto.CONTROL if i in names else model_proto.UNUSED)
        if "scores" in found:
            found["scores"].append(0.0)
    found["add_bos_token"] = bool(tokenizer.document_start)
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, "padding": special.pad}
    found |= {f"{role}_token_id": i for role, i in roles.items() if i is not None}
    if tokenizer.format and tokenizer.end != tokenizer.eos:
        found["eot_token_id"] = tokenizer.end
    fields = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    if template := chat_template(tokenizer):
        fields["tokenizer.chat_template"] = template
    return fields


# ---- subword models


def _spec_of(subwords: SentencePiece, prefixes: bool) -> dict[str, Any]:
    """A SentencePiece model as tokenizer.json."""
    pieces, scores, kinds = model_proto.pieces(subwords.model)
    unknown = kinds.index(model_proto.UNKNOWN) if model_proto.UNKNOWN in kinds else None
    control = {*subwords.control.values()} | (set() if unknown is None else {unknown})
    added = [_added(i, pieces[i]) for i in sorted(control)]
    if model_proto.is_bpe(subwords.model):
        skipped = {token["content"] for token in added}
        model: dict[str, Any] = {
            "type": "BPE", "dropout": None, "unk_token": None if unknown is None else pieces[unknown],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": _merges(pieces, scores, kinds, skipped),
        }  # fmt: skip
    else:
        model = {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": list(zip(pieces, scores))}
    has_prefix = subwords.begins_with_space
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if has_prefix and prefixes:
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    is_first = has_prefix and not prefixes
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None if is_first else {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace if is_first else None,
        "post_processor": None, "decoder": {"type": "Sequence", "decoders": decoders}, "model": model,
    }  # fmt: skip


def _merges(pieces: list[str], scores: list[float], kinds: list[int], skipped: set[str]) -> list[list[str]]:
    """Every way to put a piece together from two others, the pieces of the highest score first."""
    ids = {piece: i for i, piece in enumerate(pieces) if piece not in skipped and kinds[i] != model_proto.BYTE}
    found = []
    for piece, i in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-scores[i], i, ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _added(i: int, content: str) -> dict[str, Any]:
    return {
        "id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if not tokenizer.document_start:
        return None
    bos = next(name for name, i in (tokenizer.subwords.control | tokenizer.special.added).items() if i == tokenizer.bos)
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, *second],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}},
    }  # fmt: skip


def _fields_of_sentence_piece(subwords: SentencePiece, where: str | Path | None) -> dict[str, Any]:
    if not model_proto.is_bpe(subwords.model):
        raise UserError("has a unigram tokenizer, which GGUF has no form for; export it with --format hf", where)
    pieces, scores, kinds = model_proto.pieces(subwords.model)
    control = set(subwords.control.values())
    kinds = [model_proto.CONTROL if i in control else kind for i, kind in enumerate(kinds)]
    found = {"model": "llama", "pre": "default", "tokens": pieces, "scores": scores, "token_type": kinds}
    if model_proto.UNKNOWN in kinds:
        found["unknown_token_id"] = kinds.index(model_proto.UNKNOWN)
    return {**found, "add_space_prefix": subwords.begins_with_space}


def _fields_of_bpe(subwords: ByteBPE, where: str | Path | None) -> dict[str, Any]:
    pieces, merges, pre = subwords.listed()
    if pre is None and subwords.is_byte_level:
        raise UserError(
            "cuts its text into words in a way that GGUF has no name for; export it with --format hf", where
        )
    types = [model_proto.NORMAL] * len(pieces)
    for i in subwords.control.values():
        types[i] = model_proto.USER_DEFINED if subwords.token_bytes[i] else model_proto.CONTROL
    for i, piece in enumerate(pieces):
        if not piece:  # a number that no piece has
            pieces[i], types[i] = f"[PAD{i}]", model_proto.UNUSED
    if not subwords.is_byte_level:  # SentencePiece's spelling: the earlier a merge, the higher its piece's score
        ranks = {"".join(merge.split(" ")): rank for rank, merge in reversed([*enumerate(merges)])}
        types = [model_proto.BYTE if _BYTE.fullmatch(piece) else kind for piece, kind in zip(pieces, types)]
        found = {"model": "llama", "pre": "default", "tokens": pieces, "token_type": types}
        scores = [-float(ranks.get(piece, len(merges))) for piece in pieces]
        return {**found, "scores": scores, "add_space_prefix": subwords.begins_with_space}
    return {"model": "gpt2", "pre": pre, "tokens": pieces, "token_type": types, "merges": merges}


# ---- templates


def _template_of(form: ChatFormat, has_bos: bool) -> str:
    """A format in Jinja's language, for engines that run it."""

    def filled(template: str, content: str) -> str:
        before, _, after = template.partition("{}")
        return " + ".join([*([_quoted(before)] if before else []), content, *([_quoted(after)] if after else [])])

    def said(role: str, content: str) -> str:
        return f"({content}) | trim" if role in form.trimmed else content

    content = "message['content']"
    default = "none" if form.default_system is None else _quoted(form.default_system)
    lines = [
        "{%- if messages[0]['role'] == 'system' -%}",
        "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}",
        "{%- else -%}",
        f"{{%- set system = {default} -%}}{{%- set turns = messages -%}}",
        "{%- endif -%}",
    ]
    if form.begins and has_bos:
        lines.append("{{- bos_token -}}")
    user = filled(form.user, said("user", content))
    if form.system_in == "turn":
        own = filled(form.system, said("system", "system"))
        lines.append(f"{{%- if system is not none -%}}{{{{- {own} -}}}}{{%- endif -%}}")
        asked = f"{{{{- {user} -}}}}"
    else:
        lines += [
            "{%- set ns = namespace(bearer=-1) -%}",
            "{%- for message in turns -%}",
            "{%- if message['role'] == 'user'" + (" and ns.bearer < 0" if form.system_in == "first" else "") + " -%}",
            "{%- set ns.bearer = loop.index0 -%}",
            "{%- endif -%}{%- endfor -%}",
        ]
        bearing = filled(form.user, said("user", f"{filled(form.system, 'system')} + {content}"))
        asked = (
            f"{{%- if system is not none and loop.index0 == ns.bearer -%}}{{{{- {bearing} -}}}}"
            f"{{%- else -%}}{{{{- {user} -}}}}{{%- endif -%}}"
        )
    answer = filled(form.answer, said("assistant", content))
    last = f"{{%- if loop.last -%}}{{{{- {_quoted(form.thought)} -}}}}{{%- endif -%}}" if form.thought else ""
    lines += [
        "{%- for message in turns -%}",
        "{%- if message['role'] == 'assistant' -%}",
        f"{{{{- {_quoted(form.header)} -}}}}{last}{{{{- {answer} -}}}}",
        "{%- else -%}",
        asked,
        "{%- endif -%}{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(form.header + form.thought)} -}}}}{{%- endif -%}}",
    ]
    return (OUR_TEMPLATE if form == OURS else "") + "".join(lines)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
