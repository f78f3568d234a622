"""Rotary position embedding (Su et al. 2021, eq. 34), in both pairings of dimensions.

Half-split, of Llama and GPT-NeoX: dimension i < D/2 is paired with i + D/2. Interleaved, of the paper and GPT-J: 2i is
paired with 2i + 1. The pair (a, b) is turned by the angle φ = position · θ^(-2i/D):

    a' = a · cos φ - b · sin φ
    b' = b · cos φ + a · sin φ

A rotation is orthogonal, so the gradient is the rotation by -φ: dx = rope(dy, cos, -sin). Nothing is saved but the
table. The op moves 2 elements for each element of x, plus the table, which every head shares.

Positions are given, by the rows of the table: in packed documents they restart, and queries after a cache start late.
No gradient flows into the table.

`rope_` turns x in place and is for inference. Training has no use for it: the backward may not turn the gradient that
it is handed in place, because autograd hands the same tensor to every term of a sum and to hooks; and in the forward
there is nothing to gain, since the projection's output, once turned, is not kept by anyone and is freed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
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
)

if TYPE_CHECKING:
    from kernels.lab.spec import Spec


LONGEST = 16_384
"""The largest head that the kernels hold in registers."""


class RopeScaling(NamedTuple):
    """How Llama 3.1 was made to read `factor` times its original context (Grattafiori et al. 2024, section 3.4.2, in
    the form that Meta's code gives it): fast rotations tell neighbours apart and stay, slow ones are stretched.
    """

    factor: float
    low_factor: float
    """Pairs that turn fewer times than this in the original context are slowed down by `factor`."""
    high_factor: float
    """Pairs that turn more often than this stay as they are."""
    original_context: int

    def slow_down(self, frequencies: Tensor) -> Tensor:
        """What the frequencies (D/2,), in radians a token, become."""
        turns = self.original_context * frequencies / (2 * math.pi)
        kept = ((turns - self.low_factor) / (self.high_factor - self.low_factor)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rope_table(
    positions: Tensor,
    head_dim: int,
    theta: float,
    dtype: torch.dtype = torch.float32,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, each (B, T, head_dim/2) in `dtype`, for integer positions (B, T)."""
    # At position 100,000 a float32 angle is already off by 0.004, but Apple's GPUs have nothing wider.
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide)
    frequencies = theta ** (-pair / head_dim)
    if scaling is not None:
        frequencies = scaling.slow_down(frequencies)
    angles = positions[..., None] * frequencies  # (B, T, D/2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x (B, H, T, D) with D even, cos and sin (B, T, D/2) from `rope_table` -> the shape and dtype of x.

    Channel i and channel i + D/2 are a point that is turned by the i-th angle; `interleaved`: channels 2i and 2i + 1.
    """
    cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, D/2): the same for every head
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


@jit
def tile(stride_b, stride_h, stride_t, heads, T, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets (HEADS, BLOCK, 1) of this program's heads and positions, and which of them there are."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)[None, :, None]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS).to(tl.int64)[:, None, None]
    batch = tl.program_id(2).to(tl.int64)
    return batch * stride_b + head * stride_h + t * stride_t, (head < heads) & (t < T)


@jit
def angles(cos, sin, sign, table_stride, T, half, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """cos φ and sin(sign·φ) (1, BLOCK, HALF) of this program's positions."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :, None]
    pair = tl.arange(0, HALF)[None, None, :]
    offset = tl.program_id(2).to(tl.int64) * table_stride + t * half + pair
    inside = (t < T) & (pair < half)
    return tl.load(cos + offset, inside, 0.0).to(tl.float32), tl.load(sin + offset, inside, 0.0).to(tl.float32) * sign


