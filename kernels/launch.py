"""What every kernel file starts from: Triton where it is installed, what an op accepts, how kernels are launched.

`from kernels.launch import jit, tl` works without Triton too: the references are then all that can be called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, update_wrapper, wraps
from inspect import signature as signature_of
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as is_transform_active
from torch._C import _is_torch_function_mode_enabled as is_mode_active
from torch._C import _len_torch_dispatch_stack as is_dispatch_mode_active
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling
from torch.nn import Parameter

try:
    import triton
    import triton.language as tl

except ImportError:  # no Triton for this platform
    triton: Any = None
    tl: Any = None

AVAILABLE = triton is not None
"""Triton is installed."""

jit: Any = triton.jit if triton is not None else lambda function: function


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n >= 1: the width of a block that holds n elements."""
    return 1 << (n - 1).bit_length()


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute on; everything is accumulated in float32."""

INTERPRETED = triton is not None and triton.knobs.runtime.interpret
"""Kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1 when this module was imported): slow, exact."""

_generation: ContextVar[int | None] = ContextVar("generation", default=None)


@contextmanager
def building_for(generation: int) -> Iterator[None]:
    """Ops called inside choose their launches for this compute capability (80, 90, 100), whatever device is here, and
    take tensors of any device: for a caller that intercepts the launches."""
    token = _generation.set(generation)
    try:
        yield
    finally:
        _generation.reset(token)


def generation(device: torch.device) -> int:
    """The compute capability to choose a launch for: 80 (A100), 90 (H100, H200), 100 (B200); 0 in the interpreter."""
    if (forced := _generation.get()) is not None:
        return forced
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def require(op: str, tensors: dict[str, Tensor], dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Refuses what the kernels of `op` cannot compute: ValueError for a device, TypeError for a dtype, naming it."""
    if triton is None:
        raise ValueError(f"{op}: Triton is not installed here; use {op}_reference")
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise TypeError(f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')}; it must be one of {allowed}")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, not on {first.device} like the others")
    if first.device.type != "cuda" and not INTERPRETED and _generation.get() is None:
        raise ValueError(
            f"{op}: tensors are on {first.device.type}, and Triton's kernels need a CUDA device; use {op}_reference, "
            "or set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter"
        )


PLAIN = (Tensor, Parameter)
"""Types of tensors that hold their numbers; others stand for something: a symbol, a batch, a part of a whole."""


class once_per_signature:
    """The same check, run once for each signature: dtype, shape, strides and device of each tensor and whether it
    requires a gradient, and the other arguments. What has passed passes again; what is refused is refused again.

    A check of values (of a scalar that is no argument, of what is in a tensor) must stay outside.
    """

    def __init__(self, check: Callable[..., None]) -> None:
        self.check = check
        self.passed: set[tuple[Any, ...]] = set()
        update_wrapper(self, check)

    def __call__(self, *arguments: Any) -> None:
        if is_compiling():  # sizes may be symbols, and tracing happens once anyway
            return self.check(*arguments)
        parts: list[Any] = [_generation.get(), INTERPRETED]
        for x in arguments:
            if isinstance(x, Tensor):
                if type(x) not in PLAIN:
                    return self.check(*arguments)
                parts += (x.dtype, x.shape, x.stride(), x.device, x.requires_grad)
            else:
                parts += (type(x), x)  # 1, 1.0 and True are equal
        signature = tuple(parts)
        if signature not in self.passed:
            self.check(*arguments)
            _keep_few(self.passed)
            self.passed.add(signature)


def _keep_few(cache: set[Any] | dict[Any, Any], most: int = 4096) -> None:
    """Forgets all where sizes vary without end."""
    if len(cache) >= most:
        cache.clear()


class Operator(torch.library.CustomOpDef):  # pyright: ignore[reportPrivateImportUsage]
    """A function of tensors that PyTorch knows by name, called at the least cost.

    The cost of a call, forward with gradient, around a function that does nothing (two inputs, one CPU): a bare
    `autograd.Function` 6.8 µs; around `torch.library.define` and `impl` 9.0; around a `custom_op` 17.8; a `custom_op`
    with `register_autograd` 22.7; this 5.9. So plain tensors go straight to the function, under an `autograd.Function`
    where a gradient is wanted. Whoever looks at operators or replaces them meets the `custom_op` of the same function,
    with the same backward: torch.compile, modes, transforms, other types of tensors, and a gradient asked for where
    there is no formula, which is refused there.
    """

    def __init__(self, name: str, function: Callable[..., Any], mutates_args: Sequence[str] = ()) -> None:
        self.function = on_device_of_tensors(function)
        namespace, own_name = name.split("::")
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        super().__init__(namespace, own_name, schema, self.function)
        self.register_kernel(None)(self.function)
        self.mutated = [place for place, name in enumerate(signature_of(function).parameters) if name in mutates_args]
        self.differentiable: Callable[..., Any] | None = None

    def register_autograd(self, backward: Callable[..., Any], /, *, setup_context: Callable[..., None]) -> None:
        super().register_autograd(backward, setup_context=setup_context)
        run = self.function

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = run(*inputs)
            setup_context(ctx=ctx, inputs=inputs, output=output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        direct = type(run.__name__, (torch.autograd.Function,), methods)
        # Function.apply first asks for transforms, as __call__ has done already; that costs a third of the call.
        self.differentiable = super(torch.autograd.Function, direct).apply  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if named or is_compiling() or is_mode_active() or is_dispatch_mode_active() or is_transform_active():
            return super().__call__(*arguments, **named)
        requires_grad = False
        for x in arguments:
            if isinstance(x, Tensor):
                if type(x) not in PLAIN:
                    return super().__call__(*arguments)
                requires_grad = requires_grad or x.requires_grad
        if requires_grad and torch.is_grad_enabled():
            return (self.differentiable or super().__call__)(*arguments)
        result = self.function(*arguments)
        for place in self.mutated:
            increment_version(arguments[place])
        return result


def custom_op(name: str, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an `Operator` of a function, as `torch.library.custom_op` would; it runs on the device of its tensors."""
    return lambda function: Operator(name, function, mutates_args)


def on_device_of_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, the device of its first tensor being the current one inside; where it is already, at no cost
    but the question. Triton launches on the current device, and what lies on another one is out of a kernel's reach."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for x in args if not kwargs else (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                device = x.device
                break
        else:
            return function(*args, **kwargs)
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return guarded


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: block sizes by the names of the kernel's parameters, and Triton's two settings."""

    blocks: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    @cached_property
    def options(self) -> dict[str, int]:
        """Keyword arguments for `kernel[grid](..., **launch.options)`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


Choose = TypeVar("Choose", bound=Callable[..., Any])


def chosen_once(choose: Choose) -> Choose:
    """The same function, asked once for each combination of its arguments: sizes, dtypes, devices. Under `choosing` it
    is asked each time."""
    known: dict[tuple[Any, ...], Any] = {}

    @wraps(choose)
    def chosen(*arguments: Any) -> Any:
        if _choosers:
            return choose(*arguments)
        forced = _generation.get()
        # `tuned` reads a file only where neither holds.
        file = os.environ.get("KERNELS_TUNED") if forced is None and not INTERPRETED else None
        key = (arguments, forced, INTERPRETED, file)
        found = known.get(key)
        if found is None:
            _keep_few(known)
            found = known[key] = choose(*arguments)
        return found

    return chosen  # pyright: ignore[reportReturnType]


Chooser = Callable[[str, str, Launch, Sequence[Launch]], Launch]
"""(op, key, default, others) -> the launch to use."""

_choosers: list[Chooser] = []
"""The last one is asked. No ContextVar: on a GPU, autograd runs the backward in a thread of its own."""


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """`tuned` asks `chooser` inside: this is how launches are tried."""
    _choosers.append(chooser)
    try:
        yield
    finally:
        _choosers.pop()


def tuned(
    op: str, key: str, default: Launch, others: Sequence[Launch] = (), device: torch.device | None = None
) -> Launch:
    """The launch that `python -m kernels.lab tune` found fastest on such a device, or `default` where it never ran.

    `key` holds the dtype and sizes that decide, coarsely, since each key is measured by itself; `others` are the
    launches that are tried besides `default`; `device` is that of the tensors, by default the current one.
    """
    if _choosers:
        return _choosers[-1](op, key, default, others)
    if _generation.get() is not None or INTERPRETED or not (measured := read_tuned(tuned_file())):
        return default
    found = measured.get(torch.cuda.get_device_name(device), {}).get(op, {}).get(key)
    # A kernel whose parameters were renamed since is launched as if it had not been tuned.
    return Launch(**found) if found and found["blocks"].keys() == default.blocks.keys() else default


def tuned_file() -> str:
    """Where tuned launches are kept: KERNELS_TUNED, or tuned.json in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("KERNELS_TUNED") or os.path.join(cache, "kernels", "tuned.json")


@lru_cache
def read_tuned(file: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Launches as dictionaries, by device's name, op and key; read once a process. Empty where there is no file."""
    try:
        return json.loads(Path(file).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: tuned launches cannot be read: {error}; delete it, or tune again") from error
