"""The planner's bytes beside those of real steps: what operators make, and what allocators give (slow, or on a GPU)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.model import Transformer
from instructgpt.model.adapters import LoRA, count_trained
from instructgpt.model.backend import naive, sdpa, triton
from instructgpt.objectives.lm import next_token_loss
from instructgpt.runtime import resolve_precision
from instructgpt.training.adapter_file import AdapterRecord, add_recorded
from instructgpt.training.loop import FitConfig, Hooks, fit
from instructgpt.training.memory import Meter, Plan, step_memory
from instructgpt.training.optimizer import OptimizerConfig

CPU = torch.device("cpu")
GPT2 = dict(mlp="gelu", norm="layernorm", position="learned", bias=True)
SHAPES = {
    "gpt2": (ModelConfig(vocab_size=200, context=64, layers=3, width=48, heads=3, **GPT2), 4),  # type: ignore[arg-type]
    "llama": (ModelConfig(vocab_size=50, context=32, layers=2, width=64, heads=4, kv_heads=2), 6),
    "tiny": (ModelConfig(vocab_size=300, context=48, layers=2, width=32, heads=2, qk_norm=True, qk_window=4), 3),
    "long": (
        ModelConfig(vocab_size=100, context=256, layers=2, width=16, heads=1, dropout=0.1, tie_embeddings=False),
        2,
    ),
}


def planned(shape: str, **changes: Any) -> Plan:
    model, rows = SHAPES[shape]
    plan = Plan(model, rows, model.context, OptimizerConfig(), resolve_precision("float32", CPU), sdpa(), CPU)
    return replace(plan, **changes)


@dataclass
class Same:
    """One batch for ever, every token a target."""

    plan: Plan

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        size, device = (self.plan.rows, self.plan.row_length), self.plan.device
        ids = torch.randint(self.plan.model.vocab_size, size, device=device)
        everywhere = torch.ones(size, dtype=torch.bool, device=device)
        return Batch(ids, ids.clone(), everywhere, torch.arange(size[1], device=device).repeat(size[0], 1), ids * 0)

    def state(self):
        return {}

    def restore(self, state):
        pass


def train(plan: Plan) -> None:
    """Two updates, by the loop of every stage."""
    model = Transformer(plan.model, plan.backend).to(plan.device, plan.precision.parameters)
    model.checkpoint(plan.checkpointing)
    config = FitConfig(**vars(plan.optimizer), max_steps=2, micro_batches=plan.micro_batches, save_every=0)
    fit(
        dict(model.named_parameters()), Same(plan), lambda batch: next_token_loss(model, batch), config, Hooks(),
        device=plan.device, precision=plan.precision,
    )  # fmt: skip


def assert_near(plan: Plan, measured: int) -> None:
    assert step_memory(plan).peak == pytest.approx(measured, rel=0.1)


CHANGES: list[dict[str, Any]] = [
    {},
    {"precision": resolve_precision("bfloat16", CPU)},
    {"precision": resolve_precision("bfloat16-master", CPU)},
    {"backend": naive()},
    {"checkpointing": "blocks"},
    {"checkpointing": "selective", "precision": resolve_precision("bfloat16", CPU)},
    {"optimizer": OptimizerConfig(optimizer="muon"), "micro_batches": 3},
]


ONE_EACH = [*((shape, {}) for shape in SHAPES), *zip([*SHAPES, *SHAPES], CHANGES[1:])]
ALL = [(shape, changes) for shape in SHAPES for changes in CHANGES]


@pytest.mark.parametrize(
    ("shape", "changes"), [*ONE_EACH, *(pytest.param(*each, marks=pytest.mark.slow) for each in ALL)]
)
def test_the_plan_is_what_a_real_run_holds(shape: str, changes: dict[str, Any]) -> None:
    plan = planned(shape, **changes)
    with Meter() as meter:
        train(plan)
    assert_near(plan, meter.peak)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_is_what_the_allocator_gives(shape: str) -> None:
    plan = planned(shape)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        train(plan)
    kineto = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in kineto.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    assert_near(plan, peak)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", [triton, sdpa])
@pytest.mark.parametrize("checkpointing", ["none", "blocks", "selective"])
@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(vocab_size=50304, context=1024, layers=4, width=768, heads=12, **GPT2),  # type: ignore[arg-type]
        ModelConfig(vocab_size=4096, context=512, layers=8, width=512, heads=8, qk_norm=True, qk_window=4),
    ],
    ids=["gpt2", "small"],
)
def test_the_plan_is_what_a_gpu_gives(model: ModelConfig, backend: Any, checkpointing: Any) -> None:
    device = torch.device("cuda")
    plan = Plan(
        model, 8, model.context, OptimizerConfig(), resolve_precision("bfloat16", device), backend(), device,
        checkpointing,
    )  # fmt: skip
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(plan)
    assert_near(plan, torch.cuda.max_memory_allocated() - before)


def test_parts_are_those_of_the_tensors() -> None:
    model, rows = SHAPES["llama"]
    count = sum(p.numel() for p in Transformer(model).parameters())
    adamw = step_memory(planned("llama"))
    assert (adamw.parameters, adamw.gradients) == (4 * count, 4 * count)
    assert 8 * count <= adamw.optimizer <= 8.1 * count
    assert adamw.logits >= 4 * rows * model.context * model.vocab_size
    masters = step_memory(planned("llama", precision=resolve_precision("bfloat16-master", CPU)))
    assert masters.parameters == 6 * count and masters.gradients == 4 * count
    blocks = step_memory(planned("llama", checkpointing="blocks"))
    assert blocks.activations < 0.5 * adamw.activations and blocks.logits == adamw.logits


def test_nothing_is_computed_and_nothing_stays() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    huge = ModelConfig(vocab_size=128_000, context=8192, layers=2, width=16384, heads=128)
    found = step_memory(Plan(huge, 64, 8192, OptimizerConfig(), resolve_precision("float32", CPU), sdpa(), CPU))
    assert found.peak > 1e12
    assert torch.equal(torch.rand(1), expected) and torch.get_default_dtype() == torch.float32


def test_kernels_are_planned_where_they_cannot_run() -> None:
    plan = planned("gpt2", backend=triton(), device=torch.device("cuda"))
    assert step_memory(plan).logits < step_memory(planned("gpt2")).logits


@pytest.mark.parametrize("base_format", ["float", "int8", "int4"])
def test_an_adapter(base_format: Any) -> None:
    """Its gradients and moments alone; the weights beside it in the bytes that they take."""
    whole = planned("llama")
    adapted = replace(whole, lora=LoRA(rank=2), base_format=base_format)
    model = add_recorded(Transformer(whole.model, whole.backend), AdapterRecord(LoRA(rank=2), "", "", base_format))
    trained, _ = count_trained(model)
    found = step_memory(adapted)
    assert found.gradients == 4 * trained and found.optimizer == pytest.approx(8 * trained, rel=0.05)
    assert found.parameters == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert found.peak < step_memory(whole).peak
