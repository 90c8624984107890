"""The layers where PyTorch's models live: compiled, exported, in 16 bits, stored, copied, sharded, recomputed, on no device.

Run as a script, this file is one of the processes of the test that needs several: `python test_nn_ecosystem.py RANK FILE`.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch import nn as theirs
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.utils import _apply_to_tensors
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from regard import nn, scores
from regard.backends import BACKENDS
from regard.masks import causal, padding
from regard.testing import Largest

# Deprecation warnings of PyTorch's own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("as_users_have_it"),
]
DIM, WORDS = 16, 50


@dataclass(frozen=True)
class Case:
    """A layer, what it is given for a length, and what it is told beside."""

    make: Callable[..., Any]
    of: Callable[[int], tuple[Tensor, ...]]
    told: dict[str, Any] = field(default_factory=dict)
    matrices: int = 1  # that one call makes
    depth: int = 1  # layers that stand on one another


def numbers(length: int, dim: int = DIM) -> Tensor:
    return torch.randn(2, length, dim, generator=torch.Generator().manual_seed(length)).requires_grad_()


def own(length: int) -> tuple[Tensor, ...]:
    return (numbers(length),)


def two(length: int) -> tuple[Tensor, ...]:
    return numbers(length), numbers(length + 4)


def thrice(length: int) -> tuple[Tensor, ...]:
    return (numbers(length),) * 3


def words(length: int) -> tuple[Tensor, ...]:
    return (torch.randint(WORDS, (2, length), generator=torch.Generator().manual_seed(length)),)


def pairs(length: int) -> tuple[Tensor, ...]:
    return *words(length), *words(length - 2)


def placed(made: dict[str, Any]) -> dict[str, Any]:
    """What a part of a layer is made with."""
    return {name: value for name, value in made.items() if name == "device"}


CAUSAL = {"mask": causal}
SMOOTH: Any = {"activation": "gelu"}  # a rounding does not switch a unit off, as it may with ReLU
CASES: dict[str, Case] = {
    "no weights": Case(lambda **made: nn.SelfAttention(heads=4, **made), own),
    "heads": Case(lambda **made: nn.SelfAttention(DIM, 4, **made), own, CAUSAL),
    "grouped": Case(lambda **made: nn.SelfAttention(DIM, 4, kv_heads=2, norm="rms", **made), own, CAUSAL),
    "rotary": Case(lambda **made: nn.SelfAttention(DIM, 4, position=nn.rotary(), **made), own, CAUSAL),
    "alibi": Case(lambda **made: nn.SelfAttention(DIM, 4, position=nn.alibi(4), **made), own, CAUSAL),
    "relative": Case(lambda **made: nn.SelfAttention(DIM, 4, position=nn.relative(4, **placed(made)), **made), own),
    "bilinear": Case(lambda **made: nn.SelfAttention(DIM, 4, score=nn.Bilinear(4, heads=4, **placed(made)), **made), own),
    "cross": Case(
        lambda **made: nn.CrossAttention(DIM, 4, memory_dim=12, norm="layer", **made),
        lambda length: (numbers(length), numbers(length + 4, 12)),
    ),
    "multihead": Case(lambda **made: nn.MultiheadAttention(DIM, 4, batch_first=True, **made), thrice),
    "encoder layer": Case(lambda **made: nn.EncoderLayer(DIM, 4, hidden=24, **SMOOTH, **made), own, CAUSAL),
    "encoder": Case(
        lambda **made: nn.Encoder(DIM, 4, 2, hidden=24, position=nn.sinusoidal(), activation=nn.gated(), norm="rms",
                                  norm_first=True, **made),
        own, CAUSAL, 2, 2,
    ),
    "decoder layer": Case(lambda **made: nn.DecoderLayer(DIM, 4, hidden=24, **SMOOTH, **made), two, {}, 2),
    "decoder": Case(
        lambda **made: nn.Decoder(DIM, 4, 2, hidden=24, position=nn.learned(1024, DIM, **placed(made)), **SMOOTH, **made),
        two, {}, 4, 2,
    ),
    "transformer": Case(lambda **made: nn.Transformer(DIM, 4, 2, hidden=24, **SMOOTH, **made), two, {}, 6, 4),
    "bert": Case(lambda **made: nn.Bert(WORDS, DIM, 4, 2, positions=1024, **made), words, {}, 2, 2),
    "gpt": Case(lambda **made: nn.GPT(WORDS, DIM, 4, 2, positions=1024, **made), words, {}, 2, 2),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", CASES)
RECURRENT = {
    "word by word": Case(lambda **made: nn.WordByWord(DIM, 3, vocabulary=WORDS, **made), words),
    "recurrent": Case(lambda **made: nn.RecurrentSequenceToSequence(WORDS, WORDS, DIM, cell="lstm", **made), pairs),
    "bahdanau": Case(lambda **made: nn.BahdanauSequenceToSequence(WORDS, WORDS, DIM, **made), pairs, {}, 1, 4),
    "luong": Case(lambda **made: nn.LuongSequenceToSequence(WORDS, WORDS, DIM, input_feeding=True, **made), pairs, {}, 1, 4),
}
MODELS = CASES | RECURRENT
EVERY = pytest.mark.parametrize("name", MODELS)


def built(name: str, **made: Any) -> Any:
    """The layer, every parameter drawn, without dropout."""
    torch.manual_seed(0)
    layer = MODELS[name].make(**made).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return layer


def flat(answer: Any) -> list[Tensor]:
    if answer is None:
        return []
    return [answer] if isinstance(answer, Tensor) else [t for part in answer for t in flat(part)]


def answers(layer: Any, inputs: tuple[Tensor, ...], told: dict[str, Any], of: list[Tensor] | None = None) -> list[Tensor]:
    """What it says, and the gradients of a fixed mixture of that for its inputs and parameters."""
    found = flat(layer(*inputs, **told))
    loss = torch.zeros((), dtype=torch.float64)
    for answer in found:
        loss = loss + (answer.double() * torch.linspace(-1, 1, answer.numel()).reshape(answer.shape)).sum()
    of = [t for t in (*inputs, *layer.parameters()) if t.requires_grad] if of is None else of
    of = list({id(t): t for t in of}.values())
    grads = torch.autograd.grad(loss, of, allow_unused=True)
    return [*found, *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, of, strict=True))]


def same(got: list[Tensor], due: list[Tensor]) -> None:
    """At most the order of a sum differs."""
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in due]
    for g, d in zip(got, due, strict=True):
        torch.testing.assert_close(g, d, rtol=1e-5, atol=1e-5 * max(1.0, float(d.detach().abs().max())) if d.numel() else 0.0)


# -- compiled ---------------------------------------------------------------------------------------------------------


def compiled(function: Any, backend: str = "eager") -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=True)


LENGTHS = (9, 13, 7)


@ALL
def test_one_graph_serves_all_lengths(name: str) -> None:
    case, layer = CASES[name], built(name)
    function = compiled(layer)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in LENGTHS:
            inputs = case.of(length)
            of = [t for t in (*inputs, *layer.parameters()) if t.requires_grad]
            same(answers(function, inputs, case.told, of), answers(layer, inputs, case.told))


@pytest.mark.parametrize(("name", "backend"), [("heads", "aot_eager"), ("multihead", "aot_eager"), ("encoder", "inductor")])
def test_a_compiler_that_lowers_the_graph_finds_the_same(name: str, backend: str) -> None:
    case, layer = CASES[name], built(name)
    function = compiled(layer, backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in LENGTHS[:2]:
            inputs = case.of(length)
            of = [t for t in (*inputs, *layer.parameters()) if t.requires_grad]
            same(answers(function, inputs, case.told, of), answers(layer, inputs, case.told))


@pytest.mark.parametrize("name", ["heads", "encoder", "gpt"])
def test_questions_are_part_of_the_graph(name: str) -> None:
    """In a loss, say."""
    case, layer = CASES[name], built(name)

    def asked(*inputs: Tensor, **told: Any) -> Any:
        y, A = layer(*inputs, **told, return_attention=True)
        return y, (A if name == "heads" else A[-1]).entropy()

    function = compiled(asked)
    for length in LENGTHS[:2]:
        inputs, of = case.of(length), list(layer.parameters())
        same(answers(function, inputs, case.told, of), answers(asked, inputs, case.told, of))


def test_pytorchs_masks_go_through_the_graph() -> None:
    layer = built("multihead")

    def asked(x: Tensor, hidden: Tensor, pairs: Tensor | None) -> Any:
        return layer(x, x, x, key_padding_mask=hidden, attn_mask=pairs, need_weights=False)[0]

    def compare(function: Any, length: int, pairs: Tensor | None) -> None:
        hidden = torch.arange(length) >= torch.tensor([length, 3])[:, None]
        inputs, of = (numbers(length), hidden, pairs), list(layer.parameters())
        same(answers(function, inputs, {}, of), answers(asked, inputs, {}, of))

    function = compiled(asked)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in LENGTHS:
            compare(function, length, None)
    compare(compiled(asked), 9, torch.ones(9, 9).triu(1).bool())


@pytest.mark.parametrize("name", ["heads", "cross", "multihead", "encoder layer"])
def test_what_is_dropped_in_a_graph_follows_the_generator(name: str) -> None:
    case = CASES[name]
    layer, inputs = case.make(dropout=0.4).train(), case.of(9)
    function, of = compiled(layer), [*case.of(9), *layer.parameters()]
    of = [t for t in (*inputs, *layer.parameters()) if t.requires_grad]
    found = []
    for asked in (function, layer, function):
        torch.manual_seed(3)
        found.append(answers(asked, inputs, {}, of))
    same(found[0], found[1])
    same(found[2], found[1])
    assert not torch.equal(layer(*inputs)[0], layer(*inputs)[0])


def test_a_compiled_decoding_goes_on_from_its_cache() -> None:
    encoder = nn.Encoder(DIM, 4, 2, position=nn.rotary()).eval()
    x = numbers(9).detach()
    step = compiled(lambda new, caches: encoder(new, mask=causal, caches=caches))
    caches = encoder.caches()
    found = [step(new, caches) for new in x.split([5, 1, 1, 1, 1], 1)]
    same([torch.cat(found, 1)], [encoder(x, mask=causal)])


# -- exported ---------------------------------------------------------------------------------------------------------


@ALL
def test_an_exported_layer_saves_loads_and_answers(name: str) -> None:
    case, layer = CASES[name], built(name)
    n = torch.export.Dim("n", min=3, max=512)
    inputs = tuple(t.detach() for t in case.of(9))
    moving = [{1: n if t.shape[1] == 9 else n + 4} for t in inputs]
    told = case.told | ({"need_weights": False} if name == "multihead" else {})

    class Whole(theirs.Module):
        """A layer with the mask that it is always told."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *inputs: Tensor) -> Tensor:
            found = self.layer(*inputs, **told)
            return found if isinstance(found, Tensor) else found[0]

    with torch.no_grad():
        program = torch.export.export(Whole(), inputs, dynamic_shapes={"inputs": tuple(moving)}, strict=False)
        stored = io.BytesIO()
        torch.export.save(program, stored)
        stored.seek(0)
        loaded = torch.export.load(stored).module()
        for length in (9, 20, 5):
            inputs = tuple(t.detach() for t in case.of(length))
            same(flat(loaded(*inputs)), flat(layer(*inputs, **told))[:1])


