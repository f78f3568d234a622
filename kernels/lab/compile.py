"""Does it compile for the GPUs it is meant for, and within their budgets? Asked without having one.

No launch is declared twice: an op runs forward and backward on real tensors of a realistic case, on the CPU, and each
kernel that it launches is compiled for the target, with Triton's usual specialisation, instead of being run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch

from kernels import launch
from kernels.lab.calls import Call, cotangents_for, describe, dtype_of, prepare
from kernels.lab.find import UsageError, add_kernel_argument, find, told_in_one_line
from kernels.lab.machine_code import Resources, resources
from kernels.lab.output import table, to_json
from kernels.lab.processes import Ended, in_order
from kernels.lab.spec import Case, Spec
from kernels.launch import building_for


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    name: str
    generation: int
    """As `kernels.launch.generation` tells it."""
    shared_limit: int
    """Most shared memory of one program, in bytes."""
    backend: str
    arch: int | str
    warp_size: int = 32


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 80, 166_912, "cuda", 80),  # A100
        Target("sm_86", 86, 101_376, "cuda", 86),  # RTX 30
        Target("sm_89", 89, 101_376, "cuda", 89),  # RTX 40, L4
        Target("sm_90", 90, 232_448, "cuda", 90),  # H100, H200
        Target("sm_100", 100, 232_448, "cuda", 100),  # B200
        Target("sm_120", 120, 101_376, "cuda", 120),  # RTX 50
        Target("gfx942", 94, 65_536, "hip", "gfx942", warp_size=64),  # MI300
    )
}


@dataclass(frozen=True)
class Launched:
    """A kernel that an op launched."""

    kernel: str
    settings: dict[str, Any]
    """Its constants, such as block sizes, `num_warps` and `num_stages`."""
    compiled: Any
    """Triton's `CompiledKernel`, or the error that compiling it raised."""


@dataclass(frozen=True)
class Build:
    """A kernel as one specialisation for one target."""

    kernel: str
    target: str
    cases: tuple[int, ...]
    """Indices of the spec's builds that launch it."""
    settings: dict[str, Any]
    resources: Resources | None
    problems: tuple[str, ...]


def can_build_for(target: Target) -> bool:
    """Whether this Triton was made with a compiler for the target."""
    from triton.backends import backends

    return any(backend.compiler.supports_target(_gpu(target)) for backend in backends.values())


