"""Metrics of answers against references: pure functions on texts and numbers, each with how sure it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.errors import UserError

_Z = 1.959964
"""The 97.5% quantile of the standard normal distribution: two-sided 95%."""
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The same of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """A mean score with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int
    """What the mean is over."""

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1.0 where the answer is the reference, outer white space aside, else 0.0."""
    return [float(answer.strip() == reference.strip()) for answer, reference in zip(answers, references, strict=True)]


def mean_interval(scores: Sequence[float]) -> Interval:
    """Mean of scores in [0, 1] with its 95% interval.

    Scores that are all 0 or 1: Wilson 1927, which stays honest at 0 of 20 and at 20 of 20, where the normal
    approximation is sure of itself. Others: normal approximation with the unbiased variance, cut off at 0 and 1; of one
    such score alone there is no variance, and the interval is that score. Raises ValueError for no scores.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("the mean of no scores")
    mean = math.fsum(scores) / n
    if all(score in (0, 1) for score in scores):
        centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    else:
        variance = math.fsum((score - mean) ** 2 for score in scores) / max(n - 1, 1)
        centre, half = mean, _Z * math.sqrt(variance / n)
    # min and max with the mean: at 0 or 1 Wilson's bound is the mean itself, but for the rounding.
    return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)), n)


def macro_interval(parts: Sequence[Interval]) -> Interval:
    """The mean of independent means, all weighing alike, with its 95% interval; n is the sum of theirs.

    The intervals' arms add in squares (Zou & Donner 2008), which keeps what is honest in them: families with every
    answer right still leave doubt. Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("the mean of no scores")
    mean = math.fsum(part.mean for part in parts) / len(parts)
    below = math.sqrt(math.fsum((part.mean - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(math.fsum((part.high - part.mean) ** 2 for part in parts)) / len(parts)
    return Interval(mean, mean - below, mean + above, sum(part.n for part in parts))


def seed_interval(means: Sequence[float]) -> Interval | None:
    """The mean of one figure from independent runs with its 95% interval by Student's t; None for a single run.

    So few are normal that 1.96 would be much too sure: two runs have 12.7, three 4.3. Not cut off at 0 and 1: where the
    runs differ so much, that should be seen.
    """
    n = len(means)
    if n < 2:
        return None
    mean = math.fsum(means) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (n - 1))
    half = (_STUDENT_T[n - 2] if n - 2 < len(_STUDENT_T) else _Z) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def ratio_interval(amounts: Sequence[float], sizes: Sequence[float]) -> Interval:
    """Σ amounts / Σ sizes over documents, such as bits per byte, with its 95% interval.

    The documents are what varies, not their bytes, which are not independent of each other: by the delta method
    (Cochran 1977, section 6.4). Raises ValueError for fewer than two, and for sizes that add up to 0.
    """
    n, size = len(amounts), math.fsum(sizes)
    if n < 2 or not size:
        raise ValueError(f"the ratio of {n} documents of {size:g} in all")
    ratio = math.fsum(amounts) / size
    squares = math.fsum((amount - ratio * of) ** 2 for amount, of in zip(amounts, sizes, strict=True))
    half = _Z * math.sqrt(n / (n - 1) * squares) / size
    return Interval(ratio, ratio - half, ratio + half, n)


def token_accuracy(answers: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Share of token places at which an answer, as it was generated, has the reference's token; a place that only one
    of the two has counts as wrong. Raises ValueError for no places.

    Not the share of argmaxes that are right after the reference's own tokens, which knows no consequence of a mistake.
    """
    places = sum(max(len(answer), len(right)) for answer, right in zip(answers, references, strict=True))
    if not places:
        raise ValueError("the token accuracy of nothing")
    return sum(a == b for answer, right in zip(answers, references) for a, b in zip(answer, right)) / places


@dataclass(frozen=True)
class LabelScores:
    """Classification, beside what always saying the most frequent label would get."""

    accuracy: float
    macro_f1: float
    majority_label: str
    majority_accuracy: float
    majority_macro_f1: float
    unknown: int
    """Answers that are none of the labels; they count as wrong."""


def accuracy_and_macro_f1(answers: Sequence[str], references: Sequence[str]) -> LabelScores:
    """Scores of labels, outer white space aside; the labels are the distinct references.

    macro_f1 is the plain mean of each label's F1 = 2·TP / (2·TP + FP + FN). Raises ValueError for no answers.
    """
    answers, references = [text.strip() for text in answers], [text.strip() for text in references]
    if not answers:
        raise ValueError("the accuracy of no answers")
    frequency = Counter(references)
    majority = min(frequency, key=lambda label: (-frequency[label], label))
    constant = [majority] * len(references)
    return LabelScores(
        accuracy=sum(exact_match(answers, references)) / len(answers),
        macro_f1=_macro_f1(answers, references),
        majority_label=majority,
        majority_accuracy=frequency[majority] / len(references),
        majority_macro_f1=_macro_f1(constant, references),
        unknown=sum(answer not in frequency for answer in answers),
    )


def _macro_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    hits = Counter(answer for answer, reference in zip(answers, references, strict=True) if answer == reference)
    said, true = Counter(answers), Counter(references)
    # TP + FP is how often the label was said, TP + FN how often it was true.
    return sum(2 * hits[label] / (said[label] + true[label]) for label in true) / len(true)


@dataclass(frozen=True)
class TranslationScores:
    """Corpus scores, 0 to 100, by sacrebleu."""

    bleu: float
    """Papineni et al. 2002."""
    chrf: float
    """Popović 2015: character n-grams, which also make sense for a language without spaces."""
    signature: str
    """How BLEU was computed, in sacrebleu's own words: scores are comparable only when this is the same."""


def has_sacrebleu() -> bool:
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        return False
    return True


def require_sacrebleu() -> None:
    """UserError when sacrebleu is not installed."""
    if not has_sacrebleu():
        raise UserError("BLEU and chrF need sacrebleu; install the extra: pip install 'instructgpt[eval]'")


def bleu_chrf(answers: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """BLEU and chrF of answers with a reference each; Chinese references are split into characters, as is customary.

    Raises UserError when sacrebleu is not installed, ValueError for no answers.
    """
    require_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(answers) != len(references) or not answers:
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    bleu = BLEU(tokenize="zh" if _is_chinese(references) else "13a")
    score = bleu.corpus_score(list(answers), [list(references)]).score
    chrf = CHRF().corpus_score(list(answers), [list(references)]).score
    return TranslationScores(score, chrf, str(bleu.get_signature()))


def _is_chinese(texts: Sequence[str]) -> bool:
    """True when Chinese characters are at least a fifth of what is not white space."""
    characters = [c for text in texts for c in text if not c.isspace()]
    return 5 * sum("\u4e00" <= c <= "\u9fff" for c in characters) >= max(len(characters), 1)
