"""LoRA, rsLoRA, DoRA and QLoRA: by hand, against dense matrices in float64, and beside one another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from instructgpt.config import ModelConfig
from instructgpt.errors import UserError
from instructgpt.model import Transformer, cpu_ops
from instructgpt.model.adapters import (
    AdaptedLinear,
    LoRA,
    LowRank,
    adapter_tensors,
    adapters_of,
    add_adapter,
    base_of,
    count_trained,
    matches,
    merge,
    remove_adapters,
    unmerge,
    use_adapter,
)
from instructgpt.model.cache import Sequences
from instructgpt.model.inference import for_inference
from instructgpt.model.quantize import QuantizedLinear, quantize, unquantize

PARTS = ("query", "key", "value", "output", "gate", "up", "down")
LLAMA: dict[str, Any] = dict(
    vocab_size=48, context=16, layers=2, width=64, heads=4, kv_heads=2, mlp_width=96, qk_norm=True, qk_window=3
)
GPT2: dict[str, Any] = dict(
    vocab_size=48, context=16, layers=2, width=32, heads=2, mlp="gelu", norm="layernorm", position="learned", bias=True
)
IDS = torch.randint(48, (3, 16), generator=torch.Generator().manual_seed(0))


def new_model(shape: dict[str, Any] = LLAMA, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)  # what an adapter begins with is drawn from it
    model = Transformer(ModelConfig(**shape))
    model.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return model.to(dtype).eval()


def trained(model: Transformer, name: str = "default", seed: int = 3) -> Transformer:
    """The model with an adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place, tensor in adapter_tensors(model, name).items():
            if place.endswith("B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
            if place.endswith("magnitude"):
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
    return model


def assert_near(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def low_rank(layer: nn.Linear, A: list[list[float]], B: list[list[float]], **settings: Any) -> LowRank:
    adapter = LowRank(layer, {"up": layer.out_features}, ["up"], LoRA(rank=len(A), **settings), layer.weight)
    with torch.no_grad():
        adapter.parts["up"].A.copy_(torch.tensor(A))
        adapter.parts["up"].B.copy_(torch.tensor(B))
    return adapter


# ---- by hand


def test_lora_by_hand() -> None:
    """W x = (5, 11), A x = -1, s = 3 / 1, so 3 · B A x = (-6, -3)."""
    layer = linear([[1, 2], [3, 4]])
    adapter, x = low_rank(layer, [[1, -1]], [[2], [1]], alpha=3), torch.tensor([1.0, 2.0])
    assert adapter(x, layer(x), layer).tolist() == [-1, 8]
    assert adapter.merged_weight(layer).tolist() == [[7, -4], [6, 1]]


@pytest.mark.parametrize(
    ("rank", "alpha", "plain", "stabilised"), [(4, 8, 2, 4), (16, 32, 2, 8), (1, 5, 5, 5), (64, 16, 0.25, 2)]
)
def test_the_scale_by_hand(rank: int, alpha: float, plain: float, stabilised: float) -> None:
    assert LoRA(rank=rank, alpha=alpha).scale == plain
    assert LoRA(rank=rank, alpha=alpha, rslora=True).scale == stabilised


def test_dora_by_hand() -> None:
    """Rows of W are 5 and 2 long, and so is m; those of W + B A are (3, 8), √73 long, and (0, 4)."""
    layer = linear([[3, 4], [0, 2]], bias=[10, 20])
    adapter, x = low_rank(layer, [[0, 2]], [[2], [1]], alpha=1, dora=True), torch.tensor([1.0, 1.0])
    assert adapter.parts["up"].magnitude.tolist() == [5, 2]
    expected = torch.tensor([5 / math.sqrt(73) * 11 + 10, 2 / 4 * 4 + 20])
    assert_near(adapter(x, layer(x), layer), expected, 1e-5)
    assert_near(F.linear(x, adapter.merged_weight(layer), layer.bias), expected, 1e-5)


def test_a_is_noise_of_one_size_and_b_is_zero() -> None:
    """Var A = 1 / (3·in), whatever the rank."""
    for rank in (8, 200):
        layer = nn.Linear(400, 50)
        part = LowRank(layer, {"up": 50}, ["up"], LoRA(rank=rank), layer.weight).parts["up"]
        assert not part.B.any()
        assert part.A.shape == (rank, 400) and abs(float(part.A.detach().std()) * math.sqrt(3 * 400) - 1) < 0.1


# ---- against dense matrices


def dense(model: Transformer, shape: dict[str, Any], config: LoRA, tensors: dict[str, Tensor]) -> Transformer:
    """A plain model whose matrices are those of the adapted one, by the papers' formulas, part by part."""
    plain = new_model(shape, torch.float64)
    state = plain.state_dict()
    c = plain.config
    rows = {
        "qkv": {"query": c.heads * c.head_dim, "key": c.kv_heads * c.head_dim, "value": c.kv_heads * c.head_dim},
        "gate_up": {"gate": c.mlp_width, "up": c.mlp_width},
    }
    for name, weight in state.items():
        path, _, kind = name.rpartition(".")
        holder, _, attribute = path.rpartition(".")
        if kind != "weight" or not holder.endswith(("attention", "mlp")) or weight.ndim != 2 or "conv" in name:
            continue
        parts = rows.get(attribute, {attribute: len(weight)})
        for part, W in zip(parts, weight.split(list(parts.values()))):
            if f"{holder}.{part}.A" not in tensors:
                continue
            A, B = (tensors[f"{holder}.{part}.{which}"].detach() for which in "AB")
            s = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
            new = W + s * B @ A
            if config.dora:
                new = new * (tensors[f"{holder}.{part}.magnitude"].detach() / new.norm(dim=1))[:, None]
            W.copy_(new)
    plain.load_state_dict(state)
    return plain


ON = ("attention", "mlp", "query", "value", "down", "blocks.1", "blocks.0.attention.key", "all")
CONFIGS = st.builds(
    LoRA,
    rank=st.integers(1, 5),
    alpha=st.sampled_from([1.0, 16.0]),
    on=st.lists(
        st.sampled_from(["attention", "mlp", "query", "value", "down", "blocks.1", "blocks.0.attention.key", "all"]),
        min_size=1,
    ).map(tuple),
    rslora=st.booleans(),
    dora=st.booleans(),
)


@given(config=CONFIGS, shape=st.sampled_from([LLAMA, GPT2]))
def test_an_adapted_model_is_the_one_with_those_matrices(config: LoRA, shape: dict[str, Any]) -> None:
    model = trained(add_adapter(new_model(shape, torch.float64), config))
    tensors = adapter_tensors(model)
    expected = dense(model, shape, config, tensors)(IDS)
    assert_near(model(IDS), expected, 1e-11)
    merge(model)
    assert_near(model(IDS), expected, 1e-11)


@pytest.mark.parametrize("on", [("all",), ("key", "up")])
def test_gradients_are_those_through_the_dense_matrix(on: tuple[str, ...]) -> None:
    """dL/dB = s·dW Aᵀ and dL/dA = s·Bᵀ dW, dW being what a dense matrix would get."""
    config = LoRA(rank=3, alpha=6, on=on)
    model = trained(add_adapter(new_model(dtype=torch.float64), config))
    tensors = adapter_tensors(model)
    plain = dense(model, LLAMA, config, tensors)
    for each in (model, plain):
        each(IDS).square().sum().backward()
    adapted = {name.split(".")[3] for name in tensors}
    assert adapted == (set(PARTS) if on == ("all",) else set(on))
    gradient = plain.blocks[1].attention.qkv.weight.grad.split((64, 32, 32))[1]  # the keys'
    A, B = (tensors[f"blocks.1.attention.key.{which}"] for which in "AB")
    assert_near(B.grad, 2 * gradient @ A.detach().T, 1e-10)
    assert_near(A.grad, 2 * B.detach().T @ gradient, 1e-10)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad), "what is frozen costs no gradient"


def test_doras_norm_is_a_constant_in_the_gradient() -> None:
    """Liu et al. 2024, section 4.3: dL/dB = s·(m / C) dW Aᵀ with C held."""
    layer = nn.Linear(6, 4).double()
    adapter = LowRank(layer, {"up": 4}, ["up"], LoRA(rank=2, alpha=4, dora=True), layer.weight)
    part, x = adapter.parts["up"], torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        part.B.normal_()
    adapter(x, layer(x), layer).square().sum().backward()
    weight = layer.weight.detach() + 2 * part.B.detach() @ part.A.detach()
    norms = weight.norm(dim=1)
    y = x @ weight.T * (part.magnitude.detach() / norms) + layer.bias.detach()
    assert_near(
        part.B.grad, 2 * (part.magnitude.detach() / norms)[:, None] * ((2 * y).T @ x) @ part.A.detach().T, 1e-10
    )
    assert_near(part.magnitude.grad, (2 * y * (x @ weight.T) / norms).sum(0), 1e-10)


# ---- beside a base


VARIANTS = [
    LoRA(rank=2),
    LoRA(rank=2, rslora=True, on=("mlp",)),
    LoRA(rank=3, dora=True),
    LoRA(rank=1, dora=True, on=("value",)),
]


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("shape", [LLAMA, GPT2])
def test_merged_equals_unmerged_and_back_to_the_bit(config: LoRA, shape: dict[str, Any]) -> None:
    base = new_model(shape)
    before, state = base(IDS), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = add_adapter(base, config)
    assert torch.equal(model(IDS), before), "a new adapter changes nothing"
    apart = trained(model)(IDS)
    assert (apart - before).abs().max() > 1e-3
    merge(model)
    together = model(IDS)
    assert (together - apart).norm() < 1e-6 * apart.norm()
    use_adapter(model, None)
    assert torch.equal(model(IDS), before), "the base is there, merged or not"
    use_adapter(model, "default")
    assert torch.equal(model(IDS), together)
    unmerge(model)
    assert torch.equal(model(IDS), apart)
    merge(model)
    remove_adapters(model)
    assert torch.equal(model(IDS), together)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert model.state_dict().keys() == state.keys() and all(p.requires_grad for p in model.parameters())


def test_what_is_trained_and_what_is_not() -> None:
    model = new_model()
    whole = sum(p.numel() for p in model.parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_adapter(model, LoRA(rank=2, on=("query", "down")))
    rows = 2 * 2 * (64 + 64) + 2 * 2 * (96 + 64)
    assert count_trained(model) == (rows, whole + rows)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()
    twin = base_of(model)
    assert twin.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in twin.state_dict().items()), "untouched by a bit"


def test_the_base_beside_its_adapter_takes_no_memory() -> None:
    model = trained(add_adapter(new_model(), LoRA()))
    reference = base_of(model)
    theirs, ours = ({p.untyped_storage().data_ptr() for p in each.parameters()} for each in (reference, model))
    assert theirs < ours
    assert torch.equal(reference(IDS), new_model()(IDS)) and not torch.equal(model(IDS), reference(IDS))


def test_several_adapters_beside_one_base() -> None:
    model = new_model()
    before = model(IDS)
    add_adapter(model, LoRA(rank=2, on=("attention",)), "french")
    add_adapter(model, LoRA(rank=4, on=("mlp", "query"), dora=True), "chinese")
    assert adapters_of(model) == ["french", "chinese"]
    trained(model, "french", 5)
    trained(model, "chinese", 6)
    assert not any(p.requires_grad for p in adapter_tensors(model, "french").values()), "the last one is trained"
    said: dict[str | None, Tensor] = {}
    for name in ("french", "chinese", None):
        use_adapter(model, name)
        said[name] = model(IDS)
    assert torch.equal(said[None], before) and len({float(x.detach().sum()) for x in said.values()}) == 3
    alone = trained(add_adapter(new_model(), LoRA(rank=2, on=("attention",))), seed=5)
    use_adapter(model, "french")
    torch.testing.assert_close(model(IDS), said["french"])
    assert count_trained(alone)[0] == 2 * 2 * (4 * 64 + 64 + 2 * 32 + 64)
    merge(model)
    use_adapter(model, "chinese")
    assert torch.equal(model(IDS), said["chinese"]), "what is merged is one of them"
    with pytest.raises(ValueError, match="not merged"):
        remove_adapters(model)


def test_a_twin_for_generation_keeps_the_adapter_it_was_made_for() -> None:
    model = new_model(dtype=torch.float64)
    for name, seed in (("a", 5), ("b", 6)):
        add_adapter(model, LoRA(rank=2), name)
        trained(model, name, seed)
    twins, said = {}, {}
    with torch.inference_mode():
        for name in ("a", "b", None):
            use_adapter(model, name)
            twins[name], said[name] = for_inference(model), model(IDS)
        for name, twin in twins.items():
            assert_near(twin(IDS), said[name], 1e-11)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("shape", [LLAMA, GPT2])
@pytest.mark.parametrize("bits", ["float", "int8", "int4"])
@pytest.mark.parametrize("half", [False, True])
def test_generation_computes_what_the_model_does(config: LoRA, shape: dict[str, Any], bits: str, half: bool) -> None:
    model = new_model(shape)
    if bits != "float":
        quantize(model, bits, for_training=True)
    trained(add_adapter(model, config))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        twin, expected = for_inference(model), model(IDS).float()
        rows = Sequences(model.config, 3, 16, dtype=torch.bfloat16 if twin.packed_head is not None else torch.float32)
        pieces = IDS.split((14, 1, 1), dim=1)
        logits = torch.cat([twin(piece, cache=rows.feed(piece.size(1))) for piece in pieces], dim=1).float()
    exact = bits == "float" and not half
    assert (logits - expected).norm() < (1e-6 if exact else 0.02) * expected.norm()


# ---- weights of few bits


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_go_through_packed_weights(bits: str, dtype: torch.dtype) -> None:
    """dx = dy ŵ; the product is the same, to the bit, with and without a gradient; only integers are kept for it."""
    model = quantize(new_model(), bits, for_training=True)
    layer, x = model.blocks[0].mlp.down, torch.randn(70, 96, dtype=dtype, requires_grad=True)
    assert isinstance(layer, QuantizedLinear)
    weight = layer.dequantized()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = layer(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert_near(y.float(), F.linear(x.float(), weight.to(dtype).float()), tolerance)
    assert_near(dx.float(), dy.float() @ weight.to(dtype).float(), tolerance)
    assert {t.data_ptr() for t in kept} == {layer.packed.data_ptr(), layer.scales.data_ptr()}
    with torch.no_grad():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_every_order_of_integers_is_unpacked_to_the_same_numbers(bits: str) -> None:
    model = quantize(new_model(), bits, for_training=True)
    for layer in (module for module in model.modules() if isinstance(module, QuantizedLinear)):
        twin = layer.for_generation()
        assert torch.equal(twin.dequantized(), layer.dequantized())
        assert cpu_ops.is_packed(twin.scales) == cpu_ops.can_multiply_packed(
            torch.empty(layer.out_features, layer.in_features), layer.bits, 32
        )


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_beside_integers(bits: str, dora: bool) -> None:
    model = quantize(new_model(), bits, for_training=True)
    before = model(IDS)
    config = LoRA(rank=2, dora=dora)
    add_adapter(model, config)
    assert torch.equal(model(IDS), before)
    apart = trained(model)(IDS)
    merge(model)
    assert (model(IDS) - apart).norm() < 1e-6 * apart.norm()
    unmerge(model)
    assert torch.equal(model(IDS), apart)
    apart.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    merge(model)
    plain = unquantize(remove_adapters(model))
    assert (plain(IDS) - apart).norm() < 1e-6 * apart.norm()
    assert not any(isinstance(module, QuantizedLinear) for module in plain.modules())


def test_it_learns_beside_integers() -> None:
    """Steps on a batch lower its loss as far as beside the weights themselves, within a tenth."""
    found = {}
    for bits in ("float", "int4"):
        model = new_model()
        if bits != "float":
            quantize(model, bits, for_training=True)
        torch.manual_seed(0)
        add_adapter(model, LoRA(rank=4))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(30):
            loss = model.token_losses(model.hidden(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[bits] = float(loss.detach())
    assert found["float"] < 3.4 and abs(found["int4"] / found["float"] - 1) < 0.1, found


# ---- how steps are computed


@pytest.mark.parametrize("how", ["blocks", "selective"])
@pytest.mark.parametrize("bits", ["float", "int4"])
def test_checkpointing_gives_the_same_gradients(how: Any, bits: str) -> None:
    gradients = []
    for checkpointing in ("none", how):
        model = new_model()
        if bits != "float":
            quantize(model, bits, for_training=True)
        torch.manual_seed(0)
        trained(add_adapter(model, LoRA(rank=2, dora=True)))
        model.checkpoint(checkpointing)
        model(IDS).square().sum().backward()
        gradients.append({name: tensor.grad for name, tensor in adapter_tensors(model).items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("bits", ["float", "int8", "int4"])
def test_under_autocast_it_stays_near(bits: str) -> None:
    model = new_model()
    if bits != "float":
        quantize(model, bits, for_training=True)
    exact = trained(add_adapter(model, LoRA(rank=2, dora=True)))(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(IDS)
    assert (found.float() - exact).norm() < 0.02 * exact.norm()


# ---- names


@pytest.mark.parametrize(
    ("name", "meant"),
    [("query", 1), ("attention", 4), ("all", 7), ("blocks.1", 7), ("blocks.1.mlp", 3), ("mlp.down", 1), ("ery", 0),
     ("blocks", 7), ("blocks.11", 0), ("1", 7), ("attention.down", 0)],
)  # fmt: skip
def test_which_places_a_name_means(name: str, meant: int) -> None:
    rooms = dict.fromkeys(PARTS[:4], "attention") | dict.fromkeys(PARTS[4:], "mlp")
    assert sum(matches(f"blocks.1.{room}.{part}", name) for part, room in rooms.items()) == meant


@pytest.mark.parametrize(
    ("on", "told"),
    [
        (("atention",), "did you mean 'attention'"),
        (("attention", "quary"), "quary.*did you mean 'query'"),
        (("blocks.7",), "did you mean 'blocks.[01]'"),
        (("q_proj",), "choose one of: all, attention, mlp, query, key, value, output, gate, up, down"),
        (("embedding",), "no linear layer has this name"),
        ((), "is empty"),
        (("",), "no linear layer"),
    ],
)
def test_a_name_that_matches_nothing(on: tuple[str, ...], told: str) -> None:
    model = new_model()
    with pytest.raises(UserError, match=told):
        add_adapter(model, LoRA(on=on))
    assert all(p.requires_grad for p in model.parameters()) and not adapters_of(model), "and nothing has changed"


def test_gpt2_has_no_gate() -> None:
    with pytest.raises(UserError, match=r"gate.*no linear layer"):
        add_adapter(new_model(GPT2), LoRA(on=("gate",)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"rank": 0}, "rank is 0"), ({"rank": -3}, "rank"), ({"alpha": 0.0}, "alpha"), ({"alpha": math.nan}, "alpha")],
)
def test_ranks_and_scales_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        LoRA(**settings)


@pytest.mark.parametrize("name", ["default", "a.b", "", "keys"])
def test_names_of_adapters(name: str) -> None:
    model = add_adapter(new_model(), LoRA())
    with pytest.raises(UserError, match="cannot be named"):
        add_adapter(model, LoRA(), name)
    with pytest.raises(UserError, match="has no adapter"):
        use_adapter(model, "defualt")


def test_four_bits_need_widths_that_their_groups_divide() -> None:
    with pytest.raises(UserError, match=r"int4 .*64 or 32.*48 wide: use int8"):
        quantize(new_model({**LLAMA, "width": 48, "mlp_width": 64}), "int4", for_training=True)
    assert quantize(new_model({**LLAMA, "width": 48, "mlp_width": 64}), "int8", for_training=True)
    with pytest.raises(UserError, match="in few bits already"):
        quantize(quantize(new_model(), "int8"), "int4")
