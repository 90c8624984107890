"""Every sentence that a layer can answer with: rule, numbers, shapes. A sentence without a row here fails below."""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regard import ShapeError, TooLarge, Unsupported, nn
from regard.masks import causal, dense, padding
from regard.nn.audio import log_mel
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.heads import SequenceClassifier
from regard.nn.images import ImageEncoder, Patches
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.multihead import MultiheadAttention
from regard.nn.pooling import Mean
from regard.nn.recurrent import RecurrentSequenceToSequence, WordByWord
from regard.nn.scores import Additive, Bilinear
from regard.nn.searches import beam_search, greedy
from regard.nn.text import LanguageModel, TokenEmbedding
from regard.pretrained import Refused

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
        lambda: nn.learned(4, 8)(X[:, :2], -1),
        "learned: the table has 4 positions, 0 … 3; got tokens from -1 to 0.",
    ),
    row(ValueError, lambda: nn.linear(0.0), "linear: factor must be a finite number above 0; got 0.0."),
    row(ValueError, lambda: nn.dynamic(2.0, trained=0), "dynamic: trained must be at least 1; got 0."),
    row(ValueError, lambda: nn.yarn(2.0, 8, slow=2.0, fast=1.0), "yarn: slow must be below fast; got slow 2.0 and fast 1.0."),
    row(ValueError, lambda: nn.llama3(-1.0, 8), "llama3: factor must be a finite number above 0; got -1.0."),
    row(
        ShapeError,
        lambda: nn.rotary(dims=2, scaling=nn.dynamic(2.0, trained=2)).turn(X[:, None]),
        "dynamic: more than 2 of a head's dims must be turned; got 2.",
    ),
    *(
        row(
            TypeError,
            lambda make=make: make(),
            f"{name}: position must be one of regard.nn's, such as rotary() or sinusoidal(); got",
        )
        for name, make in (
            ("SelfAttention", lambda: nn.SelfAttention(8, 2, position=nn.rotary)),
            ("SelfAttention", lambda: nn.SelfAttention(8, 2)(X, position=nn.alibi)),
            ("Encoder", lambda: nn.Encoder(8, 2, 1, position="rotary")),
            ("Decoder", lambda: nn.Decoder(8, 2, 1, position=nn.sinusoidal)),
            ("Encoder", lambda: LanguageModel(5, 8, 2, 1, position=nn.rotary)),
            ("Encoder", lambda: nn.Transformer(8, 2, 1, position=nn.rotary)),
        )
    ),
    row(
        ShapeError,
        lambda: nn.rotary(dims=10).turn(X[:, None]),
        "rotary: dims must be a multiple of 2, at most a head's dim 8; got 10.",
    ),
    row(
        ShapeError,
        lambda: nn.learned(4, 8)(X),
        "learned: the table has 4 positions, 0 … 3; got tokens from 0 to 4.",
    ),
    row(
        ShapeError,
        lambda: nn.learned(9, 4)(X),
        "learned: the table and the embeddings must have the same dim; got 4 and 8.",
    ),
    row(
        ShapeError,
        lambda: nn.Encoder(8, 2, 1, position=nn.alibi(3))(X),
        "alibi has 3 slopes and the matrix 2 heads",
    ),
    row(ValueError, lambda: nn.relative(4, buckets=1), "relative: buckets must be at least 2; got 1."),
    row(ValueError, lambda: nn.learned(0, 4), "learned: length must be at least 1; got 0."),
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


def kept(length: int, rows: int = 2) -> nn.Cache:
    """A cache of one layer with 2 heads and dim 4, that has seen so many tokens."""
    cache = nn.Cache()
    cache.append(torch.zeros(rows, 2, length, 4), torch.zeros(rows, 2, length, 4))
    return cache


INVERTED = (
    " must be one of regard.masks, True = may attend; got a torch.bool tensor of shape (5, 5). Convert PyTorch's inverted "
    "masks with regard.masks.from_torch(attn_mask, key_padding_mask). True = there is a token, (batch, n): regard.masks."
    "padding(keep=tensor.bool()); True = may attend, (…, queries, keys): regard.masks.dense(tensor.bool())."
)
HIDDEN = torch.ones(5, 5).triu(1).bool()
AGAIN = " Start each batch with an empty cache."

