"""Models' tokenizers in small, as `transformers` saves them, with the chat templates of the real ones.

The templates are those of SmolLM2, Qwen2.5, Qwen3, Llama 2, 3 and 3.1 and Mistral 7B Instruct v0.2 and v0.3, without
what they do for tools, documents and thoughts that a conversation brings along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from instructgpt import world

SMOLLM2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN25 = r"""
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and loop.last %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}
            {{- content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = r"""
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
_MISTRAL = r"""
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.PLACE and system_message is defined %}
            {{- "OPEN" + system_message + "\n\n" + message["content"] + "CLOSE" }}
        {%- else %}
            {{- "OPEN" + message["content"] + "CLOSE" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]TRIM + eos_token}}
    {%- endif %}
{%- endfor %}"""


def _mistral(place: str, opening: str, closing: str, trim: str) -> str:
    named = {"PLACE": place, "OPEN": opening, "CLOSE": closing, "TRIM": trim}
    text = _MISTRAL
    for name, value in named.items():
        text = text.replace(name, value)
    return text


MISTRAL1 = _mistral("first", " [INST] ", " [/INST]", "")
MISTRAL3 = _mistral("last", "[INST] ", "[/INST]", "|trim")

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts() -> list[str]:
    return [world.document(i) for i in range(60)] + [
        "你好，世界。猫坐在垫子上。",
        "été\n\n  def f(x):\n\treturn x\n",
    ] * 5


def _split(digits: str):
    pattern = Regex(_WORDS.replace("DIGITS", digits))
    return [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]


@dataclass(frozen=True)
class Family:
    """How a family's tokenizer is made, and what it is to be read as."""

    format: str
    template: str
    control: tuple[str, ...]
    eos: str
    bos: str | None = None
    pre: str = "gpt-2"
    """As GGUF files name it; `sentencepiece` for that."""
    begins: bool = False
    prompt: dict = field(default_factory=dict)
    """What the template is told besides, when a prompt is asked for."""


_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "smollm2": Family("smollm2", SMOLLM2, _IM, "<|im_end|>", "<|im_start|>", "smollm"),
    "qwen2.5": Family("qwen2.5", QWEN25, _IM, "<|im_end|>", None, "qwen2"),
    "qwen3": Family(
        "qwen3", QWEN3, (*_IM, "<think>", "</think>"), "<|im_end|>", None, "qwen2", prompt={"enable_thinking": False}
    ),
    "llama2": Family("llama2", LLAMA2, ("<s>", "</s>"), "</s>", "<s>", "sentencepiece", True),
    "llama3": Family("llama3", LLAMA3, _HEADERS, "<|eot_id|>", "<|begin_of_text|>", "llama-bpe", True),
    "llama3.1": Family(
        "llama3.1", LLAMA31, (*_HEADERS, "<|eom_id|>"), "<|eot_id|>", "<|begin_of_text|>", "llama-bpe", True
    ),
    "mistral-v1": Family("mistral-v1", MISTRAL1, ("<s>", "</s>"), "</s>", "<s>", "sentencepiece", True),
    "mistral-v3": Family(
        "mistral-v3", MISTRAL3, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", "sentencepiece", True
    ),
}


@lru_cache
def _byte_level(pre: str) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        {
            "gpt-2": [pre_tokenizers.ByteLevel(False)],
            "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
            "llama-bpe": _split(r"\p{N}{1,3}"),
            "qwen2": _split(r"\p{N}"),
        }[pre]
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


@lru_cache
def sentence_piece(control: tuple[str, ...] = (), **options) -> bytes:
    """A model as Llama 2 has it: a space before each text, bytes for what has no piece."""
    written = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts() for line in text.split("\n") if line), model_writer=written,
        model_type="bpe", vocab_size=600, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, control_symbols=list(control), minloglevel=3, num_threads=1,
        **options,
    )  # fmt: skip
    return written.getvalue()


def metaspace(model: bytes, always: bool) -> Tokenizer:
    """The same model for the package `tokenizers`, as `transformers` converts it."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    special = {i for i in vocab.values() if processor.IsControl(i) or processor.IsUnknown(i)}
    scores = {piece: processor.GetScore(i) for i, piece in enumerate(pieces) if i not in special}
    merges = generate_merges(vocab, scores, skip_tokens=[pieces[i] for i in special])
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if always:  # what transformers calls legacy
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (pieces[i] for i in sorted(special))]
    )
    return tokenizer


def oracle(name: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of a family, with its template."""
    family = FAMILIES[name]
    if family.pre == "sentencepiece":
        marks = tuple(piece for piece in family.control if piece not in ("<s>", "</s>"))
        tokenizer = metaspace(sentence_piece(marks), always=family.format == "llama2")
    else:
        tokenizer = Tokenizer.from_str(_byte_level(family.pre))
        tokenizer.add_special_tokens(
            [AddedToken(piece, special=True) for piece in family.control if "think" not in piece]
        )
        tokenizer.add_tokens([AddedToken(piece, special=False) for piece in family.control if "think" in piece])
    if family.begins:
        bos = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos, clean_up_tokenization_spaces=False
    )
    made.chat_template = family.template
    return made


def saved(name: str, folder: Path) -> PreTrainedTokenizerFast:
    """The same, saved into a folder as models on the hub are."""
    made = oracle(name)
    made.save_pretrained(folder)
    return made
