"""README's picture, an SVG that is drawn of benchmarks/results: what tuning brings, and what alignment does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.tables import SPLITS

Found = dict[str, Any]

_WIDTH, _HEIGHT = 800, 264
_BAR, _PITCH, _TOP = 22, 40, 76
_INK, _FAINT, _RULE = "#1f2328", "#59636e", "#d1d9e0"
_TUNED, _ALIGNED = "#2f6f9f", "#b5662c"


class Bar(NamedTuple):
    """A score with its interval."""

    label: str
    score: float
    low: float
    high: float


class Words(NamedTuple):
    """What the picture says, in one language."""

    tuned: str
    aligned: str
    below: str
    splits: Sequence[str]
    stages: Sequence[str]


ENGLISH = Words(
    "Follows instructions: exact match, tuned",
    "What alignment does: true reward",
    "Base model: 0 in all four. Lines: 95% intervals. Drawn by `make docs` from benchmarks/results.",
    list(SPLITS.values()),
    ["SFT, flawed data", "DPO", "PPO", "GRPO"],
)
CHINESE = Words(
    "听不听指令？微调后的完全匹配率",
    "对齐有什么用？采样回答的真实奖励",
    "基座模型四项都是 0。黑线是 95% 区间。由 make docs 根据 benchmarks/results 画出。",
    ["测试", "没见过的问法", "随手打的字", "没见过的任务组合"],
    ["SFT（有毛病的示范）", "DPO", "PPO", "GRPO"],
)


def results(train: Found, rlhf: Found, words: Words = ENGLISH) -> str:
    """The SVG: cpu-train.json's tuned model on the left, cpu-rlhf.json's stages on the right."""
    scores = train["models"]["tuned"]["scores"]
    left = [
        Bar(label, scores[split]["score"], *scores[split]["interval"]) for split, label in zip(SPLITS, words.splits)
    ]
    right = [
        Bar(label, stage["true_reward"], *stage["interval_over_prompts"])
        for stage, label in zip(rlhf["stages"], words.stages)
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_panel(20, 150, 180, words.tuned, left, _TUNED),
        *_panel(425, 125, 180, words.aligned, right, _ALIGNED),
        _text(20, _HEIGHT - 14, words.below, _FAINT, size=11),
        "</svg>",
        "",
    ])  # fmt: skip


def _panel(x: float, labels: float, width: float, title: str, bars: list[Bar], colour: str) -> list[str]:
    """Bars from 0 to 1 with their names before and their values behind."""
    zero = x + labels
    bottom = _TOP + _PITCH * len(bars) - (_PITCH - _BAR)
    lines = [_text(x, 32, title, _INK, weight="600")]
    for share in (0, 0.5, 1):
        at = zero + width * share
        lines.append(f'<path d="M{at:.1f} {_TOP - 10}V{bottom + 6}" stroke="{_RULE}"/>')
        lines.append(_text(at, _TOP - 16, f"{share:g}", _FAINT, size=11, anchor="middle"))
    for row, bar in enumerate(bars):
        y = _TOP + _PITCH * row
        middle = y + _BAR / 2
        low, high = zero + width * bar.low, zero + width * bar.high
        lines += [
            _text(zero - 8, middle + 4.5, bar.label, _INK, anchor="end"),
            f'<rect x="{zero:.1f}" y="{y}" width="{width * bar.score:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"'
            f' stroke="{_INK}" stroke-width="1.5"/>',
            _text(zero + width + 10, middle + 4.5, f"{bar.score:.2f}", _INK),
        ]
    return lines


def _text(
    x: float, y: float, words: str, colour: str, size: int = 13, anchor: str = "start", weight: str = "400"
) -> str:
    escaped = words.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escaped}</text>'
    )
