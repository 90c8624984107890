"""Every sentence that a user can get back from the layers: rule, numbers, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from regard.checks import ShapeError, Unsupported, fits_dense, mask_lies_on, one_of, probability
from regard.checks import choice as choice
from regard.checks import listed as listed
from regard.checks import whole_number as whole_number
from regard.lazy import DENSE_LIMIT
from regard.masks import Mask
from regard.masks.algebra import Full
from regard.masks.contents import Keep
from regard.masks.intervals import Lengths, Prefix

# -- layers -----------------------------------------------------------------------------------------------------------


def heads_fit(layer: str, dim: int | None, heads: int, kv_heads: int | None) -> None:
    """Sizes that can be divided among heads."""
    whole_number(layer, "heads", heads, least=1)
    if kv_heads is not None:
        whole_number(layer, "kv_heads", kv_heads, least=1)
        if heads % kv_heads:
            raise ShapeError(f"{layer}: heads must be a multiple of kv_heads; got heads {heads} and kv_heads {kv_heads}.")
    if dim is None:
        if kv_heads not in (None, heads):
            raise ShapeError(f"{layer}: without weights there are as many kv_heads as heads; got {kv_heads} and {heads}.")
        return
    whole_number(layer, "dim", dim, least=1)
    if dim % heads:
        raise ShapeError(f"{layer}: dim must be a multiple of heads; got dim {dim} and heads {heads}.")


def without_weights(layer: str, norm: object) -> None:
    """What a layer without weights can do."""
    if norm is not None:
        raise ValueError(f"{layer}: without dim there are no weights, and so no norm; got norm={norm!r}.")


def dropout(layer: str, p: object) -> float:
    """A probability with which not everything is dropped."""
    p = probability(layer, "dropout", p)
    if p == 1:
        raise ValueError(f"{layer}: dropout must be in [0, 1); got 1, which would drop everything.")
    return p


def mask(layer: str, name: str, given: object) -> None:
    """A mask that is a value, and no tensor of either convention."""
    if isinstance(given, Tensor):
        raise TypeError(
            f"{layer}: {name} must be one of regard.masks, True = may attend; got a {given.dtype} tensor of shape "
            f"{listed(given.shape)}. Convert PyTorch's inverted masks with regard.masks.from_torch(attn_mask, "
            "key_padding_mask). True = there is a token, (batch, n): regard.masks.padding(keep=tensor.bool()); True = may "
            "attend, (…, queries, keys): regard.masks.dense(tensor.bool())."
        )


def position(layer: str, given: object) -> None:
    """A position that has been made."""
    if given is not None and not (isinstance(given, nn.Module) and hasattr(given, "turn")):
        raise TypeError(f"{layer}: position must be one of regard.nn's, such as rotary() or sinusoidal(); got {given!r}.")


def embeddings(layer: str, name: str, x: object, dim: int | None, least: int = 2) -> None:
    """Embeddings of that size."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{layer}: {name} must be a tensor (batch, n, dim); got {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(
            f"{layer}: {name} must hold embeddings, floats; got {x.dtype} of shape {listed(x.shape)}. Tokens go through "
            "TokenEmbedding, or into a model that begins with one: TextEncoder, LanguageModel, SequenceToSequence."
        )
    if x.ndim < least or (dim is not None and x.shape[-1] != dim):
        wanted = "dim" if dim is None else f"{dim}"
        raise ShapeError(f"{layer}: {name} must be (batch, n, {wanted}); got shape {listed(x.shape)}.")


def divides(layer: str, dim: int, heads: int) -> None:
    """Embeddings that heads can share."""
    if dim % heads:
        raise ShapeError(f"{layer}: the last dimension must be a multiple of heads; got {dim} and heads {heads}.")


def continues(seen: Tensor, new: Tensor) -> None:
    """New keys or values that go on where those of a cache end."""
    if (*seen.shape[:-2], seen.shape[-1]) != (*new.shape[:-2], new.shape[-1]):
        raise ShapeError(
            "cache: new keys and values must have the batch, the heads and the dim of those that it holds; got "
            f"{listed(new.shape)} after {listed(seen.shape)}. Start each batch with an empty cache."
        )
    if seen.dtype != new.dtype:
        raise TypeError(
            f"cache: new keys and values must have the dtype of those that it holds, {seen.dtype}; got {new.dtype}."
        )


