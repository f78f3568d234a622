"""The operators of the Transformer: each file holds one op's mathematics and its plain-PyTorch reference.

Imports nothing of the project, and works without a GPU. Half-precision inputs are computed in float32 inside every
reference and rounded once at the end; float64 stays float64, which makes the references their own oracle.
"""

from kernels.attention import attention, attention_reference, causal_mask, key_intervals
from kernels.cross_entropy import cross_entropy, cross_entropy_reference
from kernels.decode_attention import (
    decode_attention,
    decode_attention_reference,
    paged_decode_attention,
    paged_decode_attention_reference,
)
from kernels.gelu import gelu, gelu_reference
from kernels.layer_norm import add_layer_norm, add_layer_norm_reference, layer_norm, layer_norm_reference
from kernels.linear_cross_entropy import linear_cross_entropy, linear_logprobs
from kernels.linear_cross_entropy_chunked import (
    linear_cross_entropy_chunked,
    linear_cross_entropy_reference,
    linear_logprobs_chunked,
    linear_logprobs_reference,
)
from kernels.quantized_linear import dequantize, quantize, quantized_linear, quantized_linear_reference
from kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.rope import RopeScaling, rope, rope_, rope_reference, rope_table
from kernels.softmax import softmax, softmax_reference
from kernels.swiglu import swiglu, swiglu_reference

# `transformers` looks for a hub package of this import name, from 0.18 on: the version says that this is not it.
__version__ = "0.1.0"

__all__ = [
    "RopeScaling",
    "add_layer_norm",
    "add_layer_norm_reference",
    "add_rms_norm",
    "add_rms_norm_reference",
    "attention",
    "attention_reference",
    "causal_mask",
    "cross_entropy",
    "cross_entropy_reference",
    "decode_attention",
    "decode_attention_reference",
    "dequantize",
    "gelu",
    "gelu_reference",
    "key_intervals",
    "layer_norm",
    "layer_norm_reference",
    "linear_cross_entropy",
    "linear_cross_entropy_chunked",
    "linear_cross_entropy_reference",
    "linear_logprobs",
    "linear_logprobs_chunked",
    "linear_logprobs_reference",
    "paged_decode_attention",
    "paged_decode_attention_reference",
    "quantize",
    "quantized_linear",
    "quantized_linear_reference",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_",
    "rope_reference",
    "rope_table",
    "softmax",
    "softmax_reference",
    "swiglu",
    "swiglu_reference",
]
