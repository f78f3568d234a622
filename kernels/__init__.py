"""The operators of the Transformer: each file holds one op's mathematics and its plain-PyTorch reference.

Imports nothing of the project, and works without a GPU. Half-precision inputs are computed in float32 inside every
reference and rounded once at the end; float64 stays float64, which makes the references their own oracle.
"""

from kernels.attention import attention_reference, causal_mask
from kernels.cross_entropy import cross_entropy_reference
from kernels.gelu import gelu_reference
from kernels.layer_norm import layer_norm_reference
from kernels.linear_cross_entropy import (
    linear_cross_entropy_chunked,
    linear_cross_entropy_reference,
    linear_logprobs_chunked,
    linear_logprobs_reference,
)
from kernels.rms_norm import rms_norm_reference
from kernels.rope import rope_reference, rope_table
from kernels.softmax import softmax_reference
from kernels.swiglu import swiglu_reference

# `transformers` looks for a hub package of this import name, from 0.18 on: the version says that this is not it.
__version__ = "0.1.0"

__all__ = [
    "attention_reference",
    "causal_mask",
    "cross_entropy_reference",
    "gelu_reference",
    "layer_norm_reference",
    "linear_cross_entropy_chunked",
    "linear_cross_entropy_reference",
    "linear_logprobs_chunked",
    "linear_logprobs_reference",
    "rms_norm_reference",
    "rope_reference",
    "rope_table",
    "softmax_reference",
    "swiglu_reference",
]
