"""Chat formats: how the families of models write a conversation, a record each.

A record reads like the text that a model's own template gives, with the names of control tokens in it. Those names are
written here and nowhere else: they become ids once, when a tokenizer takes the format (`Layout`), and what is said is
encoded as text around them. So nothing that a user writes can close a turn or open another one. No template that comes
with a model is executed.

What stands in the text beside a content, such as the "user\\n" of ChatML, is encoded together with it, as the models'
own templates do. An answer is a text of its own, for that is how it is generated: the prompt ends before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from instructgpt.errors import UserError, suggestion


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written; `{}` is where what is said stands."""

    name: str
    control: tuple[str, ...]
    """The control tokens in the texts below, as the tokenizer names them."""
    user: str
    """A turn of the user."""
    header: str
    """What opens a turn of the assistant, and ends a prompt: the model goes on from there."""
    answer: str
    """What the assistant then says, and what closes it. Trained on: up to its first control token, and with it."""
    system: str
    """A system message: a turn of its own, or what of it stands in a user's turn, before what the user says."""
    system_in: Literal["turn", "first", "last"] = "turn"
    """In a turn of its own, or in the first or the last turn of the user."""
    ends: tuple[str, ...] = ()
    """Control tokens that end an answer, besides the one that closes it and the tokenizer's `eos`."""
    begins: bool = True
    """Whether a conversation begins as a document does: with `bos`, where the model has one."""
    default_system: str | None = None
    """The system message of a conversation that has none."""
    trimmed: tuple[str, ...] = ()
    """Roles whose contents lose the white space around them."""
    thought: str = ""
    """What stands between the header and the last answer of a conversation, and ends a prompt: an empty thought."""


class Frame(NamedTuple):
    """What stands around a content, in the ids of one tokenizer."""

    opening: list[int]
    """Up to the last control token before the content."""
    before: str
    """Text between that one and the content; encoded together with it."""
    after: str
    """Text from the content up to the next control token; encoded together with it."""
    closing: list[int]
    """From that control token on."""
    behind: bool
    """Whether the text stands behind a control token."""