LAYERS = [
    row(ShapeError, lambda: nn.SelfAttention(10, 3), "SelfAttention: dim must be a multiple of heads; got dim 10 and heads 3."),
    row(ShapeError, lambda: nn.CrossAttention(10, 3), "CrossAttention: dim must be a multiple of heads; got dim 10 and heads"),
    row(ShapeError, lambda: nn.EncoderLayer(10, 3), "EncoderLayer: dim must be a multiple of heads; got dim 10 and heads 3."),
    row(ShapeError, lambda: nn.DecoderLayer(10, 3), "DecoderLayer: dim must be a multiple of heads; got dim 10 and heads 3."),
    row(ShapeError, lambda: nn.Transformer(10, 3), "EncoderLayer: dim must be a multiple of heads; got dim 10 and heads 3."),
    row(ShapeError, lambda: nn.Bert(dim=10, heads=3), "EncoderLayer: dim must be a multiple of heads; got dim 10 and heads 3."),
    row(
        ShapeError,
        lambda: nn.SelfAttention(12, 4, kv_heads=3),
        "SelfAttention: heads must be a multiple of kv_heads; got heads 4 and kv_heads 3.",
    ),
    row(
        ShapeError,
        lambda: nn.SelfAttention(heads=4, kv_heads=2),
        "SelfAttention: without weights there are as many kv_heads as heads; got 2 and 4.",
    ),
    row(ValueError, lambda: nn.SelfAttention(8, 0), "SelfAttention: heads must be at least 1; got 0."),
    row(ValueError, lambda: nn.SelfAttention(8, 2, kv_heads=0), "SelfAttention: kv_heads must be at least 1; got 0."),
    row(ValueError, lambda: nn.SelfAttention(0), "SelfAttention: dim must be at least 1; got 0."),
    row(TypeError, lambda: nn.SelfAttention(8.0), "SelfAttention: dim must be an integer; got 8.0."),
    row(
        ValueError,
        lambda: nn.SelfAttention(norm="rms"),
        "SelfAttention: without dim there are no weights, and so no norm; got norm='rms'.",
    ),
    row(ValueError, lambda: nn.SelfAttention(8, norm="batch"), "norm must be one of 'layer', 'rms'; got 'batch'."),
    row(
        ValueError, lambda: nn.EncoderLayer(8, 2, norm="batch"), "EncoderLayer: norm must be one of 'layer', 'rms'; got 'batch'"
    ),
    row(ValueError, lambda: nn.EncoderLayer(8, 2, activation="tanh"), "EncoderLayer: activation must be one of 'relu', 'gelu'"),
    row(ValueError, lambda: nn.gated("tanh"), "gated: activation must be one of 'relu', 'gelu'"),
    row(ValueError, lambda: nn.EncoderLayer(8, 2, hidden=0), "EncoderLayer: hidden must be at least 1; got 0."),
    row(ValueError, lambda: nn.Encoder(8, 2, 0), "Encoder: layers must be at least 1; got 0."),
    row(ValueError, lambda: nn.Decoder(8, 2, 0), "Decoder: layers must be at least 1; got 0."),
    row(TypeError, lambda: nn.SelfAttention(8, 2)([1.0]), "SelfAttention: x must be a tensor (batch, n, dim); got list."),
    row(ShapeError, lambda: nn.SelfAttention(6, 2)(X), "SelfAttention: x must be (batch, n, 6); got shape (2, 5, 8)."),
    row(ShapeError, lambda: nn.SelfAttention()(X[0, 0]), "SelfAttention: x must be (batch, n, dim); got shape (8,)."),
    row(
        ShapeError,
        lambda: nn.CrossAttention(8, 2, memory_dim=6)(X, X),
        "CrossAttention: memory must be (batch, n, 6); got shape (2, 5, 8).",
    ),
    row(
        ShapeError,
        lambda: nn.SelfAttention(heads=3)(X),
        "SelfAttention: the last dimension must be a multiple of heads; got 8 and heads 3.",
    ),
    # caches
    row(
        ShapeError,
        lambda: nn.SelfAttention(8, 2)(X, cache=kept(3, rows=4)),
        "cache: new keys and values must have the batch, the heads and the dim of those that it holds; got (2, 2, 5, 4) after "
        "(4, 2, 3, 4)." + AGAIN,
    ),
    row(
        ShapeError,
        lambda: nn.CrossAttention(8, 2)(X, X, cache=kept(3)),
        "CrossAttention: the cache must hold the keys of this memory; got keys (2, 2, 3, 4) for a memory of shape (2, 5, 8) "
        "and a batch of (2,)." + AGAIN,
    ),
    row(
        ShapeError, lambda: nn.CrossAttention(8, 2)(X[:1], X[:1], cache=kept(5)), "for a memory of shape (1, 5, 8) and a batch"
    ),
    row(
        TypeError,
        lambda: nn.SelfAttention(8, 2).double()(X.double(), cache=kept(3)),
        "cache: new keys and values must have the dtype of those that it holds, torch.float32; got torch.float64.",
    ),
    row(
        ValueError,
        lambda: nn.Encoder(8, 2, 2)(X, caches=nn.Encoder(8, 2, 1).caches() * 2),
        "Encoder: caches must hold another cache for each layer; the same one comes twice. Use .caches().",
    ),
    row(
        TypeError,
        lambda: nn.Transformer(8, 2, 1)(T, T),
        "SelfAttention: x must hold embeddings, floats; got torch.int64 of shape (2, 4). Tokens go through TokenEmbedding, or",
    ),
    row(
        ShapeError,
        lambda: nn.Encoder(8, 2, 2)(X, caches=nn.Encoder(8, 2, 3).caches()),
        "Encoder: caches must hold one cache for each of 2 layers; got 3. Use .caches().",
    ),
    row(
        ShapeError,
        lambda: nn.Decoder(8, 2, 2)(X, X, caches=[]),
        "Decoder: caches must hold one cache for each of 2 layers; got",
    ),
    # PyTorch's masks
    row(TypeError, lambda: nn.SelfAttention(8, 2)(X, mask=HIDDEN), "SelfAttention: mask" + INVERTED),
    row(TypeError, lambda: nn.CrossAttention(8, 2)(X, X, mask=HIDDEN), "CrossAttention: mask" + INVERTED),
    row(TypeError, lambda: nn.Encoder(8, 2, 1)(X, mask=HIDDEN), "SelfAttention: mask" + INVERTED),
    row(TypeError, lambda: nn.Decoder(8, 2, 1)(X, X, memory_mask=HIDDEN), "CrossAttention: mask" + INVERTED),
    row(TypeError, lambda: nn.Transformer(8, 2, 1)(X, X, source_mask=HIDDEN), "SelfAttention: mask" + INVERTED),
    row(TypeError, lambda: LanguageModel(5, 8, 2, 1)(T, mask=HIDDEN), "LanguageModel: mask" + INVERTED),
    row(TypeError, lambda: nn.SelfAttention(8, 2)(X, mask=True), "mask must be one of regard.masks", "got bool."),
    # dropout
    *(
        row(ValueError, lambda make=make, p=p: make(p), f"{make(0.0)._get_name()}: dropout must be {said}; got {p:g}")
        for make in (
            lambda p: nn.SelfAttention(8, 2, dropout=p),
            lambda p: nn.CrossAttention(8, 2, dropout=p),
            lambda p: nn.EncoderLayer(8, 2, dropout=p),
            lambda p: nn.DecoderLayer(8, 2, dropout=p),
            lambda p: WordByWord(8, 2, dropout=p),
            lambda p: nn.Bert(5, 8, 2, 1, attention_dropout=p),
        )
        for p, said in ((1.0, "in [0, 1)"), (-0.1, "a number from 0 to 1"), (1.5, "a number from 0 to 1"))
    ),
]


