"""Checks of kernels: an op in which the student's kernel stands, judged by the lab on one given case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instructgpt.course.exercise import Check
from instructgpt.errors import UserError
from kernels.lab.interpreter import causes_of

RIGHT = "right"


def kernel_check(
    says: str, spec: Callable[[], Any], dtype: str = "float32", layout: str = "contiguous", **case: Any
) -> Check:
    """A check that an op is right on a case of its spec; what comes of it is the lab's own sentence. layout: how its
    inputs lie in memory, one of the lab's.

    The kernel is found by the op where it stands, so the exercise's function has to be in the place of ours.
    """

    def look(function: Callable[..., Any], given: dict[str, Any]) -> str:
        from kernels.lab.example import judge
        from kernels.lab.interpreter import Unsupported
        from kernels.lab.limits import Wrong
        from kernels.lab.spec import DTYPES
        from kernels.launch import AVAILABLE

        if not AVAILABLE:
            raise UserError("Triton is not installed here: there is nothing to run kernels with")
        try:
            judge(spec(), given["case"], DTYPES[given["dtype"]], layout)
        except Unsupported as reason:
            if is_unwritten(reason):
                raise NotImplementedError from reason
            raise
        except Wrong as wrong:
            return str(wrong)
        return RIGHT

    return Check(says, {"case": case, "dtype": dtype}, RIGHT, look)


def is_unwritten(error: BaseException) -> bool:
    """Whether it came of the body that an exercise begins with; Triton's own NotImplementedErrors say something."""
    return any(isinstance(each, NotImplementedError) and not str(each) for each in causes_of(error))
