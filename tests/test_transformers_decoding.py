"""What is kept while a model decodes: one memory of keys for all steps of a layer, and nothing that nobody asked for."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import regard
from regard.checks import Changed, Unsupported
from regard.readouts import Entropy, TopK
from regard.testing.architectures import inputs, named, twins
from regard.testing.likeness import GREEDY
from regard.transformers import decoding, first_key, layer
from regard.transformers.decoding import Keys, Step

LONG = {**GREEDY, "max_new_tokens": 24, "min_new_tokens": 24}


def prompt(length: int = 12) -> torch.Tensor:
    return torch.randint(4, 40, (2, length), generator=torch.Generator().manual_seed(0))


def decoded(one: str = "llama", **options: Any) -> tuple[tuple[Step, ...], ...]:
    steps = twins(named(one))[1].generate(prompt(), **{**LONG, **options}).attentions
    assert all(type(A) is Step for matrices in steps for A in matrices)
    return steps


def near(A: regard.Attention, W: torch.Tensor) -> None:
    assert A.shape == W.shape
    torch.testing.assert_close(A.to_dense(), W, rtol=0, atol=1e-5)


def held(*matrices: Any) -> int:
    """Bytes of the storages that matrices keep alive."""
    found: dict[int, int] = {}

    def look(at: Any, depth: int = 0) -> None:
        if isinstance(at, torch.Tensor):
            if at.device.type != "meta":
                found[at.untyped_storage().data_ptr()] = at.untyped_storage().nbytes()
        elif isinstance(at, (tuple, list)):
            for part in at:
                look(part, depth)
        elif depth < 6 and type(at).__module__.startswith("regard") and hasattr(at, "__dict__"):
            look([*vars(at).values()], depth + 1)

    look(matrices)
    return sum(found.values())


@pytest.mark.parametrize("asked", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_the_steps_of_a_layer_share_one_memory_of_keys(cache: str | None, asked: bool) -> None:
    """12 + 23 tokens of 2 rows × 2 key heads × 8 numbers, once per layer; not once per step."""
    steps = decoded(cache_implementation=cache)
    for layer_steps in zip(*steps, strict=True):
        assert len({id(A.__dict__["stretch"].keys) for A in layer_steps}) == 1
        if asked:
            for A in layer_steps:
                A.read(Entropy(), TopK(2))
        queries = sum(A.__dict__["call"].query.numel() for A in layer_steps)
        keys = 35 * 2 * 2 * 8
        memos = 35 * 2 * 4  # log-sum-exps
        assert held(*layer_steps) <= 4 * (queries + keys + memos) * 1.05


def test_a_longer_run_keeps_keys_in_proportion() -> None:
    sizes = []
    for tokens in (8, 64):
        steps = decoded(max_new_tokens=tokens, min_new_tokens=tokens)
        sizes.append(held(*steps) / (12 + tokens))
    assert sizes[1] <= 1.1 * sizes[0]


def test_keys_are_freed_with_the_last_matrix() -> None:
    steps = decoded()
    keys = weakref.ref(steps[0][0].__dict__["stretch"].keys)
    last = steps[-1][0]
    del steps
    gc.collect()
    assert keys() is not None
    del last
    gc.collect()
    assert keys() is None


def test_nothing_is_kept_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without output_attentions no matrix outlives its layer, no cache is watched, and no key copied."""
    made: list[weakref.ref[Any]] = []
    build = regard.attention
    monkeypatch.setattr(layer.regard, "attention", lambda *a, **k: (made.append(weakref.ref(A := build(*a, **k))), A)[1])
    monkeypatch.setattr(decoding, "shared", lambda *_: pytest.fail("kept"))
    monkeypatch.setattr(decoding, "_tell", lambda *_: pytest.fail("watched"))
    _, lazy = twins(named("llama"))
    tokens = lazy.generate(prompt(), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert tokens.shape == (2, 18)
    assert len(made) == 12
    gc.collect()
    assert not [A for A in made if A() is not None]


# -- caches that change -----------------------------------------------------------------------------------------------


def run(model: Any, cache: Any, ids: torch.Tensor) -> Any:
    with torch.no_grad():
        return model(ids, past_key_values=cache, output_attentions=True).attentions


def caches(kind: str, *models: Any) -> list[Any]:
    return [DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=24) for model in models]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_matrix_outlives_what_happens_to_its_cache(kind: str) -> None:
    """Reset and filled again with other texts: the old matrices keep the old keys, the new ones have the new."""
    models = twins(named("llama"))
    ours, theirs = [], []
    for round_ in range(2):
        for model, cache, found in zip(models, caches(kind, *models), (theirs, ours), strict=True):
            ids = prompt() + round_
            found += [*run(model, cache, ids[:, :5]), *run(model, cache, ids[:, 5:6]), *run(model, cache, ids[:, 6:])]
            cache.reset()
            if kind == "static":
                found += run(model, cache, ids.flip(1)[:, :5])
                found += run(model, cache, ids[:, 5:6])
    for A, W in zip(ours, theirs, strict=True):
        near(A, W)


