"""The number, and what is looked at before it is believed: each way to cheat is refused in a sentence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from instructgpt import world
from instructgpt.config import ModelConfig
from instructgpt.course.race import judge
from instructgpt.course.race.entry import HELD_OUT_SEED, Rules
from instructgpt.course.race.judge import another, blind, cost, pieces, race, require_unseen
from instructgpt.data.packing import collate
from instructgpt.data.sources import WorldText
from instructgpt.errors import UserError
from instructgpt.evaluation.loss import evaluate_loss
from instructgpt.model.transformer import Transformer
from instructgpt.text.tokenizer import Tokenizer
from instructgpt.world.documents import kind

DOCUMENTS = [world.document(index, HELD_OUT_SEED) for index in range(6)]
SHORT = Rules(minutes=5e-5, documents=8, cores=1000)
HEAD = """
from instructgpt.config import ModelConfig
from instructgpt.course.race.entry import Entry
from instructgpt.training.loop import FitConfig
FIT = FitConfig(learning_rate=0.01, warmup_steps=2)
MODEL = ModelConfig(context=32, layers=1, width=16, heads=1)
SMALL = dict(change="a try", fit=FIT, rows=2, row_length=32, vocab_size=1500)
"""
HONEST = HEAD + "def entry():\n    return Entry(model=MODEL, **SMALL)\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train((world.document(index) for index in range(300)), 1200)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, context=512, layers=1, width=16, heads=1)
    ).eval()  # fmt: skip


@torch.no_grad()
def test_the_number_is_that_of_the_evaluation(model: Transformer, tokenizer: Tokenizer) -> None:
    bits = cost(model, tokenizer, DOCUMENTS, 512)
    source = WorldText(tokenizer, HELD_OUT_SEED)
    for index, document_bits in enumerate(bits):
        report = evaluate_loss(model, tokenizer, [collate([[source[index]]], 512)])
        assert document_bits == pytest.approx(report.loss * report.tokens / math.log(2), rel=1e-5)
        assert report.bytes == len(DOCUMENTS[index].encode())


def test_every_token_is_paid_for_once_however_long_a_row_is(tokenizer: Tokenizer) -> None:
    """Equally probable tokens: log2(V) bits each, and one for the end."""
    V = tokenizer.vocab_size
    tokens = [len(tokenizer.encode(text)) + 1 for text in DOCUMENTS]
    for row_length in (7, 32, 1000):
        bits = cost(lambda ids: torch.zeros(*ids.shape, V), tokenizer, DOCUMENTS, row_length)
        assert bits == pytest.approx([count * math.log2(V) for count in tokens])


# ---- cheats, on logits


def looks_ahead(model: Transformer) -> Callable[[Tensor], Tensor]:
    def ask(ids: Tensor) -> Tensor:
        logits = model(ids)
        return logits.scatter_add(2, ids.roll(-1, 1)[..., None], torch.full((*ids.shape, 1), 3.0))

    return ask


@torch.no_grad()
def test_who_looks_ahead_is_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    for row_length in (512, 20):
        honest = cost(blind(model, tokenizer.vocab_size), tokenizer, DOCUMENTS, row_length)
        assert honest == pytest.approx(cost(model, tokenizer, DOCUMENTS, row_length))
        with pytest.raises(UserError, match="depend on tokens that come later"):
            cost(blind(looks_ahead(model), tokenizer.vocab_size), tokenizer, DOCUMENTS, row_length)


@torch.no_grad()
@pytest.mark.parametrize("largest", [(0, 1e6), (-1e6, 0)])
def test_large_logits_hide_nothing(largest, model: Transformer, tokenizer: Tokenizer) -> None:
    """A constant in all of them, or one token that is as good as impossible: for what is paid, both are nothing."""
    pad, rest = largest

    def ask(ids: Tensor, cheats: bool) -> Tensor:
        logits = (looks_ahead(model) if cheats else model)(ids).double() + rest
        logits[..., tokenizer.pad] += pad
        return logits

    cost(blind(lambda ids: ask(ids, cheats=False), tokenizer.vocab_size), tokenizer, DOCUMENTS, 64)
    with pytest.raises(UserError, match="depend on tokens that come later"):
        cost(blind(lambda ids: ask(ids, cheats=True), tokenizer.vocab_size), tokenizer, DOCUMENTS, 64)


@torch.no_grad()
@pytest.mark.parametrize("honest", [2, 5, 11])
def test_who_begins_to_look_ahead_later_is_refused(honest: int, model: Transformer, tokenizer: Tokenizer) -> None:
    """It answers rightly as often as somebody may think that it is watched."""
    times = iter(range(1000))
    ask = blind(lambda ids: (model if next(times) < honest else looks_ahead(model))(ids), tokenizer.vocab_size)
    with pytest.raises(UserError, match="depend on tokens that come later"):
        cost(ask, tokenizer, DOCUMENTS, 8)


def test_a_single_token_in_a_row_has_none_that_come_later(tokenizer: Tokenizer) -> None:
    V = tokenizer.vocab_size
    ask = blind(lambda ids: torch.zeros(*ids.shape, V), V)
    assert cost(ask, tokenizer, DOCUMENTS[:1], 1) == pytest.approx(
        [(len(tokenizer.encode(DOCUMENTS[0])) + 1) * math.log2(V)]
    )


def test_who_knows_the_held_out_text_is_refused() -> None:
    """A hundred pairs, whose kinds cost 0.5 to 1.5 bits a byte; texts of a kind differ by 0.1."""
    rng = random.Random(0)
    kinds, sizes = [rng.uniform(0.5, 1.5) for _ in range(100)], [rng.randint(200, 400) for _ in range(100)]
    cost = lambda share: [(share * each + rng.gauss(0, 0.1)) * size for each, size in zip(kinds, sizes)]  # noqa: E731
    for _ in range(20):
        require_unseen(cost(1.0), sizes, cost(1.0), sizes)
    with pytest.raises(UserError, match=r"it knows the held-out text: 0\.\d+ bits per byte there, and \d\.\d+"):
        require_unseen(cost(0.9), sizes, cost(1.0), sizes)


def test_the_doubt_is_that_of_a_hand_computation() -> None:
    """Three pairs of a byte each that are 1, 2 and 3 bits apart: 2 on average, 3.46 standard errors of 1 / √3."""
    require_unseen([1.0, 5.0, 9.0], [1, 1, 1], [2.0, 7.0, 12.0], [1, 1, 1])
    with pytest.raises(UserError, match=r"5\.000 bits per byte there, and 8\.000"):  # one bit more: 5.2 of them
        require_unseen([1.0, 5.0, 9.0], [1, 1, 1], [3.0, 8.0, 13.0], [1, 1, 1])


def test_fresh_text_is_of_the_same_kinds_and_new() -> None:
    texts = [another(index, HELD_OUT_SEED) for index in range(12)]
    assert not set(texts) & {world.document(index, HELD_OUT_SEED) for index in range(12)}
    for index, text in enumerate(texts):
        is_chinese = any("\u4e00" <= letter <= "\u9fff" for letter in text)
        assert is_chinese or kind(index, HELD_OUT_SEED)[1] == "en"


def test_a_vocabulary_that_loses_text_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "encode", lambda text: [tokenizer.eos])
    with pytest.raises(UserError, match="does not give back the text"):
        list(pieces(tokenizer, "a cat", 32))


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda logits: logits * math.nan, "not finite"),
        (lambda logits: logits * math.inf, "not finite"),
        (lambda logits: logits - math.inf, "not finite"),
        (lambda logits: logits[..., :9], "logits of 9 tokens, its vocabulary"),
    ],
)
def test_what_are_no_logits_is_refused(spoil, told: str, model: Transformer, tokenizer: Tokenizer) -> None:
    def ask(ids: Tensor) -> Tensor:
        return spoil(model(ids))

    for asked in (ask, blind(ask, tokenizer.vocab_size)):
        with pytest.raises(UserError, match=told), torch.no_grad():
            cost(asked, tokenizer, DOCUMENTS, 512)


# ---- whole, in a process


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., judge.Finish]:
    def run(text: str, rules: Rules = SHORT) -> judge.Finish:
        (tmp_path / "mine.py").write_text(text)
        return race(tmp_path / "mine.py", rules)

    return run


def test_an_entry_is_trained_and_scored(run) -> None:
    finish = run(HONEST + "print('a word in between')\n")
    assert len(finish.bits) == 8 and 1 < finish.score.mean < 5
    assert finish.told["flops"] <= SHORT.flops and finish.told["stopped_by"] == ""
    assert finish.told["updates"] == finish.told["planned_updates"] >= 10


SELF_MADE = (
    HEAD
    + '''
import torch
from torch import nn
from torch.nn import functional as F
class Mine(nn.Module):
    """Of each token what follows it."""
    def __init__(self, size):
        super().__init__()
        self.table, self.head = nn.Embedding(size, 16), nn.Linear(16, size)
        self.asked = 0
    def forward(self, ids, positions=None, documents=None):
        self.asked += not self.training
        return BODY
def entry():
    return Entry(model=Mine, **SMALL)
'''
)
FORGETFUL = "self.head(self.table(ids)) * (1 + 0.01 * self.asked)"
AHEAD = "self.head(self.table(ids.roll(-1, 1) if not self.training else ids))"
TRAINS_ON_HELD_OUT = (
    HEAD
    + """
