"""What of a conversation is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from instructgpt.course.exercise import Check, Exercise, Mistake
from instructgpt.text.chat import Conversation

BOS, USER, ASSISTANT, END, LINE = range(1, 6)


class Layout:
    """A chat format small enough to do by hand: a letter is the token of its code. In most of what follows the
    assistant's turn is opened by a token, and closed by END and, behind that, a line end that no model has to learn."""

    format = SimpleNamespace(default_system=None, system_in="first")

    def __init__(self, header: Sequence[int] = (ASSISTANT,), closing: Sequence[int] = (END, LINE), unlearnt: int = 1):
        self.start, self.header, self.thought = [BOS], list(header), list[int]()
        self.closing, self.unlearnt = closing, unlearnt

    def user_turn(self, content: str, system: str | None) -> list[int]:
        return [USER, *map(ord, system or ""), *map(ord, content), END]

    def answer(self, content: str) -> list[int]:
        return [*map(ord, content), *self.closing]

    def learnt(self, answer: list[int]) -> int:
        return len(answer) - self.unlearnt


def _rendered(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """A whole conversation, its turns made by the function: each token with whether it is learnt."""
    tokenizer: Any = SimpleNamespace(layout=Layout(**given.get("layout", {})))
    ids, is_answer = Conversation(given["messages"], tokenizer).stretch()
    return list(zip(ids, is_answer, strict=True))


def _talk(*turns: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn, **(more if i % 2 else {})}
                         for i, turn in enumerate(turns)]}  # fmt: skip


def _marked(*tokens: tuple[Any, bool]) -> list[tuple[int, bool]]:
    return [(ord(token) if isinstance(token, str) else token, learnt) for token, learnt in tokens]


NO, YES = False, True

