"""What the lab is told of attention: which inputs to draw, the error to allow, what to build, measure and plant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.lab import Inputs, Mutant, Spec, Tolerance, Work


def _inputs(
    generator: torch.Generator, batch: int, queries: int, keys: int, kv_heads: int, group: int, head_dim: int,
    causal: bool = False, window: int = 0, documents: int = 0, padding: int = 0, soft_cap: float = 0.0,
    scale: float | None = None, size: float = 1.0, drift: float = 0.0, return_lse: bool = True,
    spoilt: str = "", falls: bool = False,
) -> Inputs:  # fmt: skip
    """`size` multiplies the scores; `padding` ends the first row of `documents` documents; `drift` is added to the
    first half of the values and taken from the second, so that a sum over them grows large before it is small; NaN is
    put into one row of the tensor named `spoilt`; with `falls` the last row's documents fall."""

    def heads(count: int, length: int) -> Tensor:
        return torch.randn(batch, length, count, head_dim, generator=generator, dtype=torch.float64).transpose(1, 2)

    tensors = {"q": size * heads(kv_heads * group, queries), "k": heads(kv_heads, keys), "v": heads(kv_heads, keys)}
    tensors["v"] += drift * torch.where(torch.arange(keys) < keys // 2, 1.0, -1.0)[:, None]
    if documents:
        tensors["documents"] = torch.randint(documents, (batch, keys), generator=generator).sort(1).values
        tensors["documents"][0, keys - min(padding, keys) :] = -1
        if falls:
            tensors["documents"][-1] = tensors["documents"][-1].flip(0)
            tensors["documents"][-1, 0] = documents
    if spoilt:
        rows = tensors[spoilt].size(2)
        tensors[spoilt][:, -1, int(torch.randint(rows, (), generator=generator)), head_dim // 2] = math.nan
    options = dict(causal=causal, window=window, soft_cap=soft_cap, scale=scale, return_lse=return_lse)
    return Inputs(tensors, {name: value for name, value in options.items() if value}, ("q", "k", "v"))


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    if draw(st.integers(0, 7)) == 7:
        # A long row, over more than 1,024 keys or queries, shows an accumulator that loses digits, best where what it
        # is compared with loses few, as with weights that are all 1/16.
        queries, keys = draw(st.sampled_from([(16, 1040), (1040, 16)]))
        long = dict(batch=1, queries=queries, keys=keys, kv_heads=1, group=1, head_dim=16, drift=4.0)
        return dict(long, size=0.0) if queries > keys else long
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 2), (2, 3), (1, 3), (2, 5), (1, 6), (2, 7)]))
    keys = draw(st.integers(1, 70 if group < 5 else 33))
    documents = draw(st.sampled_from([0, 0, 1, 3, 4]))
    queries = keys if draw(st.booleans()) else draw(st.integers(1, keys if documents else min(70, 2 * keys + 20)))
    return dict(
        batch=2 if kv_heads * group == 1 or keys < 32 else 1, queries=queries, keys=keys, kv_heads=kv_heads,
        group=group, head_dim=draw(st.one_of(st.integers(1, 40), st.sampled_from([16, 64]))),
        causal=draw(st.booleans()), window=draw(st.sampled_from([0, 0, 1, 7, 40])), documents=documents,
        padding=draw(st.sampled_from([0, 1, 35])), soft_cap=draw(st.sampled_from([0.0, 0.0, 2.0])),
        scale=draw(st.sampled_from([None, None, 0.3])), size=draw(st.sampled_from([1.0, 1.0, 0.0, 30.0])),
        spoilt=draw(st.sampled_from([*[""] * 5, "q", "k", "v"])),
        falls=bool(documents) and draw(st.integers(0, 9)) == 9,
    )  # fmt: skip


def _floor(quantity: str, inputs: Inputs, results: Mapping[str, Tensor], eps: float) -> float:
    """P is exp of a difference of scores and lse: what float32 loses of them, exp makes an error relative to P, also
    where the reference's softmax of few keys is exact. dq and dk start from δ, made of an O that has been rounded, and
    are products with a dS that has been rounded, which lse's gradient is part of."""
    q, k, v = (inputs.tensors[name] for name in "qkv")
    scale, soft_cap = inputs.options.get("scale", 1 / math.sqrt(q.size(-1))), inputs.options.get("soft_cap", 0.0)
    # tanh as the kernel computes it has the error of its limit, so a cap counts as the largest score.
    scores = q.unflatten(1, (k.size(1), -1)) @ k.unsqueeze(2).mT
    largest = soft_cap or scale * float(scores.abs().max())
    do, dlse = (float(results[name].norm()) if name in results else 0.0 for name in ("do", "dlse"))
    dscores = scale * (do * float(v.norm()) + dlse)
    sizes = {"o": v.norm(), "lse": math.sqrt(results["lse"].numel()), "dv": do, "dq": dscores * k.norm()}
    size = float(sizes.get(quantity, dscores * q.norm()))
    floor = 1.2e-7 * (1 + largest) * (float(results[quantity].norm()) + 0.5 * size)
    if quantity in ("dq", "dk"):
        slope = torch.zeros_like(results["o"][..., 0])  # of each row
        if "do" in results:
            slope = slope + (results["o"] * results["do"]).abs().sum(-1)
        if "dlse" in results:
            slope = slope + results["dlse"].abs()
        floor += 0.5 * eps * scale * float(slope.norm()) * float((k if quantity == "dq" else q).norm(dim=-1).max())
    return floor


