"""Writes docs/architectures.md: python docs/architectures.py. Every number in it is computed here, in a few seconds."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
import transformers

from regard.testing.architectures import ARCHITECTURES, OUTSIDERS, Architecture, twins
from regard.testing.likeness import STEPS, Found, compare, decode
from regard.transformers.requests import PARTLY

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Architectures

What was compared with eager attention: tiny models with random weights, float32, batch 2, without padding and with padding on
the left and on the right. The numbers are the largest differences of logits; of the weights, entropy, top-8 and received of all
layers, on rows that are no padding; and of logits and weights over {steps} steps of `generate()` with a cache. Gradients,
beams, sampling, static caches and prompts in chunks are compared in `tests/test_architectures.py`. All of it stays below 1e-5.
Written by `python docs/architectures.py` with transformers {transformers} and PyTorch {torch}.

A model type that is in neither list goes the same way if its layers go through transformers' `AttentionInterface`; if they do
not, asking for `attn_implementation="regard"` ends in the sentence below, never in dense weights.

| model type | head | matrices | its layers use | logits | weights | decoding |
|---|---|---|---|---|---|---|
"""
OUTSIDE = """
## Where the numbers differ, and why

- A query that may see no key has weights 0 here; eager attention gives all keys the same. Only padding is such a query. MiniMax
  M3 lets blocks of padding on the left compete with blocks of words, so what padding computes is felt there.
- Layers with a learned sink have rows that sum to less than 1, as those of eager `gpt_oss` have. Eager attention of
  `granite_swa` and `granitemoe_swa` returns weights from before the sink, whose rows sum to 1; the outputs are the same.
- With beams, Whisper's eager outputs keep as many rows as there are sounds. Here all beams stay, for `beam_indices` to pick
  from.

## Outside

Their attention is their own code, which transformers lets nobody replace. They get this sentence, at load and from
`set_attn_implementation`:

```text
regard.transformers: BloomModel (model type bloom) does its attention outside transformers' AttentionInterface, so its weights
cannot be lazy; use attn_implementation="eager".
```

{outsiders}.

Of these a part of the layers is outside, and the sentence names it:

{partly}.
"""


def row(architecture: Architecture) -> str:
    """The line of the table."""
    models = twins(architecture)
    found = [compare(architecture, side, models) for side in architecture.sides]
    decoding = "–"
    if architecture.generates:
        decoding = shown(max(max(decode(architecture, side, models)) for side in architecture.sides))
    kinds = {re.sub("[_ ]?attentions", "", kind) or "self" for kind in found[0].kinds}
    cells = (
        f"`{architecture.name}`",
        architecture.head,
        ", ".join(sorted(kinds)),
        ", ".join(found[0].layers) or "–",
        shown(max(part.logits for part in found)),
        shown(max(worst(part) for part in found)),
        decoding,
    )
    return f"| {' | '.join(cells)} |\n"


def worst(found: Found) -> float:
    """Of weights and of what is asked of them."""
    return max(found.weights, found.entropy, found.topk, found.received)


def shown(number: float) -> str:
    return f"{number:.0e}".replace("e-0", "e-")


def page() -> str:
    """The whole page."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0], "steps": STEPS}
    outsiders = ", ".join(f"`{name}`" for name in OUTSIDERS)
    partly = ", ".join(f"`{name}` ({part})" for name, part in PARTLY.items())
    text = HEAD.format(**versions) + "".join(map(row, ARCHITECTURES))
    return text + OUTSIDE.format(outsiders=outsiders, partly=partly)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    PAGE.write_text(page())
    print(f"{PAGE.name}: {len(ARCHITECTURES)} architectures")
