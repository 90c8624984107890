"""regard's MultiheadAttention against PyTorch's: numbers, gradients, state; and PyTorch's masks as masks of regard."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import regard
from regard import masks
from regard.nn.multihead import MultiheadAttention
from regard.readouts.output import Output

Theirs = torch.nn.MultiheadAttention
KINDS = (None, "bool", "hiding", "float", "learned")  # of a mask; hiding: floats that are 0 or -inf


@dataclass(frozen=True)
class Case:
    """A layer and what it is given."""

    options: dict[str, Any]
    inputs: tuple[Tensor, Tensor, Tensor]
    given: dict[str, Any]
    seed: int

    @property
    def extra(self) -> int:
        return self.options["add_bias_kv"] + self.options["add_zero_attn"]

    def layer(self, kind: type[Theirs]) -> Theirs:
        """With biases that are not zero."""
        torch.manual_seed(self.seed)
        made = kind(**self.options)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith("bias"):
                    parameter.copy_(torch.randn(parameter.shape))
        return made

    def leaves(self) -> tuple[list[Tensor], dict[str, Any]]:
        """Inputs and masks as new leaves; what was one tensor stays one."""
        new = {id(x): x.detach().clone().requires_grad_() for x in self.inputs}
        changed = {n: x.detach().clone().requires_grad_(x.requires_grad) for n, x in self.given.items() if torch.is_tensor(x)}
        return [new[id(x)] for x in self.inputs], self.given | changed


def mask_of(draw: Any, kind: str | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    if kind is None:
        return None
    if kind == "causal":
        hidden = torch.ones(shape, dtype=torch.bool).triu(1)
    else:
        hidden = torch.rand(shape) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    if kind == "bool" or (kind == "causal" and draw(st.booleans())):
        return hidden
    numbers = torch.zeros(shape, dtype=dtype) if kind in ("hiding", "causal") else 2 * torch.randn(shape, dtype=dtype)
    if kind == "float" and draw(st.booleans()):
        return numbers
    return numbers.masked_fill(hidden, -torch.inf).requires_grad_(kind == "learned")


@st.composite
def cases(draw: Any) -> Case:
    seed = draw(st.integers(0, 2**20))
    torch.manual_seed(seed)
    heads, dtype = draw(st.integers(1, 4)), draw(st.sampled_from([torch.float32, torch.float64]))
    same = draw(st.sampled_from(["none", "key and value", "all"]))
    embed = heads * draw(st.integers(1, 5))
    kdim, vdim = (None, None) if same == "all" else (draw(st.one_of(st.none(), st.integers(1, 6))) for _ in "kv")
    vdim = kdim if same == "key and value" else vdim
    options = {"embed_dim": embed, "num_heads": heads, "kdim": kdim, "vdim": vdim, "dtype": dtype}
    options |= {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    batch, queries, keys = draw(st.sampled_from([None, 1, 2, 3])), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    keys = queries if same == "all" else keys

    def tokens(count: int, dim: int | None) -> Tensor:
        sizes = (count,) if batch is None else (batch, count) if options["batch_first"] else (count, batch)
        return torch.randn(*sizes, embed if dim is None else dim, dtype=dtype)

    query, key, value = tokens(queries, None), tokens(keys, kdim), tokens(keys, vdim)
    inputs = {"none": (query, key, value), "key and value": (query, key, key), "all": (query, query, query)}[same]
    pairs = draw(st.sampled_from([*KINDS, "causal"]))
    shape = (queries, keys) if draw(st.booleans()) else ((batch or 1) * heads, queries, keys)
    attn_mask = mask_of(draw, pairs, shape, dtype)
    padding = mask_of(draw, draw(st.sampled_from(KINDS)), (keys,) if batch is None else (batch, keys), dtype)
    given = {
        "attn_mask": attn_mask,
        "key_padding_mask": padding,
        "need_weights": draw(st.booleans()),
        "average_attn_weights": draw(st.booleans()),
        "is_causal": pairs == "causal" and draw(st.booleans()),
    }
    return Case(options, inputs, given, seed)


def safe_softmax(scores: Tensor, dim: int) -> Tensor:
    """0 where nothing is seen."""
    empty = (scores == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0), dim).masked_fill(empty, 0)


def asked(layer: Theirs, inputs: list[Tensor], given: dict[str, Any], patch: Any = None) -> tuple[Tensor, Tensor | None]:
    """patch: a monkeypatch context, in which PyTorch's own rows that see nothing are 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched")
        if patch is None:
            return layer(*inputs, **given)
        patch.setattr(torch.nn.functional, "softmax", safe_softmax)
        output, weights = layer(*inputs, **given | {"need_weights": True})
        return output, weights if given["need_weights"] else None


