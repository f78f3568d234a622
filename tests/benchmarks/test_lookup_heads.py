from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.lookup_heads import LookupHeadsConfig, chosen, controls, measure, questions
from benchmarks.untrained import random_run
from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.inside.lookup import HeadLooks, is_lookup


def test_questions_are_as_many_as_asked_for_and_of_their_split():
    found = questions("val", 25)
    assert len(found) == 25 and all(is_lookup(each) and each.split == "val" for each in found)
    assert found == questions("val", 25) != questions("val", 25, seed=1)


def test_heads_are_chosen_by_where_they_look():
    right, wrong = torch.tensor([[0.5, 0.1], [0.9, 0.3]]), torch.tensor([[0.1, 0.1], [0.1, 0.2]])
    found = HeadLooks(right, wrong, torch.zeros(2, 2))
    assert chosen(found, 0.3) == [(1, 0), (0, 0)]
    assert chosen(found, 0.9) == []
    assert chosen(found, 0.0) == [(1, 0), (0, 0)]  # others must be left, to be compared with


def test_controls_are_other_heads():
    few = LookupHeadsConfig(controls=5)
    assert controls(few, 1, [(1, 0)], (2, 2)) == [[(0, 0)], [(0, 1)], [(1, 1)]]  # all there are
    drawn = controls(few, 2, [(0, 3), (3, 1)], (4, 4))
    assert len(drawn) == 5 and all(len(set(each)) == 2 and not {(0, 3), (3, 1)} & set(each) for each in drawn)


def test_it_measures_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = random_run(tmp_path / "sft", ModelConfig(vocab_size=320, context=256, layers=2, width=16, heads=2))
    settings = dict(run=str(run), found_on=3, n=2, others=0, controls=1, json=str(tmp_path / "found.json"))
    with pytest.raises(UserError, match="no head looks at the right number by 1"):
        measure(LookupHeadsConfig(**settings, least=1.0))
    assert measure(LookupHeadsConfig(**settings, least=0.0)) == 0
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["lookup_heads"] and document["scores"]["all heads"]["n"] == 2 and document["controls"] == 1
    assert "without the look-up heads" in capsys.readouterr().out
