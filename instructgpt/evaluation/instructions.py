"""Does the model follow instructions? Answers are generated and then scored, never read off a teacher-forced pass.

conversations or the world's examples -> Exam (prompts that fit) -> Outcome, each as soon as it is answered -> Report
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple, cast

from instructgpt.data.windows import fit_prompt
from instructgpt.errors import UserError, suggestion
from instructgpt.evaluation.extract import LabelWords, last_number, same_number
from instructgpt.evaluation.report import Outcome, Report
from instructgpt.evaluation.scores import (
    accuracy_and_macro_f1,
    bleu_chrf,
    exact_match,
    has_sacrebleu,
    mean_interval,
    require_sacrebleu,
)
from instructgpt.generation.engine import completions
from instructgpt.generation.sampling import SamplingConfig
from instructgpt.model.transformer import Transformer
from instructgpt.text.chat import Message, render_answer, validate_messages
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.core import Example

Metric = Literal["auto", "exact", "labels", "number", "translation"]
METRICS: tuple[Metric, ...] = ("auto", "exact", "labels", "number", "translation")

_MOST_LABELS = 20
_EXAMPLES_PER_LABEL = 5
"""References are labels when they are at most so many, each seen so often on average."""
_FREE_ANSWER = 256
"""Tokens of an answer where no right one tells how long it may be."""


class Reading(NamedTuple):
    """What an answer is worth; see `Outcome`."""

    score: float | None
    read_as: str = ""


@dataclass(frozen=True)
class Question:
    """A prompt made ready to be asked."""

    family: str
    messages: list[Message]
    reference: str | None
    score: Callable[[str], Reading]
    ids: list[int]
    """The prompt as tokens, as much of it as fits."""
    is_cut: bool
    answer_fits: bool
    """Whether the right answer has room behind the prompt."""


@dataclass(frozen=True)
class Exam:
    """Questions, and how the answers to all of them are measured."""

    questions: list[Question]
    context: int
    max_new_tokens: int
    score_name: str
    measure: Callable[[Sequence[Outcome]], dict[str, float | str]]

    def notes(self) -> list[str]:
        """What does not fit, a line each: to be said before anything is generated."""
        cut = sum(question.is_cut for question in self.questions)
        short = sum(not question.answer_fits for question in self.questions)
        unscored = sum(question.reference is None for question in self.questions)
        of_all = f"of {len(self.questions):,}"
        notes = []
        if cut:
            notes.append(
                f"{cut:,} {of_all} prompts are too long for {self.context:,} tokens: they lose their earliest turns, "
                "then the front of the question, as in training"
            )
        if short:
            notes.append(f"{short:,} {of_all} right answers are longer than what the model has room to say")
        if unscored:
            notes.append(f"{unscored:,} {of_all} prompts have no right answer: they are answered, not scored")
        return notes

    def outcomes(
        self, model: Transformer, tokenizer: Tokenizer, batch_size: int = 128
    ) -> Iterator[tuple[int, Outcome]]:
        """Greedy answers with their place among the questions, each as soon as it is done. Runs under the caller's
        autocast."""
        config = SamplingConfig(max_new_tokens=self.max_new_tokens)
        prompts = [question.ids for question in self.questions]
        for place, done in completions(model, tokenizer, prompts, config, batch_size=batch_size):
            asked = self.questions[place]
            score, read_as = asked.score(done.text)
            yield (
                place,
                Outcome(
                    asked.family, asked.messages, asked.reference, done.text, score, done.finish, read_as, asked.is_cut
                ),
            )

    def report(self, outcomes: Sequence[Outcome]) -> Report:
        """Of all outcomes, or of those that there are."""
        return Report(list(outcomes), self.score_name, self.measure([o for o in outcomes if o.score is not None]))

    def take(self, model: Transformer, tokenizer: Tokenizer, batch_size: int = 128) -> Report:
        """Asks everything."""
        found = dict(self.outcomes(model, tokenizer, batch_size))
        return self.report([found[place] for place in range(len(found))])


def world_exam(examples: Sequence[Example], tokenizer: Tokenizer, context: int, max_new_tokens: int = 0) -> Exam:
    """Examples of the instruction world, each scored by its own checker, by family.

    max_new_tokens: 0 gives room for the longest right answer and a quarter more.
    Raises UserError when there are no examples.
    """
    languages = {id(example.messages): example.language for example in examples}

    def means(outcomes: Sequence[Outcome]) -> dict[str, float | str]:
        by_language: dict[str, list[float]] = {}
        for outcome in outcomes:
            by_language.setdefault(languages[id(outcome.messages)], []).append(outcome.score or 0.0)
        return {f"mean in {name}": mean_interval(by_language[name]).mean for name in sorted(by_language)}

    def checked(example: Example) -> Callable[[str], Reading]:
        return lambda text: Reading(example.check(text))

    # The world knows nothing of the text package, so its messages are dictionaries of the same shape.
    asked = [
        (example.family, cast("list[Message]", example.messages), example.answer, checked(example))
        for example in examples
    ]
    return _exam(asked, tokenizer, context, max_new_tokens, "score", means)


def file_exam(
    conversations: Iterable[Sequence[Message]],
    tokenizer: Tokenizer,
    context: int,
    metric: Metric = "auto",
    name: str = "all",
    max_new_tokens: int = 0,
    labels: Sequence[str] = (),
) -> Exam:
    """The prompts of a file's conversations against their last turn, where that is the assistant's.

    metric: what an answer's score is, and what is measured besides
        exact        1 for the right text, outer white space aside
        number       1 where the last number is that of the right answer; besides, how many answers have none
        labels       1 for the right label; besides, accuracy and macro-F1, and what the most frequent label would get
        translation  exact; besides, BLEU and chrF
        auto         labels when the distinct right answers are few, or `labels` are given; else translation, if
                     sacrebleu is installed; else exact
    labels: words that stand for a label, as in "positive=good,great"; an answer then counts as the first it names.
    name: what the report calls them.
    Raises UserError when there are no conversations, when translation is asked for and sacrebleu is missing, and when
    no right answer has a number or is a label although that is what is to be scored.
    """
    conversations = [list(conversation) for conversation in conversations]
    answered = [conversation[-1]["role"] == "assistant" for conversation in conversations]
    prompts = [messages[:-1] if has else messages for messages, has in zip(conversations, answered)]
    references = [messages[-1]["content"] if has else None for messages, has in zip(conversations, answered)]
    known = [reference for reference in references if reference is not None]
    chosen = choose_metric(metric, known, labels)
    how = _HOW[chosen](known, labels)
    asked = [
        (name, prompt, reference, how.score(reference) if reference is not None else lambda text: Reading(None))
        for prompt, reference in zip(prompts, references)
    ]
    return _exam(asked, tokenizer, context, max_new_tokens, how.name, how.measure)


def evaluate_examples(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int = 128,
    max_new_tokens: int = 0,
) -> Report:
    """Greedy answers to examples of the instruction world; see `world_exam`. Runs under the caller's autocast."""
    return world_exam(examples, tokenizer, model.config.context, max_new_tokens).take(model, tokenizer, batch_size)


