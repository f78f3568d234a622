"""The small disorder of real typing: a final space, a missing full stop, a line end of Windows, digits of full width.

People do not type as templates do. A share of the training prompts is disturbed by one to three habits, and the split
`test_noise` is `test` so disturbed. A quarter of the pairs and triples of habits occur together in `test_noise` alone.

A habit never changes what is right to answer. What the answer repeats letter by letter (`Example.kept`) stays as it
is; the rest may be typed carelessly, for its spaces, its final mark and the case of its letters decide nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from random import Random

from instructgpt.world.core import Example, Language

SHARE = 0.5
"""Share of the training prompts that are disturbed."""
MOST = 3
"""The most habits at once."""

Way = str | Callable[[str], str]
"""What takes the place of a match: a template as of `re.Match.expand`, or a function of the matched text."""

_CJK = "[\u4e00-\u9fff]"
_HALF, _FULL = ",.?!:;", "，。？！：；"
_NARROWED = str.maketrans(_FULL + "、", _HALF + ",")
_WIDENED = str.maketrans(_HALF, _FULL)
_WIDE_SIGNS = {ord(sign): ord(sign) + 0xFEE0 for sign in "0123456789+-="}


def widened(text: str) -> str:
    """The text with the digits and signs that a Chinese keyboard gives in its mode of full width: １２＋３."""
    return text.translate(_WIDE_SIGNS)


@dataclass(frozen=True)
class Habit:
    """One kind of carelessness."""

    name: str
    site: re.Pattern[str]
    """Where it can strike."""
    ways: tuple[Way, ...]
    everywhere: bool = False
    """At all sites of a text, else at one of them."""
    languages: tuple[Language, ...] = ("en", "zh")

    def strike(self, text: str, way: Way, rng: Random, kept: tuple[str, ...] = ()) -> str:
        """The text with the habit in it, or as it was if there is no site outside of what is kept."""
        spans = [found.span() for part in kept for found in re.finditer(re.escape(part), text)]
        sites = [
            match
            for match in self.site.finditer(text)
            if not any(match.start() < end and start < match.end() for start, end in spans)
        ]
        if sites and not self.everywhere:
            sites = [rng.choice(sites)]
        for match in reversed(sites):
            typed = match.expand(way) if isinstance(way, str) else way(match[0])
            text = text[: match.start()] + typed + text[match.end() :]
        return text


def _habit(name: str, site: str, *ways: Way, everywhere: bool = False, chinese: bool = False) -> Habit:
    return Habit(name, re.compile(site), ways, everywhere, ("zh",) if chinese else ("en", "zh"))


HABITS: tuple[Habit, ...] = (
    _habit("doubled space", r"(?<=\S) (?=\S)", "  ", "  ", "   "),
    _habit("no space after a mark", r"(?<=\w[,.?!:;]) (?=\w)", ""),
    _habit("space before a mark", r"(?<=\w)(?=[,.?!:;](?:\s|\Z)|[，。？！：；])", " "),
    _habit("no spaces around a sign", r"(?<=\d) ([+-]) (?=\d)", r"\1", everywhere=True),
    _habit(
        "no space beside Chinese", rf"(?<={_CJK}) (?=[0-9A-Za-z])|(?<=[0-9A-Za-z]) (?={_CJK})", "",
        everywhere=True, chinese=True,
    ),
    _habit("other line ends", r"\n", "\r\n", "\r", " \n", "\n\n", everywhere=True),
    _habit("no final mark", r"[.?!。？！]\Z", ""),
    _habit("doubled final mark", r"[.?!。？！]\Z", r"\g<0>\g<0>", r"\g<0>\g<0>\g<0>"),
    _habit("lower case at the start", r"\A[A-Z](?![A-Z])", str.lower),
    _habit("lower case", r"[A-Z]", str.lower, everywhere=True),
    _habit("digits of full width", r"[0-9+=-]", widened, everywhere=True, chinese=True),
    _habit(
        "marks of the other width", rf"[{_HALF}{_FULL}、]",
        lambda mark: mark.translate(_NARROWED), lambda mark: mark.translate(_WIDENED),
        everywhere=True, chinese=True,
    ),
    _habit("space before", r"\A", " ", "  ", "\t", "\n", "\u3000"),
    _habit("space after", r"\Z", " ", "  ", "\t", "\u3000"),
    _habit("line end after", r"\Z", "\n", "\r", "\r\n", "\n\n"),
)  # fmt: skip
"""In the order in which they strike: what is outermost comes last."""


def is_held_out(names: Collection[str]) -> bool:
    """Whether these habits never occur together in training; each alone does."""
    return len(names) > 1 and zlib.crc32("+".join(sorted(names)).encode()) % 4 == 0


def sometimes(example: Example, rng: Random, share: float | None = None) -> Example:
    """The example as it is trained on: a share of them, by default SHARE, is carelessly typed."""
    return disturbed(example, rng, trained=True) if rng.random() < (SHARE if share is None else share) else example


def disturbed(example: Example, rng: Random, trained: bool) -> Example:
    """The example as somebody with one to MOST habits would type it, in every turn of theirs.

    `trained` leaves out the combinations that are held out.
    """
    typist = draw_typist(example, rng)
    while trained and is_held_out(typist):
        typist = draw_typist(example, rng)
    messages = []
    for message in example.messages:
        text = message["content"]
        if message["role"] == "user":
            for habit in HABITS:
                if habit.name in typist:
                    text = habit.strike(text, typist[habit.name], rng, example.kept)
        messages.append({**message, "content": text})
    return replace(example, messages=messages)


def draw_typist(example: Example, rng: Random) -> dict[str, Way]:
    """One to MOST habits that change the question, each with its way."""
    asked = example.messages[-1]["content"]
    count = rng.randint(1, MOST)
    typist: dict[str, Way] = {}
    for habit in rng.sample(HABITS, len(HABITS)):
        way = rng.choice(habit.ways)
        if example.language in habit.languages and habit.strike(asked, way, rng, example.kept) != asked:
            typist[habit.name] = way
        if len(typist) == count:
            break
    return typist
