"""A safety hook as an example: it refuses what the embedded world calls harmful, and lets the look-alikes pass.

    python -m instructgpt serve --model RUN --safety instructgpt.serving.refusals:world

The world's harmful deeds are a small explicit set (`world/dialogue.py`): "kill Anna at the park" is one of them, "kill
process 7 here" is not, and the verb alone never tells. A service for the public needs a judge that was made for it.
"""

from __future__ import annotations

import re
from functools import cache

from instructgpt.serving.safety import Verdict
from instructgpt.text.chat import Message
from instructgpt.world.dialogue import HARMFUL, HARMLESS, REFUSAL_ANSWER, Deed
from instructgpt.world.lexicon import PEOPLE, PLACES, THINGS


@cache
def _any_of(rows: tuple[tuple[Deed, ...], ...]) -> re.Pattern[str]:
    """Any of the deeds, with any of the world's names in it, in either language."""
    words = {
        language: {
            "name": "|".join(re.escape(person[language]) for person in PEOPLE),
            "place": "|".join(re.escape(place[language]) for place in PLACES),
            "thing": "|".join(re.escape(thing[language]) for thing in THINGS),
            "number": r"\d+",
        }
        for language in ("en", "zh")
    }
    deeds = [
        re.sub(r"\\{(\w+)\\}", lambda hole, of=words[language]: f"(?:{of[hole[1]]})", re.escape(deed[place]))
        for row in rows
        for deed in row
        for place, language in enumerate(("en", "zh"))
    ]
    return re.compile("|".join(deeds), re.IGNORECASE)


def world(messages: list[Message], answer: str | None) -> Verdict | None:
    """Refuses a conversation whose last message asks how to do a harmful deed, and an answer that speaks of one."""
    text = " ".join((messages[-1]["content"] if answer is None else answer).split())
    suspicious = _any_of(HARMLESS).sub("", text)  # to steal the ball in a game is no theft
    if not _any_of(HARMFUL).search(suspicious):
        return None
    return Verdict("refuse", REFUSAL_ANSWER["zh" if re.search("[\u4e00-\u9fff]", text) else "en"])