from instructgpt import world
from instructgpt.course.race.entry import HELD_OUT_SEED
from instructgpt.data import sources
real = world.document
world.document = lambda index, seed=0: real(index % 16, HELD_OUT_SEED)
def entry():
    return Entry(model=ModelConfig(context=256, layers=2, width=64, heads=1), **(SMALL | dict(row_length=256)))
"""
)
METERED = (
    HEAD
    + """
from torch.utils._python_dispatch import _get_current_dispatch_mode
from instructgpt.objectives.lm import next_token_loss
calls = []
def loss(model, batch):
    calls.append(1)
    meter = _get_current_dispatch_mode()
    if len(calls) > 1:
        DO
    return next_token_loss(model, batch)
def entry():
    return Entry(model=MODEL, loss=loss, **SMALL)
"""
)
IN_A_PROCESS = {
    "trains on held-out text": (
        TRAINS_ON_HELD_OUT, Rules(minutes=0.05, documents=16), "it knows the held-out text: .* was drawn after"
    ),
    "not finite": (HONEST.replace("0.01", "1e30"), SHORT, "was not finite 5 times in a row"),
    "answers otherwise when asked again": (
        SELF_MADE.replace("BODY", FORGETFUL), SHORT, "tokens that come later|asked again"
    ),
    "looks ahead": (SELF_MADE.replace("BODY", AHEAD), SHORT, "tokens that come later"),
    "replaces the meter": (
        HONEST + "from instructgpt.course.race.meter import Meter\nMeter.flops = 0\n", SHORT, "it replaces Meter.flops"
    ),
    "empties the meter": (METERED.replace("DO", "meter.flops = 0"), SHORT, "the first one alone to .* are not counted"),
    "stops the meter later": (
        METERED.replace("DO", "type(meter).__torch_dispatch__ = lambda self, f, t, a=(), k=None: f(*a, **(k or {}))"),
        SHORT, "the first one alone to .* are not counted",
    ),
    "replaces the clock": (HONEST + "import time\ntime.process_time = lambda: 0.0\n", SHORT, "it replaces time"),
    "leads the training itself": (
        HONEST + "from instructgpt.training import loop\nloop.fit = None\nfrom instructgpt.course.race import racer\n"
        "racer.fit = None\n", SHORT, "it replaces instructgpt",
    ),
    "ends its process": (HONEST + "import os\nos._exit(3)\n", SHORT, r"exit code 3\) before it had answered"),
    "runs for ever": (
        HONEST + "while True: pass\n", replace(SHORT, beside=6.0, share=0.1), "took more than .* s of CPU time"
    ),
    "sleeps": (
        HONEST + "import time\ntime.sleep(1e6)\n", replace(SHORT, cores=1, beside=8.0, share=1.0),
        "had not ended after 8 s: does it sleep",
    ),
    "speaks for the racer": (
        HONEST + "import os\nfor number in range(3, 30):\n    try: os.write(number, b'{}\\n')\n"
        "    except OSError: pass\n", SHORT, "its process says what is no answer",
    ),
    "looks ahead once it is trusted": (
        SELF_MADE.replace("BODY", AHEAD.replace("not self.training", "self.asked > 9")), replace(SHORT, documents=64),
        "tokens that come later",
    ),
    "no such model": (HEAD + "def entry():\n    return Entry(model=lambda size: size, **SMALL)\n", SHORT, "made int"),
    "a loss that is a number": (
        HEAD + "def entry():\n    return Entry(model=MODEL, loss=lambda model, batch: 1.0, **SMALL)\n", SHORT,
        "its loss gives float",
    ),
    "a loss that raises": (
        HEAD + "def entry():\n    return Entry(model=MODEL, loss=lambda model, batch: 1 / 0, **SMALL)\n", SHORT,
        r"mine\.py:\d+: training it raised ZeroDivisionError",
    ),
    "a model that raises when it is judged": (
        SELF_MADE.replace("BODY", "self.head(self.table(ids)) if self.training else 1 / 0"), SHORT,
        r"mine\.py:\d+: asking its model raised ZeroDivisionError",
    ),
    "the wrong shape": (
        SELF_MADE.replace("BODY", "self.head(self.table(ids))[:, :(None if self.training else 3)]"), SHORT,
        r"its model gives \(8, 3, 1500\) for ids",
    ),
    "changes the counts": (
        HONEST + "from instructgpt.course.race import meter\nmeter.COUNTS.clear()\n", SHORT, "has no attribute 'clear'"
    ),
    "too dear": (
        HONEST, Rules(minutes=1e-9, cores=10**9), "one update costs .* FLOPs, and all that there are is 4.00e.03"
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_what_is_against_the_rules_is_told_in_a_sentence(name: str, run, monkeypatch: pytest.MonkeyPatch) -> None:
    text, rules, told = IN_A_PROCESS[name]
    with pytest.raises(UserError, match=told):
        run(text, rules)