@jit
def rope_half_split_kernel(
    x, y, cos, sin, sign, heads, T, half, table_stride, x_b, x_h, x_t, y_b, y_h, y_t,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """HEADS heads of BLOCK positions; they share the table's rows, which are loaded once. y may be x."""
    source, exists = tile(x_b, x_h, x_t, heads, T, HEADS, BLOCK)
    target, _ = tile(y_b, y_h, y_t, heads, T, HEADS, BLOCK)
    c, s = angles(cos, sin, sign, table_stride, T, half, BLOCK, HALF)
    pair = tl.arange(0, HALF)[None, None, :]
    inside = exists & (pair < half)
    a = tl.load(x + source + pair, inside, 0.0).to(tl.float32)
    b = tl.load(x + source + half + pair, inside, 0.0).to(tl.float32)
    tl.store(y + target + pair, a * c - b * s, inside)
    tl.store(y + target + half + pair, b * c + a * s, inside)


@jit
def rope_interleaved_kernel(
    x, y, cos, sin, sign, heads, T, half, table_stride, x_b, x_h, x_t, y_b, y_h, y_t,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """As `rope_half_split_kernel`. A row is loaded whole, and its pairs are parted in registers: the memory is read in
    order, as reading every second number would not."""
    source, exists = tile(x_b, x_h, x_t, heads, T, HEADS, BLOCK)
    target, _ = tile(y_b, y_h, y_t, heads, T, HEADS, BLOCK)
    c, s = angles(cos, sin, sign, table_stride, T, half, BLOCK, HALF)
    column = tl.arange(0, 2 * HALF)[None, None, :]
    inside = exists & (column < 2 * half)
    row = tl.load(x + source + column, inside, 0.0).to(tl.float32)  # (HEADS, BLOCK, 2·HALF)
    a, b = tl.split(tl.reshape(row, (HEADS, BLOCK, HALF, 2)))
    turned = tl.join(a * c - b * s, b * c + a * s)
    tl.store(y + target + column, tl.reshape(turned, (HEADS, BLOCK, 2 * HALF)), inside)


@chosen_once
def rope_launch(
    batch: int, heads: int, length: int, half: int, device: torch.device
) -> tuple[Launch, tuple[int, int, int]]:
    """The launch and its grid: about 2,048 elements a program, 16 a thread: up to 4 heads, which share the table, and
    as many positions."""
    width = next_power_of_2(half)
    if generation(device) == 0:
        launch = Launch({"HEADS": 2, "BLOCK": 4, "HALF": width})
    else:
        share = min(4, next_power_of_2(heads), max(1, 1024 // width))
        tile = {"HEADS": share, "BLOCK": max(1, 1024 // (share * width)), "HALF": width}
        launch = Launch(tile, num_warps=max(4, width // 256))
    return launch, (cdiv(length, launch.blocks["BLOCK"]), cdiv(heads, launch.blocks["HEADS"]), batch)


def turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: float) -> None:
    """x turned by sign·φ is written to y; the last stride of both is 1."""
    B, H, T, D = x.shape
    if B * H * T == 0:
        return
    half = D // 2
    launch, grid = rope_launch(B, H, T, half, x.device)
    kernel = rope_interleaved_kernel if interleaved else rope_half_split_kernel
    table_stride = 0 if cos.shape[0] == 1 else T * half
    strides = (*x.stride()[:3], *y.stride()[:3])
    kernel[grid](
        x, y, cos.contiguous(), sin.contiguous(), sign, H, T, half, table_stride, *strides, **launch.options
    )  # fmt: skip


def result_like(x: Tensor) -> Tensor:
    """Room for a result in the order of x's memory: that of a projection's heads is (B, T, H, D)."""
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2) if x.stride(1) < x.stride(2) else x.new_empty((B, H, T, D))


@custom_op("kernels::rotate")
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: float) -> Tensor:
    """x turned by sign·φ."""
    y = result_like(x)
    turn(x if x.stride(-1) == 1 else x.contiguous(), y, cos, sin, interleaved, sign)
    return y


@rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: float) -> Tensor:
    return result_like(x)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.interleaved, ctx.sign = inputs
    ctx.save_for_backward(cos, sin)


def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
    return rotate(dy, *ctx.saved_tensors, ctx.interleaved, -ctx.sign), None, None, None, None


rotate.register_autograd(differentiate, setup_context=save)


@custom_op("kernels::rotate_", mutates_args=("x",))
def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    turn(x, x, cos, sin, interleaved, 1.0)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x (B, H, T, D) with D even, at most 16,384; cos and sin (B or 1, T, D/2) from `rope_table` -> as x.

    Computed in float32, whatever x is, and rounded once. x may be strided, as heads are that were transposed out of
    a projection; the result then lies in memory in the same order. Only a last stride above 1 is copied first.
    Errors: ValueError for a shape, a device, or a table that requires a gradient; TypeError for a dtype.
    """
    check("rope", x, cos, sin)
    return rotate(x, cos, sin, interleaved, 1.0)


def rope_(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """`rope` that overwrites x, for inference, and returns it. Errors: as `rope`; also ValueError where x requires a
    gradient, overlaps itself in memory, or has a last stride above 1."""
    check("rope_", x, cos, sin)
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("rope_: x requires a gradient; use rope, or torch.no_grad()")
    if x.numel() and (x.stride(-1) != 1 or overlaps_itself(x)):
        raise ValueError(f"rope_: x has strides {x.stride()}; the last must be 1, and no places shared; use rope")
    rotate_in_place(x, cos, sin, interleaved)
    return x


def overlaps_itself(x: Tensor) -> bool:
    """Whether x may have two elements in one place of its memory: where a stride is no longer than all that the shorter
    ones reach."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape) if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


@once_per_signature
def check(op: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    require(op, {"x": x, "cos": cos, "sin": sin})
    if x.dim() != 4 or x.shape[-1] not in range(2, LONGEST + 1, 2):
        raise ValueError(f"{op}: x is {tuple(x.shape)}; it must be (B, H, T, D) with D even, at most {LONGEST:,}")
    B, _, T, D = x.shape
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape not in ((B, T, D // 2), (1, T, D // 2)) or table.shape != cos.shape:
            raise ValueError(f"{op}: {name} is {tuple(table.shape)}; for this x cos and sin must be {(B, T, D // 2)}")
        if table.requires_grad:
            raise ValueError(f"{op}: {name} requires a gradient, and none flows into the table; detach it")


def rope_spec() -> Spec:
    from hypothesis import strategies as st

    from kernels.lab import Inputs, Mutant, Spec, Work

    def inputs(
        generator: torch.Generator, batch: int, heads: int, length: int, half: int, interleaved: bool = False,
        is_shared: bool = False, size: float = 1.0, is_exact: bool = True,
    ) -> Inputs:  # fmt: skip
        """Any positions, as documents have them, for each sequence of the batch or (`is_shared`) for all alike;
        `is_exact`: a table in float32 whatever x is."""
        x = size * torch.randn(batch, heads, length, 2 * half, generator=generator, dtype=torch.float64)
        positions = torch.randint(5000, (1 if is_shared else batch, length), generator=generator)
        cos, sin = rope_table(positions, 2 * half, 1e4, torch.float64)
        options = {"interleaved": interleaved}
        table = ("cos", "sin") if is_exact else ()
        return Inputs({"x": x, "cos": cos, "sin": sin}, options, gradients=("x",), float32=table)

    def work(
        element_size: int, batch: int, heads: int, length: int, half: int, is_shared: bool = False, **_: Any
    ) -> tuple[Work, Work]:
        elements = batch * heads * length * 2 * half
        table = 4 * 2 * half * length * (1 if is_shared else batch)
        both = Work(2 * elements * element_size + table, 3 * elements)
        return both, both

    llama = {"batch": 2, "heads": 16, "length": 2048, "half": 64}
    return Spec(
        name="rope",
        op=rope,
        reference=rope_reference,
        cases=st.fixed_dictionaries(
            {
                "batch": st.integers(0, 3),
                "heads": st.integers(1, 5),
                "length": st.integers(0, 9),
                "half": st.integers(1, 17),
                "interleaved": st.booleans(),
                "is_shared": st.booleans(),
                "size": st.sampled_from([1.0, 1e-3, 1000.0]),
                "is_exact": st.booleans(),
            }
        ),
        inputs=inputs,
        builds=(
            llama,
            {**llama, "half": 32},
            {**llama, "interleaved": True},
            {**llama, "dtype": "float32"},
            {**llama, "half": 48, "interleaved": True},
        ),
        benchmarks=(llama, {**llama, "half": 32}, {**llama, "interleaved": True}, {**llama, "batch": 8}),
        work=work,
        mutants=(
            Mutant("gradient turned forward", "ctx.interleaved, -ctx.sign)", "ctx.interleaved, ctx.sign)"),
            Mutant(
                "half-split: sign of b",
                "tl.store(y + target + pair, a * c - b * s",
                "tl.store(y + target + pair, a * c + b * s",
            ),
            Mutant(
                "half-split: pairs past the end", "inside = exists & (pair < half)", "inside = exists & (pair < HALF)"
            ),
            Mutant("interleaved: columns past the end", "exists & (column < 2 * half)", "exists & (column < 2 * HALF)"),
            Mutant(
                "interleaved: a and b exchanged",
                "tl.join(a * c - b * s, b * c + a * s)",
                "tl.join(b * c + a * s, a * c - b * s)",
            ),
            Mutant("heads past the end", "(head < heads) & (t < T)", "(head < heads + 1) & (t < T)"),
            Mutant("strides of x for y", "(*x.stride()[:3], *y.stride()[:3])", "(*x.stride()[:3], *x.stride()[:3])"),
            Mutant(
                "table of the first sequence",
                "0 if cos.shape[0] == 1 else T * half",
                "0 if True else T * half",
            ),
            Mutant("table's gaps ignored", "x, y, cos.contiguous(), sin", "x, y, cos, sin"),
            Mutant("copied for nothing", "x if x.stride(-1) == 1 else x.contiguous()", "x"),
            Mutant(
                "angles of one position",
                "program_id(2).to(tl.int64) * table_stride + t * half",
                "program_id(2).to(tl.int64) * table_stride + 0 * t",
            ),
        ),
    )


def rope_in_place_spec() -> Spec:
    """`rope_`, on a copy with the strides of x where those are such as it takes; it has no gradient."""
    from kernels.lab import Mutant

    rope_of = rope_spec()

    def in_place(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        strides = x.stride() if x.stride(-1) == 1 else x.contiguous().stride()
        copy = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
        return rope_(copy.copy_(x), cos, sin, interleaved)

    def inputs(generator: torch.Generator, **case: Any) -> Any:
        return replace(rope_of.inputs(generator, **case), gradients=())

    return replace(
        rope_of,
        name="rope_",
        op=in_place,
        inputs=inputs,
        mutants=(
            Mutant("turned back", "turn(x, x, cos, sin, interleaved, 1.0)", "turn(x, x, cos, sin, interleaved, -1.0)"),
            Mutant("half-split for both", "turn(x, x, cos, sin, interleaved, 1.0)", "turn(x, x, cos, sin, False, 1.0)"),
            Mutant("another tensor turned", "turn(x, x, cos", "turn(x, x.clone(), cos"),
            Mutant("strides of a contiguous y", "*y.stride()[:3])", "*result_like(y).stride()[:3])"),
            Mutant(
                "sine for cosine",
                "x, y, cos.contiguous(), sin.contiguous()",
                "x, y, sin.contiguous(), cos.contiguous()",
            ),
            Mutant(
                "table of the first sequence",
                "0 if cos.shape[0] == 1 else T * half",
                "0 if True else T * half",
            ),
        ),
    )