def test_a_prompt_whose_cache_is_emptied_in_place_is_refused_or_copied() -> None:
    """A growing cache is not copied: what it held is the matrix's, until somebody writes into it."""
    eager, lazy = twins(named("llama"))
    dynamic, static = caches("dynamic", lazy)[0], caches("static", lazy)[0]
    wanted = run(eager, DynamicCache(), prompt())[0]
    first, second = run(lazy, dynamic, prompt())[0], run(lazy, static, prompt())[0]
    again = copy.deepcopy(first)
    for cache in (dynamic, static):
        for one in cache.layers:
            one.keys.zero_()
    with pytest.raises(Changed, match="was changed in place"):
        first.entropy()
    near(second[..., :12], wanted)
    near(again, wanted)


def test_a_cropped_cache_goes_on_with_other_tokens() -> None:
    models, made = twins(named("llama")), []
    for model, cache in zip(models, caches("dynamic", *models), strict=True):
        ids = prompt()
        found = [*run(model, cache, ids[:, :8])]
        cache.crop(-3)
        found += [*run(model, cache, ids[:, 9:10]), *run(model, cache, ids[:, 10:])]
        made.append(found)
    for W, A in zip(*made, strict=True):
        near(A, W)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_steps_that_nobody_asked_about_are_no_gap(kind: str) -> None:
    models, made = twins(named("llama")), []
    for model, cache in zip(models, caches(kind, *models), strict=True):
        ids = prompt()
        found = [*run(model, cache, ids[:, :4])]
        with torch.no_grad():
            model(ids[:, 4:6], past_key_values=cache)
        found += [*run(model, cache, ids[:, 6:7]), *run(model, cache, ids[:, 7:])]
        made.append(found)
    for W, A in zip(*made, strict=True):
        near(A, W)


def test_rows_that_change_places() -> None:
    """Beams: the rows of a cache are chosen anew between steps."""
    models, made = twins(named("llama")), []
    for model, cache in zip(models, caches("dynamic", *models), strict=True):
        ids = prompt()
        found = [*run(model, cache, ids[:, :8])]
        cache.reorder_cache(torch.tensor([1, 1]))
        found += [*run(model, cache, ids[:, 8:9]), *run(model, cache, ids[:, 9:])]
        made.append(found)
    for W, A in zip(*made, strict=True):
        near(A, W)


class Rounding(DynamicLayer):
    """A cache that changes what it was given, as quantised ones do."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        super().update(*args, **kwargs)
        self.keys = (self.keys * 4).round() / 4
        return self.keys, self.values


def test_a_cache_that_changes_its_keys_shares_nothing() -> None:
    made = []
    for model in twins(named("llama")):
        cache, found, ids = Cache(layer_class_to_replicate=Rounding), [], prompt()
        for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
            found += run(model, cache, ids[:, part])
        made.append(found)
    assert not [A for A in made[1] if type(A) is Step]
    for W, A in zip(*made, strict=True):
        near(A, W)


def test_two_caches_of_one_model_stay_apart() -> None:
    models, made = twins(named("mistral")), []
    for model in models:
        first, second = caches("dynamic", model, model)
        ids, found = prompt(), []
        for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
            found += [*run(model, first, ids[:, part]), *run(model, second, ids.flip(1)[:, part])]
        made.append(found)
    for W, A in zip(*made, strict=True):
        near(A, W)


def test_a_key_of_unknown_origin_that_is_overwritten() -> None:
    """Somebody's own cache, written in place: the matrix keeps a copy of what it was given."""
    buffer = torch.zeros(1, 2, 6, 8)
    buffer[:, :, :4] = torch.randn(1, 2, 4, 8)
    query = torch.randn(1, 4, 1, 8)

    class Layer(torch.nn.Module):
        is_causal = True

    with torch.no_grad():
        _, A = layer.attention_forward(Layer(), query, buffer, buffer, None)
        before = A.to_dense()
        buffer[:, :, 4:] = 7.0
    torch.testing.assert_close(A.to_dense(), before)
    fresh = regard.attention(query, buffer)
    buffer.zero_()
    with pytest.raises(Changed, match="was changed in place"):
        fresh.entropy()


