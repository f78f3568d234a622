from __future__ import annotations

import sys

import pytest

from instructgpt import world
from instructgpt.data.windows import all_windows
from instructgpt.errors import UserError
from instructgpt.evaluation import instructions
from instructgpt.evaluation.instructions import choose_metric, evaluate_examples, file_exam
from instructgpt.evaluation.report import Report
from instructgpt.evaluation.scores import has_sacrebleu
from instructgpt.generation.engine import Completion, generate
from instructgpt.text.chat import Message
from instructgpt.text.tokenizer import Tokenizer

needs_sacrebleu = pytest.mark.skipif(not has_sacrebleu(), reason="sacrebleu (extra `eval`) is not installed")


def conversation(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    """Makes the model answer with given texts, in the order of the prompts, each ended properly."""

    def set_answers(*answers: str) -> list[int]:
        limits: list[int] = []

        def completions(model, tokenizer, prompts, config, batch_size):
            limits.append(config.max_new_tokens)
            assert len(prompts) == len(answers)
            for place, text in reversed(list(enumerate(answers))):  # they come in any order
                yield place, Completion([*tokenizer.encode(text), tokenizer.end], text, "end")

        monkeypatch.setattr(instructions, "completions", completions)
        return limits

    return set_answers


def report_on(model, tokenizer, conversations, metric="auto", **options) -> Report:
    """Answers to the prompts of a file's conversations."""
    return file_exam(conversations, tokenizer, model.config.context, metric, **options).take(model, tokenizer)


def test_the_world_is_scored_by_its_own_checkers_family_by_family(model, tokenizer, says):
    examples = world.sample("test", 2 * len(world.FAMILIES), seed=1)
    says(*(example.answer for example in examples))
    report = evaluate_examples(model, tokenizer, examples)
    assert set(report.families) == set(world.FAMILIES)
    assert report.macro_average == 1.0 and report.unfinished == report.cut_prompts == 0
    wrong = examples[0].family
    says(*("no such answer" if example.family == wrong else example.answer for example in examples))
    report = evaluate_examples(model, tokenizer, examples)
    assert report.families[wrong].mean == 0.0
    assert report.macro_average == pytest.approx(1 - 1 / len(world.FAMILIES))


def test_a_random_model_follows_no_instruction(model, tokenizer: Tokenizer):
    examples = world.sample("test", len(world.FAMILIES))
    report = evaluate_examples(model, tokenizer, examples, max_new_tokens=3)
    assert report.macro_average <= 0.1 and report.unfinished > 0
    answers = generate(model, tokenizer, [outcome.messages for outcome in report.outcomes], max_new_tokens=3)
    assert [outcome.answer for outcome in report.outcomes] == answers


def test_prompts_too_long_are_cut_as_in_training_and_that_is_said_before_they_are_asked(model, tokenizer):
    long = [*conversation("the cat", "a"), *conversation("7 " * 600 + "the old house", "red birds " * 2)]
    exam = file_exam([conversation("the cat", "x"), long, conversation("a", "b " * 300)], tokenizer, 512, "exact")
    (_, window), _ = all_windows([long], tokenizer, 512)
    assert exam.questions[1].ids == window.ids[~window.is_target].tolist()
    assert [question.is_cut for question in exam.questions] == [False, True, False]
    assert exam.notes()[0].startswith("1 of 3 prompts are too long for 512 tokens: they lose their earliest turns")
    assert exam.notes()[1] == "1 of 3 right answers are longer than what the model has room to say"
    report = report_on(model, tokenizer, [long], "exact", max_new_tokens=4)
    assert report.cut_prompts == 1 and report.outcomes[0].messages == long[:-1], "whole, for the reader"
    assert "1 of 1 prompts lost their front" in report.plain()


def test_prompts_without_a_right_answer_are_answered_and_not_scored(model, tokenizer, says):
    says("yes", "x")
    records = [conversation("the cat", "yes"), conversation("a bird", "")[:1]]
    report = report_on(model, tokenizer, records, "exact")
    assert [(o.answer, o.score, o.reference) for o in report.outcomes] == [("yes", 1.0, "yes"), ("x", None, None)]
    assert report.macro_average == 1.0 and report.unscored == 1
    assert "1 of 2 answers have no score" in report.plain()
    says("x")
    report = report_on(model, tokenizer, records[1:])
    assert report.to_json()["macro_average"] is None and report.to_json()["families"] == {}
    assert report.plain().startswith("1 of 1 answers have no score") and "**model**" in report.samples_markdown()


def test_the_last_number_is_compared(model, tokenizer, says):
    says("so 1,080", "１８", "none", "7")
    references = ["x = 1080\n#### 1080", "#### 18", "#### 5", "no number"]
    records = [conversation(str(i), reference) for i, reference in enumerate(references)]
    report = report_on(model, tokenizer, records, "number")
    assert [o.score for o in report.outcomes] == [1.0, 1.0, 0.0, None]
    assert [o.read_as for o in report.outcomes] == ["1080", "18", "", "7"]
    assert report.metrics["answers without a number"] == 1 and report.score_name == "last number right"
    with pytest.raises(UserError, match="none of the right answers has a number"):
        file_exam([conversation("a", "b")], tokenizer, 512, "number")


def test_words_stand_for_labels(model, tokenizer, says):
    says("It is great.", "bad", "good", "???", "neutral!")
    references = ["positive", "negative", "bad", "positive", "neutral"]
    records = [conversation(str(i), reference) for i, reference in enumerate(references)]
    report = report_on(model, tokenizer, records, labels=["positive=good,great", "negative=bad"])
    assert [o.score for o in report.outcomes] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert (report.metrics["accuracy"], report.metrics["unknown"]) == (0.6, 1)
    assert report.metrics["labels"] == "positive: good, great; negative: bad; neutral: by its name"
    assert report.to_json()["samples"][0]["read_as"] == "positive"
    with pytest.raises(UserError, match="--metric number has no use for them"):
        file_exam(records, tokenizer, 512, "number", labels=["a=b"])


@needs_sacrebleu
def test_noise_is_nothing(model, tokenizer, says):
    says("猫 " * 40, "z")
    records = [conversation("a", "the old cat sat here"), conversation("b", "two red birds")]
    report = report_on(model, tokenizer, records, "translation")
    assert report.to_json()["metrics"]["bleu"] == 0.0 and "bleu: 0.0" in report.notes()


def test_there_is_room_for_the_longest_right_answer_and_its_end(model, tokenizer, says):
    limits = says("a", "b")
    report_on(model, tokenizer, [conversation("a", "1"), conversation("b", "1" * 40)], "exact")
    report_on(model, tokenizer, [conversation("a", "1"), conversation("b", "2")], "exact", max_new_tokens=9)
    assert 41 <= limits[0] <= 60 and limits[1] == 9


def test_labels_are_scored_beside_the_majority(model, tokenizer, says):
    references = ["good"] * 12 + ["bad"] * 4
    says(*["good"] * 8, *["bad"] * 4, *["bad"] * 3, "???")
    records = [conversation(f"review {i}", label) for i, label in enumerate(references)]
    report = report_on(model, tokenizer, records, name="reviews.csv")
    assert report.families["reviews.csv"].mean == pytest.approx(11 / 16)
    assert report.metrics["accuracy"] == pytest.approx(11 / 16)
    # good: 2·8/(8 + 12); bad: 2·3/(7 + 4)
    assert report.metrics["macro_f1"] == pytest.approx((16 / 20 + 6 / 11) / 2)
    assert (report.metrics["majority_label"], report.metrics["majority_accuracy"]) == ("good", 0.75)
    assert report.metrics["unknown"] == 1


@needs_sacrebleu
def test_free_text_is_scored_by_bleu_and_chrf(model, tokenizer, says):
    says("the old cat sat here", "a bird")
    records = [conversation("x", "the old cat sat here"), conversation("y", "two red birds")]
    report = report_on(model, tokenizer, records)
    assert report.macro_average == 0.5
    assert 0 < float(report.metrics["bleu"]) < 100 and 0 < float(report.metrics["chrf"]) < 100


def test_the_last_turn_is_the_reference_and_what_is_before_the_prompt(model, tokenizer, says):
    says("third")
    record = [*conversation("one", "first"), *conversation("two", "third")]
    report = report_on(model, tokenizer, [record], "exact")
    assert report.outcomes[0].messages == record[:3]
    assert (report.outcomes[0].reference, report.macro_average) == ("third", 1.0)


def test_which_metric_auto_takes(monkeypatch: pytest.MonkeyPatch):
    assert choose_metric("auto", ["a", "b"] * 5) == "labels"
    assert choose_metric("auto", [" a", "b\n"] * 5) == "labels"
    free = "translation" if has_sacrebleu() else "exact"
    assert choose_metric("auto", ["a"] * 50) == free  # one label tells nothing apart
    assert choose_metric("auto", ["a", "b"] * 4 + ["c"]) == free  # three labels, three times each
    assert choose_metric("auto", [str(i % 21) for i in range(1000)]) == free
    assert choose_metric("labels", ["a", "b", "c"]) == "labels"
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert choose_metric("auto", ["a", "b", "c"]) == "exact"
    with pytest.raises(UserError, match=r"instructgpt\[eval\]"):
        choose_metric("translation", ["a"])
    with pytest.raises(UserError, match="did you mean 'labels'"):
        choose_metric("label", ["a"])  # pyright: ignore[reportArgumentType]


def test_nothing_to_evaluate_is_an_error(model, tokenizer):
    with pytest.raises(UserError, match="no examples"):
        evaluate_examples(model, tokenizer, [])
    with pytest.raises(UserError, match="no examples"):
        report_on(model, tokenizer, [])
