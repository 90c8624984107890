"""Where the tokens of a text look: per layer and head the strongest key beyond separators and the token itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

import regard
from regard.pretrained import Refused, Tokens


@dataclass(frozen=True)
class Look:
    """The strongest weight of one query in one head, beyond special tokens and the query itself."""

    layer: int
    head: int
    query: int
    key: int | None  # None where nothing else may be seen
    weight: float
    special: float  # the mass on special tokens, the query not counted
    itself: float  # the weight of the query on its own position


def looks(layers: Sequence[regard.Attention], tokens: Tokens, query: int) -> tuple[Look, ...]:
    """The look of one token in every head of every layer, read from one row of weights each."""
    special = torch.tensor(tokens.special)
    special[query] = False
    hidden = special.clone()
    hidden[query] = True
    found = []
    for layer, matrix in enumerate(layers):
        rows = matrix[0, :, query].float().cpu()  # (heads, keys)
        best = rows.masked_fill(hidden, 0).max(-1)
        for head, (row, weight, key) in enumerate(zip(rows, best.values.tolist(), best.indices.tolist(), strict=True)):
            seen = int(key) if weight > 0 else None
            found.append(Look(layer, head, query, seen, weight, float(row[special].sum()), float(row[query])))
    return tuple(found)


def strongest(layers: Sequence[regard.Attention], tokens: Tokens) -> tuple[Look, ...]:
    """For each token that is not special, its strongest look over all heads of all layers, in O(tokens) memory."""
    special = torch.tensor(tokens.special)
    count = len(tokens.ids)
    every = torch.arange(count)
    # Among so many of the largest weights there is one beyond the specials and the query itself, if there is any.
    enough = min(count, int(special.sum()) + 2)
    best = [Look(0, 0, query, None, 0.0, 0.0, 0.0) for query in range(count)]
    for layer, matrix in enumerate(layers):
        top = matrix.topk(enough)
        values, keys = top.values[0].float().cpu(), top.indices[0].cpu()  # (heads, queries, enough)
        beyond = (keys >= 0) & ~special[keys.clamp(min=0)] & (keys != every[:, None])
        weights, places = values.masked_fill(~beyond, 0).max(-1)
        weights, heads = weights.max(0)  # per query
        chosen = keys[heads, every, places[heads, every]]
        aside = (matrix @ special.to(matrix.device, torch.float32))[0].cpu()[heads, every]
        itself = matrix.diagonal()[0].float().cpu()[heads, every]
        found = (x.tolist() for x in (heads, chosen, weights, aside, itself))
        for query, (head, key, weight, on_special, on_itself) in enumerate(zip(*found, strict=True)):
            if weight > best[query].weight:
                best[query] = Look(layer, head, query, key, weight, on_special, on_itself)
    return tuple(look for look in best if not tokens.special[look.query])


def occurrences(texts: Sequence[Tokens], wanted: str) -> list[list[int]]:
    """The places of a token in each text: a piece, or the pieces of a whole word, whatever the case of its letters."""
    wanted = wanted.strip()
    if not wanted:
        raise Refused("the token is empty; name a token of the text.")
    places = [_places(tokens, wanted) for tokens in texts]
    if not any(places):
        there = dict.fromkeys(piece for tokens in texts for piece in tokens.pieces)
        raise Refused(f"the token {wanted!r} is not in the text; its tokens are: {' '.join(there)}.")
    return places


def _places(tokens: Tokens, wanted: str) -> list[int]:
    words = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", tokens.text, re.IGNORECASE)]
    return [
        place
        for place, (piece, (start, end)) in enumerate(zip(tokens.pieces, tokens.spans, strict=True))
        if piece.casefold() == wanted.casefold()
        or any(a <= start + _spaces(tokens.text[start:end]) and end <= b for a, b in words if start < end)
    ]


def _spaces(written: str) -> int:
    """The blanks that some tokenizers count to the token after them."""
    return len(written) - len(written.lstrip())


def shared_heads(rows: Iterable[Sequence[Look]], count: int) -> list[tuple[int, int]]:
    """The heads to show for every row of looks: those with the largest weights in any of them, largest first."""
    largest: dict[tuple[int, int], float] = {}
    for row in rows:
        for look in row:
            place = (look.layer, look.head)
            largest[place] = max(look.weight, largest.get(place, 0.0))
    return sorted(largest, key=lambda place: (-largest[place], place))[:count]
