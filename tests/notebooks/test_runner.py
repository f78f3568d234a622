"""A figure that is not what is stored is seen, and one that is near enough is let pass."""

from __future__ import annotations

from functools import partial

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.notebooks.conftest import pytest_report_teststatus
from tests.notebooks.runner import agree, differences, line_differences, run, tidied


@pytest.mark.parametrize(
    ("stored", "got"),
    [
        ("loss 2.345", "loss 2.345"),
        ("loss 2.345", "loss 2.344"),  # one unit of the last digit
        ("loss 234.5", "loss 236.0"),  # within a hundredth
        ("error 4.1e-07", "error 9.8e-06"),  # both are rounding
        ("-0.50 | 3 of 10", "-0.51 | 3 of 10"),
        ("1,024 tokens", "1,024 tokens"),
        ("loss   9.99", "loss  10.00"),  # a digit more, a space less
    ],
)
def test_near_enough(stored: str, got: str) -> None:
    assert agree(stored, got)


@pytest.mark.parametrize(
    ("stored", "got"),
    [
        ("loss 2.345", "loss 2.445"),
        ("loss 0.34", "loss 0.36"),
        ("loss 0.34", "loss -0.34"),
        ("3 of 10", "4 of 10"),
        ("1,024 tokens", "1,023 tokens"),
        ("error 4.1e-07", "error 4.1e-02"),
        ("the mask: True", "the mask: False"),
        ("loss 2.345", "loss nan"),
        ("1 2 3", "1 2"),
        ("word1", "word2"),  # a digit in a word is a letter
    ],
)
def test_a_difference_is_seen(stored: str, got: str) -> None:
    assert not agree(stored, got)


def test_what_is_trained_may_come_out_differently_by_a_fifth() -> None:
    trained = {"trained"}
    assert agree("right: 30 of 40, loss 0.50", "right: 27 of 40, loss 0.58", trained)
    assert not agree("right: 30 of 40", "right: 20 of 40", trained)
    assert not agree("loss 0.50", "loss 0.75", trained)
    assert not agree("loss 0.50", "rate 0.50", trained)


def test_times_are_anything_but_their_words_are_not() -> None:
    assert agree("took 3.2 s", "took 99.0 s", {"varies"})
    assert not agree("took 3.2 s", "took 3.2 minutes", {"varies"})


def test_samples_are_anything_but_something() -> None:
    assert line_differences(["a cat"], ["two", "dogs"], {"sampled"}) == []
    assert line_differences(["a cat"], [], {"sampled"})


def test_a_missing_line_or_picture_is_seen() -> None:
    assert line_differences(["a", "b"], ["a"])
    drawn = new_notebook(cells=[new_code_cell("x", outputs=[new_output("display_data", {"image/png": "AAAA"})])])
    assert differences(drawn, drawn) == []
    assert differences(drawn, new_notebook(cells=[new_code_cell("x")])) == ["cell 0: 0 pictures, not 1"]


def test_a_warning_is_seen() -> None:
    quiet, loud = (
        new_notebook(cells=[new_code_cell("x", outputs=[new_output("stream", name=name, text=text)])])
        for name, text in (("stdout", ""), ("stderr", "UserWarning: old"))
    )
    assert differences(quiet, loud) == ["cell 0: warns 'UserWarning: old'"]


def test_a_tidy_notebook_has_nothing_of_the_machine() -> None:
    outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"}, metadata={"image/png": {"w": 3}}),
        new_output("execute_result", {"text/plain": "7"}, execution_count=41),
    ]
    cell = new_code_cell("\nx\n", execution_count=9, outputs=outputs, metadata={"tags": ["varies"], "scrolled": True})
    notebook = new_notebook(
        cells=[new_markdown_cell("# T"), cell], metadata={"language_info": {"name": "python", "version": "3"}}
    )
    tidy = tidied(notebook)
    nbformat.validate(tidy)
    assert "version" not in tidy.metadata.language_info and [c.id for c in tidy.cells] == ["cell-0", "cell-1"]
    assert tidy.cells[1].metadata == {"tags": ["varies"]} and tidy.cells[1].source == "x"
    stream, picture, result = tidy.cells[1].outputs
    assert stream.text == "a\nb\n" and dict(picture.data) == {"image/png": "AAAA"} and picture.metadata == {}
    assert tidy.cells[1].execution_count == result.execution_count == 1
    assert tidied(tidy) == tidy
    assert cell.execution_count == 9  # a copy was made


def test_a_notebook_is_run_in_one_thread_in_its_folder_and_what_it_prints_is_kept() -> None:
    source = "import os\nprint(os.environ['OMP_NUM_THREADS'], os.path.basename(os.getcwd()))"
    notebook = new_notebook(cells=[new_code_cell(source), new_code_cell("6 * 7")])
    ran = run(notebook)
    assert [output.text for output in ran.cells[0].outputs] == ["1 notebooks\n"]
    assert ran.cells[1].outputs[0].data["text/plain"] == "42"
    assert differences(ran, run(notebook)) == []


def test_somebody_who_waits_is_told_how_long_each_took() -> None:
    report = partial(pytest.TestReport, "test.py::test[01_tokens]", ("test.py", 1, ""), {}, longrepr=None)
    assert pytest_report_teststatus(report("passed", when="call", duration=83.2)) == ("passed", ".", "PASSED in 83 s")
    assert pytest_report_teststatus(report("passed", when="setup", duration=0.1)) is None
    assert pytest_report_teststatus(report("failed", when="call", duration=83.2)) is None
