"""From a model and texts to a record: one pass of the model per text, one reading per layer."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import regard
from regard import checks
from regard.readouts import Diagonal, Distance, Entropy, LogSumExp, Max, Pool, Readout, Received, TopK
from regard.record.shapes import READOUTS, arrays_of, dtype_of, misfit
from regard.record.values import Layer, Record, Text

if TYPE_CHECKING:
    from regard.pretrained import Pretrained, Tokens

WHOLE = 64  # up to so many tokens every weight is in the record
PICTURE = 32  # the rows and columns of a head's small picture
LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


def record(pretrained: Pretrained, texts: str | Sequence[str], top: int = 8, readouts: Sequence[str] = READOUTS) -> Record:
    """Read out of a model what it attends to in some texts.

    Args:
        pretrained: from `regard.pretrained.load`.
        texts: one text or several, each read by itself, so that no padding is there.
        top: how many of the strongest keys of each query are kept in a text of more than 64 tokens, at least 8. In shorter
            texts all of them are, so that every weight is in the record.
        readouts: names from `regard.record.READOUTS`; all of them unless said.

    Raises:
        Refused: a text or a model that cannot be recorded. Unsupported: an architecture that regard cannot read.

    >>> made = regard.record.record(regard.pretrained.load(), "The cat sat.")
    >>> made
    Record('all-MiniLM-L6-v2', 6 layers of 12 heads, 6 tokens)
    """
    from regard.pretrained import Refused, attentions, tokenize

    checks.whole_number("record", "top", top, least=8)
    for name in readouts:
        checks.choice("record", "a readout", name, READOUTS)
    ordered = tuple(name for name in READOUTS if name in readouts)
    read: list[Text] = []
    layers: tuple[Layer, ...] = ()
    for tokens in [tokenize(pretrained, text) for text in ([texts] if isinstance(texts, str) else texts)]:
        matrices = attentions(pretrained, tokens)
        here = tuple(map(_layer, matrices))
        if wrong := _unrecordable(matrices, here, tokens):
            raise Refused(f"{pretrained.name!r} cannot be recorded: {wrong}.")
        found = [_read(matrix, tokens, top, ordered) for matrix in matrices]
        arrays = {name: np.stack([layer[name] for layer in found]) for name in arrays_of(ordered)}
        if wrong := misfit(arrays, ordered, len(here), here[0].heads, len(tokens.ids)):
            raise Refused(f"{pretrained.name!r} cannot be recorded: {wrong}.")
        read.append(Text(tokens.text, tokens.ids, tokens.pieces, tokens.spans, tokens.special, arrays))
        layers = tuple(map(_both, layers, here)) if layers else here
    if not read:
        raise Refused("there is no text to record.")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES} | {"regard": regard.__version__}
    return Record(pretrained.name, pretrained.revision, tuple(read), layers, ordered, versions)


def _layer(matrix: regard.Attention) -> Layer:
    call = matrix.call
    (offset,) = (call.offset,) if isinstance(call.offset, int) else call.offset
    return Layer("self", call.shape[1], call.key.shape[1], call.scale, call.mask.expression, offset)


def _both(before: Layer, here: Layer) -> Layer:
    """The layer of two texts: only masks depend on the text, if they have sizes or tensors in them."""
    known = before.mask.split(" or ")
    return before if here.mask in known else replace(before, mask=" or ".join((*known, here.mask)))


def _unrecordable(matrices: Sequence[regard.Attention], layers: Sequence[Layer], tokens: Tokens) -> str | None:
    count = len(tokens.ids)
    for number, (matrix, layer) in enumerate(zip(matrices, layers, strict=True)):
        if layer.heads != layers[0].heads:
            return f"layer 0 has {layers[0].heads} heads and layer {number} has {layer.heads}; a record needs as many in each"
        if tuple(matrix.shape[-2:]) != (count, count):
            return f"layer {number} has a matrix of {matrix.shape[-2]} × {matrix.shape[-1]}, and the text has {count} tokens"
    return None


def _read(matrix: regard.Attention, tokens: Tokens, top: int, readouts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of one layer, without the layer's axis."""
    count = len(tokens.ids)
    k = count if count <= WHOLE else min(top, count)
    bins = min(count, PICTURE)
    questions: dict[str, Readout] = {
        "topk": TopK(k), "entropy": Entropy(), "logsumexp": LogSumExp(), "distance": Distance(), "maximum": Max(),
        "self": Diagonal(0), "previous": Diagonal(-1), "next": Diagonal(1), "received": Received(), "pool": Pool((bins, bins)),
    }  # fmt: skip
    # The mass on a set of keys is the output for a value that is 1 on them.
    mass = Tensor([[key == 0, special] for key, special in enumerate(tokens.special)])
    reading = matrix.read(*(questions[n] for n in readouts if n in questions), value=mass.to(matrix.device))
    masses = {"first": 0, "special": 1}
    found: dict[str, NDArray[Any]] = {}
    for name in readouts:
        answer = reading.output[..., masses[name]] if name in masses else reading[questions[name]]
        parts = {"topk.values": 0, "topk.indices": 1} if name == "topk" else {name: 0 if name == "maximum" else None}
        for array, part in parts.items():
            tensor: Tensor = answer if part is None else answer[part]
            found[array] = tensor[0].detach().cpu().numpy().astype(dtype_of(array))
    return found
