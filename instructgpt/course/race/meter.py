"""FLOPs and time as they are used, and the end of a run when either is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from instructgpt.data.batch import Batch, BatchStream
from instructgpt.errors import UserError


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(dy.shape, q.shape, k.shape, v.shape)


def _recurrent(x: Tensor, to_gates: Tensor, recurrent: Tensor, *_: Any, **__: Any) -> int:
    """Of one layer, both of whose matrices are multiplied with each token."""
    return 2 * (x.numel() // x.size(-1)) * (to_gates.numel() + recurrent.numel())


def _recurrent_backward(*operands: Any, **_: Any) -> int:
    return 2 * _recurrent(*operands)


_aten = torch.ops.aten
COUNTS: Mapping[Any, Callable[..., int]] = MappingProxyType(
    {
        **flop_registry,
        # What PyTorch's own table has forgotten: attention and recurrent layers as they are fused for a CPU.
        _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        _aten.mkldnn_rnn_layer: _recurrent,
        _aten.mkldnn_rnn_layer_backward: _recurrent_backward,
    }
)
"""By operator, its FLOPs for its arguments."""
NAMESPACES = ("aten", "prim", "prims")
"""Of PyTorch's own operators."""
UNCOUNTED = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
"""Those that are products and more in one."""


class Spent(Exception):
    """FLOPs or time are used up."""


class Meter(TorchDispatchMode):
    """Counts the FLOPs of all that PyTorch computes inside: matrix products, attention, convolutions and
    recurrent layers, a multiply-add being two and masked scores counted, as `torch.utils.flop_counter` counts them,
    whose own mode takes longer. Raises UserError for operators that might hide such."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_known = isinstance(func, OpOverload)
        count = COUNTS.get(func._overloadpacket) if is_known else None
        if count is None:
            if not is_known or func.namespace not in NAMESPACES or func.overloadpacket.__name__ in UNCOUNTED:
                raise UserError(f"the FLOPs of {func} are not counted: use PyTorch's own and plainer operators")
            if is_composite(func):  # as it comes in inference mode, whole
                with self:
                    return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


@cache
def is_composite(func: OpOverload) -> bool:
    """Whether PyTorch computes it by other operators."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


class Metered:
    """A stream of batches that ends, by Spent, once a meter has seen `flops`, or the process took `cpu_seconds`."""

    def __init__(self, batches: BatchStream, meter: Meter, flops: float, cpu_seconds: float):
        self._batches, self._meter, self._flops, self._until = batches, meter, flops, time.process_time() + cpu_seconds

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._meter.flops >= self._flops:
            raise Spent("FLOPs")
        if time.process_time() >= self._until:
            raise Spent("time")
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._batches.restore(state)