class Layout:
    """A format in the ids of one tokenizer."""

    def __init__(
        self,
        format: ChatFormat,
        control: Mapping[str, int],
        start: list[int],
        encode: Callable[[str], list[int]],
        encode_behind: Callable[[str], list[int]],
    ):
        """control: ids by the names of control tokens. start: what begins a document. encode: a text within others;
        encode_behind: one behind a control token.

        Raises UserError when a control token of the format is missing.
        """
        if missing := [name for name in format.control if name not in control]:
            raise UserError(
                f"the chat format {format.name} needs the control token(s) {', '.join(missing)}, which this tokenizer "
                "lacks; name another with --chat-format"
            )
        self.format, self.encode, self._encode_behind = format, encode, encode_behind
        self._control = {name: control[name] for name in format.control}
        self._names = re.compile(f"({'|'.join(map(re.escape, format.control))})")
        self.start: list[int] = list(start) if format.begins else []
        """What begins a conversation."""
        self.header: list[int] = self._ids(format.header)
        """What opens a turn of the assistant."""
        self.thought: list[int] = self._ids(format.thought)
        """What follows it before the last answer."""
        self._user, self._system = self._frame(format.user), self._frame(format.system)
        spoken_to = (format.header or format.user).rpartition("}")[2]
        self._answer = self._frame(format.answer, behind=self._names.split(spoken_to)[-1] == "")
        self.end: int = self._answer.closing[0]
        """What closes an answer."""
        self.ends = frozenset((self.end, *(control[name] for name in format.ends if name in control)))
        """What ends an answer that a model writes."""

    @property
    def answer_has_space(self) -> bool:
        """Whether the format, or the model behind a control token, puts a space before what the assistant says."""
        ids = self._encode_behind("a") if self._answer.behind else self.encode("a")
        return self._answer.before == " " or ids != self.encode("a")

    @property
    def meaning(self) -> list[Any]:
        """All that tokens depend on, as JSON has it."""
        form = self.format
        said = [form.system_in, form.default_system, sorted(form.trimmed)]
        return [self.start, self.header, self.thought, self._user, self._system, self._answer, said]

    def _ids(self, text: str) -> list[int]:
        """A text of the format: its control tokens as ids, what is between them encoded."""
        ids: list[int] = []
        for part in filter(None, self._names.split(text)):
            ids += [self._control[part]] if part in self._control else self._encode_behind(part)
        return ids

    def _frame(self, template: str, behind: bool = True) -> Frame:
        """behind: whether a control token stands before the template."""
        left, _, right = template.partition("{}")
        *opening, before = self._names.split(left)
        after, *closing = self._names.split(right)
        behind = behind or bool(opening)
        return Frame(self._ids("".join(opening)), before, after, self._ids("".join(closing)), behind)

    def _fill(self, frame: Frame, role: str, content: str) -> list[int]:
        encode = self._encode_behind if frame.behind else self.encode
        return [*frame.opening, *encode(frame.before + self.said(role, content) + frame.after), *frame.closing]

    def said(self, role: str, content: str) -> str:
        """A content as the format has it."""
        return content.strip() if role in self.format.trimmed else content

    def user_turn(self, content: str, system: str | None = None) -> list[int]:
        """A turn of the user, which may bear the system message."""
        borne = "" if system is None else self.format.system.replace("{}", system, 1)
        return self._fill(self._user, "user", borne + content)

    def system_turn(self, content: str) -> list[int]:
        """The system message in a turn of its own."""
        return self._fill(self._system, "system", content)

    def answer(self, content: str) -> list[int]:
        """What the assistant says and what closes it, behind `header`. Not all of it is learnt, see `learnt`."""
        return self._fill(self._answer, "assistant", content)

    def learnt(self, answer: list[int]) -> int:
        """How many of the first ids of an `answer` are trained on: all but what follows `end`."""
        return len(answer) - len(self._answer.closing) + 1

    def around(self, role: str) -> tuple[list[int], list[int]]:
        """What stands before and after a content that is encoded apart from it."""
        frame = {"user": self._user, "system": self._system, "assistant": self._answer}[role]
        header = self.header if role == "assistant" else []
        opening = [*header, *frame.opening, *self.encode(frame.before)]
        return opening, [*self.encode(frame.after), *frame.closing]


