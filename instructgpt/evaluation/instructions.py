"""Does the model follow instructions? Answers are generated and then scored, never read off a teacher-forced pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal, cast

from instructgpt.errors import UserError, suggestion
from instructgpt.evaluation.report import Outcome, Report
from instructgpt.evaluation.scores import (
    accuracy_and_macro_f1,
    bleu_chrf,
    exact_match,
    has_sacrebleu,
    mean_interval,
    require_sacrebleu,
)
from instructgpt.generation.engine import Completion, generate_ids
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, render_prompt
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.core import Example

__all__ = ["METRICS", "Metric", "Report", "choose_metric", "evaluate_conversations", "evaluate_examples"]

Metric = Literal["auto", "exact", "labels", "translation"]
METRICS: tuple[Metric, ...] = ("auto", "exact", "labels", "translation")

_MOST_LABELS = 20
_EXAMPLES_PER_LABEL = 5
"""References are labels when they are at most so many, each seen so often on average."""


def evaluate_examples(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int = 128,
    max_new_tokens: int = 0,
) -> Report:
    """Greedy answers to examples of the instruction world, each scored by its own checker, by family.

    max_new_tokens: 0 gives room for the longest right answer and a quarter more. Runs under the caller's autocast.
    Raises UserError when there are no examples.
    """
    # The world knows nothing of the text package, so its messages are dictionaries of the same shape.
    prompts = [cast("list[Message]", example.messages) for example in examples]
    references = [example.answer for example in examples]
    completions = _answers(model, tokenizer, prompts, references, batch_size, max_new_tokens)
    outcomes = [
        Outcome(example.family, prompt, example.answer, done.text, example.check(done.text), done.finish)
        if done
        else Outcome(example.family, prompt, example.answer, "", 0.0, None)
        for example, prompt, done in zip(examples, prompts, completions)
    ]
    by_language: dict[str, list[float]] = {}
    for example, outcome in zip(examples, outcomes):
        by_language.setdefault(example.language, []).append(outcome.score)
    means = {f"mean in {language}": mean_interval(by_language[language]).mean for language in sorted(by_language)}
    return Report(outcomes, "score", dict(means))


def evaluate_conversations(
    model: Transformer,
    tokenizer: Tokenizer,
    conversations: Iterable[Sequence[Message]],
    metric: Metric = "auto",
    name: str = "all",
    batch_size: int = 128,
    max_new_tokens: int = 0,
) -> Report:
    """Greedy answers to the prompts of a file's conversations against their last turn, which is the assistant's.

    metric: always exact match, and besides it
        labels       accuracy and macro-F1, beside what the most frequent label would get
        translation  BLEU and chrF
        exact        nothing
        auto         labels when the distinct references are few; else translation, if sacrebleu is installed
    name: what the report calls them.
    Raises UserError when there are no conversations, and when translation is asked for and sacrebleu is missing.
    """
    conversations = [list(conversation) for conversation in conversations]
    prompts = [conversation[:-1] for conversation in conversations]
    references = [conversation[-1]["content"] for conversation in conversations]
    chosen = choose_metric(metric, references)
    completions = _answers(model, tokenizer, prompts, references, batch_size, max_new_tokens)
    answers = [done.text if done else "" for done in completions]
    outcomes = [
        Outcome(name, prompt, reference, answer, score if done else 0.0, done.finish if done else None)
        for prompt, reference, answer, score, done in zip(
            prompts, references, answers, exact_match(answers, references), completions
        )
    ]
    metrics: dict[str, float | str] = {}
    if chosen == "labels":
        metrics = asdict(accuracy_and_macro_f1(answers, references))
    elif chosen == "translation":
        metrics = asdict(bleu_chrf(answers, references))
    return Report(outcomes, "exact match", metrics)


def choose_metric(metric: Metric, references: Sequence[str]) -> Metric:
    """What `auto` stands for, given the references; any other metric is itself.

    Raises UserError for an unknown metric, and for `translation` without sacrebleu: before anything is generated.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}{suggestion(str(metric), METRICS)}")
    if metric == "translation":
        require_sacrebleu()
    if metric != "auto":
        return metric
    distinct = Counter(reference.strip() for reference in references)
    if 2 <= len(distinct) <= _MOST_LABELS and distinct.total() >= _EXAMPLES_PER_LABEL * len(distinct):
        return "labels"
    return "translation" if has_sacrebleu() else "exact"


def _answers(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[list[Message]],
    references: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
) -> list[Completion | None]:
    """A greedy answer to each prompt; None where the prompt does not fit in the context."""
    if not prompts:
        raise UserError("there is nothing to evaluate: no examples were given")
    if max_new_tokens == 0:
        # The end token has to fit, too: an answer counts as the model's own only if it could also have ended it.
        longest = max(len(ids) for ids in tokenizer.encode_batch(references))
        max_new_tokens = longest + longest // 4 + 4
    ids = [render_prompt(prompt, tokenizer) for prompt in prompts]
    fitting = [i for i, prompt in enumerate(ids) if len(prompt) <= model.config.context]
    config = SamplingConfig(max_new_tokens=max_new_tokens)
    completions: list[Completion | None] = [None] * len(ids)
    answered = generate_ids(model, tokenizer, [ids[i] for i in fitting], config, batch_size=batch_size)
    for i, completion in zip(fitting, answered):
        completions[i] = completion
    return completions
