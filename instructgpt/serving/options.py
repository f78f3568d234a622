"""How the service treats those who use it: what one request may ask for, and how long things may take."""

from __future__ import annotations

from dataclasses import dataclass, field

from instructgpt.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, Settings


@dataclass(frozen=True)
class Limits(Settings):
    """How much one request may ask for."""

    max_prompt_tokens: NonNegativeInt = 0
    """Most tokens of a prompt; 0: as many as the model's context holds."""
    max_answer_tokens: NonNegativeInt = 0
    """Most tokens of an answer, and how many it gets where the request does not say; 0: what the context leaves."""
    max_samples: PositiveInt = 16
    """Most answers to one request: n times its prompts."""
    max_stops: PositiveInt = 4
    """Most stop strings; four, as the original."""
    max_schema_bytes: PositiveInt = 16384
    """Longest JSON schema, and longest regular expression."""


@dataclass(frozen=True)
class Options(Settings):
    """How the service treats those who use it."""

    limits: Limits = field(default_factory=Limits)
    max_body_bytes: PositiveInt = 1 << 20
    """Largest body of a request."""
    body_seconds: Positive = 15.0
    """Most time that a request may take to arrive."""
    max_seconds: Positive = 600.0
    """Most time that an answer may take; it is cut off then, as if it had had all its tokens."""
    max_queue: PositiveInt = 64
    """Most answers that wait for a place; further requests are told to come again, with status 429."""
    drain_seconds: NonNegative = 30.0
    """How long the service goes on, when it is told to stop, with what it has begun."""
    log_texts: bool = False
    """Write prompts and answers to the log, too; addresses, numbers and keys in them are masked."""
