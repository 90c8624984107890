"""Self-attention and cross-attention against formulas written out head by head, in float64; caches, dropout, lazy matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from regard import ShapeError, masks, scores
from regard.backends import BACKENDS
from regard.masks import Mask, causal, padding, window
from regard.nn import Cache, CrossAttention, Decoder, Encoder, SelfAttention, positions
from regard.nn.positions import Position
from regard.nn.scores import Additive, Bilinear
from regard.nn.steps import Memory

Compare = Callable[[int, Tensor, Tensor], Tensor]  # head, query (dim,), key (dim,) -> scaled score
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def filled(module: nn.Module) -> Any:
    """Every parameter drawn: biases and norms too are no longer what a layer begins with."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module


def dot(head: int, query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum() / math.sqrt(len(key))


def attended(query: Tensor, key: Tensor, value: Tensor, compare: Compare, mask: Mask | None, extra: Any = None) -> Tensor:
    """Σ_j softmax_j(score_ij) v_j, pair by pair: (queries, dim), (keys, dim), one batch row, one head after the other.

    query (heads, queries, dim), key and value (kv_heads, keys, dim); extra(head, i, j) is added to the scores.
    """
    heads, queries, _ = query.shape
    group, keys = heads // key.shape[0], key.shape[1]
    rows = []
    for h, i in itertools.product(range(heads), range(queries)):
        g = h // group
        p = i + keys - queries
        seen = [j for j in range(keys) if mask is None or mask.allows(0, h, i, j, keys - queries)]
        given = [compare(h, query[h, i], key[g, j]) + (0 if extra is None else extra(h, p, j)) for j in seen]
        weights = torch.stack(given).exp() if given else query.new_zeros(0)
        weights = weights / weights.sum()
        rows.append(sum((w * value[g, j] for w, j in zip(weights, seen, strict=True)), torch.zeros_like(value[0, 0])))
    return torch.stack(rows).unflatten(0, (heads, queries))


def projected(layer: Any, x: Tensor, memory: Tensor) -> Iterator[Tensor]:
    """Queries, keys and values of one batch row, (heads, n, dim), by the layer's parameters."""
    width = layer.dim // layer.heads
    sizes = (layer.heads * width, layer.kv_heads * width, layer.kv_heads * width)
    state = dict(layer.named_parameters())
    weights = state["in_proj_weight"].split(sizes) if "in_proj_weight" in state else [state[f"{c}_proj_weight"] for c in "qkv"]
    added = state["in_proj_bias"].split(sizes) if "in_proj_bias" in state else (0, 0, 0)
    for name, tokens, weight, bias in zip(("query", "key", "value"), (x, memory, memory), weights, added, strict=True):
        made = (tokens @ weight.T + bias).unflatten(-1, (-1, width)).transpose(0, 1)
        norm = getattr(layer, f"{name}_norm", None)
        yield made if norm is None else normed(norm, made)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * norm.weight
    y = x - x.mean(-1, keepdim=True)
    return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def plain(layer: Any, x: Tensor, memory: Tensor, *, compare: Compare = dot, mask: Mask | None = None) -> Tensor:
    """What the layer should say, (batch, n, dim); each batch row for itself."""
    found = []
    for own, other in zip(x, memory, strict=True):
        y = attended(*projected(layer, own, other), compare, mask).transpose(0, 1).flatten(1)
        found.append(y if layer.out_proj is None else y @ layer.out_proj.weight.T + plain_bias(layer.out_proj))
    return torch.stack(found)


def plain_bias(linear: nn.Linear) -> Tensor | float:
    return 0.0 if linear.bias is None else linear.bias


def as_said(layer: nn.Module, inputs: tuple[Tensor, ...], wanted: Tensor, **given: Any) -> None:
    """Output, and the gradients of inputs and parameters, are those of the formula."""
    found = layer(*inputs, **given)
    assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(found)
    of = [*inputs, *layer.parameters()]
    got, due = (torch.autograd.grad((y * weight).sum(), of, allow_unused=True) for y in (found, wanted))
    for mine, other in zip(got, due, strict=True):
        other = torch.zeros_like(mine) if other is None else other
        assert_close(mine, other, atol=1e-9, rtol=1e-9)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_without_weights():
    x = draw(2, 5, 6)
    wanted = (x @ x.mT / math.sqrt(6)).softmax(-1) @ x
    assert_close(SelfAttention()(x), wanted)
    assert_close(SelfAttention()(x[0]), wanted[0])
    assert not list(SelfAttention().parameters())
    y, A = SelfAttention(heads=3)(x, mask=causal, return_attention=True)
    parts = [(t @ t.mT / math.sqrt(2)).masked_fill(~torch.ones(5, 5).tril().bool(), -math.inf) for t in x.split(2, -1)]
    assert_close(y, torch.cat([s.softmax(-1) @ t for s, t in zip(parts, x.split(2, -1), strict=True)], -1))
    assert_close(A.to_dense(), torch.stack([s.softmax(-1) for s in parts], 1))


LAYERS: dict[str, dict[str, Any]] = {
    "one head": {},
    "three heads": {"heads": 3},
    "no biases": {"heads": 3, "bias": False},
    "no output": {"heads": 3, "output": False},
    "grouped": {"heads": 6, "kv_heads": 2},
    "one key head": {"heads": 3, "kv_heads": 1, "bias": False, "output": False},
    "layer norm": {"heads": 3, "norm": "layer"},
    "rms norm": {"heads": 3, "norm": "rms"},
    "grouped, layer norm": {"heads": 6, "kv_heads": 3, "norm": "layer"},
}
MASKS: dict[str, Mask | None] = {
    "all": None,
    "causal": causal,
    "padded": padding([3, 3]),
    "empty rows": masks.dense(torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_self_attention(name, mask):
    layer = filled(SelfAttention(12, **LAYERS[name], **DOUBLE))
    x = draw(2, 4, 12).requires_grad_()
    as_said(layer, (x,), plain(layer, x, x, mask=MASKS[mask]), mask=MASKS[mask])


def test_a_score_for_each_head_over_grouped_keys():
    """It makes keys for all heads out of those of a group; the values stay with the group."""
    layer = filled(SelfAttention(12, 6, kv_heads=2, score=Additive(2, heads=6), **DOUBLE))

    def compare(head: int, query: Tensor, key: Tensor) -> Tensor:
        score = layer.score
        return (query @ score.w_query[head] + key @ score.w_key[head]).tanh() @ score.v[head]

    layer.score.double()
    x = draw(2, 4, 12).requires_grad_()
    as_said(layer, (x,), plain(layer, x, x, compare=compare, mask=causal), mask=causal)


@pytest.mark.parametrize("memory_dim", [None, 12, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_cross_attention(name, memory_dim):
    layer = filled(CrossAttention(12, memory_dim=memory_dim, **LAYERS[name], **DOUBLE))
    assert ("in_proj_weight" in layer.state_dict()) == (memory_dim != 5)
    x, memory, mask = draw(2, 2, 12).requires_grad_(), draw(2, 4, memory_dim or 12).requires_grad_(), padding([3, 3])
    as_said(layer, (x, memory), plain(layer, x, memory, mask=mask), mask=mask)


def test_grouped_heads_are_repeated_ones():
    grouped = filled(SelfAttention(12, 6, kv_heads=2, **DOUBLE))
    all_heads = SelfAttention(12, 6, **DOUBLE)
    state = grouped.state_dict()
    for name in ("in_proj_weight", "in_proj_bias"):
        q, k, v = state[name].split((12, 4, 4))
        repeated = [t.unflatten(0, (2, 2)).repeat_interleave(3, 0).flatten(0, 1) for t in (k, v)]
        state[name] = torch.cat((q, *repeated))
    all_heads.load_state_dict(state)
    x = draw(2, 4, 12)
    assert_close(grouped(x), all_heads(x))


W, W_HEADS, W_Q, W_K, V = draw(4, 4), draw(3, 4, 4), draw(4, 7), draw(3, 4, 7), draw(7)
TEMPERATURES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def cosine(head: int, q: Tensor, k: Tensor) -> Tensor:
    return (q * k).sum() / (q.norm() * k.norm())


SCORES: dict[str, tuple[scores.Score, Compare]] = {
    "dot": (scores.dot(), dot),
    "cosine": (scores.cosine(0.3), lambda h, q, k: cosine(h, q, k) / 0.3),
    "cosine of each head": (scores.cosine(TEMPERATURES), lambda h, q, k: cosine(h, q, k) / TEMPERATURES[h]),
    "bilinear": (scores.bilinear(W), lambda h, q, k: q @ W @ k),
    "bilinear of each head": (scores.bilinear(W_HEADS), lambda h, q, k: q @ W_HEADS[h] @ k),
    "distance": (scores.distance(), lambda h, q, k: -(q - k).square().sum() / 2 / math.sqrt(4)),
    "additive": (scores.additive(W_Q, W_K, V), lambda h, q, k: (q @ W_Q + k @ W_K[h]).tanh() @ V),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(name):
    score, compare = SCORES[name]
    layer = filled(SelfAttention(12, 3, score=score, **DOUBLE))
    x, memory = draw(2, 4, 12).requires_grad_(), draw(2, 4, 12).requires_grad_()
    as_said(layer, (x,), plain(layer, x, x, compare=compare, mask=causal), mask=causal)
    cross = filled(CrossAttention(12, 3, score=score, norm="rms", **DOUBLE))
    as_said(cross, (x, memory), plain(cross, x, memory, compare=compare))
    by_heads = x[0].unflatten(-1, (3, 4)).transpose(0, 1)
    wanted = attended(by_heads, by_heads, by_heads, compare, None).transpose(0, 1).flatten(1)
    assert_close(SelfAttention(heads=3, score=score)(x[0]), wanted)
    assert f"score={score}" in repr(layer)


@pytest.mark.parametrize("heads", [1, 3])
def test_scores_that_learn(heads):
    """A module makes the score anew at each call; its parameters are the layer's."""
    x = draw(1, 4, 12).requires_grad_()
    layer = filled(SelfAttention(12, 3, score=Bilinear(4, heads=heads, **DOUBLE), **DOUBLE))
    weight = layer.get_parameter("score.weight").expand(3, 4, 4)
    as_said(layer, (x,), plain(layer, x, x, compare=lambda h, q, k: q @ weight[h] @ k))
    layer = filled(SelfAttention(12, 3, score=Additive(4, hidden=5, heads=heads, **DOUBLE), **DOUBLE))
    w_query, w_key, v = (layer.get_parameter(f"score.{name}").expand(3, *sizes) for name, sizes in
                         (("w_query", (4, 5)), ("w_key", (4, 5)), ("v", (5,))))  # fmt: skip
    as_said(layer, (x,), plain(layer, x, x, compare=lambda h, q, k: (q @ w_query[h] + k @ w_key[h]).tanh() @ v[h]))


class Halves(Position):
    """Turns by halving: whoever stands at p is multiplied by 2^-p."""

    def turn(self, x: Tensor, offset: int = 0) -> Tensor:
        return x * 0.5 ** torch.arange(offset, offset + x.shape[-2], dtype=x.dtype)[:, None]


def test_positions_turn_queries_and_keys():
    layer = filled(SelfAttention(6, 2, position=Halves(), output=False, **DOUBLE))
    x = draw(1, 4, 6)
    query, key, value = projected(layer, x[0], x[0])
    steps = 0.5 ** torch.arange(4, dtype=torch.float64)[:, None]
    wanted = attended(query * steps, key * steps, value, dot, None).transpose(0, 1).flatten(1)
    assert_close(layer(x)[0], wanted)
    given = SelfAttention(6, 2, output=False, **DOUBLE)
    given.load_state_dict(layer.state_dict())
    assert_close(given(x, position=layer.position)[0], wanted)  # one that is given at the call is used as its own
    assert_close(layer(x, position=Position())[0], attended(query, key, value, dot, None).transpose(0, 1).flatten(1))


def test_positions_add_to_scores():
    layer = filled(SelfAttention(6, 2, position=positions.alibi(2), output=False, **DOUBLE))
    x = draw(1, 4, 6)
    slopes = (2**-4, 2**-8)
    wanted = attended(*projected(layer, x[0], x[0]), dot, causal, lambda h, p, j: -slopes[h] * abs(p - j))
    assert_close(layer(x, mask=causal)[0], wanted.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_fewer_and_more_dimensions(kind):
    layer = filled(kind(6, 2, **DOUBLE))
    x, memory = draw(3, 2, 4, 6), draw(3, 2, 5, 6)

    def at(*where: int) -> Any:
        given = (x[where], memory[where])[: 1 if kind is SelfAttention else 2]
        return layer(*given, return_attention=True)

    keys = 4 if kind is SelfAttention else 5
    for where in ((), (1,), (1, 0)):
        y, A = at(*where)
        assert A.shape == (*x[where].shape[:-2], 2, 4, keys)
        for rest in itertools.product(*map(range, x[where].shape[:-2])):
            assert_close(y[rest], at(*where, *rest)[0])
            assert_close(A.to_dense()[rest], at(*where, *rest)[1].to_dense())


def test_what_a_padded_token_holds_reaches_nobody():
    layer = filled(SelfAttention(6, 2, **DOUBLE))
    x = draw(2, 3, 6)
    for rubbish in (1e30, math.inf, math.nan):
        longer = torch.cat((x, torch.full((2, 2, 6), rubbish, **DOUBLE)), 1)
        assert_close(layer(longer, mask=padding([3, 3]))[:, :3], layer(x))
    empty = layer(x, mask=padding([0, 3]))
    assert_close(empty[0], layer.out_proj.bias.expand(3, 6))  # who sees nobody finds nothing
    assert_close(empty[1], layer(x)[1])


def test_permuted_tokens_are_permuted_outputs():
    layer, x, order = filled(SelfAttention(6, 2, **DOUBLE)), draw(2, 5, 6), torch.tensor([3, 1, 4, 0, 2])
    assert_close(layer(x[:, order]), layer(x)[:, order])


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_pytorch():
    for ours, theirs in (
        (SelfAttention(8, 2), nn.MultiheadAttention(8, 2)),
        (SelfAttention(8, 2, bias=False), nn.MultiheadAttention(8, 2, bias=False)),
        (CrossAttention(8, 2), nn.MultiheadAttention(8, 2)),
        (CrossAttention(8, 2, memory_dim=6), nn.MultiheadAttention(8, 2, kdim=6, vdim=6)),
    ):
        x = torch.randn(3, 8, 8)
        memory = x if isinstance(ours, SelfAttention) else torch.randn(3, 5, getattr(ours, "memory_dim", 8))
        state = filled(theirs).state_dict()
        ours.load_state_dict(state, strict=True)
        theirs.load_state_dict({name: torch.zeros_like(t) for name, t in state.items()}, strict=True)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        theirs.batch_first = True
        found = ours(x) if isinstance(ours, SelfAttention) else ours(x, memory)
        assert_close(found, theirs(x, memory, memory, need_weights=False)[0])


def test_how_parameters_begin():
    torch.manual_seed(0)
    layer = SelfAttention(256, 4, kv_heads=2, norm="rms")
    bound = math.sqrt(6 / (256 + 512))
    assert 0.99 * bound < layer.in_proj_weight.abs().max() <= bound
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()
    assert layer.out_proj.weight.std() > 0.01
    before = layer.in_proj_weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.in_proj_weight)


def test_devices_and_dtypes():
    for layer in (SelfAttention(8, 2, norm="layer", **DOUBLE), CrossAttention(8, 2, memory_dim=6, norm="rms", **DOUBLE)):
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
    for layer in (SelfAttention(8, 2, norm="layer", device="meta"), CrossAttention(8, 2, memory_dim=6, device="meta")):
        assert {p.device.type for p in layer.parameters()} == {"meta"}


# -- matrices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The questions that backends are asked."""
    seen: list[str] = []

    def counting(read: Any) -> Any:
        def answer(self: Any, call: Any, readouts: Any, log_sum: Any) -> Any:
            seen.extend(type(readout).__name__ for readout in readouts)
            return read(self, call, readouts, log_sum)

        return answer

    for make in BACKENDS.values():
        monkeypatch.setattr(type(make()), "read", counting(type(make()).read))
    return seen


def test_a_matrix_costs_nothing_until_it_is_asked(asked):
    encoder, decoder = Encoder(8, 2, 2), Decoder(8, 2, 2)
    x = torch.randn(2, 5, 8)
    encoder(x)
    decoder(x, x)
    assert asked == ["Output"] * 6
    del asked[:]
    _, (first, _) = encoder(x, return_attention=True)
    decoder(x, x, return_attention=True)
    assert asked == ["Output"] * 6
    first.entropy()
    assert asked[6:] == ["Entropy"]


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_the_matrix_is_the_one_that_made_the_output(kv_heads):
    layer = filled(SelfAttention(12, 6, kv_heads=kv_heads, **DOUBLE))
    x = draw(2, 4, 12)
    y, A = layer(x, mask=causal, return_attention=True)
    *_, value = zip(*[projected(layer, row, row) for row in x], strict=True)
    v = torch.stack(value).repeat_interleave(1 if kv_heads is None else 3, 1)
    assert_close(layer.out_proj((A.to_dense() @ v).transpose(1, 2).flatten(2)), y)
    assert_close(layer(x, mask=causal), y)
    assert_close(A.entropy(), torch.special.entr(A.to_dense()).sum(-1))


def test_questions_are_part_of_the_loss():
    """The entropy's gradient reaches the layer's parameters, and is that of the stored matrix."""
    layer = filled(SelfAttention(6, 2, **DOUBLE))
    x = draw(2, 4, 6)
    _, A = layer(x, return_attention=True)
    A.entropy().sum().backward()
    query, key = (torch.stack(t) for t in list(zip(*[projected(layer, row, row) for row in x], strict=True))[:2])
    weights = (query @ key.mT / math.sqrt(3)).softmax(-1)
    (wanted,) = torch.autograd.grad(-(weights * weights.log()).sum(), layer.in_proj_weight)
    assert_close(layer.in_proj_weight.grad, wanted)


# -- dropout ----------------------------------------------------------------------------------------------------------


def test_weights_are_dropped_in_training_alone():
    torch.manual_seed(0)
    n, p = 128, 0.25
    x = torch.eye(n).expand(8, n, n)
    layer = SelfAttention(dropout=p)
    y, A = layer(x, return_attention=True)
    factors = y / A.to_dense()[:, 0]  # the values are the unit vectors: y is what became of the weights
    kept = factors > 0
    assert_close(factors[kept], torch.full_like(factors[kept], 1 / (1 - p)))
    share = kept.double().mean(0)
    assert abs(share.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())
    assert (share.mean(0) - (1 - p)).abs().max() < 6 * math.sqrt(p * (1 - p) / (8 * n))  # of each key
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(layer(x), y)  # drawn anew
    assert_close(A.sum(-1), torch.ones(8, 1, n))  # questions are about the weights before
    assert_close(torch.matmul(A, x[:, None])[:, 0], y)  # its products are the layer's
    assert A.drop.p == p
    quiet, B = layer.eval()(x, return_attention=True)
    assert B.drop is None
    assert_close(quiet, A.to_dense()[:, 0])


def test_dropout_follows_the_generator():
    layer, x = SelfAttention(6, 2, dropout=0.5), torch.randn(2, 4, 6)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    memory = CrossAttention(6, 2, dropout=0.5)
    assert not torch.equal(memory(x, x), memory(x, x))
    memory.eval()
    assert torch.equal(memory(x, x), memory(x, x))


def test_gradients_with_dropout_are_those_of_the_weights_that_were_kept():
    layer = filled(SelfAttention(6, 2, dropout=0.4, **DOUBLE))
    x = draw(1, 4, 6)
    y, A = layer(x, return_attention=True)
    query, key, value = projected(layer, x[0], x[0])
    factors = torch.matmul(A, torch.eye(4, **DOUBLE).expand(1, 2, 4, 4))[0].detach() / A.to_dense()[0].detach()
    weights = (query @ key.mT / math.sqrt(3)).softmax(-1) * factors
    wanted = (weights @ value).transpose(0, 1).flatten(1) @ layer.out_proj.weight.T + layer.out_proj.bias
    weight = torch.randn_like(wanted)
    got, due = (torch.autograd.grad((t * weight).sum(), list(layer.parameters())) for t in (y[0], wanted))
    for mine, other in zip(got, due, strict=True):
        assert_close(mine, other)


# -- caches -----------------------------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[], Position | None]] = {
    "none": lambda: None,
    "sinusoidal": lambda: positions.sinusoidal(),
    "learned": lambda: positions.learned(16, 12, **DOUBLE),
    "rotary": lambda: positions.rotary(),
    "alibi": lambda: positions.alibi(6),
    "relative": lambda: positions.relative(6, buckets=8, distance=6, **DOUBLE),
}
STEPS = ([1] * 7, [3, 1, 1, 2], [2, 5], [7])
SEEN = {"causal": causal, "window": causal & window(2, 0)}


@pytest.mark.parametrize("mask", SEEN)
@pytest.mark.parametrize("place", PLACES)
def test_an_encoder_step_by_step(place, mask):
    """Whatever came in one step or in many: each token's output is that of the whole sequence."""
    encoder = filled(Encoder(12, 6, 2, position=PLACES[place](), kv_heads=2, norm_first=True, hidden=8, **DOUBLE))
    x = draw(2, 7, 12)
    wanted = encoder(x, mask=SEEN[mask])
    if place != "none":
        nowhere = Encoder(12, 6, 2, kv_heads=2, norm_first=True, hidden=8, **DOUBLE)
        nowhere.load_state_dict({name: t for name, t in encoder.state_dict().items() if not name.startswith("position")})
        assert not torch.allclose(wanted, nowhere(x, mask=SEEN[mask]))
    for steps in STEPS:
        caches, found = encoder.caches(), []
        for new in x.split(steps, 1):
            y, attentions = encoder(new, mask=SEEN[mask], caches=caches, return_attention=True)
            found.append(y)
            assert attentions[1].shape == (2, 6, new.shape[1], caches[1].length)
        assert_close(torch.cat(found, 1), wanted)
        assert [cache.length for cache in caches] == [7, 7]


@pytest.mark.parametrize("place", PLACES)
def test_a_decoder_step_by_step(place):
    decoder = filled(Decoder(12, 6, 2, position=PLACES[place](), memory_dim=5, query_norm="layer", hidden=8, **DOUBLE))
    x, memory, known = draw(2, 7, 12), draw(2, 4, 5), padding([4, 2])
    wanted = decoder(x, memory, memory_mask=known)
    for steps in STEPS:
        caches, found = decoder.caches(), []
        for new in x.split(steps, 1):
            found.append(decoder(new, memory if not found else memory * math.nan, memory_mask=known, caches=caches))
        assert_close(torch.cat(found, 1), wanted)  # and the memory's keys and values were not computed again
        assert [(cache.own.length, cache.memory.length) for cache in caches] == [(7, 4), (7, 4)]


def test_a_batch_of_beginnings_of_different_length():
    """Padded on the left, as for generation: the mask grows with the keys."""
    encoder = filled(Encoder(12, 6, 2, position=positions.rotary(), hidden=8, **DOUBLE))
    x, keep = draw(2, 7, 12), torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    wanted = encoder(x, mask=causal & padding(keep=keep))
    caches, found = encoder.caches(), []
    for new in x.split([3, 2, 1, 1], 1):
        seen = caches[0].length + new.shape[1]
        found.append(encoder(new, mask=causal & padding(keep=keep[:, :seen]), caches=caches))
    assert_close(torch.cat(found, 1), wanted)
    assert_close(wanted[1, 2:], encoder(x[1:, 2:], mask=causal)[0])  # rotary knows distances alone


def test_a_layer_by_itself_goes_on_from_its_cache():
    layer, x, cache = filled(SelfAttention(6, 2, **DOUBLE)), draw(1, 5, 6), Cache()
    found = [layer(new, mask=causal, cache=cache, return_attention=True) for new in x.split(2, 1)]
    wanted, A = layer(x, mask=causal, return_attention=True)
    assert_close(torch.cat([y for y, _ in found], 1), wanted)
    for n, (_, B) in enumerate(found):  # what was handed out stays what it was
        dense = A.to_dense()[:, :, 2 * n : 2 * n + 2]
        assert_close(B.to_dense(), dense[..., : B.shape[-1]])
    assert repr(Cache()) == "Cache(empty)"
    assert repr(cache) == "Cache(1, 2, 5, 3)"
    weightless = Cache()
    found = [SelfAttention()(new, mask=causal, cache=weightless) for new in x.split(1, 1)]
    assert_close(torch.cat(found, 1), SelfAttention()(x, mask=causal))


@pytest.mark.parametrize("rows", [[1, 0], [2, 2, 0, 1], [1]])
def test_rows_of_a_cache_are_selected(rows):
    decoder = filled(Decoder(12, 6, 2, hidden=8, kv_heads=3, position=positions.rotary(), **DOUBLE))
    x, memory, rows = draw(3, 5, 12), draw(3, 4, 12), torch.tensor(rows)
    wanted = decoder(x[rows], memory[rows])[:, 3:]
    caches = decoder.caches()
    decoder(x[:, :3], memory, caches=caches)
    for cache in caches:
        cache.select(rows)
    assert_close(decoder(x[rows, 3:], memory[rows], caches=caches), wanted)
    empty = Cache()
    empty.select(rows)
    assert empty.length == 0


def test_caches_carry_gradients():
    layer, x = filled(SelfAttention(6, 2, **DOUBLE)), draw(1, 4, 6).requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x, mask=causal).square().sum(), x)
    cache = Cache()
    found = torch.cat([layer(new, mask=causal, cache=cache) for new in x.split(1, 1)], 1)
    assert_close(torch.autograd.grad(found.square().sum(), x)[0], wanted)


# -- one query at a time ----------------------------------------------------------------------------------------------

ROWS: dict[str, scores.Score | None] = {
    "none": None,
    "dot": scores.dot(),
    "cosine": scores.cosine(0.3),
    "bilinear": scores.bilinear(draw(6, 6)),
    "distance": scores.distance(),
    "additive": scores.additive(draw(6, 7), draw(6, 7), draw(7)),
    "additive, projected": scores.additive(draw(6, 6), None, draw(6)),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_what_one_query_is_given_is_its_row_of_the_matrix(name, padded):
    """A decoding computes it without a matrix; output and gradients are those of A @ v."""
    keep = torch.tensor([[True] * 5, [True, False, True, True, False]]) if padded else None
    states, query = draw(2, 5, 6).requires_grad_(), draw(2, 1, 6).requires_grad_()
    memory = Memory(states, states * 1.5, keep, ROWS[name])
    found, wanted = memory.contexts(query), torch.matmul(memory.matrix(query), states[:, None])[:, 0]
    assert_close(found, wanted)
    weight = torch.randn_like(found)
    got, due = (torch.autograd.grad((y * weight).sum(), (query, states), retain_graph=True) for y in (found, wanted))
    assert_close(got, due)
    assert_close(memory.contexts(torch.cat((query, query), 1)), torch.cat((wanted, wanted), 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_in_sixteen_bits_is_computed_in_thirty_two(dtype):
    states, query = draw(2, 5, 6).to(dtype), draw(2, 1, 6).to(dtype)
    memory = Memory(states, states, None, None)
    wanted = torch.matmul(memory.matrix(query), states[:, None])[:, 0]
    assert memory.contexts(query).dtype == dtype
    assert_close(memory.contexts(query), wanted, rtol=torch.finfo(dtype).eps, atol=1e-3)
    with torch.autocast("cpu", dtype=dtype):
        assert_close(memory.contexts(query), wanted, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_a_score_that_does_not_fit_one_query_says_so():
    memory = Memory(torch.zeros(2, 5, 6), torch.zeros(2, 5, 6), None, scores.bilinear(torch.zeros(3, 6)))
    with pytest.raises(ShapeError, match="weight of shape"):
        memory.contexts(torch.zeros(2, 1, 6))
