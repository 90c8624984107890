"""Positions: their formulas, transformers' own rotary and relative ones, and what they are for."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard import nn
from regard.nn.positions import dynamic, linear, llama3, yarn

WIDE = {"dtype": torch.float64}


def test_sinusoidal_is_the_formula_of_the_paper():
    found = nn.sinusoidal()(torch.zeros(1, 50, 12, **WIDE), 7)[0]
    for place in range(50):
        for pair in range(6):
            angle = (place + 7) / 10_000 ** (2 * pair / 12)
            assert abs(found[place, 2 * pair] - math.sin(angle)) < 1e-5
            assert abs(found[place, 2 * pair + 1] - math.cos(angle)) < 1e-5


@pytest.mark.parametrize("position", [nn.sinusoidal(grid=(3, 4)), nn.rotary(grid=(3, 4))])
def test_a_grid_tells_rows_from_columns(position: Any):
    x = torch.ones(1, 1, 12, 8)
    told = (position.turn(x) if isinstance(position, nn.positions.turned.Rotary) else position(x)).view(3, 4, 8)
    by_row = [0, 1, 4, 5] if isinstance(position, nn.positions.turned.Rotary) else [0, 1, 2, 3]
    by_column = sorted({*range(8)} - {*by_row})
    assert (told[:, :1, by_row] == told[:, :, by_row]).all()
    assert (told[:1, :, by_column] == told[:, :, by_column]).all()
    assert not (told[:1] == told).all(-1)[1:].any()
    assert not (told[:, :1] == told).all(-1)[:, 1:].any()


@given(
    st.integers(0, 500), st.integers(0, 30), st.integers(0, 30), st.booleans(), st.sampled_from([None, 4]), st.integers(0, 99)
)
def test_rotary_scores_know_the_distance_alone(shift: int, i: int, j: int, interleaved: bool, dims: int | None, seed: int):
    torch.manual_seed(seed)
    position = nn.rotary(interleaved=interleaved, dims=dims)
    q, k = torch.randn(2, 1, 1, 1, 8, **WIDE)

    def score(a: int, b: int) -> float:
        return float((position.turn(q, a) * position.turn(k, b)).sum())

    # angles are float32: each errs by up to 2⁻²⁴ of its 530 radians
    assert abs(score(i, j) - score(i + shift, j + shift)) < 4 * 530 * 2**-24 * float(q.norm() * k.norm())


@pytest.mark.parametrize("scaling", [None, linear(2.0), yarn(4.0, 16), llama3(8.0, 16)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_an_offset_is_a_part_of_the_longer_one(interleaved: bool, scaling: Any):
    x = torch.randn(2, 3, 20, 8)
    position = nn.rotary(interleaved=interleaved, scaling=scaling)
    assert torch.equal(position.turn(x)[..., 12:, :], position.turn(x[..., 12:, :], 12))


SCALINGS = [
    (None, {"rope_type": "default"}),
    (linear(4.0), {"rope_type": "linear", "factor": 4.0}),
    (dynamic(2.0, trained=128), {"rope_type": "dynamic", "factor": 2.0}),
    (yarn(4.0, trained=32), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
    (
        llama3(8.0, trained=64),
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "parameters"), SCALINGS, ids=lambda p: p["rope_type"] if isinstance(p, dict) else "")
def test_rotary_equals_transformers(scaling: Any, parameters: dict[str, Any]):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, max_position_embeddings=128,
        rope_parameters={**parameters, "rope_theta": 10_000.0},
    )  # fmt: skip
    made = llama.LlamaRotaryEmbedding(config)
    x = torch.randn(1, 2, 300, 64)
    cos, sin = made(x, torch.arange(300)[None])
    due = llama.apply_rotary_pos_emb(x, x, cos, sin)[0]
    torch.testing.assert_close(nn.rotary(scaling=scaling).turn(x), due, rtol=0, atol=4 * 300 * 2**-24 * float(x.abs().max()))
    rates = torch.ones(32) if scaling is None else scaling.rates(10_000.0 ** (-torch.arange(0, 64, 2) / 64), 10_000.0, 64, 300)
    if scaling is not None:
        torch.testing.assert_close(rates, made.inv_freq.float(), rtol=1e-5, atol=0)
        assert math.isclose(scaling.magnitude, made.attention_scaling, rel_tol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_equals_t5(bidirectional: bool):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    from transformers import T5Config

    config = T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=not bidirectional)
    theirs = t5.T5Attention(config, has_relative_attention_bias=True)
    ours = nn.relative(4, bidirectional=bidirectional)
    ours.load_state_dict(theirs.relative_attention_bias.state_dict())
    n = 300
    zero = torch.zeros(1, 4, n, 8)
    due = theirs.compute_bias(n, n)
    W = regard.attention(zero, zero, bias=ours.bias())
    torch.testing.assert_close(W.to_dense(), due.softmax(-1), rtol=0, atol=1e-6)
    W.entropy().sum().backward()
    assert ours.weight.grad is not None
    assert ours.weight.grad.abs().sum() > 0


def test_alibi_slopes_are_those_of_the_paper():
    q = torch.zeros(1, 8, 1, 4)
    weights = regard.attention(q, torch.zeros(1, 8, 3, 4), bias=nn.alibi(8).bias()).to_dense()[0, :, 0]
    for head in range(8):
        slope = 2 ** -(head + 1)
        due = torch.softmax(torch.tensor([-2.0 * slope, -slope, 0.0]), -1)
        torch.testing.assert_close(weights[head], due)


def positions(heads: int, dim: int, n: int) -> dict[str, nn.Position | None]:
    return {
        "none": None,
        "sinusoidal": nn.sinusoidal(),
        "sinusoidal on a grid": nn.sinusoidal(grid=(n // 2, 2)),
        "learned": nn.learned(n, dim, **WIDE),
        "rotary": nn.rotary(),
        "rotary on a grid": nn.rotary(grid=(n // 2, 2)),
        "alibi": nn.alibi(heads),
        "relative": nn.relative(heads, **WIDE),
    }


@pytest.mark.parametrize("name", positions(4, 32, 8))
def test_only_a_position_tells_order(name: str):
    torch.manual_seed(0)
    position = positions(4, 32, 8)[name]
    for parameter in () if position is None else position.parameters():
        torch.nn.init.normal_(parameter)
    encoder = nn.Encoder(32, 4, 2, position=position, **WIDE)
    x, order = torch.randn(2, 8, 32, **WIDE), torch.randperm(8)
    apart = float((encoder(x[:, order]) - encoder(x)[:, order]).abs().max().detach())
    if position is None:  # two layers of sums in another order: a few roundings of numbers below 10
        assert apart < 100 * torch.finfo(torch.float64).eps
    else:
        assert apart > 1e-3


def test_one_graph_serves_every_length():
    torch._dynamo.reset()
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    position, table = nn.rotary(scaling=yarn(4.0, 16)), nn.learned(64, 8)

    def run(x: Tensor) -> Tensor:
        return position.turn(table(nn.sinusoidal()(x))[:, None])[:, 0]

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counting)
    for n in (5, 9):
        x = torch.randn(2, n, 8)
        torch.testing.assert_close(compiled(x), run(x))
    assert len(graphs) == 1


def test_what_rotary_keeps_is_asked_for_again_or_not_at_all():
    """Each layer of a stack asks twice; another length, dtype, place, mode or device gets its own waves."""
    position, x = nn.rotary(), torch.randn(1, 1, 5, 8)
    first = position.turn(x)
    kept = position._kept
    assert position.turn(x).equal(first)
    assert position._kept is kept
    for other, offset in ((x[:, :, :3], 0), (x, 2), (x.double(), 0), (x[..., :4], 0)):
        assert position.turn(other, offset).equal(nn.rotary().turn(other, offset))
    with torch.inference_mode():
        position.turn(x)
    leaf = x.clone().requires_grad_()
    position.turn(leaf).sum().backward()  # an inference tensor could not be saved for that
    position.base = 50.0
    assert position.turn(x).equal(nn.rotary(50.0).turn(x))
    assert position.turn(x.to("meta")).is_meta
    assert pickle.loads(pickle.dumps(position)).turn(x).equal(position.turn(x))


def test_low_precision_is_turned_by_angles_of_full_precision():
    x = torch.randn(1, 1, 2000, 8)
    exact = nn.rotary().turn(x)
    low = nn.rotary().turn(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 4 * 2**-8 * x.abs().max()


def test_the_state_dict_holds_what_was_learned():
    held = {name: list(p.state_dict()) for name, p in positions(4, 32, 8).items() if p is not None}
    assert {name for name, keys in held.items() if keys} == {"learned", "relative"}
