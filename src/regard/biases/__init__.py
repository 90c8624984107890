"""What is added to the scores: frozen values, closed under ``+``. A bias of -inf hides the pair.

score = softcap(scale · f(q_i, k_j)) + bias(b, h, i, j, p_i), with p_i = i + offset the position of query i among the keys.
"""

from __future__ import annotations

from torch import Tensor

from regard import checks
from regard.biases.algebra import Bias
from regard.biases.contents import Dense
from regard.biases.distances import T5, Alibi, Clipped, Entries, Exact, Relative, slopes_of
from regard.masks.algebra import Held

__all__ = ["Bias", "alibi", "clipped", "dense", "exact", "relative", "t5"]


def alibi(heads_or_slopes: int | Tensor) -> Bias:
    """Adds -slope_h · |p_i - j|: a number of heads takes the paper's slopes, a tensor (heads,) of slopes can be learned.

    The paper's slopes are 2^(-8/n), 2^(-16/n), … for n heads, n a power of two; for other numbers those of the next lower
    power of two, then every second one of twice as many. They are kept as Python numbers and added in float32.

    Press, Smith and Lewis 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation".

    >>> slopes = torch.tensor([2.0]).log()  # one head: half as much with every step
    >>> A = regard.attention(z, z, mask=masks.causal, bias=biases.alibi(slopes))
    >>> (A.to_dense()[2] * 7).round()
    tensor([1., 2., 4.])
    """
    if isinstance(heads_or_slopes, Tensor):
        return Alibi(Held(checks.weights("alibi", "slopes", heads_or_slopes, {1: "(heads,)"})))
    return Alibi(slopes_of(checks.whole_number("alibi", "heads", heads_or_slopes, least=1)))


def clipped() -> Entries:
    """Distances d = j - p_i beyond ±m count as ±m: entry m + min(max(d, -m), m) of a table of 2m + 1.

    Shaw, Uszkoreit and Vaswani 2018, "Self-Attention with Relative Position Representations".

    >>> biases.relative(torch.zeros(4, 2 * 3 + 1), biases.clipped())
    relative(4×7, clipped())
    """
    return Clipped()


def t5(max_distance: int = 128, bidirectional: bool = True) -> Entries:
    """T5's buckets: one entry for each short distance, then logarithmic steps, one for all from max_distance on.

    Keys behind and ahead of the query have half of the entries each; bidirectional=False gives all of them to the keys
    behind, and those ahead share entry 0. T5 keeps an nn.Embedding whose weight is (buckets, heads): the table is
    ``weight.T``, its encoder's `bidirectional=True`, its decoder's False, and its scale is 1.

    Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".

    >>> biases.relative(torch.zeros(4, 32), biases.t5(128))
    relative(4×32, t5())
    """
    checks.choice("t5", "bidirectional", bidirectional, (True, False))
    return T5(checks.whole_number("t5", "max_distance", max_distance, least=1), bool(bidirectional))


def exact(lowest: int) -> Entries:
    """Every distance d = j - p_i has an entry of its own, d - lowest; also one that a mask hides needs it.

    >>> biases.relative(torch.zeros(1, 11), biases.exact(-5))
    relative(1×11, exact(-5))
    """
    return Exact(checks.whole_number("exact", "lowest", lowest, least=-checks.FARTHEST))


def relative(table: Tensor, by: Entries = clipped()) -> Bias:  # noqa: B008 (a frozen value)
    """Adds table[h, entry of d] by the distance d = j - p_i; table (heads or 1, entries) of floats, can be learned.

    `by` says which entry a distance takes: clipped(), t5() or exact(lowest). Memory is O(n) at any length.
    ShapeError if the table has a number of entries that `by` cannot have, or, on a matrix, if a distance that occurs has
    no entry or the heads differ.

    >>> table = torch.tensor([[0.0, 3.0, 0.0]]).log()
    >>> regard.attention(z, z, bias=biases.relative(table)).to_dense()
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    checks.entries(by)
    weights = checks.weights("relative", "table", table, {2: "(heads or 1, entries)"})
    checks.entries_fit(by, weights)
    return Relative(Held(weights), by)


def dense(tensor: Tensor) -> Bias:
    """Adds a float tensor, broadcastable to (batch, heads, queries, keys); can be learned. -inf hides a pair.

    >>> bias = biases.dense(torch.tensor([[0.0, 0.0, -torch.inf]]))
    >>> regard.attention(z, z, bias=bias).to_dense()
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000]])
    """
    return Dense(Held(checks.dense_bias(tensor)))
