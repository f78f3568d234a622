"""The loss of a model on held-out text, in the units people compare by."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from instructgpt.data.batch import Batch
from instructgpt.errors import UserError
from instructgpt.figures import tidy
from instructgpt.generation.decoding import inference
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer

_LOGITS_AT_ONCE = 1 << 25
"""Elements: the logits of a large vocabulary are computed for as many tokens at a time as stay below this."""


@dataclass(frozen=True)
class LossReport:
    """What a model makes of the targets, each predicted from the true tokens before it."""

    loss: float
    """Mean negative log-likelihood of a target token, in nats."""
    token_accuracy: float
    """Share of targets that were the most probable token. Teacher-forced: not whether a generated answer is right."""
    tokens: int
    """Targets; prompts and padding are none."""
    bytes: int
    """Bytes of text that the targets stand for; control tokens stand for none."""

    @property
    def perplexity(self) -> float:
        """exp(loss); comparable between models of one tokenizer only."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers. The closing control tokens cost bits, too, and bring no bytes."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else math.inf

    def to_json(self) -> dict[str, float]:
        return tidy({**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte})


def evaluate_loss(model: Transformer, tokenizer: Tokenizer, batches: Iterable[Batch]) -> LossReport:
    """The loss over all targets of `batches`, under the caller's autocast, dropout off; the model is left as it was.

    Raises UserError when there is no target in them.
    """
    device = model.device
    byte_lengths = torch.from_numpy(tokenizer.byte_lengths).to(device)  # (V,)
    # Summed where the model is, and in float64, so that no batch has to be waited for and no digit is lost.
    nats = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    hits, tokens, size = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
    at_once = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    with inference(model):
        for batch in batches:
            batch = batch.to(device)
            hidden = batch.at_targets(model.hidden(batch.ids, batch.positions, batch.documents))  # (N, C)
            targets = batch.at_targets(batch.targets)  # (N,)
            for some_hidden, some_targets in zip(hidden.split(at_once), targets.split(at_once)):
                logits = model.head(some_hidden)  # (n, V)
                nats += model.backend.cross_entropy(logits, some_targets).sum(dtype=nats.dtype)
                hits += (logits.argmax(-1) == some_targets).sum()
            tokens += targets.numel()
            size += byte_lengths[targets].sum()
    count = int(tokens)
    if count == 0:
        raise UserError("there is nothing to evaluate: the data has no token to predict")
    return LossReport(float(nats) / count, int(hits) / count, count, int(size))