def pulled(layer: Theirs, case: Case, **asking: Any) -> tuple[tuple[Tensor, Tensor | None], list[Tensor]]:
    """The answers, and the gradients of inputs, masks and parameters."""
    inputs, given = case.leaves()
    output, weights = asked(layer, inputs, given, **asking)
    generator = torch.Generator().manual_seed(case.seed)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in (output, weights) if x is not None)
    wanted = [*{id(x): x for x in inputs}.values(), *(x for x in given.values() if torch.is_tensor(x) and x.requires_grad)]
    wanted += layer.parameters()
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return (output.detach(), None if weights is None else weights.detach()), [
        torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)
    ]


def near(found: Tensor, due: Tensor, factor: float = 200) -> None:
    eps = torch.finfo(due.dtype).eps * factor
    assert_close(found, due, rtol=eps, atol=eps * max(1.0, due.abs().max().item() if due.numel() else 0))


@settings(max_examples=600)
@given(cases())
def test_numbers_and_gradients_are_those_of_pytorch(case):
    theirs, ours = case.layer(Theirs), case.layer(MultiheadAttention)
    hint = case.given["is_causal"] and not case.extra  # PyTorch's kernel hides the extra keys from all but the last queries
    reference = Case(case.options, case.inputs, case.given | {"is_causal": hint}, case.seed)
    (output, weights), gradients = pulled(ours, case)
    with pytest.MonkeyPatch.context() as patch:
        (due, due_weights), due_gradients = pulled(theirs, reference, patch=patch)
    (raw, raw_weights), raw_gradients = pulled(theirs, reference)

    near(output, due)
    near(torch.where(raw.isnan(), output, raw), output)
    assert (weights is None) == (raw_weights is None) == (not case.given["need_weights"])
    if weights is not None:
        assert weights.dtype == raw_weights.dtype
        near(weights, due_weights)
        near(torch.where(raw_weights.isnan(), weights, raw_weights), weights)
    for found, wanted in zip(gradients, due_gradients, strict=True):
        near(found, wanted, 2000)
    if not raw.isnan().any():
        for found, wanted in zip(gradients, raw_gradients, strict=True):
            if not wanted.isnan().any():
                near(found, wanted, 2000)


@settings(max_examples=200)
@given(cases())
def test_evaluation_without_gradients_is_that_of_pytorch(case):
    """PyTorch's fast path."""
    theirs, ours = case.layer(Theirs).eval(), case.layer(MultiheadAttention).eval()
    hint = case.given["is_causal"] and not case.extra
    with torch.no_grad():
        found, weights = asked(ours, list(case.inputs), case.given)
        raw, raw_weights = asked(theirs, list(case.inputs), case.given | {"is_causal": hint})
        assert found.isfinite().all()
        near(torch.where(raw.isnan(), found, raw), found)
        if weights is not None:
            near(torch.where(raw_weights.isnan(), weights, raw_weights), weights)


@settings(max_examples=100)
@given(cases())
def test_state_goes_both_ways_and_begins_as_that_of_pytorch(case):
    torch.manual_seed(case.seed)
    theirs = Theirs(**case.options)
    torch.manual_seed(case.seed)
    ours = MultiheadAttention(**case.options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], parameter)
    for source, target in ((case.layer(Theirs), ours), (case.layer(MultiheadAttention), theirs)):
        target.load_state_dict(source.state_dict(), strict=True)
        assert all(torch.equal(p, target.state_dict()[name]) for name, p in source.state_dict().items())


@settings(max_examples=100)
@given(cases())
def test_lazy_weights_are_the_stored_ones(case):
    layer = case.layer(MultiheadAttention)
    given = case.given | {"need_weights": True, "average_attn_weights": True}
    output, mean = layer(*case.inputs, **given)
    again, each = layer(*case.inputs, **given | {"average_attn_weights": False})
    same, A = layer(*case.inputs, **given | {"need_weights": "lazy"})
    assert isinstance(A, regard.Attention)
    assert A.shape == each.shape
    assert torch.equal(output, again)
    assert torch.equal(output, same)
    near(A.to_dense().mean(-3), mean)
    near(A.mean(-3), mean)
    near(A.to_dense(), each)
    keys = case.inputs[1]
    assert A.shape[-1] == keys.shape[-2 if keys.ndim == 2 or case.options["batch_first"] else 0] + case.extra


