"""Every sentence that a matrix can answer with: rule, numbers, shapes. A sentence without a row here fails below."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import regard
from regard import biases, checks, picture
from regard.backends.tiled import Tiled
from regard.biases import alibi, exact, relative, t5
from regard.checks import Changed, ShapeError, TooLarge, Unsupported
from regard.masks import causal, dense, documents, padding, prefix, where, window
from regard.pretrained import Pretrained
from regard.readouts import Columns, Diagonal, Mass, Pool, Readout, Rows, TopK
from regard.scores import additive, bilinear, cosine

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
YES = torch.ones(5, 6, dtype=torch.bool)


def matrix(**options: Any) -> regard.Attention:
    """Shape (2, 4, 5, 6), two key heads."""
    return regard.attention(Q, K, **options)


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def changed(which: str) -> Any:
    """Asks a matrix one of whose tensors has changed in place since."""
    q, k, keep = Q.clone(), K.clone(), torch.ones(2, 6, dtype=torch.bool)
    A = regard.attention(q, k, mask=causal & padding(keep=keep))
    {"query": q, "key": k, "mask": keep}[which].zero_()
    return A.entropy()


def changed_below_a_part() -> Any:
    q = Q.clone()
    part = regard.attention(q, K)[..., 1:, 2:]
    q[0, 0, 0] = 0  # of another query, but of the same memory
    return part @ zeros(4, 1)


@dataclass(frozen=True)
class Odd(Readout):
    """A question that is neither online nor finished."""

    def dense(self, matrix: Any) -> Any:
        return (matrix.weights,)

    def size(self, call: Any) -> int:
        return 1


class Absent(Tiled):
    name = "absent"

    def why_not(self, call: Any, readout: Any = None) -> list[str]:
        return ["it needs a GPU", "it knows no masks"]


def row(kind: type[Exception], call: Callable[[], Any], *fragments: str) -> Any:
    return pytest.param(kind, call, fragments, id=fragments[0][:60])


CALL = [
    row(TypeError, lambda: regard.attention([[1.0]], K), "attention: query must be a tensor; got list."),
    row(TypeError, lambda: regard.attention(Q, None), "attention: key must be a tensor; got NoneType."),
    row(
        TypeError,
        lambda: regard.attention(Q.long(), K.long()),
        "attention: query must be float16, bfloat16, float32 or float64; got torch.int64 of shape (2, 4, 5, 8).",
    ),
    row(TypeError, lambda: regard.attention(Q, K.cfloat()), "attention: key must be float16", "got torch.complex64"),
    row(
        TypeError,
        lambda: regard.attention(torch.eye(3).to_sparse(), torch.eye(3)),
        "attention: query must be a dense tensor; got layout torch.sparse_coo: pad it",
        "masks.padding(lengths)",
    ),
    row(
        TypeError,
        lambda: regard.attention(Q, K.double()),
        "attention: query and key must have one dtype; got torch.float32 and torch.float64",
        "(query (2, 4, 5, 8), key (2, 2, 6, 8)).",
    ),
    row(
        ValueError,
        lambda: regard.attention(Q, K.to("meta")),
        "attention: query and key must be on one device; got cpu and meta",
        "(query (2, 4, 5, 8), key (2, 2, 6, 8)).",
    ),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[0]),
        "attention: query and key must both be (…, heads, n, dim), or both (n, dim); got 4 and 3 dimensions",
        "(query (2, 4, 5, 8), key (2, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(zeros(8), zeros(8)), "got 1 and 1 dimensions (query (8,), key (8,))."),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[..., :7]),
        "attention: query and key must have the same dim, at least 1; got 8 and 7",
        "(query (2, 4, 5, 8), key (2, 2, 6, 7)).",
    ),
    row(ShapeError, lambda: regard.attention(zeros(3, 0), zeros(3, 0)), "the same dim, at least 1; got 0 and 0"),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[:1]),
        "attention: query and key must have the same batch dimensions; got (2,) and (1,)",
        "(query (2, 4, 5, 8), key (1, 2, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(Q[None], K[None, :1]), "batch dimensions; got (1, 2) and (1, 1)"),
    row(
        ShapeError,
        lambda: regard.attention(Q, zeros(2, 3, 6, 8)),
        "attention: the number of key heads must divide the number of heads; got 4 heads and 3 key heads",
        "(query (2, 4, 5, 8), key (2, 3, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(Q[:, :2], zeros(2, 4, 6, 8)), "got 2 heads and 4 key heads"),
    row(ShapeError, lambda: regard.attention(Q, zeros(2, 0, 6, 8)), "got 4 heads and 0 key heads"),
    row(ShapeError, lambda: regard.attention(Q[:, :0], K), "got 0 heads and 2 key heads"),
    row(TypeError, lambda: matrix(scale="1"), "attention: scale must be a finite number; got '1'."),
    row(TypeError, lambda: matrix(scale=True), "attention: scale must be a finite number; got True."),
    row(TypeError, lambda: matrix(scale=float("nan")), "attention: scale must be a finite number; got nan."),
    row(TypeError, lambda: matrix(scale=float("-inf")), "attention: scale must be a finite number; got -inf."),
    row(
        TypeError,
        lambda: matrix(offset=1.5),
        "attention: offset must be None, an int or an integer tensor of shape (batch,); got 1.5.",
    ),
    row(TypeError, lambda: matrix(offset=True), "an integer tensor of shape (batch,); got True."),
    row(TypeError, lambda: matrix(offset=zeros(2)), "an integer tensor of shape (batch,); got tensor([0., 0.])."),
    row(TypeError, lambda: matrix(offset=torch.tensor([True, False])), "got tensor([ True, False])."),
    row(TypeError, lambda: matrix(offset=zeros(dtype=torch.cdouble)), "(batch,); got tensor(0.+0.j, dtype=torch.compl"),
    row(
        ShapeError,
        lambda: matrix(offset=torch.tensor([1, 2, 3])),
        "attention: offset must have shape (batch,) = (2,); got (3,).",
    ),
    row(ShapeError, lambda: matrix(offset=torch.tensor([[1, 2]])), "shape (batch,) = (2,); got (1, 2)."),
    row(
        ValueError,
        lambda: matrix(backend="quantum"),
        "attention: backend must be one of 'fused', 'tiled', 'reference'",
        "; got 'quantum'.",
    ),
    row(ValueError, lambda: matrix(backend=3), "attention: backend must be one of 'fused', 'tiled', ", "; got 3."),
    row(
        Unsupported,
        lambda: matrix(backend=Absent()).entropy(),
        "backend 'absent' cannot answer: it needs a GPU; it knows no masks.",
    ),
    row(
        Unsupported,
        lambda: matrix().read(Odd()),
        "no backend can answer; fused: it answers the output and the log-sum-exp, and not odd. tiled: Odd is neither an Online",
        "FinishedReadout. reference: it only answers when it is named.",
    ),
]

MASKS = [
    row(TypeError, lambda: matrix(mask="causal"), "attention: mask must be one of regard.masks, such as", "; got str."),
    row(
        TypeError,
        lambda: matrix(mask=YES),
        "attention: a boolean tensor of shape (5, 6) does not say whether True keeps or drops",
        "dense(tensor) if True = may attend, dense(~tensor) if True = hidden; for (batch, keys), padding(keep=tensor).",
    ),
    row(
        TypeError,
        lambda: matrix(mask=YES.float()),
        "attention: a mask is boolean; got a torch.float32 tensor of shape (5, 6).",
        "numbers that are added to the scores are a bias",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=padding([3, 2, 1])),
        "attention: padding has 3 lengths and the batch 2 rows (batch 2, heads 4, queries 5, keys 6).",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=dense(YES.T)),
        "attention: dense mask of shape (6, 5) does not broadcast to (2, 4, 5, 6)",
        " (batch 2, heads 4, queries 5, keys 6).",
    ),
    row(
        ValueError,
        lambda: matrix(mask=causal & dense(YES.to("meta"))),
        "attention: mask and query must be on one device; got meta and cpu.",
    ),
    row(TypeError, lambda: dense(3), "dense: needs a boolean tensor; got int."),
    row(
        TypeError,
        lambda: padding(keep=torch.ones(2, 6).long()),
        "padding(keep=…): must be boolean, (batch, keys), True for the keys to keep; got torch.int64 of shape (2, 6).",
        "If 1 means keep, write padding(keep=tensor.bool()).",
    ),
    row(TypeError, lambda: causal & 3, "mask & other: a mask combines with masks only; got int."),
    row(TypeError, lambda: causal | YES, "mask | tensor: a boolean tensor of shape (5, 6) does not say whether True keeps"),
    row(TypeError, lambda: causal.allows(0, 0, torch.tensor(1.5), 0), "allows: batch, head, query and key are integers"),
    row(ValueError, lambda: Diagonal(2**70), f"diagonal: offset must be at most 2**60; got {2**70}."),
    row(
        ShapeError,
        lambda: dense(YES[None, None, None]),
        "dense: needs 1 to 4 dimensions; got 5 (shape (1, 1, 1, 5, 6)).",
    ),
    row(TypeError, lambda: padding(zeros(2)), "padding: lengths must be integers; got torch.float32 of shape (2,)."),
    row(
        TypeError,
        lambda: padding(YES[0]),
        "padding: lengths must be integers; got torch.bool",
        "is padding(keep=tensor).",
    ),
    row(ShapeError, lambda: padding(torch.tensor([[1]])), "padding: lengths must have shape (batch,); got (1, 1)."),
    row(ShapeError, lambda: padding([]), "padding: lengths must name at least one batch row; got none."),
    row(TypeError, lambda: window(1.0), "window: left must be an integer; got 1.0."),
    row(ValueError, lambda: window(1, -1), "window: right must be at least 0; got -1."),
    row(TypeError, lambda: where(YES), "where: needs a function of (batch, head, query, key); got Tensor."),
    row(
        TypeError,
        lambda: matrix(mask=where(lambda b, h, i, j: i - j)).entropy(),
        "where(<lambda>): the function must return a boolean tensor; got torch.int64.",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=where(lambda b, h, i, j: torch.ones(7, 1, dtype=torch.bool))).entropy(),
        "where(<lambda>): the function's result must broadcast to (batch, heads, queries, keys) = (2, 4, 5, 6)",
        "; got (7, 1).",
    ),
    row(
        TypeError,
        lambda: bool(causal | window(2)),
        "a mask is not true or false: combine masks with & | ~ instead of and, or, not; got `causal | window(2)`.",
    ),
]

BIASES_AND_SCORES = [
    row(TypeError, lambda: alibi(2.5), "alibi: heads must be an integer; got 2.5."),
    row(ValueError, lambda: alibi(0), "alibi: heads must be at least 1; got 0."),
    row(TypeError, lambda: alibi(torch.arange(4)), "alibi: slopes must be float16", "got torch.int64 of shape (4,)."),
    row(ShapeError, lambda: alibi(zeros(4, 1, 1)), "alibi: slopes must have shape (heads,); got (4, 1, 1)."),
    row(TypeError, lambda: relative([0.0] * 5), "relative: table must be a tensor; got list."),
    row(TypeError, lambda: relative(zeros(4, 5, dtype=torch.cfloat)), "relative: table must be", "got torch.complex64"),
    row(ShapeError, lambda: relative(zeros(5)), "relative: table must have shape (heads or 1, entries); got (5,)."),
    row(
        ShapeError,
        lambda: relative(zeros(4, 6)),
        "relative: clipped() needs an odd number of entries, 2m + 1 for the distances -m … m; got 6 (table (4, 6)).",
    ),
    row(ShapeError, lambda: relative(zeros(4, 3), t5()), "relative: t5() needs at least 4 entries; got 3 (table (4, 3))."),
    row(
        ShapeError,
        lambda: relative(zeros(4, 32), t5(8)),
        "relative: t5(max_distance=8) needs max_distance above 8, the distances with an entry of their own among 32",
        "(table (4, 32)).",
    ),
    row(ValueError, lambda: t5(0), "t5: max_distance must be at least 1; got 0."),
    row(ValueError, lambda: t5(bidirectional="no"), "t5: bidirectional must be one of True, False; got 'no'."),
    row(TypeError, lambda: exact(-3.0), "exact: lowest must be an integer; got -3.0."),
    row(
        TypeError,
        lambda: relative(zeros(4, 5), t5),
        "relative: by must be clipped(), t5() or exact(lowest) of regard.biases; got t5.",
    ),
    row(TypeError, lambda: relative(zeros(4, 5), 2), "relative: by must be clipped(), t5() or exact(lowest)", "; got 2."),
    row(
        TypeError,
        lambda: biases.dense(YES),
        "dense: a bias is made of numbers that are added to the scores; got a boolean tensor of shape (5, 6).",
        "write mask=regard.masks.dense(tensor) if True = may attend, dense(~tensor) if True = hidden.",
    ),
    row(
        TypeError,
        lambda: biases.dense(YES.long()),
        "dense: a bias is made of floating-point numbers; got torch.int64 of shape (5, 6).",
        "regard.biases.dense(tensor.float()) to add them, mask=regard.masks.dense(tensor.bool()) if 1 means may attend.",
    ),
    row(TypeError, lambda: biases.dense(0.5), "dense: the bias must be a tensor; got float."),
    row(TypeError, lambda: biases.dense(YES.cfloat()), "dense: the bias must be float16", "got torch.complex64"),
    row(ShapeError, lambda: biases.dense(zeros()), "dense: the bias needs 1 to 4 dimensions; got 0 (shape ())."),
    row(
        TypeError,
        lambda: alibi(4) + zeros(5, 6),
        "bias + tensor: got a torch.float32 tensor of shape (5, 6): write bias + regard.biases.dense(tensor).",
    ),
    row(TypeError, lambda: zeros(5, 6) + alibi(4), "bias + tensor: got a torch.float32 tensor of shape (5, 6)"),
    row(TypeError, lambda: alibi(4) + causal, "bias + mask: a mask is not added; pass it beside the bias", "got `causal`."),
    row(
        TypeError,
        lambda: 1.5 + alibi(4),
        "bias + other: a bias adds to biases only, such as alibi(8) + dense(tensor); got float. One number added",
    ),
    row(
        TypeError,
        lambda: matrix(bias=zeros(5, 6)),
        "attention: a bias is one of regard.biases; got a torch.float32 tensor of shape (5, 6): write",
        "regard.biases.dense(tensor).",
    ),
    row(TypeError, lambda: matrix(bias=causal), "attention: a mask is not a bias; pass it as mask=…; got `causal`."),
    row(TypeError, lambda: matrix(bias=alibi), "attention: bias must be one of regard.biases, such as alibi(8); got function."),
    row(
        ShapeError,
        lambda: matrix(bias=alibi(8) + biases.dense(zeros(6, 5))),
        "attention: alibi has 8 slopes and the matrix 4 heads; dense bias of shape (6, 5) does not broadcast to (2, 4, 5, 6)",
        "(batch 2, heads 4, queries 5 at positions 1 … 5, keys 6).",
    ),
    row(
        ShapeError,
        lambda: matrix(bias=relative(zeros(1, 7), exact(-3))),
        "attention: a table of shape (1, 7) with exact(-3) covers the distances -3 … 3, and -5 … 4 occur (batch 2",
    ),
    row(
        ValueError,
        lambda: matrix(bias=alibi(zeros(4, device="meta"))),
        "attention: bias and query must be on one device; got meta and cpu.",
    ),
    row(
        TypeError,
        lambda: matrix(score="cosine"),
        "attention: score must be one of regard.scores, such as cosine(0.1); got str.",
    ),
    row(TypeError, lambda: matrix(score=cosine), "attention: score must be one of regard.scores", "; got cosine."),
    row(
        ShapeError,
        lambda: matrix(score=bilinear(zeros(8, 7))),
        "attention: weight of shape (8, 7) must be (dim 8, key_dim 8), alone or with 4 heads in front",
        "(heads 4, kv_heads 2, dim 8, key_dim 8).",
    ),
    row(
        ValueError,
        lambda: matrix(score=bilinear(zeros(8, 8, device="meta"))),
        "attention: score and query must be on one device; got meta and cpu.",
    ),
    row(
        TypeError,
        lambda: matrix(score=bilinear(zeros(8, 8, dtype=torch.float64))),
        "attention: a score with float64 tensors would be computed in float32 for a query of torch.float32; give both in",
        "(`bilinear(8×8)`).",
    ),
    row(TypeError, lambda: cosine(0), "cosine: temperature must be a finite number above 0, or a tensor of them; got 0."),
    row(TypeError, lambda: cosine(True), "cosine: temperature must be a finite number above 0", "; got True."),
    row(TypeError, lambda: cosine(torch.tensor(1)), "cosine: temperature must be float16", "got torch.int64 of shape ()."),
    row(ShapeError, lambda: cosine(zeros(4, 1)), "cosine: temperature must have shape () or (heads,); got (4, 1)."),
    row(TypeError, lambda: bilinear(zeros(8, 8, dtype=torch.cfloat)), "bilinear: weight must be float16", "complex64"),
    row(
        ShapeError,
        lambda: bilinear(zeros(8)),
        "bilinear: weight must have shape (dim, key_dim) or (heads, dim, key_dim); got (8,).",
    ),
    row(
        ShapeError,
        lambda: additive(zeros(8, 3), zeros(8, 3), zeros(3, 1, 1)),
        "additive: v must have shape (hidden,) or (heads, hidden); got (3, 1, 1).",
    ),
    row(TypeError, lambda: additive(zeros(8, 3), zeros(8, 3).long(), zeros(3)), "additive: w_key must be float16"),
]

IDS = torch.tensor([0, 0, 0, 1, 1, 2])
JAGGED = torch.nested.nested_tensor([IDS[:2], IDS], layout=torch.jagged)

PACKED = [
    row(
        TypeError,
        lambda: regard.attention(JAGGED.float(), JAGGED.float()),
        "attention: query must be a dense tensor; got layout torch.jagged: pad it and say so with masks.padding(lengths)",
        ", or pack it into one row and say so with masks.documents(ids).",
    ),
    row(ValueError, lambda: prefix(-1), "prefix: n must be at least 0; got -1."),
    row(TypeError, lambda: prefix(2.0), "prefix: n must be an integer; got 2.0."),
    row(
        TypeError,
        lambda: documents(JAGGED),
        "documents: ids must be a dense tensor; got layout nested. The mask of a packed (jagged) tensor is",
        "masks.documents.from_cu_seqlens(tensor.offsets()).",
    ),
    row(TypeError, lambda: documents(IDS.to_sparse()), "documents: ids must be a dense tensor; got layout torch.sparse_coo."),
    row(TypeError, lambda: documents(IDS.float()), "documents: ids must be integers; got torch.float32 of shape (6,)."),
    row(TypeError, lambda: documents(IDS, IDS > 0), "documents: query_ids must be integers; got torch.bool of shape (6,)."),
    row(TypeError, lambda: documents([[0], [0, 1]]), "documents: ids must be integers; got [[0], [0, 1]]."),
    row(TypeError, lambda: documents("ab"), "documents: ids must be integers; got 'ab'."),
    row(
        ShapeError,
        lambda: documents(IDS[None, None]),
        "documents: ids must have one dimension, or two with the batch; got shape (1, 1, 6).",
    ),
    row(ShapeError, lambda: documents(3), "documents: ids must have one dimension, or two with the batch; got shape ()."),
    row(
        ValueError,
        lambda: documents(IDS, IDS.to("meta")),
        "documents: ids and query_ids must be on one device; got cpu and meta.",
    ),
    row(
        ShapeError,
        lambda: documents(IDS.expand(2, 6), IDS.expand(3, 6)),
        "documents: ids and query_ids must have the same batch rows; got (2, 6) and (3, 6).",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=documents(IDS[:5])),
        "attention: documents has 5 ids and the matrix 6 keys (batch 2, heads 4, queries 5, keys 6).",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=documents(IDS.expand(3, 6), IDS)),
        "attention: documents has 3 rows of ids and the matrix 2; documents has 6 query_ids and the matrix 5 queries (batch",
    ),
    row(
        ShapeError,
        lambda: documents.from_cu_seqlens([[0, 3]]),
        "documents: cu_seqlens must have shape (documents + 1,), as [0, 3, 10] has; got shape (1, 2).",
    ),
    row(ShapeError, lambda: documents.from_cu_seqlens(IDS[:0]), "(documents + 1,), as [0, 3, 10] has; got shape (0,)."),
    row(
        ValueError,
        lambda: documents.from_cu_seqlens([1, 3]),
        "documents: cu_seqlens must begin with 0 and never fall, as in [0, 3, 10]; the first is 1.",
    ),
    row(ValueError, lambda: documents.from_cu_seqlens([0, 3], [0, 4, 2]), "query_cu_seqlens must", "; falls after entry 1."),
    row(TypeError, lambda: documents.from_cu_seqlens([0, 2.5]), "documents: cu_seqlens must be integers; got torch.float32"),
    row(
        ShapeError,
        lambda: documents.from_cu_seqlens([0, 3, 6], [0, 5]),
        "documents: cu_seqlens and query_cu_seqlens must name equally many documents; got 2 and 1.",
    ),
    row(
        ValueError,
        lambda: matrix(mask=where(lambda b, h, i, j: (i >= j).to("meta"))).entropy(),
        "where(<lambda>): the function must return a tensor on the device of its indices, cpu; got meta.",
    ),
    row(ValueError, lambda: causal.to_dense(-1, 3), "to_dense: queries must be at least 0; got -1."),
    row(TypeError, lambda: causal.to_dense(2, 3, heads=1.5), "to_dense: heads must be an integer; got 1.5."),
    row(TypeError, lambda: causal.to_dense(2, 3, offset=0.5), "to_dense: offset must be an integer; got 0.5."),
    row(
        TypeError,
        lambda: causal.to_dense(2, 3, offset=zeros(1)),
        "to_dense: offset must be an int or an integer tensor of shape (batch,); got torch.float32.",
    ),
    row(
        ShapeError,
        lambda: causal.to_dense(3, 3, batch=2, offset=torch.tensor([1])),
        "to_dense: offset must have shape (batch,) = (2,); got (1,).",
    ),
]

QUESTIONS = [
    row(TypeError, lambda: matrix() @ [1.0] * 6, "A @ v: values must be a tensor; got list."),
    row(TypeError, lambda: matrix() @ matrix(), "A @ v: values must be a tensor; got Attention."),
    row(TypeError, lambda: matrix() @ zeros(6, 2, dtype=torch.int64), "A @ v: values must be float16", "torch.int64"),
    row(
        ValueError,
        lambda: matrix() @ zeros(6, 2, device="meta"),
        "A @ v: values must be on the matrix's device cpu; got meta.",
    ),
    row(
        ShapeError,
        lambda: matrix() @ torch.tensor(1.0),
        "A @ v: values must have one row for each of 6 keys; got a number.",
    ),
    row(
        ShapeError,
        lambda: matrix() @ zeros(2, 2, 5, 3),
        "A @ v: keys and values must have the same length; got 6 keys (matrix (2, 4, 5, 6)) and 5 values",
        "(shape (2, 2, 5, 3)).",
    ),
    row(ShapeError, lambda: matrix() @ zeros(5), "got 6 keys (matrix (2, 4, 5, 6)) and 5 values (shape (5,))."),
    row(
        ShapeError,
        lambda: matrix() @ zeros(2, 3, 6, 3),
        "A @ v: values must have shape (…, heads, keys, columns) with keys = 6 and heads one of [1, 2, 4]",
        "; got (2, 3, 6, 3) for a matrix of shape (2, 4, 5, 6).",
    ),
    row(ShapeError, lambda: matrix() @ zeros(3, 4, 6, 3), "; got (3, 4, 6, 3) for a matrix of shape (2, 4, 5, 6)."),
    row(ShapeError, lambda: matrix() @ zeros(1, 2, 4, 6, 3), "; got (1, 2, 4, 6, 3) for a matrix of shape (2, 4, 5, 6)."),
    row(
        ShapeError,
        lambda: matrix()[0, 0] @ zeros(2, 6, 3),
        "A @ v: values must have shape (…, keys, columns) with keys = 6; got (2, 6, 3) for a matrix of shape (5, 6).",
    ),
    row(ShapeError, lambda: matrix().read(value=zeros(7, 1)), "A @ v: keys and values", "and 7 values (shape (7, 1))."),
    row(
        ShapeError,
        lambda: matrix()[..., 2:] @ zeros(6, 1),
        "got 4 keys (matrix (2, 4, 5, 4)) and 6 values (shape (6, 1)).",
    ),
    row(TypeError, lambda: matrix().mT @ 3, "A.mT @ r: rows of r must be a tensor; got int."),
    row(
        ShapeError,
        lambda: matrix().mT @ torch.tensor(1.0),
        "A.mT @ r: rows of r must have one row for each of 5 queries;",
    ),
    row(
        ShapeError,
        lambda: matrix().mT @ zeros(6, 1),
        "A.mT @ r: queries and rows of r must have the same length; got 5 queries (matrix (2, 4, 5, 6))",
        "and 6 rows of r (shape (6, 1)).",
    ),
    row(
        ShapeError,
        lambda: matrix().mT @ zeros(2, 2, 5, 1),  # r has the query heads', never the key heads' number
        "A.mT @ r: rows of r must have shape (…, heads, queries, columns) with queries = 5 and heads one of [1, 4]",
        "; got (2, 2, 5, 1) for a matrix of shape (2, 4, 5, 6).",
    ),
    row(TypeError, lambda: zeros(3, 5) @ matrix(), "v @ A is not a question to an attention matrix: A @ v averages"),
    row(TypeError, lambda: torch.matmul(zeros(3, 5), matrix()), "v @ A is not a question", "A.mT @ r sums"),
    row(TypeError, lambda: np.ones((3, 5)) @ matrix(), "v @ A is not a question to an attention matrix"),
    row(
        TooLarge,
        lambda: matrix().to_dense(limit=959),
        "to_dense: a matrix of shape (2, 4, 5, 6) would take 960 B, above the limit of 959 B.",
        "A @ v, A.topk(k), A.entropy(), A.sum(-2), A.pool((64, 64))",
        "to_dense(limit=None)",
    ),
    row(
        TooLarge,
        lambda: regard.attention(zeros(1 << 15, 1), zeros(1 << 15, 1)).to_dense(),
        "to_dense: a matrix of shape (32768, 32768) would take 4 GiB, above the limit of 1 GiB.",
    ),
    row(
        Unsupported,
        lambda: torch.diagonal(matrix()),
        "torch.diagonal counts from the matrix's corner; A.diagonal(offset) counts",
    ),
    row(ValueError, lambda: matrix().topk(0), "topk: k must be at least 1; got 0."),
    row(TypeError, lambda: matrix().topk(2.5), "topk: k must be an integer; got 2.5."),
    row(TypeError, lambda: Diagonal("1"), "diagonal: offset must be an integer; got '1'."),
    row(TypeError, lambda: matrix().pool(64), "pool: bins must be a tuple of two integers, (rows, columns); got 64."),
    row(ValueError, lambda: matrix().pool((0, 3)), "pool: rows must be at least 1; got 0."),
    row(ValueError, lambda: Pool((3, 3), "median"), "pool: reduce must be one of 'mean', 'max', 'sum'; got 'median'."),
    row(TypeError, lambda: Rows([1]), "rows: indices must be a tuple of integers; got [1]."),
    row(ValueError, lambda: Rows((-1,)), "rows: an index must be at least 0; got -1."),
    row(IndexError, lambda: matrix().read(Rows((0, 5))), "rows: indices must be below the 5 queries; got 5."),
    row(
        TypeError,
        lambda: matrix().read(TopK),
        "read: questions are values of regard.readouts, such as TopK(8); got <class 'regard.readouts.topk.TopK'>.",
    ),
    row(AttributeError, lambda: matrix().read().entropy, "reading has no single 'entropy'; it answers nothing."),
    row(AttributeError, lambda: matrix().read(TopK(2)).entropy, "reading has no single 'entropy'; it answers topk."),
    row(
        AttributeError,
        lambda: matrix().read(TopK(1), TopK(2)).topk,
        "reading has no single 'topk'; 2 readouts have that name: use reading[readout].",
    ),
    row(
        Changed,
        lambda: changed("query"),
        "attention: a tensor of shape (2, 4, 5, 8) was changed in place after the matrix was built (version 0, now 1)",
        "Build it again, or clone first.",
    ),
    row(Changed, lambda: changed("key"), "attention: a tensor of shape (2, 2, 6, 8) was changed in place"),
    row(Changed, lambda: changed("mask"), "attention: a tensor of shape (2, 6) was changed in place"),
    row(Changed, changed_below_a_part, "was changed in place after the matrix was built (version 0, now 1)"),
]

READOUTS = [
    row(
        TypeError,
        lambda: Mass(zeros(6)),
        "mass: segments must be a dense tensor of integers, one per key; got torch.float32, torch.strided, of shape (6,).",
    ),
    row(TypeError, lambda: Mass(YES[0]), "segments must be a dense tensor of integers, one per key; got torch.bool"),
    row(TypeError, lambda: Mass("ab"), "segments must be a dense tensor of integers, one per key; got 'ab'."),
    row(TypeError, lambda: Mass([[0], [0, 1]]), "one per key; got [[0], [0, 1]]."),
    row(TypeError, lambda: Mass(torch.eye(2).long().to_sparse()), "got torch.int64, torch.sparse_coo, of shape (2, 2)."),
    row(ShapeError, lambda: Mass(torch.tensor(3)), "mass: segments must have shape (keys,) or (batch, keys); got ()."),
    row(ShapeError, lambda: Mass(YES.long()[None]), "mass: segments must have shape (keys,) or (batch, keys); got (1, 5, 6)."),
    row(
        ValueError,
        lambda: Mass([0, 3, -1]),
        "mass: segments must be at least 0 and below count = 4; got numbers from -1 to 3 (shape (3,)).",
    ),
    row(ValueError, lambda: Mass([0, 3], 3), "mass: segments must be at least 0 and below count = 3; got numbers from 0 to 3"),
    row(TypeError, lambda: Mass([0], 1.5), "mass: count must be an integer; got 1.5."),
    row(
        ShapeError,
        lambda: matrix().read(Mass([0] * 5)),
        "mass: segments must have one entry for each of 6 keys, and 1 or 2 batch rows; got (1, 5) for a matrix of shape",
        "(2, 4, 5, 6) (batch, heads, queries, keys).",
    ),
    row(ShapeError, lambda: matrix(backend="reference").read(Mass(torch.zeros(3, 6).long())), "1 or 2 batch rows; got (3, 6)"),
    row(
        TooLarge,
        lambda: matrix().read(Mass([0] * 6, 10**12)),
        "mass: count = 1000000000000 for a matrix of 6 keys (shape (2, 4, 5, 6)) would take 146 TiB, above the limit of 1 GiB:",
        "number the segments without gaps.",
    ),
    row(TypeError, lambda: Columns(1), "columns: indices must be a tuple of integers; got 1."),
    row(ValueError, lambda: Columns((-1,)), "columns: an index must be at least 0; got -1."),
    row(IndexError, lambda: matrix().read(Columns((0, 6))), "columns: indices must be below the 6 keys; got 6."),
    row(
        TooLarge,
        lambda: matrix().topk(10**12),
        "topk: k = 1000000000000 for a matrix of 6 keys (shape (2, 4, 5, 6)) would take 437 TiB, above the limit of 1 GiB:",
        "ask for k = 6 at most.",
    ),
]

LONG = zeros(2, 1 << 15, 1)

TENSORS = [  # what a tensor would have answered
    row(
        TooLarge,
        lambda: regard.attention(LONG, LONG).sum(0),
        "sum: a matrix of shape (1, 32768, 32768) would take 4 GiB, above the limit of 1 GiB. Ask first and average then: ",
        "A.sum(-2).mean(1), A.pool((64, 64)).mean(1), A.topk(8).",
    ),
    row(TooLarge, lambda: torch.mean(regard.attention(LONG, LONG), 0), "mean: a matrix of shape (1, 32768, 32768)"),
    row(
        TooLarge,
        lambda: torch.stack([regard.attention(LONG[0, :8192], LONG[0, :8192]) for _ in range(5)]),
        "stack: a matrix of shape (5, 8192, 8192) would take 1.25 GiB, above the limit of 1 GiB. Take less of it, ",
    ),
    row(TypeError, lambda: matrix().to_dense("x"), "to_dense: limit (in bytes) must be an integer; got 'x'."),
    row(ValueError, lambda: matrix().to_dense(limit=-1), "to_dense: limit (in bytes) must be at least 0; got -1."),
    row(IndexError, lambda: matrix().sum(4), "sum: dim must be an integer from -4 to 3; got 4."),
    row(IndexError, lambda: matrix().sum("x"), "sum: dim must be an integer from -4 to 3; got 'x'."),
    row(IndexError, lambda: matrix().sum(True), "sum: dim must be an integer from -4 to 3; got True."),
    row(IndexError, lambda: matrix().sum((1, 9)), "sum: dim must be an integer from -4 to 3; got 9."),
    row(IndexError, lambda: matrix().mean((2, -2)), "mean: a dimension is named once; got (2, -2) of 4 dimensions."),
    row(IndexError, lambda: matrix().size(4), "size: dim must be an integer from -4 to 3; got 4."),
    row(
        Unsupported,
        lambda: matrix().amax(1),
        "amax: over dim 1 it would be a stored matrix: use dim=-1 (the largest weight of each query), -2 (of each key)",
        "or A.to_dense().amax(dim).",
    ),
    row(
        Unsupported,
        lambda: matrix().argmax(2),
        "argmax: an attention matrix knows the strongest key of each query, dim=-1; got dim 2.",
        "A.topk(k) gives more of them",
    ),
    row(Unsupported, lambda: torch.argmax(matrix()), "argmax: an attention matrix knows", "got dim None."),
    row(Unsupported, lambda: matrix().max(dim=0), "max: an attention matrix knows the strongest key", "got dim 0."),
    row(
        Unsupported,
        lambda: torch.topk(matrix(), 2, largest=False),
        "topk: an attention matrix has the largest weights of each query, descending: dim=-1, largest=True, sorted=True;",
        "got dim=-1, largest=False, sorted=True.",
    ),
    row(Unsupported, lambda: matrix().topk(2, dim=2), "topk: an attention matrix has the largest", "got dim=2, largest=True"),
    row(Unsupported, lambda: matrix().topk(2, sorted=False), "topk: an attention matrix has the largest", "sorted=False."),
    row(IndexError, lambda: matrix().topk(2, 4), "topk: dim must be an integer from -4 to 3; got 4."),
    row(
        Unsupported,
        lambda: torch.softmax(matrix(), -1),
        "torch.softmax does not know an attention matrix: its rows are softmaxes already",
        "or build it with A.to_dense().",
    ),
    row(Unsupported, lambda: torch.einsum("bhij,bhjd->bhid", matrix(), Q), "torch.einsum does not know", "A @ v averages"),
    row(Unsupported, lambda: torch.nn.functional.dropout(matrix(), 0.1), "torch.dropout does not", "A.dropout(p, seed)"),
    row(Unsupported, lambda: torch.trapezoid(matrix()), "torch.trapezoid does not know an attention matrix: ask it with"),
    row(Unsupported, lambda: zeros(6) * matrix(), "torch.mul does not know an attention matrix: ask first and compute then"),
    row(
        Unsupported,
        lambda: matrix() * 2,
        "A * x would be a stored matrix: ask first and compute then, as in (A @ v) * x, A.sum(-2) * x",
        "or build A with A.to_dense().",
    ),
    row(Unsupported, lambda: 2 - matrix(), "x - A would be a stored matrix: ask first and compute then"),
    row(Unsupported, lambda: np.ones(6) / matrix(), "x / A would be a stored matrix"),
    row(Unsupported, lambda: matrix() + matrix(), "A + x would be a stored matrix"),
    row(Unsupported, lambda: -matrix(), "-A would be a stored matrix"),
    row(Unsupported, lambda: abs(matrix().mT), "abs(A.mT) would be a stored matrix"),
    row(Unsupported, lambda: matrix() > 0.5, "A > x would be a stored matrix: A.topk(k) names what is strong"),
    row(Unsupported, lambda: matrix() == 0, "A == x would be a stored matrix: A.topk(k) names what is strong"),
    row(Unsupported, lambda: bool(matrix()), "A is neither true nor false: compare it with None, or ask it a question."),
    row(
        Unsupported,
        lambda: matrix().__setitem__(0, 0.0),
        "A is not stored, and nothing is written to it: what is hidden is said when the matrix is built",
    ),
    row(
        checks.NotATensor,
        lambda: matrix().view(-1),
        "A is not stored and has no view: the answers are tensors: ask first and reshape then, or build it with A.to_dense().",
    ),
    row(checks.NotATensor, lambda: matrix().masked_fill(YES, 0), "has no masked_fill: what is hidden is said when"),
    row(checks.NotATensor, lambda: matrix().zero_(), "has no zero_: what is hidden is said when"),
    row(checks.NotATensor, lambda: matrix().T, "A is not stored and has no T: A.mT exchanges queries and keys, or build"),
    row(checks.NotATensor, lambda: matrix().mT.sum(-1), "A.mT is not stored and has no sum: ask it with its own methods"),
    row(AttributeError, lambda: matrix().entropi, "'Attention' object has no attribute 'entropi': did you mean entropy"),
    row(AttributeError, lambda: matrix()._xyz, "'Attention' object has no attribute '_xyz'."),
    row(TypeError, lambda: zeros(3, 6) @ matrix().mT, "r @ A.mT is not a question", "it is the transpose of A @ r.mT."),
    row(TypeError, lambda: np.ones((3, 6)) @ matrix().mT, "r @ A.mT is not a question to an attention matrix"),
    row(TypeError, lambda: matrix().to("nowhere"), "to: takes a device, a dtype, both, or a tensor", "got 'nowhere'."),
    row(
        Unsupported,
        lambda: matrix().half(),
        "to: an attention matrix of torch.float32 does not become torch.float16, which would change its weights: cast the",
        "A.topk(k).values.to(torch.float16), or build it on query and key of that dtype.",
    ),
    row(Unsupported, lambda: matrix().to(torch.int64), "torch.float32 does not become torch.int64"),
    row(
        Unsupported,
        lambda: matrix().unsqueeze(-1),
        "unsqueeze: an attention matrix of shape (2, 4, 5, 6) takes a new dimension before its heads, dim 0 to 1; got -1.",
    ),
    row(
        Unsupported,
        lambda: torch.transpose(matrix(), 1, 2),
        "transpose: an attention matrix exchanges queries and keys, A.mT; got dims 1 and 2.",
    ),
    row(
        ValueError,
        lambda: matrix().__array__(copy=False),
        "np.array(A, copy=False): an attention matrix is not stored, so that NumPy cannot share it.",
    ),
]

ALGEBRA = [
    row(ValueError, lambda: matrix(softcap=0.0), "attention: softcap must be a finite number above 0; got 0.0."),
    row(ValueError, lambda: matrix(softcap=True), "attention: softcap must be a finite number above 0; got True."),
    row(ValueError, lambda: matrix(softcap=float("nan")), "attention: softcap must be a finite number above 0; got nan."),
    row(ValueError, lambda: matrix(sinks=float("inf")), "attention: sinks must be below infinity; got inf."),
    row(TypeError, lambda: matrix(sinks="zero"), "attention: sinks must be a tensor; got str."),
    row(
        TypeError,
        lambda: matrix(sinks=zeros(4, dtype=torch.int64)),
        "attention: sinks must be float16, bfloat16, float32 or float64; got torch.int64 of shape (4,).",
    ),
    row(
        ShapeError,
        lambda: matrix(sinks=zeros(3)),
        "attention: sinks must be one number per head, shape (4,); got shape (3,).",
    ),
    row(
        ValueError,
        lambda: matrix(sinks=zeros(4, device="meta")),
        "attention: sinks and query must be on one device; got meta and cpu.",
    ),
    row(ValueError, lambda: matrix().dropout(1.5, 0), "dropout: p must be a number from 0 to 1; got 1.5."),
    row(ValueError, lambda: matrix().dropout(True, 0), "dropout: p must be a number from 0 to 1; got True."),
    row(ValueError, lambda: matrix().dropout(0.5, -1), "dropout: seed must be at least 0; got -1."),
    row(
        TypeError,
        lambda: matrix().dropout(0.5, torch.rand(2)),
        "dropout: seed must be an integer; got a torch.float32 tensor of shape (2,).",
    ),
    row(
        ShapeError,
        lambda: picture.svg(zeros(2, 3), ["a"], ["b"]),
        "svg: weights must be (queries, keys) with one word for each; got shape (2, 3) for 1 queries and 1 keys.",
        "Choose one head, such as A[0, 3].",
    ),
    row(
        TooLarge,
        lambda: picture.svg(zeros(1, 129), ["a"], ["b"] * 129),
        "svg: at most 128 queries and keys can be drawn with their words; got (1, 129).",
        "A.pool((64, 64))",
    ),
    row(TypeError, lambda: matrix().kl(Q), "A.kl(B): B must be an attention matrix; got Tensor."),
    row(
        ShapeError,
        lambda: matrix().js(matrix()[..., :3]),
        "A.js(B): both matrices must have one shape; got (2, 4, 5, 6) and (2, 4, 5, 3).",
    ),
    row(
        ValueError,
        lambda: matrix().kl(regard.attention(Q.to("meta"), K.to("meta"))),
        "A.kl(B): both matrices must be on one device; got cpu and meta.",
    ),
    row(
        TypeError,
        lambda: regard.attention(Q.to(torch.complex64), K.to(torch.complex64)),
        "attention: query must be float16, bfloat16, float32 or float64; got torch.complex64 of shape (2, 4, 5, 8).",
    ),
    row(
        TypeError,
        lambda: regard.attention(torch.nested.nested_tensor([zeros(2, 3), zeros(4, 3)], layout=torch.jagged), K),
        "attention: query must be a dense tensor; got layout torch.jagged",
        "documents",
    ),
]

JAGGED = torch.nested.nested_tensor([torch.ones(2).bool(), torch.ones(3).bool()], layout=torch.jagged)

ATTACKS = [
    row(TypeError, lambda: padding(keep=JAGGED), "padding(keep=…): needs a dense tensor; got a nested one.", "documents(ids)"),
    row(TypeError, lambda: dense(YES.to_sparse()), "dense: needs a dense tensor; got layout torch.sparse_coo."),
    row(TypeError, lambda: padding(torch.tensor([3, 4]).to_sparse()), "padding: needs a dense tensor; got layout"),
    row(TypeError, lambda: matrix(offset=torch.tensor([3, 4]).to_sparse()), "attention: offset: needs a dense tensor; got"),
    row(ValueError, lambda: padding(torch.tensor([-3, 2])), "padding: lengths must be at least 0; got -3."),
    row(
        ValueError,
        lambda: matrix(mask=where(lambda b, h, i, j: i > zeros(5, 6, device="meta"))).entropy(),
        "where(<lambda>): the function failed on indices on cpu; tensors that it holds must be there too",
        "PyTorch said '",
    ),
    row(TypeError, lambda: where(lambda b, h, i: b), "where: the function must take (batch, head, query, key); got one with"),
    row(
        IndexError,
        lambda: causal.allows(0, 0, torch.arange(3), torch.arange(4)),
        "allows: causal cannot be looked up there (batch (), head (), query (3,), key (4,), offset ())",
    ),
    row(TypeError, lambda: causal.allows(0, 0, 1, 2, 1.5), "allows: batch, head, query and key are integers; got torch.float"),
    row(TypeError, lambda: causal.draw(5, 3, 1.5), "draw: offset must be an integer; got 1.5."),
    row(ValueError, lambda: matrix(softcap=10**400), "attention: softcap must be a finite number above 0; got 1000"),
    row(ValueError, lambda: matrix(sinks=10**400), "attention: sinks must be below infinity; got 1000"),
    row(ValueError, lambda: matrix(offset=torch.tensor([0, 2**62])), "attention: offset must be at most 2**60; got"),
    row(TooLarge, lambda: matrix().pool((10**7, 10**7)), "pool: (10000000, 10000000) bins for each of 8 heads"),
    row(ValueError, lambda: regard.scores.cosine(torch.tensor([1.0, 0.0])), "cosine: temperatures must be above 0; got 0."),
    row(
        ShapeError,
        lambda: matrix(score=regard.scores.additive(zeros(8, 0), zeros(8, 0), zeros(0))),
        "additive needs at least one hidden unit; got none",
    ),
]


def traced(call: Callable[[], Any]) -> Any:
    """As if a graph were being made of it; test_compile.py makes graphs."""
    with patch("torch.compiler.is_compiling", return_value=True):
        return call()


GRAPHS = [
    row(
        Unsupported,
        lambda: traced(lambda: torch.Tensor.matmul(zeros(6, 5), MATRIX)),
        "A @ v: torch.compile exchanges the operands of @, and a v of shape (6, 5) could stand on either side of a matrix",
        "write torch.matmul(A, v) in compiled functions.",
    ),
    row(TypeError, lambda: traced(lambda: torch.Tensor.matmul(zeros(3, 5), MATRIX)), "v @ A is not a question"),
    row(
        Unsupported,
        lambda: traced(lambda: Mass(torch.tensor([0, 1]))),
        "mass: a compiled graph does not look at numbers: say count, the number of segments.",
    ),
    row(
        Unsupported,
        lambda: traced(lambda: documents.from_cu_seqlens(torch.tensor([0, 3]))),
        "documents: a compiled graph does not look at numbers, and cu_seqlens is made of them: make the mask outside",
    ),
]
MATRIX = matrix()

SENTENCES = [
    row(ValueError, lambda: regard.embed([]), "embed", "at least one sentence"),
    row(TypeError, lambda: regard.embed(["one", 2]), "embed", "must be texts", "int"),
    row(
        ValueError,
        lambda: regard.embed("one", model=Pretrained(torch.nn.Linear(1, 1), None, "mine", None)),
        "embed: the model is in training mode, in which it drops by chance; call model.eval() first.",
    ),
]

ROWS = [*SENTENCES, *GRAPHS, *ATTACKS, *ALGEBRA, *READOUTS, *CALL, *MASKS, *PACKED, *BIASES_AND_SCORES, *QUESTIONS, *TENSORS]


@pytest.mark.parametrize(("kind", "call", "fragments"), ROWS)
def test_sentence(kind, call, fragments):
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    said = str(refused.value)
    for fragment in fragments:
        assert fragment in said
    assert said.endswith((".", "queries."))
    assert "torch.Size" not in said


# -- no sentence without a row ----------------------------------------------------------------------------------------

HOME = Path(checks.__file__).parent
SAYING = (
    "checks.py",
    "attention.py",
    "tensorlike.py",
    "lazy.py",
    "functions.py",
    "layout.py",
    "explain.py",
    "backends/__init__.py",
)
SAYING += tuple(f"readouts/{f.name}" for f in sorted((HOME / "readouts").glob("*.py")) if f.name != "base.py")


def places_that_raise(path: Path) -> dict[tuple[Path, int], str]:
    """Every line of a raise statement, and the function it stands in."""
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    found = {(path, n.lineno, n.end_lineno): f.name for f in functions for n in ast.walk(f) if isinstance(n, ast.Raise)}
    return {
        (path, line): f"{name}, line {first}" for (_, first, last), name in found.items() for line in range(first, last + 1)
    }


def test_every_sentence_has_a_row():
    silent: dict[str, set[str]] = {}
    lines = {}
    for name in SAYING:
        found = places_that_raise(HOME / name)
        lines |= {place: (name, where_) for place, where_ in found.items()}
        silent[name] = set(found.values())
    for parameters in ROWS:
        with pytest.raises(Exception) as refused:  # noqa: PT011
            parameters.values[1]()
        for frame in refused.traceback:
            if (frame.path, frame.lineno + 1) in lines:
                name, where_ = lines[frame.path, frame.lineno + 1]
                silent[name].discard(where_)
    without = {name: sorted(left) for name, left in silent.items() if left}
    assert not without, "sentences that no row of this file brings about"


def test_every_function_of_checks_says_something():
    """A helper that refuses nothing would escape the test above."""
    plain = {"_both", "_number", "_shape", "human", "listed", "one_of", "reach"}
    tree = ast.parse(Path(checks.__file__).read_text(encoding="utf-8"))
    saying = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) for x in ast.walk(n) if isinstance(x, ast.Raise)}
    assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} == saying | plain


# -- what is not refused ----------------------------------------------------------------------------------------------


def test_the_errors_are_what_python_programs_catch():
    assert issubclass(ShapeError, ValueError)
    assert issubclass(Unsupported, NotImplementedError)
    assert issubclass(TooLarge, MemoryError)
    assert issubclass(Changed, RuntimeError)
    for error in (ShapeError, Unsupported, TooLarge, Changed):
        assert getattr(regard, error.__name__) is error


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (1023, "1.02e+03 B"),
        (1024, "1 KiB"),
        (960 * 1024, "960 KiB"),
        (3 << 19, "1.5 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 40, "1 TiB"),
        (5 << 50, "5,120 TiB"),
    ],
)
def test_bytes_as_a_person_says_them(size, said):
    assert checks.human(size) == said


def test_a_limit_that_is_met_exactly_is_not_exceeded():
    assert matrix().to_dense(limit=960).shape == (2, 4, 5, 6)
    assert matrix().to_dense(limit=None).shape == (2, 4, 5, 6)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (1, 6, 3), (2, 6, 3), (4, 6, 3), (1, 1, 6, 3), (2, 2, 6, 3), (2, 4, 6, 3)])
def test_values_of_every_fitting_shape(shape):
    v = torch.randn(shape)
    found = matrix() @ v
    W = matrix(backend="reference").to_dense()
    if len(shape) > 2:
        v = v.repeat_interleave(4 // shape[-3], dim=-3)
    assert torch.allclose(found, W @ v, atol=1e-6)


def test_tensors_called_by_name_are_the_same_questions():
    A, v = matrix(), torch.randn(6, 2)
    for found in (torch.matmul(A, v), torch.matmul(A, other=v), torch.matmul(input=A, other=v), torch.bmm(A, mat2=v)):
        assert torch.allclose(found, A @ v, atol=1e-6)
    assert torch.allclose(torch.sum(input=A, dim=-2), A.sum(-2))
    assert torch.allclose(torch.mean(A, -2), A.sum(-2) / 5)
    assert torch.allclose(torch.amax(A, dim=-1), A.amax(-1))
    assert torch.equal(torch.argmax(A, 3), A.argmax(-1))


def test_after_a_change_the_matrix_is_built_again():
    q = Q.clone()
    A = regard.attention(q, K)
    q.mul_(2)
    with pytest.raises(Changed):
        A.logsumexp()
    assert torch.equal(regard.attention(q, K).logsumexp(), regard.attention(2 * Q, K).logsumexp())


@pytest.mark.parametrize("index", [0, slice(1), [1, 0], (0, 0), (slice(None), slice(2)), (..., slice(3)), (0, 0, slice(2))])
@pytest.mark.parametrize("which", [0, 1])
def test_a_part_whose_parent_changed_afterwards_refuses_or_is_still_right(index, which):
    tensors = Q.clone(), K.clone()
    A = regard.attention(*tensors)
    due = A.to_dense()[index]
    part = A[index]
    tensors[which].mul_(3)
    try:
        found = part.to_dense()
    except Changed:
        return
    assert torch.allclose(found, due, atol=1e-6)


def test_every_question_notices_a_change():
    def of(ask: Callable[[regard.Attention], Any]) -> Callable[[], Any]:
        q = Q.clone()
        A = regard.attention(q, K, mask=causal)
        A.logsumexp()  # even if the answer could be read from memory
        q[0, 0, 0, 0] += 1
        return lambda: ask(A)

    for ask in (
        regard.Attention.entropy,
        regard.Attention.logsumexp,
        regard.Attention.to_dense,
        lambda A: A.topk(2),
        lambda A: A.sum(-1),
        lambda A: A.sum(-2),
        lambda A: A.diagonal(),
        lambda A: A.pool((2, 2)),
        lambda A: A @ zeros(6, 1),
        lambda A: A.mT @ zeros(5, 1),
        lambda A: A[0, 0, 0],
        lambda A: A[..., 1:].entropy(),
        lambda A: A[0].entropy(),
        lambda A: A[..., 2, :],
    ):
        with pytest.raises(Changed):
            of(ask)()


def test_inference_tensors_have_no_version_and_are_not_refused():
    with torch.inference_mode():
        q = Q.clone()
        A = regard.attention(q, K)
        q.mul_(2)
        assert torch.isfinite(A.logsumexp()).all()


def test_a_backend_may_be_given_as_a_value():
    small = replace(Tiled(), elements=64)
    assert torch.allclose(matrix(backend=small).entropy(), matrix().entropy(), atol=1e-5)