def _work(
    element_size: int, batch: int, queries: int, keys: int, kv_heads: int, group: int, head_dim: int,
    causal: bool = False, **_: Any,
) -> tuple[Work, Work]:  # fmt: skip
    heads = kv_heads * group
    flops = 4 * batch * heads * queries * keys * head_dim / (2 if causal else 1)
    rows = batch * head_dim * element_size * 2 * (heads * queries + kv_heads * keys)  # q and o, k and v
    return Work(rows + 4 * batch * heads * queries, flops), Work(2 * rows + 8 * batch * heads * queries, 2.5 * flops)


def describe(attention: Callable[..., Any], reference: Callable[..., Any]) -> Spec:
    """The spec of this `attention`, which is the module's own or one with a bug planted, and its reference."""
    shape = dict(causal=True, return_lse=False)
    built = dict(causal=True, batch=2, queries=512, keys=512, kv_heads=2, group=2)
    return Spec(
        name="attention",
        op=attention,
        reference=reference,
        cases=_cases(),
        inputs=_inputs,
        outputs=("o", "lse"),
        tolerance=Tolerance(_floor),
        builds=tuple(
            dict(built, head_dim=head_dim, dtype=dtype, **extra)
            for head_dim in (64, 128)
            for dtype in ("float16", "bfloat16")
            for extra in ({}, {"documents": 3, "padding": 20})
        ),
        max_spill_bytes=232,  # dk and dv at head_dim 128 on 90: see the launches of attention_backward.py
        needs_tensor_cores=True,
        benchmarks=tuple(
            dict(shape, batch=16384 // length, queries=length, keys=length, kv_heads=2048 // dim, group=1, head_dim=dim)
            for dim in (64, 128)
            for length in (2048, 4096, 16384)
        ),
        work=_work,
        peers=_peers,
        mutants=_mutants(),
    )


def _peers() -> dict[str, Callable[..., Tensor]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    def sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.size(1) != k.size(1))

        return run

    compiled = torch.compile(flex_attention, dynamic=False)
    blocks: dict[tuple[int, int], Any] = {}

    def flex(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        shape = (q.size(2), k.size(2))
        if causal and shape not in blocks:
            late = shape[1] - shape[0]
            blocks[shape] = create_block_mask(lambda b, h, i, j: i + late >= j, None, None, *shape, device=q.device)
        return compiled(q, k, v, block_mask=blocks.get(shape) if causal else None, enable_gqa=q.size(1) != k.size(1))

    backends = dict(flash="FLASH_ATTENTION", cudnn="CUDNN_ATTENTION", efficient="EFFICIENT_ATTENTION", math="MATH")
    peers = {f"sdpa {name}": sdpa(getattr(SDPBackend, backend)) for name, backend in backends.items()}
    peers["flex"] = flex
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return peers

    def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal).transpose(1, 2)

    return {**peers, "flash_attn": flash}


def _mutants() -> tuple[Mutant, ...]:
    forward, backward = "attention_forward.py", "attention_backward.py"
    return (
        Mutant("no mask at the end of the keys", " & (keys[None, :] < end[:, None])", "", forward),
        Mutant("the same in dq", " & (keys[None, :] < end[:, None])", "", backward),
        Mutant("the diagonal forbidden", "position + 1 if causal", "position if causal"),
        Mutant(
            "the middle one block too long",
            "tl.min(end, 0) - middle, 0)",
            "tl.min(end, 0) - middle + BLOCK - 1, 0)",
            forward,
        ),
        Mutant(
            "a document begins early",
            "first = torch.searchsorted(number, number, out_int32=True)",
            "first = (torch.searchsorted(number, number, out_int32=True) - 1).clamp(0)",
        ),
        Mutant("the window one too wide", "position - window + 1", "position - window"),
        Mutant("dk not scaled", "dk_sum * scale", "dk_sum", backward),
        Mutant(
            "another head's keys",
            "pointers_to(k, batch, head // group, tl.arange(0, BLOCK_K)",
            "pointers_to(k, batch, head % (tl.num_programs(1) // group), tl.arange(0, BLOCK_K)",
            forward,
        ),
        Mutant("no guard for rows without keys", 'tl.where(larger == -float("inf"), 0.0, larger)', "larger", forward),
        Mutant("no maximum subtracted", "tl.maximum(m, tl.max(s, 1) * unit)", "tl.zeros_like(m)", forward),
        Mutant(
            "o stored without a mask of rows", "\n    is_written = is_row[:, None] & ", "\n    is_written = ", forward
        ),
        Mutant(
            "v read with k's stride",
            "v_block, k_strides[2], v_strides[2],\n            interval, bounds[region]",
            "v_block, k_strides[2], k_strides[2],\n            interval, bounds[region]",
            forward,
        ),
        Mutant("delta missing", "p * (dp - delta)", "p * dp", backward),
        Mutant(
            "the gradient of lse missing", "row_sums - tl.load(dlse + at, mask=is_row, other=0.0)", "row_sums", backward
        ),
        Mutant(
            "o accumulated in half precision",
            "        m = larger",
            "        m, acc = larger, acc.to(v.dtype).to(tl.float32)",
            forward,
        ),
        Mutant(
            "dv accumulated in half precision",
            "add_products(dv, p",
            "add_products(dv.to(do.dtype).to(tl.float32), p",
            backward,
        ),
        Mutant("sums not scaled to a new maximum", "acc * alpha[:, None]", "acc", forward),
        Mutant("the soft cap's derivative missing", "ds * (1 - s * s)", "ds", backward),
        Mutant(
            "the group's last query head missing",
            "\n    for head in range(kv_head * group, (kv_head + 1) * group)",
            "\n    for head in range(kv_head * group, (kv_head + 1) * group - 1)",
            backward,
        ),
        Mutant(
            "a key's queries end one early",
            "torch.stack((earlier, begun)",
            "torch.stack((earlier, (begun - 1).maximum(earlier))",
            backward,
        ),
    )
