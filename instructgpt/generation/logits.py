"""What a rule of sampling does to logits (R, V), in which -inf means "never"; and the draw from what is left.

Functions of a tensor, row by row. A rule's number is for all rows, or a tensor (R, 1) that has one for each. They work
in place and return what they were given: a copy of a vocabulary's logits costs a CPU more than what is done to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """R rows of several, and what is said of each."""

    at: Tensor | None
    """(R,) their places; None where it is all of them."""
    values: Tensor
    """(R, ...)"""

    def of(self, x: Tensor) -> Tensor:
        """What these rows have in x."""
        return x if self.at is None else x.index_select(0, self.at)

    def put(self, new: Tensor, x: Tensor) -> Tensor:
        """`x` with `new` in these rows, in place."""
        return new if self.at is None else x.index_copy_(0, self.at, new)

    def between(self, start: int, stop: int) -> Rows | None:
        """Those with a place in [start, stop), as places among these alone; None where there are none."""
        if self.at is None:
            return Rows(None, self.values[start:stop])
        is_inside = (self.at >= start) & (self.at < stop)
        at = self.at[is_inside] - start
        return Rows(None if len(at) == stop - start else at, self.values[is_inside]) if len(at) else None


class Generated(NamedTuple):
    """The tokens that the punished rows of a batch have generated so far, side by side, in any order."""

    rows: Tensor
    """(N,), the place among the punished rows."""
    tokens: Tensor
    """(N,)"""


def punish(logits: Tensor, generated: Generated, penalties: Rows) -> Tensor:
    """Logits (W, V) with those of generated tokens made smaller; penalties: values (P, 3) of repetition, presence and
    frequency.

    Repetition, of Keskar et al. 2019 (CTRL, section 4.1), divides the logit; a negative one is multiplied instead, for
    dividing would make its token likelier. Presence and frequency are OpenAI's, with c the count of the token:
        logit - c · frequency - [c > 0] · presence
    Only generated tokens count: a prompt's words may well be the answer.
    """
    place = generated.rows if penalties.at is None else penalties.at[generated.rows]
    keys = place * logits.size(1) + generated.tokens  # (N,), into the flat logits
    ranked = keys.sort().values
    counts = torch.searchsorted(ranked, keys, right=True) - torch.searchsorted(ranked, keys)  # of each one's token
    repetition, presence, frequency = penalties.values[generated.rows].unbind(1)
    flat = logits.view(-1)
    found = flat[keys]
    found = torch.where(found > 0, found / repetition, found * repetition)
    flat[keys] = found - counts * frequency - presence  # a token that came twice is written twice, the same
    return logits


def bias(logits: Tensor, pairs: Rows) -> Tensor:
    """Logits with numbers added to some; pairs: values (N, 2) of token and number."""
    tokens, numbers = pairs.values[:, 0].long(), pairs.values[:, 1]
    rows = pairs.at if pairs.at is not None else torch.arange(len(tokens), device=tokens.device)
    logits[rows, tokens] += numbers
    return logits


def apply_temperature(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """logits / temperature, shifted so that the largest is 0 and a small temperature cannot overflow."""
    return logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature)


def top_k(logits: Tensor, k: int | Tensor, most: int | None = None) -> Tensor:
    """All but the k largest become -inf; what ties with the k-th stays. most: the largest of the ks."""
    most = min(int(torch.as_tensor(k).max()) if most is None else most, logits.size(-1))
    k = torch.as_tensor(k, device=logits.device).long().expand(len(logits), 1)
    threshold = logits.topk(most).values.gather(1, k.clamp(max=most) - 1)  # (R, 1)
    return logits.masked_fill_(logits < threshold, -math.inf)


def top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """All but the nucleus become -inf: the fewest, most probable tokens whose probabilities reach p; of equal ones the
    first.

    logits: (R, V), which may be written to. p: one for all rows, or (R, 1).
    """
    probabilities = logits.softmax(-1)
    likely, tokens = _likely(probabilities, p)  # (R, K)
    ranked, order = likely.sort(dim=-1, descending=True, stable=True)
    # The first has exactly 0 before it. What only fills a row has no probability, and all before it.
    is_inside = (ranked.cumsum(-1) - ranked < p) & (ranked > 0)
    # A sum, for a token may also be what fills a row, and CUDA scatters no bool with a reduction.
    inside = torch.zeros_like(logits).scatter_add_(-1, tokens.gather(-1, order), is_inside.to(logits.dtype))
    return logits.masked_fill_(inside == 0, -math.inf)


def _likely(probabilities: Tensor, p: float | Tensor) -> tuple[Tensor, Tensor]:
    """Candidates for the nucleus of p: their probabilities (R, K), rising by token, filled with 0, and the tokens.

    Those of less than (1 - p) / V have less than 1 - p together, so the others reach p: a few hundred of 49,000 where a
    model is sure, and it is sorting that costs. A GPU sorts them all, for it would have to be waited for.
    """
    R, V = probabilities.shape
    if probabilities.is_cuda:
        return probabilities, torch.arange(V, device=probabilities.device).expand(R, V)
    is_likely = probabilities > (1 - p) / (2 * V)  # half of it, for rounding
    rows, found = is_likely.nonzero(as_tuple=True)  # by row, then token
    counts = is_likely.sum(-1)  # (R,)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    likely, tokens = probabilities.new_zeros(R, int(counts.max())), counts.new_zeros(R, int(counts.max()))
    likely[rows, place], tokens[rows, place] = probabilities[rows, found], found
    return likely, tokens


def min_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Tokens less probable than p times the most probable one become -inf.

    logits: (R, V), which may be written to. p: one for all rows, or (R, 1).
    """
    p = torch.as_tensor(p, dtype=logits.dtype, device=logits.device)
    return logits.masked_fill_(logits < logits.amax(-1, keepdim=True) + p.log(), -math.inf)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """A token (B,) of each row's distribution softmax(logits), from one number a row, u (B,), uniform in [0, 1).

    Inverts the cumulative distribution: the token is the first whose cumulative mass exceeds u.
    """
    # float32 numbers in [0, 1) times the float64 total are always below the total, so a token is always found, and a
    # token of no probability never is.
    mass = logits.softmax(-1).cumsum(-1)  # (B, V)
    threshold = u.to(mass.device, mass.dtype)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, threshold, right=True).squeeze(-1)


def log_probabilities(logits: Tensor, tokens: Tensor, top: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(logits (B, V)) in float32 at `tokens` (B,), and the `top` largest (B, top) with their tokens, largest
    first.

    Of the model's own distribution, before temperature, penalties, bias and constraint, as OpenAI's service reports
    them: they say what the model thought, not what it was made to say.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)  # (B, 1)
    chosen = logits.gather(1, tokens.clamp(min=0)[:, None]) - total
    best, likeliest = logits.topk(min(top, logits.size(1)))
    return chosen.squeeze(1), best - total, likeliest