def of_memory(layer: str, seen: Tensor, query: Tensor, memory: Tensor) -> None:
    """A cache that holds this memory."""
    if seen.shape[:-3] != query.shape[:-3] or seen.shape[-2] != memory.shape[-2]:
        raise ShapeError(
            f"{layer}: the cache must hold the keys of this memory; got keys {listed(seen.shape)} for a memory of shape "
            f"{listed(memory.shape)} and a batch of {listed(query.shape[:-3])}. Start each batch with an empty cache."
        )


def caches(layer: str, given: Sequence[object], count: int) -> None:
    """One cache for each layer."""
    if not torch.compiler.is_compiling() and len({id(cache) for cache in given}) < len(given):
        raise ValueError(f"{layer}: caches must hold another cache for each layer; the same one comes twice. Use .caches().")
    if len(given) != count:
        raise ShapeError(f"{layer}: caches must hold one cache for each of {count} layers; got {len(given)}. Use .caches().")


# -- pretrained -------------------------------------------------------------------------------------------------------


def files(model: str, place: Path, names: tuple[str, ...]) -> None:
    """A directory that holds a model."""
    for name in names:
        if not (place / name).is_file():
            raise FileNotFoundError(
                f"{model}: {place} has no {name}; a model is saved by save_pretrained, in one safetensors file."
            )


def model_type(model: str, found: object, kind: str) -> None:
    """A config of that architecture."""
    if found != kind:
        raise Unsupported(
            f"{model}: config.json must be of model_type {kind!r}; got {found!r}. Other architectures can be loaded by "
            'transformers itself, with attn_implementation="regard".'
        )


def activation(model: str, found: object, known: tuple[str, ...]) -> None:
    """An activation that the model has."""
    if found not in known:
        raise Unsupported(f"{model}: the activation must be one of {', '.join(known)}; got {found!r}.")


def settings(model: str, config: Mapping[str, object], **needed: object) -> None:
    """A configuration that asks for no other formula than the model's; what it leaves out is as needed."""
    for name, value in needed.items():
        if config.get(name, value) != value:
            raise Unsupported(f"{model}: the configuration must have {name} = {value!r}; got {config[name]!r}.")


def state_dict(model: str, missing: Sequence[str], foreign: Sequence[str]) -> None:
    """A checkpoint in which every name has its place, and every place its name."""
    if missing or foreign:
        parts = [
            f"{len(names)} {what}: {_first(names)}" for what, names in (("missing", missing), ("foreign", foreign)) if names
        ]
        raise ShapeError(f"{model}: the checkpoint must have the model's parameters; {'; '.join(parts)}.")


