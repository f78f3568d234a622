"""Tables and pictures of the documents: written anew, found stale at the right line, refused where they are unknown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import documents, picture
from benchmarks.cells import short
from benchmarks.documents import DocumentsConfig, provenance, rewritten, run
from benchmarks.tables import TABLES, kept, result
from benchmarks.trained import TrainedConfig, measure
from instructgpt.errors import UserError

ROOT = Path(__file__).parents[2]
BEFORE = "# A page\n\nSome words.\n\n<!-- figures: agreement -->\n<!-- end -->\n\nMore.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of one page, with the real results."""
    shutil.copytree(ROOT / documents.RESULTS, tmp_path / documents.RESULTS)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(BEFORE)
    return tmp_path


def test_what_is_stale_is_told_by_file_line_and_command_and_then_written(root: Path, capsys) -> None:
    assert run(DocumentsConfig(check=True), root) == 1
    told = capsys.readouterr().out
    source = "benchmarks/results/cpu-agreement.json"
    assert f"README.md:5: not what {source} says; run: make docs" in told and "docs/results.svg:1: " in told
    assert (root / "README.md").read_text() == BEFORE, "--check writes nothing"
    assert run(DocumentsConfig(), root) == 0 and "written anew" in capsys.readouterr().out
    text = (root / "README.md").read_text()
    assert "| llama.cpp on | equal answers |\n|---|---|\n" in text and "4 of 20" in text
    assert text.startswith("# A page\n\nSome words.\n") and text.endswith("<!-- end -->\n\nMore.\n")
    assert run(DocumentsConfig(check=True), root) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["comparisons"][0].update(equal=5),
        lambda found: found["comparisons"].pop(),
        lambda found: found.update(commit="0123456789"),
    ],
)
def test_new_figures_make_a_page_stale(change, root: Path) -> None:
    run(DocumentsConfig(), root)
    file = root / documents.RESULTS / "cpu-agreement.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))
    assert [each.line for each in rewritten(root, root / "README.md")[1]] == [5]


def test_a_table_that_was_edited_by_hand_is_stale(root: Path) -> None:
    run(DocumentsConfig(), root)
    page = root / "README.md"
    page.write_text(page.read_text().replace("4 of 20", "14 of 20"))
    assert run(DocumentsConfig(check=True), root) == 1
    run(DocumentsConfig(), root)
    assert "14 of 20" not in page.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\n<!-- figures: agreemnt -->\n<!-- end -->\n", "README.md:2: there is no table 'agreemnt'; did you mean"),
        ("<!-- figures: train -->\n| a |\n", "README.md:1: the table 'train' is not closed"),
        ("<!-- figures: train -->\n<!-- figures: decode -->\n<!-- end -->\n", "README.md:1: the table 'train' is not"),
        ("<!-- figures: -->\n<!-- end -->\n", "README.md:1: there is no table ''"),
    ],
)
def test_a_wrong_mark_is_told_and_nothing_is_written(text: str, said: str, root: Path) -> None:
    (root / "README.md").write_text(text)
    (root / "README.zh.md").write_text(BEFORE)
    with pytest.raises(UserError) as error:
        run(DocumentsConfig(), root)
    assert str(error.value).startswith(said)
    assert (root / "README.zh.md").read_text() == BEFORE


def test_a_chinese_page_has_chinese_tables(root: Path) -> None:
    page = root / "docs" / "a.zh.md"
    page.write_text("<!-- figures: train -->\n<!-- end -->\n")
    text, stale = rewritten(root, page)
    assert stale[0].file == "docs/a.zh.md" and "| 模型 | 测试 |" in text and "核，torch" in text and "0.938" in text


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_table(name: str) -> None:
    table = TABLES[name]
    header, *rows = table.rows(documents.found(ROOT, table.file))
    assert rows and all(len(row) == len(header) and not any("|" in cell for cell in row) for row in rows)
    assert len(set(rows)) == len(rows)