def stored(model: Any, *, config: dict[str, Any] | None = None, tensors: Any = None, without: str = "") -> Callable[[], Any]:
    """Loads a small model from a directory in which something was changed."""

    def load() -> Any:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            model(5, 8, 2, 1, positions=6).save_pretrained(place)
            told = json.loads((place / "config.json").read_text()) | (config or {})
            (place / "config.json").write_text(json.dumps(told))
            if tensors is not None:
                save_file(tensors(load_file(place / "model.safetensors")), place / "model.safetensors")
            if without:
                (place / without).unlink()
            return model.from_pretrained(place)

    return load


def renamed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what is in the first layer, with three tensors that nobody knows."""
    there = {name: t for name, t in found.items() if ".layer.0." not in name}
    return there | {f"adapter.{n}": torch.zeros(1) for n in range(3)}


def shorter(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in found if name.endswith("wpe.weight"))
    return found | {name: found[name][:4].clone()}


def bert() -> nn.Bert:
    return nn.Bert(96, 8, 2, 1, positions=6)


PRETRAINED = [
    row(
        FileNotFoundError, stored(nn.Bert, without="model.safetensors"), "Bert: ", " has no model.safetensors; a model is saved"
    ),
    row(Refused, stored(nn.GPT, without="config.json"), " has no config.json, so it is not a model saved by save_pretrained."),
    row(
        Unsupported,
        stored(nn.Bert, config={"model_type": "roberta"}),
        "Bert: config.json must be of model_type 'bert'; got 'roberta'. Other architectures can be loaded by transformers",
    ),
    row(
        Unsupported,
        stored(nn.Bert, config={"hidden_act": "mish"}),
        "Bert: the activation must be one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish; got 'mish'.",
    ),
    row(
        Unsupported,
        stored(nn.Bert, config={"is_decoder": True}),
        "Bert: the configuration must have is_decoder = False; got True.",
    ),
    row(
        Unsupported,
        stored(nn.GPT, config={"tie_word_embeddings": False}),
        "GPT: the configuration must have tie_word_embeddings = True; got False.",
    ),
    row(
        Unsupported,
        stored(nn.GPT, config={"scale_attn_by_inverse_layer_idx": True}),
        "GPT: the configuration must have scale_attn_by_inverse_layer_idx = False; got True.",
    ),
    row(
        ShapeError,
        stored(nn.Bert, tensors=renamed),
        "Bert: the checkpoint must have the model's parameters; 16 missing: encoder.layer.0.attention.output.LayerNorm.bias, ",
        "and 11 more; 3 foreign: adapter.0, adapter.1, adapter.2.",
    ),
    row(
        ShapeError,
        stored(nn.GPT, tensors=shorter),
        "GPT: wpe.weight must make (6, 8); got (4, 8). Is it of this config?",
    ),
    row(
        ShapeError,
        lambda: nn.Bert(5, 8, 2, 1, positions=3)(T),
        "Bert: a text may have 3 tokens, one for each position; got 4. Shorten or split it.",
    ),
    row(
        ShapeError,
        lambda: nn.GPT(5, 8, 2, 1, positions=3)(T),
        "learned: the table has 3 positions, 0 … 2; got tokens from 0 to 3.",
    ),
    row(TypeError, lambda: nn.Bert(5, 8, 2, 1)(X), "Bert: tokens must hold tokens, int64 or int32; got torch.float32 of shape"),
    row(ValueError, lambda: nn.Bert(0), "Bert: vocabulary must be at least 1; got 0."),
    row(
        Unsupported,
        lambda: nn.Bert(5, 8, 2, 1, pooler=False).pool(X),
        "Bert: this model has no pooler; take the first token, y[:, 0], or the mean of the tokens.",
    ),
    row(
        IndexError,
        lambda: RecurrentSequenceToSequence(5, 5, 4, 4)(T, T * 0 + 5),
        "RecurrentSequenceToSequence: target must be from 0 to 4, there are 5; got ",
    ),
    row(
        IndexError,
        lambda: BahdanauSequenceToSequence(5, 5, 4, 4)(T * 0 + 5, T, padding([4, 2])),
        "BahdanauSequenceToSequence: source must be from 0 to 4, there are 5; got ",
    ),
    row(IndexError, lambda: bert()(T * 0 + 96), "Bert: tokens must be from 0 to 95, there are 96; got 96 to 96"),
    row(
        IndexError,
        lambda: bert()(T, segments=T * 0 + 2),
        "Bert: segments must be from 0 to 1, there are 2; got 2 to 2 in shape (2, 4).",
    ),
    row(
        ShapeError,
        lambda: bert()(T, segments=T[:, :1]),
        "Bert: segments must have one number for each token, (2, 4); got shape (2, 1).",
    ),
]


def sampled(source: torch.Tensor = T, **given: Any) -> Callable[[], Any]:
    return lambda: nn.sample(LanguageModel(5, 8, 2, 1), source, **{"limit": 2, **given})


def heard(waveform: Any = torch.zeros(2, 800), rate: int = 8000, **given: Any) -> Callable[[], Any]:  # noqa: B008
    return lambda: log_mel(waveform, rate, **given)


WORK = [
    row(ValueError, sampled(limit=0), "sample: limit must be at least 1; got 0."),
    row(ValueError, sampled(topk=0), "sample: topk must be at least 1; got 0."),
    row(ValueError, sampled(temperature=-1.0), "sample: temperature must be a number from 0 on; got -1.0."),
    row(
        ShapeError,
        sampled(T[:, :0]),
        "sample: source must be (batch, n), with one row and one token at least; got shape (2, 0).",
    ),
    row(TypeError, sampled([[1, 2]]), "sample: source must be a tensor of tokens (batch, n); got list."),
    row(
        Unsupported,
        lambda: nn.sample(
            nn.GPT(5, 8, 2, 1), T, limit=2, mask=padding(keep=torch.tensor([[False, True, True, True], [True] * 4]))
        ),
        "LanguageModel: Learned(length=1024, dim=8) counts padding as it counts tokens, so beginnings that a mask hides a part",
    ),
    row(ShapeError, lambda: nn.FirstToken()(X[:, :0]), "FirstToken: x must have a token at least; got shape (2, 0, 8)."),
    row(
        ShapeError,
        lambda: Mean()(X, mask=dense(torch.ones(1, 2, 5, 5, dtype=torch.bool))),
        "Mean: dense mask of shape (1, 2, 5, 5) does not broadcast to (2, 1, 5, 5)",
    ),
    row(
        ShapeError,
        lambda: nn.TokenClassifier(nn.Encoder(8, 2, 1), 6, 3)(X),
        "TokenClassifier: what its body Encoder makes must be (batch, n, 6); got shape (2, 5, 8).",
    ),
    row(
        TypeError,
        lambda: Mean()(X, mask=[5, 3]),
        "Mean: mask must be one of regard.masks, such as padding(lengths); got list.",
    ),
    row(ShapeError, lambda: Mean()(X, mask=padding([5, 3, 1])), "Mean: padding has 3 lengths and the batch 2 rows"),
    row(
        IndexError,
        lambda: TokenEmbedding(3, 4)(torch.tensor([[0, 5]])),
        "TokenEmbedding: tokens must be from 0 to 2, there are 3; got 0 to 5 in shape (1, 2).",
    ),
    row(
        ShapeError,
        lambda: LanguageModel(5, 8, 2, 1).start(T[0]),
        "LanguageModel: source must be tokens (batch, n), n = 0 where there are none yet; got shape (4,).",
    ),
    row(
        Unsupported,
        lambda: LanguageModel(5, 8, 2, 1, mask=None).start(T),
        "LanguageModel: to write token by token, the model's mask must hide what comes later, as mask=causal does; got None.",
    ),
    row(ShapeError, lambda: Patches(3, 8, (2, 2, 2)), "Patches: patch must be one number or two; got (2, 2, 2)."),
    row(
        TypeError, lambda: Patches(3, 8, 2)(None), "Patches: images must be a tensor (batch, channels, height, width); got None"
    ),
    row(
        ShapeError,
        lambda: Patches(3, 8, 2)(torch.zeros(2, 1, 4, 4)),
        "Patches: images must be (batch, 3, height, width); got shape (2, 1, 4, 4).",
    ),
    row(
        ShapeError,
        lambda: ImageEncoder(4, 2, 1, 8, 2, 1)(torch.zeros(2, 1, 4, 6)),
        "ImageEncoder: images must be (batch, 1, 4, 4); got shape (2, 1, 4, 6).",
    ),
    row(
        TypeError,
        lambda: Patches(1, 8, 2)(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)),
        "Patches: images must be floats; got torch.uint8. Divide bytes by 255.",
    ),
    row(
        ShapeError,
        lambda: ImageEncoder(5, 2, 1, 8, 2, 1),
        "Patches: patch must divide the size of the images; got patch (2, 2), size (5, 5).",
    ),
    row(
        ShapeError,
        lambda: ImageEncoder(4, 2, 1, 8, 2, 1).on_grid(torch.zeros(3)),
        "ImageEncoder: there must be one number for each of 4 patches, or 5 with the class token; got shape (3,).",
    ),
    row(
        TypeError,
        heard(torch.zeros(800, dtype=torch.int16)),
        "log_mel: waveform must be a tensor of float32 or float64; got torch.int16. Divide 16-bit samples by 32768.",
    ),
    row(
        ShapeError,
        heard(torch.zeros(2, 0)),
        "log_mel: waveform must be (…, samples), with one sample at least; got shape (2, 0)",
    ),
    row(
        ValueError,
        heard(window=1e-4),
        "log_mel: window must hold two samples and hop one; got 0.0001 s and 0.01 s at 8000 samples per s.",
    ),
    row(
        ValueError,
        heard(mels=2, low=1000.0, high=1000.01),
        "log_mel: each of 2 bands from 1000 to 1000.01 Hz must hold a frequency of the transform",
    ),
    row(
        Unsupported,
        lambda: LanguageModel(5, 8, 2, 1).start(T, causal),
        "LanguageModel: mask says which tokens there are, as padding(lengths) and padding(keep=…) do, and not who may meet",
        "; got causal.",
    ),
    row(
        ValueError,
        sampled(mask=padding([4, 3])),
        "sample: beginnings of unlike length are padded on the left, so that each ends with a token; the mask hides the last "
        "one of row 1.",
    ),
    row(
        Unsupported,
        lambda: SequenceClassifier(LanguageModel(5, 8, 2, 1), 8, 2, pool="body")(T),
        'SequenceClassifier: pool="body" takes a body that has a method pool, as Bert has; LanguageModel has none.',
    ),
    row(ValueError, heard(low=5000.0), "log_mel: 0 ≤ low < high ≤ rate / 2 = 4000 Hz must hold; got low 5000 and high 4000."),
]

NN = [*MULTIHEAD, *POSITIONS, *RECURRENT, *LAYERS, *PRETRAINED, *WORK]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("kind", "call", "fragments"), NN)
def test_bad_inputs_are_named(kind, call, fragments):
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    for fragment in fragments:
        assert fragment in str(refused.value)


# -- no sentence without a row ----------------------------------------------------------------------------------------

HOME = Path(nn.__file__).parent
SAYING = sorted(HOME.rglob("*.py"))


def sentences(path: Path) -> dict[tuple[Path, int], str]:
    """Every line of a raise statement, and the function it stands in."""
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    return {
        (path, line): f"{path.relative_to(HOME)}: {f.name}, line {n.lineno}"
        for f in functions
        for n in ast.walk(f)
        if isinstance(n, ast.Raise)
        for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_every_sentence_has_a_row():
    lines = {place: said for path in SAYING for place, said in sentences(path).items()}
    assert len(set(lines.values())) > 50
    silent = set(lines.values())
    for parameters in NN:
        with pytest.raises(Exception) as refused:  # noqa: PT011
            parameters.values[1]()
        silent -= {lines.get((frame.path, frame.lineno + 1)) for frame in refused.traceback}
    assert not silent, "sentences that no row of this file brings about"


def test_only_checks_says_something():
    """One module, one voice; and a helper of it that refuses nothing would escape the test above."""
    assert {said.split(":")[0] for path in SAYING for said in sentences(path).values()} == {"checks.py"}
    tree = ast.parse((HOME / "checks.py").read_text(encoding="utf-8"))
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    saying = {name for name, f in functions.items() if any(isinstance(n, ast.Raise) for n in ast.walk(f))}
    assert set(functions) == saying | {"_first", "multihead_weights", "sizes"}