# -- sixteen bits -----------------------------------------------------------------------------------------------------

BFLOAT = torch.finfo(torch.bfloat16).eps


def plain_layer(kind: Any, **more: Any) -> Any:
    return kind(DIM, 4, 24, dropout=0.0, batch_first=True, **more)


PEERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "heads": (lambda: nn.SelfAttention(DIM, 4), lambda: theirs.MultiheadAttention(DIM, 4, batch_first=True)),
    "cross": (lambda: nn.CrossAttention(DIM, 4), lambda: theirs.MultiheadAttention(DIM, 4, batch_first=True)),
    "cross of another size": (
        lambda: nn.CrossAttention(DIM, 4, memory_dim=12),
        lambda: theirs.MultiheadAttention(DIM, 4, kdim=12, vdim=12, batch_first=True),
    ),
    "multihead": (
        lambda: nn.MultiheadAttention(DIM, 4, batch_first=True),
        lambda: theirs.MultiheadAttention(DIM, 4, batch_first=True),
    ),
    "multihead, all there is": (
        lambda: nn.MultiheadAttention(DIM, 4, add_bias_kv=True, add_zero_attn=True, kdim=8, vdim=6),
        lambda: theirs.MultiheadAttention(DIM, 4, add_bias_kv=True, add_zero_attn=True, kdim=8, vdim=6),
    ),
    "encoder layer": (lambda: nn.EncoderLayer(DIM, 4, hidden=24), lambda: plain_layer(theirs.TransformerEncoderLayer)),
    "encoder layer, pre": (
        lambda: nn.EncoderLayer(DIM, 4, hidden=24, norm_first=True, bias=False),
        lambda: plain_layer(theirs.TransformerEncoderLayer, norm_first=True, bias=False),
    ),
    "encoder": (
        lambda: nn.Encoder(DIM, 4, 2, hidden=24, final_norm=True),
        lambda: theirs.TransformerEncoder(
            plain_layer(theirs.TransformerEncoderLayer), 2, theirs.LayerNorm(DIM), enable_nested_tensor=False
        ),
    ),
    "decoder layer": (lambda: nn.DecoderLayer(DIM, 4, hidden=24), lambda: plain_layer(theirs.TransformerDecoderLayer)),
    "decoder": (
        lambda: nn.Decoder(DIM, 4, 2, hidden=24),
        lambda: theirs.TransformerDecoder(plain_layer(theirs.TransformerDecoderLayer), 2),
    ),
    "transformer": (
        lambda: nn.Transformer(DIM, 4, 2, hidden=24),
        lambda: theirs.Transformer(DIM, 4, 2, 2, 24, dropout=0.0, batch_first=True),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_names_of_parameters_are_pytorchs(name: str) -> None:
    mine, peer = (make().state_dict() for make in PEERS[name])
    assert {key: t.shape for key, t in mine.items()} == {key: t.shape for key, t in peer.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in PEERS if "size" not in name and "all" not in name])
