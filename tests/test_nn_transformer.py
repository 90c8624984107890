"""Encoder, decoder and Transformer beside PyTorch's own: the same numbers, gradients and state dicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import regard
from regard.masks import Mask, causal, causal_from, dense, padding
from regard.nn import Decoder, DecoderLayer, Encoder, EncoderLayer, Transformer, gated

OWN = ("none", "causal", "padding", "causal & padding", "pairs", "heads", "pairs & padding")  # masks among own tokens
OTHER = ("none", "causal", "padding", "pairs", "heads", "pairs & padding")  # masks over a memory


@dataclass(frozen=True)
class Masks:
    """One mask in both conventions: a value in which True = may attend, and PyTorch's tensors in which True hides."""

    ours: Mask | None
    pairs: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class Sizes:
    """What a layer is made of and what it is given."""

    heads: int
    dim: int
    hidden: int
    layers: int
    deeper: int
    batch: int
    targets: int
    sources: int
    options: dict[str, Any]
    final: bool

    def ours(self, **more: Any) -> dict[str, Any]:
        return {"hidden": self.hidden, **self.options, **more}

    def theirs(self, **more: Any) -> dict[str, Any]:
        names = {"eps": "layer_norm_eps"}
        options = {names.get(name, name): value for name, value in self.options.items()}
        return {"d_model": self.dim, "nhead": self.heads, "dim_feedforward": self.hidden, "dropout": 0.0, "batch_first": True,
                **options, **more}  # fmt: skip

    def norm(self) -> nn.LayerNorm | None:
        """PyTorch's stacks are given their last norm."""
        bias, eps, dtype = (self.options[name] for name in ("bias", "eps", "dtype"))
        return nn.LayerNorm(self.dim, eps, bias=bias, dtype=dtype) if self.final else None

    def embeddings(self, tokens: int) -> Tensor:
        return torch.randn(self.batch, tokens, self.dim, dtype=self.options["dtype"], requires_grad=True)


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    def number(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    torch.manual_seed(number(0, 2**16))
    heads = number(1, 3)
    options = {
        "activation": draw(st.sampled_from(("relu", "gelu"))),
        "norm_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "eps": draw(st.sampled_from((1e-5, 1e-2))),
        "dtype": draw(st.sampled_from((torch.float32, torch.float64))),
    }
    return Sizes(
        heads, heads * number(2, 4), number(1, 9), number(1, 2), number(1, 2), number(1, 3), number(1, 6), number(1, 6),
        options, draw(st.booleans()),
    )  # fmt: skip


def both(kind: str, of: Sizes, queries: int, keys: int) -> Masks:
    """A mask of that kind, drawn from PyTorch's generator; rows and whole sequences may be hidden."""
    later = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    lengths = torch.randint(0, keys + 1, (of.batch,))
    hidden = torch.arange(keys) >= lengths[:, None]
    pairs = torch.rand(queries, keys) < 0.3
    each = torch.rand(of.batch, of.heads, queries, keys) < 0.3
    return {
        "none": lambda: Masks(None),
        "causal": lambda: Masks(causal if queries == keys else causal_from(0), later),
        "padding": lambda: Masks(padding(lengths), None, hidden),
        "causal & padding": lambda: Masks(causal & padding(lengths), later, hidden),
        "pairs": lambda: Masks(dense(~pairs), pairs),
        "heads": lambda: Masks(dense(~each), each.flatten(0, 1)),
        "pairs & padding": lambda: Masks(dense(~pairs) & padding(lengths), pairs, hidden),
    }[kind]()


def filled(module: nn.Module) -> nn.Module:
    """Every parameter drawn: norms and biases too are no longer what a layer begins with."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (parameter.ndim == 1) * 0.3)
    return module


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    """Equal up to the rounding of a few operations on numbers of that size."""
    budget = 3e-4 if wanted.dtype == torch.float32 else 1e-10
    size = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
    error = float((found - wanted).detach().abs().max()) / size if wanted.numel() else 0.0
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert error <= budget, f"{what}: {error}"


def beside(ours: nn.Module, theirs: nn.Module, inputs: list[Tensor], our_masks: Any, their_masks: Any) -> None:
    """The same state dict in both directions, output, and gradients of inputs and parameters."""
    state = filled(theirs).state_dict()
    assert {name: t.shape for name, t in ours.state_dict().items()} == {name: t.shape for name, t in state.items()}
    ours.load_state_dict(state, strict=True)
    fresh = {name: torch.zeros_like(t) for name, t in state.items()}
    theirs.load_state_dict(fresh, strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)

    again = [x.detach().clone().requires_grad_() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's: nested tensors that it does not use
        wanted = theirs(*again, **their_masks)
    found = ours(*inputs, **our_masks)
    assert found.isfinite().all()
    known = wanted.detach().isfinite()
    same(found[known], wanted[known], "output")
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    for x in (*inputs, *ours.parameters()):
        assert x.grad is not None
        assert x.grad.isfinite().all()
    if not known.all():
        return  # where PyTorch has NaN, its gradients are NaN throughout
    for x, y in zip(inputs, again, strict=True):
        same(x.grad, y.grad, "gradient of an input")
    found_grads = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        same(found_grads[name].grad, parameter.grad, f"gradient of {name}")


def draws(count: int) -> settings:
    return settings(max_examples=count, deadline=None)


@draws(130)
@given(sizes(), st.sampled_from(OWN))
def test_encoder_layer(of: Sizes, kind: str) -> None:
    m = both(kind, of, of.targets, of.targets)
    ours = EncoderLayer(of.dim, of.heads, **of.ours())
    theirs = nn.TransformerEncoderLayer(**of.theirs())
    beside(ours, theirs, [of.embeddings(of.targets)], {"mask": m.ours}, {"src_mask": m.pairs, "src_key_padding_mask": m.keys})


@draws(130)
@given(sizes(), st.sampled_from(OWN), st.sampled_from(OTHER))
def test_decoder_layer(of: Sizes, kind: str, other: str) -> None:
    own, memory = both(kind, of, of.targets, of.targets), both(other, of, of.targets, of.sources)
    beside(
        DecoderLayer(of.dim, of.heads, **of.ours()),
        nn.TransformerDecoderLayer(**of.theirs()),
        [of.embeddings(of.targets), of.embeddings(of.sources)],
        {"mask": own.ours, "memory_mask": memory.ours},
        decoder_masks(own, memory),
    )


def decoder_masks(own: Masks, memory: Masks) -> dict[str, Tensor | None]:
    return {"tgt_mask": own.pairs, "tgt_key_padding_mask": own.keys, "memory_mask": memory.pairs,
            "memory_key_padding_mask": memory.keys}  # fmt: skip


@draws(110)
@given(sizes(), st.sampled_from(OWN))
def test_encoder(of: Sizes, kind: str) -> None:
    m = both(kind, of, of.targets, of.targets)
    ours = Encoder(of.dim, of.heads, of.layers, **of.ours(final_norm=of.final))
    theirs = stack(nn.TransformerEncoder, nn.TransformerEncoderLayer(**of.theirs()), of, enable_nested_tensor=False)
    beside(ours, theirs, [of.embeddings(of.targets)], {"mask": m.ours}, {"mask": m.pairs, "src_key_padding_mask": m.keys})


@draws(110)
@given(sizes(), st.sampled_from(OWN), st.sampled_from(OTHER))
def test_decoder(of: Sizes, kind: str, other: str) -> None:
    own, memory = both(kind, of, of.targets, of.targets), both(other, of, of.targets, of.sources)
    beside(
        Decoder(of.dim, of.heads, of.layers, **of.ours(final_norm=of.final)),
        stack(nn.TransformerDecoder, nn.TransformerDecoderLayer(**of.theirs()), of),
        [of.embeddings(of.targets), of.embeddings(of.sources)],
        {"mask": own.ours, "memory_mask": memory.ours},
        decoder_masks(own, memory),
    )


@draws(110)
@given(sizes(), st.sampled_from(OWN), st.booleans())
def test_transformer(of: Sizes, kind: str, padded: bool) -> None:
    own, source = both(kind, of, of.targets, of.targets), both("padding" if padded else "none", of, of.sources, of.sources)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's: nested tensors that it does not use
        theirs = nn.Transformer(**of.theirs(num_encoder_layers=of.layers, num_decoder_layers=of.deeper))
    masks = {"src_key_padding_mask": source.keys, "memory_key_padding_mask": source.keys, "tgt_mask": own.pairs,
             "tgt_key_padding_mask": own.keys}  # fmt: skip
    beside(
        Transformer(of.dim, of.heads, of.layers, **of.ours(decoder_layers=of.deeper)),
        theirs,
        [of.embeddings(of.sources), of.embeddings(of.targets)],
        {"source_mask": source.ours, "mask": own.ours},
        masks,
    )


def stack(kind: type[nn.Module], layer: nn.Module, of: Sizes, **more: Any) -> nn.Module:
    return kind(layer, of.layers, norm=of.norm(), **more)


# -- what the draws leave out -----------------------------------------------------------------------------------------


def test_the_masks_that_are_not_given():
    """An encoder sees everything; a decoder is causal unless told otherwise."""
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    encoder, decoder, model = Encoder(8, 2, 1), Decoder(8, 2, 1), Transformer(8, 2, 1)
    assert torch.equal(encoder(x), encoder(x, mask=regard.masks.full))
    assert torch.equal(decoder(x, memory), decoder(x, memory, mask=causal))
    assert not torch.allclose(decoder(x, memory), decoder(x, memory, mask=None))
    assert torch.equal(model(memory, x), model(memory, x, mask=causal))
    assert torch.equal(DecoderLayer(8, 2).eval()(x, memory).isfinite(), torch.ones(2, 5, 8, dtype=torch.bool))


def test_pytorch_without_gradients_takes_another_way_to_the_same_numbers():
    """Its fused path for inference turns padding into nested tensors, and their padding into zeros."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    theirs = filled(nn.TransformerEncoder(layer, 2)).eval()
    ours = Encoder(8, 2, 2, hidden=16, dropout=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    x, keep = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs(x, src_key_padding_mask=~keep)
    assert not wanted[~keep].any()  # it went there
    same(ours(x, mask=padding(keep=keep))[keep], wanted[keep], "output")


@pytest.mark.parametrize("norm_first", [False, True])
def test_last_norm(norm_first):
    assert (Encoder(8, 2, 1, norm_first=norm_first).norm is not None) == norm_first
    assert (Decoder(8, 2, 1, norm_first=norm_first).norm is not None) == norm_first
    model = Transformer(8, 2, 1, norm_first=norm_first)
    assert model.encoder.norm is not None
    assert model.decoder.norm is not None
    assert isinstance(Encoder(8, 2, 1, norm="rms", final_norm=True, eps=0.5).norm, nn.RMSNorm)
    assert Encoder(8, 2, 1, norm="rms", final_norm=True, eps=0.5).norm.eps == 0.5


def feedforwards() -> Iterator[Any]:
    plain = {
        "relu": lambda a: a.clamp_min(0),
        "gelu": lambda a: a * 0.5 * (1 + torch.erf(a / 2**0.5)),
        "gelu_tanh": lambda a: 0.5 * a * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3))),
        "silu": lambda a: a / (1 + torch.exp(-a)),
        "sigmoid": lambda a: 1 / (1 + torch.exp(-a)),
    }
    for name, formula in plain.items():
        yield pytest.param(name, 1, formula, id=name)
        yield pytest.param(gated(name), 2, lambda a, f=formula: f(a[..., :6]) * a[..., 6:], id=f"gated {name}")


