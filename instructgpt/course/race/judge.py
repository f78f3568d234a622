"""The judge: starts the entry's process, and scores the model in it by asking for logits. No file of an entry is
imported here.

The number is bits per byte of held-out text, which is comparable between vocabularies. That it is honest is looked at:
the vocabulary must give back each document, logits may not depend on tokens to come, nor on what was asked before, and
text that was drawn only after the training must cost what the held-out text costs.
"""

from __future__ import annotations

import math
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt import world
from instructgpt.course.attempt import require_function
from instructgpt.course.race import channel
from instructgpt.course.race.entry import HELD_OUT_SEED, WRITES_ONE, Rules
from instructgpt.errors import UserError
from instructgpt.evaluation.scores import Interval, ratio_interval
from instructgpt.strict_json import to_json
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.documents import kind

TOLD = {"change": str, "row_length": int, "vocab_size": int, "parameters": int, "flops": int, "updates": int,
        "tokens": int, "stopped_by": str, "cpu_seconds": float}  # fmt: skip
"""What a racer tells of its training, and of which kind it is."""
Ask = Callable[[Tensor], Tensor]
"""Logits (B, T, V), float32, for ids (B, T)."""
ROWS = 8
"""Asked at once."""
CLOSE = 1e-3
"""How far costs may be apart that should be the same, in nats and as a share: of rounding, no more."""
DEVIATIONS = 4.0
"""Standard errors by which held-out text may cost less than fresh text."""


@dataclass(frozen=True)
class Finish:
    """What one run of an entry came to."""

    seed: int
    told: dict[str, Any]
    """What the racer tells of its training."""
    bits: list[float]
    """By held-out document."""
    bytes: list[int]

    @property
    def score(self) -> Interval:
        """Bits per byte, with its interval over documents."""
        return ratio_interval(self.bits, self.bytes)


def race(file: Path, rules: Rules, seed: int = 0) -> Finish:
    """Trains and scores an entry, its progress printed. UserError for whatever it does that is against the rules."""
    require_function(file, "entry", WRITES_ONE)  # read, not imported
    with tempfile.TemporaryDirectory() as folder, racing(file, rules, seed, Path(folder)) as (told, ask):
        try:
            tokenizer = Tokenizer.load(folder)
        except UserError:
            raise UserError("it left no vocabulary that can be read", file) from None
        row_length = told["row_length"]
        documents = [world.document(index, HELD_OUT_SEED) for index in range(rules.documents)]
        fresh = [another(index, HELD_OUT_SEED) for index in range(rules.documents)]
        try:
            bits = cost(blind(ask, tokenizer.vocab_size), tokenizer, documents, row_length)
            fresh_bits = cost(ask, tokenizer, fresh, row_length)
            if not _is_close(bits[:ROWS], cost(ask, tokenizer, documents[:ROWS], row_length)):
                raise UserError("it answers the same question otherwise when it is asked again")
            sizes = [len(text.encode()) for text in documents]
            require_unseen(bits, sizes, fresh_bits, [len(text.encode()) for text in fresh])
        except UserError as error:
            raise UserError(str(error), file) from None
        return Finish(seed, told, bits, sizes)