def test_autocast_is_that_of_pytorchs_layers(name: str, training: bool) -> None:
    """Their dtypes, and at most twice their error beside float32, and one rounding of the greatest number."""
    torch.manual_seed(0)
    mine, peer = (make().train(training) for make in PEERS[name])
    mine.load_state_dict(peer.state_dict())
    of = CASES[name.split(",")[0]].of(9) if name != "cross" else two(9)
    targets = of[name == "transformer"].shape[1] if name[:3] in ("dec", "tra") else 0
    given = {"tgt_mask": torch.ones(targets, targets).triu(1).bool()} if targets else {}
    doubled = (*of, of[-1]) if name == "cross" else of * 3 if name == "heads" else of

    def both(low: bool) -> list[list[Tensor]]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            outputs = flat(mine(*of))[0], flat(peer(*doubled, **given))[0]
        found = []
        for y, layer in zip(outputs, (mine, peer), strict=True):
            parameters = dict(layer.named_parameters())
            loss = (y.double() * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()
            found.append([y, *torch.autograd.grad(loss, [of[0], *(parameters[key] for key in sorted(parameters))])])
        return found

    exact, (got, due) = both(False)[1], both(True)
    for a, b, c in zip(got, due, exact, strict=True):
        assert a.dtype == b.dtype
        error, theirs_ = (float((t.double() - c.double()).abs().max()) for t in (a, b))
        assert error <= 2 * theirs_ + BFLOAT * float(c.abs().max()), (error, theirs_)


LOW = pytest.mark.parametrize("how", ["autocast bfloat16", "bfloat16", "float16"])


@LOW
@EVERY
def test_sixteen_bits_are_near_thirty_two(name: str, how: str) -> None:
    """Output and gradients, by 16 roundings of the greatest number for each layer that stands on another, and one more.

    Gradients that are 0 but for rounding, such as that of a shift of all keys, by those of the greatest, by a 32nd.
    """
    case, layer = MODELS[name], built(name)
    dtype = torch.float16 if how == "float16" else torch.bfloat16
    due = answers(layer, case.of(9), case.told)
    if how.startswith("autocast"):
        with torch.autocast("cpu", dtype=dtype):
            got = answers(layer, case.of(9), case.told)
    else:
        low = copy.deepcopy(layer).to(dtype)
        inputs = tuple(t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t for t in case.of(9))
        if name == "multihead":
            inputs = inputs[:1] * 3
        got = answers(low, inputs, case.told)
        assert {t.dtype for t in got} == {dtype}
    greatest = max(float(t.detach().abs().max()) for t in due)
    for g, d in zip(got, due, strict=True):
        budget = 16 * (case.depth + 1) * torch.finfo(dtype).eps * max(float(d.detach().abs().max()), greatest / 32)
        error = float((g.double() - d.double()).abs().max())
        assert error <= budget, (error, budget, d.shape)


# -- stored, copied, without a device ---------------------------------------------------------------------------------


@EVERY
def test_a_layer_is_stored_and_copied(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    case, layer = MODELS[name], built(name)
    due = answers(layer, case.of(9), case.told)
    same(answers(copy.deepcopy(layer), case.of(9), case.told), due)
    same(answers(pickle.loads(pickle.dumps(layer)), case.of(9), case.told), due)
    torch.save(layer, tmp_path / "layer.pt")
    same(answers(torch.load(tmp_path / "layer.pt", weights_only=False), case.of(9), case.told), due)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = case.make().eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    same(answers(other, case.of(9), case.told), due)
    if name != "no weights":
        save_model(layer, str(tmp_path / "layer.safetensors"))
        other = case.make().eval()
        load_model(other, tmp_path / "layer.safetensors", strict=True)
        same(answers(other, case.of(9), case.told), due)


@EVERY
def test_nothing_is_outside_of_the_state_dict(name: str) -> None:
    """Made without a device, filled from a state dict: a tensor that is not in it would be left behind."""
    case, layer = MODELS[name], built(name)
    due = answers(layer, case.of(9), case.told)
    with torch.device("meta"):
        first = case.make()
    for empty in (first, case.make(device="meta")):
        assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
        filled = copy.deepcopy(empty).to_empty(device="cpu").eval()
        filled.load_state_dict(layer.state_dict())
        same(answers(filled, case.of(9), case.told), due)
        empty.load_state_dict(layer.state_dict(), assign=True)
        same(answers(empty.eval(), case.of(9), case.told), due)


@EVERY
def test_every_module_can_fill_its_own_parameters(name: str) -> None:
    """What sharding asks of modules that were made without a device; and from one seed they begin as they would otherwise."""
    layer = MODELS[name].make(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    for module in reversed(list(layer.modules())):
        if (reset := getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))) is not None:
            reset()
    torch.manual_seed(1)
    usual = MODELS[name].make()
    for (key, parameter), expected in zip(layer.named_parameters(), usual.parameters(), strict=True):
        assert parameter.isfinite().all(), key
        many = parameter.numel() >= 256
        if many:
            assert 0.8 < parameter.std() / expected.std() < 1.25, key
        elif not expected.std(unbiased=False):
            assert torch.equal(parameter, expected), key


# -- functions of parameters, and memory ------------------------------------------------------------------------------


@EVERY
def test_parameters_may_be_given_from_outside(name: str) -> None:
    case, layer = MODELS[name], built(name)
    torch.manual_seed(5)
    given = {key: (t + 0.1 * torch.randn_like(t)).detach().requires_grad_() for key, t in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict(given)
    inputs = case.of(9)
    of = [*(t for t in inputs if t.requires_grad), *given.values()]

    def asked(*inputs: Tensor, **told: Any) -> Any:
        return torch.func.functional_call(layer, given, inputs, told)

    same(answers(asked, inputs, case.told, of), answers(other, inputs, case.told))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("no weights", "bert", "gpt")])
