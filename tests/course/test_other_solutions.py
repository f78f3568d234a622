"""A right solution that goes another way than ours passes: what is judged is what a function does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.course.exercise import exercise, names
from instructgpt.course.judge import judge
from instructgpt.data.batch import Batch
from instructgpt.evaluation.scores import Interval
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.policy import Advantages
from instructgpt.text.chat import Rendered
from kernels.attention_forward import add_products, capped_scores, load_rows, score_unit
from kernels.launch import AVAILABLE, jit, tl
from kernels.softmax import rows_of_program

SOLUTIONS: dict[str, Callable[..., Any]] = {}


def solves(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        SOLUTIONS[name] = function
        return function

    return keep


@solves("byte_pairs")
def merged(pieces: Any, ranks: Any) -> list[str]:
    pieces = list(pieces)
    for _ in range(len(pieces)):
        ranked = [(ranks[pair], pair) for pair in zip(pieces[:-1], pieces[1:]) if pair in ranks]  # noqa: RUF007
        if not ranked:
            break
        a, b = min(ranked)[1]
        i = 0
        while i + 1 < len(pieces):
            if (pieces[i], pieces[i + 1]) == (a, b):
                pieces[i : i + 2] = [a + b]
            i += 1
    return pieces


@solves("rope")
def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """By complex numbers."""
    D = x.size(-1)
    pairs = x.unflatten(-1, (D // 2, 2)) if interleaved else x.unflatten(-1, (2, D // 2)).mT
    wide = torch.view_as_complex(pairs.to(torch.promote_types(cos.dtype, torch.float32)).contiguous())
    turned = torch.view_as_real(wide * torch.complex(cos, sin)[:, None])
    return (turned if interleaved else turned.mT).flatten(-2).to(x.dtype)


@solves("masks")
def visibility(queries: int, keys: int, documents: Tensor | None, device: torch.device) -> Tensor:
    key = torch.arange(keys, device=device)
    mask = (key[None] <= key[-queries:, None])[None, None]
    return mask if documents is None else mask & (documents[:, None, -queries:, None] == documents[:, None, None])


@solves("rms_norm_gradient")
def rms_norm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    normed, scale, weight = ctx.saved_tensors
    g = dy * weight
    dx = scale * g - scale * normed * (g * normed).mean(-1, keepdim=True)
    return dx, (dy * normed).flatten(0, -2).sum(0), None


@solves("attention")
def attention(
    q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """By einsum over groups of heads."""
    B, H, T, D = q.shape
    K, S = k.size(1), k.size(2)
    scores = torch.einsum("bkgtd,bksd->bkgts", q.reshape(B, K, H // K, T, D), k) * (scale or D**-0.5)
    mask = torch.ones(1, 1, T, S, dtype=torch.bool) if may_attend is None else may_attend.expand(B, H, T, S)
    if causal:
        mask = mask & (torch.arange(S)[None] - (S - T) <= torch.arange(T)[:, None])
    mask = mask.expand(B, H, T, S).reshape(B, K, H // K, T, S)
    weights = scores.where(mask, -1e300).softmax(-1) * mask
    return torch.einsum("bkgts,bksd->bkgtd", weights, v).reshape(B, H, T, D)


@solves("cross_entropy")
def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """By PyTorch's own."""
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(
        wide, targets, reduction="none", ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    return losses + z_loss * wide.logsumexp(-1) ** 2 * (targets != ignore_index)


@solves("answer_mask")
def turn(self: Any, message: Any, system: str | None = None) -> Rendered:
    if message["role"] == "user":
        ids = self.layout.user_turn(message["content"], system)
        return Rendered(ids, [False for _ in ids])
    answer = self.layout.answer(message["content"])
    count = self.layout.learnt(answer) if message.get("learn", True) else 0
    marks = [i < count for i in range(len(answer))]
    return Rendered(self.layout.header + answer, [False] * len(self.layout.header) + marks)


@solves("packing")
def collate(rows: Any, context: int) -> Batch:
    table = []
    for items in rows:
        columns: list[tuple[int, int, bool, int, int]] = []
        for number, tokens in enumerate(items):
            ids, learnt = tokens.ids.tolist(), tokens.is_target.tolist()
            columns += [(ids[i], ids[i + 1], learnt[i + 1], i, number) for i in range(len(ids) - 1)]
        if len(columns) > context:
            raise ValueError("too long")
        table.append(columns + [(0, 0, False, 0, -1)] * (context - len(columns)))
    ids, targets, is_target, positions, documents = torch.from_numpy(np.array(table, dtype=np.int64)).unbind(-1)
    return Batch(ids, targets, is_target.bool(), positions, documents)


@solves("adamw")
def adamw(
    self: Any, parameters: Any, gradients: Any, means: Any, squares: Any, steps: Any, factor: float, is_good: Tensor
) -> None:
    """By exchanging what is new for what is old, all at once."""
    good, rate = is_good.bool(), factor * self.rate
    b1, b2 = self.betas
    for p, g, m, v, t in zip(parameters, gradients, means, squares, steps):
        mean, square = torch.lerp(g, m, b1), torch.lerp(g * g, v, b2)
        step = (mean / (1 - b1 ** float(t))) / (torch.sqrt(square / (1 - b2 ** float(t))) + self.epsilon)
        p.copy_(torch.where(good, p * (1 - rate * self.weight_decay) - rate * step, p))
        m.copy_(torch.where(good, mean, m))
        v.copy_(torch.where(good, square, v))


@solves("muon")
def orthogonalize(update: Tensor, iterations: int = 5) -> Tensor:
    """Exactly, by the decomposition that the polynomial spares us."""
    U, _, V = torch.linalg.svd(update, full_matrices=False)
    return U @ V


@solves("warm_up")
def factor_at(
    schedule: str, step: int, progress: float, warmup_steps: int, warmed_up: float, final: float, cooldown: float
) -> float:
    if step + 1 <= warmup_steps:
        return 1 / warmup_steps + step / warmup_steps
    start = warmed_up if schedule != "wsd" else max(1 - cooldown, warmed_up)
    x = 0.0 if progress < start else 1.0 if progress > 1 else (progress - start) / (1 - start)
    shape = {"cosine": math.cos(math.pi * x / 2) ** 2, "constant": 1.0}.get(schedule, 1 - x)
    return final * (1 - shape) + shape


@solves("accumulation")
def accumulate(self: Any, batches: Any) -> dict[str, Tensor]:
    """By one backward of the sum, whose gradient is gathered once, and the dtype taken from zero."""
    losses, tokens = [], 0
    for number in range(self._micro_batches * self._ranks.size):
        batch = next(batches)
        if number % self._ranks.size == self._ranks.rank:
            tokens += getattr(batch, "tokens", 0)
            with self._precision.context(self._device):
                losses.append(self._loss_fn(batch))
    whole = sum((loss.total for loss in losses), torch.zeros((), dtype=self._zero.dtype))
    if whole.requires_grad:
        (whole * (self._scale if self._precision.scale_loss else 1)).backward()
        self._optimizer.gather_gradients()
    sums = {
        "total": whole.detach(),
        "tokens": self._zero + tokens,
        "weight": sum((loss.weight.detach() for loss in losses), self._zero),
    }
    for name in losses[0].metrics:
        sums[name] = sum((loss.metrics[name].detach() for loss in losses), self._zero)
    return sums


@solves("top_p")
def top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Each token counts what is more probable than itself."""
    probabilities = logits.softmax(-1)
    place = torch.arange(logits.size(-1))
    mine, other = probabilities[:, :, None], probabilities[:, None, :]
    is_before = (other > mine) | ((other == mine) & (place[None, None] < place[None, :, None]))
    before = (other * is_before).sum(-1)
    return logits.masked_fill((before >= p) | (probabilities == 0), -math.inf)


@solves("min_p")
def min_p(logits: Tensor, p: float | Tensor) -> Tensor:
    probabilities = logits.softmax(-1)
    bar = p * probabilities.max(-1, keepdim=True).values * (1 - 1e-12)
    return logits.where(probabilities >= bar, -torch.inf)


@solves("cache")
def slots(self: Any, rows: Any, positions: Any) -> Tensor:
    rows, positions = np.broadcast_arrays(rows, positions)
    size = self.cache.block_size
    found = [
        self.tables[row].blocks[at // size] * size + at % size
        for row, at in zip(rows.ravel().tolist(), positions.ravel().tolist())
    ]
    return torch.tensor(found, device=self.cache.device).view(rows.shape)


@solves("reward_loss")
def reward_loss(rewards: Tensor, pairs: Any) -> Loss:
    losses = F.softplus(rewards[pairs.worse] - rewards[pairs.better])
    return Loss(losses @ pairs.weight, pairs.weight.sum())


@solves("dpo")
def dpo(policy: Tensor, reference: Tensor, pairs: Any, beta: float, label_noise: float = 0.0) -> Loss:
    shift = beta * (policy - reference)
    margins = shift.gather(0, pairs.better) - shift.gather(0, pairs.worse)
    losses = F.softplus(-margins) + label_noise * margins
    return Loss((losses * pairs.weight).sum(), pairs.weight.sum())


@solves("gae")
def gae(rewards: Tensor, values: Tensor, is_answer: Tensor, discount: float = 1.0, decay: float = 0.95) -> Advantages:
    """Each row's answer by itself, as sums of surprises."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for row in range(len(values)):
        at = is_answer[row].nonzero()[:, 0].tolist()
        for n, t in enumerate(at):
            for later, s in enumerate(at[n:]):
                after = values[row, at[n + later + 1]] if n + later + 1 < len(at) else 0.0
                delta = rewards[row, s] + discount * after - values[row, s]
                advantages[row, t] += (discount * decay) ** later * delta
            returns[row, t] = advantages[row, t] + values[row, t]
    return Advantages(advantages, returns)


@solves("ppo_clip")
def clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """As the formula has it, where numbers are kept from overflowing first."""
    log_ratio = logprobs - old_logprobs
    ratio = torch.exp(torch.minimum(log_ratio, torch.tensor(50.0)))
    return torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)


