"""Every sentence that a layer can answer with: rule, numbers, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from regard import ShapeError, TooLarge, Unsupported, nn
from regard.masks import causal, padding
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.multihead import MultiheadAttention
from regard.nn.recurrent import RecurrentSequenceToSequence, WordByWord
from regard.nn.scores import Additive, Bilinear
from regard.nn.searches import beam_search, greedy

X = torch.randn(2, 5, 8)


def row(kind: type[Exception], call: Callable[[], Any], *fragments: str) -> Any:
    return pytest.param(kind, call, fragments, id=fragments[0][:60])


def multihead(*inputs: Any, **given: Any) -> Callable[[], Any]:
    """Called with two batch rows of five tokens, unless told otherwise."""
    return lambda: MultiheadAttention(8, 2, batch_first=True)(*(inputs or (X, X, X)), **given)


MULTIHEAD = [
    row(
        ShapeError,
        lambda: MultiheadAttention(10, 3),
        "MultiheadAttention: embed_dim must be a multiple of num_heads; got embed_dim 10 and num_heads 3.",
    ),
    row(ValueError, lambda: MultiheadAttention(8, 0), "MultiheadAttention: num_heads must be at least 1; got 0."),
    row(ValueError, lambda: MultiheadAttention(8, 2, kdim=0), "MultiheadAttention: kdim must be at least 1; got 0."),
    row(
        ValueError, lambda: MultiheadAttention(8, 2, 1.5), "MultiheadAttention: dropout must be a number from 0 to 1; got 1.5."
    ),
    row(TypeError, multihead(X, X, None), "MultiheadAttention: value must be a tensor; got NoneType."),
    row(
        Unsupported,
        lambda: multihead(*[torch.nested.nested_tensor([X[0], X[1, :3]], layout=torch.jagged)] * 3)(),
        "MultiheadAttention: query must not be a nested tensor: pad it, tensor.to_padded_tensor(0.0), and mark the padding in "
        "key_padding_mask. torch.nn.TransformerEncoder makes them unless enable_nested_tensor=False.",
    ),
    row(
        TypeError,
        multihead(X, X.double(), X),
        "MultiheadAttention: key must have the dtype of the parameters; got torch.float64 and torch.float32.",
    ),
    row(
        ShapeError,
        multihead(X, X[0], X[0]),
        "MultiheadAttention: query, key and value must all be (batch, n, dim), or all (n, dim); got query (2, 5, 8), "
        "key (5, 8), value (5, 8).",
    ),
    row(
        ShapeError,
        lambda: MultiheadAttention(8, 2)(X[None], X[None], X[None]),
        "must all be (n, batch, dim), or all (n, dim); got query (1, 2, 5, 8)",
    ),
    row(
        ShapeError,
        multihead(X, X[..., :4], X),
        "MultiheadAttention: the last dimension must be kdim = 8; got 4 (query (2, 5, 8), key (2, 5, 4), value (2, 5, 8)).",
    ),
    row(
        ShapeError,
        multihead(X, X, X[:, :4]),
        "MultiheadAttention: there must be one value for each key; got query (2, 5, 8), key (2, 5, 8), value (2, 4, 8).",
    ),
    row(
        ShapeError,
        multihead(X[:1], X, X),
        "MultiheadAttention: queries and keys must have the same batch, dimension 0; got 1 and 2 (query (1, 5, 8), key",
    ),
    row(ValueError, multihead(is_causal=True), "MultiheadAttention: is_causal says that attn_mask is the causal one"),
    row(
        TypeError,
        multihead(attn_mask=causal),
        "MultiheadAttention: attn_mask must be a tensor in PyTorch's convention, True = hidden; got Causal. The values of "
        "regard.masks belong to regard.attention and to the other layers.",
    ),
    row(
        TypeError,
        multihead(key_padding_mask=torch.zeros(2, 5, dtype=torch.uint8)),
        "MultiheadAttention: key_padding_mask must be boolean, True = hidden, or floats that are added to the scores; got "
        "torch.uint8 of shape (2, 5).",
    ),
    row(
        ShapeError,
        multihead(key_padding_mask=torch.zeros(5, 2)),
        "MultiheadAttention: key_padding_mask must have shape (2, 5); got (5, 2) (batch 2, heads 2, queries 5, keys 5).",
    ),
    row(
        ShapeError,
        multihead(attn_mask=torch.zeros(2, 5, 5)),
        "MultiheadAttention: attn_mask must have shape (5, 5) or (4, 5, 5); got (2, 5, 5) (batch 2, heads 2, queries 5, "
        "keys 5).",
    ),
    row(
        ValueError,
        multihead(need_weights="dense"),
        "MultiheadAttention: need_weights must be one of True, False, 'lazy'; got 'dense'.",
    ),
    row(
        TooLarge,
        lambda: MultiheadAttention(1, 1)(*[torch.zeros(20000, 1, 1)] * 3),
        "MultiheadAttention(need_weights=True): a matrix of shape (1, 20000, 20000) would take 1.49 GiB, above the limit of 1 "
        'GiB. need_weights="lazy" returns the weights without storing them, need_weights=False returns none.',
    ),
]

POSITIONS = [
    row(ValueError, lambda: nn.rotary(1.0), "rotary: base must be above 1; got 1.0."),
    row(ShapeError, lambda: nn.sinusoidal(grid=(1, 2, 3)), "sinusoidal: grid must be (rows, columns); got (1, 2, 3)."),
    row(ValueError, lambda: nn.rotary(grid=(0, 2)), "rotary: rows must be at least 1; got 0."),
    row(ShapeError, lambda: nn.sinusoidal()(torch.zeros(1, 2, 3)), "sinusoidal: dim must be a multiple of 2; got 3."),
    row(ShapeError, lambda: nn.sinusoidal(grid=(2, 2))(X[..., :6]), "sinusoidal: dim must be a multiple of 4; got 6."),
    row(
        ShapeError,
        lambda: nn.sinusoidal(grid=(2, 2))(X),
        "sinusoidal: a grid of 2 × 2 has 4 places; got positions up to 4.",
    ),
    row(
        ShapeError,
        lambda: nn.rotary(dims=10).turn(X[:, None]),
        "rotary: dims must be a multiple of 2, at most a head's dim 8; got 10.",
    ),
    row(
        ShapeError,
        lambda: nn.learned(4, 8)(X),
        "learned: the table has 4 positions, 0 … 3; got tokens up to 4.",
    ),
]

T = torch.randint(5, (2, 4))


def translated(*inputs: Any, **given: Any) -> Callable[[], Any]:
    """Called with two sources of four tokens and their targets, unless told otherwise."""
    return lambda: BahdanauSequenceToSequence(5, 5, 4)(*(inputs or (T, T)), **given)


def found(search: Callable[..., Any] = beam_search, **given: Any) -> Callable[[], Any]:
    return lambda: search(RecurrentSequenceToSequence(5, 5, 4), T, **{"begin": 0, "end": 1, "limit": 3, **given})


RECURRENT = [
    row(ValueError, lambda: Additive(4, 4, 0), "Additive: hidden must be at least 1; got 0."),
    row(ValueError, lambda: Bilinear(4, heads=0), "Bilinear: heads must be at least 1; got 0."),
    row(
        ValueError,
        lambda: BahdanauSequenceToSequence(0, 5),
        "BahdanauSequenceToSequence: source_vocabulary must be at least 1; got 0.",
    ),
    row(
        ValueError,
        lambda: LuongSequenceToSequence(5, 5, dropout=1.0),
        "LuongSequenceToSequence: dropout must be in [0, 1); got 1, which would drop everything.",
    ),
    row(ValueError, lambda: WordByWord(3, 2, cell="rnn"), "WordByWord: cell must be one of 'gru', 'lstm'; got 'rnn'."),
    row(ValueError, lambda: WordByWord(3, 2, layers=0), "WordByWord: layers must be at least 1; got 0."),
    row(ShapeError, lambda: WordByWord(3, 2)(X), "WordByWord: x must be (batch, n, 3); got shape (2, 5, 8)."),
    row(TypeError, translated([[1]], T), "BahdanauSequenceToSequence: source must be a tensor of tokens (batch, n); got list."),
    row(
        TypeError,
        translated(T, T.float()),
        "BahdanauSequenceToSequence: target must hold tokens, int64 or int32; got torch.float32 of shape (2, 4).",
    ),
    row(
        ShapeError,
        translated(T[:, :0], T),
        "BahdanauSequenceToSequence: source must be (batch, n), with one row and one token at least; got shape (2, 0).",
    ),
    row(ShapeError, translated(T, T[0]), "BahdanauSequenceToSequence: target must be (batch, n), with one row and one token"),
    row(
        ShapeError,
        translated(T, T[:1]),
        "BahdanauSequenceToSequence: target must have as many rows as there are sources; got 1 (shape (1, 4)) and 2.",
    ),
    row(
        ShapeError,
        lambda: (model := RecurrentSequenceToSequence(5, 5, 4)).step(T[:1], model.start(T)),
        "RecurrentSequenceToSequence: tokens must have as many rows as there are sources; got 1 (shape (1, 4)) and 2.",
    ),
    row(
        TypeError,
        translated(T, T, T > 2),
        "BahdanauSequenceToSequence: mask must be one of regard.masks, True = may attend; got a torch.bool tensor",
    ),
    row(ShapeError, translated(T, T, padding([4, 3, 2])), "padding has 3 lengths and the batch 2 rows"),
    row(
        Unsupported,
        translated(T, T, causal),
        "BahdanauSequenceToSequence: mask must hide a token of the source from every other one or from none, as "
        "padding(lengths) does; got causal.",
    ),
    row(
        ValueError,
        translated(T, T, padding([4, 0])),
        "BahdanauSequenceToSequence: mask must leave each source a token at least; it hides all of row 1.",
    ),
    row(ValueError, found(limit=0), "beam_search: limit must be at least 1; got 0."),
    row(ValueError, found(beams=0), "beam_search: beams must be at least 1; got 0."),
    row(ValueError, found(begin=-1), "beam_search: begin must be at least 0; got -1."),
    row(ValueError, found(end=5), "beam_search: end must be below the vocabulary's 5; got 5."),
    row(ValueError, found(greedy, end=7), "greedy: end must be below the vocabulary's 5; got 7."),
    row(
        ValueError,
        found(length_penalty=float("nan")),
        "beam_search: length_penalty must be a finite number; got nan.",
    ),
]

NN = [*MULTIHEAD, *POSITIONS, *RECURRENT]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("kind", "call", "fragments"), NN)
def test_bad_inputs_are_named(kind, call, fragments):
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    for fragment in fragments:
        assert fragment in str(refused.value)
