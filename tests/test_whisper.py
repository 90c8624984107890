"""Whisper's own generate(): timestamps of tokens through lazy cross-attentions, segments, beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.testing.architectures import named, twins

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, of a call in transformers

NO_TIMESTAMPS = 40
OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "return_token_timestamps": True}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")


def speaking() -> tuple[Any, Any]:
    models = twins(named("whisper"))
    for model in models:
        generation = model.generation_config
        generation.alignment_heads = [[0, 1], [1, 0], [1, 3]]
        generation.no_timestamps_token_id = NO_TIMESTAMPS
        generation.max_initial_timestamp_index = 3
        generation.median_filter_width = 3
        generation.max_length = None
    return models


def heard(models: tuple[Any, Any], frames: int = 32, **options: Any) -> list[Any]:
    sounds = torch.randn(2, 8, frames, generator=torch.Generator().manual_seed(0))
    long = {"attention_mask": torch.ones(2, frames, dtype=torch.long)} if frames > 32 else {}
    return [model.generate(sounds, **long, **{**OPTIONS, **options}) for model in models]


@pytest.mark.parametrize("beams", [1, 2])
def test_timestamps_of_tokens_equal_eager(beams: int) -> None:
    models = speaking()
    wanted, found = heard(models, num_beams=beams)
    assert torch.equal(found["sequences"], wanted["sequences"])
    assert torch.equal(found["token_timestamps"], wanted["token_timestamps"])
    assert float(found["token_timestamps"].max()) > 0
    assert models[1].config._attn_implementation == "regard"  # transformers would have left eager here


def test_the_matrices_beside_the_timestamps_are_lazy() -> None:
    wanted, found = heard(speaking(), output_attentions=True, return_dict_in_generate=True)
    for kind in ("decoder_attentions", "cross_attentions"):
        for ours, theirs in zip(found[kind], wanted[kind], strict=True):
            for A, W in zip(ours, theirs, strict=True):
                assert isinstance(A, regard.Attention)
                assert A.shape == W.shape
                assert float((A.to_dense() - W).abs().max()) <= 1e-5
    for A, W in zip(found["encoder_attentions"], wanted["encoder_attentions"], strict=True):
        assert float((A.to_dense() - W).abs().max()) <= 1e-5


def test_long_sounds_go_segment_by_segment() -> None:
    wanted, found = heard(speaking(), frames=80, return_timestamps=True, return_segments=True, min_new_tokens=1)
    assert torch.equal(found["sequences"], wanted["sequences"])
    assert [len(sample) for sample in found["segments"]] == [len(sample) for sample in wanted["segments"]]
    for mine, eager in zip(found["segments"], wanted["segments"], strict=True):
        for ours, theirs in zip(mine, eager, strict=True):
            assert torch.equal(ours["token_timestamps"], theirs["token_timestamps"])
            assert torch.equal(ours["tokens"], theirs["tokens"])


def test_whisper_has_the_rows_of_all_beams() -> None:
    """transformers keeps as many rows as there are sounds, whichever beams those are; here beam_indices finds its rows."""
    more = {"num_beams": 3, "return_token_timestamps": False, "output_attentions": True, "return_dict_in_generate": True}
    wanted, found = heard(speaking(), **more)
    for ours, theirs in zip(found.cross_attentions, wanted.cross_attentions, strict=True):
        for A, W in zip(ours, theirs, strict=True):
            assert A.shape[0] == 6
            assert float((A[:2].to_dense() - W).abs().max()) <= 1e-5


def test_an_eager_model_stays_one() -> None:
    eager, _ = speaking()
    heard((eager,))
    assert eager.config._attn_implementation == "eager"
