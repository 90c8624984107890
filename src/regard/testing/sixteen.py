"""The part of a gradient's error budget that 16-bit problems have besides: kernels round to 16 bits in between."""

from __future__ import annotations

import torch
from torch import Tensor

import regard
from regard.backends import reference
from regard.call import Call
from regard.testing.strategies import Case


@torch.no_grad()
def sixteen_bits(case: Case, name: str, above: Tensor) -> float:
    """What the gradient of that name may err by where scores are dot products of 16-bit tensors; 0 elsewhere.

    A kernel may round the weights P, dS = P ∘ (dA - δ), the output o in δ_i = g_i · o_i, and sums over blocks to 16 bits, as
    that of PyTorch's scaled_dot_product_attention does. g (`above`) is the gradient that comes to the output, w_i the weight
    of the sink in row i, N_ij = P_ij (|dA_ij - δ_i| + Σ_d |g_id o_id|):

        query_i   eps · |scale| · Σ_j N_ij |k_j|        value_j   eps · Σ_i P_ij |g_i|
        key_j     eps · |scale| · Σ_i N_ij |q_i|        sinks     eps · Σ_i w_i Σ_d |g_id o_id|

    The greatest number of each is the bound. Two roundings of half an eps are in it.
    """
    call = regard.attention(case.query, case.key, **case.options()).call
    if call.query.dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    eps = torch.finfo(call.query.dtype).eps
    weights = reference.dense(call.with_tensors(*(t.double() for t in call.tensors)), None).weights
    query, key, value = (t.double() for t in (call.query, _each_head(call.key, call), _each_head(case.value, call)))
    output = weights @ value
    rounded = (above * output).abs().sum(-1, keepdim=True)
    noise = weights * ((above @ value.mT - (above * output).sum(-1, keepdim=True)).abs() + rounded)
    if name == "query":
        bound = abs(call.scale) * noise @ key.abs()
    elif name == "key":
        bound = abs(call.scale) * _grouped(noise.mT @ query.abs(), call.key)
    elif name == "value":
        bound = _grouped(weights.mT @ above.abs(), case.value)
    elif name == "sinks":
        bound = ((1 - weights.sum(-1, keepdim=True)) * rounded).sum((0, 2, 3))
    else:  # what belongs to a bias is no kernel's
        return 0.0
    return eps * float(bound.max()) if bound.numel() else 0.0


def _each_head(tensor: Tensor, call: Call) -> Tensor:
    return tensor.repeat_interleave(call.shape[1] // max(tensor.shape[1], 1), 1)


def _grouped(gradient: Tensor, of: Tensor) -> Tensor:
    """Summed over the heads that share a head of the tensor."""
    return gradient.unflatten(1, (of.shape[1], -1)).sum(2)