def test_a_document_shows_every_table() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in documents.documents(ROOT))
    assert [name for name in TABLES if f"<!-- figures: {name} -->" not in text] == []


def test_accounts_are_summed() -> None:
    lines = ["a.json: 1,000 records read, 1,990 kept, 10 dropped", "  dropped 10: empty answer (first at a.json:3)"]
    assert kept(lines) == "1,990 of 2,000 (10 × empty answer, in 1,000 records)"
    assert kept(["a: 3 records read, 3 kept, 0 dropped", "b: 4 records read, 3 kept, 1 dropped"]) == "6 of 7"
    assert kept(["compile off"]) == ""


def test_what_was_answered_and_not_scored_has_no_result() -> None:
    report = {"macro_average": None, "examples": 8, "metrics": {}, "score": "exact match"}
    assert result({"scores": {"a.jsonl": report, "b.jsonl": report}}) == ("16 questions", "answered, not scored")


def test_figures_say_what_they_were_measured_on() -> None:
    machine = {"device": "cpu", "processor": "Intel(R) Xeon(R) Processor", "instructions": ["avx512f"], "cores": 1}
    assert provenance(machine, "x.json") == "Measured on Intel Xeon (avx512f), 1 core: `benchmarks/results/x.json`."
    assert provenance({}, "x.json") == "Figures: `benchmarks/results/x.json`."
    gpu = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}}
    assert provenance(gpu, "x.json").startswith("Measured on NVIDIA H200, torch 2.11.0: ")
    assert [short(value) for value in (0.234, 12.34, 170.2, 1234.0)] == ["0.23", "12.3", "170", "1,234"]


def test_the_picture_is_drawn_to_scale() -> None:
    train, rlhf = documents.found(ROOT, "cpu-train.json"), documents.found(ROOT, "cpu-rlhf.json")
    drawn = ElementTree.fromstring(picture.results(train, rlhf))
    bars = [float(each.get("width", 0)) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
    scores = [split["score"] for split in train["models"]["tuned"]["scores"].values()]
    scores += [stage["true_reward"] for stage in rlhf["stages"]]
    assert bars == pytest.approx([180 * score for score in scores], abs=0.06)


def test_what_make_train_left_becomes_a_result(tmp_path: Path) -> None:
    report = {"macro_average": 0.5, "interval": [0.4, 0.6], "examples": 9, "families": {"add": {"score": 0.5}}}
    training = dict(answer_loss=1.0, text_bits_per_byte=2.0, steps=3, tokens=4, minutes=5.0, tokens_per_second=6.0)
    for run_, seed in (("a", 0), ("b", 1)):
        (tmp_path / run_).mkdir()
        both = {name: {"scores": {"test": report}, **training, "val_loss": 7.0} for name in ("base", "tuned")}
        (tmp_path / run_ / "eval.json").write_text(json.dumps(both))
        (tmp_path / run_ / "pipeline.json").write_text(json.dumps({"seed": seed}))
    (tmp_path / "more.json").write_text(json.dumps({"results": {"world, test": report}}))
    json_file = tmp_path / "out.json"
    config = TrainedConfig(
        run=str(tmp_path / "a"), others=(str(tmp_path / "b"),), evals=(str(tmp_path / "more.json"),),
        json=str(json_file), minutes=16.0,
    )  # fmt: skip
    assert measure(config) == 0
    found = json.loads(json_file.read_text())
    scores = {"test": {"score": 0.5, "interval": [0.4, 0.6], "examples": 9}}
    assert found["models"]["base"] == {"scores": scores, **training} and found["minutes"] == 16.0
    assert found["other_seeds"]["1"]["scores"] == scores and found["seed"] == 0
    assert found["more_examples"]["test"]["families"] == {"add": 0.5}
    with pytest.raises(UserError, match="no JSON can be read"):
        measure(TrainedConfig(run=str(tmp_path / "none")))