@solves("grpo_advantages")
def grpo(scores: Tensor, group: int, normalise: bool = True) -> Tensor:
    if group < 2 or len(scores) % group:
        raise ValueError("groups")
    found = []
    for one in scores.split(group):
        centred = one - one.mean()
        spread = one.std()
        found.append(centred / spread if normalise and spread > 1e-6 else centred)
    return torch.cat(found)


@solves("kl_estimators")
def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    x = (reference - logprobs).double()
    return (torch.expm1(x) - x).to(logprobs.dtype)


@solves("interval")
def interval(scores: Any) -> Interval:
    n, z = len(scores), 1.959964
    if not n:
        raise ValueError("no scores")
    mean = sum(scores) / n
    if set(scores) <= {0, 1}:
        hits = n * mean
        root = z * math.sqrt(z * z / 4 + hits * (1 - mean))
        low, high = ((hits + z * z / 2 + sign * root) / (n + z * z) for sign in (-1, 1))
    else:
        half = z * float(np.std(scores, ddof=min(n - 1, 1))) / math.sqrt(n)
        low, high = mean - half, mean + half
    return Interval(mean, max(low, 0.0), min(high, 1.0), n)


@solves("lora")
def added(self: Any, x: Tensor) -> Tensor:
    """By ΔW itself."""
    width = x.size(-1)
    parts = {name: self.scale * part.B @ part.A for name, part in self.named.items()}
    delta = torch.cat([parts.get(name, x.new_zeros(rows, width)) for name, rows in self.rows.items()])
    return torch.einsum("...i,oi->...o", x, delta)


