"""Conversations, in all the ways that files write them, as turns that alternate.

| a list of | as in |
|---|---|
| messages: `role` and `content`, `from` and `value` | OpenAI, ShareGPT |
| exchanges: `{"human": …, "assistant": …}`, `{"input": …, "output": …}` | Firefly, Capybara |
| pairs: `["question", "answer"]` | a `history` |
| texts that take turns, the user first | UltraChat |

and transcripts: one text, in which `Human:` and `Assistant:` begin the turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from instructgpt.data.account import Account, Unusable, kind_of
from instructgpt.data.fields import Fields, is_filled, text, truth
from instructgpt.text.chat import Message

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "llm"), "assistant"),
}
_TOOL_ROLES = frozenset(("function_call", "function_response", "function", "observation", "tool", "tool_call"))
_TOOL_CALLS = ("tool_calls", "function_call")
_ROLE_FIELDS = ("role", "from", "speaker", "author")
_CONTENT_FIELDS = ("content", "value", "text", "parts", "message", "utterance")
# What the two sides of an exchange are called.
_SIDES = {
    "system": ("system",),
    "user": ("user", "human", "prompter", "instruction", "prompt", "question", "query", "input", "q"),
    "assistant": ("assistant", "gpt", "bot", "model", "output", "response", "completion", "answer", "a"),
}
# Marks on a turn: whether it is to be learnt, and the other way round.
_LEARNT = ("weight", "train", "training", "trainable", "train_on_turn", "learn", "loss", "loss_weight", "loss_mask")
_NOT_LEARNT = ("masked", "ignore", "no_loss", "no_train", "context_only")
# A transcript begins with the user; these separate its turns (HH-RLHF; Guanaco).
_TRANSCRIPTS = (re.compile(r"\n\n(Human|Assistant):"), re.compile(r"\s*###\s?(Human|Assistant):"))
_OPEN_END = re.compile(r"(?:\n\n|\s*###\s?)Assistant:\s*\Z")  # of a prompt: the assistant is to speak
_SPEAKER_INSIDE = re.compile(r"\b(?:Human|Assistant):")


def turn(role: str, content: str, learn: bool = True) -> Message:
    return {"role": role, "content": content} if learn else {"role": role, "content": content, "learn": False}


def field_turns(fields: Fields, name: str, account: Account, whole: bool = True) -> list[Message]:
    """The conversation in a field; see the module's head, and `joined` for `whole` and for what is refused."""
    value = parsed(fields.take(name))
    if whole and is_open_transcript(value):
        return open_transcript_turns(value, account)
    if is_transcript(value):
        return transcript_turns(value, account)
    if isinstance(value, dict):
        inner = fields.inner(name, value)
        within = inner.first(("messages", "conversations", "conversation", "turns"))
        if within is not None and not isinstance(inner.peek(within), str):
            return field_turns(inner, within, account)
        if value and all(isinstance(item, dict) for item in value.values()):  # MOSS: {"turn_1": {…}, …}
            return joined([said for key, item in value.items() for said in _of_object(inner.inner(key, item))], account)
        return joined(_of_object(inner), account)
    if not isinstance(value, list):
        raise Unusable(f"{kind_of(value)} where a list of messages should be")
    if value and all(isinstance(item, str) for item in value):
        only_user = name.casefold() == "turns"  # MT-bench: questions, each on the answer to the one before
        roles = ("user", "user" if only_user else "assistant")
        return joined([turn(roles[i % 2], item) for i, item in enumerate(value)], account, one_each=only_user)
    return joined([said for item in value for said in _of_item(fields, name, item)], account, whole=whole)


def looks_like_turns(value: Any) -> bool:
    """Whether this is a list of messages or of exchanges, whatever its field is called."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    items = [Fields(item) for item in value]
    if all(item.first(_ROLE_FIELDS) and item.first((*_CONTENT_FIELDS, *_TOOL_CALLS)) for item in items):
        return True
    return all(item.first(_SIDES["user"][:3]) and item.first(_SIDES["assistant"][:4]) for item in items)


def is_bare_message(value: Any) -> bool:
    """Whether this is a message and nothing else: part of a conversation that is the file, or a line of it."""
    if not looks_like_turns([value]):
        return False
    fields = Fields(value)
    names = (*_ROLE_FIELDS, *_CONTENT_FIELDS, *_TOOL_CALLS, *_LEARNT, *_NOT_LEARNT, "name")
    return fields.first(_ROLE_FIELDS) is not None and len(fields.present(names)) == len(fields.values)


def parsed(value: Any) -> Any:
    """A conversation that a table holds as JSON text, as the list that it is; anything else as it is."""
    found = from_json(value)
    return found if found is not value and looks_like_turns(found) else value


def from_json(value: Any) -> Any:
    """The list or the object that a text is in JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, (list, dict)) else value
    return value


def _of_item(fields: Fields, name: str, item: Any) -> list[Message]:
    if isinstance(item, dict):
        return _of_object(fields.inner(name, item))
    if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
        return [turn("user", item[0]), turn("assistant", item[1])]
    raise Unusable(f"{kind_of(item)} where a message should be")


