"""What a person gets to see: the explanation of a matrix, its picture in a notebook, and the image file inside."""

from __future__ import annotations

import base64
import html
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard import biases, picture
from regard.backends.reference import Reference
from regard.backends.tiled import Tiled
from regard.masks import Mask, causal, dense, full, padding, where, window
from regard.picture import png
from regard.readouts import Diagonal, Entropy, LogSumExp, Max, Pool, Received, Rows, TopK
from regard.readouts.output import Output
from regard.readouts.transposed import Transposed
from regard.scores import additive

DIM = 8


def matrix(queries: int = 5, keys: int = 6, batch: int = 2, heads: int = 4, **options) -> regard.Attention:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, h, n, DIM, generator=generator) for h, n in ((heads, queries), (heads // 2 or 1, keys)))
    return regard.attention(q, k, **options)


def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_):
        raise AssertionError("computed")

    for backend in (Tiled, Reference):
        monkeypatch.setattr(backend, "read", read)


def two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The explanations of a machine that has these and no others."""
    monkeypatch.setattr("regard.backends.BACKENDS", {"tiled": Tiled, "reference": Reference})


# -- explain ----------------------------------------------------------------------------------------------------------


def test_explanation_in_full(monkeypatch):
    two_backends(monkeypatch)
    nothing_is_computed(monkeypatch)
    A = matrix(mask=causal & window(2, 0))
    inputs = 4 * (2 * 4 * 5 * DIM + 2 * 2 * 6 * DIM)
    pairs = 2 * 4 * 5 * 6  # one tile holds the whole matrix, so everything is computed
    assert repr(A.explain(Entropy(), Received())) == "\n".join(
        [
            "attention (batch, heads, queries, keys) = (2, 4, 5, 6)",
            "causal & window(2, 0)",
            "■ ■ · · · ·",
            "■ ■ ■ · · ·",
            "· ■ ■ ■ · ·",
            "· · ■ ■ ■ ·",
            "· · · ■ ■ ■",
            "5 queries × 6 keys (batch row 0, head 0)",
            "computed: 240 of 240 weights (100.0%); stored: none (dense: 960 B)",
            f"Entropy(): first sweep by tiled, {2 * pairs * DIM / 1e9:.3g} GFLOP, {(inputs + 160) / 1024:.3g} KiB moved, "
            "answer 160 B",
            f"Received(): second sweep by tiled, {2 * pairs * 2 * DIM / 1e9:.3g} GFLOP, {(inputs + 192) / 1024:.3g} KiB moved, "
            "answer 192 B",
            "not reference: it only answers when it is named",
        ]
    )


@pytest.mark.parametrize(
    ("question", "sweep", "work", "numbers"),
    [
        (LogSumExp(), "first", DIM, 40),
        (Entropy(), "first", DIM, 40),
        (TopK(3), "first", DIM, 2 * 40 * 3),
        (Max(), "first", DIM, 2 * 40),
        (Output(torch.zeros(2, 4, 6, 7)), "first", DIM + 7, 40 * 7),
        (Received(), "second", 2 * DIM, 48),
        (Diagonal(-1), "second", 2 * DIM, 40),
        (Pool((2, 3)), "second", 2 * DIM, 8 * 6),
        (Rows((0, 2)), "second", 2 * DIM, 2 * 48),
        (Transposed(torch.zeros(2, 4, 5, 3)), "second", 2 * DIM + 3, 48 * 3),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else None,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cost_of_a_question(question, sweep, work, numbers, dtype):
    """Two operations for each multiply-add: dim for a score, once more after the log-sum-exp, and one per column."""
    A = regard.attention(torch.zeros(2, 4, 5, DIM, dtype=dtype), torch.zeros(2, 2, 6, DIM, dtype=dtype), backend="tiled")
    (line,) = A.explain(question).lines
    assert (line.sweep, line.flops) == (sweep, 2 * 240 * work)
    assert line.answer_bytes == numbers * (8 if dtype == torch.float64 else 4)
    assert line.question == (question.name if question.operands else repr(question))
    assert f"{line.question}: {sweep} sweep by tiled" in repr(A.explain(question))


def test_all_that_a_matrix_has_beside_its_mask_is_named_and_counted(monkeypatch):
    nothing_is_computed(monkeypatch)
    table = torch.zeros(4, 5)
    options = {"bias": biases.alibi(4) + biases.relative(table), "softcap": 30.0, "sinks": torch.zeros(4, requires_grad=True)}
    A = matrix(**options, score=additive(torch.zeros(DIM, 3), torch.zeros(DIM, 3), torch.zeros(3)), backend="tiled")
    explained = A.dropout(0.25, 7).explain(Received())
    assert explained.terms == (
        "score: additive(8×3, 8×3, 3)",
        "bias: alibi(4) + relative(4×5, clipped())",
        "softcap: 30.0",
        "sinks: learned",
        "dropout: p = 0.25, seed = 7, in A @ v and A.mT @ r",
    )
    said = repr(explained).splitlines()
    assert said[said.index("5 queries × 6 keys (batch row 0, head 0)") + 1 :][:5] == list(explained.terms)
    (line,) = explained.lines
    assert line.flops == 240 * 2 * (4 * 3 + 3 + 2)  # two walks: four for each unit, the softcap, two parts of the bias
    (line,) = A[..., 1:].explain(Entropy()).lines
    assert line.flops == (200 + 240) * (4 * 3 + 3 + 2)
    for name in ("bias", "softcap", "sinks"):
        (term,) = matrix(**{name: options[name]}).explain(Entropy()).terms
        assert term.startswith(f"{name}: ")
    assert matrix(sinks=0.0).explain().terms == ("sinks: given",)
    assert matrix().explain().terms == ()
    assert matrix().dropout(0.5, 0).explain().terms == ("dropout: p = 0.5, seed = 0, in A @ v and A.mT @ r",)


def test_usual_questions_are_explained_unasked():
    assert [line.question for line in matrix().explain().lines] == [
        "output",
        "LogSumExp()",
        "Entropy()",
        "TopK(k=8)",
        "Received()",
    ]


def test_visible_pairs_are_counted_in_tiles():
    tile = 64
    for mask, tiles in ((full, 16), (causal, 10), (~full, 0), (causal & window(tile, 0), 7), (padding(tile), 4)):
        explained = matrix(4 * tile, 4 * tile, mask=mask).explain()
        assert explained.visible == 2 * 4 * tiles * tile**2
        share = f"computed: {explained.visible:,} of {2 * 4 * 16 * tile**2:,} weights ({tiles / 16:.1%}); stored: none"
        assert f"{share} (dense: 2 MiB)" in repr(explained)


def test_a_million_tokens_are_explained_at_once(monkeypatch):
    nothing_is_computed(monkeypatch)
    x = torch.zeros(1, 1 << 20, 4)
    text = repr(regard.attention(x, x, mask=causal & window(4096, 0)).explain())
    assert "1048576 queries × 1048576 keys, one cell = 65536 × 65536" in text
    assert "(dense: 4 TiB)" in text


@pytest.mark.parametrize("demanded", ["tiled", "reference"])
def test_a_demanded_backend_is_said_to_be(monkeypatch, demanded):
    two_backends(monkeypatch)
    other = {"tiled": "reference", "reference": "tiled"}[demanded]
    explained = matrix(backend=demanded).explain(Entropy(), Received())
    assert [line.backend for line in explained.lines] == [demanded] * 2
    assert [line.refused for line in explained.lines] == [((other, (f"backend {demanded!r} was demanded",)),)] * 2
    assert f"not {other}: backend {demanded!r} was demanded" in repr(explained)


class Picky(Tiled):
    name = "picky"

    def why_not(self, call, readout=None):
        return ["its tiles are too small", "it is tired"] if isinstance(readout, Entropy) else []


def test_refusals_are_listed_with_all_their_reasons(monkeypatch):
    monkeypatch.setattr("regard.backends.BACKENDS", {"picky": Picky, "tiled": Tiled, "reference": Reference})
    entropy, received = matrix().explain(Entropy(), Received()).lines
    assert entropy.backend == "tiled"
    assert entropy.refused[0] == ("picky", ("its tiles are too small", "it is tired"))
    assert received.backend == "picky"
    assert received.refused == (
        ("tiled", ("picky comes first, and so small a matrix is not worth a comparison",)),
        ("reference", ("it only answers when it is named",)),
    )
    assert "not picky: its tiles are too small; it is tired\n" in repr(matrix().explain(Entropy()))


def by_head_and_row(b, h, i, j):
    return (b + 2 * h + i + 2 * j) % 5 > 1


SLICES = [
    (slice(None),),
    (..., slice(2, 5), slice(1, 4)),
    (..., slice(None, None, 2), slice(1, None, 2)),
    (1, slice(2, None)),
    (1, 3),
    (slice(None), 2),
    ([1, 0], slice(None), slice(1, None)),
    (slice(None), [3, 1], slice(None), slice(None, None, 3)),
    (0, 0, slice(3), slice(4, 5)),
]


@pytest.mark.parametrize("index", SLICES, ids=str)
@pytest.mark.parametrize(
    "mask",
    [
        causal,
        causal & window(1, 0),
        where(by_head_and_row),
        padding([2, 5]),
        dense(torch.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6) % 7 > 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [None, -1, torch.tensor([0, 3])], ids=["last", "-1", "per row"])
def test_a_part_is_drawn_with_its_own_rows_and_columns(index, mask, offset):
    A = matrix(mask=mask, offset=offset)
    seen = mask.to_dense(5, 6, 2, 4, offset)[index]
    seen = seen.reshape(-1, *seen.shape[-2:])[0]  # the first batch row and head of the part
    rows, keys = seen.shape
    lines = repr(A[index].explain()).splitlines()
    assert lines[1] == mask.expression
    assert "\n".join(lines[2 : rows + 3]).startswith(dense(seen).draw(rows, keys) + " (batch row ")
    assert lines[rows + 3].startswith("computed: ")


@pytest.mark.parametrize("index", [(slice(0),), (..., slice(0)), (..., slice(0), slice(None)), (slice(None), slice(0))])
def test_empty_parts_are_explained_without_a_picture(index):
    explained = matrix(mask=causal)[index].explain(Entropy())
    lines = repr(explained).splitlines()
    assert lines[1:3] == ["causal", "computed: 0 of 0 weights (0.0%); stored: none (dense: 0 B)"]
    (entropy,) = (line for line in lines if line.startswith("Entropy(): first sweep by tiled, "))
    assert ("by tiled, 0 GFLOP" in entropy) == (not explained.before)


def test_explaining_a_part_of_the_keys_counts_the_part():
    explained = matrix(256, 256, mask=causal)[..., :128, 128:].explain()
    assert explained.shape == (2, 4, 128, 128)
    assert explained.before == 2 * 4 * (64 * 64 + 64 * 128)  # those queries over all keys, in tiles of 64
    assert explained.visible == 0  # the first half of the queries comes before the second half of the keys
    assert matrix(256, 256, mask=causal)[..., 128:, :128].explain().visible == 2 * 4 * 128 * 128


# -- in a notebook ----------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> np.ndarray:
    """An 8-bit grey PNG read by the letter of its specification; every checksum and length is looked at."""
    assert data[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + length
    assert at == len(data)
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, rest) == (8, 0, [0, 0, 0])
    lines = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()  # no filter
    assert chunks[2][1] == b""
    return lines[:, 1:]


def images(page: str) -> list[np.ndarray]:
    return [decoded(base64.b64decode(data)) for data in re.findall(r"src='data:image/png;base64,([^']*)'", page)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**20))
def test_png_keeps_every_pixel(height, width, seed):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    assert np.array_equal(decoded(png(grey)), grey)
    assert np.array_equal(decoded(png(grey.T)), grey.T)
    assert np.array_equal(decoded(png(grey[::-1, ::2])), grey[::-1, ::2])


def shades(weights: torch.Tensor, bins: tuple[int, int]) -> np.ndarray:
    """The darkness that a matrix must have, by the definition of the mean over bins."""
    rows, columns = ([slice(a * n // b, (a + 1) * n // b) for a in range(b)] for n, b in zip(weights.shape, bins, strict=True))
    means = np.array([[weights[i, j].mean() for j in columns] for i in rows], np.float32)
    return 255 - np.round(255 * np.sqrt(means / means.max()))


@pytest.mark.parametrize("size", [(5, 6), (64, 64), (1, 1), (70, 100)])
def test_the_picture_is_the_matrix(size):
    A = matrix(*size, mask=causal)
    page = A._repr_html_()
    found = images(page)
    assert len(found) == 4
    bins = (min(64, size[0]), min(64, size[1]))
    assert f"mean weight in {bins[0]} × {bins[1]} bins; queries run down, keys across (batch row 0, 4 of 4 heads)" in page
    W = A.to_dense()[0].numpy()
    for head, image in enumerate(found):
        assert image.shape == bins
        due = shades(torch.from_numpy(W[head]), bins)
        assert np.abs(image.astype(int) - due).max() <= 1  # a rounding
        assert (image == 0).any()  # the greatest is black
        if size[1] > 1:
            assert image[0, -1] == 255  # the first query does not see the last key: white
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    if bins == size:
        assert captions == [f"head {h}: up to {W[h].max():.3g}" for h in range(4)]


@pytest.mark.parametrize(
    ("index", "figures", "note"),
    [
        ((0,), 4, ""),
        ((0, 2), 1, ""),
        ((slice(1),), 4, ""),
        ((slice(None), 2), 1, " (batch row 0, 1 of 1 heads)"),
        ((slice(None), slice(1, 3)), 2, " (batch row 0, 2 of 2 heads)"),
        ((1, slice(None), slice(2), slice(3)), 4, ""),
    ],
    ids=str,
)
def test_parts_have_pictures(index, figures, note):
    part = matrix()[index]
    page = part._repr_html_()
    assert len(images(page)) == figures
    assert re.search(r"keys across(.*?)<div", page)[1] == note
    first = part.to_dense().reshape(-1, *part.shape[-2:])[0]
    assert np.abs(images(page)[0].astype(int) - shades(first, tuple(first.shape))).max() <= 1


def test_few_of_many_heads_are_drawn_and_computed(monkeypatch):
    asked = []
    read = Tiled.read

    def counted(self, call, readouts, log_sum):
        asked.append(call.shape)
        return read(self, call, readouts, log_sum)

    monkeypatch.setattr(Tiled, "read", counted)
    page = matrix(batch=3, heads=20)._repr_html_()
    assert len(images(page)) == 16
    assert "(batch row 0, 16 of 20 heads)" in page
    assert set(asked) == {(1, 16, 5, 6)}


def test_plain_and_many_dimensional_matrices_have_pictures():
    x = torch.randn(2, 2, 3, 4, 5)
    assert len(images(regard.attention(x[0, 0, 0], x[0, 0, 0])._repr_html_())) == 1
    assert len(images(regard.attention(x[0, 0], x[0, 0])._repr_html_())) == 3
    assert len(images(regard.attention(x, x)._repr_html_())) == 3
    assert len(images(regard.attention(x, x)[:, :, 0]._repr_html_())) == 1
    assert len(images(regard.attention(x.requires_grad_(), x)._repr_html_())) == 3


def test_a_matrix_without_weights_is_white():
    (image, *_) = images(matrix(mask=~full)._repr_html_())
    assert (image == 255).all()


def test_weights_that_are_not_numbers_are_counted():
    q, k = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    q[0, 1] = float("nan")
    page = regard.attention(q, k)._repr_html_()
    assert ", NaN in 5 bins</figcaption>" in page
    (image,) = images(page)
    assert (image[1] == 255).all()
    assert (image == 0).any()


@pytest.mark.parametrize("index", [(slice(0),), (..., slice(0)), (..., slice(0), slice(None)), (slice(None), slice(0))])
def test_an_empty_matrix_says_so(index):
    part = matrix()[index]
    assert part._repr_html_() == f"<p><code>{part!r}</code>: nothing to draw.</p>"


def test_a_large_matrix_is_not_swept_unasked(monkeypatch):
    nothing_is_computed(monkeypatch)
    x = torch.zeros(1, 1 << 16, 1)
    page = regard.attention(x, x)._repr_html_()
    assert "too large to be drawn unasked; ask for A.pool((64, 64))" in page
    assert not images(page)
    assert picture.SWEEP_LIMIT < 1 << 32


def evil() -> Mask:
    def fn(b, h, i, j):
        return j <= i

    fn.__name__ = "<script>alert('&')</script>"
    return where(fn)


@pytest.mark.parametrize("size", [5, 0, 1 << 16])
def test_names_are_text_and_never_markup(size):
    x = torch.zeros(size, 1)
    page = regard.attention(x, x, mask=evil())._repr_html_()
    assert "script>" not in page.lower()
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in page
    assert html.unescape(re.search("<code>(.*?)</code>", page)[1]) == repr(regard.attention(x, x, mask=evil()))


def test_the_page_needs_nothing_from_elsewhere():
    page = matrix(mask=causal)._repr_html_()
    assert "<script" not in page
    assert "http" not in page
    assert not re.search(r"\son\w+=", page)
    assert page.count("<figure") == page.count("</figure>") == 4
    assert page.count("<div") == page.count("</div>")


def test_repr_is_one_line_and_computes_nothing(monkeypatch):
    nothing_is_computed(monkeypatch)
    assert repr(matrix(mask=causal & window(3, 0))) == "Attention((2, 4, 5, 6), float32, mask=causal & window(3, 0))"


def test_a_picture_with_words_holds_every_weight():
    weights = torch.tensor([[0.75, 0.25, 0.0], [0.04, 0.96, 0.0]])
    drawn = picture.svg(weights, ["to", "<help>"], ["zu", "helfen", "&"])
    root = ElementTree.fromstring(drawn)
    squares = [node for node in root.iter() if node.tag.endswith("rect")][1:]
    shades = [tuple(map(int, re.findall(r"\d+", node.attrib["fill"]))) for node in squares]
    expected = [tuple(round(255 + w**0.5 * (full - 255)) for full in (20, 70, 130)) for w in weights.flatten().tolist()]
    assert shades == expected
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert texts == ["to", "<help>", "zu", "helfen", "&", ".75", ".25", ".96"]


def test_a_picture_takes_one_head_of_a_lazy_matrix():
    x = torch.randn(1, 2, 3, DIM)
    A = regard.attention(x, x)
    assert picture.svg(A[0, 1], list("abc"), list("abc")) == picture.svg(A.to_dense()[0, 1], list("abc"), list("abc"))
