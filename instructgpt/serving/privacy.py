"""Personal data and secrets in a text, replaced by what they are: `write to [EMAIL], or call [PHONE]`.

Texts are searched with the wide forms of East Asian typing folded to ASCII, character by character, so that places in
the folded text are places in the text. What is found and how is in `personal_data.py`. What has no form of its own (a
name, the address of a house) is not found: this makes logs harmless, and proves nothing about them.
"""

from __future__ import annotations

import re

from instructgpt.serving.personal_data import KINDS, TAKEN

# The wide forms of ASCII, the spaces and dashes of typography: one character for one, so that places stay.
_FOLD = {0xFF01 + place: 0x21 + place for place in range(94)}
_FOLD |= dict.fromkeys((0x3000, 0xA0, 0x2002, 0x2003, 0x2009, 0x202F), " ")
_FOLD |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212), "-")
_LABELS = re.compile(r"\[(?:EMAIL|PHONE|CARD|IBAN|ID|KEY|IP)\]")


def mask(text: str) -> str:
    """`text` with every e-mail address, telephone, card, account and identity number, key and IP address replaced.

    Masking again changes nothing. Linear in the length of the text.
    """
    return _replaced(text, [(start, end, f"[{name}]") for start, end, name in sorted(found(text))])


def found(text: str) -> list[tuple[int, int, str]]:
    """What `mask` replaces: begin, end and kind of each place, in no order; places do not overlap."""
    folded = _LABELS.sub(lambda label: TAKEN * len(label[0]), text.translate(_FOLD))
    places = []
    for kind in KINDS:
        spans = list(kind.find(folded))
        places += [(start, end, kind.name) for start, end in spans]
        folded = _replaced(folded, [(start, end, TAKEN * (end - start)) for start, end in spans])
    return places


def _replaced(text: str, places: list[tuple[int, int, str]]) -> str:
    """`text` with other text in places that are in order and do not overlap."""
    parts, done = [], 0
    for start, end, instead in places:
        parts += (text[done:start], instead)
        done = end
    return "".join([*parts, text[done:]])


_LOOK_BACK = 256
"""Characters given out that a holder remembers, for what they say about the next."""


class Holder:
    """Masks a text that comes in pieces: what is given out, joined, is the mask of the whole.

    What may be the beginning of something is kept back: the last word, and with it the words before that may belong to
    one number. A key in a block of lines is kept back until it ends.
    """

    def __init__(self) -> None:
        self._text = ""
        self._given = 0  # characters of `_text` that were given out, masked; they stay for what they say about the next

    def feed(self, piece: str) -> str:
        """What has become certain by this piece; often empty."""
        self._text += piece
        safe = _certain(self._text.translate(_FOLD))
        for start, end, _ in found(self._text):
            if start < safe < end:
                safe = start
        given = self._give(safe)
        forgotten = max(self._given - _LOOK_BACK, 0)
        self._text, self._given = self._text[forgotten:], self._given - forgotten
        return given

    def finish(self) -> str:
        """What is left when no more comes."""
        return self._give(len(self._text))

    def _give(self, until: int) -> str:
        parts, done = [], self._given
        for start, end, name in sorted(found(self._text)):
            if done <= start and end <= until:
                parts += (self._text[done:start], f"[{name}]")
                done = end
        parts.append(self._text[done:until])
        self._given = max(until, done)
        return "".join(parts)


# A word within one thing of several: with digits, @ or brackets in it, the word before a token, a group of letters.
_BEGINNING = re.compile(r"\S*[\d@(\[{<:=+]\S*|bearer|basic", re.I)
_BETWEEN = re.compile(r"[A-Z]{1,4}", re.I)
_BLOCK_END = re.compile(r"-----END [^-\n]{0,48}-----")
_WORDS = 400  # characters in which the last words are looked for


def _certain(folded: str) -> int:
    """How many characters of a folded text no further piece can change."""
    block = folded.rfind("-----BEGIN")
    if block >= 0 and not _BLOCK_END.search(folded, block):
        return block
    offset = max(len(folded) - _WORDS, 0)
    words = list(re.finditer(r"\S+", folded[offset:]))
    if not words:
        return len(folded)
    kept = 1
    for word, after in zip(words[-2::-1], words[:0:-1]):
        if not (_BEGINNING.fullmatch(word[0]) or _BETWEEN.fullmatch(word[0]) or after[0][0] in "([{<"):
            break
        kept += 1
    while kept > 1 and not any(map(_BEGINNING.fullmatch, (words[-kept][0], words[1 - kept][0]))):
        kept -= 1
    return offset + words[-kept].start() if kept < len(words) or not offset else _word_start(folded, offset)


def _word_start(text: str, place: int) -> int:
    while place and not text[place - 1].isspace():
        place -= 1
    return place
