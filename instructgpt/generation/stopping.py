"""Tokens to text as they come, up to a stop string that is never shown, wherever tokens divide it."""

from __future__ import annotations

from instructgpt.text.tokenizer import Tokenizer


class StoppingText:
    """The text of a growing answer. It ends at the first stop string to be complete; that one and what follows are not
    part of it.

    Text that may turn out to begin a stop string is held back until it is known, so what was handed out stays true.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), raw: bool = False):
        """raw: the text goes on from another and is no answer in the chat format."""
        self._decoder = tokenizer.stream("rest" if raw else "answer")
        self._stop = stop
        self._held = ""
        self.stopped = False
        """True once a stop string is complete; nothing may be pushed after."""

    def push(self, token: int) -> str:
        """The text that this token makes certain, "" when there is none."""
        return self._release(self._decoder.push(token))

    def close(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        # By where it ends, for that is when reading left to right would notice; of two that end together the longer.
        complete = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if complete:
            self.stopped = True
            certain = min(complete)[1]
        else:
            certain = len(self._held) - self._possible_start()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _possible_start(self) -> int:
        """Length of the longest end of the held text with which a stop string may begin."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