OURS = ChatFormat(
    name="instructgpt",
    control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    system="<|system|>{}<|end|>",
    user="<|user|>{}<|end|>",
    header="<|assistant|>",
    answer="{}<|end|>",
)
CHATML = ChatFormat(
    name="chatml",
    control=("<|im_start|>", "<|im_end|>"),
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    header="<|im_start|>assistant\n",
    answer="{}<|im_end|>\n",
    ends=("<|endoftext|>",),
    begins=False,
)
SMOLLM2 = replace(
    CHATML,
    name="smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
QWEN2 = replace(CHATML, name="qwen2", default_system="You are a helpful assistant.")
QWEN25 = replace(
    CHATML,
    name="qwen2.5",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)
QWEN3 = replace(
    CHATML,
    name="qwen3",
    control=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    thought="<think>\n\n</think>\n\n",
)
"""Qwen3 that does not think aloud, as its template with `enable_thinking=False`; where it is to think, `chatml`."""
LLAMA2 = ChatFormat(
    name="llama2",
    control=("<s>", "</s>"),
    system="<<SYS>>\n{}\n<</SYS>>\n\n",
    system_in="first",
    user="<s>[INST] {} [/INST]",
    header="",
    answer=" {} </s>",
    begins=False,
    trimmed=("user", "assistant"),
)
LLAMA3 = ChatFormat(
    name="llama3",
    control=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{}<|eot_id|>",
    ends=("<|end_of_text|>", "<|eom_id|>"),
    trimmed=("system", "user", "assistant"),
)
LLAMA31 = replace(
    LLAMA3,
    name="llama3.1",
    system="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{}<|eot_id|>",
    default_system="",
)
"""Llama 3.1 to 3.3. Their templates name a date; this one stays, and the template of 3.2 would say today's."""
MISTRAL1 = ChatFormat(
    name="mistral-v1",
    control=("</s>",),
    system="{}\n\n",
    system_in="first",
    user=" [INST] {} [/INST]",
    header="",
    answer=" {}</s>",
)
"""Mistral 7B Instruct v0.1 and v0.2."""
MISTRAL3 = ChatFormat(
    name="mistral-v3",
    control=("[INST]", "[/INST]", "</s>"),
    system="{}\n\n",
    system_in="last",
    user="[INST] {}[/INST]",
    header="",
    answer=" {}</s>",
    trimmed=("assistant",),
)
"""Mistral 7B Instruct v0.3. Where an answer follows the last question, its template drops the system message; this one
keeps it there, as Mistral's own code does."""

FORMATS = {
    form.name: form
    for form in (
        OURS, CHATML, SMOLLM2, QWEN2, QWEN25, QWEN3, LLAMA2, LLAMA3, LLAMA31, MISTRAL1, MISTRAL3,
    )
}  # fmt: skip
"""By the names that --chat-format takes.

What a model's own template does beyond these is not done, see `left_out`: tools and their calls, documents, thoughts
that a conversation brings along, pictures.
"""
_BEYOND = {
    "tools": r"\b(?:tools|tool_calls|builtin_tools)\b", "documents": r"\bdocuments\b",
    "thoughts": r"\b(?:reasoning_content|enable_thinking)\b", "pictures": r"\b(?:image|image_url|video)\b",
}  # fmt: skip

_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\n|\\n)((?:[^'\"{}\\]|\\.)*?)<\|im_end\|>", re.DOTALL)
OUR_TEMPLATE = "{#- instructgpt -#}"
"""How a template that this project wrote for its own format begins."""


def format_named(name: str) -> ChatFormat:
    """The format of this name. UserError for an unknown one."""
    if name not in FORMATS:
        raise UserError(f"unknown chat format {name!r}{suggestion(name, FORMATS)}")
    return FORMATS[name]


def find_format(control: Collection[str], template: str = "") -> ChatFormat | None:
    """The format of a model, by the names of its control tokens and, where it brings one, by the look of its template,
    which is never run; None where it has none or one that is not known."""
    has = set(control).issuperset
    if (not template and has(OURS.control)) or template.startswith(OUR_TEMPLATE):
        return OURS
    if has(LLAMA3.control) and (not template or "<|start_header_id|>" in template):
        is_later = "Cutting Knowledge Date" in template if template else "<|eom_id|>" in control
        return LLAMA31 if is_later else LLAMA3
    if has(CHATML.control) and (not template or ("<|im_start|>" in template and "<|im_sep|>" not in template)):
        if "enable_thinking" in template and has(QWEN3.control):
            return QWEN3
        return _chatml(template)
    if has(MISTRAL3.control) and "[SYSTEM_PROMPT]" not in template and (not template or "[INST]" in template):
        return MISTRAL3
    if "[INST]" in template and "[SYSTEM_PROMPT]" not in template and has(LLAMA2.control):
        return LLAMA2 if "<<SYS>>" in template else MISTRAL1
    return None


def left_out(template: str) -> list[str]:
    """What a model's own template does that no format here does: tools, documents, thoughts, pictures."""
    return [what for what, mark in _BEYOND.items() if re.search(mark, template)]


def _chatml(template: str) -> ChatFormat:
    """ChatML with the system message that a template has for conversations without one."""
    found = _DEFAULT_SYSTEM.search(template)
    system = re.sub(r"\\(.)", lambda each: "\n" if each[1] == "n" else each[1], found[1]) if found else None
    known = next((form for form in (SMOLLM2, QWEN2, QWEN25) if found and form.default_system == system), CHATML)
    return replace(known, default_system=system, begins="bos_token" in template)