def _first(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fits_parameter(model: str, name: str, found: Tensor, wanted: Tensor) -> None:
    """A tensor of the parameter's shape."""
    if found.shape != wanted.shape:
        raise ShapeError(f"{model}: {name} must make {listed(wanted.shape)}; got {listed(found.shape)}. Is it of this config?")


def within_positions(model: str, n: int, positions: int) -> None:
    """A text that is short enough."""
    if n > positions:
        raise ShapeError(f"{model}: a text may have {positions} tokens, one for each position; got {n}. Shorten or split it.")


def has_pooler(found: bool) -> None:
    """A model that can pool."""
    if not found:
        raise Unsupported("Bert: this model has no pooler; take the first token, y[:, 0], or the mean of the tokens.")


def sampling(source: object, limit: int, temperature: float, topk: int | None) -> None:
    """What a text can be written on with."""
    tokens("sample", "source", source)
    whole_number("sample", "limit", limit, least=1)
    if topk is not None:
        whole_number("sample", "topk", topk, least=1)
    if not isinstance(temperature, int | float) or not temperature >= 0:
        raise ValueError(f"sample: temperature must be a number from 0 on; got {temperature!r}.")


# -- positions --------------------------------------------------------------------------------------------------------


def base(position: str, value: float) -> float:
    """A base of which powers can be taken."""
    if not value > 1:
        raise ValueError(f"{position}: base must be above 1; got {value!r}.")
    return float(value)


def scaling(name: str, factor: float, trained: int = 1, slow: float = 0.0, fast: float = 1.0) -> None:
    """By how much a length is stretched, and which pairs of dimensions."""
    if not isinstance(factor, int | float) or not 0 < factor < inf:
        raise ValueError(f"{name}: factor must be a finite number above 0; got {factor!r}.")
    whole_number(name, "trained", trained, least=1)
    if not slow < fast:
        raise ValueError(f"{name}: slow must be below fast; got slow {slow!r} and fast {fast!r}.")


def has_pairs(name: str, dims: int) -> None:
    """More than one pair of dimensions, for a base to grow with."""
    if dims <= 2:
        raise ShapeError(f"{name}: more than 2 of a head's dims must be turned; got {dims}.")


def grid(position: str, value: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns."""
    if value is None:
        return None
    if len(value) != 2:
        raise ShapeError(f"{position}: grid must be (rows, columns); got {value!r}.")
    rows, columns = (whole_number(position, name, n, least=1) for name, n in zip(("rows", "columns"), value, strict=True))
    return rows, columns


def on_grid(position: str, offset: int, n: int, grid: tuple[int, int]) -> None:
    """Tokens that have a place on the grid."""
    if offset + n > grid[0] * grid[1]:
        raise ShapeError(
            f"{position}: a grid of {grid[0]} × {grid[1]} has {grid[0] * grid[1]} places; got positions up to {offset + n - 1}."
        )


def waves(position: str, dim: int, grid: tuple[int, int] | None) -> None:
    """A dim that sines and cosines can share."""
    parts = 2 if grid is None else 4
    if dim % parts:
        raise ShapeError(f"{position}: dim must be a multiple of {parts}; got {dim}.")


def turned(dims: int, width: int, grid: tuple[int, int] | None) -> None:
    """Pairs of a head's numbers."""
    parts = 2 if grid is None else 4
    if dims % parts or dims > width:
        raise ShapeError(f"rotary: dims must be a multiple of {parts}, at most a head's dim {width}; got {dims}.")


def in_table(offset: int, n: int, dim: int, length: int, width: int) -> None:
    """Positions that have been learned, for embeddings of that dim."""
    if dim != width:
        raise ShapeError(f"learned: the table and the embeddings must have the same dim; got {width} and {dim}.")
    if offset < 0 or offset + n > length:
        raise ShapeError(
            f"learned: the table has {length} positions, 0 … {length - 1}; got tokens from {offset} to {offset + n - 1}."
        )


# -- multihead --------------------------------------------------------------------------------------------------------


def multihead_sizes(embed_dim: int, num_heads: int, kdim: int | None, vdim: int | None, dropout: float) -> None:
    """Sizes that a multi-head layer can have."""
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "kdim": kdim, "vdim": vdim}
    for name, size in sizes.items():
        if size is not None:
            whole_number("MultiheadAttention", name, size, least=1)
    probability("MultiheadAttention", "dropout", dropout)
    if embed_dim % num_heads:
        raise ShapeError(
            f"MultiheadAttention: embed_dim must be a multiple of num_heads; got embed_dim {embed_dim} and num_heads "
            f"{num_heads}."
        )


def multihead_inputs(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, kdim: int, vdim: int, batch_first: bool, weight: Tensor
) -> None:
    """Queries, keys and values that belong together, in the layer's dtype."""
    given = {"query": query, "key": key, "value": value}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"MultiheadAttention: {name} must be a tensor; got {type(x).__name__}.")
        if x.is_nested:
            raise Unsupported(
                f"MultiheadAttention: {name} must not be a nested tensor: pad it, tensor.to_padded_tensor(0.0), and mark the "
                "padding in key_padding_mask. torch.nn.TransformerEncoder makes them unless enable_nested_tensor=False."
            )
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"MultiheadAttention: {name} must have the dtype of the parameters; got {x.dtype} and {weight.dtype}."
            )

    def shapes() -> str:  # written where it is needed: in a graph of changing lengths it would make them constants
        return f"query {listed(query.shape)}, key {listed(key.shape)}, value {listed(value.shape)}"

    if not one_of(query.ndim, 2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
        rule = "(batch, n, dim)" if batch_first else "(n, batch, dim)"
        raise ShapeError(f"MultiheadAttention: query, key and value must all be {rule}, or all (n, dim); got {shapes()}.")
    for name, size, x in (("embed_dim", embed_dim, query), ("kdim", kdim, key), ("vdim", vdim, value)):
        if x.shape[-1] != size:
            raise ShapeError(f"MultiheadAttention: the last dimension must be {name} = {size}; got {x.shape[-1]} ({shapes()}).")
    if key.shape[:-1] != value.shape[:-1]:
        raise ShapeError(f"MultiheadAttention: there must be one value for each key; got {shapes()}.")
    rows = 0 if batch_first else 1
    if query.ndim == 3 and query.shape[rows] != key.shape[rows]:
        raise ShapeError(
            f"MultiheadAttention: queries and keys must have the same batch, dimension {rows}; got {query.shape[rows]} and "
            f"{key.shape[rows]} ({shapes()})."
        )


def multihead_masks(
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    batched: bool,
    sizes: tuple[int, int, int, int],
) -> None:
    """PyTorch's masks, in the shapes that they have for a matrix of those sizes."""
    batch, heads, queries, keys = sizes
    if is_causal and attn_mask is None:
        raise ValueError(
            "MultiheadAttention: is_causal says that attn_mask is the causal one, and so needs it: give "
            "attn_mask=torch.nn.Transformer.generate_square_subsequent_mask(n) as well."
        )
    padding = ((batch, keys) if batched else (keys,),)
    pairs = ((queries, keys), (batch * heads, queries, keys))
    for name, mask, allowed in (("key_padding_mask", key_padding_mask, padding), ("attn_mask", attn_mask, pairs)):
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise TypeError(
                f"MultiheadAttention: {name} must be a tensor in PyTorch's convention, True = hidden; got "
                f"{type(mask).__name__}. The values of regard.masks belong to regard.attention and to the other layers."
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(
                f"MultiheadAttention: {name} must be boolean, True = hidden, or floats that are added to the scores; got "
                f"{mask.dtype} of shape {listed(mask.shape)}."
            )
        if not any(len(mask.shape) == len(shape) and mask.shape == shape for shape in allowed):
            raise ShapeError(
                f"MultiheadAttention: {name} must have shape {' or '.join([listed(shape) for shape in allowed])}; got "
                f"{listed(mask.shape)} (batch {batch}, heads {heads}, queries {queries}, keys {keys})."
            )


def multihead_weights(
    need_weights: object, average_attn_weights: bool, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Weights that can be returned: none, lazy ones, or those that fit into memory."""
    choice("MultiheadAttention", "need_weights", need_weights, (True, False, "lazy"))
    if need_weights and need_weights != "lazy":
        batch, _, queries, keys = sizes
        shape = (batch, queries, keys) if average_attn_weights else sizes
        fits_dense(
            shape, dtype.itemsize, DENSE_LIMIT, "MultiheadAttention(need_weights=True)",
            'need_weights="lazy" returns the weights without storing them, need_weights=False returns none.',
        )  # fmt: skip


# -- recurrent models -------------------------------------------------------------------------------------------------


def sizes(layer: str, **given: object) -> None:
    """Whole numbers from 1 on."""
    for name, size in given.items():
        whole_number(layer, name, size, least=1)


def tokens(model: str, name: str, given: object) -> None:
    """Numbers of tokens, (batch, n), with at least one in each row."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{model}: {name} must be a tensor of tokens (batch, n); got {type(given).__name__}.")
    if given.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{model}: {name} must hold tokens, int64 or int32; got {given.dtype} of shape {listed(given.shape)}.")
    if given.ndim != 2 or 0 in given.shape:
        raise ShapeError(
            f"{model}: {name} must be (batch, n), with one row and one token at least; got shape {listed(given.shape)}."
        )


def same_batch(model: str, name: str, given: Tensor, rows: int) -> None:
    """As many rows as there are sources."""
    if given.shape[0] != rows:
        raise ShapeError(
            f"{model}: {name} must have as many rows as there are sources; got {given.shape[0]} "
            f"(shape {listed(given.shape)}) and {rows}."
        )


def of_sources(model: str, expression: str) -> NoReturn:
    """A mask that hides a token from some and not from others."""
    raise Unsupported(
        f"{model}: mask must hide a token of the source from every other one or from none, as padding(lengths) does; "
        f"got {expression}."
    )


def nothing_to_read(model: str, rows: list[int]) -> NoReturn:
    """Sources of which nothing is seen."""
    raise ValueError(f"{model}: mask must leave each source a token at least; it hides all of row {', '.join(map(str, rows))}.")


# -- searches ---------------------------------------------------------------------------------------------------------


def search(operation: str, begin: object, end: object, limit: object, beams: object, length_penalty: object) -> None:
    """Tokens and numbers with which a search can be made."""
    for name, number in {"begin": begin, "end": end}.items():
        whole_number(operation, name, number)
    for name, number in {"limit": limit, "beams": beams}.items():
        whole_number(operation, name, number, least=1)
    if not isinstance(length_penalty, int | float) or not isfinite(length_penalty):
        raise ValueError(f"{operation}: length_penalty must be a finite number; got {length_penalty!r}.")


def in_vocabulary(operation: str, end: int, vocabulary: int) -> None:
    """An end that can come."""
    if end >= vocabulary:
        raise ValueError(f"{operation}: end must be below the vocabulary's {vocabulary}; got {end}.")


# -- heads, text, images, audio ---------------------------------------------------------------------------------------


def counting_mask(layer: str, given: object, batch: int, n: int) -> Mask:
    """A mask that lies on sequences of that length."""
    mask(layer, "mask", given)
    if not isinstance(given, Mask):
        raise TypeError(f"{layer}: mask must be one of regard.masks, such as padding(lengths); got {type(given).__name__}.")
    mask_lies_on(layer, given, batch, 1, n, n)  # a mask of several heads says several things
    return given


def beyond(layer: str, name: str, given: Tensor, count: int) -> NoReturn:
    """Tokens that nobody knows."""
    raise IndexError(
        f"{layer}: {name} must be from 0 to {count - 1}, there are {count}; got {int(given.min())} to {int(given.max())} in "
        f"shape {listed(given.shape)}."
    )


def one_for_each(model: str, name: str, given: Tensor, tokens: Tensor) -> None:
    """A number for each token."""
    if given.shape != tokens.shape:
        raise ShapeError(
            f"{model}: {name} must have one number for each token, {listed(tokens.shape)}; got shape {listed(given.shape)}."
        )


def has_token(layer: str, x: Tensor) -> None:
    """Sequences that are not empty."""
    if not x.shape[1]:
        raise ShapeError(f"{layer}: x must have a token at least; got shape {listed(x.shape)}.")


def counts_padding(model: str, position: object) -> NoReturn:
    """Beginnings of unlike length, for a model that tells places by counting from the first column."""
    raise Unsupported(
        f"{model}: {position} counts padding as it counts tokens, so beginnings that a mask hides a part of would stand in "
        "wrong places; start each length by itself, or use rotary(), alibi() or relative()."
    )


def beginning(model: str, source: object) -> None:
    """Tokens from which a text goes on, (batch, n), n = 0 among them."""
    if not isinstance(source, Tensor) or source.ndim != 2:
        got = f"shape {listed(source.shape)}" if isinstance(source, Tensor) else type(source).__name__
        raise ShapeError(f"{model}: source must be tokens (batch, n), n = 0 where there are none yet; got {got}.")


def writes(model: str, own: Mask | None) -> None:
    """A model that sees nothing of what comes."""
    if own is None or bool(own.allows(0, 0, 0, 1)):
        raise Unsupported(
            f"{model}: to write token by token, the model's mask must hide what comes later, as mask=causal does; got "
            f"{own.expression if own is not None else None}."
        )


def pair(layer: str, name: str, given: object) -> tuple[int, int]:
    """Two whole numbers from 1 on; one stands for both."""
    both = tuple(given) if isinstance(given, tuple | list | torch.Size) else (given, given)
    if len(both) != 2:
        raise ShapeError(f"{layer}: {name} must be one number or two; got {listed(both)}.")
    return whole_number(layer, name, both[0], least=1), whole_number(layer, name, both[1], least=1)


def images(layer: str, given: object, channels: int, size: tuple[int, int] | None = None) -> None:
    """Images, (batch, channels, height, width)."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{layer}: images must be a tensor (batch, channels, height, width); got {type(given).__name__}.")
    wanted = ("height", "width") if size is None else size
    fits = given.ndim == 4 and given.shape[1] == channels and (size is None or given.shape[-2:] == size)
    if not fits:
        raise ShapeError(
            f"{layer}: images must be (batch, {channels}, {wanted[0]}, {wanted[1]}); got shape {listed(given.shape)}."
        )
    if not given.is_floating_point():
        raise TypeError(f"{layer}: images must be floats; got {given.dtype}. Divide bytes by 255.")


def patches(layer: str, size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """A grid without a rest."""
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ShapeError(f"{layer}: patch must divide the size of the images; got patch {listed(patch)}, size {listed(size)}.")
    return size[0] // patch[0], size[1] // patch[1]


def on_picture(layer: str, numbers: Tensor, grid: tuple[int, int], class_token: bool) -> Tensor:
    """One number for each patch, (…, patches)."""
    count = grid[0] * grid[1]
    if numbers.shape[-1] == count + class_token:
        return numbers[..., class_token:]
    if numbers.shape[-1] != count:
        also = f", or {count + 1} with the class token" if class_token else ""
        raise ShapeError(
            f"{layer}: there must be one number for each of {count} patches{also}; got shape {listed(numbers.shape)}."
        )
    return numbers


def frames(waveform: object, rate: int, window: float, hop: float, low: float, high: float) -> tuple[int, int]:
    """The samples of a window, and of a step."""
    if not isinstance(waveform, Tensor) or waveform.dtype not in (torch.float32, torch.float64):
        got = f"{waveform.dtype}" if isinstance(waveform, Tensor) else type(waveform).__name__
        raise TypeError(f"log_mel: waveform must be a tensor of float32 or float64; got {got}. Divide 16-bit samples by 32768.")
    if waveform.ndim == 0 or 0 in waveform.shape:
        raise ShapeError(
            f"log_mel: waveform must be (…, samples), with one sample at least; got shape {listed(waveform.shape)}."
        )
    span, step = round(rate * window), round(rate * hop)
    if span < 2 or step < 1:
        raise ValueError(
            f"log_mel: window must hold two samples and hop one; got {window} s and {hop} s at {rate} samples per s."
        )
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"log_mel: 0 ≤ low < high ≤ rate / 2 = {rate / 2:g} Hz must hold; got low {low:g} and high {high:g}.")
    return span, step


def bands(size: int, most: int, mels: int, low: float, high: float) -> None:
    """Bands that a transform of that size can tell apart."""
    if size > most:
        raise ValueError(
            f"log_mel: each of {mels} bands from {low:g} to {high:g} Hz must hold a frequency of the transform, and not even "
            f"that of {most} samples has so many; give fewer mels, or a longer window."
        )


def only_keys(layer: str, given: Mask) -> None:
    """A mask that hides a token from every other one or from none."""
    parts = [given]
    while parts:
        part = parts.pop()
        parts.extend(part.parts())
        if not part.parts() and not isinstance(part, (Full, Keep, Lengths, Prefix)):
            raise Unsupported(
                f"{layer}: mask says which tokens there are, as padding(lengths) and padding(keep=…) do, and not who may meet "
                f"whom; got {given.expression}."
            )


def last_is_there(keep: Tensor) -> None:
    """Beginnings that can be gone on with."""
    if not bool(keep[:, -1].all()):
        rows = (~keep[:, -1]).nonzero().flatten().tolist()
        raise ValueError(
            "sample: beginnings of unlike length are padded on the left, so that each ends with a token; the mask hides the "
            f"last one of row {', '.join(map(str, rows))}."
        )


def pools(head: str, body: object) -> None:
    """A body with a pooling of its own."""
    if not hasattr(body, "pool"):
        raise Unsupported(
            f'{head}: pool="body" takes a body that has a method pool, as Bert has; {type(body).__name__} has none.'
        )
