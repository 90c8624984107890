"""PyTorch's fused kernels as data: what each one takes, and its two calls.

Those on CUDA were checked for shapes alone, on tensors without numbers: no GPU has run them yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten
LOW = (torch.float16, torch.bfloat16)
EVEN = 32  # the log-sum-exp of the efficient kernel has rows up to a multiple of it


@dataclass(frozen=True)
class Kernel:
    """One of them. All know everyone and causal from the top left."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    forward: Callable[..., tuple[Tensor, Tensor]]  #: (q, k, v, causal, added, scale) → output, log-sum-exp
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]  #: (grad, q, k, v, output, log-sum-exp, causal, added, scale)
    most_dim: int | None = None
    multiple: int = 1  #: of which dims are one
    of_keys: bool = False  #: numbers may be added per key
    grouped: bool = False  #: several query heads may share a key head
    squares: bool = True  #: causal only with as many queries as keys
    repairs: bool = True  #: what is not finite is taken out beforehand; False = somebody has looked


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, added: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    kernel: Any = torch._scaled_dot_product_flash_attention_for_cpu  # as aten has it, and quicker to call
    found: tuple[Tensor, Tensor] = kernel(q, k, v, 0.0, causal, attn_mask=added, scale=scale)
    return found


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool, added: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad, q, k, v, output, log_sum, 0.0, causal, attn_mask=added, scale=scale
    )
    return found


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, added: None, scale: float) -> tuple[Tensor, Tensor]:
    output, log_sum, *_ = aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, causal, scale=scale)
    return output, log_sum.narrow(-1, 0, q.shape[2])


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool, added: None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout that there is not
    found: tuple[Tensor, Tensor, Tensor] = aten._scaled_dot_product_flash_attention_backward.default(
        grad, q, k, v, output, log_sum.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, seed, seed, scale=scale
    )
    return found


def _efficient(q: Tensor, k: Tensor, v: Tensor, causal: bool, added: None, scale: float) -> tuple[Tensor, Tensor]:
    output, log_sum, *_ = aten._scaled_dot_product_efficient_attention.default(q, k, v, None, True, 0.0, causal, scale=scale)
    return output, log_sum.narrow(-1, 0, q.shape[2])


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool, added: None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    rows = torch.nn.functional.pad(log_sum, (0, -log_sum.shape[-1] % EVEN), value=float("inf"))  # exp(s - ∞) = 0
    by_query, by_key, by_value, _ = aten._scaled_dot_product_efficient_attention_backward.default(
        grad, q, k, v, None, output, rows, seed, seed, 0.0, [True, True, True, False], causal, scale=scale
    )
    return by_query, by_key, by_value


CPU = Kernel(
    "cpu", (*LOW, torch.float32, torch.float64), _cpu, _cpu_backward, of_keys=True, grouped=True, squares=False, repairs=False
)
FLASH = Kernel("flash", LOW, _flash, _flash_backward, most_dim=256, multiple=8)
EFFICIENT = Kernel("efficient", (*LOW, torch.float32), _efficient, _efficient_backward, multiple=8)
ON = {"cpu": (CPU,), "cuda": (FLASH, EFFICIENT)}  #: the first that takes the dtype and the dim


def kernel_for(device: torch.device, dtype: torch.dtype, dim: int) -> Kernel | None:
    """The kernel for tensors of that dtype and dim."""
    for kernel in ON.get(device.type, ()):
        if dtype in kernel.dtypes and (kernel.most_dim is None or dim <= kernel.most_dim):
            return kernel
    return None
