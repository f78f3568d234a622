from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import (
    linear_cross_entropy_chunked,
    linear_cross_entropy_reference,
    linear_logprobs_chunked,
    linear_logprobs_reference,
)
from kernels import linear_cross_entropy_chunked as _  # noqa: F401
