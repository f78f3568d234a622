"""What an answer says, whatever words stand around it: its last number, or the label that it names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from instructgpt.errors import UserError

# ---- numbers

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # ！ to ～, digits, signs and ％ among them
_ALIKE = {0x2212: "-", 0xFE63: "-", 0x2044: "/", 0x066B: ".", 0x066C: ","}  # minus signs, fraction slash, Arabic marks
_CHARACTERS = _FULL_WIDTH | _ALIKE
_GROUP_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
"""A space that no line is broken at, as some languages group digits: 12 345."""
_NUMBER = re.compile(
    r"(?P<sign>(?<![A-Za-z\d)\]])[-+])?[$€£¥]?\s?"  # a minus between two numbers is none of the second's
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d+(?![\w.]))?"
    r"(?:\s?/\s?(?P<below>\d+)(?![\d/.]|,\d))?"
    r"(?:\s?(?P<percent>%))?"
)
_MIXED = re.compile(r"(?<![\d./,])(\d+) (\d+)/(\d+)(?![\d/.])")
"""1 3/4, which is one number."""


class Number(NamedTuple):
    """A number as it stands in a text."""

    value: Fraction
    is_percent: bool = False

    def __str__(self) -> str:
        value = str(self.value) if self.value.denominator == 1 else f"{float(self.value):.10g}"
        return value + "%" * self.is_percent


def last_number(text: str) -> Number | None:
    """The last number in a text, exactly; None when there is none.

    Read are signs, decimals, commas between groups of three digits, powers of ten (1.5e3), fractions (3/4, 1 3/4, ½),
    per cent, currencies before a number, and digits of any script, full-width ones among them.
    """
    text = "".join(map(_plain, text)).translate(_CHARACTERS)
    text = _GROUP_SPACE.sub("", text)
    text = _MIXED.sub(_improper, text)
    *_, last = [None, *_NUMBER.finditer(text)]
    if last is None:
        return None
    digits = last["digits"].replace(",", "")
    value = Fraction(f"0{digits}" if digits.startswith(".") else digits)
    if last["exponent"]:
        # What has more digits than any answer is a misprint; building it would take all memory.
        value *= Fraction(10) ** max(-400, min(400, int(last["exponent"][1:])))
    if last["below"] and text[: last.start("digits")].endswith("/"):  # 3/4/2020 is no fraction
        return Number(Fraction(last["below"]), bool(last["percent"]))
    if last["below"]:
        if not int(last["below"]):
            return Number(Fraction(0))  # nothing is divided by 0: the last number is the 0
        value /= int(last["below"])
    return Number(-value if last["sign"] == "-" else value, bool(last["percent"]))


def _plain(character: str) -> str:
    """½ as a fraction, set off from a number before it; everything else as it is."""
    if unicodedata.category(character) == "No" and "FRACTION" in unicodedata.name(character, ""):
        return " " + unicodedata.normalize("NFKC", character)
    return character


def _improper(match: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in match.groups())
    return f"{whole * below + above}/{below}" if below else match[0]


def same_number(one: Number | None, other: Number | None) -> bool:
    """Whether two numbers are equal. A per cent sign that only one of them has may be a unit that the other leaves out
    (50% and 50) or a hundredth (50% and 0.5)."""
    if one is None or other is None:
        return False
    if one.is_percent == other.is_percent:
        return one.value == other.value
    percent, plain = (one, other) if one.is_percent else (other, one)
    return plain.value in (percent.value, percent.value / 100)


# ---- labels


@dataclass(frozen=True)
class LabelWords:
    """Which words stand for which label."""

    words: Mapping[str, tuple[str, ...]]
    """The words of each label, its own name first."""

    @classmethod
    def parse(cls, given: Sequence[str], references: Iterable[str]) -> LabelWords:
        """From `positive=good,great negative=bad`; a reference that is none of these is a label of its own name.

        Raises UserError for a label without a name and a word that stands for two labels.
        """
        words: dict[str, tuple[str, ...]] = {}
        owner: dict[str, str] = {}
        for entry in given:
            label, _, listed = entry.partition("=")
            label = label.strip()
            if not label:
                raise UserError(f"--labels {entry!r} has no label; write it as label=word,word")
            own = tuple(word for word in (label, *(part.strip() for part in listed.split(","))) if word)
            for word in own:
                if owner.setdefault(word.casefold(), label) != label:
                    raise UserError(f"--labels: {word!r} stands for both {owner[word.casefold()]!r} and {label!r}")
            words[label] = tuple(dict.fromkeys((*words.get(label, ()), *own)))
        for reference in dict.fromkeys(text.strip() for text in references):
            if reference and reference.casefold() not in owner:
                owner[reference.casefold()] = reference
                words[reference] = (reference,)
        return cls(words)

    def __str__(self) -> str:
        return "; ".join(f"{own[0]}: {', '.join(own[1:]) or 'by its name'}" for own in self.words.values())

    def of_reference(self, text: str) -> str | None:
        """The label that a right answer is, or is a word of."""
        folded = text.strip().casefold()
        return next((label for label, own in self.words.items() if folded in [w.casefold() for w in own]), None)

    def of_answer(self, text: str) -> str | None:
        """The label that an answer names first, by any of its words; of two that begin together, the longer word.

        Words of letters count only where no letter or digit goes on: "unhappy" does not say "happy". Scripts that are
        written without spaces have no such borders.
        """
        found = [
            (match.start(), -len(word), label)
            for label, own in self.words.items()
            for word in own
            if (match := re.search(_bordered(word), text, re.IGNORECASE))
        ]
        return min(found)[2] if found else None


def _bordered(word: str) -> str:
    before = r"(?<![^\W_])" if _has_borders(word[0]) else ""
    after = r"(?![^\W_])" if _has_borders(word[-1]) else ""
    return before + re.escape(word) + after


def _has_borders(character: str) -> bool:
    """Letters and digits of scripts that put spaces between words."""
    return character.isalnum() and not unicodedata.name(character, "").startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "THAI")
    )
