from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import UserError
from instructgpt.generation import constraints
from instructgpt.generation.constraints import (
    Guide,
    any_json_constraint,
    choice_constraint,
    regex_constraint,
    schema_constraint,
)
from instructgpt.text.byte_bpe import ByteBPE
from instructgpt.text.formats import format_named
from instructgpt.text.tokenizer import Special, Tokenizer

TEXTS = [f'the cat {i} saw {i * 7} birds. 猫看见鸟。 {{"age": {i}, "name": "Ann"}}' for i in range(60)]
LETTERS = [bytes([i]) for i in range(256)]


def byte_level() -> Tokenizer:
    """A byte-level BPE as others have it: every byte, a few merges across quotes and characters, control tokens."""
    from instructgpt.text.byte_bpe import _byte_letters  # how it writes bytes

    letter = {byte: sign for sign, byte in _byte_letters().items()}
    pairs = [
        (b'"', b":"),
        (b" ", b'"'),
        (b"a", b"g"),
        (b"ag", b"e"),
        (b"\xe7", b"\x8c"),
        (b"\xe7\x8c", b"\xab"),
        (b"}", b"\n"),
    ]
    spelt = lambda data: "".join(letter[byte] for byte in data)  # noqa: E731
    pieces = [spelt(data) for data in LETTERS] + [spelt(a + b) for a, b in pairs]
    merges = [f"{spelt(a)} {spelt(b)}" for a, b in pairs]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {len(pieces) + i: True for i in range(3)}
    model = ByteBPE.from_pieces([*pieces, *control], merges, ids, "gpt-2")
    return Tokenizer(model, Special(eos=len(pieces), ends=(len(pieces) + 2,)), format_named("chatml"))


@pytest.fixture(scope="module", params=["ours", "unigram", "byte-level"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte-level":
        return byte_level()
    kind, size = ("bpe", 310) if request.param == "ours" else ("unigram", 303)
    return Tokenizer.train(TEXTS, size, kind)


def answered(
    guide: Guide, tokenizer: Tokenizer, random: Any, most: int = 80, raw: bool = False
) -> tuple[str, bool, bool]:
    """What a random model says: the text, whether it closed it, whether that is valid."""
    answer, text = guide.start(), tokenizer.stream("rest" if raw else "answer")
    may_follow = torch.ones(tokenizer.vocab_size + 3, dtype=torch.bool)  # a model may have embeddings to spare
    said = ""
    for _ in range(most):
        answer.allow(may_follow)
        tokens = may_follow.nonzero().flatten().tolist()
        assert tokens and tokens[-1] < tokenizer.vocab_size
        closing = [token for token in tokens if token in tokenizer.closing]
        assert bool(closing) == answer.is_complete
        if closing and (len(closing) == len(tokens) or not random.randrange(4)):
            answer.accept(closing[0])
            return said + text.flush(), True, answer.is_complete
        token = random.choice([token for token in tokens if token not in tokenizer.closing])
        assert tokenizer.byte_lengths[token] > 0
        answer.accept(token)
        said += text.push(token)
    return said, False, answer.is_complete


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "猫", None]}, "maxItems": 2},
    },
    "required": ["age"],
}  # fmt: skip


@pytest.mark.parametrize("raw", [False, True])
@given(random=st.randoms(use_true_random=False))
def test_whatever_a_random_model_says_is_valid_or_cut(tokenizer: Tokenizer, raw: bool, random: Any):
    text, closed, valid = answered(any_json_constraint(tokenizer, raw), tokenizer, random, raw=raw)
    if valid:
        json.loads(text)
    text, closed, valid = answered(schema_constraint(SCHEMA, tokenizer, raw), tokenizer, random, raw=raw)
    if valid:
        found = json.loads(text)
        assert (
            0 <= found["age"] <= 120
            and len(found.get("name", "")) <= 4
            and set(found.get("tags", [])) <= {"x", "猫", None}
        )
    pattern = r" ?[a-c猫]{1,4}(, \d+)?|yes"
    text, closed, valid = answered(regex_constraint(pattern, tokenizer, raw), tokenizer, random, raw=raw)
    assert bool(re.fullmatch(pattern, text)) == valid
    options = ["yes", "yes, sir", " no", "猫", "看见鸟"]
    text, closed, valid = answered(choice_constraint(options, tokenizer, raw), tokenizer, random, raw=raw)
    assert closed and valid and text in options


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=5))
def test_every_choice_can_be_made_as_it_is_tokenised(tokenizer: Tokenizer, options: list[str]):
    guide = choice_constraint(options, tokenizer)
    for text in options:
        answer = guide.start()
        if tokenizer.stream("answer").has_space:
            text = " " + text
        for token in tokenizer.subwords.encode_within(text):
            answer.accept(token)
        assert answer.is_complete