def test_what_is_computed_again_drops_the_same_weights(name: str, reentrant: bool) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    layer = case.make(dropout=0.3).train()
    inputs = case.of(9)
    of = [t for t in (*inputs, *layer.parameters()) if t.requires_grad]

    def asked(*inputs: Tensor, **told: Any) -> Any:
        return checkpoint(lambda *x: layer(*x, **told), *inputs, use_reentrant=reentrant)

    found = []
    for function in (layer, asked):
        torch.manual_seed(3)
        y = flat(function(*inputs, **case.told))[0]
        for t in of:
            t.grad = None
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        found.append([y, *(t.grad.clone() for t in of if t.grad is not None)])
    same(found[1], found[0])


@ALL
def test_a_matrix_that_is_handed_out_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output for each matrix, no other question, and nothing of size n²."""
    asked: list[str] = []
    for make in BACKENDS.values():
        kind = type(make())

        def counted(self: Any, call: Any, readouts: Any, log_sum: Any, read: Any = kind.read) -> Any:
            asked.extend(type(readout).__name__ for readout in readouts)
            return read(self, call, readouts, log_sum)

        monkeypatch.setattr(kind, "read", counted)
    case, layer, n = CASES[name], built(name), 512
    told = case.told | ({"need_weights": "lazy"} if name == "multihead" else {"return_attention": True})
    inputs = case.of(n)
    with torch.no_grad(), Largest() as watch:
        y, given = layer(*inputs, **told)
    assert asked == ["Output"] * case.matrices
    assert watch.elements < 2 * 4 * n * n / 4, watch.by
    plain = layer(*inputs, **(case.told | ({"need_weights": False} if name == "multihead" else {})))
    same([y], [plain[0] if name == "multihead" else plain])

    def matrices(found: Any) -> list[Any]:
        return [A for part in found for A in matrices(part)] if isinstance(found, tuple) else [found]

    del asked[:]
    assert len(matrices(given)) == case.matrices
    for A in matrices(given):
        assert A.entropy().shape == (2, 4, A.shape[-2])
    assert asked == ["Entropy"] * case.matrices


# -- several processes ------------------------------------------------------------------------------------------------


def alike(name: str, wrapped: Any, entropies: bool) -> None:
    """A model in parts, each process with its row of the batch, learns what the whole one does of both rows."""
    case, whole, rank = CASES[name], built(name), distributed.get_rank()
    inputs = tuple(t.detach() for t in case.of(9))

    def loss(model: Any, given: tuple[Tensor, ...]) -> Tensor:
        y = model(*given, **case.told, return_attention=entropies)
        y, attentions = y if entropies else (y, ())
        of_outputs = (y * torch.linspace(-1, 1, y[0].numel()).reshape(y[0].shape)).mean()
        return sum((A.entropy().mean() for A in attentions), of_outputs)

    optimizers = [torch.optim.SGD(model.parameters(), 1.0) for model in (whole, wrapped)]
    for _ in range(2):
        due = loss(whole, inputs)
        found = loss(wrapped, tuple(t[rank : rank + 1] for t in inputs))
        for optimizer, value in zip(optimizers, (due, found), strict=True):
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        mean = found.detach() / 2
        distributed.all_reduce(mean)
        torch.testing.assert_close(mean, due.detach(), rtol=1e-5, atol=1e-6)


def sharded(name: str) -> Any:
    """Every layer by itself, then the rest."""
    model = built(name)
    for module in model.modules():
        if isinstance(module, nn.EncoderLayer | nn.DecoderLayer):
            fully_shard(module)
    fully_shard(model)
    assert set(model.state_dict()) == set(built(name).state_dict())
    return model


def wrapped(name: str) -> Any:
    layers = {nn.EncoderLayer, nn.DecoderLayer}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
    model = FullyShardedDataParallel(built(name), auto_wrap_policy=policy, device_id=torch.device("cpu"))
    assert sum(isinstance(m, FullyShardedDataParallel) for m in model.modules()) > 2
    return model


def process(rank: int, file: str) -> None:
    """One of two."""
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for name in ("encoder", "bert", "gpt"):
        alike(name, DistributedDataParallel(built(name), find_unused_parameters=name == "bert"), True)  # its pooler
        alike(name, sharded(name), True)
    for name in ("transformer", "encoder", "bert"):
        alike(name, sharded(name), False)
        alike(name, wrapped(name), False)
    distributed.destroy_process_group()
    print("equal")


def test_models_in_parts_learn_what_the_whole_one_does(tmp_path: Path) -> None:
    """DistributedDataParallel, fully_shard, and FullyShardedDataParallel with its policy for Transformers."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.splitlines()[-1:] for out, _ in said] == [["equal"]] * 2, said[0][1][-3000:]