@pytest.mark.parametrize(("activation", "times", "formula"), list(feedforwards()))
def test_activations(activation, times, formula):
    layer = filled(EncoderLayer(4, 2, hidden=6, activation=activation, norm_first=True, dtype=torch.float64))
    assert layer.linear1.out_features == 6 * times
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.self_attn.parameters():
            parameter.zero_()  # what goes around attention is all there is
        given = layer.norm2(x)
        hidden = formula(given @ layer.linear1.weight.T + layer.linear1.bias)
        wanted = x + hidden @ layer.linear2.weight.T + layer.linear2.bias
        same(layer(x), wanted, "output")


@pytest.mark.parametrize("norm_first", [False, True])
def test_root_mean_square_norms(norm_first):
    layer = filled(EncoderLayer(4, 2, hidden=6, norm="rms", norm_first=norm_first, eps=1e-3, bias=False, dtype=torch.float64))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight

    def feedforward(x: Tensor) -> Tensor:
        return (x @ layer.linear1.weight.T).relu() @ layer.linear2.weight.T

    x, first, second = torch.randn(2, 3, 4, dtype=torch.float64), layer.norm1.weight, layer.norm2.weight
    if norm_first:
        y = x + layer.self_attn(norm(x, first))
        wanted = y + feedforward(norm(y, second))
    else:
        y = norm(x + layer.self_attn(x), first)
        wanted = norm(y + feedforward(y), second)
    same(layer(x), wanted, "output")


