"""How far a correct op may be from its float64 result, found by rounding the reference's operations at random.

A kernel reads its inputs' dtype, computes in float32 and rounds once, when it stores. With r the float64 result, δ what
float32 arithmetic has lost before the last rounding, and ° rounding to the output's dtype, its result (r + δ)° is the
number of that dtype nearest to r + δ, no farther from it than r°, so that in any norm

    ‖(r + δ)° - r‖ ≤ ‖r° - r‖ + 2·‖δ‖

The first term is known exactly. The second is tried out: the reference runs in float64 several times more, and each
time every operation's result is moved at random by what a float32 program loses there (Monte Carlo arithmetic, Parker
1997); what follows starts from the moved numbers. So the runs scatter about r as programs in float32 do: a difference
of large numbers, exp of a large score, a gradient of 0 that is the sum of many terms are seen for what they are, in
anybody's reference. No thread count, order or luck enters: the random numbers are the seed's, and float64's own errors
are a billionth of what is asked about. With the unit u = 2⁻²³, an operation loses

1. u of its result where it works element by element, unless that is arithmetic whose result float32 holds exactly;
2. √n·u·Σ|terms| in a sum of n terms, be it a matrix product's. Whatever their order, the error is at most
   (n - 1)·u·Σ|terms|; being as often up as down, rounding errors add up to λ·√n·u·Σ|terms| instead, with a probability
   of failure that falls as exp(-λ²/2) (Higham and Mary 2019, theorem 2.4);
3. the digits that the inputs' dtype has no room for in each operand of a matrix product, such as attention's weights:
   that is what tensor cores multiply. Their sums are float32's. In every other run equal operands lose the same.

A result below float32's smallest normal number may be 0, too, as where a GPU flushes it or the exponential in a
denominator overflows.

So nothing but these operands may be rounded to half precision before the end: no sum, no score, no σ.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

UNIT = 2.0**-23
"""float32's eps, twice what rounding to nearest can lose: a GPU's exp2 and division lose as much."""
LEAST = torch.finfo(torch.float32).smallest_normal
"""What is smaller may be flushed to 0."""

aten: Any = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.mv, aten.dot, aten.convolution)
"""Sums of products of their first two arguments."""
SUMS = (aten.sum, aten.mean, aten.cumsum, aten.index_add, aten.scatter_add, aten.embedding_dense_backward)
"""Linear in what they are given, with coefficients that are not negative."""
INDEXED = (aten.index_put, aten._index_put_impl_)
"""Sums too, where their fourth argument says so."""
FUNCTIONS = [
    getattr(aten, name)
    for name in (
        "acos acosh asin asinh atan atan2 atanh cos cosh erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 "
        "pow rsqrt sigmoid sin sinh sinc special_erfcx tan tanh"
    ).split()
]
"""Never exact: that of tanh which is 1 in float64 is not 1, and another formula may know by how much."""
FUSED = (
    "addbmm addcdiv addcmul addmm addmv addr baddbmm binary_cross_entropy binary_cross_entropy_with_logits "
    "cosine_similarity _euclidean_dist _fused_rms_norm _fused_rms_norm_backward gelu gelu_backward glu "
    "glu_backward index_add kl_div lerp log_sigmoid_forward _log_softmax _log_softmax_backward_data logaddexp "
    "logsumexp mish mish_backward mse_loss mse_loss_backward native_batch_norm native_group_norm "
    "native_group_norm_backward native_layer_norm native_layer_norm_backward nll_loss_backward nll_loss_forward "
    "rsub _scaled_dot_product_flash_attention_for_cpu sigmoid_backward silu silu_backward smooth_l1_loss _softmax "
    "_softmax_backward_data softplus softplus_backward std std_mean tanh_backward var var_mean"
).split()
"""Several operations in one, taken apart so that each is rounded."""


class RandomRounding(TorchDispatchMode):
    """Inside, operations on float64 lose at random what the same ones lose in float32, and no more than `operand`, the
    dtype of the inputs, lets a matrix product's operands keep."""

    def __init__(
        self, seed: int, operand: torch.dtype, device: torch.device | None = None, alike: bool = False
    ) -> None:
        """alike: equal numbers among a product's operands are rounded alike, so that their errors add up."""
        super().__init__()
        self.generator = torch.Generator(device or "cpu").manual_seed(seed)
        self.operand, self.alike = operand, alike

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operation = kwargs or {}, func.overloadpacket
        if (apart := out_of_place(func)) is not None:
            with self:
                result = apart(*args, **kwargs)
            return args[0].copy_(result)
        if func in decompositions():
            with self:
                return decompositions()[func](*args, **kwargs)
        if operation in PRODUCTS:
            args = (*(self.as_operand(arg) for arg in args[:2]), *args[2:])
        result = func(*args, **kwargs)
        # Views share memory with numbers that were rounded where they were made.
        is_new = isinstance(result, Tensor) and not any(is_view(returned) for returned in func._schema.returns)
        if not is_new or result.dtype != torch.float64 or not result.numel():
            return result
        if operation in PRODUCTS or is_sum(operation, args):
            self.move_sum(result, func, args, kwargs)
        else:
            loses = operation in FUNCTIONS or (result != to_float32s_digits(result))
            self.move(result, UNIT * result, loses)
        return result

    def move_sum(self, result: Tensor, func: Any, args: Any, kwargs: Any) -> None:
        operation = func.overloadpacket
        terms = count_terms(operation, args, result)
        if terms > 1 or operation in PRODUCTS:
            out_of_place = aten.index_put if operation in INDEXED else func
            size = out_of_place(*(arg.abs() if is_float64(arg) else arg for arg in args), **kwargs)
            self.move(result, math.sqrt(terms) * UNIT * size)

    def as_operand(self, t: Tensor) -> Tensor:
        """`t` as a matrix product reads it."""
        if not is_float64(t) or self.operand == torch.float32:
            return t
        # A kernel's operand is a multiple of the reference's, as weights that are not yet divided by their sum are: the
        # rounding's error is as random as where the number falls between two neighbours. But equal weights, of keys
        # that are alike or of scores that are all 0, are multiplied alike, and then their errors are equal.
        if self.alike:
            limits = torch.finfo(self.operand)
            place = t.frexp().mantissa.abs() * 1000 * (1 + self.drawn_like(t.new_empty(())))
            size = t.abs().clamp(min=limits.smallest_normal) * (limits.eps / 2)
            moved = t + size * up_or_down(place.frac())
        else:
            scale = 1 + self.drawn_like(t)
            moved = (t * scale).to(self.operand).double() / scale
        return torch.where((t == t.to(self.operand)) | ~moved.isfinite(), t, moved)

    def drawn_like(self, t: Tensor) -> Tensor:
        """Uniform from 0 to 1, in float64, where `t` is: an op may hold a number on the CPU beside tensors on a GPU."""
        drawn = torch.rand(t.shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)
        return drawn.to(t.device)

    def move(self, t: Tensor, most: Tensor, where: Tensor | bool = True) -> None:
        """Adds between half of `most` and all of it, of either sign, and leaves float32's digits, which less would not
        change; what is not finite stays. Half of what is smaller than any normal number becomes 0."""
        noise = up_or_down(self.drawn_like(t))
        moved = to_float32s_digits(t + most * noise)
        moved = torch.where(moved.isfinite() & where, moved, t)
        t.copy_(moved.masked_fill_((noise < 0) & (moved.abs() < LEAST), 0.0))


