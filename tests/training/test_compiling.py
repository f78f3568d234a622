"""What is compiled computes what is written, is compiled once, and is never what a run fails of.

Most of it is seen with torch.compile's backends "eager" and "aot_eager", which trace and guard as the compiler does
without compiling; what the compiler itself does is slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from instructgpt.config import ModelConfig
from instructgpt.data.batch import Batch
from instructgpt.data.queries import Query
from instructgpt.errors import UserError
from instructgpt.generation.engine import Completion
from instructgpt.model.adapters import LoRA, adapter_tensors, add_adapter
from instructgpt.model.backend import triton
from instructgpt.model.heads import RewardModel
from instructgpt.model.quantize import quantize
from instructgpt.model.transformer import Compiled, Transformer
from instructgpt.objectives.lm import next_token_loss
from instructgpt.runtime import Precision
from instructgpt.training import compiling
from instructgpt.training.compiling import Workload, choose, prepare, told
from instructgpt.training.loop import FitConfig, Hooks, fit
from instructgpt.training.rollouts import Answered, answer_tokens, by_answer, examine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32 = Precision(torch.float32, None, False)
ROOT = Path(__file__).parents[2]
CONTEXT, VOCABULARY = 24, 40
LONG, SHORT = 1e18, 1e9


def new_model(**shape: Any) -> Transformer:
    torch.manual_seed(0)
    small: dict[str, Any] = dict(vocab_size=VOCABULARY, context=CONTEXT, layers=2, width=32, heads=2, qk_norm=True)
    return Transformer(ModelConfig(**{**small, "qk_window": 3, **shape}))


class Rows:
    """Batches of rows of random tokens, as many as said or of changing number, the number of targets changing too."""

    def __init__(self, rows: int):
        self.rows, self.made = rows, 0

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> Batch:
        self.made += 1
        generator = torch.Generator().manual_seed(self.made)
        rows = self.rows or 2 + self.made % 4
        ids, targets = torch.randint(VOCABULARY, (2, rows, CONTEXT), generator=generator)
        is_target = torch.rand(rows, CONTEXT, generator=generator) < 0.4
        slots = torch.arange(CONTEXT).expand(rows, -1)
        return Batch(ids, targets, is_target, slots % 8, slots // 8)

    def state(self) -> dict[str, Any]:
        return {"made": self.made}

    def restore(self, state: dict[str, Any]) -> None:
        self.made = state["made"]


def losses_of(mode: compiling.CompileMode, backend: Any, steps: int, rows: int = 3, **settings: Any) -> list[float]:
    """The loss of each update of a small model, compiled in this mode."""
    model, records = new_model(), list[dict[str, float]]()
    prepared = prepare(model, mode, Workload(rows, CONTEXT, 0), CPU, FLOAT32, backend)
    assert not prepared.failure, prepared.failure
    torch.manual_seed(7)
    config = FitConfig(max_steps=steps, log_every=1, warmup_steps=2, **settings)

    def loss_fn(batch: Batch):
        model.train()
        return next_token_loss(model, batch)

    hooks = Hooks(log=lambda record: records.append(record) if "loss" in record else None)
    fit(dict(model.named_parameters()), Rows(rows), loss_fn, config, hooks, device=CPU, precision=FLOAT32)
    return [record["loss"] for record in records]


@pytest.mark.parametrize(
    ("mode", "rows"), [("blocks", 0), ("step", 3), pytest.param("blocks", 3, marks=pytest.mark.slow)]
)
def test_one_curve_and_one_graph(mode, rows):
    """Traced once, whatever the number of targets, and of rows where it changes; the last step is the first's code."""
    eager = losses_of("off", "eager", 4, rows)
    torch._dynamo.reset()
    counters.clear()
    assert losses_of(mode, "eager", 4, rows) == eager
    # Blocks are one graph for both of them; a step is two, the trunk and the head with its loss.
    assert counters["stats"]["unique_graphs"] == (1 if mode == "blocks" else 2)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [({}, ""), pytest.param({"dora": True, "on": ("query", "mlp")}, "int4", marks=pytest.mark.slow)],
)
def test_an_adapter_is_a_part_of_the_graph(settings, bits):
    """The same gradients. Two graphs: into the first block, behind an embedding that is frozen, none is sent back."""
    batch, gradients = next(Rows(3)), []
    for mode in ("off", "blocks"):
        model = new_model()
        if bits:
            quantize(model, bits, for_training=True)
        torch.manual_seed(1)
        add_adapter(model, LoRA(rank=2, **settings))
        with torch.no_grad():
            for tensor in adapter_tensors(model).values():
                tensor.add_(0.1)
        torch._dynamo.reset()
        counters.clear()
        assert not prepare(model, mode, Workload(3, CONTEXT, 0), CPU, FLOAT32, "eager").failure
        next_token_loss(model, batch).total.backward()
        gradients.append([tensor.grad for tensor in adapter_tensors(model).values()])
        assert counters["stats"]["unique_graphs"] == (2 if mode == "blocks" else 0)
    for eager, compiled in zip(*gradients):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)  # sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "step"])