def test_dropout_is_where_pytorch_has_it():
    """With one seed PyTorch's masks differ from ours: the averages over many draws agree."""
    torch.manual_seed(0)
    theirs = filled(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True, norm_first=True))
    ours = EncoderLayer(8, 2, hidden=16, dropout=0.3, norm_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 8).expand(20_000, -1, -1)
    with torch.no_grad():
        found, wanted = ours(x), theirs(x)
    assert ((found.mean(0) - wanted.mean(0)).abs() / (wanted.std(0) / 20_000**0.5 + 1e-6)).max() < 6
    assert (found.std(0) / wanted.std(0) - 1).abs().max() < 0.05
    assert torch.equal(ours.eval()(x[:2]), ours(x[:2]))


def test_layers_after_layers():
    """An encoder is its layers, and each layer's matrix is that of its own input."""
    encoder = filled(Encoder(8, 2, 3, hidden=16, final_norm=True, norm_first=True))
    x = torch.randn(2, 5, 8)
    y, attentions = encoder(x, mask=causal, return_attention=True)
    for layer, A in zip(encoder.layers, attentions, strict=True):
        x, own = layer(x, mask=causal, return_attention=True)
        same(A.to_dense(), own.to_dense(), "weights")
        assert own.shape == (2, 2, 5, 5)
    assert torch.equal(y, encoder.norm(x))


