"""Triton's CPU interpreter, made fit to judge kernels: bfloat16 that rounds, and programs in reversed order.

The interpreter keeps bfloat16 as its bits in uint16 and computes on those bits as if they were numbers: products and
sums are garbage, casts truncate, and nothing says so. Inside `faithful_bfloat16` such operands are widened to float32,
and results are rounded to the nearest bfloat16, ties to even, as the hardware does. It replaces private functions of
Triton (3.6 to 3.9 have them); tests/kernels/lab/test_interpreter.py fails when a new version changes them.
"""

from __future__ import annotations

import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from kernels.launch import INTERPRETED, tl

ARITHMETIC = (
    "binary_op", "unary_op", "ternary_op", "create_dot", "create_fma", "create_rsqrt", "create_erf", "create_clampf",
)  # fmt: skip
"""The builder's methods through which every floating-point operation goes."""

Bits = Any
"""Triton's TensorHandle: a numpy array `data`, and a Triton `dtype` that may be other than the array's."""


def is_bfloat16(value: Any) -> bool:
    kind = getattr(value, "dtype", None)
    return isinstance(kind, tl.dtype) and not kind.is_ptr() and kind.scalar == tl.bfloat16


def widened(value: Bits) -> Bits:
    """bfloat16 -> float32, exactly: its bits are the upper half of a float32's."""
    bits = np.ascontiguousarray(value.data).view(np.uint16).astype(np.uint32) << 16
    return type(value)(bits.view(np.float32).reshape(value.data.shape), tl.float32)


def rounded(value: Bits) -> Bits:
    """Any number -> bfloat16, by PyTorch."""
    wide = np.array(value.data, dtype=np.float32, order="C")
    bits = torch.from_numpy(wide).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return type(value)(bits.reshape(value.data.shape), tl.bfloat16)


def computing_in_float32(method: Callable[..., Bits]) -> Callable[..., Bits]:
    """An arithmetic method that widens its bfloat16 operands and rounds its result."""

    def widen_compute_round(self: Any, *operands: Any) -> Bits:
        if not any(is_bfloat16(operand) for operand in operands):
            return method(self, *operands)
        result = method(self, *(widened(operand) if is_bfloat16(operand) else operand for operand in operands))
        if result.data.dtype == np.bool_:  # a comparison
            return type(result)(result.data, tl.int1)
        # The last tensor has the result's type: what a product is added to, what a condition chooses from.
        last = [operand for operand in operands if isinstance(operand, type(result))][-1]
        return rounded(result) if is_bfloat16(last) else result

    return widen_compute_round


def casting_through_float32(cast: Callable[..., Bits]) -> Callable[..., Bits]:
    def cast_impl(self: Any, value: Bits, target: Any) -> Bits:
        source = widened(value) if is_bfloat16(value) else value
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        return value if is_bfloat16(value) else rounded(source)

    return cast_impl