def choose_metric(metric: Metric, references: Sequence[str], labels: Sequence[str] = ()) -> Metric:
    """What `auto` stands for, given the references; any other metric is itself.

    Raises UserError for an unknown metric, for labels beside another one, and for `translation` without sacrebleu:
    before anything is generated.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}{suggestion(str(metric), METRICS)}")
    if labels and metric not in ("auto", "labels"):
        raise UserError(f"--labels say which words count as which label; --metric {metric} has no use for them")
    if labels:
        return "labels"
    if metric == "translation":
        require_sacrebleu()
    if metric != "auto":
        return metric
    distinct = Counter(reference.strip() for reference in references)
    if 2 <= len(distinct) <= _MOST_LABELS and distinct.total() >= _EXAMPLES_PER_LABEL * len(distinct):
        return "labels"
    return "translation" if has_sacrebleu() else "exact"


# ---- how answers are scored


@dataclass(frozen=True)
class _How:
    name: str
    score: Callable[[str], Callable[[str], Reading]]
    """From the right answer to what scores one."""
    measure: Callable[[Sequence[Outcome]], dict[str, float | str]]


def _exactly(reference: str) -> Callable[[str], Reading]:
    return lambda text: Reading(exact_match([text], [reference])[0])


def _texts(outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    return [o.answer for o in outcomes], [o.reference or "" for o in outcomes]


def _exact(references: Sequence[str], labels: Sequence[str]) -> _How:
    return _How("exact match", _exactly, lambda outcomes: {})


def _translation(references: Sequence[str], labels: Sequence[str]) -> _How:
    def measure(outcomes: Sequence[Outcome]) -> dict[str, float | str]:
        return asdict(bleu_chrf(*_texts(outcomes))) if outcomes else {}

    return _How("exact match", _exactly, measure)


def _number(references: Sequence[str], labels: Sequence[str]) -> _How:
    if references and not any(map(last_number, references)):
        raise UserError("--metric number: none of the right answers has a number in it")

    def score(reference: str) -> Callable[[str], Reading]:
        right = last_number(reference)

        def read(text: str) -> Reading:
            said = last_number(text)
            return Reading(None if right is None else float(same_number(said, right)), str(said) if said else "")

        return read

    def measure(outcomes: Sequence[Outcome]) -> dict[str, float | str]:
        answers, references = _texts(outcomes)
        exact = exact_match(answers, references)
        return {
            "answers without a number": sum(not outcome.read_as for outcome in outcomes),
            **({"exact match": sum(exact) / len(exact)} if exact else {}),
        }

    return _How("last number right", score, measure)


def _labels(references: Sequence[str], labels: Sequence[str]) -> _How:
    if not labels:

        def plain(outcomes: Sequence[Outcome]) -> dict[str, float | str]:
            return asdict(accuracy_and_macro_f1(*_texts(outcomes))) if outcomes else {}

        return _How("exact match", _exactly, plain)
    words = LabelWords.parse(labels, references)

    def score(reference: str) -> Callable[[str], Reading]:
        right = words.of_reference(reference)

        def read(text: str) -> Reading:
            said = words.of_answer(text)
            return Reading(None if right is None else float(said == right), said or "")

        return read

    def measure(outcomes: Sequence[Outcome]) -> dict[str, float | str]:
        if not outcomes:
            return {}
        right = [words.of_reference(outcome.reference or "") or "" for outcome in outcomes]
        said = [outcome.read_as for outcome in outcomes]
        scores = replace(accuracy_and_macro_f1(said, right), unknown=said.count(""))
        return {**asdict(scores), "labels": str(words)}

    return _How("label right", score, measure)


_HOW: dict[Metric, Callable[[Sequence[str], Sequence[str]], _How]] = {
    "exact": _exact,
    "number": _number,
    "labels": _labels,
    "translation": _translation,
}

# ---- prompts that fit

_Asked = tuple[str, list[Message], "str | None", Callable[[str], Reading]]
"""Family, prompt, right answer, and what scores one."""


def _exam(
    asked: Sequence[_Asked],
    tokenizer: Tokenizer,
    context: int,
    max_new_tokens: int,
    score_name: str,
    measure: Callable[[Sequence[Outcome]], dict[str, float | str]],
) -> Exam:
    if not asked:
        raise UserError("there is nothing to evaluate: no examples were given")
    # The end token has to fit, too: an answer counts as the model's own only if it could also have ended it.
    known = [reference for _, _, reference, _ in asked if reference is not None]
    needed = iter([len(render_answer(reference, tokenizer)) for reference in known])
    lengths = [next(needed) if reference is not None else 0 for _, _, reference, _ in asked]
    longest = max_new_tokens or _with_room(max(lengths)) or min(_FREE_ANSWER, context // 2)
    questions = []
    for (family, messages, reference, score), length in zip(asked, lengths):
        validate_messages(messages)
        wanted = min(longest, length or longest)
        # As in training: the answer may push the prompt down to half of the context, and no further.
        prompt = fit_prompt(messages, tokenizer, min(context, max(context + 1 - wanted, (context + 1) // 2)))
        fits = length <= min(longest, context + 1 - len(prompt.ids))
        questions.append(Question(family, messages, reference, score, prompt.ids, prompt.is_cut, fits))
    return Exam(questions, context, longest, score_name, measure)


def _with_room(length: int) -> int:
    """For an answer of so many tokens, a quarter more; 0 stays 0."""
    return length + length // 4 + 3 if length else 0
