"""FLOPs and time as they are used, and the end of a run when either is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from instructgpt.data.batch import Batch, BatchStream


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(dy.shape, q.shape, k.shape, v.shape)


_aten = torch.ops.aten
COUNTS: Mapping[Any, Callable[..., int]] = MappingProxyType(
    {
        **flop_registry,
        # Attention as it is fused for a CPU, which PyTorch's own table has forgotten.
        _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
)
"""By operator, its FLOPs for its arguments."""


class Spent(Exception):
    """FLOPs or time are used up."""


class Meter(TorchDispatchMode):
    """Counts the FLOPs of all that PyTorch computes inside: matrix products, attention and convolutions, a multiply-add
    being two and masked scores counted, as `torch.utils.flop_counter` counts them, whose own mode takes longer."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = COUNTS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


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
