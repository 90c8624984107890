"""What transformers models cost with attn_implementation="regard", beside the same models with sdpa and eager, in one run.

    python benchmarks/adapter.py [--rounds 7] [--append] [--long]

MiniLM (the packaged all-MiniLM-L6-v2), batch 8 × 256 tokens: a forward with lazy attentions and, of every layer, the eight
strongest keys, entropy and what each key received, beside SDPA's plain forward and beside eager with weights and the same
statistics. 32 × 16 tokens: the plain forward, without output_attentions, beside SDPA's. Times are interleaved; a row is the
median of the rounds' ratios. Exits with 1 above 3, above half of eager, or above 1.1.

--long: a Llama-shaped model, 4 layers × 32 heads, 8 key/value heads, dim 64, 16,384 tokens: the memory of the lazy attentions
and all three answers of every head, beyond the model; more than 2.5 GiB exits with 1. Measured on 2 cores: about five minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
import transformers
from torch import Tensor

import regard.transformers  # noqa: F401
from memory import current, peak
from regard import pretrained
from regard.readouts import Entropy, Received, TopK
from results import append
from speed import ratio

KEYS = 8
GIB = 1024  # MiB


def minilm() -> dict[str, Any]:
    """The same model three times."""
    made: dict[str, Any] = {"regard": pretrained.load().model}
    for name in ("sdpa", "eager"):
        model = type(made["regard"])(made["regard"].config.__class__(**made["regard"].config.to_dict()))
        model.load_state_dict(made["regard"].state_dict())
        model.set_attn_implementation(name)
        made[name] = model.eval()
    return made


def lazily(model: Any, inputs: dict[str, Tensor]) -> list[Any]:
    """The forward, and three answers of every layer."""
    outputs = model(**inputs, output_attentions=True)
    return [A.read(TopK(KEYS), Entropy(), Received()) for A in outputs.attentions]


def densely(model: Any, inputs: dict[str, Tensor]) -> list[Any]:
    """The same of stored weights."""
    outputs = model(**inputs, output_attentions=True)
    return [(A.topk(KEYS), torch.special.entr(A).sum(-1), A.sum(-2)) for A in outputs.attentions]


def same(models: dict[str, Any], inputs: dict[str, Tensor]) -> None:
    """The three answers agree, so that what is timed is the same work."""
    for mine, theirs in zip(lazily(models["regard"], inputs), densely(models["eager"], inputs), strict=True):
        torch.testing.assert_close(mine.topk.values, theirs[0].values, rtol=0, atol=1e-4)
        torch.testing.assert_close(mine.entropy, theirs[1], rtol=0, atol=1e-3)
        torch.testing.assert_close(mine.received, theirs[2], rtol=0, atol=1e-2)


def short(rounds: int, save: bool) -> bool:
    """The ratios of MiniLM; whether all are within their limits."""
    models, vocabulary, fine = minilm(), 30_000, True
    inputs, plain = (
        {"input_ids": (ids := torch.randint(1000, vocabulary, size)), "attention_mask": torch.ones_like(ids)}
        for size in ((8, 256), (32, 16))
    )
    with torch.no_grad():
        same(models, inputs)
        found = {
            ("batch 8 × 256 tokens", "forward with top-8, entropy, received / peer's", "SDPA, forward alone", 3.0): ratio(
                lambda: lazily(models["regard"], inputs), lambda: models["sdpa"](**inputs), rounds
            ),
            ("batch 8 × 256 tokens", "forward with top-8, entropy, received / peer's", "eager, the same", 0.5): ratio(
                lambda: lazily(models["regard"], inputs), lambda: densely(models["eager"], inputs), rounds
            ),
            ("batch 32 × 16 tokens", "forward alone / peer's", "SDPA, forward alone", 1.1): ratio(
                lambda: models["regard"](**plain), lambda: models["sdpa"](**plain), 4 * rounds
            ),
        }
    for (case, measure, peer, limit), value in found.items():
        fine &= value <= limit
        said = f"MiniLM, {case}, float32"
        if save:
            append("adapter", said, measure, value, peer)
        else:
            print(f"adapter [{said}] {measure}, {peer}: {value:.3g} (at most {limit:g})", flush=True)
    return fine


def long(tokens: int, save: bool) -> bool:
    """The memory of a Llama-shaped model's answers; whether it is within its limit."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=2048, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=tokens,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config, attn_implementation="regard").eval()
    ids = torch.randint(0, 1000, (1, tokens))
    with torch.no_grad():
        lazily(model, {"input_ids": ids[:, :64]})  # loads what loads once
        before, start = current(), time.perf_counter()
        outputs = model(input_ids=ids, output_attentions=True, use_cache=False)
        answers = [A.read(TopK(KEYS), Entropy(), Received()) for A in outputs.attentions]
    more, seconds = (peak() - before) / GIB, time.perf_counter() - start
    assert [tuple(a.topk.indices.shape) for a in answers] == [(1, 32, tokens, KEYS)] * 4
    case = f"Llama-shaped, 4 layers × 32 heads, 8 key/value heads, dim 64, {tokens} tokens, float32"
    dense = 32 * tokens**2 * 4 / 2**30
    measure = "GiB beyond the model: lazy attentions, top-8, entropy, received of every head"
    if save:
        append("adapter", case, measure, more, "GiB of one layer's weights, eager (computed)", dense)
    else:
        print(f"adapter [{case}] {measure}: {more:.3g} in {seconds:.0f} s; one layer's dense weights: {dense:g} GiB")
    return more <= 2.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--append", action="store_true", help="write the results to the CSV")
    parser.add_argument("--long", action="store_true", help="measure memory at 16,384 tokens instead")
    parser.add_argument("--tokens", type=int, default=16_384, help="the length for --long")
    options = parser.parse_args()
    torch.manual_seed(0)
    fine = long(options.tokens, options.append) if options.long else short(options.rounds, options.append)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