@lru_cache(maxsize=1)
def decompositions() -> dict[Any, Any]:
    """What takes each overload of `FUSED` apart."""
    from torch._decomp import get_decompositions

    return dict(get_decompositions([getattr(aten, name) for name in FUSED if hasattr(aten, name)]))


def up_or_down(drawn: Tensor) -> Tensor:
    """From -1 to -0.5 or from 0.5 to 1, of what is drawn from 0 to 1."""
    noise = drawn - 0.5
    return noise + torch.where(noise < 0, -0.5, 0.5)


def out_of_place(func: Any) -> Any:
    """add for add_, say, and None for what does not write to its first argument."""
    name = func._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.startswith("_") or name == "copy_":
        return None
    return getattr(getattr(aten, name[:-1], None), func._overloadname, None)


def is_sum(operation: Any, args: Any) -> bool:
    return operation in SUMS or (operation in INDEXED and len(args) > 3 and bool(args[3]))


def is_view(returned: Any) -> bool:
    return returned.alias_info is not None and not returned.alias_info.is_write


def is_float64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def to_float32s_digits(t: Tensor) -> Tensor:
    """Rounded to 24 significant bits, of any exponent (Veltkamp 1968); NaN where it is not finite."""
    scaled = t * (2.0**29 + 1)
    return scaled - (scaled - t)


def count_terms(operation: Any, args: Any, result: Tensor) -> int:
    """Of each sum; the longest there may be, where they differ."""
    first = args[0]
    if operation in (aten.mm, aten.bmm, aten.mv, aten.dot):
        return first.size(-1)
    if operation == aten.convolution:
        return args[1][0].numel()
    if operation in (aten.sum, aten.mean):
        return first.numel() // result.numel()
    if operation in INDEXED:
        return max(index.numel() for index in args[1] if index is not None)
    if operation == aten.cumsum:
        return first.size(args[1]) if first.dim() else 1
    return first.numel() // first.size(-1)  # rows that an index may all send to the same place
