"""A matrix product with weights of 8 or 4 bits, for generation, which waits for weights to come out of memory.

Each row of W is cut into groups of G neighbours that share a scale (as GPTQ and AWQ store them; Frantar et al. 2023):

    s = max|w| / h,   q = round(w / s) in [-h, h],   h = 127 or 7
    y = x Ŵᵀ,   ŵ = s·q,   so   y_o = Σ_groups s_og · (x_g · q_og)

The kernel multiplies x by the integers, which are exact in every format, and scales each group's product: no ŵ is ever
formed. It reads bits/8 + element/G bytes a weight, against 2 in bfloat16; FLOPs: 2·N·K·M.

With 4 bits, byte j of a group holds q_j + 8 in its low half and q_{j+G/2} + 8 in its high half: unpacked halves are
then neighbours in x, and no element has to change places.

The weights are fixed: there is a gradient for x alone, dx = dy Ŵ, which generation never asks for; it is plain PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.launch import (
    Launch,
    cdiv,
    chosen_once,
    custom_op,
    generation,
    jit,
    next_power_of_2,
    once_per_signature,
    require,
    tl,
    tuned,
)

if TYPE_CHECKING:
    from kernels.lab import Inputs, Spec

BITS = (8, 4)
"""Of an integer weight."""
GROUPS = (32, 64, 128, 256)
"""Weights that share a scale: fewer are more accurate and more bytes."""


def quantize(weight: Tensor, bits: int, group: int = 64) -> tuple[Tensor, Tensor]:
    """weight (M, K) -> packed integers (M, bytes), int8 for 8 bits, uint8 for 4, and scales (M, groups) in its dtype.

    scales: max|w| of a group over the largest integer, 127 or 7. With 4 bits a group of G is G/2 bytes: byte j has
    q_j + 8 in its low half and q_{j+G/2} + 8 in its high one. The last group is filled up with zeros where `group`
    does not divide K. Raises ValueError for other bits and groups.
    """
    if bits not in BITS or group not in GROUPS:
        raise ValueError(f"quantize: {bits} bits in groups of {group}; bits must be of {BITS}, groups of {GROUPS}")
    M, K = weight.shape
    highest = 2 ** (bits - 1) - 1
    wide = F.pad(weight.detach().float(), (0, group * cdiv(K, group) - K)).view(M, -1, group)  # (M, groups, G)
    scales = (wide.abs().amax(-1) / highest).to(weight.dtype)
    step = scales.float()[..., None]
    integers = torch.where(step > 0, wide / step, 0.0).round().clamp(-highest, highest)
    if bits == 8:
        return integers.to(torch.int8).view(M, -1), scales
    low, high = (integers + 8).to(torch.uint8).chunk(2, dim=-1)  # (M, groups, G/2) each
    return (low | high << 4).view(M, -1), scales


def dequantize(packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """ŵ (M, K), filled up to whole groups, in the scales' dtype; computed in at least float32 and rounded once."""
    groups = scales.size(1)
    integers = packed.unflatten(1, (groups, -1))  # (M, groups, bytes)
    if bits == 4:
        integers = torch.cat((integers & 15, integers >> 4), dim=-1).to(torch.int8) - 8  # (M, groups, G)
    wide = torch.promote_types(scales.dtype, torch.float32)
    return (integers.to(wide) * scales.to(wide)[..., None]).to(scales.dtype).flatten(1)


