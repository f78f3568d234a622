from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from instructgpt.evaluation.report import Outcome, Report
from instructgpt.evaluation.scores import macro_interval, mean_interval
from instructgpt.figures import write_json
from instructgpt.generation.request import Finish
from instructgpt.text.chat import Message


def outcome(family: str, score: float, answer: str = "an answer", finish: Finish = "end", cut: bool = False) -> Outcome:
    messages: list[Message] = [{"role": "user", "content": f"ask {family}"}]
    return Outcome(family, messages, "the reference", answer, score, finish, prompt_is_cut=cut)


@pytest.fixture
def report() -> Report:
    outcomes = [outcome("sort", 1.0), outcome("add", 0.0, finish="length"), outcome("sort", 1.0), outcome("add", 1.0)]
    return Report([*outcomes, outcome("add", 0.0, cut=True)], "score", {"mean in en": 0.75, "label": "x"})


def test_scores_by_family_and_over_all(report: Report):
    assert list(report.families) == ["add", "sort"]
    assert report.families == {"add": mean_interval([0, 1, 0]), "sort": mean_interval([1, 1])}
    assert report.macro_average == pytest.approx((1 / 3 + 1) / 2)  # not 3 of 5: each family weighs alike
    assert report.macro == macro_interval(list(report.families.values()))
    assert report.half_width == pytest.approx((report.macro.high - report.macro.low) / 2)
    assert (report.unfinished, report.cut_prompts) == (1, 1)


def test_json_is_whole_and_can_be_read_back(report: Report, tmp_path: Path):
    write_json(tmp_path / "eval.json", report.to_json())
    read = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert read == report.to_json()
    assert read["macro_average"] == pytest.approx(report.macro_average, abs=1e-6)
    assert read["examples"] == 5 and read["families"]["add"]["n"] == 3
    assert read["families"]["add"]["score"] == 0.333333, "and no digit of noise"
    assert [sample["family"] for sample in read["samples"]] == ["add", "add", "add", "sort", "sort"]
    assert len(report.to_json(samples_per_family=1)["samples"]) == 2


def test_samples_are_the_first_ones_not_the_best(report: Report):
    assert [sample.score for sample in report.samples(1)] == [0.0, 1.0]


def test_the_table_and_the_plain_text_say_the_same(report: Report):
    output = io.StringIO()
    Console(file=output, width=120).print(report.table("test"))
    for text in (output.getvalue(), report.plain()):
        for expected in (
            "add",
            "0.333",
            "sort",
            "1.000",
            "macro average",
            "0.667",
            "0.342 to 1.000",
            "mean in en: 0.75",
        ):
            assert expected in text
        assert "1 of 5 answers were cut off" in text and "1 of 5 prompts lost their front" in text


def test_plain_columns_are_aligned(report: Report):
    lines = report.plain().splitlines()[:4]
    assert len({len(line) for line in lines}) == 1


def test_one_family_needs_no_average():
    report = Report([outcome("file.csv", 1.0)], metrics={})
    assert "macro average" not in report.plain()
    assert report.macro_average == 1.0


def test_text_is_not_taken_for_markup():
    report = Report([outcome("[red]a[/b]", 1.0), outcome("[/x]", 0.0)], metrics={"label": "[/oops]"})
    output = io.StringIO()
    Console(file=output, width=120).print(report.table("[title]"))
    assert all(text in output.getvalue() for text in ("[red]a[/b]", "[/x]", "[/oops]", "[title]"))


def test_samples_as_markdown_cannot_break_out_of_their_block():
    report = Report([outcome("add", 0.5, answer="```\n# not a heading")])
    markdown = report.samples_markdown()
    assert "````\n```\n# not a heading\n````" in markdown
    assert "score 0.50" in markdown and "the reference" in markdown and "ask add" in markdown