# -- what the layer makes of masks ------------------------------------------------------------------------------------


def later(n: int) -> Tensor:
    return torch.nn.Transformer.generate_square_subsequent_mask(n)


@pytest.mark.parametrize(
    ("given", "expression"),
    [
        ({}, "full"),
        ({"attn_mask": later(5)}, "causal_from(0)"),
        ({"attn_mask": later(5) < 0}, "causal_from(0)"),
        ({"attn_mask": later(5), "is_causal": True}, "causal_from(0)"),
        ({"attn_mask": torch.zeros(5, 5).triu_(1).expand(4, 5, 5), "is_causal": True}, "causal_from(0)"),
        ({"key_padding_mask": later(5)[:2]}, "padding(keep of shape (2, 5))"),
        ({"key_padding_mask": later(5)[:2] < 0, "attn_mask": later(5)}, "causal_from(0) & padding(keep of shape (2, 5))"),
        (
            {"key_padding_mask": later(5)[:2] < 0, "attn_mask": later(5), "is_causal": True},
            "causal_from(0) & padding(keep of shape (2, 5))",
        ),
        ({"attn_mask": later(5).T}, "dense(5×5)"),
        ({"attn_mask": later(5).expand(4, 5, 5)}, "dense(2×2×5×5)"),
    ],
)  # fmt: skip
def test_masks_that_only_hide_stay_masks(given, expression):
    """So that PyTorch's kernel can be told of those it knows."""
    x = torch.randn(2, 5, 8)
    layer = MultiheadAttention(8, 2, batch_first=True)
    _, A = layer(x, x, x, need_weights="lazy", **given)
    assert A.call.bias is None
    assert str(A.call.mask) == expression
    fused = regard.backends.named("fused")
    assert bool(fused.why_not(A.call, Output(torch.randn(2, 2, 5, 4)))) == ("dense" in expression)


def test_masks_that_add_are_biases_and_are_learned():
    x, bias = torch.randn(2, 5, 8), torch.zeros(5, 5, requires_grad=True)
    layer = MultiheadAttention(8, 2, batch_first=True)
    output, A = layer(x, x, x, attn_mask=bias, need_weights="lazy")
    assert str(A.call.bias) == "dense(5×5)"
    output.square().sum().backward()
    assert bias.grad.abs().min() > 0


def test_rows_that_see_nothing_are_the_bias_of_the_output():
    x = torch.randn(2, 5, 8, requires_grad=True)
    layer = MultiheadAttention(8, 2, batch_first=True)
    torch.nn.init.normal_(layer.out_proj.bias)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[1] = True
    output, weights = layer(x, x, x, key_padding_mask=hidden)
    assert torch.equal(weights[1], torch.zeros(5, 5))
    assert_close(output[1], layer.out_proj.bias.expand(5, 8))
    output.sum().backward()
    assert x.grad.isfinite().all()
    assert torch.equal(x.grad[1], torch.zeros(5, 8))


@settings(max_examples=100)
@given(st.data())
def test_from_torch_is_the_inverse(data):
    torch.manual_seed(data.draw(st.integers(0, 999)))
    batch, heads, queries, keys = (data.draw(st.integers(1, 4)) for _ in range(4))
    pairs = data.draw(st.sampled_from([None, "causal", (queries, keys), (batch * heads, queries, keys)]))
    keep = data.draw(st.sampled_from([None, (keys,), (batch, keys)]))
    attn_mask = None if pairs is None else torch.rand(pairs if pairs != "causal" else (queries, keys)) < 0.5
    attn_mask = torch.ones(queries, keys, dtype=torch.bool).triu(1) if pairs == "causal" else attn_mask
    padded = None if keep is None else torch.rand(keep) < 0.5
    due = torch.ones(batch, heads, queries, keys, dtype=torch.bool)
    if attn_mask is not None:
        due &= ~(attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(batch, heads, queries, keys))
    if padded is not None:
        due &= ~(padded if padded.ndim == 1 else padded[:, None, None])
    mask = masks.from_torch(attn_mask, padded, heads=heads)
    assert torch.equal(mask.to_dense(queries, keys, batch, heads), due)
    if pairs == "causal":
        assert mask.parts()[:1] in ((), (masks.causal_from(0),))
        assert not mask.opaque
    if pairs is None:
        assert not mask.opaque  # nothing is laid out in pairs


