"""Writing on by chance: each next token is drawn from what a language model expects."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.masks import Mask, padding
from regard.nn import checks
from regard.nn.pooling import there
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
        source: the beginning, (batch, n), at least one token.
        mask: which of its tokens there are, padding(keep=…); beginnings of unlike length are padded on the left.
        temperature: below 1 = bolder, above 1 = wilder; 0 = always the likeliest.
        topk: only that many of the likeliest tokens can be drawn; None = all.
        end: the token after which a row stops, and is filled with it; None = none.
        generator: where chance comes from; None = PyTorch's own.

    Raises:
        ValueError: limit or topk below 1, temperature below 0, an end beyond the vocabulary, a mask that hides a last token.
        ShapeError: a beginning without a token. Unsupported: a model that sees what comes.

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation" (topk).

    >>> model = regard.nn.LanguageModel(100, 16, heads=4, layers=2).eval()
    >>> sample(model, torch.tensor([[1, 2, 3]]), limit=5).shape
    torch.Size([1, 8])
    """
    checks.sampling(source, limit, temperature, topk)
    if (keep := there("sample", mask, source)) is not None:
        checks.last_is_there(keep)
    state = model.start(source[:, :-1], None if keep is None else padding(keep=keep[:, :-1]))
    written, last = [source], source[:, -1:]
    done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    for _ in range(limit):
        logits = model.step(last, state)[:, -1].float()
        vocabulary = logits.shape[-1]
        logits, tokens = logits.topk(vocabulary if topk is None else min(topk, vocabulary))  # the likeliest first
        if temperature == 0:
            last = tokens[:, :1]
        else:
            chances = torch.softmax((logits - logits[:, :1]) / temperature, -1)
            last = tokens.gather(1, torch.multinomial(chances, 1, generator=generator))
        if end is not None:
            checks.in_vocabulary("sample", end, vocabulary)
            last = last.masked_fill(done[:, None], end)
            done = done | (last[:, 0] == end)
        written.append(last)
        if bool(done.all()):
            break
    return torch.cat(written, 1)