def test_the_compiler_follows_the_eager_curve_for_200_steps(mode):
    """float32: a step's rounding at first; at the end within what another seed of the data would make of it."""
    eager, compiled = losses_of("off", "eager", 200), losses_of(mode, "inductor", 200)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert compiled[1] == pytest.approx(eager[1], rel=1e-4)
    assert sum(compiled[-20:]) / 20 == pytest.approx(sum(eager[-20:]) / 20, rel=0.01)


def test_generation_and_validation_run_what_is_written():
    model = new_model()
    ran = []

    def never(*inputs: Any) -> Any:
        ran.append(inputs)
        raise AssertionError("compiled code is for training")

    model.compiled = Compiled(never, never, never)
    ids = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        model.token_losses(model.hidden(ids)[0], ids[0])
    with torch.inference_mode():
        model(ids)
    assert not ran
    with pytest.raises(AssertionError):
        model.hidden(ids)


@pytest.mark.parametrize("shape", [{"tie_embeddings": False, "dropout": 0.2}])
def test_compiling_leaves_nothing_behind(shape):
    """Neither gradients, nor random state, nor another mode; a reward model's head reads no tokens."""
    model = new_model(**shape).eval()
    if not shape.get("tie_embeddings", True):
        RewardModel(model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    prepared = prepare(model, "blocks", Workload(2, CONTEXT, 0), CPU, FLOAT32, "eager")
    assert prepared.mode == "blocks" and prepared.seconds > 0 and not prepared.failure
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("the compiler is broken\nand says so in many lines")


@pytest.mark.parametrize("mode", ["blocks", pytest.param("step", marks=pytest.mark.slow)])
def test_where_it_fails_the_run_goes_on_uncompiled(mode):
    model = new_model()
    prepared = prepare(model, mode, Workload(2, CONTEXT, 0), CPU, FLOAT32, broken)
    assert prepared.mode == "off" and model.compiled == Compiled()
    line = told(choose(mode, Workload(2, CONTEXT, LONG), CPU), prepared)
    assert "\n" not in line and f"compile {mode} failed" in line and "the compiler is broken" in line


FIXED, VARYING = Workload(6, 256, LONG), Workload(0, 256, LONG)


@pytest.mark.parametrize(
    ("asked", "work", "device", "before", "mode"),
    [
        ("auto", FIXED, CPU, None, "blocks"),
        ("auto", VARYING, CPU, None, "blocks"),
        ("auto", FIXED, CUDA, None, "step"),
        ("auto", VARYING, CUDA, None, "blocks"),
        ("auto", Workload(6, 256, SHORT), CPU, None, "off"),
        ("auto", Workload(6, 256, SHORT), CUDA, None, "off"),
        ("auto", Workload(6, 256, 0), CUDA, None, "off"),
        ("auto", FIXED, torch.device("mps"), None, "off"),
        ("auto", Workload(6, 256, SHORT), CPU, "blocks", "blocks"),
        ("auto", FIXED, CPU, "off", "off"),
        ("auto", FIXED, CUDA, "blocks", "blocks"),
        ("off", FIXED, CPU, None, "off"),
        ("blocks", Workload(6, 256, SHORT), CPU, None, "blocks"),
        ("step", FIXED, CPU, None, "step"),
    ],
)
def test_the_choice(asked, work, device, before, mode):
    """auto: what pays, or what the run began with; else what was asked for. Always with a reason."""
    choice = choose(asked, work, device, before)
    assert choice.mode == mode and choice.reason and "\n" not in choice.reason


@pytest.mark.parametrize(("asked", "before", "compiler"), [
    ("off", "blocks", "g++"), ("blocks", "off", "g++"), ("step", "blocks", "g++"), ("auto", "blocks", "/nonexistent"),
])  # fmt: skip
def test_another_mode_than_the_run_began_with_is_told(asked, before, compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    assert f"the run began with {before}" in choose(asked, FIXED, CPU, before).reason


@pytest.mark.parametrize("asked", ["auto", "blocks", "step"])
@pytest.mark.parametrize("compiler", ["/nonexistent", "no-such-compiler", "/nonexistent -O2"])
def test_without_a_compiler_nothing_is_compiled(asked, compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    choice = choose(asked, FIXED, CPU)
    assert choice.mode == "off" and compiler.split()[0] in choice.reason and "CXX" in choice.reason


def test_a_compiler_with_flags_is_one(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    assert choose("blocks", FIXED, CPU).mode == "blocks"


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("before", [None, "blocks"])
def test_step_needs_rows_of_one_number(device, before):
    with pytest.raises(UserError, match=r"^--compile step needs .* varies: use --compile blocks$"):
        choose("step", VARYING, device, before)


@pytest.mark.slow
def test_the_first_ratio_is_one_compiled_too():
    """Old log-probabilities come from the compiled forward that training repeats."""
    policy = new_model(qk_window=1)
    reference = new_model(qk_window=1).requires_grad_(False)
    assert not prepare(policy, "blocks", Workload(0, CONTEXT, 0), CPU, FLOAT32, "inductor").failure
    generator = torch.Generator().manual_seed(1)
    answered = []
    for length in (3, 5, 2, 7):
        prompt, answer = (torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (6, length))
        answered.append(Answered(Query([], prompt, None), Completion(answer, "", "end")))
    with torch.no_grad():
        seen = examine(policy, reference, answered, CONTEXT)
    again = answer_tokens(policy, seen.batch)
    assert torch.equal(by_answer(again.logprobs.detach(), seen.is_answer), seen.logprobs)
    assert not seen.logprobs.requires_grad and not seen.hidden.requires_grad
    torch.testing.assert_close(seen.logprobs, seen.reference, rtol=1e-4, atol=1e-5)


PRETRAIN = "--layers 2 --width 32 --heads 2 --context 32 --rows 2 --device cpu --dtype float32 --val-rows 4 --max-steps"


def pretrained(folder: Path, out: str, steps: int, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"the cat number {i} sees {i % 7} red birds\n" for i in range(3000)), encoding="utf-8")
        make = [sys.executable, "train.py", "tokenizer", "--text", str(text), "--vocab-size", "300"]
        subprocess.run([*make, "--out", str(folder / "tokenizer")], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "train.py", "pretrain", "--text", str(text), "--tokenizer", str(folder / "tokenizer")]
    command += ["--out", str(folder / out), *PRETRAIN.split(), str(steps), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "step"])
def test_a_broken_compiler_costs_a_line(tmp_path, mode):
    done = pretrained(tmp_path, "out", 3, "--compile", mode, CXX="/bin/false", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [f"compile {mode} failed" in line for line in done.stdout.splitlines()].count(True) == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_resuming_compiled_is_bit_identical(tmp_path):
    """Also with --compile auto, which would not compile so short a run: what a run began with, it goes on with."""
    for out, stops in (("straight", [12]), ("resumed", [6, 12])):
        for steps in stops:
            more = ["--compile", "blocks", "--save-every", "3", "--schedule", "constant"]
            done = pretrained(tmp_path, out, steps, *more, *(["--resume"] if steps != stops[0] else []))
            assert done.returncode == 0 and "compile blocks in" in done.stdout, done.stdout + done.stderr
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("straight", "resumed")]
    assert weights[0] == weights[1]
    other = pretrained(tmp_path, "resumed", 18, "--compile", "off", "--resume")
    assert other.returncode == 2 and "--compile" in other.stderr and len(other.stderr.strip().splitlines()) == 1


def test_the_compiler_gets_of_our_kernels_those_that_it_cannot_make():
    """What passes over memory once is left to it, to be fused with what stands around it."""
    seen: set[str] = set()

    def looking(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    for shape in ({}, {"mlp": "gelu", "norm": "layernorm", "position": "learned", "qk_norm": False}):
        torch.manual_seed(0)
        model = new_model(**shape)
        model = Transformer(model.config, triton())
        done = prepare(model, "step", Workload(2, CONTEXT, 0.0), CPU, FLOAT32, backend=looking)  # pyright: ignore
        assert not done.failure, done.failure
    ours = {name for name in seen if name.startswith("kernels.")}
    assert {name.split(".")[1] for name in ours} <= {"attention", "head_statistics"} and len(ours) == 2, ours


@pytest.mark.parametrize(("rows", "name"), [(4, "logits_then_losses"), (10**9, "_triton_linear_cross_entropy")])
def test_the_head_makes_all_logits_where_they_take_little_of_a_gpus_memory(rows, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    model = Transformer(new_model().config, triton())
    assert compiling._head_of(model, Workload(rows, CONTEXT, 0.0), CUDA).__name__ == name
    assert compiling._head_of(model, Workload(rows, CONTEXT, 0.0), CPU) is model.backend.linear_cross_entropy