@pytest.mark.parametrize("name", ["encoder", "decoder", "transformer", "bert"])
def test_a_layer_that_nobody_asks_hands_out_no_matrix(name: str) -> None:
    """It would keep the queries and keys of every layer alive, and what wraps modules expects tensors."""
    layer = built(name)
    kinds: set[type] = set()
    for module in layer.modules():
        module.register_forward_hook(lambda module, given, found: kinds.add(type(found)))
    layer(*CASES[name].of(9), **CASES[name].told)
    assert kinds == {Tensor}


def test_a_mask_is_rebuilt_field_by_field() -> None:
    """As fully_shard does with every dataclass among the inputs where it has a MixedPrecisionPolicy."""
    for mask in (causal, padding(torch.tensor([4, 2])), causal & padding(keep=torch.ones(2, 4).bool())):
        assert _apply_to_tensors(lambda t: t, mask) == mask


# -- what a layer shows -----------------------------------------------------------------------------------------------

SHOWN = {
    "SelfAttention(\n  dim=16, heads=4\n": lambda: nn.SelfAttention(16, 4),
    "SelfAttention(heads=1)": lambda: nn.SelfAttention(),
    "heads=4, kv_heads=2, bias=False, score=cosine(0.1), dropout=0.2, output=False": lambda: nn.SelfAttention(
        16, 4, kv_heads=2, bias=False, output=False, score=scores.cosine(0.1), dropout=0.2
    ),
    "(query_norm): RMSNorm((4,)": lambda: nn.SelfAttention(16, 4, norm="rms"),
    "(position): Rotary(base=500, dims=2, scaling=linear(factor=2.0), interleaved=True)": lambda: nn.SelfAttention(
        16, 4, position=nn.rotary(500, dims=2, scaling=nn.linear(2.0), interleaved=True)
    ),
    "(position): Sinusoidal(base=10000, grid=(2, 3))": lambda: nn.Encoder(16, 4, 1, position=nn.sinusoidal(grid=(2, 3))),
    "(position): Learned(length=9, dim=16)": lambda: nn.Encoder(16, 4, 1, position=nn.learned(9, 16)),
    "(position): Alibi(heads=4)": lambda: nn.Encoder(16, 4, 1, position=nn.alibi(4)),
    "(position): Relative(heads=4, buckets=8, by=t5(": lambda: nn.Encoder(16, 4, 1, position=nn.relative(4, buckets=8)),
    "(score): Bilinear(dim=4, key_dim=4, heads=4)": lambda: nn.SelfAttention(16, 4, score=nn.Bilinear(4, heads=4)),
    "(score): Additive(dim=4, key_dim=4, hidden=5, heads=1)": lambda: nn.SelfAttention(16, 4, score=nn.Additive(4, hidden=5)),
    "CrossAttention(\n  dim=16, memory_dim=12, heads=4": lambda: nn.CrossAttention(16, 4, memory_dim=12),
    "embed_dim=16, num_heads=4, dropout=0.1, bias=False, add_bias_kv=True, add_zero_attn=True, kdim=5, vdim=6, batch_first":
        lambda: nn.MultiheadAttention(16, 4, 0.1, False, True, True, 5, 6, True),
    "activation='gelu', norm_first=True": lambda: nn.EncoderLayer(16, 4, activation="gelu", norm_first=True),
    "(linear1): Linear(in_features=16, out_features=7, bias=False)": lambda: nn.DecoderLayer(16, 4, hidden=7, bias=False),
    "(norm3): LayerNorm((16,), eps=0.5": lambda: nn.DecoderLayer(16, 4, eps=0.5),
    "(dropout): Dropout(p=0.3": lambda: nn.Transformer(16, 4, 1, dropout=0.3),
    "dropout=0.25\n": lambda: nn.Bert(50, 16, 4, 1, attention_dropout=0.25),
    "mask=causal, tied=True": lambda: nn.GPT(50, 16, 4, 1),
    "score=dot(), input_feeding=True": lambda: nn.LuongSequenceToSequence(5, 5, 4, score=scores.dot(), input_feeding=True),
}  # fmt: skip


@pytest.mark.parametrize("shown", SHOWN)
def test_a_layer_shows_what_it_was_given(shown: str) -> None:
    assert shown in repr(SHOWN[shown]()), repr(SHOWN[shown]())


if __name__ == "__main__":
    process(int(sys.argv[1]), sys.argv[2])