@contextmanager
def racing(file: Path, rules: Rules, seed: int, folder: Path) -> Iterator[tuple[dict[str, Any], Ask]]:
    """An entry's process, once it has trained: what it tells, and how to ask it. Ends it at the end."""
    job = {"file": str(file), "rules": asdict(rules), "seed": seed, "folder": str(folder)}
    command = [sys.executable, "-m", "instructgpt.course.race.racer", to_json(job)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    questions, answers = process.stdin, process.stdout
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(rules.seconds, end)
    timer.start()

    def ask(ids: Tensor) -> Tensor:
        channel.send(questions, ids.numpy())
        logits = torch.from_numpy(channel.receive_array(answers, "float32").copy())
        if logits.shape[:-1] != ids.shape:
            raise UserError(f"its model gives {tuple(logits.shape)} for ids of {tuple(ids.shape)}, not (B, T, V)")
        return logits

    try:
        told = channel.receive(answers)
        if "error" in told:
            raise UserError(str(told["error"]))
        if any(type(told.get(name)) is not kind for name, kind in TOLD.items()) or told["row_length"] < 1:
            raise channel.Silent
        yield told, ask
    except (channel.Silent, BrokenPipeError):
        raise UserError(_ending(process, is_late.is_set(), rules), file) from None
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def _ending(process: subprocess.Popen[bytes], is_late: bool, rules: Rules) -> str:
    """Why there is no answer."""
    if is_late:
        return f"it had not ended after {rules.seconds:.0f} s: does it sleep or wait, or is the machine busy?"
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "its process says what is no answer"
    most = f"{rules.cpu_seconds + rules.beside:.0f} s of CPU time"
    if code == -signal.SIGXCPU:
        return f"its process was ended: it took more than {most}"
    if code == -signal.SIGKILL:
        return f"its process was killed: for more memory than there is, or for more than {most}"
    return f"its process ended (exit code {code}) before it had answered"


# ---- the number


def cost(ask: Ask, tokenizer: Tokenizer, documents: Sequence[str], row_length: int) -> list[float]:
    """Bits of each document, its end included, each token predicted from those before it; of a document longer than a
    row, from those before it in its piece."""
    rows = [(number, piece) for number, text in enumerate(documents) for piece in pieces(tokenizer, text, row_length)]
    rows.sort(key=lambda row: len(row[1]))
    bits = [0.0] * len(documents)
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        ids = padded([piece for _, piece in some], tokenizer.pad)
        nats = losses(ask(ids[:, :-1]), ids[:, 1:], tokenizer.vocab_size)
        for (number, piece), row in zip(some, nats):
            bits[number] += float(row[: len(piece) - 1].sum()) / math.log(2)
    if not all(map(math.isfinite, bits)):
        raise UserError("its logits are not finite")
    return bits


def losses(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Nats (B, T) of targets (B, T) by logits (B, T, V), in float64. UserError for fewer logits than tokens, and for
    NaN."""
    if logits.size(-1) < vocab_size:
        raise UserError(f"its model has logits of {logits.size(-1)} tokens, its vocabulary {vocab_size}")
    nats = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    if nats.isnan().any():
        raise UserError("its logits are not finite")
    return nats


def pieces(tokenizer: Tokenizer, text: str, row_length: int) -> Iterator[list[int]]:
    """A document's tokens in pieces of row_length targets, each beginning with the last token of the one before."""
    ids = tokenizer.encode(text)
    if tokenizer.decode(ids) != text:
        raise UserError("its vocabulary does not give back the text that it was given")
    ids = [*(tokenizer.document_start or [tokenizer.eos]), *ids, tokenizer.eos]
    for start in range(0, len(ids) - 1, row_length):
        yield ids[start : start + row_length + 1]


def padded(rows: Sequence[list[int]], pad: int) -> Tensor:
    """(B, longest)."""
    longest = max(map(len, rows))
    return torch.from_numpy(np.array([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=np.int64))


# ---- is it honest


def blind(ask: Ask, vocab_size: int) -> Ask:
    """Asks everything twice, once with wrong tokens at the end of each row, and in an order that is drawn: who is asked
    does not know which it is. UserError where logits depend on tokens that come later."""

    def asked(ids: Tensor) -> Tensor:
        other, cuts = ids.clone(), [1 + secrets.randbelow(ids.size(1)) for _ in ids]
        for row, cut in zip(other, cuts):
            row[cut:] = torch.randint(vocab_size, (len(row) - cut,))
        if secrets.randbelow(2):
            logits, others = ask(ids), ask(other)
        else:
            others, logits = ask(other), ask(ids)
        # What is compared is what is paid for: a constant in all logits would hide a difference in them.
        paid, others_paid = (losses(each[:, :-1], ids[:, 1:], vocab_size) for each in (logits, others))
        for row, other_row, cut in zip(paid, others_paid, cuts):
            if not _is_close(row[:cut], other_row[:cut]):
                raise UserError("its logits depend on tokens that come later")
        return logits

    return asked


def another(index: int, seed: int) -> str:
    """Text that nobody has seen, of the kind and language of that document: kinds differ more than texts of a kind."""
    while True:
        drawn = secrets.randbits(60)
        if kind(index, drawn) == kind(index, seed):
            return world.document(index, drawn)


def require_unseen(
    bits: Sequence[float], sizes: Sequence[int], fresh_bits: Sequence[float], fresh_sizes: Sequence[int]
) -> None:
    """UserError where the held-out text costs less than text that was drawn after the training, by bits and bytes of
    documents that are pairwise of one kind. The difference of two ratios, as in `ratio_interval`, over pairs."""
    n, size, fresh_size = len(bits), sum(sizes), sum(fresh_sizes)
    mean, fresh_mean = math.fsum(bits) / size, math.fsum(fresh_bits) / fresh_size
    pairs = zip(bits, sizes, fresh_bits, fresh_sizes, strict=True)
    apart = [(f - fresh_mean * of) / fresh_size - (b - mean * ob) / size for b, ob, f, of in pairs]
    doubt = math.sqrt(n / (n - 1) * math.fsum(each**2 for each in apart))  # one standard error
    if fresh_mean - mean > DEVIATIONS * doubt:
        raise UserError(
            f"it knows the held-out text: {mean:.3f} bits per byte there, and {fresh_mean:.3f} on text that was drawn "
            "after the training"
        )


def _is_close(one: Any, other: Any) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return bool(((one == other) | ((one - other).abs() <= CLOSE * one.abs().clamp(min=1.0))).all())