@pytest.mark.parametrize(
    ("kind", "call", "fragments"),
    [
        (
            TypeError,
            lambda: masks.from_torch(later(3)),
            ["from_torch: attn_mask must be boolean, True = may not attend; got torch.float32 of shape (3, 3)", "biases.dense"],
        ),
        (
            TypeError,
            lambda: masks.from_torch(key_padding_mask=torch.zeros(2, 3, dtype=torch.uint8)),
            ["from_torch: key_padding_mask must be boolean", "If 1 means may not attend, give tensor.bool()."],
        ),
        (TypeError, lambda: masks.from_torch([[True]]), ["from_torch(attn_mask): needs a boolean tensor; got list."]),
        (
            regard.ShapeError,
            lambda: masks.from_torch(torch.ones(2, 3, 4) > 0),
            ["from_torch: an attn_mask of shape (2, 3, 4) is (batch · heads, queries, keys): give heads=… as well."],
        ),
        (
            regard.ShapeError,
            lambda: masks.from_torch(torch.ones(4, 3, 4) > 0, heads=3),
            ["from_torch: heads must divide the first dimension", "got heads 3 and shape (4, 3, 4)."],
        ),
        (
            regard.ShapeError,
            lambda: masks.from_torch(torch.ones(4) > 0),
            ["from_torch: attn_mask must be (queries, keys)", "got shape (4,).", "key_padding_mask=tensor"],
        ),
        (
            regard.ShapeError,
            lambda: masks.from_torch(key_padding_mask=torch.ones(4, 3, 4) > 0),
            ["from_torch(key_padding_mask): needs 1 to 2 dimensions; got 3"],
        ),
        (
            ValueError,
            lambda: masks.from_torch(torch.ones(4, 3, 4) > 0, heads=0),
            ["from_torch: heads must be at least 1; got 0."],
        ),
    ],
)  # fmt: skip
def test_masks_that_are_none_are_named(kind, call, fragments):
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    for fragment in fragments:
        assert fragment in str(refused.value)


# -- dropout ----------------------------------------------------------------------------------------------------------


def transparent(n: int, p: float) -> tuple[MultiheadAttention, Tensor]:
    """A layer whose outputs are its weights."""
    layer = MultiheadAttention(n, 1, dropout=p, bias=False, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.eye(n).repeat(3, 1))
        layer.out_proj.weight.copy_(torch.eye(n))
    return layer, torch.eye(n)[None]


@pytest.mark.parametrize("need_weights", [True, False, "lazy"])
def test_dropout_drops_weights_in_training_alone(need_weights):
    layer, x = transparent(64, 0.25)
    torch.manual_seed(3)
    once, answer = layer(x, x, x, need_weights=need_weights)
    again, _ = layer(x, x, x, need_weights=need_weights)
    torch.manual_seed(3)
    assert torch.equal(layer(x, x, x, need_weights=need_weights)[0], once)
    assert not torch.equal(once, again)
    layer.eval()
    whole, _ = layer(x, x, x, need_weights=need_weights)
    assert_close(whole.sum(-1), torch.ones(1, 64))
    for drawn in (once, again):
        kept = drawn != 0
        assert_close(drawn[kept], whole[kept] / 0.75)
        assert abs(kept.double().mean() - 0.75) < 0.03  # 4,096 draws: 4.4 standard deviations
    if need_weights:
        dense = answer.to_dense()[:, 0] if need_weights == "lazy" else answer
        assert_close(dense, whole)  # before dropout


def test_a_probability_of_one_leaves_nothing():
    layer, x = transparent(8, 1.0)
    assert torch.equal(layer(x, x, x)[0], torch.zeros(1, 8, 8))