def _of_object(message: Fields) -> list[Message]:
    """A message, or an exchange in which the sides are called by their names."""
    calls_tools = any(is_filled(message.peek(field)) for field in message.present(_TOOL_CALLS))
    if (name := message.first(_ROLE_FIELDS)) is None:
        sides = [(role, field) for role, names in _SIDES.items() if (field := message.first(names)) is not None]
        if sides and not calls_tools:
            return [turn(role, text(message.take(field), field), _learn(message, role)) for role, field in sides]
    role = message.take(name) if name else None
    folded = role.strip().casefold() if isinstance(role, str) else ""
    if folded in _TOOL_ROLES or calls_tools:
        raise Unusable("tool calls")
    if folded not in _ROLES:
        raise Unusable("unknown role of a message", f"{str(role)[:40]!r}; known are {', '.join(_ROLES)}")
    return [turn(_ROLES[folded], message_text(message), _learn(message, _ROLES[folded]))]


def _learn(message: Fields, role: str) -> bool:
    """Whether a turn is to be learnt, by its marks. One that is neither yes nor no, such as 0.5, stays unused."""
    wanted = True
    for names, sense in ((_LEARNT, True), (_NOT_LEARNT, False)):
        for name in message.present(names):
            said = truth(message.peek(name))
            if said is None or (role != "assistant" and (said is sense)):
                continue  # that a user's turn be learnt: it never is
            message.take(name)
            wanted = wanted and said is sense
    return wanted or role != "assistant"


def message_text(message: Fields) -> str:
    """A message's content: text, or a list of parts that are all text."""
    field = message.first(_CONTENT_FIELDS)
    if field is None:
        raise Unusable("a message without content")
    content = message.take(field)
    if not isinstance(content, list):
        return text(content, field)
    return "".join([_part_text(part) for part in content])


def _part_text(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text", part.get("value"))
    if not isinstance(part, str):
        raise Unusable("content that is not text")
    return part


def joined(turns: Iterable[Message], account: Account, one_each: bool = False, whole: bool = True) -> list[Message]:
    """Turns checked and made to alternate, the system's first; those of one role in a row are joined.

    one_each: the first alone of those in a row is taken instead.
    whole: the user begins; else they may go on from other turns, and the assistant may begin.
    Raises Unusable for empty turns, a system turn that is not first, a first turn of the assistant, and turns in a row
    of which some are to be learnt and some are not.
    """
    result: list[Message] = []
    in_a_row = False
    for one in turns:
        role, content = one["role"], one["content"]
        if not content.strip():
            if role == "system":
                continue
            raise Unusable("empty answer" if role == "assistant" else "empty prompt")
        if result and result[-1]["role"] == role:
            in_a_row = True
            if one_each:
                continue
            learn = one.get("learn", True)
            if learn != result[-1].get("learn", True):
                raise Unusable("answers in a row of which only some are to be learnt")
            result[-1] = turn(role, f"{result[-1]['content']}\n\n{content}", learn)
        elif role == "system" and result:
            raise Unusable("a system turn that is not first")
        elif role == "assistant" and whole and (not result or result[-1]["role"] == "system"):
            raise Unusable("begins with the assistant")
        else:
            result.append(one)
    if in_a_row:
        account.note(
            "questions on answers that are not there, left out" if one_each else "turns of one role in a row, joined"
        )
    return result


# ---- transcripts


def is_transcript(value: Any) -> bool:
    """Whether this is a conversation in one text: `\\n\\nHuman: … \\n\\nAssistant: …`, or with `### Human:` so."""
    return isinstance(value, str) and any(separator.match(value) for separator in _TRANSCRIPTS)


def transcript_turns(transcript: str, account: Account) -> list[Message]:
    """The turns of a transcript, as those of HH-RLHF (Bai et al. 2022) and of Guanaco.

    Raises Unusable where a speaker's label stands inside a turn: who says what is then a guess.
    """
    separator = next(separator for separator in _TRANSCRIPTS if separator.match(transcript))
    _, *parts = separator.split(transcript)
    turns = [
        turn("user" if speaker == "Human" else "assistant", said.strip())
        for speaker, said in zip(parts[::2], parts[1::2])
    ]
    if any(_SPEAKER_INSIDE.search(one["content"]) for one in turns):
        raise Unusable("'Human:' or 'Assistant:' inside a turn")
    return joined(turns, account)


def is_open_transcript(value: Any) -> bool:
    """Whether this is a prompt written as a transcript: it ends where the assistant is to speak, or with the user."""
    return isinstance(value, str) and is_transcript(_with_start(value)) and _OPEN_END.search(value) is not None


def open_transcript_turns(transcript: str, account: Account) -> list[Message]:
    """The turns of a transcript that ends where the assistant is to speak."""
    return transcript_turns(_OPEN_END.sub("", _with_start(transcript)), account)


def _with_start(transcript: str) -> str:
    """Some sets strip their transcripts, and the first turn's empty lines with it."""
    return f"\n\n{transcript.lstrip()}" if transcript.lstrip().startswith(("Human:", "Assistant:")) else transcript