EXERCISE = Exercise(
    place=210,
    title="Training on the answer only",
    about="In instruction tuning the model reads the question and learns the answer: what the user says is never a "
    "target, the answer and the token that ends it always are.",
    has=(
        ("self.layout.header: list[int]", "what opens a turn of the assistant"),
        ("self.layout.user_turn(content, system) -> list[int]", "all of a turn of the user"),
        ("self.layout.answer(content) -> list[int]", "what the assistant says and what closes it, behind `header`"),
        ("self.layout.learnt(answer) -> int", "how many of the first ids of an `answer` are learnt"),
    ),
    target="instructgpt.text.chat.Conversation._turn",
    checks=(
        Check(
            "a question and its answer; the token behind END is not learnt",
            _talk("a", "b"),
            _marked((BOS, NO), (USER, NO), ("a", NO), (END, NO), (ASSISTANT, NO), ("b", YES), (END, YES), (LINE, NO)),
            _rendered,
        ),
        Check(
            "an empty answer: its end is learnt",
            _talk("a", ""),
            _marked((BOS, NO), (USER, NO), ("a", NO), (END, NO), (ASSISTANT, NO), (END, YES), (LINE, NO)),
            _rendered,
        ),
        Check("two questions, and an answer to each", _talk("ab", "cde", "f", "g"), look=_rendered),
        Check("an answer that is there to be read only: learn is False", _talk("a", "bc", learn=False), look=_rendered),
        Check("what the user says last", _talk("a", "b", "c"), look=_rendered),
        Check(
            "a format that opens the turn with two tokens, and has its line end learnt",
            {**_talk("a", "b"), "layout": {"header": (ASSISTANT, LINE), "unlearnt": 0}},
            _marked(
                (BOS, NO),
                (USER, NO),
                ("a", NO),
                (END, NO),
                (ASSISTANT, NO),
                (LINE, NO),
                ("b", YES),
                (END, YES),
                (LINE, YES),
            ),
            _rendered,
        ),
        Check(
            "a format that closes the turn with three tokens, of which END is learnt",
            {**_talk("a", "b"), "layout": {"closing": (END, LINE, LINE), "unlearnt": 2}},
            look=_rendered,
        ),
        Check(
            "a system message, borne by the user's turn",
            {"messages": [{"role": "system", "content": "s"}, *_talk("a", "b")["messages"]]},
            _marked(
                (BOS, NO),
                (USER, NO),
                ("s", NO),
                ("a", NO),
                (END, NO),
                (ASSISTANT, NO),
                ("b", YES),
                (END, YES),
                (LINE, NO),
            ),
            _rendered,
        ),
        Check(
            "an answer that is there to be read only, and one that is learnt",
            {"messages": [*_talk("a", "b", learn=False)["messages"], *_talk("c", "d", learn=True)["messages"]]},
            look=_rendered,
        ),
    ),
    mistakes=(
        Mistake(
            "what the user says is learnt, too",
            "return Rendered(ids, [False] * len(ids))",
            "return Rendered(ids, [True] * len(ids))",
        ),
        Mistake(
            "the opening of the assistant's turn is learnt: it is given to the model, not asked of it",
            "[False] * len(header) + [True] * learnt",
            "[True] * (len(header) + learnt)",
        ),
        Mistake(
            "the token that ends the answer is not learnt: such a model never stops",
            "self.layout.learnt(answer) if is_learnt(message) else 0",
            "max(self.layout.learnt(answer) - 1, 0) if is_learnt(message) else 0",
        ),
        Mistake(
            "the whole of the assistant's turn is learnt, what opens it and what comes behind its end included",
            "[False] * len(header) + [True] * learnt + [False] * (len(answer) - learnt)",
            "[is_learnt(message)] * (len(header) + len(answer))",
        ),
        Mistake(
            "the system message is forgotten, which the user's turn bears", '["content"], system)', '["content"], None)'
        ),
        Mistake(
            "the opening of the assistant's turn is taken to be one token",
            "[False] * len(header)",
            "[False]",
        ),
        Mistake(
            "all but the last token is taken to be learnt: `layout.learnt` says how many are",
            "self.layout.learnt(answer) if",
            "len(answer) - 1 if",
        ),
        Mistake(
            "the first token of the answer is not learnt",
            "[True] * learnt +",
            "[False] * (learnt > 0) + [True] * (learnt - 1) +",
        ),
        Mistake(
            "an answer that says nothing of `learn` is not learnt",
            "if is_learnt(message)",
            'if message.get("learn", False)',
        ),
        Mistake(
            "an answer that is there to be read only is left out: it is not learnt, but it is read",
            'self.layout.header, self.layout.answer(message["content"])',
            'self.layout.header, self.layout.answer(message["content"])\n'
            "    if not is_learnt(message):\n        return Rendered([], [])",
        ),
        Mistake(
            "the layout's own list is written to, so the next turn of the assistant begins with this one",
            "return Rendered([*header, *answer], is_answer)",
            "header += answer\n    return Rendered(header, is_answer)",
        ),
        Mistake("what comes behind the end of the answer is learnt", "self.layout.learnt(answer) if", "len(answer) if"),
        Mistake("an answer that is there to be read only is learnt", " if is_learnt(message) else 0", ""),
        Mistake(
            "the mask is one early: it is True where a token is predicted from, not on the token itself",
            "[False] * len(header) + [True] * learnt + [False] * (len(answer) - learnt)",
            "[False] * (len(header) - 1) + [True] * learnt + [False] * (len(answer) - learnt + 1)",
        ),
        Mistake(
            "the opening of the assistant's turn is left out",
            "return Rendered([*header, *answer], is_answer)",
            "return Rendered(answer, is_answer[len(header) :])",
        ),
    ),
    hints=(
        "Two cases: the assistant's message and everybody else's. Which of the two has any True in its mask?",
        "The assistant's turn is `self.layout.header` and then `self.layout.answer(...)`. `self.layout.learnt` "
        "says how "
        "many of the answer's tokens, from its first on, are learnt; `is_learnt` whether any are.",
        "The mask has one entry a token: False for each of the header's, True for the learnt ones, False for the rest. "
        "Return `Rendered(ids, is_answer)`; `self.layout.user_turn` takes the content and `system`.",
    ),
)