def test_the_mean_over_draws_is_that_of_pytorch():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    ours = MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
    theirs = Theirs(8, 2, dropout=0.3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        draws = [torch.stack([layer(x, x, x, need_weights=False)[0] for _ in range(400)]) for layer in (ours, theirs)]
    (mean, due), (spread, due_spread) = [d.mean(0) for d in draws], [d.std(0) for d in draws]
    assert ((mean - due).abs() < 5 * due_spread * (2 / 400) ** 0.5).all()
    assert_close(spread.mean(), due_spread.mean(), rtol=0.05, atol=0)


# -- inside of PyTorch's own layers -----------------------------------------------------------------------------------


def encoder_layers(**options: Any) -> tuple[torch.nn.TransformerEncoderLayer, torch.nn.TransformerEncoderLayer]:
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **options)
    ours = copy.deepcopy(theirs)
    ours.self_attn = MultiheadAttention(8, 2, batch_first=options.get("batch_first", False))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def counted(layer: torch.nn.TransformerEncoderLayer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    forward = type(layer.self_attn).forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(type(layer.self_attn), "forward", counting)
    return calls


PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masked", [{}, {"src_key_padding_mask": PADDED}, {"src_mask": later(5), "is_causal": True}])
def test_in_an_encoder_layer(batch_first, norm_first, masked):
    theirs, ours = encoder_layers(batch_first=batch_first, norm_first=norm_first)
    x = torch.randn((2, 5, 8) if batch_first else (5, 2, 8))
    losses = [layer(x, **masked).square().sum() for layer in (theirs, ours)]
    near(losses[1], losses[0])
    for layer, loss in zip((theirs, ours), losses, strict=True):
        loss.backward()
        layer.eval()
    for found, due in zip(ours.parameters(), theirs.parameters(), strict=True):
        near(found.grad, due.grad, 2000)
    with torch.no_grad():
        near(ours(x, **masked), theirs(x, **masked))


def test_pytorch_does_not_call_the_layer_in_its_fast_path(monkeypatch):
    theirs, ours = (layer.eval() for layer in encoder_layers(batch_first=True))
    calls = counted(ours, monkeypatch)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        due = theirs(x, src_key_padding_mask=PADDED)
        near(ours(x, src_key_padding_mask=PADDED), due)
        assert not calls
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            near(ours(x, src_key_padding_mask=PADDED), due)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
        assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_in_an_encoder_with_and_without_nested_tensors():
    theirs, ours = encoder_layers(batch_first=True)
    x = torch.randn(2, 5, 8)
    due = torch.nn.TransformerEncoder(theirs, 2).eval()(x, src_key_padding_mask=PADDED)
    for nested in (False, True):
        encoder = torch.nn.TransformerEncoder(ours, 2, enable_nested_tensor=nested).eval()
        near(encoder(x, src_key_padding_mask=PADDED), due)
        with torch.no_grad():
            near(encoder(x, src_key_padding_mask=PADDED)[~PADDED], due[~PADDED])
    encoder.layers[0].self_attn.register_forward_hook(lambda *_: None)
    with torch.no_grad(), pytest.raises(regard.Unsupported, match="enable_nested_tensor=False"):
        encoder(x, src_key_padding_mask=PADDED)


def test_in_a_decoder_layer():
    theirs = torch.nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(theirs)
    ours.self_attn, ours.multihead_attn = (MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    x, memory = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    given = {"tgt_mask": later(4), "tgt_is_causal": True, "memory_key_padding_mask": PADDED}
    near(ours(x, memory, **given), theirs(x, memory, **given))


# -- what else a module does ------------------------------------------------------------------------------------------

EXTRA = {"add_bias_kv": True, "add_zero_attn": True}
COMPILED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean": ({}, {"need_weights": True}),
    "booleans": ({}, {"need_weights": False, "key_padding_mask": PADDED, "attn_mask": later(5) < 0}),
    "booleans, more keys": (EXTRA, {"need_weights": False, "key_padding_mask": PADDED, "attn_mask": later(5) < 0}),
    "floats per head": ({}, {"need_weights": False, "attn_mask": torch.randn(4, 5, 5)}),
    "causal, each head": ({}, {"average_attn_weights": False, "attn_mask": later(5), "is_causal": True}),
}


def compiled(options: dict[str, Any], given: dict[str, Any]) -> None:
    """One graph for self-attention, one for three inputs: numbers and gradients are those of eager mode."""
    torch._dynamo.reset()
    layer = MultiheadAttention(8, 2, batch_first=True, **options)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, other = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    for tensors in ((x, x, x), (other, x, x)):
        due, found = layer(*tensors, **given), graph(*tensors, **given)
        near(found[0], due[0])
        assert (found[1] is None) == (due[1] is None)
        if due[1] is not None:
            near(found[1], due[1])
        gradients = [torch.autograd.grad(y.square().sum(), (x, *layer.parameters())) for y in (found[0], due[0])]
        for one, two in zip(*gradients, strict=True):
            near(one, two, 2000)


def compiled_dropout() -> None:
    """Drawn anew at each call, and again by the same seed."""
    torch._dynamo.reset()
    layer, x = transparent(16, 0.25)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    drawn = [graph(x, x, x, need_weights=False)[0] for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(graph(x, x, x, need_weights=False)[0], drawn[0])
    assert not torch.equal(*drawn)
    whole = layer.eval()(x, x, x)[0]
    for y in drawn:
        assert_close(y[y != 0], whole[y != 0] / 0.75)
        assert abs((y != 0).double().mean() - 0.75) < 0.11  # 256 draws: 4 standard deviations


def test_compiled():
    """In a process of its own: a graph does not look through the checks of shapes that the test runner puts around regard."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == [*COMPILED, "dropout"]


def test_copies_and_pickles():
    layer = MultiheadAttention(8, 2, add_bias_kv=True)
    x = torch.randn(5, 3, 8)
    due = layer(x, x, x)[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, x, x)[0], due)
    assert isinstance(layer, Theirs)


def test_its_text_says_what_it_was_made_of():
    assert "embed_dim=8, num_heads=2\n" in repr(MultiheadAttention(8, 2))
    options = "dropout=0.1, bias=False, add_bias_kv=True, add_zero_attn=True, kdim=3, vdim=4, batch_first=True"
    assert f"embed_dim=8, num_heads=2, {options}\n" in repr(MultiheadAttention(8, 2, 0.1, False, True, True, 3, 4, True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    layer = MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    due, due_weights = layer(x, x, x)
    output, weights = copy.deepcopy(layer).to(dtype)(*[x.to(dtype)] * 3)
    assert output.dtype == weights.dtype == dtype
    assert_close(output.float(), due, atol=0.05, rtol=0.05)
    assert_close(weights.float(), due_weights, atol=0.01, rtol=0.05)


def test_under_autocast():
    ours, theirs = (
        MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        Theirs(8, 2, batch_first=True, add_bias_kv=True),
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, due = ours(x, x, x, need_weights=False)[0], theirs(x, x, x, need_weights=False)[0]
    assert found.dtype == due.dtype == torch.bfloat16
    assert_close(found, due, atol=0.05, rtol=0.05)


# -- what is refused --------------------------------------------------------------------------------------------------

X = torch.randn(2, 5, 8)


def called(*inputs: Any, **given: Any) -> Callable[[type[Theirs]], Any]:
    return lambda kind: kind(8, 2, batch_first=True)(*(inputs or (X, X, X)), **given)


@pytest.mark.parametrize(
    "call",
    [
        lambda kind: kind(0, 2),
        lambda kind: kind(8, 0),
        lambda kind: kind(8, 3),
        called(X[0], X, X),
        called(X[:, :, None], X, X),
        called(X[..., :4], X, X),
        called(X, X[..., :4], X),
        called(X, X[:, :4], X),
        called(X[:1], X, X),
        called(X.double(), X, X),
        called(key_padding_mask=torch.zeros(5) > 0),
        called(key_padding_mask=torch.zeros(2, 4) > 0),
        called(key_padding_mask=torch.zeros(5, 2) > 0),
        called(key_padding_mask=torch.zeros(2, 5, dtype=torch.uint8)),
        called(attn_mask=torch.zeros(5) > 0),
        called(attn_mask=torch.zeros(5, 4) > 0),
        called(attn_mask=torch.zeros(2, 5, 5) > 0),
        called(attn_mask=torch.zeros(2, 2, 5, 5) > 0),
        called(attn_mask=torch.zeros(5, 5, dtype=torch.int64)),
        called(is_causal=True),
        called(X[0], X[0], X[0], key_padding_mask=torch.zeros(1, 5) > 0),
        called(X[0], X[0], X[0], attn_mask=torch.zeros(3, 5, 5) > 0),
    ],
)  # fmt: skip
def test_what_pytorch_refuses_is_refused_in_a_sentence(call):
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        call(Theirs)
    with pytest.raises((regard.ShapeError, TypeError, ValueError), match=r"^MultiheadAttention: .*\."):
        call(MultiheadAttention)


if __name__ == "__main__":
    for case, pair in COMPILED.items():
        compiled(*pair)
        print(case)
    compiled_dropout()
    print("dropout")