# -- a matrix of a step is a matrix -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step() -> Step:
    return decoded()[5][1]


def test_what_is_made_of_it_is_that_of_a_matrix(step: Step) -> None:
    plain = regard.Attention(step.call, step.layout)
    assert repr(step) == repr(plain)
    assert step.shape == plain.shape == (2, 4, 1, 17)
    for of in (
        lambda A: A[:, 1:3, :, 2:9].to_dense(),
        lambda A: A[0, 1, 0],
        lambda A: A.dropout(0.5, 3) @ torch.ones(17, 2),
        lambda A: A.dropout(0.5, 3).to_dense(),
        lambda A: A.mT @ torch.ones(1, 1),
        lambda A: A.kl(plain),
        lambda A: A.float().sum(-2),
        lambda A: A.detach().cpu().squeeze(0).mean(1),
        lambda A: A.double().dtype,
        lambda A: torch.stack([A, A])[1],
        lambda A: A.numpy().sum(),
        lambda A: A.pool((1, 4)),
    ):
        found, wanted = of(step), of(plain)
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, wanted)
        else:
            assert found == wanted


def test_its_first_key_is_known_of_a_copy_and_not_of_a_part(step: Step) -> None:
    assert first_key(step) == first_key(copy.deepcopy(step)) == first_key(pickle.loads(pickle.dumps(step))) == 0
    for part in (step[0], step[..., 2:], step.dropout(0.5, 3), regard.attention(torch.ones(2, 1), torch.ones(2, 1))):
        with pytest.raises(Unsupported, match=r"^first_key: only a matrix that a model returned knows .*; got Attention\(\("):
            first_key(part)
    with torch.no_grad():
        matrices = twins(named("t5"))[1](**inputs(named("t5")), output_attentions=True).cross_attentions
    assert [first_key(A) for A in matrices] == [0, 0]


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
def test_copies_and_pickles(way: str, step: Step) -> None:
    made = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda A: pickle.loads(pickle.dumps(A))}[way](step)
    assert type(made) is Step
    near(made, step.to_dense())
    near(made[:, :, :, 3:], step.to_dense()[..., 3:])


def test_steps_that_are_copied_together_still_share() -> None:
    steps = decoded()
    again = copy.deepcopy(steps)
    assert held(*again) <= 1.1 * held(*steps)
    near(again[3][0], steps[3][0].to_dense())


def test_under_autocast_keys_are_cast_as_the_layer_cast_them() -> None:
    eager, lazy = twins(named("llama"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = DynamicCache()
        first = lazy(prompt(), past_key_values=cache, output_attentions=True).attentions
        second = lazy(prompt(1), past_key_values=cache, output_attentions=True).attentions
        other = DynamicCache()
        eager(prompt(), past_key_values=other)
        wanted = eager(prompt(1), past_key_values=other, output_attentions=True).attentions
    for A, W in zip(second, wanted, strict=True):
        assert A.call.key.dtype == A.call.query.dtype == torch.bfloat16
        torch.testing.assert_close(A.to_dense(), W.float(), rtol=0, atol=0.02)
    assert bool(first[0].entropy().isfinite().all())


def test_inference_mode_counts_no_changes() -> None:
    models, made = twins(named("llama")), []
    for kind in ("dynamic", "static"):
        found = []
        for model, cache in zip(models, caches(kind, *models), strict=True):
            with torch.inference_mode():
                ids, one = prompt(), []
                for part in (slice(0, 5), slice(5, 6), slice(6, 7), slice(7, 8)):
                    one += model(ids[:, part], past_key_values=cache, output_attentions=True).attentions
                if kind == "static":
                    cache.reset()
                    for part in (slice(2, 8), slice(8, 9), slice(0, 3)):
                        one += model(ids[:, part], past_key_values=cache, output_attentions=True).attentions
                found.append(one)
        made.append(found)
    for theirs, ours in made:
        for W, A in zip(theirs, ours, strict=True):
            near(A, W)


def test_stretches() -> None:
    keys = Keys(3, torch.arange(3.0, 6).view(1, 1, 3, 1))
    keys.append(torch.arange(6.0, 8).view(1, 1, 2, 1))
    assert (keys.start, keys.stop, len(keys.parts)) == (3, 8, 2)
    assert keys.between(4, 7).flatten().tolist() == [4, 5, 6]
    assert len(keys.parts) == 1
    assert decoding.Stretch(keys, 5, 8, 5).tensor().flatten().tolist() == [5, 6, 7, 0, 0]
