"""What is asked of the engine, and what it answers: records, and no work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from instructgpt.generation.sampling import SamplingConfig
from instructgpt.settings import NonNegativeInt, PositiveInt, Settings

Finish = Literal["end", "stop", "length", "context"]
"""Why an answer ended: the model closed it; a stop string came; max_new_tokens came; the context is full."""


class Matcher(Protocol):
    """One answer on its way through a constraint."""

    @property
    def is_complete(self) -> bool:
        """What was accepted so far is a whole answer, to which nothing need be added."""
        ...

    def allow(self, may_follow: Tensor) -> None:
        """Writes into `may_follow` (V,), bool on the CPU: True where the token may come next. A token that closes the
        answer may where it is complete, and nothing else where it can only end."""
        ...

    def accept(self, token: int) -> None:
        """The next token, one of those allowed."""
        ...


class Constraint(Protocol):
    """What an answer must be like. Compiled once, for any number of answers."""

    def start(self) -> Matcher: ...


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is to be gone on with."""

    ids: tuple[int, ...]
    """The prompt's tokens."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are chosen. Random number i of an answer chooses its i-th token; answer number k of n draws them from
    `sampling.seed + k`, whatever else the engine is at."""
    n: int = 1
    """Answers to it; they share the prompt."""
    raw: bool = False
    """The prompt is a text to go on with, no conversation."""
    logprobs: int | None = None
    """None: no log-probabilities; k ≥ 0: that of each token, and of the k likeliest in its place."""
    constraint: Constraint | None = None
    """What the answer must be like, token by token."""
    adapter: str | None = ""
    """Which of the model's adapters computes it; None is the base alone, "" the model as the engine was given it."""


class Token(NamedTuple):
    """A token that was chosen."""

    id: int
    logprob: float | None = None
    """In nats, as the model has it, before temperature and all else; None where it was not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place and their log-probabilities, the likeliest first."""


class Update(NamedTuple):
    """What one step of the engine adds to one answer."""

    request: int
    """What `Engine.add` gave."""
    index: int
    """Which of the request's n answers."""
    tokens: tuple[Token, ...]
    """The control token that closes an answer is the last of them."""
    text: str
    """The text that became certain: no control tokens, nothing from a stop string on."""
    finish: Finish | None = None
    """Set on an answer's last update."""
    valid: bool | None = None
    """On the last update of an answer under a constraint: whether it was met, or the answer cut off before."""


class EngineStats(NamedTuple):
    """Of this moment, and sums since the engine was made."""

    running: int
    """Answers that have a place in the cache."""
    waiting: int
    """Answers that wait for one."""
    blocks_used: int
    """Blocks of the cache that an answer holds."""
    blocks_total: int
    prompt_tokens: int
    """Tokens of all prompts, each counted once for its n answers."""
    prefix_hit_tokens: int
    """Of these, what was found in the cache."""
    generated: int
    """Tokens that were chosen."""
    drafted: int
    """Tokens that were guessed ahead (speculative decoding)."""
    accepted: int
    """Of these, what turned out to be right."""
    preempted: int
    """Answers that lost their place to an older one, to be computed again."""


@dataclass(frozen=True)
class EngineConfig(Settings):
    """What an engine may take, and how it schedules."""

    cache_bytes: PositiveInt = 2 << 30
    """Most memory for keys and values."""
    blocks: NonNegativeInt = 0
    """Blocks of the cache; 0: as many as `cache_bytes` hold."""
    block_size: PositiveInt = 16
    """Tokens of a block."""
    tokens_per_step: PositiveInt = 2048
    """Most tokens that one step computes: one for each answer on its way, and what is left of it for prompts."""
    max_rows: PositiveInt = 256
    """Most answers on their way at a time; others wait."""
    prefix_cache: bool = True
    """Whether blocks of a prompt stay, for others that begin with the same tokens, while there is room."""
    longest: NonNegativeInt = 0
    """Tokens that an answer and its prompt have at most, mostly, for which memory is laid out; 0: the context."""
    draft: Literal["none", "ngram", "model"] = "none"
    """Guesses tokens ahead, to be checked many at a time (speculative decoding): from what followed the same words
    before, or by a smaller model. Tokens stay the same, and where it does not pay it pauses."""
    draft_tokens: PositiveInt = 4
    """Most tokens guessed ahead at a time."""