def _gpu(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget(target.backend, target.arch, target.warp_size)


class StandInDriver:
    """What Triton asks of a GPU's driver while it compiles, answered for a GPU that is not here."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return _gpu(self.target)

    def get_current_device(self) -> int | str:
        return self.target.arch  # Triton keeps what it has compiled apart by device

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        """For kernels under `triton.autotune`: each of their configurations is compiled, and the first chosen."""

        def call_once(call: Callable[[], Any], **_: Any) -> list[float]:
            call()
            return [0.0, 0.0, 0.0]

        return call_once


@contextmanager
def launches(target: Target | None) -> Iterator[list[Launched]]:
    """Yields the growing list of kernels launched inside; for a target they are compiled for it and not run."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    seen: list[Launched] = []

    def run_or_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        named = self.signature.bind_partial(*args, **{k: v for k, v in options.items() if k in self.arg_names})
        settings = {
            p.name: named.arguments[p.name] for p in self.params if p.is_constexpr and p.name in named.arguments
        }
        settings |= {key: value for key, value in options.items() if key not in self.arg_names}
        try:
            compiled = run(self, *args, grid=grid, warmup=warmup or target is not None, **options)
        except Exception as error:
            if target is None:
                raise
            compiled = error
        seen.append(Launched(self.__name__, settings, compiled))
        return compiled

    previous = driver._active
    with mock.patch.object(JITFunction, "run", run_or_compile):
        try:
            if target is not None:
                driver.set_active(StandInDriver(target))  # pyright: ignore[reportArgumentType]
            yield seen
        finally:
            driver._active = previous


def compile_case(spec: Spec, case: Case, target: Target) -> tuple[Call, list[Launched]]:
    """Runs an op forward and backward on the CPU, each kernel compiled instead of run."""
    call = prepare(spec, case, torch.device("cpu"))
    with launches(target) as seen, building_for(target.generation):
        outputs = call.forward(spec.op)
        call.backward(outputs, cotangents_for(outputs))
    return call, seen


def compile_spec(spec: Spec, targets: Sequence[Target], cases: Sequence[Case] | None = None) -> list[Build]:
    """All that an op launches on its `builds`, or on `cases`; each specialisation is compiled once."""
    if launch.INTERPRETED:
        raise UsageError("kernels were loaded for the interpreter (TRITON_INTERPRET=1), which does not compile")
    cases = spec.builds if cases is None else cases
    return [build for target in targets for build in _compile_for(spec, target, cases)]


def _compile_for(spec: Spec, target: Target, cases: Sequence[Case]) -> list[Build]:
    found: dict[str, tuple[Launched, set[int]]] = {}  # by what was compiled: the first launch of it, and its cases
    aligned, lacking = set(), set()  # cases
    read: dict[str, Resources | None] = {}
    for index, case in enumerate(cases):
        call, seen = compile_case(spec, case, target)
        keys = [getattr(launched.compiled, "hash", repr(launched)) for launched in seen]
        for key, launched in zip(keys, seen):
            found.setdefault(key, (launched, set()))[1].add(index)
            if key not in read:
                read[key] = _resources(launched)
        if call.is_aligned():
            aligned.add(index)
        # In float32 a kernel may well choose exact products, which tensor cores do not make.
        products = [used.tensor_instructions for key in keys if (used := read[key])]
        if dtype_of(case) != torch.float32 and not any(products):
            lacking.add(index)
    builds = []
    for key, (launched, its) in found.items():
        problems = _problems(spec, target, launched, read[key], bool(its & aligned), bool(its & lacking))
        cases_of_it = tuple(sorted(its))
        builds.append(Build(launched.kernel, target.name, cases_of_it, launched.settings, read[key], problems))
    return builds


def _resources(launched: Launched) -> Resources | None:
    return None if isinstance(launched.compiled, Exception) else resources(launched.compiled)


def _problems(
    spec: Spec, target: Target, launched: Launched, used: Resources | None, is_aligned: bool, lacks_products: bool
) -> tuple[str, ...]:
    """What is over budget."""
    if used is None:
        return (f"does not compile: {str(launched.compiled).strip()}",)
    problems = []
    if used.shared_bytes > target.shared_limit:
        problems.append(
            f"needs {used.shared_bytes:,} bytes of shared memory; a program may have {target.shared_limit:,}"
        )
    if used.spill_bytes > spec.max_spill_bytes:
        problems.append(f"spills {used.spill_bytes:,} bytes a thread; max_spill_bytes is {spec.max_spill_bytes:,}")
    if spec.needs_tensor_cores and lacks_products:
        problems.append("no kernel of its case has a tensor-core instruction")
    # A kernel around matrix products is bound by them: small ones beside it may read as they like.
    if is_aligned and not spec.needs_tensor_cores and used.loads and not used.wide_loads:
        problems.append(f"none of its {used.loads} loads brings 16 bytes a thread, though rows are aligned")
    return tuple(problems)


def report(spec: Spec, builds: Sequence[Build]) -> str:
    """A table of the builds, the cases it refers to, and what is over budget.

    Registers and spilled bytes are a thread's, shared memory a program's; the rest counts instructions: matrix products
    on tensor cores, loads and stores (wide ones move 16 bytes a thread or more), and all.
    """
    rows = [
        [
            build.target, build.kernel, ",".join(str(i + 1) for i in build.cases),
            " ".join(f"{key.removeprefix('num_')}={value}" for key, value in build.settings.items()),
            *_cells(build),
            "FAIL" if build.problems else "ok",
        ]
        for build in builds
    ]  # fmt: skip
    heads = ["target", "kernel", "case", "launch", "registers", "spills", "shared memory", "tensor"]
    heads += ["wide loads", "wide stores", "code", ""]
    lines = [spec.name, table(heads, rows)]
    shown = {i for build in builds for i in build.cases}
    lines += [f"case {i + 1}: {describe(case)}" for i, case in enumerate(spec.builds) if i in shown]
    lines += [f"{b.kernel} on {b.target}: {problem}" for b in builds for problem in b.problems]
    return "\n".join(lines)


def _cells(build: Build) -> list[str]:
    used, limit = build.resources, TARGETS[build.target].shared_limit
    if used is None:
        return [""] * 7
    wide = [f"{used.wide_loads} of {used.loads}", f"{used.wide_stores} of {used.stores}"]
    numbers = [used.registers, used.spill_bytes, f"{used.shared_bytes:,} of {limit:,}", used.tensor_instructions]
    return [str(number) for number in (*numbers, *wide, used.instructions)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_argument(parser)
    archs = [name.removeprefix("sm_") for name in TARGETS]
    helping = f"{', '.join(archs)} (default: the NVIDIA ones)"
    parser.add_argument("--arch", nargs="+", choices=archs, metavar="ARCH", help=helping)
    parser.add_argument("--first", action="store_true", help="only the first of a kernel's builds")
    parser.add_argument("--json", action="store_true", help="print JSON")


def compile_kernel(kernel: str, target: str, only_first: bool) -> list[Build]:
    """In a process of its own."""
    (found,) = find(kernel)
    spec = found.spec
    with told_in_one_line(found.path, "compiling its builds"):
        builds = compile_spec(spec, [TARGETS[target]], spec.builds[: 1 if only_first else None])
    plain = (int, float, str, type(None))  # others, such as dtypes, may not travel between processes

    def traveling(value: Any) -> Any:
        return value if isinstance(value, plain) else str(value)

    return [replace(build, settings={key: traveling(v) for key, v in build.settings.items()}) for build in builds]


def builds_of(answer: list[Build] | Ended, spec: Spec) -> list[Build]:
    if isinstance(answer, Ended):
        raise UsageError(f"{spec.name}: the process that compiled it died (exit code {answer.exit_code})")
    return answer


def run(options: argparse.Namespace) -> int:
    if options.arch is None:
        targets = [target for target in TARGETS.values() if target.backend == "cuda" and can_build_for(target)]
    else:
        targets = [target for name, target in TARGETS.items() if name.removeprefix("sm_") in options.arch]
    found, results = find(options.kernel), {}
    for spec in [kernel.spec for kernel in found]:
        if not spec.builds:
            raise UsageError(f"{spec.name}: its spec has no `builds`: name at least one realistic case to compile")
    answers = in_order(
        compile_kernel, [(kernel.target, target.name, options.first) for kernel in found for target in targets]
    )
    for spec in [kernel.spec for kernel in found]:
        results[spec.name] = [build for _ in targets for build in builds_of(next(answers), spec)]
        if not options.json:
            print(report(spec, results[spec.name]), end="\n\n", flush=True)
    if options.json:
        as_lists = {name: [asdict(build) for build in builds] for name, builds in results.items()}
        print(to_json(as_lists))
    return int(any(build.problems for builds in results.values() for build in builds))