def test_memories_of_another_size():
    decoder = Decoder(8, 2, 2, memory_dim=6, hidden=16)
    y, attentions = decoder(torch.randn(2, 5, 8), torch.randn(2, 3, 6), memory_mask=padding([3, 1]), return_attention=True)
    assert y.shape == (2, 5, 8)
    for layer in attentions:
        assert layer.own.shape == (2, 2, 5, 5)
        assert not layer.memory.to_dense()[1, :, :, 1:].any()


def test_padding_changes_nothing():
    """What stands in padded tokens, and how many there are, reaches no other token."""
    torch.manual_seed(0)
    model = filled(Transformer(8, 2, 2, hidden=16))
    source, target = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    wanted = model(source, target)
    rubbish = torch.full((1, 3, 8), 1e4)
    longer = torch.cat((source, rubbish), 1)
    same(model(longer, target, source_mask=padding([4])), wanted, "output")
    same(model.encoder(longer, mask=padding([4]))[:, :4], model.encoder(source), "encoder")
    same(model.decoder(torch.cat((target, rubbish), 1), source)[:, :3], model.decoder(target, source), "decoder")


def test_arguments_are_shown():
    layer = repr(DecoderLayer(8, 4, memory_dim=6, kv_heads=2, dropout=0.1, bias=False, query_norm="rms"))
    assert "dim=8, heads=4, kv_heads=2, bias=False, dropout=0.1" in layer
    assert "dim=8, memory_dim=6, heads=4, kv_heads=2, bias=False, dropout=0.1" in layer
    assert layer.count("RMSNorm((2,)") == 4
    assert "activation=gated(activation='silu'), norm_first=True" in repr(Encoder(8, 2, 1, activation=gated(), norm_first=True))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: torch.nn.TransformerEncoderLayer(16, 4, batch_first=True), lambda: EncoderLayer(16, 4, hidden=2048)),
        (lambda: torch.nn.TransformerDecoderLayer(16, 4, batch_first=True), lambda: DecoderLayer(16, 4, hidden=2048)),
    ],
)
def test_parameters_come_in_the_order_of_pytorch_so_that_an_optimizer_s_state_fits(theirs, ours):
    def listed(layer: torch.nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, parameter.shape) for name, parameter in layer.named_parameters()]

    assert listed(ours()) == listed(theirs())
