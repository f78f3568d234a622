from __future__ import annotations

import pytest
import torch

from instructgpt import world
from instructgpt.config import ModelConfig
from instructgpt.inside.lookup import Lookup, is_lookup, looks, lookup
from instructgpt.inside.parts import head, left_out
from instructgpt.inside.trace import record
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.core import Example, exact
from tests.random_models import talkative

EXAMPLES = [each for each in world.sample("val", 60, families=["table"]) if is_lookup(each)]


def table(question: str, answer: str, language: str = "en", family: str = "table") -> Example:
    text = f"| name | geese | knives |\n| Lily | 9 | 4 |\n| Paul | 4 | 9 |\n| Rosa | 7 | 4 |\n{question}"
    return Example(family, language, [{"role": "user", "content": text}], answer, "val", exact(answer))  # pyright: ignore


@pytest.mark.parametrize(
    ("who", "answer", "right", "wrong"),
    [
        ("Lily", "Lily: geese 9, knives 4. So knives 4.", "9", ["4", "7"]),
        ("Paul", "Paul: geese 4, knives 9. So geese 4.", "4", ["9", "7"]),
        ("Rosa", "Rosa: geese 7, knives 4. So knives 4.", "7", ["9", "4"]),
    ],
)
def test_where_the_numbers_stand(who: str, answer: str, right: str, wrong: list[str], tokenizer: Tokenizer):
    found = lookup(table(f"How many geese does {who} have?", answer), tokenizer)
    said = lambda place: tokenizer.spelt(int(found.ids[place])).strip()  # noqa: E731
    assert said(found.right) == said(-1) == right and [said(place) for place in found.wrong] == wrong
    before = tokenizer.decode(found.ids[: found.right].tolist())
    assert before.rstrip().endswith(f"{who} |")


@pytest.mark.parametrize("size", [340, 600])
def test_of_every_question_the_right_number_is_the_one_that_is_said(size: int):
    tokenizer = Tokenizer.train((m["content"] for each in EXAMPLES for m in each.conversation), size)
    assert len(EXAMPLES) > 10
    for example in EXAMPLES:
        found = lookup(example, tokenizer)
        assert int(found.ids[found.right]) == int(found.ids[-1])
        assert int(found.ids[-1]) not in found.ids[found.wrong].tolist()  # numbers of a column differ
        assert 1 <= len(found.wrong) <= 2 and max(found.right, *found.wrong) < len(found.ids) - 1


@pytest.mark.parametrize(
    ("answer", "language", "family"),
    [
        ("The one with 9 geese is Lily.", "en", "table"),
        ("Lily：geese 9。", "zh", "table"),
        ("Lily: geese 9.", "en", "policy"),
    ],
)
def test_what_is_no_lookup(answer: str, language: str, family: str, tokenizer: Tokenizer):
    example = table("?", answer, language, family)
    assert not is_lookup(example)
    with pytest.raises(ValueError, match="looks no number up"):
        lookup(example, tokenizer)


def test_where_heads_look_is_read_from_the_place_before_the_number(tokenizer: Tokenizer):
    shape = ModelConfig(tokenizer.vocab_size, context=64, layers=2, width=16, heads=2)
    model = talkative(shape).requires_grad_(False)
    ids = torch.arange(12)
    found = looks(model, [Lookup(ids, 3, [5, 7]), Lookup(ids, 4, [5])])
    trace = record(model, ids)
    for layer, attention in enumerate(trace.attention):
        torch.testing.assert_close(found.right[layer], (attention[:, 10, 3] + attention[:, 10, 4]) / 2)
        wrong = (attention[:, 10, 5] + attention[:, 10, 7]) / 2
        torch.testing.assert_close(found.wrong[layer], (wrong + attention[:, 10, 5]) / 2)
    with left_out(model, [head(model.config, 1, 0)]):
        without = model(ids[None])[0, 10].log_softmax(-1)[11]
    torch.testing.assert_close(found.effect[1, 0], model(ids[None])[0, 10].log_softmax(-1)[11] - without)
