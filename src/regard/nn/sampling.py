"""Writing on by chance: each next token is drawn from what a language model expects."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.masks import Mask
from regard.nn import checks
from regard.nn.searches import Searchable


@torch.no_grad()
def sample(
    model: Searchable,
    source: Tensor,
    *,
    limit: int,
    mask: Mask | None = None,
    temperature: float = 1.0,
    topk: int | None = None,
    end: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The beginning and up to `limit` more tokens, each drawn with p = softmax(logits / temperature): (batch, n + new).

    Args:
        model: a language model that has `start` and `step`; call model.eval() first.
        source: the beginning, (batch, n), at least one token. mask: which of its tokens there are.
        temperature: below 1 = bolder, above 1 = wilder; 0 = always the likeliest.
        topk: only that many of the likeliest tokens can be drawn; None = all.
        end: the token after which a row stops, and is filled with it; None = none.
        generator: where chance comes from; None = PyTorch's own.

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation" (topk).

    >>> model = regard.nn.LanguageModel(100, 16, heads=4, layers=2).eval()
    >>> sample(model, torch.tensor([[1, 2, 3]]), limit=5).shape
    torch.Size([1, 8])
    """
    checks.sampling(source, limit, temperature, topk)
    state = model.start(source[:, :-1], None if mask is None else _before(mask, source))
    written, last = [source], source[:, -1:]
    done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    for _ in range(limit):
        logits = model.step(last, state)[:, -1].float()
        if topk is not None and topk < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(topk).values[:, -1:], -torch.inf)
        if temperature == 0:
            last = logits.argmax(-1, keepdim=True)
        else:
            last = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)
        if end is not None:
            last = last.masked_fill(done[:, None], end)
            done = done | (last[:, 0] == end)
        written.append(last)
        if bool(done.all()):
            break
    return torch.cat(written, 1)


def _before(mask: Mask, source: Tensor) -> Mask:
    """A mask of all tokens but the last, which is always there."""
    from regard.masks import padding
    from regard.nn.pooling import counted

    keep = counted("sample", mask, source)
    return padding(keep=keep[:, :-1]) if keep is not None else mask