def refusing_bfloat16(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    def refuse(self: Any, *operands: Any) -> Any:
        for operand in operands:
            for value in operand if isinstance(operand, tuple) else (operand,):
                if is_bfloat16(value):
                    raise TypeError(f"{what} in bfloat16 loses most of its digits; convert to float32 first")
        return method(self, *operands)

    return refuse


@contextmanager
def faithful_bfloat16() -> Iterator[None]:
    """Inside, interpreted kernels compute on bfloat16 as hardware does; reductions and atomics on it raise TypeError.

    numpy's warnings about overflow and NaN are silent: on a GPU they are ordinary results.
    """
    import triton.runtime.interpreter as interpreter

    builder, reduction = interpreter.InterpreterBuilder, interpreter.ReduceScanOpInterface
    replaced: dict[str, Any] = {
        name: computing_in_float32(getattr(builder, name)) for name in ARITHMETIC if hasattr(builder, name)
    }
    one = interpreter.TensorHandle(np.ones(1, np.float32), tl.float32)
    replaced["get_bf16"] = lambda self, value: rounded(replace(one, data=one.data * value))  # 3.9 has it already
    replaced["cast_impl"] = casting_through_float32(builder.cast_impl)
    replaced["create_atomic_rmw"] = refusing_bfloat16(builder.create_atomic_rmw, "an atomic operation")
    apply = refusing_bfloat16(reduction.apply, "a reduction")
    with (
        mock.patch.multiple(builder, create=True, **replaced),
        mock.patch.object(reduction, "apply", apply),
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@contextmanager
def reversed_programs() -> Iterator[None]:
    """Inside, the last program of a grid runs first: where programs depend on each other, results change."""
    import triton.runtime.interpreter as interpreter

    set_grid_idx = interpreter.InterpreterBuilder.set_grid_idx

    def set_reversed(self: Any, *index: int) -> None:
        set_grid_idx(self, *(size - 1 - i for size, i in zip(self.grid_dim, index)))

    with mock.patch.object(interpreter.InterpreterBuilder, "set_grid_idx", set_reversed):
        yield


class Unsupported(Exception):
    """The interpreter cannot run a kernel, which may be right or not."""


def causes_of(error: BaseException) -> list[BaseException]:
    """The error, what it came of, and so on."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def told(error: BaseException) -> str:
    """What was raised, without what Triton wraps around it, and the last line that was running of its author's."""
    causes = causes_of(error)
    cause = next((each for each in causes if type(each).__name__ != "InterpreterError"), error)
    frames = [frame for each in causes for frame in traceback.extract_tb(each.__traceback__)]
    lines = [f" ({Path(frame.filename).name}:{frame.lineno})" for frame in frames if is_authors(Path(frame.filename))]
    said = " ".join(str(cause).split())
    return f"{type(cause).__name__}{said and ': '}{said}{lines[-1] if lines else ''}"


def is_authors(file: Path) -> bool:
    """Whether it may be the file of who wrote the kernel: none of Python's, of an installed package or of the lab."""
    package = Path(__file__).parents[1]
    others = (
        package / "lab",
        package / "launch.py",
        *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")),
    )
    installed = "site-packages" in file.parts or "dist-packages" in file.parts
    return file.exists() and not installed and not any(file.is_relative_to(other) for other in others)


def inability(error: BaseException) -> str | None:
    """Why the interpreter could not run what raised this, and what to do; None where the fault is the kernel's own."""
    if not INTERPRETED:
        return None
    for cause in causes_of(error):
        text = str(cause)
        if "active drivers" in text:
            return "it asks for a GPU's driver, as @triton.autotune does to measure; choose block sizes in plain Python"
        if "CUDA" in text and isinstance(cause, (RuntimeError, AssertionError)):
            return f"it asks for a CUDA device ({first_line(text)})"
        if isinstance(cause, NotImplementedError):
            return first_line(text) or "it uses what the interpreter does not implement"
        if "`_semantic` argument must be provided" in text:
            return f"it calls {foreign_function(cause) or 'a function'}, which only GPUs have; tl.math may have it too"
        if "cannot convert None of type" in text and (name := foreign_function(cause)):
            return f"it calls {name}, which only GPUs have; tl.math may have it too"
        if isinstance(cause, AttributeError) and raised_in_triton(cause):
            return f"the interpreter itself failed ({first_line(text)})"
    return None


def first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def raised_in_triton(error: BaseException) -> bool:
    import triton

    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(triton.__file__).parent)


def foreign_function(error: BaseException) -> str | None:
    """A function of libdevice, or of a GPU's own, that the code which raised this names."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code, known = frame.f_code, frame.f_globals
        for name in code.co_names:
            value = known.get(name)
            if isinstance(value, types.ModuleType) and "libdevice" in value.__name__:
                return next((f"libdevice.{used}" for used in code.co_names if hasattr(value, used)), "libdevice")
            if "libdevice" in (getattr(value, "__module__", None) or ""):
                return f"libdevice.{name}"
        if "extra" in code.co_names and ("libdevice" in code.co_names or "cuda" in code.co_names):
            return "tl." + ".".join(code.co_names[code.co_names.index("extra") :][:4])
    return None
