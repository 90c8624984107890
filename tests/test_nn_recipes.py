"""Recipes: models made in a few lines, a step of training that reaches all of them, and one graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import nn as theirs
from torch.nn import functional as F

from regard import nn
from regard.masks import padding

WORDS = 11
LENGTHS = [7, 4, 1]
TOKENS = torch.randint(1, WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(2))
PADDING = padding(LENGTHS)
KEEP = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def same(found: Tensor, due: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, due, rtol=0, atol=atol)


PAD, BEGIN = 0, 1
LABELS = torch.tensor([0, 2, 1])
OPTIONS: dict[str, Any] = {"norm_first": True, "activation": "gelu", "dropout": 0.1}


def cross_entropy(logits: Tensor, labels: Tensor, **given: Any) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **given)


def translating(model: Any) -> Tensor:
    begun = F.pad(TARGETS[:, :-1], (1, 0), value=BEGIN)
    return cross_entropy(model(TOKENS, begun, mask=PADDING), TARGETS, ignore_index=PAD, label_smoothing=0.1)


def slots(model: Any) -> Tensor:
    """A label for each token; those of padding are not counted."""
    return cross_entropy(model(TOKENS, mask=padding(keep=KEEP)), (TOKENS % 4).where(KEEP, -100))


def intents(model: Any) -> Tensor:
    return cross_entropy(model(TOKENS, mask=padding(keep=KEEP)), LABELS)


PICTURES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(3))
SOUNDS = torch.randn(3, 4000, generator=torch.Generator().manual_seed(4))
SAMPLES = torch.tensor([4000, 2400, 800])


def pictures(model: Any) -> Tensor:
    return cross_entropy(model(PICTURES), LABELS)


def digits(model: Any) -> Tensor:
    x = nn.log_mel(SOUNDS, 8000, mels=40)
    return cross_entropy(model(x, mask=padding(1 + SAMPLES // 80)), LABELS)


def characters(model: Any) -> Tensor:
    return cross_entropy(model(TOKENS[:, :-1]), TOKENS[:, 1:])


def masked(model: Any) -> Tensor:
    hidden = torch.arange(7) % 3 == 1
    return cross_entropy(model(TOKENS.masked_fill(hidden, 0), mask=PADDING), TOKENS.where(hidden & KEEP, -100))


@dataclass(frozen=True)
class Recipe:
    """A model, and its loss on three examples."""

    make: Callable[[], theirs.Module]
    loss: Callable[[Any], Tensor]


RECIPES = {
    "translation, recurrent": Recipe(lambda: nn.RecurrentSequenceToSequence(WORDS, 9, 32, dropout=0.1), translating),
    "translation, Bahdanau": Recipe(lambda: nn.BahdanauSequenceToSequence(WORDS, 9, 32, dropout=0.1), translating),
    "translation, Transformer": Recipe(
        lambda: nn.SequenceToSequence(WORDS, 9, 32, heads=4, layers=2, position=nn.sinusoidal(), dropout=0.1), translating
    ),
    "translation, one vocabulary": Recipe(
        lambda: nn.SequenceToSequence(WORDS, None, 32, heads=4, layers=1, position=nn.rotary(), norm_first=True), translating
    ),
    "intents": Recipe(
        lambda: nn.SequenceClassifier(
            nn.TextEncoder(WORDS, 32, heads=4, layers=2, position=nn.sinusoidal(), **OPTIONS), 32, classes=3, pool="attention"
        ),
        intents,
    ),
    "intents, BERT": Recipe(
        lambda: nn.SequenceClassifier(nn.Bert(WORDS, 32, 4, 2, positions=8), 32, classes=3, pool="body", dropout=0.1), intents
    ),
    "slots": Recipe(
        lambda: nn.TokenClassifier(nn.TextEncoder(WORDS, 32, 4, 2, position=nn.rotary(), **OPTIONS), 32, classes=4), slots
    ),
    "slots, BERT": Recipe(
        lambda: nn.TokenClassifier(nn.Bert(WORDS, 32, 4, 2, positions=8, pooler=False), 32, classes=4, dropout=0.1), slots
    ),
    "pictures": Recipe(
        lambda: nn.SequenceClassifier(nn.ImageEncoder(28, 4, 1, 32, heads=4, layers=2, **OPTIONS), 32, classes=3), pictures
    ),
    "pictures, mean": Recipe(
        lambda: nn.SequenceClassifier(
            nn.ImageEncoder(28, 7, 1, 32, heads=2, layers=1, position=nn.rotary(grid=(4, 4)), class_token=False),
            32, classes=3, pool="mean",
        ),
        pictures,
    ),
    "digits": Recipe(
        lambda: nn.SequenceClassifier(
            nn.AudioEncoder(40, 32, heads=4, layers=2, position=nn.sinusoidal(), **OPTIONS), 32, classes=3, pool="mean"
        ),
        digits,
    ),
    "characters": Recipe(
        lambda: nn.LanguageModel(WORDS, 32, heads=4, layers=2, position=nn.rotary(), **OPTIONS), characters
    ),
    "masked words": Recipe(
        lambda: nn.LanguageModel(WORDS, 32, heads=4, layers=2, mask=None, tied=False, position=nn.sinusoidal()), masked
    ),
}  # fmt: skip
every_recipe = pytest.mark.parametrize("name", RECIPES)


@every_recipe
def test_a_step_of_training_reaches_every_parameter(name):
    recipe = RECIPES[name]
    model = recipe.make().train()
    recipe.loss(model).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
        assert p.ndim < 2 or p.grad.any(), parameter
    before = [p.detach().clone() for p in model.parameters()]
    torch.optim.AdamW(model.parameters(), 1e-3).step()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@every_recipe
def test_three_examples_are_learned_by_heart(name):
    recipe = RECIPES[name]
    model = recipe.make()
    for dropout in model.modules():
        if isinstance(dropout, theirs.Dropout):
            dropout.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = float(recipe.loss(model).detach())
    sure, other = 0.9 + 0.1 / 9, 0.1 / 9  # what smoothed labels want of nine words, and so cannot be brought below
    least = -sure * math.log(sure) - 8 * other * math.log(other) if recipe.loss is translating else 0.0
    for _ in range(40):
        optimizer.zero_grad()
        loss = recipe.loss(model)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) - least < 0.2 * (first - least)


@every_recipe
def test_a_state_dict_goes_around(name, tmp_path: Path):
    recipe = RECIPES[name]
    model = recipe.make().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = recipe.make().eval()
    assert not torch.equal(recipe.loss(other), recipe.loss(model))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(recipe.loss(other), recipe.loss(model))


# -- compiled ---------------------------------------------------------------------------------------------------------


# Deprecation warnings of Dynamo's own
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@compiles
@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("name", ["intents", "slots", "pictures", "digits", "characters", "translation, Transformer"])
def test_one_graph_is_the_same_model(name):
    recipe = RECIPES[name]
    model = recipe.make().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    due, found = recipe.loss(model), recipe.loss(compiled)
    same(found, due, atol=1e-6)
    of = [p for p in model.parameters() if p.ndim > 1]
    for a, b in zip(torch.autograd.grad(found, of), torch.autograd.grad(due, of), strict=True):
        same(a, b, atol=1e-5)


@compiles
@pytest.mark.usefixtures("as_users_have_it")
def test_one_graph_classifies_texts_of_all_lengths():
    model = RECIPES["intents"].make().eval()

    def classified(tokens: Tensor) -> Tensor:
        return model(tokens, mask=padding(keep=tokens != PAD))

    torch._dynamo.reset()
    compiled = torch.compile(classified, backend="eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (7, 5, 12):
            tokens = torch.randint(WORDS, (4, n))
            same(compiled(tokens), classified(tokens), atol=1e-6)