@solves("int8")
def quantize(weight: Tensor, bits: int, group: int = 64) -> tuple[Tensor, Tensor]:
    """Row by row and group by group."""
    M, K = weight.shape
    if bits not in (4, 8) or group not in (32, 64, 128, 256):
        raise ValueError("bits, groups")
    most = {8: 127, 4: 7}[bits]
    packed, scales = [], []
    for row in weight:
        for begin in range(0, K, group):
            part = torch.zeros(group)
            part[: min(group, K - begin)] = row[begin : begin + group].float()
            scale = (part.abs().max() / most).to(weight.dtype)
            scales.append(scale)
            integers = (part / scale.float()).round().clamp(-most, most) if scale else part * 0
            if bits == 4:
                halves = (integers + 8).view(2, -1)
                integers = halves[0] + 16 * halves[1]
            packed.append(integers)
    kind = torch.int8 if bits == 8 else torch.uint8
    return torch.cat(packed).to(kind).view(M, -1), torch.stack(scales).view(M, -1)


if AVAILABLE:

    @solves("online_softmax")
    @jit
    def three_passes(
        x, y, stride, rows, queries, visible, columns, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):  # fmt: skip
        """The maximum first, lane by lane, then the sum, then the weights: nothing has to be made smaller."""
        row, exists, seen = rows_of_program(rows, queries, visible, columns, ROWS)
        peaks = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            score = tl.load(x + row * stride + column, exists & (column < columns), 0.0).to(tl.float32) * scale
            peaks = tl.maximum(peaks, tl.where(column < seen, score, -float("inf")), tl.PropagateNan.ALL)
        peak = tl.max(peaks, 1, keep_dims=True)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            score = tl.load(x + row * stride + column, exists & (column < columns), 0.0).to(tl.float32) * scale
            sums += tl.where(column < seen, tl.exp(score - peak), 0.0)
        total = tl.sum(sums, 1, keep_dims=True)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            inside = exists & (column < columns)
            score = tl.load(x + row * stride + column, inside, 0.0).to(tl.float32) * scale
            weight = tl.where(column < seen, tl.exp(score - peak) / total, 0.0)
            tl.store(y + row * columns + column, weight.to(y.dtype.element_ty), inside)

    @solves("flash_attention")
    @jit
    def masked_everywhere(
        state, q, k_block, v_block, k_step, v_step, interval, begin, until, stop, scale,
        SOFT_CAP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
        EDGE: tl.constexpr, CAREFUL: tl.constexpr,
    ):  # fmt: skip
        """With a mask in the middle, too, and weights that are set to 0 by it."""
        acc, m, total = state
        for block in range(begin, until, BLOCK_K):
            place = block + tl.arange(0, BLOCK_K)
            k = load_rows(k_block + block * k_step, place < stop, D, BLOCK_D, True)
            v = load_rows(v_block + block * v_step, place < stop, D, BLOCK_D, True)
            s = capped_scores(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, SOFT_CAP)
            s = s * score_unit(scale, SOFT_CAP)
            inside = (place[None, :] >= interval[0][:, None]) & (place[None, :] < interval[1][:, None])
            highest = tl.maximum(m, tl.max(tl.where(inside, s, -float("inf")), 1))
            safe = tl.where(highest > -float("inf"), highest, 0.0)
            p = tl.where(inside, tl.exp2(s - safe[:, None]), 0.0)
            shrink = tl.exp2(m - safe)
            acc = add_products(acc * shrink[:, None], p, v, inside, CAREFUL)
            total = tl.sum(p, 1) + shrink * total
            m = highest
        return acc, m, total


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if exercise(name).place >= 800 else []) for name in names()]
)
def test_it_passes(name: str) -> None:
    verdict = judge(exercise(name), SOLUTIONS[name])
    assert verdict.failure is None, verdict