def quantized_linear_reference(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """x (..., K), packed and scales from `quantize` -> (..., M) in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = dequantize(packed, scales.to(wide), bits)[:, : x.size(-1)]
    return F.linear(x.to(wide), weight).to(x.dtype)


@jit
def _kernel(
    x, packed, scales, y, N, K, M, groups, x_stride, packed_stride, scales_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of y, group after group."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    packed_rows = packed + column.to(tl.int64)[:, None] * packed_stride
    is_row, is_column = row[:, None] < N, column[:, None] < M
    BYTES: tl.constexpr = GROUP * BITS // 8  # of a group, each with 1 or 2 weights
    byte = tl.arange(0, BYTES)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(groups):
        i = group * GROUP + byte
        stored = tl.load(packed_rows + group * BYTES + byte, mask=is_column, other=0)  # (COLUMNS, BYTES)
        first = tl.load(x_rows + i, mask=is_row & (i < K), other=0.0)  # (ROWS, BYTES)
        if BITS == 8:
            product = tl.dot(first, stored.to(tl.float32).to(first.dtype).T, input_precision="ieee")
        else:
            second = tl.load(x_rows + i + BYTES, mask=is_row & (i + BYTES < K), other=0.0)
            low = ((stored & 15).to(tl.float32) - 8).to(first.dtype)
            high = ((stored >> 4).to(tl.float32) - 8).to(first.dtype)
            product = tl.dot(first, low.T, input_precision="ieee")
            product = tl.dot(second, high.T, product, input_precision="ieee")
        scale = tl.load(scales + column.to(tl.int64) * scales_stride + group, mask=column < M, other=0.0)
        total += product * scale.to(tl.float32)[None, :]
    place = y + row.to(tl.int64)[:, None] * M + column[None, :]
    tl.store(place, total, mask=is_row & (column[None, :] < M))


@chosen_once
def _launch(rows: int, bits: int, group: int, dtype: torch.dtype, device: torch.device) -> Launch:
    """Few rows: narrow tiles, so that many programs wait for memory at once. Many: tiles that read x less often; but
    the tiles of long groups must fit into the shared memory of any device, and into registers in float32."""

    def tile(rows: int, columns: int, num_warps: int, num_stages: int) -> Launch:
        return Launch({"ROWS": rows, "COLUMNS": columns}, num_warps, num_stages)

    if generation(device) == 0:  # the interpreter
        return tile(16, 32, 4, 2)
    if group * dtype.itemsize > 256:
        return tile(16, 16, 4, 2)
    default, others = tile(64, 64, 4, 3), [tile(64, 128, 8, 3), tile(128, 128, 8, 3)]
    if rows <= 16:
        default, others = tile(16, 16, 4, 4), [tile(16, 32, 4, 4), tile(16, 32, 2, 5), tile(16, 64, 4, 4)]
    return tuned("quantized_linear", f"{dtype} {bits} {next_power_of_2(rows)}", default, others, device)


@custom_op("kernels::quantized_linear")
def _quantized_linear(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    M, groups = scales.shape
    rows = x.reshape(-1, x.size(-1))  # (N, K)
    rows, packed, scales = (t if t.stride(1) == 1 else t.contiguous() for t in (rows, packed, scales))
    N, K = rows.shape
    y = x.new_empty(*x.shape[:-1], M)
    group = packed.size(1) * 8 // bits // groups
    launch = _launch(N, bits, group, x.dtype, x.device)
    grid = (cdiv(M, launch.blocks["COLUMNS"]), cdiv(N, launch.blocks["ROWS"]))
    if N:
        _kernel[grid](
            rows, packed, scales, y, N, K, M, groups, rows.stride(0), packed.stride(0), scales.stride(0), bits, group,
            **launch.options,
        )  # fmt: skip
    return y


@_quantized_linear.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], scales.size(0))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, scales, ctx.bits = inputs
    ctx.inputs = x.size(-1)
    ctx.save_for_backward(packed, scales)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    packed, scales = ctx.saved_tensors
    wide = torch.promote_types(dy.dtype, torch.float32)
    with torch.autocast(dy.device.type, enabled=False):
        dx = dy.to(wide) @ dequantize(packed, scales.to(wide), ctx.bits)[:, : ctx.inputs]
    return dx.to(dy.dtype), None, None, None


_quantized_linear.register_autograd(_differentiate, setup_context=_save)


def quantized_linear(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
    """x (..., K), packed and scales from `quantize` -> (..., M) in the dtype of x; accumulated in float32.

    Only x has a gradient. Errors: TypeError for dtypes, ValueError for shapes and devices.
    """
    check(x, packed, scales, bits)
    return _quantized_linear(x, packed, scales, bits)


@once_per_signature
def check(x: Tensor, packed: Tensor, scales: Tensor, bits: int) -> None:
    require("quantized_linear", {"x": x, "scales": scales})
    if bits not in BITS or packed.dtype != (torch.int8 if bits == 8 else torch.uint8):
        raise TypeError(f"quantized_linear: packed is {packed.dtype} for {bits} bits; int8 holds 8 bits, uint8 holds 4")
    (M, groups), weights = scales.shape, packed.size(1) * 8 // bits
    group = weights // groups
    if packed.size(0) != M or group * groups != weights or group not in GROUPS or cdiv(x.size(-1), group) != groups:
        raise ValueError(
            f"quantized_linear: x is {tuple(x.shape)}, packed {tuple(packed.shape)}, scales {tuple(scales.shape)}; "
            f"a row of packed must hold x's last dimension in whole groups of {GROUPS}, with a scale each"
        )


def spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Work

    def inputs(
        generator: torch.Generator, rows: int = 1, width: int = 1, outputs: int = 1, bits: int = 8, group: int = 64
    ) -> Inputs:
        x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        packed, scales = quantize(torch.randn(outputs, width, generator=generator), bits, group)
        return Inputs({"x": x, "packed": packed, "scales": scales.double()}, {"bits": bits}, gradients=("x",))

    def work(element_size: int, rows: int, width: int, outputs: int, bits: int, group: int = 64, **_: Any):
        weights = outputs * width * (bits / 8 + element_size / group)
        flops = 2.0 * rows * width * outputs
        forward = Work(weights + rows * (width + outputs) * element_size, flops)
        return forward, Work(forward.bytes, flops)

    sizes = [{"width": width, "outputs": outputs, "bits": bits}
             for width, outputs in ((4096, 4096), (4096, 14336)) for bits in BITS]  # fmt: skip
    return Spec(
        name="quantized_linear",
        op=quantized_linear,
        reference=quantized_linear_reference,
        cases=st.fixed_dictionaries(
            {
                "rows": st.integers(1, 18) | st.just(33),
                "width": st.integers(1, 70) | st.sampled_from([128, 300, 520]),
                "outputs": st.integers(1, 40) | st.just(70),
                "bits": st.sampled_from(BITS),
                "group": st.sampled_from(GROUPS),
            }
        ),
        inputs=inputs,
        builds=tuple({"rows": rows, **size} for rows in (1, 64) for size in sizes[:2]),
        needs_tensor_cores=True,
        benchmarks=tuple({"rows": rows, **size} for rows in (1, 16, 256) for size in sizes),
        work=work,
        mutants=(
            Mutant("halves exchanged", "(stored & 15).to", "(stored >> 4).to"),
            Mutant("offset forgotten", "(stored >> 4).to(tl.float32) - 8", "(stored >> 4).to(tl.float32)"),
            Mutant("scale of the first group", "scales_stride + group, mask", "scales_stride, mask"),
            Mutant("reads past a row of x", "mask=is_row & (i + BYTES < K)", "mask=is_row"),
            Mutant("stride of x ignored", "[:, None] * x_stride", "[:, None] * K"),
            Mutant(
                "scales the sum so far",
                "total += product * scale.to(tl.float32)[None, :]",
                "total = (total + product) * scale.to(tl.float32)[None, :]",
            ),
            Mutant("writes past the last column", "mask=is_row & (column[None, :] < M))", "mask=is_row)"),
            Mutant(
                "sum in bfloat16",
                "    place = y + row",
                "    total = total.to(tl.bfloat16).to(tl.float32)\n    place = y + row",
            ),
            Mutant("last group left out", "for group in range(groups):", "for group in range(K // GROUP):"),
        ),
    )


def _of_weights(x: Tensor, weight: Tensor, bits: int, group: int) -> Tensor:
    """What `quantize` is for."""
    return quantized_linear(x, *quantize(weight, bits, group), bits)


def _of_weights_reference(x: Tensor, weight: Tensor, bits: int, group: int) -> Tensor:
    """Each weight rounded where it stands; nothing is packed."""
    wide, highest = torch.promote_types(x.dtype, torch.float32), 2 ** (bits - 1) - 1
    rounded = []
    for part in weight.detach().to(wide).split(group, dim=1):
        step = (part.abs().amax(1, keepdim=True) / highest).to(weight.dtype).to(wide)
        rounded.append(torch.where(step > 0, part / step, 0.0).round() * step)
    return F.linear(x.to(wide), torch.cat(rounded, dim=1)).to(x.dtype)


def quantize_spec() -> Spec:
    """`quantize` and `dequantize`, by the product that they are for."""
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec

    def inputs(generator: torch.Generator, rows: int, width: int, outputs: int, bits: int, group: int = 64) -> Inputs:
        """Weights near whole steps, steps that are powers of 2, the largest weight a negative one or not: so nobody's
        arithmetic decides where a weight is rounded to."""
        highest = 2 ** (bits - 1) - 1
        x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        weight = torch.randint(-highest, highest + 1, (outputs, width), generator=generator).double()
        beside = 0.6 * torch.rand(outputs, width, generator=generator, dtype=torch.float64) - 0.3
        weight += torch.where(weight.abs() < min(32, highest), beside, 0.0)
        weight[:, ::group] = torch.randint(2, weight[:, ::group].shape, generator=generator).double() * 2 - 1
        weight[:, ::group] *= highest
        exponents = torch.randint(-4, 3, (outputs, cdiv(width, group)), generator=generator)
        weight *= (2.0**exponents).repeat_interleave(group, dim=1)[:, :width]
        return Inputs({"x": x, "weight": weight}, {"bits": bits, "group": group}, gradients=("x",))

    return Spec(
        name="quantize",
        op=_of_weights,
        reference=_of_weights_reference,
        cases=st.fixed_dictionaries(
            {
                "rows": st.integers(1, 3),
                "width": st.integers(1, 70) | st.sampled_from([128, 300]),
                "outputs": st.integers(1, 5),
                "bits": st.sampled_from(BITS),
                "group": st.sampled_from(GROUPS),
            }
        ),
        inputs=inputs,
        builds=(
            {"rows": 1, "width": 4096, "outputs": 64, "bits": 8},
            {"rows": 1, "width": 4096, "outputs": 64, "bits": 4},
        ),
        needs_tensor_cores=True,
        mutants=(
            Mutant("rounded towards 0", ".round().clamp(", ".trunc().clamp("),
            Mutant("another offset", "(integers + 8)", "(integers + 7)"),
            Mutant("halves exchanged", "(low | high << 4)", "(high | low << 4)"),
            Mutant("neighbours in a byte", ".chunk(2, dim=-1)", ".unflatten(-1, (-1, 2)).unbind(-1)"),
            Mutant("one step too many", "/ highest).to(weight.dtype)", "/ (highest + 1)).to(weight.dtype)"),
            Mutant("the sign of the largest", "wide.abs().amax(-1)", "wide.amax(-1).abs()"),
            Mutant("the highest cut off", ".clamp(-highest, highest)", ".clamp(-highest, highest - 1)"),
            Mutant("unpacked with another offset", ".to(torch.int8) - 8", ".to(torch.int8) - 7"),
            Mutant("unpacked in another order", "(integers & 15, integers >> 4)", "(integers >> 4, integers & 15)"),
        ),
    )
