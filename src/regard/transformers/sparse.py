"""Layers that choose keys: each query sees those that an indexer chose for it, or the blocks that it chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard import masks
from regard.checks import Unsupported

# What a model may hand over that changes the weights, and that would silently be lost if it were ignored.
REFUSED = {"cache": "a paged cache"}


@dataclass(frozen=True)
class Chosen:
    """Whether key // block is among what the query chose, which is sorted: (batch, groups, queries, chosen); -1 is none."""

    chosen: Tensor
    heads: int  # for each of the groups
    block: int = 1

    def __call__(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        batch, head, query, wanted = (t.to(self.chosen.device) for t in (batch, head, query, key // self.block))
        found = self.chosen[batch, head // self.heads, query]  # (…, chosen)
        if found.ndim < 2 or found.shape[-2] != 1:  # pairs, one by one
            return (found == wanted[..., None]).any(-1)
        found = found.squeeze(-2)
        wanted = wanted.expand(*found.shape[:-1], wanted.shape[-1]).contiguous()
        place = torch.searchsorted(found, wanted).clamp_(max=found.shape[-1] - 1)
        return found.gather(-1, place) == wanted

    __name__ = "chosen"


def chosen(module: nn.Module, heads: int, arguments: dict[str, Any]) -> masks.Mask | None:
    """The mask of `indices` (batch, queries, keys chosen) or `block_indices` (batch, groups, queries, blocks chosen)."""
    for name, meaning in REFUSED.items():
        if arguments.get(name) is not None:
            raise Unsupported(
                f"regard.transformers: {type(module).__name__} passes {name} ({meaning}), which is not supported yet; "
                'use attn_implementation="eager".'
            )
    indices: Tensor | None = arguments.get("indices")
    by_group: Tensor | None = arguments.get("block_indices") if indices is None else indices[:, None]
    if by_group is None:
        return None
    size = 1 if indices is not None else getattr(getattr(module, "indexer", None), "block_size", None)
    if size is None:
        raise Unsupported(
            f"regard.transformers: {type(module).__name__} passes block_indices (a choice of blocks of keys per query) and has "
            'no indexer.block_size that says how many keys a block has; use attn_implementation="eager".'
        )
    picked = by_group.long().sort(-1).values.contiguous()
    return masks.where(Chosen(picked, heads // picked.shape[1], int(size)))