def test_tokens_that_may_follow_are_found_as_one_by_one(tokenizer: Tokenizer):
    guide = schema_constraint(SCHEMA, tokenizer)
    answer = guide.start()
    may_follow = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
    for token in tokenizer.subwords.encode_within('{"name": "猫a", "age": 1'):
        answer.allow(may_follow)
        for other in range(tokenizer.vocab_size):
            data = tokenizer.token_bytes(other)
            follows = bool(data) and answer._automaton.read(answer._state, data) >= 0
            assert bool(may_follow[other]) == follows or other in tokenizer.closing
        answer.accept(token)


def test_what_does_not_follow_is_not_accepted(tokenizer: Tokenizer):
    answer = regex_constraint("a+", tokenizer).start()
    (wrong,) = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"b"][:1]
    control = next(
        i for i in range(tokenizer.vocab_size) if not tokenizer.byte_lengths[i] and i not in tokenizer.closing
    )
    for token in (wrong, control):
        with pytest.raises(ValueError, match=f"token {token} may not come here"):
            answer.accept(token)


def test_a_constraint_is_compiled_once_and_an_automaton_does_not_grow_for_ever(monkeypatch):
    tokenizer = byte_level()
    assert any_json_constraint(tokenizer) is any_json_constraint(byte_level())
    assert any_json_constraint(tokenizer) is not any_json_constraint(tokenizer, raw=True)
    monkeypatch.setattr(constraints, "_KEPT_STATES", 5)
    monkeypatch.setattr(constraints, "_KEPT_MASKS", 2)
    guide = Guide(constraints._expression("regex", "a{0,50}"), tokenizer)
    first, may_follow = guide.start(), torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
    for _ in range(20):
        first.allow(may_follow)
        first.accept(ord("a"))
    second = guide.start()
    second.accept(ord("a"))
    first.accept(ord("a"))
    assert first.is_complete and second.is_complete
    assert second._automaton is not first._automaton and len(first._masks) <= 2


WRONG = {
    "the schema is no JSON: Expecting property name": ("schema", "{"),
    "the schema has NaN": ("schema", '{"minimum": NaN}'),
    "nothing meets it, or what would never ends": ("schema", {"$ref": "#"}),
    "schema.type is \"x\"": ("schema", {"type": "x"}),
    "the schema is no JSON": ("schema", {"enum": [object()]}),
    "the schema has 100,006 characters; 100,000 are allowed": ("schema", {"a": "x" * 99_997}),
    "nested too deep": ("schema", "[" * 50_000),
    "regular expression: '(' at character 1": ("regex", "("),
    "it can be met in too many ways at once": ("regex", "(a?){5000}b"),
    "choices is []": ("choices", []),
    "choices is ['']": ("choices", [""]),
    "choices is 'abc'": ("choices", "abc"),
    "choices is ['a', 3]": ("choices", ["a", 3]),
    "half a character": ("choices", ["\ud800"]),
}  # fmt: skip


@pytest.mark.parametrize("told", WRONG)
def test_what_is_wrong_is_told_at_once(told: str):
    kind, given = WRONG[told]
    make = {"schema": schema_constraint, "regex": regex_constraint, "choices": choice_constraint}[kind]
    with pytest.raises(UserError) as error:
        make(given, byte_level())
    assert told in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_bytes_that_no_token_spells_are_not_asked_for(monkeypatch):
    tokenizer = byte_level()
    few = [data if data in (b"a", b"c") else b"" for data in tokenizer._bytes]
    monkeypatch.setattr(tokenizer, "_bytes", few)
    constraints._vocabulary.cache_clear()
    constraints._guide.cache_clear()
    try:
        guide = regex_constraint("ab|ac|c", tokenizer)
        answer, may_follow = guide.start(), torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
        answer.accept(ord("a"))
        answer.allow(may_follow)
        assert may_follow.nonzero().flatten().tolist() == [ord("c")]
        with pytest.raises(UserError, match="nothing meets it"):
            regex_constraint("b+", tokenizer)
    finally:
        constraints._vocabulary.cache_clear()
        constraints._guide.cache_clear()
